"""The embedded data set: real furniture meshes, normalised, voxelised and captioned.

    python -m ar3d_jax.data.catalog --source=FOLDER_OF_SH3F --out=DIR

writes `objects.npz` (meshes and voxels), `objects.jsonl` (one record per object, same
order), `report.json`, `report.md` and `contact_sheet.png`; `load_catalog(DIR)` reads
the first two. `--prompts=FILE` and `--held_out=FILE` also write what the package ships:
prompts, and the voxels of the held-out objects, which evaluations compare with.
The `.sh3f` format is `sh3f.py`; the texts are `captions.py`; random variants for
training are `augmentation.py`; prompts for reinforcement learning are `prompts.py`.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int

from ar3d_jax.codec.voxels import pack, unpack, voxelize
from ar3d_jax.command import run
from ar3d_jax.data import captions, sh3f
from ar3d_jax.data.contact_sheet import contact_sheet, draw_voxels
from ar3d_jax.data.parallel import map_objects
from ar3d_jax.errors import UserError, reading, whole_file, write_whole, writing

SOURCE = "/usr/share/sweethome3d/furniture"  # Debian package sweethome3d-furniture
HELD_OUT_ONE_IN = 10
# What trainings read of a catalog's folder; the last is `augmentation.py`'s.
FILES = ("objects.npz", "objects.jsonl", "augmented.npz")
SHIPPED_PROMPTS = 4  # at most, of each object; the first of `captions.prompts`
THUMBNAIL = 72  # pixels of one object in the contact sheet
SHEET_COLUMNS = 30
THINNEST = 0.005  # of the longest side: below, a picture on the floor (road markings)
FEWEST_VOXELS = 64  # at 32^3: below, nothing can be recognised


@dataclasses.dataclass(frozen=True)
class Catalog:
    """The data set in memory.

    Attributes:
        objects: One record per object, as in `objects.jsonl`.
        packed: uint8 [n, R^3 / 8], the voxels of the unchanged objects.
        resolution: Voxels along one side.
        extents: float32 [n, 3], sides along x, y, z; the longest is 1.
        held_out: bool [n], objects never trained on.
        vertices: float32 [sum, 3], all meshes one after the other; see `mesh`.
        vertex_offsets: int64 [n + 1].
        faces: int32 [sum, 3], vertex numbers within the object's own mesh.
        face_offsets: int64 [n + 1].
    """

    objects: list[dict[str, Any]]
    packed: np.ndarray
    resolution: int
    extents: np.ndarray
    held_out: np.ndarray
    vertices: np.ndarray
    vertex_offsets: np.ndarray
    faces: np.ndarray
    face_offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def voxels(self) -> Bool[np.ndarray, "n R R R"]:
        """Voxel grids of all objects, unpacked."""
        return unpack(self.packed, self.resolution)

    def mesh(
        self, index: int
    ) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
        """Vertices and faces of one object: z-up, centred, longest side 1."""
        v, f = self.vertex_offsets, self.face_offsets
        return (
            self.vertices[v[index] : v[index + 1]],
            self.faces[f[index] : f[index + 1]],
        )


def load_catalog(folder: Path | str) -> Catalog:
    """What the command of this file wrote into `folder`.

    Raises:
        UserError: There is no catalog.
    """
    folder = Path(folder)
    remedy = f"python -m ar3d_jax.data.catalog --out={folder}"
    if not (folder / "objects.npz").is_file():
        raise UserError(f"no objects.npz in {folder}; expected the output of {remedy}")
    with reading(folder, remedy), np.load(folder / "objects.npz") as arrays:
        records = (folder / "objects.jsonl").read_text("utf-8").splitlines()
        return Catalog(
            objects=[json.loads(record) for record in records],
            packed=arrays["voxels"],
            resolution=int(arrays["resolution"]),
            **{
                name: arrays[name]
                for name in (
                    "extents",
                    "held_out",
                    "vertices",
                    "vertex_offsets",
                    "faces",
                    "face_offsets",
                )
            },
        )


def is_held_out(object_id: str) -> bool:
    """Whether the object is never trained on: one in ten, by a hash of its id."""
    digest = hashlib.blake2b(object_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """One usable piece."""

    record: dict[str, Any]
    vertices: np.ndarray
    faces: np.ndarray
    packed: np.ndarray
    picture: np.ndarray


def _load(job: tuple[Path, sh3f.Piece, int]) -> _Loaded | str:
    """The piece, or why it is skipped."""
    path, piece, resolution = job
    try:
        with zipfile.ZipFile(path) as archive:
            surface = sh3f.load_surface(archive, piece)
        if np.ptp(surface.vertices, axis=0).min() < THINNEST:
            raise sh3f.Unusable("flat: thinner than 1/200 of its length")
        grid = voxelize(surface.vertices, surface.faces, resolution)
        if grid.sum() < FEWEST_VOXELS * (resolution / 32) ** 2:
            raise sh3f.Unusable("too thin: hardly any voxels")
    except sh3f.Unusable as reason:
        return str(reason)
    return _Loaded(
        record=_describe(piece, surface, grid),
        vertices=surface.vertices,
        faces=surface.faces,
        packed=pack(grid),
        picture=draw_voxels(grid, THUMBNAIL),
    )


def _describe(
    piece: sh3f.Piece, surface: sh3f.Surface, grid: Bool[np.ndarray, "R R R"]
) -> dict[str, Any]:
    """The object's line of `objects.jsonl`."""
    extents = np.ptp(surface.vertices, axis=0)
    areas = sh3f.face_areas(surface.vertices, surface.faces)
    thing = captions.noun(piece.id, piece.name)
    kind = captions.classify(thing)
    record = {
        "id": piece.id,
        "name": piece.name,
        "noun": thing,
        "class": kind,
        "group": captions.table()["classes"][kind]["group"],
        "tags": list(piece.tags),
        "category": piece.category,
        "creator": piece.creator,
        "licence": piece.licence,
        "source": piece.source,
        "extents": [round(float(side), 4) for side in extents],
        "colours": captions.colour_names(surface.colours, areas),
        "materials": captions.material_names(
            surface.material_names, surface.materials, areas, kind
        ),
        "measured": dataclasses.asdict(captions.measure(grid)),
        "held_out": is_held_out(piece.id),
    }
    return record | {
        "parts": captions.parts(record),
        "captions": captions.prompts(record, record["extents"]),
        "global_plan": captions.global_plan(record, record["extents"]),
        "local_plan": captions.local_plan(record, record["extents"]),
    }


