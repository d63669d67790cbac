import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ar3d_jax.evaluation import kernel_distance as module
from ar3d_jax.evaluation.kernel_distance import kernel_distance, rbf_similarity
from tests.evaluation.samples import two_sets

ALL = {"subsets": 1, "subset_size": 10_000, "seed": 0}  # every vector


def unbiased(x, y):
    """The definition, pair by pair."""

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    own = [
        np.mean([k(a, b) for a, b in itertools.permutations(part, 2)])
        for part in (x, y)
    ]
    return sum(own) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_equals_the_definition():
    x, y = two_sets(0, 17, 17, 5)
    expected = 100 * unbiased(x, y)
    assert kernel_distance(x, y, **ALL) == pytest.approx(expected, rel=1e-10)


def test_is_the_mean_over_seeded_subsets_of_both_sets():
    x, y = two_sets(0, 30, 20, 4)
    random = np.random.default_rng(7)
    expected = [
        unbiased(x[random.choice(30, 9, False)], y[random.choice(20, 9, False)])
        for _ in range(5)
    ]
    found = kernel_distance(x, y, subsets=5, subset_size=9, seed=7)
    assert found == pytest.approx(100 * np.mean(expected), rel=1e-10)


@pytest.mark.parametrize(
    ("seed", "n", "d", "expected"),
    [(1, 60, 16, 0.515476857389607), (2, 200, 64, 0.303555481642568)],
)
def test_equals_torch_fidelity_and_clean_fid(seed, n, d, expected):
    """torch-fidelity 0.4.0 kid_features_to_metric and clean-fid 0.1.35
    kernel_distance, which agree to 1e-14, with one subset of everything."""
    found = kernel_distance(*two_sets(seed, n, n, d), **ALL)
    assert found == pytest.approx(100 * expected, rel=1e-6)


def test_subsets_equal_torch_fidelity():
    """torch-fidelity 0.4.0, its RandomState replaced by default_rng(11)."""
    x, y = two_sets(5, 90, 70, 24)
    found = kernel_distance(x, y, subsets=7, subset_size=30, seed=11)
    assert found == pytest.approx(100 * 0.336929268419189, rel=1e-6)


def test_equal_distributions_scatter_around_0():
    random = np.random.default_rng(0)
    found = [
        kernel_distance(*random.standard_normal((2, 50, 8)), **ALL) for _ in range(200)
    ]
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)


def test_a_shifted_gaussian_has_the_derived_value():
    """x from N(0, I), y from N(s, I), |s|^2 = c d.

    With u = x.y / d, E (1 + u)^3 = 1 + 3 E u + 3 E u^2 + E u^3, where
    x.x': E u = 0, E u^2 = 1/d, E u^3 = 0;
    x.y:  E u = 0, E u^2 = (1 + c) / d, E u^3 = 0;
    y.y': E u = c, E u^2 = c^2 + (1 + 2c) / d,
          E u^3 = c^3 + 3 c (1 + 2c) / d + 6 c / d^2
    (of (s + a).(s + b): s.a, s.b and a.b are uncorrelated, and E s.a s.b a.b = |s|^2).
    """
    d, c = 16, 0.25
    own_y = 1 + 3 * c + 3 * (c**2 + (1 + 2 * c) / d)
    own_y += c**3 + 3 * c * (1 + 2 * c) / d + 6 * c / d**2
    expected = 100 * ((1 + 3 / d) + own_y - 2 * (1 + 3 * (1 + c) / d))
    random = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x, y = random.standard_normal((2, 100, d))
        found.append(kernel_distance(x, y + np.sqrt(c), **ALL))
    error = np.std(found) / np.sqrt(len(found))
    assert error < 0.03 * expected
    assert abs(np.mean(found) - expected) < 3 * error


def test_one_sample_given_twice_is_negative():
    x = np.random.default_rng(0).standard_normal((500, 768))
    assert kernel_distance(x, x, **ALL) == pytest.approx(-2.8, abs=0.1)


def test_known_numbers_at_500_by_768():
    """Of the public script's similarity and of KD, for N(0, I): two samples, one
    sample twice, and one sample against itself moved by 1 in every dimension."""
    x, y = np.random.default_rng(0).standard_normal((2, 500, 768))
    assert rbf_similarity(x, y) == pytest.approx(0.136, abs=1e-3)
    assert rbf_similarity(x, x) == pytest.approx(0.137, abs=1e-3)
    assert rbf_similarity(x, x + 1) == pytest.approx(0.051, abs=1e-3)
    assert kernel_distance(x, y, **ALL) == pytest.approx(0.04, abs=0.02)
    assert kernel_distance(x, x + 1, **ALL) == pytest.approx(698, rel=0.01)


def test_similarity_is_the_mean_of_gaussians_of_distances():
    x, y = two_sets(3, 11, 7, 6)
    expected = np.exp(-0.2 * cdist(x, y) ** 2).mean()
    assert rbf_similarity(x, y, 0.2) == pytest.approx(expected, rel=1e-12)


def test_similarity_equals_scikit_learn():
    """scikit-learn 1.9.1: rbf_kernel(x, y).mean(), which the public script prints."""
    random = np.random.default_rng(6)
    x = random.standard_normal((24, 768))
    y = random.standard_normal((24, 768)) * 1.2 + 0.1
    assert rbf_similarity(x, y) == pytest.approx(0.08742008360532366, rel=1e-9)


def test_chunks_change_nothing(monkeypatch):
    x, y = two_sets(0, 40, 30, 8)
    settings = {"subsets": 3, "subset_size": 20, "seed": 1}
    expected = kernel_distance(x, y, **settings)
    pulls = module.influence(x, y)
    monkeypatch.setattr(module, "CHUNK", 7 * 30)
    assert kernel_distance(x, y, **settings) == pytest.approx(expected, rel=1e-12)
    for found, pull in zip(module.influence(x, y), pulls, strict=True):
        np.testing.assert_allclose(found, pull, rtol=1e-9, atol=1e-12)


def test_influence_is_the_derivative_along_weights():
    """Against one vector's weight raised a little, in the weighted estimator."""
    x, y = two_sets(0, 12, 9, 4)

    def weighted(p, q):
        own = [
            (w @ (k - np.diag(np.diag(k))) @ w) * len(w) / (len(w) - 1)
            for w, k in ((p, module.kernel(x, x)), (q, module.kernel(y, y)))
        ]
        return sum(own) - 2 * p @ module.kernel(x, y) @ q

    p, q = np.full(12, 1 / 12), np.full(9, 1 / 9)
    pull_x, pull_y = module.influence(x, y)
    step = 1e-6
    for i in (0, 5):
        moved = (1 - step) * p + step * np.eye(12)[i]
        slope = (weighted(moved, q) - weighted(p, q)) / step
        assert pull_x[i] == pytest.approx(slope, rel=1e-3, abs=1e-4)
        moved = (1 - step) * q + step * np.eye(9)[i]
        slope = (weighted(p, moved) - weighted(p, q)) / step
        assert pull_y[i] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_bad_sets_are_refused():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="two vectors"):
        kernel_distance(x, x[:1], **ALL)
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(x, x * np.nan, **ALL)
