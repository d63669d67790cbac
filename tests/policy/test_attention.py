import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.policy import attention
from ar3d_jax.sharding import ACT_BTKPH, KEYS_BKHS, TOKENS_BT, VALUES_BKSH

B, T, K, Q, H = 4, 11, 2, 3, 4


def plain(q, k, v, valid):
    """One head and one query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, kv, head in np.ndindex(q.shape[:-1]):
        keys = [s for s in range(t + 1) if valid[b, s]]
        if keys:
            scores = k[b, keys, kv] @ q[b, t, kv, head] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, t, kv, head] = weights @ v[b, keys, kv] / weights.sum()
    return out


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    shapes = (B, T, K, Q, H), (B, T, K, H), (B, T, K, H)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    valid = rng.random((B, T)) < 0.7
    valid[0] = True
    valid[1, :4] = False  # queries without any key
    return q, k, v, valid


def spread(q, k, v, valid):
    spec = ACT_BTKPH
    return (
        jax.sharding.reshard(q, spec),
        jax.sharding.reshard(k, jax.P(*spec[:4])),
        jax.sharding.reshard(v, jax.P(*spec[:4])),
        jax.sharding.reshard(valid, TOKENS_BT),
    )


@pytest.mark.parametrize("block", [4, 128])
def test_blocks_equal_the_plain_formula(mesh, inputs, monkeypatch, block):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    valid = inputs[-1]
    out = jax.jit(lambda *x: attention.causal_attention(*spread(*x)))(*inputs)
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(
        np.asarray(out)[valid], plain(*inputs)[valid], rtol=1e-4, atol=1e-5
    )


def test_gradient_equals_the_unblocked_one(mesh, inputs, monkeypatch):
    """The hand-written backward pass against autodiff of the plain formula."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    q, k, v, valid = inputs
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    weights *= valid[:, :, None, None, None]

    def loss(q, k, v):
        out = attention.causal_attention(*spread(q, k, v, valid))
        return (out * weights).sum()

    def simple(q, k, v):
        scores = jnp.einsum("btkqh,bskh->bkqts", q, k) / np.sqrt(H)
        keep = np.tril(np.ones((T, T), bool))[None] & valid[:, None]
        scores = jnp.where(keep[:, None, None], scores, -1e30)
        attended = jnp.einsum("bkqts,bskh->btkqh", jax.nn.softmax(scores), v)
        return (attended * weights).sum()

    ours = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
    theirs = jax.jit(jax.grad(simple, (0, 1, 2)))(q, k, v)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5)


def test_cached_attention_reads_only_what_the_mask_keeps(mesh, inputs):
    q, k, v, valid = inputs
    index = np.arange(T)
    mask = (index[None] <= index[:, None])[None] & valid[:, None]
    keys, values = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    keys = jax.sharding.reshard(keys, KEYS_BKHS)
    values = jax.sharding.reshard(values, VALUES_BKSH)
    out = jax.jit(attention.cached_attention)(
        jax.sharding.reshard(q, ACT_BTKPH),
        keys,
        values,
        jax.sharding.reshard(mask, jax.P(("data", "fsdp"), None, None)),
    )
    np.testing.assert_allclose(
        np.asarray(out)[valid], plain(*inputs)[valid], rtol=1e-4, atol=1e-5
    )
