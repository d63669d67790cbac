"""Tensors that cannot be right are refused while they are read, sharded or not."""

import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ar3d_jax.errors import UserError
from ar3d_jax.policy import hf, safetensor_files
from ar3d_jax.sharding import make_mesh
from ar3d_jax.tensor_check import CUT_ROWS, TensorCheck
from tests.policy.torch_policy import qwen2

DTYPES = ("float64", "float32", "float16", "bfloat16")
DOWN = "model.layers.1.mlp.down_proj.weight"  # [32, 48]
UP = "model.layers.1.mlp.up_proj.weight"  # [48, 32]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    qwen2(tied=False).save_pretrained(folder)
    return folder


def changed(saved: Path, tmp_path: Path, name: str, index, value: float) -> Path:
    """A copy of the folder in which a part of a tensor is another number."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name][index] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


def refusal(folder: Path, mesh: jax.sharding.Mesh | None = None) -> str:
    with pytest.raises(UserError) as caught:
        hf.load(folder, mesh=mesh or make_mesh(), dtype="float32")
    message = str(caught.value)
    assert message.startswith(str(folder / "model.safetensors: tensor "))
    assert "\n" not in message
    return message.removeprefix(str(folder / "model.safetensors: tensor "))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite(mesh, saved, tmp_path, value):
    """Wherever it is, and on whichever device."""
    for name, index in (
        (DOWN, (31, 47)),
        (UP, (0, 0)),
        ("model.embed_tokens.weight", (5, 3)),
        ("model.layers.0.self_attn.k_proj.bias", 2),
        ("model.norm.weight", -1),
    ):
        folder = changed(saved, tmp_path, name, index, value)
        assert refusal(folder, mesh).startswith(f"{name} has numbers that are not fin")
        shutil.rmtree(folder)


def test_all_zeros(mesh, saved, tmp_path):
    for name in (DOWN, UP, "lm_head.weight", "model.embed_tokens.weight"):
        folder = changed(saved, tmp_path, name, ..., 0.0)
        assert refusal(folder, mesh).startswith(f"{name} is all zeros")
        shutil.rmtree(folder)
    folder = changed(saved, tmp_path, "model.norm.weight", ..., -0.0)
    assert refusal(folder, mesh).startswith("model.norm.weight is all zeros")


def test_an_end_that_is_zeros(mesh, saved, tmp_path):
    for name in (DOWN, UP):
        folder = changed(saved, tmp_path, name, np.s_[-CUT_ROWS:], 0.0)
        assert refusal(folder, mesh).startswith(f"{name} ends in {CUT_ROWS} or more")
        shutil.rmtree(folder)


def test_zeros_that_are_right(mesh, saved, tmp_path):
    """Biases, words that were never seen, and units that died."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    path = folder / "model.safetensors"
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    for name, value in tensors.items():
        if name.endswith("bias"):
            value[:] = 0
    tensors["model.embed_tokens.weight"][-40:] = 0
    tensors["lm_head.weight"][-40:] = 0
    tensors[UP][-CUT_ROWS + 1 :] = 0
    tensors[UP][3:20] = 0
    save_file(tensors, path)
    policy = hf.load(folder, mesh=mesh, dtype="float32")
    found = np.asarray(jax.device_get(policy.embed.get_value()))
    np.testing.assert_array_equal(found, tensors["model.embed_tokens.weight"])


def test_a_file_whose_second_half_is_zeros(saved, tmp_path):
    """As a disk or a download leaves it; wherever the cut is."""
    whole = (saved / "model.safetensors").read_bytes()
    _, start = safetensor_files.read_header(saved / "model.safetensors")
    folder = shutil.copytree(saved, tmp_path / "copy")
    for share in (0.0, 0.3, 0.5, 0.7, 0.9, 0.99):
        kept = start + int(share * (len(whole) - start))
        data = whole[:kept] + bytes(len(whole) - kept)
        (folder / "model.safetensors").write_bytes(data)
        assert "zeros" in refusal(folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    tiny, huge = (
        getattr(ml_dtypes.finfo(kind), name) for name in ("smallest_subnormal", "max")
    )
    for value, problem in (
        (np.nan, "not finite"),
        (-np.nan, "not finite"),
        (-np.inf, "not finite"),
        (-0.0, "all zeros"),
        (tiny, ""),
        (-tiny, ""),
        (huge, ""),
        (-huge, ""),
    ):
        tensor = np.zeros((3, 4), kind)
        tensor[1, 2] = value
        if problem:
            with pytest.raises(UserError, match=f"file: tensor name .*{problem}"):
                look(tensor)
        else:
            look(tensor)


def look(tensor: np.ndarray) -> None:
    check = TensorCheck("file", "name")
    check.look(tensor)
    check.end()
