import io
import re

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ar3d_jax.config import RenderConfig
from ar3d_jax.render import meshes
from ar3d_jax.render.geometry import surface_points
from ar3d_jax.render.renderer import Renderer
from tests.render import gltf_forms, mesh_files
from tests.render.gltf_forms import Forms


def load(path, **kwargs):
    return meshes.load(path, up="y", max_faces=1000, **kwargs)


def triangles(mesh):
    """Corners [m, 3, 3] and mean colour of each triangle that has an area."""
    corners = mesh.vertices[mesh.faces].astype(float)
    sides = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    some = np.linalg.norm(sides, axis=1) > 1e-5
    return corners[some], mesh.colours[mesh.faces][some].mean(1)


def volume(corners):
    return np.linalg.det(corners).sum() / 6


# A file has some hundred choices, which take minutes to shrink.
@settings(max_examples=100, deadline=None, phases=set(Phase) - {Phase.shrink})
@given(data=st.data())
def test_an_object_is_the_same_in_all_forms(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    forms = Forms(data.draw)
    for index in data.draw(st.permutations(range(len(gltf_forms.PARTS)))):
        forms.add(index)
    corners, colours = triangles(load(forms.write(folder), colours=True))
    expected, painted = triangles(
        load(gltf_forms.plain(folder / "twin.glb"), colours=True)
    )
    assert len(corners) == len(expected)
    # Bytes of 120 steps per side are as near as half a step, through two scales.
    near = 0.02
    middle = corners.mean(1)[:, None] - expected.mean(1)
    away = np.linalg.norm(middle, axis=-1)
    pair = away.argmin(1)
    assert sorted(pair) == list(range(len(expected)))
    assert away.min(1).max() < near
    for corner in range(3):  # wherever each triangle starts
        to_any = np.linalg.norm(corners[:, corner, None] - expected[pair], axis=-1)
        assert to_any.min(1).max() < near
    assert np.abs(colours - painted[pair]).max() <= 1
    # All wound outwards, also below mirrors.
    np.testing.assert_allclose(volume(corners), volume(expected), rtol=0.03)


# --- What a file may say, one at a time -----------------------------------------------

SQUARE = np.float32([[0, 0, 0], [4, 0, 0], [4, 2, 0], [0, 2, 0]])  # x right, y up
TWO = np.uint8([[0], [1], [2], [0], [2], [3]])
UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])  # the picture upright
NINTH = np.uint8([[[10, 0, 0], [0, 20, 0]], [[0, 0, 30], [40, 40, 40]]])  # 2 x 2


def png(picture, **kwargs):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png", **kwargs)
    return file.getvalue()


def square(*more, **parts):
    """JSON and bytes of a square; `more` are further arrays, accessors from 2 on."""
    content, data = mesh_files.packed(SQUARE, TWO, *more)
    primitive = {"attributes": {"POSITION": 0}, "indices": 1}
    primitive |= parts.pop("primitive", {})
    tree = content | {
        "meshes": [{"primitives": [primitive]} | parts.pop("mesh", {})],
        "nodes": [{"mesh": 0} | parts.pop("node", {})],
        "scenes": [{"nodes": [0]}],
    }
    return tree | parts, data


def textured(picture, *, uv=UV, reference=None, material=None, **parts):
    """The square with a picture on it."""
    attributes = {"POSITION": 0, "TEXCOORD_0": 2}
    colour = {"baseColorTexture": {"index": 0} | (reference or {})}
    tree, data = square(uv, primitive={"attributes": attributes, "material": 0})
    tree["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(data), "byteLength": len(picture)}
    )
    tree |= {
        "images": [{"bufferView": len(tree["bufferViews"]) - 1}],
        "textures": [{"source": 0}],
        "materials": [{"pbrMetallicRoughness": colour} | (material or {})],
    }
    return tree | parts, data + picture


def read(tmp_path, tree, data, **kwargs):
    """The mesh of a GLB of these, with colours, and its notes."""
    notes = []
    path = mesh_files.glb(tmp_path / "a.glb", tree, data)
    return load(path, colours=True, notes=notes, **kwargs), notes


