import numpy as np
import pytest

from ar3d_jax.evaluation.clip_score import clip_score


def test_is_the_mean_cosine_times_100():
    views = np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
    # Cosines with (1, 0): 0.6, 0 and -1, which is not clamped.
    assert clip_score(views, np.array([5.0, 0.0])) == pytest.approx(-100 * 0.4 / 3)


def test_is_of_angles_not_of_the_mean_vector():
    """A view of long features counts no more than another."""
    views = np.array([[1000.0, 0.0], [0.0, 1.0]], np.float32)
    assert clip_score(views, np.array([1.0, 0.0], np.float32)) == pytest.approx(50)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(ValueError, match="no direction"):
        clip_score(np.full((2, 3), bad), np.ones(3))


def test_no_view_is_refused():
    with pytest.raises(ValueError, match="no view"):
        clip_score(np.zeros((0, 3)), np.ones(3))
