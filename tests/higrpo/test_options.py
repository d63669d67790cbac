"""Every option of the loss against plain NumPy, value and gradient, and what must not
change it: the order of a group, micro-batches, padding, devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.config import ObjectiveConfig
from ar3d_jax.higrpo.advantages import group_advantages, used_groups, valid_rollouts
from ar3d_jax.higrpo.objective import add_sums, token_weights, weighted_loss
from tests.higrpo import plain

CASES = 200
SHAPES = ((1, 2, 1), (2, 4, 5), (4, 5, 8))  # few: each compiles its operations
AGGREGATIONS = ("token", "token_batch", "sequence")
IMPORTANCES = ("token", "sequence")
STDS = ("group", "batch", "none")


def random_case(seed):
    """Ragged masks, extreme ratios, equal and missing rewards, short and empty rows."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    lengths = rng.integers(0, shape[2] + 1, shape[:2])
    lengths[rng.random(shape[:2]) < 0.1] = 1
    mask = np.arange(shape[2]) < lengths[..., None]
    mask &= rng.random(shape) < 0.9
    old = rng.uniform(-8, 0, shape)
    spread = rng.choice([0.01, 0.3, 3.0])
    logp, ref, sampler = (old + rng.normal(0, spread, shape) for _ in range(3))
    rewards = rng.normal(2, 1, shape[:2])
    rewards[rng.random(shape[0]) < 0.2] = 1.5  # a group without spread
    rewards[rng.random(shape[:2]) < 0.15] = np.nan
    return mask, logp, old, ref, sampler, rewards


def random_options(seed):
    rng = np.random.default_rng([seed, 1])
    return {
        "aggregation": str(rng.choice(AGGREGATIONS)),
        "importance": str(rng.choice(IMPORTANCES)),
        "clip_low": float(rng.choice([0.0, 3e-4, 0.2])),
        "clip_high": float(rng.choice([4e-4, 0.2, 0.28])),
        "kl_coef": float(rng.choice([0.0, 0.01, 0.5])),
        "dual_clip": float(rng.choice([0.0, 1.5, 3.0])),
        "correct_mismatch": float(rng.choice([0.0, 1.0, 2.0])),
    }


def ours(case, std, options):
    """(loss, gradient, advantages) of the package, as `update.py` puts it together."""
    mask, logp, old, ref, sampler, rewards = case
    options = dict(options)
    aggregation = options.pop("aggregation")
    valid = valid_rollouts(rewards, np.ones_like(rewards, bool))
    counts = valid & used_groups(rewards, valid)[:, None]
    advantages = group_advantages(rewards, valid, std=std)
    weights = token_weights(mask & counts[..., None], aggregation)

    def loss_of(logp):
        loss, _ = weighted_loss(
            logp,
            old,
            ref if options["kl_coef"] else None,
            advantages,
            weights,
            logp_sampler=sampler,
            **options,
        )
        return loss

    loss, gradient = jax.value_and_grad(loss_of)(jnp.asarray(logp))
    return float(loss), np.asarray(gradient), np.asarray(advantages)


def expected(case, std, options):
    mask, logp, old, ref, sampler, rewards = case
    advantages = plain.advantages(rewards, std)
    counted = mask & plain.used(rewards)[..., None]
    reference = ref if options["kl_coef"] else None
    loss, gradient = plain.loss_and_gradient(
        logp, old, reference, advantages, counted, sampler=sampler, **options
    )
    return loss, gradient, advantages


@pytest.mark.parametrize("block", range(10))
def test_value_and_gradient_of_every_option(block):
    with jax.enable_x64(True):
        for seed in range(block, CASES, 10):
            case, options = random_case(seed), random_options(seed)
            std = STDS[seed % 3]
            for found, wanted in zip(
                ours(case, std, options), expected(case, std, options), strict=True
            ):
                np.testing.assert_allclose(
                    found, wanted, rtol=1e-6, atol=1e-9, err_msg=f"{seed} {options}"
                )


def test_all_combinations_are_among_the_cases():
    seen = {
        (options["aggregation"], options["importance"], bool(options[name]))
        for seed in range(CASES)
        for options in [random_options(seed)]
        for name in ("dual_clip", "correct_mismatch", "kl_coef")
    }
    wanted = itertools.product(AGGREGATIONS, IMPORTANCES, (False, True))
    assert seen == set(wanted)


