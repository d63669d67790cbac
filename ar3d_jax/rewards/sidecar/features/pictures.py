"""An object's views, prepared as the networks' own libraries prepare them.

* "bicubic" is Pillow's, on bytes, as CLIP and DINOv2 were trained and as the slow image
  processors of transformers do it, to the bit. A view is square: none is cropped.
* "bilinear" takes four neighbours of float pixels and does not smooth, as pytorch-fid.

A picture that several sets want alike is made once.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ar3d_jax.rewards.feature_sets import FeatureSet


class Pictures:
    """One object's views, and what was made of them so far.

    Attributes:
        views: uint8 [V, H, W, 3]; the wire's memory: not to be changed or kept.
    """

    def __init__(self, views: UInt8[np.ndarray, "V H W 3"]) -> None:
        self.views = views
        self._made: dict[object, Tensor] = {}

    def prepared(self, kind: FeatureSet) -> Float[Tensor, "V 3 S S"]:
        """The views as the set's network wants them, float32."""
        key = (kind.size, kind.resampling, kind.mean, kind.std)
        if key not in self._made:
            self._made[key] = _normalised(self._resized(kind), kind)
        return self._made[key]

    def _resized(self, kind: FeatureSet) -> Float[Tensor, "V S S 3"]:
        """From 0 to 1."""
        key = (kind.size, kind.resampling)
        if key not in self._made:
            resize = {"bicubic": _bicubic, "bilinear": _bilinear}[kind.resampling]
            self._made[key] = resize(self.views, kind.size)
        return self._made[key]


def _bicubic(views: np.ndarray, size: int) -> Tensor:
    resized = [
        np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.BICUBIC))
        for view in views
    ]
    # In double precision first, as transformers does.
    return torch.from_numpy((np.stack(resized) * (1 / 255)).astype(np.float32))


def _bilinear(views: np.ndarray, size: int) -> Tensor:
    pictures = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
    resized = functional.interpolate(
        pictures, (size, size), mode="bilinear", align_corners=False
    )
    return resized.permute(0, 2, 3, 1)


def _normalised(pictures: Tensor, kind: FeatureSet) -> Tensor:
    mean, std = torch.tensor(kind.mean), torch.tensor(kind.std)
    return ((pictures - mean) / std).permute(0, 3, 1, 2).contiguous()