def _write_arrays(loaded: list[_Loaded], resolution: int, path: Path) -> None:
    def offsets(arrays: list[np.ndarray]) -> np.ndarray:
        return np.cumsum([0] + [len(array) for array in arrays])

    vertices = [item.vertices for item in loaded]
    faces = [item.faces for item in loaded]
    records = [item.record for item in loaded]
    with whole_file(path) as partial:
        np.savez(
            partial,
            ids=np.array([record["id"] for record in records]),
            voxels=np.stack([item.packed for item in loaded]),
            resolution=resolution,
            extents=np.array([r["extents"] for r in records], np.float32),
            held_out=np.array([r["held_out"] for r in records]),
            vertices=np.concatenate(vertices),
            vertex_offsets=offsets(vertices),
            faces=np.concatenate(faces),
            face_offsets=offsets(faces),
        )


def _write_lines(records: Iterable[dict[str, Any]], path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_whole(path, "".join(lines))


def shipped_prompts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the shipped prompts file, each text once, training rows first.

    A held-out row's text is no training row's. Held-out rows go round the classes,
    furniture and common ones first, so that the first few are different things.
    """
    training = [record for record in records if not record["held_out"]]
    seen: set[str] = set()
    rows = [
        _prompt_row(record, number, text)
        for record in training
        for number, text in enumerate(record["captions"][:SHIPPED_PROMPTS])
        if text not in seen and not seen.add(text)
    ]
    common = collections.Counter(record["class"] for record in records)
    turn: collections.Counter[str] = collections.Counter()
    ordered = []
    for record in records:
        if not record["held_out"]:
            continue
        name = record["class"]
        # Looks at `seen` as each is taken: the object's own repetitions go, too.
        fresh = (t for t in enumerate(record["captions"]) if t[1] not in seen)
        for number, text in itertools.islice(fresh, SHIPPED_PROMPTS):
            seen.add(text)
            turn[name] += 1
            place = (turn[name], record["group"] != "furniture", -common[name], name)
            ordered.append((place, _prompt_row(record, number, text)))
    return rows + [row for _, row in sorted(ordered, key=lambda item: item[0])]


def _prompt_row(record: dict[str, Any], number: int, text: str) -> dict[str, Any]:
    kept = ("class", "parts", "category", "held_out")
    row = {"id": f"{record['id']}.{number}", "prompt": text}
    return row | {name: record[name] for name in kept}


def write_held_out(catalog: Catalog, path: Path) -> None:
    """Writes ids and voxels of the held-out objects; `load_held_out` reads them.

    Raises:
        UserError: `path` cannot be written.
    """
    rows = np.flatnonzero(catalog.held_out)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            ids=np.array([catalog.objects[row]["id"] for row in rows]),
            groups=np.array([catalog.objects[row]["group"] for row in rows]),
            voxels=catalog.packed[rows],
            resolution=catalog.resolution,
        )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out objects, as shipped.

    Attributes:
        ids: Of the objects, as in `objects.jsonl`; fit for file names.
        groups: What kind of thing each is: furniture, vehicle, ...
        voxels: bool [n, R, R, R], surface voxels, z up.
    """

    ids: list[str]
    groups: list[str]
    voxels: np.ndarray


def load_held_out(path: Path) -> HeldOut:
    """What `write_held_out` wrote.

    Raises:
        UserError: The file is missing or broken.
    """
    remedy = f"python -m ar3d_jax.data.catalog --out=data/catalog --held_out={path}"
    # Opened here: numpy leaves a broken file open.
    with reading(path, remedy), path.open("rb") as file, np.load(file) as arrays:
        return HeldOut(
            ids=arrays["ids"].tolist(),
            groups=arrays["groups"].tolist(),
            voxels=unpack(arrays["voxels"], int(arrays["resolution"])),
        )


def _report(
    pieces: list[tuple[Path, sh3f.Piece]], results: list[_Loaded | str]
) -> dict[str, Any]:
    """What was read, what was skipped and why, per category and class."""
    loaded = [item for item in results if isinstance(item, _Loaded)]
    categories = {
        piece.category: {"used": 0, "held_out": 0, "skipped": 0} for _, piece in pieces
    }
    skipped = []
    for (_, piece), result in zip(pieces, results, strict=True):
        count = categories[piece.category]
        if isinstance(result, str):
            count["skipped"] += 1
            skipped.append({"id": piece.id, "name": piece.name, "reason": result})
        else:
            count["used"] += 1
            count["held_out"] += result.record["held_out"]
    classes = collections.Counter(item.record["class"] for item in loaded)
    sources = collections.Counter(
        f"{path.name} ({piece.licence})" for path, piece in pieces
    )
    return {
        "read": len(pieces),
        "used": len(loaded),
        "held_out": sum(item.record["held_out"] for item in loaded),
        "faces": sum(len(item.faces) for item in loaded),
        "sources": dict(sources),
        "skipped": skipped,
        "categories": dict(sorted(categories.items())),
        "classes": dict(classes.most_common()),
    }


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Catalog",
        "",
        f"{report['read']} objects read, {report['used']} used, of these "
        f"{report['held_out']} held out; {report['faces']:,} triangles.",
        "",
        *(f"* {name}: {count}" for name, count in report["sources"].items()),
        "",
        "| category | used | held out | skipped |",
        "|---|---|---|---|",
    ]
    for name, count in report["categories"].items():
        numbers = (count["used"], count["held_out"], count["skipped"])
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    lines += ["", "| skipped | why |", "|---|---|"]
    lines += [
        f"| {row['name']} ({row['id']}) | {row['reason']} |"
        for row in report["skipped"]
    ]
    classes = ", ".join(f"{name} {n}" for name, n in report["classes"].items())
    return "\n".join([*lines, "", f"Classes: {classes}.", ""])


