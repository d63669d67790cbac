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
and a trainer that disagree show in `mismatch` and `ratio_max`. Several
updates on one batch may each take some of its prompts (`minibatches`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        logp_old: by step, the trainer's log-probabilities [B * G, T] before any update,
            of `with_trainer_logp`; None: the sampler's count.
    """

    sequences: dict[str, tuple[Sequence, ...]]
    rewards: dict[str, Any]
    logp_old: dict[str, Any] | None = None


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
    keep: bool = True,
) -> TrainState:
    """The state before the first step.

    Moments are laid out like their parameters. Where all weights are trained, the state
    has a copy of `policy`, which stays usable, as the reference for instance; without
    `keep` there is no second copy, and `policy` is gone once the state is donated. So
    it is with LoRA, whose state shares the frozen weights.
    """
    if lora_config is None or not lora_config.rank:
        return _init_state(_copied(policy) if keep else policy, optim)
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


def minibatches(
    objective: ObjectiveConfig, prompts: int, key: jax.Array
) -> list[jax.Array | None]:
    """Which prompts each update of a batch learns from; None for all of them.

    With `objective.minibatches` = m > 1 an update takes one of m parts, and each pass
    over the batch has an order of its own.
    """
    updates, parts = objective.updates_per_rollout, objective.minibatches
    if parts == 1:
        return [None] * updates
    passes = [
        jax.random.permutation(jax.random.fold_in(key, number), prompts)
        for number in range(updates // parts)
    ]
    return [part for order in passes for part in order.reshape(parts, -1)]


def over_updates(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """One line for several updates of a batch, from the metrics of each, on the host.

    Means of those that are numbers, of `grad_norm` of all: one that is not finite must
    show; of `ratio_max` the largest; `mismatch` of the first that had tokens, because
    later ones hold what the updates changed.
    """
    of_all = {"grad_norm": np.mean, "ratio_max": np.max}
    line = {}
    for name in metrics[0]:
        values = np.array([of[name] for of in metrics])
        there = values[np.isfinite(values)]
        if name in of_all:
            line[name] = of_all[name](values)
        elif name == "mismatch" and there.size:
            line[name] = there[0]
        else:
            line[name] = there.mean() if there.size else np.nan
    return line


@functools.partial(
    jax.jit,
    static_argnames=("vocab", "objective", "optim"),
    donate_argnames="state",
)
def update_step(
    state: TrainState,
    reference: Decoder | None,
    rollouts: ScoredRollouts,
    prompts: jax.Array | None = None,
    *,
    vocab: Vocab,
    objective: ObjectiveConfig,
    optim: OptimConfig,
) -> tuple[TrainState, Metrics]:
    """The state after one step on `rollouts`, and its metrics.

    Metrics: `loss`, `loss/<step>`, `kl` (NaN without reference), `entropy`,
    `clip_fraction`, `ratio_max`, `mismatch` (mean distance of the policy's and the
    sampler's log-probabilities, nats), `grad_norm` (before clipping; one that is not
    finite was left out of the step), `reward/<step>_std` (spread within groups of the
    reward that was trained on) and `groups_used` (prompts whose group teaches something
    in one of its steps). Means are over the tokens that count; NaN where none does.

    Args:
        state: donated.
        reference: the frozen policy of the KL term; not run where `kl_coef` is 0. None
            with LoRA: its frozen weights are that policy.
        rollouts: sampled by `state.policy`, or by what it was before other updates.
        prompts: indices of those to learn from; None: all. Advantages are of all.
        vocab: which ids the segments sampled from.
        objective: the loss.
        optim: the optimiser.
    """
    gradient, metrics = loss_gradient(
        state.policy,
        reference,
        rollouts,
        prompts,
        vocab=vocab,
        objective=objective,
        dtype=optim.gradient_dtype,
    )
    master, opt_state = optimisation.step(
        optimiser(optim),
        _floats_as(gradient, optim.master_dtype),
        _floats_as(state.opt_state, optim.master_dtype),
        lora.trained(state.policy) if state.master is None else state.master,
    )
    trained = _floats_as(master, state.policy.cfg.dtype)
    return TrainState(
        policy=lora.with_trained(state.policy, trained),
        master=None if state.master is None else master,
        opt_state=_floats_as(opt_state, optim.moment_dtype),
        step=state.step + 1,
    ), metrics


def loss_gradient(
    policy: Decoder,
    reference: Decoder | None,
    rollouts: ScoredRollouts,
    prompts: jax.Array | None = None,
    *,
    vocab: Vocab,
    objective: ObjectiveConfig,
    dtype: str = "float32",
) -> tuple[Any, Metrics]:
    """The gradient of equation (14)'s loss, and the metrics of `update_step`.

    The gradient is a tree like `lora.trained(policy)`, in `dtype`; arguments are as in
    `update_step`. To be called under `jax.jit`.
    """
    if objective.kl_coef == 0:
        reference = None
    elif reference is None:
        reference = lora.base(policy)
    rows, metrics = _rows_of_steps(rollouts, prompts, objective)
    gradient, loss, sums = _accumulate(policy, reference, rows, vocab, objective, dtype)
    metrics |= {"kl": jnp.float32(jnp.nan)} | means(sums)
    metrics |= {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
    return gradient, metrics


Rows = tuple[dict[str, tuple[Sequence, ...]], dict[str, StepTokens]]  # by step


def _rows_of_steps(
    rollouts: ScoredRollouts, prompts: jax.Array | None, objective: ObjectiveConfig
) -> tuple[Rows, Metrics]:
    """Sequences, advantages and weights of the chosen prompts' rows, by step."""
    steps: dict[str, StepTokens] = {}
    metrics: Metrics = {}
    used_in_steps = []
    group_size = next(iter(rollouts.rewards.values())).shape[1]
    chosen = functools.partial(_of_prompts, prompts=prompts, group_size=group_size)
    sequences = jax.tree.map(chosen, rollouts.sequences)
    for name, parts in sequences.items():
        rewards = _everywhere(jnp.asarray(rollouts.rewards[name]))
        valid = valid_rollouts(rewards, jnp.ones_like(rewards, bool))
        used = used_groups(rewards, valid)
        advantages = group_advantages(rewards, valid, std=objective.advantage_std)
        sampled = _everywhere(jnp.concatenate([s.sampled for s in parts], axis=1))
        rows, length = sampled.shape
        counts = chosen((valid & used[:, None]).reshape(-1))
        mask = (sampled & counts[:, None]).reshape(-1, group_size, length)
        sampler = jnp.concatenate([s.logp for s in parts], axis=1)
        trainer = chosen(rollouts.logp_old[name]) if rollouts.logp_old else None
        steps[name] = StepTokens(
            logp_old=sampler if trainer is None else trainer,
            advantages=chosen(advantages.reshape(-1)),
            weights=token_weights(mask, objective.aggregation).reshape(rows, length),
            logp_sampler=None if trainer is None else sampler,
        )
        metrics[f"reward/{name}_std"] = group_spread(rewards, valid)
        used_in_steps.append(used)
    metrics["groups_used"] = jnp.sum(functools.reduce(jnp.logical_or, used_in_steps))
    return (sequences, steps), metrics


def _of_prompts(x: jax.Array, prompts: jax.Array | None, group_size: int) -> jax.Array:
    """The rows of some prompts; of all, as they are."""
    if prompts is None:
        return x
    x = _everywhere(x).reshape(-1, group_size, *x.shape[1:])
    return x[prompts].reshape(-1, *x.shape[2:])


def with_trainer_logp(
    rollouts: ScoredRollouts, policy: Decoder, vocab: Vocab, objective: ObjectiveConfig
) -> ScoredRollouts:
    """With what the trainer itself says of the sampled tokens, nats [rows, T] by step.

    One forward pass over the batch: the price of `objective.correct_mismatch`.
    """
    logp = _trainer_logp(policy, rollouts.sequences, vocab, objective.micro_batch)
    return dataclasses.replace(rollouts, logp_old=logp)


@functools.partial(jax.jit, static_argnames=("vocab", "micro_batch"))
def _trainer_logp(
    policy: Decoder,
    sequences: dict[str, tuple[Sequence, ...]],
    vocab: Vocab,
    micro_batch: int,
) -> dict[str, jax.Array]:
    def some(_: None, rows: Any) -> tuple[None, dict[str, jax.Array]]:
        return None, _logp_of(policy, rows, vocab)[0]

    _, logp = jax.lax.scan(some, None, _micro_batches(sequences, micro_batch))
    return jax.tree.map(lambda x: _everywhere(x).reshape(-1, x.shape[-1]), logp)


def _logp_of(
    model: Decoder, sequences: dict[str, tuple[Sequence, ...]], vocab: Vocab
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """By step, log-probabilities and entropies of all its sequences side by side."""
    logp, entropy = {}, {}
    for name, parts in sequences.items():
        values = [sequence_logp(model, part, vocab) for part in parts]
        logp[name], entropy[name] = (
            jnp.concatenate(x, axis=1) for x in zip(*values, strict=True)
        )
    return logp, entropy


def _accumulate(
    policy: Decoder,
    reference: Decoder | None,
    rows: Rows,
    vocab: Vocab,
    objective: ObjectiveConfig,
    dtype: str,
) -> tuple[Any, jax.Array, Metrics]:
    """Gradient of what is trained, in `dtype`, loss and metrics' sums."""

    def loss_of(
        trained: Any,
        logp_ref: dict[str, jax.Array] | None,
        sequences: dict[str, tuple[Sequence, ...]],
        steps: dict[str, StepTokens],
    ) -> tuple[jax.Array, Metrics]:
        model = lora.with_trained(policy, trained)
        logp, entropy = _logp_of(model, sequences, vocab)
        loss, sums = higrpo_loss(logp, logp_ref, steps, objective)
        weighted = [jnp.sum(steps[name].weights * entropy[name]) for name in steps]
        return loss, sums | {"entropy": functools.reduce(jnp.add, weighted)}

    def micro_batch(total: Any, rows: Any) -> tuple[Any, Any]:
        sequences, steps = rows
        logp_ref = None
        if reference is not None:
            logp_ref, _ = _logp_of(reference, sequences, vocab)
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
