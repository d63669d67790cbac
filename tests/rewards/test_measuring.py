"""Mesh files in, vectors out, with every process killed in turn."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from ar3d_jax.config import FeaturesConfig, RenderConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.measuring import Measuring
from tests.rewards.test_client import prepare_stand_ins

RENDER = RenderConfig(views=3, size=16, workers=2)
FEATURES = FeaturesConfig(sets=("clip_b32", "inception"), points=5)
PLACES = {"clip_b32": "here", "inception": "there"}
CAPTIONS = [f"thing {i}" for i in range(8)]


class QuickMeasuring(Measuring):
    """No pictures, no networks."""

    worker_module = "tests.rewards.stand_in_drawer"
    sidecar_module = "tests.rewards.stand_in_networks"


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    prepare_stand_ins(tmp_path, monkeypatch)


def quick(folder, *, slots=4, places=PLACES):
    return QuickMeasuring(RENDER, FEATURES, places, slots, folder / "logs")


WORDS = [f"mesh {i}" for i in range(8)]


def files(folder, words=WORDS):
    paths = [folder / f"{i}.txt" for i in range(len(words))]
    for path, text in zip(paths, words, strict=True):
        path.write_text(text)
    return paths


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What came of the eight files in a run in which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare_stand_ins(folder, monkeypatch)
        with quick(folder) as measuring:
            found = measuring.collect(measuring.submit(files(folder), CAPTIONS))
            assert measuring.restarts == 0
    return found


def assert_same(one, other):
    assert (one.failure, one.reasons, one.truncated) == (None, {}, ())
    np.testing.assert_array_equal(one.points, other.points)
    for mine, theirs in ((one.vectors, other.vectors), (one.texts, other.texts)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_vectors_are_by_set_and_in_order(tmp_path, undisturbed):
    # Also: more objects than slots, tickets that overlap, views that are kept.
    from tests.rewards.stand_in_networks import numbers

    paths = files(tmp_path)
    with quick(tmp_path, slots=1) as measuring:
        first = measuring.submit(paths, CAPTIONS, keep_views=True)
        second = measuring.submit(paths[::-1], CAPTIONS[::-1])
        backwards = measuring.collect(second)
        forwards = measuring.collect(first)
        assert first.draw_s >= 4.0
        assert first.answer_s > 0
    for index, own in enumerate(forwards):
        assert_same(own, undisturbed[index])
        assert_same(backwards[7 - index], undisturbed[index])
        assert backwards[index].views is None
        seed = zlib.crc32(f"mesh {index}y".encode())
        views = np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3), np.uint8)
        np.testing.assert_array_equal(own.views, views)
        assert own.points.shape == (5, 3)
        for name, width in (("clip_b32", 512), ("inception", 2048)):
            rows = [numbers(view.tobytes() + name.encode(), width) for view in views]
            np.testing.assert_array_equal(own.vectors[name], np.stack(rows))
        assert set(own.texts) == {"clip_b32"}
        text = numbers(CAPTIONS[index].encode(), 512)
        np.testing.assert_array_equal(own.texts["clip_b32"], text)
    vectors = [own.vectors["inception"] for own in forwards]
    assert len({row.tobytes() for row in vectors}) == 8


def test_the_up_axis_reaches_the_worker(tmp_path, undisturbed):
    with quick(tmp_path) as measuring:
        ticket = measuring.submit(files(tmp_path)[:1], CAPTIONS[:1], up="z")
        (lying,) = measuring.collect(ticket)
    assert (lying.vectors["inception"] != undisturbed[0].vectors["inception"]).any()


def test_what_fails_has_its_reason_and_the_rest_its_numbers(tmp_path, undisturbed):
    words = list(WORDS)
    words[2] = "broken"
    captions = [*CAPTIONS[:4], "raise", "nan", "long story", CAPTIONS[7]]
    with quick(tmp_path) as measuring:
        ticket = measuring.submit(files(tmp_path, words), captions, keep_views=True)
        found = measuring.collect(ticket)
        assert measuring.restarts == 0
    assert found[2].failure == "drawing failed: ValueError: no mesh in it"
    assert found[2].vectors == found[2].texts == found[2].reasons == {}
    assert found[2].points.shape == (0, 3)
    assert (found[2].views == 255).all()
    assert found[4].reasons == {"clip_b32": "ValueError: as I was told"}
    assert found[5].reasons == {"clip_b32": "the network's numbers are not finite"}
    for index in (4, 5):
        assert found[index].failure is None
        assert set(found[index].vectors) == {"inception"}
        theirs = undisturbed[index].vectors["inception"]
        np.testing.assert_array_equal(found[index].vectors["inception"], theirs)
        np.testing.assert_array_equal(found[index].points, undisturbed[index].points)
    assert found[6].truncated == ("clip_b32",)
    for index in (0, 1, 3, 7):
        assert_same(found[index], undisturbed[index])


def test_processes_killed_in_the_middle_change_nothing(tmp_path):
    words = list(WORDS)
    words[3] = "die once worker"
    captions = list(CAPTIONS)
    captions[6] = "die once networks"
    paths, runs = files(tmp_path, words), []
    for restarts in (2, 0):  # the second time, the marks are there
        with quick(tmp_path) as measuring:
            ticket = measuring.submit(paths, captions)
            runs.append(measuring.collect(ticket))
            assert measuring.restarts == restarts
    for disturbed, calm in zip(*runs, strict=True):
        assert_same(disturbed, calm)
        assert set(calm.vectors) == {"clip_b32", "inception"}


def test_an_object_that_kills_twice_is_named_and_the_rest_goes_on(
    tmp_path, undisturbed
):
    words = list(WORDS)
    words[1] = "die"
    captions = list(CAPTIONS)
    captions[5] = "die"
    with quick(tmp_path) as measuring:
        ticket = measuring.submit(files(tmp_path, words), captions)
        found = measuring.collect(ticket)
        assert measuring.restarts == 4
    assert "a render worker" in found[1].failure
    assert "died twice (signal 9)" in found[1].failure
    assert found[1].vectors == {}
    reason = "a sidecar died twice (signal 9)"
    assert found[5].failure is None
    assert found[5].reasons == {"clip_b32": reason, "inception": reason}
    assert found[5].vectors == {}
    np.testing.assert_array_equal(found[5].points, undisturbed[5].points)
    for index in (0, 2, 3, 4, 6, 7):
        assert_same(found[index], undisturbed[index])


def test_a_network_that_cannot_be_loaded_is_one_line(tmp_path):
    places = PLACES | {"inception": "broken"}
    with (
        pytest.raises(UserError, match=r"sidecar does not start: .*inception: broken$"),
        quick(tmp_path, places=places),
    ):
        pass


def test_wrong_counts_are_refused(tmp_path):
    with (
        quick(tmp_path) as measuring,
        pytest.raises(ValueError, match="1 meshes and 2 captions"),
    ):
        measuring.submit([Path("a")], ["a", "b"])