def find_pieces(source: Path) -> list[tuple[Path, sh3f.Piece]]:
    """All pieces of all `.sh3f` files in a folder, by file name, or of one file.

    Raises:
        UserError: There are none, or two have the same id.
    """
    paths = sorted(source.glob("*.sh3f")) if source.is_dir() else [source]
    if not paths or not source.exists():
        raise UserError(
            f"no .sh3f files in {source}; expected furniture catalogs, e.g. "
            "from the Debian package sweethome3d-furniture"
        )
    pieces = [(path, piece) for path in paths for piece in sh3f.read_pieces(path)]
    counts = collections.Counter(piece.id for _, piece in pieces)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f"{source}: id {repeated[0]} is there twice; expected unique ids"
        )
    return pieces


def build_catalog(
    source: Path, out: Path, *, resolution: int, processes: int
) -> dict[str, Any]:
    """Writes the catalog of `source` into `out`; returns the report.

    Raises:
        UserError: `source` has no usable object, or `out` cannot be written.
    """
    pieces = find_pieces(source)
    jobs = [(path, piece, resolution) for path, piece in pieces]
    results = map_objects(_load, jobs, processes=processes, title="catalog")
    loaded = [item for item in results if isinstance(item, _Loaded)]
    report = _report(pieces, results)
    if not loaded:
        reason = report["skipped"][0]["reason"] if pieces else "the catalog is empty"
        raise UserError(f"no usable object in {source}: {reason}")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _write_arrays(loaded, resolution, out / "objects.npz")
        _write_lines((item.record for item in loaded), out / "objects.jsonl")
        write_whole(out / "report.json", json.dumps(report, indent=1))
        write_whole(out / "report.md", _markdown(report))
        pictures = [item.picture for item in loaded]
        labels = [item.record["noun"] for item in loaded]
        contact_sheet(pictures, labels, SHEET_COLUMNS).save(out / "contact_sheet.png")
    return report


