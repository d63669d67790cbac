"""The catalog command on a small furniture file, and its augmentation."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ar3d_jax.codec.voxels import voxelize
from ar3d_jax.data.augmentation import (
    Augmentation,
    augment,
    augmented_voxels,
    draw,
    load_augmented,
)
from ar3d_jax.data.catalog import (
    build_catalog,
    is_held_out,
    load_catalog,
    load_held_out,
    shipped_prompts,
    write_held_out,
)
from ar3d_jax.errors import UserError

USED = ["test-chair", "test-table", "test-lying", "test-lamp8", "test-cot"]


def test_objects_are_in_the_order_of_the_file(catalog):
    assert [record["id"] for record in catalog.objects] == USED
    assert len(catalog) == 5
    np.testing.assert_allclose(catalog.extents[0], [0.8, 0.8, 1.0], atol=1e-4)


def test_meshes_and_voxels_belong_together(catalog):
    voxels = catalog.voxels
    assert voxels.shape == (5, 32, 32, 32)
    for index in range(5):
        vertices, faces = catalog.mesh(index)
        assert faces.max() < len(vertices)
        np.testing.assert_array_equal(voxelize(vertices, faces, 32), voxels[index])


def test_report_names_every_skip(catalog_folder):
    report = json.loads((catalog_folder / "report.json").read_text())
    assert (report["read"], report["used"], report["held_out"]) == (9, 5, 1)
    reasons = {row["id"]: row["reason"] for row in report["skipped"]}
    assert set(reasons) == {"test-gone", "test-empty", "test-flat", "test-broken"}
    assert reasons["test-flat"].startswith("flat")
    assert report["categories"]["Bedroom"] == {"used": 1, "held_out": 0, "skipped": 2}
    text = (catalog_folder / "report.md").read_text()
    assert "9 objects read, 5 used" in text
    assert "| Arrow (test-flat) | flat" in text


def test_contact_sheet_shows_every_object(catalog_folder):
    with Image.open(catalog_folder / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet)
    for column in range(5):
        assert (pixels[:72, 72 * column : 72 * (column + 1)] < 255).any()


def test_one_in_ten_is_held_out_by_hash(catalog):
    assert catalog.held_out.tolist() == [False, False, False, True, False]
    digest = hashlib.blake2b(b"test-lamp8", digest_size=8).digest()
    assert int.from_bytes(digest, "big") % 10 == 0
    share = np.mean([is_held_out(f"object-{i}") for i in range(5000)])
    assert share == pytest.approx(0.1, abs=0.02)


def test_records_describe_the_object(catalog):
    chair = catalog.objects[0]
    assert chair["class"] == "chair"
    assert chair["colours"] == ["brown", "red"]
    assert set(chair["materials"]) == {"wood", "fabric"}
    assert chair["measured"]["feet"] == 4
    assert chair["measured"]["mirror"]
    assert not chair["measured"]["lengthwise"]
    assert chair["parts"] == ["seat", "back", "four legs"]
    assert chair["global_plan"] == (
        "A chair. Tall and square: width 8, depth 8, height 10. "
        "Parts: seat, back, four legs. Symmetry: left to right."
    )


def test_shipped_prompts_keep_held_out_texts_apart(catalog):
    rows = shipped_prompts(catalog.objects)
    training = {row["prompt"] for row in rows if not row["held_out"]}
    held_out = {row["prompt"] for row in rows if row["held_out"]}
    assert "a coffee table" in training
    assert "a desk lamp" in held_out
    assert not training & held_out
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(training) + len(held_out) == len(rows)
    assert [row["held_out"] for row in rows] == sorted(row["held_out"] for row in rows)


def test_held_out_objects_are_shipped_with_their_voxels(catalog, tmp_path):
    path = tmp_path / "held_out.npz"
    write_held_out(catalog, path)
    held_out = load_held_out(path)
    assert held_out.ids == ["test-lamp8"]
    assert held_out.groups == [catalog.objects[3]["group"]]
    np.testing.assert_array_equal(held_out.voxels, catalog.voxels[3:4])
    first = path.read_bytes()
    write_held_out(catalog, path)
    assert path.read_bytes() == first
    path.write_bytes(first[:100])
    for broken in (path, tmp_path / "absent.npz"):
        with pytest.raises(UserError, match=f"--held_out={broken}"):
            load_held_out(broken)


def test_bad_folders_are_refused(tmp_path, sh3f_file):
    with pytest.raises(UserError, match=r"no objects\.npz"):
        load_catalog(tmp_path)
    for source in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"no \.sh3f files"):
            build_catalog(source, tmp_path / "out", resolution=32, processes=1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        build_catalog(sh3f_file, tmp_path / "file", resolution=8, processes=1)


def test_command_line(tmp_path, sh3f_file):
    command = [sys.executable, "-m", "ar3d_jax.data.catalog", "--resolution=16"]
    command.append("--processes=1")
    result = subprocess.run(
        [
            *command,
            f"--source={sh3f_file}",
            f"--out={tmp_path}",
            f"--prompts={tmp_path / 'p.jsonl'}",
            f"--held_out={tmp_path / 'h.npz'}",
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "5 of 9 objects, 1 held out" in result.stdout
    assert load_catalog(tmp_path).voxels.shape == (5, 16, 16, 16)
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) > 10
    assert load_held_out(tmp_path / "h.npz").voxels.shape == (1, 16, 16, 16)
    result = subprocess.run(
        [*command, f"--source={tmp_path}", f"--out={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_augmentation_by_hand():
    points = np.array([[0.5, 0.0, 0.0], [-0.5, 0.25, 0.125]])
    # Mirror x, stretch z by 2, turn (x, y) -> (-y, x), then centre: longest stays 1.
    change = Augmentation(mirror=True, stretch=(1.0, 1.0, 2.0), quarter=1)
    expected = [[0.125, -0.5, -0.125], [-0.125, 0.5, 0.125]]
    np.testing.assert_allclose(change.apply(points), expected, atol=1e-12)
    # 90 degrees by angle is a quarter turn.
    angled = Augmentation(mirror=True, stretch=(1.0, 1.0, 2.0), angle_deg=90.0)
    np.testing.assert_allclose(angled.apply(points), expected, atol=1e-12)


def test_augmented_meshes_stay_normalised():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    for _ in range(20):
        changed = augment(points, rng)
        low, high = changed.min(axis=0), changed.max(axis=0)
        assert (high - low).max() == pytest.approx(1.0)
        np.testing.assert_allclose(low + high, 0.0, atol=1e-12)
    front = draw(np.random.default_rng(1), front=True)
    assert (front.quarter, front.angle_deg) == (0, 0.0)


def test_augmented_voxels_are_of_training_objects(catalog, catalog_folder, tmp_path):
    rows = augmented_voxels(
        catalog_folder, copies=4, seed=3, resolution=16, processes=1
    )
    assert rows.object.tolist() == np.repeat([0, 1, 2, 4], 4).tolist()
    assert rows.front[::2].all()
    # Row 5 is copy 1 of object 1, whatever was done before it.
    change = draw(np.random.default_rng((3, 1, 1)))
    vertices, faces = catalog.mesh(1)
    points = change.apply(vertices)
    np.testing.assert_array_equal(
        rows.voxels(np.array([5]))[0], voxelize(points, faces, 16)
    )
    np.testing.assert_allclose(rows.extents[5], np.ptp(points, axis=0), atol=1e-6)
    assert rows.quarter[5] == change.quarter

    rows.save(tmp_path / "augmented.npz")
    again = load_augmented(tmp_path / "augmented.npz")
    np.testing.assert_array_equal(again.packed, rows.packed)
    np.testing.assert_array_equal(again.front, rows.front)
    assert again.resolution == 16
    with pytest.raises(UserError, match="no file"):
        load_augmented(tmp_path / "absent.npz")
