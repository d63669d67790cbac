"""Equations 11-14 by hand, and against a float64 program written token by token."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar3d_jax.config import ObjectiveConfig
from ar3d_jax.higrpo.objective import (
    StepTokens,
    add_sums,
    higrpo_loss,
    means,
    policy_loss,
    token_weights,
    weighted_loss,
)
from tests.higrpo import plain

PAPER = {
    "clip_low": 0.2,
    "clip_high": 0.28,
    "kl_coef": 0.01,
    "aggregation": "token",
    "importance": "token",
}
AGGREGATIONS = ("token", "token_batch", "sequence")
IMPORTANCES = ("token", "sequence")


jitted = jax.jit(policy_loss, static_argnames=tuple(PAPER))


def loss_of(logp, logp_old, logp_ref, advantages, mask, **changes):
    arrays = [None if x is None else jnp.asarray(x) for x in (logp, logp_old, logp_ref)]
    return jitted(
        *arrays, jnp.asarray(advantages), jnp.asarray(mask), **(PAPER | changes)
    )


def by_token(logp, logp_old, logp_ref, advantages, mask, **options):
    """The loss in float64 Python, one token at a time."""
    prompts, group, length = np.shape(mask)
    low, high = 1 - options["clip_low"], 1 + options["clip_high"]
    total = 0.0
    for b, g in itertools.product(range(prompts), range(group)):
        tokens = [t for t in range(length) if mask[b][g][t]]
        if not tokens:
            continue
        diffs = {t: float(logp[b][g][t]) - float(logp_old[b][g][t]) for t in tokens}
        mean_diff = sum(diffs.values()) / len(tokens)
        a = float(advantages[b][g])
        values = []
        for t in tokens:
            sequence = options["importance"] == "sequence"
            r = math.exp(mean_diff if sequence else diffs[t])
            gain = min(r * a, min(max(r, low), high) * a)
            x = float(logp_ref[b][g][t]) - float(logp[b][g][t])
            values.append(gain - options["kl_coef"] * (math.exp(x) - x - 1))
        divisor = {
            "token": prompts * int(np.sum(mask[b])),
            "token_batch": int(np.sum(mask)),
            "sequence": prompts * group * len(tokens),
        }[options["aggregation"]]
        total -= sum(values) / divisor
    return total


# --- by hand: 1 prompt, 2 rollouts, 3 tokens, advantages +2 and -1 -------------------
RATIOS = np.array([[[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]]])
ALL = np.ones((1, 2, 3), bool)
A = [[2.0, -1.0]]


def test_both_signs_and_both_clip_bounds():
    """+2: 0.5*2, 1*2, 1.28*2 (clipped). -1: -0.8 (clipped), -1, -1.5 (not)."""
    loss, metrics = loss_of(np.log(RATIOS), np.zeros((1, 2, 3)), None, A, ALL)
    expected = -((1 + 2 + 2.56) + (-0.8 - 1 - 1.5)) / 6
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["clip_fraction"]) == pytest.approx(2 / 6)
    assert float(metrics["ratio_max"]) == pytest.approx(1.5)
    assert "kl" not in metrics


def test_the_gradient_stops_where_clipping_binds():
    def loss(logp):
        return loss_of(logp, np.zeros((1, 2, 3)), None, A, ALL)[0]

    gradient = jax.grad(loss)(jnp.asarray(np.log(RATIOS)))
    # d(r A)/d logp = r A; divided by 6 tokens.
    expected = -np.array([[[1.0, 2.0, 0.0], [0.0, -1.0, -1.5]]]) / 6
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_kl_of_the_reference():
    """pi_ref/pi = 2, 1, 1/2: 2 - log 2 - 1, 0, 1/2 + log 2 - 1."""
    logp_ref = np.log(np.array([[[2.0, 1.0, 0.5]] * 2]))
    zeros = np.zeros((1, 2, 3))
    loss, metrics = loss_of(zeros, zeros, logp_ref, [[0.0, 0.0]], ALL)
    kl = (1 - math.log(2)) + 0 + (math.log(2) - 0.5)
    assert float(metrics["kl"]) == pytest.approx(kl / 3, rel=1e-6)
    assert float(loss) == pytest.approx(0.01 * kl / 3, rel=1e-6)


def test_masked_tokens_divide_nothing():
    mask = np.array([[[True, True, False], [True, False, False]]])
    loss, metrics = loss_of(np.log(RATIOS), np.zeros((1, 2, 3)), None, A, mask)
    assert float(loss) == pytest.approx(-(1 + 2 - 0.8) / 3, rel=1e-6)
    assert float(metrics["clip_fraction"]) == pytest.approx(1 / 3)
    assert float(metrics["ratio_max"]) == pytest.approx(1.0)


def test_gspo_by_hand():
    """Geometric means of the ratios: 0.75 ** (1/3) = 0.9086 in both rollouts."""
    s = 0.75 ** (1 / 3)
    zeros = np.zeros((1, 2, 3))
    loss, _ = loss_of(
        np.log(RATIOS), zeros, None, A, ALL, importance="sequence", clip_low=0.05
    )
    assert float(loss) == pytest.approx(-(s * 2 - 0.95) / 2, rel=1e-6)


MASK = np.zeros((2, 2, 4), bool)
MASK[0, 0, :2] = MASK[0, 1, 1:] = MASK[1, 0] = True  # 2 + 3 and 4 + 0 tokens


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("token", [[1 / 10, 1 / 10], [1 / 8, 0]]),
        ("token_batch", [[1 / 9, 1 / 9], [1 / 9, 0]]),
        ("sequence", [[1 / 8, 1 / 12], [1 / 16, 0]]),
    ],
)
def test_weights_by_hand(aggregation, weights):
    expected = MASK * np.array(weights)[..., None]
    np.testing.assert_allclose(token_weights(MASK, aggregation), expected, rtol=1e-6)


# --- against the token-by-token program ----------------------------------------------
@st.composite
def batches(draw, shape=(3, 2, 5)):
    """Ragged: empty rollouts, empty groups and empty batches are among them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logp_old = -rng.exponential(2, shape)
    logp = logp_old + rng.normal(0, draw(st.sampled_from([0, 0.1, 0.6])), shape)
    logp_ref = logp + rng.normal(0, 0.5, shape)
    kept = draw(st.lists(st.floats(0, 1), min_size=6, max_size=6))
    mask = rng.random(shape) < np.reshape(kept, (3, 2, 1))
    advantages = rng.normal(0, 1, shape[:2])
    arrays = (logp, logp_old, logp_ref, advantages)
    return *(x.astype(np.float32) for x in arrays), mask


