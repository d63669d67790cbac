"""An object's views, prepared as the networks' own libraries prepare them.

"bicubic" is Pillow's, on bytes, as CLIP and DINOv2 were trained and as the slow image
processors of transformers do it, to the bit. A view is square: none is cropped. A
picture that several sets want alike is made once. The other kinds of resampling are in
their networks' modules, which need the views as they are.
"""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ar3d_jax.rewards.feature_sets import FeatureSet


class Pictures:
    """One object's views, and what was made of them so far.

    Attributes:
        views: uint8 [V, H, W, 3]; the wire's memory: not to be changed or kept.
    """

    def __init__(self, views: UInt8[np.ndarray, "V H W 3"]) -> None:
        self.views = views
        self._made: dict[object, np.ndarray] = {}

    def bicubic(self, kind: FeatureSet) -> Float[np.ndarray, "V 3 S S"]:
        """The views at the set's size, by its mean and std."""
        key = (kind.size, kind.mean, kind.std)
        if key not in self._made:
            mean, std = np.array([kind.mean, kind.std], np.float32)
            pictures = (self._resized(kind.size) - mean) / std
            self._made[key] = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
        return self._made[key]

    def _resized(self, size: int) -> Float[np.ndarray, "V S S 3"]:
        """From 0 to 1."""
        if size not in self._made:
            resized = [
                Image.fromarray(view).resize((size, size), Image.Resampling.BICUBIC)
                for view in self.views
            ]
            stack = np.stack([np.asarray(picture) for picture in resized])
            # In double precision first, as transformers does.
            self._made[size] = (stack * (1 / 255)).astype(np.float32)
        return self._made[size]
