"""What readers of mesh files make: parts with colours, triangles that are seen, notes.

`gltf.py`, `obj.py` and `ply.py` each turn a file into parts; `meshes.py` joins them.
A reader applies what it meets, or refuses the file by a `ValueError` that names what it
met and the remedy. What it passes over on purpose, and somebody may miss, is a note.
"""

import dataclasses
from typing import Any

import mapbox_earcut
import numpy as np
from jaxtyping import Float, Int, Integer

from ar3d_jax.render import pictures
from ar3d_jax.render.pictures import Texture, Wrap

WHITE = 255
NOTES = 8  # of a file; more would say nothing new
NOTE_LENGTH = 200  # characters


class Notes(list[str]):
    """What was passed over in a file: short lines, each once, the first few.

    Attributes:
        hidden: triangles that were left out because they are transparent.
    """

    hidden: int = 0

    def add(self, line: str) -> None:
        """Keeps the line unless it is there, or there are enough."""
        line = " ".join(line.split())[:NOTE_LENGTH]
        if line not in self and len(self) < NOTES:
            self.append(line)


@dataclasses.dataclass
class Part:
    """Triangles that share a texture.

    Attributes:
        vertices: [n, 3] float64.
        faces: [m, 3] indices into `vertices`.
        colours: [n, 3] float64, sRGB in 0..1.
        uv: [n, 2] float32; (0, 0) is the first corner of a texture's first row.
        texture: on all triangles, or None.
        name: of an OBJ: of its material and the material's picture.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    uv: np.ndarray
    texture: Texture | None = None
    name: str = ""


def unit(values: Any) -> Float[np.ndarray, "n c"]:
    """Colours as 0..1: integers are parts of the largest of their type."""
    values = np.asarray(values)
    scale = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    return np.nan_to_num(np.clip(values / scale, 0.0, 1.0))


def refuse(count: int, limit: int, what: str) -> None:
    """Raises ValueError where a file says that it has more than `limit`."""
    if count > limit:
        raise ValueError(f"has {count:,} {what}; at most {limit:,} are loaded")


def check_corners(faces: Integer[np.ndarray, "..."], count: int) -> None:
    """Raises ValueError where a face has a vertex that is not one of `count`."""
    if faces.size and (faces.min() < 0 or faces.max() >= count):
        raise ValueError("has a face with a vertex that does not exist")


def seen(
    faces: Int[np.ndarray, "m 3"],
    alpha: Float[np.ndarray, " n"],
    uv: Float[np.ndarray, "n 2"],
    picture: np.ndarray | None,
    *,
    wrap: tuple[Wrap, Wrap] = pictures.REPEAT,
    cutoff: float = 0.0,
    notes: Notes,
) -> Int[np.ndarray, "k 3"]:
    """The triangles of which anything shows; those that are wholly transparent go.

    What is left is drawn opaque and whole, with a note where it should not be.

    Args:
        faces: triangles.
        alpha: of the vertices, 0..1.
        uv: of the vertices.
        picture: [h, w] uint8 alpha that multiplies it, or None.
        wrap: of the picture.
        cutoff: what is below is not seen (glTF's MASK); 0: what is 0 is not.
        notes: of the file.
    """
    least = cutoff if cutoff > 0 else 0.5 / WHITE
    most = alpha[faces].max(1) if len(faces) else np.zeros(0)
    visible = most >= least
    clear = alpha.min(initial=1.0) < 1 - 0.5 / WHITE
    if picture is not None and visible.any():
        pixels = picture >= least / most.max() * WHITE
        visible &= pictures.shows(pixels, uv[faces], wrap)
        clear |= not pixels.all() if cutoff > 0 else bool(picture.min() < WHITE)
    if visible.any() and clear:
        notes.add(
            "has cut-out textures; drawn without holes"
            if cutoff > 0
            else "is partly transparent; drawn opaque"
        )
    notes.hidden += int((~visible).sum())
    return faces[visible]


def strip(corners: Int[np.ndarray, " k"]) -> Int[np.ndarray, "m 3"]:
    """The triangles of a strip of k corners, wound alike; none of fewer than three."""
    if len(corners) < 3:
        return np.zeros((0, 3), np.int64)
    faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], 1)
    faces[1::2] = faces[1::2, [0, 2, 1]]
    return faces


def triangles(
    points: Float[np.ndarray, "n 3"], polygons: Int[np.ndarray, "m k"]
) -> Int[np.ndarray, "t 3"]:
    """Polygons of k corners as triangles that cover the same area, wound the same.

    Convex polygons become fans. Others are cut by their ears (mapbox_earcut), as seen
    from along their normal. Returned are indices of corners, 0..k-1 of polygon 0, then
    k..2k-1 of polygon 1, and so on: a corner is a vertex with its place in a texture.
    """
    count, k = polygons.shape
    fan = np.array([[0, j, j + 1] for j in range(1, k - 1)])
    first = k * np.arange(count)
    if k == 3 or not count:
        return (first[:, None, None] + fan).reshape(-1, 3)
    corners = points[polygons]
    corners = corners - corners[:, :1]
    edges = np.roll(corners, -1, 1) - corners
    # Newell's normal: twice the polygon's area, for any polygon, plane or not.
    normal = np.cross(corners, np.roll(corners, -1, 1)).sum(1)
    turns = (np.cross(np.roll(edges, 1, 1), edges) @ normal[:, :, None])[..., 0]
    reflex = turns < -1e-9 * (normal**2).sum(1)[:, None]
    if k == 4:  # seen from its reflex corner, a quadrilateral is a fan
        start = reflex.argmax(1)[:, None, None]
        return (first[:, None, None] + (fan + start) % 4).reshape(-1, 3)
    concave = reflex.any(1)
    fans = (first[~concave, None, None] + fan).reshape(-1, 3)
    ears = [
        first[row] + _ears(corners[row], normal[row]) for row in np.flatnonzero(concave)
    ]
    return np.concatenate([fans, *ears])


def _ears(
    corners: Float[np.ndarray, "k 3"], normal: Float[np.ndarray, "3"]
) -> Int[np.ndarray, "t 3"]:
    """Triangles of one polygon, wound counter-clockwise around `normal`."""
    axis = np.abs(normal).argmax()
    kept = [(axis + 1) % 3, (axis + 2) % 3]  # a right-handed pair, seen from +axis
    flat = np.ascontiguousarray(corners[:, kept])
    ends = np.array([len(corners)], np.uint32)
    found = mapbox_earcut.triangulate_float64(flat, ends).astype(int).reshape(-1, 3)
    a, b, c = np.moveaxis(flat[found], 1, 0)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1])
    area -= (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    wrong = area * normal[axis] < 0
    found[wrong] = found[wrong][:, ::-1]
    return found
