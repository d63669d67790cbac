"""Rotary position embedding, in Qwen2.5's half-split convention.

For text the published model's three position axes are equal, so its M-RoPE is exactly
this one-dimensional RoPE. Images (three different axes) are not handled here. How the
rotated queries and keys meet is in `attention.py`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, each B T H/2, float32


def rotation(positions: Int[Array, "B T"], *, head_size: int, theta: float) -> Rotation:
    """Cosines and sines of angle position * theta^(-2i/H), for i < H/2."""
    exponents = jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size
    angles = positions[:, :, None].astype(jnp.float32) * (theta**-exponents)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T *heads H"], rotation: Rotation
) -> Float[Array, "B T *heads H"]:
    """`x` with each pair (i, i + H/2) turned by its angle; computed in float32."""
    heads = tuple(range(2, x.ndim - 1))
    cos, sin = (jnp.expand_dims(part, heads) for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
