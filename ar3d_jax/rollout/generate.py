"""One segment: tokens sampled after what a cache holds.

`prefill` fills a cache with prompts, `sample` draws a segment. Both are pure functions
inside the jitted programs of `two_step.py`, which puts segments together; how a single
token is drawn is in `sampling.py`.

What makes it fast on CPU (measured by benchmarks/rollout.py): layers unrolled, fused
projections, keys stored transposed, random numbers made before the loop, a cache that
grows in windows so that early tokens do not attend over the whole length, and a loop
that ends when the last row has (`rollout.stop_early`).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ar3d_jax.policy.cache import Cache
from ar3d_jax.policy.decoder import Decoder, Layers
from ar3d_jax.policy.sequence import Segment
from ar3d_jax.policy.vocab import Subset
from ar3d_jax.rollout.sampling import Filter, draw
from ar3d_jax.sharding import DRAW_BV, LOGITS_BV, ROWS_B, einsum

WINDOW = 256  # slots by which a cache grows; each window compiles its own loop
DECODE_SCOPE = "decode"  # by which the loop is found in a compiled program


State = tuple[jax.Array, jax.Array, jax.Array, Cache, Segment]


def prefill(
    policy: Decoder,
    layers: Layers,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
) -> tuple[Float[Array, "B D"], Cache]:
    """The last hidden states of prompts padded on the left, and a cache with them."""
    cache = Cache.empty(policy.cfg, rows=tokens.shape[0], slots=0)
    return append(policy, layers, cache, tokens, valid)


def append(
    policy: Decoder,
    layers: Layers,
    cache: Cache,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
) -> tuple[Float[Array, "B D"], Cache]:
    """The last hidden states of given tokens after a cache, and the cache with them."""
    slot = cache.slots
    cache = cache.grown(slot + tokens.shape[1])
    hidden, cache = policy.extend(layers, cache, slot, tokens, valid)
    return hidden[:, -1], cache


def sample(
    policy: Decoder,
    layers: Layers,
    cache: Cache,
    hidden: Float[Array, "B D"],
    numbers: Float[Array, "B T"],
    *,
    subset: Subset,
    filters: tuple[Filter, ...],
    end: int | None = None,
    stop_early: bool = True,
) -> tuple[Segment, Float[Array, "B D"], Cache]:
    """Draws a segment as wide as `numbers`, which are uniform in [0, 1).

    Args:
        policy: the model.
        layers: `policy.layers()`.
        cache: what precedes the segment; full, it grows here.
        hidden: of the cache's last token, from which the first token is drawn.
        numbers: one per token, `sampling.uniforms`.
        subset: the ids to draw from.
        filters: how logits are changed before drawing.
        end: the id that ends a row; a row that has not drawn it by its last token gets
            it there. None: every row is full.
        stop_early: end when the last row has. Rows on several devices then ask each
            other at every token.

    Returns:
        The segment, the last hidden states, and the cache with the segment in it.
    """
    start, (rows, steps) = cache.slots, numbers.shape
    columns = subset.columns(policy.head_weights())

    def step(state: State) -> State:
        index, hidden, done, cache, segment = state
        logits = einsum(
            "bd,dv->bv", hidden, columns, out=LOGITS_BV, accumulate=jnp.float32
        )
        logits = subset.masked(jax.sharding.reshard(logits, DRAW_BV))
        for change in filters:
            logits = change(logits)
        number = jax.lax.dynamic_index_in_dim(numbers, index, axis=1, keepdims=False)
        drawn, logp = draw(logits, number)
        token, sampled = drawn + subset.start, ~done
        if end is not None:
            forced = index == steps - 1
            token, sampled = jnp.where(forced, end, token), sampled & ~forced
        token = jnp.where(done, 0, token)
        logp = jnp.where(sampled, logp, 0.0)
        segment = segment.write(index, token, ~done, sampled, logp)
        hidden, cache = policy.extend(
            layers, cache, start + index, token[:, None], ~done[:, None]
        )
        if end is not None:
            done = done | (token == end)
        return index + 1, hidden[:, 0], done, cache, segment

    def goes_on(state: State, stop: int) -> jax.Array:
        more = state[0] < stop
        return more & ~state[2].all() if end is not None and stop_early else more

    done = jnp.zeros(rows, bool, out_sharding=ROWS_B)
    state = jnp.int32(0), hidden, done, cache, Segment.empty(rows, steps)
    for first in range(0, steps, WINDOW):
        stop = min(first + WINDOW, steps)
        index, hidden, done, cache, segment = state
        with jax.named_scope(DECODE_SCOPE):
            state = jax.lax.while_loop(
                functools.partial(goes_on, stop=stop),
                step,
                (index, hidden, done, cache.grown(start + stop), segment),
            )
    _, hidden, _, cache, segment = state
    return segment, hidden, cache
