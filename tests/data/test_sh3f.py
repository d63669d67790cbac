"""Reading furniture files: properties, meshes, colours, and what is refused."""

import zipfile

import numpy as np
import pytest

from ar3d_jax.data import sh3f
from ar3d_jax.data.sh3f import Unusable, load_surface, parse_properties, read_pieces
from ar3d_jax.errors import UserError


def surface_of(path, name):
    piece = next(piece for piece in read_pieces(path) if piece.id == name)
    with zipfile.ZipFile(path) as archive:
        return load_surface(archive, piece)


def test_properties():
    data = (
        b"# comment = no\n! neither\n\n"
        b"a=1\nb : two words \nc three\n  d\\ e = x\\=y\r\n"
        b"long=one \\\n    two\\\\\nnext=h\\u00f4 \\u20ac \xe9\x85\\t.\n"
        b"empty=\nnothing\nclef=\\uD834\\uDD1E"
    )
    assert parse_properties(data) == {
        "a": "1",
        "b": "two words ",
        "c": "three",
        "d e": "x=y",
        "long": "one two\\",
        "next": "hô € é\x85\t.",
        "empty": "",
        "nothing": "",
        "clef": "\U0001d11e",
    }


def test_pieces(sh3f_file):
    chair, *rest = read_pieces(sh3f_file)
    assert chair.id == "test-chair"
    assert chair.name == "Châir"
    assert chair.tags == ("Seat",)  # where it comes from is no keyword
    assert chair.licence == "CC0 © nobody"
    assert chair.model == "chair/chair.obj"
    assert len(rest) == 8


def test_surface_is_upright_centred_and_faces_front(sh3f_file):
    surface = surface_of(sh3f_file, "test-chair")
    low, high = surface.vertices.min(axis=0), surface.vertices.max(axis=0)
    np.testing.assert_allclose(high - low, [0.8, 0.8, 1.0], atol=1e-6)
    np.testing.assert_allclose(low + high, 0.0, atol=1e-6)
    # The back (the only part above the seat) is behind: +y.
    above = surface.vertices[surface.vertices[:, 2] > 0.05]
    assert (above[:, 1] > 0.25).all()


def test_model_rotation_is_applied(sh3f_file):
    upright, lying = (surface_of(sh3f_file, f"test-{n}") for n in ("cot", "lying"))
    np.testing.assert_allclose(np.ptp(upright.vertices, axis=0), [0.25, 0.5, 1.0])
    np.testing.assert_allclose(np.ptp(lying.vertices, axis=0), [0.25, 1.0, 0.5])


def test_colours_come_from_textures_and_materials(sh3f_file):
    surface = surface_of(sh3f_file, "test-chair")
    names = [surface.material_names[kind] for kind in surface.materials]
    cushion = np.array(["cushion" in name for name in names])
    assert cushion.sum() == 12  # one box
    np.testing.assert_allclose(
        surface.colours[cushion], [[200 / 255, 20 / 255, 20 / 255]] * 12, atol=0.01
    )
    np.testing.assert_allclose(surface.colours[~cushion][0], [0.4, 0.3, 0.2], atol=0.01)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("test-gone", "no file gone/gone.obj"),
        ("test-empty", "OBJ|no triangles"),
        ("test-broken", "unreadable OBJ"),
    ],
)
def test_unusable_pieces_say_why(sh3f_file, name, reason):
    with pytest.raises(Unusable, match=reason):
        surface_of(sh3f_file, name)


def test_points_without_extent_are_refused():
    with pytest.raises(Unusable, match="no extent"):
        sh3f.normalise(np.ones((3, 3)))


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "a.sh3f"
    text.write_text("hello")
    with pytest.raises(UserError, match="not a furniture catalog"):
        read_pieces(text)
    with zipfile.ZipFile(tmp_path / "b.sh3f", "w") as archive:
        archive.writestr("else.txt", "")
    with pytest.raises(UserError, match="PluginFurnitureCatalog"):
        read_pieces(tmp_path / "b.sh3f")


def test_face_areas():
    vertices = np.array([[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 1]])
    areas = sh3f.face_areas(vertices, np.array([[0, 1, 2], [0, 1, 3]]))
    np.testing.assert_allclose(areas, [6.0, 1.5])
