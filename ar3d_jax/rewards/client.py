"""Objects in, scores out: what the trainer sees of drawing and scoring.

`Scoring` starts the render workers and the sidecar and keeps them alive; drawing and
scoring go on while the trainer computes. A score depends on the object and its prompt
alone: a process that dies is replaced, its unfinished objects are sent again, and the
numbers come out the same. What cannot be scored is NaN with a reason.

How objects travel is `courier.py`, on what is `wire.py`. What a missing score means for
training is `config.rewards.on_failure`, the trainer's; what scores add up to is
`ensemble.py`.
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.config import RenderConfig, RewardsConfig, to_dict
from ar3d_jax.errors import UserError, writing
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.child import Child
from ar3d_jax.rewards.courier import Courier
from ar3d_jax.rewards.ticket import Item, Ticket

PROMPT_CHARACTERS = 1 << 16  # fits a message however it is escaped


class Scoring:
    """The render workers and the sidecar of one trainer; use it in a `with` block."""

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

        `rewards=None` only draws. `slots` bounds the memory, not the objects, which
        wait for a free one: 8 per worker keep all processes busy. The processes write
        `render.log` and `sidecar.log` in `log_dir`.

        Raises:
            UserError: not enough memory for the ring; `log_dir` cannot be written.
        """
        self._rewards = rewards
        config = rewards or RewardsConfig()
        self._deadline_s = config.deadline_s
        self._ring = wire.Ring.create(
            wire.Layout(slots, resolution, render.views, render.size, config.points)
        )
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
        if rewards and rewards.roles("coarse") + rewards.roles("refined"):
            module, log = self.sidecar_module, logs / "sidecar.log"
            sidecar = Child("sidecar", module, to_dict(rewards), self._ring, log)
        self._courier = Courier(self._ring, list(self._children), sidecar)
        self._children += [sidecar] if sidecar else []

    def __enter__(self) -> "Scoring":
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

    def submit(
        self,
        logits: Float[np.ndarray, "N R R R"],
        prompts: Sequence[str],
        step: Literal["coarse", "refined", "judge"],
        *,
        keep_views: bool = False,
    ) -> Ticket:
        """Hands over N objects to be drawn and scored; returns after copying them.

        Scored are the roles of `step` that have a weight, or the judge alone.
        `keep_views` keeps the pictures for `views`.

        Raises:
            UserError: a prompt is too long for a message, or a process failed for good.
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
        ticket = Ticket(
            self._rewards.roles(step) if self._rewards else (),
            count,
            time.monotonic() + self._deadline_s,
            np.empty(shape, np.uint8) if keep_views else None,
        )
        pairs = zip(own, prompts, strict=True)
        self._courier.carry([Item(ticket, i, *pair) for i, pair in enumerate(pairs)])
        return ticket

    def collect(
        self, ticket: Ticket
    ) -> tuple[dict[str, np.ndarray], dict[str, list[str | None]]]:
        """Waits for the ticket: (scores, reasons), both by role and then by object.

        A score is float32, NaN where it is missing; there, and only there, the reason
        is a text.

        Raises:
            UserError: a process failed for good.
            RuntimeError: the block ended before the ticket was done.
        """
        ticket.done.wait()
        if ticket.unsettled:
            assert self._courier.error
            raise self._courier.error
        return ticket.scores, ticket.reasons

    def views(self, ticket: Ticket) -> UInt8[np.ndarray, "N V H W 3"]:
        """Waits for the ticket: its pictures; white where drawing failed.

        Raises:
            ValueError: it was submitted without `keep_views`.
            UserError: a process failed for good.
        """
        if ticket.views is None:
            raise ValueError("the views were not kept: submit(..., keep_views=True)")
        self.collect(ticket)
        return ticket.views
