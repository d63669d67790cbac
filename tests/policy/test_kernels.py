"""Other kernels give what ours gives, values and gradients; the device picks one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import sharding
from ar3d_jax.policy import attention, kernels
from ar3d_jax.sharding import ACT_BTKH, ACT_BTKPH, TOKENS_BT

B, T, K, Q, H = 4, 150, 2, 2, 128  # T is no multiple of splash's blocks


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    shapes = (B, T, K, Q, H), (B, T, K, H), (B, T, K, H)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    valid = np.ones((B, T), bool)
    valid[0, :7] = False  # padding on the left, in the middle, on the right
    valid[1, 60:90] = False
    valid[2, -20:] = False
    return q, k, v, valid


def value_and_gradients(attend, inputs):
    specs = (ACT_BTKPH, ACT_BTKH, ACT_BTKH, TOKENS_BT)
    weights = jnp.asarray(inputs[0] * inputs[3][:, :, None, None, None])

    @jax.jit
    def run(*arrays):
        spread = [
            jax.sharding.reshard(*pair) for pair in zip(arrays, specs, strict=True)
        ]
        w = jax.sharding.reshard(weights, ACT_BTKPH)
        loss = lambda q, k, v: jnp.sum(attend(q, k, v, spread[3]) * w)  # noqa: E731
        out = attend(*spread)
        return out, jax.grad(loss, argnums=(0, 1, 2))(*spread[:3])

    return run(*inputs)


@pytest.mark.parametrize(
    "kernel",
    [
        functools.partial(kernels.splash, interpret=True),
        functools.partial(kernels.cudnn, implementation="xla"),
    ],
    ids=["splash", "cudnn"],
)
def test_kernels_agree_with_ours(mesh, inputs, kernel):
    ours, our_gradients = value_and_gradients(attention.causal_attention, inputs)
    theirs, their_gradients = value_and_gradients(kernel, inputs)
    valid = inputs[3]
    assert np.isfinite(np.asarray(theirs)).all()
    np.testing.assert_allclose(
        np.asarray(theirs)[valid], np.asarray(ours)[valid], atol=2e-5
    )
    for a, b in zip(their_gradients, our_gradients, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4, rtol=2e-4)


def test_the_device_and_the_head_size_pick(monkeypatch):
    pick = attention._fitting_kernel
    assert sharding.platform() == "cpu"
    assert pick(128, jnp.float32) == "xla"
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert (pick(128, jnp.bfloat16), pick(64, jnp.bfloat16)) == ("splash", "xla")
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert (pick(128, jnp.bfloat16), pick(128, jnp.float32)) == ("cudnn", "xla")
