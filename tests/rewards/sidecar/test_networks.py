"""The networks' inputs and invariances; what they learned is in test_embedded.py."""

import math

import numpy as np
import pytest
import torch

from ar3d_jax.rewards.sidecar.scorers import networks


def test_pictures_become_grey_ink_on_nothing():
    views = np.full((2, 224, 224, 3), 255, np.uint8)
    views[1, :2, :2] = (30, 60, 90)  # one pixel of the encoder
    grey = networks.grey_pictures(views)
    assert grey.shape == (2, 1, networks.SIZE, networks.SIZE)
    assert not grey[0].any()
    assert grey[1, 0, 0, 0] == pytest.approx(1 - 60 / 255)
    assert not grey[1, 0, 1:].any()


def test_words_have_rows_of_their_own_and_of_their_pieces():
    (chair,) = networks.word_rows("Chair!")
    (chairs,) = networks.word_rows("chairs")
    (cupboard,) = networks.word_rows("cupboard")
    assert len(chair) == 1 + 5  # chair; <ch cha hai air ir>
    assert len(set(chair) & set(chairs)) >= 3
    assert not set(chair) & set(cupboard)
    assert networks.word_rows("") == networks.word_rows("?!") == [[0]]


def test_rows_do_not_depend_on_the_process():
    assert networks.word_rows("bed")[0][0] == 3863477503 % networks.BUCKETS  # CRC-32


def test_a_prompt_has_the_same_vector_alone_and_in_company():
    torch.manual_seed(0)
    text = networks.TextEncoder().eval()
    alone = text(["a tall chair"])
    together = text(["a lamp with a round base", "chair tall a", ""])
    torch.testing.assert_close(alone[0], together[1])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


def test_a_view_has_the_same_vector_alone_and_in_company():
    torch.manual_seed(0)
    view = networks.ViewEncoder().eval()
    pictures = torch.rand(3, 1, networks.SIZE, networks.SIZE)
    vectors, judged = view(pictures)
    alone, judged_alone = view(pictures[1:2])
    torch.testing.assert_close(vectors[1:2], alone)
    torch.testing.assert_close(judged[1:2], judged_alone)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert judged.shape == (3, 2)


def test_points_have_no_order():
    torch.manual_seed(0)
    points = networks.PointClassifier(5).eval()
    cloud = torch.rand(1, 200, 3)
    logits = points(cloud)
    assert logits.shape == (1, 6)  # and "no object"
    torch.testing.assert_close(logits, points(cloud[:, torch.randperm(200)]))


def test_networks_fit_in_a_few_megabytes():
    modules = (
        networks.ViewEncoder(),
        networks.TextEncoder(),
        networks.PointClassifier(60),
    )
    numbers = sum(math.prod(p.shape) for m in modules for p in m.parameters())
    assert 2 * numbers < 3e6  # bytes of fp16
