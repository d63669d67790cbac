"""The sidecar's loop: views and points of a slot in, scores out.

It knows slots and messages, which are in `rewards/wire.py`, and asks `panel.py`, which
knows scorers. `rewards/courier.py` starts and replaces this process.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from ar3d_jax.config import RewardsConfig, from_config_dict
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.sidecar.panel import JsonVerdicts, Panel
from ar3d_jax.rewards.sidecar.scorers import Subject


@contextlib.contextmanager
def _prepare(
    values: dict[str, Any], ring: wire.Ring
) -> Iterator[tuple[Panel, wire.Ring]]:
    config = from_config_dict(values, RewardsConfig)
    # torch reads this once, when a scorer imports it.
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    yield Panel(config), ring


async def _serve(channel: wire.Channel, panel: Panel, ring: wire.Ring) -> None:
    """Answers requests, any number side by side, until the trainer closes its end."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()
    under_way: set[asyncio.Task[None]] = set()

    def listen() -> None:
        messages = channel.receive()
        if messages is None:
            loop.remove_reader(channel)
            closed.set_result(None)
            return
        for request in messages:
            task = asyncio.create_task(_score(request, channel, panel, ring))
            under_way.add(task)
            task.add_done_callback(finish)

    def finish(task: asyncio.Task[None]) -> None:
        under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not closed.done():
            closed.set_exception(error)  # a bug, or a trainer that is gone

    channel.send({"about": panel.about})
    loop.add_reader(channel, listen)
    try:
        await closed
    finally:
        for task in under_way:
            task.cancel()
        await panel.close()


async def _score(
    request: dict[str, Any], channel: wire.Channel, panel: Panel, ring: wire.Ring
) -> None:
    """Has one object scored, and sends what comes, scorer by scorer."""
    slot, sequence = request["score"], request["sequence"]
    started = time.monotonic()

    def tell(scores: JsonVerdicts) -> None:
        seconds = time.monotonic() - started
        answer = {"scored": slot, "sequence": sequence, "seconds": seconds}
        if counters := panel.counters:
            channel.put({"counters": counters})
        channel.send(answer | {"scores": scores})

    def begin(roles: tuple[str, ...]) -> None:
        channel.send({"begun": slot, "sequence": sequence, "roles": roles})

    if ring.drawn[slot] != sequence:
        reason = f"slot {slot} holds another object than announced"
        tell(dict.fromkeys(request["roles"], (None, reason)))
        return
    count = ring.point_count[slot]
    subject = Subject(
        request["prompt"],
        ring.views[slot],
        ring.points[slot, :count],
        ring.colours[slot, :count],
        tuple(request["roles"]),
    )
    await panel.judge(subject, started + request["patience"], tell, begin)


def _work(channel: wire.Channel, tools: tuple[Panel, wire.Ring]) -> None:
    asyncio.run(_serve(channel, *tools))


def main() -> None:
    """Serves the trainer that started this process, until that closes or dies."""
    wire.run_child(_prepare, _work)
