"""The command that makes objects: from weights, from a training, from bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import pytest

from ar3d_jax import same_run
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.config import Config, LoraConfig, to_dict
from ar3d_jax.errors import UserError
from ar3d_jax.generate import checkpoint_config, load_trained
from ar3d_jax.models import load_models
from ar3d_jax.policy import lora
from ar3d_jax.sharding import make_mesh
from tests.small_run import small_config

pytestmark = pytest.mark.usefixtures("egl")


def generate(*flags, check=True):
    command = [sys.executable, "-m", "ar3d_jax.generate", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_objects_from_a_training_are_the_same_each_time(trained, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a low bench\na box\n")
    for out in ("one", "two"):
        generate(
            f"--checkpoint={trained}",
            "--prompt=a tall chair",
            f"--prompts={prompts}",
            f"--out={tmp_path / out}",
            "--seed=3",
        )
    folders = [p for p in (tmp_path / "one").iterdir() if (p / "plans.json").exists()]
    assert len(folders) == 3
    told = {json.loads((f / "plans.json").read_text())["prompt"] for f in folders}
    assert told == {"a tall chair", "a low bench", "a box"}
    for folder in folders:
        for name in ("coarse.glb", "refined.glb", "views.png", "plans.json"):
            twin = tmp_path / "two" / folder.name / name
            assert twin.read_bytes() == (folder / name).read_bytes(), name
    assert (tmp_path / "one" / "index.html").exists()


def test_the_best_policy_of_a_training(trained, tmp_path):
    generate(f"--checkpoint={trained}", "--best", "--prompt=a box", f"--out={tmp_path}")
    assert (tmp_path / "a-box/refined.glb").exists()


def test_other_weights_and_one_step(weights, tmp_path):
    """As the paper's published model: no plans, the template alone."""
    generate(
        f"--config={weights / 'config.py'}",
        f"--weights={weights / 'policy'}",
        "--one_step",
        "--prompt=a box",
        f"--out={tmp_path}",
    )
    files = {path.name for path in (tmp_path / "a-box").iterdir()}
    assert files == {"shape.glb", "views.png", "plans.json"}
    assert json.loads((tmp_path / "a-box/plans.json").read_text())["plans"] == {}
    assert "shape.glb" in (tmp_path / "index.html").read_text()


def test_bad_input_is_one_line_and_status_2(trained, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("ein Stuhl für mich".encode("iso-8859-1"))
    out = f"--out={tmp_path / 'out'}"
    cases = {
        (): "out",
        (out,): "no prompt",
        (out, "--prompt= "): "no prompt",
        (out, f"--prompts={latin}"): "UTF-8",
        (out, "--prompt=a box", f"--checkpoint={tmp_path}"): "workdir of python -m",
        (out, "--prompt=a box", "--sede=1"): "sede",
        (out, "--prompt=a box", "--weights=x/y"): "--weights or --codec_weights",
        (out, "--prompt=a box", "--fsdp=3"): "devices",
        (out, f"--checkpoint={trained}", f"--prompt={'word ' * 400}"): "shorten it",
        (out, "--prompt=a box", "--best"): "--best without --checkpoint",
    }
    for flags, expected in cases.items():
        done = generate(*flags, check=False)
        assert done.returncode == 2, (flags, done.stderr)
        assert "Traceback" not in done.stderr
        assert expected in done.stderr.splitlines()[-1], (flags, done.stderr)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '{"policy": 3}', "[" * 60_000, "\xff"]
)
def test_a_damaged_config_is_one_line_with_the_remedy(tmp_path, text):
    (tmp_path / "config.json").write_text(text, "latin-1")
    with pytest.raises(UserError) as caught:
        checkpoint_config(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"--checkpoint={tmp_path}: cannot read {tmp_path}/config")
    assert "writes a damaged config.json anew when its command is given again" in line
    (tmp_path / "config.json").write_text(json.dumps(to_dict(Config())))
    assert checkpoint_config(tmp_path) == Config()


@pytest.mark.parametrize("rank", [0, 4])
def test_weights_that_were_replaced_after_the_training_are_refused(
    weights, tmp_path, rank
):
    """The codec's always, and those below LoRA's: both make another policy."""
    copy = shutil.copytree(weights, tmp_path / "weights")
    config = dataclasses.replace(small_config(copy), lora=LoraConfig(rank=rank))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        policy = load_models(config, mesh).policy
        start = lora.attach(policy, config.lora, jax.random.key(0)) if rank else policy
        state = {"policy": lora.trained(start)}
        place = tmp_path / "checkpoints"
        held = same_run.held(config)
        with Checkpoints(place, keep=1, settings={}, held=held) as checkpoints:
            checkpoints.save(state, 1, {})
        load_trained(policy, config.lora, tmp_path)
        for field, file, matters in (
            ("codec.weights", copy / "codec.safetensors", True),
            ("policy.weights", copy / "policy" / "model.safetensors", rank > 0),
        ):
            before = file.read_bytes()
            file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
            if matters:
                with pytest.raises(UserError, match=f"{field}=.* held something else"):
                    load_trained(policy, config.lora, tmp_path)
            else:
                load_trained(policy, config.lora, tmp_path)
            file.write_bytes(before)
