"""launch/tpu_vm.sh against a gcloud that plays back states; tpu_worker.sh for real."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.stubs import ROOT, Stubs, bare_path, refused

STATE = "value(state.state)"
NODE = "value(state)"
STATUS = "tpu_worker.sh status"
POD = ("--name=pod", "--zone=us-east5-a", "--project=mine")
RUN = ("--bucket=box", "--", "--config.mesh.fsdp=8", "--config.x=a b")
TOKEN = "hf_SECRET"
VERBS = ["create", "setup", "run", "logs", "stop", "delete", "all"]


def workers(*words):
    """What the status command prints on workers whose runs are so."""
    lines = [f"ar3d-jax t-w-{i} {word}\\tstep {i}" for i, word in enumerate(words)]
    return "\\n".join(lines)


@pytest.fixture
def pod(tmp_path):
    return Stubs(tmp_path, "gcloud", "git")


def tpu_vm(pod, verb, *arguments, **environment):
    return pod.run(
        "tpu_vm.sh",
        verb,
        *POD,
        f"--logs={pod.folder / 'logs'}",
        *arguments,
        TPU_VM_POLL_S="0",
        TPU_VM_PATIENCE="3",
        HF_TOKEN=TOKEN,
        **environment,
    )


def deeds(pod):
    """The sequence of commands, a word each; questions are left out."""
    names = []
    for call in pod.calls:
        line = " ".join(call)
        for sign, name in {
            "queued-resources create": "create",
            "queued-resources delete": "delete",
            "tpu-vm scp": "copy",
            "tpu_worker.sh setup": "setup",
            "tpu_worker.sh start": "start",
            "tpu_worker.sh stop": "stop",
            "tpu_worker.sh kill": "kill",
            "tpu_worker.sh log": "log",
        }.items():
            if sign in line:
                names.append(name)
    return names


def starts(pod):
    return [call[-1] for call in pod.calls if "tpu_worker.sh start" in call[-1]]


def test_create_waits_until_active(pod):
    pod.answer(
        STATE, "error NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"
    )
    result = tpu_vm(pod, "create", "--type=v5p-64", "--spot")
    assert result.returncode == 0, result.stderr
    assert deeds(pod) == ["create"]
    (create,) = [call for call in pod.calls if "create" in call]
    assert create == [
        "gcloud",
        *("compute", "tpus", "queued-resources", "create", "pod"),
        *("--zone=us-east5-a", "--project=mine", "--node-id=pod"),
        *("--accelerator-type=v5p-64", "--runtime-version=v2-alpha-tpuv5"),
        *("--spot", "--quiet"),
    ]
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"pod is {state}\n" in result.stderr


def test_a_pod_that_fails_is_not_asked_for_again(pod):
    pod.answer(STATE, "error NOT_FOUND", "FAILED")
    pod.answer("value(state.failedData.error.message)", "no quota")
    error = tpu_vm(pod, "create", "--type=v5p-64")
    assert error.returncode == 2
    assert "FAILED (no quota); check --type" in error.stderr
    assert deeds(pod) == ["create"]


def test_gcloud_without_login_is_one_line(pod):
    pod.answer(STATE, "error you do not have an account")
    error = refused(tpu_vm(pod, "create", "--type=v5p-64"))
    assert "you do not have an account" in error
    assert deeds(pod) == []


def test_all_to_the_end(pod):
    pod.answer(STATE, "error NOT_FOUND", "ACTIVE")
    pod.answer(STATUS, "", workers("running", "running"), workers("0", "0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", *RUN)
    assert result.returncode == 0, result.stderr
    assert deeds(pod) == ["create", "copy", "setup", "start", "log"]
    assert starts(pod) == [
        "--command=bash ar3d-jax/launch/tpu_worker.sh start box --hosts=auto "
        "--config=configs/higrpo.py:7b --workdir=/mnt/box/pod "
        "--config.mesh.fsdp=8 --config.x=a\\ b"
    ]
    assert "2 workers running: step 0" in result.stderr
    assert "delete --name=pod" in result.stderr  # it costs money until then


def test_preemption_leads_to_a_new_pod_and_the_same_command(pod):
    pod.answer(
        STATE, "error NOT_FOUND", "ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED",
        "error NOT_FOUND", "ACTIVE",
    )  # fmt: skip
    pod.answer(
        STATUS, "", workers("running"), "error ssh", "", workers("running"),
        workers("0"),
    )  # fmt: skip
    result = tpu_vm(pod, "all", "--type=v5p-64", "--spot", *RUN)
    assert result.returncode == 0, result.stderr
    once = ["create", "copy", "setup", "start"]
    assert deeds(pod) == [*once, "delete", *once, "log"]
    first, second = starts(pod)
    assert first == second
    assert "--workdir=/mnt/box/pod" in first


def test_a_preempted_node_whose_request_is_still_active(pod):
    pod.answer(
        STATE, "error NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE", "error NOT_FOUND",
        "ACTIVE",
    )  # fmt: skip
    pod.answer(NODE, "PREEMPTED")
    pod.answer(STATUS, "", "error ssh", "", workers("0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", *RUN)
    assert result.returncode == 0, result.stderr
    assert [x for x in deeds(pod) if x in ("create", "delete")] == [
        *("create", "delete", "create")
    ]


@pytest.mark.parametrize(
    "words", [("75", "137"), ("gone", "75"), ("saved", "0"), ("running", "75")]
)
def test_lost_hosts_lead_to_the_same_command_on_the_same_pod(pod, words):
    patience = 3 if "running" in words else 1
    pod.answer(STATE, "ACTIVE")
    pod.answer(STATUS, "", *[workers(*words)] * patience, workers("0", "0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", *RUN)
    assert result.returncode == 0, result.stderr
    assert deeds(pod) == ["copy", "setup", "start", "kill", "start", "log"]
    assert len(set(starts(pod))) == 1


def test_hosts_that_are_lost_again_and_again(pod):
    pod.answer(STATE, "ACTIVE")
    pod.answer(STATUS, "", workers("75", "134"))
    result = tpu_vm(pod, "all", "--type=v5p-64", "--retries=2", *RUN)
    assert result.returncode == 75
    assert deeds(pod).count("start") == 3
    assert "goes on from the last checkpoint" in result.stderr


@pytest.mark.parametrize(("status", "meaning"), [("2", "wrong input"), ("1", "a bug")])
@pytest.mark.parametrize("verb", ["all", "run"])
def test_a_run_that_fails_by_itself_is_not_retried(pod, verb, status, meaning):
    pod.answer(STATE, "ACTIVE")
    ended = [workers("75", "running", status)]
    pod.answer(STATUS, *([""] if verb == "all" else []), *ended)
    result = tpu_vm(pod, verb, "--type=v5p-64", *RUN)
    assert result.returncode == int(status)
    assert deeds(pod).count("start") == 1
    assert f"error: the run has ended with status {status}, {meaning}" in result.stderr


def test_a_bug_on_a_pod_that_is_gone_is_none(pod):
    pod.answer(STATE, "ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "ACTIVE")
    pod.answer(STATUS, "", workers("1"), "", workers("0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", *RUN)
    assert result.returncode == 0, result.stderr
    assert deeds(pod).count("start") == 2


def test_all_again_follows_a_run_that_goes_on(pod):
    pod.answer(STATE, "ACTIVE")
    pod.answer(STATUS, workers("running"), workers("running"), workers("0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", *RUN)
    assert result.returncode == 0, result.stderr
    assert deeds(pod) == ["log"]


def test_a_lost_network_here_does_not_end_the_run(pod):
    pod.answer(STATE, *["error network is unreachable"] * 5, "ACTIVE")
    pod.answer(STATUS, *["error ssh"] * 5, workers("0"))
    result = tpu_vm(pod, "run", *RUN)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("network is unreachable") == 1


def test_one_worker_that_does_not_answer_leads_to_a_new_pod(pod):
    pod.answer(STATE, *["ACTIVE"] * 5, "error NOT_FOUND", "ACTIVE")
    pod.answer(NODE, "READY")
    pod.answer(STATUS, "", *["partly " + workers("75")] * 3, "", workers("0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", *RUN)
    assert result.returncode == 0, result.stderr
    assert deeds(pod).count("delete") == 1


def test_setup_sends_the_last_commit_and_the_token_in_files(pod):
    result = tpu_vm(pod, "setup", "--bucket=box", "--hf-token-env=HF_TOKEN")
    assert result.returncode == 0, result.stderr
    (archive,) = [call for call in pod.calls if "archive" in call]
    assert archive[1:4] == ["-C", str(ROOT), "archive"]
    assert archive[-1] == "HEAD"
    copies = [call for call in pod.calls if "scp" in call]
    assert [Path(call[5]).name for call in copies] == ["ar3d-jax.tar.gz", "token"]
    assert [call[6] for call in copies] == ["pod:ar3d-jax.tar.gz", "pod:ar3d-jax-token"]
    assert all("--worker=all" in call for call in copies)
    assert TOKEN not in result.stdout + result.stderr + str(pod.calls)
    assert not list(pod.folder.glob("ar3d-jax-*"))  # nothing is left here


def test_without_a_commit_nothing_is_sent(pod):
    pod.answer("rev-parse", "error not a git repository")
    result = tpu_vm(pod, "setup")
    assert result.returncode == 2
    assert "is no git clone; expected one" in result.stderr
    assert deeds(pod) == []


def test_stop_before_any_run(pod):
    pod.answer(STATUS, workers("none", "none"))
    assert "no run has been started on pod" in tpu_vm(pod, "stop").stderr


def test_a_spot_pod_that_is_preempted_before_it_is_there(pod):
    early = ["error NOT_FOUND", "PROVISIONING", "SUSPENDED"] * 5
    pod.answer(STATE, *early, "error NOT_FOUND", "ACTIVE")
    pod.answer(STATUS, "", workers("0"))
    result = tpu_vm(pod, "all", "--type=v5p-64", "--spot", *RUN)
    assert result.returncode == 0, result.stderr
    assert deeds(pod)[:-4] == ["create", "delete"] * 5 + ["create"]


def test_logs_stop_and_delete(pod):
    pod.answer(STATUS, workers("running"), workers("0"))
    for verb in ("logs", "stop", "delete"):
        assert tpu_vm(pod, verb).returncode == 0
    assert deeds(pod) == ["log", "stop", "delete"]
    assert f"--output-directory={pod.folder / 'logs'}" in pod.calls[0]


@pytest.mark.parametrize("verb", VERBS)
def test_dry_run_prints_all_and_does_nothing(pod, verb):
    token = "--hf-token-env=HF_TOKEN"
    result = tpu_vm(pod, verb, "--type=v5p-64", token, "--dry-run", *RUN)
    assert result.returncode == 0
    assert result.stderr == ""
    assert pod.calls == []
    assert not (pod.folder / "logs").exists()
    assert TOKEN not in result.stdout
    # The printed lines do what the script would have done.
    pod.answer(STATE, "ACTIVE")
    subprocess.run(
        ["bash", "-euc", result.stdout],
        env={
            "PATH": f"{pod.folder / 'bin'}:/usr/bin:/bin",
            "STUBS": str(pod.folder),
            "HF_TOKEN": TOKEN,
        },
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    expected = {
        "create": ["create"],
        "setup": ["copy", "copy", "setup"],
        "run": ["start", "log"],
        "logs": ["log"],
        "stop": ["stop"],
        "delete": ["delete"],
        "all": ["create", "copy", "copy", "setup", "start", "log"],
    }
    assert deeds(pod) == expected[verb]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fly"], "fly: expected one of: create setup"),
        ([], "nothing to do; expected one of: create"),
        (["run", "--zoen=x"], "--zoen=x: no such option"),
        (["run", "--zone"], "--zone has no value"),
        (["run", "--spot=1"], "--spot=1: no such option"),
        (["run"], "--zone=: expected"),
        (["run", "--zone=z"], "--workdir=: expected an absolute path"),
        (["run", "--zone=z", "--workdir=runs/x"], "--workdir=runs/x: expected"),
        (["run", "--zone=z", "--bucket=b", "--workdir=/x"], "expected /mnt/b/"),
        (["run", "--zone=z", "--bucket=gs://b"], "without gs://"),
        (["create", "--zone=z"], "--type=: expected an accelerator type"),
        (["all", "--zone=z", "--type=v5p", "--bucket=b"], "--type=v5p: expected"),
        (["logs", "--zone=z", "--name=A"], "--name=A: expected"),
        (["run", "--zone=z", "--retries=many"], "--retries=many: expected a number"),
        (["setup", "--zone=z", "--hf-token-env=NONE"], "NONE is not set"),
        (["setup", "--zone=z", "--hf-token-env=a-b"], "--hf-token-env=a-b: expected"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(pod, arguments, expected):
    assert expected in refused(pod.run("tpu_vm.sh", *arguments))
    assert pod.calls == []


def test_no_gcloud_is_one_line_and_exit_2(pod, tmp_path):
    error = refused(tpu_vm(pod, "logs", PATH=bare_path(tmp_path)))
    assert error.startswith("error: no gcloud here: install")


def test_help_is_the_header(pod):
    result = pod.run("tpu_vm.sh", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Trains on a Cloud TPU VM pod")
    assert "#" not in result.stdout
    assert "set -euo" not in result.stdout


# --- On a worker ----------------------------------------------------------------------

TRAINER = """#!/bin/bash
# Saves and ends with 0 on SIGTERM, as the trainer does.
trap 'echo "stopped; saved, same command goes on"; exit 0' TERM
for x in "$@"; do
  case "$x" in
    --status=*) echo "arguments: $*"; exit "${x#*=}" ;;
    --forever) echo working; while :; do read -r -t 0.02 <> <(:) || true; done ;;
  esac
