"""What is drawn and scored besides a mesh's triangles: its normals and surface points.

Numpy only, like everything that render workers import.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.render.meshes import PaintedMesh
from ar3d_jax.render.pictures import REPEAT, lookup

# Where a mesh has no colours: what ReCon++ was shown in half of its training, 0.4.
NEUTRAL = 102
GRID = np.float32(1 << 15)  # places along a side; int16 is within half of one


def _face_normals(mesh: Mesh) -> Float[np.ndarray, "m 3"]:
    """Outward normals, each as long as twice its triangle's area."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(mesh: Mesh) -> Float[np.ndarray, "n 3"]:
    """Unit normals: the area-weighted mean over the triangles at each vertex.

    A vertex without area around it has the normal 0.
    """
    corners = mesh.faces.ravel()
    per_corner = np.repeat(_face_normals(mesh), 3, axis=0)
    count = len(mesh.vertices)
    sums = [np.bincount(corners, per_corner[:, axis], count) for axis in range(3)]
    normals = np.stack(sums, 1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.maximum(length, 1e-12)).astype(np.float32)


def surface_points(
    mesh: Mesh, count: int, seed: int, *, alike: bool = False
) -> tuple[Float[np.ndarray, "count 3"], UInt8[np.ndarray, "count 3"]]:
    """`count` points spread evenly over the surface, and their colours (sRGB).

    A triangle gets points by its area, uniform inside; colours are the mesh's own, as
    the paper's B.2.4 has it, or NEUTRAL where it has none. The same for the same seed.
    With `alike`, a surface of voxels gets nearly the same points, too, if its numbers
    were rounded to 16 bits: areas are then those of corners on a grid. Otherwise the
    rounding of the first triangles decides which triangles some later points lie on.

    Raises:
        ValueError: the mesh has no area to put points on.
    """
    measured = mesh
    if alike:
        measured = Mesh(np.round(mesh.vertices * GRID) / GRID, mesh.faces)
    edges = np.cumsum(np.linalg.norm(_face_normals(measured), axis=1), dtype=np.float64)
    if not len(edges) or edges[-1] <= 0:
        raise ValueError("a mesh without area has no surface points")
    random = np.random.default_rng(seed)
    face = np.searchsorted(edges, random.random(count) * edges[-1], side="right")
    face = np.minimum(face, len(edges) - 1)  # the product may round up to the end
    a, b, c = (mesh.vertices[mesh.faces[face, k]] for k in range(3))
    # Uniform in a triangle: fold the far half of the parallelogram back.
    u, v = random.random((2, count, 1))
    far = u + v > 1
    u, v = np.where(far, 1 - u, u), np.where(far, 1 - v, v)
    points = (a + u * (b - a) + v * (c - a)).astype(np.float32)
    weights = np.concatenate([1 - u - v, u, v], axis=1)
    return points, _colours(mesh, face, weights)


def _colours(
    mesh: Mesh, face: Int[np.ndarray, " k"], weights: Float[np.ndarray, "k 3"]
) -> UInt8[np.ndarray, "k 3"]:
    """Of points inside faces: vertex colours, times the texture's nearest pixel."""
    if not isinstance(mesh, PaintedMesh):
        return np.full((len(face), 3), NEUTRAL, np.uint8)
    corners = mesh.faces[face]
    colours = np.einsum("kc,kcx->kx", weights, mesh.colours[corners] / 255.0)
    uv = np.einsum("kc,kcx->kx", weights, mesh.uv[corners])
    first = 0
    wraps = mesh.wraps or (REPEAT,) * len(mesh.textures)
    for (count, picture), wrap in zip(mesh.textures, wraps, strict=True):
        mine = (face >= first) & (face < first + count)
        first += count
        if picture is not None and mine.any():
            colours[mine] *= lookup(picture, uv[mine], wrap) / 255.0
    return (colours * 255).round().astype(np.uint8)
