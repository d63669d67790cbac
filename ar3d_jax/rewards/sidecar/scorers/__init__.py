"""What a scorer is, and which ones there are.

A scorer is a module with `load(config) -> Scorer | Correspondent`. It is imported in
the sidecar only, when a role that has a weight names it; it may use torch. Who calls
it, and when, is `../panel.py`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.config import RewardsConfig

# A role's number (NaN where there is none) and, then, why there is none.
Verdict = tuple[float, str | None]
Verdicts = dict[str, Verdict]  # by role
Tell = Callable[[Verdicts], None]

HERE = "ar3d_jax.rewards.sidecar.scorers"
# Name in `config.rewards.scorers.<role>` -> module; the judge fills its own role only.
SCORERS = {
    "embedded": f"{HERE}.embedded",
    "hps_v2_1": f"{HERE}.hps_v2_1",
    "unified_think": f"{HERE}.unified_think",
    "unified_2": f"{HERE}.unified_2",
    "qwen_vl": f"{HERE}.qwen_vl",
    "shapellm": f"{HERE}.shapellm",
    "judge": f"{HERE}.judge",
    "remote": f"{HERE}.remote",  # has others scored elsewhere, with backend=remote
}


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One object, and what is asked of it.

    Its arrays may be the wire's memory: do not change them, nor keep them after the
    answer. An object without a surface has white `views` and no points: a bad object,
    but an object.

    Attributes:
        prompt: What it should be, the user's text.
        views: Its pictures.
        points: On its surface; z is up.
        colours: Theirs, red, green and blue.
        roles: What it is to be scored for.
    """

    prompt: str
    views: UInt8[np.ndarray, "V H W 3"]
    points: Float[np.ndarray, "n 3"]
    colours: UInt8[np.ndarray, "n 3"]
    roles: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class About:
    """What a scorer says of itself, for logs and tables.

    Attributes:
        model: Its name.
        revision: Which one: a commit of its repository, or a checksum of its file.
        place: A device, or endpoints.
    """

    model: str
    revision: str
    place: str


@runtime_checkable  # test runs check annotations
class Scorer(Protocol):
    """Judges objects in batches, in a thread of its own.

    Attributes:
        about: What it is.
        batch: How many objects it takes at a time, at most.
    """

    about: About
    batch: int

    def score(self, subjects: Sequence[Subject]) -> list[Verdicts]:
        """Of each object and of each of its roles, (number, None) or (NaN, why).

        With a `batch` of 1 the same object gives the same bits, whatever was scored
        before and in whichever process; in larger batches, up to rounding. An exception
        makes all roles of all `subjects` missing, with its text as the reason.
        """
        ...

    def wake(self) -> None:
        """Called before a batch: brings the model to its device, if it is not there."""
        ...

    def rest(self) -> None:
        """Gives the device's memory back, until `wake`; `rewards.residency=turns`."""
        ...

    def close(self) -> None:
        """Called once, when the run ends in an orderly way."""
        ...


@runtime_checkable
class Correspondent(Protocol):
    """Has objects judged elsewhere, many at a time, on the sidecar's event loop.

    Attributes:
        about: What it is.
    """

    about: About

    async def ask(self, subject: Subject, deadline: float, tell: Tell) -> Verdicts:
        """As `Scorer.score` of one object; ends by `deadline`, in `time.monotonic`.

        It is cancelled soon after. Verdicts that are there earlier may go to `tell`;
        what was told counts. An exception makes the other roles missing.
        """
        ...

    async def close(self) -> None:
        """Called once, when the run ends in an orderly way."""
        ...


@runtime_checkable
class Relay(Correspondent, Protocol):
    """Speaks for several scorers elsewhere.

    Attributes:
        members: Scorer -> its roles, model, revision and place.
    """

    members: dict[str, dict[str, object]]


class Counts(Protocol):
    """What a scorer counts."""

    def line(self) -> dict[str, float]:
        """Numbers that only grow, by short names."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A scorer or correspondent that counts what happens to it."""

    statistics: Counts


def load(name: str, config: RewardsConfig) -> Scorer | Correspondent:
    """The scorer `name`.

    Raises:
        UserError: its weights are missing or do not fit; its endpoints do not answer.
    """
    return importlib.import_module(SCORERS[name]).load(config)