def seen_at(mesh, *places):
    """The colours at places (x, y) of the square, 0..1 from its lower left corner."""
    points, colours = surface_points(mesh, 4000, 0)
    low, size = points.min(0), np.ptp(points, 0)
    here = (points - low) / np.where(size > 0, size, 1)
    found = []
    for x, y in places:
        nearest = np.linalg.norm(here[:, [0, 2]] - (x, y), axis=1).argmin()
        found.append(tuple(colours[nearest].tolist()))
    return found


QUARTERS = ((0.25, 0.75), (0.75, 0.75), (0.25, 0.25), (0.75, 0.25))  # as NINTH is read


def colours_of(picture):
    return [tuple(pixel) for row in picture.tolist() for pixel in row]


def test_a_picture_lies_upright(tmp_path):
    mesh, notes = read(tmp_path, *textured(png(NINTH)))
    assert seen_at(mesh, *QUARTERS) == colours_of(NINTH)
    assert not notes


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        ({"offset": [0.5, 0]}, NINTH[:, ::-1]),
        ({"offset": [0, 0.5]}, NINTH[::-1]),
        ({"scale": [0.5, 1]}, NINTH[:, [0, 0]]),
        # Counter-clockwise by a quarter around the first corner: (u, v) -> (v, -u).
        (
            {"rotation": np.pi / 2},
            [[NINTH[1, 0], NINTH[0, 0]], [NINTH[1, 1], NINTH[0, 1]]],
        ),
    ],
)
def test_texture_transforms(moved, expected, tmp_path):
    reference = {"extensions": {"KHR_texture_transform": moved}}
    mesh, _ = read(tmp_path, *textured(png(NINTH), reference=reference))
    assert seen_at(mesh, *QUARTERS) == colours_of(np.array(expected))


def test_a_texture_transform_may_name_the_texture_coordinates(tmp_path):
    tree, data = textured(png(NINTH))
    tree["meshes"][0]["primitives"][0]["attributes"] = {"POSITION": 0, "TEXCOORD_3": 2}
    transform = {"KHR_texture_transform": {"texCoord": 3}}
    material = tree["materials"][0]["pbrMetallicRoughness"]
    material["baseColorTexture"] |= {"texCoord": 7, "extensions": transform}
    assert seen_at(read(tmp_path, tree, data)[0], *QUARTERS) == colours_of(NINTH)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [(10497, [0, 1, 0, 1]), (33648, [1, 0, 0, 1]), (33071, [0, 0, 0, 1])],
)
def test_wrapping(wrap, expected, tmp_path):
    """Two pixels, from u = -1 to 1: drawn in the renderer and seen by points alike."""
    row = np.uint8([[[250, 0, 0], [0, 0, 250]]])
    uv = UV * [2, 1] - np.float32([1, 0])
    sampler = {"samplers": [{"wrapS": wrap}]}
    tree, data = textured(png(row), uv=np.float32(uv), **sampler)
    tree["textures"] = [{"source": 0, "sampler": 0}]
    mesh, _ = read(tmp_path, tree, data)
    places = [(x, 0.5) for x in (0.125, 0.375, 0.625, 0.875)]
    assert seen_at(mesh, *places) == [tuple(row[0, k].tolist()) for k in expected]
    views = np.zeros((4, 64, 64, 3), np.uint8)
    with Renderer(RenderConfig(views=4, size=64, pitch_deg=0.0, colours=True)) as drawn:
        drawn.draw(mesh, views, two_sided=True)
    middle = views[3, 32].astype(int)  # yaw 270 sees the front, x to the right
    (shown,) = np.nonzero((middle != 255).any(1))
    columns = shown[0] + (np.array([x for x, _ in places]) * len(shown)).astype(int)
    assert [int(r < b) for r, _, b in middle[columns]] == expected


def transparent(tmp_path, alpha, mode, vertex=None, **material):
    """The square with four quarters of these alphas in its picture."""
    picture = np.dstack([NINTH, np.uint8(alpha)])
    tree, data = textured(png(picture), material={"alphaMode": mode, **material})
    return read(tmp_path, tree, data)


def test_what_is_wholly_transparent_is_not_there(tmp_path):
    everywhere = [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="no triangles that are seen: all are transp"):
        transparent(tmp_path, everywhere, "BLEND")
    with pytest.raises(ValueError, match="no triangles that are seen"):
        transparent(tmp_path, [[127, 127], [127, 127]], "MASK")
    assert len(transparent(tmp_path, [[127, 127], [127, 127]], "BLEND")[0].faces) == 2
    half = transparent(tmp_path, [[127, 127], [127, 127]], "MASK", alphaCutoff=0.25)
    assert len(half[0].faces) == 2
    mesh, notes = transparent(tmp_path, everywhere, "OPAQUE")  # then it means nothing
    assert len(mesh.faces) == 2
    assert not notes


