"""Changed copies: exact turns, unit size, the front kept, held-out objects left out."""

import numpy as np
import pytest

from ar3d_jax.data.augmentation import (
    STRETCH,
    Augmentation,
    augmented_voxels,
    draw,
    load_augmented,
)
from ar3d_jax.errors import UserError

BOX = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.2, 0.2) for z in (0, 0.3)])


@pytest.fixture(scope="module")
def augmented(catalog_folder):
    return augmented_voxels(
        catalog_folder, copies=4, seed=0, resolution=16, processes=1
    )


def test_a_quarter_turn_is_exact():
    turned = Augmentation(quarter=1).apply(BOX)
    np.testing.assert_allclose(np.ptp(turned, axis=0), [0.4, 1.0, 0.3])
    again = Augmentation(quarter=4).apply(BOX)
    np.testing.assert_array_equal(again, Augmentation().apply(BOX))


def test_mirror_exchanges_left_and_right():
    points = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.4, 0.1, 0.2]])
    mirrored = Augmentation(mirror=True).apply(points)
    np.testing.assert_allclose(mirrored[2, 0], -Augmentation().apply(points)[2, 0])
    np.testing.assert_allclose(mirrored[:, 1:], Augmentation().apply(points)[:, 1:])


def test_a_turn_by_an_angle_is_counterclockwise_from_above():
    points = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    turned = Augmentation(angle_deg=30.0).apply(points)
    np.testing.assert_allclose(
        turned[0] / np.linalg.norm(turned[0]), [np.sqrt(0.75), 0.5, 0], atol=1e-12
    )


def test_every_copy_is_centred_and_of_unit_size():
    for seed in range(20):
        points = draw(np.random.default_rng(seed)).apply(BOX)
        low, high = points.min(axis=0), points.max(axis=0)
        assert (high - low).max() == pytest.approx(1)
        np.testing.assert_allclose(low + high, 0, atol=1e-9)


def test_a_front_copy_is_stretched_and_never_turned():
    for seed in range(20):
        change = draw(np.random.default_rng(seed), front=True)
        assert (change.quarter, change.angle_deg) == (0, 0.0)
        assert all(1 / STRETCH <= factor <= STRETCH for factor in change.stretch)


def test_rows_are_of_training_objects_and_every_second_faces_front(catalog, augmented):
    training = np.flatnonzero(~catalog.held_out)
    np.testing.assert_array_equal(augmented.object, np.repeat(training, 4))
    assert augmented.front[::2].all()
    assert augmented.resolution == 16
    grids = augmented.voxels(np.arange(len(augmented.object)))
    assert grids.any(axis=(1, 2, 3)).all()


def test_the_same_seed_gives_the_same_grids_however_many_work(
    catalog_folder, augmented
):
    again = augmented_voxels(
        catalog_folder, copies=4, seed=0, resolution=16, processes=2
    )
    np.testing.assert_array_equal(again.packed, augmented.packed)
    other = augmented_voxels(
        catalog_folder, copies=4, seed=1, resolution=16, processes=1
    )
    assert (other.packed != augmented.packed).any()


def test_the_file_comes_back_and_its_absence_is_a_user_error(augmented, tmp_path):
    augmented.save(tmp_path / "augmented.npz")
    back = load_augmented(tmp_path / "augmented.npz")
    np.testing.assert_array_equal(back.packed, augmented.packed)
    assert back.resolution == augmented.resolution
    assert [p.name for p in tmp_path.iterdir()] == ["augmented.npz"]
    with pytest.raises(UserError, match=r"no file .* expected the output of python -m"):
        load_augmented(tmp_path / "nothing.npz")
