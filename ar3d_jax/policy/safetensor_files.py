"""Safetensors files of a folder, and writing one a tensor at a time.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, the
header as JSON (name -> dtype, shape, data_offsets; `__metadata__`), then all tensors'
bytes, little-endian, without gaps. Reading is the library's `safe_open`. A folder has
one file, or several and an index: a JSON object whose `weight_map` says which file each
tensor is in. Where two files have a tensor, the index decides.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ar3d_jax.errors import UserError, whole_file

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
METADATA = "__metadata__"
COPY_BYTES = 2**24  # moved at a time

Header = dict[str, Any]
Entry = Mapping[str, Any]


def read_header(path: Path) -> tuple[Header, int]:
    """A file's header, in the order of its tensors, and where their bytes begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    names = sorted(header.keys() - {METADATA}, key=lambda x: header[x]["data_offsets"])
    ordered = {name: header[name] for name in names}
    return {METADATA: header.get(METADATA, {}), **ordered}, 8 + length


def make_header(shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Header:
    """The header of a new file with tensors of one type."""
    (code,) = (code for code, known in DTYPES.items() if jnp.dtype(known) == dtype)
    header: Header = {METADATA: {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * jnp.dtype(dtype).itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": (start, stop)}
        start = stop
    return header


@dataclasses.dataclass(frozen=True)
class Slices:
    """A tensor in a file, of which slices can be read; nothing stays in memory.

    The file is mapped for one reading at a time: pages of a mapping that stays count as
    this process's memory.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The slice, in memory of its own."""
        with safe_open(self.file, framework="np") as tensors:
            return tensors.get_slice(self.name)[index]


def tensors_in(file: Path) -> dict[str, Slices]:
    """By name.

    Raises:
        OSError, SafetensorError: no whole safetensors file.
    """
    found = {}
    with safe_open(file, framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118  not a dict
            part = tensors.get_slice(name)
            shape = tuple(part.get_shape())
            found[name] = Slices(file, name, part.get_dtype(), shape)
    return found


def files_of(folder: Path) -> dict[Path, frozenset[str] | None]:
    """The files with a folder's weights -> the tensors that count; None: all.

    Raises:
        UserError: there are none, the index is broken, names a file that is not there,
            or is beside a file with everything.
    """
    whole, place = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if not place.is_file():
        if not whole.is_file():
            raise UserError(
                f"no weights in {folder}; expected {WEIGHTS_FILE}, or {INDEX_FILE} and "
                "the files it names"
            )
        return {whole: None}
    try:
        index: dict[str, str] = json.loads(place.read_text("utf-8"))["weight_map"]
        names = sorted(set(index.values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"files {', '.join(names)[:60]!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read {place} ({error}); expected a weight_map from tensors to the "
            "files beside it"
        ) from error
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{place} names {name}, which is not there; get the folder again"
            )
    if whole.is_file() and names != [WEIGHTS_FILE]:
        raise UserError(
            f"{folder} has {WEIGHTS_FILE} and {INDEX_FILE} with other files; expected "
            "one of them: remove the other"
        )
    return {
        folder / name: frozenset(key for key, file in index.items() if file == name)
        for name in names
    }


def tensors_of(folder: Path) -> dict[str, Slices]:
    """A folder's tensors by name, each from the file that counts.

    Raises:
        UserError: as `files_of`; a file is no whole safetensors file, lacks a tensor
            that the index places there, or has one that the index does not name.
    """
    files = files_of(folder)
    placed = frozenset().union(*(names for names in files.values() if names))
    found: dict[str, Slices] = {}
    for file, names in files.items():
        try:
            there = tensors_in(file)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot read {file}: {error}; expected a whole safetensors file"
            ) from error
        if names is not None:
            for name in sorted(names - there.keys()) + sorted(there.keys() - placed):
                verb = "places there" if name in names else "does not name"
                has = "has no" if name in names else "has a"
                raise UserError(
                    f"{file} {has} tensor {name}, which {INDEX_FILE} {verb}; get the "
                    "folder again"
                )
        found |= {name: there[name] for name in names or there}
    return found


@contextlib.contextmanager
def new_file(path: Path, header: Header) -> Iterator[Callable[[Any], int]]:
    """Opens `path` with a header; yields what takes its tensors' bytes, in order.

    Whole or not at all: a reader may be waiting. So the file has its name at the end.
    """
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        yield file.write


def as_bytes(value: np.ndarray, entry: Entry) -> bytes | memoryview:
    """A tensor as a file's entry has it."""
    value = np.ascontiguousarray(value, DTYPES[entry["dtype"]])
    assert list(value.shape) == list(entry["shape"]), "a header of other shapes"
    return value.view(np.uint8).reshape(-1).data


def copied_bytes(file: BinaryIO, start: int, entry: Entry) -> Iterator[bytes]:
    """A tensor's bytes out of another file, whatever its type."""
    first, last = entry["data_offsets"]
    file.seek(start + first)
    for offset in range(first, last, COPY_BYTES):
        yield file.read(min(COPY_BYTES, last - offset))
