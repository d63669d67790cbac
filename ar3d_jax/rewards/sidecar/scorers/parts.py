"""Part checks on a point cloud: is what the prompt names there, and how much of it?

Nothing here is learned. A part is a region of the object's box ("legs": its lower
half), and a class's training objects, coarsely gridded, are the examples of what stands
in that region. A cloud's part is as complete as its region correlates with the closest
example: every class may look like any of its real members, and dust, which is the same
everywhere, looks like none.
Proportions and the number of legs, where the prompt states them, are measured as well.

Numpy and scipy. Who asks is `embedded.py`; examples and limits come from
`train_embedded.py`, in the weights file.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

CELLS = 12  # along each side of the box: 2048 points still fill a closed cabinet
THINNEST = 0.3  # of the longest side: thinner boxes are not stretched to the full grid
CLOUD = 1024  # points that the classifier sees; 3 ms on one core

# Part -> lowest y (the front is -y), lowest and highest z, as shares of the box. Parts
# that are not listed may be anywhere. Read off the catalog's objects; our choice.
REGIONS: dict[str, tuple[float, float, float]] = {
    **dict.fromkeys(("legs", "foot", "wheels", "soles", "pot"), (0.0, 0.0, 0.42)),
    **dict.fromkeys(("base", "stand", "hearth"), (0.0, 0.0, 0.25)),
    **dict.fromkeys(("seat", "mattress", "bench", "arms"), (0.0, 0.25, 0.67)),
    **dict.fromkeys(("stem", "pole", "shaft", "trunk"), (0.0, 0.17, 0.75)),
    **dict.fromkeys(("back", "headboard", "tank", "reclined back"), (0.5, 0.42, 1.0)),
    **dict.fromkeys(("top", "rim", "lid", "cap", "roof", "capital"), (0.0, 0.75, 1.0)),
    **dict.fromkeys(("shade", "crown", "canopy", "lantern"), (0.0, 0.5, 1.0)),
    **dict.fromkeys(("head", "neck", "cabin", "leaves", "chimney"), (0.0, 0.58, 1.0)),
}
ANYWHERE = (0.0, 0.0, 1.0)

# Words of proportion -> which ratio of sides, and the range in which the word is true.
# The same limits as the captions': height to the longer side of the footprint, width to
# depth.
WORDS: dict[str, tuple[str, float, float]] = {
    "slender": ("upright", 3.0, np.inf),
    "tall": ("upright", 1.25, np.inf),
    "low": ("upright", 0.0, 0.75),
    "flat": ("upright", 0.0, 0.15),
    "long": ("footprint", 2.2, np.inf),
    "wide": ("footprint", 1.2, np.inf),
    "square": ("footprint", 1 / 1.2, 1.2),
    "round": ("footprint", 1 / 1.2, 1.2),
    "deep": ("footprint", 0.0, 1 / 1.2),
}
SIDES = re.compile(r"width (\d+), depth (\d+), height (\d+)")
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
LEGS = re.compile(rf"({'|'.join(COUNTS)}) (?:legs|feet|foot)")


def cloud(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "P 3"]:
    """CLOUD of the points, centred on their box, whose longest side becomes 2.

    Points come in random order: every k-th is a fair sample, and always the same one.
    """
    rows = np.arange(CLOUD) * len(points) // CLOUD
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(float((high - low).max()), 1e-6)
    return ((points[rows] - (low + high) / 2) * (2 / side)).astype(np.float32)


def occupancy(points: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, "K K K"]:
    """Which cells of the object's box have points; each side fills the grid."""
    low, high = points.min(axis=0), points.max(axis=0)
    sides = np.maximum(high - low, THINNEST * (high - low).max() + 1e-6)
    relative = (points - (low + high) / 2) / sides + 0.5
    cells = np.clip((relative * CELLS).astype(int), 0, CELLS - 1)
    grid = np.zeros((CELLS,) * 3, bool)
    grid[tuple(cells.T)] = True
    return grid


def soften(grids: Bool[np.ndarray, "*n K K K"]) -> Float[np.ndarray, "*n K K K"]:
    """Blurred by half a cell, so that a near miss counts for something."""
    sigma = (0.0,) * (grids.ndim - 3) + (0.5,) * 3
    return ndimage.gaussian_filter(grids.astype(np.float32), sigma, mode="constant")


def region(part: str) -> tuple[slice, slice, slice]:
    """The part's cells in a grid."""
    front, bottom, top = REGIONS.get(part, ANYWHERE)
    cells = [round(CELLS * share) for share in (front, bottom, top)]
    return slice(None), slice(cells[0], None), slice(cells[1], cells[2])