@settings(max_examples=60)
@given(
    batches(),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(IMPORTANCES),
    st.sampled_from([(0.2, 0.28), (0.05, 0.5)]),
)
def test_against_the_token_by_token_program(batch, aggregation, importance, clips):
    options = PAPER | {
        "aggregation": aggregation,
        "importance": importance,
        "clip_low": clips[0],
        "clip_high": clips[1],
        "kl_coef": 0.1,
    }
    loss, _ = loss_of(*batch, **options)
    assert float(loss) == pytest.approx(by_token(*batch, **options), rel=2e-5, abs=2e-6)


def random_batch(seed=0, shape=(4, 3, 6), spread=0.1):
    rng = np.random.default_rng(seed)
    logp_old = -rng.exponential(2, shape)
    logp = logp_old + rng.normal(0, spread, shape)
    logp_ref = logp + rng.normal(0, 0.5, shape)
    advantages = rng.normal(0, 1, shape[:2])
    mask = rng.random(shape) < 0.7
    arrays = (logp, logp_old, logp_ref, advantages)
    return *(jnp.asarray(x, jnp.float32) for x in arrays), jnp.asarray(mask)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_gradient_is_that_of_finite_differences(aggregation, importance):
    logp, *rest = random_batch(shape=(2, 2, 3), spread=0.05)
    options = PAPER | {"aggregation": aggregation, "importance": importance}
    gradient = jax.grad(lambda x: jitted(x, *rest, **options)[0])(logp)
    rest = [np.asarray(x, np.float64) for x in rest[:3]] + [np.asarray(rest[3])]
    x = np.asarray(logp, np.float64)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        slope = by_token(up, *rest, **options) - by_token(down, *rest, **options)
        assert float(gradient[index]) == pytest.approx(slope / 2e-6, abs=2e-6)


