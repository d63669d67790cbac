"""Weights in and out: `python -m ar3d_jax.convert from_hf|to_hf --source=… --out=…`.

`to_hf` turns a training's workdir into a Hugging Face folder that transformers and vLLM
load: the folder that training began with (`policy.weights`, or `--base`), with its text
model's tensors replaced (LoRA's change merged into them); its vision tower, tokenizer
and processor come along.

`from_hf` is only for speed. Training reads a Hugging Face folder itself; where many
hosts start often, or read from a bucket, a checkpoint of the same weights is read in
parallel: pass its folder as `--config.policy.weights`.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from ar3d_jax import command
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.errors import UserError, write_whole, writing
from ar3d_jax.generate import checkpoint_config, load_trained
from ar3d_jax.models import CONVERTED, load_policy
from ar3d_jax.policy import hf, lora
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.sharding import make_mesh
from ar3d_jax.weights import resolve


def from_hf(source: str, out: Path, *, dtype: str, mesh: jax.sharding.Mesh) -> None:
    """Writes a Hugging Face folder's policy as a checkpoint, beside its small files.

    Raises:
        UserError: no such weights, `out` cannot be written or is not empty.
    """
    folder = resolve(source, "policy.weights")
    if (out / CONVERTED).exists():
        raise UserError(f"--out={out} has weights already; choose another folder")
    policy = hf.load(folder, mesh=mesh, dtype=dtype)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        hf.copy_small_files(folder, out)
        config = json.loads((folder / hf.CONFIG_FILE).read_text("utf-8"))
        config |= {"vocab_size": policy.cfg.vocab_size, "torch_dtype": dtype}
        write_whole(out / hf.CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    with Checkpoints(out / CONVERTED, keep=1, settings={}) as checkpoints:
        checkpoints.save({"policy": policy}, 0, {})
    print(f"{out}: pass --config.policy.weights={out}")


def to_hf(source: Path, out: Path, *, base: str, mesh: jax.sharding.Mesh) -> None:
    """Writes a training's newest policy into a copy of the folder it began with.

    Raises:
        UserError: `source` is no workdir or has no checkpoint, `base` is another model,
            `out` cannot be written.
    """
    config = checkpoint_config(source)
    folder = resolve(base or config.policy.weights, "policy.weights")
    if out.exists() and folder.samefile(out):
        raise UserError(f"--out={out} is the base itself; choose another folder")
    sizes = hf.read_sizes(folder)
    cfg = dataclasses.replace(config.policy, vocab_size=sizes.vocab_size)
    with jax.set_mesh(mesh):
        if config.lora.rank:
            start = load_policy(folder, cfg, mesh)
        else:
            start = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
        policy = load_trained(start, config.lora, source)
        if config.lora.rank:
            policy = lora.merged(policy)
        hf.save(policy, out, base=folder)
    print(f"{out}: the policy of {source}")


def _define_flags() -> None:
    flags.DEFINE_string("source", None, "a folder or Hugging Face id", required=True)
    flags.DEFINE_string("out", None, "folder to write", required=True)
    flags.DEFINE_string("base", "", "to_hf: the folder to take the rest from")
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "from_hf: of them")
    flags.DEFINE_integer("fsdp", 1, "devices that share the parameters", 1)
    flags.DEFINE_integer("tp", 1, "devices that share heads", 1)


def main(arguments: list[str]) -> None:
    """The command."""
    values = flags.FLAGS
    mesh, out = make_mesh(values.fsdp, values.tp), Path(values.out)
    if arguments[1] == "from_hf":
        dtype = jnp.dtype(values.dtype).name
        from_hf(values.source, out, dtype=dtype, mesh=mesh)
    else:
        to_hf(Path(values.source), out, base=values.base, mesh=mesh)


if __name__ == "__main__":
    _define_flags()
    command.run(main, verbs=("from_hf", "to_hf"))
