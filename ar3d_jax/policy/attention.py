"""Grouped-query attention, the only place that knows how scores are computed.

`causal_attention` serves training: whole sequences, by the kernel that fits the device
(`kernels.py` has those of others). Ours takes queries in blocks; scores are never
stored but computed again in the backward pass from the saved log-sum, as in
FlashAttention, arXiv 2205.14135. `cached_attention` serves decoding. Projections are in
`decoder.py`, the cache in `cache.py`.

Every product here is batched over rows and key/value heads, and the Q query heads of
one key/value head are one matrix: XLA does few large products well, many small badly.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from ar3d_jax import sharding
from ar3d_jax.policy import kernels
from ar3d_jax.policy.kernels import SAVED
from ar3d_jax.sharding import (
    HEADS_BKQTH,
    KEYS_BKHS,
    SCORES_BKQTS,
    VALUES_BKSH,
    einsum,
)

QUERY_BLOCK = 128  # our choice: 17 MB of scores per row block at 8 rows, 8 heads, 1,088
_MASKED = -1e30  # finite: a row without any valid key must not become NaN


def causal_attention(
    q: Float[Array, "B T K Q H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    valid: Bool[Array, "B T"],
    kernel: str = "xla",
) -> Float[Array, "B T K Q H"]:
    """softmax(q k^T / sqrt(H)) v over valid keys at or before each query.

    The result at a query that is not valid is finite and means nothing. `kernel` is
    `policy.attention`.
    """
    if kernel == "auto":
        kernel = _fitting_kernel(q.shape[-1], q.dtype)
    if kernel == "splash":
        return kernels.splash(q, k, v, valid)
    if kernel == "cudnn":
        return kernels.cudnn(q, k, v, valid)
    q = jnp.transpose(q * q.shape[-1] ** -0.5, (0, 2, 3, 1, 4))
    k = jnp.transpose(k, (0, 2, 3, 1))
    v = jnp.transpose(v, (0, 2, 1, 3))
    return jnp.transpose(_blocked(q, k, v, valid), (0, 3, 1, 2, 4))


def _fitting_kernel(head_size: int, dtype: Any) -> str:
    """The device's own kernel where it can have these heads."""
    platform = sharding.platform()
    if platform == "tpu" and kernels.splash_fits(head_size):
        return "splash"
    if platform == "gpu" and dtype == jnp.bfloat16 and head_size % 8 == 0:
        return "cudnn"
    return "xla"


def cached_attention(
    q: Float[Array, "B T K Q H"],
    keys: Float[Array, "B K H S"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T K Q H"]:
    """softmax(q k^T / sqrt(H)) v over the cache's slots that `mask` keeps."""
    q = jnp.transpose(q * q.shape[-1] ** -0.5, (0, 2, 3, 1, 4))
    # In float32 as in training: a sampler and a trainer must agree on probabilities.
    product = functools.partial(einsum, accumulate=jnp.float32)
    scores = product("bkqth,bkhs->bkqts", q, keys, out=SCORES_BKQTS)
    scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    weights_sum = weights.sum(axis=-1)[..., None]
    attended = product(
        "bkqts,bksh->bkqth", weights.astype(values.dtype), values, out=HEADS_BKQTH
    )
    # Divided after the product: H numbers per head instead of S.
    attended = (attended / weights_sum).astype(q.dtype)
    return jnp.transpose(attended, (0, 3, 1, 2, 4))


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, length)


def _scores(q: jax.Array, k: jax.Array, valid: jax.Array, start: int) -> jax.Array:
    """Masked scores [B, K, Q, T, S] of queries from index `start` on, float32."""
    scores = einsum("bkqth,bkhs->bkqts", q, k, out=SCORES_BKQTS, accumulate=jnp.float32)
    query = start + jnp.arange(scores.shape[-2])[:, None]
    causal = jnp.arange(scores.shape[-1])[None] <= query
    mask = causal[None] & valid[:, None]
    return jnp.where(mask[:, None, None], scores, _MASKED)


@jax.custom_vjp
def _blocked(
    q: Float[Array, "B K Q T H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    valid: Bool[Array, "B T"],
) -> Float[Array, "B K Q T H"]:
    return _blocked_forward(q, k, v, valid)[0]


def _blocked_forward(q, k, v, valid):
    outs, log_sums = [], []
    for start, stop in _blocks(q.shape[3]):
        scores = _scores(q[:, :, :, start:stop], k[..., :stop], valid[:, :stop], start)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = einsum(
            "bkqts,bksh->bkqth",
            weights.astype(v.dtype),
            v[:, :, :stop],
            out=HEADS_BKQTH,
            accumulate=jnp.float32,
        )
        outs.append((out / total).astype(q.dtype))
        log_sums.append((top + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outs, axis=3), SAVED)
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), SAVED)
    return out, (q, k, v, valid, out, log_sum)


def _blocked_backward(residuals, d_out):
    q, k, v, valid, out, log_sum = residuals
    mean = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    product = functools.partial(einsum, accumulate=jnp.float32)
    d_q = []
    d_k = jnp.zeros_like(k, jnp.float32)
    d_v = jnp.zeros_like(v, jnp.float32)
    for start, stop in _blocks(q.shape[3]):
        block = (slice(None),) * 3 + (slice(start, stop),)
        scores = _scores(q[block], k[..., :stop], valid[:, :stop], start)
        weights = jnp.exp(scores - log_sum[block][..., None])
        d_weights = product(
            "bkqth,bksh->bkqts", d_out[block], v[:, :, :stop], out=SCORES_BKQTS
        )
        d_scores = weights * (d_weights - mean[block][..., None])
        weights, d_scores = weights.astype(v.dtype), d_scores.astype(v.dtype)
        d_q.append(
            product("bkqts,bkhs->bkqth", d_scores, k[..., :stop], out=HEADS_BKQTH)
        )
        rest = (0, k.shape[-1] - stop)
        d_k_block = product("bkqts,bkqth->bkhs", d_scores, q[block], out=KEYS_BKHS)
        d_k += jnp.pad(d_k_block, [(0, 0)] * 3 + [rest])
        d_v_block = product("bkqts,bkqth->bksh", weights, d_out[block], out=VALUES_BKSH)
        d_v += jnp.pad(d_v_block, [(0, 0)] * 2 + [rest, (0, 0)])
    d_q = jnp.concatenate(d_q, axis=3).astype(q.dtype)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_blocked.defvjp(_blocked_forward, _blocked_backward)
