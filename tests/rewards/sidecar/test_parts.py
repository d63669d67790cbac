"""Part checks on point clouds, against shapes built by hand."""

import numpy as np
import pytest

from ar3d_jax.rewards.sidecar.scorers import parts


def box_points(low, high, count=600, seed=0):
    """Points all through an axis-aligned box."""
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, (count, 3)).astype(np.float32)


def table_points(legs=4):
    corners = [(-0.45, -0.25), (0.45, -0.25), (-0.45, 0.25), (0.45, 0.25), (0.0, 0.0)]
    supports = [
        box_points((x - 0.04, y - 0.04, -0.4), (x + 0.04, y + 0.04, 0.3), 200, seed=i)
        for i, (x, y) in enumerate(corners[:legs])
    ]
    top = box_points((-0.5, -0.3, 0.3), (0.5, 0.3, 0.36), 1200)
    return np.concatenate([top, *supports])


def dust_points():
    return box_points((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), 2000)


def test_cloud_is_centred_and_two_long():
    points = table_points() * 0.3 + np.float32(0.2)
    cloud = parts.cloud(points)
    assert cloud.shape == (parts.CLOUD, 3)
    assert cloud.dtype == np.float32
    assert np.abs(cloud).max() == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(cloud, parts.cloud(points))


def test_cloud_of_few_points_repeats_them():
    points = np.array([[0, 0, 0], [1, 0, 0]], np.float32)
    cloud = parts.cloud(points)
    assert sorted(map(tuple, np.unique(cloud, axis=0))) == [(-1, 0, 0), (1, 0, 0)]


def test_occupancy_fills_each_side_but_does_not_inflate_a_plate():
    grid = parts.occupancy(box_points((0, 0, 0), (1, 0.5, 0.02), 4000))
    x, y, z = np.nonzero(grid)
    assert set(x) == set(range(parts.CELLS)) == set(y)
    assert len(set(z)) <= 2  # 0.02 of 0.3 is less than a cell, perhaps across a border


def test_likeness_is_one_with_itself_and_counts_only_the_region():
    soft = parts.soften(parts.occupancy(table_points()))
    lifted = soft.copy()
    lifted[:, :, parts.CELLS // 2 :] = 0.0  # the legs' region is below
    examples = np.stack([soft, lifted, np.zeros_like(soft)])
    alike = parts.likeness(soft, examples, "legs")
    np.testing.assert_allclose(alike, [1, 1, 0], atol=1e-4)
    whole = parts.likeness(soft, examples, "something else")
    assert whole[0] == pytest.approx(1)
    assert 0 < whole[1] < 0.9


@pytest.mark.parametrize("legs", [1, 2, 3, 4])
def test_legs_are_counted(legs):
    assert parts.legs_found(table_points(legs)) == legs


@pytest.mark.parametrize(
    ("prompt", "sides", "expected"),
    [
        ("a table", (1, 1, 1), []),
        ("a tall cabinet", (0.5, 0.5, 1.0), [1.0]),
        ("a low cabinet", (1.0, 0.5, 1.5), [np.exp(-2 * np.log(1.5 / 0.75))]),
        ("a low wide chest", (1.0, 0.5, 0.5), [1.0, 1.0]),
        ("a square box", (1.0, 0.5, 1.0), [np.exp(-2 * np.log(2 / 1.2))]),
        ("a box, width 10, depth 5, height 2", (1.0, 0.5, 0.2), [1.0]),
        ("a box, width 5, depth 10, height 2", (1.0, 0.5, 0.2), [(2 / 1.1) ** -2]),
    ],
)
def test_stated_proportions(prompt, sides, expected):
    points = np.array([[0, 0, 0], sides], np.float32)
    np.testing.assert_allclose(parts.stated_checks(prompt, points), expected, rtol=1e-5)


def test_stated_legs_lose_half_for_each_that_differs():
    points = table_points(legs=2)
    assert parts.stated_checks("a table with top and two legs", points) == [1.0]
    assert parts.stated_checks("a table with four legs", points) == [0.25]
    points = table_points(legs=4)
    assert parts.stated_checks("a table with three legs", points) == [0.5]


@pytest.mark.parametrize(
    ("stranger", "member", "expected"),
    [(-1.0, 3.0, 0.5), (0.6, 1.4, 0.5), (0.2, 0.5, 1.0), (2.0, 3.0, 0.0)],
)
def test_completeness_lies_between_a_stranger_and_a_member(stranger, member, expected):
    """Of a likeness of 1, that with the closest of three examples: the table itself."""
    points = table_points()
    grids = [dust_points(), points, points[: len(points) // 2]]
    examples = parts.Examples(
        grids=np.stack([parts.soften(parts.occupancy(grid)) for grid in grids]),
        rows={"table": [0, 1], "lamp": [2]},
        limits={"table": {"top": [stranger, member]}, "lamp": {"stem": [0, 1]}},
    )
    found = examples.check("table", points)
    assert found == {"top": pytest.approx(expected, abs=1e-4)}


def test_parts_score_by_hand():
    assert parts.parts_score([1.0, 0.5, 0.2, 0.0]) == pytest.approx((2 + 1.5 + 0.2) / 4)
    assert parts.parts_score([]) == 0.0
