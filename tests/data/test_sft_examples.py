"""Supervised examples: true of the augmented voxels they point to."""

import numpy as np
import pytest

from ar3d_jax.data import captions
from ar3d_jax.data.augmentation import augmented_voxels
from ar3d_jax.data.sft_examples import held_out_examples, training_examples


@pytest.fixture(scope="module")
def augmented(catalog_folder):
    return augmented_voxels(
        catalog_folder, copies=4, seed=0, resolution=16, processes=1
    )


def test_texts_belong_to_the_row(catalog, augmented):
    examples = training_examples(catalog, augmented, seed=0)
    for index in range(20):
        example = examples[index]
        assert augmented.front[example.row]
        assert augmented.object[example.row] == example.object
        record = catalog.objects[example.object]
        extents = augmented.extents[example.row]
        assert example.prompt in captions.prompts(record, extents)
        assert example.global_plan == captions.global_plan(record, extents)
        assert example.local_plan == captions.local_plan(record, extents)


def test_an_epoch_has_every_front_row_once(catalog, augmented):
    examples = training_examples(catalog, augmented, seed=0)
    count = int(augmented.front.sum())
    rows = [examples[i].row for i in range(2 * count)]
    assert sorted(rows[:count]) == np.flatnonzero(augmented.front).tolist()
    assert sorted(rows[count:]) == sorted(rows[:count])
    assert rows[count:] != rows[:count]


def test_seed_and_index_decide(catalog, augmented):
    first = training_examples(catalog, augmented, seed=1)
    again = training_examples(catalog, augmented, seed=1)
    assert [first[i] for i in (7, 0, 30)] == [again[i] for i in (7, 0, 30)]
    batch = next(iter(first.batch(5, batch_fn=list)))
    assert batch == [first[i] for i in range(5)]


def test_held_out_examples_are_unchanged_objects(catalog):
    (example,) = held_out_examples(catalog)
    assert example.row == example.object == 3
    assert example.global_plan == catalog.objects[3]["global_plan"]
