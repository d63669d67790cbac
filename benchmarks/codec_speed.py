"""Seconds and memory of the codec at its published size, beside torch.

    python -m benchmarks.codec_speed [--batch=1]

One 64^3 shape to 1,024 tokens and back, 133 M random parameters in a file of the
published names, float32 on the CPU:

- ours: `Codec.encode` and `Codec.decode`, jitted;
- peer: `tests/codec/torch_vqvae.py`, the same network in torch's own convolutions, in
  the faster of its two memory formats here (channels last).

Each runs in processes of its own, in turns, so that other load meets both; a ratio is
the median over rounds of ours / torch's. `tokens_equal` and `logit_error` compare what
they returned for the same shape: both are one model.

Target: at most 1.5 of torch's seconds, either way. Prints one JSON line.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS, REPEATS = 3, 2  # after one warm-up in each process
RESOLUTION, DENSITY = 64, 0.05  # a surface fills about this share of a grid
TIMES = ("encode_s", "decode_s")


def shapes(batch: int) -> np.ndarray:
    """Voxels [batch, R, R, R]."""
    size = (batch, *(RESOLUTION,) * 3)
    return np.random.default_rng(0).random(size) < DENSITY


def measured(
    encode: Callable[[np.ndarray], Any],
    decode: Callable[[Any], Any],
    voxels: np.ndarray,
    results: Path,
) -> dict[str, float]:
    """Seconds per shape; leaves tokens and logits in `results`.

    Both functions return only when their result is there.
    """
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        tokens = encode(voxels)
        encoded = time.perf_counter()
        logits = decode(tokens)
        seconds.append((encoded - began, time.perf_counter() - encoded))
    np.savez(results, tokens=np.asarray(tokens), logits=np.asarray(logits))
    medians = map(statistics.median, zip(*seconds[1:], strict=True))
    times = {name: x / len(voxels) for name, x in zip(TIMES, medians, strict=True)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return times | {"peak_gib": peak}


def run_ours(folder: Path, batch: int) -> dict[str, float]:
    """This package's."""
    import jax

    from ar3d_jax.codec import torch_weights
    from ar3d_jax.codec.vqvae import Codec

    codec = torch_weights.load(folder / "codec.safetensors")
    encode, decode = jax.jit(Codec.encode), jax.jit(Codec.decode)
    return measured(
        lambda voxels: jax.block_until_ready(encode(codec, voxels)),
        lambda tokens: jax.block_until_ready(decode(codec, tokens)),
        shapes(batch),
        folder / "ours.npz",
    )


def run_torch(folder: Path, batch: int) -> dict[str, float]:
    """The peer's."""
    import safetensors.torch
    import torch

    from tests.codec.torch_vqvae import VQVAE3D

    model = VQVAE3D().eval().to(memory_format=torch.channels_last_3d)
    model.load_state_dict(safetensors.torch.load_file(folder / "codec.safetensors"))
    with torch.inference_mode():
        return measured(
            lambda voxels: model.encode(torch.from_numpy(voxels)),
            model.decode,
            shapes(batch),
            folder / "torch.npz",
        )


def write_weights(folder: Path) -> None:
    """Random weights as torch starts them, but for a codebook as wide as latents."""
    import safetensors.torch
    import torch

    from tests.codec.torch_vqvae import VQVAE3D

    torch.manual_seed(0)
    model = VQVAE3D()
    with torch.inference_mode():
        latents = model.latents(torch.from_numpy(shapes(1)))
        model.vq.embeddings.weight.normal_().mul_(latents.std()).add_(latents.mean())
    safetensors.torch.save_file(model.state_dict(), folder / "codec.safetensors")


def in_a_process(side: str, folder: Path, batch: int) -> dict[str, float]:
    """One side's numbers, from a process of its own."""
    module = [sys.executable, "-m", "benchmarks.codec_speed"]
    command = [*module, f"--side={side}", f"--folder={folder}", f"--batch={batch}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def agreement(folder: Path) -> dict[str, float]:
    """How far both sides' results are apart."""
    with np.load(folder / "ours.npz") as ours, np.load(folder / "torch.npz") as theirs:
        equal = ours["tokens"] == theirs["tokens"]
        error = np.abs(ours["logits"] - theirs["logits"])
    return {
        "tokens_equal": round(float(equal.mean()), 4),
        "logit_error": float(f"{error.max():.2g}"),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sides = {"ours": run_ours, "torch": run_torch}
    parser.add_argument("--batch", type=int, default=1, help="shapes at once")
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side = sides[arguments.side]
        print(json.dumps(side(arguments.folder, arguments.batch)))
        return

    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder)
        for _ in range(ROUNDS):
            for side in sides:
                results[side].append(in_a_process(side, folder, arguments.batch))
        compared = agreement(folder)

    line: dict = {
        "benchmark": "codec_speed",
        "resolution": RESOLUTION,
        "batch": arguments.batch,
        "device": f"cpu ({platform.machine()})",
    }
    for side, rounds in results.items():
        for key in rounds[0]:
            median = statistics.median(numbers[key] for numbers in rounds)
            line[f"{side}_{key}"] = float(f"{median:.3g}")
    for key in TIMES:
        pairs = zip(results["ours"], results["torch"], strict=True)
        ratios = [ours[key] / theirs[key] for ours, theirs in pairs]
        line[f"ratio_{key}"] = round(statistics.median(ratios), 3)
    extra = {"cpus": os.cpu_count(), "load_before": round(load, 1)}
    print(json.dumps(line | compared | extra))


if __name__ == "__main__":
    main()
