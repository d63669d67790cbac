"""Views prepared as the libraries' own image processors prepare them, to the bit."""

import numpy as np
import pytest
import transformers

from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar.features.pictures import Pictures
from tests.rewards.sidecar.features import published


def processor(name):
    """transformers' Pillow processor: CLIP's as published, DINOv2's at 224 px."""
    if name.startswith("clip"):
        return transformers.CLIPImageProcessorPil()
    return transformers.BitImageProcessorPil(
        size={"height": 224, "width": 224},
        do_center_crop=False,
        image_mean=transformers.image_utils.IMAGENET_DEFAULT_MEAN,
        image_std=transformers.image_utils.IMAGENET_DEFAULT_STD,
    )


@pytest.mark.parametrize("size", [120, 224, 300])
@pytest.mark.parametrize("name", ["clip_b32", "clip_l14", "dinov2_b14", "dinov2_l14"])
def test_bicubic_is_the_processors_own(name, size):
    views = published.views(2, size)
    wanted = processor(name)(images=list(views), return_tensors="np")["pixel_values"]
    prepared = Pictures(views).bicubic(FEATURE_SETS[name])
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(prepared, wanted)


def test_sets_that_want_the_same_share_it():
    pictures = Pictures(published.views(1, 64))
    first = pictures.bicubic(FEATURE_SETS["clip_b32"])
    assert pictures.bicubic(FEATURE_SETS["clip_l14"]) is first
    other = pictures.bicubic(FEATURE_SETS["dinov2_b14"])
    assert (other != first).any()
