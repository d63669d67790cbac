"""What a path holds, as a short digest: other contents under the same path are noticed.

A file of up to WHOLE bytes is read whole. Of a larger one its size counts, its
beginning (the header of safetensors), its end (the directory of a zip or npz, with a
checksum of every part) and SAMPLES pieces between them; of a folder, the names, sizes
and digests of the files that models and data sets are made of. So a folder of 15 GB
takes less than a second. What is not noticed: a change in a large file that leaves its
size, its ends and all samples as they are, such as one number among billions. Another
training of the same model changes them all.

Checkpoints keep these digests (`checkpoint.py`), evaluations key what they measured by
them (`evaluation/measure.py`).
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar3d_jax.errors import UserError

WHOLE = 1 << 24  # bytes; all numbers here are our choice
ENDS = 1 << 20  # bytes at each end of a larger file
SAMPLES, SAMPLE = 32, 1 << 16  # of it, and their bytes
# Of a folder's files; others, such as a README, decide nothing.
KINDS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".npz", ".npy", ".model"),
    *(".json", ".jsonl", ".csv", ".txt", ".jinja"),
)
OURS = ("", "embedded")  # no paths: none, or what the package ships

Held = dict[str, tuple[str, str]]  # by field: the path, and the digest of what it held


def digest(path: Path) -> str:
    """Of a file or folder that is there: 16 hexadecimal digits.

    Raises:
        UserError: it cannot be read.
    """
    found = hashlib.blake2b(digest_size=8)
    files = [path]
    if path.is_dir():
        inside = ((file, file.relative_to(path)) for file in sorted(path.rglob("*")))
        files = [
            file
            for file, name in inside
            if file.suffix.lower() in KINDS
            and not any(part.startswith(".") for part in name.parts)
            and file.is_file()
        ]
    try:
        for file in files:
            name = os.path.relpath(file, path)  # of a file by itself "."
            found.update(f"{name}\0{file.stat().st_size}\0".encode())
            _add(found, file)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    return found.hexdigest()


def _add(found: Any, path: Path) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            found.update(file.read())
            return
        step = (size - 2 * ENDS) // SAMPLES
        pieces = [(0, ENDS), (size - ENDS, ENDS)]
        pieces += [(ENDS + number * step, SAMPLE) for number in range(SAMPLES)]
        for start, length in pieces:
            file.seek(start)
            found.update(file.read(length))


def held(sources: Mapping[str, str | Path]) -> Held:
    """What paths hold, by config field.

    Words for what the package ships, Hugging Face ids and what is not there are left
    out: whoever reads them says what is wrong.

    Raises:
        UserError: one is there and cannot be read.
    """
    return {
        field: (str(source), digest(Path(source)))
        for field, source in sources.items()
        if str(source) not in OURS and Path(source).exists()
    }


def difference(before: Mapping[str, Any], now: Held) -> str:
    """The first field that held something else, in words; "" where none did.

    A field that only one of both has counts as unchanged.
    """
    for field, (path, found) in now.items():
        saved = before.get(field)
        if saved and saved[1] != found:
            return (
                f"{field}={path} held something else (digest {saved[1]}, now {found})"
            )
    return ""
