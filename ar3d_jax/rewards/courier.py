"""The thread that carries objects: ring -> render worker -> sidecar -> ticket.

One event loop over the children's sockets. It fills free slots, sends each object as
far as idle children allow, replaces children that die or hang, and sends their objects
again. The slot's life that it follows and the messages are in `wire.py`, one process's
mechanics in `child.py`; the trainer's sides are `client.py` and `measuring.py`.
"""

import collections
import os
import selectors
import threading
import time
from typing import Any

import numpy as np

from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.child import STOP_S, Child
from ar3d_jax.rewards.ticket import Item, State, Ticket

# Requests per worker: one under way, the other so that it never waits for the next. Not
# more: what one has queued, another that is done could have drawn. The sidecar gets
# all that there is: its scorers batch.
WORKER_AHEAD = 2
DEATHS = 2  # an object under which so many children died is not sent again
LATE_S = 5.0  # the sidecar itself answers by the deadline; so much later, it hangs
FAILED_STARTS = 3  # of one child in a row: then it is given up, and the run with it


class Courier:
    """Keeps the children alive and the objects moving.

    Attributes:
        restarts: Children started again so far.
        error: Why it has stopped, or None while it runs.
    """

    def __init__(
        self, ring: wire.Ring, workers: list[Child], sidecar: Child | None
    ) -> None:
        """Without a sidecar, objects are drawn only."""
        self.restarts = 0
        self.error: BaseException | None = None
        # Between the threads: `_wake` makes the loop look at `_inbox` and `_stopping`.
        self._lock = threading.Lock()  # of `_inbox` and `error`
        self._inbox: list[Item] = []
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ready = threading.Event()  # all children are, or it has stopped
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        # The loop's own.
        self._ring, self._workers = ring, workers
        self._sidecars = [sidecar] if sidecar else []
        self._children = [*workers, *self._sidecars]
        self._selector = selectors.DefaultSelector()
        self._tickets: list[Ticket] = []  # with unsettled items
        self._items: list[Item] = []  # unsettled ones, in order
        self._free = collections.deque(range(ring.layout.slots))
        self._sequence = 0

    # --- called by other threads ------------------------------------------------------

    def start(self) -> None:
        """Starts the children and waits until all are ready.

        Raises:
            UserError: one does not start, in its own words.
        """
        self._thread.start()
        self._ready.wait()
        if self.error:
            raise self.error

    def carry(self, items: list[Item]) -> None:
        """Takes over `items`; their tickets get the results.

        Raises:
            UserError: a child failed for good.
            RuntimeError: it was stopped.
        """
        with self._lock:
            if self.error:
                raise self.error
            self._inbox += items
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Ends the children, and waits for that."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._selector.close()
        os.close(self._wake)

    # --- the loop ---------------------------------------------------------------------

    def _run(self) -> None:
        """Moves objects until it is told to stop or a child fails for good.

        All children start here: the kernel ends a child with the *thread* that started
        it (see `wire.run_child`), and this one lives as long as they should.
        """
        try:
            self._selector.register(self._wake, selectors.EVENT_READ)
            for child in self._children:
                self._start(child)
            while not self._stopping:
                self._advance()
                for key, _ in self._selector.select(self._patience_s()):
                    if key.data is None:
                        os.eventfd_read(self._wake)
                    else:
                        self._listen(key.data)
                self._expire()
            self._finish(RuntimeError("scoring has ended"))
        except BaseException as error:
            self._finish(error)

    def _start(self, child: Child) -> None:
        child.start()
        self._selector.register(child.channel, selectors.EVENT_READ, child)

    def _finish(self, error: BaseException) -> None:
        """Ends the children; whoever waits from now on is told `error`."""
        with self._lock:
            self.error = error
            waiting = self._tickets + [item.ticket for item in self._inbox]
        try:
            started = [child for child in self._children if child.deadline]
            for child in started:
                child.channel.close()  # all see the end of their stream at once
            for child in started:
                child.end(grace_s=STOP_S if self._stopping else 0.0)
        finally:
            for ticket in waiting:
                ticket.done.set()
            self._ready.set()

    def _patience_s(self) -> float | None:
        """Seconds until a deadline, or None: nothing to wait for but messages."""
        times = [self._deadline_of(item) for item in self._items]
        times += [child.deadline for child in self._children if child.hello is None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _advance(self) -> None:
        """Takes each object as far as free slots and idle children allow."""
        with self._lock:
            new, self._inbox = self._inbox, []
        self._items += new
        self._tickets += dict.fromkeys(item.ticket for item in new)
        for item in self._items:
            if item.state is State.WAITING:
                if not self._free:
                    break  # all behind it are waiting, too
                self._fill(item)
            if item.state is State.FILLED:
                if self._ask(self._workers, WORKER_AHEAD, item, item.drawing()):
                    item.state = State.DRAWING
            elif item.state is State.DRAWN:
                request = item.ticket.question(item)
                if self._ask(self._sidecars, len(self._items), item, request):
                    item.state = State.SCORING
        for child in self._children:
            try:
                child.channel.flush()
            except ConnectionError:
                pass  # it died: `_listen` reads what it still said, and its end
            except OSError as error:
                self._replace(child, f"cannot be reached ({error})")

    def _fill(self, item: Item) -> None:
        item.slot, item.state = self._free.popleft(), State.FILLED
        self._sequence += 1
        item.sequence = self._sequence
        self._ring.sequence[item.slot] = item.sequence
        if isinstance(item.thing, np.ndarray):
            self._ring.logits[item.slot] = item.thing

    @staticmethod
    def _ask(
        children: list[Child], ahead: int, item: Item, request: dict[str, Any]
    ) -> bool:
        """Gives the request to the least busy child; False if none has room.

        What a child died of goes alone, so that the next death is nobody else's.
        """
        ready = [child for child in children if child.hello]
        child = min(ready, key=lambda child: len(child.outstanding), default=None)
        if child is None or len(child.outstanding) >= ahead:
            return False
        alone = item.deaths or any(other.deaths for other in child.outstanding)
        if alone and child.outstanding:
            return False
        child.channel.put(request)
        child.outstanding.append(item)
        return True

    # --- answers ----------------------------------------------------------------------

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
            try:
                understood = self._understand(child, message)
            except UserError:
                raise
            except (LookupError, TypeError, AttributeError, ValueError):
                understood = False  # a field is missing, or something else
            if not understood:
                said = ascii(message)[:200]
                self._replace(child, f"sent what was not asked ({said})")
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
                    self._ready.set()
                return True
            case {"about": about} if child in self._sidecars:
                child.about = about
                return True
            case {"counters": counters} if child in self._sidecars:
                child.counters = counters
                return True
            case {"begun": slot, "sequence": sequence, "roles": roles}:
                item = self._under_way(child, slot, sequence)
                if item is None or child not in self._sidecars:
                    return False
                item.in_hand |= set(roles)
                return True
            case {"drawn": slot, "sequence": sequence}:
                expected, act = self._workers, self._drawn
            case {"scored": slot, "sequence": sequence} | {
                "measured": slot,
                "sequence": sequence,
            }:
                expected, act = self._sidecars, self._answered
            case _:
                return False
        item = self._under_way(child, slot, sequence)
        if child not in expected or item is None:
            return False
        child.failed_starts = 0
        if act(item, message):
            child.outstanding.remove(item)
        return True

    @staticmethod
    def _under_way(child: Child, slot: int, sequence: int) -> Item | None:
        """The child's item with that place, if it has one."""
        place = slot, sequence
        some = (
            item for item in child.outstanding if (item.slot, item.sequence) == place
        )
        return next(some, None)

    def _drawn(self, item: Item, message: dict[str, Any]) -> bool:
        item.ticket.draw_s += message["seconds"]
        if message["error"]:
            self._settle(item, f"drawing failed: {message['error']}")
            return True
        item.state = State.DRAWN
        item.ticket.notes[item.index] = tuple(message.get("notes", ()))
        item.ticket.keep_drawing(item, self._ring)
        if not self._sidecars or not item.ticket.asked:
            self._settle(item)
        return True

    def _answered(self, item: Item, message: dict[str, Any]) -> bool:
        item.ticket.answer_s += message["seconds"]
        complete = item.ticket.keep_answer(item, self._ring, message)
        item.in_hand -= set(message.get("scores", ()))
        if complete:
            self._settle(item)
        return complete

    def _settle(self, item: Item, failure: str | None = None) -> None:
        """Ends an object's way; after a `failure`, without an answer."""
        ticket = item.ticket
        if failure:
            ticket.fail(item, failure)
        if item.slot >= 0:
            self._free.append(item.slot)
        item.state = State.SETTLED
        self._items.remove(item)
        ticket.unsettled -= 1
        if not ticket.unsettled:
            self._tickets.remove(ticket)
            ticket.done.set()

    # --- deaths and deadlines ---------------------------------------------------------

    def _replace(self, child: Child, how: str, *, blame: bool = True) -> None:
        """Ends a child, if it has not ended by itself, and starts it again.

        What it was asked is asked again, of its successor or of another worker. To
        `blame` for the death are the objects that it had in hand, or else the first of
        those it was asked for; under which `DEATHS` children died is not asked again.

        Raises:
            UserError: it never gets ready.
        """
        self._selector.unregister(child.channel)
        starting = child.hello is None  # then it may be writing its last words
        ended = child.end(grace_s=STOP_S if starting else 0.0)
        items, child.outstanding = child.outstanding, collections.deque()
        for item in items:
            item.state = State.FILLED if child in self._workers else State.DRAWN
        suspects = [item for item in items if item.in_hand] or list(items)[:1]
        for item in items:
            item.in_hand = set()
        for item in suspects if blame else ():
            item.deaths += 1
            if item.deaths >= DEATHS:
                self._settle(item, f"a {child.name} {how} twice ({ended})")
        child.failed_starts += starting
        if starting and (
            not self._ready.is_set() or child.failed_starts >= FAILED_STARTS
        ):
            raise UserError(
                f"the {child.name} does not start: it {how} ({ended}); last line of "
                f"{child.log}: {child.last_words() or '(empty)'}"
            )
        self.restarts += 1
        self._start(child)

    @staticmethod
    def _deadline_of(item: Item) -> float:
        """When an item is given up; who has it in hand hangs."""
        return item.ticket.deadline + LATE_S * (item.state is State.SCORING)

    def _expire(self) -> None:
        """Gives up what is past its deadline; who holds it hangs, and is replaced."""
        now = time.monotonic()
        late = {
            item: f"{item.state.value} at the deadline"
            for item in self._items
            if self._deadline_of(item) <= now
        }
        for child in self._children:
            if any(item in late for item in child.outstanding):
                # Only from a dead process may slots be taken back.
                child.outstanding = collections.deque(
                    item for item in child.outstanding if item not in late
                )
                self._replace(child, "hung", blame=False)
            elif child.hello is None and child.deadline <= now:
                self._replace(child, "did not get ready in time (rewards.start_s)")
        for item, reason in late.items():
            self._settle(item, reason)
