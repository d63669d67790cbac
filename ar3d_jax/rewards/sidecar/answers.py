"""From what a judge wrote to a number, or the reason why there is none.

UnifiedReward writes labelled lines, Qwen2.5-VL a JSON object. Both are read leniently
in form (markdown, spaces, quotes, prose around, comma decimals; the last occurrence
counts) and strictly in content: a number that is not there, not finite, or out of its
range is missing, never 0. Numbers that miss the range by DUST at most are rounding, and
are put on its edge.

A reason is `kind: detail`, so that reasons can be counted by what is before the colon:
`unreadable`, `out of range`, `cut off`, or the kind of an answer that did not come.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ar3d_jax.data import part_lists
from ar3d_jax.data.part_lists import MOST_PARTS, Parts
from ar3d_jax.rewards.sidecar.scorers import Verdict

AXES = ("alignment", "coherence", "style")  # of UnifiedReward's pointwise format
DUST = 1e-3
LONGEST = 20_000  # characters that are read, from the end
SETTLED = 3  # decimals after which it does not matter that a number was cut off

Found = TypeVar("Found")

_GAP = r"[\s*_`\"'\[(<]*"  # what markdown and quoting put around labels and numbers
_SPAN = r"(?:[-–—]|(?:to|or)\b)"  # noqa: RUF001
_NUMBER = re.compile(
    rf"{_GAP}([-+]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:e[-+]?[0-9]+)?"
    r"|nan|[-+]?inf(?:inity)?)"
    r"(?:\s*(?:/|out\s+of)\s*5(?:[.,]0+)?)?"
    # Neither a longer number, nor a span, nor another scale.
    rf"(?![\w.,]*[0-9]|{_GAP}(?:/|out\s+of|%|{_SPAN}{_GAP}[0-9]))",
    re.IGNORECASE,
)
# At the end of an answer that was cut off: may have had more digits, or be a span.
_UNFINISHED = re.compile(
    rf"(?<![0-9.,])[0-9]+(?:(?:[.,][0-9]{{0,{SETTLED - 1}}})?"
    rf"|(?:[.,][0-9]*)?{_GAP}(?:/|out\s+of|{_SPAN}){_GAP}[0-9.,]*)$",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back for one question.

    Attributes:
        text: What the judge wrote.
        cut: Whether it ended because it had no tokens left.
        kind: Why there is no text at all, in a word or two; None where there is one.
        detail: The same at length.
    """

    text: str = ""
    cut: bool = False
    kind: str | None = None
    detail: str = ""

    @property
    def reason(self) -> str | None:
        """Why there is no text: `kind: detail`; None where there is one."""
        return None if self.kind is None else f"{self.kind}: {self.detail}"


class _Unreadable(ValueError):
    """Says what is wrong with the text."""

    kind = "unreadable"


class _Absent(_Unreadable):
    """What is looked for is not there; it might be, had the answer not been cut off."""


class _OutOfRange(_Unreadable):
    """It is there, and cannot be right."""

    kind = "out of range"


def quality(answer: Answer) -> Verdict:
    """Alignment + coherence + style of UnifiedReward 2.0, 3 to 15; equation 3."""
    return _verdict(answer, lambda text: sum(_axis(text, axis) for axis in AXES))


def alignment(answer: Answer) -> Verdict:
    """The alignment line of UnifiedReward 2.0, 1 to 5; the others may be missing."""
    return _verdict(answer, lambda text: _axis(text, "alignment"))


def alignment_of_think(answer: Answer) -> Verdict:
    """The alignment line of UnifiedReward-Think, 1 to 5, or else its `Final Score:`.

    The model was trained on pairs and knows the line from its parent: our choice.
    """

    def read(text: str) -> float:
        try:
            return _axis(text, "alignment")
        except _Unreadable as error:
            try:
                return _axis(text, "final")
            except _Unreadable:
                raise error from None

    return _verdict(answer, read)


def category(answer: Answer) -> Verdict:
    """`match`, 0 or 1; equation 4."""

    def read(text: str) -> float:
        found = _object(text, "match")
        if isinstance(found["match"], bool):  # true can mean nothing but 1
            found["match"] = int(found["match"])
        value = _field(found, "match", 0, 1)
        if value not in (0, 1):
            raise _OutOfRange(f"match is {value:g}, neither 0 nor 1")
        return value

    return _verdict(answer, read)


