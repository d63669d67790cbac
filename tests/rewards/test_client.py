"""Drawing and scoring as the trainer sees them, with every process killed in turn."""

import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys

import numpy as np
import pytest

from ar3d_jax.config import RenderConfig
from ar3d_jax.config_rewards import (
    CoarseWeights,
    RefinedWeights,
    RewardsConfig,
    WeightsConfig,
)
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import courier, wire
from ar3d_jax.rewards.client import Scoring

ROOT = pathlib.Path(__file__).parents[2]
RENDER = RenderConfig(size=32, workers=2)
REWARDS = RewardsConfig(points=8)
SIDE = 8  # voxels
COARSE = ("preference", "alignment", "category")
REFINED = ("preference", "quality", "consistency", "parts")


class DrawnScoring(Scoring):
    """Real render workers, a stand-in sidecar."""

    sidecar_module = "tests.rewards.stand_in_sidecar"


class QuickScoring(DrawnScoring):
    """No pictures."""

    worker_module = "tests.rewards.stand_in_worker"


def prepare_stand_ins(folder, monkeypatch):
    (folder / "stand_in").mkdir()
    monkeypatch.setenv("STAND_IN_DIR", str(folder / "stand_in"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(autouse=True)
def stand_ins(tmp_path, monkeypatch):
    prepare_stand_ins(tmp_path, monkeypatch)


def blobs(count):
    """Logits of balls of different sizes and places."""
    random = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 3, indexing="ij"), -1)
    centres = random.uniform(-0.3, 0.3, (count, 1, 1, 1, 3))
    distance = np.linalg.norm(axes - centres, axis=-1)
    radii = random.uniform(0.4, 0.7, (count, 1, 1, 1))
    return ((radii - distance) * 8).astype(np.float32)


PROMPTS = [f"ball {i}" for i in range(12)]


def quick(tmp_path, *, rewards=REWARDS, render=RENDER, slots=4):
    return QuickScoring(render, rewards, SIDE, slots, tmp_path / "logs")