# --- identities ----------------------------------------------------------------------
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_on_policy_gspo_has_the_gradient_of_token_importance(aggregation):
    logp, _, _, advantages, mask = random_batch()
    gradients = [
        jax.grad(
            lambda x, importance=importance: loss_of(
                x, logp, None, advantages, mask,
                aggregation=aggregation, importance=importance,
            )[0]
        )(logp)
        for importance in IMPORTANCES
    ]  # fmt: skip
    assert float(jnp.abs(gradients[0]).max()) > 1e-3
    np.testing.assert_allclose(*gradients, atol=1e-7)


def test_on_policy_clip_bounds_are_inert_and_the_ratio_is_1():
    logp, _, logp_ref, advantages, mask = random_batch()

    def value(x, **clips):
        return loss_of(x, logp, logp_ref, advantages, mask, **clips)

    first = jax.value_and_grad(lambda x: value(x)[0])(logp)
    other = jax.value_and_grad(lambda x: value(x, clip_low=0.9, clip_high=9.0)[0])(logp)
    jax.tree.map(np.testing.assert_array_equal, first, other)
    metrics = value(logp)[1]
    assert (metrics["ratio_max"], metrics["clip_fraction"]) == (1, 0)


def test_on_policy_token_loss_is_minus_the_mean_advantage():
    logp, _, _, _, _ = random_batch(shape=(1, 2, 3))
    loss, _ = loss_of(logp, logp, None, [[3.0, -1.0]], ALL)
    assert float(loss) == pytest.approx(-1.0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_sum_over_parts_is_the_whole(aggregation):
    """Whatever the parts: weights hold the normalisation of the complete batch."""
    logp, logp_old, logp_ref, advantages, mask = random_batch()
    options = PAPER | {"aggregation": aggregation}
    whole, metrics = jitted(logp, logp_old, logp_ref, advantages, mask, **options)
    arrays = (logp, logp_old, logp_ref, advantages, token_weights(mask, aggregation))
    del options["aggregation"]
    parts = [
        weighted_loss(*(x[i] for x in arrays), **options)
        for i in (slice(0, 1), slice(1, 4))
    ]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(whole), abs=1e-7)
    together = means(add_sums(parts[0][1], parts[1][1]))
    assert together.keys() == metrics.keys()
    for name, value in together.items():
        assert float(value) == pytest.approx(float(metrics[name]), rel=1e-5), name


def test_what_is_masked_may_be_anything():
    logp, logp_old, logp_ref, advantages, mask = random_batch()
    poison = [jnp.where(mask, x, jnp.nan) for x in (logp, logp_old, logp_ref)]
    clean = jax.value_and_grad(
        lambda x: loss_of(x, logp_old, logp_ref, advantages, mask)[0]
    )(logp)
    dirty = jax.value_and_grad(lambda x: loss_of(x, *poison[1:], advantages, mask)[0])(
        poison[0]
    )
    assert float(clean[0]) == float(dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])


def test_a_nan_advantage_takes_its_rollout_out():
    logp, logp_old, logp_ref, advantages, mask = random_batch()
    out, _ = loss_of(logp, logp_old, logp_ref, advantages.at[1, 2].set(jnp.nan), mask)
    masked, _ = loss_of(logp, logp_old, logp_ref, advantages, mask.at[1, 2].set(False))
    assert float(out) == float(masked)


