"""Damage to voxel grids and its two measures."""

import numpy as np
import pytest

from ar3d_jax.rewards.sidecar import damage


def table() -> np.ndarray:
    """A top 16 x 16 x 2 on four legs 2 x 2 x 12."""
    grid = np.zeros((32, 32, 32), bool)
    grid[8:24, 8:24, 20:22] = True
    for x in (8, 22):
        for y in (8, 22):
            grid[x : x + 2, y : y + 2, 8:20] = True
    return grid


def box() -> np.ndarray:
    grid = np.zeros((32, 32, 32), bool)
    grid[4:28, 10:22, 4:28] = True
    return grid


def test_exposed_faces_of_a_pair():
    grid = np.zeros((4, 4, 4), bool)
    grid[0, 0, 0:2] = True  # at the border, which is air beyond
    faces = damage.exposed_faces(grid)
    assert faces.sum() == 10
    assert faces[0, 0, 0] == 5
    assert faces[2, 2, 2] == 0


def test_fidelity_by_hand():
    whole = np.zeros((16, 16, 16), bool)
    whole[2, 2, 2:12] = True  # a rod of 10: 4 * 10 + 2 faces
    half = whole.copy()
    half[2, 2, 7:] = False
    # Of the rod's 42 faces, those of voxels at most one beside the half: 1 + 4 * 6.
    assert damage.fidelity(half, whole) == pytest.approx(25 / 42)
    far = whole.copy()
    far[10, 10, 10] = True  # six faces that do not belong
    assert damage.fidelity(far, whole) == pytest.approx(42 / 48)
    assert damage.fidelity(whole, whole) == 1
    assert damage.fidelity(np.zeros_like(whole), whole) == 0


def test_cleanliness_by_hand():
    rod = np.zeros((16, 16, 16), bool)
    rod[2, 2, 2:12] = True
    speck = rod.copy()
    speck[10, 10, 10] = True
    # Largest piece 10 of 11; faces per voxel 4.2 and 48 / 11.
    assert damage.cleanliness(speck, rod) == pytest.approx(10 / 11 * 4.2 / (48 / 11))
    assert damage.cleanliness(rod, rod) == 1
    assert damage.cleanliness(np.zeros_like(rod), rod) == 0
    # Without an original a sheet, two faces per voxel, is the standard.
    assert damage.cleanliness(rod, None) == pytest.approx(2 / 4.2)


def test_foreign_columns_are_whole_tokens():
    mixed = damage.foreign_columns(table(), box(), 0.5, np.random.default_rng(0))
    for x in range(0, 32, 4):
        for y in range(0, 32, 4):
            for z in range(0, 32, 16):
                cells = np.s_[x : x + 4, y : y + 4, z : z + 16]
                assert any(
                    np.array_equal(mixed[cells], of[cells]) for of in (table(), box())
                )
    everything = damage.foreign_columns(table(), box(), 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(everything, box())


def test_shuffled_columns_keep_their_voxels():
    mixed = damage.shuffled_columns(table(), box(), 1.0, np.random.default_rng(0))
    assert mixed.sum() == table().sum()
    assert (mixed != table()).any()


@pytest.mark.parametrize("kind", sorted(set(damage.DAMAGES) - {"blob"}))
def test_more_damage_measures_worse(kind):
    """There is a slope to climb: the measures' product falls with the strength."""

    def worth(strength: float) -> float:
        measures = [
            damage.damaged(table(), box(), kind, strength, np.random.default_rng(seed))
            for seed in range(4)
        ]
        return float(np.mean([fidelity * clean for _, fidelity, clean in measures]))

    weak, middle, strong = worth(0.05), worth(0.4), worth(1.0)
    assert weak > 0.5
    assert weak >= middle >= strong
    assert strong < 0.8 * weak


def test_a_blob_was_never_an_object():
    _, fidelity, _ = damage.damaged(
        table(), box(), "blob", 0.1, np.random.default_rng(0)
    )
    assert fidelity == 0


def test_damage_depends_on_the_seed_alone():
    for kind in damage.DAMAGES:
        first, second = (
            damage.damaged(table(), box(), kind, 0.3, np.random.default_rng(5))
            for _ in range(2)
        )
        np.testing.assert_array_equal(first[0], second[0])


def test_logits_have_the_grids_signs():
    logits = damage.logits_like_a_codec(table(), np.random.default_rng(0))
    np.testing.assert_array_equal(logits > 0, table())
    assert logits.dtype == np.float32
