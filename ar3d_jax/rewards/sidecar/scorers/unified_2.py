"""UnifiedReward 2.0: quality and alignment of each view, the best view counts.

One request per view, with the view and the pointwise prompt the model was trained on.
A view whose answer cannot be read is left out; if none can, the score is missing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

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

Reader = Callable[[read.Answer], Verdict]


class ViewByView:
    """A `Judge` that sees one view at a time, and reads one answer for all roles."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        """`readers`: by role."""
        self._readers = dict(readers)

    def questions(self, subject: Subject) -> list[chat.Question]:
        """One of each view."""
        text = chat.write("unified", subject.prompt)
        return [chat.Question(text, view[None]) for view in subject.views]

    def verdicts(
        self,
        subject: Subject,
        answers: Sequence[read.Answer],
        leave_out: chat.LeaveOut,
    ) -> Verdicts:
        """Of each role the best view's number; B.2.2 of the paper, equation 3."""
        return {
            role: best((self._readers[role](answer) for answer in answers), leave_out)
            for role in subject.roles
        }


def best(verdicts: Iterable[Verdict], leave_out: chat.LeaveOut) -> Verdict:
    """The largest number there is; where there is none, the first one's reason.

    `leave_out` is told every reason.
    """
    found = list(verdicts)
    numbers = [number for number, reason in found if reason is None]
    reasons = [reason for _, reason in found if reason is not None]
    for reason in reasons:
        leave_out(reason)
    return (max(numbers), None) if numbers else (math.nan, reasons[0])


def load(config: RewardsConfig) -> Scorer | Correspondent:
    """UnifiedReward 2.0.

    Raises:
        UserError: its weights are missing or do not fit; its endpoints do not answer.
    """
    readers = {"alignment": read.alignment, "quality": read.quality}
    return chat.load("unified_2", ViewByView(readers), config)
