import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.policy import sequence as module
from ar3d_jax.policy.sequence import (
    Layout,
    Segment,
    Sequence,
    join,
    sequence_logp,
    token_logp,
)
from ar3d_jax.policy.vocab import Subset
from tests.policy.small_policy import CFG, VOCAB, make_policy

LOGP = jax.jit(sequence_logp, static_argnames="vocab")
ROWS, TEXT, SHAPE = 4, (6, 10), (11, 19)


def make_sequence(temperature: float = 1.0, seed: int = 0) -> Sequence:
    """A prompt of 6, a plan of 4, a start and 8 codes; the first two are padded."""
    rng = np.random.default_rng(seed)
    length = SHAPE[1]
    tokens = rng.integers(0, VOCAB.endoftext, (ROWS, length))
    tokens[:, slice(*SHAPE)] = VOCAB.codes_start + rng.integers(0, 64, (ROWS, 8))
    valid = np.ones((ROWS, length), bool)
    valid[:, :6] = np.arange(6)[None] >= np.array([0, 2, 5, 1])[:, None]
    plan = np.arange(4)[None] < np.array([4, 1, 3, 2])[:, None]
    valid[:, slice(*TEXT)] = plan
    sampled = np.zeros_like(valid)
    sampled[:, slice(*TEXT)] = plan
    sampled[:, slice(*SHAPE)] = True
    return Sequence(
        tokens=jnp.asarray(tokens, jnp.int32),
        positions=jnp.asarray(np.maximum(valid.cumsum(axis=1) - 1, 0), jnp.int32),
        valid=jnp.asarray(valid),
        sampled=jnp.asarray(sampled),
        logp=jnp.zeros((ROWS, length)),
        layout=Layout(text=TEXT, shape=SHAPE, temperature=temperature),
    )


def expected(policy, sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """From whole logits, token by token, in float64."""
    logits = jax.jit(type(policy).__call__)(
        policy, sequence.tokens, sequence.positions, sequence.valid
    )
    logits = np.asarray(logits, np.float64) / sequence.layout.temperature
    text = [*range(VOCAB.endoftext), VOCAB.im_end]
    codes = list(range(VOCAB.codes_start, VOCAB.codes_start + VOCAB.codes))
    logp, entropy = np.zeros((2, *sequence.tokens.shape))
    for row, index in zip(*np.nonzero(np.asarray(sequence.sampled)), strict=True):
        ids = codes if index >= SHAPE[0] else text
        chosen = logits[row, index - 1, ids]
        p = np.exp(chosen - chosen.max())
        p /= p.sum()
        logp[row, index] = np.log(p[ids.index(int(sequence.tokens[row, index]))])
        entropy[row, index] = -(p * np.log(p)).sum()
    return logp, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_of_the_restricted_distributions(mesh, temperature):
    policy, sequence = make_policy(), make_sequence(temperature)
    found = LOGP(policy, sequence, vocab=VOCAB)
    for ours, theirs in zip(found, expected(policy, sequence), strict=True):
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-4, atol=1e-4)


def test_chunks_change_neither_values_nor_gradients(mesh, monkeypatch):
    policy, sequence = make_policy(), make_sequence()
    results = []
    for chunk_bytes in (2**26, ROWS * VOCAB.shape.size * 4 * 3):  # all, three tokens
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)

        def total(policy):
            return sequence_logp(policy, sequence, VOCAB)[0].sum()

        results.append(jax.jit(jax.value_and_grad(total))(policy))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-4)


def test_gradient_of_the_head_is_autodiffs():
    """The hand-written backward pass against autodiff of log_softmax."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    columns = jnp.asarray(rng.normal(size=(8, 128)), jnp.float32)
    tokens = jnp.asarray(rng.integers(10, 100, (2, 5)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    subset = Subset(10, 100, banned=(20,))

    def ours(hidden, columns):
        logp, _ = token_logp(hidden, columns, tokens, subset, temperature=0.8)
        return (logp * weights).sum()

    def theirs(hidden, columns):
        logits = (hidden @ columns)[..., :90].at[..., 10].set(-jnp.inf) / 0.8
        logp = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logp, tokens[..., None] - 10, axis=-1)[..., 0]
        return (chosen * weights).sum()

    tokens = jnp.where(tokens == 20, 21, tokens)
    for a, b in zip(
        jax.grad(ours, (0, 1))(hidden, columns),
        jax.grad(theirs, (0, 1))(hidden, columns),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5)


def test_padding_does_not_change_log_probabilities():
    policy, sequence = make_policy(), make_sequence()
    noise = jax.random.randint(jax.random.key(1), sequence.tokens.shape, 0, 48)
    other = dataclasses.replace(
        sequence, tokens=jnp.where(sequence.valid, sequence.tokens, noise)
    )
    for a, b in zip(
        LOGP(policy, sequence, vocab=VOCAB),
        LOGP(policy, other, vocab=VOCAB),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_truncated_distributions_are_refused():
    layout = Layout(shape=SHAPE, truncated=True)
    sequence = dataclasses.replace(make_sequence(), layout=layout)
    with pytest.raises(UserError, match="top_k"):
        sequence_logp(make_policy(), sequence, VOCAB)


def test_join_counts_positions_and_finds_spans():
    first = Segment.given(
        jnp.array([[0, 5], [6, 7]]), jnp.array([[False, True], [True, True]])
    )
    second = Segment.same(jnp.array([8]), 2)
    third = dataclasses.replace(first, sampled=first.valid)
    row = join(first, second, third, text=2)
    assert row.tokens.tolist() == [[0, 5, 8, 0, 5], [6, 7, 8, 6, 7]]
    assert row.positions.tolist() == [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4]]
    assert row.sampled.sum() == 3
    assert row.layout == Layout(text=(3, 5), shape=None)
    assert CFG.vocab_size > VOCAB.mesh_end
