"""Supervised training: the rollout's layout, the loss by hand, exact resumption."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import sft
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig, PolicyConfig, RolloutConfig, SftConfig
from ar3d_jax.errors import Diverged, UserError
from ar3d_jax.policy import hf
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.tokenizer import Tokenizer
from ar3d_jax.rollout.two_step import rollout_coarse, rollout_refined
from ar3d_jax.sharding import make_mesh

CODEC = CodecConfig(resolution=8, channels=(2, 4), blocks=(0, 1), codes=16)
POLICY = PolicyConfig(
    vocab_size=1152, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp_width=48
)


@pytest.fixture(scope="module")
def config(catalog_8, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "codec.safetensors"
    codec = Codec(CODEC, jax.random.key(0))
    torch_weights.save(codec, file, np.float32)
    return SftConfig(
        policy=POLICY,
        codec=dataclasses.replace(CODEC, weights=str(file)),
        catalog=str(catalog_8),
        steps=6,
        warmup_steps=2,
        batch=2,
        lr=5e-3,
        plan_tokens=64,
        prompt_tokens=(160,),
        eval_every=3,
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    sft.train(config, str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer(trained):
    return Tokenizer.load(trained / "policy")


@pytest.fixture
def batch(config, trained, tokenizer):
    data = sft.load_data(config, trained)
    examples = [data.examples[i] for i in range(2)]
    return sft.make_batch(examples, data.codes, tokenizer, config), examples, data


def test_a_run_learns_and_leaves_a_policy(config, trained):
    text = (trained / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert lines[-1]["held_out/text_perplexity"] > 1
    assert 1 < lines[-1]["held_out/codes_perplexity"] < 2 * CODEC.codes
    assert json.loads((trained / "config.json").read_text())["steps"] == 6
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        policy = hf.load(trained / "policy", mesh=mesh, dtype="float32", cfg=POLICY)
    assert isinstance(policy, Decoder)


def test_the_codes_are_the_codecs_of_the_rows_that_examples_name(
    config, batch, tokenizer
):
    made, examples, _ = batch
    codec = torch_weights.load(config.codec.weights, config.codec)
    rows = sft.load_augmented(f"{config.catalog}/augmented.npz")
    grids = rows.voxels(np.array([example.row for example in examples]))
    codes = np.asarray(jax.jit(Codec.encode)(codec, grids))
    np.testing.assert_array_equal(made.shape - tokenizer.vocab.codes_start, codes)


def test_sequences_are_laid_out_as_the_rollout_lays_them_out(batch, tokenizer, config):
    made, _, _ = batch
    ours = sft.sequences(made, tokenizer.vocab)
    policy = Decoder(POLICY, jax.random.key(0))
    cfg = RolloutConfig(
        plan_tokens=config.plan_tokens,
        prompt_tokens=config.prompt_tokens,
        temperature=1.0,  # what supervised training learns
    )
    sizes = {"group_size": 1, "shape_tokens": CODEC.tokens}
    arguments = (cfg, tokenizer.vocab, jax.random.key(0))
    coarse, cache = rollout_coarse(policy, made.prompts, *arguments, **sizes)
    local, refined = rollout_refined(
        policy, made.prompts, coarse, cache, *arguments, **sizes
    )
    for one, other in zip(ours, (coarse, local, refined), strict=True):
        assert one.layout == other.layout
        assert one.tokens.shape == other.tokens.shape
    start, stop = coarse.layout.text
    np.testing.assert_array_equal(ours[0].tokens[:, :start], coarse.tokens[:, :start])
    np.testing.assert_array_equal(
        ours[0].tokens[:, stop], coarse.tokens[:, stop]
    )  # <mesh-start>
    start, stop = local.layout.text
    given = slice(start - len(made.prompts.low_turn), start)
    np.testing.assert_array_equal(ours[1].tokens[:, given], local.tokens[:, given])


def test_the_loss_counts_plans_and_shapes_once_each(batch, tokenizer):
    made, examples, _ = batch
    _, counts = sft.token_losses(
        Decoder(POLICY, jax.random.key(0)), made, tokenizer.vocab
    )
    plans = sum(
        len(tokenizer.plain(text)) + 1  # the end of turn
        for example in examples
        for text in (example.global_plan, example.local_plan)
    )
    assert int(counts["text"]) == plans
    assert int(counts["codes"]) == 2 * 2 * CODEC.tokens  # coarse and refined


class Killed(Exception):
    pass


def test_interrupted_it_goes_on_to_the_same_policy(
    trained, config, tmp_path, monkeypatch
):
    original, calls = sft.make_batch, []

    def make(*arguments):
        calls.append(None)
        if len(calls) == 6:  # in the fifth step, after an evaluation
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(sft, "make_batch", make)
    with pytest.raises(Killed):
        sft.train(config, str(tmp_path))
    monkeypatch.undo()
    sft.train(config, str(tmp_path))
    name = "policy/model.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_plan_that_does_not_fit_is_refused(batch, tokenizer, config):
    _, examples, data = batch
    short = dataclasses.replace(config, plan_tokens=3)
    with pytest.raises(UserError, match="at most plan_tokens=3 fit: raise it"):
        sft.make_batch(examples, data.codes, tokenizer, short)


def test_a_vocabulary_that_does_not_fit_is_refused(config, tmp_path):
    small = dataclasses.replace(POLICY, vocab_size=64)
    with pytest.raises(UserError, match=r"policy.vocab_size is 64: raise it"):
        sft.train(dataclasses.replace(config, policy=small), str(tmp_path))


def test_a_training_that_diverges_ends_and_saves_no_such_weights(
    config, tmp_path, monkeypatch
):
    step, calls = sft.train_step, []

    def wild(*args, **kwargs):
        state, metrics = step(*args, **kwargs)
        calls.append(jnp.nan if len(calls) == 2 else 1.0)
        return jax.tree.map(lambda x: x * calls[-1], state), metrics

    monkeypatch.setattr(sft, "train_step", wild)
    often = dataclasses.replace(config, checkpoint_every=1)
    with pytest.raises(Diverged, match="weights are not finite after 3 steps"):
        sft.train(often, str(tmp_path))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    hf.load(tmp_path / "policy", mesh=make_mesh(), dtype="float32")

    def broken(*args, **kwargs):
        state, metrics = step(*args, **kwargs)
        return state, metrics | {"grad_norm": np.float32(np.inf)}

    monkeypatch.setattr(sft, "train_step", broken)
    quiet = dataclasses.replace(config, steps=40, checkpoint_every=100)
    with pytest.raises(Diverged, match=r"5 steps in a row.*lower lr"):
        sft.train(quiet, str(tmp_path / "quiet"))
    assert [p.name for p in (tmp_path / "quiet" / "checkpoints").iterdir()] == ["5"]


def test_another_catalog_under_the_same_name_is_refused(config, trained):
    file = pathlib.Path(config.catalog) / "objects.jsonl"
    before = file.read_text()
    file.write_text(before.replace("{", "{ ", 1))
    try:
        with pytest.raises(UserError, match=r"catalog/objects\.jsonl=.* held somethin"):
            sft.train(config, str(trained))
    finally:
        file.write_text(before)
