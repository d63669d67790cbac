"""All roles scored by other machines, `python -m ar3d_jax.rewards.serve`.

One link per server, kept up as long as this process lives. An object goes to the link
with the fewest under way; what a server that is gone has not answered goes to another,
or to the same when it is back. A server that lets a deadline pass without a word is
taken for gone. The frames are in `../frames.py`.
"""

import asyncio
import itertools
import random
import socket
import sys
import time

from ar3d_jax.config import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import frames
from ar3d_jax.rewards.sidecar.scorers import About, Subject, Verdicts

REST_S = (0.1, 5.0)  # between tries to reach a server: first, longest; our choice
# The server stops earlier than we do, to say so in time: a tenth, at most one second.
EARLIER, EARLIER_S = 0.1, 1.0

FIELD = "rewards.remote.servers"


class _Request:
    """One object at one server: its verdicts so far, and whether more will come."""

    def __init__(self, roles: tuple[str, ...]) -> None:
        self.verdicts: Verdicts = {}
        self.roles = roles
        self.sent = time.monotonic()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, scores: dict[str, list]) -> None:
        """Keeps one scorer's verdicts."""
        for role, (value, reason) in scores.items():
            number = float("nan") if value is None else float(value)
            self.verdicts[role] = number, reason
        if set(self.roles) <= set(self.verdicts) and not self.done.done():
            self.done.set_result(None)


