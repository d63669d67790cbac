"""launch/rewards_vllm.sh: what it would start, and that nothing is left behind."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from ar3d_jax.config import Config, from_config_dict, to_config_dict
from tests.launch.stubs import ROOT, Stubs, bare_path, refused

FLAGS = ("--", "--seed", "3")
COMMIT = "0123456789abcdef" * 2 + "01234567"

# Serves /health, and has a child that outlives it, as vLLM's engine may.
VLLM = f"""#!{sys.executable}
import http.server, os, pathlib, subprocess, sys
here = pathlib.Path(os.environ["STUBS"])
with open(here / "log", "a") as log:
    print(os.environ["CUDA_VISIBLE_DEVICES"], *sys.argv[1:], sep="\\t", file=log)
child = subprocess.Popen(["sleep", "1000"])
with open(here / "pids", "a") as file:
    print(os.getpid(), child.pid, file=file)
if (here / "broken").exists():
    print("CUDA out of memory", flush=True)
    os._exit(1)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""

# What the program for the newest commit says.
HUB = """#!/bin/bash
echo "$@" | tail -n 1 >> "$STUBS/asked"
cat "$STUBS/newest"
"""


@pytest.fixture
def machine(tmp_path):
    stubs = Stubs(tmp_path)
    for name, text in (("vllm", VLLM), ("hub", HUB)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "newest").write_text(COMMIT)
    yield stubs
    for pid in pids(stubs):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def options(machine, *more):
    folder = machine.folder
    places = (f"--lock={folder}/lock", f"--logs={folder}/logs")
    return (*places, f"--python={folder}/bin/hub", *more)


def dry(machine, *arguments, **environment):
    result = machine.run(
        "rewards_vllm.sh", "--dry-run", *options(machine, *arguments), **environment
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not (machine.folder / "logs").exists()
    assert not (machine.folder / "pids").exists()
    return [shlex.split(line) for line in result.stdout.splitlines()]


def after(command, option):
    return command[command.index(option) + 1]


def test_dry_run_prints_a_server_a_model(machine):
    commands = dry(machine, "--gpus=4,5", *FLAGS)
    models = [
        "CodeGoat24/UnifiedReward-Think-qwen-7b",
        "CodeGoat24/UnifiedReward-2.0-qwen-7b",
        "Qwen/Qwen2.5-VL-7B-Instruct",
    ]
    for index, (command, model) in enumerate(zip(commands, models, strict=True)):
        gpu = ("4", "5", "4")[index]
        start = ["env", f"CUDA_VISIBLE_DEVICES={gpu}", "vllm", "serve", model]
        assert command[:5] == start
        assert after(command, "--served-model-name") == model
        assert after(command, "--port") == str(8101 + index)
        assert after(command, "--limit-mm-per-prompt") == '{"image":6,"video":0}'
        assert after(command, "--mm-processor-kwargs") == '{"max_pixels":200704}'
        assert after(command, "--max-model-len") == "4096"
        assert after(command, "--generation-config") == "vllm"
        share = after(command, "--gpu-memory-utilization")
        assert share == ("0.450", "0.900", "0.450")[index]
        assert command[-2:] == ["--seed", "3"]


def test_the_pixel_cap_is_the_local_models():
    from ar3d_jax.rewards.sidecar.chat import PIXELS

    text = (ROOT / "launch/rewards_vllm.sh").read_text()
    assert f'{{"max_pixels":{PIXELS}}}' in text


def test_revisions_come_from_the_environment_or_the_lock(machine):
    lock = "CodeGoat24/UnifiedReward-2.0-qwen-7b aaaa\nother/model bbbb\n"
    (machine.folder / "lock").write_text(lock)
    commands = dry(machine, UNIFIED_THINK_REVISION="cccc")
    found = [after(command, "--revision") for command in commands]
    assert found == ["cccc", "aaaa", "NEWEST"]
    found = [after(command, "--tokenizer-revision") for command in commands]
    assert found == ["cccc", "aaaa", "NEWEST"]
    (command,) = dry(machine, "--models=unified_2", UNIFIED_2_REVISION="dddd")
    assert after(command, "--revision") == "dddd"
    assert (machine.folder / "lock").read_text() == lock


def free_ports():
    """The first of two in a row that are free."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port


@contextlib.contextmanager
def started(machine, *more, **environment):
    command = ["bash", str(ROOT / "launch/rewards_vllm.sh"), *options(machine, *more)]
    script = subprocess.Popen(
        command,
        env={
            "PATH": f"{machine.folder / 'bin'}:/usr/bin:/bin",
            "STUBS": str(machine.folder),
            "HTTP_PROXY": "http://127.0.0.1:9",
            "http_proxy": "http://127.0.0.1:9",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with script:
        try:
            yield script
        finally:
            script.kill()


def pids(machine):
    file = machine.folder / "pids"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def is_alive(pid):
    """Zombies, which nobody reaps in a container, are dead."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    return False


def two(port):
    return f"--models=unified_2,qwen_vl --port={port}".split()


def test_it_starts_and_ends_with_all_children(machine):
    port = free_ports()
    with started(machine, *two(port)) as script:
        printed = [script.stdout.readline().strip() for _ in range(3)]
        running = pids(machine)
        assert len(running) == 4
        assert all(map(is_alive, running))
        script.send_signal(signal.SIGTERM)
        _, said = script.communicate(timeout=60)
    assert script.returncode == 143, said
    assert not any(map(is_alive, running))
    # Its flags are what the trainer takes.
    values, line = flags.FlagValues(), [shlex.split(line)[0] for line in printed]
    config = to_config_dict(Config())
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["x", *line]
    )
    values(["x", *line])
    rewards = from_config_dict(values.config).rewards
    assert rewards.backend == "openai"
    assert rewards.unified_2.endpoints == (f"http://127.0.0.1:{port}/v1",)
    assert rewards.qwen_vl.endpoints == (f"http://127.0.0.1:{port + 1}/v1",)
    # The commits are those of the first start from now on.
    models = [rewards.unified_2.model, rewards.qwen_vl.model]
    lock = "".join(f"{model} {COMMIT}\n" for model in models)
    assert (machine.folder / "lock").read_text() == lock
    log = (machine.folder / "log").read_text().splitlines()
    assert [line.split("\t")[2] for line in log] == models
    assert all(COMMIT in line.split("\t") for line in log)
    (machine.folder / "newest").write_text("f" * 40)
    commands = dry_of_locked(machine)
    assert {after(command, "--revision") for command in commands} == {COMMIT}


