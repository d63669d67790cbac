"""The Hi-GRPO loss (equations 11-14): from log-probabilities to one number.

Arrays only. Advantages come from `higrpo.advantages`; who computes log-probabilities
and takes gradients is `higrpo.update`. The paper is arXiv 2512.10949v1, appendix B; its
ancestor is T2I-R1. How this file differs from them and from other GRPO code, and why:

1. One number per token holds the whole normalisation. Every aggregation is a weight for
   each token, made from the masks of the complete batch before it is cut up; the loss
   is then a plain sum, so micro-batches and hosts cannot change it. (TRL divides by the
   tokens of the accumulation window, T2I-R1 by those of the local batch.)
2. `token` is the paper's: tokens are averaged over one prompt's group, groups over the
   prompts of the batch. A group that teaches nothing (`advantages.used_groups`) is
   masked out, KL included, and still counts among the prompts: equation 11 gives such a
   group's policy term the value 0. With half of its groups gone a step's gradient is
   half as large. AdamW divides by a running mean of gradients' sizes: where that is
   usual, nothing is left of the half but the noise of fewer groups.
3. `sequence` averages each rollout first; one without tokens counts as 0 (as TRL; verl
   and tunix drop it).
4. The KL estimate is pi_ref/pi - log(pi_ref/pi) - 1 per token (the paper, T2I-R1), not
   multiplied by the ratio (TRL since 1.10), not k1 (tunix).
5. `importance="sequence"`, together with `sequence` aggregation, is GSPO with the
   gradient through every token of the sequence ratio (TRL; verl and tunix stop all but
   one token's). A sequence is all that one step sampled: its plan and its shape. It has
   clip bounds of its own, a hundred times narrower (GSPO's), because the mean of a
   thousand log-ratios moves so much less.
6. Clip bounds are decoupled, 1 - clip_low and 1 + clip_high (DAPO; table 2's best row).
   `dual_clip` c > 1 also bounds what a negative advantage can do: the objective of such
   a token is not below c A (arXiv 1912.09729).
7. The old log-probabilities are the sampler's, over the distribution that was sampled
   from (shape tokens: the codes only). T2I-R1 samples from guidance-mixed logits and
   trains on plain ones. Where sampler and trainer disagree (bfloat16, a cache),
   `correct_mismatch` takes the trainer's own as the old ones, and weighs each token by
   min(pi_trainer/pi_sampler, C), without a gradient: truncated importance sampling.

With one update per rollout, the paper's setting, the ratio is 1 where sampler and
trainer agree: clipping is inert, GSPO's gradient is that of `importance="token"`, and
the policy term is a mean of advantages: near zero, which is no fault. `reward/*_std`
says if there is something to learn.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ar3d_jax.config import ObjectiveConfig

Metrics = dict[str, Array]
_F = Float[Array | np.ndarray, "*rows T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepTokens:
    """What the loss needs of one generation step's tokens, beside the policy's logp.

    Attributes:
        logp_old: log-probabilities before this rollout's updates, nats: as the sampler
            had them, or as the trainer has.
        advantages: one number per rollout.
        weights: `token_weights` of the complete batch; 0 where nothing is learnt.
        logp_sampler: the sampler's, where `logp_old` is the trainer's.
    """

    logp_old: jax.Array  # rows T
    advantages: jax.Array  # rows
    weights: jax.Array  # rows T
    logp_sampler: jax.Array | None = None  # rows T


def token_weights(
    mask: Bool[Array | np.ndarray, "B G T"], aggregation: str
) -> Float[Array, "B G T"]:
    """Each token's share of the loss; 0 where `mask` (tokens that count) is False.

    * token: 1 / (B * tokens of the group). Equation (11), averaged over prompts.
    * token_batch: 1 / tokens of the batch. DAPO's, table 2 "token average".
    * sequence: 1 / (B * G * tokens of the rollout). GRPO's first form.

    Raises:
        ValueError: an aggregation that does not exist.
    """
    prompts, group, _ = mask.shape
    if aggregation == "token":
        count = jnp.sum(mask, axis=(1, 2), keepdims=True) * prompts
    elif aggregation == "token_batch":
        count = jnp.sum(mask, axis=(0, 1, 2), keepdims=True)
    elif aggregation == "sequence":
        count = jnp.sum(mask, axis=2, keepdims=True) * (prompts * group)
    else:
        raise ValueError(
            f"aggregation is {aggregation!r}; expected token, token_batch or sequence"
        )
    return jnp.where(mask, 1.0 / jnp.maximum(count, 1), 0.0)


def weighted_loss(
    logp: _F,
    logp_old: _F,
    logp_ref: _F | None,
    advantages: Float[Array | np.ndarray, "*rows"],
    weights: _F,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    importance: str,
    dual_clip: float = 0.0,
    correct_mismatch: float = 0.0,
    logp_sampler: _F | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of some rollouts, and sums for the metrics: all add over micro-batches.

    -sum of w (min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - beta KL), with r the
    token's ratio pi/pi_old, equation (12), or for `sequence` the geometric mean of the
    rollout's ratios (GSPO). Equations (11) and (13). Tokens of weight 0 may hold
    anything, NaN included. Without `logp_ref` there is no KL.

    With `dual_clip` c > 1, where A < 0: max(c A, the min above). With
    `correct_mismatch` C > 0 the policy term of a token has the factor
    min(exp(logp_old - logp_sampler), C).

    Raises:
        ValueError: an importance that does not exist.
    """
    counts = weights > 0
    log_ratio = jnp.where(counts, logp - logp_old, 0.0)
    if importance == "sequence":
        tokens = jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
        mean = jnp.sum(log_ratio, axis=-1, keepdims=True) / tokens
        log_ratio = jnp.where(counts, mean, 0.0)
    elif importance != "token":
        raise ValueError(f"importance is {importance!r}; expected token or sequence")
    ratio = jnp.exp(log_ratio)
    sampler = logp_old if logp_sampler is None else logp_sampler
    advantages = jnp.where(jnp.any(counts, axis=-1), advantages, 0.0)[..., None]
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    objective = jnp.minimum(ratio * advantages, clipped * advantages)
    is_clipped = clipped * advantages < ratio * advantages
    if dual_clip:
        floor = dual_clip * advantages
        bounded = (advantages < 0) & (objective < floor)
        objective = jnp.where(bounded, floor, objective)
        is_clipped = is_clipped | bounded
    if correct_mismatch:
        apart = jnp.where(counts, logp_old - sampler, 0.0)
        factor = jnp.minimum(jnp.exp(apart), correct_mismatch)
        objective = objective * jax.lax.stop_gradient(factor)
    sums = {
        "weight": jnp.sum(weights),
        "clip_fraction": jnp.sum(weights * is_clipped),
        "ratio_max": jnp.max(jnp.where(counts, ratio, 0.0)),
        "mismatch": jnp.sum(weights * jnp.abs(jnp.where(counts, logp - sampler, 0.0))),
    }
    if logp_ref is not None:
        log_ref = jnp.where(counts, logp_ref - logp, 0.0)
        kl = jnp.expm1(log_ref) - log_ref  # expm1: exact near 0, where training starts
        objective = objective - kl_coef * kl
        sums["kl"] = jnp.sum(weights * kl)
    return -jnp.sum(weights * objective), jax.lax.stop_gradient(sums)


