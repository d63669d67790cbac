"""What asking judges and other machines costs, and whether anything is left behind.

    python -m benchmarks.rewards --part=judges   # or remote, soak

`judges`: a batch of 16 objects through `Scoring`, by judges that take 1 s for an answer
and 32 requests at a time, in a process of their own: `unified_2` with 6 requests an
object, `qwen_vl` with one. `seconds` stands against `ideal_s`, the time of the answers
alone: 96 requests are three rounds. Target: at most 1.2 times.

`remote`: objects with six views of 448 pixels over loopback, from one process to
another, by `frames.Connection`: `gb_per_s`. The limit is a plain socket that carries as
many bytes in the same run, into memory that is used again: `socket_gb_per_s`. Sides
take turns. Target: 1 GB/s.

`soak`: `--batches` of 8 objects, two under way, by the embedded scorer and a judge of
whose answers a part fails in every way; a render worker is killed now and then. What
trainer and sidecar hold at batch 100 and at the end: MiB, files, mappings of the ring.

The trainer's and the sidecar's code is the real one; drawing is a stand-in, which
copies the known object. Prints one JSON line.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.config import RenderConfig, RewardsConfig
from ar3d_jax.config_rewards import (
    CoarseWeights,
    JudgeConfig,
    RefinedWeights,
    ScorersConfig,
    WeightsConfig,
)
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.rewards.sidecar import frames, known_object
from ar3d_jax.rewards.sidecar.scorers import Subject
from tests.rewards.stand_in_endpoint import Endpoint, completion, running

SIDE, SLOTS = 8, 32
OBJECTS, ANSWER_S, IN_FLIGHT, ROUNDS = 16, 1.0, 32, 5
VIEWS, VIEW_SIZE, FRAMES = 6, 448, 200
SOAK_OBJECTS, FAULTS, EARLY, KILL_EVERY = 8, 0.03, 100, 50
WORDS = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 2"
YES = '{"match": 1}'


@contextlib.contextmanager
def prepare(config: dict[str, Any], ring: wire.Ring) -> Iterator[wire.Answer]:
    """A render worker that knows one object, in a divisor of its 224 pixels."""
    known = known_object.read()
    every = known.views.shape[1] // ring.layout.size

    def draw(request: dict[str, Any]) -> dict[str, Any]:
        slot = request["draw"]
        ring.views[slot] = known.views[:, ::every, ::every]
        ring.points[slot] = known.points[: ring.layout.points]
        ring.point_count[slot] = ring.layout.points
        ring.drawn[slot] = request["sequence"]
        return request | {"drawn": slot, "seconds": 0.0, "error": None}

    yield draw


class Judged(Scoring):
    """The worker is this file."""

    worker_module = "benchmarks.rewards"


def config(urls: dict[str, str], preference: float, request_s: float) -> RewardsConfig:
    """Category by `qwen_vl`, and alignment by `unified_2` where it has a URL."""

    def judge(name: str) -> JudgeConfig:
        endpoints = (urls[name],) if name in urls else ()
        return JudgeConfig(name, endpoints, in_flight=IN_FLIGHT, request_s=request_s)

    alignment = float("unified_2" in urls)
    coarse = CoarseWeights(preference=preference, alignment=alignment)
    return RewardsConfig(
        backend="openai",
        scorers=ScorersConfig(category="qwen_vl", alignment="unified_2"),
        weights=WeightsConfig(coarse, RefinedWeights(*[0.0] * 4)),
        qwen_vl=judge("qwen_vl"),
        unified_2=judge("unified_2"),
    )


@contextlib.contextmanager
def judges(texts: dict[str, str], faults: float | None) -> Iterator[dict[str, str]]:
    """Endpoints by model, in another process: model -> URL.

    Each answers with its text, after `ANSWER_S`; or at once, but for a part of the
    requests, `faults`, where that is a number.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_judge, args=(theirs, texts, faults), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()


