"""A whole training run at the smallest size, for tests: weights, config, command.

`python -m tests.small_run FOLDER WORKDIR [--config.field=value]` is `ar3d_jax.train`
with random weights from FOLDER (made by `make_weights`) and a sidecar whose scores are
a function of the object's bytes (`rewards/stand_in_sidecar.py`).
"""

import pathlib
import sys

import jax
import numpy as np

from ar3d_jax import command, hosts, train
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import (
    CodecConfig,
    Config,
    EvaluationConfig,
    LogConfig,
    ObjectiveConfig,
    PolicyConfig,
    RenderConfig,
    RewardsConfig,
    RolloutConfig,
    to_config_dict,
)
from ar3d_jax.policy import chat, hf, tokenizer
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.sharding import make_mesh

PROMPTS = ("a tall chair", "a round table", "a lamp", "a sofa", "a box", "a low bench")


def small_config(folder: pathlib.Path) -> Config:
    """Two prompts, groups of two, 16 shape tokens."""
    return Config(
        preset="small",
        steps=4,
        prompts=str(folder / "prompts.txt"),
        prompts_per_step=2,
        group_size=2,
        checkpoint_every=1,
        eval_every=2,
        policy=PolicyConfig(
            weights=str(folder / "policy"),
            vocab_size=512,
            width=32,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=8,
            mlp_width=48,
        ),
        codec=CodecConfig(
            weights=str(folder / "codec.safetensors"),
            resolution=8,
            channels=(2, 4),
            blocks=(0, 1),
            codes=16,
        ),
        rollout=RolloutConfig(plan_tokens=4, prompt_tokens=(320,)),
        objective=ObjectiveConfig(micro_batch=2, dynamic_sampling="off"),
        rewards=RewardsConfig(points=64),
        render=RenderConfig(size=32, workers=1),
        evaluation=EvaluationConfig(prompts=2, judged=3),
        log=LogConfig(samples_every=2),
    )


def make_weights(folder: pathlib.Path) -> Config:
    """Writes random weights, a tokenizer and prompts; returns the config."""
    config = small_config(folder)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    texts = [chat.TEMPLATE, chat.HIGH, chat.LOW, *PROMPTS]
    tokenizer.build(texts, codes=config.codec.codes).save(folder / "policy")
    with jax.set_mesh(make_mesh()):
        policy = jax.jit(Decoder, static_argnums=0)(config.policy, jax.random.key(0))
        hf.save(policy, folder / "policy")
        codec = jax.jit(Codec, static_argnums=0)(config.codec, jax.random.key(1))
    torch_weights.save(codec, folder / "codec.safetensors", np.float32)
    (folder / "config.py").write_text(
        "import pathlib\nfrom tests.small_run import small_config, to_config_dict\n"
        "def get_config():\n"
        f"    return to_config_dict(small_config(pathlib.Path({str(folder)!r})))\n"
    )
    return config


def main() -> None:
    """The command."""
    folder, workdir, *flags = sys.argv[1:]
    Scoring.sidecar_module = "tests.rewards.stand_in_sidecar"
    sys.argv = [sys.argv[0], f"--config={folder}/config.py", f"--workdir={workdir}"]
    sys.argv += flags
    command.run_config(
        train.main, section=Config, config_file="", workdir="", hosts=hosts
    )


assert to_config_dict  # config.py files import it from here

if __name__ == "__main__":
    main()
