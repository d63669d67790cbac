import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ar3d_jax.config import RolloutConfig
from ar3d_jax.policy.vocab import IMPOSSIBLE
from ar3d_jax.rollout.sampling import (
    Temperature,
    TopK,
    TopP,
    draw,
    filters,
    uniforms,
)

DRAW = jax.jit(draw)


def logits_of(probabilities: list[float]) -> jax.Array:
    return jnp.log(jnp.array([probabilities]))


def kept(logits: jax.Array) -> list[int]:
    return np.flatnonzero(np.asarray(logits[0]) > IMPOSSIBLE / 2).tolist()


def test_hand_computed_filters():
    logits = logits_of([0.1, 0.4, 0.2, 0.3])
    assert kept(TopK(2)(logits)) == [1, 3]
    assert kept(TopK(9)(logits)) == [0, 1, 2, 3]
    assert kept(TopP(0.6)(logits)) == [1, 3]  # 0.4 is not enough, 0.7 is
    assert kept(TopP(0.1)(logits)) == [1]
    np.testing.assert_allclose(Temperature(2.0)(logits), logits / 2)


def test_config_names_the_filters_in_order():
    cfg = RolloutConfig(temperature=0.7, top_k=5, top_p=0.9)
    assert filters(cfg) == (Temperature(0.7), TopK(5), TopP(0.9))
    assert filters(RolloutConfig(temperature=1.0)) == ()


@pytest.mark.parametrize("size", [128, 1024, 10240])
def test_inverse_of_the_cumulative_distribution(size):
    """Against float64, where no uniform number is close to a boundary."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(64, size)).astype(np.float32) * 3
    uniform = rng.random(64).astype(np.float32)
    index, logp = DRAW(jnp.asarray(logits), jnp.asarray(uniform))
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    cumulative = p.cumsum(axis=1)
    expected = (cumulative <= uniform[:, None]).sum(axis=1)
    clear = np.abs(cumulative - uniform[:, None]).min(axis=1) > 1e-5
    assert clear.sum() > 20
    np.testing.assert_array_equal(np.asarray(index)[clear], expected[clear])
    rows = np.arange(64)
    np.testing.assert_allclose(
        np.asarray(logp), np.log(p[rows, np.asarray(index)]), rtol=1e-4, atol=1e-5
    )


def test_frequencies():
    probabilities = np.full(128, 1e-9)
    probabilities[[3, 70, 127]] = 0.5, 0.2, 0.3
    rows = 20_000
    logits = jnp.tile(jnp.log(jnp.asarray(probabilities, jnp.float32))[None], (rows, 1))
    index, _ = DRAW(logits, uniforms(jax.random.key(0), rows, 1)[:, 0])
    counts = np.bincount(np.asarray(index), minlength=128) / rows
    np.testing.assert_allclose(counts[[3, 70, 127]], [0.5, 0.2, 0.3], atol=0.02)


@given(
    st.integers(0, 2**23 - 1),
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=6),
    st.lists(st.integers(0, 383), min_size=6, max_size=6, unique=True),
)
def test_impossible_tokens_are_never_drawn(number, values, places):
    """Also at uniform numbers next to 0 and 1, and with whole blocks impossible."""
    places = sorted(places[: len(values)])
    logits = np.full((1, 384), IMPOSSIBLE, np.float32)
    logits[0, places] = values
    for uniform in (number, 0, 2**23 - 1):
        index, logp = DRAW(
            jnp.asarray(logits), jnp.array([uniform * 2.0**-23], jnp.float32)
        )
        assert int(index[0]) in places
        assert np.isfinite(logp[0])


def test_the_largest_number_draws_a_possible_token():
    """Sums of a block, rounded in two ways, may end below the number: stay inside."""
    rng = np.random.default_rng(0)
    logits = np.full((2000, 384), IMPOSSIBLE, np.float32)
    logits[:, :128] = rng.normal(size=(2000, 128))
    index, logp = DRAW(jnp.asarray(logits), jnp.full(2000, 1 - 2**-23, jnp.float32))
    assert (np.asarray(index) < 128).all()
    assert np.isfinite(logp).all()


def test_numbers_depend_on_row_and_step_alone(mesh):
    key = jax.random.key(3)
    small, large = uniforms(key, 4, 5), uniforms(key, 8, 9)
    np.testing.assert_array_equal(np.asarray(small), np.asarray(large)[:4, :5])
    assert len(np.unique(np.asarray(large))) == 72
    assert (np.asarray(uniforms(jax.random.key(4), 4, 5)) != np.asarray(small)).all()
