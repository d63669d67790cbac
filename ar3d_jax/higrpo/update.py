"""One optimiser step on scored rollouts: the only place that takes gradients in RL.

The loss is `higrpo.objective`; how rollouts come about is `rollout.two_step`; who calls
this is `train.py`. Everything happens in one jitted function:

1. Rewards become advantages, and masks become the weights of all tokens. Both need the
   complete batch, and both are small.
2. Rows go through the policy (and the reference, where there is a KL term) a
   micro-batch at a time; gradients add up in `optim.gradient_dtype`. Because the
   weights are fixed before, the size of a micro-batch changes memory and rounding,
   nothing else.
3. AdamW replaces parameters and moments in place: `state` is donated. It works on
   float32 master weights, of which a bfloat16 policy is the rounded copy.

With one update per rollout the policy that sampled is the one updated, so the ratio is
1 up to rounding; the old log-probabilities are the sampler's all the same, so a sampler
and a trainer that disagree show in `ratio_max`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ar3d_jax import optim as optimisation
from ar3d_jax.config import LoraConfig, ObjectiveConfig, OptimConfig
from ar3d_jax.higrpo.advantages import (
    group_advantages,
    group_spread,
    used_groups,
    valid_rollouts,
)
from ar3d_jax.higrpo.objective import (
    Metrics,
    StepTokens,
    higrpo_loss,
    means,
    token_weights,
)
from ar3d_jax.policy import lora
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Sequence, sequence_logp
from ar3d_jax.policy.vocab import Vocab
from ar3d_jax.sharding import BATCH


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training changes.

    Attributes:
        policy: the decoder that is trained; as `to_save` has it, what is trained of it.
        master: what is trained of it (all, or LoRA's thin matrices) in
            `optim.master_dtype`, which the optimiser changes; None where the policy has
            that type itself.
        opt_state: optax's, laid out like the parameters, in `optim.moment_dtype`.
        step: optimiser steps done, int32.
    """

    policy: Any
    master: Any
    opt_state: Any
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoredRollouts:
    """One batch to learn from: B prompts, G rollouts each, in one step or more.

    Attributes:
        sequences: by step, `coarse` and `refined`: the sequences whose sampled tokens
            belong to that step, each of B * G rows, prompt-major.
        rewards: by step, float [B, G]; NaN where a score is missing.
    """

    sequences: dict[str, tuple[Sequence, ...]]
    rewards: dict[str, Any]


def optimiser(cfg: OptimConfig) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; the rate rises linearly to `lr`.

    The first step has lr / warmup_steps: at a rate of 0 it would be wasted.
    """

    def rate(count: Any) -> Any:
        return cfg.lr * jnp.minimum(1.0, (count + 1) / max(cfg.warmup_steps, 1))

    return optax.chain(
        optax.clip_by_global_norm(cfg.grad_clip),
        optax.adamw(
            rate, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay
        ),
    )


def init_state(
    policy: Decoder,
    *,
    optim: OptimConfig,
    lora_config: LoraConfig | None = None,
    key: jax.Array | None = None,
) -> TrainState:
    """The state before the first step.

    Moments are laid out like their parameters. Where all weights are trained, the state
    has a copy of `policy`, which stays usable, as the reference for instance. With LoRA
    it shares the frozen weights, and `policy` is gone once the state is donated.
    """
    if lora_config is None or not lora_config.rank:
        return _init_state(_copied(policy), optim)
    key = jax.random.key(0) if key is None else key
    return _init_state(lora.attach(policy, lora_config, key), optim)


_copied = jax.jit(functools.partial(jax.tree.map, jnp.copy))


def _init_state(policy: Decoder, optim: OptimConfig) -> TrainState:
    trained = lora.trained(policy)
    master, opt_state = _init_optimiser(trained, optim)
    same = policy.cfg.dtype == optim.master_dtype
    return TrainState(
        policy=policy,
        master=None if same else master,
        opt_state=opt_state,
        step=jnp.zeros((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnames="optim")
def _init_optimiser(trained: Any, optim: OptimConfig) -> tuple[Any, Any]:
    master = _floats_as(trained, optim.master_dtype)
    opt_state = optimisation.init(optimiser(optim), master)
    return master, _floats_as(opt_state, optim.moment_dtype)


def to_save(state: TrainState) -> TrainState:
    """The state without what training leaves as it was: LoRA's frozen weights."""
    return dataclasses.replace(state, policy=lora.trained(state.policy))


def from_saved(state: TrainState, saved: TrainState) -> TrainState:
    """The inverse of `to_save`; `state` is of the same run."""
    policy = lora.with_trained(state.policy, saved.policy)
    return dataclasses.replace(saved, policy=policy)