def test_a_triangle_goes_only_where_nothing_of_it_shows(tmp_path):
    # The upper triangle lies left of the diagonal, in the whole picture's box.
    mesh, notes = transparent(tmp_path, [[255, 0], [0, 0]], "MASK")
    assert len(mesh.faces) == 2
    assert notes == ["has cut-out textures; drawn without holes"]
    mesh, notes = transparent(tmp_path, [[255, 9], [0, 0]], "BLEND")
    assert notes == ["is partly transparent; drawn opaque"]
    # Both triangles in the transparent half of the picture, and in the other one.
    for left, found in ((0.5, 0), (0.0, 2)):
        picture = np.dstack([NINTH, np.uint8([[255, 0], [255, 0]])])
        uv = np.float32(UV * [0.5, 1] + [left, 0])
        tree, data = textured(png(picture), uv=uv, material={"alphaMode": "MASK"})
        tree["nodes"].append({"mesh": 1, "translation": [9, 0, 0]})
        tree["scenes"] = [{"nodes": [0, 1]}]
        plain = {"attributes": {"POSITION": 0}, "indices": 1}
        tree["meshes"].append({"primitives": [plain]})
        assert len(read(tmp_path, tree, data)[0].faces) == found + 2


def test_transparency_counts_without_colours(tmp_path):
    picture = np.dstack([NINTH, np.zeros((2, 2), np.uint8)])
    path = mesh_files.glb(
        tmp_path / "a.glb", *textured(png(picture), material={"alphaMode": "BLEND"})
    )
    with pytest.raises(ValueError, match="all are transparent"):
        load(path)


@pytest.mark.parametrize("mode", ["OPAQUE", "MASK", "BLEND"])
def test_the_alpha_of_a_factor_and_of_vertices(mode, tmp_path):
    colours = np.float32([[1, 1, 1, 0]] * 4)
    for factor, more in ((0.0, {}), (1.0, {"COLOR_0": 2})):
        attributes = {"POSITION": 0} | more
        primitive = {"attributes": attributes, "material": 0}
        tree, data = square(colours, primitive=primitive)
        base = {"baseColorFactor": [1, 1, 1, factor]}
        tree["materials"] = [{"alphaMode": mode, "pbrMetallicRoughness": base}]
        if mode == "OPAQUE":
            assert len(read(tmp_path, tree, data)[0].faces) == 2
        else:
            with pytest.raises(ValueError, match="all are transparent"):
                read(tmp_path, tree, data)


def test_instances_are_turned_scaled_and_moved(tmp_path):
    quarter = np.int16([[0, 0, 32767 * 0.5**0.5, 32767 * 0.5**0.5], [0, 0, 0, 32767]])
    places = np.float32([[0, 0, 0], [10, 0, 0]])
    tree, data = square(places, np.float32([[1, 1, 1], [2, 2, 2]]), places)
    # A third array in place of the last one: int16 quaternions, normalised.
    tree["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(data), "byteLength": quarter.nbytes}
    )
    tree["accessors"][4] = {
        "bufferView": 5,
        "componentType": 5122,
        "normalized": True,
        "count": 2,
        "type": "VEC4",
    }
    attributes = {"TRANSLATION": 2, "SCALE": 3, "ROTATION": 4, "_ID": 2}
    instancing = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    tree["nodes"] = [{"mesh": 0, "translation": [0, 100, 0], "extensions": instancing}]
    mesh, _ = read(tmp_path, tree, data + quarter.tobytes())
    assert len(mesh.faces) == 4
    x, y, _ = SQUARE.T
    first, second = np.stack([-y, x], 1), np.stack([2 * x + 10, 2 * y], 1)
    expected = np.concatenate([first, second])
    low, high = expected.min(0), expected.max(0)
    side = (high - low).max()
    expected = (expected - (low + high) / 2) / side
    np.testing.assert_allclose(mesh.vertices[:, [0, 2]], expected, atol=1e-4)


