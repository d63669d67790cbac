"""The network of the published architecture's golden values, and its input."""

import jax
import numpy as np

from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig

GOLDEN = CodecConfig(
    resolution=64,
    channels=(4, 8, 16),
    blocks=(2, 2, 2),
    middle_blocks=2,
    latent_channels=8,
    codes=64,
)


def _fill(count: int, index: int) -> np.ndarray:
    """The reproducible pseudo-random numbers of the golden values, in [-1, 1]."""
    j = np.arange(count, dtype=np.float64)
    x = np.sin(12.9898 * j + 78.233 * (index + 1)) * 43758.5453
    return 2 * (x - np.floor(x)) - 1


def golden_state_dict() -> dict[str, np.ndarray]:
    template = jax.eval_shape(lambda key: Codec(GOLDEN, key), jax.random.key(0))
    names = torch_weights.named_leaves(template)
    shapes = {
        name: torch_weights._to_torch(np.empty(leaf.shape, bool)).shape
        for name, leaf in names.items()
    }
    tensors = {}
    for k, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        u = _fill(int(np.prod(shape)), k).reshape(shape)
        if name == "vq.embeddings.weight":
            value = u
        elif name.endswith("bias"):
            value = 0.05 * u
        elif len(shape) == 1:
            value = 1 + 0.1 * u
        else:
            value = u * np.sqrt(3 * shape[0] / u.size)
        tensors[name] = value.astype(np.float32)
    return tensors


def golden_voxels() -> np.ndarray:
    x, y, z = np.meshgrid(*[np.arange(64)] * 3, indexing="ij")
    r = np.sqrt(((x - 30) / 20) ** 2 + ((y - 34) / 12) ** 2 + ((z - 28) / 8) ** 2)
    voxels = (r > 0.9) & (r < 1.1)
    assert voxels.sum() == 4874
    return voxels
