"""Mesh files in, features out: what an evaluation sees of drawing and networks.

`Measuring` is to evaluation what `client.Scoring` is to training, with files in place
of logits and vectors in place of scores. Vectors depend on the file and the caption
alone: a process that dies is replaced, its unfinished objects are sent again, and the
numbers come out the same. An object that cannot be drawn, and a set that failed on an
object, have a reason.

What the sets are is `feature_sets.py`, how processes are kept `crew.py`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.config import (
    FeaturesConfig,
    FeatureWeightsConfig,
    RenderConfig,
    to_dict,
)
from ar3d_jax.rewards import feature_sets, wire
from ar3d_jax.rewards.crew import Crew
from ar3d_jax.rewards.ticket import Item, MeshFile, Ticket


@dataclasses.dataclass
class Measured:
    """What came of one object.

    Attributes:
        failure: Why it could not be drawn, or None; then all else is empty.
        points: float32 [n, 3], on its surface.
        vectors: Set -> float32 [V, D], one per view.
        texts: Set -> float32 [D], the caption's; of sets that read text.
        reasons: Set -> why it has no vectors; only sets that failed.
        truncated: Sets that saw only the beginning of the caption, which was too long.
        notes: What was passed over in its file, a line each.
        views: uint8 [V, H, W, 3] where they were to be kept; white after a failure.
    """

    failure: str | None = None
    points: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((0, 3), np.float32)
    )
    vectors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    texts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    truncated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    views: np.ndarray | None = None


class Measurements(Ticket):
    """A ticket of `Measuring`.

    Attributes:
        measured: One per object; changed until the ticket is done.
    """

    def __init__(
        self,
        asked: tuple[str, ...],
        count: int,
        deadline: float,
        views: np.ndarray | None,
    ) -> None:
        super().__init__(asked, count, deadline, views)
        self.measured = [Measured() for _ in range(count)]
        if views is not None:
            for own, pictures in zip(self.measured, views, strict=True):
                own.views = pictures

    def question(self, item: Item) -> dict[str, Any]:
        """See `wire.py`."""
        request = {"measure": item.slot, "sequence": item.sequence}
        return request | {"caption": item.prompt, "sets": self.asked}

    def keep_drawing(self, item: Item, ring: wire.Ring) -> None:
        """Views and points."""
        super().keep_drawing(item, ring)
        own = self.measured[item.index]
        own.points = ring.points[item.slot, : ring.point_count[item.slot]].copy()
        own.notes = self.notes[item.index]

    def keep_answer(self, item: Item, ring: wire.Ring, message: dict[str, Any]) -> bool:
        """Vectors or a reason per set."""
        own, views = self.measured[item.index], ring.layout.views
        windows = feature_sets.split(ring.vectors[item.slot], self.asked, views)
        for name, (pictures, text) in windows.items():
            if (reason := message["reasons"][name]) is not None:
                own.reasons[name] = reason
                continue
            own.vectors[name] = pictures.copy()
            if len(text):
                own.texts[name] = text.copy()
        own.truncated = tuple(message["truncated"])
        return True

    def fail(self, item: Item, reason: str) -> None:
        """The object failed, or, if it was drawn, all sets."""
        super().fail(item, reason)
        own = self.measured[item.index]
        if item.drawn:
            own.reasons = dict.fromkeys(self.asked, reason)
        else:
            own.failure = reason


class Measuring(Crew):
    """Render workers and the networks' process; use it in a `with` block."""

    sidecar_module = "ar3d_jax.rewards.sidecar.features"

    def __init__(
        self,
        render: RenderConfig,
        features: FeaturesConfig,
        weights: Mapping[str, str],
        slots: int,
        log_dir: pathlib.Path | str,
    ) -> None:
        """Takes the ring's memory; entering the block starts the processes.

        `weights` is what `feature_sets.find_networks` found. `slots` bounds the memory,
        not the objects, which wait for a free one: 4 per worker keep all busy. The
        processes write `render.log` and `sidecar.log` in `log_dir`.

        Raises:
            UserError: not enough memory for the ring; `log_dir` cannot be written.
        """
        self._sets = features.sets
        places = FeatureWeightsConfig(**{name: weights[name] for name in features.sets})
        numbers = feature_sets.count(features.sets, render.views)
        super().__init__(
            render,
            wire.Layout(slots, 0, render.views, render.size, features.points, numbers),
            to_dict(dataclasses.replace(features, weights=places)),
            features.deadline_s,
            log_dir,
        )

    def submit(
        self,
        meshes: Sequence[Path],
        captions: Sequence[str],
        *,
        up: str = "y",
        keep_views: bool = False,
    ) -> Measurements:
        """Hands over N mesh files with their captions, and returns at once.

        Args:
            meshes: what `render/meshes.py` reads.
            captions: for the sets that read text.
            up: the files' up axis, "y" (glTF's) or "z".
            keep_views: whether the pictures are wanted.

        Raises:
            UserError: a caption is too long for a message; a process failed for good.
        """
        if len(meshes) != len(captions):
            raise ValueError(f"{len(meshes)} meshes and {len(captions)} captions")
        files = [MeshFile(path.absolute(), up) for path in meshes]
        return self._carry(Measurements, self._sets, files, captions, keep_views)

    def collect(self, ticket: Measurements) -> list[Measured]:
        """Waits for the ticket: what came of each object, in order.

        Raises:
            UserError: a process failed for good.
            RuntimeError: the block ended before the ticket was done.
        """
        self._wait(ticket)
        return ticket.measured
