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

from ar3d_jax import contents
from ar3d_jax.codec import voxels
from ar3d_jax.config import FeaturesConfig, RenderConfig, to_dict
from ar3d_jax.errors import writing
from ar3d_jax.evaluation import geometry, record
from ar3d_jax.evaluation.record import Record
from ar3d_jax.render import meshes
from ar3d_jax.render.sheets import view_sheet
from ar3d_jax.rewards.measuring import Measured, Measuring

CHUNK = 16  # meshes handed over at a time
AHEAD = 2  # chunks under way: the processes never wait for this one
GRID = 4096.0  # places along a side on which voxels are told: 128 in a voxel
PICTURE = 224  # pixels of a view in the picture of an object


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A mesh to be measured.

    Attributes:
        mesh: its file.
        caption: what the networks with a text side are told.
    """

    mesh: Path
    caption: str


def measure(
    wanted: Sequence[Wanted],
    *,
    render: RenderConfig,
    features: FeaturesConfig,
    networks: Mapping[str, str],
    folder: Path,
    logs: Path,
    up: str,
    title: str,
) -> list[Record]:
    """The records of all meshes, in order; those in `folder` are not made again.

    A picture of each, every second view, is beside its record.

    Args:
        wanted: the meshes.
        render: cameras, light and colours.
        features: feature sets and their process.
        networks: the file or folder of each set's network.
        folder: where records are kept.
        logs: where the processes write theirs.
        up: the files' up axis, "y" or "z".
        title: of the progress bar.

    Raises:
        UserError: a process cannot start or failed for good; the disk is full.
    """
    settings = {**_settings(render, features, networks), "up": up}
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
                for path, made, views in _measured(todo, render, measuring, up):
                    if views is not None:
                        _save_picture(views, path.with_suffix(".png"))
                    record.save(made, path)
                    fresh[path] = made
                    bar.update()
    return [
        _with_picture(there or fresh[path], path)
        if path
        else Record(failure="no such file")
        for there, path in zip(found, paths, strict=True)
    ]


def _with_picture(of: Record, path: Path) -> Record:
    picture = path.with_suffix(".png")
    return dataclasses.replace(of, picture=str(picture) if picture.exists() else "")


def _settings(
    render: RenderConfig, features: FeaturesConfig, networks: Mapping[str, str]
) -> dict[str, Any]:
    """What a record depends on, besides its mesh and caption."""
    pictures = {k: v for k, v in to_dict(render).items() if k != "workers"}
    if render.cameras.endswith(".json"):
        pictures["cameras"] = Path(render.cameras).read_text("utf-8")
    # What they hold, wherever they are: another file under the same name is another.
    held = {name: contents.digest(Path(networks[name])) for name in features.sets}
    return {"render": pictures, "networks": held, "points": features.points}


def _place(item: Wanted, settings: Mapping[str, Any], folder: Path) -> Path | None:
    """The file of a mesh's record; None for a mesh that cannot be read at all."""
    try:
        name = record.key(item.mesh, item.caption, settings)
    except OSError:
        return None
    return folder / f"{name}.npz"


Made = tuple[Path, Record, np.ndarray | None]  # with its views, where it has any


def _measured(
    todo: Mapping[Path, Wanted], render: RenderConfig, measuring: Measuring, up: str
) -> Iterator[Made]:
    """Each record; while a chunk is drawn and seen, its geometry is computed."""
    under_way: collections.deque[tuple[Any, list[Path], list[Shape | None]]]
    under_way = collections.deque()

    def finish() -> Iterator[Made]:
        ticket, some, shapes = under_way.popleft()
        answers = measuring.collect(ticket)
        for path, shape, answer in zip(some, shapes, answers, strict=True):
            yield path, _join(shape, answer), answer.views

    paths = list(todo)
    for first in range(0, len(paths), CHUNK):
        some = paths[first : first + CHUNK]
        items = [todo[path] for path in some]
        ticket = measuring.submit(
            [item.mesh for item in items],
            [item.caption for item in items],
            up=up,
            keep_views=True,
        )
        shapes = [_look_at(item.mesh, up, render.max_faces) for item in items]
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


def _look_at(path: Path, up: str, max_faces: int) -> Shape | None:
    """None for a file that is no mesh: the worker that cannot draw it says why."""
    try:
        mesh = meshes.load(path, up=up, max_faces=max_faces)
    except ValueError:
        return None
    # A face between two voxels belongs to the upper one: the last bits of a file's
    # numbers would decide where the faces of a voxel surface are, if nothing else did.
    vertices = np.round(mesh.vertices * GRID) / GRID
    grid = voxels.voxelize(vertices, mesh.faces, record.RESOLUTION)
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
        notes=answer.notes,
    )


def _save_picture(views: np.ndarray, path: Path) -> None:
    """Every second view in a row, for people; written before the record is."""
    sheet = view_sheet(views[None, :: max(1, len(views) // 4)][:, :4])
    if sheet.width > 4 * PICTURE:
        sheet = sheet.resize((4 * PICTURE, PICTURE))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
