"""Objects as files: written whole or not at all, read back, matched by id."""

import json

import numpy as np
import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.evaluation import objects
from ar3d_jax.evaluation.benchmarks import Item
from ar3d_jax.render import meshes

CHAIR, LAMP = Item("chair#1", "a chair", "", None), Item("lamp", "a lamp", "", None)
CODES = {"coarse": np.arange(4), "refined": np.arange(4) + 1}


def logits(filled):
    grid = np.full((8, 8, 8), -1.0, np.float32)
    if filled:
        grid[2:6, 2:5, 1:7] = 1.0
    return grid


def write(folder, item, filled=(True, True)):
    grids = dict(zip(CODES, map(logits, filled), strict=True))
    objects.write(folder, 3, item, {"global": "g", "local": "l"}, CODES, grids)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, CHAIR)
    (thing,) = objects.read(tmp_path, [3], [CHAIR])
    assert (thing.item, thing.seed, thing.plans["local"]) == (CHAIR, 3, "l")
    assert thing.codes == {"coarse": [0, 1, 2, 3], "refined": [1, 2, 3, 4]}
    assert set(thing.meshes) == {"coarse", "refined"}
    assert not thing.failures
    mesh = meshes.load(thing.meshes["coarse"], up="y", max_faces=10_000)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0)[2], 1.0, atol=1e-6)
    assert objects.seeds_in(tmp_path) == [3]


def test_an_empty_shape_is_a_failure_with_its_reason(tmp_path):
    write(tmp_path, CHAIR, filled=(True, False))
    (thing,) = objects.read(tmp_path, [3], [CHAIR])
    assert set(thing.meshes) == {"coarse"}
    assert "empty" in thing.failures["refined"]


def test_an_object_that_was_cut_off_is_missing(tmp_path):
    write(tmp_path, CHAIR)
    assert not objects.missing(tmp_path, 3, [CHAIR])
    assert objects.missing(tmp_path, 3, [CHAIR, LAMP])
    place = objects.folder_of(tmp_path, 3, CHAIR)
    place.rename(place.with_name(f".{place.name}"))  # as killed before the last act
    assert objects.missing(tmp_path, 3, [CHAIR])
    write(tmp_path, CHAIR)
    assert not objects.missing(tmp_path, 3, [CHAIR])
    written = (place / "object.json").stat().st_mtime_ns
    write(tmp_path, CHAIR)  # with others of its batch, that were cut off
    assert (place / "object.json").stat().st_mtime_ns == written


def test_a_refused_prompt_fails_every_step(tmp_path):
    objects.write_failure(tmp_path, 3, LAMP, ("coarse", "refined"), "too long")
    (thing,) = objects.read(tmp_path, [3], [LAMP])
    assert thing.failures == {"coarse": "too long", "refined": "too long"}
    assert not objects.missing(tmp_path, 3, [LAMP])


def test_another_prompt_or_a_damaged_file_is_refused(tmp_path):
    write(tmp_path, LAMP)
    other = Item("lamp", "a floor lamp", "", None)
    with pytest.raises(UserError, match="another --workdir"):
        objects.read(tmp_path, [3], [other])
    file = objects.folder_of(tmp_path, 3, LAMP) / "object.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(UserError, match="damaged"):
        objects.read(tmp_path, [3], [LAMP])


def test_meshes_are_matched_by_id(tmp_path):
    names = ("chair-1.glb", "deep/lamp.obj", "lamp.PLY", "stranger.ply", "notes.txt")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    sofa = Item("sofa", "a sofa", "", None)
    found, strangers = objects.from_meshes(tmp_path, [CHAIR, LAMP, sofa], "z")
    assert found[0].meshes == {"mesh": tmp_path / "chair-1.glb"}
    assert found[0].up == "z"
    assert found[1].failures["mesh"].startswith("2 files with this id: ")
    assert "lamp.PLY" in found[1].failures["mesh"]
    assert found[2].failures == {"mesh": "no file with this id"}
    assert strangers == ["stranger.ply"]


def test_a_folder_without_meshes_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"--meshes=.*expected"):
            objects.from_meshes(folder, [CHAIR], "y")


def test_records_are_json(tmp_path):
    write(tmp_path, CHAIR)
    file = objects.folder_of(tmp_path, 3, CHAIR) / "object.json"
    assert json.loads(file.read_text())["prompt"] == "a chair"
