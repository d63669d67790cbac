"""A server that behaves as a script says, request by request."""

import asyncio
import contextlib
import json
import threading
import time


def completion(text="fine", finish="stop", choices=1):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    return {"object": "chat.completion", "choices": [choice] * choices}


class Endpoint:
    """Answers POSTs with the script's entries in turn, the last one for ever.

    An entry is `(status, headers, body)`; the body is text or something for JSON. Or it
    is "drop" (hangs up at once), "half" (hangs up in the midst of the body), "wait" (no
    answer at all), or a number: seconds until a good answer, which says `text`.

    Attributes:
        bodies: What was asked.
        times: When, by the monotonic clock.
        most: The most requests at one time.
    """

    def __init__(self, *script, model="judge", text="fine", port=0):
        self.script, self.model = list(script) or [0.0], model
        self.text, self.port = text, port
        self.bodies, self.times = [], []
        self.now = self.most = 0
        self._open = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *_):
        await self.die()

    async def die(self):
        """Hangs up on all, and listens no more."""
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        self._open.add(asyncio.current_task())
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(asyncio.current_task())
            writer.close()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            reply(writer, 200, {}, {"data": [{"id": self.model}]})
            return True
        (length,) = [
            int(line.split(":")[1])
            for line in head.lower().splitlines()
            if line.startswith("content-length:")
        ]
        self.bodies.append(json.loads(await reader.readexactly(length)))
        self.times.append(time.monotonic())
        entry = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await act(writer, entry, self.text)
        finally:
            self.now -= 1


async def act(writer, entry, text):
    """Whether the connection stays open."""
    if entry == "drop":
        return False
    if entry == "half":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
        return False
    if entry == "wait":
        await asyncio.Event().wait()
    if isinstance(entry, float):
        await asyncio.sleep(entry)
        entry = (200, {}, completion(text))
    reply(writer, *entry)
    await writer.drain()
    return True


def reply(writer, status, headers, body):
    text = (body if isinstance(body, str) else json.dumps(body)).encode()
    fields = {"content-length": len(text), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + text)


@contextlib.contextmanager
def running(*endpoints):
    """Runs the endpoints in a thread of their own; yields what runs a coroutine there.

    For tests whose own thread waits, such as for a ticket.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    try:
        for endpoint in endpoints:
            call(endpoint.__aenter__())
        yield call
    finally:
        for endpoint in endpoints:
            call(endpoint.die())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
