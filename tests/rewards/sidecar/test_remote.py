"""Scores from another machine: handshakes, deaths, slow networks, and the same bits."""

import asyncio
import contextlib
import dataclasses
import errno
import gc
import json
import math
import socket
import struct
import threading
import time
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from ar3d_jax.config_rewards import RemoteConfig, RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.sidecar import frames, panel, scorers, serving
from ar3d_jax.rewards.sidecar.scorers import remote

SECRET = b"0123456789abcdef"
ROLES = ("preference", "parts")
EMBEDDED = {"roles": ["alignment", *ROLES], "model": "m", "revision": "r", "place": "p"}


def subject(prompt, size=8, points=5):
    random = np.random.default_rng(zlib.crc32(prompt.encode()))
    views = random.integers(0, 256, (6, size, size, 3), np.uint8)
    colours = random.integers(0, 256, (points, 3), np.uint8)
    points = random.random((points, 3), np.float32)
    return scorers.Subject(prompt, views, points, colours, ROLES)


def number(each):
    content = each.views.tobytes() + each.points.tobytes() + each.colours.tobytes()
    return zlib.crc32(content + each.prompt.encode()) / 2**32


class Judging:
    """A server's panel: a number from all bytes of the object, one role at a time."""

    def __init__(self):
        self.about = {"embedded": EMBEDDED}
        self.asked = self.judged = 0
        self.silent = False

    async def judge(self, each, deadline, tell):
        self.asked += 1
        while self.silent:
            await asyncio.sleep(0.001)
        self.judged += 1
        if each.prompt == "late":
            tell({each.roles[0]: (0.5, None)})
            await asyncio.sleep(deadline - time.monotonic())
            tell({each.roles[1]: (None, panel.TOO_LATE)})
            return
        for role in each.roles:
            tell({role: (number(each), None)})


class Server:
    """A server in a thread of this process; on `port` where one is given."""

    def __init__(self, port=0, secret=SECRET):
        self.panel = Judging()
        self._listening = serving.bind(("127.0.0.1", port))
        serving.listen(self._listening)
        self.port = self._listening.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._work = self._loop.create_task(
            serving.serve(self._listening, self.panel, secret)
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._work)
        self._loop.close()

    def close(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._work.cancel)
            self._thread.join()
        self._listening.close()


