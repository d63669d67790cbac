"""Dynamic sampling: which groups are kept."""

import numpy as np
import pytest

from ar3d_jax.config import LEAST_BAND, ObjectiveConfig
from ar3d_jax.errors import UserError
from ar3d_jax.higrpo.selection import Selection

NAN = np.nan


def choose(rewards, **config):
    selection = Selection(ObjectiveConfig(**config))
    arrays = {name: np.asarray(of, float) for name, of in rewards.items()}
    return selection.choose(arrays, next(iter(arrays.values()))).tolist()


def chosen(selection, rewards):
    return selection.choose({"shape": rewards}, rewards)


def test_off_keeps_everything():
    assert choose({"shape": [[1, 1], [NAN, NAN]]}, dynamic_sampling="off") == [True] * 2


def test_a_group_needs_spread_in_one_of_its_steps():
    rewards = {
        "coarse": [[1, 1], [1, 2], [1, 1], [NAN, 1], [NAN, NAN], [0.1, 0.1]],
        "refined": [[3, 3], [3, 3], [3, 4], [3, 3], [3, 3], [0.3, 0.3]],
    }
    kept = choose(rewards, dynamic_sampling="no_spread")
    assert kept == [False, True, True, False, False, False]


def test_equal_rewards_are_no_spread_whatever_they_round_to():
    """0.1 three times is not three times its mean: off by a rounding."""
    rewards = {"shape": [[0.1] * 3, [0.1, 0.1, 0.2]]}
    assert np.std(rewards["shape"][0]) > 0
    assert choose(rewards, dynamic_sampling="no_spread") == [False, True]


def test_the_least_spread_is_a_deviation():
    """Not a variance, which is 0.16 and 0.81 here, and not by 1/(G-1)."""
    rewards = {"shape": [[0, 0.8], [0, 1.8]]}  # 0.4 and 0.9
    for least, kept in (
        (0.3, [True, True]),
        (0.5, [False, True]),
        (0.85, [False, True]),
    ):
        found = choose(rewards, dynamic_sampling="no_spread", min_spread=least)
        assert found == kept


def test_medium_keeps_what_lies_between_quantiles_of_recent_groups():
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium", band_groups=100))
    means = np.arange(100.0)
    groups = np.stack([means - 0.5, means + 0.5], axis=1)
    assert chosen(selection, groups[: LEAST_BAND - 1]).all()  # no band yet
    chosen(selection, groups)
    assert len(selection.get_state()) == 100
    kept = chosen(selection, groups)
    assert np.flatnonzero(~kept).tolist() == [*range(10), *range(90, 100)]


def test_a_band_begins_with_enough_groups():
    """One group short of enough, a far too easy group is still kept."""
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium"))
    usual, easy = np.array([[1.0, 2.0]]), np.array([[90.0, 91.0]])
    selection.set_state(np.random.default_rng(0).normal(size=LEAST_BAND - 1).tolist())
    assert chosen(selection, easy).all()
    assert not chosen(selection, easy + 10).any()
    assert not chosen(selection, usual - 50).any()


def test_a_group_of_unknown_complexity_is_kept():
    """The compared score is down; what the other step was rewarded by still teaches."""
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium"))
    rng = np.random.default_rng(0)
    chosen(selection, rng.normal(size=(LEAST_BAND, 2)))
    rewards = {"coarse": np.full((3, 2), NAN), "refined": rng.normal(size=(3, 2))}
    assert selection.choose(rewards, rewards["coarse"]).all()
    assert len(selection.get_state()) == LEAST_BAND


def test_the_state_goes_on_elsewhere():
    config = ObjectiveConfig(dynamic_sampling="medium")
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(12, 4)) for _ in range(8)]
    whole, before, after = (Selection(config) for _ in range(3))
    for batch in batches[:5]:
        chosen(whole, batch)
        chosen(before, batch)
    after.set_state(before.get_state())
    for batch in batches[5:]:
        np.testing.assert_array_equal(chosen(whole, batch), chosen(after, batch))


def test_a_state_that_is_set_is_all_that_counts():
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium"))
    chosen(selection, np.random.default_rng(0).normal(size=(12, 4)))
    selection.set_state([1.0, 2.0])
    assert selection.get_state() == [1.0, 2.0]


def test_a_missing_reward_is_out_of_its_groups_mean():
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium"))
    chosen(selection, np.array([[1.0, 3.0, NAN], [NAN] * 3, [4.0, NAN, NAN]]))
    assert selection.get_state() == [2.0, 4.0]


def test_a_band_of_too_few_groups_is_refused():
    with pytest.raises(UserError, match="band_groups is 5; expected 24 or more"):
        ObjectiveConfig(dynamic_sampling="medium", band_groups=5)


def test_spread_is_of_what_is_trained_on_and_the_band_of_what_is_compared():
    """Normalised rewards have no mean to compare, plain ones may have no spread."""
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium", band_groups=100))
    plain = np.repeat(np.arange(100.0)[:, None], 2, axis=1)
    normalised = np.tile([-1.0, 1.0], (100, 1))
    selection.choose({"shape": normalised}, plain)
    kept = selection.choose({"shape": normalised}, plain)
    assert np.flatnonzero(~kept).tolist() == [*range(10), *range(90, 100)]


@pytest.mark.parametrize("seed", range(3))
def test_by_default_a_tenth_to_a_half_is_replaced(seed):
    """Whatever the distribution is: the band is made of quantiles."""
    rng = np.random.default_rng(seed)
    selection = Selection(ObjectiveConfig(dynamic_sampling="medium"))
    kept = [
        chosen(selection, rng.gamma(2, size=(12, 1)) + rng.normal(size=(12, 8)))
        for _ in range(40)
    ]
    replaced = 1 - np.mean(kept[4:])
    assert 0.1 <= replaced <= 0.5
