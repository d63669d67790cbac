"""The objects of a system under evaluation, as files: sampled ones, or anybody's.

    FOLDER/seed_0/<id>/coarse.glb  refined.glb  object.json     (one step: shape.glb)

is what `evaluate.py` samples; an object is there once its folder is, whatever kills the
process. A folder of other systems' meshes has `<id>.glb`, `.gltf`, `.obj` or `.ply`.
What is measured on these files is `measure.py`.
"""

import collections
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.codec import surface
from ar3d_jax.errors import UserError, write_whole, writing
from ar3d_jax.evaluation.benchmarks import Item

SUFFIXES = (".glb", ".gltf", ".obj", ".ply")


@dataclasses.dataclass(frozen=True)
class Generated:
    """One object of a system: a benchmark's item, answered with a seed.

    Attributes:
        item: what was asked.
        seed: of the sampling; 0 for files from elsewhere.
        meshes: by step ("coarse" and "refined", "shape", or "mesh"), the file.
        failures: by step, why there is none.
        plans: by "global" and "local".
        codes: by step, the shape tokens as codes.
        up: the up axis of the files.
    """

    item: Item
    seed: int
    meshes: Mapping[str, Path]
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plans: Mapping[str, str] = dataclasses.field(default_factory=dict)
    codes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    up: str = "y"


def folder_of(folder: Path, seed: int, item: Item) -> Path:
    """Where an item's object with this seed is."""
    return folder / f"seed_{seed}" / file_name(item.id)


def file_name(name: str) -> str:
    """An id as the name of a file, without its suffix: unsafe characters become `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def write(
    folder: Path,
    seed: int,
    item: Item,
    plans: Mapping[str, str],
    codes: Mapping[str, np.ndarray],
    logits: Mapping[str, np.ndarray],
) -> None:
    """Writes an object, all of it or nothing; one that is there stays.

    A step without a surface leaves no mesh file.

    Args:
        folder: the system's.
        seed: of the sampling.
        item: what was asked.
        plans: by "global" and "local".
        codes: by step, [M] int32.
        logits: by step, [R, R, R] float32.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    place = folder_of(folder, seed, item)
    if place.is_dir():  # of a batch that was cut off
        return
    unfinished = place.with_name(f".{place.name}")
    with writing(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for step, grid in logits.items():
            mesh = surface.extract(grid)
            if len(mesh.faces):
                surface.to_glb(mesh, unfinished / f"{step}.glb")
        record = {
            "id": item.id,
            "prompt": item.caption,
            "plans": dict(plans),
            "codes": {step: row.tolist() for step, row in codes.items()},
        }
        text = json.dumps(record, ensure_ascii=False)
        write_whole(unfinished / "object.json", text + "\n")
        os.replace(unfinished, place)


def write_failure(
    folder: Path, seed: int, item: Item, steps: Sequence[str], reason: str
) -> None:
    """Writes that an item cannot be sampled, so that it is counted.

    Raises:
        UserError: the folder cannot be written.
    """
    place = folder_of(folder, seed, item)
    record = {"id": item.id, "prompt": item.caption, "plans": {}, "failure": reason}
    record["codes"] = {step: [] for step in steps}
    with writing(folder):
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, ensure_ascii=False)
        write_whole(place / "object.json", text + "\n")


def missing(folder: Path, seed: int, items: Sequence[Item]) -> bool:
    """Whether any of the items has no object with this seed yet."""
    return not all(folder_of(folder, seed, item).is_dir() for item in items)


def read(folder: Path, seeds: Sequence[int], items: Sequence[Item]) -> list[Generated]:
    """All objects of a sampled system; those without a mesh say why.

    Raises:
        UserError: an object's file is damaged, or made for another prompt.
    """
    return [
        _read_one(folder_of(folder, seed, item), seed, item)
        for seed in seeds
        for item in items
    ]


def _read_one(place: Path, seed: int, item: Item) -> Generated:
    record: dict[str, Any] = {}
    try:
        record = json.loads((place / "object.json").read_text("utf-8"))
        steps = list(record["codes"])
    except FileNotFoundError:
        steps = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{place / 'object.json'} is damaged ({type(error).__name__}); remove "
            f"{place}, and the same command makes it anew"
        ) from error
    if record and record.get("prompt") != item.caption:
        raise UserError(
            f"{place} was made for the prompt {record.get('prompt')!r}, the benchmark "
            f"now asks for {item.caption!r}; choose another --workdir"
        )
    found = {step: place / f"{step}.glb" for step in steps}
    reason = record.get("failure", "an empty object: no voxel is set")
    return Generated(
        item,
        seed,
        meshes={step: path for step, path in found.items() if path.exists()},
        failures={step: reason for step, path in found.items() if not path.exists()},
        plans=record.get("plans", {}),
        codes=record.get("codes", {}),
    )


def seeds_in(folder: Path) -> list[int]:
    """The seeds of a sampled system's folder, sorted."""
    names = (path.name.removeprefix("seed_") for path in folder.glob("seed_*"))
    return sorted(int(name) for name in names if name.isdigit())


def from_meshes(
    folder: Path, items: Sequence[Item], up: str
) -> tuple[list[Generated], list[str]]:
    """Another system's objects in a folder, and its files that no item asks for.

    Ids are matched as they are or in their file-name form, subfolders included. An item
    without a file, or with several, is a failure that says so.

    Raises:
        UserError: there is no such folder, or no mesh in it.
    """
    if not folder.is_dir():
        raise UserError(
            f"--meshes={folder}: no such folder; expected one with a mesh per object, "
            f"ID{'|'.join(SUFFIXES)}"
        )
    by_name: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            by_name[file_name(path.stem)].append(path)
    if not by_name:
        raise UserError(
            f"--meshes={folder}: no mesh there; expected ID{'|'.join(SUFFIXES)}, with "
            f"ids as in the benchmark, such as {file_name(items[0].id)}.glb"
        )
    found = []
    for item in items:
        paths = by_name.pop(file_name(item.id), [])
        if len(paths) == 1:
            found.append(Generated(item, 0, {"mesh": paths[0]}, up=up))
            continue
        reason = "no file with this id"
        if paths:
            names = ", ".join(str(path.relative_to(folder)) for path in paths)
            reason = f"{len(paths)} files with this id: {names}"
        found.append(Generated(item, 0, {}, {"mesh": reason}, up=up))
    strangers = [
        str(path.relative_to(folder)) for paths in by_name.values() for path in paths
    ]
    return found, sorted(strangers)
