"""Which parts an object should have, and how many of each, by its prompt.

From a file that a judge wrote beforehand (`read`), or from the prompt's own words
(`noun_phrases`): the paper does not say how it finds them. The file has one JSON object
per line, {"prompt": "a chair ...", "parts": [{"name": "leg", "count": 4}, ...]}.
"""

import json
import re
from pathlib import Path
from typing import Any

from ar3d_jax.data import tables
from ar3d_jax.errors import UserError

Parts = tuple[tuple[str, int], ...]  # names in the singular, how many of each

WHAT = "part lists"  # to the user: rewards.part_lists
MOST_PARTS = 12  # of a prompt; each costs the scorer two questions; our choice
EXAMPLE = '{"prompt": "a chair", "parts": [{"name": "leg", "count": 4}]}'

_NUMBERS: dict[str, int] = {
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7},
    **{"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "dozen": 12},
    **{"single": 1, "both": 2, "pair": 2, "couple": 2},
}
_SKIPPED = {
    *("a", "an", "the", "its", "his", "her", "their", "of", "each"),
    *("some", "several", "many", "multiple"),
}
# Between phrases; a dot or colon inside a number or a time is no end.
_BREAK = re.compile(
    r"[,;()]|[.:](?=\s|$)|\b(?:with|and|plus|having|has|featuring|including)\b"
)
# From here on a phrase says where its thing is or what it does.
_TAIL = re.compile(
    r"\s(?:that|which|who|whose|where|while|is|are|made|in|on|onto|at|for|to|from|by|"
    r"under|over|above|below|beneath|between|around|along|inside|behind|beside|like|"
    r"without)\s.*"
)
_IRREGULAR = {
    **{"feet": "foot", "teeth": "tooth", "leaves": "leaf", "shelves": "shelf"},
    **{"knives": "knife", "halves": "half", "hooves": "hoof", "scarves": "scarf"},
    **{"men": "man", "women": "woman", "children": "child", "people": "person"},
}
_NO_PLURAL = re.compile(r"(?:ss|us|is|lens|gas|canvas|trousers|scissors|glasses)$")


def noun_phrases(prompt: str) -> Parts:
    """Parts that the prompt names: its phrases after "with", "and" or a comma.

    Where there are none, the object itself; where there are many, the first MOST_PARTS.
    A plural without a number counts as two, which it is at least. Words alone decide,
    so "red, shiny" becomes a part, too: a fallback for prompts that no list has.
    """
    phrases = [_phrase(piece) for piece in _BREAK.split(prompt.lower())]
    first, rest = phrases[0], [phrase for phrase in phrases[1:] if phrase]
    found = rest or [first or (" ".join(prompt.lower().split()), 1)]
    parts = {name: (name, count) for name, count in found}.values()
    return tuple(parts)[:MOST_PARTS]


def _phrase(piece: str) -> tuple[str, int] | None:
    """Of "four long legs on a ring" ("long leg", 4); None where no word is left."""
    words = re.findall(r"[\w'.:/-]+", _TAIL.sub("", f" {piece} "))
    number = None
    while words and (words[0] in _SKIPPED or _count(words[0])):
        number = _count(words.pop(0)) or number
    if not words:
        return None
    head = words.index("of") - 1 if "of" in words else len(words) - 1
    words[head], plural = _singular(words[head])
    return " ".join(words), number or (2 if plural else 1)


def _count(word: str) -> int | None:
    return int(word) if word.isdecimal() else _NUMBERS.get(word)


def _singular(word: str) -> tuple[str, bool]:
    """The word in the singular, and whether it was a plural."""
    if word in _IRREGULAR:
        return _IRREGULAR[word], True
    if not word.endswith("s") or len(word) < 4 or _NO_PLURAL.search(word):
        return word, False
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y", True
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2], True
    return word[:-1], True


def read(path: Path) -> dict[str, Parts]:
    """Parts by prompt, whose white space is one blank between words.

    An empty list means that no parts are known: the scorer then goes by the prompt's
    words, as without a line. Other keys than `prompt` and `parts` are ignored.

    Raises:
        UserError: there is no such file, a line of it is something else, or a prompt
            has two lists that differ.
    """
    lists: dict[str, Parts] = {}
    try:
        rows = list(tables.read(path, WHAT, known=("prompt", "parts")))
    except UserError as error:
        raise UserError(
            f"{error}; expected a file of `python -m ar3d_jax.data.parts`; or leave "
            "rewards.part_lists empty"
        ) from error
    for number, row in rows:
        try:
            prompt = " ".join(_of(row, "prompt", str).split())
            parts = parts_of(row)
            if lists.setdefault(prompt, parts) != parts:
                raise ValueError(f"{prompt[:60]!r} has other parts in a line before")
        except ValueError as error:
            raise UserError(
                f"{WHAT} {path}, line {number}: {error}; expected {EXAMPLE}, a prompt "
                "with one list of parts"
            ) from error
    return lists


def parts_of(row: Any) -> Parts:
    """The parts of one JSON object, as in a line of the file.

    Raises:
        ValueError: it has none, or something else there.
    """
    return tuple(_part(part) for part in _of(row, "parts", list))


def _part(part: Any) -> tuple[str, int]:
    name, count = " ".join(_of(part, "name", str).split()), _of(part, "count", int)
    if not name or count < 1:
        raise ValueError(f"a part is {name!r}, {count} times")
    return name, count


def _of(row: Any, field: str, kind: type) -> Any:
    found = row.get(field) if isinstance(row, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"{field} is {json.dumps(found)[:60]}")
    return found
