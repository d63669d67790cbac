"""Dynamic sampling: which groups of a batch are worth an update (DAPO; table 2).

`no_spread` keeps groups whose rollouts were rewarded differently; of one whose
rewards are all equal nothing can be learnt. `medium` also leaves out groups that are
far too easy or too hard: the paper speaks of cases of medium complexity, without a
number. Ours: groups whose mean reward lies between two quantiles of recent groups'.
NumPy only, and the same on every host.
"""

import collections
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from ar3d_jax.config import LEAST_BAND, ObjectiveConfig


class Selection:
    """What is kept, and the recent rewards that `medium` compares with."""

    def __init__(self, config: ObjectiveConfig) -> None:
        """Knows no rewards yet."""
        self._config = config
        self._recent: collections.deque[float]
        self._recent = collections.deque(maxlen=config.band_groups)

    def get_state(self) -> list[float]:
        """The recent mean rewards, as JSON."""
        return list(self._recent)

    def set_state(self, state: list[float]) -> None:
        """Goes on where `get_state` was called."""
        self._recent.clear()
        self._recent.extend(state)

    def choose(
        self,
        rewards: Mapping[str, Float[np.ndarray, "B G"]],
        compared: Float[np.ndarray, "B G"],
    ) -> Bool[np.ndarray, " B"]:
        """Which groups are kept.

        A group has spread if one of its steps has more than `min_spread` (deviation,
        1/G) among two valid rollouts or more. A group without any valid rollout is
        never kept; one that `compared` says nothing of may be of medium complexity.
        The groups seen here count among the recent ones of the next call.

        Args:
            rewards: by step, those that are trained on.
            compared: those whose group means the band is of: on one scale through the
                whole run.
        """
        if self._config.dynamic_sampling == "off":
            return np.ones(len(compared), bool)
        keep = np.zeros(len(compared), bool)
        for reward in rewards.values():
            keep |= _spread(reward) > self._config.min_spread
        if self._config.dynamic_sampling == "medium":
            means = _means(compared)
            if len(self._recent) >= LEAST_BAND:
                low, high = np.quantile(
                    np.array(self._recent),
                    [self._config.band_low, self._config.band_high],
                )
                keep &= ~((means < low) | (means > high))
            self._recent.extend(means[np.isfinite(means)].tolist())
        return keep


def _means(rewards: np.ndarray) -> np.ndarray:
    """Of each group's valid rollouts; NaN of none."""
    there = np.isfinite(rewards)
    count = there.sum(axis=1)
    sums = np.where(there, rewards, 0.0).sum(axis=1)
    return np.divide(sums, count, out=np.full(len(rewards), np.nan), where=count > 0)


def _spread(rewards: np.ndarray) -> np.ndarray:
    """The deviation in each group; 0 of equal rewards, whatever they round to."""
    there = np.isfinite(rewards)
    count = np.maximum(there.sum(axis=1), 1)
    means = np.nan_to_num(_means(rewards))
    off = np.where(there, rewards - means[:, None], 0.0)
    sigma = np.sqrt((off**2).sum(axis=1) / count)
    largest = np.where(there, rewards, -np.inf).max(axis=1)
    smallest = np.where(there, rewards, np.inf).min(axis=1)
    return np.where(largest > smallest, sigma, 0.0)
