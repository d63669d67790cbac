"""Prompts for reinforcement learning: from a file to shuffled, resumable batches.

`PromptSource` is what training iterates over; `held_out_prompts` gives the fixed ones
that are drawn into `samples/`. Files: `.txt` (one prompt per line), `.csv` and `.jsonl`
(column `prompt` or `captions`; several captions as a JSON list, one of which is chosen
anew each epoch). The word `catalog` stands for the shipped prompts, which
`python -m ar3d_jax.data.catalog --prompts=FILE` wrote, `REASONING` is the shipped test
set of prompts. As a command,

    python -m ar3d_jax.data.prompts --metadata=FOLDER --out=data/prompts.jsonl

chooses the large preset's training prompts: `build_prompts.py`. Training examples with
shapes are `sft_examples.py`; tokens are made by `policy.tokenizer`.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.data import tables
from ar3d_jax.errors import UserError

SHIPPED = Path(__file__).parents[1] / "assets" / "tiny" / "prompts.jsonl"
REASONING = SHIPPED.parents[1] / "reasoning249.jsonl"
SUFFIXES = (".txt", ".csv", ".jsonl")
WHAT = "prompts file"
_YES, _NO = ("true", "1", "yes"), ("", "false", "0", "no")  # of a column held_out


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The user's text for one object, and a name for it in files."""

    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """One row of a prompt file.

    Attributes:
        id: Its `id` where the file has one, else file name and line.
        texts: The prompt, or several captions of one object.
        held_out: Never trained on.
    """

    id: str
    texts: tuple[str, ...]
    held_out: bool = False


def read_prompts(source: str, column: str = "") -> list[PromptRow]:
    """All rows of a prompt file that have a text.

    Args:
        source: `catalog`, or the path of a .txt, .csv or .jsonl file.
        column: Name of the column with the texts; empty: `prompt`, else `captions`.

    Ids are labels: they may repeat. Other columns than the texts', `id` and `held_out`
    are ignored, and so are rows whose text is empty.

    Raises:
        UserError: No such file, another type of file, not UTF-8, malformed, without the
            column, or without any prompt.
    """
    path = SHIPPED if source == "catalog" else Path(source)
    columns = dict.fromkeys((column, "prompt", "captions", "id", "held_out"))
    rows = tables.read(
        path, WHAT, kinds=SUFFIXES, known=tuple(columns), guarded=("held_out",)
    )
    cells = list(rows)
    if path.suffix.lower() == ".txt":
        column = tables.TEXT
    column = column or _text_column(cells, path)
    found = [_row(values, line, column, path) for line, values in cells]
    found = [row for row in found if row.texts]
    if not found:
        raise UserError(f"{WHAT} {path} has no prompts; expected one per line")
    return found


def _text_column(cells: list[tuple[int, dict[str, Any]]], path: Path) -> str:
    """`prompt` or `captions`, whichever the file has."""
    if not cells:
        raise UserError(f"prompts file {path} has no prompts; expected one per line")
    return next(
        (name for name in ("prompt", "captions") if name in cells[0][1]), "prompt"
    )


def _row(values: dict[str, Any], line: int, column: str, path: Path) -> PromptRow:
    if column not in values:
        there = ", ".join(str(name) for name in values if name)
        wanted = f"a column {column}" + (" or captions" if column == "prompt" else "")
        raise UserError(
            f"prompts file {path}, line {line}: columns are {there}; expected "
            f"{wanted}; config.data.column names another"
        )
    value = values[column]
    # TRELLIS's metadata hold the captions of an object as a JSON list in a CSV cell.
    if (
        column not in ("prompt", tables.TEXT)
        and isinstance(value, str)
        and value.lstrip().startswith("[")
    ):
        try:
            value = tables.parse_json(value)
        except ValueError as error:
            raise UserError(
                f"prompts file {path}, line {line}: column {column} is a malformed "
                f"JSON list ({error})"
            ) from error
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"prompts file {path}, line {line}: column {column} is {value!r}; "
            "expected a text or a list of texts"
        )
    clean = tuple(words for text in texts if (words := " ".join(text.split())))
    name = values.get("id")
    if isinstance(name, list | dict):
        raise UserError(
            f"prompts file {path}, line {line}: column id is {str(name)[:60]}; "
            "expected a text or a number"
        )
    name = f"{path.stem}-{line}" if name in (None, "") else name
    held_out = str(values.get("held_out") or "").strip().lower()
    if held_out not in _YES + _NO:
        raise UserError(
            f"prompts file {path}, line {line}: column held_out is {held_out!r}; "
            "expected true or false"
        )
    return PromptRow(str(name), clean, held_out=held_out in _YES)


class PromptSource:
    """Endless batches of prompts, one pass over the file after the other.

    The order, and which caption of a row is used, follow from the seed and the position
    alone; `get_state` is that position. It is the same on every host.
    """

    def __init__(
        self,
        source: str,
        *,
        batch: int,
        seed: int,
        shuffle: bool = True,
        column: str = "",
        share: float = 1.0,
    ):
        """Reads the file; raises UserError as `read_prompts`.

        A `share` of its rows are those that a fixed shuffle puts first, whatever the
        seed, so that a larger share has all of a smaller one.
        """
        import grain  # it loads jax, which those who only read files do without

        rows = [row for row in read_prompts(source, column) if not row.held_out]
        order = np.random.default_rng(0).permutation(len(rows))
        kept = sorted(order[: math.ceil(share * len(rows))])
        rows = [rows[i] for i in kept]
        if not rows:
            raise UserError(
                f"prompts {source}: all rows are held out, none to train on"
            )
        prompts = grain.MapDataset.source(rows)
        if shuffle:
            prompts = prompts.shuffle(seed=seed)
        self.rows = rows
        self._prompts = prompts.seed(seed).repeat().random_map(_choose)
        self._batch, self._position = batch, 0

    def __iter__(self) -> "PromptSource":
        return self

    def __next__(self) -> list[Prompt]:
        return self.take(self._batch)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts."""
        first = self._position
        self._position += count
        found = (self._prompts[index] for index in range(first, self._position))
        return [prompt for prompt in found if prompt]  # none is None: nothing filters

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON."""
        return {"position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batch where `get_state` was called."""
        self._position = state["position"]


def _choose(row: PromptRow, rng: np.random.Generator) -> Prompt:
    return Prompt(row.id, row.texts[int(rng.integers(len(row.texts)))])


def held_out_prompts(source: str, count: int, column: str = "") -> list[Prompt]:
    """The same first `count` prompts in every run, never trained on if there are such.

    Rows marked `held_out` in file order. A file without them gives its first rows,
    which are then also trained on: a user's file is short and all of it is meant.

    Raises:
        UserError: As `read_prompts`.
    """
    rows = read_prompts(source, column)
    chosen = [row for row in rows if row.held_out] or rows
    return [Prompt(row.id, row.texts[0]) for row in chosen[:count]]


if __name__ == "__main__":
    from ar3d_jax.data import build_prompts

    build_prompts.command()
