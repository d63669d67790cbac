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
# Those of table 1 alone; the paper does not say what they are divided by.
COARSE_DIVISORS |= {"align_lmm": 1, "consistency_shape": 3}
REFINED_DIVISORS = {"preference": 1, "quality": 3, "consistency": 3, "parts": 2}

Scores = Mapping[str, Any]  # role -> array: a number per rollout, NaN where missing


def total_rewards(
    coarse_scores: Scores,
    refined_scores: Scores,
    weights: Mapping[str, Mapping[str, float | int]],
    lam: float | int,
    *,
    normalise: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(R~_high, R_low): what the coarse and the refined step are trained on.

    R_high = preference + alignment + category, equation (7); R_low = preference +
    quality/3 + consistency/3 + parts/2, equation (8); R~_high = R_high + lam R_low,
    equation (9): a coarse shape is worth what it leads to. Each score times its weight,
    `weights["coarse" | "refined"][role]`. A role of weight 0 may be absent. NaN in a
    score that has a weight makes the totals it enters NaN.

    With `normalise` = G each score is first replaced by its deviation from the mean of
    its group, in deviations of the group: a raw sum lets a score of 1 to 5 drown one of
    -1 to 1 (GDPO, arXiv 2601.05242, which then divides by the batch's deviation; we do
    as `objective.advantage_std` says). Groups are G neighbours along the last axis, and
    divisors no longer apply.

    Raises:
        ValueError: a role with a weight has no scores, or is not one of the step's.
    """
    rollouts = np.shape(next(iter({**coarse_scores, **refined_scores}.values()), 0.0))
    coarse_divisors, refined_divisors = COARSE_DIVISORS, REFINED_DIVISORS
    if normalise:
        coarse_scores = normalised(coarse_scores, normalise)
        refined_scores = normalised(refined_scores, normalise)
        coarse_divisors = dict.fromkeys(COARSE_DIVISORS, 1)
        refined_divisors = dict.fromkeys(REFINED_DIVISORS, 1)
    high = _reward(coarse_scores, weights["coarse"], coarse_divisors, rollouts)
    low = _reward(refined_scores, weights["refined"], refined_divisors, rollouts)
    return np.asarray(high + lam * low if lam else high), low


def normalised(scores: Scores, group_size: int, eps: float = 1e-4) -> Scores:
    """Each role's scores as (score - mean) / (sigma + eps) of their group.

    Sigma is by 1/G. What is missing stays NaN, and is in no mean. Groups are
    neighbours, prompt-major.
    """
    found = {}
    for role, values in scores.items():
        groups = np.asarray(values, np.float64).reshape(-1, group_size)
        there = np.isfinite(groups)
        count = np.maximum(there.sum(axis=1, keepdims=True), 1)
        mean = np.where(there, groups, 0).sum(axis=1, keepdims=True) / count
        off = np.where(there, groups - mean, 0)
        sigma = np.sqrt((off**2).sum(axis=1, keepdims=True) / count)
        inside = np.where(there, off / (sigma + eps), np.nan)
        found[role] = inside.reshape(np.shape(values))
    return found


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
