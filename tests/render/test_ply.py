import struct

import numpy as np
import pytest
from PIL import Image

from ar3d_jax.render import meshes

CORNERS = np.array([[0, 0, 0], [4, 0, 0], [4, 0, 2], [0, 0, 2]])
KINDS = {
    "char": "b",
    "uchar": "B",
    "short": "h",
    "ushort": "H",
    "int": "i",
    "uint": "I",
    "float": "f",
    "double": "d",
    "uint8": "B",
    "float32": "f",
    "int32": "i",
}


def write(path, form, elements, comments=()):
    """A PLY: elements are (name, properties, rows); a list stands as (kind, kind)."""
    lines = ["ply", f"format {form} 1.0", *(f"comment {text}" for text in comments)]
    body, order = [], {"binary_big_endian": ">"}.get(form, "<")
    for name, properties, rows in elements:
        lines.append(f"element {name} {len(rows)}")
        for own, kind in properties.items():
            text = kind if isinstance(kind, str) else f"list {kind[0]} {kind[1]}"
            lines.append(f"property {text} {own}")
        for row in rows:
            for kind, value in zip(properties.values(), row, strict=True):
                if isinstance(kind, str):
                    body.append((KINDS[kind], [value]))
                else:
                    body.append((KINDS[kind[0]], [len(value)]))
                    body.append((KINDS[kind[1]], value))
    head = "\n".join([*lines, "end_header", ""]).encode()
    if form == "ascii":
        words = [str(value) for _, values in body for value in values]
        path.write_bytes(head + " ".join(words).encode())
    else:
        packed = [struct.pack(f"{order}{len(v)}{kind}", *v) for kind, v in body]
        path.write_bytes(head + b"".join(packed))
    return path


def load(path, **kwargs):
    notes = []
    mesh = meshes.load(
        path, up="z", max_faces=1000, colours=True, notes=notes, **kwargs
    )
    return mesh, notes


def area(mesh):
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


