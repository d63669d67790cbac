"""Records: kept whole, named by all that they depend on."""

import dataclasses

import numpy as np
import pytest

from ar3d_jax.config import FeaturesConfig, RenderConfig
from ar3d_jax.errors import UserError
from ar3d_jax.evaluation import measure, record
from ar3d_jax.evaluation.record import Record


def full():
    rng = np.random.default_rng(0)
    return Record(
        vectors={"embedded": rng.random((8, 4), np.float32)},
        texts={"embedded": rng.random(4, np.float32)},
        reasons={"inception": "it failed"},
        points=rng.random((5, 3), np.float32),
        packed=rng.integers(0, 255, 4096).astype(np.uint8),
        health={"components": 2.0},
    )


def test_what_is_saved_is_loaded(tmp_path):
    record.save(full(), tmp_path / "deep" / "a.npz")
    found = record.load(tmp_path / "deep" / "a.npz")
    for field in dataclasses.fields(Record):
        np.testing.assert_equal(
            getattr(found, field.name), getattr(full(), field.name), field.name
        )
    assert found.voxels.sum() == np.unpackbits(full().packed).sum()


def test_a_failure_is_a_record_too(tmp_path):
    record.save(Record(failure="no mesh"), tmp_path / "a.npz")
    assert record.load(tmp_path / "a.npz").failure == "no mesh"


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_damaged_record_counts_as_none(size, tmp_path):
    path = tmp_path / "a.npz"
    record.save(full(), path)
    path.write_bytes(path.read_bytes()[:size])
    assert record.load(path) is None
    assert record.load(tmp_path / "none.npz") is None


def test_the_key_depends_on_everything(tmp_path):
    mesh, other = tmp_path / "a.glb", tmp_path / "b.glb"
    mesh.write_bytes(b"one")
    other.write_bytes(b"two")
    keys = {
        record.key(mesh, "a chair", {"size": 1}),
        record.key(other, "a chair", {"size": 1}),
        record.key(mesh, "a lamp", {"size": 1}),
        record.key(mesh, "a chair", {"size": 2}),
    }
    assert len(keys) == 4
    other.write_bytes(b"one")  # the content counts, not the name
    assert record.key(other, "a chair", {"size": 1}) in keys


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a folder"):
        record.save(full(), tmp_path / "file" / "a.npz")


def test_the_key_depends_on_what_the_networks_files_hold(tmp_path):
    """And not on where they are."""

    def settings(path):
        features = FeaturesConfig(sets=("embedded",))
        return measure._settings(RenderConfig(), features, {"embedded": str(path)})

    file = tmp_path / "judge.safetensors"
    file.write_bytes(b"a")
    before = settings(file)
    assert settings(file.rename(tmp_path / "moved.safetensors")) == before
    file.write_bytes(b"b")
    assert settings(file) != before
