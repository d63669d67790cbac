"""Seconds and memory of the default training: `configs/higrpo.py`, 12 prompts x 8.

    python -m benchmarks.step [--steps=60] [--workdir=DIR] [--config.FIELD=VALUE ...]

Runs `python -m ar3d_jax.train --config=configs/higrpo.py` as a user would, with the
fields that are given (plain Hi-GRPO: `--config.objective.dynamic_sampling=off`), in a
fresh folder, and reads its metrics. `step_s` is the median over steps without the
first, which compiles; `run_s` the whole command, samples and checkpoints included;
`peak_gib` the largest sum over trainer, sidecar and render workers, each page counted
once (proportional set size, four times a second); `groups_resampled` per step, of 12.

The limit in the same run: `products_s`, what the policy's and the codec's arithmetic of
one step would take at the speed of one large matrix product on these cores.

Targets: `step_s` at most 12, `run_s` of 60 steps at most 900, `peak_gib` at most 6.
Prints one JSON line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("rollout", "codec", "render", "score_wait", "update", "total")
POLL_S = 0.25


def tree(root: int) -> list[int]:
    """`root` and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text("utf-8")
        except OSError:  # it ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory_gib(root: int) -> float:
    """Proportional set sizes of a process tree, together."""
    total = 0
    for process in tree(root):
        try:
            lines = (
                Path(f"/proc/{process}/smaps_rollup").read_text("utf-8").splitlines()
            )
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def run(steps: int, workdir: Path, fields: list[str]) -> dict[str, float]:
    """Trains; seconds of the command and the largest memory."""
    command = [sys.executable, "-m", "ar3d_jax.train", "--config=configs/higrpo.py"]
    command += [f"--workdir={workdir}", f"--config.steps={steps}", *fields]
    began, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, memory_gib(process.pid))
            time.sleep(POLL_S)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
    return {"run_s": time.perf_counter() - began, "peak_gib": peak}


def products_s(workdir: Path) -> dict[str, float]:
    """Seconds of one step's arithmetic at the speed of a large matrix product."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ar3d_jax.codec.vqvae import Codec
    from ar3d_jax.generate import checkpoint_config

    config = checkpoint_config(workdir)
    policy, rollout = config.policy, config.rollout
    rows = config.prompts_per_step * config.group_size
    shape = config.codec.tokens

    size = 2048
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    began = time.perf_counter()
    for _ in range(8):
        last = product(matrix, matrix)
    jax.block_until_ready(last)
    speed = 8 * 2 * size**3 / (time.perf_counter() - began)

    inner = (policy.heads + 2 * policy.kv_heads) * policy.head_size
    layer = policy.width * (
        inner + policy.heads * policy.head_size + 3 * policy.mlp_width
    )
    body, head = 2 * policy.layers * layer, 2 * policy.width * config.codec.codes
    # Tokens of the three sequences, with plans and prompts at their full widths.
    plan, prompt = rollout.plan_tokens, rollout.prompt_tokens[0]
    lengths = (prompt + plan + shape, prompt + 2 * plan, prompt + plan + shape)
    update = rows * sum(lengths) * body + rows * 2 * (plan + shape) * head
    # Forward and backward, the forward pass again (remat), and the reference.
    passes = 3 + (policy.remat != "off") + (config.objective.kl_coef > 0)
    sampled = rows * 2 * (plan + shape) * (body + head)
    codes = np.zeros((16, shape), np.int32)
    codec = Codec(config.codec, jax.random.key(0))
    compiled = jax.jit(Codec.decode).lower(codec, codes).compile()
    analysis = compiled.cost_analysis()
    decode = 2 * rows / 16 * (analysis or {}).get("flops", 0.0)
    return {
        "gflop_per_step": (passes * update + sampled + decode) / 1e9,
        "product_gflop_per_s": speed / 1e9,
        "products_s": (passes * update + sampled + decode) / speed,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workdir", type=Path)
    arguments, fields = parser.parse_known_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        workdir = arguments.workdir or Path(scratch) / "run"
        if (workdir / "metrics.jsonl").exists():
            sys.exit(f"{workdir} has a run already; name a fresh --workdir")
        line = run(arguments.steps, workdir, fields) | products_s(workdir)
        text = (workdir / "metrics.jsonl").read_text("utf-8")
    steps = [json.loads(entry) for entry in text.splitlines()]
    parts = {
        part: statistics.median(step[f"time/{part}"] for step in steps[1:])
        for part in PARTS
    }
    line = {"benchmark": "step", "steps": len(steps), "step_s": parts["total"]} | line
    line["ratio_to_products"] = line["step_s"] / line["products_s"]
    resampled = [step["groups_resampled"] for step in steps]
    line["groups_resampled"] = statistics.mean(resampled)
    rate = statistics.median(step["tokens_per_s/rollout"] for step in steps[1:])
    line["rollout_tokens_per_s"] = rate
    line = {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
    line["parts_s"] = {part: round(seconds, 3) for part, seconds in parts.items()}
    print(json.dumps(line | {"cpus": os.cpu_count(), "load_before": round(load, 1)}))


if __name__ == "__main__":
    main()
