"""Meshes to records: drawn, seen by the networks, and looked at as geometry.

Drawing and networks are other processes (`rewards/measuring.py`); while they work, this
one computes what needs no picture. Each record is on the disk before the next ones are
asked for, so a run that is killed goes on where it was. What the numbers add up to is
`summary.py`.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ar3d_jax.codec import voxels
from ar3d_jax.config import FeaturesConfig, RenderConfig, to_dict
from ar3d_jax.evaluation import geometry, record
from ar3d_jax.evaluation.record import Record
from ar3d_jax.render import meshes
from ar3d_jax.rewards.measuring import Measured, Measuring

CHUNK = 16  # meshes handed over at a time
AHEAD = 2  # chunks under way: the processes never wait for this one


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A mesh to be measured.

    Attributes:
        mesh: its file.
        caption: what the networks with a text side are told.
        up: its up axis, "y" or "z".
    """

    mesh: Path
    caption: str
    up: str = "y"


def measure(
    wanted: Sequence[Wanted],
    *,
    render: RenderConfig,
    features: FeaturesConfig,
    networks: Mapping[str, str],
    folder: Path,
    logs: Path,
    title: str,
) -> list[Record]:
    """The records of all meshes, in order; those in `folder` are not made again.

    Args:
        wanted: the meshes.
        render: cameras, light and colours.
        features: feature sets and their process.
        networks: the file or folder of each set's network.
        folder: where records are kept.
        logs: where the processes write theirs.
        title: of the progress bar.

    Raises:
        UserError: a process cannot start or failed for good; the disk is full.
    """
    settings = _settings(render, features, networks)
    paths = [_place(item, settings, folder) for item in wanted]
    found = [record.load(path) if path else None for path in paths]
    todo = {
        path: item
        for item, path, there in zip(wanted, paths, found, strict=True)
        if path and there is None
    }
    fresh: dict[Path, Record] = {}
    with tqdm(total=len(wanted), initial=len(wanted) - len(todo), desc=title) as bar:
        if todo:
            slots = AHEAD * CHUNK
            with Measuring(render, features, dict(networks), slots, logs) as measuring:
                for path, made in _measured(todo, render, measuring):
                    record.save(made, path)
                    fresh[path] = made
                    bar.update()
    return [
        there or (fresh[path] if path else Record(failure="no such file"))
        for there, path in zip(found, paths, strict=True)
    ]


def _settings(
    render: RenderConfig, features: FeaturesConfig, networks: Mapping[str, str]
) -> dict[str, Any]:
    """What a record depends on, besides its mesh and caption."""
    pictures = {k: v for k, v in to_dict(render).items() if k != "workers"}
    if render.cameras.endswith(".json"):
        pictures["cameras"] = Path(render.cameras).read_text("utf-8")
    places = {name: str(networks[name]) for name in sorted(features.sets)}
    return {"render": pictures, "networks": places, "points": features.points}


def _place(item: Wanted, settings: Mapping[str, Any], folder: Path) -> Path | None:
    """The file of a mesh's record; None for a mesh that cannot be read at all."""
    try:
        name = record.key(item.mesh, item.caption, {**settings, "up": item.up})
    except OSError:
        return None
    return folder / f"{name}.npz"


def _measured(
    todo: Mapping[Path, Wanted], render: RenderConfig, measuring: Measuring
) -> Iterator[tuple[Path, Record]]:
    """(path, record) of each; while a chunk's geometry is computed, it is drawn."""
    under_way: collections.deque[tuple[Any, list[Path], list[Shape]]]
    under_way = collections.deque()

    def finish() -> Iterator[tuple[Path, Record]]:
        ticket, paths, shapes = under_way.popleft()
        answers = measuring.collect(ticket)
        for path, shape, answer in zip(paths, shapes, answers, strict=True):
            yield path, _join(shape, answer)

    paths = list(todo)
    for first in range(0, len(paths), CHUNK):
        some = paths[first : first + CHUNK]
        items = [todo[path] for path in some]
        ticket = measuring.submit(
            [item.mesh for item in items],
            [item.caption for item in items],
            ups=[item.up for item in items],
        )
        shapes = [_look_at(item, render.max_faces) for item in items]
        under_way.append((ticket, some, shapes))
        if len(under_way) == AHEAD:
            yield from finish()
    while under_way:
        yield from finish()


@dataclasses.dataclass(frozen=True)
class Shape:
    """What needs no picture: `geometry.health`, and packed surface voxels."""

    health: Mapping[str, float]
    packed: np.ndarray


def _look_at(item: Wanted, max_faces: int) -> Shape | None:
    """None for a file that is no mesh: the worker that cannot draw it says why."""
    try:
        mesh = meshes.load(item.mesh, up=item.up, max_faces=max_faces)
    except ValueError:
        return None
    grid = voxels.voxelize(mesh.vertices, mesh.faces, record.RESOLUTION)
    return Shape(geometry.health(mesh.vertices, mesh.faces), voxels.pack(grid))


def _join(shape: Shape | None, answer: Measured) -> Record:
    if answer.failure or shape is None:
        return Record(failure=answer.failure or "the file cannot be read twice")
    return Record(
        vectors=answer.vectors,
        texts=answer.texts,
        reasons=answer.reasons,
        points=answer.points,
        packed=shape.packed,
        health=shape.health,
    )
