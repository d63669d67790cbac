import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.config import PolicyConfig
from ar3d_jax.policy.cache import Cache
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.sharding import make_mesh
from tests.policy.small_policy import CFG, VOCAB, as_jax, make_policy

FORWARD = jax.jit(Decoder.__call__)


def tokens_of(rows: int = 4, length: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CFG.vocab_size, (rows, length))


def positions_of(valid: np.ndarray) -> np.ndarray:
    return np.maximum(np.cumsum(valid, axis=1) - 1, 0)


def test_padding_on_either_side_changes_nothing(mesh):
    policy = make_policy()
    tokens = tokens_of()
    valid = np.ones(tokens.shape, bool)
    alone = FORWARD(policy, *as_jax(tokens, positions_of(valid)))
    for left, right in ((3, 0), (0, 3), (2, 4)):
        width = ((0, 0), (left, right))
        padded = np.pad(tokens, width, constant_values=7)
        kept = np.pad(valid, width)
        logits = FORWARD(policy, *as_jax(padded, positions_of(kept), kept))
        inside = np.asarray(logits)[:, left : left + tokens.shape[1]]
        np.testing.assert_allclose(inside, np.asarray(alone), rtol=1e-4, atol=1e-4)
        assert np.isfinite(np.asarray(logits)).all()


def test_mesh_changes_nothing():
    results = []
    for fsdp, tp in ((1, 1), (4, 2)):
        with jax.set_mesh(make_mesh(fsdp, tp)):
            tokens = tokens_of()
            arguments = as_jax(tokens, positions_of(tokens >= 0))

            def loss(policy, *x):
                return jnp.square(policy(*x)).mean()

            value, gradient = jax.jit(jax.value_and_grad(loss))(
                make_policy(), *arguments
            )
            results.append(jax.tree.map(np.asarray, (value, gradient)))
    for one, eight in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_cached_decoding_equals_the_full_forward(mesh, scan):
    """Prompts in one piece, then tokens one by one, some of them padding."""
    policy = make_policy(dataclasses.replace(CFG, scan_decode=scan))
    tokens = tokens_of(4, 12)
    valid = np.random.default_rng(1).random(tokens.shape) < 0.8
    valid[:, 4] = True
    full = jax.jit(Decoder.hidden)(policy, *as_jax(tokens, positions_of(valid), valid))

    @jax.jit
    def step(policy, cache, slot, tokens, valid):
        return policy.extend(policy.layers(), cache, slot, tokens, valid)

    cache = Cache.empty(policy.cfg, rows=4, slots=5)
    hidden, cache = step(policy, cache, 0, *as_jax(tokens[:, :5], valid[:, :5]))
    pieces = [hidden]
    cache = cache.grown(12)
    for slot in range(5, 12):
        one = (slice(None), slice(slot, slot + 1))
        hidden, cache = step(policy, cache, slot, *as_jax(tokens[one], valid[one]))
        pieces.append(hidden)
    np.testing.assert_array_equal(np.asarray(cache.valid), valid)
    np.testing.assert_array_equal(np.asarray(cache.lengths), valid.sum(axis=1))
    stepped = np.concatenate([np.asarray(piece) for piece in pieces], axis=1)
    np.testing.assert_allclose(
        stepped[valid], np.asarray(full)[valid], rtol=1e-4, atol=1e-4
    )


def test_remat_changes_nothing():
    tokens = tokens_of()
    arguments = as_jax(tokens, positions_of(tokens >= 0))
    gradients = []
    for remat in ("off", "attention", "full"):
        policy = make_policy(dataclasses.replace(CFG, remat=remat))
        gradient = jax.jit(jax.grad(lambda p: jnp.square(p(*arguments)).mean()))(policy)
        gradients.append(jax.tree.leaves(gradient))
    for leaves in zip(*gradients, strict=True):
        for other in leaves[1:]:
            np.testing.assert_allclose(
                np.asarray(other), np.asarray(leaves[0]), rtol=1e-4, atol=1e-6
            )


def test_repeated_cache_is_that_of_repeated_rows():
    policy = make_policy()
    tokens = tokens_of(2, 5)
    valid = np.ones(tokens.shape, bool)

    @jax.jit
    def prefill(tokens, valid):
        cache = Cache.empty(CFG, rows=len(tokens), slots=5)
        return policy.extend(policy.layers(), cache, 0, tokens, valid)[1]

    once = prefill(tokens, valid).repeated(3)
    thrice = prefill(np.repeat(tokens, 3, axis=0), np.repeat(valid, 3, axis=0))
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(thrice), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_types_of_a_bfloat16_policy():
    """How far it is off: `test_parity.py`."""
    tokens = tokens_of()
    arguments = as_jax(tokens, positions_of(tokens >= 0))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_policy())
    half.cfg = half.blocks.cfg = dataclasses.replace(CFG, dtype="bfloat16")
    assert FORWARD(half, *arguments).dtype == jnp.float32
    gradient = jax.jit(jax.grad(lambda p: jnp.square(p(*arguments)).mean()))(half)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(gradient))


def test_published_size_by_shapes_alone():
    """7B, no memory: the parameter count of the published text model, its layouts."""
    cfg = PolicyConfig(
        vocab_size=159_872,
        width=3584,
        layers=28,
        heads=28,
        kv_heads=4,
        head_size=128,
        mlp_width=18_944,
        dtype="bfloat16",
    )
    with jax.set_mesh(make_mesh(4, 2)):
        policy = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
        tokens = jax.ShapeDtypeStruct((8, 1200), jnp.int32)
        logits = jax.eval_shape(lambda p, x: p(x, x), policy, tokens)
    leaves = jax.tree.leaves(policy)
    assert sum(leaf.size for leaf in leaves) == 7_671_584_256  # facts, vocab 159,872
    blocks = policy.blocks
    for param in (blocks.qkv, blocks.out, blocks.gate_up, blocks.down, policy.head):
        assert {"fsdp", "tp"} <= set(param.get_value().sharding.spec)
    assert logits.shape == (8, 1200, 159_872)
    assert logits.sharding.spec == jax.P(("data", "fsdp"), None, "tp")


def test_vocabulary_of_the_tests_is_consistent():
    assert VOCAB.shape.size == 128
    assert VOCAB.text.stop == VOCAB.im_end + 1