def consistency(answer: Answer) -> Verdict:
    """`color` + `material` + `texture`, 0 to 3; equation 5."""
    return _sum(answer, "color", "material", "texture")


def consistency_shape(answer: Answer) -> Verdict:
    """`outline` + `appearance` + `parts`, 0 to 3; "LMM 3D" of the paper's table 1."""
    return _sum(answer, "outline", "appearance", "parts")


def align_lmm(answer: Answer) -> Verdict:
    """`alignment`, 1 to 5: Qwen2.5-VL in UnifiedReward's place, table 1."""
    return _verdict(
        answer,
        lambda text: _field(_object(text, "alignment"), "alignment", 1, 5),
    )


def parts(answer: Answer) -> tuple[Parts | None, str | None]:
    """`parts`, names and counts of 1 to 12 parts, or why they cannot be read.

    A part that comes twice counts as it did first.
    """

    def read(text: str) -> Parts:
        try:
            found = part_lists.parts_of(_object(text, "parts"))
        except _Unreadable:
            raise
        except ValueError as error:
            raise _Unreadable(str(error)) from error
        if not 1 <= len(found) <= MOST_PARTS:
            raise _OutOfRange(f"there are {len(found)} parts, not 1 to {MOST_PARTS}")
        return tuple({name: (name, n) for name, n in reversed(found)}.values())[::-1]

    return _read(answer, read)


def _sum(answer: Answer, *keys: str) -> Verdict:
    def read(text: str) -> float:
        found = _object(text, *keys)
        return sum(_field(found, key, 0, 1) for key in keys)

    return _verdict(answer, read)


def _verdict(answer: Answer, read: Callable[[str], float]) -> Verdict:
    value, reason = _read(answer, read)
    return math.nan if value is None else value, reason


def _read(
    answer: Answer, read: Callable[[str], Found]
) -> tuple[Found | None, str | None]:
    """What `read` finds behind the reasoning, or why it finds nothing."""
    if answer.reason is not None:
        return None, answer.reason
    text = said = answer.text[-LONGEST:].rpartition("</think>")[2].strip()
    if answer.cut:
        text = _UNFINISHED.sub("", text)
    try:
        if "<think>" in text:
            raise _Absent("the reasoning has no end")
        return read(text), None
    except _Unreadable as error:
        quoted = f"it answered {' '.join(said.split())[:120]!r}"
        if answer.cut and isinstance(error, _Absent):
            return None, f"cut off: {error}, see max_tokens; {quoted}"
        return None, f"{error.kind}: {error}; {quoted}"


def _axis(text: str, name: str) -> float:
    """The number behind the last label `<name> Score (1-5):`."""
    label = (
        rf"(?<![^\W_]){name}[\s*_`]+score{_GAP}"
        rf"(?:1\s*[-–—]\s*5\s*\))?{_GAP}[:=]"  # noqa: RUF001
    )
    labels = list(re.finditer(label, text, re.IGNORECASE))
    if not labels:
        raise _Absent(f"there is no {name} score")
    found = _NUMBER.match(text, labels[-1].end())
    if not found:
        raise _Absent(f"the {name} score is no number")
    return _within(float(found[1].replace(",", ".")), f"the {name} score", 1, 5)


def _object(text: str, *keys: str) -> dict[str, Any]:
    """The last JSON object in the text that has all of the keys."""
    decoder = json.JSONDecoder()
    for start in reversed([found.start() for found in re.finditer("{", text)]):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        named = {key.strip().lower(): value for key, value in found.items()}
        if set(keys) <= set(named):
            return named
    raise _Absent(f"there is no JSON object with {', '.join(keys)}")


def _field(found: dict[str, Any], key: str, low: int, high: int) -> float:
    value = found[key]
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value.replace(",", ".") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        raise _Unreadable(f"{key} is no number") from None
    return _within(number, key, low, high)


def _within(value: float, what: str, low: int, high: int) -> float:
    if not math.isfinite(value):
        raise _OutOfRange(f"{what} is not finite")
    if not low - DUST <= value <= high + DUST:
        raise _OutOfRange(f"{what} is {value:g}, not {low} to {high}")
    return float(min(max(value, low), high))
