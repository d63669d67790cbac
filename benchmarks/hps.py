"""Pictures per second of HPS v2.1, all views of a call together or one by one.

    python -m benchmarks.hps --full --device=cuda:0

The weights are random, in the published layout (`--full`: of the published sizes, 2 GB
in a temporary file) and go the way of real ones: time and memory are theirs. Views are
noise. In the same run:

- `batched_per_s`: the scorer's calls of `--objects` objects;
- `single_per_s`, the peer: the same network and preparation in a plain loop, picture
  after picture, as the authors' scorer does it;
- `load_s` of the file, `peak_mib` of the process and, of a GPU, `gpu_mib`.

Prints one JSON line.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ar3d_jax.config import RewardsConfig
from ar3d_jax.config_rewards import HpsConfig
from ar3d_jax.rewards.sidecar.scorers import Subject, hps_v2_1
from tests.rewards.sidecar import hps_checkpoint

SMALL = hps_checkpoint.Sizes(192, 4, 128, 2, 128)  # 224 px, as the published one


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run, after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the published sizes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--objects", type=int, default=16, help="per call")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--size", type=int, default=512, help="pixels of a view")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / hps_v2_1.FILE
        sizes = hps_checkpoint.Sizes() if options.full else SMALL
        hps_checkpoint.write(path, sizes)
        own = HpsConfig(str(path), options.device, options.dtype, options.objects)
        started = time.perf_counter()
        scorer = hps_v2_1.load(RewardsConfig(hps_v2_1=own))
        load_s = time.perf_counter() - started
    random = np.random.default_rng(0)
    shape = (options.objects, options.views, options.size, options.size, 3)
    pictures = random.integers(0, 256, shape, np.uint8)
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    subjects = [
        Subject(f"chair {index}", views, *nothing, ("preference",))
        for index, views in enumerate(pictures)
    ]

    def one_by_one() -> list[float]:
        return [
            float((scorer.look([view[None]])[0] @ scorer.read(subject.prompt)).item())
            for subject in subjects
            for view in subject.views
        ]

    batched = best_s(lambda: scorer.score(subjects), options.repeats)
    single = best_s(one_by_one, options.repeats)
    count = options.objects * options.views
    gpu = scorer.about.place.startswith("cuda")
    result = {
        "benchmark": "hps",
        "batched_per_s": round(count / batched, 2),
        "single_per_s": round(count / single, 2),
        "ratio": round(single / batched, 2),
        "load_s": round(load_s, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "gpu_mib": torch.cuda.max_memory_allocated() // 2**20 if gpu else None,
        **vars(options),
        "place": scorer.about.place,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
