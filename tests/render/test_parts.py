import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ar3d_jax.render import parts


def area_and_normal(points, faces):
    a, b, c = np.moveaxis(points[faces], 1, 0)
    cross = np.cross(b - a, c - a)
    return np.linalg.norm(cross, axis=1).sum() / 2, cross.sum(0) / 2


def turned(seed):
    """A random rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]


STAR = [((1, 0.3)[k % 2], k * np.pi / 5) for k in range(10)]
SHAPES = {
    "square": ([(0, 0), (1, 0), (1, 1), (0, 1)], 1.0),
    "dart": ([(0, 0), (2, -1), (0.5, 0), (2, 1)], 0.5),
    "L": ([(1, 0), (1, 0.2), (0.2, 0.2), (0.2, 1), (0, 1), (0, 0)], 0.36),
    "star": (
        [(r * np.cos(t), r * np.sin(t)) for r, t in STAR],
        10 * 0.3 * np.sin(np.pi / 5) / 2,
    ),
    "comb": (
        [
            *((0, 0), (5, 0), (5, 3), (4, 3), (4, 1), (3, 1), (3, 3), (2, 3), (2, 1)),
            *((1, 1), (1, 3), (0, 3)),
        ],
        11.0,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("reverse", [False, True])
@given(seed=st.integers(0, 1000), start=st.integers(0, 11))
def test_polygons_keep_their_area_and_winding(name, reverse, seed, start):
    outline, area = SHAPES[name]
    flat = np.array(outline, float)[:: -1 if reverse else 1]
    flat = np.roll(flat, start, axis=0)
    points = np.column_stack([flat, np.zeros(len(flat))]) @ turned(seed).T + 7
    corners = np.arange(len(points))[None]
    faces = parts.triangles(points, corners)
    assert len(faces) == len(points) - 2
    found, normal = area_and_normal(points, faces)
    up = turned(seed)[:, 2] * (-1 if reverse else 1)
    np.testing.assert_allclose(found, area, rtol=1e-9)
    np.testing.assert_allclose(normal, area * up, atol=1e-9)


def test_polygons_of_one_length_are_told_apart():
    points = np.array([(x, y, 0) for y in range(9) for x in (0, 2)], float)
    # A convex hexagon, and one whose fan would cover what is not its.
    convex = [0, 1, 3, 5, 4, 2]
    dent = [6, 7, 11, 15, 14, 10]
    points[11] = (0.5, 5, 0)
    faces = parts.triangles(points, np.array([convex, dent]))
    assert len(faces) == 8
    assert set(faces[:4].ravel()) == set(range(6))
    assert set(faces[4:].ravel()) == set(range(6, 12))
    vertices = np.array(convex + dent)[faces]
    found, normal = area_and_normal(points, vertices)
    np.testing.assert_allclose(found, 2 * 2 + 2 * 4 - 4 * 1.5 / 2, rtol=1e-12)
    np.testing.assert_allclose(found, abs(normal[2]), rtol=1e-12)


def test_notes_are_few_short_and_different():
    notes = parts.Notes()
    for k in range(20):
        notes.add(f"line {k}\n" + "x" * 500)
        notes.add("line 0\n" + "x" * 500)
    assert len(notes) == parts.NOTES
    assert len(set(notes)) == parts.NOTES
    assert all(len(line) <= parts.NOTE_LENGTH and "\n" not in line for line in notes)
