"""`python -m ar3d_jax.rewards.serve`, from its command line to a trainer's numbers."""

import pathlib
import select
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ar3d_jax.config import RenderConfig
from ar3d_jax.config_rewards import RemoteConfig, RewardsConfig, ScorersConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.client import Scoring
from tests.rewards.stand_in_endpoint import Endpoint, running

ROOT = pathlib.Path(__file__).parents[2]
RENDER = RenderConfig(size=32, workers=1)
SIDE = 8  # voxels
PROMPTS = [f"a chair with {number} legs" for number in range(12)]
PATIENCE_S = 120  # of a busy machine


class QuickScoring(Scoring):
    """No pictures; the sidecar is the real one."""

    worker_module = "tests.rewards.stand_in_worker"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef\n")
    return path


def command(*arguments):
    return [sys.executable, "-m", "ar3d_jax.rewards.serve", *arguments]


class Server:
    """A server's process, from the line that says where it serves.

    Attributes:
        port: where.
        table: what it printed before.
    """

    def __init__(self, secret, log, port=0):
        arguments = [f"--listen=127.0.0.1:{port}", f"--secret_file={secret}"]
        self._log = log.open("w+")
        self.process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=self._log, cwd=ROOT
        )
        self.table = []
        for line in self.process.stdout:
            if line.startswith(b"serving on 127.0.0.1:"):
                self.port = int(line.rpartition(b":")[2])
                break
            self.table.append(line.decode().rstrip())
        else:
            log_text = log.read_text()
            self.kill()
            pytest.fail(f"the server did not start: {log_text}")
        self.address = f"127.0.0.1:{self.port}"

    def stop(self):
        """SIGTERM; status, the rest of what it printed, and its log."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=PATIENCE_S)
        self._log.seek(0)
        with self._log:
            return self.process.returncode, printed.decode(), self._log.read()

    def kill(self):
        self.process.kill()
        self.process.communicate()
        self._log.close()

    def hold(self):
        """Stops it as it is: from now on it reads nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def wait_for_work(self):
        """Until a trainer has sent something that it has not read."""
        until(lambda: _unread(self.port) > 0)


def _unread(port):
    """Bytes in the receive queues of a port's connections."""
    rows = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [row.split() for row in rows]
    mine = [f for f in fields if f[1].endswith(f":{port:04X}") and f[3] == "01"]
    return sum(int(f[4].partition(":")[2], 16) for f in mine)


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        select.select([], [], [], 0.01)


@pytest.fixture
def serve(secret, tmp_path):
    """Starts servers; those that live at the end end well on SIGTERM."""
    made = []

    def start(port=0):
        made.append(Server(secret, tmp_path / f"server{len(made)}.log", port))
        return made[-1]

    yield start
    alive = [server for server in made if server.process.returncode is None]
    ends = [server.stop() for server in alive]
    for status, printed, log in ends:
        assert (status, printed) == (0, "ended by a signal\n"), log
        assert "Traceback" not in log


def remote(secret, *servers, **changes):
    there = RemoteConfig(servers, str(secret), in_flight=4)
    return RewardsConfig(backend="remote", remote=there, points=64, **changes)


def logits(count):
    random = np.random.default_rng(0)
    return random.normal(size=(count,) + (SIDE,) * 3).astype(np.float32)


def quick(folder, rewards):
    return QuickScoring(RENDER, rewards, SIDE, 16, folder)


def scores_of(scoring, step="refined"):
    return scoring.collect(scoring.submit(logits(12), PROMPTS, step))


def assert_same(found, expected):
    assert found[0].keys() == expected[0].keys()
    for role, numbers in expected[0].items():
        np.testing.assert_array_equal(found[0][role], numbers)
        assert found[1][role] == [None] * len(PROMPTS)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Scores of this machine's own sidecar."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        with quick(tmp_path_factory.mktemp("local"), RewardsConfig(points=64)) as own:
            found = scores_of(own)
    assert len(set(found[0]["quality"].tolist())) == 12
    return found


# --- numbers --------------------------------------------------------------------------


def test_two_hosts_at_once_get_the_local_numbers(serve, secret, tmp_path, local):
    server = serve()
    head, line = server.table
    assert head.split()[0] == "scorer"
    name, *words = line.split()
    assert name == "embedded"
    numbers = dict(zip(words[:6], map(float, words[-6:]), strict=True))
    assert (numbers["category"], numbers["parts"]) == (1, 2)  # of the known chair
    rewards = remote(secret, server.address)
    with quick(tmp_path / "a", rewards) as a, quick(tmp_path / "b", rewards) as b:
        tickets = [host.submit(logits(12), PROMPTS, "refined") for host in (a, b) * 3]
        for host, ticket in zip((a, b) * 3, tickets, strict=True):
            assert_same(host.collect(ticket), local)
        # With both connected.
        status, printed, log = server.stop()
    assert (status, printed) == (0, "ended by a signal\n"), log
    assert log.count("is here") == 4  # each looks once, then stays
    with socket.create_server(("127.0.0.1", server.port)):
        pass  # the port is free at once


