"""Objects on their way through drawing and scoring, and what came of them.

`client.py` makes tickets for the trainer, `courier.py` carries their items.
"""

import dataclasses
import enum
import threading

import numpy as np


class State(enum.Enum):
    """Where an object is: without a slot, in one (see `wire.py`), or done."""

    WAITING = "waiting for a free slot"
    FILLED = "waiting for a render worker"
    DRAWING = "being drawn"
    DRAWN = "waiting for the sidecar"
    SCORING = "being scored"
    SETTLED = "settled"


class Ticket:
    """The objects of one `submit`. Only the courier's thread changes it.

    Attributes:
        roles: What each object is scored for.
        deadline: In `time.monotonic` seconds.
        scores: Role -> float32 [N]; NaN until, and unless, there is a number.
        reasons: Role -> N texts: why there will be no number; None where there is one.
        views: uint8 [N, V, H, W, 3], or None where nobody asked to keep them.
        draw_s: Seconds that workers spent on its objects, all together.
        score_s: Seconds that the sidecar spent on them.
        unsettled: Objects that are still on their way.
        done: Set when there are none, or when there will be no more scores.
    """

    def __init__(
        self,
        roles: tuple[str, ...],
        count: int,
        deadline: float,
        views: np.ndarray | None,
    ) -> None:
        """A ticket for `count` objects; `views` is filled with their pictures."""
        self.roles, self.deadline, self.views = roles, deadline, views
        self.scores = {role: np.full(count, np.nan, np.float32) for role in roles}
        self.reasons: dict[str, list[str | None]] = {r: [None] * count for r in roles}
        self.draw_s = self.score_s = 0.0
        self.unsettled = count
        self.done = threading.Event()
        if not count:
            self.done.set()


@dataclasses.dataclass(eq=False)
class Item:
    """One object of a ticket.

    Attributes:
        ticket: Whose it is.
        index: Its place there.
        logits: float32 [R, R, R].
        prompt: What it should be.
        state: Where it is.
        slot: In the ring, from `FILLED` on.
        sequence: The number of that filling.
        deaths: Children that died while they were working on it.
    """

    ticket: Ticket
    index: int
    logits: np.ndarray
    prompt: str
    state: State = State.WAITING
    slot: int = -1
    sequence: int = -1
    deaths: int = 0