def test_only_what_is_visible_in_the_shown_scene(tmp_path):
    tree, data = square()
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}}
    tree["nodes"] = [
        {"mesh": 0},
        {"children": [2], **hidden},
        {"mesh": 0, "translation": [50, 0, 0]},
        {"mesh": 0, "translation": [0, 0, 90]},
    ]
    tree["scenes"] = [{"nodes": [3]}, {"nodes": [0, 1]}]
    mesh, notes = read(tmp_path, tree | {"scene": 1}, data)
    assert len(mesh.faces) == 2
    assert not notes
    _, notes = read(tmp_path, tree, data)
    assert notes == ["has 2 scenes; the first one is drawn"]
    del tree["scenes"]
    assert len(read(tmp_path, tree, data)[0].faces) == 4


def test_a_fan(tmp_path):
    fan = {"attributes": {"POSITION": 0}, "mode": 6}
    tree, data = square()
    tree["meshes"][0]["primitives"] = [fan]
    mesh, _ = read(tmp_path, tree, data)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_a_strip_is_wound_alike(tmp_path):
    strip = {"attributes": {"POSITION": 0}, "indices": 2, "mode": 5}
    tree, data = square(np.uint8([[0], [1], [3], [2]]))
    tree["meshes"][0]["primitives"] = [strip]
    mesh, _ = read(tmp_path, tree, data)
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    normals = np.cross(b - a, c - a)
    assert len(normals) == 2
    assert (normals[:, 1] < 0).all()  # towards the file's +z


def test_points_and_lines_are_noted(tmp_path):
    tree, data = square()
    tree["meshes"][0]["primitives"] += [{"attributes": {"POSITION": 0}, "mode": 1}]
    mesh, notes = read(tmp_path, tree, data)
    assert len(mesh.faces) == 2
    assert notes == ["has points or lines; only triangles are drawn"]


def test_specular_glossiness_has_its_own_base_colour(tmp_path):
    tree, data = textured(png(NINTH))
    diffuse = {"diffuseFactor": [1, 0.5, 1, 1], "diffuseTexture": {"index": 0}}
    name = "KHR_materials_pbrSpecularGlossiness"
    tree["materials"] = [{"extensions": {name: diffuse}}]
    mesh, _ = read(tmp_path, tree, data)
    halves = [(r, round(g / 2), b) for r, g, b in colours_of(NINTH)]
    assert seen_at(mesh, *QUARTERS) == halves


def test_webp_stands_before_its_fallback(tmp_path):
    file = io.BytesIO()
    Image.fromarray(NINTH).save(file, "webp", lossless=True)
    tree, data = textured(file.getvalue())
    webp = {"EXT_texture_webp": {"source": 0}}
    tree["textures"] = [{"source": 1, "extensions": webp}]
    tree["images"].append({"uri": "fallback.png"})
    mesh, notes = read(tmp_path, tree, data)
    assert seen_at(mesh, *QUARTERS) == colours_of(NINTH)
    assert not notes


def test_a_picture_beside_the_file_has_an_encoded_name(tmp_path):
    (tmp_path / "a b\u00e9.png").write_bytes(png(NINTH))
    for uri in ("a%20b%C3%A9.png", "a b\u00e9.png", ".\\a%20b%C3%A9.png"):
        tree, data = textured(png(NINTH))
        tree["images"] = [{"uri": uri}]
        mesh, notes = read(tmp_path, tree, data)
        assert seen_at(mesh, *QUARTERS) == colours_of(NINTH)
        assert not notes


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"images": [{"uri": "none.png"}]}, "none.png cannot be read; drawn without"),
        ({"images": [{"uri": "data:,text"}]}, "data:,text is no known picture"),
        ({"materials": [{"emissiveFactor": [1, 0, 0]}]}, "materials that glow"),
        (
            {
                "materials": [
                    {
                        "extensions": {
                            "KHR_materials_transmission": {"transmissionFactor": 1}
                        }
                    }
                ]
            },
            "materials of glass; drawn opaque",
        ),
    ],
)
def test_what_is_passed_over_is_noted(change, note, tmp_path):
    tree, data = textured(png(NINTH))
    mesh, notes = read(tmp_path, tree | change, data)
    assert len(mesh.faces) == 2
    assert len(notes) == 1
    assert note in notes[0]


