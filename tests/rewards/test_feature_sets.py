"""The table of feature sets, the layout of their vectors, and where networks are."""

import dataclasses

import numpy as np
import pytest

from ar3d_jax.config import FeaturesConfig, FeatureWeightsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import feature_sets
from ar3d_jax.rewards.feature_sets import FEATURE_SETS


def features(*sets, **weights):
    return FeaturesConfig(sets=sets, weights=FeatureWeightsConfig(**weights))


def test_there_is_a_row_for_every_set_of_the_config():
    fields = [field.name for field in dataclasses.fields(FeatureWeightsConfig)]
    assert list(FEATURE_SETS) == fields


def test_the_about_line_states_size_resampling_and_normalisation():
    about = FEATURE_SETS["clip_b32"].about
    for part in (
        "ViT-B/32",
        "512",
        "openai/clip-vit-base-patch32",
        "bicubic",
        "224 px",
    ):
        assert part in about
    assert "0.48145466" in about
    assert "0.26862954" in about


def test_vectors_lie_set_after_set_views_before_the_caption():
    sets = ("inception", "clip_b32")
    assert feature_sets.count(sets, 3) == 3 * 2048 + 3 * 512 + 512
    row = np.arange(feature_sets.count(sets, 3), dtype=np.float32)
    windows = feature_sets.split(row, sets, 3)
    assert windows["inception"][0].shape == (3, 2048)
    assert windows["inception"][1].shape == (0,)
    pictures, text = windows["clip_b32"]
    np.testing.assert_array_equal(pictures.ravel(), row[3 * 2048 : -512])
    np.testing.assert_array_equal(text, row[-512:])
    pictures[1, 2] = -1.0  # a window, no copy
    assert row[3 * 2048 + 512 + 2] == -1.0


def test_networks_are_found_by_set(tmp_path):
    file = tmp_path / "inception.pth"
    file.touch()
    config = features(
        "inception", "clip_l14", inception=str(file), clip_l14=str(tmp_path)
    )
    assert feature_sets.find_networks(config) == {
        "inception": str(file),
        "clip_l14": str(tmp_path),
    }


def test_the_shipped_judge_is_the_embedded_set(monkeypatch, tmp_path):
    from ar3d_jax import weights

    shipped = tmp_path / "judge.safetensors"
    shipped.touch()
    assert weights._SHIPPED["features.weights.embedded"].name == shipped.name
    monkeypatch.setitem(weights._SHIPPED, "features.weights.embedded", shipped)
    found = feature_sets.find_networks(features("embedded"))
    assert found == {"embedded": str(shipped)}


def test_all_that_is_missing_is_said_in_one_line(tmp_path):
    config = features("inception", "dinov2_l14", dinov2_l14=str(tmp_path / "no/where"))
    with pytest.raises(UserError) as caught:
        feature_sets.find_networks(config)
    line = str(caught.value)
    assert "\n" not in line
    assert "pt_inception-2015-12-05-6726825d.pth" in line
    assert "pytorch-fid project" in line
    assert "then pass --config.features.weights.inception=FILE" in line
    assert "features.weights.dinov2_l14 is" in line
    assert "no such file or folder" in line


def test_an_empty_path_is_not_this_folder():
    with pytest.raises(UserError, match=r"clip_b32 is empty.*openai/clip-vit-base"):
        feature_sets.find_networks(features("clip_b32", clip_b32=""))


def test_inception_and_the_judge_are_no_repositories():
    with pytest.raises(UserError, match=r"expected a path$"):
        feature_sets.find_networks(features("inception", inception="owner/name"))
