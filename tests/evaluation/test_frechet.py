import numpy as np
import pytest
import scipy.linalg

from ar3d_jax.evaluation.frechet import frechet_distance, influence, sample_warning
from tests.evaluation.samples import two_sets


def by_matrix_root(x, y, p=None, q=None):
    """The definition: sample covariances, of weights p and q, and a matrix root."""

    def moments(v, weights):
        if weights is None:
            weights = np.full(len(v), 1 / len(v))
        covariance = np.cov(v.T, ddof=0, aweights=weights)
        return np.average(v, 0, weights), covariance * len(v) / (len(v) - 1)

    (mean_x, a), (mean_y, b) = moments(x, p), moments(y, q)
    root_a = scipy.linalg.sqrtm(a)
    root = scipy.linalg.sqrtm(root_a @ b @ root_a)
    return ((mean_x - mean_y) ** 2).sum() + np.trace(a + b - 2 * np.real(root))


@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 8), (90, 50, 20), (21, 200, 20)])
def test_equals_the_definition(n, m, d):
    x, y = two_sets(0, n, m, d)
    assert frechet_distance(x, y) == pytest.approx(by_matrix_root(x, y), rel=1e-9)


@pytest.mark.parametrize(
    ("seed", "n", "m", "d", "expected"),
    [
        (1, 60, 60, 16, 8.00824946037717),
        (2, 200, 200, 64, 32.2615650261196),
        (3, 300, 200, 48, 24.0723969676462),
        (4, 40, 50, 96, 112.264263991443),  # both covariances without full rank
    ],
)
def test_equals_torch_fidelity_and_clean_fid(seed, n, m, d, expected):
    """torch-fidelity 0.4.0 fid_statistics_to_metric and clean-fid 0.1.35
    frechet_distance, which agree to 1e-13."""
    found = frechet_distance(*two_sets(seed, n, m, d))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (2, 3)])
def test_one_sample_given_twice_is_at_0(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x) >= 0


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_a_moved_and_scaled_sample_has_the_derived_value(shape):
    """y = 3 x + s: its root covariance is three times x's, so FD is
    |mean x - mean y|^2 + (3 - 1)^2 tr cov x, whatever the rank."""
    x = np.random.default_rng(0).standard_normal(shape)
    y = 3 * x + 0.5
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = shift + 4 * x.var(0, ddof=1).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_a_shifted_gaussian_has_its_squared_shift():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 20_000, 4))
    assert frechet_distance(x, y) < 0.002
    assert frechet_distance(x, y + 1) == pytest.approx(4, rel=0.02)


def test_spans_that_share_nothing_have_no_overlap():
    """Rank 1 against rank 1, at right angles: FD is the sum of both spreads."""
    x, y = np.zeros((2, 5, 9))
    x[:, 0] = y[:, 1] = np.arange(5) - 2.0  # variance 2.5
    assert frechet_distance(x, y) == pytest.approx(5, rel=1e-12)


def test_float32_features_are_summed_in_float64():
    x, y = (part.astype(np.float32) for part in two_sets(0, 200, 200, 16))
    x, y = x + np.float32(100), y + np.float32(100)
    exact = by_matrix_root(x.astype(np.float64), y.astype(np.float64))
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)


def test_influence_is_the_derivative_along_weights():
    x, y = two_sets(0, 12, 9, 5)
    pull_x, pull_y = influence(x, y)
    step = 1e-6

    def slope(at_x, at_y):
        up, down = (
            by_matrix_root(x, y, 1 / 12 + sign * at_x, 1 / 9 + sign * at_y)
            for sign in (step, -step)
        )
        return (up - down) / (2 * step)

    for i in (0, 5):
        expected = slope(np.eye(12)[i] - 1 / 12, np.zeros(9))
        assert pull_x[i] == pytest.approx(expected, rel=1e-5, abs=1e-5)
        expected = slope(np.zeros(12), np.eye(9)[i] - 1 / 9)
        assert pull_y[i] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_more_dimensions_without_content_change_no_influence():
    """The way of few vectors in many dimensions against that of many in few."""
    x, y = two_sets(0, 12, 9, 5)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((60, 5)))[0]
    for found, expected in zip(
        influence(x @ basis.T, y @ basis.T), influence(x, y), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_few_vectors_warn():
    assert sample_warning(2049, 2048) is None
    assert "996 vectors in 2048 dimensions" in (sample_warning(996, 2048) or "")
    assert sample_warning(2048, 2048)


def test_bad_sets_are_refused():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(x, x * np.nan)
