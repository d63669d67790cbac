"""DINOv2 from both published layouts: the library's own numbers."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors
import torch
import transformers

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar.features import dinov2
from ar3d_jax.rewards.sidecar.features.pictures import Pictures
from tests.rewards.sidecar.features import published
from tests.rewards.sidecar.features.test_pictures import processor

KIND = dataclasses.replace(FEATURE_SETS["dinov2_l14"], dim=published.DINO_DIM)


def load(path):
    return dinov2.load(path, KIND, "features.weights.dinov2_l14", "cpu")


def wanted(model, views):
    pixels = processor("dinov2_l14")(images=list(views), return_tensors="pt")
    with torch.inference_mode():
        last = model(**pixels).last_hidden_state[:, 0]
    return last.numpy()  # the library applies the last norm to all tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_gives_the_librarys_own_features(tmp_path, dtype):
    published.dinov2(tmp_path, dtype=dtype)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        # The published names, which are not the library's present ones.
        assert "encoder.layer.0.attention.attention.query.weight" in file.keys()  # noqa: SIM118
    views = published.views()
    model = transformers.Dinov2Model.from_pretrained(tmp_path, dtype=torch.float32)
    found = load(tmp_path).embed_views(Pictures(views))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted(model, views), rtol=0, atol=1e-5)


def test_the_file_of_torch_hub_gives_the_same_features(tmp_path):
    model = published.dinov2(tmp_path / "folder")
    path = tmp_path / "dinov2_vitl14_pretrain.pth"
    published.dinov2_hub(model, path)
    views = published.views()
    found = load(path).embed_views(Pictures(views))
    np.testing.assert_allclose(found, wanted(model, views), rtol=0, atol=1e-5)


def _spoilt(path, **changes):
    state = torch.load(path, weights_only=True) | changes
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save(kept, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"register_tokens": torch.zeros(1, 4, 64)}, "has registers"),
        ({"norm.weight": None}, r"lacks layernorm\.weight; expected"),
        ({"pos_embed": None}, "is no DINOv2 .no 'pos_embed'"),
        ({"patch_embed.proj.weight": torch.zeros(2)}, "is no DINOv2"),
        ({"cls_token": torch.zeros(1, 1, 8)}, r"cls_token of shape \(1, 1, 8\), not"),
        (
            {"blocks.1.attn.qkv.weight": torch.zeros(64, 64)},
            r"1\.attention\..*shape \(2[12], 64\), not \(64, 64\)",
        ),
    ],
)
def test_what_is_wrong_with_a_hub_file_is_one_line(tmp_path, changes, message):
    path = tmp_path / "hub.pth"
    published.dinov2_hub(published.dinov2(tmp_path / "folder"), path)
    _spoilt(path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_truncated_and_absent_files_are_one_line(tmp_path):
    model = published.dinov2(tmp_path)
    path = tmp_path / "hub.pth"
    published.dinov2_hub(model, path)
    for file in (path, tmp_path / "model.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    for place, message in (
        (path, "hub.pth cannot be read"),
        (tmp_path, "model.safetensors cannot be read"),
        (tmp_path / "nowhere", "is no folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load(place)
        assert "\n" not in str(caught.value)


def test_another_size_is_refused(tmp_path):
    published.dinov2(tmp_path, dim=128)
    with pytest.raises(UserError, match="has 128 numbers, patches of 14 px"):
        load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "dinov2_with_registers"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="type 'dinov2_with_registers', not dinov2"):
        load(tmp_path)
