"""TRELLIS's metadata: what is known of each object of TRELLIS-500K and of Toys4K.

The CSV files of huggingface.co/datasets/JeffreyXiang/TRELLIS-500K have the columns
`sha256`, `file_identifier`, `aesthetic_score` and `captions`, a JSON list in one cell
that is empty where there are none; TRELLIS's toolkits add `local_path` and others
(github.com/microsoft/TRELLIS, DATASET.md and dataset_toolkits). Read by
`build_prompts.py` and by `evaluation/benchmarks.py`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ar3d_jax.data import tables
from ar3d_jax.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    columns = ("sha256", "captions", *required)

    def check(there: Sequence[str]) -> None:
        for name in columns:
            if name not in there:
                names = ", ".join(there) or "none"
                raise UserError(
                    f"metadata {path}: no column {name} among {names}; expected a "
                    "metadata file of TRELLIS-500K"
                )

    size = path.stat().st_size if path.is_file() else 0
    with tqdm(total=size, desc=path.name, unit="B", unit_scale=True) as bar:
        rows = tables.read(
            path,
            "metadata",
            kinds=(".csv",),
            known=columns,
            header=check,
            progress=bar.update,
        )
        for line, cells in rows:
            yield _asset(cells, f"{path}, line {line}")


def _asset(cells: dict[str, str], where: str) -> Asset:
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
        found = tables.parse_json(cell)
    except ValueError as error:
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
