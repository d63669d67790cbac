"""From scores to rewards: the ensemble's totals (equations 7-9). NumPy only.

A score is one model's number, a reward the ensemble's total. Where scores come from is
`rewards.client`; what a reward does to the policy is `higrpo.advantages`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# What equations (7) and (8), arXiv 2512.10949v1, divide each score by: 3 judgements of
# quality and of consistency, 2 of parts.
COARSE_DIVISORS = {"preference": 1, "alignment": 1, "category": 1}
REFINED_DIVISORS = {"preference": 1, "quality": 3, "consistency": 3, "parts": 2}

Scores = Mapping[str, Any]  # role -> array: a number per rollout, NaN where missing


def total_rewards(
    coarse_scores: Scores,
    refined_scores: Scores,
    weights: Mapping[str, Mapping[str, float | int]],
    lam: float | int,
) -> tuple[np.ndarray, np.ndarray]:
    """(R~_high, R_low): what the coarse and the refined step are trained on.

    R_high = preference + alignment + category, equation (7); R_low = preference +
    quality/3 + consistency/3 + parts/2, equation (8); R~_high = R_high + lam R_low,
    equation (9): a coarse shape is worth what it leads to. Each score times its weight,
    `weights["coarse" | "refined"][role]`. A role of weight 0 may be absent. NaN in a
    score that has a weight makes the totals it enters NaN.

    Raises:
        ValueError: a role with a weight has no scores, or is not one of the step's.
    """
    rollouts = np.shape(next(iter({**coarse_scores, **refined_scores}.values()), 0.0))
    high = _reward(coarse_scores, weights["coarse"], COARSE_DIVISORS, rollouts)
    low = _reward(refined_scores, weights["refined"], REFINED_DIVISORS, rollouts)
    return np.asarray(high + lam * low if lam else high), low


def _reward(
    scores: Scores,
    weights: Mapping[str, float | int],
    divisors: Mapping[str, int],
    rollouts: tuple[int, ...],
) -> np.ndarray:
    total = np.zeros(rollouts)
    for role, weight in weights.items():
        if weight == 0:
            continue
        if role not in divisors:
            raise ValueError(
                f"role {role!r} has a weight; expected one of {', '.join(divisors)}"
            )
        if role not in scores:
            raise ValueError(
                f"role {role!r} has a weight but no scores; there are {list(scores)}"
            )
        total += weight * np.asarray(scores[role], np.float64) / divisors[role]
    return total