def assert_ended(pid):
    """The process is gone, or goes within seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 30)[0], f"process {pid} lives on"
    finally:
        os.close(handle)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Scores of the balls from a run in which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare_stand_ins(folder, monkeypatch)
        with quick(folder) as scoring:
            scores, _ = scoring.collect(scoring.submit(blobs(12), PROMPTS, "refined"))
            assert scoring.restarts == 0
            pids = [process["pid"] for process in scoring.processes.values()]
    for pid in pids:
        assert_ended(pid)
    assert (folder / "stand_in/closed").exists()
    return scores


def assert_same(scores, others):
    assert scores.keys() == others.keys()
    for role in scores:
        np.testing.assert_array_equal(scores[role], others[role])


def test_scores_are_by_step_and_in_order(tmp_path, undisturbed):
    # Also: more objects than slots, tickets that overlap, an order that differs.
    with quick(tmp_path, slots=1) as scoring:
        grids = blobs(12)
        coarse = scoring.submit(grids, PROMPTS, "coarse")
        refined = scoring.submit(grids[::-1], PROMPTS[::-1], "refined")
        scores, reasons = scoring.collect(refined)
        assert set(scoring.collect(coarse)[0]) == set(COARSE)
    assert set(scores) == set(REFINED)
    assert all(value.dtype == np.float32 for value in scores.values())
    assert len(set(scores["parts"].tolist())) == 12
    assert reasons == {role: [None] * 12 for role in REFINED}
    assert_same({role: value[::-1] for role, value in scores.items()}, undisturbed)


def test_the_judge_is_asked_alone_and_only_where_it_is_loaded(tmp_path):
    grids, judged = blobs(2), dataclasses.replace(REWARDS, judge=True)
    with quick(tmp_path, rewards=judged) as scoring:
        tickets = [scoring.submit(grids, PROMPTS[:2], s) for s in ("judge", "coarse")]
        (scores, _), (rewards, _) = map(scoring.collect, tickets)
    assert set(scores) == {"judge"}
    assert np.isfinite(scores["judge"]).all()
    assert set(rewards) == set(COARSE)
    with quick(tmp_path) as scoring:
        ticket = scoring.submit(grids, PROMPTS[:2], "judge")
        assert scoring.collect(ticket)[0] == {}


def test_the_caller_may_change_its_array_after_submit(tmp_path, undisturbed):
    with quick(tmp_path) as scoring:
        grids = blobs(12)
        ticket = scoring.submit(grids, PROMPTS, "refined")
        grids[:] = 0
        assert_same(scoring.collect(ticket)[0], undisturbed)


def test_no_objects_are_scored_at_once(tmp_path):
    with quick(tmp_path) as scoring:
        ticket = scoring.submit(np.zeros((0, SIDE, SIDE, SIDE)), [], "coarse")
        scores, _ = scoring.collect(ticket)
    assert scores["category"].shape == (0,)


def test_wrong_shapes_are_refused(tmp_path):
    with quick(tmp_path) as scoring:
        with pytest.raises(ValueError, match="R = 8 and N prompts"):
            scoring.submit(np.zeros((2, 4, 4, 4), np.float32), ["a", "b"], "coarse")
        with pytest.raises(ValueError, match="1 prompts"):
            scoring.submit(blobs(2), ["a"], "coarse")
        with pytest.raises(UserError, match="70000 characters; 65536"):
            scoring.submit(blobs(1), ["a" * 70000], "coarse")


def test_a_role_without_weight_is_not_asked_nor_a_sidecar_without_roles(tmp_path):
    weights = WeightsConfig(
        coarse=CoarseWeights(alignment=0.0, category=0.0, preference=0.0),
        refined=RefinedWeights(parts=0.0, preference=0.5),
    )
    rewards = RewardsConfig(points=8, weights=weights)
    with quick(tmp_path, rewards=rewards) as scoring:
        scores, _ = scoring.collect(scoring.submit(blobs(2), ["a", "b"], "coarse"))
        assert scores == {}
        scores, _ = scoring.collect(scoring.submit(blobs(2), ["a", "b"], "refined"))
        assert set(scores) == set(REFINED) - {"parts"}
    with quick(tmp_path, rewards=None) as scoring:
        assert "sidecar" not in scoring.processes
        assert scoring.collect(scoring.submit(blobs(2), ["", ""], "coarse")) == ({}, {})


# --- failures of one object -----------------------------------------------------------


def test_what_cannot_be_scored_is_nan_with_its_reason(tmp_path, undisturbed):
    grids, prompts = blobs(12), list(PROMPTS)
    prompts[1:4] = "raise", "nan", "mute"
    grids[4, 0, 0, 0] = np.nan
    with quick(tmp_path) as scoring:
        ticket = scoring.submit(grids, prompts, "refined", keep_views=True)
        scores, reasons = scoring.collect(ticket)
        views = scoring.views(ticket)
        assert scoring.restarts == 0
    for role in REFINED:
        assert reasons[role][:5] == [
            None,
            "ValueError: as I was told",
            "no idea",
            "the scorer gave no answer for this role",
            "drawing failed: ValueError: the logits are not finite",
        ]
        assert np.isnan(scores[role][1:5]).all()
        np.testing.assert_array_equal(scores[role][5:], undisturbed[role][5:])
    assert (views[4] == 255).all()
    assert (views[3] != 255).any()


# --- kill -9 --------------------------------------------------------------------------


def test_a_sidecar_killed_in_mid_score_changes_nothing(tmp_path):
    prompts = [f"die once {i}" if i in (0, 7) else PROMPTS[i] for i in range(12)]
    results = []
    for restarts in (2, 0):  # the second time, the marks are there
        with quick(tmp_path) as scoring:
            ticket = scoring.submit(blobs(12), prompts, "refined")
            results.append(scoring.collect(ticket))
            assert scoring.restarts == restarts
    assert results[0][1] == {role: [None] * 12 for role in REFINED}
    assert_same(results[0][0], results[1][0])


def test_a_worker_killed_in_mid_picture_changes_nothing(tmp_path):
    grids = blobs(12)
    grids[5, 0, 0, 0] = 1000
    results = []
    for restarts in (1, 0):
        with quick(tmp_path) as scoring:
            ticket = scoring.submit(grids, PROMPTS, "refined", keep_views=True)
            results.append((scoring.collect(ticket)[0], scoring.views(ticket)))
            assert scoring.restarts == restarts
    assert_same(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_an_object_that_kills_twice_is_given_up_alone(tmp_path, undisturbed):
    grids, prompts = blobs(12), list(PROMPTS)
    grids[2, 0, 0, 0] = 2000
    prompts[8] = "die"
    with quick(tmp_path) as scoring:
        scores, reasons = scoring.collect(scoring.submit(grids, prompts, "refined"))
        assert scoring.restarts == 4
    assert "died twice (signal 9)" in reasons["parts"][2]
    assert "a render worker" in reasons["parts"][2]
    assert reasons["parts"][8] == "a sidecar died twice (signal 9)"
    fine = [i for i in range(12) if i not in (2, 8)]
    for role in REFINED:
        assert np.isnan(scores[role][[2, 8]]).all()
        np.testing.assert_array_equal(scores[role][fine], undisturbed[role][fine])


def test_a_child_that_answers_what_was_not_asked_is_replaced(tmp_path):
    grids = blobs(3)
    grids[1, 0, 0, 0] = 3000
    with quick(tmp_path) as scoring:
        scores, _ = scoring.collect(scoring.submit(grids, PROMPTS[:3], "coarse"))
        assert scoring.restarts == 1
    assert np.isfinite(scores["category"]).all()


def trainer(tmp_path, *arguments):
    """This file as a trainer of its own: its process, and what it printed first."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "logs"), *arguments],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path / "stand_in")},
        cwd=ROOT,
    )
    return process, json.loads(process.stdout.readline())


