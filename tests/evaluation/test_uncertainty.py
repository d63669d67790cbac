"""Standard errors against the spread over fresh draws, and what they are made of."""

import numpy as np
import pytest

from ar3d_jax.evaluation import uncertainty
from ar3d_jax.evaluation.frechet import frechet_distance
from ar3d_jax.evaluation.kernel_distance import kernel_distance

EVERYTHING = {"subsets": 1, "subset_size": 10_000, "seed": 0}
DRAWS = 120  # a standard deviation of so many is known to 6%


def draw(random, paired, moved, objects=40, views=4, d=12):
    """A reference [object, view, d] and two systems of the same objects.

    Views of an object are alike, dimensions differ in spread; paired systems have the
    reference's objects with changes, others have their own.
    """
    scale = (1 + np.arange(d)) ** -0.5

    def seen(thing):
        noise = 0.5 * random.standard_normal((objects, views, d))
        return (thing + noise) * scale

    thing = random.standard_normal((objects, 1, d))
    made = random.standard_normal((objects, 1, d))
    made = 0.7 * (thing + made) if paired else made
    other = 0.8 * made + 0.6 * random.standard_normal((objects, 1, d))
    return seen(thing), seen(made + moved), seen(1.2 * other + moved)


def flat(x):
    return x.reshape(-1, x.shape[-1])


def ratio(numbers, errors):
    return np.mean(errors) / np.std(numbers, ddof=1)


@pytest.mark.parametrize("moved", [0.0, 0.5], ids=["equal", "moved"])
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "apart"])
def test_errors_equal_the_spread_over_fresh_draws(paired, moved):
    random = np.random.default_rng(0)
    found = {"fd": [], "kd": [], "fd b - a": [], "kd b - a": [], "kd of subsets": []}
    for turn in range(DRAWS):
        x, a, b = draw(random, paired, moved)
        fd = frechet_distance(flat(x), flat(a))
        error = uncertainty.frechet_error(x, a, paired=paired, seed=turn)
        found["fd"].append((fd, error))
        found["fd b - a"].append(
            uncertainty.frechet_difference(x, a, b, paired=paired, seed=turn)[:2]
        )
        few = {"subsets": 4, "subset_size": 40, "seed": turn}
        for name, settings in (("kd", EVERYTHING), ("kd of subsets", few)):
            kd = kernel_distance(flat(x), flat(a), **settings)
            error = uncertainty.kernel_error(x, a, paired=paired, **settings)
            found[name].append((kd, error))
        found["kd b - a"].append(
            uncertainty.kernel_difference(x, a, b, paired=paired, **EVERYTHING)[:2]
        )
    ratios = {name: ratio(*zip(*pairs, strict=True)) for name, pairs in found.items()}
    wrong = {name: r for name, r in ratios.items() if not 1 / 1.35 < r < 1.35}
    assert not wrong, ratios