def _define_flags() -> None:
    flags.DEFINE_string("source", SOURCE, "folder of .sh3f files, or one")
    flags.DEFINE_string("out", None, "folder to write", required=True)
    flags.DEFINE_string("prompts", "", "also write the prompts to ship to this file")
    flags.DEFINE_string("held_out", "", "also write held-out voxels to this .npz file")
    flags.DEFINE_integer("resolution", 32, "voxels along one side", 8, 256)
    flags.DEFINE_integer("processes", multiprocessing.cpu_count(), "workers", 1)


def main(_: list[str]) -> None:
    """Builds the catalog and says how many objects it has."""
    out = Path(flags.FLAGS.out)
    report = build_catalog(
        Path(flags.FLAGS.source),
        out,
        resolution=flags.FLAGS.resolution,
        processes=flags.FLAGS.processes,
    )
    if flags.FLAGS.prompts:
        prompts = Path(flags.FLAGS.prompts)
        _write_lines(shipped_prompts(load_catalog(out).objects), prompts)
    if flags.FLAGS.held_out:
        write_held_out(load_catalog(out), Path(flags.FLAGS.held_out))
    print(
        f"{out}: {report['used']} of {report['read']} objects, "
        f"{report['held_out']} held out; see report.md and contact_sheet.png"
    )


if __name__ == "__main__":
    _define_flags()
    run(main)