@pytest.fixture
def servers():
    """Makes servers, which end with the test."""
    made = []

    def make(**options):
        made.append(Server(**options))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def config(tmp_path):
    """A host's config for some addresses."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")

    def make(*addresses, **changes):
        there = RemoteConfig(servers=addresses, secret_file=str(path), **changes)
        base = RewardsConfig()
        weights = dataclasses.replace(
            base.weights,
            coarse=dataclasses.replace(base.weights.coarse, category=0.0),
            refined=dataclasses.replace(
                base.weights.refined, quality=0.0, consistency=0.0
            ),
        )
        return RewardsConfig(backend="remote", weights=weights, remote=there)

    return make


def ask_all(config, subjects, patience=60.0, between=None):
    """By prompt, what the panel of a host with this config says; seconds it took."""

    seat = panel.Panel(config)

    async def run():
        found = {}
        deadline = time.monotonic() + patience

        async def one(each):
            def tell(verdicts):
                found.setdefault(each.prompt, {}).update(verdicts)

            await seat.judge(each, deadline, tell)

        async with asyncio.TaskGroup() as group:
            for each in subjects:
                group.create_task(one(each))
            if between:
                group.create_task(between(found))
        await seat.close()
        return found

    return asyncio.run(run())


def test_every_byte_arrives_and_every_role_comes_back(servers, config):
    server = servers()
    things = [subject(str(i), size=8 + i, points=i) for i in range(20)]
    found = ask_all(config(server.address, in_flight=4), things)
    assert found == {
        each.prompt: dict.fromkeys(ROLES, (number(each), None)) for each in things
    }


def test_two_servers_share_the_load(servers, config):
    one, other = servers(), servers()
    one.panel.silent = other.panel.silent = True

    async def begin(found):
        async with asyncio.timeout(30):
            while not (one.panel.asked == other.panel.asked == 2):  # both are full
                await asyncio.sleep(0.001)
        one.panel.silent = other.panel.silent = False

    things = [subject(str(i)) for i in range(40)]
    both = config(one.address, other.address, in_flight=2)
    assert len(ask_all(both, things, between=begin)) == 40
    assert one.panel.judged + other.panel.judged == 40


def test_what_a_dead_server_has_not_answered_goes_to_the_other(servers, config):
    dying, living = servers(), servers()
    dying.panel.silent = living.panel.silent = True

    async def kill(found):
        async with asyncio.timeout(30):
            while not (dying.panel.asked == living.panel.asked == 4):
                await asyncio.sleep(0.001)
        living.panel.silent = False
        await asyncio.to_thread(dying.close)

    things = [subject(str(i)) for i in range(20)]
    both = config(dying.address, living.address, in_flight=4)
    found = ask_all(both, things, between=kill)
    assert {p: v["parts"][0] for p, v in found.items()} == {
        each.prompt: number(each) for each in things
    }
    assert living.panel.judged == 20


def test_a_server_that_comes_back_is_asked_again(servers, config, monkeypatch):
    monkeypatch.setattr(remote, "REST_S", (0.01, 0.05))
    first = servers()
    first.panel.silent = True
    again = []

    async def restart(found):
        await asyncio.to_thread(first.close)
        again.append(await asyncio.to_thread(servers, port=first.port))

    found = ask_all(config(first.address), [subject("a")], between=restart)
    assert found["a"]["parts"] == (number(subject("a")), None)
    assert again[0].panel.judged == 1


def test_without_a_server_scores_are_missing_by_the_deadline(servers, config):
    server = servers()
    host = config(server.address)

    async def close(found):
        await asyncio.to_thread(server.close)

    server.panel.silent = True
    started = time.monotonic()
    found = ask_all(host, [subject("a")], patience=1.0, between=close)
    assert time.monotonic() - started < 20
    ((_, reason),) = set(found["a"].values())
    assert reason.startswith(f"no server is reached: {server.address}: ")


def test_a_server_that_says_nothing_is_taken_for_gone(servers, config, monkeypatch):
    monkeypatch.setattr(remote, "REST_S", (0.01, 0.05))
    server = servers()
    server.panel.silent = True
    seat = panel.Panel(config(server.address))

    async def run():
        told = []
        for name in ("a", "b"):
            deadline = time.monotonic() + (0.5 if name == "a" else 30)
            await seat.judge(subject(name), deadline, told.append)
            server.panel.silent = False
        await seat.close()
        return told

    told = asyncio.run(run())
    assert told[0] == dict.fromkeys(ROLES, (None, panel.TOO_LATE))
    assert told[1] | told[2] == dict.fromkeys(ROLES, (number(subject("b")), None))


def test_of_a_slow_object_what_is_there_counts(servers, config):
    server = servers()
    found = ask_all(config(server.address), [subject("late")], patience=2.0)
    assert found["late"] == {
        "preference": (0.5, None),
        "parts": (None, panel.TOO_LATE),
    }


class Throttle:
    """A network of so many bytes a second before a server."""

    def __init__(self, target, rate):
        self._target, self._rate = target, rate
        self._server, self._pipes = None, []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._pipe, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_):
        self._server.close()
        await asyncio.gather(*self._pipes)  # both ends are closed by now

    async def _pipe(self, reader, writer):
        self._pipes.append(asyncio.current_task())
        host, _, port = self._target.partition(":")
        there = await asyncio.open_connection(host, int(port))

        async def copy(source, sink):
            with contextlib.suppress(ConnectionError):
                while data := await source.read(4096):
                    sink.write(data)
                    await sink.drain()
                    await asyncio.sleep(len(data) / self._rate)
            sink.close()

        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))


def test_over_a_slow_network_what_comes_in_time_counts(servers, config):
    server = servers()
    things = [subject(str(i), size=64) for i in range(60)]  # 74 KB each: 4.4 MB
    answers = []

    async def run():
        async with Throttle(server.address, 500_000) as address:
            host = config(address, in_flight=4)
            seat = await asyncio.to_thread(panel.Panel, host)
            deadline = time.monotonic() + 4.0
            async with asyncio.TaskGroup() as group:
                for each in things:

                    def tell(verdicts, each=each):
                        answers.append((each, verdicts))

                    group.create_task(seat.judge(each, deadline, tell))
            late = time.monotonic() - deadline
            await seat.close()
        return late

    assert asyncio.run(run()) < 10
    found = {each.prompt: {} for each in things}
    for each, verdicts in answers:
        found[each.prompt] |= verdicts
    right = [t for t in things if found[t.prompt]["parts"] == (number(t), None)]
    late = [t for t in things if found[t.prompt]["parts"] == (None, panel.TOO_LATE)]
    assert len(right) + len(late) == 60
    assert right
    assert late


# --- handshakes -----------------------------------------------------------------------


def refused(host):
    with pytest.raises(UserError) as caught:
        remote.load(host)
    return str(caught.value)


def test_another_secret_is_refused(servers, config, tmp_path):
    server = servers(secret=b"another secret of ours")
    assert "wrong secret: both sides must have the same" in refused(
        config(server.address)
    )


def refused_by(config, version):
    """What a host says of a server of `version` that takes all and proves nothing."""

    def greet():
        end, _ = listening.accept()
        with end, contextlib.suppress(ConnectionResetError):
            hello = {"ar3d_rewards": version, "nonce": "1"}
            for message in (hello, {"proof": "0" * 64, "about": {}}):
                text = json.dumps(message).encode()
                end.sendall(struct.pack("<II", len(text), 0) + text)
            while end.recv(1000):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=greet)
        server.start()
        line = refused(config(f"127.0.0.1:{listening.getsockname()[1]}"))
        server.join()
    return line


def test_a_server_that_does_not_know_the_secret_is_refused(config):
    line = refused_by(config, wire.VERSION)
    assert "does not know the secret of this host" in line


def test_another_version_is_refused_by_either_side(servers, config):
    line = refused_by(config, wire.VERSION - 1)
    assert f"it speaks version {wire.VERSION - 1}, this host {wire.VERSION}" in line
    server = servers()

    async def connect():
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await reader.readexactly(8)
        await reader.read(1000)
        text = b'{"version": 1, "nonce": "", "proof": ""}'
        writer.write(struct.pack("<II", len(text), 0) + text)
        answer = await reader.read()
        writer.close()
        return answer

    assert b"the host 1: both must be the same ar3d_jax" in asyncio.run(connect())


def test_a_server_with_other_scorers_is_refused(servers, config):
    server = servers()
    server.panel.about = {"shapellm": EMBEDDED | {"roles": ["parts"]}}
    line = refused(config(server.address))
    assert "the host wants preference by embedded" in line
    assert "parts by embedded; the server has parts by shapellm" in line


def test_no_server_at_all_is_one_line(config):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = refused(config(f"127.0.0.1:{port}", "nowhere.invalid:1", connect_s=5.0))
    assert line.startswith("rewards.remote.servers: no server is reached (127.0.0.1:")
    assert "nowhere.invalid:1: " in line
    assert line.endswith("start one with: python -m ar3d_jax.rewards.serve")


def test_servers_with_different_models_are_refused(servers, config):
    one, other = servers(), servers()
    other.panel.about = {"embedded": EMBEDDED | {"revision": "older"}}
    line = refused(config(one.address, other.address))
    assert f"{other.address} has embedded m older, another server embedded m r" in line


def test_a_server_that_comes_back_with_another_model_is_not_asked(
    servers, config, monkeypatch
):
    monkeypatch.setattr(remote, "REST_S", (0.01, 0.05))
    server = servers()
    seat = panel.Panel(config(server.address))
    server.panel.about = {"embedded": EMBEDDED | {"revision": "older"}}
    told = []

    async def run():
        await seat.judge(subject("a"), time.monotonic() + 1.0, told.append)
        await seat.close()

    asyncio.run(run())
    assert server.panel.asked == 0
    ((_, reason),) = {verdict for found in told for verdict in found.values()}
    assert reason.startswith(f"no server is reached: {server.address}: it has embedded")


def test_an_object_that_ends_servers_is_not_sent_for_ever(servers, config, monkeypatch):
    monkeypatch.setattr(remote, "REST_S", (0.01, 0.05))
    server = servers()
    seat = panel.Panel(config(server.address))
    told, sent = [], []

    async def judge(each, deadline, tell):
        sent.append(each.prompt)
        tell({each.roles[0]: (0.5, None)}) if len(sent) == 1 else None
        raise ConnectionResetError("as a server that dies would")

    server.panel.judge = judge

    async def run():
        await seat.judge(subject("a"), time.monotonic() + 30, told.append)
        await seat.close()

    asyncio.run(run())
    assert len(sent) == remote.LOST
    found = {role: verdict for each in told for role, verdict in each.items()}
    assert found["parts"] == (None, "3 servers were lost while they scored it")


def test_who_the_scorers_are_is_what_servers_say(servers, config):
    seat = panel.Panel(config(servers().address))
    asked = ["preference", "alignment", "parts"]
    assert seat.about == {"embedded": EMBEDDED | {"roles": asked}}


def test_a_server_that_talks_nonsense_is_left_and_tried_again(
    servers, config, monkeypatch
):
    monkeypatch.setattr(remote, "REST_S", (0.01, 0.05))
    server = servers()
    seat = panel.Panel(config(server.address))
    told, sent = [], []
    send = frames.Connection.send

    async def nonsense(connection, message, *arrays):
        if not callable(message) and "scored" in message and not sent:
            sent.append(message)
            message = {"scored": message["scored"], "scores": {"parts": "no pair"}}
        await send(connection, message, *arrays)

    monkeypatch.setattr(frames.Connection, "send", nonsense)

    async def run():
        await seat.judge(subject("a"), time.monotonic() + 30, told.append)
        await seat.close()

    asyncio.run(run())
    found = {role: verdict for each in told for role, verdict in each.items()}
    assert found == dict.fromkeys(ROLES, (number(subject("a")), None))
    assert server.panel.asked == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"short\n", "holds 5 characters; expected 16 or more")],
)
def test_a_secret_that_is_none(tmp_path, content, message):
    path = tmp_path / "s"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        frames.read_secret(str(path), "--secret_file")


@pytest.mark.parametrize("text", ["host", "host:", ":80", "host:x", "host:70000"])
def test_an_address_that_is_none(text):
    with pytest.raises(UserError, match="expected host:port"):
        frames.parse_address(text, "servers")


def test_an_address_of_either_kind():
    assert frames.parse_address("a.b:80", "servers") == ("a.b", 80)
    assert frames.parse_address("[::1]:80", "servers") == ("::1", 80)


def test_a_taken_port_is_one_line(servers):
    server = servers()
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1"):
        serving.bind(("127.0.0.1", server.port))


def test_a_stranger_who_says_nothing_is_sent_away(servers, monkeypatch):
    monkeypatch.setattr(serving, "GREETING_S", 0.1)
    server = servers()
    with socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.settimeout(30)
        while stranger.recv(1000):
            pass


def test_hosts_that_come_when_no_file_can_be_opened_are_let_in_later(
    servers, config, monkeypatch
):
    monkeypatch.setattr(serving, "FULL_S", 0.01)
    accept, full = socket.socket.accept, [True] * 3

    def accept_when_there_is_room(listening):
        if full:
            full.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", accept_when_there_is_room)
    server = servers()
    assert len(ask_all(config(server.address), [subject("a")])) == 1
    assert not full


# --- whatever a peer sends ------------------------------------------------------------

JSON = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()  # also NaN and infinities, which Python's JSON has
    | strategies.text(strategies.characters()),  # also half surrogates
    lambda inner: (
        strategies.lists(inner, max_size=5)
        | strategies.dictionaries(strategies.text(), inner, max_size=5)
    ),
    max_leaves=8,
)


def asked():
    """A request's frame as it arrives: its message, without `patience`, and bytes."""
    message, arrays = frames.request(1, subject("a"))
    data = np.concatenate([a.reshape(-1).view(np.uint8) for a in arrays])
    return json.loads(json.dumps(message | {"patience": 9.5})), data


