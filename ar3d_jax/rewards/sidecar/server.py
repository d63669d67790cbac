"""The sidecar's loop: views and points of a slot in, scores out.

It knows which scorer fills which role and what a failure looks like, but nothing of
models: those are in `scorers/`. The slots and the messages are in `rewards/wire.py`;
`rewards/courier.py` starts and replaces this process.
"""

import contextlib
import math
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.config import RewardsConfig, from_config_dict, to_dict
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.sidecar import scorers

# On the wire NaN, which JSON has not, is null.
JsonVerdict = tuple[float | None, str | None]
# Each scorer that is loaded, with the roles it fills.
Panel = list[tuple[scorers.Scorer, tuple[str, ...]]]


def score_object(
    panel: Panel,
    prompt: str,
    views: UInt8[np.ndarray, "V H W 3"],
    points: Float[np.ndarray, "n 3"],
    roles: tuple[str, ...],
) -> dict[str, JsonVerdict]:
    """Role -> [number, null] or [null, why], from one call per scorer.

    A failure stays inside its scorer: the other roles keep their numbers.
    """
    verdicts: dict[str, JsonVerdict] = {}
    for scorer, fills in panel:
        own = tuple(role for role in roles if role in fills)
        try:
            answer = scorer.score(prompt, views, points, own) if own else {}
            verdicts |= {role: _checked(answer, role) for role in own}
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            verdicts |= {role: (None, reason) for role in own}
    return verdicts


def _checked(answer: Mapping[str, scorers.Verdict], role: str) -> JsonVerdict:
    if role not in answer:
        return None, "the scorer gave no answer for this role"
    value, reason = answer[role]
    if math.isfinite(value):
        return float(value), None
    return None, reason or f"the scorer answered {value}"


def _load(config: RewardsConfig) -> Panel:
    """The scorers of all roles that have a weight, and the judge where it is wanted."""
    roles = dict.fromkeys(config.roles("coarse") + config.roles("refined"))
    fills: dict[str, list[str]] = {}
    for role in roles:
        fills.setdefault(getattr(config.scorers, role), []).append(role)
    fills |= {role: [role] for role in config.roles("judge")}
    try:
        return [
            (scorers.load(name, to_dict(config)), tuple(own))
            for name, own in fills.items()
        ]
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            "the scorers need PyTorch, which is not installed: pip install torch"
        ) from error


@contextlib.contextmanager
def _prepare(values: dict[str, Any], ring: wire.Ring) -> Iterator[wire.Answer]:
    config = from_config_dict(values, RewardsConfig)
    # torch reads this once, when a scorer imports it.
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    panel = _load(config)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        slot, sequence = request["score"], request["sequence"]
        roles, started = tuple(request["roles"]), time.perf_counter()
        if ring.drawn[slot] == sequence:
            points = ring.points[slot, : ring.point_count[slot]]
            scores = score_object(
                panel, request["prompt"], ring.views[slot], points, roles
            )
        else:
            reason = f"slot {slot} holds another object than announced"
            scores = dict.fromkeys(roles, (None, reason))
        seconds = time.perf_counter() - started
        return {
            "scored": slot,
            "sequence": sequence,
            "seconds": seconds,
            "scores": scores,
        }

    try:
        yield answer
    finally:
        for scorer, _ in panel:
            scorer.close()


def main() -> None:
    """Serves the trainer that started this process, until that closes or dies."""
    wire.run_child(_prepare)