class Faulty(Endpoint):
    """Fails in a part of its answers, drawn by lot."""

    def __init__(self, faults: float, **options: Any) -> None:
        super().__init__(**options)
        self._faults, self._random = faults, random.Random(0)

    async def _one(self, reader: Any, writer: Any) -> bool:
        self.script = [0.0]
        if self._random.random() < self._faults:
            self.script = [self._random.choice(_faults())]
        self.bodies.clear()
        self.times.clear()
        return await super()._one(reader, writer)


def _faults() -> list[Any]:
    error = {"error": {"message": "out of memory"}}
    return [
        *("drop", "half", 3.0, (200, {}, "{garbage"), (200, {}, error)),
        *((500, {}, error), (400, {}, error), (429, {"retry-after": "0.1"}, "")),
        (200, {}, completion(YES, choices=2)),
        (200, {}, completion("It is a chair.")),
    ]


def _judge(pipe: Any, texts: dict[str, str], faults: float | None) -> None:
    endpoints = [
        Endpoint(ANSWER_S, model=model, text=text)
        if faults is None
        else Faulty(faults, model=model, text=text)
        for model, text in texts.items()
    ]
    with running(*endpoints):
        pipe.send({endpoint.model: endpoint.url for endpoint in endpoints})
        with contextlib.suppress(EOFError):
            pipe.recv()  # until the other side is gone


def submit(scoring: Scoring, count: int) -> Any:
    """A ticket for `count` objects."""
    logits = np.zeros((count,) + (SIDE,) * 3, np.float32)
    return scoring.submit(logits, [known_object.PROMPT] * count, "coarse")


