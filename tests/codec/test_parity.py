"""Parity with torch: the published architecture in torch's own operators."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional

from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig
from tests.codec.golden import GOLDEN, golden_state_dict, golden_voxels
from tests.codec.torch_vqvae import VQVAE3D

torch.set_num_threads(1)  # at these sizes threads only wait for each other

SMALL = CodecConfig(
    resolution=32, channels=(6, 8, 20), blocks=(2, 2, 2), middle_blocks=2, codes=64
)
# Two widths have all the kinds of layers that there are, in less to compile.
SHALLOW = CodecConfig(
    resolution=16, channels=(6, 12), blocks=(2, 2), middle_blocks=2, codes=64
)


def random_voxels(rows: int, config: CodecConfig = SMALL) -> np.ndarray:
    """Of different density; the last one is empty."""
    share = np.linspace(0.4, 0, rows).reshape(rows, 1, 1, 1)
    size = (rows, *(config.resolution,) * 3)
    return np.random.default_rng(1).random(size) < share


def random_model(config: CodecConfig = SMALL) -> VQVAE3D:
    """Every parameter matters; the codes are where the latents are."""
    torch.manual_seed(0)
    model = VQVAE3D(config.channels, config.codes).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 5:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(float("norm" in name or ".0.weight" in name), 0.2)
        latents = model.latents(torch.from_numpy(random_voxels(3, config)))
        chosen = torch.randperm(latents.shape[0] * latents.shape[1])[: config.codes]
        model.vq.embeddings.weight.copy_(latents.flatten(0, 1)[chosen] + 0.1)
    return model


def write(model: VQVAE3D, path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)


def assert_same(codec: Codec, model: VQVAE3D, voxels: np.ndarray) -> None:
    with torch.inference_mode():
        latents = model.latents(torch.from_numpy(voxels))
        distances = torch.cdist(latents, model.vq.embeddings.weight).sort(-1).values
        tokens = model.encode(torch.from_numpy(voxels))
        logits = model.decode(tokens)
    ours = np.asarray(jax.jit(Codec.latents)(codec, voxels))
    np.testing.assert_allclose(ours, latents, atol=1e-4)
    # Codes are far enough apart for equality to be a matter of code, not of rounding.
    assert (distances[..., 1] - distances[..., 0]).min() > 2e-5
    assert len(tokens.unique()) > len(model.vq.embeddings.weight) / 4
    np.testing.assert_array_equal(jax.jit(Codec.encode)(codec, voxels), tokens)
    ours = np.asarray(jax.jit(Codec.decode)(codec, tokens.numpy()))
    assert logits.std() > 0.1
    np.testing.assert_allclose(ours, logits, atol=1e-4)


@pytest.mark.parametrize("torso", ["float32", "float16"])
@pytest.mark.parametrize("name", ["3DVQVAE.bin", "codec.safetensors"])
def test_a_published_file(tmp_path: Path, name: str, torso: str):
    """A float16 torso is what is published; we compute with its values in float32."""
    model = random_model()
    if torso == "float16":
        model.half_torso()
        dtypes = [value.dtype for value in model.state_dict().values()]
        assert {torch.float16, torch.float32} == set(dtypes)
    write(model, tmp_path / name)
    codec = torch_weights.load(tmp_path / name, SMALL)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(codec))
    assert_same(codec, model.float(), random_voxels(3))


def test_float16_arithmetic_is_close(tmp_path: Path):
    """The published model also computes its torso in float16."""
    model, voxels = random_model().half_torso(), random_voxels(2)
    write(model, tmp_path / "codec.safetensors")
    codec = torch_weights.load(tmp_path / "codec.safetensors", SMALL)
    with torch.inference_mode():
        theirs = model.latents(torch.from_numpy(voxels)).numpy()
    ours = np.asarray(jax.jit(Codec.latents)(codec, voxels))
    error = np.sqrt(np.square(ours - theirs).mean()) / theirs.std()
    assert 0 < error < 3e-3


def test_the_golden_network():
    """As the golden values are those of the published code, so is this peer."""
    state = golden_state_dict()
    model = VQVAE3D(GOLDEN.channels, GOLDEN.codes).eval()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    codec = torch_weights.from_state_dict(state, GOLDEN)
    assert_same(codec, model, golden_voxels()[None])


def test_published_names_and_shapes():
    """Those of the full size, without its memory."""
    with torch.device("meta"):
        theirs = {k: tuple(v.shape) for k, v in VQVAE3D().state_dict().items()}
    cfg = torch_weights.infer_config(theirs)
    codec = jax.eval_shape(lambda key: Codec(cfg, key), jax.random.key(0))
    ours = {
        name: torch_weights._to_torch(np.empty(leaf.shape, bool)).shape
        for name, leaf in torch_weights.named_leaves(codec).items()
    }
    assert ours == theirs
    assert (cfg.resolution, cfg.tokens, cfg.codes) == (64, 1024, 8192)


def test_gradients():
    """Of the reconstruction loss, through the decoder and the encoder."""
    model, voxels = random_model(SHALLOW), random_voxels(2, SHALLOW)
    state = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    codec = torch_weights.from_state_dict(state, SHALLOW)

    def loss(codec: Codec) -> jax.Array:
        logits = codec.decode_latents(codec.latents(voxels))
        return (jax.nn.softplus(logits) - logits * voxels).mean()

    found = torch_weights.named_leaves(jax.jit(jax.grad(loss))(codec))
    target = torch.from_numpy(voxels).float()
    z = model.Encoder(target[:, None])
    logits = model.Decoder(z)[:, 0]
    functional.binary_cross_entropy_with_logits(logits, target).backward()
    for name, parameter in model.named_parameters():
        ours = torch_weights._to_torch(np.asarray(found[name]))
        if name == "vq.embeddings.weight":
            assert parameter.grad is None
            assert not ours.any()
            continue
        theirs = parameter.grad.numpy()
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 1e-3, name
