"""The processes of one trainer: render workers, a sidecar, and the ring between them.

What `client.Scoring` and `measuring.Measuring` share: starting and ending them, and
waiting for tickets. How objects travel is `courier.py`, on what is `wire.py`.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ar3d_jax.config import RenderConfig, to_dict
from ar3d_jax.errors import UserError, writing
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.child import START_S, Child
from ar3d_jax.rewards.courier import Courier
from ar3d_jax.rewards.ticket import Item, MeshFile, Ticket

PROMPT_CHARACTERS = 1 << 16  # fits a message however it is escaped

AnyCrew = TypeVar("AnyCrew", bound="Crew")
AnyTicket = TypeVar("AnyTicket", bound=Ticket)


class Crew:
    """Render workers and a sidecar; use it in a `with` block."""

    # Tests and benchmarks put stand-ins here.
    worker_module = "ar3d_jax.render.workers"
    sidecar_module: str

    def __init__(
        self,
        render: RenderConfig,
        layout: wire.Layout,
        sidecar_config: dict[str, Any] | None,
        deadline_s: float,
        log_dir: pathlib.Path | str,
        *,
        start_s: float = START_S,
    ) -> None:
        """Takes the ring's memory; entering the block starts the processes.

        Without a `sidecar_config`, objects are drawn only; with one, the sidecar has
        `start_s` seconds to get ready. The processes write `render.log` and
        `sidecar.log` in `log_dir`.

        Raises:
            UserError: not enough memory for the ring; `log_dir` cannot be written.
        """
        self._deadline_s = deadline_s
        self._ring = wire.Ring.create(layout)
        logs = pathlib.Path(log_dir)
        self._logs = logs
        with writing(logs):
            logs.mkdir(parents=True, exist_ok=True)
        module, log, values = self.worker_module, logs / "render.log", to_dict(render)
        self._children = [
            Child(f"render worker {index}", module, values, self._ring, log)
            for index in range(render.workers)
        ]
        sidecar = None
        if sidecar_config is not None:
            module, log = self.sidecar_module, logs / "sidecar.log"
            sidecar = Child(
                "sidecar", module, sidecar_config, self._ring, log, start_s=start_s
            )
        self._courier = Courier(self._ring, list(self._children), sidecar)
        self._children += [sidecar] if sidecar else []

    def __enter__(self: AnyCrew) -> AnyCrew:
        """Starts the processes and waits until all are ready.

        Raises:
            UserError: one does not start, in its own words.
        """
        try:
            with writing(self._logs):
                self._courier.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the processes. Tickets that are not done are lost."""
        self._courier.stop()
        self._ring.close()

    @property
    def restarts(self) -> int:
        """Processes started again so far."""
        return self._courier.restarts

    @property
    def processes(self) -> dict[str, dict[str, Any]]:
        """What each process said when it was ready: its pid, imported, version."""
        return {child.name: child.hello or {} for child in self._children}

    def _carry(
        self,
        kind: type[AnyTicket],
        asked: tuple[str, ...],
        things: Sequence[np.ndarray | MeshFile] | np.ndarray,
        prompts: Sequence[str],
        keep_views: bool,
    ) -> AnyTicket:
        """A ticket for the things, which are now on their way."""
        longest = max(map(len, prompts), default=0)
        if longest > PROMPT_CHARACTERS:
            raise UserError(
                f"a prompt has {longest} characters; {PROMPT_CHARACTERS} at most"
            )
        layout, count = self._ring.layout, len(things)
        shape = (count, layout.views, layout.size, layout.size, 3)
        views = np.empty(shape, np.uint8) if keep_views else None
        ticket = kind(asked, count, time.monotonic() + self._deadline_s, views)
        pairs = zip(things, prompts, strict=True)
        self._courier.carry([Item(ticket, i, *pair) for i, pair in enumerate(pairs)])
        return ticket

    def _wait(self, ticket: Ticket) -> None:
        """Waits for the ticket.

        Raises:
            UserError: a process failed for good.
            RuntimeError: the block ended before the ticket was done.
        """
        ticket.done.wait()
        if ticket.unsettled:
            assert self._courier.error
            raise self._courier.error
