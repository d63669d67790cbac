"""A server of scorers for other hosts' sidecars: frames in, verdicts out.

Any number of hosts share the scorers of one `panel.Panel`; objects are scored in the
order in which they come. What is on the wire is `frames.py`, the other side
`scorers/remote.py`, the command `rewards/serve.py`.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import frames
from ar3d_jax.rewards.sidecar.panel import JsonVerdicts, Panel

GREETING_S = 10.0  # for a handshake; strangers hold a socket no longer
FULL_S = 1.0  # until another host is let in, where there was no room for one
UNDER_WAY = 256  # objects of one host; then it is not read further until some are done


@contextlib.contextmanager
def _on(address: tuple[str, int]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot listen on {address[0]}:{address[1]} ({error.strerror}); expected "
            "an address of this machine and a free port"
        ) from error


def bind(address: tuple[str, int]) -> socket.socket:
    """A socket with the address, where nobody is reached yet; port 0 is any free one.

    Raises:
        UserError: the address is not ours, or taken.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with _on(address), contextlib.ExitStack() as stack:
        bound = stack.enter_context(socket.socket(family))
        # After a server's end, its port is free at once.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        stack.pop_all()
    return bound


def listen(bound: socket.socket) -> None:
    """Lets hosts connect; `serve` answers them.

    Raises:
        UserError: somebody else has taken the port since.
    """
    with _on(bound.getsockname()[:2]):
        bound.listen(64)


async def serve(listening: socket.socket, panel: Panel, secret: bytes) -> None:
    """Serves hosts until it is cancelled."""
    listening.setblocking(False)
    hosts: set[asyncio.Task[None]] = set()
    try:
        while True:
            await _readable(listening)
            try:
                end, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # it did not wait
            except OSError as error:  # too many files are open, until a host goes
                _say(f"a host cannot be let in: {error.strerror}")
                await asyncio.sleep(FULL_S)
                continue
            connection = frames.Connection(end)
            name = f"{address[0]}:{address[1]}"
            task = asyncio.create_task(_serve_host(connection, name, panel, secret))
            hosts.add(task)
            task.add_done_callback(hosts.discard)
            # Not in the task: cancelled before its first step, it does nothing at all.
            task.add_done_callback(lambda _, connection=connection: connection.close())
    finally:
        for task in hosts:
            task.cancel()
        await asyncio.gather(*hosts, return_exceptions=True)


async def _readable(end: socket.socket) -> None:
    """Until there is something; `loop.sock_accept`, cancelled, may lose a socket."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(end, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(end)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _serve_host(
    connection: frames.Connection, name: str, panel: Panel, secret: bytes
) -> None:
    """One host, from its handshake to its end."""
    try:
        async with asyncio.timeout(GREETING_S):
            await frames.greet_host(connection, secret, panel.about)
        _say(f"host {name} is here")
        await _answer(connection, panel)
    except* TimeoutError:
        _say(f"host {name}: no handshake within {GREETING_S:.0f} s")
    except* OSError as errors:
        _say(f"host {name}: {' '.join(str(errors.exceptions[0]).split())}")


async def _answer(connection: frames.Connection, panel: Panel) -> None:
    """Scores what comes, side by side, until the host is gone."""
    room = asyncio.Semaphore(UNDER_WAY)
    outbox: asyncio.Queue[frames.Message] = asyncio.Queue()

    async def score(request: frames.Request, started: float) -> None:
        def tell(scores: JsonVerdicts) -> None:
            outbox.put_nowait({"scored": request.number, "scores": scores})

        try:
            await panel.judge(request.subject, started + request.patience, tell)
        finally:
            room.release()

    async def send() -> None:
        while True:
            await connection.send(await outbox.get())

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        while True:
            await room.acquire()
            message, data = await connection.receive(most_arrays=frames.ARRAYS_BYTES)
            started, request = time.monotonic(), frames.read_request(message, data)
            group.create_task(score(request, started))
