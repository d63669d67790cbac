"""Prompts to objects: `python -m ar3d_jax.generate --prompt="a chair" --out=DIR`.

Each prompt becomes a folder with `coarse.glb`, `refined.glb`, `views.png` and
`plans.json`, all of them one page, `index.html` (see `gallery.py`). Without
`--checkpoint` the shipped tiny policy is used. Meshes are shaded geometry: there is no
appearance stage yet.

Published models: `--config=configs/higrpo.py:7b`, with `--weights=IvanTang/3DGen-R1
--one_step` for the paper's one-step model, which writes `shape.glb` alone.
"""

import dataclasses
import json
from collections.abc import Sequence as Texts
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from ar3d_jax import command, contents, gallery, hosts
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.config import (
    Config,
    LoraConfig,
    MeshConfig,
    from_config_dict,
)
from ar3d_jax.data.prompts import Prompt, read_prompts
from ar3d_jax.errors import UserError, writing
from ar3d_jax.held_out import BEST
from ar3d_jax.models import (
    Models,
    check_length,
    decode_rows,
    load_models,
    plan_texts,
    sample_steps,
    shape_codes,
)
from ar3d_jax.policy import lora
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.sharding import make_mesh, shared_equally

BATCH = 8  # prompts sampled at once; our choice: fits small machines


def generate_objects(
    models: Models,
    policy: Decoder,
    prompts: Texts[Prompt],
    key: jax.Array,
    config: Config,
    scoring: Scoring,
    *,
    batch: int,
    group_size: int = 1,
) -> list[gallery.GeneratedObject]:
    """One object per prompt, drawn, and scored where `scoring` has scorers.

    At most `batch` prompts; fewer are filled up, and of each group the first rollout is
    kept, so that a run which has compiled its rollout for these sizes compiles nothing.
    All hosts sample together; the first one draws, the others return nothing.
    """
    texts = [prompt.text for prompt in prompts]
    batch = shared_equally(batch)
    filled = texts + texts[-1:] * (batch - len(texts))
    plans, codes = sample_shapes(models, policy, filled, key, config, group_size)
    rows = np.arange(len(texts)) * group_size
    logits = {
        step: decode_rows(models.codec, tokens[rows], all_rows=True)
        for step, tokens in codes.items()
    }
    if not hosts.is_first():
        return []
    tickets = {
        step: scoring.submit(
            grids, texts, config.rewards.ensemble_of(step), keep_views=True
        )
        for step, grids in logits.items()
    }
    scores = {step: scoring.collect(ticket)[0] for step, ticket in tickets.items()}
    views = {step: scoring.views(ticket) for step, ticket in tickets.items()}
    return [
        gallery.GeneratedObject(
            name=prompt.id,
            prompt=prompt.text,
            plans={which: plan[row] for which, plan in plans.items()},
            logits={step: grids[i] for step, grids in logits.items()},
            views={step: pictures[i] for step, pictures in views.items()},
            scores={
                step: {role: _number(values[i]) for role, values in by_role.items()}
                for step, by_role in scores.items()
            },
        )
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]


Plans = dict[str, list[str]]  # by which, of each row
Codes = dict[str, np.ndarray]  # by step, [rows, M]


def sample_shapes(
    models: Models,
    policy: Decoder,
    texts: list[str],
    key: jax.Array,
    config: Config,
    group_size: int = 1,
) -> tuple[Plans, Codes]:
    """Plans and shapes of each text, by the config's paradigm; all hosts get all.

    Raises:
        UserError: a text is too long.
    """
    steps = sample_steps(
        models,
        policy,
        texts,
        key,
        config.rollout,
        paradigm=config.paradigm,
        group_size=group_size,
    )
    plans: Plans = {}
    codes: Codes = {}
    for step in steps:
        if step.plan:
            plans[step.plan] = plan_texts(step.sequences[0], models.tokenizer)
        codes[step.name] = shape_codes(step.shape, models.vocab)
    return plans, codes


def at_once(config: Config) -> Config:
    """The config of a policy that answers with a shape, without a plan."""
    rollout = dataclasses.replace(
        config.rollout, plans=False, refined_sees_coarse=False
    )
    rewards = dataclasses.replace(config.rewards, ensemble="refined")
    return dataclasses.replace(
        config, paradigm="grpo", rollout=rollout, rewards=rewards
    )


def _number(score: np.floating) -> float | None:
    return float(score) if np.isfinite(score) else None


