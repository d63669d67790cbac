"""An object that every scorer should know: a chair of six boxes. NumPy only.

It is what scorers are tried on before a run begins; what they think of it is in the
log. Its scores say little of a scorer's quality, but much of whether it works at all.
"""

import numpy as np
from jaxtyping import Float

PROMPT = "a wooden chair with four legs"

# Lowest and highest corner of each box, in the cube [-0.5, 0.5]^3, z up, front at -y.
_LEGS = [
    ((x - 0.03, y - 0.03, -0.48), (x + 0.03, y + 0.03, -0.02))
    for x in (-0.2, 0.2)
    for y in (-0.2, 0.2)
]
_SEAT = ((-0.25, -0.25, -0.04), (0.25, 0.25, 0.04))
_BACK = ((-0.25, 0.19, 0.0), (0.25, 0.25, 0.48))
BOXES = (*_LEGS, _SEAT, _BACK)


def chair(resolution: int) -> Float[np.ndarray, "R R R"]:
    """Logits of the chair: 0 on its surface, positive inside, in voxels' sides."""
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    inside = np.full((resolution,) * 3, -np.inf)
    for low, high in BOXES:
        depth = np.minimum(grid - np.array(low), np.array(high) - grid).min(-1)
        inside = np.maximum(inside, depth)
    thinnest = 0.5 / resolution  # legs thinner than a voxel would vanish
    return ((inside + thinnest) * resolution).astype(np.float32)
