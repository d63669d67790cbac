"""Tokens per second of a rollout, beside transformers' `generate`.

    python -m benchmarks.rollout

The configuration is `tiny-qwen2-v1`, as in `benchmarks/update.py`: 8 samples of one
prompt of 64 tokens, 1,024 new tokens each, float32, temperature 1, no filter, no stop.
Both programs load the same weights from a Hugging Face folder:

- ours: `prefill` and `sample` of `rollout/generate.py`, jitted as `two_step.py` does,
  over the whole vocabulary; it returns log-probabilities, too.
- peer: `generate` with a static cache, its fastest form here; without the
  log-probabilities, which a trainer would have to compute in another pass.

Each runs in processes of its own, in turns, so that other load meets both; the ratio is
the median over rounds. `logp_error` is the largest difference between what ours
returned and transformers' log-probabilities of the same tokens: both are one model.

`matmul_tokens_per_s` is the limit: the matrix products of one token for 8 rows, alone.

Target: at least 1.4 times transformers. Prints one JSON line.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.update import GROUP, NEW, PROMPT, VOCABULARY, write_weights

ROUNDS, REPEATS = 3, 2  # after one warm-up in each process


def prompt() -> np.ndarray:
    """Tokens [PROMPT]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, PROMPT, np.int32)


def measured(rollout) -> dict[str, float]:
    """Runs `rollout(i)` once to warm up and then `REPEATS` times."""
    rollout(0)
    seconds, cpu = [], []
    for i in range(REPEATS):
        began, began_cpu = time.perf_counter(), time.process_time()
        rollout(i + 1)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {
        "tokens_per_s": GROUP * NEW / statistics.median(seconds),
        "tokens_per_cpu_s": GROUP * NEW / statistics.median(cpu),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def run_ours(folder: Path) -> dict[str, float]:
    """This package's rollout; leaves its last tokens and log-probabilities."""
    import jax
    import jax.numpy as jnp

    from ar3d_jax.policy import hf
    from ar3d_jax.policy.vocab import Subset
    from ar3d_jax.rollout.generate import prefill, sample
    from ar3d_jax.rollout.sampling import uniforms
    from ar3d_jax.sharding import TOKENS_BT, make_mesh

    mesh = make_mesh()
    with jax.set_mesh(mesh):
        policy = hf.load(folder / "policy", mesh=mesh, dtype=jnp.float32)

        @jax.jit
        def rollout(policy, tokens, key):
            layers = policy.layers()
            valid = jnp.ones_like(tokens, bool)
            hidden, cache = prefill(policy, layers, tokens, valid)
            hidden = jnp.repeat(hidden, GROUP, axis=0, out_sharding=TOKENS_BT)
            segment, _, _ = sample(
                policy,
                layers,
                cache.repeated(GROUP),
                hidden,
                uniforms(key, GROUP, NEW),
                subset=Subset(0, VOCABULARY),
                filters=(),
            )
            return segment.tokens, segment.logp

        tokens = jnp.asarray(prompt())[None]

        def once(seed: int) -> None:
            found = jax.block_until_ready(rollout(policy, tokens, jax.random.key(seed)))
            np.savez(folder / "sampled.npz", tokens=found[0], logp=found[1])

        numbers = measured(once)
        return numbers | {"matmul_tokens_per_s": matrix_products(policy)}


def matrix_products(policy) -> float:
    """Tokens per second of the products that every token needs, and nothing else."""
    import jax
    import jax.numpy as jnp

    arrays = [*jax.tree.leaves(policy.layers()), policy.head[...]]
    matrices = [
        jnp.asarray(np.asarray(x).reshape(x.shape[0], -1)) for x in arrays if x.ndim > 1
    ]
    steps = 64

    @jax.jit
    def products(matrices, x):
        def step(_, x):
            for matrix in matrices:
                rows = jnp.resize(x, (GROUP, matrix.shape[0]))
                x = x + jnp.matmul(rows, matrix).mean()
            return x

        return jax.lax.fori_loop(0, steps, step, x)

    x = jnp.ones((GROUP, policy.cfg.width))
    jax.block_until_ready(products(matrices, x))
    began = time.perf_counter()
    jax.block_until_ready(products(matrices, x))
    return GROUP * steps / (time.perf_counter() - began)


def run_transformers(folder: Path) -> dict[str, float]:
    """The peer's; also its log-probabilities of what ours sampled."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder / "policy", dtype=torch.float32
    ).eval()
    tokens = torch.from_numpy(prompt()).long()[None].repeat(GROUP, 1)

    def once(seed: int) -> None:
        torch.manual_seed(seed)
        with torch.inference_mode():
            found = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                cache_implementation="static",
                disable_compile=True,
                pad_token_id=0,
                eos_token_id=None,
            )
        assert found.shape == (GROUP, PROMPT + NEW)

    numbers = measured(once)
    with np.load(folder / "sampled.npz") as sampled, torch.inference_mode():
        drawn = torch.from_numpy(sampled["tokens"]).long()
        logits = model(torch.cat([tokens, drawn], 1)).logits[:, PROMPT - 1 : -1]
        logp = torch.log_softmax(logits, -1).gather(-1, drawn[..., None])[..., 0]
        error = float((logp - torch.from_numpy(sampled["logp"])).abs().max())
    return numbers | {"logp_error": error}


def in_a_process(side: str, folder: Path) -> dict[str, float]:
    """One side's numbers, from a process of its own."""
    module = [sys.executable, "-m", "benchmarks.rollout"]
    command = [*module, f"--side={side}", f"--folder={folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sides = {"ours": run_ours, "transformers": run_transformers}
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(sides[arguments.side](arguments.folder)))
        return

    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder))
        for _ in range(ROUNDS):
            for side in sides:
                results[side].append(in_a_process(side, Path(folder)))

    line: dict = {"benchmark": "rollout"}
    for side, rounds in results.items():
        for key in rounds[0]:
            median = statistics.median(numbers[key] for numbers in rounds)
            line[f"{side}_{key}"] = float(f"{median:.4g}")
    for key in ("tokens_per_s", "tokens_per_cpu_s"):
        pairs = zip(results["ours"], results["transformers"], strict=True)
        ratios = [ours[key] / theirs[key] for ours, theirs in pairs]
        line[f"ratio_{key}"] = round(statistics.median(ratios), 3)
    print(json.dumps(line | {"cpus": os.cpu_count(), "load_before": round(load, 1)}))


if __name__ == "__main__":
    main()
