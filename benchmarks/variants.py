"""How far the algorithms of the paper's table 2 differ at all: angles of gradients.

    python -m benchmarks.variants [--prompts_per_step=12]

One batch of the tiny preset is sampled and scored, and each variant's gradient taken of
it: on-policy, which is the paper's setting of one update per rollout, and after one and
three plain updates on the same batch, where ratios are no longer 1. Prints one JSON
line: for each variant the cosine with plain GRPO's gradient, the ratio of norms and the
clip fraction. `noise` is the limit in the same run: the cosine of plain GRPO's
gradients of two batches. Variants whose cosine is 1 and whose norm is equal cannot
differ in a training, those far above the noise only slowly.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from ar3d_jax import command
from ar3d_jax.collect import Collector
from ar3d_jax.config import Config, ObjectiveConfig
from ar3d_jax.data.prompts import PromptSource
from ar3d_jax.higrpo.update import (
    ScoredRollouts,
    init_state,
    loss_gradient,
    update_step,
)
from ar3d_jax.metrics import Stopwatch
from ar3d_jax.models import load_models
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.sharding import make_mesh

PLAIN = ObjectiveConfig(
    dynamic_sampling="off", aggregation="sequence", clip_low=0.2, clip_high=0.2
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip decoupled": {"clip_high": 0.28},
    "GSPO": {"importance": "sequence"},
    "dual clip": {"dual_clip": 3.0},
    "token average of the batch": {"aggregation": "token_batch"},
    "token average of groups": {"aggregation": "token"},
    "KL removed": {"kl_coef": 0.0},
    "no deviation": {"advantage_std": "none"},
    "deviation of the batch": {"advantage_std": "batch"},
}
AFTER = (0, 1, 3)  # updates on the batch before the gradients are taken
Found = dict[str, tuple[Any, dict[str, float]]]  # variant -> gradient, metrics


def cosine(one: Any, other: Any) -> float:
    """Of two trees of arrays, each as one vector."""
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    product = sum(float(jnp.sum(a * b)) for a, b in pairs)
    norms = optax.tree.norm(one) * optax.tree.norm(other)
    return round(float(product / norms), 6)


def told(found: Found) -> dict[str, dict[str, float]]:
    """Each variant beside the plain one, as numbers."""
    plain, metrics = found["plain"]
    return {
        name: {
            "cosine": cosine(plain, gradient),
            "norm": round(of["grad_norm"] / metrics["grad_norm"], 6),
            "clip_fraction": round(of["clip_fraction"], 6),
        }
        for name, (gradient, of) in found.items()
    }


def compare(config: Config, batch: Callable[[int], ScoredRollouts], models: Any) -> Any:
    """The benchmark's numbers."""
    jitted = jax.jit(loss_gradient, static_argnames=("vocab", "objective"))

    def gradient(policy: Any, rollouts: ScoredRollouts, **changes: Any) -> Any:
        objective = dataclasses.replace(PLAIN, **changes)
        found, metrics = jitted(
            policy, reference, rollouts, vocab=models.vocab, objective=objective
        )
        return found, {name: float(value) for name, value in metrics.items()}

    reference = jax.tree.map(jnp.copy, models.policy)
    first, other = batch(0), batch(1)
    noise = cosine(gradient(reference, first)[0], gradient(reference, other)[0])
    state = init_state(models.policy, optim=config.optim)
    line: dict[str, Any] = {"noise": noise}
    for updates in AFTER:
        while int(state.step) < updates:
            state, _ = update_step(
                state,
                reference,
                first,
                vocab=models.vocab,
                objective=PLAIN,
                optim=config.optim,
            )
        found: Found = {
            name: gradient(state.policy, first, **changes)
            for name, changes in VARIANTS.items()
        }
        line[f"after {updates} updates"] = told(found)
    return line


def main(_: list[str]) -> None:
    """Samples a batch, takes the gradients, prints them."""
    count = flags.FLAGS.prompts_per_step
    config = Config(
        prompts_per_step=count, objective=PLAIN, paradigm="grpo", eval_every=0,
        rewards=dataclasses.replace(Config().rewards, ensemble="refined"),
    )  # fmt: skip
    mesh = make_mesh()
    source = PromptSource(config.prompts, batch=count, seed=config.seed)
    rows = count * config.group_size
    with (
        tempfile.TemporaryDirectory() as logs,
        jax.set_mesh(mesh),
        Scoring(
            config.render, config.rewards, config.codec.resolution,
            slots=2 * rows, log_dir=logs,
        ) as scoring,
    ):  # fmt: skip
        models = load_models(config, mesh)
        collector = Collector(
            config, models, scoring, source, jax.random.key(config.seed), print
        )

        def batch(step: int) -> ScoredRollouts:
            clock = Stopwatch()
            waiting = collector.launch(models.policy, step, clock)
            return collector.finish(waiting, models.policy, step, clock).rollouts

        line = compare(config, batch, models)
    line = {"benchmark": "variants", "prompts": count, "lr": config.optim.lr, **line}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    flags.DEFINE_integer("prompts_per_step", 12, "of each of two batches", 2)
    command.run(main)