def test_a_request_is_read_as_it_was_written():
    request = frames.read_request(*asked())
    assert (request.number, request.patience) == (1, 9.5)
    for field in dataclasses.fields(scorers.Subject):
        found, wanted = (
            getattr(s, field.name) for s in (request.subject, subject("a"))
        )
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "change",
    [
        {"views": [1, 2, 3]},
        {"views": [-1, 1, 1, 1]},
        {"views": [2**40] * 4},
        {"views": [0, 2**70, 1, 1]},
        {"views": 6},
        {"views": {"0": 6}},
        {"views": [6.0, 8, 8, 3]},
        {"points": 9},
        {"points": -1},
        {"points": math.inf},
        {"points": True},
        {"roles": None},
        {"roles": "parts"},
        {"roles": [1]},
        {"roles": {"parts": 1}},
        {"prompt": 7},
        {"prompt": None},
        {"score": None},
        {"score": math.nan},
        {"score": [1]},
        {"patience": "long"},
        {"patience": -1},
        {"patience": math.nan},
        {"patience": 10**400},
        {"patience": [1]},
    ],
)
def test_a_request_that_does_not_fit_is_refused(change):
    message, data = asked()
    with pytest.raises(frames.Refused, match="a request that cannot be read: ") as told:
        frames.read_request(message | change, data)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("field", asked()[0])