def likeness(
    soft: Float[np.ndarray, "K K K"],
    examples: Float[np.ndarray, "n K K K"],
    part: str,
) -> Float[np.ndarray, " n"]:
    """Correlation of softened cells with each example's, within the part's region.

    -1 to 1. Cells in common over cells in either would be simpler, but evenly filled
    space scores well there: held-out objects got 1.56 of 2 points, dust 1.50; by
    correlation it is 1.59 and 0.00.
    """
    cells = region(part)
    mine, theirs = soft[cells], examples[(slice(None), *cells)]
    mine = mine - mine.mean()
    theirs = theirs - theirs.mean(axis=(1, 2, 3), keepdims=True)
    spread = (mine**2).sum() * (theirs**2).sum(axis=(1, 2, 3))
    return (mine * theirs).sum(axis=(1, 2, 3)) / np.sqrt(spread + 1e-6)


def legs_found(points: Float[np.ndarray, "n 3"]) -> int:
    """Separate pieces in the lowest eighth of the cloud, seen from below."""
    low, high = points.min(axis=0), points.max(axis=0)
    near_floor = points[points[:, 2] <= low[2] + (high[2] - low[2]) / 8]
    sides = np.maximum(high - low, 1e-6)[:2]
    cells = ((near_floor[:, :2] - low[:2]) / sides * 15.999).astype(int)
    floor = np.zeros((16, 16), bool)
    floor[tuple(cells.T)] = True
    pieces = np.zeros(floor.shape, np.int32)
    ndimage.label(floor, np.ones((3, 3)), output=pieces)
    return int(pieces.max())


def stated_checks(prompt: str, points: Float[np.ndarray, "n 3"]) -> list[float]:
    """Completeness, 0 to 1, of the proportions and leg count that the prompt states.

    A ratio outside the range of its word loses exp(-2 |log(ratio / limit)|): half at
    1.4 times too much. Each leg too many or too few halves the score.
    """
    text = prompt.lower()
    sides = np.maximum(np.ptp(points, axis=0), 1e-6)
    ratios = {
        "upright": sides[2] / max(sides[0], sides[1]),
        "footprint": sides[0] / sides[1],
    }
    misses = []
    for word in dict.fromkeys(re.findall(r"[a-z]+", text)):
        if word in WORDS:
            name, least, most = WORDS[word]
            ratio = ratios[name]
            limit = np.clip(ratio, max(least, 1e-6), most)
            misses.append(abs(np.log(ratio / limit)))
    stated = SIDES.search(text)
    if stated:
        wanted = np.array([max(1, int(side)) for side in stated.groups()], np.float64)
        off = np.log(sides / sides.max()) - np.log(wanted / wanted.max())
        misses.append(max(0.0, np.abs(off).max() - np.log(1.1)))  # tenths are rounded
    checks = [float(np.exp(-2 * miss)) for miss in misses]
    legs = LEGS.search(text)
    if legs:
        checks.append(0.5 ** abs(legs_found(points) - COUNTS[legs[1]]))
    return checks


@dataclasses.dataclass(frozen=True)
class Examples:
    """What training objects look like, and how alike members of a class are.

    Attributes:
        grids: Softened occupancy of each training object, [n, K, K, K].
        rows: Class -> rows of `grids` that are its examples.
        limits: Class -> part -> (likeness of a stranger, likeness of a member).
    """

    grids: np.ndarray
    rows: Mapping[str, Sequence[int]]
    limits: Mapping[str, Mapping[str, Sequence[float]]]

    def check(self, kind: str, points: Float[np.ndarray, "n 3"]) -> dict[str, float]:
        """Part -> completeness, 0 to 1, for the parts of class `kind`.

        0 is the likeness that objects of other classes reach on average, 1 the median
        of the class's own members with each other.
        """
        soft = soften(occupancy(points))
        examples = self.grids[list(self.rows[kind])]
        complete = {}
        for part, (stranger, member) in self.limits[kind].items():
            best = float(likeness(soft, examples, part).max())
            share = (best - stranger) / (member - stranger)
            complete[part] = min(1.0, max(0.0, share))
        return complete


def parts_score(complete: Sequence[float]) -> float:
    """Mean over parts of existence (0 or 1) + completeness (0 to 1): 0 to 2, eq. 6.

    A part exists where it is at least half complete; our choice. Without any check
    the score is 0.
    """
    return float(np.mean([(c >= 0.5) + c for c in complete])) if complete else 0.0
