"""Objects on their way through drawing and judging, and what came of them.

`client.py` and `measuring.py` make tickets for the trainer, each of its kind;
`courier.py` carries their items and knows no kind.
"""

import abc
import dataclasses
import enum
import pathlib
import threading
import time
from typing import Any

import numpy as np

from ar3d_jax.rewards import wire


class State(enum.Enum):
    """Where an object is: without a slot, in one (see `wire.py`), or done."""

    WAITING = "waiting for a free slot"
    FILLED = "waiting for a render worker"
    DRAWING = "being drawn"
    DRAWN = "waiting for the sidecar"
    SCORING = "being scored"
    SETTLED = "settled"


class Ticket(abc.ABC):
    """The objects of one `submit`. Only the courier's thread changes it.

    Attributes:
        asked: What the sidecar is asked of each object: roles, or feature sets.
        deadline: In `time.monotonic` seconds.
        views: uint8 [N, V, H, W, 3], or None where nobody asked to keep them.
        draw_s: Seconds that workers spent on its objects, all together.
        answer_s: Seconds between the sidecar's requests and its answers, together.
        notes: Of each object, what was passed over in its file.
        unsettled: Objects that are still on their way.
        done: Set when there are none, or when there will be no more answers.
    """

    def __init__(
        self,
        asked: tuple[str, ...],
        count: int,
        deadline: float,
        views: np.ndarray | None,
    ) -> None:
        """A ticket for `count` objects; `views` is filled with their pictures."""
        self.asked, self.deadline, self.views = asked, deadline, views
        self.draw_s = self.answer_s = 0.0
        self.notes: list[tuple[str, ...]] = [()] * count
        self.unsettled = count
        self.done = threading.Event()
        if not count:
            self.done.set()

    @abc.abstractmethod
    def question(self, item: "Item") -> dict[str, Any]:
        """The request to the sidecar, of an item that is drawn."""

    def keep_drawing(self, item: "Item", ring: wire.Ring) -> None:
        """Copies what is wanted of the item's slot, which was just drawn."""
        if self.views is not None:
            self.views[item.index] = ring.views[item.slot]

    @abc.abstractmethod
    def keep_answer(
        self, item: "Item", ring: wire.Ring, message: dict[str, Any]
    ) -> bool:
        """Copies what the sidecar answered; False: more answers follow."""

    def fail(self, item: "Item", reason: str) -> None:
        """Writes down that no answer will come; white views, unless it was drawn."""
        if self.views is not None and not item.drawn:
            self.views[item.index] = 255


class Scores(Ticket):
    """A ticket of `Scoring`.

    Attributes:
        scores: Role -> float32 [N]; NaN until, and unless, there is a number.
        reasons: Role -> N texts: why there will be no number; None where there is one.
        latencies: Role -> seconds from asking to answer, of those that were answered.
    """

    def __init__(
        self,
        asked: tuple[str, ...],
        count: int,
        deadline: float,
        views: np.ndarray | None,
    ) -> None:
        super().__init__(asked, count, deadline, views)
        self.scores = {role: np.full(count, np.nan, np.float32) for role in asked}
        self.reasons: dict[str, list[str | None]] = {r: [None] * count for r in asked}
        self.latencies: dict[str, list[float]] = {role: [] for role in asked}

    def _open(self, item: "Item") -> list[str]:
        """Roles that have no answer yet."""
        i = item.index
        return [
            role
            for role in self.asked
            if np.isnan(self.scores[role][i]) and self.reasons[role][i] is None
        ]

    def question(self, item: "Item") -> dict[str, Any]:
        """See `wire.py`; of an item that was asked before, what was not answered."""
        return {
            "score": item.slot,
            "sequence": item.sequence,
            "prompt": item.prompt,
            "roles": self._open(item),
            "patience": max(0.0, self.deadline - time.monotonic()),
        }

    def keep_answer(
        self, item: "Item", ring: wire.Ring, message: dict[str, Any]
    ) -> bool:
        """A number or a reason per role; one scorer's roles come together."""
        for role, (value, reason) in message["scores"].items():
            self.latencies[role].append(message["seconds"])
            if value is None:
                self.reasons[role][item.index] = reason or "the scorer gave no reason"
            else:
                self.scores[role][item.index] = value
        return not self._open(item)

    def fail(self, item: "Item", reason: str) -> None:
        """The roles without an answer are missing for that reason."""
        super().fail(item, reason)
        for role in self._open(item):
            self.reasons[role][item.index] = reason


@dataclasses.dataclass(frozen=True)
class MeshFile:
    """An object that a worker reads from a file: its path and its up axis, y or z."""

    path: pathlib.Path
    up: str


@dataclasses.dataclass(eq=False)
class Item:
    """One object of a ticket.

    Attributes:
        ticket: Whose it is.
        index: Its place there.
        thing: Logits, float32 [R, R, R], or a file.
        prompt: What it should be.
        state: Where it is.
        slot: In the ring, from `FILLED` on.
        sequence: The number of that filling.
        in_hand: Roles that the sidecar's process is scoring it for just now.
        deaths: Children that died while they may have been working on it.
    """

    ticket: Ticket
    index: int
    thing: np.ndarray | MeshFile
    prompt: str
    state: State = State.WAITING
    slot: int = -1
    sequence: int = -1
    in_hand: set[str] = dataclasses.field(default_factory=set)
    deaths: int = 0

    @property
    def drawn(self) -> bool:
        """Whether its pictures and points are in its slot."""
        return self.state in (State.DRAWN, State.SCORING)

    def drawing(self) -> dict[str, Any]:
        """The request to a worker: see `wire.py`."""
        request: dict[str, Any] = {"draw": self.slot, "sequence": self.sequence}
        if isinstance(self.thing, MeshFile):
            request |= {"mesh": str(self.thing.path), "up": self.thing.up}
        return request
