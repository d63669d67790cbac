"""TRELLIS's metadata: what is known of each object of TRELLIS-500K and of Toys4K.

The CSV files of huggingface.co/datasets/JeffreyXiang/TRELLIS-500K have the columns
`sha256`, `file_identifier`, `aesthetic_score` and `captions`, a JSON list in one cell
that is empty where there are none; TRELLIS's toolkits add `local_path` and others
(github.com/microsoft/TRELLIS, DATASET.md and dataset_toolkits). Read by
`build_prompts.py` and by `evaluation/benchmarks.py`.
"""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ar3d_jax.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_CELL = 1 << 24  # csv's own limit, 128 KiB, is less than some captions have


@dataclasses.dataclass(frozen=True)
class Asset:
    """One row.

    Attributes:
        sha256: Of the object's file, 64 hexadecimal digits: its name everywhere.
        identifier: `file_identifier`: a URL or a path, which tells the data set's own
            name of the object; empty where there is no such column.
        score: `aesthetic_score`; nan where the cell is empty or the column missing.
        captions: In file order; blanks joined, empty ones left out.
        local_path: Of the object's file, relative to the CSV; empty if not downloaded.
    """

    sha256: str
    identifier: str
    score: float
    captions: tuple[str, ...]
    local_path: str


def read_assets(path: Path, required: tuple[str, ...] = ()) -> Iterator[Asset]:
    """All rows of a metadata file, in order, with a progress bar.

    Args:
        path: the CSV file.
        required: columns that must be there, beside `sha256` and `captions`.

    Raises:
        UserError: no such file, not UTF-8, malformed, a column missing, or a cell that
            is not what its column holds. The line is named.
    """
    previous = csv.field_size_limit(_LARGEST_CELL)
    try:
        size = path.stat().st_size
        with (
            path.open(encoding="utf-8-sig", newline="") as file,
            tqdm(total=size, desc=path.name, unit="B", unit_scale=True) as bar,
        ):
            reader = csv.DictReader(_counted(file, bar), strict=True)
            _check_columns(reader, path, required)
            for cells in reader:
                yield _asset(cells, f"{path}, line {reader.line_num}")
    except OSError as error:
        raise UserError(f"metadata {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"metadata {path} is not UTF-8; download it again") from error
    except csv.Error as error:
        raise UserError(f"metadata {path}: malformed CSV ({error})") from error
    finally:
        csv.field_size_limit(previous)


def _counted(lines: Iterator[str], bar: tqdm) -> Iterator[str]:
    for line in lines:
        bar.update(len(line))  # characters; nearly all are one byte
        yield line


def _check_columns(
    reader: csv.DictReader, path: Path, required: tuple[str, ...]
) -> None:
    there = reader.fieldnames or ()
    for name in ("sha256", "captions", *required):
        if name not in there:
            raise UserError(
                f"metadata {path}: no column {name} among {', '.join(there) or 'none'};"
                " expected a metadata file of TRELLIS-500K"
            )


def _asset(cells: dict[str, str], where: str) -> Asset:
    if None in cells or None in cells.values():
        raise UserError(f"metadata {where}: more or fewer cells than columns")
    sha256 = cells["sha256"].strip().lower()
    if not _SHA256.fullmatch(sha256):
        raise UserError(
            f"metadata {where}: sha256 is {sha256[:80]!r}; expected 64 hex digits"
        )
    score = cells.get("aesthetic_score", "").strip()
    try:
        number = float(score or math.nan)
    except ValueError:
        raise UserError(
            f"metadata {where}: aesthetic_score is {score[:80]!r}; expected a number"
        ) from None
    return Asset(
        sha256=sha256,
        identifier=cells.get("file_identifier", "").strip(),
        score=number,
        captions=_captions(cells["captions"], where),
        local_path=cells.get("local_path", "").strip(),
    )


def _captions(cell: str, where: str) -> tuple[str, ...]:
    if not cell.strip():
        return ()
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"metadata {where}: captions is malformed JSON ({error}); expected a list "
            'of texts, e.g. ["A red chair."]'
        ) from error
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise UserError(
            f"metadata {where}: captions is {cell[:80]!r}; expected a JSON list of "
            "texts"
        )
    return tuple(clean for text in found if (clean := " ".join(text.split())))
