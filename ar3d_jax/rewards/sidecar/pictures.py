"""The scorers' training set: objects, whole and damaged, drawn as rewards see them.

Each object goes the way of the codec's output: a grid, logits, marching cubes, views
and surface points. Worker processes draw; the result is one file, because drawing
takes as long as training. `damage.py` says what is done to the grids, and
`train_embedded.py` what is learned.
"""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from ar3d_jax.codec.voxels import unpack
from ar3d_jax.config import RenderConfig
from ar3d_jax.data.parallel import map_objects
from ar3d_jax.errors import whole_file
from ar3d_jax.render.renderer import Renderer
from ar3d_jax.render.workers import draw_object
from ar3d_jax.rewards.sidecar import damage

WHOLE = ("", "recoded")  # kinds that are no damage
POINTS = 2048  # per object, as config.rewards.points
SMALLER = 2  # pictures are kept at half the rendered size: the encoder's

# damage.py's kinds, how often each is drawn. Foreign columns are what a policy that
# picks wrong tokens produces, so they count most.
KINDS = ("foreign_columns",) * 3 + (
    "shuffled_columns",
    "missing_chunks",
    "dust",
    "only_dust",
    "ragged",
    "molten",
    "blob",
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One object to draw.

    Attributes:
        voxels: The object, packed bits of a bool [R, R, R].
        other: Another one, for foreign columns; packed.
        kind: A damage, or one of WHOLE for none.
        strength: Of the damage, 0 to 1.
        seed: Of damage and logits.
        logits: What a codec made of the object, drawn in place of all that.
    """

    voxels: np.ndarray
    other: np.ndarray
    kind: str
    strength: float
    seed: tuple[int, ...]
    logits: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Drawn objects.

    Attributes:
        object: int32 [n], index into the catalog.
        extents: float32 [n, 3], sides of the undamaged object.
        kind: str [n], the damage.
        views: uint8 [n, V, S, S], grey.
        points: float16 [n, POINTS, 3].
        measures: float32 [n, 2], fidelity and cleanliness.
    """

    object: np.ndarray
    extents: np.ndarray
    kind: np.ndarray
    views: np.ndarray
    points: np.ndarray
    measures: np.ndarray

    def __len__(self) -> int:
        return len(self.object)

    def take(self, rows: np.ndarray) -> "Pictures":
        """Some of them."""
        columns = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Pictures(*(column[rows] for column in columns))

    def join(self, more: "Pictures") -> "Pictures":
        """These and those."""
        names = [field.name for field in dataclasses.fields(self)]
        both = ((getattr(self, name), getattr(more, name)) for name in names)
        return Pictures(*(np.concatenate(columns) for columns in both))


@functools.cache
def _renderer() -> Renderer:
    """Of this worker process."""
    # As in render/workers.py: one drawing thread per process, and no cache left behind.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    os.environ.setdefault("MESA_SHADER_CACHE_DISABLE", "true")
    return Renderer(RenderConfig())


def _draw(shape: Shape) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    rng = np.random.default_rng(shape.seed)
    resolution = round((8 * shape.voxels.size) ** (1 / 3))
    voxels, other = unpack(np.stack([shape.voxels, shape.other]), resolution)
    measures = (1.0, 1.0)
    if shape.logits is not None:
        logits = shape.logits.astype(np.float32)
        measures = damage.measures(logits > 0, voxels)
    elif shape.kind:
        voxels, *measures = damage.damaged(
            voxels, other, shape.kind, shape.strength, rng
        )
        logits = damage.logits_like_a_codec(voxels, rng)
    else:
        logits = damage.logits_like_a_codec(voxels, rng)
    config = _renderer().config
    views = np.empty((config.views, config.size, config.size, 3), np.uint8)
    points = np.empty((POINTS, 3), np.float32)
    colours = np.empty((POINTS, 3), np.uint8)
    draw_object(_renderer(), logits, views, points, colours)
    small = config.size // SMALLER
    grey = views[..., 0].reshape(config.views, small, SMALLER, small, SMALLER)
    return (
        np.rint(grey.mean(axis=(2, 4))).astype(np.uint8),
        points.astype(np.float16),
        (float(measures[0]), float(measures[1])),
    )


def draw_shapes(
    shapes: list[Shape], objects: np.ndarray, extents: np.ndarray, *, processes: int
) -> Pictures:
    """All shapes, drawn; `objects` and `extents` are kept beside them."""
    drawn = map_objects(_draw, shapes, processes=processes, title="drawing")
    views, points, measures = zip(*drawn, strict=True)
    return Pictures(
        object=np.asarray(objects, np.int32),
        extents=np.asarray(extents, np.float32),
        kind=np.array([shape.kind for shape in shapes]),
        views=np.stack(views),
        points=np.stack(points),
        measures=np.array(measures, np.float32),
    )


def plan_shapes(
    packed: np.ndarray, objects: np.ndarray, *, damaged_share: float, seed: int
) -> list[Shape]:
    """One shape per grid; the given share of them damaged, at every strength."""
    rng = np.random.default_rng(seed)
    shapes = []
    for row, grid in enumerate(packed):
        other = rng.integers(len(packed))
        while objects[other] == objects[row]:
            other = rng.integers(len(packed))
        hurt = rng.random() < damaged_share
        kind = KINDS[rng.integers(len(KINDS))] if hurt else ""
        # Now and then as strong as can be: an empty grid must have been seen, too.
        strength = min(1.0, 1.05 * float(rng.random()))
        shapes.append(Shape(grid, packed[other], kind, strength, (seed, row)))
    return shapes


def save(pictures: Pictures, path: Path) -> None:
    """Writes the file, whole or not at all."""
    columns = {f.name: getattr(pictures, f.name) for f in dataclasses.fields(Pictures)}
    with whole_file(path) as partial:
        np.savez(partial, **columns)


def load(path: Path) -> Pictures:
    """What `save` wrote."""
    with np.load(path) as arrays:
        return Pictures(
            **{f.name: arrays[f.name] for f in dataclasses.fields(Pictures)}
        )
