"""Golden values of the published architecture, and the codec's own invariants."""

import jax
import numpy as np
import pytest

from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig
from tests.codec.golden import GOLDEN, golden_state_dict, golden_voxels


@pytest.fixture(scope="module")
def golden_codec() -> Codec:
    return torch_weights.from_state_dict(golden_state_dict(), GOLDEN)


def test_golden_encode(golden_codec):
    voxels = golden_voxels()[None]
    z = np.asarray(jax.jit(lambda c, v: c.encoder(v))(golden_codec, voxels))
    assert z.mean() == pytest.approx(-0.192074, abs=1e-5)
    assert z.std() == pytest.approx(0.471541, abs=1e-5)
    expected = (
        "-0.048215 -0.098534 -0.216520 0.012149 0.030853 -0.183316 -0.026249 -0.447702"
    )
    np.testing.assert_allclose(
        z[0, 7, 8, 9], np.array(expected.split(), float), atol=1e-5
    )
    codes = np.asarray(jax.jit(Codec.encode)(golden_codec, voxels))[0]
    expected = "22 49 49 49 19 57 57 57 21 54 23 49 8 51 54 49"
    np.testing.assert_array_equal(codes[:16], np.array(expected.split(), int))
    np.testing.assert_array_equal(codes[500:508], [43, 54, 54, 50, 43, 6, 15, 15])
    assert codes.sum() == 36882


def test_golden_decode(golden_codec):
    tokens = np.arange(1024)[None] % 64
    logits = np.asarray(jax.jit(Codec.decode)(golden_codec, tokens))[0]
    assert logits.mean() == pytest.approx(0.154952, abs=1e-5)
    assert logits.std() == pytest.approx(0.517919, abs=1e-5)
    assert abs(int((logits > 0).sum()) - 160757) <= 5  # rounding at the zero level
    np.testing.assert_allclose(
        logits[5, 6, 7:11], [0.930018, 0.305313, 0.166966, -1.013285], atol=1e-5
    )
    assert logits[60, 3, 33] == pytest.approx(-1.438359, abs=1e-5)


def test_published_size_without_weights():
    published = CodecConfig(
        resolution=64,
        channels=(32, 128, 512),
        blocks=(2, 2, 2),
        middle_blocks=2,
        codes=8192,
    )
    template = jax.eval_shape(lambda key: Codec(published, key), jax.random.key(0))
    leaves = torch_weights.named_leaves(template)
    counts = dict.fromkeys(("Encoder", "Decoder", "vq"), 0)
    for name, leaf in leaves.items():
        counts[name.split(".")[0]] += leaf.size
    assert counts == {"Encoder": 59_298_192, "Decoder": 73_671_201, "vq": 262_144}
    assert leaves["Decoder.blocks.5.conv.weight"].shape == (3, 3, 3, 128, 256)
    assert published.tokens == 1024
