import numpy as np
import pytest

from ar3d_jax.evaluation.eval_py import clip_cosine, compat_caption, similarity


def test_similarity_is_per_object_and_never_pooled():
    """Two objects that differ from each other: pooled, their views would count as far
    apart; by object, each is at its own truth."""
    views = np.zeros((2, 24, 768))
    views[1] = 10
    found = similarity(views, views)
    assert found.value == 1
    assert found.objects == (1, 1)
    assert found.replaced == ()


def test_similarity_of_one_object_is_the_mean_kernel_of_its_views():
    truth = np.zeros((1, 2, 4))
    views = np.array([[[2.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 4, 0]]])
    # gamma 1/4: |x - y|^2 of 4, 0 and 16.
    expected = (np.exp(-1) + 1 + np.exp(-4)) / 3
    assert similarity(truth, views).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_what_is_not_finite_counts_0_and_is_named(bad):
    truth, views = np.zeros((2, 3, 2, 8))
    views = views.copy()
    truth[:], views[:] = 0, 0
    views[1], truth[1] = bad, bad
    found = similarity(truth, views)
    assert found.objects == (1, 0, 1)
    assert found.replaced == (1,)
    assert found.value == pytest.approx(2 / 3)


def test_no_object_has_no_similarity():
    assert np.isnan(similarity(np.zeros((0, 2, 8)), np.zeros((0, 2, 8))).value)


def test_clip_is_not_times_100():
    assert clip_cosine(np.array([[3.0, 4.0]]), np.array([1.0, 0.0])) == pytest.approx(
        0.6
    )


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A chair. It is red.", "A chair"),
        ("A 2.5 m tall tree", "A 2"),
        ("no stop", "no stop"),
        (". then words", ". then words"),
        (" ." + 100 * "x", " ." + 75 * "x"),
    ],
)
def test_caption_is_cut_at_the_first_stop(caption, expected):
    assert compat_caption(caption) == expected
