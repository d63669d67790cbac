"""Hi-GRPO's rollout: per prompt x, G times a coarse and a refined shape with plans.

With chat(x, I) for the prompt and an instruction I as the model's user turn:

1. global plan s and coarse shape t: chat(x, HIGH) s <mesh-start> t
2. local plan v: chat(x, HIGH) s [turn with LOW] v
3. refined shape o: chat(x, LOW) v <mesh-start> o

`rollout_coarse` does the first line, `rollout_refined` the others, so that coarse shapes
can be drawn and scored meanwhile. A prompt is computed once for its G samples, and the
first line's chat and plan once for both lines that start with them. Each function is one
jitted program per (prompt length, prompts, G). One segment's loop is in `generate.py`,
the sequences' layout in `policy/sequence.py`.

Not in the paper, our choices: a plan that has no end of turn by its last token gets one
there, unsampled, so that what follows is always well-formed; shapes have no
`<mesh-end>`, their length is known.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ar3d_jax.config import RolloutConfig
from ar3d_jax.policy.cache import Cache
from ar3d_jax.policy.chat import Prompts
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Layout, Sequence, Span
from ar3d_jax.policy.vocab import Vocab
from ar3d_jax.rollout.generate import Segment, append, prefill, sample
from ar3d_jax.rollout.sampling import filters, uniforms
from ar3d_jax.sharding import ROWS_BD, TOKENS_BT, fold_in_name

_STATIC = ("cfg", "vocab", "group_size", "shape_tokens")


@functools.partial(jax.jit, static_argnames=_STATIC)
def rollout_coarse(
    policy: Decoder,
    prompts: Prompts,
    cfg: RolloutConfig,
    vocab: Vocab,
    key: Key[Array, ""],
    *,
    group_size: int,
    shape_tokens: int,
) -> tuple[Sequence, Cache]:
    """Global plans and coarse shapes, and the cache of chat(x, HIGH) s.

    Rows are prompt-major: prompt b's samples are rows b * G to b * G + G - 1. What a row
    draws depends on (key, row) and the policy, not on the other rows.
    """
    layers = policy.layers()
    hidden, cache = prefill(policy, layers, prompts.high, prompts.high_valid)
    hidden, cache = _repeated(hidden, group_size), cache.repeated(group_size)
    plan, hidden, cache = _plan(
        policy, layers, cache, hidden, cfg, vocab, fold_in_name(key, "global plan")
    )
    begin = _mesh_start(vocab, plan.tokens.shape[0])
    hidden, grown = append(policy, layers, cache, begin.tokens, begin.valid)
    shape = _shape(
        policy, layers, grown, hidden, cfg, vocab, fold_in_name(key, "coarse"), shape_tokens
    )
    prompt = _given(prompts.high, prompts.high_valid, group_size)
    return _sequence(cfg, (prompt, plan, begin, shape), text=1, shape=3), cache


@functools.partial(jax.jit, static_argnames=_STATIC)
def rollout_refined(
    policy: Decoder,
    prompts: Prompts,
    coarse: Sequence,
    cache: Cache,
    cfg: RolloutConfig,
    vocab: Vocab,
    key: Key[Array, ""],
    *,
    group_size: int,
    shape_tokens: int,
) -> tuple[Sequence, Sequence]:
    """Local plans and refined shapes, from what `rollout_coarse` returned."""
    layers = policy.layers()
    rows = coarse.tokens.shape[0]
    before = Segment.given(
        coarse.tokens[:, : cache.slots], coarse.valid[:, : cache.slots]
    )
    turn = jnp.broadcast_to(prompts.low_turn[None], (rows, prompts.low_turn.shape[0]))
    turn = _given(turn, jnp.ones_like(turn, bool), 1)
    hidden, cache = append(policy, layers, cache, turn.tokens, turn.valid)
    plan, _, _ = _plan(
        policy, layers, cache, hidden, cfg, vocab, fold_in_name(key, "local plan")
    )
    local = _sequence(cfg, (before, turn, plan), text=2)

    _, cache = prefill(policy, layers, prompts.low, prompts.low_valid)
    context = Segment.given(plan.tokens, plan.valid)
    begin = _mesh_start(vocab, rows)
    hidden, cache = append(
        policy,
        layers,
        cache.repeated(group_size),
        jnp.concatenate([context.tokens, begin.tokens], axis=1),
        jnp.concatenate([context.valid, begin.valid], axis=1),
    )
    shape = _shape(
        policy, layers, cache, hidden, cfg, vocab, fold_in_name(key, "refined"), shape_tokens
    )
    prompt = _given(prompts.low, prompts.low_valid, group_size)
    return local, _sequence(cfg, (prompt, context, begin, shape), shape=3)
