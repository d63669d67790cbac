"""Rotary position embedding, in Qwen2.5's half-split convention.

For text the published model's three position axes are equal, so its M-RoPE is exactly
this one-dimensional RoPE. Images (three different axes) are not handled here. How the
rotated queries and keys meet is in `attention.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, each B T H/2, float32


def rotation(positions: Int[Array, "B T"], *, head_size: int, theta: float) -> Rotation:
    """Cosines and sines of angle position * theta^(-2i/H), for i < H/2.

    Frequencies are rounded as the published code rounds them, a float32 power and then
    its reciprocal: one bit in a frequency is 1e-4 in an angle at 1,000 tokens.
    """
    powers = np.float32(theta ** (np.arange(0, head_size, 2) / head_size))
    frequencies = jnp.asarray(1 / powers)
    angles = positions[:, :, None].astype(jnp.float32) * frequencies[None, None]
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
