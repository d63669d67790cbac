"""A codec file goes out and comes back; a wrong one is refused in one line."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig
from ar3d_jax.errors import UserError

SMALL = CodecConfig(
    resolution=16, channels=(2, 4), blocks=(1, 2), middle_blocks=1, codes=8
)


@pytest.fixture
def file(tmp_path):
    codec = Codec(SMALL, jax.random.key(0))
    path = tmp_path / "codec.safetensors"
    torch_weights.save(codec, path, np.float32)
    return codec, path


def test_saved_and_loaded_is_the_same_codec(file):
    codec, path = file
    loaded = torch_weights.load(path)
    for name in ("resolution", "channels", "blocks", "middle_blocks", "codes"):
        assert getattr(loaded.config, name) == getattr(SMALL, name)
    voxels = np.random.default_rng(0).random((2, 16, 16, 16)) < 0.1
    tokens = codec.encode(voxels)
    assert tokens.shape == (2, SMALL.tokens)
    np.testing.assert_array_equal(loaded.encode(voxels), tokens)
    np.testing.assert_array_equal(loaded.decode(tokens), codec.decode(tokens))


def test_sizes_other_than_the_configs_are_refused(file):
    _, path = file
    other = dataclasses.replace(SMALL, codes=9)
    with pytest.raises(UserError, match=r"vq\.embeddings\.weight is \(8, 32\)"):
        torch_weights.load(path, other)


def test_all_wrong_tensors_are_named(file):
    _, path = file
    tensors = safetensors.numpy.load_file(path)
    del tensors["Decoder.out_layer.2.bias"]
    tensors["Decoder.more"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError) as error:
        torch_weights.load(path, SMALL)
    assert "Decoder.out_layer.2.bias is missing" in str(error.value)
    assert "Decoder.more is unexpected" in str(error.value)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "3DVQVAE.bin"
    with pytest.raises(UserError, match="cannot be read"):
        torch_weights.load(path)
    path.write_bytes(b"pickle")
    with pytest.raises(UserError, match="cannot be read"):
        torch_weights.load(path)


def test_a_folder_with_one_torch_checkpoint(file, tmp_path):
    """What is in it: `test_parity.py`."""
    codec, path = file
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(safetensors.torch.load_file(path), folder / "3DVQVAE.bin")
    loaded = torch_weights.load(folder, SMALL)
    for ours, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(codec), strict=True):
        np.testing.assert_array_equal(ours, want)


def test_a_pickle_that_calls_something_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "called",))

    path = tmp_path / "3DVQVAE.bin"
    torch.save({"vq.embeddings.weight": Harmful()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        torch_weights.load(path)
    assert not (tmp_path / "called").exists()


def test_a_folder_with_two_is_refused(tmp_path):
    for name in ("a.safetensors", "b.bin"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.safetensors, b\.bin; expected one file"):
        torch_weights.load(tmp_path)


def test_tensors_that_cannot_be_right_are_named(file):
    """Zeros where a block's second convolution begins with them are right."""
    _, path = file
    whole = safetensors.numpy.load_file(path)
    assert not whole["Encoder.blocks.0.conv2.weight"].any()
    rows = {name: value.copy() for name, value in whole.items()}
    rows["vq.embeddings.weight"][1:] = 0  # codes that nothing uses
    safetensors.numpy.save_file(rows, path)
    torch_weights.load(path)
    for name, value, problem in (
        ("Encoder.input_layer.weight", 0.0, "is all zeros"),
        ("vq.embeddings.weight", 0.0, "is all zeros"),
        ("Encoder.blocks.0.conv2.weight", np.nan, "has numbers that are not finite"),
        ("Decoder.out_layer.2.bias", np.inf, "has numbers that are not finite"),
    ):
        changed = whole | {name: np.full_like(whole[name], value)}
        safetensors.numpy.save_file(changed, path)
        with pytest.raises(UserError, match=f"{path}: tensor {name} {problem}"):
            torch_weights.load(path)
