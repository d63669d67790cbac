"""Seconds and memory of one update with a reference model, beside TRL's.

    pip install trl==1.16.0          # into any environment with torch and transformers
    python -m benchmarks.update [--peer-python=PATH]

The configuration is `tiny-qwen2-v1`: a Qwen2-type decoder of 10.95 M parameters (hidden
256, 6 layers, 8 heads, 2 key/value heads, MLP 1024, vocabulary 10,240), 8 rollouts of
one prompt, 64 + 1,024 tokens, float32; policy, reference, token-mean clipped loss, KL
0.01, gradient clipping, AdamW. Both programs load the same weights and tokens:

- ours: `update_step` as `train.py` calls it, whole vocabulary, one micro-batch, with
  `policy.remat` "attention" as for the 7B policy.
- peer: `GRPOTrainer._compute_loss` of TRL with `loss_type="bnpo"` (the token mean), its
  reference pass, `backward`, `clip_grad_norm_` and `torch.optim.AdamW`; gradient
  checkpointing off, as it is faster.

Each runs in processes of its own, in turns, so that other load meets both; ratios are
medians over rounds. `cpu_s` counts processor time, which a busy machine stretches less.
`loss` and `grad_norm` of the first step show that both did the same; the norm behind
TRL's fused head is 0.2% below plain autograd's on its own model, which ours equals.

Targets: at most 1.4 of TRL's seconds and 0.6 of its peak memory. Prints one JSON line.
"""

import argparse
import dataclasses
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

ROUNDS, STEPS = 3, 2  # after one step of warm-up in each process
GROUP, PROMPT, NEW, VOCABULARY = 8, 64, 1024, 10_240
LR, BETAS, DECAY, CLIP, KL, LOW, HIGH = 1e-6, (0.9, 0.95), 0.01, 1.0, 0.01, 0.2, 0.28


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens [rollouts, time] and rewards [rollouts]."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (GROUP, PROMPT + NEW))
    return tokens.astype(np.int32), random.normal(size=GROUP).astype(np.float32)


def measured(step) -> dict[str, float]:
    """Runs `step` once to warm up and then `STEPS` times; it returns (loss, norm)."""
    loss, norm = step()
    seconds, cpu = [], []
    for _ in range(STEPS):
        began, began_cpu = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {
        "s": statistics.median(seconds),
        "cpu_s": statistics.median(cpu),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "loss": loss,
        "grad_norm": norm,
    }


def run_ours(folder: Path) -> dict[str, float]:
    """This package's update."""
    import jax
    import jax.numpy as jnp

    from ar3d_jax.config import ObjectiveConfig, OptimConfig
    from ar3d_jax.higrpo.update import ScoredRollouts, init_state, update_step
    from ar3d_jax.policy import hf
    from ar3d_jax.policy.sequence import Layout, Sequence, sequence_logp
    from ar3d_jax.policy.vocab import Vocab
    from ar3d_jax.sharding import make_mesh

    last = VOCABULARY - 1  # all ids are text, so that both normalise over all of them
    vocab = Vocab(last, last, last, 0, 0, 0, 0)
    objective = ObjectiveConfig(
        kl_coef=KL, clip_low=LOW, clip_high=HIGH, micro_batch=GROUP
    )
    optim = OptimConfig(
        lr=LR, warmup_steps=0, b1=BETAS[0], b2=BETAS[1], weight_decay=DECAY,
        grad_clip=CLIP,
    )  # fmt: skip
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        policy, reference = (
            hf.load(folder / name, mesh=mesh, dtype=jnp.float32, cfg=policy_config())
            for name in ("policy", "reference")
        )
        tokens, rewards = map(jnp.asarray, batch())
        index = jnp.broadcast_to(jnp.arange(PROMPT + NEW), tokens.shape)
        sequence = Sequence(
            tokens=tokens,
            positions=index,
            valid=index >= 0,
            sampled=index >= PROMPT,
            logp=jnp.zeros(tokens.shape),
            layout=Layout(text=(PROMPT, PROMPT + NEW)),
        )
        logp, _ = jax.jit(sequence_logp, static_argnums=2)(policy, sequence, vocab)
        rollouts = ScoredRollouts(
            {"only": (dataclasses.replace(sequence, logp=logp),)},
            {"only": rewards[None]},
        )
        state = init_state(policy, optim=optim)
        del policy  # as TRL: two models, the trained one and the reference

        def step() -> tuple[float, float]:
            nonlocal state
            state, metrics = update_step(
                state,
                reference,
                rollouts,
                vocab=vocab,
                objective=objective,
                optim=optim,
            )
            jax.block_until_ready(state)
            return float(metrics["loss"]), float(metrics["grad_norm"])

        return measured(step)


