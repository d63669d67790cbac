"""Questions to servers that misbehave as a script says; real ones: test_serving.py."""

import asyncio
import base64
import contextlib
import email.utils
import gc
import io
import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from ar3d_jax.config_rewards import JudgeConfig
from ar3d_jax.rewards.sidecar import chat_endpoints
from ar3d_jax.rewards.sidecar.answers import Answer
from ar3d_jax.rewards.sidecar.chat import Question
from ar3d_jax.rewards.sidecar.chat_endpoints import Endpoints
from tests.rewards.stand_in_endpoint import Endpoint, completion

FIELD = "rewards.qwen_vl"
FINE = (200, {}, completion())
VIEWS = np.random.default_rng(0).integers(0, 256, (6, 28, 56, 3)).astype(np.uint8)
SCHEMA = {"type": "object"}


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Pauses and rests of a tenth of a second at most."""
    monkeypatch.setattr(chat_endpoints, "PAUSE_S", 0.01)
    monkeypatch.setattr(chat_endpoints, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(chat_endpoints, "REST_S", 0.05)
    monkeypatch.setattr(chat_endpoints, "LONGEST_REST_S", 0.1)


async def check_and_load(config):
    """`Endpoints` asks the servers as it starts, which here are in this process."""
    return await asyncio.to_thread(Endpoints, config, FIELD)


class Ended:
    """The answers of one run, what they took, and the books."""

    def __init__(self, answers, seconds, statistics):
        self.answers, self.seconds, self.statistics = answers, seconds, statistics

    @property
    def only(self):
        (answer,) = self.answers
        return answer


def ask(*endpoints, count=1, deadline_s=10.0, question=None, meanwhile=None, **fields):
    """Asks `count` times at once; every run ends by its deadline."""
    fields = {"model": "judge", "request_s": 5.0, **fields}

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            for endpoint in endpoints:
                await stack.enter_async_context(endpoint)
            urls = tuple(endpoint.url for endpoint in endpoints)
            servers = await check_and_load(JudgeConfig(endpoints=urls, **fields))
            started = time.monotonic()
            one = question or Question("How is it?", VIEWS)
            asked = [servers.answer(one, started + deadline_s) for _ in range(count)]
            jobs = [meanwhile(servers)] if meanwhile else []
            answers = (await asyncio.gather(*asked, *jobs))[:count]
            seconds = time.monotonic() - started
            await servers.close()
            return Ended(answers, seconds, servers.statistics)

    ended = asyncio.run(run())
    assert ended.seconds < deadline_s + 1.5  # a busy machine's
    return ended


def test_the_request_says_everything():
    endpoint = Endpoint(FINE, model="owner/name")
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    fields |= {"repetition_penalty": 1.1, "max_tokens": 99}
    ended = ask(
        endpoint,
        question=Question("How is it?", VIEWS, SCHEMA),
        **fields | {"model": "owner/name@abc"},
    )
    assert ended.only == Answer("fine")
    (body,) = endpoint.bodies
    content = body.pop("messages")
    (turn,) = content
    assert turn["role"] == "user"
    *pictures, text = turn["content"]
    assert text == {"type": "text", "text": "How is it?"}
    for picture, view in zip(pictures, VIEWS, strict=True):
        assert picture["type"] == "image_url"
        kind, data = picture["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(seen, view)
    schema = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert body == {
        **fields,
        "model": "owner/name",
        "n": 1,
        "stream": False,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def test_without_a_schema_no_format_is_forced():
    endpoint = Endpoint()
    ask(endpoint)
    assert "response_format" not in endpoint.bodies[0]


def test_transformers_is_told_what_it_understands():
    endpoint = Endpoint()
    question = Question("?", VIEWS, SCHEMA)
    ask(endpoint, question=question, server="transformers", max_tokens=7)
    (body,) = endpoint.bodies
    assert json.loads(body.pop("generation_config")) == {
        "max_new_tokens": 7,
        "do_sample": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "num_beams": 1,
    }
    assert set(body) == {
        *("model", "messages", "temperature", "top_p", "seed", "max_tokens", "stream")
    }


def test_books_of_a_good_run():
    endpoint = Endpoint((200, {}, completion("cut", "length")))
    ended = ask(endpoint, count=20, in_flight=4)
    assert ended.answers == [Answer("cut", cut=True)] * 20
    assert endpoint.most <= 4
    books = ended.statistics
    assert (books.sent, books.answered) == (20, 20)
    assert not books.failures
    assert not books.missing


def test_the_least_loaded_is_asked():
    slow, quick = Endpoint(0.5), Endpoint(0.01)
    ended = ask(slow, quick, count=30, in_flight=3)
    assert ended.answers == [Answer("fine")] * 30
    assert len(slow.bodies) <= 6
    assert slow.most == quick.most == 3


def one_after_the_other(*endpoints, count, **fields):
    """One that takes its time, and meanwhile `count` more, each after the last."""

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            for endpoint in endpoints:
                await stack.enter_async_context(endpoint)
            urls = tuple(endpoint.url for endpoint in endpoints)
            servers = await check_and_load(
                JudgeConfig(model="judge", endpoints=urls, **fields)
            )
            question, end = Question("?", VIEWS), time.monotonic() + 20
            first = asyncio.create_task(servers.answer(question, end))
            while not endpoints[0].bodies:
                await asyncio.sleep(0.01)
            answers = [await servers.answer(question, end) for _ in range(count)]
            first.cancel()
            await servers.close()
            return answers

    return asyncio.run(run())


def test_what_is_under_way_counts_not_what_was():
    busy, free = Endpoint("wait"), Endpoint()
    assert one_after_the_other(busy, free, count=8) == [Answer("fine")] * 8
    assert (len(busy.bodies), len(free.bodies)) == (1, 8)


def test_another_try_is_elsewhere_even_if_there_is_more_to_do():
    busy, broken = Endpoint("wait", FINE), Endpoint((500, {}, ""))
    assert one_after_the_other(busy, broken, count=1, retries=1) == [Answer("fine")]
    assert (len(busy.bodies), len(broken.bodies)) == (2, 1)


HELPS = [
    ("drop", "transport"),
    ("half", "transport"),
    ((500, {}, {"error": {"message": "out of memory"}}), "status 500"),
    ((502, {}, "<html>Bad Gateway</html>"), "status 502"),
    ((503, {}, ""), "status 503"),
    ((408, {}, ""), "status 408"),
    ((429, {}, {"error": "too many"}), "status 429"),
    ("wait", "timeout"),
    ((200, {}, "{garbage"), "reply"),
    ((200, {}, ""), "reply"),
    ((200, {}, [1]), "reply"),
    ((200, {}, completion(choices=0)), "reply"),
    ((200, {}, completion(choices=2)), "reply"),
    ((200, {}, {"error": {"message": "overloaded"}}), "reply"),
    ((200, {}, completion() | {"error": "overloaded"}), "reply"),
    ((200, {}, completion("")), "reply"),
    ((200, {}, completion(None)), "reply"),
    ((200, {}, completion("part", "abort")), "reply"),
    ((200, {}, "[" * 60_000), "reply"),
    ((200, {}, '{"error": ' + "[" * 900 + "]" * 900 + "}"), "reply"),
    ((200, {}, '{"choices": ' + "9" * 5000 + "}"), "reply"),
    ((200, {}, '{"choices": [NaN], "error": null}'), "reply"),
    ((200, {}, {"choices": {"0": 1}}), "reply"),
    ((200, {}, {"choices": "x"}), "reply"),
    ((200, {}, {"choices": [{"message": {"content": ["a"]}}]}), "reply"),
    ((200, {}, {"choices": [{"message": "fine", "finish_reason": "stop"}]}), "reply"),
    ((200, {}, "null"), "reply"),
    ((200, {"content-encoding": "gzip"}, "no gzip"), "transport"),
]


@pytest.mark.parametrize(("bad", "kind"), HELPS)
def test_what_another_try_may_help(bad, kind):
    endpoint = Endpoint(bad, FINE)
    ended = ask(endpoint, request_s=0.3 if kind == "timeout" else 5.0)
    assert ended.only == Answer("fine")
    assert dict(ended.statistics.failures) == {kind: 1}
    assert (ended.statistics.sent, ended.statistics.answered) == (2, 1)
    assert not ended.statistics.missing


@pytest.mark.parametrize(("bad", "kind"), HELPS)
def test_tries_are_counted(bad, kind):
    endpoint = Endpoint(bad)
    request_s = 0.1 if kind == "timeout" else 5.0
    ended = ask(endpoint, request_s=request_s, retries=2)
    # A proxy's nonsense is tried once more only.
    assert len(endpoint.bodies) == (2 if kind == "reply" else 3)
    assert dict(ended.statistics.failures) == {kind: len(endpoint.bodies)}
    assert dict(ended.statistics.missing) == {kind: 1}
    assert ended.only.text == ""
    assert ended.only.kind == kind
    assert ended.only.reason.startswith(f"{kind}: {endpoint.url}: ")
    assert ended.statistics.answered == 0


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 301])
def test_a_wrong_request_is_not_sent_again(status):
    body = {"error": {"message": "At most 1 image(s)\nmay be provided"}}
    endpoint = Endpoint((status, {"location": "/v2"}, body))
    ended = ask(endpoint)
    assert len(endpoint.bodies) == 1
    assert ended.only.reason.startswith(f"status {status}: {endpoint.url}: ")
    assert "At most 1 image(s)" in ended.only.reason
    assert dict(ended.statistics.missing) == {f"status {status}": 1}


def test_retry_after_is_waited_for(monkeypatch):
    monkeypatch.setattr(chat_endpoints, "LONGEST_REST_S", 5.0)
    endpoint = Endpoint((429, {"retry-after": "1"}, ""), FINE)
    ended = ask(endpoint)
    assert ended.only == Answer("fine")
    first, second = endpoint.times
    assert 1 <= second - first < 2
    in_2_s = email.utils.formatdate(time.time() + 2, usegmt=True)
    endpoint = Endpoint((503, {"retry-after": in_2_s}, ""), FINE)
    ask(endpoint)
    first, second = endpoint.times
    assert 0.5 <= second - first < 3


def test_retry_after_beyond_the_deadline_ends_it_at_once(monkeypatch):
    monkeypatch.setattr(chat_endpoints, "LONGEST_REST_S", 60.0)
    endpoint = Endpoint((429, {"retry-after": "30"}, "busy"), FINE)
    ended = ask(endpoint, deadline_s=5.0)
    assert ended.seconds < 2
    before = f"; before that, status 429: {endpoint.url}: busy"
    assert ended.only.reason == f"deadline: no answer by the deadline{before}"
    assert dict(ended.statistics.missing) == {"deadline": 1}


def test_retry_after_of_one_sends_to_the_other(monkeypatch):
    monkeypatch.setattr(chat_endpoints, "LONGEST_REST_S", 60.0)
    busy, free = Endpoint((429, {"retry-after": "30"}, "")), Endpoint()
    ended = ask(busy, free, count=10, in_flight=2, deadline_s=5.0)
    assert ended.answers == [Answer("fine")] * 10
    assert 1 <= len(busy.bodies) <= 2


@pytest.mark.parametrize("stated", ["soon", "nan", "-5", "1e999", ""])
def test_a_retry_after_that_means_nothing(stated):
    endpoint = Endpoint((429, {"retry-after": stated}, ""), FINE)
    assert ask(endpoint).only == Answer("fine")


def test_an_answer_after_the_deadline_is_none():
    endpoint = Endpoint(2.0)
    ended = ask(endpoint, deadline_s=0.3)
    assert 0.3 <= ended.seconds < 1.8
    assert "no answer by the deadline" in ended.only.reason
    assert dict(ended.statistics.missing) == {"deadline": 1}
    # The caller's haste is not the endpoint's fault.
    assert not ended.statistics.failures


def test_a_deadline_that_has_passed():
    endpoint = Endpoint()
    ended = ask(endpoint, deadline_s=-0.1)
    assert "no answer by the deadline" in ended.only.reason
    assert not endpoint.bodies


def test_a_slow_one_is_left_for_another():
    stuck, good = Endpoint("wait"), Endpoint()
    ended = ask(stuck, good, count=4, request_s=0.2)
    assert ended.answers == [Answer("fine")] * 4
    assert 0.2 <= ended.seconds < 2
    assert ended.statistics.failures["timeout"] == len(stuck.bodies) >= 1


def test_bursts_of_errors_pass():
    bad = (500, {}, "")
    endpoint = Endpoint(*[bad] * 8, FINE)
    ended = ask(endpoint, count=12, in_flight=4, retries=9)
    assert ended.answers == [Answer("fine")] * 12
    assert dict(ended.statistics.failures) == {"status 500": 8}


def test_a_broken_endpoint_is_left_alone_and_looked_at_again():
    """With rests of 0.05, 0.1, 0.1 ... seconds, one request after each."""
    endpoint = Endpoint((500, {}, ""))
    ended = ask(endpoint, count=40, in_flight=8, retries=99, deadline_s=1.0)
    assert all(answer.reason for answer in ended.answers)
    assert dict(ended.statistics.missing) == {"deadline": 40}
    # The first eight at once, then one per rest.
    late = [t for t in endpoint.times if t > endpoint.times[0] + 0.25]
    assert 8 + 2 <= len(endpoint.times) <= 8 + 2 + 20
    assert min(np.diff(late)) > 0.08


def test_refused_connections():
    endpoint = Endpoint()

    async def run():
        async with endpoint:
            config = JudgeConfig(model="judge", endpoints=(endpoint.url,), retries=2)
            servers = await check_and_load(config)
        answer = await servers.answer(Question("?", VIEWS), time.monotonic() + 5)
        await servers.close()
        return answer, servers.statistics

    answer, statistics = asyncio.run(run())
    assert "ConnectError" in answer.reason
    assert dict(statistics.failures) == {"transport": 3}
    assert dict(statistics.missing) == {"transport": 1}


def test_one_dies_for_good_while_the_other_lives():
    dying, living = Endpoint(0.02), Endpoint(0.02)

    async def kill(servers):
        while len(dying.bodies) < 20:
            await asyncio.sleep(0.01)
        await dying.die()

    ended = ask(dying, living, count=200, in_flight=8, meanwhile=kill, deadline_s=30.0)
    assert ended.answers == [Answer("fine")] * 200
    assert set(ended.statistics.failures) == {"transport"}
    # Those under way, and a few that looked whether it is back.
    assert ended.statistics.failures["transport"] < 60
    assert len(living.bodies) > 150


def test_one_that_was_down_at_the_start_gets_one_request_at_a_time(monkeypatch):
    stuck, good = Endpoint("wait"), Endpoint(0.05)
    check = chat_endpoints._check
    monkeypatch.setattr(
        chat_endpoints,
        "_check",
        lambda url, *rest: "is down" if url == stuck.url else check(url, *rest),
    )
    ended = ask(stuck, good, count=30, in_flight=8, request_s=1.0)
    assert ended.answers == [Answer("fine")] * 30
    assert stuck.most == 1
    assert good.most > 1


def test_one_that_comes_back_is_used_again():
    flaky = Endpoint(*[(500, {}, "")] * 3, FINE)
    other = Endpoint(0.1)
    ended = ask(flaky, other, count=40, in_flight=2)
    assert ended.answers == [Answer("fine")] * 40
    assert len(flaky.bodies) > 20


def test_a_caller_that_goes_away_gives_its_place_back():
    endpoint = Endpoint("wait", FINE)

    async def run():
        async with endpoint:
            config = JudgeConfig(
                model="judge", endpoints=(endpoint.url,), in_flight=1, request_s=60.0
            )
            servers = await check_and_load(config)
            question, end = Question("?", VIEWS), time.monotonic() + 20
            first = asyncio.create_task(servers.answer(question, end))
            while not endpoint.bodies:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(servers.answer(question, end))
            first.cancel()
            answer = await second
            await servers.close()
            return first.cancelled() or first.done(), answer

    started = time.monotonic()
    gone, answer = asyncio.run(run())
    assert gone
    assert answer == Answer("fine")
    assert time.monotonic() - started < 5


@pytest.fixture
def written(monkeypatch):
    """A list that grows by each question whose request is written; "bad" cannot be."""
    texts, write = [], Endpoints._write

    def count(self, question):
        texts.append(question.text)
        if question.text == "bad":
            raise MemoryError
        return write(self, question)

    monkeypatch.setattr(Endpoints, "_write", count)
    return texts


def test_a_request_is_written_when_it_has_a_place(written):
    ended = ask(Endpoint("wait"), count=9, in_flight=2, deadline_s=0.5)
    assert dict(ended.statistics.missing) == {"deadline": 9}
    assert len(written) == ended.statistics.sent == 2


def test_a_request_that_cannot_be_written_gives_its_place_back(written):
    endpoint = Endpoint()

    async def run():
        async with endpoint:
            servers = await check_and_load(
                JudgeConfig(model="judge", endpoints=(endpoint.url,), in_flight=1)
            )
            end = time.monotonic() + 5
            asked = [servers.answer(Question(t, VIEWS), end) for t in ("bad", "good")]
            found = await asyncio.gather(*asked, return_exceptions=True)
            await servers.close()
            return found, servers.statistics

    (error, answer), statistics = asyncio.run(run())
    assert isinstance(error, MemoryError)
    assert answer == Answer("fine")
    assert written == ["bad", "good"]
    assert (statistics.sent, statistics.answered) == (1, 1)


@pytest.mark.parametrize(
    ("model", "revision"),
    [("owner/name", "as served"), ("owner/name@abc", "as configured: abc")],
)
def test_a_revision_is_what_the_config_says(model, revision):
    async def run():
        async with Endpoint(model="owner/name") as endpoint:
            config = JudgeConfig(model=model, endpoints=(endpoint.url,))
            servers = await check_and_load(config)
            await servers.close()
            return servers.about

    about = asyncio.run(run())
    assert (about.model, about.revision) == ("owner/name", revision)


def test_a_thousand_requests_leave_nothing_behind():
    def held():
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files

    seen = []
    busy = (429, {}, "")
    endpoint = Endpoint(*[FINE, FINE, FINE, busy, "drop", (200, {}, "{")] * 200, FINE)

    async def look(servers):
        async def some(count):
            question = Question("?", VIEWS)
            end = time.monotonic() + 60
            asked = [servers.answer(question, end) for _ in range(count)]
            for answer in await asyncio.gather(*asked):
                assert answer.text == "fine" or answer.reason

        await some(200)
        gc.collect()
        endpoint.bodies.clear()
        seen.append(held())
        for _ in range(10):
            await some(100)
            endpoint.bodies.clear()
        gc.collect()
        seen.append(held())

    ended = ask(endpoint, in_flight=8, meanwhile=look, deadline_s=90.0)
    assert ended.statistics.sent > 1200
    (memory, files), (memory_after, files_after) = seen
    # Both ends of eight connections are here.
    assert files_after <= files + 16
    assert memory_after < memory + 20


def test_proxies_are_for_other_machines(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask(Endpoint()).only == Answer("fine")
    for url in ("http://localhost:1/v1", "http://127.3.2.1/v1", "http://[::1]:8/v1"):
        assert chat_endpoints._is_here(url)
    for url in ("http://10.0.0.1/v1", "http://local.host/v1", "http://8.8.8.8:80"):
        assert not chat_endpoints._is_here(url)
