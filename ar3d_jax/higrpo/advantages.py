"""From the rewards of a group to the advantages of its rollouts (equation 10).

What a deviation from the group's mean is divided by is an option: the group's spread
(the paper), the whole batch's (Lite PPO, arXiv 2508.08221: a group of nearly equal
rollouts is not blown up), or nothing (Dr. GRPO, arXiv 2503.20783).

Not here: how a reward is made (`rewards.ensemble`), what an advantage does to the loss
(`higrpo.objective`). All other GRPO code we read divides by the sample deviation,
1/(G-1); the paper's formula is the population one, 1/G, and so is this.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def valid_rollouts(
    rewards: Float[Array | np.ndarray, "B G"], valid: Bool[Array | np.ndarray, "B G"]
) -> Bool[Array, "B G"]:
    """Which rollouts count: marked valid, with a reward that is a finite number."""
    return jnp.logical_and(valid, jnp.isfinite(rewards))


def used_groups(
    rewards: Float[Array | np.ndarray, "B G"], valid: Bool[Array | np.ndarray, "B G"]
) -> Bool[Array, " B"]:
    """Which groups teach something: two valid rollouts or more, of unequal reward.

    Spread is asked of the largest and smallest reward, not of the deviation: equal
    float32 rewards can differ from their own mean by a rounding.
    """
    valid = valid_rollouts(rewards, valid)
    largest = jnp.max(jnp.where(valid, rewards, -jnp.inf), axis=1)
    smallest = jnp.min(jnp.where(valid, rewards, jnp.inf), axis=1)
    return largest > smallest  # of no rollout: -inf > inf; of one: equal


def group_advantages(
    rewards: Float[Array | np.ndarray, "B G"],
    valid: Bool[Array | np.ndarray, "B G"],
    *,
    eps: float = 1e-4,
    std: str = "group",
) -> Float[Array, "B G"]:
    """How much better each rollout did than its group, in deviations of the group.

    A = (R - mean) / (sigma + eps), sigma over the group with 1/G. Equation (10), arXiv
    2512.10949v1, appendix B. With `std="batch"` sigma is that of all valid rewards of
    the batch, with "none" A = R - mean. A rollout that is not valid, or whose reward is
    NaN, is out of mean and sigma and gets 0; a group that is not among `used_groups`
    gets 0.

    Raises:
        ValueError: a `std` that does not exist.
    """
    valid = valid_rollouts(rewards, valid)
    used = used_groups(rewards, valid)[:, None]
    deviation, sigma = _deviations(rewards, valid)
    if std == "group":
        divisor = sigma[:, None] + eps
    elif std == "batch":
        _, sigma = _deviations(rewards.reshape(1, -1), valid.reshape(1, -1))
        divisor = sigma[:, None] + eps
    elif std == "none":
        divisor = 1.0
    else:
        raise ValueError(f"std is {std!r}; expected group, batch or none")
    return jnp.where(used, deviation / divisor, 0.0)


def group_spread(
    rewards: Float[Array | np.ndarray, "B G"], valid: Bool[Array | np.ndarray, "B G"]
) -> Float[Array, ""]:
    """The within-group deviation, averaged over groups with a valid rollout.

    On-policy the loss is 0 by construction; this number says whether there was
    anything to learn from. NaN where no rollout is valid.
    """
    valid = valid_rollouts(rewards, valid)
    _, sigma = _deviations(rewards, valid)
    scored = jnp.any(valid, axis=1)
    return jnp.sum(jnp.where(scored, sigma, 0.0)) / jnp.sum(scored)


def _deviations(
    rewards: Float[Array | np.ndarray, "B G"], valid: Bool[Array, "B G"]
) -> tuple[Float[Array, "B G"], Float[Array, " B"]]:
    """(R - mean, sigma) over the valid rollouts of each group; 0 elsewhere."""
    count = jnp.maximum(jnp.sum(valid, axis=1), 1)
    rewards = jnp.where(valid, rewards, 0.0)
    mean = jnp.sum(rewards, axis=1) / count
    deviation = jnp.where(valid, rewards - mean[:, None], 0.0)
    return deviation, jnp.sqrt(jnp.sum(deviation**2, axis=1) / count)
