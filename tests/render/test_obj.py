import numpy as np
import pytest
from PIL import Image

from ar3d_jax.render import meshes
from ar3d_jax.render.geometry import surface_points

# A quadrilateral 4 x 2, z up; what stands around it differs.
PLACES = "v 0 0 0\nv 4 0 0\nv 4 0 2\nv 0 0 2\n"
PICTURE = np.uint8([[[10, 0, 0], [0, 20, 0]], [[0, 0, 30], [40, 40, 40]]])
UVS = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
MAPPED = "f 1/1 2/2 3/3 4/4\n"
QUARTERS = ((0.25, 0.75), (0.75, 0.75), (0.25, 0.25), (0.75, 0.25))


def load(tmp_path, text, encoding="utf-8", **kwargs):
    """The mesh of an OBJ with this text, with colours, and its notes."""
    notes = []
    data = text if isinstance(text, bytes) else text.encode(encoding)
    (tmp_path / "a.obj").write_bytes(data)
    arguments = {"up": "z", "max_faces": 1000, "colours": True, "notes": notes} | kwargs
    return meshes.load(tmp_path / "a.obj", **arguments), notes


def area(mesh):
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def seen_at(mesh, *places):
    """The colours at places (x, z) of the mesh, 0..1 from its lower left corner."""
    points, colours = surface_points(mesh, 4000, 0)
    here = (points - points.min(0)) / np.maximum(np.ptp(points, 0), 1e-9)
    away = [np.linalg.norm(here[:, [0, 2]] - place, axis=1) for place in places]
    return [tuple(colours[of.argmin()].tolist()) for of in away]


def textured(tmp_path, library, **kwargs):
    """The quadrilateral in material m, which the library has; the picture is there."""
    Image.fromarray(PICTURE).save(tmp_path / "a picture.png")
    (tmp_path / "a.mtl").write_text(library)
    text = "mtllib a.mtl\n" + PLACES + UVS + "usemtl m\n" + MAPPED
    return load(tmp_path, text, **kwargs)


def pixels(picture=PICTURE):
    return [tuple(pixel) for row in picture.tolist() for pixel in row]


