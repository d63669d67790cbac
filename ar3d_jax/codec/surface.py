"""From the codec's logits to a triangle mesh, and to a file.

Numpy only: render workers import this file, and they must not load jax. The other
direction (mesh -> voxels) is `voxels.py`; logits come from `vqvae.Codec.decode`.
"""

import dataclasses
import pathlib

import numpy as np
import trimesh
from jaxtyping import Float
from skimage.measure import marching_cubes


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Triangles in the cube [-0.5, 0.5]^3, z up, wound counter-clockwise from outside.

    Attributes:
        vertices: [n, 3] float32.
        faces: [m, 3] int32 indices into `vertices`.
    """

    vertices: np.ndarray
    faces: np.ndarray


def extract(logits: Float[np.ndarray, "R R R"]) -> Mesh:
    """The closed surface where the logits cross 0, finer than a voxel.

    A vertex sits between two voxel centres, (index + 0.5) / R - 0.5, where linear
    interpolation of their logits is 0. Outside the grid stands the mirror image of its
    outermost logits, made negative: a shape that touches the border is closed midway,
    on the cube's own face, and keeps its full size. Logits without a positive value
    give an empty mesh.
    """
    if not (logits > 0).any():
        return Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    padded = -np.abs(np.pad(logits.astype(np.float32), 1, mode="edge"))
    padded = np.minimum(padded, np.float32(-1e-6))  # an outermost 0 is outside, too
    padded[1:-1, 1:-1, 1:-1] = logits
    # "ascent" is the direction that winds faces outwards here.
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
    vertices = (vertices - 0.5) / logits.shape[0] - 0.5
    return Mesh(vertices.astype(np.float32), faces.astype(np.int32))


def to_glb(mesh: Mesh, path: pathlib.Path | str) -> None:
    """Writes `mesh` as binary glTF, whose up axis is y: (x, y, z) -> (x, z, -y)."""
    x, y, z = mesh.vertices.T
    turned = trimesh.Trimesh(np.stack([x, z, -y], 1), mesh.faces, process=False)
    data = trimesh.Scene([turned]).export(file_type="glb")
    assert isinstance(data, bytes)
    pathlib.Path(path).write_bytes(data)