@pytest.mark.parametrize("prompt", ["hang", "ball"])
def test_nothing_is_left_of_a_killed_trainer(tmp_path, prompt):
    # "hang": in mid-score, with a sidecar that could not even read its socket's end.
    process, pids = trainer(tmp_path, prompt)
    try:
        assert len(pids) == 3
        files = {
            os.readlink(entry)
            for pid in [process.pid, *pids]
            for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir()
        }
        assert any("memfd:ar3d-ring" in name for name in files)
        assert not any("/dev/shm" in name for name in files)
        named_sockets = pathlib.Path("/proc/net/unix").read_text()
        assert "ar3d" not in named_sockets
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    for pid in pids:
        assert_ended(pid)
    left = {path.name for path in (tmp_path / "stand_in").iterdir()}
    assert left <= {"hanging", "closed"}  # the stand-in's own marks


def test_children_leave_signals_to_the_trainer(tmp_path, undisturbed):
    with quick(tmp_path) as scoring:
        ticket = scoring.submit(blobs(12), PROMPTS, "refined")
        for process in scoring.processes.values():
            os.kill(process["pid"], signal.SIGINT)
            os.kill(process["pid"], signal.SIGTERM)
        assert_same(scoring.collect(ticket)[0], undisturbed)
        assert scoring.restarts == 0


# --- deadlines ------------------------------------------------------------------------


def test_a_hung_scorer_is_given_up_at_the_deadline_and_replaced(tmp_path, undisturbed):
    prompts = ["hang", *PROMPTS[1:]]
    rewards = RewardsConfig(points=8, deadline_s=3.0)
    with quick(tmp_path, rewards=rewards) as scoring:
        scores, reasons = scoring.collect(scoring.submit(blobs(12), prompts, "refined"))
        assert reasons["parts"][0] == "being scored at the deadline"
        scored = np.isfinite(scores["parts"])  # those that were drawn before the first
        assert not scored[0]
        assert not scored.all()
        for role in REFINED:
            np.testing.assert_array_equal(
                scores[role][scored], undisturbed[role][scored]
            )
        assert scoring.restarts == 1
        scoring._deadline_s = 120.0  # the next one has time for the new sidecar
        ticket = scoring.submit(blobs(12), PROMPTS, "refined")
        assert_same(scoring.collect(ticket)[0], undisturbed)


def test_a_hung_worker_is_given_up_at_the_deadline_and_replaced(tmp_path):
    grids = blobs(6)
    grids[0, 0, 0, 0] = 4000
    rewards = RewardsConfig(points=8, deadline_s=3.0)
    with quick(tmp_path, rewards=rewards, slots=12) as scoring:
        scores, reasons = scoring.collect(scoring.submit(grids, PROMPTS[:6], "coarse"))
        assert reasons["category"][0] == "being drawn at the deadline"
        assert np.isfinite(scores["category"]).sum() >= 4  # the other worker's
        assert scoring.restarts == 1


# --- failures at the start ------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STAND_IN_START", "bad weights", r"sidecar does not start: weights w: a has"),
        (
            "STAND_IN_START",
            "crash",
            r"start: it died \(exit status 1\).*RuntimeError: out of luck$",
        ),
        ("STAND_IN_VERSION", "0", r"wire version \d+ of the trainer is not 0"),
    ],
)
def test_a_child_that_cannot_start_says_why(
    tmp_path, monkeypatch, variable, value, message
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message), quick(tmp_path):
        pass


