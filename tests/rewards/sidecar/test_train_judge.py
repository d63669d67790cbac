"""Training of the judge at toy size: what it does to pictures, and that it learns."""

import numpy as np
import pytest
import torch

from ar3d_jax.rewards.sidecar import batches, judge, train_judge
from tests.rewards.sidecar.test_train_embedded import catalog_of, drawn_of


@pytest.fixture(autouse=True)
def _one_thread():
    """Toy batches on two threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def source(kinds, seed=0):
    objects = batches.sort_into_classes(catalog_of(kinds))
    drawn = drawn_of(len(kinds))
    return train_judge.JudgeBatches(drawn, objects, np.arange(len(drawn)), seed)


def test_pictures_are_changed_but_stay_pictures():
    toy = source(["chair"] * 6)
    rows = np.array([8, 8, 8, 8, 8, 8])  # of a grey square
    pictures = toy.views(rows)
    assert pictures.shape == (6, 1, judge.SIZE, judge.SIZE)
    assert (pictures >= 0).all()
    assert (pictures <= 1).all()
    shares = (pictures > 0.05).float().mean((1, 2, 3))
    square = (50 / judge.SIZE) ** 2
    # Up to 15% larger or smaller, 5% flatter, and a piece of 31 x 31 covered.
    assert (shares < 1.5 * square).all()
    assert (shares > 0.3 * square).all()
    assert len({p.numpy().tobytes() for p in pictures}) == 6


def test_the_same_seed_gives_the_same_batches():
    first, second, third = (source(["chair"] * 6, seed) for seed in (0, 0, 1))
    rows = np.arange(6)
    assert torch.equal(first.views(rows), second.views(rows))
    assert not torch.equal(second.views(rows), third.views(rows))


def test_captions_and_pictures_find_each_other():
    """Squares as dark as their class says."""
    torch.manual_seed(0)
    kinds = ["chair", "bed", "lamp", "table", "cup", "toilet"]
    toy = source(kinds)
    judged = judge.Judge(*train_judge.train_encoders(toy, steps=120, size=6), {})
    pictures = np.stack([toy.drawn.views[4 * i, 0] for i in range(6)])[..., None]
    seen = judged.embed_views(np.repeat(pictures, 3, axis=-1))
    told = np.stack([judged.embed_text(kind) for kind in kinds])
    similar = seen @ told.T
    own = np.diag(similar).mean()
    others = (similar.sum() - np.trace(similar)) / 30
    assert own > others + 0.05
    ends = similar[np.ix_([0, 5], [0, 5])]
    assert np.diag(ends).min() > 0.05 > -0.05 > ends[0, 1]
