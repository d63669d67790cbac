"""Attention kernels of others, behind the signature of `attention.causal_attention`.

`splash` is JAX's Pallas kernel for TPU, `cudnn` NVIDIA's through JAX; `attention.py`
picks. Neither can see the mesh, so each device runs it on its own rows and heads
(`shard_map`). Padding may be anywhere in a row; the result at a padded query is finite
and means nothing.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from ar3d_jax.sharding import ACT_BTKH, ACT_BTKPH, TOKENS_BT

SAVED = "attention"  # the name under which a checkpoint policy finds what to keep
_LANES = 128  # splash: lengths and head sizes are multiples of it
_BLOCK = 512  # splash: queries and keys at a time; our choice, JAX's default is 128


def splash_fits(head_size: int) -> bool:
    """Whether `splash` can have heads of this size."""
    return head_size % _LANES == 0


def splash(
    q: Float[Array, "B T K Q H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    valid: Bool[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T K Q H"]:
    """On TPU. `interpret` runs it anywhere, slowly."""
    attend = functools.partial(_splash, interpret=interpret)
    return _on_each_device(attend, q * q.shape[-1] ** -0.5, k, v, valid)


def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array, *, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as tpu  # half a second

    rows, length, kv_heads, group, size = q.shape
    block = min(_BLOCK, -(-length // _LANES) * _LANES)
    padded = -(-length // block) * block
    q, k, v, valid = (
        jnp.pad(x, ((0, 0), (0, padded - length), *((0, 0),) * (x.ndim - 2)))
        for x in (q, k, v, valid)
    )
    heads = kv_heads * group
    mask = tpu.CausalMask((padded, padded))
    kernel = tpu.make_splash_mha_single_device(
        tpu.MultiHeadMask([mask] * heads),
        block_sizes=tpu.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )
    # Valid tokens and padding are two segments that do not see each other.
    segments = valid.astype(jnp.int32)
    out: Any = jax.vmap(kernel)(
        jnp.moveaxis(q.reshape(rows, padded, heads, size), 1, 2),
        jnp.moveaxis(k, 1, 2),
        jnp.moveaxis(v, 1, 2),
        tpu.SegmentIds(segments, segments),
    )
    out = jnp.moveaxis(out, 2, 1).reshape(q.shape)
    return out[:, :length].astype(q.dtype)


def cudnn(
    q: Float[Array, "B T K Q H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    valid: Bool[Array, "B T"],
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T K Q H"]:
    """On NVIDIA GPUs, in bfloat16. `implementation="xla"` runs the same anywhere."""
    attend = functools.partial(_cudnn, implementation=implementation)
    return _on_each_device(attend, q, k, v, valid)


def _cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array,
    *,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    rows, length, kv_heads, group, size = q.shape
    # A padded query sees itself: without any key it would be NaN.
    mask = valid[:, None, None] | jnp.eye(length, dtype=bool)[None, None]
    out = jax.nn.dot_product_attention(
        q.reshape(rows, length, kv_heads * group, size),
        k,
        v,
        mask=mask,
        is_causal=True,
        implementation=implementation,
    )
    return checkpoint_name(out.reshape(q.shape), SAVED)


def _on_each_device(attend, q, k, v, valid):
    return jax.shard_map(
        attend,
        in_specs=(ACT_BTKPH, ACT_BTKH, ACT_BTKH, TOKENS_BT),
        out_specs=ACT_BTKPH,
        check_vma=False,  # the kernels do not say what varies over which devices
    )(q, k, v, valid)
