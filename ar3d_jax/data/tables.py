"""The one reader of users' lists: .csv, .jsonl, .json and .txt files as rows.

`read` gives each row as the number of its line and its cells by column. Prompt files,
annotations, part lists, TRELLIS's metadata and lists of meshes all come through here.

A file is UTF-8, with or without a byte-order mark; lines end in any of the three ways.
What cannot be read in exactly one way is refused with file and line: another encoding,
a NUL byte, a row with more or fewer cells than the header, a column or a JSON key that
stands twice, a column without a name, a quote that is never closed, another separator
than the comma, a column whose name is nearly one that the reader knows.

Ignored on purpose: empty lines; blanks around a column's name; columns that the reader
does not know (metadata); a first column without a name that counts the rows, which
pandas writes.
"""

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ar3d_jax.errors import UserError

Row = tuple[int, dict[str, Any]]  # its line (.json: which object), cells by column

TEXT = "text"  # the column of a .txt file
# The csv module's own limit, 128 KiB a cell, is less than some captions have.
csv.field_size_limit(1 << 24)
_WIDE = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # marks at the file's beginning
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_ALIKE = 0.8  # of names of columns that are taken for slips; our choice


def read(
    path: Path,
    what: str,
    *,
    kinds: Sequence[str] = (),
    known: Sequence[str] = (),
    guarded: Sequence[str] = (),
    header: Callable[[Sequence[str]], object] = lambda names: None,
    progress: Callable[[int], object] = lambda size: None,
) -> Iterator[Row]:
    """The rows of a file, in order, read as they are asked for.

    Args:
        path: of the file.
        what: what it is to the user, such as "prompts file"; messages begin with it.
        kinds: endings that it may have, of .csv, .jsonl, .json (a list of objects) and
            .txt (a line per row, in the column TEXT). None: .jsonl, whatever its name.
        known: columns that the caller looks at; one that differs from these in capitals
            and marks alone is refused.
        guarded: of those, which may be absent and change the meaning of a row; a name
            that is nearly one of these is refused.
        header: called with the columns of a .csv file, none where it is empty.
        progress: called with the size of each piece, in bytes, as it is read.

    Raises:
        UserError: no such file, another kind of file, or one that cannot be read in
            exactly one way.
    """
    kind = path.suffix.lower() if kinds else ".jsonl"
    if kinds and kind not in kinds:
        endings = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if kinds[1:] else kinds[0]
        raise UserError(f"{what} {path}: expected a {endings} file")
    lines = _lines(path, what, progress)
    if kind == ".txt":
        yield from ((number, {TEXT: line}) for number, line in enumerate(lines, 1))
        return
    checked: set[tuple[str, ...]] = set()
    try:
        if kind == ".csv":
            rows = _csv(lines, header)
        else:
            rows = (_json_lines if kind == ".jsonl" else _json_list)(lines)
        for number, cells in rows:
            names = tuple(cells)
            if names not in checked:
                checked.add(names)
                _check_names(names, known, guarded, number)
            yield number, cells
    except _Malformed as error:
        raise UserError(f"{what} {path}, {error}") from error


def parse_json(text: str | bytes) -> Any:
    """A JSON text, in which no object has a key twice.

    Raises:
        ValueError: malformed, too deep, or a key stands twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _Malformed(ValueError):
    """The place in the file, and what is wrong there."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _lines(path: Path, what: str, progress: Callable[[int], object]) -> Iterator[str]:
    """The lines without their ends."""
    number = position = 0
    try:
        with path.open("rb") as file:
            for data in file:  # up to each \n
                progress(len(data))
                if not position and data[:2] in _WIDE:
                    raise UserError(
                        f"{what} {path} is {_WIDE[data[:2]]}; expected UTF-8: save it "
                        "as that"
                    )
                for line in _decoded(data, path, what, number, position):
                    number += 1
                    yield line
                position += len(data)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error