def checkpoint_config(folder: Path) -> Config:
    """The config of the run in `folder`, a workdir of `train`.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / "config.json"
    try:
        return from_config_dict(json.loads(path.read_text("utf-8")), Config)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"--checkpoint={folder}: cannot read {path} ({error}); expected the "
            "workdir of python -m ar3d_jax.train, which writes a damaged config.json "
            "anew when its command is given again"
        ) from error


def load_trained(
    base: Decoder, config: LoraConfig, folder: Path, *, best: bool = False
) -> Decoder:
    """The policy of the newest checkpoint in a workdir, whose run may be going on.

    Args:
        base: of the sizes of the trained one; with LoRA, the policy it began with.
        config: the training's.
        folder: the workdir.
        best: rather the one that the judge of its held-out evaluations likes best.

    Raises:
        UserError: there is none that fits, or it was trained with another codec, or
            LoRA with other weights below it, under the same path.
    """
    template = base
    if config.rank:
        template = lora.attach(base, config, jax.random.key(0))
    place = folder / (BEST if best else "checkpoints")
    held = {}
    if not best:  # whose checkpoints keep the policy alone
        trained = checkpoint_config(folder)
        sources = {"codec.weights": trained.codec.weights}
        if config.rank:
            sources["policy.weights"] = trained.policy.weights
        held = contents.held(sources)
    with Checkpoints(
        place, keep=1, settings={}, held=held, read_only=True
    ) as checkpoints:
        restored = checkpoints.restore_latest({"policy": lora.trained(template)})
    if restored is None:
        raise UserError(f"{place} has no checkpoint yet; train first")
    return lora.with_trained(template, restored[0]["policy"])


def generate(
    prompts: list[Prompt],
    config: Config,
    checkpoint: Path | None,
    out: Path,
    *,
    best: bool = False,
) -> None:
    """Writes the gallery of `prompts` to `out`.

    Raises:
        UserError: whatever a user can mend.
    """
    batch = min(len(prompts), BATCH)
    mesh = make_mesh(config.mesh.fsdp, config.mesh.tp, config.mesh.data)
    with jax.set_mesh(mesh), writing(out):
        models = load_models(config, mesh)
        texts = [prompt.text for prompt in prompts]
        check_length(models.tokenizer, texts, config.rollout)
        policy = models.policy
        if checkpoint:
            policy = load_trained(policy, config.lora, checkpoint, best=best)
        drawing = Scoring(
            config.render, None, config.codec.resolution, 2 * batch, out / "logs"
        )
        objects: list[gallery.GeneratedObject] = []
        with drawing as scoring, tqdm(total=len(prompts), unit="object") as progress:
            for first in range(0, len(prompts), batch):
                some = prompts[first : first + batch]
                key = jax.random.fold_in(jax.random.key(config.seed), first)
                objects += generate_objects(
                    models,
                    policy,
                    some,
                    key,
                    config,
                    scoring,
                    batch=batch,
                )
                progress.update(len(some))
        gallery.write(out, objects)
    print(f"{out / 'index.html'}: {len(objects)} objects")


def _define_flags() -> None:
    flags.DEFINE_multi_string("prompt", [], "text of one object; may be repeated")
    flags.DEFINE_string("prompts", "", "a .txt, .csv or .jsonl file of prompts")
    flags.DEFINE_string("checkpoint", "", "workdir of a training; else shipped weights")
    flags.DEFINE_bool("best", False, "with --checkpoint: what the judge likes best")
    flags.DEFINE_string(
        "config", "", "without a checkpoint: a FILE.py[:PRESET] of train"
    )
    flags.DEFINE_string("weights", "", "with --config: other policy weights")
    flags.DEFINE_string("codec_weights", "", "with --config: other codec weights")
    flags.DEFINE_bool("one_step", False, "a shape at once, as 3DGen-R1 was trained")
    flags.DEFINE_string("out", None, "folder to write", required=True)
    flags.DEFINE_integer("seed", 0, "of the sampling", 0)
    flags.DEFINE_integer("fsdp", 1, "devices that share prompts and parameters", 1)
    flags.DEFINE_integer("tp", 1, "devices that share heads", 1)


def main(_: list[str]) -> None:
    """The command."""
    values = flags.FLAGS
    prompts = [Prompt(text, text) for text in values.prompt]
    if values.prompts:
        rows = read_prompts(values.prompts)
        prompts += [Prompt(row.id, row.texts[0]) for row in rows]
    if not any(prompt.text.strip() for prompt in prompts):
        raise UserError('no prompt; expected --prompt="a chair" or --prompts=FILE')
    checkpoint = Path(values.checkpoint) if values.checkpoint else None
    if values.best and not checkpoint:
        raise UserError("--best without --checkpoint; expected the workdir of a run")
    config = checkpoint_config(checkpoint) if checkpoint else _untrained(values)
    mesh = MeshConfig(fsdp=values.fsdp, tp=values.tp)  # the training's may be larger
    config = dataclasses.replace(config, seed=values.seed, mesh=mesh)
    if values.one_step:
        config = at_once(config)
    out = Path(values.out)
    generate(prompts, config, checkpoint, out, best=values.best)


def _untrained(values: flags.FlagValues) -> Config:
    """The config of the shipped policy, or of `--config` with other weights."""
    if values.config:
        return described(values.config, values.weights, values.codec_weights)
    if values.weights or values.codec_weights:
        raise UserError(
            "--weights or --codec_weights without --config; expected their sizes too: "
            "--config=configs/higrpo.py:7b"
        )
    return Config()


def described(file: str, weights: str, codec_weights: str) -> Config:
    """The config of a policy before training.

    Args:
        file: a FILE.py[:PRESET] of train, which has its sizes.
        weights: other policy weights than the file's; "" for those.
        codec_weights: the same of the codec.

    Raises:
        UserError: no such file or preset.
    """
    config = from_config_dict(command.load_config_file(file), Config)
    policy, codec = config.policy, config.codec
    if weights:
        policy = dataclasses.replace(policy, weights=weights)
    if codec_weights:
        codec = dataclasses.replace(codec, weights=codec_weights)
    return dataclasses.replace(config, policy=policy, codec=codec)


if __name__ == "__main__":
    _define_flags()
    command.run(main)
