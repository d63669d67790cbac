"""Several hosts on one machine: the same numbers as one process, and a common end."""

import fcntl
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ar3d_jax import hosts
from ar3d_jax.errors import UserError

VARYING = ("time/", "tokens_per_s/", "eval/seconds")  # the clock's, not the run's
pytestmark = pytest.mark.usefixtures("egl")


@pytest.fixture(scope="module")
def start(weights, tmp_path_factory):
    """Starts a training on some hosts; (workdir, count, *flags) -> its processes."""
    scratch = tmp_path_factory.mktemp("scratch")
    environment = os.environ | {
        "STAND_IN_DIR": str(scratch),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiles in half the time
    }
    processes = []

    def start(workdir, count, *flags, devices=1, scores=""):
        command = [sys.executable, "-m", "tests.small_run", weights, workdir, *flags]
        with socket.create_server(("localhost", 0)) as free:
            address = f"--coordinator=localhost:{free.getsockname()[1]}"
        several = [
            [f"--hosts={count}", f"--host_index={index}", address] if count > 1 else []
            for index in range(count)
        ]
        started = [
            subprocess.Popen(
                [*map(str, command), *which],
                env=environment
                | {"JAX_NUM_CPU_DEVICES": str(devices), "STAND_IN_SCORES": scores},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for which in several
        ]
        processes.extend(started)
        return started

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def finish(processes, status=0) -> list[str]:
    """What they said on stderr; fails if one ends otherwise."""
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(said), said
    return said


def comparable(workdir: pathlib.Path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(VARYING)}
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


TWO = (
    "--config.steps=3",
    "--config.eval_every=1",
    "--config.mesh.fsdp=2",
    "--config.objective.dynamic_sampling=no_spread",
    "--config.objective.resample_prompts=2",
    "--config.objective.max_resample=3",
)


@pytest.fixture(scope="module")
def one_process(start, tmp_path_factory):
    """A run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("one")
    finish(start(workdir, 1, *TWO, devices=2, scores="equal"))
    lines = comparable(workdir)
    assert sum(line["groups_resampled"] for line in lines) > 0
    return lines


def test_two_hosts_are_as_one_process_also_after_a_kill(start, one_process, tmp_path):
    more = "--config.steps=300"
    first, second = start(tmp_path, 2, *TWO, more, scores="equal")
    path = tmp_path / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < 2:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    second.kill()
    begin = time.monotonic()
    said = first.communicate(timeout=60)[1].splitlines()
    assert time.monotonic() - begin < 60
    assert first.returncode == 75
    assert said[-1].startswith("error: host 1 has ended; host 0 ends too: start the")
    assert sum("Traceback" in line for line in said) == 0

    kept = max(
        int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()
    )
    steps = max(kept + 1, 3)
    finish(start(tmp_path, 2, *TWO, f"--config.steps={steps}", scores="equal"))
    lines = comparable(tmp_path)
    assert [line["step"] for line in lines] == list(range(steps))
    assert lines[:3] == one_process
    assert (tmp_path / "logs/host_1/sidecar.log").exists()
    samples = tmp_path / f"samples/step_{steps}/index.html"
    assert samples.exists()


def test_four_hosts_are_as_one_process(start, tmp_path):
    """Up to rounding: four devices of one process share its threads."""
    flags = (
        "--config.steps=1",
        "--config.eval_every=0",
        "--config.prompts_per_step=4",
        "--config.objective.micro_batch=4",
        "--config.objective.updates_per_rollout=2",
        "--config.objective.minibatches=2",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
    )
    finish(start(tmp_path / "one", 1, *flags, devices=4, scores="smooth"))
    finish(start(tmp_path / "four", 4, *flags, scores="smooth"))
    ((one,), (four,)) = (comparable(tmp_path / name) for name in ("one", "four"))
    assert one == pytest.approx(four, rel=1e-4, abs=1e-5)
    assert one["reward/coarse_std"] > 0.01


def test_a_tensor_axis_over_two_hosts_is_refused(start, tmp_path):
    """Each finds it out by itself, or hears it from the other."""
    flags = ("--config.mesh.tp=2", "--config.objective.micro_batch=4")
    processes = start(tmp_path, 2, *flags)
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert {process.returncode for process in processes} <= {2, 75}
    for words in said:
        assert "mesh.tp=2 joins devices of two hosts" in words


def test_what_one_host_alone_cannot_do_is_told_by_the_other(start, weights, tmp_path):
    """The first one's folder is in use, of which the second knows nothing."""
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first, second = start(tmp_path, 2, *TWO)
        (one,) = finish([first], status=2)
        (other,) = finish([second], status=75)
    assert f"error: another run is using {tmp_path}" in one
    assert (
        f"host 0 of 2 has ended with status 2 (another run is using {tmp_path}" in other
    )


def test_flags_that_do_not_fit():
    with (
        pytest.raises(UserError, match="--hosts=2 --host_index=2"),
        hosts.joined("2", 2, "localhost:1"),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"expected --hosts=auto, or a number"),
        hosts.joined("two", 0, "localhost:1"),
    ):
        pass


def test_one_host_has_all_rows(mesh):
    rows = 2 * mesh.size
    np.testing.assert_array_equal(hosts.own_rows(rows), np.arange(rows))
    own = {"a": np.arange(rows), "b": np.ones(rows)}
    assert hosts.gather(own, rows) == own
    assert (hosts.any_of(True), hosts.any_of(False)) == (True, False)
    spread = jax.device_put(np.arange(rows), jax.P(("data", "fsdp")))
    np.testing.assert_array_equal(hosts.everywhere(spread), np.arange(rows))
    np.testing.assert_array_equal(hosts.own(spread), np.arange(rows))
    hosts.check_mesh()


@pytest.mark.parametrize("other", [7, 2**24 - 1])
def test_hosts_agree_where_all_have_the_same_number(monkeypatch, other):
    assert hosts.agree(other)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "_owners", lambda: [{0}, {1}])
    monkeypatch.setattr(hosts, "own_rows", lambda rows: np.arange(1))
    monkeypatch.setattr(
        hosts,
        "gather",
        lambda own, rows: {"": np.float32([*own[""], other])},
    )
    assert hosts.agree(other)
    assert not hosts.agree(other - 1)
