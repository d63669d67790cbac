"""Does Hi-GRPO make the tiny policy better on prompts it never saw? One JSON line.

    python -m benchmarks.learning --workdir=runs/learning [--seeds=3] [--steps=60]

Trains plain Hi-GRPO once per seed with `python -m ar3d_jax.train` (a finished seed is
not trained again; without dynamic sampling, all runs see the same prompts), then
samples held-out prompts with the policy before and after, with the same random numbers.
Rewards are R_high and R_low, equations (7) and (8). A gain is the mean over objects of
the paired difference, in standard errors of that mean: several prompts of one object
are not independent, and are averaged first.

A reward that only its own scorer likes is not learning. So the line also has, before
and after: the share of distinct token sequences, the mean voxel IoU of pairs (within a
prompt's group, and between prompts: 1 would be one shape for all), and the number of
connected components and of occupied voxels (dust shows there).

The limit in the same run: what the scorers give to the held-out objects themselves,
where `--catalog` has them.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from scipy import ndimage
from tqdm import tqdm

from ar3d_jax import command
from ar3d_jax.config import Config, to_dict
from ar3d_jax.data.catalog import load_catalog
from ar3d_jax.data.prompts import Prompt, held_out_prompts
from ar3d_jax.generate import checkpoint_config, load_trained
from ar3d_jax.models import Models, decode_rows, load_models, sample_steps, shape_codes
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.render.sheets import view_sheet
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.rewards.ensemble import total_rewards
from ar3d_jax.sharding import make_mesh

matplotlib.use("Agg")
STEPS = ("coarse", "refined")
SAMPLING_SEED = 1234  # before and after, all training seeds
PAIRS = 2000  # pairs whose IoU is measured
NEEDED = 3.0  # standard errors


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy does with the held-out prompts.

    Attributes:
        rewards: by step, [prompts, G].
        scores: by step and role, mean.
        shape: diversity and health by step.
        views: by step, [prompts, V, H, W, 3] of each group's first rollout.
    """

    rewards: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]
    shape: dict[str, dict[str, float]]
    views: dict[str, np.ndarray]


def evaluate(
    models: Models,
    policy: Decoder,
    prompts: Sequence[Prompt],
    config: Config,
    scoring: Scoring,
) -> Outcome:
    """Samples, draws and scores G rollouts of every prompt."""
    key = jax.random.key(SAMPLING_SEED)
    group, count = config.group_size, config.prompts_per_step
    scores: dict[str, list] = {step: [] for step in STEPS}
    views: dict[str, list] = {step: [] for step in STEPS}
    codes: dict[str, list] = {step: [] for step in STEPS}
    grids: dict[str, list] = {step: [] for step in STEPS}
    for first in tqdm(range(0, len(prompts), count), unit="batch"):
        texts = [prompt.text for prompt in prompts[first : first + count]]
        batch_key = jax.random.fold_in(key, first)
        sampled = sample_steps(
            models,
            policy,
            texts,
            batch_key,
            config.rollout,
            paradigm="higrpo",
            group_size=group,
        )
        per_row = [text for text in texts for _ in range(group)]
        tickets = {}
        for step in sampled:
            rows = shape_codes(step.shape, models.vocab)
            logits = decode_rows(models.codec, rows)
            codes[step.name].append(rows)
            grids[step.name].append(logits > 0)
            ticket = scoring.submit(logits, per_row, step.name, keep_views=True)
            tickets[step.name] = ticket
        for step, ticket in tickets.items():
            scores[step].append(scoring.collect(ticket)[0])
            views[step].append(scoring.views(ticket)[::group])
    merged = {
        step: {role: np.concatenate([s[role] for s in parts]) for role in parts[0]}
        for step, parts in scores.items()
    }
    weights = to_dict(config.rewards.weights)
    rewards = total_rewards(merged["coarse"], merged["refined"], weights, 0.0)
    return Outcome(
        rewards={
            step: reward.reshape(-1, group)
            for step, reward in zip(STEPS, rewards, strict=True)
        },
        scores={
            step: {role: round(float(np.nanmean(v)), 4) for role, v in roles.items()}
            for step, roles in merged.items()
        },
        shape={
            step: shape_health(
                np.concatenate(codes[step]), np.concatenate(grids[step]), group
            )
            for step in STEPS
        },
        views={step: np.concatenate(parts) for step, parts in views.items()},
    )