XYZ = dict.fromkeys("xyz", "float")
FORMS = ["ascii", "binary_little_endian", "binary_big_endian"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["float", "double", "short", "float32"])
@pytest.mark.parametrize("length", ["uchar", "int", "uint8"])
def test_numbers_of_all_types(form, kind, length, tmp_path):
    vertices = ("vertex", dict.fromkeys("xyz", kind), CORNERS.tolist())
    rows = [(7, [0, 1, 2], 0.5), (8, [0, 2, 3], 0.25)]
    kinds = {"id": "ushort", "vertex_indices": (length, "int32"), "quality": "float"}
    path = write(tmp_path / "a.ply", form, [vertices, ("face", kinds, rows)])
    mesh, notes = load(path)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    np.testing.assert_allclose(mesh.vertices * 4, CORNERS - [2, 0, 1], atol=1e-6)
    assert not notes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rows", "triangles", "expected"),
    [
        ([[0, 1, 2, 3]], 2, 0.5),
        ([[0, 1, 2, 3], [0, 1, 2]], 3, 0.75),
        ([[0, 1, 2], [0, 1, 2, 3], [1, 2]], 3, 0.75),
        ([[0, 1, 2, 2, 3], [0, 1, 2]], 4, 0.75),
    ],
)
def test_polygons_of_one_size_and_of_several(form, rows, triangles, expected, tmp_path):
    face = ("face", {"vertex_index": ("uchar", "int")}, [(row,) for row in rows])
    path = write(tmp_path / "a.ply", form, [("vertex", XYZ, CORNERS.tolist()), face])
    mesh, _ = load(path)
    assert len(mesh.faces) == triangles
    np.testing.assert_allclose(area(mesh), expected, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [
        ("red", "green", "blue"),
        ("diffuse_red", "diffuse_green", "diffuse_blue"),
        ("r", "g", "b"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "top"), [("uchar", 255), ("ushort", 65535), ("float", 1)]
)
def test_colours_by_any_name_and_type(form, names, kind, top, tmp_path):
    share = np.array([[1, 0, 0.2], [0.4, 1, 0], [0, 0, 0], [1, 1, 1]])
    colours = share * top if kind == "float" else (share * top).astype(int)
    rows = [
        (*c, *rgb) for c, rgb in zip(CORNERS.tolist(), colours.tolist(), strict=True)
    ]
    vertex = ("vertex", XYZ | dict.fromkeys(names, kind), rows)
    face = ("face", {"vertex_indices": ("uchar", "uint")}, [([0, 1, 2, 3],)])
    mesh, _ = load(write(tmp_path / "a.ply", form, [vertex, face]))
    np.testing.assert_allclose(mesh.colours, share * 255, atol=0.5)


def test_colours_of_faces_and_strips(tmp_path):
    kinds = {"vertex_indices": ("uchar", "int"), "red": "uchar"}
    kinds |= {"green": "uchar", "blue": "uchar"}
    rows = [([0, 1, 2], 9, 0, 0), ([0, 2, 3], 0, 9, 0)]
    elements = [("vertex", XYZ, CORNERS.tolist()), ("face", kinds, rows)]
    mesh, _ = load(write(tmp_path / "a.ply", "ascii", elements))
    assert mesh.colours[mesh.faces].tolist() == [[[9, 0, 0]] * 3, [[0, 9, 0]] * 3]
    # 0 1 3 2 is a strip of the square; -1 parts it from one more triangle.
    strip = (
        "tristrips",
        {"vertex_indices": ("int", "int")},
        [([0, 1, 3, 2, -1, 0, 1, 2],)],
    )
    mesh, _ = load(write(tmp_path / "b.ply", "binary_big_endian", [elements[0], strip]))
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    normals = np.cross(b - a, c - a)
    assert len(mesh.faces) == 3
    assert (normals[:, 1] < 0).all()  # wound alike
    np.testing.assert_allclose(area(mesh), 0.75, rtol=1e-6)


PICTURE = np.uint8([[[10, 0, 0], [0, 20, 0]], [[0, 0, 30], [40, 40, 40]]])
UV = [(0, 0), (1, 0), (1, 1), (0, 1)]  # v upwards, as MeshLab writes it


@pytest.mark.parametrize("names", [("s", "t"), ("texture_u", "texture_v"), None])
def test_a_texture_on_vertices_or_on_corners_of_faces(names, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a picture.png")
    corners = [0, 1, 2, 3]
    if names:
        rows = [(*c, *uv) for c, uv in zip(CORNERS.tolist(), UV, strict=True)]
        vertex = ("vertex", XYZ | dict.fromkeys(names, "float"), rows)
        face = ("face", {"vertex_indices": ("uchar", "int")}, [(corners,)])
    else:
        vertex = ("vertex", XYZ, CORNERS.tolist())
        kinds = {"vertex_indices": ("uchar", "int"), "texcoord": ("uchar", "float")}
        face = ("face", kinds, [(corners, [x for uv in UV for x in uv])])
    path = tmp_path / "a.ply"
    write(path, "binary_little_endian", [vertex, face], ["TextureFile a picture.png"])
    mesh, notes = load(path)
    ((count, picture),) = mesh.textures
    assert count == 2
    np.testing.assert_array_equal(picture, PICTURE)
    places = {
        tuple((mesh.vertices[v] * 4).round().astype(int)[[0, 2]]): tuple(mesh.uv[v])
        for v in mesh.faces.ravel()
    }
    # Lower left is the picture's last row.
    assert places == {
        (-2, -1): (0, 1),
        (2, -1): (1, 1),
        (2, 1): (1, 0),
        (-2, 1): (0, 0),
    }
    assert not notes
    write(path, "ascii", [vertex, face], ["TextureFile gone.png"])
    assert load(path)[1] == ["gone.png cannot be read; drawn without this texture"]


def test_faces_may_name_one_of_several_textures(tmp_path):
    for name, value in (("a.png", 10), ("b.png", 20)):
        Image.new("RGB", (1, 1), (value,) * 3).save(tmp_path / name)
    kinds = {"vertex_indices": ("uchar", "int"), "texcoord": ("uchar", "float")}
    kinds |= {"texnumber": "int"}
    rows = [
        ([0, 1, 2], [0.0] * 6, 1),
        ([0, 2, 3], [0.0] * 6, 0),
        ([1, 2, 3], [0.0] * 6, 1),
    ]
    elements = [("vertex", XYZ, CORNERS.tolist()), ("face", kinds, rows)]
    comments = ["TextureFile a.png", "TextureFile b.png"]
    mesh, _ = load(write(tmp_path / "a.ply", "ascii", elements, comments))
    found = [(count, int(picture[0, 0, 0])) for count, picture in mesh.textures]
    assert found == [(1, 10), (2, 20)]


def test_transparent_vertices(tmp_path):
    colours = dict.fromkeys(("red", "green", "blue", "alpha"), "uchar")
    face = ("face", {"vertex_indices": ("uchar", "int")}, [([0, 1, 2, 3],)])
    rows = [(*corner, 9, 9, 9, 0) for corner in CORNERS.tolist()]
    path = write(tmp_path / "a.ply", "ascii", [("vertex", XYZ | colours, rows), face])
    with pytest.raises(ValueError, match="all are transparent"):
        load(path)


def test_other_elements_are_skipped_and_noted(tmp_path):
    elements = [
        ("wonder", {"a": ("uchar", "double"), "b": "char"}, [([1.0, 2.0], 3), ([], 4)]),
        ("vertex", XYZ, CORNERS.tolist()),
        ("edge", {"vertex1": "int", "vertex2": "int"}, [(0, 1)]),
        ("face", {"vertex_indices": ("uchar", "int")}, [([0, 1, 2],)]),
    ]
    for form in FORMS:
        mesh, notes = load(write(tmp_path / "a.ply", form, elements))
        assert mesh.faces.tolist() == [[0, 1, 2]]
        assert notes == ["has 'wonder' elements, which are not read"]


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_anywhere(form, tmp_path):
    rows = [([0, 1, 2, 3],), ([0, 1, 2],)]
    face = ("face", {"vertex_indices": ("uchar", "int")}, rows)
    path = write(tmp_path / "a.ply", form, [("vertex", XYZ, CORNERS.tolist()), face])
    whole = path.read_bytes()
    start = whole.index(b"end_header\n") + 11
    for keep in range(start, len(whole) - 1, 3):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"is cut off|does not exist"):
            load(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("format binary_middle_endian 1.0", "its header says 'format binary_middle"),
        ("format ascii 2.0", "its header says"),
        ("property half x", "its header says"),
        ("element vertex 0\nproperty list uchar\n", "its header says"),
        ("format ascii 1.0\nelement face 0", "no element vertex"),
        ("format ascii 1.0\nelement vertex 0\nproperty int x", "without x, y, z"),
        (
            "format ascii 1.0\nelement vertex 0\nproperty float f_dc_0",
            "Gaussian splats",
        ),
    ],
)
def test_headers_that_say_something_unknown(line, reason, tmp_path):
    (tmp_path / "a.ply").write_text(f"ply\n{line}\nend_header\n")
    with pytest.raises(ValueError, match=reason):
        load(tmp_path / "a.ply")
