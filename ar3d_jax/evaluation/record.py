"""What was measured on one mesh, and the files that keep it: a second run is fast.

    WORKDIR/measured/<key>.npz

The key is a digest of all that the numbers depend on: the mesh's bytes, the caption,
cameras and light, the networks' names and files. `measure.py` makes records.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.codec import voxels
from ar3d_jax.errors import whole_file, writing

VERSION = 2  # of what is measured and how files are read; part of every key
RESOLUTION = 32  # voxels for IoU and diversity; the tiny codec's, our choice for all


@dataclasses.dataclass(frozen=True)
class Record:
    """Of one mesh.

    Attributes:
        failure: why it could not be drawn, or "".
        vectors: by feature set, [V, D] float32.
        texts: by feature set with a text side, the caption's [D] float32.
        reasons: by feature set, why there are no vectors.
        points: [n, 3] float32, on the surface.
        packed: surface voxels, as `codec.voxels.pack` writes them.
        health: `geometry.health`'s numbers by name.
        notes: what was passed over in the mesh's file, a line each.
        picture: the file that shows it, or ""; not kept in the record's own.
    """

    failure: str = ""
    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    points: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 3), np.float32)
    )
    packed: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(RESOLUTION**3 // 8, np.uint8)
    )
    health: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    picture: str = ""

    @property
    def voxels(self) -> np.ndarray:
        """[R, R, R] bool."""
        return voxels.unpack(self.packed, RESOLUTION)


def key(mesh: Path, caption: str, settings: Mapping[str, Any]) -> str:
    """Names a record.

    Raises:
        OSError: the mesh's file cannot be read.
    """
    said = {"version": VERSION, "caption": caption, **settings}
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16)
    with mesh.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def save(record: Record, path: Path) -> None:
    """Writes it, all or nothing.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    said = {
        "failure": record.failure,
        "reasons": dict(record.reasons),
        "health": dict(record.health),
        "notes": record.notes,
    }
    arrays: dict[str, Any] = {
        "said": np.array(json.dumps(said)),
        "points": record.points,
        "packed": record.packed,
        **{f"vectors/{name}": value for name, value in record.vectors.items()},
        **{f"texts/{name}": value for name, value in record.texts.items()},
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        np.savez(partial, **arrays)


def load(path: Path) -> Record | None:
    """The record, or None where there is none or it is damaged: measure again."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            said = json.loads(str(arrays["said"]))
            said["notes"] = tuple(said["notes"])
            by_kind: dict[str, dict[str, np.ndarray]] = {"vectors": {}, "texts": {}}
            for name in arrays.files:
                kind, _, feature_set = name.partition("/")
                if feature_set:
                    by_kind[kind][feature_set] = arrays[name]
            return Record(
                points=arrays["points"], packed=arrays["packed"], **by_kind, **said
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
