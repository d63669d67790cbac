"""launch/slurm.sh: what it submits, and what the batch script does on the cluster."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stubs import ROOT, Stubs, bare_path, refused

FLAGS = ("--", "--config.mesh.fsdp=8", "--config.x=a 'b'")

SAVED = "stopped by SIGTERM after step 3; saved, same command goes on"

# Runs as many processes as the test wants, each with its log; its status is theirs.
SRUN = """#!/bin/bash
printf '%q ' srun "$@" >> "$STUBS/log"; echo >> "$STUBS/log"
echo "devices=${JAX_LOCAL_DEVICE_IDS:-}" > "$STUBS/environment"
for x in "$@"; do
  [[ "$x" != --output=* ]] || echo "${SAYS:-}" > "$(sed 's/%t/0/' <<< "${x#*=}")"
done
exit "${STATUS:-0}"
"""


@pytest.fixture
def login(tmp_path):
    stubs = Stubs(tmp_path, "sbatch", "scontrol")
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    return stubs


def slurm(login, *arguments, **environment):
    return login.run(
        "slurm.sh",
        f"--workdir={login.folder}/run 1",
        f"--python={sys.executable}",
        f"--logs={login.folder}/logs",
        *arguments,
        **environment,
    )


def submitted(login, *arguments):
    result = slurm(login, *arguments)
    assert result.returncode == 0, result.stderr
    return (login.folder / "stdin").read_text()


def options(script):
    return re.findall(r"^#SBATCH (.*)$", script, re.M)


def on_cluster(login, script, **environment):
    """Runs the batch script as SLURM would, and returns its commands as well."""
    (login.folder / "log").unlink(missing_ok=True)
    result = subprocess.run(
        ["bash", "-c", script],
        env={
            "PATH": f"{login.folder / 'bin'}:/usr/bin:/bin",
            "STUBS": str(login.folder),
            "SLURM_JOB_ID": "7",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result, login.calls


def test_one_process_a_node_by_default(login):
    script = submitted(login, "--nodes=4", "--gpus=2", "--time=1:00:00", *FLAGS)
    wanted = {
        *("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=2", "--time=1:00:00"),
        *("--requeue", "--signal=TERM@120", "--open-mode=append"),
    }
    assert wanted <= set(options(script))
    _, (srun,) = on_cluster(login, script)
    log, python, _, _, *flags = srun[3:]
    assert log == f"--output={login.folder}/logs/ar3d-jax-7-0-%t.log"
    assert python == sys.executable
    assert flags == [
        "--hosts=auto",
        "--config=configs/higrpo.py:7b",
        f"--workdir={login.folder}/run 1",
        *FLAGS[1:],
    ]
    environment = (login.folder / "environment").read_text()
    assert environment == "devices=0,1\n"


def test_one_process_a_gpu(login):
    script = submitted(login, "--per=gpu", "--gpus=4")
    assert "--ntasks-per-node=4" in options(script)
    on_cluster(login, script)
    # JAX gives each its own.
    assert (login.folder / "environment").read_text() == "devices=\n"


def test_more_options_reach_sbatch(login):
    script = submitted(login, "--partition=a,b", "--sbatch=--account=x --qos=y")
    assert login.calls == [["sbatch", "--account=x", "--qos=y"]]
    assert "--partition=a,b" in options(script)


def test_the_batch_script_is_clean(login):
    script = submitted(login, *FLAGS)
    subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-"],
        input=script,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("environment", "again"),
    [
        ({"STATUS": "0"}, False),  # finished
        ({"STATUS": "0", "SAYS": SAVED}, True),  # time is up
        ({"STATUS": "75"}, True),
        ({"STATUS": "137"}, True),  # a process was killed
        ({"STATUS": "75", "SLURM_RESTART_COUNT": "3"}, False),  # again and again
        ({"STATUS": "1"}, False),
        ({"STATUS": "2"}, False),
        ({"STATUS": "75", "SAYS": "host 1 of 2 has ended with status 2 (x)"}, False),
    ],
)
def test_what_leads_to_another_start(login, environment, again):
    script = submitted(login, "--retries=3")
    result, calls = on_cluster(login, script, **environment)
    requeues = [call for call in calls if call[0] == "scontrol"]
    assert requeues == [["scontrol", "requeue", "7"]] * again
    assert result.returncode == (0 if again else int(environment["STATUS"]))


def test_the_trainer_says_what_the_scripts_look_for():
    """slurm.sh and tpu_worker.sh read these in its log."""
    hosts = (ROOT / "ar3d_jax/hosts.py").read_text()
    assert "has ended with status {status} (" in hosts
    assert " saved, same command goes on" in (ROOT / "ar3d_jax/train.py").read_text()


def test_dry_run_prints_all_and_does_nothing(login):
    arguments = ("--nodes=2", "--sbatch=--account=x", *FLAGS)
    dry = slurm(login, "--dry-run", *arguments)
    assert (dry.returncode, dry.stderr, login.calls) == (0, "", [])
    assert not (login.folder / "logs").exists()
    wanted = submitted(login, *arguments)
    # The printed text does what the script would have done.
    (login.folder / "stdin").unlink()
    environment = {
        "PATH": f"{login.folder / 'bin'}:/usr/bin:/bin",
        "STUBS": str(login.folder),
    }
    subprocess.run(["bash", "-euc", dry.stdout], env=environment, check=True)
    assert (login.folder / "stdin").read_text() == wanted
    assert login.calls[0] == login.calls[1] == ["sbatch", "--account=x"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "run: expected options; flags of the trainer follow after --"),
        (["--workdir=runs/x"], "--workdir=runs/x: expected an absolute path"),
        (["--nodes=0"], "--nodes=0: expected a number"),
        (["--gpus=many"], "--gpus=many: expected a number"),
        (["--notice=0"], "--notice=0: expected a number"),
        (["--per=core"], "--per=core: expected node or gpu"),
        (["--time=soon"], "--time=soon: expected a limit"),
        (["--logs=logs"], "--logs=logs: expected an absolute path"),
        (["--name=a b"], "--name=a b: expected letters"),
        (["--reward-gpus=1"], "--reward-gpus=1: no such option"),
        (["--python=/none"], "--python=/none: no such program; run bash launch/setup"),
        (["--nodes"], "--nodes has no value; expected --nodes=VALUE"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(login, arguments, expected):
    assert expected in refused(slurm(login, *arguments))
    assert login.calls == []


def test_no_sbatch_is_one_line_and_exit_2(login, tmp_path):
    error = refused(slurm(login, PATH=bare_path(tmp_path)))
    assert error.startswith("error: no sbatch here: start this on a login node")


def test_help_says_what_is_not_there_yet(login):
    result = login.run("slurm.sh", "--help")
    assert result.returncode == 0
    assert "python -m ar3d_jax.rewards.serve" in result.stdout
