"""Codec training: losses by hand, phases, exact resumption, refining a decoder."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import train_codec
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig, CodecTrainingConfig
from ar3d_jax.errors import Diverged, UserError
from ar3d_jax.train_codec import Phase, draw_batch

CONFIG = CodecTrainingConfig(
    codec=CodecConfig(resolution=8, channels=(2, 4), blocks=(0, 1), codes=16),
    steps=8,
    warmup=4,
    decoder_steps=4,
    batch=2,
    lr_warmup=2,
    kmeans_batches=2,
    eval_every=4,
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def config(catalog_8):
    return dataclasses.replace(CONFIG, catalog=str(catalog_8))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    train_codec.train(config, str(folder))
    return folder


def tensors(folder):
    codec = torch_weights.load(folder / "codec.safetensors")
    return {k: np.asarray(v) for k, v in torch_weights.named_leaves(codec).items()}


def test_reconstruction_loss_by_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    voxels = rng.random((2, 4, 4, 4)) < 0.3
    expected = []
    for x, y in zip(logits, voxels, strict=True):
        p = 1 / (1 + np.exp(-x))
        dice = 1 - (2 * p[y].sum() + 1) / (p.sum() + y.sum() + 1)
        cross = -(np.log(p[y]).sum() + np.log(1 - p[~y]).sum())
        expected.append(dice + cross / (y.sum() + 1))
    loss = train_codec.reconstruction_loss(*map(jnp.asarray, (logits, voxels)))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_phases_follow_the_config():
    phases = [Phase.of(step, CONFIG) for step in range(12)]
    assert phases == (
        [Phase.CONTINUOUS] * 4 + [Phase.QUANTISED] * 4 + [Phase.DECODER] * 4
    )


def test_a_batch_follows_from_its_step_and_front_is_not_turned(catalog_8):
    rows = train_codec.load_augmented(catalog_8 / "augmented.npz")
    one, again = (draw_batch(rows, 3, CONFIG, front=False) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    fronts = rows.voxels(np.flatnonzero(rows.front))
    either = np.concatenate([fronts, fronts[:, ::-1]])
    for step in range(10):
        for grid in draw_batch(rows, step, CONFIG, front=True):
            assert (grid == either).all(axis=(1, 2, 3)).any()


def test_a_run_leaves_a_codec_and_numbers(trained):
    codec = torch_weights.load(trained / "codec.safetensors", CONFIG.codec)
    assert codec.config.codes == 16
    text = (trained / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert 0 <= lines[-1]["held_out/iou"] <= 1
    assert [line["codes_used"] > 0 for line in lines] == [
        Phase.of(step, CONFIG) is Phase.QUANTISED for step in range(12)
    ]


class Killed(Exception):
    pass


@pytest.mark.parametrize("last", [3, 7, 9])
def test_interrupted_anywhere_it_goes_on_to_the_same_codec(
    trained, config, tmp_path, monkeypatch, last
):
    original = train_codec.draw_batch

    def draw(rows, step, config, *, front):
        if step == last:
            raise Killed
        return original(rows, step, config, front=front)

    monkeypatch.setattr(train_codec, "draw_batch", draw)
    with pytest.raises(Killed):
        train_codec.train(config, str(tmp_path))
    monkeypatch.undo()
    train_codec.train(config, str(tmp_path))
    for name, value in tensors(trained).items():
        np.testing.assert_array_equal(tensors(tmp_path)[name], value, err_msg=name)
    logs = [(f / "metrics.jsonl").read_text() for f in (trained, tmp_path)]
    assert logs[0] == logs[1]


def test_refining_keeps_tokens_and_changes_the_decoder(trained, config, tmp_path):
    start = trained / "codec.safetensors"
    refined = dataclasses.replace(config, refine=str(start))
    train_codec.train(refined, str(tmp_path))
    before, after = tensors(trained), tensors(tmp_path)
    changed = {n.split(".")[0] for n in before if (before[n] != after[n]).any()}
    assert changed == {"Decoder"}
    voxels = np.random.default_rng(0).random((4, 8, 8, 8)) < 0.2
    encode = jax.jit(Codec.encode)
    codecs = [torch_weights.load(f / "codec.safetensors") for f in (trained, tmp_path)]
    np.testing.assert_array_equal(*(encode(codec, voxels) for codec in codecs))


def test_refining_a_codec_of_other_sizes_is_refused(trained, config, tmp_path):
    other = dataclasses.replace(config.codec, codes=32)
    wrong = dataclasses.replace(
        config, refine=str(trained / "codec.safetensors"), codec=other
    )
    with pytest.raises(
        UserError, match=r"vq\.embeddings\.weight is \(16, 32\), expected"
    ):
        train_codec.train(wrong, str(tmp_path))


def test_another_resolution_is_refused(config, tmp_path):
    other = dataclasses.replace(config.codec, resolution=16)
    with pytest.raises(UserError, match=r"8\^3 voxels; codec.resolution is 16"):
        train_codec.train(dataclasses.replace(config, codec=other), str(tmp_path))


def test_a_training_that_diverges_ends_and_saves_no_such_weights(
    config, tmp_path, monkeypatch
):
    step, calls = train_codec.train_step, []

    def wild(*args, **kwargs):
        state, metrics = step(*args, **kwargs)
        calls.append(jnp.nan if len(calls) == 2 else 1.0)
        codec = jax.tree.map(lambda x: x * calls[-1], state.average)
        return dataclasses.replace(state, average=codec), metrics

    monkeypatch.setattr(train_codec, "train_step", wild)
    often = dataclasses.replace(config, checkpoint_every=1)
    with pytest.raises(Diverged, match="weights are not finite after 3 steps"):
        train_codec.train(often, str(tmp_path / "wild"))
    kept = sorted(p.name for p in (tmp_path / "wild" / "checkpoints").iterdir())
    assert kept == ["1", "2"]
    torch_weights.load(tmp_path / "wild" / "codec.safetensors", CONFIG.codec)

    def broken(*args, **kwargs):
        state, metrics = step(*args, **kwargs)
        assert np.isfinite(metrics["grad_norm"])
        return state, metrics | {"grad_norm": np.float32(np.inf)}

    monkeypatch.setattr(train_codec, "train_step", broken)
    quiet = dataclasses.replace(config, checkpoint_every=100)
    with pytest.raises(Diverged, match=r"5 steps in a row.*lower lr"):
        train_codec.train(quiet, str(tmp_path / "quiet"))
    assert [p.name for p in (tmp_path / "quiet" / "checkpoints").iterdir()] == ["5"]


def test_another_catalog_under_the_same_name_is_refused(config, trained):
    file = pathlib.Path(config.catalog) / "objects.jsonl"
    before = file.read_text()
    file.write_text(before.replace("{", "{ ", 1))
    try:
        with pytest.raises(UserError, match=r"catalog/objects\.jsonl=.* held somethin"):
            train_codec.train(config, str(trained))
    finally:
        file.write_text(before)