def shape_health(codes: np.ndarray, grids: np.ndarray, group: int) -> dict[str, float]:
    """Diversity and cleanliness of N shapes; rows are prompt-major in groups."""
    random = np.random.default_rng(0)
    rows = len(codes)
    first, second = random.integers(rows, size=(2, PAIRS))
    same = first // group * group + random.integers(group, size=PAIRS)
    everywhere = np.ones((3, 3, 3))
    pieces = [ndimage.label(grid, everywhere)[1] for grid in grids]
    found = {
        "distinct": len(np.unique(codes, axis=0)) / rows,
        "iou_within_group": _pair_iou(grids, first, same),
        "iou_between_prompts": _pair_iou(grids, first, second, groups=group),
        "components": float(np.mean(pieces)),
        "voxels": float(grids.sum((1, 2, 3)).mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def _pair_iou(
    grids: np.ndarray, first: np.ndarray, second: np.ndarray, groups: int | None = None
) -> float:
    """Mean IoU of the pairs that differ: in the row, or with `groups` in the prompt."""
    keep = first // groups != second // groups if groups else first != second
    a, b = grids[first[keep]], grids[second[keep]]
    axes = (1, 2, 3)
    return float(np.mean((a & b).sum(axes) / np.maximum((a | b).sum(axes), 1)))


def object_of(prompt: str) -> str:
    """The object of a prompt's id: "chair-2" of "chair-2.3", the catalog's; else it."""
    name, _, number = prompt.rpartition(".")
    return name if name and number.isdecimal() else prompt


def gain(
    before: np.ndarray, after: np.ndarray, prompts: Sequence[str]
) -> dict[str, float]:
    """The paired difference of rewards over objects, and its standard error.

    Args:
        before: [prompts, G]; NaN where one is missing.
        after: likewise.
        prompts: their ids.
    """
    _, objects = np.unique(
        [object_of(prompt) for prompt in prompts], return_inverse=True
    )

    def by_object(rewards: np.ndarray) -> np.ndarray:
        each = np.nanmean(rewards, axis=1)
        return np.array([each[objects == i].mean() for i in range(objects.max() + 1)])

    first, last = by_object(before), by_object(after)
    difference = last - first
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "objects": len(difference),
        "before": round(float(first.mean()), 4),
        "after": round(float(last.mean()), 4),
        "gain": round(float(difference.mean()), 4),
        "standard_error": round(float(error), 4),
        "gain_in_errors": round(float(difference.mean() / error), 2),
    }


def real_objects(folder: str, config: Config, scoring: Scoring) -> dict[str, float]:
    """Mean rewards of the held-out objects' own voxels, with their own prompts."""
    catalog = load_catalog(folder)
    held_out = [i for i, thing in enumerate(catalog.objects) if thing["held_out"]]
    grids = np.where(catalog.voxels[held_out], 1.0, -1.0).astype(np.float32)
    texts = [catalog.objects[i]["captions"][0] for i in held_out]
    tickets = [scoring.submit(grids, texts, step) for step in STEPS]
    scores = [scoring.collect(ticket)[0] for ticket in tickets]
    rewards = total_rewards(*scores, to_dict(config.rewards.weights), 0.0)
    return {
        step: round(float(np.nanmean(reward)), 4)
        for step, reward in zip(STEPS, rewards, strict=True)
    }


def train(seed: int, steps: int, workdir: Path) -> None:
    """One training run, as a user would start it."""
    arguments = [
        "--config=configs/higrpo.py",
        "--config.objective.dynamic_sampling=off",
        f"--config.seed={seed}",
        f"--config.steps={steps}",
        f"--workdir={workdir}",
    ]
    subprocess.run([sys.executable, "-m", "ar3d_jax.train", *arguments], check=True)


def draw(
    runs: dict[int, Path],
    before: Outcome,
    after: Outcome,
    labels: list[str],
    path: Path,
) -> None:
    """Curves of all seeds above views of the first prompts before and after."""
    shown = 4
    views = np.stack(
        [
            outcome.views["refined"][i]
            for i in range(shown)
            for outcome in (before, after)
        ]
    )
    names = [
        f"{when}: {labels[i]}" for i in range(shown) for when in ("before", "after")
    ]
    figure, axes = plt.subplots(
        3, 1, figsize=(12, 22), gridspec_kw={"height_ratios": [1, 1, 5]}
    )
    for axis, step in zip(axes, STEPS, strict=False):
        for seed, folder in runs.items():
            lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
            values = [json.loads(line)[f"reward/{step}_all"] for line in lines]
            smooth = ndimage.uniform_filter1d(np.array(values, float), 5)
            axis.plot(smooth, label=f"seed {seed}")
        axis.set(title=f"{step} reward, training prompts", xlabel="step")
        axis.legend()
    axes[2].imshow(np.asarray(view_sheet(views, names)))
    axes[2].axis("off")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(_: list[str]) -> None:
    """Trains, evaluates, prints."""
    values = flags.FLAGS
    root = Path(values.workdir)
    runs = {seed: root / f"seed_{seed}" for seed in range(values.seeds)}
    for seed, folder in runs.items():
        train(seed, values.steps, folder)
    config = checkpoint_config(runs[0])
    mesh = make_mesh(config.mesh.fsdp, config.mesh.tp, config.mesh.data)
    prompts = held_out_prompts(config.prompts, 10_000)
    prompts = [
        prompts[i] for i in np.linspace(0, len(prompts) - 1, values.prompts).astype(int)
    ]
    slots = 2 * config.prompts_per_step * config.group_size
    line: dict = {"benchmark": "learning", "steps": values.steps}
    with (
        jax.set_mesh(mesh),
        Scoring(
            config.render, config.rewards, config.codec.resolution, slots, root / "logs"
        ) as scoring,
    ):
        models = load_models(config, mesh)
        if values.catalog:
            line["real_objects"] = real_objects(values.catalog, config, scoring)
        before = evaluate(models, models.policy, prompts, config, scoring)
        line |= {"prompts": len(prompts), "samples": config.group_size}
        line["before"] = {"scores": before.scores, "shape": before.shape}
        learnt = []
        for seed, folder in runs.items():
            policy = load_trained(models.policy, config.lora, folder)
            after = evaluate(models, policy, prompts, config, scoring)
            ids = [prompt.id for prompt in prompts]
            gains = {s: gain(before.rewards[s], after.rewards[s], ids) for s in STEPS}
            learnt += [gains[s]["gain_in_errors"] >= NEEDED for s in STEPS]
            line[f"seed_{seed}"] = {
                **gains,
                "scores": after.scores,
                "shape": after.shape,
            }
    line["learns"] = all(learnt)
    print(json.dumps(line), flush=True)
    if values.picture:
        labels = [prompt.text for prompt in prompts]
        draw(runs, before, after, labels, Path(values.picture))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/learning", "folder of the runs")
    flags.DEFINE_integer("seeds", 3, "trainings", 1)
    flags.DEFINE_integer("steps", 60, "optimiser steps of each", 1)
    flags.DEFINE_integer("prompts", 276, "held-out prompts", 4)
    flags.DEFINE_string("catalog", "", "also score the held-out objects themselves")
    flags.DEFINE_string("picture", "", "also draw curves and views to this PNG")
    command.run(main)
