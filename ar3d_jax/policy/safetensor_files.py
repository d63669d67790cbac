"""Writing safetensors files a tensor at a time, which the library does not offer.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, the
header as JSON (name -> dtype, shape, data_offsets; `__metadata__`), then all tensors'
bytes, little-endian, without gaps. Reading is the library's `safe_open`.
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
from safetensors import safe_open

from ar3d_jax.errors import whole_file

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}
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
