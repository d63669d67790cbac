"""Wrong tokens for the scorers' training: as many as asked for, from two sources."""

import jax
import numpy as np
import pytest

from ar3d_jax.codec.recode import recode, wrong_tokens
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig

SMALL = CodecConfig(resolution=8, channels=(2, 4), blocks=(0, 1), codes=16)


def test_share_of_wrong_tokens():
    codes = np.full((200, 128), 7, np.int32)
    codes[1::2] = 9
    share = np.repeat([0.0, 0.5], 100).astype(np.float32)
    wrong = wrong_tokens(codes, share, vocabulary=1000, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(wrong[:100], codes[:100])
    changed = (wrong != codes).mean(axis=1)[100:]
    # Half of the rows take another row's tokens, of which half happen to be the same.
    assert 0.35 < changed.mean() < 0.5
    kinds = [set(row.tolist()) <= {7, 9} for row in wrong[100:]]
    assert 30 < sum(kinds) < 70


def test_without_wrong_tokens_it_is_the_codec_alone():
    codec = Codec(SMALL, jax.random.key(0))
    voxels = np.random.default_rng(0).random((5, 8, 8, 8)) < 0.1
    logits = recode(codec, voxels, np.zeros(5, np.float32), np.random.default_rng(0))
    assert logits.dtype == np.float16
    expected = jax.jit(Codec.decode)(codec, jax.jit(Codec.encode)(codec, voxels))
    np.testing.assert_allclose(logits, expected, atol=1e-2)
    assert logits.std() == pytest.approx(float(np.asarray(expected).std()), rel=0.05)
