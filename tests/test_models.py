"""The networks of a run: what belongs together, and decoding in fixed batches."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ar3d_jax import hosts, models
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig, RolloutConfig
from ar3d_jax.errors import UserError
from ar3d_jax.models import DECODE_ROWS, decode_rows, load_models, sample_steps
from ar3d_jax.policy import chat, tokenizer
from ar3d_jax.rollout.two_step import rollout_one_step
from ar3d_jax.sharding import make_mesh
from tests import small_run


def test_decoding_in_batches_is_decoding(mesh):
    config = CodecConfig(resolution=8, channels=(2, 4), blocks=(0, 1), codes=16)
    rng = np.random.default_rng(0)
    rows = DECODE_ROWS * mesh.size + 3
    codes = rng.integers(16, size=(rows, config.tokens)).astype(np.int32)
    with jax.set_mesh(make_mesh()):
        codec = Codec(config, jax.random.key(0))
        expected = np.asarray(jax.jit(Codec.decode)(codec, codes))
    codec = hosts.on_all_devices(codec)
    for some in (rows, 5, 1):
        logits = decode_rows(codec, codes[:some])
        np.testing.assert_allclose(logits, expected[:some], atol=1e-5)


def test_lengths_that_are_allowed_but_not_needed_compile_nothing(tmp_path):
    """Training pins one length, samples and evaluation do not: one program for all."""
    config = small_run.make_weights(tmp_path)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        models = load_models(config, mesh)

        def sample(*lengths):
            (step,) = sample_steps(
                models,
                models.policy,
                ["a lamp", "a box"],
                jax.random.key(0),
                RolloutConfig(plans=False, prompt_tokens=lengths),
                paradigm="grpo",
                group_size=2,
            )
            return step.shape.tokens.shape[1], rollout_one_step._cache_size()

        assert sample(80) == sample(80, 320) == sample(8, 80, 400)
        assert sample(96)[1] == sample(96, 97)[1] == sample(80)[1]


def test_a_tokenizer_and_a_codec_that_do_not_belong_together_are_refused(tmp_path):
    config = small_run.make_weights(tmp_path)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        models = load_models(config, mesh)
        assert models.vocab.codes == config.codec.codes
        other = tokenizer.build([chat.TEMPLATE], codes=config.codec.codes * 2)
        other.save(tmp_path / "policy")
        with pytest.raises(UserError, match=r"32 mesh tokens; the codec .* 16 codes"):
            load_models(config, mesh)


def test_a_tokenizer_with_more_ids_than_the_policy_has_rows_is_refused(tmp_path):
    config = small_run.make_weights(tmp_path)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(500)]
    tokenizer.build(words, codes=config.codec.codes).save(tmp_path / "policy")
    mesh = make_mesh()
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match=r"ids; policy\.vocab_size is 512: raise it"),
    ):
        load_models(config, mesh)


def test_a_codec_of_another_resolution_is_refused(tmp_path):
    config = small_run.make_weights(tmp_path)
    other = dataclasses.replace(
        config, codec=dataclasses.replace(config.codec, resolution=16)
    )
    mesh = make_mesh()
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match=r"8\^3 voxels; codec.resolution is 16"),
    ):
        load_models(other, mesh)


def test_missing_weights_are_named(tmp_path):
    config = small_run.small_config(tmp_path)
    missing = dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, weights=str(tmp_path / "no"))
    )
    mesh = make_mesh()
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match="there is no such file or folder"),
    ):
        load_models(missing, mesh)


@pytest.mark.parametrize(
    ("value", "problem"),
    [(np.nan, "has numbers that are not finite"), (0.0, "is all zeros")],
)
def test_a_converted_checkpoint_that_cannot_be_right_is_refused(
    weights, tmp_path, value, problem
):
    config, mesh = small_run.small_config(weights), make_mesh()
    with jax.set_mesh(mesh):
        policy = models.load_policy(weights / "policy", config.policy, mesh)
        assert (policy.blocks.qkv_bias.get_value() == 0).all()  # which is right
        for number, (owner, name) in enumerate(
            ((policy, None), (policy, "norm"), (policy.blocks, "out"))
        ):
            place = tmp_path / f"copy{number}"
            place.mkdir()
            shutil.copy(weights / "policy" / "config.json", place)
            if name:
                kept = getattr(owner, name).get_value()
                setattr(owner, name, nnx.Param(jnp.full_like(kept, value)))
            with Checkpoints(place / models.CONVERTED, keep=1, settings={}) as found:
                found.save({"policy": policy}, 0, {})
            if not name:
                models.load_policy(place, config.policy, mesh)
                continue
            with pytest.raises(UserError, match=f"{name} {problem}; convert the weig"):
                models.load_policy(place, config.policy, mesh)
            setattr(owner, name, nnx.Param(kept))
