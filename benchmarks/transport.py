"""What moving objects through the ring costs, without drawing and scoring.

    python -m benchmarks.transport

A batch is 32 objects. Stand-ins take the places of both ends: a worker that copies
ready views and points into the slot, a sidecar that copies them out. Everything else is
the real thing: processes, messages, ring.

- `gb_per_s`: bytes of logits, views and points of a batch, each written once and read
  once, over the time from `submit` to `collect`.
- `added_ms`: the same with stand-ins that answer at once: all that the transport adds
  to a batch's drawing and scoring, the copies of the logits and 128 messages.
- `memcpy_gb_per_s`, the limit: numpy copying the same bytes in and out in one process,
  on one core.

Targets: at least 2 GB/s, at most 5 ms. Prints one JSON line.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ar3d_jax.config import RenderConfig, RewardsConfig
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.client import Scoring

BATCH, RESOLUTION, ROUNDS, SLOTS = 32, 32, 25, 16
COPY, IDLE = 1.0, 0.0  # the first logit tells the worker; the prompt, the sidecar


@contextlib.contextmanager
def prepare(config, ring):
    """Either stand-in: requests say which."""
    views, points = np.ones_like(ring.views[0]), np.ones_like(ring.points[0])

    def answer(request):
        if "score" in request:
            slot = request["score"]
            if request["prompt"] == "copy":
                np.copyto(views, ring.views[slot])
                np.copyto(points, ring.points[slot])
            scores = dict.fromkeys(request["roles"], (0.5, None))
            return request | {"scored": slot, "seconds": 0.0, "scores": scores}
        slot = request["draw"]
        if ring.logits[slot, 0, 0, 0] == COPY:
            np.copyto(ring.views[slot], views)
            np.copyto(ring.points[slot], points)
        return request | {"drawn": slot, "seconds": 0.0, "error": None}

    yield answer


class Transport(Scoring):
    """Both stand-ins are this file."""

    worker_module = sidecar_module = "benchmarks.transport"


def cpu_s(scoring: Scoring) -> float:
    """Processor seconds so far, of this process and of `scoring`'s."""
    stats = [Path(f"/proc/{p['pid']}/stat") for p in scoring.processes.values()]
    ticks = [
        stat.read_text("utf-8").rpartition(")")[2].split()[11:13] for stat in stats
    ]
    children = sum(int(tick) for pair in ticks for tick in pair)
    return time.process_time() + children / os.sysconf("SC_CLK_TCK")


def memcpy_s(logits: np.ndarray, views: np.ndarray, points: np.ndarray) -> float:
    """Seconds to copy a batch in and out of one slot's worth of memory."""
    slot = [np.empty_like(array) for array in (logits[0], views, points)]
    out = [np.empty_like(array) for array in slot]
    started = time.perf_counter()
    for grid in logits:
        for source, target in zip((grid, views, points), slot, strict=True):
            np.copyto(target, source)
        for source, target in zip(slot, out, strict=True):
            np.copyto(target, source)
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints."""
    load = os.getloadavg()[0]
    render, rewards = RenderConfig(), RewardsConfig()
    logits = np.full((BATCH,) + (RESOLUTION,) * 3, COPY, np.float32)
    views = np.ones((render.views, render.size, render.size, 3), np.uint8)
    points = np.ones((rewards.points, 3), np.float32)
    batch_bytes = logits.nbytes + BATCH * (views.nbytes + points.nbytes)
    copying, idling, memcpy = [], [], []
    with (
        tempfile.TemporaryDirectory() as logs,
        Transport(render, rewards, RESOLUTION, SLOTS, logs) as scoring,
    ):
        idle_cpu = 0.0
        for _ in range(ROUNDS):
            for seconds, value, prompt in (
                (copying, COPY, "copy"),
                (idling, IDLE, "idle"),
            ):
                logits[:] = value
                cpu, started = cpu_s(scoring), time.perf_counter()
                scoring.collect(scoring.submit(logits, [prompt] * BATCH, "coarse"))
                seconds.append(time.perf_counter() - started)
                idle_cpu += cpu_s(scoring) - cpu if value == IDLE else 0.0
            memcpy.append(memcpy_s(logits, views, points))
    result = {
        "benchmark": "transport",
        "gb_per_s": round(batch_bytes / statistics.median(copying) / 1e9, 2),
        "added_ms": round(statistics.median(idling) * 1e3, 2),
        "best_gb_per_s": round(batch_bytes / min(copying) / 1e9, 2),
        "best_added_ms": round(min(idling) * 1e3, 2),
        "added_cpu_ms": round(idle_cpu / ROUNDS * 1e3, 2),
        "memcpy_gb_per_s": round(batch_bytes / statistics.median(memcpy) / 1e9, 2),
        "batch_mb": round(batch_bytes / 1e6, 1),
        "objects": BATCH,
        "load_before": round(load, 1),
        "target_gb_per_s": 2,
        "target_added_ms": 5,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    wire.run_child(prepare) if len(sys.argv) == 3 else main()
