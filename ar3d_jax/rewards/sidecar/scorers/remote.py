"""All roles scored by other machines, `python -m ar3d_jax.rewards.serve`.

One link per server, kept up as long as this process lives. An object goes to the link
with the fewest under way; what a server that is gone has not answered goes to another,
or to the same when it is back, but not for ever: the object may be what ends them. A
server that lets a deadline pass without a word is taken for gone. All servers must have
the same models, revisions included: a group's scores are compared. The frames are in
`../frames.py`.
"""

import asyncio
import dataclasses
import itertools
import math
import random
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from ar3d_jax.config import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import frames
from ar3d_jax.rewards.sidecar.scorers import About, Subject, Tell, Verdicts

REST_S = (0.1, 5.0)  # between tries to reach a server: first, longest; our choice
# The server stops earlier than we do, to say so in time: a tenth, at most one second.
EARLIER, EARLIER_S = 0.1, 1.0
LOST = 3  # connections under an object, which then is not sent again; our choice

FIELD = "rewards.remote.servers"

Members = dict[str, dict[str, object]]  # scorer -> roles, model, revision, place


class _Request:
    """One object at one server: which roles are open, and whether more will come."""

    def __init__(self, roles: tuple[str, ...], tell: Tell) -> None:
        self.open, self._tell = set(roles), tell
        self.sent = time.monotonic()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, scores: Mapping[str, Any]) -> None:
        """Passes one scorer's verdicts on: role -> [number or None, why]."""
        found: Verdicts = {
            role: (math.nan if value is None else float(value), reason)
            for role, (value, reason) in scores.items()
        }
        self._tell(found)
        self.open -= set(found)
        if not self.open and not self.done.done():
            self.done.set_result(None)


class _Link:
    """A server, reached or not.

    Attributes:
        name: host:port.
        members: its scorers of our roles, once it was reached.
        requests: what it has not answered, by number.
        connection: to it, while it is reached.
        heard: when it last said something, in `time.monotonic` seconds.
        problem: why it is not reached; empty where it is, or was a moment ago.
    """

    def __init__(self, name: str, secret: bytes, config: RewardsConfig) -> None:
        self.name = name
        self.members: Members = {}
        self.requests: dict[int, _Request] = {}
        self.connection: frames.Connection | None = None
        self.heard, self.problem = 0.0, "not reached yet"
        self._address = frames.parse_address(name, FIELD)
        self._secret, self._connect_s = secret, config.remote.connect_s
        self._wants = {
            role: getattr(config.scorers, role)
            for role in dict.fromkeys(config.roles("coarse") + config.roles("refined"))
        }

    async def connect(self, same: Members) -> frames.Connection:
        """A connection after its handshake; `members` is then what the server has.

        Args:
            same: what it must have; empty: anything.

        Raises:
            OSError: it is not reached, refuses us, is none, or has other models.
        """
        async with asyncio.timeout(self._connect_s):
            connection = frames.Connection(await self._reach())
            try:
                about = await frames.greet_server(connection, self._secret, self._wants)
                self.members = _ours(about, self._wants)
                if same and _models(self.members) != _models(same):
                    raise frames.Refused(
                        f"it has {_models(self.members)}, another server "
                        f"{_models(same)}: all must have the same models and revisions"
                    )
            except BaseException:
                connection.close()
                raise
        return connection

    async def _reach(self) -> socket.socket:
        """A connected socket, to the first of the name's addresses that answers."""
        loop, problem = asyncio.get_running_loop(), None
        places = await loop.getaddrinfo(*self._address, type=socket.SOCK_STREAM)
        for family, kind, *_, address in places:
            end = socket.socket(family, kind)
            try:
                end.setblocking(False)
                await loop.sock_connect(end, address)
                return end
            except OSError as error:
                end.close()
                problem = error
            except BaseException:
                end.close()
                raise
        raise problem or OSError("its name has no address")

    async def keep_up(self, same: Members, changed: asyncio.Event) -> None:
        """Reaches the server again and again, and reads what it answers."""
        rest = REST_S[0]
        while True:
            connection = None
            try:
                connection = await self.connect(same)
                _say(f"server {self.name} is reached")
                rest, self.problem = REST_S[0], ""
                self.connection = connection
                changed.set()
                await self._read(connection)
            except Exception as error:  # of sockets, names, a peer that talks nonsense
                reason = " ".join(str(error).split())
                reason = reason or f"no answer within {self._connect_s:g} s"
                if reason != self.problem:
                    _say(f"server {self.name}: {reason}")
                self.problem = reason
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


def _ours(about: Mapping[str, Any], wants: Mapping[str, str]) -> Members:
    """Of a server's scorers, those that we asked for, with our roles."""
    return {
        name: {**about[name], "roles": [r for r, s in wants.items() if s == name]}
        for name in dict.fromkeys(wants.values())
    }


