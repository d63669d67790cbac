"""What a scorer is, and which ones there are.

A scorer is a module with `load(config) -> Scorer`. It is imported in the sidecar only,
when a role that has a weight names it; it may use torch. `server.py` calls it.
"""

import importlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

# A role's number (NaN where there is none) and, then, why there is none.
Verdict = tuple[float, str | None]

# Name in `config.rewards.scorers.<role>` -> module; the judge fills its own role only.
SCORERS = {
    "embedded": "ar3d_jax.rewards.sidecar.scorers.embedded",
    "judge": "ar3d_jax.rewards.sidecar.scorers.judge",
}


@runtime_checkable  # test runs check annotations
class Scorer(Protocol):
    """Judges one object at a time.

    The same object and prompt must give the same bits, whatever was scored before and
    in whichever process: a sidecar that dies is replaced in mid-step.
    """

    def score(
        self,
        prompt: str,
        views: UInt8[np.ndarray, "V H W 3"],
        points: Float[np.ndarray, "n 3"],
        roles: tuple[str, ...],
    ) -> dict[str, Verdict]:
        """Role -> (number, None), or (NaN, why there is no number).

        `points` is empty (n = 0) and `views` are white for an object without a surface:
        a bad object, but an object. Both arrays are the wire's memory: do not change or
        keep them. An exception makes all roles missing, with its text as the reason.
        """
        ...

    def close(self) -> None:
        """Called once, when the run ends in an orderly way."""
        ...


def load(name: str, config: dict[str, Any]) -> Scorer:
    """The scorer `name`; `config` is the rewards section as a nested dict.

    Raises:
        UserError: its weights are missing or do not fit.
    """
    return importlib.import_module(SCORERS[name]).load(config)
