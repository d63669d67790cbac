"""Galleries: files of every object, names safe for any file system, text escaped."""

import json
import os

import numpy as np
import pytest
import trimesh
from PIL import Image

from ar3d_jax import gallery
from ar3d_jax.errors import UserError


def thing(name: str = "chair", prompt: str = "a chair", empty: bool = False):
    axis = np.linspace(-1, 1, 8)
    ball = 0.6 - np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis), -1), axis=-1)
    views = np.full((6, 32, 32, 3), 200, np.uint8)
    return gallery.GeneratedObject(
        name=name,
        prompt=prompt,
        plans={"global": "one seat", "local": "four legs"},
        logits={"coarse": np.full_like(ball, -1) if empty else ball, "refined": ball},
        views={"coarse": views, "refined": views},
        scores={"coarse": {"preference": 0.25, "category": None}, "refined": {}},
    )


def test_every_object_has_its_files(tmp_path):
    sheet = gallery.write(tmp_path, [thing(), thing("lamp", "a lamp")])
    for name in ("chair", "lamp"):
        for step in ("coarse", "refined"):
            mesh = trimesh.load(tmp_path / name / f"{step}.glb", force="mesh")
            assert len(mesh.faces) > 50
        with Image.open(tmp_path / name / "views.png") as picture:
            assert picture.width >= 6 * 32
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == sheet.size
    record = json.loads((tmp_path / "chair" / "plans.json").read_text())
    assert record["plans"] == {"global": "one seat", "local": "four legs"}
    assert record["scores"]["coarse"] == {"preference": 0.25, "category": None}


def test_an_empty_object_is_a_file_too(tmp_path):
    gallery.write(tmp_path, [thing(empty=True)])
    assert (tmp_path / "chair" / "coarse.glb").stat().st_size > 0
    assert (tmp_path / "index.html").exists()


def test_names_are_safe_and_differ(tmp_path):
    names = ["../../etc", "a b/c", "a b c", "", "Ünï", "x" * 300]
    gallery.write(tmp_path, [thing(name) for name in names])
    folders = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert len(folders) == len(names)
    assert all(len(name) <= 64 and "/" not in name for name in folders)
    assert all((tmp_path / name / "refined.glb").exists() for name in folders)


def test_the_page_escapes_what_users_wrote(tmp_path):
    gallery.write(tmp_path, [thing(prompt="<script>alert(1)</script> & co")])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        gallery.write(tmp_path / "file", [thing()])
    assert os.listdir(tmp_path) == ["file"]
