"""All scorers at work: each object to every scorer that is asked of it, side by side.

A scorer in this process has a desk: a queue, a thread, and batches of what is waiting.
A correspondent asks elsewhere and keeps many objects under way. A slow one holds up
nobody else's answers. A failure stays inside its scorer, and none is waited for longer
than the deadline.

Who asks is `server.py`, for this machine's trainer, or `serving.py`, for others'.
"""

import asyncio
import collections
import contextlib
import dataclasses
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ar3d_jax.config import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import scorers
from ar3d_jax.rewards.sidecar.scorers import Subject, Verdicts

# On the wire NaN, which JSON has not, is null.
JsonVerdicts = dict[str, tuple[float | None, str | None]]
Tell = Callable[[JsonVerdicts], None]

TOO_LATE = "no answer by the deadline"
STUCK_S = 60.0  # after the deadline; a thread that then still computes never ends


class Desk:
    """A scorer's queue: whatever waits is scored in batches, in one thread.

    With a `turn`, models share a device: only the desk that has the turn keeps its
    model there, until its queue is empty.
    """

    def __init__(self, scorer: scorers.Scorer, turn: asyncio.Lock | None) -> None:
        """Starts nothing."""
        self.about = scorer.about
        self._scorer, self._turn = scorer, turn
        self._thread = ThreadPoolExecutor(1, type(scorer).__name__)
        self._queue: collections.deque[tuple[Subject, asyncio.Future[Verdicts]]] = (
            collections.deque()
        )
        self._work: asyncio.Task[None] | None = None
        self._batches = 0

    async def ask(self, subject: Subject, deadline: float) -> Verdicts:
        """The object's verdicts; it may be scored after the deadline, for nobody."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.append((subject, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._empty())
        try:
            return await answer
        except asyncio.CancelledError:
            loop, running = asyncio.get_running_loop(), self._batches
            loop.call_later(STUCK_S, self._end_if_stuck, running)
            raise

    async def _empty(self) -> None:
        """Scores until nothing waits."""
        async with self._turn or contextlib.nullcontext():
            await self._in_thread(self._scorer.wake)
            while self._queue:
                batch = []
                while self._queue and len(batch) < self._scorer.batch:
                    subject, answer = self._queue.popleft()
                    if not answer.cancelled():
                        batch.append((subject, answer))
                if batch:
                    await self._score(batch)
            if self._turn:
                await self._in_thread(self._scorer.rest)

    async def _in_thread(self, function: Callable[..., Any], *of: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, function, *of
        )

    async def _score(self, batch: list[tuple[Subject, asyncio.Future]]) -> None:
        self._batches += 1
        try:
            subjects = [subject for subject, _ in batch]
            found = await self._in_thread(self._scorer.score, subjects)
            pairs = list(zip(batch, found, strict=True))
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        finally:
            self._batches += 1
        for (_, answer), verdicts in pairs:
            if not answer.done():
                answer.set_result(verdicts)

    def _end_if_stuck(self, batch: int) -> None:
        """A thread cannot be ended, a process can: who started it starts another."""
        if batch % 2 and self._batches == batch:
            print(
                f"{self.about.model}: one batch takes {STUCK_S:.0f} s more than the "
                "deadline; ending the process",
                file=sys.stderr,
                flush=True,
            )
            os._exit(70)

    async def close(self) -> None:
        """Waits for the batch under way, then closes the scorer."""
        self._queue.clear()
        if self._work:
            await self._work
        self._thread.shutdown()
        self._scorer.close()


class Panel:
    """The scorers of a config, ready to be asked."""

    def __init__(self, config: RewardsConfig) -> None:
        """Loads them.

        Raises:
            UserError: one cannot be loaded, or is nowhere; PyTorch is missing.
        """
        config.check_places()
        turn = asyncio.Lock() if config.residency == "turns" else None
        self._seats: dict[
            str, tuple[Desk | scorers.Correspondent, tuple[str, ...]]
        ] = {}
        for name, roles in config.loaded().items():
            try:
                scorer = scorers.load(name, config)
            except ModuleNotFoundError as error:
                if error.name != "torch":
                    raise
                raise UserError(
                    "scorers need PyTorch, which is not installed: pip install torch"
                ) from error
            if isinstance(scorer, scorers.Scorer):
                scorer = Desk(scorer, turn)
            self._seats[name] = scorer, roles

    @property
    def about(self) -> dict[str, dict[str, object]]:
        """Scorer -> its roles, model, revision and place."""
        return {
            name: {"roles": roles, **dataclasses.asdict(seat.about)}
            for name, (seat, roles) in self._seats.items()
        }

    async def judge(self, subject: Subject, deadline: float, tell: Tell) -> None:
        """Has `subject` scored for its roles; `tell` gets each scorer's when they come.

        Every role is told once, at the latest soon after `deadline`, in
        `time.monotonic` seconds.
        """
        async with asyncio.TaskGroup() as group:
            asked: set[str] = set()
            for seat, fills in self._seats.values():
                own = tuple(role for role in subject.roles if role in fills)
                asked |= set(own)
                if own:
                    part = dataclasses.replace(subject, roles=own)
                    group.create_task(_one(seat, part, deadline, tell))
            if strange := set(subject.roles) - asked:
                reason = "no scorer is loaded that fills this role"
                tell(dict.fromkeys(sorted(strange), (None, reason)))

    async def close(self) -> None:
        """Closes all scorers."""
        for seat, _ in self._seats.values():
            await seat.close()


async def _one(
    seat: Desk | scorers.Correspondent, subject: Subject, deadline: float, tell: Tell
) -> None:
    """One scorer's verdicts of one object, or why there are none."""
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            found = await seat.ask(subject, deadline)
        tell({role: _checked(found, role) for role in subject.roles})
    except TimeoutError:
        tell(dict.fromkeys(subject.roles, (None, TOO_LATE)))
    except Exception as error:
        traceback.print_exception(error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        tell(dict.fromkeys(subject.roles, (None, reason)))


def _checked(
    found: Mapping[str, scorers.Verdict], role: str
) -> tuple[float | None, str | None]:
    if role not in found:
        return None, "the scorer gave no answer for this role"
    value, reason = found[role]
    if math.isfinite(value):
        return float(value), None
    return None, reason or f"the scorer answered {value}"