# --- Text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        PLACES + "f 1 2 3 4",
        PLACES.replace("\n", "\r\n") + "f 1 2 3 4\r\n",
        PLACES.replace("\n", "\r") + "f 1 2 3 4\r",
        "\ufeff" + PLACES + "f 1 2 3 4",
        PLACES.replace("v", "  \tv") + "\tf\t1  2\t3 4  ",
        PLACES.replace("\n", " # place\n") + "f 1 2 3 4 # all # of it\n#f 1 2 3\n # f",
        PLACES + "f 1 2 \\\n3 4",
        PLACES + "f 1 2 3 \\  \r\n  4",
        PLACES + "f -4 -3 -2 -1\nv 9 9 9\nv 9 9 9",
        "v 9 9 9\n" + PLACES + "f -4 -3 -2 -1\nv 9 9 9\nv 9 9 9",
        PLACES + "f 1/ 2/ 3/ 4/",
        PLACES + "vn 0 1 0\nf 1//1 2//1 3//1 4//1",
        PLACES + "vn 0 1 0\nvt 0 0\nf 1/1/1 2/1/1 3/1/1 4/1/1",
        PLACES + "vn 0 1 0\nvt 0 0\nf 1/1/1 2//1 3/1 4",
        PLACES + "vt 0\nf 1/1 2/1 3/1 4/1",
        PLACES.replace("\n", " 1.0\n") + "f 1 2 3 4",
        PLACES + "g a b\no c # d\ns off\nlod 1\nvn 0 0 1\nfo 1 2 3 4",
        PLACES + "f 1 2\nf 1 2 3 4",
    ],
)
def test_text_of_any_age_and_program(text, tmp_path):
    mesh, notes = load(tmp_path, text)
    assert len(mesh.faces) == 2
    np.testing.assert_allclose(mesh.vertices[:, [0, 2]].min(0), [-0.5, -0.25])
    np.testing.assert_allclose(area(mesh), 0.5, rtol=1e-6)
    assert (mesh.colours == 255).all()
    assert not notes


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_by_name(encoding, tmp_path):
    with pytest.raises(ValueError, match="is UTF-16 or no text; save it as UTF-8"):
        load(tmp_path, PLACES + "f 1 2 3 4", encoding)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f 1 2 5", "a vertex that does not exist"),
        ("f 1 2 -5", "a vertex that does not exist"),
        ("f 0 1 2", "a vertex that does not exist"),
        ("f 1/2 2/1 3/1\nvt 0 0", "a vertex that does not exist"),
        ("f 1 2 x", "invalid literal"),
        ("v 1 2\nf 1 2 3", "a vertex of 2 numbers; expected x y z"),
        ("cstype bezier\nf 1 2 3", "free-form surfaces .cstype.*convert them"),
        ("surf 0 1 0 1 1 2 3 4", "free-form surfaces .surf."),
        ("l 1 2 3", "no triangles"),
    ],
)
def test_what_cannot_be_drawn_is_refused(text, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        load(tmp_path, PLACES + text)


def test_what_is_passed_over_is_noted(tmp_path):
    text = "mtllib gone.mtl\nusemtl m\n" + PLACES + "f 1 2 3 4\nl 1 2\ncall b.obj\n"
    assert load(tmp_path, text)[1] == [
        "has points or lines; only faces are drawn",
        "has 'call' lines, which are not read",
        "gone.mtl is not there; drawn without its materials",
        "has no material 'm'; drawn white",
    ]


@pytest.mark.parametrize(("top", "alpha"), [(1, ""), (255, ""), (1, " 0.5")])
def test_colours_behind_vertices(top, alpha, tmp_path):
    colours = ((0.2, 0, 0), (0, 0.4, 0), (0, 0, 0.6), (1, 1, 1))
    lines = [
        f"{line} " + " ".join(str(c * top) for c in rgb) + alpha
        for line, rgb in zip(PLACES.splitlines(), colours, strict=True)
    ]
    mesh, _ = load(tmp_path, "\n".join(lines) + "\nf 1 2 3 4")
    np.testing.assert_array_equal(
        mesh.colours, (np.array(colours) * 255).round().astype(int)
    )


def test_vertices_that_normals_split_stay_split(tmp_path):
    normals = "vn 0 1 0\nvn 1 0 0\n"
    mesh, _ = load(tmp_path, PLACES + normals + "f 1//1 2//1 3//1\nf 1//2 3//2 4//2")
    assert len(mesh.vertices) == 6
    mesh, _ = load(tmp_path, PLACES + normals + "f 1//1 2//1 3//1\nf 1//1 3//1 4//1")
    assert len(mesh.vertices) == 4


# --- Materials ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("map_Kd a picture.png", PICTURE),
        ("map_Kd   a picture.png   # the picture", PICTURE),
        ("\tmap_Kd .\\a picture.png", PICTURE),
        (r"map_Kd C:\Users\me\textures\A Picture.PNG", PICTURE),
        ("map_kd /home/me/a picture.png", PICTURE),
        ("map_Kd -blendu on -texres 512 -boost 1 a picture.png", PICTURE),
        ("Kd 0 0 0\nmap_Kd a picture.png\nKd 0 0 0", PICTURE),
        ("map_Kd -s 1 1 1 -o 0.5 0 0 a picture.png", PICTURE[:, ::-1]),
        ("map_Kd -o 0 .5 a picture.png", PICTURE[::-1]),
        ("map_Kd -s 0.5 1 1 -clamp on a picture.png", PICTURE[:, [0, 0]]),
        ("map_Kd -o 1.5 0 -clamp on a picture.png", PICTURE[:, [1, 1]]),
        ("map_Kd -s .5 1 -o .5 0 a picture.png", PICTURE[:, [1, 1]]),  # scaled first
        ("map_Kd -mm 0 2 -o 0 0 0 a picture.png", PICTURE * 2),
        ("map_Kd -mm 0.2 1 a picture.png", PICTURE + 51),
        ("map_Kd a picture.png\nTr 0\nillum 2\nmap_Bump b.png", PICTURE),
    ],
)
def test_a_texture_with_options_and_names_of_any_program(library, expected, tmp_path):
    mesh, notes = textured(tmp_path, "newmtl m\n" + library)
    assert seen_at(mesh, *QUARTERS) == pixels(np.array(expected))
    assert not notes


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        ("map_Kd -cc on a picture.png", "texture with -cc, which is not read"),
        ("map_Kd -t 0.1 0 0 a picture.png", "turbulent texture"),
        ("map_Kd -o 1", "texture with -o and no file's name"),
        ("Kd spectral a.rfl", "Kd spectral; expected r g b"),
    ],
)
def test_what_a_material_may_not_say(library, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        textured(tmp_path, "newmtl m\n" + library)


@pytest.mark.parametrize(
    ("library", "note"),
    [
        ("map_Kd gone.png", "gone.png is not there; drawn without this texture"),
        ("map_Kd a.mtl", "a.mtl is no known picture; drawn without this texture"),
        ("Wonder 1", "has materials with 'Wonder', which is not read"),
    ],
)
def test_what_a_material_has_more_is_noted(library, note, tmp_path):
    mesh, notes = textured(tmp_path, "newmtl m\n" + library)
    assert notes == [note]
    assert (mesh.colours == 255).all()


@pytest.mark.parametrize(
    ("kd", "expected"),
    [("0.2 0.4 1", (51, 102, 255)), ("0.2", (51, 51, 51)), ("-1 0 7 0", (0, 0, 255))],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-8-sig"])
def test_the_colour_of_a_material_in_any_encoding(kd, expected, encoding, tmp_path):
    library = f"# St\u00fchle\nnewmtl B\u00fcro 1\n  Kd {kd}\n"
    (tmp_path / "b\u00fc 1.mtl").write_bytes(library.encode(encoding))
    text = f"mtllib b\u00fc 1.mtl\n{PLACES}usemtl B\u00fcro 1\nf 1 2 3 4"
    mesh, notes = load(tmp_path, text)
    assert (mesh.colours == expected).all()
    assert not notes
    # The other one in another encoding.
    mesh, notes = load(tmp_path, text, "latin-1")
    assert (mesh.colours == expected).all()
    assert not notes


def test_a_library_in_utf_16_is_refused_by_its_name(tmp_path):
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0", "utf-16")
    with pytest.raises(ValueError, match=r"has a library a\.mtl that is UTF-16"):
        load(tmp_path, "mtllib a.mtl\n" + PLACES + "f 1 2 3 4")


def test_names_with_a_comment_behind_and_names_with_a_cross(tmp_path):
    library = "newmtl red # 1\nKd 1 0 0\nnewmtl Material #25\nKd 0 1 0\n"
    (tmp_path / "a.mtl").write_text(library)
    text = "mtllib a.mtl b.mtl # two\n" + PLACES + "usemtl red\nf 1 2 3\n"
    (tmp_path / "b.mtl").write_text("newmtl blue\nKd 0 0 1")
    text += "usemtl Material #25\nf 1 2 3\nusemtl blue # here\nf 1 2 3"
    mesh, notes = load(tmp_path, text)
    found = {tuple(colour) for colour in mesh.colours.tolist()}
    assert found == {(255, 0, 0), (0, 255, 0), (0, 0, 255)}
    assert not notes


@pytest.mark.parametrize(
    ("library", "seen"),
    [
        ("d 0", False),
        ("d 0.0\nTr 0.0", False),
        ("Tr 1", False),
        ("d 1\nTr 1", True),
        ("d -halo 0", False),
        ("d 0.5", True),
        ("map_d cover.png", False),
        ("map_d a picture.png", True),
    ],
)
def test_transparent_materials(library, seen, tmp_path):
    Image.new("L", (2, 2), 0).save(tmp_path / "cover.png")
    if seen:
        assert len(textured(tmp_path, "newmtl m\n" + library)[0].faces) == 2
    else:
        with pytest.raises(ValueError, match="all are transparent"):
            textured(tmp_path, "newmtl m\n" + library)
        with pytest.raises(ValueError, match="all are transparent"):
            textured(tmp_path, "newmtl m\n" + library, colours=False)


def test_faces_without_places_in_their_texture(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0\nmap_Kd a.png")
    text = "mtllib a.mtl\n" + PLACES + "usemtl m\nf 1 2 3 4"
    mesh, notes = load(tmp_path, text)
    assert (mesh.colours == [255, 0, 0]).all()
    assert notes == ["has a texture on faces without places for it; drawn without it"]