def test_fewer_vectors_than_dimensions_have_errors_too():
    random = np.random.default_rng(0)
    numbers, errors = [], []
    for turn in range(DRAWS // 2):
        x, a, _ = draw(random, True, 0.5, objects=20, views=2, d=100)
        numbers.append(frechet_distance(flat(x), flat(a)))
        errors.append(uncertainty.frechet_error(x, a, paired=True, seed=turn))
    assert 1 / 1.35 < ratio(numbers, errors) < 1.35


@pytest.mark.parametrize("paired", [True, False])
def test_differences_are_b_minus_a(paired):
    x, a, b = draw(np.random.default_rng(0), paired, 0.5)
    settings = {"subsets": 3, "subset_size": 30, "seed": 5}
    found = uncertainty.kernel_difference(x, a, b, paired=paired, **settings)
    expected = kernel_distance(flat(x), flat(b), **settings)
    expected -= kernel_distance(flat(x), flat(a), **settings)
    assert (found.mean, found.n) == (pytest.approx(expected), 40)
    found = uncertainty.frechet_difference(x, a, b, paired=paired, seed=0)
    expected = frechet_distance(flat(x), flat(b)) - frechet_distance(flat(x), flat(a))
    assert (found.mean, found.n) == (pytest.approx(expected), 40)


def test_a_system_does_not_differ_from_itself():
    x, a, _ = draw(np.random.default_rng(0), True, 0.5)
    assert uncertainty.frechet_difference(x, a, a, paired=True, seed=0)[:2] == (0, 0)
    found = uncertainty.kernel_difference(x, a, a, paired=True, **EVERYTHING)
    assert found[:2] == (0, 0)


def test_views_are_no_objects():
    """The same views four times over leave the error where it was."""
    x, a, _ = draw(np.random.default_rng(0), True, 0.5)
    more_x, more_a = np.tile(x, (1, 4, 1)), np.tile(a, (1, 4, 1))
    found = uncertainty.frechet_error(more_x, more_a, paired=True, seed=0)
    expected = uncertainty.frechet_error(x, a, paired=True, seed=0)
    assert found == pytest.approx(expected, rel=0.05)


def test_sets_of_other_sizes_are_no_pairs():
    x, a, _ = draw(np.random.default_rng(0), False, 0.5)
    assert uncertainty.frechet_error(x[:30], a, paired=False, seed=0) > 0
    assert uncertainty.kernel_error(x[:30], a, paired=False, **EVERYTHING) > 0
    with pytest.raises(ValueError, match=r"\[30, 40\]"):
        uncertainty.frechet_error(x[:30], a, paired=True, seed=0)


def test_few_objects():
    x, a, _ = draw(np.random.default_rng(0), True, 0.5)
    assert np.isnan(uncertainty.frechet_error(x[:1], a[:1], paired=True, seed=0))
    assert uncertainty.frechet_error(x[:2], a[:2], paired=True, seed=0) > 0


@pytest.mark.parametrize("objects", [4, 30])
def test_the_error_of_a_mean_is_its_spread(objects):
    """Of skewed values, two seeds each, which are alike."""
    random = np.random.default_rng(0)
    found = []
    for turn in range(300):
        values = random.exponential(size=(objects, 1)) + random.random((objects, 2))
        found.append(uncertainty.over_objects(values, resamples=100, seed=turn)[:2])
    numbers, errors = zip(*found, strict=True)
    # The root mean square: the root of an unbiased variance is too small for few.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(
        np.std(numbers), rel=0.15
    )


def test_the_error_of_a_mean_is_the_standard_error():
    """Of four numbers: the sample deviation over the root of four, as a bootstrap."""
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = uncertainty.over_objects(values, resamples=20_000, seed=0)
    assert (found.mean, found.n) == (4, 4)
    assert found.error == pytest.approx(values.std(ddof=1) / 2, rel=0.02)


def test_the_error_of_a_paired_difference_is_its_spread():
    random = np.random.default_rng(0)
    found, apart = [], []
    for turn in range(300):
        hard = 5 * random.standard_normal((25, 1))
        a = hard + random.standard_normal((25, 3))
        b = hard + 0.5 + random.standard_normal((25, 2))
        found.append(uncertainty.difference(a, b, resamples=100, seed=turn)[:2])
        apart.append(uncertainty.over_objects(b, resamples=100, seed=turn).error)
    numbers, errors = zip(*found, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(numbers), rel=0.15)
    assert np.mean(errors) < 0.3 * np.mean(apart)
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.05)


def test_what_failed_is_left_out():
    values = np.array([[1.0, 3.0], [np.nan, 4.0], [np.nan, np.nan]])
    found = uncertainty.over_objects(values, resamples=50, seed=0)
    assert (found.mean, found.n) == (3, 2)  # of 2 and 4
    found = uncertainty.difference(
        values, np.array([5.0, np.nan, 1.0]), resamples=50, seed=0
    )
    assert (found.mean, found.n) == (3, 1)
    assert np.isnan(found.error)
    found = uncertainty.over_objects(np.array([np.nan]), resamples=50, seed=0)
    assert found.n == 0
    assert np.isnan(found.mean)


def test_resampling_is_seeded():
    values = np.random.default_rng(0).random(20)
    first, again, other = (
        uncertainty.over_objects(values, resamples=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
