"""Qwen2.5-VL: all views together, one question per role, answered in JSON.

The paper publishes no prompts for it; those in `../prompts/` are ours.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ar3d_jax.config import RewardsConfig
from ar3d_jax.rewards.sidecar import answers as read
from ar3d_jax.rewards.sidecar import chat
from ar3d_jax.rewards.sidecar.scorers import (
    Correspondent,
    Scorer,
    Subject,
    Verdict,
    Verdicts,
)


def _schema(**fields: dict[str, Any]) -> dict[str, Any]:
    """Of an object with exactly these fields."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


# Without its range: not every server can hold a model to that. `answers.py` looks.
_NUMBER = {"type": "number"}


class Role(NamedTuple):
    """How a role is asked, and how its answer is read."""

    prompt: str
    schema: dict[str, Any]
    reader: Callable[[read.Answer], Verdict]


ROLES = {
    "category": Role(
        "qwen_category",
        _schema(match={"type": "integer", "enum": [0, 1]}),
        read.category,
    ),
    "consistency": Role(
        "qwen_consistency",
        _schema(color=_NUMBER, material=_NUMBER, texture=_NUMBER),
        read.consistency,
    ),
    "consistency_shape": Role(
        "qwen_consistency_shape",
        _schema(outline=_NUMBER, appearance=_NUMBER, parts=_NUMBER),
        read.consistency_shape,
    ),
    "align_lmm": Role("qwen_align", _schema(alignment=_NUMBER), read.align_lmm),
}


class AllViews:
    """A `Judge` that sees all views at once."""

    def questions(self, subject: Subject) -> list[chat.Question]:
        """One of each role."""
        roles = [ROLES[role] for role in subject.roles]
        return [
            chat.Question(chat.write(r.prompt, subject.prompt), subject.views, r.schema)
            for r in roles
        ]

    def verdicts(
        self,
        subject: Subject,
        answers: Sequence[read.Answer],
        leave_out: chat.LeaveOut,
    ) -> Verdicts:
        """Each answer's number; one answer is of all views, and none is left out."""
        pairs = zip(subject.roles, answers, strict=True)
        return {role: ROLES[role].reader(answer) for role, answer in pairs}


def load(config: RewardsConfig) -> Scorer | Correspondent:
    """Qwen2.5-VL.

    Raises:
        UserError: its weights are missing or do not fit; its endpoints do not answer.
    """
    return chat.load("qwen_vl", AllViews(), config)