class _Link:
    """A server, reached or not.

    Attributes:
        name: host:port.
        requests: what it has not answered, by number.
        connection: to it, while it is reached.
        heard: when it last said something, in `time.monotonic` seconds.
    """

    def __init__(self, name: str, secret: bytes, config: RewardsConfig) -> None:
        self.name = name
        self.requests: dict[int, _Request] = {}
        self.connection: frames.Connection | None = None
        self.heard = 0.0
        self._address = frames.parse_address(name, FIELD)
        self._secret, self._config = secret, config
        scorers = config.scorers
        self._wants = {
            role: getattr(scorers, role)
            for role in dict.fromkeys(config.roles("coarse") + config.roles("refined"))
        }

    async def connect(self) -> tuple[frames.Connection, frames.Message]:
        """A connection after its handshake, and what the server says of its scorers.

        Raises:
            OSError: it is not reached, refuses us, or is none.
        """
        async with asyncio.timeout(self._config.remote.connect_s):
            loop = asyncio.get_running_loop()
            (family, kind, *_, address), *_ = await loop.getaddrinfo(
                *self._address, type=socket.SOCK_STREAM
            )
            end = socket.socket(family, kind)
            try:
                end.setblocking(False)
                await loop.sock_connect(end, address)
                connection = frames.Connection(end)
                about = await frames.greet_server(connection, self._secret, self._wants)
            except BaseException:
                end.close()
                raise
        return connection, about

    async def keep_up(self, changed: asyncio.Event) -> None:
        """Reaches the server again and again, and reads what it answers."""
        rest, said = REST_S[0], ""
        while True:
            connection = None
            try:
                connection, _ = await self.connect()
                _say(f"server {self.name} is reached")
                rest, said = REST_S[0], ""
                self.connection = connection
                changed.set()
                await self._read(connection)
            except (OSError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                if reason != said:
                    _say(f"server {self.name}: {reason}")
                said = reason
            finally:
                self.drop()
                if connection:
                    connection.close()
            await asyncio.sleep(rest * random.uniform(0.5, 1.0))
            rest = min(2 * rest, REST_S[1])

    async def _read(self, connection: frames.Connection) -> None:
        while True:
            message, _ = await connection.receive()
            self.heard = time.monotonic()
            request = self.requests.get(message.get("scored", -1))
            if request:
                request.take(message["scores"])

    def drop(self) -> None:
        """Gives the connection up: `keep_up` makes another; who waits is told."""
        if self.connection:
            self.connection.end()
            self.connection = None
        for request in self.requests.values():
            if not request.done.done():
                request.done.set_exception(ConnectionResetError(self.name))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class RemoteScorers:
    """The servers of a config, as one correspondent that fills all their roles."""

    def __init__(self, links: list[_Link], about: About, in_flight: int) -> None:
        """Takes the links, not yet connected: that is done when the first one asks."""
        self.about = about
        self._links, self._in_flight = links, in_flight
        self._numbers = itertools.count()
        self._changed = asyncio.Event()  # a link is up, or has room
        self._keeping: list[asyncio.Task[None]] = []

    async def ask(self, subject: Subject, deadline: float) -> Verdicts:
        """The object's verdicts, from whichever server; tried until the deadline."""
        if not self._keeping:
            self._keeping = [
                asyncio.create_task(link.keep_up(self._changed)) for link in self._links
            ]
        found: Verdicts = {}
        while missing := tuple(role for role in subject.roles if role not in found):
            link = await self._with_room()
            request, number = _Request(missing), next(self._numbers)
            link.requests[number] = request
            try:
                await self._send(link, number, subject, missing, deadline)
                await request.done
            except ConnectionError:
                pass  # it goes to another server, or to this one when it is back
            except asyncio.CancelledError:  # the deadline
                if link.heard < request.sent:
                    link.drop()
                raise
            finally:
                found |= request.verdicts
                del link.requests[number]
                self._changed.set()
        return found

    async def _with_room(self) -> _Link:
        """The least busy server that is reached; waits until there is one with room."""
        while True:
            up = [link for link in self._links if link.connection]
            link = min(up, key=lambda link: len(link.requests), default=None)
            if link and len(link.requests) < self._in_flight:
                return link
            self._changed.clear()
            await self._changed.wait()

    @staticmethod
    async def _send(
        link: _Link,
        number: int,
        subject: Subject,
        roles: tuple[str, ...],
        deadline: float,
    ) -> None:
        if link.connection is None:
            raise ConnectionResetError(link.name)
        left = max(0.0, deadline - time.monotonic())
        patience = left - min(EARLIER_S, EARLIER * left)
        message, arrays = frames.request(number, subject, patience)
        connection = link.connection
        try:
            await connection.send(message | {"roles": roles}, *arrays)
        except ConnectionError:
            if link.connection is connection:
                link.drop()
            raise

    async def close(self) -> None:
        """Closes all connections."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)


async def _look(links: list[_Link]) -> list[frames.Message | BaseException]:
    """What each server says of its scorers, or why it does not."""

    async def one(link: _Link) -> frames.Message:
        connection, about = await link.connect()
        connection.close()
        return about

    return await asyncio.gather(*map(one, links), return_exceptions=True)


def load(config: RewardsConfig) -> RemoteScorers:
    """The servers of `rewards.remote.servers`, of which one at least is up.

    Raises:
        UserError: none is; one has another secret, version or other scorers than we.
    """
    remote = config.remote
    secret = frames.read_secret(remote.secret_file, "rewards.remote.secret_file")
    links = [_Link(name, secret, config) for name in remote.servers]
    answers = asyncio.run(_look(links))
    problems = {}
    for link, answer in zip(links, answers, strict=True):
        if isinstance(answer, BaseException):
            if not isinstance(answer, OSError | TimeoutError):
                raise answer
            silent = f"no answer within {remote.connect_s:.0f} s"
            problems[link.name] = str(answer) or silent
            if isinstance(answer, frames.Refused):
                raise UserError(f"{FIELD}: {link.name}: {answer}") from answer
            _say(f"server {link.name}: {problems[link.name]}; going on without it")
    if len(problems) == len(links):
        raise UserError(
            f"{FIELD}: no server is reached ("
            + "; ".join(f"{name}: {why}" for name, why in problems.items())
            + "); start one with: python -m ar3d_jax.rewards.serve"
        )
    first = next(answer for answer in answers if isinstance(answer, dict))
    models = dict.fromkeys(str(each["model"]) for each in first.values())
    revisions = dict.fromkeys(str(each["revision"]) for each in first.values())
    about = About(", ".join(models), ", ".join(revisions), ", ".join(remote.servers))
    return RemoteScorers(links, about, remote.in_flight)