def add_sums(one: Metrics, other: Metrics) -> Metrics:
    """The sums of two disjoint sets of tokens together."""
    together = {name: one[name] + other[name] for name in one}
    together["ratio_max"] = jnp.maximum(one["ratio_max"], other["ratio_max"])
    return together


def means(sums: Metrics) -> Metrics:
    """Sums divided by their weight, so averaged over tokens as the loss is.

    `ratio_max` and `loss/<step>` stay as they are. NaN where no token counted.
    """
    weight = sums["weight"]
    mean = {name: value / weight for name, value in sums.items() if name != "weight"}
    kept = {
        name: sums[name]
        for name in sums
        if name == "ratio_max" or name.startswith("loss/")
    }
    return mean | kept


def policy_loss(
    logp: Float[Array | np.ndarray, "B G T"],
    logp_old: Float[Array | np.ndarray, "B G T"],
    logp_ref: Float[Array | np.ndarray, "B G T"] | None,
    advantages: Float[Array | np.ndarray, "B G"],
    mask: Bool[Array | np.ndarray, "B G T"],
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    aggregation: str,
    importance: str,
    dual_clip: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of one step over a complete batch, and its metrics.

    `mask` is True for the tokens that count. A rollout with a NaN advantage is masked
    out. The metrics are means over the tokens, weighted as in the loss: `kl`,
    `clip_fraction`; and `ratio_max`. See `token_weights` and `weighted_loss`.

    Raises:
        ValueError: an aggregation or importance that does not exist.
    """
    mask = jnp.logical_and(mask, ~jnp.isnan(advantages)[:, :, None])
    loss, sums = weighted_loss(
        logp,
        logp_old,
        logp_ref,
        advantages,
        token_weights(mask, aggregation),
        clip_low=clip_low,
        clip_high=clip_high,
        kl_coef=kl_coef,
        importance=importance,
        dual_clip=dual_clip,
    )
    return loss, means(sums)


def higrpo_loss(
    logp: Mapping[str, Array],
    logp_ref: Mapping[str, Array] | None,
    steps: Mapping[str, StepTokens],
    cfg: ObjectiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """The sum of the steps' losses, equation (14): coarse + refined.

    Returns the loss and sums for `means`, with `loss/<step>` among them. All three
    mappings have the steps' names as keys.
    """
    low, high = cfg.clip_bounds
    total: Metrics = {}
    losses: Metrics = {}
    for name, tokens in steps.items():
        loss, sums = weighted_loss(
            logp[name],
            tokens.logp_old,
            None if logp_ref is None else logp_ref[name],
            tokens.advantages,
            tokens.weights,
            clip_low=low,
            clip_high=high,
            kl_coef=cfg.kl_coef,
            importance=cfg.importance,
            dual_clip=cfg.dual_clip,
            correct_mismatch=cfg.correct_mismatch,
            logp_sampler=tokens.logp_sampler,
        )
        losses[f"loss/{name}"] = loss
        total = add_sums(total, sums) if total else sums
    loss = functools.reduce(jnp.add, losses.values())
    return loss, total | jax.lax.stop_gradient(losses)