def _floats_as(tree: Any, dtype: str) -> Any:
    """The tree with its floating-point leaves in another type."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


@functools.partial(
    jax.jit,
    static_argnames=("vocab", "objective", "optim"),
    donate_argnames="state",
)
def update_step(
    state: TrainState,
    reference: Decoder | None,
    rollouts: ScoredRollouts,
    *,
    vocab: Vocab,
    objective: ObjectiveConfig,
    optim: OptimConfig,
) -> tuple[TrainState, Metrics]:
    """The state after one step on `rollouts`, and its metrics.

    Metrics: `loss`, `loss/<step>`, `kl` (NaN without reference), `entropy`,
    `clip_fraction`, `ratio_max`, `grad_norm` (before clipping), `reward/<step>_std`
    (spread within groups of the reward that was trained on) and `groups_used` (prompts
    whose group teaches something in one of its steps). Means are over the tokens that
    count; NaN where none does.

    Args:
        state: donated.
        reference: the frozen policy of the KL term; not run where `kl_coef` is 0. None
            with LoRA: its frozen weights are that policy.
        rollouts: sampled by `state.policy`.
        vocab: which ids the segments sampled from.
        objective: the loss.
        optim: the optimiser.
    """
    if objective.kl_coef == 0:
        reference = None
    elif reference is None:
        reference = lora.base(state.policy)
    steps, metrics = _tokens_of_steps(rollouts, objective)
    gradient, loss, sums = _accumulate(
        state.policy,
        reference,
        (rollouts.sequences, steps),
        vocab,
        objective,
        optim.gradient_dtype,
    )
    master, opt_state = optimisation.step(
        optimiser(optim),
        _floats_as(gradient, optim.master_dtype),
        _floats_as(state.opt_state, optim.master_dtype),
        lora.trained(state.policy) if state.master is None else state.master,
    )
    metrics |= {"kl": jnp.float32(jnp.nan)} | means(sums)
    metrics |= {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
    trained = _floats_as(master, state.policy.cfg.dtype)
    return TrainState(
        policy=lora.with_trained(state.policy, trained),
        master=None if state.master is None else master,
        opt_state=_floats_as(opt_state, optim.moment_dtype),
        step=state.step + 1,
    ), metrics


def _tokens_of_steps(
    rollouts: ScoredRollouts, objective: ObjectiveConfig
) -> tuple[dict[str, StepTokens], Metrics]:
    """Advantages and weights, each [rows, ...] and on every device, by step."""
    steps: dict[str, StepTokens] = {}
    metrics: Metrics = {}
    used_in_steps = []
    for name, sequences in rollouts.sequences.items():
        rewards = _everywhere(rollouts.rewards[name])
        valid = valid_rollouts(rewards, jnp.ones_like(rewards, bool))
        used = used_groups(rewards, valid)
        sampled = _everywhere(jnp.concatenate([s.sampled for s in sequences], axis=1))
        rows, length = sampled.shape
        counts = (valid & used[:, None])[:, :, None]
        mask = sampled.reshape(*rewards.shape, length) & counts
        steps[name] = StepTokens(
            logp_old=jnp.concatenate([s.logp for s in sequences], axis=1),
            advantages=group_advantages(rewards, valid).reshape(rows),
            weights=token_weights(mask, objective.aggregation).reshape(rows, length),
        )
        metrics[f"reward/{name}_std"] = group_spread(rewards, valid)
        used_in_steps.append(used)
    metrics["groups_used"] = jnp.sum(functools.reduce(jnp.logical_or, used_in_steps))
    return steps, metrics


def _accumulate(
    policy: Decoder,
    reference: Decoder | None,
    rows: tuple[dict[str, tuple[Sequence, ...]], dict[str, StepTokens]],
    vocab: Vocab,
    objective: ObjectiveConfig,
    dtype: str,
) -> tuple[Any, jax.Array, Metrics]:
    """Gradient of what is trained, in `dtype`, loss and metrics' sums."""

    def recomputed(
        model: Decoder, sequences: dict[str, tuple[Sequence, ...]]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        logp, entropy = {}, {}
        for name, parts in sequences.items():
            values = [sequence_logp(model, part, vocab) for part in parts]
            logp[name], entropy[name] = (
                jnp.concatenate(x, axis=1) for x in zip(*values, strict=True)
            )
        return logp, entropy

    def loss_of(
        trained: Any,
        logp_ref: dict[str, jax.Array] | None,
        sequences: dict[str, tuple[Sequence, ...]],
        steps: dict[str, StepTokens],
    ) -> tuple[jax.Array, Metrics]:
        logp, entropy = recomputed(lora.with_trained(policy, trained), sequences)
        loss, sums = higrpo_loss(logp, logp_ref, steps, objective)
        weighted = [jnp.sum(steps[name].weights * entropy[name]) for name in steps]
        return loss, sums | {"entropy": functools.reduce(jnp.add, weighted)}

    def micro_batch(total: Any, rows: Any) -> tuple[Any, Any]:
        sequences, steps = rows
        logp_ref = None if reference is None else recomputed(reference, sequences)[0]
        value, gradient = jax.value_and_grad(loss_of, has_aux=True)(
            trained, logp_ref, sequences, steps
        )
        total = jax.tree.map(lambda a, b: a + b.astype(dtype), total, gradient)
        return total, value

    trained = lora.trained(policy)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), trained)
    gradient, (losses, sums) = jax.lax.scan(
        micro_batch, zeros, _micro_batches(rows, objective.micro_batch)
    )
    reduced = {
        name: value.max() if name == "ratio_max" else value.sum()
        for name, value in sums.items()
    }
    return gradient, losses.sum(), reduced


def _micro_batches(rows: Any, size: int) -> Any:
    """[rows, ...] as [rows / size, size, ...], each micro-batch spread over BATCH.

    Tokens and numbers per token are small, so they may visit every device on the way.
    """

    def cut(x: jax.Array) -> jax.Array:
        x = _everywhere(x).reshape(-1, size, *x.shape[1:])
        spec = jax.P(None, BATCH, *(None,) * (x.ndim - 2))
        return jax.sharding.reshard(x, spec)

    return jax.tree.map(cut, rows)


def _everywhere(x: jax.Array) -> jax.Array:
    return jax.sharding.reshard(x, jax.P(*(None,) * x.ndim))
