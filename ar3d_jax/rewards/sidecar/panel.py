"""All scorers at work: each object to every scorer that is asked of it, side by side.

A scorer in this process has a desk: a queue, a thread, and batches of what is waiting.
A correspondent asks elsewhere and keeps many objects under way. A slow one holds up
nobody else's answers. A failure stays inside its scorer and its object, and none is
waited for longer than the deadline.

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
Begin = Callable[[tuple[str, ...]], None]

TOO_LATE = "no answer by the deadline"
GRACE_S = 0.5  # after the deadline, for a correspondent to say what it has
STUCK_S = 60.0  # after the deadline; a thread that then still computes never ends


@dataclasses.dataclass(eq=False)
class _Waiting:
    """An object in a desk's queue."""

    subject: Subject
    begin: Begin
    answer: asyncio.Future[Verdicts]


class Desk:
    """A scorer's queue: whatever waits is scored in batches, in one thread.

    With a `turn`, models share a device: only the desk that has the turn keeps its
    model there, until its queue is empty.
    """

    def __init__(self, scorer: scorers.Scorer, turn: asyncio.Lock | None) -> None:
        """Takes a scorer that is awake; with a `turn` it rests until it has work."""
        self.about = scorer.about
        self._scorer, self._turn = scorer, turn
        self._thread = ThreadPoolExecutor(1, type(scorer).__name__)
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._work: asyncio.Task[None] | None = None
        self._moves = 0  # odd while the thread computes
        if turn:
            scorer.rest()

    async def ask(self, subject: Subject, deadline: float, begin: Begin) -> Verdicts:
        """The object's verdicts; it may be scored after the deadline, for nobody.

        `begin` is told its roles when it is taken in hand.

        Raises:
            TimeoutError: the deadline has come first.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(subject, begin, loop.create_future())
        self._queue.append(waiting)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._empty())
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await waiting.answer
        except TimeoutError:
            loop.call_later(STUCK_S, self._end_if_stuck, self._moves)
            raise

    async def _empty(self) -> None:
        """Scores until nothing waits."""
        try:
            async with self._turn or contextlib.nullcontext():
                await self._in_thread(self._scorer.wake)
                while self._queue:
                    await self._score_some()
                if self._turn:
                    await self._in_thread(self._scorer.rest)
        except Exception as error:  # it cannot come to its device
            queue, self._queue = self._queue, collections.deque()
            reason = _told(error)
            for waiting in queue:
                _answer_missing(waiting, reason)

    async def _in_thread(self, function: Callable[..., Any], *of: object) -> Any:
        self._moves += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, function, *of
            )
        finally:
            self._moves += 1

    async def _score_some(self) -> None:
        """The next batch; where it fails, its objects one by one."""
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._scorer.batch:
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                waiting.begin(waiting.subject.roles)
                batch.append(waiting)
        try:
            await self._score(batch)
        except Exception as error:
            reason = _told(error)
            if len(batch) == 1:
                _answer_missing(batch[0], reason)
                return
            for waiting in batch:
                try:
                    await self._score([waiting])
                except Exception as own:
                    _answer_missing(waiting, _in_a_line(own))

    async def _score(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        subjects = [waiting.subject for waiting in batch]
        found = await self._in_thread(self._scorer.score, subjects)
        for waiting, verdicts in zip(batch, found, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(verdicts)

    def _end_if_stuck(self, moves: int) -> None:
        """A thread cannot be ended, a process can: who started it starts another."""
        if moves % 2 and self._moves == moves:
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


def _told(error: Exception) -> str:
    """The error in a line, after its traceback went to the log."""
    traceback.print_exception(error)
    return _in_a_line(error)


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _answer_missing(waiting: _Waiting, reason: str) -> None:
    if not waiting.answer.done():
        verdict: scorers.Verdict = (math.nan, reason)
        waiting.answer.set_result(dict.fromkeys(waiting.subject.roles, verdict))


class Panel:
    """The scorers of a config, ready to be asked."""

    def __init__(self, config: RewardsConfig) -> None:
        """Loads them.

        Raises:
            UserError: one cannot be loaded, or is nowhere; PyTorch is missing.
        """
        config.check_places()
        turns: dict[str, asyncio.Lock] = {}  # by device
        self._statistics: dict[str, scorers.Counts] = {}
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
            if isinstance(scorer, scorers.Counting):
                self._statistics[name] = scorer.statistics
            if isinstance(scorer, scorers.Scorer):
                place, turn = scorer.about.place, None
                if config.residency == "turns" and place != "cpu":
                    turn = turns.setdefault(place, asyncio.Lock())
                scorer = Desk(scorer, turn)
            self._seats[name] = scorer, roles

    @property
    def about(self) -> dict[str, dict[str, Any]]:
        """Scorer -> its roles, model, revision and place; also of those elsewhere."""
        found: dict[str, dict[str, Any]] = {}
        for name, (seat, roles) in self._seats.items():
            if isinstance(seat, scorers.Relay):
                found |= seat.members
            else:
                found[name] = {"roles": roles, **dataclasses.asdict(seat.about)}
        return found

    @property
    def counters(self) -> dict[str, float]:
        """What has happened so far, of the scorers that count: `<scorer>/<kind>`."""
        return {
            f"{name}/{kind}": count
            for name, statistics in self._statistics.items()
            for kind, count in statistics.line().items()
        }

    async def judge(
        self,
        subject: Subject,
        deadline: float,
        tell: Tell,
        begin: Begin = lambda roles: None,
    ) -> None:
        """Has `subject` scored for its roles; `tell` gets each scorer's when they come.

        Every role is told once, at the latest soon after `deadline`, in
        `time.monotonic` seconds. `begin` gets the roles that a scorer of this process
        takes in hand, before it does.
        """
        async with asyncio.TaskGroup() as group:
            asked: set[str] = set()
            for seat, fills in self._seats.values():
                own = tuple(role for role in subject.roles if role in fills)
                asked |= set(own)
                if own:
                    part = dataclasses.replace(subject, roles=own)
                    group.create_task(_one(seat, part, deadline, tell, begin))
            if strange := set(subject.roles) - asked:
                reason = "no scorer is loaded that fills this role"
                tell(dict.fromkeys(sorted(strange), (None, reason)))

    async def close(self) -> None:
        """Closes all scorers, also where one of them cannot."""
        for seat, _ in self._seats.values():
            try:
                await seat.close()
            except Exception:
                traceback.print_exc()


async def _one(
    seat: Desk | scorers.Correspondent,
    subject: Subject,
    deadline: float,
    tell: Tell,
    begin: Begin,
) -> None:
    """One scorer's verdicts of one object as they come, or why there are none."""
    told: set[str] = set()

    def pass_on(found: Mapping[str, scorers.Verdict]) -> None:
        fresh = {
            role: _checked(*found[role])
            for role in subject.roles
            if role in found and role not in told
        }
        told.update(fresh)
        if fresh:
            tell(fresh)

    reason = "the scorer gave no answer for this role"
    try:
        if isinstance(seat, Desk):
            pass_on(await seat.ask(subject, deadline, begin))
        else:
            patience = max(0.0, deadline - time.monotonic()) + GRACE_S
            async with asyncio.timeout(patience):
                pass_on(await seat.ask(subject, deadline, pass_on))
    except TimeoutError:
        reason = TOO_LATE
    except Exception as error:
        reason = _told(error)
    rest = [role for role in subject.roles if role not in told]
    if rest:
        tell(dict.fromkeys(rest, (None, reason)))


def _checked(value: float, reason: str | None) -> tuple[float | None, str | None]:
    if math.isfinite(value):
        return float(value), None
    return None, reason or f"the scorer answered {value}"
