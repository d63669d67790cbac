"""LoRA: at first nothing changes; then a product is added, and only it is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.config import LoraConfig
from ar3d_jax.policy import lora
from tests.policy.small_policy import CFG, make_policy

LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, CFG.vocab_size, (8, 9)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(9, dtype=np.int32)[None], (8, 9))


def logits(policy) -> np.ndarray:
    return np.asarray(
        jax.jit(lambda p: p(jnp.asarray(TOKENS), jnp.asarray(POSITIONS)))(policy)
    )


def disturbed(policy, seed=0):
    """The policy with random thin matrices, b too."""
    rng = np.random.default_rng(seed)

    def random(x):
        value = rng.normal(0, 0.1, x.shape).astype(x.dtype)
        return jax.device_put(value, jax.typeof(x).sharding.spec)

    return lora.with_trained(policy, jax.tree.map(random, lora.trained(policy)))


@pytest.mark.parametrize("targets", [("qkv",), ("qkv", "out", "gate_up", "down")])
def test_the_product_is_added(mesh, targets):
    policy = make_policy()
    config = dataclasses.replace(LORA, targets=targets)
    attached = lora.attach(policy, config, jax.random.key(0))
    np.testing.assert_array_equal(logits(attached), logits(policy))
    assert set(lora.trained(attached)) == set(targets)

    changed = disturbed(attached)
    expected = jax.tree.map(lambda x: x, policy)
    for name, thin in lora.trained(changed).items():
        a, b = (np.asarray(thin[which][...]) for which in "ab")
        product = np.einsum("ldr,lr...->ld...", a, b) * 2.0  # alpha / rank
        old = getattr(expected.blocks, name)
        new = jax.device_put(np.asarray(old[...]) + product, old[...].sharding)
        setattr(expected.blocks, name, type(old)(new))
    difference = np.abs(logits(changed) - logits(policy)).max()
    assert difference > 0.1
    np.testing.assert_allclose(logits(changed), logits(expected), atol=2e-5)
    merged = lora.merged(changed)
    np.testing.assert_allclose(logits(merged), logits(expected), atol=2e-5)
    for leaf, original in zip(*map(jax.tree.leaves, (merged, policy)), strict=True):
        assert leaf.sharding == original.sharding


def test_the_base_shares_the_frozen_weights():
    policy = make_policy()
    changed = disturbed(lora.attach(policy, LORA, jax.random.key(0)))
    for leaf, original in zip(
        *map(jax.tree.leaves, (lora.base(changed), policy)), strict=True
    ):
        assert leaf is original
    assert lora.trained(policy) is policy


def test_a_bfloat16_policy_has_bfloat16_products():
    policy = make_policy(dataclasses.replace(CFG, dtype="bfloat16"))
    changed = disturbed(lora.attach(policy, LORA, jax.random.key(0)))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(lora.trained(changed))}
    assert dtypes == {jnp.dtype("bfloat16")}
    assert logits(changed).dtype == np.float32
