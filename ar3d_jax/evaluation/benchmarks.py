"""The benchmarks: which prompts are evaluated, in which categories, against what truth.

`load` gives `catalog` (shipped: the data set's held-out objects, with ground truth),
`reasoning249` (shipped: prompts in the five categories of MME-3DR), `toys4k` (the
user's folder in TRELLIS's format) and `mme3dr` (the user's annotation file:
`annotations.py`). What the sets are and how they were made is in docs/sets.md; what is
measured on them is in `evaluate.py`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ar3d_jax.codec import surface
from ar3d_jax.data import tables
from ar3d_jax.data.catalog import HeldOut, load_held_out
from ar3d_jax.data.prompts import REASONING, SHIPPED, read_prompts
from ar3d_jax.data.trellis_metadata import Asset, read_assets
from ar3d_jax.errors import UserError, whole_file, writing
from ar3d_jax.evaluation.annotations import CATEGORIES, read_annotations

HELD_OUT = SHIPPED.parent / "held_out.npz"
MESHES = (".glb", ".gltf", ".obj", ".ply")


@dataclasses.dataclass(frozen=True)
class Item:
    """One object that is asked for.

    Attributes:
        id: Letters, digits, `.`, `_` and `-` only: also its name in files.
        caption: The prompt.
        category: What results are grouped by.
        truth: A mesh of the true object, y up as in glTF; None where there is none.
        expects: Parts and how often each should be seen, None where any number is
            right; empty where nothing is known.
    """

    id: str
    caption: str
    category: str
    truth: Path | None = None
    expects: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What to evaluate.

    Attributes:
        name: As in the config.
        items: In the order in which they are evaluated.
        notes: One sentence each on what was chosen and left out, for the report.
    """

    name: str
    items: list[Item]
    notes: tuple[str, ...]


def load(name: str, data: str, count: int, folder: Path) -> Benchmark:
    """The benchmark called `name`.

    Args:
        name: catalog, reasoning249, toys4k or mme3dr.
        data: toys4k: the folder with metadata.csv; mme3dr: the annotation file; the
            shipped two take none.
        count: so many of its objects, 0: all. reasoning249 and mme3dr: the first of
            each category in turn; toys4k: in order of sha256, which is a random one;
            catalog: kinds of things in turn, as in prompts.jsonl.
        folder: where truth meshes of `catalog` are written, as ID.glb, unless there.

    Raises:
        UserError: an unknown name, data that is missing, superfluous or malformed, or
            a folder that cannot be written.
    """
    shipped = {"catalog": _catalog, "reasoning249": _reasoning}
    given = {"toys4k": _toys4k, "mme3dr": _mme3dr}
    if name in given and not data:
        what = "folder with metadata.csv" if name == "toys4k" else "annotation file"
        raise UserError(f"benchmark {name} without data; expected config.data={what}")
    if name in shipped and data:
        raise UserError(f"benchmark {name} is shipped; expected no data, not {data!r}")
    if name in shipped:
        items, notes = shipped[name]()
    elif name in given:
        items, notes = given[name](Path(data))
    else:
        raise UserError(
            f"unknown benchmark {name!r}; expected {', '.join([*shipped, *given])}"
        )
    if count > 0 and name in ("reasoning249", "mme3dr"):
        items = _in_turn(items)
    chosen = items[:count] if count > 0 else items
    if name == "catalog":
        chosen = _with_truth(chosen, folder)
    size = f"{len(chosen)} of {len(items)} objects"
    if count > len(items):
        size += f" ({count} asked for)"
    return Benchmark(name, list(chosen), (size, *notes))


def _in_turn(items: Sequence[Item]) -> list[Item]:
    """The first of each category, then the second of each, and so on."""
    seen: dict[str, int] = {}
    places = []
    for item in items:
        seen[item.category] = place = seen.get(item.category, 0) + 1
        places.append(place)
    order = sorted(range(len(items)), key=lambda n: places[n])  # stable
    return [items[n] for n in order]