def test_a_server_killed_in_mid_batch_changes_nothing(serve, secret, tmp_path, local):
    dying, living = serve(), serve()
    rewards = remote(secret, dying.address, living.address)
    with quick(tmp_path / "logs", rewards) as host:
        log = tmp_path / "logs/sidecar.log"
        scores_of(host)
        until(lambda: log.read_text().count("is reached") == 2)
        dying.hold()
        ticket = host.submit(logits(12), PROMPTS, "refined")
        dying.wait_for_work()
        dying.kill()
        assert ticket.unsettled
        assert_same(host.collect(ticket), local)
        assert host.restarts == 0


def test_the_only_server_killed_and_started_again(serve, secret, tmp_path, local):
    first = serve()
    with quick(tmp_path / "logs", remote(secret, first.address)) as host:
        scores_of(host)
        first.hold()
        ticket = host.submit(logits(12), PROMPTS, "refined")
        first.wait_for_work()
        first.kill()
        serve(first.port)
        assert_same(host.collect(ticket), local)
        assert host.restarts == 0


# --- what is wrong, in one line -------------------------------------------------------


def refusal(*arguments):
    """The line that the command ends with."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "serving on" not in done.stdout
    return lines[-1]


OPENAI = (
    "--config.rewards.backend=openai",
    "--config.rewards.scorers.category=qwen_vl",
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--secret_file="], "--secret_file is empty; expected a file"),
        (["--secret_file=/nowhere"], "'/nowhere', which cannot be read (No such file"),
        (["--listen=here"], "--listen has 'here'; expected host:port"),
        (["--listen=203.0.113.7:80"], "cannot listen on 203.0.113.7:80 (Cannot assign"),
        (["--config.rewards.backend=remote"], "expected local or openai"),
        (OPENAI, "rewards.qwen_vl.endpoints is ()"),
        (["--config.rewards.scorers.parts=x"], "rewards.scorers.parts"),
    ],
)
def test_a_wrong_command_line_is_one_line(secret, arguments, message):
    with_defaults = ["--listen=127.0.0.1:0", f"--secret_file={secret}", *arguments]
    assert message in refusal(*with_defaults)


def test_a_taken_port_is_one_line(secret):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(f"--listen=127.0.0.1:{port}", f"--secret_file={secret}")
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in line


def test_a_scorer_that_fails_on_the_known_object_is_one_line(secret):
    judge = Endpoint(text="I cannot see any pictures.")
    with running(judge):
        line = refusal(
            *OPENAI,
            "--listen=127.0.0.1:0",
            f"--secret_file={secret}",
            "--config.rewards.qwen_vl.model=judge",
            f"--config.rewards.qwen_vl.endpoints={judge.url}",
        )
    assert "qwen_vl has no category of the known object, 'a wooden chair" in line
    assert "I cannot see any pictures." in line


def test_while_it_loads_nobody_is_reached_and_the_port_may_be_lost(secret):
    """A host is refused then, and tries again: nothing waits for an answer."""
    judge = Endpoint("wait", text='{"match": 1}')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(judge):
        process = subprocess.Popen(
            command(
                *OPENAI,
                f"--listen=127.0.0.1:{port}",
                f"--secret_file={secret}",
                "--config.rewards.qwen_vl.model=judge",
                f"--config.rewards.qwen_vl.endpoints={judge.url}",
                "--config.rewards.qwen_vl.request_s=0.5",
                "--config.rewards.qwen_vl.retries=99",
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        until(lambda: judge.bodies)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)):  # another one is quicker
            judge.script = [0.0]
            _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port} (Address already" in log.splitlines()[-1]


def test_a_trainer_is_told_what_is_wrong_as_it_enters(serve, secret, tmp_path):
    server = serve()
    other = tmp_path / "other"
    other.write_text("another secret of ours")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    other_scorers = ScorersConfig(preference="hps_v2_1")
    cases = [
        (remote(other, server.address), "wrong secret: both sides must have the same"),
        (remote(tmp_path / "no", server.address), "which cannot be read"),
        (remote(secret, "nonsense"), "'nonsense'; expected host:port"),
        (remote(secret, nobody), "no server is reached"),
        (
            remote(secret, server.address, scorers=other_scorers),
            "the host wants preference by hps_v2_1; the server has preference by emb",
        ),
    ]
    for rewards, message in cases:
        with (
            pytest.raises(UserError, match=message) as caught,
            quick(tmp_path / "logs", rewards),
        ):
            pass
        assert str(caught.value).startswith("the sidecar does not start: ")
        assert "\n" not in str(caught.value)
    with quick(tmp_path / "logs", remote(secret, nobody, server.address)) as host:
        found, _ = scores_of(host, "coarse")  # one that is up is enough
    assert np.isfinite(found["category"]).all()
