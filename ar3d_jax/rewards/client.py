"""Objects in, scores out: what the trainer sees of drawing and scoring.

`Scoring` starts the render workers and the sidecar and keeps them alive. A thread of
its own moves objects through the ring (the slot's life is in `wire.py`), so that
drawing and scoring go on while the trainer computes. A score depends on the object and
its prompt alone: a child that dies is replaced, its unfinished objects are sent again,
and the numbers come out the same. What cannot be scored is NaN with a reason.

Mechanics of one process are in `child.py`. What a missing score means for training is
`config.rewards.on_failure`, the trainer's; what scores add up to is `ensemble.py`.
"""

import collections
import dataclasses
import enum
import os
import pathlib
import selectors
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.config import RenderConfig, RewardsConfig, to_dict
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.child import STOP_S, Child

AHEAD = 2  # requests per child: one under way, one so that it never waits
DEATHS = 2  # an object under which this many children died is not sent again
FAILED_STARTS = 3  # in a row: then the run ends
PROMPT_CHARACTERS = 1 << 16  # fits a message however it is escaped


class State(enum.Enum):
    """Where an object is: without a slot, in one (see `wire.py`), or done."""

    WAITING = "waiting for a free slot"
    FILLED = "waiting for a render worker"
    DRAWING = "being drawn"
    DRAWN = "waiting for the sidecar"
    SCORING = "being scored"
    SETTLED = "settled"


class Ticket:
    """What `submit` gives and `collect` takes: the objects of one call.

    Attributes:
        draw_s: seconds that workers spent on its objects, all together.
        score_s: seconds that the sidecar spent on them.
    """

    def __init__(
        self,
        roles: tuple[str, ...],
        count: int,
        views: np.ndarray | None,
        deadline: float,
    ) -> None:
        """Scores start as missing; `views`, if given, is filled with the pictures."""
        self.draw_s = self.score_s = 0.0
        self._roles, self._views, self._deadline = roles, views, deadline
        self._unsettled = count
        self._done = threading.Event()
        if not count:
            self._done.set()
        self._scores = {role: np.full(count, np.nan, np.float32) for role in roles}
        self._reasons: dict[str, list[str | None]] = {r: [None] * count for r in roles}


@dataclasses.dataclass(eq=False)
class _Object:
    ticket: Ticket
    index: int  # in the ticket
    logits: np.ndarray
    prompt: str
    state: State = State.WAITING
    slot: int = -1
    sequence: int = -1
    deaths: int = 0  # of children that were working on it