def test_a_child_of_another_version_is_refused(tmp_path, monkeypatch):
    # A child that does not look at the start message: the trainer reads its hello.
    monkeypatch.setattr(wire, "VERSION", 1 + wire.VERSION)
    scoring = quick(tmp_path, rewards=None)
    monkeypatch.setattr(wire, "VERSION", wire.VERSION - 1)
    worker = scoring._children[0]
    hello = {"hello": {"version": 5, "pid": 1, "imported": []}}
    with pytest.raises(UserError, match="version 5 of the wire, the trainer 3"):
        scoring._courier._understand(worker, hello)
    with pytest.raises(UserError, match="holds b'ar3dring' version 4"), scoring:
        pass


def test_a_child_that_never_gets_ready_ends_the_run(tmp_path, monkeypatch):
    with quick(tmp_path) as scoring:
        monkeypatch.setenv("STAND_IN_START", "crash")
        ticket = scoring.submit(blobs(2), ["die once x", "a"], "coarse")
        with pytest.raises(
            UserError, match=r"last line of .*sidecar\.log: RuntimeError"
        ):
            scoring.collect(ticket)
        with pytest.raises(UserError, match=r"sidecar\.log"):
            scoring.submit(blobs(2), ["a", "b"], "coarse")
    assert scoring.restarts == courier.FAILED_STARTS


def test_too_little_shared_memory_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="shared memory: 4 objects under way take"):
        quick(tmp_path)


def test_leaving_the_block_early_ends_everything(tmp_path):
    with quick(tmp_path) as scoring:
        pids = [process["pid"] for process in scoring.processes.values()]
        ticket = scoring.submit(blobs(12), PROMPTS, "coarse")
    for pid in pids:
        assert_ended(pid)
    with pytest.raises(RuntimeError, match="has ended"):
        scoring.submit(blobs(1), ["a"], "coarse")
    if ticket.unsettled:
        with pytest.raises(RuntimeError, match="has ended"):
            scoring.collect(ticket)


# --- with real pictures ---------------------------------------------------------------


@pytest.mark.usefixtures("egl")
def test_pictures_have_the_same_bits_in_any_worker_and_after_its_death(tmp_path):
    from ar3d_jax.render.renderer import Renderer
    from ar3d_jax.render.workers import draw_object

    grids = blobs(8)
    grids[6] = -1  # nothing there
    with Renderer(RENDER) as renderer:
        views = np.empty((8, 6, 32, 32, 3), np.uint8)
        points = np.empty((8, 8, 3), np.float32)
        colours = np.empty((8, 8, 3), np.uint8)
        counts = [
            draw_object(renderer, *rows)
            for rows in zip(grids, views, points, colours, strict=True)
        ]
    assert counts == [8, 8, 8, 8, 8, 8, 0, 8]
    with DrawnScoring(RENDER, REWARDS, SIDE, 6, tmp_path / "logs") as scoring:
        assert [p["imported"] for p in scoring.processes.values()] == [[], [], []]
        ticket = scoring.submit(grids, PROMPTS[:8], "coarse", keep_views=True)
        before = scoring.collect(ticket)[0]
        np.testing.assert_array_equal(scoring.views(ticket), views)
        assert ticket.draw_s > 0
        # Whatever it is doing at that moment.
        os.kill(scoring.processes["render worker 1"]["pid"], signal.SIGKILL)
        ticket = scoring.submit(grids, PROMPTS[:8], "coarse", keep_views=True)
        assert_same(scoring.collect(ticket)[0], before)
        np.testing.assert_array_equal(scoring.views(ticket), views)
        assert scoring.restarts == 1


@pytest.mark.usefixtures("egl")
def test_without_opengl_one_line_says_what_to_install(tmp_path):
    environment = {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "logs"), "ball", "drawn"],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the render worker")
    assert line.endswith("apt-get install libegl1 libgl1 libgl1-mesa-dri")


def main(log_dir, prompt, kind="quick"):
    """A trainer that waits for scores: prints its children's ids and goes on."""
    from ar3d_jax.errors import exit_on_user_error

    kind = DrawnScoring if kind == "drawn" else QuickScoring
    with exit_on_user_error(), kind(RENDER, REWARDS, SIDE, 4, log_dir) as scoring:
        assert "torch" not in sys.modules
        ticket = scoring.submit(blobs(12), [prompt] * 12, "coarse")
        if prompt == "hang":
            mark = pathlib.Path(os.environ["STAND_IN_DIR"], "hanging")
            while not mark.exists():
                select.select([], [], [], 0.01)
        print(json.dumps([p["pid"] for p in scoring.processes.values()]), flush=True)
        if prompt == "hang":
            scoring.collect(ticket)
        sys.stdin.read() if prompt == "hang" else signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
