"""Messages with arrays over TCP, between a host's sidecar and a server of scorers.

A frame is 8 bytes, two little-endian u32: the length of a JSON object in UTF-8 and of
the raw bytes after it. No pickle, and no numbers turned into text.

| frame                                                                     | from   |
|---------------------------------------------------------------------------|--------|
| {ar3d_rewards: version, nonce}, at once                                   | server |
| {version, nonce, proof, wants: {role: scorer}}                            | host   |
| {proof, about: {...}}, or {refused: "one line"} and the end               | server |
| {score: number, prompt, roles, patience, views: [V, H, W, 3], points: n}, | host   |
| and views, points (f32 [n, 3]), colours (u8 [n, 3])                       |        |
| {scored: number, scores: {role: [number or null, why]}}, once per scorer  | server |

Each side proves that it knows the secret by an HMAC-SHA256 over both nonces; the secret
itself does not travel. What follows is neither encrypted nor signed: the network
between the two must be trusted, or tunnelled.

Covered: a peer of another version or secret, one that is no peer at all, one that dies,
one that sends more than it may. Deadlines are the callers'.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import json
import math
import secrets
import socket
import string
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.sidecar.scorers import Subject

_LENGTHS = struct.Struct("<II")
GREETING_BYTES = 1 << 16  # before the other side is known
MESSAGE_BYTES = wire.MESSAGE_BYTES
ARRAYS_BYTES = 1 << 28  # 6 views of 3,600 pixels along one side
BUFFER_BYTES = 4 << 20  # of the kernel's, wanted
LEAST_SECRET = 16  # characters

Message = dict[str, Any]


class Refused(ConnectionError):
    """The other side is not one of us, or does not take us for one; why, in words."""


def read_secret(path: str, field: str) -> bytes:
    """The secret in a file, without white space around it.

    Raises:
        UserError: it cannot be read, or is too short to be one.
    """
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"{field} is {path!r}, which cannot be read ({error.strerror}); make it "
            "with: openssl rand -hex 32 > FILE, and copy it to all machines"
        ) from error
    if len(secret) < LEAST_SECRET:
        raise UserError(
            f"{field} is {path!r}, which holds {len(secret)} characters; expected "
            f"{LEAST_SECRET} or more: openssl rand -hex 32 > FILE"
        )
    return secret


def parse_address(text: str, field: str, *, least_port: int = 1) -> tuple[str, int]:
    """(host, port) of host:port; an IPv6 address stands in brackets.

    Raises:
        UserError: it is none.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not least_port <= int(port) < 2**16:
        raise UserError(f"{field} has {text!r}; expected host:port")
    return host, int(port)


class Connection:
    """One end of a TCP connection that carries frames."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over `end`, connected."""
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, buffer, BUFFER_BYTES)
        self._socket = end
        self._sending = asyncio.Lock()

    async def send(
        self, message: Message | Callable[[], Message], *arrays: np.ndarray
    ) -> None:
        """Sends a frame. Cancelled midway, it ends the connection: half is no frame.

        A `message` that depends on the time is a function, called when its turn comes.

        Raises:
            ConnectionError: the other side is gone.
        """
        payload = [
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            for array in arrays
        ]
        loop = asyncio.get_running_loop()
        async with self._sending:
            said = message() if callable(message) else message
            text = json.dumps(said, allow_nan=False).encode()
            head = _LENGTHS.pack(len(text), sum(map(len, payload))) + text
            try:
                for part in (head, *payload):
                    await loop.sock_sendall(self._socket, part)
            except BaseException as error:
                self.end()
                if isinstance(error, OSError | ValueError):  # a closed socket has no fd
                    raise ConnectionResetError(f"sending failed ({error})") from error
                raise

    async def receive(
        self, most: int = MESSAGE_BYTES, most_arrays: int = 0
    ) -> tuple[Message, np.ndarray]:
        """The next frame: its message and its raw bytes, uint8.

        Raises:
            ConnectionError: the other side is gone.
            Refused: what came is no frame, or larger than it may be.
        """
        lengths = _LENGTHS.unpack(bytes(await self._read(_LENGTHS.size)))
        if lengths[0] > most or lengths[1] > most_arrays:
            raise Refused(f"a frame of {lengths[0]} and {lengths[1]} bytes")
        text = await self._read(lengths[0])
        try:
            message = wire.read_object(text.tobytes())
        except ValueError as error:
            raise Refused("what came is no message") from error
        return message, await self._read(lengths[1])

    async def _read(self, count: int) -> np.ndarray:
        data = np.empty(count, np.uint8)
        view, loop = data.data, asyncio.get_running_loop()
        while len(view):
            got = await loop.sock_recv_into(self._socket, view)
            if not got:
                raise ConnectionResetError("the other side closed the connection")
            view = view[got:]
        return data

    def end(self) -> None:
        """Ends it both ways: whoever sends or waits for a frame gets an error."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it, once nobody uses it any more."""
        self._socket.close()


def _proof(secret: bytes, who: str, nonces: tuple[str, str]) -> str:
    return hmac.digest(secret, f"{who} {' '.join(nonces)}".encode(), "sha256").hex()


def _word(message: Message, name: str) -> str:
    """A nonce or a proof: hexadecimal digits.

    Raises:
        Refused: it is something else.
    """
    word = message.get(name)
    if not isinstance(word, str) or not set(word) <= set(string.hexdigits):
        raise Refused(f"a greeting whose {name} is {_shown(word)}")
    return word