@pytest.mark.parametrize(
    ("host", "full", "name"),
    [
        ("0.0.0.0", "echo gpu1.example", "gpu1.example"),
        ("::", "echo gpu1.example", "gpu1.example"),
        ("0.0.0.0", "echo unknown >&2; exit 1", "gpu1"),
        ("127.0.0.1", "echo gpu1.example", "127.0.0.1"),
    ],
)
def test_the_trainer_gets_an_address_that_it_can_reach(machine, host, full, name):
    program = machine.folder / "bin/hostname"
    program.write_text(
        f'#!/bin/bash\nif [ "$1" = -f ]; then {full}; else echo gpu1; fi'
    )
    program.chmod(0o755)
    port = free_ports()
    with started(machine, f"--host={host}", *two(port)) as script:
        printed = [script.stdout.readline().strip() for _ in range(3)]
        script.send_signal(signal.SIGTERM)
        _, said = script.communicate(timeout=60)
    assert [shlex.split(line)[0] for line in printed[1:]] == [
        f"--config.rewards.unified_2.endpoints=('http://{name}:{port}/v1',)",
        f"--config.rewards.qwen_vl.endpoints=('http://{name}:{port + 1}/v1',)",
    ]
    # Health is asked for here, where there may be no way to the name.
    assert f"unified_2: http://127.0.0.1:{port}, log in" in said


def dry_of_locked(machine):
    result = machine.run(
        "rewards_vllm.sh",
        "--dry-run",
        *options(machine, "--models=unified_2,qwen_vl"),
    )
    return [shlex.split(line) for line in result.stdout.splitlines()]


def test_it_ends_when_one_ends(machine):
    with started(machine, *two(free_ports())) as script:
        for _ in range(3):
            script.stdout.readline()
        first, *_ = running = pids(machine)
        os.kill(first, signal.SIGKILL)
        _, said = script.communicate(timeout=60)
    assert script.returncode == 1
    assert "unified_2 has ended; the end of " in said
    assert not any(map(is_alive, running))


def test_a_server_that_does_not_start(machine):
    (machine.folder / "broken").touch()
    with started(machine, *two(free_ports())) as script:
        printed, said = script.communicate(timeout=60)
    assert (script.returncode, printed) == (1, "")
    assert "unified_2 has ended; the end of " in said
    assert "CUDA out of memory" in said
    assert not any(map(is_alive, pids(machine)))


def test_a_port_that_is_taken(machine):
    port = free_ports()
    server = subprocess.Popen(
        [str(machine.folder / "bin/vllm"), "--port", str(port)],
        env={"STUBS": str(machine.folder), "CUDA_VISIBLE_DEVICES": "", **PATH},
    )
    with server:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        result = machine.run("rewards_vllm.sh", *options(machine, *two(port)))
        server.kill()
    assert "answers already; stop what runs there" in refused(result)


PATH = {"PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "run: expected options; flags of vllm serve follow after --"),
        (["--models=hps"], "--models=hps: expected names of unified_think,"),
        (["--gpus=all"], "--gpus=all: expected numbers such as 0,1"),
        (["--share=1.5"], "--share=1.5: expected a fraction"),
        (["--port=http"], "--port=http: expected a port"),
        (["--views=0"], "--views=0: expected a number"),
        (["--wait=long"], "--wait=long: expected seconds"),
        (["--host=a b"], "--host=a b: expected an address"),
        (["--model=x"], "--model=x: no such option"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(machine, arguments, expected):
    assert expected in refused(machine.run("rewards_vllm.sh", *arguments))


def test_no_vllm_is_one_line_and_exit_2(machine, tmp_path):
    error = refused(machine.run("rewards_vllm.sh", PATH=bare_path(tmp_path)))
    assert error.startswith("error: no vllm here: install it")


def test_a_commit_that_cannot_be_learnt_is_one_line_and_exit_2(machine):
    (machine.folder / "newest").write_text("404")
    result = machine.run("rewards_vllm.sh", *options(machine))
    error = refused(result)
    assert "404 is no commit: set UNIFIED_THINK_REVISION" in error
    assert not (machine.folder / "lock").exists()


def test_it_is_clean_and_executable():
    script = ROOT / "launch/rewards_vllm.sh"
    assert os.access(script, os.X_OK)
    program = Path(sys.executable).with_name("shellcheck")
    subprocess.run([program, "-x", script], check=True)


def test_help_says_how_to_pin(machine):
    result = machine.run("rewards_vllm.sh", "--help")
    assert result.returncode == 0
    assert "UNIFIED_THINK_REVISION" in result.stdout