def measure_judges() -> dict[str, Any]:
    """Seconds of a batch against those of the judges' answers alone."""
    seconds = []
    requests = {"unified_2": OBJECTS * VIEWS, "qwen_vl": OBJECTS}
    with (
        judges({"qwen_vl": YES, "unified_2": WORDS}, None) as urls,
        tempfile.TemporaryDirectory() as logs,
        Judged(RenderConfig(), config(urls, 0.0, 30.0), SIDE, SLOTS, logs) as scoring,
    ):
        for _ in range(ROUNDS):
            started = time.perf_counter()
            scores, reasons = scoring.collect(submit(scoring, OBJECTS))
            seconds.append(time.perf_counter() - started)
            for role, number in (("alignment", 4.0), ("category", 1.0)):
                assert (scores[role] == number).all(), reasons[role]
    ideal = ANSWER_S * max(-(-count // IN_FLIGHT) for count in requests.values())
    median = statistics.median(seconds)
    return {
        "seconds": round(median, 2),
        "best_s": round(min(seconds), 2),
        "ideal_s": ideal,
        "ratio": round(median / ideal, 3),
        "best_ratio": round(min(seconds) / ideal, 3),
        "requests": sum(requests.values()),
        "in_flight": IN_FLIGHT,
        "target_ratio": 1.2,
    }


def _subject() -> Subject:
    noise = np.random.default_rng(0)
    shape = (VIEWS, VIEW_SIZE, VIEW_SIZE, 3)
    views = noise.integers(0, 256, shape, np.uint8)
    points = noise.random((known_object.POINTS, 3), np.float32)
    colours = noise.integers(0, 256, points.shape, np.uint8)
    return Subject(known_object.PROMPT, views, points, colours, ("category",))


def _receive(end: socket.socket) -> None:
    """The other process: per round, frames, then as many bytes; a byte after each."""
    _, arrays = frames.request(0, _subject())
    size = sum(array.nbytes for array in arrays)
    memory = memoryview(bytearray(size))

    async def take_frames(connection: frames.Connection) -> None:
        for _ in range(FRAMES):
            got = await connection.receive(most_arrays=frames.ARRAYS_BYTES)
            frames.subject_of(*got)

    connection = frames.Connection(end)
    for _ in range(ROUNDS):
        asyncio.run(take_frames(connection))
        end.setblocking(True)
        end.sendall(b".")
        for _ in range(FRAMES):
            got = 0
            while got < size:
                got += end.recv_into(memory[got:])
        end.sendall(b".")
        end.setblocking(False)


def measure_remote() -> dict[str, Any]:
    """Bytes per second by frames and by a plain socket, both over loopback."""
    message, arrays = frames.request(0, _subject())
    size = sum(array.nbytes for array in arrays)
    plain = b"".join(array.tobytes() for array in arrays)
    by_frames, by_socket = [], []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = socket.create_connection(listening.getsockname())
        end, _ = listening.accept()

    async def send(connection: frames.Connection) -> None:
        for _ in range(FRAMES):
            await connection.send(message, *arrays)

    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_receive, args=(there,))
    process.start()
    there.close()
    connection = frames.Connection(end)
    for _ in range(ROUNDS):
        started = time.perf_counter()
        asyncio.run(send(connection))
        end.setblocking(True)
        end.recv(1)
        by_frames.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(FRAMES):
            end.sendall(plain)
        end.recv(1)
        by_socket.append(time.perf_counter() - started)
        end.setblocking(False)
    process.join()
    connection.close()
    total = size * FRAMES / 1e9
    return {
        "gb_per_s": round(total / statistics.median(by_frames), 2),
        "best_gb_per_s": round(total / min(by_frames), 2),
        "socket_gb_per_s": round(total / statistics.median(by_socket), 2),
        "best_socket_gb_per_s": round(total / min(by_socket), 2),
        "frame_mb": round(size / 1e6, 2),
        "frames": FRAMES,
        "target_gb_per_s": 1,
    }


def held(pid: int) -> dict[str, float]:
    """What a process holds: MiB of its own, open files, mappings of a ring."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text("utf-8")
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return {
        "mib": round(int(kilobytes) / 1024, 1),
        "files": len(list((folder / "fd").iterdir())),
        "rings": (folder / "maps").read_text("utf-8").count("memfd:ar3d-ring"),
    }


def soak(batches: int, *, early: int = EARLY, faults: float = FAULTS) -> dict[str, Any]:
    """What is held at batch `early` and after the last one, and what was missing."""
    seen, missing, waiting = [], 0, []
    render = RenderConfig(size=56, workers=1)
    started = time.perf_counter()

    def take(ticket: Any) -> int:
        scores, reasons = scoring.collect(ticket)
        assert np.isfinite(scores["preference"]).all(), reasons["preference"]
        lacking = np.isnan(scores["category"])
        assert all(
            lack == (reason is not None)
            for lack, reason in zip(lacking, reasons["category"], strict=True)
        )
        return int(lacking.sum())

    with (
        judges({"qwen_vl": YES}, faults) as urls,
        tempfile.TemporaryDirectory() as logs,
        Judged(render, config(urls, 1.0, 1.0), SIDE, SLOTS, logs) as scoring,
    ):
        for batch in range(1, batches + 1):
            waiting.append(submit(scoring, SOAK_OBJECTS))
            if batch % KILL_EVERY == KILL_EVERY // 2:
                os.kill(scoring.processes["render worker 0"]["pid"], signal.SIGKILL)
            if len(waiting) == 2 or batch in (early, batches):
                missing += take(waiting.pop(0))
            if batch in (early, batches):
                missing += sum(take(waiting.pop(0)) for _ in list(waiting))
                gc.collect()
                pids = {"trainer": os.getpid()} | {
                    name: process["pid"] for name, process in scoring.processes.items()
                }
                seen.append({name: held(pid) for name, pid in pids.items()})
        restarts = scoring.restarts
    return {
        "batches": batches,
        "objects": SOAK_OBJECTS * batches,
        "missing": missing,
        "restarts": restarts,
        f"at_{early}": seen[0],
        f"at_{batches}": seen[-1],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("judges", "remote", "soak")
    parser.add_argument("--part", choices=parts, required=True)
    parser.add_argument("--batches", type=int, default=1000, help="of soak")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if options.part == "soak":
        found = soak(options.batches)
    else:
        found = {"judges": measure_judges, "remote": measure_remote}[options.part]()
    name = f"rewards {options.part}"
    print(json.dumps({"benchmark": name, **found, "load_before": round(load, 1)}))


if __name__ == "__main__":
    children = len(sys.argv) == 3 and sys.argv[1].isdecimal()
    wire.run_child(prepare) if children else main()
