"""Files that are too large, or headers that are none, are refused before the data."""

import time

import pytest

from ar3d_jax.render import gltf, meshes, obj, ply
from tests.render import mesh_files

MILLIONS = 10_000_000
PART = {"attributes": {"POSITION": 0}, "indices": 1}


def accessors(vertices, corners):
    return [
        {"count": n, "type": kind, "componentType": 5125, "bufferView": 0}
        for n, kind in ((vertices, "VEC3"), (corners, "SCALAR"))
    ]


def large_glb(path):
    tree = {
        "accessors": accessors(3, 3 * MILLIONS),
        "meshes": [{"primitives": [PART]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "bufferViews": [{"buffer": 0, "byteLength": 12 * MILLIONS}],
    }
    mesh_files.glb(path, tree)


def large_ply(path):
    lines = ("ply", "format binary_little_endian 1.0", "element vertex 3")
    lines += ("property float x", f"element face {MILLIONS}", "end_header", "")
    path.write_text("\n".join(lines))


def large_obj(path):
    with path.open("wb") as file:
        file.write(b"v 0 0 0\nv 1 0 0\nv 0 1 0\n")
        for _ in range(10):
            file.write(b"f 1 2 3\n" * (MILLIONS // 10))


@pytest.mark.parametrize("write", [large_glb, large_ply, large_obj])
def test_ten_million_faces_are_refused_before_they_are_loaded(
    write, tmp_path, monkeypatch
):
    path = tmp_path / f"a.{write.__name__[-3:]}"
    write(path)
    for module, reads_data in ((gltf, "_parts"), (obj, "text_of"), (ply, "_data")):
        monkeypatch.setattr(module, reads_data, None)  # they are not called
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"^has 10,000,000 face.* at most 5,000,000"):
        meshes.load(path, up="y", max_faces=5_000_000)
    # Milliseconds; an OBJ of 80 MB is read through. Generous for a busy machine.
    assert time.perf_counter() - started < 5


def test_an_objs_lines_are_counted_across_chunks(tmp_path, monkeypatch):
    path = tmp_path / "a.obj"
    path.write_bytes(b"f 1 2 3\n# f\nvf 1\nf\t1 2 3\n f 1 2 3\nf 1 2 3")
    for chunk in range(1, 40):
        monkeypatch.setattr(obj, "CHUNK", chunk)
        assert obj.count_faces(path) == 3


def check(path, tree, limit):
    """Counts a file; with arrays that are not there, it ends after that."""
    with pytest.raises(
        ValueError, match=r"has .* at most|is cut off|no bufferView"
    ) as e:
        meshes.load(mesh_files.glb(path / "a.glb", tree), up="y", max_faces=limit)
    return str(e.value)


def test_what_counts_in_gltf(tmp_path):
    tree = {
        "accessors": accessors(30, 12),
        "meshes": [
            {"primitives": [PART, PART | {"mode": 5}, PART | {"mode": 1}]},  # 4 + 10
            {"primitives": [{"attributes": {"POSITION": 0}}]},  # 10
        ],
        "nodes": [{"mesh": 0, "children": [1, 2]}, {"mesh": 0}, {"mesh": 1}],
        "scenes": [{"nodes": [0]}],
    }
    assert "at most" not in check(tmp_path, tree, 38)
    assert "has 38 faces; at most 37" in check(tmp_path, tree, 37)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nodes": [{"children": [1]}, {"children": [0]}]}, "root .* has a parent"),
        ({"nodes": [{"children": [1, 2]}, {"children": [2]}, {}]}, "two parents"),
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "compressed .*draco"),
        ({"accessors": accessors(3, 10**12)}, "has 1,000,000,000,009 numbers"),
        (
            {"accessors": [{"count": 3, "type": "VEC3", "componentType": 5126}] * 2},
            "data",
        ),
    ],
)
def test_gltf_that_never_ends_or_has_no_data(change, reason, tmp_path):
    tree = {
        "accessors": accessors(3, 3),
        "meshes": [{"primitives": [PART]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    path = mesh_files.glb(tmp_path / "a.glb", tree | change)
    with pytest.raises(ValueError, match=reason):
        meshes.load(path, up="y", max_faces=1000)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.glb", b"", "not binary glTF: 0 bytes"),
        ("a.glb", b"PK" * 20, "not binary glTF 2"),
        ("a.glb", b"glTF\2\0\0\0\xff\0\0\0\x10\0\0\0JSON{}", "is cut off: 22 bytes"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement face 3\n" * 9999, "no header"),
        ("a.ply", b"solid\nend_header", "not PLY"),
        ("a.ply", b"ply\nelement face many\nend_header", "without a count"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement edge 31\nend_header",
            "has 31 edge elements",
        ),
        ("a.gltf", b"[]", "a file is no JSON object"),
        ("a.stl", b"solid", r"is a \.stl; expected \.glb"),
        ("a", b"", "is a file without suffix"),
    ],
)
def test_headers_that_are_none(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        meshes.load(tmp_path / name, up="y", max_faces=10)
