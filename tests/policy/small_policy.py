"""A tiny decoder, its vocabulary and prompts, for tests of policy and rollout."""

import jax
import jax.numpy as jnp
import numpy as np

from ar3d_jax.config import PolicyConfig
from ar3d_jax.policy.chat import Prompts
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.vocab import Vocab

CFG = PolicyConfig(
    vocab_size=192,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=8,
    mlp_width=48,
    max_positions=256,
)
# Text 0..47, three marks, codes 51..114, the two ends of a shape, padding.
VOCAB = Vocab(
    endoftext=48,
    im_start=49,
    im_end=50,
    codes_start=51,
    codes=64,
    mesh_start=115,
    mesh_end=116,
)


def make_policy(cfg: PolicyConfig = CFG, seed: int = 0) -> Decoder:
    """Random weights; larger than at the start of a training, so that they matter."""

    def make(key: jax.Array) -> Decoder:
        policy = Decoder(cfg, key)
        leaves, structure = jax.tree.flatten(policy)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            leaf + 0.3 * jax.random.normal(k, leaf.shape, out_sharding=spec(leaf))
            for leaf, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy)

    def spec(leaf: jax.Array) -> jax.sharding.PartitionSpec:
        return jax.typeof(leaf).sharding.spec

    return jax.jit(make)(jax.random.key(seed))


def make_prompts(rows: int = 4, length: int = 12, seed: int = 0) -> Prompts:
    """Random prompts of random lengths, padded on the left."""
    rng = np.random.default_rng(seed)

    def batch() -> tuple[np.ndarray, np.ndarray]:
        tokens = rng.integers(0, VOCAB.endoftext, (rows, length)).astype(np.int32)
        lengths = rng.integers(3, length + 1, (rows, 1))
        return tokens, np.arange(length)[None] >= length - lengths

    turn = rng.integers(0, VOCAB.endoftext, 5).astype(np.int32)
    return Prompts(*batch(), *batch(), turn)


def as_jax(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(x) for x in arrays)
