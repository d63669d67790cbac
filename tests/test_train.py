"""The run as a process: it ends, it goes on after any kill, it says what is wrong."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ar3d_jax import train
from ar3d_jax.metrics import NoLog

VARYING = (
    "time/",
    "tokens_per_s/",
    "eval/seconds",
    "sidecar_restarts",
)  # the clock's, not the run's
pytestmark = pytest.mark.usefixtures("egl")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder that the environment of this process's runs names."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def start(weights, scratch):
    """Starts a training; (workdir, *flags) -> Popen."""
    environment = os.environ | {
        "STAND_IN_DIR": str(scratch),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    processes = []

    def start(workdir, *flags):
        command = [sys.executable, "-m", "tests.small_run", weights, workdir, *flags]
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def comparable(workdir: pathlib.Path) -> list[dict]:
    return [
        {k: v for k, v in line.items() if not k.startswith(VARYING)}
        for line in lines(workdir)
    ]


def evaluations(workdir: pathlib.Path) -> list[dict]:
    """Every evaluation, and at last the step of the one that was liked best."""
    text = (workdir / "evaluations.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    best = [{"best": p.name} for p in (workdir / "best").iterdir()]
    return [
        {k: v for k, v in record.items() if k != "eval/seconds"}
        for record in records + best
    ]


def wait_for_line(process: subprocess.Popen, workdir: pathlib.Path, count: int) -> None:
    """Returns when metrics.jsonl has `count` lines; fails if the process ends first."""
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"ended with {process.returncode}: {process.stderr.read()}")


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    process = start(workdir)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[0] == "preset small; the paper's run is :7b"
    return workdir


def children(scratch: pathlib.Path) -> set[int]:
    """Children of these runs: workers and sidecars, whoever is their parent."""
    found = set()
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            ours = str(scratch).encode() in (process / "environ").read_bytes()
        except OSError:
            continue
        child = b"stand_in_sidecar" in words or b"ar3d_jax.render.workers" in words
        if ours and child:
            found.add(int(process.name))
    return found


def test_a_run_leaves_what_the_contract_says(undisturbed):
    assert [line["step"] for line in lines(undisturbed)] == [0, 1, 2, 3]
    first = lines(undisturbed)[0]
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["ratio_max"] == pytest.approx(1, abs=1e-3)
    assert first["score_missing"] == 0
    assert json.loads((undisturbed / "config.json").read_text())["steps"] == 4
    assert [sum(k.startswith("eval/") for k in x) for x in lines(undisturbed)] == [
        *(0, 8, 0, 8),
    ]
    assert (undisturbed / "logs" / "sidecar.log").exists()
    assert sorted(p.name for p in (undisturbed / "samples").iterdir()) == [
        "step_0",
        "step_2",
        "step_4",
    ]
    sample = next((undisturbed / "samples" / "step_4").glob("*/coarse.glb"))
    assert (sample.parent / "refined.glb").exists()
    assert set(json.loads((sample.parent / "plans.json").read_text())["plans"]) == {
        "global",
        "local",
    }


def test_killed_and_started_again_gives_the_same_numbers(
    start, undisturbed, scratch, tmp_path
):
    assert not children(scratch)
    before = set(os.listdir("/dev/shm"))
    process = start(tmp_path)
    wait_for_line(process, tmp_path, 2)
    assert children(scratch)
    process.kill()
    process.communicate()
    process = start(tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert comparable(tmp_path) == comparable(undisturbed)
    assert evaluations(tmp_path) == evaluations(undisturbed)
    assert not children(scratch)
    assert set(os.listdir("/dev/shm")) <= before


def test_sigterm_saves_and_ends_with_status_0(start, undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_line(process, tmp_path, 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    done = len(lines(tmp_path))
    assert 1 <= done < 4
    assert (tmp_path / "checkpoints" / str(done)).is_dir()
    process = start(tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert comparable(tmp_path) == comparable(undisturbed)
    assert evaluations(tmp_path) == evaluations(undisturbed)


def test_another_run_in_the_same_folder_is_refused_and_changes_nothing(
    start, undisturbed
):
    before = (undisturbed / "config.json").read_text()
    for flag, field in {
        "--config.seed=5": "seed=0",
        "--config.rewards.weights.coarse.category=0.5": "coarse.category=1.0",
    }.items():
        process = start(undisturbed, flag)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err
        assert field in err.splitlines()[-1]
        assert (undisturbed / "config.json").read_text() == before


def test_bad_input_is_one_line_and_status_2(start, weights, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    long = tmp_path / "long.txt"
    long.write_text("word " * 400)
    file = tmp_path / "file"
    file.write_text("")
    other = tmp_path / "other.safetensors"
    other.write_bytes((weights / "policy" / "model.safetensors").read_bytes())
    cases = {
        f"--config.prompts={empty}": "has no prompts",
        f"--config.prompts={long}": "shorten it",
        "--config.rollout.temprature=1": "temprature",
        "--config.steps=many": "steps",
        f"--workdir={file}": "cannot write",
        f"--config.codec.weights={other}": "no tensor",
        "--config.policy.width=64": "width",
        "--config.mesh.tp=2": "devices",
        "--config.mesh.tp=99": "policy.kv_heads",
        "--config.rollout.top_k=5": "expected 0 and 1.0 in training",
    }
    processes = {
        flag: start(tmp_path / f"run{number}", flag)
        for number, flag in enumerate(cases)
    }
    for flag, process in processes.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, (flag, err)
        assert "Traceback" not in err
        assert cases[flag] in err.splitlines()[-1], (flag, err)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"grad_norm": 1.0, "groups_used": 2}, []),
        ({"grad_norm": 0.0, "groups_used": 0}, ["step 3: no group has any spread of"]),
    ],
)
def test_a_run_says_that_nothing_was_learnt(metrics, said, monkeypatch):
    lines = []
    monkeypatch.setattr(NoLog, "say", lambda self, line: lines.append(line))
    train._warn_of_no_signal(3, metrics, NoLog())
    assert [line[: len(of)] for line, of in zip(lines, said, strict=True)] == said
