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
    """Random weights, the same on every mesh; made without compiling anything."""
    abstract = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def random(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        # Around 1 for norms [D] and [L, D], so that every weight matters.
        value = rng.normal(
            float(leaf.ndim <= 2 and leaf.shape[-1] == cfg.width), 0.3, leaf.shape
        )
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding.spec)

    return jax.tree.map(random, abstract)


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
