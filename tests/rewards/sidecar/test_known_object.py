"""The object that servers are shown first: what it is, and what is said of it."""

import asyncio
import dataclasses

import numpy as np
import pytest

from ar3d_jax.codec.voxels import voxelize
from ar3d_jax.config_rewards import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.known_object import HEADINGS, table
from ar3d_jax.rewards.sidecar import known_object, scorers
from ar3d_jax.rewards.sidecar.panel import Panel


class Fixed:
    """A scorer that answers with its role's verdict in `answers`."""

    batch = 1

    def __init__(self, answers):
        self.about = scorers.About("fixed", "7", "here")
        self.answers, self.seen = answers, []

    def score(self, subjects):
        self.seen += subjects
        return [{role: self.answers[role] for role in s.roles} for s in subjects]

    def wake(self):
        pass

    def rest(self):
        pass

    def close(self):
        pass


def rows_of(monkeypatch, answers):
    scorer = Fixed(answers)
    monkeypatch.setattr(scorers, "load", lambda name, config: scorer)

    async def run():
        panel = Panel(RewardsConfig())
        try:
            return await known_object.score(panel, 30.0)
        finally:
            await panel.close()

    return asyncio.run(run()), scorer


FINE = {
    role: (float(index), None)
    for index, role in enumerate(RewardsConfig().loaded()["embedded"])
}


def test_it_is_small_and_of_the_scorers_sizes():
    assert known_object.FILE.stat().st_size < 200_000
    known = known_object.read()
    assert known.views.shape == (6, 224, 224, 3)
    assert known.points.shape == known.colours.shape == (2048, 3)
    assert known.points.dtype == np.float32
    assert known.prompt == "a wooden chair with four legs"
    on_paper = (known.views == 255).all(-1).mean((1, 2))
    assert ((on_paper > 0.5) & (on_paper < 0.95)).all()


def test_its_points_lie_on_the_boxes_that_its_views_show():
    points = known_object.read().points
    distance = np.full(len(points), np.inf)
    for low, high in known_object.boxes():
        low, high = np.array(low), np.array(high)
        outside = np.maximum(np.maximum(low - points, points - high), 0).max(1)
        inside = np.minimum(points - low, high - points).min(1)
        distance = np.minimum(distance, np.where(outside > 0, outside, abs(inside)))
    assert distance.max() < 1e-6


def test_its_boxes_are_closed_and_wound_outwards():
    mesh = known_object.chair()
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    volume = np.einsum(
        "fa,fa->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])
    ).reshape(-1, 12)
    sizes = [np.prod(np.subtract(high, low)) for low, high in known_object.boxes()]
    np.testing.assert_allclose(volume.sum(1) / 6, sizes, rtol=1e-4)
    grid = voxelize(mesh.vertices, mesh.faces, 32)
    low = grid[:, :, :10].any(2)  # four legs and a stretcher between two
    assert low[8:10, 8:10].any()
    assert not low[14:18, :20].any()


@pytest.mark.usefixtures("egl")
def test_the_file_is_what_main_draws(tmp_path, monkeypatch):
    old = known_object.read()
    monkeypatch.setattr(known_object, "FILE", tmp_path / "new.npz")
    known_object.main()
    new = known_object.read(tmp_path / "new.npz")
    # Another driver may round otherwise.
    assert (abs(new.views.astype(int) - old.views) > 2).mean() < 1e-2
    np.testing.assert_allclose(new.points, old.points, atol=1e-6)
    np.testing.assert_array_equal(new.colours, old.colours)


def test_each_scorer_is_shown_it_for_all_its_roles(monkeypatch):
    rows, scorer = rows_of(monkeypatch, FINE)
    (row,) = rows
    assert (row.name, row.scores) == ("embedded", {r: v for r, (v, _) in FINE.items()})
    assert 0 < row.seconds < 30
    (seen,) = scorer.seen
    assert seen.roles == tuple(FINE)
    np.testing.assert_array_equal(seen.views, known_object.read().views)


def test_the_table_has_a_line_for_each_scorer(monkeypatch):
    rows, _ = rows_of(monkeypatch, FINE)
    slow = dataclasses.replace(rows[0], name="s", scores={"parts": 1 / 3}, seconds=71.2)
    head, first, second = table([row.cells() for row in (*rows, slow)])
    assert tuple(head.split()) == HEADINGS
    assert first.startswith("embedded  preference alignment category")
    assert first.endswith("0.0000 1.0000 2.0000 3.0000 4.0000 5.0000")
    assert second.split() == ["s", "parts", "fixed", "7", "here", "71.20", "0.3333"]
    for heading in ("model", "place", "score"):
        at = head.rindex(heading)
        assert {first[at - 2 : at], second[at - 2 : at]} == {"  "}


def test_a_scorer_that_has_no_number_is_named(monkeypatch):
    bad = FINE | {"parts": (float("nan"), "no points here")}
    with pytest.raises(UserError, match=r"embedded has no parts of .*: no points here"):
        rows_of(monkeypatch, bad)


def test_a_scorer_that_raises_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"embedded has no .*: KeyError"):
        rows_of(monkeypatch, {})


def test_a_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"make it anew: python -m .*known_object"):
        known_object.read(tmp_path / "x.npz")
