"""What a feature network is, and which module loads which.

Each module has `load(path, feature_set, field, device) -> Network`; it is imported when
a set that it fills is asked for. The sets are `rewards/feature_sets.py`, the process
that calls the networks is `__main__.py`.
"""

import importlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar.features.pictures import Pictures

_HERE = "ar3d_jax.rewards.sidecar.features"
NETWORKS = {
    "embedded": f"{_HERE}.judged",
    "clip_b32": f"{_HERE}.clip",
    "clip_l14": f"{_HERE}.clip",
    "dinov2_b14": f"{_HERE}.dinov2",
    "dinov2_l14": f"{_HERE}.dinov2",
    "inception": f"{_HERE}.inception",
}


@runtime_checkable  # test runs check annotations
class Network(Protocol):
    """Looks at one object's views; the same input gives the same bits each time."""

    def embed_views(self, pictures: Pictures) -> Float[np.ndarray, "V D"]:
        """One vector per view, float32, as the network's own library has it."""
        ...

    def embed_text(self, text: str) -> tuple[Float[np.ndarray, " D"], bool]:
        """The vector of a caption, and whether its end did not fit.

        Asked of sets that read text only.
        """
        ...


def load(name: str, path: str, device: str) -> Network:
    """The network of the set `name`, from the file or folder that holds it.

    Args:
        name: of the feature set.
        path: where `feature_sets.find_networks` found it.
        device: "cpu" or "cuda".

    Raises:
        UserError: a file is missing, broken, or holds another network.
    """
    module = importlib.import_module(NETWORKS[name])
    field = f"features.weights.{name}"
    return module.load(Path(path), FEATURE_SETS[name], field, device)
