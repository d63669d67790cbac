"""Meshes to surface voxels, and voxel grids to bits and back.

A voxel is set where the surface touches it; the inside stays empty. The rule is that
of Open3D's `create_from_triangle_mesh_within_bounds`, which the published codec was
trained on: the triangle meets the closed cell (separating-axis test on 13 axes),
looking only at cells from `floor(lowest corner)` on, so that a face lying exactly
between two cells belongs to the upper one. `tests/codec/test_voxels.py` holds it
against exact clipping.

This file is numpy only: render workers and data processes import it. The way back, from
voxels to a mesh, is `codec/surface.py`.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MARGIN = 1e-6  # TRELLIS clamps to +-(0.5 - 1e-6), so the top face stays in the grid
PAIRS = 1 << 15  # (triangle, cell) pairs tested at once: they stay in the cache


def voxelize(
    vertices: Float[np.ndarray, "vertex 3"],
    faces: Int[np.ndarray, "face 3"],
    resolution: int,
) -> Bool[np.ndarray, "R R R"]:
    """The cells of the cube [-0.5, 0.5]^3 that the triangles touch, indexed [x, y, z].

    Points outside the cube are moved to its border first, as the published data are.
    """
    corners = _grid_corners(vertices, faces, resolution)
    grid = np.zeros((resolution,) * 3, bool)
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    low = np.minimum(np.minimum(a, b), c).astype(np.int32)
    span = np.maximum(np.maximum(a, b), c).astype(np.int32) - low + 1

    # A triangle that leaves its first cell along one axis at most crosses all cells of
    # its bounding box, because it is connected: no test needed. Most are such.
    simple = (span > 1).sum(axis=1) <= 1
    for _, cells in _candidates(low[simple], span[simple]):
        grid[tuple(cells.T)] = True

    corners, low, span = corners[~simple], low[~simple], span[~simple]
    plane = _plane_slab(corners)
    edges = _edge_slabs(corners)
    for triangle, cells in _candidates(low, span):
        centre = cells + 0.5
        near = _inside(centre, *(part[triangle] for part in plane))
        # Cells already set need no second proof, and few cells survive the plane test.
        near &= ~grid[tuple(cells.T)]
        triangle, cells, centre = triangle[near], cells[near], centre[near]
        touched = np.ones(len(cells), bool)
        for first, second, *slab in edges:
            across = centre[:, [first, second]]
            touched &= _inside(across, *(part[triangle] for part in slab))
        grid[tuple(cells[touched].T)] = True
    return grid


def _grid_corners(vertices, faces, resolution):
    """Triangle corners [face, corner, 3] in units of cells from the cube's corner."""
    limit = 0.5 - MARGIN
    inside = np.clip(np.asarray(vertices, np.float64), -limit, limit)
    return ((inside + 0.5) * resolution)[faces]


def _candidates(low, span):
    """Pairs (triangle index, cell) of all cells in the bounding boxes, in chunks."""
    count = span.astype(np.int64).prod(axis=1)
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        base = ends[start] - count[start]
        stop = max(start + 1, int(np.searchsorted(ends, base + PAIRS, side="right")))
        triangle = np.repeat(np.arange(start, stop), count[start:stop])
        rank = np.arange(ends[stop - 1] - base) - (ends - count)[triangle] + base
        size = span[triangle]
        rest, z = np.divmod(rank, size[:, 2])
        x, y = np.divmod(rest, size[:, 1])
        yield triangle, low[triangle] + np.stack([x, y, z], axis=1).astype(np.int32)
        start = stop


def _inside(points, axis, lowest, highest):
    """Whether each point's projection on its axis lies in its closed interval."""
    along = np.einsum("pa,pa->p", points, axis)
    return (along >= lowest) & (along <= highest)


def _plane_slab(corners):
    """Axis and interval of cell centres for the triangle's own plane."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    offset = np.einsum("fa,fa->f", normal, corners[:, 0])
    reach = 0.5 * np.abs(normal).sum(axis=1)
    return normal, offset - reach, offset + reach


def _edge_slabs(corners):
    """The nine axes edge x unit vector: plane of two coordinates, axis, interval.

    The cross product with a unit vector has two non-zero coordinates, so each test is
    one in the plane of those two. The interval holds for either winding.
    """
    slabs = []
    for first, second in ((1, 2), (2, 0), (0, 1)):
        flat = corners[:, :, [first, second]]
        for k in range(3):
            edge = flat[:, (k + 1) % 3] - flat[:, k]
            axis = np.stack([-edge[:, 1], edge[:, 0]], axis=1)
            on_edge = np.einsum("fa,fa->f", axis, flat[:, k])
            opposite = np.einsum("fa,fa->f", axis, flat[:, (k + 2) % 3])
            reach = 0.5 * np.abs(axis).sum(axis=1)
            lowest = np.minimum(on_edge, opposite) - reach
            highest = np.maximum(on_edge, opposite) + reach
            slabs.append((first, second, axis, lowest, highest))
    return slabs


def pack(voxels: Bool[np.ndarray, "*batch R R R"]) -> UInt8[np.ndarray, "*batch bytes"]:
    """Eight voxels to a byte, z fastest."""
    return np.packbits(voxels.reshape(*voxels.shape[:-3], -1), axis=-1)


def unpack(
    packed: UInt8[np.ndarray, "*batch bytes"], resolution: int
) -> Bool[np.ndarray, "*batch R R R"]:
    """The grids that `pack` was given."""
    bits = np.unpackbits(packed, axis=-1, count=resolution**3)
    return bits.reshape(*packed.shape[:-1], *(resolution,) * 3).astype(bool)
