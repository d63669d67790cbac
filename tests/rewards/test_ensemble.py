"""Equations 7-9 by hand."""

import subprocess
import sys

import numpy as np
import pytest

from ar3d_jax.config import to_dict
from ar3d_jax.config_rewards import (
    COARSE_ROLES,
    REFINED_ROLES,
    TABLE_ROLES,
    WeightsConfig,
)
from ar3d_jax.rewards.ensemble import (
    COARSE_DIVISORS,
    REFINED_DIVISORS,
    normalised,
    total_rewards,
)

PAPER = to_dict(WeightsConfig())


def test_the_worked_example_of_the_paper():
    """Figure 7: 0.16 + (2.99+3.69+3.04)/3 + 1.94/3 + (1.0+0.85)/2 = 4.97."""
    coarse = {"preference": 0.16, "alignment": 3.0, "category": 0.0}
    refined = {
        "preference": 0.16,
        "quality": 2.99 + 3.69 + 3.04,
        "consistency": 1.94,
        "parts": 1.0 + 0.85,
    }
    high, low = total_rewards(coarse, refined, PAPER, 1.0)
    assert low == pytest.approx(4.97, abs=0.005)
    assert low == pytest.approx(0.16 + 9.72 / 3 + 1.94 / 3 + 1.85 / 2, rel=1e-12)
    assert high == pytest.approx(3.16 + low, rel=1e-12)


def test_a_batch_with_weights_and_lambda():
    coarse = {
        "preference": np.array([0.25, 0.5], np.float32),
        "alignment": np.array([4.0, 2.0], np.float32),
        "category": np.array([1.0, 0.0], np.float32),
    }
    refined = {
        "preference": np.array([0.5, 0.25], np.float32),
        "quality": np.array([9.0, 6.0], np.float32),
        "consistency": np.array([3.0, 1.5], np.float32),
        "parts": np.array([2.0, 1.0], np.float32),
    }
    weights = {
        "coarse": {"preference": 2.0, "alignment": 1.0, "category": 0.0},
        "refined": {"preference": 1.0, "quality": 1.0, "consistency": 2.0, "parts": 1},
    }
    high, low = total_rewards(coarse, refined, weights, 0.5)
    np.testing.assert_allclose(low, [0.5 + 3 + 2 + 1, 0.25 + 2 + 1 + 0.5])
    np.testing.assert_allclose(high, [4.5 + 3.25, 3.0 + 1.875])


def test_what_table_1_rewards_by_hand():
    """An alignment of 1 to 5 as it is, an outline of 0 to 3 divided by its 3."""
    scores = {"align_lmm": np.array([4.0, 2.0]), "consistency_shape": np.array([3, 1])}
    weights = {"coarse": {"align_lmm": 1.0, "consistency_shape": 2.0}, "refined": {}}
    high, _ = total_rewards(scores, {}, weights, 1.0)
    np.testing.assert_allclose(high, [4 + 2.0, 2 + 2 / 3])


def test_missing_scores_spread_only_where_they_enter():
    ones = np.ones(3, np.float32)
    coarse = dict.fromkeys(COARSE_ROLES, ones)
    coarse["category"] = np.array([np.nan, 1, 1], np.float32)
    refined = dict.fromkeys(REFINED_ROLES, ones)
    refined["parts"] = np.array([1, np.nan, 1], np.float32)
    high, low = total_rewards(coarse, refined, PAPER, 1.0)
    assert np.isnan(high).tolist() == [True, True, False]
    assert np.isnan(low).tolist() == [False, True, False]
    high, _ = total_rewards(coarse, refined, PAPER, 0.0)  # lambda 0 leaves R_low out
    assert np.isnan(high).tolist() == [True, False, False]
    unweighted = {**PAPER, "refined": {**PAPER["refined"], "parts": 0.0}}
    _, low = total_rewards(coarse, refined, unweighted, 1.0)
    assert not np.isnan(low).any()


def test_a_role_of_weight_0_may_be_absent():
    weights = {"coarse": {"preference": 1.0, "parts": 0.0}, "refined": {"parts": 0.0}}
    high, low = total_rewards({"preference": np.ones(2)}, {}, weights, 1.0)
    np.testing.assert_array_equal(high, [1, 1])
    np.testing.assert_array_equal(low, [0, 0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"preference": 1.0, "alignment": 1.0},
            "'alignment' has a weight but no scores",
        ),
        (
            {"preference": 1.0, "parts": 1.0},
            "'parts' has a weight; expected one of pref",
        ),
    ],
)
def test_a_role_that_cannot_be_summed_is_named(weights, message):
    scores = {"preference": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        total_rewards(scores, scores, {"coarse": weights, "refined": {}}, 1.0)


def test_the_roles_are_those_of_the_configuration():
    assert tuple(COARSE_DIVISORS) == COARSE_ROLES + TABLE_ROLES
    assert tuple(REFINED_DIVISORS) == REFINED_ROLES


def test_numpy_is_all_it_needs():
    script = (
        "import sys, ar3d_jax.rewards.ensemble\n"
        "assert not {'jax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_normalised_scores_weigh_the_same_whatever_their_range():
    """A preference of -1 to 1 counts as much as an alignment of 1 to 5."""
    preference = np.array([0.1, 0.2, 0.3, 0.4, 0.0, 0.0])
    alignment = np.array([4.0, 1.0, 5.0, 2.0, 1.0, np.nan])
    weights = {"coarse": {"preference": 1, "alignment": 1}, "refined": {}}
    scores = {"preference": preference, "alignment": alignment}
    high, low = total_rewards(scores, {}, weights, 0.0, normalise=2)
    # Groups of two: each score is -1 or +1, up to eps.
    np.testing.assert_allclose(high[:4], [0.0, 0.0, 0.0, 0.0], atol=4e-3)
    assert high[4] == 0.0  # no spread, and one of two missing
    assert np.isnan(high[5])
    assert not low.any()


def test_normalised_scores_have_no_divisors_in_either_step():
    """Equations 7 to 9 of deviations: each is -1 or +1 here, times its weight."""
    pair = np.array([1.0, 3.0])
    weights = {
        "coarse": {"preference": 1.0, "consistency_shape": 2.0},
        "refined": {"quality": 1.0, "consistency": 1.0, "parts": 4.0},
    }
    scores = dict.fromkeys(weights["coarse"] | weights["refined"], pair)
    high, low = total_rewards(scores, scores, weights, 0.5, normalise=2)
    np.testing.assert_allclose(low, [-6, 6], rtol=1e-3)
    np.testing.assert_allclose(high, [-6, 6], rtol=1e-3)  # 3 + 0.5 * 6


def test_normalising_is_by_hand():
    found = normalised({"parts": np.array([1.0, 3.0, np.nan, 5.0])}, 4, eps=0.0)
    wanted = np.array([-2.0, 0.0, np.nan, 2.0]) / np.sqrt(8 / 3)
    np.testing.assert_allclose(found["parts"], wanted)