def _models(members: Members) -> str:
    """Which models they are, in words."""
    each = (
        f"{name} {about['model']} {about['revision']}"
        for name, about in sorted(members.items())
    )
    return ", ".join(each)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class RemoteScorers:
    """The servers of a config, as one correspondent that fills all their roles.

    Attributes:
        about: All of them.
        members: Their scorers, which are the same everywhere.
    """

    def __init__(self, links: list[_Link], members: Members, in_flight: int) -> None:
        """Takes the links, not yet connected: that is done when the first one asks."""
        self.members = members
        places = ", ".join(link.name for link in links)
        self.about = About("servers", "", places)
        self._links, self._in_flight = links, in_flight
        self._numbers = itertools.count()
        self._changed = asyncio.Event()  # a link is up, or has room
        self._keeping: list[asyncio.Task[None]] = []

    async def ask(self, subject: Subject, deadline: float, tell: Tell) -> Verdicts:
        """Tells the object's verdicts as they come, and why there are no more."""
        if not self._keeping:
            self._keeping = [
                asyncio.create_task(link.keep_up(self.members, self._changed))
                for link in self._links
            ]
        missing = subject.roles
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                for _ in range(LOST):
                    missing = await self._ask_one(subject, missing, deadline, tell)
                    if not missing:
                        return {}
        except TimeoutError:
            if not all(link.problem for link in self._links):
                raise
            why = "; ".join(f"{link.name}: {link.problem}" for link in self._links)
            return dict.fromkeys(missing, (math.nan, f"no server is reached: {why}"))
        reason = f"{LOST} servers were lost while they scored it"
        return dict.fromkeys(missing, (math.nan, reason))

    async def _ask_one(
        self, subject: Subject, roles: tuple[str, ...], deadline: float, tell: Tell
    ) -> tuple[str, ...]:
        """Asks one server; the roles that are still open when it is lost."""
        link = await self._with_room()
        request, number = _Request(roles, tell), next(self._numbers)
        link.requests[number] = request
        connection = link.connection
        assert connection  # of a link with room
        asked = dataclasses.replace(subject, roles=roles)
        message, arrays = frames.request(number, asked)

        def timed() -> frames.Message:
            left = max(0.0, deadline - time.monotonic())
            patience = left - min(EARLIER_S, EARLIER * left)
            return message | {"patience": patience}

        try:
            await connection.send(timed, *arrays)
            await request.done
        except ConnectionError:
            if link.connection is connection:
                link.drop()
        except asyncio.CancelledError:  # the deadline, or our end
            if link.heard < request.sent and time.monotonic() >= deadline:
                link.drop()
            raise
        finally:
            del link.requests[number]
            self._changed.set()
        return tuple(role for role in roles if role in request.open)

    async def _with_room(self) -> _Link:
        """The least busy server that is reached; waits until there is one with room."""
        while True:
            up = [link for link in self._links if link.connection]
            link = min(up, key=lambda link: len(link.requests), default=None)
            if link and len(link.requests) < self._in_flight:
                return link
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Closes all connections."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)


async def _look(links: list[_Link]) -> list[BaseException | None]:
    """Reaches each server once; why not, where it is not reached."""

    async def one(link: _Link) -> None:
        (await link.connect({})).close()

    return await asyncio.gather(*map(one, links), return_exceptions=True)


def load(config: RewardsConfig) -> RemoteScorers:
    """The servers of `rewards.remote.servers`, of which one at least is up.

    Raises:
        UserError: none is; one has another secret or version than we, other scorers, or
            other models than another one.
    """
    remote = config.remote
    secret = frames.read_secret(remote.secret_file, "rewards.remote.secret_file")
    links = [_Link(name, secret, config) for name in remote.servers]
    members: Members = {}
    silent = []
    for link, problem in zip(links, asyncio.run(_look(links)), strict=True):
        if problem is None:
            members = members or link.members
            if _models(link.members) != _models(members):
                raise UserError(
                    f"{FIELD}: {link.name} has {_models(link.members)}, another server "
                    f"{_models(members)}; expected the same models and revisions"
                )
        elif not isinstance(problem, OSError | UnicodeError):
            raise problem
        elif isinstance(problem, frames.Refused):
            raise UserError(f"{FIELD}: {link.name}: {problem}") from problem
        else:
            why = str(problem) or f"no answer within {remote.connect_s:g} s"
            silent.append(f"{link.name}: {why}")
    if len(silent) == len(links):
        raise UserError(
            f"{FIELD}: no server is reached ({'; '.join(silent)}); start one with: "
            "python -m ar3d_jax.rewards.serve"
        )
    for line in silent:
        _say(f"server {line}; going on without it")
    return RemoteScorers(links, members, remote.in_flight)