def _decoded(
    data: bytes, path: Path, what: str, number: int, position: int
) -> list[str]:
    """The lines of a piece, which follows `number` lines and `position` bytes."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = number + 1 + data.count(b"\r", 0, error.start)
        raise UserError(
            f"{what} {path}, line {line}: byte 0x{data[error.start]:02x} at position "
            f"{position + error.start} is not UTF-8; convert the file"
        ) from error
    if not position:
        text = text.removeprefix("\ufeff")  # spreadsheets write a byte-order mark
    if "\0" in text:
        line = number + 1 + text.count("\r", 0, text.index("\0"))
        raise UserError(
            f"{what} {path}, line {line}: a NUL byte; expected text in UTF-8 (UTF-16 "
            "has such bytes): save it as that"
        )
    text = text.removesuffix("\n").removesuffix("\r")
    return re.split("\r", text)


def _csv(
    lines: Iterable[str], told: Callable[[Sequence[str]], object]
) -> Iterator[Row]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1  # where the row begins
        place = f"line {number}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = "a quote is never closed" if "end of data" in str(error) else error
            raise _Malformed(f"{place}: malformed CSV ({reason})") from error
        if cells is None:
            if not header:
                told(())
            return
        if not cells:  # an empty line
            continue
        if not header:
            header = _header(cells, place)
            told([name for name in header if name])
            continue
        if len(cells) != len(header):
            raise _Malformed(
                f"{place}: {len(cells)} cells, the header has {len(header)}; expected "
                "as many: put cells that have a comma in double quotes"
            )
        if not header[0] and not cells[0].strip().isdecimal():
            raise _Malformed(
                f"{place}: {cells[0][:40]!r} is in a column without a name; name it in "
                "the header"
            )
        yield number, {n: cell for n, cell in zip(header, cells, strict=True) if n}


def _header(cells: list[str], place: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for mark, word in _SEPARATORS.items():
        if len(names) == 1 and mark in names[0]:
            raise _Malformed(
                f"{place}: {names[0][:60]!r} is separated by {word}; expected commas: "
                "save it so"
            )
    if "" in names[1:] or names == [""]:
        raise _Malformed(
            f"{place}: column {names.index('', len(names) > 1) + 1} of the header has "
            "no name; name it, or remove the comma too many"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _Malformed(
            f"{place}: column {twice!r} stands twice; expected each name once: rename "
            "or remove one"
        )
    return names


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            cells = parse_json(line)
        except ValueError as error:
            raise _Malformed(f"{place}: malformed JSON ({error})") from error
        yield number, _checked(cells, place)


def _json_list(lines: Iterable[str]) -> Iterator[Row]:
    try:
        found = parse_json("\n".join(lines))
    except ValueError as error:
        raise _Malformed(f"malformed JSON ({error})") from error
    if not isinstance(found, list):
        raise _Malformed("expected a JSON list of objects")
    for number, cells in enumerate(found, 1):
        yield number, _checked(cells, f"object {number}")


def _checked(cells: Any, place: str) -> dict[str, Any]:
    if not isinstance(cells, dict):
        raise _Malformed(
            f'{place}: expected a JSON object, e.g. {{"prompt": "a chair"}}'
        )
    return cells


def _check_names(
    names: Sequence[str], known: Sequence[str], guarded: Sequence[str], number: int
) -> None:
    """Refuses names such as "Held-Out" and "holdout" where held_out is looked at."""
    plain = {_plain(word): word for word in known}
    near = [_plain(word) for word in guarded]
    for name in names:
        if name in known:
            continue
        found = difflib.get_close_matches(_plain(name), near, 1, _ALIKE)
        meant = plain.get(found[0] if found else _plain(name), "")
        if meant and meant not in names:
            raise _Malformed(
                f"row {number}: column {name!r}; expected {meant!r}: rename it, or "
                "give it another name if it is something else"
            )


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", name).lower()