def test_a_batch_without_a_token_is_0():
    logp, logp_old, logp_ref, advantages, mask = random_batch()
    for aggregation, importance in itertools.product(AGGREGATIONS, IMPORTANCES):
        options = {"aggregation": aggregation, "importance": importance}

        def loss(x, options=options):
            return loss_of(x, logp_old, logp_ref, advantages, mask & False, **options)[
                0
            ]

        value, gradient = jax.value_and_grad(loss)(logp)
        assert float(value) == 0
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("field", ["aggregation", "importance"])
def test_an_unknown_name_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 'tokens'; expected token"):
        loss_of(*random_batch(), **{field: "tokens"})


def test_the_sum_of_the_steps():
    """Equation 14, through the function that the update calls."""
    cfg = ObjectiveConfig()
    batch = {"coarse": random_batch(1), "refined": random_batch(2, shape=(4, 3, 9))}
    options = PAPER | {"kl_coef": cfg.kl_coef}
    single = {name: policy_loss(*x, **options) for name, x in batch.items()}
    steps = {
        name: StepTokens(x[1], x[3], token_weights(x[4], "token"))
        for name, x in batch.items()
    }
    loss, sums = higrpo_loss(
        {name: x[0] for name, x in batch.items()},
        {name: x[2] for name, x in batch.items()},
        steps,
        cfg,
    )
    metrics = means(sums)
    for name, (value, _) in single.items():
        assert float(metrics[f"loss/{name}"]) == pytest.approx(float(value), rel=1e-6)
    assert float(loss) == pytest.approx(
        float(single["coarse"][0]) + float(single["refined"][0]), rel=1e-6
    )
    kl = [float(m["kl"]) for _, m in single.values()]
    assert float(metrics["kl"]) == pytest.approx(sum(kl) / 2, rel=1e-5)
    assert float(metrics["ratio_max"]) == pytest.approx(
        max(float(m["ratio_max"]) for _, m in single.values())
    )


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_option_of_the_config_reaches_the_loss(importance):
    """Against the plain program, with numbers under which each option matters."""
    cfg = ObjectiveConfig(
        importance=importance,
        clip_low=0.1,
        clip_high=0.9,
        kl_coef=0.3,
        dual_clip=1.2,
        correct_mismatch=1.1,
    )
    low, high = cfg.clip_bounds
    assert low != high
    expected = 0.0
    logp, logp_ref, steps = {}, {}, {}
    for seed, name in enumerate(("coarse", "refined")):
        batch = random_batch(seed, shape=(3, 4, 5 + seed), spread=0.8)
        logp[name], old, logp_ref[name], advantages, mask = batch
        noise = np.random.default_rng(seed).normal(0, 0.5, old.shape)
        sampler = old + jnp.asarray(noise, jnp.float32)
        weights = token_weights(mask, "token")
        steps[name] = StepTokens(old, advantages, weights, sampler)
        arrays = (logp[name], old, logp_ref[name], advantages)
        expected += plain.loss_and_gradient(
            *(np.asarray(x, np.float64) for x in arrays),
            np.asarray(mask),
            aggregation="token",
            importance=importance,
            clip_low=low,
            clip_high=high,
            kl_coef=0.3,
            dual_clip=1.2,
            correct_mismatch=1.1,
            sampler=np.asarray(sampler, np.float64),
        )[0]
    loss, _ = higrpo_loss(logp, logp_ref, steps, cfg)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_sharded_over_prompts(mesh):
    batch = random_batch()
    placed = [
        jax.device_put(
            x, jax.NamedSharding(mesh, jax.P(("data", "fsdp"), *(None,) * (x.ndim - 1)))
        )
        for x in batch
    ]
    options = PAPER | {"aggregation": "token_batch", "importance": "sequence"}
    loss, _ = jitted(*placed, **options)
    assert float(loss) == pytest.approx(by_token(*batch, **options), abs=1e-6)
