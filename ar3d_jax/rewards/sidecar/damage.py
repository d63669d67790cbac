"""Voxel grids made worse on purpose, and how much worse they are: what scorers learn.

A policy early in training writes shape tokens that do not fit together, and a policy
that cheats writes dust. The scorers must see both, at every degree, so that their
numbers fall gradually: each damage has a strength, and two measures say what it did.

* `fidelity`: how much of the object is left, and of what is drawn how much belongs.
* `cleanliness`: how little of the surface is debris, steps and holes.

Numpy and scipy only. `train_embedded.py` draws the grids and trains on the measures.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

Grid = np.ndarray  # bool [R, R, R]
CUBE = np.ones((3, 3, 3), bool)  # a voxel and its 26 neighbours
COLUMN = (4, 4, 16)  # voxels of one shape token: 4 latent cells along z, 4 voxels wide


def exposed_faces(voxels: Bool[np.ndarray, "R R R"]) -> Float[np.ndarray, "R R R"]:
    """Faces of each voxel that touch air: its share of the drawn surface, 0 to 6."""
    padded = np.pad(voxels, 1)
    inner = (slice(1, -1),) * 3
    covered = sum(
        np.roll(padded, shift, axis)[inner].astype(np.float32)
        for axis in range(3)
        for shift in (-1, 1)
    )
    return np.where(voxels, 6.0 - covered, 0.0).astype(np.float32)


def thickened(voxels: Bool[np.ndarray, "R R R"]) -> Bool[np.ndarray, "R R R"]:
    """The voxels and all that touch them."""
    return np.asarray(ndimage.binary_dilation(voxels, CUBE), bool)


def fidelity(
    voxels: Bool[np.ndarray, "R R R"], original: Bool[np.ndarray, "R R R"]
) -> float:
    """Precision times recall of the surface, forgiving one voxel of displacement.

    The product falls to 0 both when the object is gone and when it drowns in debris.
    Our choice; 1 for the original itself.
    """
    drawn, wanted = exposed_faces(voxels), exposed_faces(original)
    if not drawn.sum() or not wanted.sum():
        return 0.0
    precision = drawn[thickened(original)].sum() / drawn.sum()
    recall = wanted[thickened(voxels)].sum() / wanted.sum()
    return float(precision * recall)


def cleanliness(
    voxels: Bool[np.ndarray, "R R R"], original: Bool[np.ndarray, "R R R"] | None
) -> float:
    """Share of voxels in the largest piece, times smoothness, relative to the original.

    Smoothness is the inverse of exposed faces per voxel: a sheet has 2, dust has 6.
    Without an original (a blob, noise) a one-voxel sheet in one piece is the standard.
    Our choice; at most 1.
    """
    if not voxels.any():
        return 0.0

    def largest(grid: Grid) -> float:
        pieces = np.zeros(grid.shape, np.int32)
        ndimage.label(grid, CUBE, output=pieces)
        return np.bincount(pieces.ravel())[1:].max() / grid.sum()

    def faces(grid: Grid) -> float:
        return exposed_faces(grid).sum() / grid.sum()

    whole, rough = (
        (largest(original), faces(original)) if original is not None else (1, 2)
    )
    return float(min(1.0, largest(voxels) / whole) * min(1.0, rough / faces(voxels)))


def measures(
    voxels: Bool[np.ndarray, "R R R"], original: Bool[np.ndarray, "R R R"] | None
) -> tuple[float, float]:
    """Fidelity and cleanliness; without an original there is no fidelity."""
    faithful = 0.0 if original is None else fidelity(voxels, original)
    return faithful, cleanliness(voxels, original)


def dust(voxels: Grid, others: Grid, strength: float, rng: np.random.Generator) -> Grid:
    """Single voxels all over the cube, up to 6% of it."""
    return voxels | (rng.random(voxels.shape) < 0.06 * strength**2)


def only_dust(
    voxels: Grid, others: Grid, strength: float, rng: np.random.Generator
) -> Grid:
    """The object dissolves: its voxels fly off, up to all of them."""
    share = voxels.mean() * strength
    kept = voxels & (rng.random(voxels.shape) >= strength)
    return kept | (rng.random(voxels.shape) < share)


def missing_chunks(
    voxels: Grid, others: Grid, strength: float, rng: np.random.Generator
) -> Grid:
    """Boxes around the object's voxels are cut out until `strength` of it is gone."""
    left, size = voxels.copy(), voxels.shape[0]
    cells = np.argwhere(voxels)
    while len(cells) and left.sum() > (1 - strength) * voxels.sum():
        centre = cells[rng.integers(len(cells))]
        half = rng.integers(size // 16, size // 5 + 1, 3)
        low, high = np.maximum(centre - half, 0), centre + half + 1
        left[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = False
        cells = np.argwhere(left)
    return left


def _columns(grid: Grid) -> np.ndarray:
    """A view of the grid as columns [x, y, z, 4, 4, 16], one for each shape token."""
    a, b, c = (n // w for n, w in zip(grid.shape, COLUMN, strict=True))
    parts = grid.reshape(a, COLUMN[0], b, COLUMN[1], c, COLUMN[2])
    return parts.transpose(0, 2, 4, 1, 3, 5)


def foreign_columns(
    voxels: Grid, others: Grid, strength: float, rng: np.random.Generator
) -> Grid:
    """Columns, the reach of one shape token, come from another object instead."""
    result = voxels.copy()
    mine, theirs = _columns(result), _columns(others)
    swapped = rng.random(mine.shape[:3]) < strength
    mine[swapped] = theirs[swapped]
    return result


def shuffled_columns(
    voxels: Grid, others: Grid, strength: float, rng: np.random.Generator
) -> Grid:
    """Columns change places with each other."""
    result = voxels.copy()
    columns = _columns(result)
    index = np.flatnonzero(rng.random(columns.shape[:3]) < strength)
    places = np.unravel_index(index, columns.shape[:3])
    columns[places] = columns[
        np.unravel_index(rng.permutation(index), columns.shape[:3])
    ]
    return result


def ragged(
    voxels: Grid, others: Grid, strength: float, rng: np.random.Generator
) -> Grid:
    """Voxels beside the surface appear and voxels of it vanish: an unsure codec."""
    shell = thickened(voxels) & ~voxels
    lost = voxels & (rng.random(voxels.shape) < 0.5 * strength)
    return (voxels & ~lost) | (shell & (rng.random(voxels.shape) < 0.35 * strength))


def molten(
    voxels: Grid, others: Grid, strength: float, rng: np.random.Generator
) -> Grid:
    """Blurred until details are gone and thick parts run together."""
    blurred = ndimage.gaussian_filter(voxels.astype(np.float32), 0.4 + 2.6 * strength)
    count = max(1, int(voxels.sum() * (1 + strength)))
    return blurred > np.partition(blurred.ravel(), -count)[-count]


def blob(voxels: Grid, others: Grid, strength: float, rng: np.random.Generator) -> Grid:
    """Smooth random shapes that never were an object, or plain noise."""
    sigma = rng.choice([0.0, 0.7, 1.5, 3.0, 5.0])
    field = rng.standard_normal(voxels.shape).astype(np.float32)
    field = ndimage.gaussian_filter(field, sigma) if sigma else field
    share = rng.uniform(0.01, 0.15)
    solid = field > np.quantile(field, 1 - share)
    return solid & thickened(~solid)


DAMAGES: dict[str, Callable[[Grid, Grid, float, np.random.Generator], Grid]] = {
    "dust": dust,
    "only_dust": only_dust,
    "missing_chunks": missing_chunks,
    "foreign_columns": foreign_columns,
    "shuffled_columns": shuffled_columns,
    "ragged": ragged,
    "molten": molten,
    "blob": blob,
}


def damaged(
    voxels: Bool[np.ndarray, "R R R"],
    others: Bool[np.ndarray, "R R R"],
    kind: str,
    strength: float,
    rng: np.random.Generator,
) -> tuple[Bool[np.ndarray, "R R R"], float, float]:
    """The grid after one damage, with its (fidelity, cleanliness).

    Args:
        voxels: The object.
        others: Another object, from which foreign columns come.
        kind: A name in `DAMAGES`.
        strength: 0 (hardly anything) to 1 (nothing left).
        rng: Where the damage falls.
    """
    result = DAMAGES[kind](voxels, others, strength, rng)
    # Of a blob there never was an original.
    return result, *measures(result, None if kind == "blob" else voxels)


def logits_like_a_codec(
    voxels: Bool[np.ndarray, "R R R"], rng: np.random.Generator
) -> Float[np.ndarray, "R R R"]:
    """Logits with the given signs, as unevenly sure of themselves as a codec's.

    Their magnitudes vary smoothly, which moves the extracted surface within its voxel.
    """
    field = ndimage.gaussian_filter(rng.standard_normal(voxels.shape), 1.0)
    magnitude = np.exp(rng.uniform(0.0, 4.0) * field.astype(np.float32))
    return np.where(voxels, 4.0, -4.0).astype(np.float32) * magnitude
