"""LoRA (arXiv 2106.09685): a frozen weight plus a trained product of two thin matrices.

`attach` puts `LowRank` weights into a decoder's blocks; the decoder's own code does not
change, it multiplies by `project` below. The policy that samples, the one that is
trained and the reference then share the frozen weights: the reference is `base(policy)`
and takes no memory. `merged` makes an ordinary decoder of it, for export.

Query, key and value are one weight here, as are gate and up, so they share the first
thin matrix (other implementations have one each): less work, our choice.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from ar3d_jax import sharding
from ar3d_jax.config import LoraConfig
from ar3d_jax.sharding import ACT_BTD, param, zeros


class LowRank(nnx.Module):
    """weight + alpha / rank * a b, never formed.

    Attributes:
        weight: frozen, [L, D, ...].
        a: trained, [L, D, rank].
        b: trained, [L, rank, ...]; starts at zero.
        scale: alpha / rank.
    """

    def __init__(self, weight: nnx.Param, a: nnx.Param, b: nnx.Param, scale: float):
        self.weight, self.a, self.b, self.scale = weight, a, b, scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.weight.shape


def project(x: jax.Array, weight: nnx.Param | LowRank, out: P) -> jax.Array:
    """Returns x [B, T, D] times a block's weight [D, ...], laid out as `out`."""
    if not isinstance(weight, LowRank):
        return sharding.project(x, weight[...], out)
    thin = sharding.project(x, weight.a[...], ACT_BTD)
    change = sharding.project(thin, weight.b[...], out)
    return sharding.project(x, weight.weight[...], out) + change * weight.scale


@functools.partial(jax.jit, static_argnames="cfg")
def _thin(weight: jax.Array, key: jax.Array, cfg: LoraConfig) -> tuple[Any, Any]:
    layers, width, *rest = weight.shape
    _, along, *specs = jax.typeof(weight).sharding.spec
    shape, spec = (layers, width, cfg.rank), P(None, along, None)
    a = param(key, "a", shape, spec, dtype=weight.dtype, scale=width**-0.5)
    b = zeros((layers, cfg.rank, *rest), P(None, None, *specs), dtype=weight.dtype)
    return a, b


def attach(policy: Any, cfg: LoraConfig, key: jax.Array) -> Any:
    """The decoder with `cfg.targets` of all blocks as `LowRank`, at first unchanged.

    Its other arrays, the weights under the `LowRank` ones too, are the given decoder's.
    """
    policy = jax.tree.map(lambda x: x, policy)
    for name in cfg.targets:
        weight = getattr(policy.blocks, name)
        a, b = _thin(weight[...], sharding.fold_in_name(key, name), cfg)
        low = LowRank(weight, a, b, cfg.alpha / cfg.rank)
        setattr(policy.blocks, name, low)
    return policy


def trained(policy: Any) -> Any:
    """What an optimiser changes: the whole decoder, or the thin matrices by target."""
    thin = {name: {"a": weight.a, "b": weight.b} for name, weight in _low_rank(policy)}
    return thin or policy


def with_trained(policy: Any, trained: Any) -> Any:
    """The decoder with another `trained` part."""
    if not isinstance(trained, dict):
        return trained
    policy = jax.tree.map(lambda x: x, policy)
    for name, thin in trained.items():
        low = getattr(policy.blocks, name)
        low = LowRank(low.weight, thin["a"], thin["b"], low.scale)
        setattr(policy.blocks, name, low)
    return policy


def base(policy: Any) -> Any:
    """The decoder before training: its frozen weights alone."""
    return _replaced(policy, lambda low: low.weight)


@jax.jit
def merged(policy: Any) -> Any:
    """An ordinary decoder that computes the same, up to rounding to its type."""

    def whole(low: LowRank) -> nnx.Param:
        weight = low.weight[...]
        change = jnp.einsum(
            "ldr,lr...->ld...",
            low.a[...],
            low.b[...],
            preferred_element_type=jnp.float32,
            out_sharding=jax.typeof(weight).sharding.spec,
        )
        total = weight.astype(jnp.float32) + change * low.scale
        return nnx.Param(total.astype(weight.dtype))

    return _replaced(policy, whole)


def _low_rank(policy: Any) -> list[tuple[str, LowRank]]:
    return [
        (name, weight)
        for name, weight in vars(policy.blocks).items()
        if isinstance(weight, LowRank)
    ]


def _replaced(policy: Any, change: Any) -> Any:
    copy = jax.tree.map(lambda x: x, policy)
    for name, low in _low_rank(policy):
        setattr(copy.blocks, name, change(low))
    return copy
