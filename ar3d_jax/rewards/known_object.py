"""A chair of eleven boxes that every scorer is shown before it is relied on.

That a scorer has a number for it says that weights, device and endpoints work; the
number itself shows two machines that differ. A training draws it like any object
(`score_watch.py`), a server of scorers has its pictures in a file
(`sidecar/known_object.py`). NumPy only.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

PROMPT = "a wooden chair with four legs"
HEADINGS = ("scorer", "roles", "model", "revision", "place", "seconds", "score")

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


def boxes() -> list[Box]:
    """The chair's, by opposite corners; z is up, and the chair looks along -y."""
    legs = [
        ((x, y, -0.5), (x + 0.06, y + 0.06, -0.06))
        for x in (-0.24, 0.18)
        for y in (-0.24, 0.18)
    ]
    posts = [((x, 0.19, 0.0), (x + 0.05, 0.24, 0.5)) for x in (-0.24, 0.19)]
    slats = [((-0.19, 0.2, z), (0.19, 0.23, z + 0.07)) for z in (0.13, 0.26, 0.39)]
    seat = ((-0.25, -0.25, -0.06), (0.25, 0.25, 0.0))
    stretcher = ((-0.18, 0.2, -0.3), (0.18, 0.22, -0.26))
    return [*legs, *posts, *slats, seat, stretcher]


def logits(resolution: int) -> Float[np.ndarray, "R R R"]:
    """The chair on a grid, as a codec would give it: positive inside, in voxels.

    Everything is half a voxel thicker: what is thinner than one would vanish.
    """
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    depths = [
        np.minimum(grid - np.array(low), np.array(high) - grid).min(-1)
        for low, high in boxes()
    ]
    return (np.max(depths, axis=0) * resolution + 0.5).astype(np.float32)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text: rows with the cells of `HEADINGS`, in columns."""
    lines = [HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
