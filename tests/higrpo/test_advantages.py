"""Equation 10 by hand."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ar3d_jax.higrpo.advantages import group_advantages, group_spread, used_groups

NAN = float("nan")


jitted = jax.jit(group_advantages, static_argnames="eps")


def advantages(rewards, valid=None, **kwargs):
    rewards = np.asarray(rewards, np.float32)
    valid = np.ones(rewards.shape, bool) if valid is None else np.asarray(valid)
    return np.asarray(jitted(rewards, valid, **kwargs))


def test_one_two_three():
    """Mean 2, population variance (1 + 0 + 1) / 3."""
    sigma = math.sqrt(2 / 3)
    expected = [-1 / (sigma + 1e-4), 0, 1 / (sigma + 1e-4)]
    np.testing.assert_allclose(advantages([[1, 2, 3]])[0], expected, rtol=1e-6)
    assert expected[2] == pytest.approx(1.2246, abs=1e-4)


def test_groups_do_not_mix():
    expected = [[-1 / 1.0001, 1 / 1.0001], [3 / 3.0001, -3 / 3.0001]]
    np.testing.assert_allclose(advantages([[0, 2], [7, 1]]), expected, rtol=1e-6)


def test_eps_is_added_to_the_deviation():
    np.testing.assert_allclose(advantages([[0, 2]], eps=1.0)[0], [-0.5, 0.5])


@pytest.mark.parametrize("as_nan", [True, False])
def test_a_rollout_without_a_reward_is_out_of_the_statistics(as_nan):
    rewards, valid = ([[1, NAN, 3]], None) if as_nan else ([[1, 9, 3]], [[1, 0, 1]])
    valid = None if valid is None else np.asarray(valid, bool)
    expected = [-1 / 1.0001, 0, 1 / 1.0001]
    np.testing.assert_allclose(advantages(rewards, valid)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "rewards", [[5, NAN, NAN], [NAN] * 3, [2, 2, 2], [0.1, 0.1, NAN], [NAN, np.inf, 1]]
)
def test_a_group_that_teaches_nothing_gets_0(rewards):
    rewards = np.asarray([rewards, [0, 1, 2]], np.float32)
    valid = np.ones((2, 3), bool)
    assert np.asarray(used_groups(rewards, valid)).tolist() == [False, True]
    np.testing.assert_array_equal(advantages(rewards)[0], 0)
    assert advantages(rewards)[1, 2] > 1


def test_equal_rewards_give_0_whatever_their_mean_rounds_to():
    """Three times 0.9 over 3 is not 0.9 in float32, and off by 1e-7 is not 0."""
    rewards = np.repeat(np.array([[0.9], [1.7], [2.9], [3.4]], np.float32), 3, axis=1)
    spread = group_spread(rewards, np.ones(rewards.shape, bool))
    assert 0 < float(spread) < 1e-6
    np.testing.assert_array_equal(advantages(rewards), 0)


def test_spread_is_the_mean_deviation_of_scored_groups():
    rewards = np.asarray([[0, 2], [7, 1], [NAN, NAN], [4, NAN]], np.float32)
    spread = group_spread(rewards, np.ones((4, 2), bool))
    assert float(spread) == pytest.approx((1 + 3 + 0) / 3)
    assert np.isnan(group_spread(rewards[2:3], np.ones((1, 2), bool)))


REWARDS = hnp.arrays(
    np.float32, (3, 5), elements=st.floats(-8, 8, width=16) | st.just(NAN)
)


@given(REWARDS, hnp.arrays(bool, (3, 5)))
def test_against_float64_by_rollout(rewards, valid):
    got = advantages(rewards, valid)
    for row, ok, out in zip(rewards, valid, got, strict=True):
        kept = [
            float(r) for r, v in zip(row, ok, strict=True) if v and not math.isnan(r)
        ]
        for reward, v, a in zip(row, ok, out, strict=True):
            if not v or math.isnan(reward) or len(set(kept)) < 2:
                assert a == 0
                continue
            mean = sum(kept) / len(kept)
            sigma = math.sqrt(sum((r - mean) ** 2 for r in kept) / len(kept))
            assert a == pytest.approx((reward - mean) / (sigma + 1e-4), abs=2e-4)


def test_under_jit_and_sharded_over_prompts(mesh):
    rewards = np.arange(32, dtype=np.float32).reshape(4, 8) ** 2
    valid = rewards % 5 > 0
    placed = [
        jax.device_put(x, jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None)))
        for x in (rewards, valid)
    ]
    got = jitted(*placed)
    np.testing.assert_allclose(got, advantages(rewards, valid), rtol=1e-6)