done
"""


@pytest.fixture
def worker(tmp_path):
    """Runs the worker's script in a copy of the clone."""
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch/tpu_worker.sh"
    script.write_bytes((ROOT / "launch/tpu_worker.sh").read_bytes())
    python = tmp_path / "python"
    python.write_text(TRAINER)
    python.chmod(0o755)

    def call(*arguments):
        return subprocess.run(
            ["bash", script, *arguments],
            env={"PATH": os.environ["PATH"], "TPU_WORKER_PYTHON": str(python)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    yield call
    call("kill")


def word(worker):
    return worker("status").stdout.partition("\t")[0].split()[-1]


def wait_for(worker, wanted):
    end = time.monotonic() + 30
    while wanted not in worker("status").stdout:
        assert time.monotonic() < end, worker("status")
    return word(worker)


def test_worker_leaves_the_exit_status(worker):
    assert word(worker) == "none"
    assert worker("start", "", "--hosts=auto", "--a=b c", "--status=75").returncode == 0
    assert wait_for(worker, " 75\t") == "75"
    arguments = "arguments: -m ar3d_jax.train --hosts=auto --a=b c --status=75\n"
    assert arguments in worker("log").stdout
    assert worker("start", "", "--status=0").returncode == 0  # the next run
    assert wait_for(worker, " 0\t") == "0"
    assert arguments in worker("log").stdout


def test_worker_runs_one_thing_at_a_time_and_stops_it(worker):
    worker("start", "", "--forever")
    assert wait_for(worker, "working") == "running"
    again = worker("start", "", "--forever")
    assert (again.returncode, "running already" in again.stderr) == (0, True)
    other = worker("start", "", "--other")
    assert other.returncode == 2
    assert "another run is going on (--forever); stop it first" in other.stderr
    assert worker("idle").returncode == 2
    worker("stop")
    assert wait_for(worker, " 0\t") == "0"
    assert worker("idle").returncode == 0
    assert "saved, same command goes on" in worker("log").stdout


def test_worker_tells_a_shutdown_from_a_stop(worker, tmp_path):
    worker("start", "", "--forever")
    wait_for(worker, "working")
    os.kill(int((tmp_path / "run/trainer").read_text()), signal.SIGTERM)
    assert wait_for(worker, "goes on") in ("running", "saved")
    assert wait_for(worker, " saved\t") == "saved"
    worker("start", "", "--status=0")
    assert wait_for(worker, " 0\t") == "0"  # what the run before said is over


def test_worker_that_is_killed_or_has_rebooted(worker, tmp_path):
    worker("start", "", "--forever")
    wait_for(worker, "working")
    worker("kill")
    assert wait_for(worker, " gone\t") == "gone"
    (tmp_path / "run/pid").write_text(f"{os.getpid()} another-boot\n")
    assert word(worker) == "gone"
