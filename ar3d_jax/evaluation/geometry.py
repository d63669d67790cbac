"""Shapes against a true shape, among themselves, and as meshes.

Lengths are in units of the object's longest side, which loaded meshes and voxel grids
have as 1. Points are spread over surfaces by `render/geometry.py`, voxels of meshes are
those of `codec/voxels.py`: cells that the surface touches, with nothing inside.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

CELLS = 1 << 20  # vertices are welded within 1e-6 of the longest side; our choice
CHUNK = 1 << 26  # voxels turned to float32 at once: 256 MiB


def voxel_iou(a: Bool[np.ndarray, "R R R"], b: Bool[np.ndarray, "R R R"]) -> float:
    """Cells set in both over cells set in either, 0 to 1; of two empty grids 0."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def diversity(voxels: Bool[np.ndarray, "n R R R"]) -> float:
    """Mean IoU over all pairs of grids, 0 to 1: lower is more diverse.

    1 says that all are the same; IoU as `voxel_iou`. NaN below two grids.
    """
    n = len(voxels)
    if n < 2:
        return np.nan
    flat = voxels.reshape(n, -1)
    both = np.zeros((n, n))
    step = max(1, CHUNK // n)
    for start in range(0, flat.shape[1], step):
        part = flat[:, start : start + step].astype(np.float32)
        both += part @ part.T  # whole numbers up to 2**24: exact
    size = np.diagonal(both)
    either = size[:, None] + size - both
    first, second = np.triu_indices(n, 1)
    return float((both / np.maximum(either, 1))[first, second].mean())


def chamfer(p: Float[np.ndarray, "n 3"], q: Float[np.ndarray, "m 3"]) -> float:
    """Half the sum of the mean distances from each set's points to the other set.

    Of plain distances, not of squared ones: Chamfer-L1 of Occupancy Networks (Mescheder
    et al. 2019), the mean of accuracy and completeness. 0.01 is a hundredth of the
    longest side. Two samples of one surface are not at 0 but about half the spacing of
    their points apart.

    Raises:
        ValueError: a set without points, or with some that are not finite.
    """
    to_q, to_p = _nearest(p, q)
    return float(to_q.mean() + to_p.mean()) / 2


def f_score(
    p: Float[np.ndarray, "n 3"],
    q: Float[np.ndarray, "m 3"],
    threshold: float = 0.02,
) -> float:
    """Harmonic mean of the shares of points within `threshold` of the other set.

    Tatarchenko et al. 2019, with 0.01. 0.02 is our choice, as few points cannot tell
    less: two samples of N points of one surface of area A score 1 - exp(-pi N
    threshold^2 / A) and no more, 0.81 with 4,096 points of a ball.

    Args:
        p: points of one surface.
        q: of the other.
        threshold: a distance, in units of the longest side.

    Returns:
        0 (nothing is near) to 1 (all is).

    Raises:
        ValueError: see `chamfer`.
    """
    near_q, near_p = (np.mean(far <= threshold) for far in _nearest(p, q))
    return float(2 * near_q * near_p / max(near_q + near_p, 1e-12))


def _nearest(p, q):
    """Each point's distance to the other set: [n], [m], float64."""
    if not (len(p) and len(q)):
        raise ValueError("a set has no points to measure distances between")
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise ValueError("a point is not finite")
    return KDTree(q).query(p)[0], KDTree(p).query(q)[0]


def health(
    vertices: Float[np.ndarray, "vertex 3"], faces: Int[np.ndarray, "face 3"]
) -> dict[str, float]:
    """What is wrong with a mesh, once vertices at one place are one.

    Files give a place several vertices where colours, normals or parts meet; these are
    no holes. Vertices are welded in cells of 1e-6 of the longest side, and faces whose
    corners then coincide are no part of the surface.

    Returns:
        components: pieces of the surface that hang together by a vertex.
        watertight: 1 where every edge has exactly two faces, else 0. Winding and
            self-intersection are not looked at. 0 for a mesh without surface.
        degenerate_faces: the share of faces, 0 to 1, lower than 1e-6 of the longest
            side over their own longest edge.

    Raises:
        ValueError: a vertex that is not finite.
    """
    if not np.isfinite(vertices).all():
        raise ValueError("a vertex is not finite")
    if not len(faces):
        return {"components": 0.0, "watertight": 0.0, "degenerate_faces": 0.0}
    places, longest = _weld(vertices)
    corners = places[faces]
    a, b, c = corners.T
    collapsed = (a == b) | (b == c) | (c == a)
    flat = collapsed | (_height(vertices, faces) * CELLS <= longest)
    corners = corners[~collapsed]
    per_edge = _faces_per_edge(corners)
    return {
        "components": float(_components(corners)),
        "watertight": float(len(per_edge) > 0 and bool((per_edge == 2).all())),
        "degenerate_faces": float(flat.mean()),
    }


def _weld(vertices):
    """A number for each vertex's place, equal where places are; the longest side."""
    lowest = vertices.min(axis=0).astype(np.float64)
    longest = float((vertices.max(axis=0) - lowest).max())
    scale = CELLS / longest if longest > 0 else 0.0
    cells = np.rint((vertices - lowest) * scale).astype(np.int64)
    key = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]  # CELLS < 2**21
    return np.unique(key, return_inverse=True)[1], longest


def _height(vertices, faces):
    """Of each triangle over its longest edge."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    twice_area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    edges = [np.linalg.norm(edge, axis=1) for edge in (b - a, c - b, a - c)]
    return twice_area / np.maximum(np.maximum.reduce(edges), 1e-300)


def _faces_per_edge(corners):
    """How many faces each edge has, whichever way they go along it."""
    ends = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    ends.sort(axis=1)
    keys = np.sort((ends[:, 0] << 32) | ends[:, 1])
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return np.diff(starts, append=len(keys))


def _components(corners):
    """Pieces of the graph that the faces make of the vertices they use."""
    count = int(corners.max(initial=-1)) + 1
    a, b, c = corners.T
    ends = np.concatenate([a, b]), np.concatenate([b, c])
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(count, count))
    label = connected_components(graph, directed=False)[1]
    return len(np.unique(label[corners[:, 0]]))
