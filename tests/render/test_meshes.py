import io
import struct
import zlib

import numpy as np
import pytest
import trimesh
from PIL import Image

from ar3d_jax.codec import surface
from ar3d_jax.render import meshes
from ar3d_jax.render.meshes import PaintedMesh
from tests.render import mesh_files

CORNERS = np.float32([[0, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]])
FACES = np.uint32([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
# That tetrahedron as `load` has it: 4 x 2 x 1, so that the longest side is 1.
NORMALISED = (CORNERS - [2, 1, 0.5]) / 4


def load(path, up="y", colours=False):
    return meshes.load(path, up=up, max_faces=1000, colours=colours)


def volume(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume


def normalised(vertices):
    low, high = vertices.min(0), vertices.max(0)
    return (vertices - (low + high) / 2) / (high - low).max()


def test_loading_undoes_writing(tmp_path):
    logits = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    logits[:, :, 4:] = -1  # no cube: axes and directions are told apart
    mesh = surface.extract(logits)
    surface.to_glb(mesh, tmp_path / "a.glb")
    loaded = load(tmp_path / "a.glb")
    assert type(loaded) is surface.Mesh
    assert (loaded.vertices.dtype, loaded.faces.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(loaded.faces, mesh.faces)
    np.testing.assert_allclose(loaded.vertices, normalised(mesh.vertices), atol=1e-6)


def test_z_up_files_are_not_turned(tmp_path):
    surface.to_glb(surface.Mesh(CORNERS, FACES.astype(np.int32)), tmp_path / "a.glb")
    mesh = load(tmp_path / "a.glb", up="z")
    expected = normalised(mesh_files.y_up(CORNERS))
    np.testing.assert_allclose(mesh.vertices, expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-3, 0.5), (300, -1e4)])
def test_centred_with_the_longest_side_1(suffix, scale, shift, tmp_path):
    vertices = CORNERS.astype(np.float64) * scale + shift
    path = tmp_path / f"a.{suffix}"
    file = trimesh.Trimesh(vertices, FACES, process=False).export(file_type=suffix)
    path.write_bytes(file if isinstance(file, bytes) else file.encode())
    mesh = load(path, up="z")
    order = [np.abs(mesh.vertices - v).sum(1).argmin() for v in NORMALISED]
    # float32 in the file: 1e4 +- 1e-3, of an object 1200 large.
    np.testing.assert_allclose(mesh.vertices[order], NORMALISED, atol=1e-5)
    np.testing.assert_allclose(np.ptp(mesh.vertices, 0).max(), 1, atol=1e-6)
    assert volume(mesh) > 0


def test_vertices_without_faces_do_not_count(tmp_path):
    lines = ["v 9 9 9", *("v {} {} {}".format(*v) for v in CORNERS), "v nan 0 0"]
    lines += ["f " + " ".join(str(k + 2) for k in face) for face in FACES]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    mesh = load(tmp_path / "a.obj", up="z")
    np.testing.assert_allclose(mesh.vertices, NORMALISED, atol=1e-6)


def test_quads_of_an_obj_and_polygons_beside_triangles(tmp_path):
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    quads = ["0132", "4675", "0451", "2376", "0264", "1573"]
    lines = ["v {} {} {}".format(*v) for v in corners]
    lines += ["f " + " ".join(str(int(k) + 1) for k in quad) for quad in quads]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    mesh = load(tmp_path / "a.obj")
    assert len(mesh.faces) == 12
    np.testing.assert_allclose(volume(mesh), 1, atol=1e-6)
    # The last side as two triangles: now lines have three and four numbers.
    (tmp_path / "b.obj").write_text("\n".join([*lines[:-1], "f 2 6 8", "f 2 8 4"]))
    np.testing.assert_allclose(volume(load(tmp_path / "b.obj")), 1, atol=1e-6)
    with pytest.raises(ValueError, match="has 12 triangles; at most 6 are drawn"):
        meshes.load(tmp_path / "a.obj", up="y", max_faces=6)


def test_an_obj_may_have_comments_in_any_encoding(tmp_path):
    lines = ["# T\xfcr", *("v {} {} {}".format(*v) for v in CORNERS)]
    lines += ["f " + " ".join(str(k + 1) for k in face) for face in FACES]
    (tmp_path / "a.obj").write_text("\r\n".join(lines), encoding="latin-1")
    mesh = load(tmp_path / "a.obj", up="z")
    np.testing.assert_allclose(mesh.vertices, NORMALISED, atol=1e-6)


def ply(path, form, faces):
    """A PLY of polygons, text or binary."""
    head = f"ply\nformat {form} 1.0\nelement vertex 4\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    head += f"element face {len(faces)}\nproperty list uchar int vertex_index\n"
    rows = [[len(face), *face] for face in faces]
    if form == "ascii":
        body = "\n".join(" ".join(str(x) for x in row) for row in [*CORNERS, *rows])
        path.write_text(head + "end_header\n" + body + "\n")
    else:
        body = b"".join(struct.pack(f"<B{row[0]}i", *row) for row in rows)
        path.write_bytes((head + "end_header\n").encode() + CORNERS.tobytes() + body)
    return path


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_polygons_of_a_ply(form, tmp_path):
    assert len(load(ply(tmp_path / "a.ply", form, FACES.tolist())).faces) == 4
    assert len(load(ply(tmp_path / "b.ply", form, [[0, 1, 2, 3]])).faces) == 2
    mixed = ply(tmp_path / "c.ply", form, [[0, 1, 2, 3], [0, 1, 2]])
    assert len(load(mixed).faces) == 3


def tree_of_nodes():
    """Two meshes; the second one is seen twice: turned and moved, and mirrored."""
    small = CORNERS / 4
    content, data = mesh_files.packed(CORNERS, FACES.reshape(-1, 1), small)
    part = {"attributes": {"POSITION": 0}, "indices": 1}
    turned = [0, 0, 0.5**0.5, 0.5**0.5]  # 90 degrees about z: x -> y
    return content | {
        "meshes": [
            {"primitives": [part]},
            {"primitives": [part | {"attributes": {"POSITION": 2}}]},
        ],
        "nodes": [
            {"children": [1, 2], "scale": [2, 2, 2]},
            {"mesh": 0, "translation": [1, 0, 0]},
            {"children": [3, 4], "rotation": turned, "translation": [0, 10, 0]},
            {"mesh": 1},
            {"mesh": 1, "scale": [-1, 1, 1]},
        ],
        "scenes": [{"nodes": [0]}],
    }, data


def test_parts_are_where_their_nodes_put_them(tmp_path):
    tree, data = tree_of_nodes()
    mesh = load(mesh_files.glb(tmp_path / "a.glb", tree, data), up="z")
    assert len(mesh.faces) == 12
    turn = np.float32([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    small = CORNERS / 4
    here, there = np.float32([1, 0, 0]), np.float32([0, 10, 0])
    mirrored = small * [-1, 1, 1]
    expected = [CORNERS + here, small @ turn.T + there, mirrored @ turn.T + there]
    expected = normalised(2 * np.concatenate(expected))
    assert len(mesh.vertices) == len(expected)
    away = np.linalg.norm(mesh.vertices[:, None] - expected, axis=-1)
    assert away.min(0).max() < 1e-6
    # Whatever the mirror: all three are wound outwards, (1 + 2 / 64) 4 x 2 x 1 / 6.
    side = 22  # from y = 0 to 2 * (10 + 4 / 4)
    expected = 2**3 * (1 + 2 / 64) * 8 / 6
    np.testing.assert_allclose(volume(mesh) * side**3, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "kind"), [("glb", "vertex"), ("ply", "vertex"), ("ply", "face")]
)
def test_colours_of_vertices_and_faces(suffix, kind, tmp_path):
    path = mesh_files.write_cube(tmp_path / f"a.{suffix}", kind)
    mesh = load(path, colours=True)
    assert isinstance(mesh, PaintedMesh)
    assert mesh.textures == ((12, None),)
    for (axis, side), colour in mesh_files.COLOURS.items():
        here = (mesh.vertices[mesh.faces][:, :, axis] == side / 2).all(1)
        assert here.sum() == 2
        assert (mesh.colours[mesh.faces[here]] == colour).all()
    assert type(load(path)) is surface.Mesh  # unless they are asked for


def test_an_uncoloured_file_is_white(tmp_path):
    surface.to_glb(surface.Mesh(CORNERS, FACES.astype(np.int32)), tmp_path / "a.glb")
    mesh = load(tmp_path / "a.glb", colours=True)
    assert (mesh.colours == 255).all()


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def textured(path, picture, factor=(1, 1, 1, 1), colours=None, material=True):
    """A triangle with a picture, a colour factor and colours at its vertices."""
    uv = np.float32([[0, 0], [1, 0], [0, 1]])
    arrays = [CORNERS[:3], uv] + ([] if colours is None else [colours])
    content, data = mesh_files.packed(*arrays)
    content["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(data), "byteLength": len(picture)}
    )
    surface_colour = {"baseColorTexture": {"index": 0}, "baseColorFactor": list(factor)}
    part = {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}}
    if colours is not None:
        part["attributes"]["COLOR_0"] = 2
    tree = content | {
        "images": [{"bufferView": len(arrays), "mimeType": "image/png"}],
        "textures": [{"source": 0}],
        "materials": [{"pbrMetallicRoughness": surface_colour}],
        "meshes": [{"primitives": [part | ({"material": 0} if material else {})]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    return mesh_files.glb(path, tree, data + picture)


def test_a_texture_comes_with_its_factor_and_the_vertices_colours(tmp_path):
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    halves = np.float32([[1, 0.5, 0], [0, 0, 0], [1, 1, 1]])
    path = textured(tmp_path / "a.glb", png(picture), (0.2, 1, 1, 1), halves)
    mesh = load(path, colours=True)
    ((count, texture),) = mesh.textures
    assert count == 1
    np.testing.assert_array_equal(texture, picture)
    np.testing.assert_array_equal(mesh.uv, [[0, 0], [1, 0], [0, 1]])
    # 0.2 of 255 is 51; 0.5 of it 127.5, to the even number.
    expected = [[51, 128, 0], [0, 0, 0], [51, 255, 255]]
    np.testing.assert_array_equal(mesh.colours, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("material", [True, False])
def test_integer_colours_are_parts_of_their_largest(kind, material, tmp_path):
    picture = png(np.zeros((1, 1, 3), np.uint8))
    top = np.iinfo(kind).max
    colours = np.array([[top, 0, top // 2, top]] * 3, kind)
    path = textured(tmp_path / "a.glb", picture, colours=colours, material=material)
    mesh = load(path, colours=True)
    np.testing.assert_array_equal(mesh.colours[:, :2], [[255, 0]] * 3)
    assert (np.abs(mesh.colours[:, 2].astype(int) - 127) <= 1).all()


def test_large_textures_are_made_smaller(tmp_path):
    picture = np.zeros((30, 3000, 3), np.uint8)
    picture[:, 1500:] = 200
    mesh = load(textured(tmp_path / "a.glb", png(picture)), colours=True)
    texture = mesh.textures[0][1]
    assert texture.shape == (10, 1000, 3)
    assert [texture[5, 100, 0], texture[5, 900, 0]] == [0, 200]


def test_parts_with_the_same_texture_lie_together(tmp_path):
    """Twice the first picture, with the second one between them."""
    a, b = (png(np.full((1, 1, 3), value, np.uint8)) for value in (10, 20))
    uv = np.zeros((3, 2), np.float32)
    content, data = mesh_files.packed(CORNERS[:3], uv)
    for picture in (a, b):
        content["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(data), "byteLength": len(picture)}
        )
        data += picture
    part = {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}}
    colour = [{"baseColorTexture": {"index": k}} for k in (0, 1)]
    tree = content | {
        "images": [{"bufferView": k, "mimeType": "image/png"} for k in (2, 3)],
        "textures": [{"source": 0}, {"source": 1}],
        "materials": [{"pbrMetallicRoughness": c} for c in colour],
        "meshes": [{"primitives": [part | {"material": k} for k in (0, 1, 0)]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    mesh = load(mesh_files.glb(tmp_path / "a.glb", tree, data), colours=True)
    found = [(count, int(texture[0, 0, 0])) for count, texture in mesh.textures]
    assert found == [(2, 10), (1, 20)]
    assert len(mesh.vertices) == 9


def test_materials_of_an_obj(tmp_path):
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.mtl").write_text(
        "newmtl plain\nKd 0.2 0.4 1\n"
        "newmtl picture\nKd 0 0 0\nmap_Kd a.png\n"
        "newmtl unsaid\nKa 1 0 0\n"
    )
    lines = ["mtllib a.mtl", "v 0 0 0", "v 1 0 0", "v 0 1 0", "vt 0 0", "vt 1 0"]
    for name in ("plain", "picture", "unsaid"):
        lines += [f"usemtl {name}", "f 1/1 2/2 3/1"]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    mesh = load(tmp_path / "a.obj", colours=True)
    found, start = [], 0
    for count, texture in mesh.textures:
        for face in mesh.faces[start : start + count]:
            pixel = () if texture is None else tuple(texture[0, 0].tolist())
            found.append((tuple(mesh.colours[face[0]].tolist()), pixel))
        start += count
    white = (255, 255, 255)
    expected = [((51, 102, 255), ()), (white, (1, 2, 3)), (white, ())]
    assert sorted(found) == sorted(expected)


def png_of_size(width, height):
    """A picture that says in its header that it is so large."""
    file = png(np.zeros((1, 1, 3), np.uint8))
    chunk = b"IHDR" + struct.pack(">II", width, height) + file[24:29]
    return file[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + file[33:]


# Pillow warns of the first and refuses the second.
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_huge_texture_is_refused_unread(side, tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    path = textured(tmp_path / "a.glb", png_of_size(side, side))
    with pytest.raises(ValueError, match=f"texture of {side} x {side} pixels; at most"):
        load(path, colours=True)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert len(load(path).faces) == 1  # without colours it is not looked at


def test_textures_that_are_cut_off_or_unknown(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = textured(tmp_path / "a.glb", png(noise)[:2000])
    with pytest.raises(ValueError, match=r"cannot be read: OSError: .*truncated"):
        load(path, colours=True)
    mesh = load(textured(tmp_path / "b.glb", b"no picture"), colours=True)
    assert mesh.textures == ((1, None),)


def triangle(vertices, corners=(0, 1, 2), **part):
    """A binary glTF of these vertices and one triangle."""
    arrays = np.float32(vertices), np.uint32(corners).reshape(-1, 1)
    content, data = mesh_files.packed(*arrays)
    part = {"attributes": {"POSITION": 0}, "indices": 1} | part
    return content | {
        "meshes": [{"primitives": [part]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }, data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (triangle([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]]), "not finite"),
        (triangle([[0, 0, np.inf], [1, 0, 0], [0, 1, 0]]), "not finite"),
        (triangle([[3, 3, 3]] * 3), "no size: its longest side is 0.0"),
        (triangle(CORNERS, (0, 1, 4)), "a vertex that does not exist"),
        (triangle(CORNERS, mode=0), "no triangles"),
        (triangle(CORNERS, mode=1), "no triangles"),
        (({}, b""), "no triangles"),
        ((triangle(CORNERS)[0] | {"nodes": []}, triangle(CORNERS)[1]), "no node 0"),
        ((triangle(CORNERS)[0], b"short"), "is cut off: bufferView 0 ends"),
        ((triangle(CORNERS)[0] | {"meshes": [{"primitives": [{}]}]}, b""), "KeyError"),
        ((triangle(CORNERS)[0] | {"meshes": 7}, b""), "is broken .TypeError"),
    ],
)
def test_broken_glb(content, reason, tmp_path):
    path = mesh_files.glb(tmp_path / "a.glb", *content)
    for colours in (False, True):
        with pytest.raises(ValueError, match=reason) as caught:
            load(path, colours=colours)
        assert "\n" not in str(caught.value)


def test_a_node_may_throw_its_mesh_out_of_the_numbers(tmp_path):
    tree, data = triangle(CORNERS)
    tree["nodes"][0]["scale"] = [1e300, 1e300, 1e300]
    tree["nodes"] = [{"children": [1], "scale": [1e300] * 3}, *tree["nodes"]]
    tree["nodes"][1]["scale"], tree["scenes"] = [1e300] * 3, [{"nodes": [0]}]
    with pytest.raises(ValueError, match="not finite"):
        load(mesh_files.glb(tmp_path / "a.glb", tree, data))


@pytest.mark.parametrize("keep", [0, 5, 15, 40, 300, -1, -40])
def test_a_glb_that_is_cut_off(keep, tmp_path):
    path = mesh_files.glb(tmp_path / "a.glb", *triangle(CORNERS))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut off|not binary glTF"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.obj", "", "no triangles"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0", "no triangles"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9", "."),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 x", "."),
        ("a.obj", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3", "not finite"),
        ("a.obj", "\0\1\2" * 99, "no triangles"),
        ("a.ply", "ply\nformat ascii 1.0\nend_header\n", "."),
        ("a.gltf", "{", "."),
        ("a.gltf", "[" * 100_000, "."),
    ],
)
def test_broken_text(name, content, reason, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=reason) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none(tmp_path):
    for path in (tmp_path / "none.glb", tmp_path / "folder.obj"):
        (tmp_path / "folder.obj").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"^cannot be read: .*Error"):
            load(path)