def _catalog() -> tuple[list[Item], list[str]]:
    held_out = load_held_out(HELD_OUT)
    groups = dict(zip(held_out.ids, held_out.groups, strict=True))
    captions: dict[str, str] = {}
    for row in read_prompts("catalog"):
        if row.held_out:
            captions.setdefault(row.id.rpartition(".")[0], row.texts[0])
    items = [Item(name, text, groups[name]) for name, text in captions.items()]
    return items, [
        "the catalog's held-out objects, never trained on; each by its first caption "
        "in prompts.jsonl",
        "ground truth: the object's surface voxels as a mesh, which is what codec and "
        "policy are trained to make; not the furniture model itself",
    ]


def _with_truth(items: list[Item], folder: Path) -> list[Item]:
    """The items with a mesh each, written to `folder` where there is none yet."""
    held_out = load_held_out(HELD_OUT)
    rows = {name: row for row, name in enumerate(held_out.ids)}
    paths = [folder / f"{item.id}.glb" for item in items]
    missing = [n for n, path in enumerate(paths) if not path.is_file()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for n in tqdm(missing, desc="ground truth", disable=not missing):
            _write_truth(held_out, rows[items[n].id], paths[n])
    return [
        dataclasses.replace(item, truth=path)
        for item, path in zip(items, paths, strict=True)
    ]


def _write_truth(held_out: HeldOut, row: int, path: Path) -> None:
    logits = np.where(held_out.voxels[row], 1.0, -1.0).astype(np.float32)
    with whole_file(path) as partial:
        surface.to_glb(surface.extract(logits), partial)


def _reasoning() -> tuple[list[Item], list[str]]:
    items = [
        Item(row["id"], row["prompt"], row["category"], expects=row["parts"])
        for _, row in tables.read(REASONING, "benchmark")
    ]
    return items, [
        "249 prompts of our own in the categories and proportions of MME-3DR, whose "
        "list is not published; no ground truth"
    ]


def _mme3dr(path: Path) -> tuple[list[Item], list[str]]:
    rows = read_annotations(path)
    items = [Item(r.id, r.caption, r.category, r.mesh) for r in rows]
    counts = {name: 0 for name in CATEGORIES}
    for item in items:
        counts[item.category] += 1
    notes = [f"annotations: {path.name}, {len(items)} objects"]
    notes += [
        f"{name}: {count} objects; the paper has {CATEGORIES[name]}"
        for name, count in counts.items()
        if count != CATEGORIES[name]
    ]
    meshes = sum(item.truth is not None for item in items)
    return items, [*notes, f"{meshes} objects have a mesh of ground truth"]


def _toys4k(folder: Path) -> tuple[list[Item], list[str]]:
    path = folder / "metadata.csv"
    if not path.is_file():
        raise UserError(
            f"no metadata.csv in {folder}; expected a folder made by TRELLIS's "
            "build_metadata.py, or Toys4k.csv of TRELLIS-500K under that name"
        )
    assets: dict[str, Asset] = {}
    rows = bare = 0
    for asset in read_assets(path, required=("file_identifier",)):
        rows += 1
        bare += not asset.captions
        if asset.captions:
            assets.setdefault(asset.sha256, asset)
    if not assets:
        raise UserError(f"{path}: no object has a caption; expected Toys4K's metadata")
    items = [
        Item(
            id=name,
            # The name's own digits draw the caption: the same one everywhere.
            caption=asset.captions[int(name[:8], 16) % len(asset.captions)],
            category=_kind(asset.identifier),
            truth=_mesh_of(asset, folder),
        )
        for name, asset in sorted(assets.items())
    ]
    meshes = sum(item.truth is not None for item in items)
    notes = [
        "objects in the order of their sha256; of each object's captions, the one "
        "numbered sha256's first eight digits modulo their number",
        f"{bare} objects without captions and {rows - bare - len(items)} repeated rows "
        "left out",
        f"{meshes} objects have a mesh of ground truth",
    ]
    return items, notes


def _kind(identifier: str) -> str:
    """The category in airplane/airplane_000/airplane_000.blend, or in airplane_000."""
    first = identifier.split("/")[0].partition(".")[0]
    return first.rstrip("0123456789").rstrip("_-") or "unknown"


def _mesh_of(asset: Asset, folder: Path) -> Path | None:
    """The file at `local_path`, or beside it as a mesh of the same name."""
    if not asset.local_path:
        return None
    path = folder / asset.local_path
    beside = [path.with_suffix(suffix) for suffix in MESHES]
    own = [path] if path.suffix.lower() in MESHES else []
    return next((found for found in own + beside if found.is_file()), None)
