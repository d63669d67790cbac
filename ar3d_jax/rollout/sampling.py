"""How one token is drawn from logits, and its log-probability under the same.

Filters are tiny frozen strategies with one method; `filters` makes those a config asks
for, in the order temperature, top-k, top-p. `draw` inverts the cumulative distribution
with one uniform number per row: on CPU that is cheaper than Gumbel noise for every
entry of the vocabulary, and a row's draw depends on nothing but its own number. Who
calls this for every token is `generate.py`.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ar3d_jax.config import RolloutConfig
from ar3d_jax.policy.vocab import IMPOSSIBLE
from ar3d_jax.sharding import DRAW_BV

_BLOCK = 128  # entries of the vocabulary whose cumulative sum is taken directly


@runtime_checkable  # test runs check annotations
class Filter(Protocol):
    """Logits in, logits out; `IMPOSSIBLE` removes a token."""

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns the logits of the changed distribution."""
        ...


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Divides logits: below 1 sharper, above 1 flatter."""

    value: float

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns logits / temperature."""
        return logits / self.value


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k most likely tokens, and those as likely as the k-th."""

    k: int

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns logits without the less likely tokens."""
        if self.k >= logits.shape[-1]:
            return logits
        least = jax.lax.top_k(logits, self.k)[0][:, -1:]
        return jnp.where(logits < least, IMPOSSIBLE, logits)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Keeps the most likely tokens that together have probability p or more."""

    p: float

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Returns logits without the tail."""
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        # A token stays if those before it do not reach p yet: the first always does.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.where(before < self.p, ordered, jnp.inf).min(axis=-1, keepdims=True)
        return jnp.where(logits < least, IMPOSSIBLE, logits)


def filters(cfg: RolloutConfig) -> tuple[Filter, ...]:
    """The filters a config asks for, in the order in which they apply."""
    chosen: list[Filter] = []
    if cfg.temperature != 1:
        chosen.append(Temperature(cfg.temperature))
    if cfg.top_k > 0:
        chosen.append(TopK(cfg.top_k))
    if cfg.top_p < 1:
        chosen.append(TopP(cfg.top_p))
    return tuple(chosen)


def uniforms(key: Key[Array, ""], rows: int, steps: int) -> Float[Array, "B T"]:
    """Numbers in [0, 1), one per row and step.

    Each depends on (key, row, step) alone, so a batch with more rows or a segment with
    more steps draws the same for the rows and steps they share.
    """

    def number(row: jax.Array, step: jax.Array) -> jax.Array:
        return jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(key, row), step)
        )

    by_step = jax.vmap(number, (None, 0))
    drawn = jax.vmap(by_step, (0, None))(jnp.arange(rows), jnp.arange(steps))
    return jax.sharding.reshard(drawn, DRAW_BV)


def draw(
    logits: Float[Array, "B V"], uniform: Float[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """An index from softmax(logits) per row, and its log-probability in nats.

    The index is the first whose cumulative probability exceeds `uniform`; sums are
    taken in blocks (first over blocks, then within the chosen one), because XLA does a
    cumulative sum over thousands of entries badly. An entry of probability 0 is never
    drawn. V must be a multiple of 128, as `vocab.Subset` makes it.
    """
    logits = logits - logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits).reshape(logits.shape[0], -1, _BLOCK)
    block_ends = _running_sum(weights.sum(axis=-1))
    total = block_ends[:, -1:]
    target = uniform[:, None] * total
    block = _first_above(block_ends, target)
    start = jnp.where(block > 0, _pick(block_ends, block - 1), 0.0)
    ends = _running_sum(_pick(weights, block))
    # Rounding may leave the rest of the target outside the block: stay inside.
    inside = jnp.clip(target[:, 0] - start, 0.0, ends[:, -1] * (1 - 2**-23))
    index = block * _BLOCK + _first_above(ends, inside[:, None])
    return index, _pick(logits, index) - jnp.log(total[:, 0])


def _running_sum(x: Float[Array, "B n"]) -> Float[Array, "B n"]:
    """Cumulative sum as a product with a triangle of ones: one operation, and fast."""
    size = x.shape[1]
    triangle = jnp.triu(jnp.ones((size, size), x.dtype))
    return jnp.matmul(x, triangle, precision=jax.lax.Precision.HIGHEST)


def _first_above(ends: Float[Array, "B n"], target: Float[Array, "B 1"]) -> Array:
    return (ends <= target).sum(axis=-1, dtype=jnp.int32)


def _pick(x: Float[Array, "B n *rest"], index: Int[Array, " B"]) -> Array:
    """x[b, index[b]] for every row."""
    index = index.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=1)[:, 0]
