"""The shipped judge as a feature network; it prepares pictures itself, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ar3d_jax.rewards.feature_sets import FeatureSet
from ar3d_jax.rewards.sidecar.features.pictures import Pictures


class Judged:
    """The judge's vectors, of pictures and captions."""

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def embed_views(self, pictures: Pictures) -> Float[np.ndarray, "V D"]:
        """See `Network`."""
        return self._judge.embed_views(pictures.views)

    def embed_text(self, text: str) -> tuple[Float[np.ndarray, " D"], bool]:
        """See `Network`."""
        return self._judge.embed_text(text), False


def load(path: Path, kind: FeatureSet, field: str, device: str) -> Judged:
    """The judge from its file.

    Raises:
        UserError: it is missing or does not fit.
    """
    from ar3d_jax.rewards.sidecar.judge import Judge

    return Judged(Judge.load(path))