def run_trl(folder: Path) -> dict[str, float]:
    """The peer's."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    trainer = GRPOTrainer(
        model=str(folder / "policy"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=GROUP,
            num_generations=GROUP,
            max_completion_length=NEW,
            loss_type="bnpo",
            beta=KL,
            epsilon=LOW,
            epsilon_high=HIGH,
            temperature=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * GROUP),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="a", eos_token="b"
        ),
    )
    trainer.current_gradient_accumulation_steps = 1
    model, reference = trainer.model.train(), trainer.ref_model
    other = AutoModelForCausalLM.from_pretrained(folder / "reference")
    reference.load_state_dict(other.state_dict())
    del other
    adamw = torch.optim.AdamW(model.parameters(), LR, BETAS, weight_decay=DECAY)

    tokens, rewards = map(torch.from_numpy, batch())
    tokens = tokens.long()
    inputs = {
        "prompt_ids": tokens[:, :PROMPT],
        "completion_ids": tokens[:, PROMPT:],
        "prompt_mask": torch.ones(GROUP, PROMPT, dtype=torch.long),
        "completion_mask": torch.ones(GROUP, NEW, dtype=torch.long),
        # With our deviation, so that the two losses can be compared.
        "advantages": (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4),
    }

    def step() -> tuple[float, float]:
        with torch.no_grad():
            inputs["ref_per_token_logps"], *_ = (
                trainer._get_per_token_logps_and_entropies(
                    reference, tokens, torch.ones_like(tokens), NEW
                )
            )
        loss = trainer._compute_loss(model, inputs)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adamw.step()
        adamw.zero_grad()
        return loss.item(), norm.item()

    return measured(step)


def policy_config():
    """`tiny-qwen2-v1`."""
    from ar3d_jax.config import PolicyConfig

    return PolicyConfig(
        vocab_size=VOCABULARY, width=256, layers=6, heads=8, kv_heads=2, head_size=32,
        mlp_width=1024, max_positions=2048, remat="attention",
    )  # fmt: skip


def write_weights(folder: Path) -> None:
    """Policy and reference, the same for both programs, as Hugging Face folders."""
    import jax

    from ar3d_jax.policy import hf
    from ar3d_jax.policy.decoder import Decoder
    from ar3d_jax.sharding import make_mesh

    with jax.set_mesh(make_mesh()):
        for seed, name in enumerate(("policy", "reference")):
            hf.save(Decoder(policy_config(), jax.random.key(seed)), folder / name)


def in_a_process(python: str, side: str, folder: Path) -> dict[str, float]:
    """One side's numbers, from a process of its own."""
    command = [
        python,
        "-m",
        "benchmarks.update",
        f"--side={side}",
        f"--folder={folder}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(
            f"{' '.join(command)} failed: see above; for the peer, "
            "pip install trl==1.16.0 there, or name its --peer-python"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = {"ours": run_ours, "trl": run_trl}[arguments.side]
        print(json.dumps(run(arguments.folder)))
        return

    results: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    pythons = {"ours": sys.executable, "trl": arguments.peer_python}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder))
        for _ in range(ROUNDS):
            for side, python in pythons.items():
                results[side].append(in_a_process(python, side, Path(folder)))

    def median(side: str, key: str) -> float:
        return statistics.median(result[key] for result in results[side])

    def ratio(key: str) -> float:
        pairs = zip(results["ours"], results["trl"], strict=True)
        return statistics.median(ours[key] / trl[key] for ours, trl in pairs)

    line = {
        f"{side}_{key}": round(median(side, key), 4)
        for side in results
        for key in ("s", "cpu_s", "peak_gib", "loss", "grad_norm")
    }
    ratios = {
        f"ratio_{key}": round(ratio(key), 3) for key in ("s", "cpu_s", "peak_gib")
    }
    print(json.dumps({**line, **ratios, "cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