def test_a_texture_without_places_is_noted(tmp_path):
    tree, data = textured(png(NINTH), reference={"texCoord": 1})
    mesh, notes = read(tmp_path, tree, data)
    assert mesh.textures == ((2, None),)
    assert notes == ["has a texture without places for it; drawn without it"]


# Where it stands, what is put there, and what the refusal names.
UNKNOWN = [
    ((), {"wonders": []}, "'wonders' in a file"),
    ((), {"extensionsRequired": ["EXT_wonder"]}, "requires EXT_wonder"),
    (("asset",), {"version": "1.0"}, "is glTF 1.0; expected 2.0"),
    (("asset",), {"minVersion": "2.1"}, "is glTF 2.1; expected 2.0"),
    (("nodes", 0), {"wonder": 1}, "'wonder' in a node"),
    (("nodes", 0), {"extensions": {"EXT_wonder": {}}}, "EXT_wonder in a node"),
    (("nodes", 0), {"mesh": 5}, "no mesh 5"),
    (("meshes", 0), {"extensions": {"EXT_wonder": {}}}, "EXT_wonder in a mesh"),
    (("meshes", 0, "primitives", 0), {"mode": 7}, "mode 7"),
    (("meshes", 0, "primitives", 0), {"wonder": 7}, "'wonder' in a primitive"),
    (
        ("meshes", 0, "primitives", 0),
        {"attributes": {"POSITION": 0, "OFFSET": 0}},
        "attribute OFFSET",
    ),
    (
        ("meshes", 0, "primitives", 0),
        {"targets": [{"POSITION": 0}] * 3},
        "fewer weights",
    ),
    (("materials", 0), {"alphaMode": "ADD"}, "alphaMode ADD"),
    (("materials", 0), {"extensions": {"EXT_wonder": {}}}, "EXT_wonder in a material"),
    (
        ("materials", 0, "pbrMetallicRoughness"),
        {"extensions": {"EXT_wonder": {}}},
        "EXT_wonder in a pbrMetallicRoughness",
    ),
    (
        ("materials", 0, "pbrMetallicRoughness", "baseColorTexture"),
        {"extensions": {"KHR_texture_transform": {"flip": True}}},
        "'flip' in a KHR_texture_transform",
    ),
    (
        ("textures", 0),
        {"source": None, "extensions": {"KHR_texture_basisu": {"source": 0}}},
        "KTX2",
    ),
    (("accessors", 0), {"wonder": 1}, "'wonder' in a accessor"),
    (("accessors", 0), {"byteOffset": 40}, "ends behind its bufferView"),
    (("bufferViews", 0), {"byteLength": 999_999}, "ends behind its buffer"),
    (("buffers", 0), {"uri": "https://example.org/a.bin"}, "refers to https"),
    (("buffers", 0), {"uri": "data:;base64,A"}, "broken data URI"),
    (("buffers", 0), {"uri": "none.bin"}, "cannot be read: FileNotFoundError"),
]


@pytest.mark.parametrize(("place", "change", "reason"), UNKNOWN)
def test_what_is_unknown_is_refused_by_name(place, change, reason, tmp_path):
    tree, data = textured(png(NINTH))
    tree |= {"asset": {"version": "2.0"}, "buffers": [{"byteLength": len(data)}]}
    tree["meshes"][0]["weights"] = [1.0]
    thing = tree
    for step in place:
        thing = thing[step]
    thing |= change
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        read(tmp_path, tree, data)
    assert "\n" not in str(caught.value)


def test_a_skin_without_weights_is_refused(tmp_path):
    tree, data = square()
    tree["nodes"][0]["skin"] = 0
    tree["skins"] = [{"joints": [0]}]
    with pytest.raises(ValueError, match="skin without joints and weights; bake it"):
        read(tmp_path, tree, data)


def test_harmless_extensions_and_extras_are_passed_over(tmp_path):
    tree, data = textured(png(NINTH))
    shine = {"extensions": {"KHR_materials_clearcoat": {}}, "extras": {"mine": 1}}
    tree["materials"][0] |= shine
    tree["extensionsUsed"] = ["KHR_materials_clearcoat", "EXT_not_used_after_all"]
    mesh, notes = read(tmp_path, tree, data)
    assert seen_at(mesh, *QUARTERS) == colours_of(NINTH)
    assert not notes
