"""Objects in, scores out: what trainer and `score.py` see of drawing and scoring.

`Scoring` starts the render workers and the sidecar and keeps them alive; drawing and
scoring go on while the trainer computes. A score depends on the object and its prompt
alone: a process that dies is replaced, its unfinished objects are sent again, and the
numbers come out the same. What cannot be scored is NaN with a reason.

How the processes are kept is `crew.py`, how objects travel `courier.py`. What a missing
score means for training is `config.rewards.on_failure`, the trainer's; what scores add
up to is `ensemble.py`.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.config import RenderConfig, RewardsConfig, to_dict
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.crew import Crew
from ar3d_jax.rewards.ticket import MeshFile, Scores


class Scoring(Crew):
    """The render workers and the sidecar of one trainer; use it in a `with` block."""

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

        `rewards=None` only draws. `resolution` is the logits'; 0 where all objects are
        files. `slots` bounds the memory, not the objects, which wait for a free one: 8
        per worker keep all processes busy. The processes write `render.log` and
        `sidecar.log` in `log_dir`.

        Raises:
            UserError: not enough memory for the ring; `log_dir` cannot be written;
                a scorer is elsewhere, and the config does not say where.
        """
        self._rewards = rewards
        config = rewards or RewardsConfig()
        if rewards:
            rewards.check_places()
        super().__init__(
            render,
            wire.Layout(slots, resolution, render.views, render.size, config.points),
            to_dict(rewards)
            if rewards and rewards.roles("coarse") + rewards.roles("refined")
            else None,
            config.deadline_s,
            log_dir,
            start_s=config.start_s,
        )

    @property
    def resolution(self) -> int:
        """Voxels along one side of an object."""
        return self._ring.layout.resolution

    @property
    def about(self) -> dict[str, dict[str, Any]]:
        """Scorer -> its roles, model, revision and place, as the sidecar says."""
        return self._children[-1].about

    @property
    def counters(self) -> dict[str, float]:
        """By "judge/<scorer>/<kind>", how often since the block began; never fewer."""
        counted = self._children[-1].counted
        return {f"judge/{name}": number for name, number in counted.items()}

    def submit(
        self,
        logits: Float[np.ndarray, "N R R R"],
        prompts: Sequence[str],
        step: Literal["coarse", "refined", "judge"],
        *,
        keep_views: bool = False,
    ) -> Scores:
        """Hands over N objects to be drawn and scored; returns after copying them.

        Scored are the roles of `step` that have a weight, or the judge alone.
        `keep_views` keeps the pictures for `views`.

        Raises:
            UserError: a prompt is too long for a message, or a process failed for good.
        """
        own = np.array(logits, np.float32)  # the caller may donate or change its array
        side = self._ring.layout.resolution
        if own.shape[1:] != (side,) * 3 or len(own) != len(prompts):
            raise ValueError(
                f"logits of shape {own.shape} and {len(prompts)} prompts; expected "
                f"[N, R, R, R] with R = {side} and N prompts"
            )
        roles = self._rewards.roles(step) if self._rewards else ()
        return self._carry(Scores, roles, own, prompts, keep_views)

    def submit_files(
        self,
        meshes: Sequence[pathlib.Path],
        prompts: Sequence[str],
        roles: tuple[str, ...],
        *,
        up: str = "y",
    ) -> Scores:
        """Hands over N mesh files to be drawn and scored, and returns at once.

        Args:
            meshes: what `render/meshes.py` reads.
            prompts: what each should be.
            roles: what they are scored for; one without a weight, in any step, has no
                scorer, and is missing.
            up: the files' up axis, "y" (glTF's) or "z".

        Raises:
            UserError: a prompt is too long for a message, or a process failed for good.
        """
        if len(meshes) != len(prompts):
            raise ValueError(f"{len(meshes)} meshes and {len(prompts)} prompts")
        files = [MeshFile(path.absolute(), up) for path in meshes]
        return self._carry(Scores, roles, files, prompts, keep_views=False)

    def collect(
        self, ticket: Scores
    ) -> tuple[dict[str, np.ndarray], dict[str, list[str | None]]]:
        """Waits for the ticket: (scores, reasons), both by role and then by object.

        A score is float32, NaN where it is missing; there, and only there, the reason
        is a text.

        Raises:
            UserError: a process failed for good.
            RuntimeError: the block ended before the ticket was done.
        """
        self._wait(ticket)
        return ticket.scores, ticket.reasons

    def views(self, ticket: Scores) -> UInt8[np.ndarray, "N V H W 3"]:
        """Waits for the ticket: its pictures; white where drawing failed.

        Raises:
            ValueError: it was submitted without `keep_views`.
            UserError: a process failed for good.
        """
        if ticket.views is None:
            raise ValueError("the views were not kept: submit(..., keep_views=True)")
        self.collect(ticket)
        return ticket.views
