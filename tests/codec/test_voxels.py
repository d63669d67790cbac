"""The voxeliser against exact rational clipping, and its rules one by one."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from ar3d_jax.codec import voxels
from ar3d_jax.codec.voxels import pack, unpack, voxelize

R = 8


def clip(polygon, axis, bound, keep_above):
    """Sutherland-Hodgman against one closed half-space, in fractions."""
    sign = 1 if keep_above else -1
    kept = []
    for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        da, db = sign * (a[axis] - bound), sign * (b[axis] - bound)
        if da >= 0:
            kept.append(a)
        if da * db < 0:
            t = da / (da - db)
            kept.append(tuple(p + t * (q - p) for p, q in zip(a, b, strict=True)))
    return kept


def exact_cells(triangle, number=Fraction):
    """Cells whose closed cube meets the triangle (in cell units), upper cell first."""
    corners = [tuple(number(float(x)) for x in corner) for corner in triangle]
    ranges = []
    for axis in range(3):
        along = [corner[axis] for corner in corners]
        ranges.append(range(int(min(along)), int(max(along)) + 1))
    found = set()
    for cell in itertools.product(*ranges):
        polygon = corners
        for axis in range(3):
            polygon = clip(polygon, axis, cell[axis], True) if polygon else polygon
            polygon = clip(polygon, axis, cell[axis] + 1, False) if polygon else polygon
        if polygon:
            found.add(cell)
    return found


def voxelize_cells(corners):
    """The same triangles through the voxeliser, from cell units."""
    points = np.asarray(corners, float).reshape(-1, 3) / R - 0.5
    faces = np.arange(len(points)).reshape(-1, 3)
    return {tuple(map(int, cell)) for cell in np.argwhere(voxelize(points, faces, R))}


@pytest.mark.parametrize("size", [0.3, 2.0, 8.0])
def test_random_triangles_equal_clipping(size):
    """Random corners touch nothing exactly, so floating point will do."""
    rng = np.random.default_rng(int(10 * size))
    for _ in range(60):
        low = rng.uniform(0, R - size, 3) if size < R else 0.0
        corners = low + rng.uniform(0, size, (3, 3))
        assert voxelize_cells(corners) == exact_cells(corners, float)


def test_touching_triangles_equal_exact_clipping():
    """Corners on halves of cells: edges and planes that only touch cells count."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        corners = 1 + rng.integers(0, 9, (3, 3)) / 2
        assert voxelize_cells(corners) == exact_cells(corners)


def test_degenerate_triangles_equal_exact_clipping():
    point = [[1.5, 2.5, 3.5]] * 3
    needle = [[0.5, 0.5, 0.5], [6.5, 5.5, 3.5], [3.5, 3.0, 2.0]]
    for corners in (point, needle):
        assert voxelize_cells(corners) == exact_cells(np.array(corners))


def test_face_between_cells_belongs_to_the_upper_one():
    corners = [[2.25, 2.25, 4.0], [3.75, 2.25, 4.0], [2.25, 3.75, 4.0]]
    assert {cell[2] for cell in voxelize_cells(corners)} == {4}
    assert (2, 2, 4) in voxelize_cells(corners)


def test_touching_from_below_sets_both_cells():
    """The scan starts at the lowest corner's cell and goes on to the one touched."""
    corners = [[2.25, 2.25, 3.5], [2.5, 2.25, 4.0], [2.25, 2.5, 4.0]]
    assert voxelize_cells(corners) == {(2, 2, 3), (2, 2, 4)}


def test_top_of_the_cube_is_inside():
    corners = [[0.5, 0.5, 8.0], [1.5, 0.5, 8.0], [0.5, 0.5, 8.0]]
    assert voxelize_cells(corners) == {(0, 0, 7), (1, 0, 7)}


def test_box_is_a_shell():
    corners = np.array(list(itertools.product([-0.5, 0.5], repeat=3)))
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6)]
    quads += [(0, 2, 6, 4), (1, 3, 7, 5)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    grid = voxelize(corners, faces, 16)
    inner = grid[1:-1, 1:-1, 1:-1]
    assert grid.sum() == 16**3 - 14**3
    assert not inner.any()


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(1)
    points = rng.uniform(-0.5, 0.5, (60, 3))
    faces = rng.integers(0, 60, (40, 3))
    whole = voxelize(points, faces, 32)
    monkeypatch.setattr(voxels, "PAIRS", 100)
    np.testing.assert_array_equal(voxelize(points, faces, 32), whole)


def test_no_faces_no_voxels():
    assert not voxelize(np.zeros((3, 3)), np.zeros((0, 3), int), R).any()


def test_pack_and_unpack():
    grids = np.random.default_rng(2).random((2, 3, R, R, R)) < 0.3
    packed = pack(grids)
    assert packed.shape == (2, 3, R**3 // 8)
    np.testing.assert_array_equal(unpack(packed, R), grids)
