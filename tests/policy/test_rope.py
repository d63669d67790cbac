"""Rotary embedding: one pair by hand, and scores that depend on distance alone."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2 import modeling_qwen2

from ar3d_jax.policy.rope import rotate, rotation
from tests.policy import torch_policy


def test_one_pair_by_hand():
    """Head size 4: pairs (0, 2) and (1, 3), angles 3 and 3 / 10."""
    turn = rotation(jnp.array([[3]]), head_size=4, theta=100.0)
    x = jnp.array([[[1.0, 2.0, 3.0, 4.0]]])
    a, b = 3.0, 0.3
    expected = [
        np.cos(a) - 3 * np.sin(a),
        2 * np.cos(b) - 4 * np.sin(b),
        3 * np.cos(a) + np.sin(a),
        4 * np.cos(b) + 2 * np.sin(b),
    ]
    np.testing.assert_allclose(rotate(x, turn)[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("head_size", [8, 128])
def test_angles_are_those_of_transformers(head_size: int):
    """Far out, too: there, one bit in a frequency would be 5e-4."""
    model = torch_policy.qwen2(tied=True, head_dim=head_size)
    positions = torch.arange(4000)[None]
    module = modeling_qwen2.Qwen2RotaryEmbedding(model.config)
    turn = rotation(jnp.asarray(positions.numpy()), head_size=head_size, theta=1e6)
    for ours, theirs in zip(turn, module(torch.zeros(1), positions), strict=True):
        half = theirs[..., : head_size // 2].numpy()
        np.testing.assert_allclose(ours, half, rtol=0, atol=1e-6)


def test_scores_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (
        jnp.asarray(np.tile(rng.normal(size=(1, 1, 2, 8)), (1, 50, 1, 1)), jnp.float32)
        for _ in range(2)
    )
    turn = rotation(jnp.arange(50)[None], head_size=8, theta=1e4)
    scores = np.einsum("bthd,bshd->hts", rotate(q, turn), rotate(k, turn))
    for distance in (0, 1, 7):
        diagonal = np.diagonal(scores, -distance, axis1=1, axis2=2)
        np.testing.assert_allclose(
            diagonal, diagonal[:, :1].repeat(50 - distance, 1), rtol=1e-4, atol=1e-4
        )


def test_lengths_and_dtype_stay():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 2, 8)), jnp.bfloat16)
    turn = rotation(jnp.arange(10).reshape(2, 5), head_size=8, theta=1e6)
    turned = rotate(x, turn)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.linalg.norm(np.asarray(turned, np.float32), axis=-1),
        np.linalg.norm(np.asarray(x, np.float32), axis=-1),
        rtol=2e-2,
    )
