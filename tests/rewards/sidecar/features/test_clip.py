"""CLIP from published folders: the library's own numbers, and one line for the rest."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar.features import clip
from ar3d_jax.rewards.sidecar.features.pictures import Pictures
from tests.rewards.sidecar.features import published

KIND = dataclasses.replace(
    FEATURE_SETS["clip_b32"], dim=published.CLIP_DIM, text_dim=published.CLIP_DIM
)
FIELD = "features.weights.clip_b32"
LONG = "a chair of chairs " * 30


def load(folder):
    return clip.load(folder, KIND, FIELD, "cpu")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("safetensors", torch.float32),
        ("safetensors", torch.float16),
        ("bin", torch.float32),
        ("old bin", torch.float32),
    ],
)
def test_features_are_the_librarys_own(tmp_path, kind, dtype):
    own = tmp_path / "own"
    published.clip(own, dtype=dtype)
    published.clip(tmp_path, kind=kind, dtype=dtype)
    model = transformers.CLIPModel.from_pretrained(own, dtype=torch.float32)
    words = transformers.CLIPTokenizer.from_pretrained(own)
    processor = transformers.CLIPImageProcessorPil()
    views, network = published.views(), load(tmp_path)
    with torch.inference_mode():
        pixels = processor(images=list(views), return_tensors="pt")
        wanted = model.get_image_features(**pixels).pooler_output.numpy()
        found = network.embed_views(Pictures(views))
        assert found.dtype == np.float32
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        for text in ("A chair of wood!", LONG):
            ids = words(text, truncation=True, max_length=77, return_tensors="pt")
            wanted = model.get_text_features(**ids).pooler_output[0].numpy()
            found, truncated = network.embed_text(text)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
            assert truncated == (text == LONG)


def test_a_caption_of_exactly_77_tokens_is_whole(tmp_path):
    published.clip(tmp_path)
    network = load(tmp_path)
    assert not network.embed_text("chair " * 75)[1]
    assert network.embed_text("chair " * 76)[1]


def test_a_tokenizer_json_alone_does(tmp_path):
    published.clip(tmp_path)
    before, _ = load(tmp_path).embed_text("a chair")
    transformers.CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    np.testing.assert_array_equal(load(tmp_path).embed_text("a chair")[0], before)


def _without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def _configured(**changes):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return spoil


def _cut(name):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _without("model.safetensors"),
            "has no model.safetensors or pytorch_model.bin",
        ),
        (_without("config.json"), "has no config.json"),
        (_without("vocab.json"), "has no tokenizer.json or vocab.json"),
        (_without("merges.txt"), "has a tokenizer that cannot be read"),
        (_cut("vocab.json"), "has a tokenizer that cannot be read"),
        (_cut("config.json"), "config.json cannot be read"),
        (_cut("model.safetensors"), "model.safetensors cannot be read"),
        (_configured(model_type="siglip"), "is a network of type 'siglip', not clip"),
        (_configured(model_type=7), "is a network of type 7, not clip"),
        (_configured(projection_dim=512), "has 512 numbers, 224 px and patches of 32"),
        (_configured(text_config={"hidden_size": 64}), "model.safetensors"),
        (_configured(vision_config={"hidden_size": "wide"}), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, spoil, message):
    published.clip(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    line = str(caught.value)
    assert message in line
    assert line.startswith("features.weights.clip_b32: ")
    assert "openai/clip-vit-base-patch32" in line
    assert "--config.features.weights.clip_b32" in line
    assert "\n" not in line


def test_a_tensor_of_another_shape_or_none_is_named(tmp_path):
    published.clip(tmp_path, kind="bin")
    path = tmp_path / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"visual_projection.weight": torch.zeros(5, 32)}, path)
    with pytest.raises(UserError, match=r"visual_projection.weight of shape \(5, 32\)"):
        load(tmp_path)
    del state["text_model.final_layer_norm.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"lacks text_model\.final_layer_norm\.bias"):
        load(tmp_path)


def test_a_tensor_that_cannot_be_right_is_named(tmp_path):
    published.clip(tmp_path, kind="bin")
    path = tmp_path / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    for value, problem in (
        (0.0, "that is all zeros"),
        (torch.inf, "with numbers that"),
    ):
        torch.save(state | {name: torch.full_like(state[name], value)}, path)
        with pytest.raises(UserError, match=f"has a tensor {name} {problem}") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_what_are_no_named_tensors_is_refused(tmp_path):
    published.clip(tmp_path, kind="bin")
    path = tmp_path / "pytorch_model.bin"
    torch.save(["no", "names"], path)
    with pytest.raises(UserError, match="something else than named tensors"):
        load(tmp_path)