def _shown(value: object) -> str:
    """Whatever a peer sent, in one short line."""
    return " ".join(ascii(value)[:100].split())


def _proves(message: Message, expected: str) -> bool:
    return hmac.compare_digest(_word(message, "proof"), expected)


async def greet_server(
    connection: Connection, secret: bytes, wants: dict[str, str]
) -> dict[str, Message]:
    """The host's side of the handshake: what the server's scorers are.

    Raises:
        Refused: another version, another secret, other scorers; in words.
        ConnectionError: the server is gone.
    """
    hello, _ = await connection.receive(GREETING_BYTES)
    version = hello.get("ar3d_rewards")
    if version != wire.VERSION:
        raise Refused(
            f"it speaks version {_shown(version)}, this host {wire.VERSION}: both must "
            "be the same ar3d_jax"
        )
    nonces = _word(hello, "nonce"), secrets.token_hex(16)
    greeting = {"version": wire.VERSION, "nonce": nonces[1], "wants": wants}
    await connection.send(greeting | {"proof": _proof(secret, "host", nonces)})
    answer, _ = await connection.receive(GREETING_BYTES)
    if "refused" in answer:
        raise Refused(" ".join(str(answer["refused"]).split())[:300])
    if not _proves(answer, _proof(secret, "server", nonces)):
        raise Refused("it does not know the secret of this host's secret_file")
    about, words = answer.get("about"), ("model", "revision", "place")
    if not isinstance(about, dict) or not all(
        isinstance(of := about.get(name), dict)
        and all(isinstance(of.get(word), str) for word in words)
        for name in wants.values()
    ):
        raise Refused(f"it has other scorers than asked for: {_shown(about)}")
    return about


async def greet_host(
    connection: Connection, secret: bytes, about: dict[str, Message]
) -> None:
    """The server's side of the handshake.

    Raises:
        Refused: another version, another secret or other scorers, and told so; or no
            greeting at all.
        ConnectionError: the host is gone.
    """
    nonce = secrets.token_hex(16)
    await connection.send({"ar3d_rewards": wire.VERSION, "nonce": nonce})
    hello, _ = await connection.receive(GREETING_BYTES)
    version, reason = hello.get("version"), None
    nonces = nonce, _word(hello, "nonce")
    if version != wire.VERSION:
        reason = (
            f"the server speaks version {wire.VERSION}, the host {_shown(version)}: "
            "both must be the same ar3d_jax"
        )
    elif not _proves(hello, _proof(secret, "host", nonces)):
        reason = "wrong secret: both sides must have the same secret_file"
    else:
        reason = _what_lacks(hello.get("wants"), about)
    if reason:
        await connection.send({"refused": reason})
        raise Refused(reason)
    proof = _proof(secret, "server", nonces)
    await connection.send({"proof": proof, "about": about})


def _what_lacks(wants: object, about: dict[str, Message]) -> str | None:
    if not isinstance(wants, dict):
        return f"the host wants {_shown(wants)}; expected scorers by role"
    fills = {role: name for name, each in about.items() for role in each["roles"]}
    lacks = [f"{r} by {s}" for r, s in wants.items() if (r, s) not in fills.items()]
    if not lacks:
        return None
    has = ", ".join(f"{role} by {name}" for role, name in fills.items())
    wanted = " ".join(", ".join(lacks).split())[:300]
    return f"the host wants {wanted}; the server has {has}"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a host asks.

    Attributes:
        number: the host's, for the answers.
        patience: seconds until it gives up.
        subject: the object.
    """

    number: int
    patience: float
    subject: Subject


def request(number: int, subject: Subject) -> tuple[Message, list[np.ndarray]]:
    """A frame that asks for `subject` to be scored, without its `patience`."""
    message = {
        "score": number,
        "prompt": subject.prompt,
        "roles": subject.roles,
        "views": subject.views.shape,
        "points": len(subject.points),
    }
    return message, [subject.views, subject.points, subject.colours]


def read_request(message: Message, data: np.ndarray) -> Request:
    """The request in a frame.

    Raises:
        Refused: a field is missing, of another type, or does not fit the others.
    """
    try:
        number, patience = message["score"], message["patience"]
        prompt, roles = message["prompt"], message["roles"]
        shape, count = message["views"], message["points"]
        lists = isinstance(shape, list) and isinstance(roles, list)
        if not (lists and all(isinstance(word, str) for word in (prompt, *roles))):
            raise ValueError("a field is of another type")
        if not all(type(x) is int for x in (number, count, *shape)):
            raise ValueError("a number is no whole one")
        patience = float(patience)
        if not 0 <= patience < math.inf:
            raise ValueError(f"a patience of {patience}")
        if len(shape) != 4 or min(*shape, count) < 0:
            raise ValueError(f"views {shape} and {count} points")
        size = math.prod(shape)
        ends = [size, size + 12 * count, size + 15 * count]
        if ends[-1] != len(data):
            raise ValueError(f"{len(data)} bytes of views {shape} and {count} points")
        points = data[ends[0] : ends[1]].tobytes()  # aligned
        subject = Subject(
            prompt,
            data[:size].reshape(shape),
            np.frombuffer(points, "<f4").reshape(count, 3),
            data[ends[1] :].reshape(count, 3),
            tuple(roles),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        told = _shown(f"{type(error).__name__}: {error}")
        raise Refused(f"a request that cannot be read: {told}") from error
    return Request(number, patience, subject)
