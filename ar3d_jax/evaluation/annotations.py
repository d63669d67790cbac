"""The user's annotation file of MME-3DR: one object per row, checked row by row.

The paper's list of 249 objects is not published; who has it, or makes another in its
categories, writes it as .jsonl, .json (a list) or .csv with the columns `id`, `caption`
and `category`, and perhaps `mesh`, the file of the true object. Read by
`benchmarks.py`.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ar3d_jax.data import tables
from ar3d_jax.errors import UserError

# The paper's five, and how many of its 249 objects are in each: spatial and structural
# geometry, mechanical affordances, biological and organic shapes, world-knowledge rare
# objects, stylised representation.
CATEGORIES = {
    "spatial": 40,
    "mechanical": 54,
    "organic": 53,
    "rare": 38,
    "stylised": 64,
}
COLUMNS = ("id", "caption", "category", "mesh")  # others are ignored
_SPELLINGS = {"stylized": "stylised"}
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One object: its name in files, what is asked for, and perhaps its true mesh."""

    id: str
    caption: str
    category: str
    mesh: Path | None


def read_annotations(path: Path) -> list[Annotation]:
    """All rows of an annotation file.

    Args:
        path: a .jsonl, .json or .csv file; a relative `mesh` counts from its folder.

    Raises:
        UserError: another type of file, malformed, empty, or a row that lacks a column,
            repeats an id, or has an id unfit for a file name, an unknown category or a
            mesh that is not there.
    """
    listed = path.suffix.lower() == ".json"
    table = tables.read(
        path, "annotations", kinds=(".jsonl", ".json", ".csv"), known=COLUMNS
    )
    lines: dict[str, int] = {}
    found = []
    for line, cells in table:
        where = f"annotations {path}, {'object' if listed else 'line'} {line}"
        row = _annotation(cells, path.parent, where)
        # Names of files differ by more than case on some systems.
        first = lines.setdefault(row.id.lower(), line)
        if first != line:
            raise UserError(
                f"{where}: id {row.id!r} is in {first} already; ids must differ, "
                "by more than capitals"
            )
        found.append(row)
    if not found:
        raise UserError(f"annotations {path} are empty; expected one object per row")
    return found


def _annotation(cells: dict[str, Any], folder: Path, where: str) -> Annotation:
    values = {}
    for name in ("id", "caption", "category"):
        value = cells.get(name)
        text = " ".join(str(value).split()) if isinstance(value, str | int) else ""
        if not text:
            there = ", ".join(str(key) for key in cells if key)
            raise UserError(
                f"{where}: no {name} (columns: {there}); expected a text in each of "
                "id, caption, category"
            )
        values[name] = text
    if not _FILE_NAME.fullmatch(values["id"]):
        raise UserError(
            f"{where}: id {values['id'][:100]!r} is no file name; expected letters, "
            "digits, . _ -"
        )
    category = values["category"].lower()
    category = _SPELLINGS.get(category, category)
    if category not in CATEGORIES:
        raise UserError(
            f"{where}: category {values['category'][:100]!r}; expected one of "
            f"{', '.join(CATEGORIES)}"
        )
    mesh = folder / str(cells["mesh"]) if cells.get("mesh") else None
    if mesh and not mesh.is_file():
        raise UserError(f"{where}: no mesh {mesh}; expected a file, or no mesh")
    return Annotation(values["id"], values["caption"], category, mesh)