def test_a_request_without_a_field_is_refused(field):
    message, data = asked()
    del message[field]
    with pytest.raises(frames.Refused, match=f"KeyError: '{field}'"):
        frames.read_request(message, data)


@hypothesis.given(
    strategies.dictionaries(strategies.sampled_from([*asked()[0]]), JSON, min_size=1)
)
def test_a_request_of_anything_is_read_or_refused(change):
    message, data = asked()
    try:
        request = frames.read_request(message | change, data)
    except frames.Refused:
        return
    json.dumps({"scored": request.number}, allow_nan=False)  # the answer can be sent
    assert request.subject.views.dtype == np.uint8


class Said:
    """A connection whose other side says one thing, and hears anything."""

    def __init__(self, answer):
        self.answer, self.sent = answer, []

    async def send(self, message):
        self.sent.append(json.loads(json.dumps(message, allow_nan=False)))

    async def receive(self, most):
        answer = self.answer(self.sent) if callable(self.answer) else self.answer
        return answer, np.zeros(0, np.uint8)


GREETING = {"version": wire.VERSION, "nonce": "ab", "proof": "cd", "wants": {}}


@hypothesis.given(
    strategies.dictionaries(strategies.sampled_from([*GREETING]), JSON, min_size=1)
)
def test_a_greeting_of_anything_is_refused(change):
    host = Said(GREETING | change)
    with pytest.raises(frames.Refused) as told:
        asyncio.run(frames.greet_host(host, SECRET, {"embedded": EMBEDDED}))
    assert len(str(told.value)) < 300