OPTIONS = [
    dict(zip(("aggregation", "importance"), pair, strict=True))
    | {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.01}
    | {"dual_clip": 3.0, "correct_mismatch": 2.0}
    for pair in itertools.product(AGGREGATIONS, IMPORTANCES)
]
in_words = functools.partial(
    pytest.mark.parametrize,
    "options",
    OPTIONS,
    ids=[f"{o['aggregation']}-{o['importance']}" for o in OPTIONS],
)


@in_words()
def test_the_order_of_a_group_does_not_matter(options):
    case = random_case(3)
    order = np.random.default_rng(0).permutation(case[0].shape[1])
    with jax.enable_x64(True):
        loss, gradient, _ = ours(case, "group", options)
        turned = ours([x[:, order] for x in case], "group", options)
    np.testing.assert_allclose(turned[0], loss, rtol=1e-12)
    np.testing.assert_allclose(turned[1], gradient[:, order], rtol=1e-12)


@in_words()
def test_padding_does_not_matter(options):
    case = random_case(4)
    wide = [np.pad(x, ((0, 0), (0, 0), (2, 3))) for x in case[:5]] + [case[5]]
    for x in wide[1:5]:
        x[..., :2] = np.nan
    with jax.enable_x64(True):
        loss, gradient, _ = ours(case, "group", options)
        padded = ours(wide, "group", options)
    np.testing.assert_allclose(padded[0], loss, rtol=1e-12)
    np.testing.assert_allclose(padded[1][..., 2:-3], gradient, rtol=1e-12)
    assert not padded[1][..., :2].any()


@in_words()
def test_micro_batches_add_up(options):
    """Weights are of the complete batch, so any cut gives the same sum."""
    mask, logp, old, ref, sampler, rewards = random_case(5)
    options = dict(options)
    valid = valid_rollouts(rewards, np.ones_like(rewards, bool))
    counts = mask & (valid & used_groups(rewards, valid)[:, None])[..., None]
    with jax.enable_x64(True):
        weights = token_weights(counts, options.pop("aggregation"))
        advantages = group_advantages(rewards, valid)
    flat = [np.asarray(x).reshape(-1, x.shape[-1]) for x in (logp, old, ref, sampler)]
    weights = np.asarray(weights).reshape(flat[0].shape)
    advantages = np.asarray(advantages).reshape(-1)

    def loss_of(rows):
        some = [x[rows] for x in flat]
        loss, sums = weighted_loss(
            *some[:3], advantages[rows], weights[rows], logp_sampler=some[3], **options
        )
        return loss, sums

    with jax.enable_x64(True):
        whole, sums = loss_of(slice(None))
        parts = [loss_of(slice(at, at + 5)) for at in range(0, len(weights), 5)]
        total = sum(float(loss) for loss, _ in parts)
        assert total == pytest.approx(float(whole), rel=1e-12)
        together = functools.reduce(add_sums, (sums for _, sums in parts))
    assert set(together) == set(sums)
    for name, value in together.items():
        np.testing.assert_allclose(value, sums[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_with_one_update_decoupled_clip_and_gspo_are_identities(aggregation):
    """On-policy any clip bounds give one gradient, and GSPO's is that of `sequence`."""
    mask, logp, _, ref, sampler, rewards = random_case(5)
    case = (mask, logp, logp, ref, sampler, rewards)
    base = OPTIONS[0] | {"aggregation": aggregation, "correct_mismatch": 0.0}
    with jax.enable_x64(True):
        _, wanted, _ = ours(case, "group", base)
        for change in (
            {"clip_low": 0.2, "clip_high": 0.2},
            {"clip_low": 0.01, "clip_high": 5.0},
            {"dual_clip": 0.0},
        ):
            _, found, _ = ours(case, "group", base | change)
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-15)
        gspo = base | {"importance": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}
        _, found, _ = ours(case, "group", gspo)
    # Each token of a rollout has the same weight, whatever the aggregation.
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-12)


def test_clip_bounds_are_those_of_the_importance():
    assert ObjectiveConfig().clip_bounds == (0.2, 0.28)
    assert ObjectiveConfig(importance="sequence").clip_bounds == (3e-4, 4e-4)


def test_lambda_moves_in_a_straight_line():
    moving = ObjectiveConfig(lam=0.0, lam_end=2.0, lam_steps=4)
    assert [moving.lam_at(step) for step in (0, 1, 2, 4, 9)] == [0, 0.5, 1, 2, 2]
    assert ObjectiveConfig(lam=0.7).lam_at(100) == 0.7
