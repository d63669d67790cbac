"""Texts that say the same are found, others are not, and quickly."""

import itertools
import random
import time

import pytest

from ar3d_jax.data.near_duplicates import NearDuplicates, pieces, similarity

SAME = [
    ("a chair with four legs", "A chair, with four legs."),
    ("a chair with four wooden legs", "the four-legs wooden chair"),
    ("a tall wooden bookshelf with glass doors", "a tall wodden bookshelf, glass door"),
    ("eine rote Vase", "EINE ROTE VASE"),
]
OTHER = [
    ("a chair", "a chair with four wooden legs and a round back"),
    ("a red chair", "a blue chair"),
    ("a glass", "a grass"),
    ("a table with three legs", "a table with four legs"),
    ("", "a chair"),
    ("", "!"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same(a, b):
    assert NearDuplicates([a]).find(b) == 0
    assert NearDuplicates([b]).find(a) == 0


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_other(a, b):
    assert NearDuplicates([a]).find(b) is None
    assert NearDuplicates([b]).find(a) is None


def test_pieces_by_hand():
    assert pieces("The legs, on a GLASS") == {
        *("^le", "leg", "eg$"),
        *("^gl", "gla", "las", "ass", "ss$"),
    }
    assert pieces("The a") == {"^th", "the", "he$", "^a$"}  # nothing else to go by
    assert similarity("legs", "leg glass") == pytest.approx(3 / 8)


def random_texts(count, seed):
    rng = random.Random(seed)
    words = ["".join(w) for w in itertools.product("bcd", "aeiou", "lmr", ["n", "ta"])]
    return [" ".join(rng.choices(words, k=rng.randint(1, 7))) for _ in range(count)]


@pytest.mark.parametrize("threshold", [0.4, 0.7, 1.0])
def test_index_finds_what_all_pairs_find(threshold):
    texts, others = random_texts(300, 0), random_texts(200, 1)
    index = NearDuplicates(texts[:150], threshold)
    for text in texts[150:]:
        index.add(text)
    found = [index.find(text) for text in others]
    for text, place in zip(others, found, strict=True):
        shares = [similarity(text, other) for other in texts]
        best = max(shares)
        assert place == (shares.index(best) if best >= threshold else None)
    assert threshold == 1.0 or any(place is not None for place in found)


def test_a_thousand_texts_against_four_thousand_take_seconds():
    index = NearDuplicates(random_texts(4000, 2))
    start = time.process_time()
    for text in random_texts(1000, 3):
        index.find(text)
    assert time.process_time() - start < 5  # about 0.2 measured