@hypothesis.given(JSON)
def test_whatever_a_host_wants_that_is_not_there_is_refused(wants):
    hypothesis.assume(wants != {})

    def answer(sent):
        proof = frames._proof(SECRET, "host", (sent[0]["nonce"], "ab"))
        return GREETING | {"proof": proof, "wants": wants}

    host = Said(answer)
    with pytest.raises(frames.Refused, match="the host wants") as told:
        asyncio.run(frames.greet_host(host, SECRET, {"embedded": EMBEDDED}))
    assert len(str(told.value)) < 500


@hypothesis.given(JSON)
def test_whatever_a_server_says_it_has_is_refused(about):
    def answer(sent):
        if not sent:
            return {"ar3d_rewards": wire.VERSION, "nonce": "ab"}
        nonces = "ab", sent[0]["nonce"]
        return {"proof": frames._proof(SECRET, "server", nonces), "about": about}

    with pytest.raises(frames.Refused, match="other scorers than asked for"):
        asyncio.run(frames.greet_server(Said(answer), SECRET, {"parts": "embedded"}))


def framed(text, arrays=0):
    return struct.pack("<II", len(text), arrays) + text


NOISE = {
    "brackets": framed(b"[" * 60_000),
    "braces": framed(b'{"a":' * 12_000),
    "nested": framed(b'{"nonce": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "a number of 60,000 digits": framed(b'{"version": ' + b"9" * 60_000 + b"}"),
    "infinity": framed(b'{"version": 1e999}'),
    "NaN": framed(b'{"version": NaN, "nonce": NaN}'),
    "no UTF-8": framed(b'{"version": "\xff\xfe"}'),
    "UTF-16": framed('{"version": 3}'.encode("utf-16")),
    "half a surrogate": framed(b'{"version": 3, "nonce": "\\ud800", "proof": ""}'),
    "lines": framed(b'{"version": "a\\nb\\nc"}'),
    "nothing": framed(b""),
    "null": framed(b"null"),
    "a list": framed(b"[]"),
    "an empty object": framed(b"{}"),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "text": framed(b"hello"),
    "too long": struct.pack("<II", 2**31, 0),
    "one byte too long": struct.pack("<II", frames.GREETING_BYTES + 1, 0),
    "arrays too early": struct.pack("<II", 2, 2**31) + b"{}",
}


def spoken_to(server, noise, *, greeted=False):
    """Sends bytes as a stranger, or as a host, and reads until the connection ends."""

    async def speak():
        end = socket.create_connection(("127.0.0.1", server.port))
        connection = frames.Connection(end)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(30):
                if greeted:
                    await frames.greet_server(connection, SECRET, {})
                with contextlib.suppress(OSError):  # what we sent was not all read
                    await loop.sock_sendall(end, noise)
                    while await loop.sock_recv(end, 1000):
                        pass
        finally:
            connection.close()

    asyncio.run(speak())


@pytest.mark.parametrize("name", NOISE)
def test_any_first_frame_ends_its_own_connection_in_one_line(
    servers, config, capsys, caplog, name
):
    server = servers()
    spoken_to(server, NOISE[name])
    assert len(ask_all(config(server.address), [subject("a")])) == 1
    server.close()
    lines = capsys.readouterr().err.splitlines()
    gc.collect()  # asyncio tells of a task that has failed when it is collected
    assert not caplog.records
    noisy, *others = [line for line in lines if line.startswith("host ")]
    assert ("is here" in noisy, len(noisy) < 400) == (False, True)
    assert not [line for line in lines if "Traceback" in line]
    # Hosts that speak come and go; the last one may go after the server.
    ends = (" is here", ": the other side closed the connection")
    assert all(line.endswith(ends) for line in others)
    assert any(line.endswith(" is here") for line in others)


LATER = {
    "brackets": framed(b"[" * 60_000),
    "an empty object": framed(b"{}"),
    "no number": framed(b'{"score": NaN, "patience": 1}'),
    "infinite": framed(b'{"score": 1, "patience": 1, "views": [1e999]}'),
    "surrogates": framed(b'{"score": "\\ud800", "patience": "\\ud800"}'),
    "too long": struct.pack("<II", wire.MESSAGE_BYTES + 1, 0),
    "arrays too long": struct.pack("<II", 2, frames.ARRAYS_BYTES + 1) + b"{}",
}


@pytest.mark.parametrize("name", LATER)
def test_any_later_frame_ends_its_own_connection_in_one_line(
    servers, config, capsys, caplog, name
):
    server = servers()
    spoken_to(server, LATER[name], greeted=True)
    assert len(ask_all(config(server.address), [subject("a")])) == 1
    server.close()
    gc.collect()
    assert not caplog.records
    lines = capsys.readouterr().err.splitlines()
    here, ended, *_ = [line for line in lines if line.startswith("host ")]
    assert here.endswith(" is here")
    assert here.split()[1] == ended.split()[1].removesuffix(":")
    assert not [line for line in lines if "Traceback" in line]
