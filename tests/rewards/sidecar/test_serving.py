"""Servers as they start: what is asked first, and a real one with a real model."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from ar3d_jax.config_rewards import JudgeConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import chat_endpoints
from ar3d_jax.rewards.sidecar.chat import Question
from ar3d_jax.rewards.sidecar.chat_endpoints import Endpoints
from ar3d_jax.rewards.sidecar.chat_local import LocalChat
from tests.rewards import tiny_qwen
from tests.rewards.stand_in_endpoint import Endpoint

ROOT = Path(__file__).parents[3]
FIELD = "rewards.qwen_vl"
VIEWS = np.random.default_rng(0).integers(0, 256, (6, 28, 56, 3)).astype(np.uint8)
SCHEMA = {"type": "object"}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(
    ("model", "reply", "problem"),
    [
        ("other", None, "serves judge; expected other: "),
        ("judge", (404, "no"), "/models does not answer (HTTPStatusError: "),
        ("judge", (200, "no json"), "answers with something else than a list"),
        ("judge", (200, "[]"), "answers with something else than a list"),
        ("judge", (200, "[" * 60_000), "answers with something else than a list"),
        ("judge", (200, '{"data": ["judge"]}'), "answers with something else than a"),
        ("judge", (200, '{"data": [{"id": [7]}]}'), "serves [7]; expected judge: "),
        ("judge", (200, '{"data": []}'), "serves nothing; expected judge: "),
    ],
)
def test_servers_are_looked_at_first(monkeypatch, model, reply, problem):
    if reply is not None:

        def answer(url, **_):
            request = chat_endpoints.httpx2.Request("GET", url)
            status, text = reply
            return chat_endpoints.httpx2.Response(status, text=text, request=request)

        monkeypatch.setattr(chat_endpoints.httpx2, "get", answer)

    async def run():
        async with Endpoint(model="judge") as good:
            config = JudgeConfig(model=model, endpoints=(good.url,))
            await asyncio.to_thread(Endpoints, config, FIELD)

    with pytest.raises(UserError) as caught:
        asyncio.run(run())
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{FIELD}.endpoints: ")
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UserError, match=r"does not answer \(ConnectError") as caught:
        Endpoints(JudgeConfig(model="judge", endpoints=(url,)), FIELD)
    assert "launch/rewards_vllm.sh" in str(caught.value)


def test_servers_that_are_all_not_there_are_one_line():
    urls = tuple(f"http://127.0.0.1:{free_port()}/v1" for _ in range(2))
    with pytest.raises(UserError) as caught:
        Endpoints(JudgeConfig(model="judge", endpoints=urls), FIELD)
    line = str(caught.value)
    assert line.startswith(f"{FIELD}.endpoints: {urls[0]}/models does not answer (Con")
    assert f"; {urls[1]}/models does not answer (ConnectError: " in line
    assert "; expected judge: start it there" in line
    assert f"--config.{FIELD}.endpoints" in line
    assert "\n" not in line


def test_one_of_two_that_is_not_there_is_said_and_asked_once_it_is(capsys):
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"

    async def ask(servers, count):
        end = time.monotonic() + 30
        asked = (servers.answer(Question("?", VIEWS), end) for _ in range(count))
        return [answer.text for answer in await asyncio.gather(*asked)]

    async def run():
        async with Endpoint() as good:
            config = JudgeConfig(model="judge", endpoints=(url, good.url))
            servers = await asyncio.to_thread(Endpoints, config, FIELD)
            said = capsys.readouterr().err
            assert await ask(servers, 3) == ["fine"] * 3
            assert servers.statistics.failures.keys() <= {"transport"}
            assert len(good.bodies) == 3
            async with Endpoint(port=port) as late:
                while not late.bodies:
                    assert await ask(servers, 1) == ["fine"]
                    await asyncio.sleep(0.05)
                assert await ask(servers, 20) == ["fine"] * 20
                await servers.close()
                return said, good.url, len(late.bodies)

    said, other, asked = asyncio.run(asyncio.wait_for(run(), 60))
    (line,) = said.splitlines()
    assert line.startswith(f"{FIELD}.endpoints: {url}/models does not answer (Connect")
    assert line.endswith("; going on without")
    assert other not in line
    assert asked > 5


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The folder and the URL of a small model in a real server."""
    folder = tiny_qwen.make(tmp_path_factory.mktemp("served"))
    port = free_port()
    log = folder / "server.log"
    command = [sys.executable, "-m", "tests.rewards.serve_transformers"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, str(folder), str(port)],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                opener.open(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def test_a_real_server_answers_as_the_model_here_does(served):
    folder, url = served
    config = JudgeConfig(
        model=str(folder), endpoints=(url,), server="transformers", max_tokens=16
    )
    questions = [
        Question("How is it?", VIEWS, SCHEMA),
        Question("And from the other side?", VIEWS[::-1].copy()),
        Question("And this one alone?", VIEWS[:1]),
    ]

    async def run():
        servers = Endpoints(config, FIELD)
        end = time.monotonic() + 120
        answers = await asyncio.gather(*(servers.answer(q, end) for q in questions))
        await servers.close()
        return answers, servers.statistics

    answers, statistics = asyncio.run(run())
    assert [answer.reason for answer in answers] == [None] * 3
    assert (statistics.sent, statistics.answered) == (3, 3)
    here = LocalChat(config, FIELD, 1).answer(questions)
    # The server strips what it sends.
    assert [a.text.strip() for a in here] == [a.text for a in answers]
    assert [a.cut for a in here] == [a.cut for a in answers]
    assert len({answer.text for answer in answers}) == 3


def test_a_real_server_that_has_another_model(served):
    _, url = served
    config = JudgeConfig(model="owner/other", endpoints=(url,), server="transformers")

    async def run():
        servers = Endpoints(config, FIELD)
        answer = await servers.answer(Question("?", VIEWS), time.monotonic() + 60)
        await servers.close()
        return answer

    answer = asyncio.run(run())
    assert answer.kind == "status 400"
    assert "Server is pinned to" in answer.reason
