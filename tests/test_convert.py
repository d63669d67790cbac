"""Weights out of a training and in again, as commands."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from ar3d_jax.generate import checkpoint_config
from ar3d_jax.models import load_models, load_policy
from ar3d_jax.policy import hf
from ar3d_jax.sharding import make_mesh


def convert(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ar3d_jax.convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_trained_policy_in_the_folder_it_began_with(trained: Path, tmp_path: Path):
    config = checkpoint_config(trained)
    base, out = Path(config.policy.weights), tmp_path / "out"
    done = convert("to_hf", f"--source={trained}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert {f.name for f in out.iterdir()} == {f.name for f in base.iterdir()}
    before, after = (load_file(f / hf.WEIGHTS_FILE) for f in (base, out))
    assert before.keys() == after.keys()
    name = "model.layers.0.mlp.up_proj.weight"
    assert (before[name] != after[name]).any(), "one step of training changed nothing"

    # What is written is a policy again: here, and in transformers.
    again = dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, weights=str(out))
    )
    policy = load_models(again, make_mesh()).policy
    model = transformers.Qwen2ForCausalLM.from_pretrained(out)
    np.testing.assert_array_equal(
        np.asarray(policy.embed[...]), model.model.embed_tokens.weight.detach().numpy()
    )


def test_published_weights_as_a_checkpoint(trained: Path, tmp_path: Path):
    cfg = checkpoint_config(trained).policy
    out = tmp_path / "out"
    done = convert(
        "from_hf", f"--source={cfg.weights}", f"--out={out}", "--dtype=float32"
    )
    assert done.returncode == 0, done.stderr
    assert f"--config.policy.weights={out}" in done.stdout
    mesh = make_mesh()
    converted = load_policy(out, cfg, mesh)
    direct = load_policy(Path(cfg.weights), cfg, mesh)
    jax.tree.map(np.testing.assert_array_equal, converted, direct)
    assert (out / "tokenizer.json").exists()
    assert convert("from_hf", f"--source={cfg.weights}", f"--out={out}").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "after the command; expected from_hf or to_hf"),
        (("sideways",), "'sideways' after the command; expected"),
        (("to_hf",), "cannot read .*config.json"),
        (("from_hf",), "no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, arguments, message):
    done = convert(*arguments, f"--source={tmp_path / 'no'}", f"--out={tmp_path / 'x'}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(message, line), line


def test_the_base_is_not_overwritten(trained: Path, tmp_path: Path):
    base = shutil.copytree(checkpoint_config(trained).policy.weights, tmp_path / "base")
    done = convert("to_hf", f"--source={trained}", f"--base={base}", f"--out={base}")
    assert done.returncode == 2
    assert "is the base itself" in done.stderr