class Scoring:
    """The render workers and the sidecar of one trainer; use it in a `with` block.

    Attributes:
        restarts: children started again so far.
    """

    # Tests and benchmarks put stand-ins here.
    worker_module = "ar3d_jax.render.workers"
    sidecar_module = "ar3d_jax.rewards.sidecar"

    def __init__(
        self,
        render: RenderConfig,
        rewards: RewardsConfig | None,
        resolution: int,
        slots: int,
        log_dir: pathlib.Path | str,
    ) -> None:
        """Takes the ring's memory; entering the block starts the processes.

        `rewards=None` only draws. `slots` bounds the memory, not the objects: more of
        them wait for a free slot.

        Raises:
            UserError: not enough memory for the ring.
        """
        self.restarts = 0
        self._rewards = rewards
        config = rewards or RewardsConfig()
        self._deadline_s = config.deadline_s
        self._ring = wire.Ring.create(
            wire.Layout(slots, resolution, render.views, render.size, config.points)
        )
        logs = pathlib.Path(log_dir)
        logs.mkdir(parents=True, exist_ok=True)
        self._workers = [
            Child(
                f"render worker {index}",
                self.worker_module,
                to_dict(render),
                self._ring,
                logs / "render.log",
            )
            for index in range(render.workers)
        ]
        self._sidecar: Child | None = None
        if rewards and rewards.roles("coarse") + rewards.roles("refined"):
            self._sidecar = Child(
                "sidecar",
                self.sidecar_module,
                to_dict(rewards),
                self._ring,
                logs / "sidecar.log",
            )
        self._children = self._workers + ([self._sidecar] if self._sidecar else [])

        # Between the threads: `_wake` makes the loop look at `_inbox` and `_closing`,
        # `_error` says why it has ended.
        self._lock = threading.Lock()  # of `_inbox` and `_error`
        self._inbox: list[_Object] = []
        self._error: BaseException | None = None
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._started = threading.Event()
        # The loop's own.
        self._selector = selectors.DefaultSelector()
        self._tickets: list[Ticket] = []
        self._objects: list[_Object] = []  # unsettled ones, in order
        self._free = collections.deque(range(slots))
        self._sequence = 0
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def __enter__(self) -> "Scoring":
        """Starts the processes and waits until all are ready.

        Raises:
            UserError: one does not start, in its own words.
        """
        self._thread.start()
        self._started.wait()
        if self._error:
            self._thread.join()
            self._release()
            raise self._error
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the processes. Tickets that are not done are lost."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._release()

    @property
    def processes(self) -> dict[str, dict[str, Any]]:
        """What each child said of itself when it was ready: pid, imported, version."""
        return {child.name: child.hello or {} for child in self._children}

    # --- called by the trainer --------------------------------------------------------

    def submit(
        self,
        logits: Float[np.ndarray, "N R R R"],
        prompts: Sequence[str],
        step: Literal["coarse", "refined"],
        *,
        keep_views: bool = False,
    ) -> Ticket:
        """Hands over N objects to be drawn and scored; returns after copying them.

        Scored are the roles of `step` that have a weight. `keep_views` keeps the
        pictures for `views`.

        Raises:
            UserError: a prompt is too long for a message, or a child failed for good.
        """
        own = np.array(logits, np.float32)  # the caller may donate or change its array
        layout, count = self._ring.layout, len(own)
        if own.shape[1:] != (layout.resolution,) * 3 or count != len(prompts):
            raise ValueError(
                f"logits of shape {own.shape} and {len(prompts)} prompts; expected "
                f"[N, R, R, R] with R = {layout.resolution} and N prompts"
            )
        longest = max(map(len, prompts), default=0)
        if longest > PROMPT_CHARACTERS:
            raise UserError(
                f"a prompt has {longest} characters; {PROMPT_CHARACTERS} at most"
            )
        shape = (count, layout.views, layout.size, layout.size, 3)
        views = np.empty(shape, np.uint8) if keep_views else None
        roles = self._rewards.roles(step) if self._rewards else ()
        ticket = Ticket(roles, count, views, time.monotonic() + self._deadline_s)
        with self._lock:
            if self._error:
                raise self._error
            self._inbox += [
                _Object(ticket, index, grid, prompt)
                for index, (grid, prompt) in enumerate(zip(own, prompts, strict=True))
            ]
        os.eventfd_write(self._wake, 1)
        return ticket

    def collect(
        self, ticket: Ticket
    ) -> tuple[dict[str, np.ndarray], dict[str, list[str | None]]]:
        """Waits for the ticket: (scores, reasons), both by role and then by object.

        A score is float32, NaN where it is missing; there, and only there, the reason
        is a text.

        Raises:
            UserError: a child failed for good.
            RuntimeError: the block ended before the ticket was done.
        """
        ticket._done.wait()
        if ticket._unsettled:
            assert self._error
            raise self._error
        return ticket._scores, ticket._reasons

    def views(self, ticket: Ticket) -> UInt8[np.ndarray, "N V H W 3"]:
        """Waits for the ticket: its pictures; white where drawing failed.

        Raises:
            ValueError: it was submitted without `keep_views`.
        """
        if ticket._views is None:
            raise ValueError("the views were not kept: submit(..., keep_views=True)")
        self.collect(ticket)
        return ticket._views

    # --- the thread -------------------------------------------------------------------

    def _run(self) -> None:
        """Moves objects until the block ends or a child fails for good.

        All children start here: the kernel ends a child with the *thread* that started
        it (see `wire.run_child`), and this one lives as long as they should.
        """
        try:
            self._selector.register(self._wake, selectors.EVENT_READ)
            for child in self._children:
                self._start(child)
            while not self._closing:
                self._advance()
                for key, _ in self._selector.select(self._idle_s()):
                    if key.data is None:
                        os.eventfd_read(self._wake)
                    else:
                        self._listen(key.data)
                self._expire()
            self._end(RuntimeError("the scoring block has ended"))
        except BaseException as error:
            self._end(error)

    def _start(self, child: Child) -> None:
        child.start()
        self._selector.register(child.channel, selectors.EVENT_READ, child)

    def _end(self, error: BaseException) -> None:
        """Ends the children; whoever still waits is told `error`."""
        with self._lock:
            self._error = error
            waiting = self._tickets + [item.ticket for item in self._inbox]
        try:
            started = [child for child in self._children if child.deadline]
            for child in started:
                child.channel.close()  # all see the end of their stream at once
            for child in started:
                child.end(grace_s=STOP_S if self._closing else 0.0)
        finally:
            for ticket in waiting:
                ticket._done.set()
            self._started.set()

    def _release(self) -> None:
        self._selector.close()
        self._ring.close()
        os.close(self._wake)

    def _idle_s(self) -> float | None:
        """Seconds until a deadline, or None: nothing to wait for but messages."""
        times = [ticket._deadline for ticket in self._tickets]
        times += [child.deadline for child in self._children if child.hello is None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _advance(self) -> None:
        """Takes each object as far as free slots and idle children allow."""
        with self._lock:
            new, self._inbox = self._inbox, []
        self._objects += new
        self._tickets += dict.fromkeys(item.ticket for item in new)
        sidecar = [self._sidecar] if self._sidecar else []
        for item in list(self._objects):
            if item.state is State.WAITING:
                if not self._free:
                    break  # all behind it are waiting, too
                self._fill(item)
            if item.state is State.FILLED:
                self._ask(item, self._workers, State.DRAWING)
            elif item.state is State.DRAWN:
                self._ask(item, sidecar, State.SCORING)

    def _fill(self, item: _Object) -> None:
        item.slot, item.state = self._free.popleft(), State.FILLED
        self._sequence += 1
        item.sequence = self._sequence
        self._ring.sequence[item.slot] = item.sequence
        self._ring.logits[item.slot] = item.logits

    def _ask(self, item: _Object, children: list[Child], state: State) -> None:
        """Sends the item to the least busy of `children`, if one has room."""
        ready = [child for child in children if child.hello]
        child = min(ready, key=lambda child: len(child.outstanding), default=None)
        if child is None or len(child.outstanding) >= AHEAD:
            return
        request: dict[str, Any] = {"draw": item.slot, "sequence": item.sequence}
        if state is State.SCORING:
            request = {"score": item.slot, "sequence": item.sequence}
            request |= {"prompt": item.prompt, "roles": item.ticket._roles}
        try:
            child.channel.send(request)
        except OSError as error:
            self._replace(child, f"cannot be reached ({error})")
        else:
            item.state = state
            child.outstanding.append(item)

    def _listen(self, child: Child) -> None:
        """Reads what a child says; its end, or nonsense, is its death."""
        try:
            messages = child.channel.receive()
        except ValueError as error:
            self._replace(child, f"sent what is no message ({error})")
            return
        if messages is None:
            self._replace(child, "died")
            return
        for message in messages:
            if not self._understand(child, message):
                self._replace(child, f"sent what was not asked ({message})")
                return

    def _understand(self, child: Child, message: dict[str, Any]) -> bool:
        """Acts on a message; False if it is none that this child may send now.

        Raises:
            UserError: the child cannot work, in its own words, or is another version.
        """
        match message:
            case {"failed": line}:
                raise UserError(f"the {child.name} does not start: {line}")
            case {"hello": {"version": version} as hello}:
                if version != wire.VERSION:
                    raise UserError(
                        f"the {child.name} speaks version {version} of the wire, the "
                        f"trainer {wire.VERSION}: both must be the same ar3d_jax"
                    )
                child.hello = hello
                if all(child.hello for child in self._children):
                    self._started.set()
                return True
            case {"drawn": slot, "sequence": sequence}:
                asked, act = child in self._workers, self._drawn
            case {"scored": slot, "sequence": sequence}:
                asked, act = child is self._sidecar, self._scored
            case _:
                return False
        item = child.outstanding[0] if child.outstanding else None
        if not asked or item is None or (slot, sequence) != (item.slot, item.sequence):
            return False
        child.outstanding.popleft()
        child.failed_starts = 0
        act(item, message)
        return True

    def _drawn(self, item: _Object, message: dict[str, Any]) -> None:
        item.ticket.draw_s += message["seconds"]
        if message["error"]:
            self._settle(item, f"drawing failed: {message['error']}")
            return
        item.state = State.DRAWN
        if item.ticket._views is not None:
            item.ticket._views[item.index] = self._ring.views[item.slot]
        if not item.ticket._roles:
            self._settle(item)

    def _scored(self, item: _Object, message: dict[str, Any]) -> None:
        ticket = item.ticket
        ticket.score_s += message["seconds"]
        for role in ticket._roles:
            value, reason = message["scores"][role]
            if value is None:
                ticket._reasons[role][item.index] = reason
            else:
                ticket._scores[role][item.index] = value
        self._settle(item)

    def _settle(self, item: _Object, failure: str | None = None) -> None:
        """Ends an object; `failure` is then the reason for each score it lacks."""
        ticket = item.ticket
        if failure:
            for role in ticket._roles:
                ticket._reasons[role][item.index] = failure
            drawn = item.state in (State.DRAWN, State.SCORING)
            if ticket._views is not None and not drawn:
                ticket._views[item.index] = 255
        if item.slot >= 0:
            self._free.append(item.slot)
        item.state = State.SETTLED
        self._objects.remove(item)
        ticket._unsettled -= 1
        if not ticket._unsettled:
            self._tickets.remove(ticket)
            ticket._done.set()

    # --- deaths and deadlines ---------------------------------------------------------

    def _replace(self, child: Child, how: str, *, blame: bool = True) -> None:
        """Ends a child, if it has not ended by itself, and starts it again.

        What it was asked is asked again, of its successor or of another worker; the
        object that it was working on (to `blame` for the death) at most `DEATHS` times.

        Raises:
            UserError: it never gets ready.
        """
        self._selector.unregister(child.channel)
        starting = child.hello is None  # then it may be writing its last words
        ended = child.end(grace_s=STOP_S if starting else 0.0)
        items, child.outstanding = child.outstanding, collections.deque()
        for item in items:
            item.state = State.FILLED if child in self._workers else State.DRAWN
        if items and blame:
            items[0].deaths += 1
            if items[0].deaths >= DEATHS:
                self._settle(items[0], f"a {child.name} {how} twice ({ended})")
        child.failed_starts += starting
        if starting and (
            not self._started.is_set() or child.failed_starts >= FAILED_STARTS
        ):
            raise UserError(
                f"the {child.name} {how} before it was ready ({ended}); last line of "
                f"{child.log}: {child.last_words() or '(empty)'}"
            )
        self.restarts += 1
        self._start(child)

    def _expire(self) -> None:
        """Gives up what is past its deadline; who holds it hangs, and is replaced."""
        now = time.monotonic()
        late = {
            item: f"{item.state.value} at the deadline, {self._deadline_s:g} s"
            for item in self._objects
            if item.ticket._deadline <= now
        }
        for child in self._children:
            if any(item in late for item in child.outstanding):
                # Only from a dead process may slots be taken back.
                child.outstanding = collections.deque(
                    item for item in child.outstanding if item not in late
                )
                self._replace(child, "hung", blame=False)
            elif child.hello is None and child.deadline <= now:
                self._replace(child, "did not get ready in time")
        for item, reason in late.items():
            self._settle(item, reason)
