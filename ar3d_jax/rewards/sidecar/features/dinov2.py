"""DINOv2 from a published folder or from the file that torch.hub fetches: CLS vectors.

transformers' `Dinov2Model` does the work; the vector is the CLS token after the final
norm. On pictures of 518 px these are the numbers of facebookresearch/dinov2's own code.
On smaller ones position embeddings (37x37 patches) are resized to the picture's (16x16)
as transformers does it; the other adds 0.1 to the new size first, which turns vectors a
little: cosine 0.999 with random embeddings.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from ar3d_jax.rewards.feature_sets import FeatureSet
from ar3d_jax.rewards.sidecar.features import files
from ar3d_jax.rewards.sidecar.features.pictures import Pictures

HEAD = 64  # numbers of an attention head, in all sizes of DINOv2

# facebookresearch/dinov2's names -> those of the folders on Hugging Face.
_HUB_NAMES = (
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)


class Dinov2:
    """One DINOv2."""

    def __init__(self, model: transformers.Dinov2Model, kind: FeatureSet) -> None:
        self._model, self._kind = model, kind

    @torch.inference_mode()
    def embed_views(self, pictures: Pictures) -> Float[np.ndarray, "V D"]:
        """See `Network`."""
        pixels = torch.from_numpy(pictures.bicubic(self._kind)).to(self._model.device)
        return self._model(pixels).pooler_output.cpu().numpy()

    def embed_text(self, text: str) -> tuple[Float[np.ndarray, " D"], bool]:
        """Never asked."""
        raise NotImplementedError("DINOv2 reads no text")


def from_hub(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of the folders on Hugging Face."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _HUB_NAMES:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            kinds = ("query", "key", "value")
            for part, some in zip(kinds, tensor.chunk(3), strict=True):
                own = name.replace(".attn.qkv.", f".attention.attention.{part}.")
                renamed[own] = some
        else:
            renamed[name] = tensor
    return renamed


def _hub_config(tensors: Mapping[str, Tensor]) -> transformers.Dinov2Config:
    """The sizes that the file's tensors have; KeyError where they are not DINOv2's."""
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    blocks = {n.split(".")[1] for n in tensors if n.startswith("blocks.")}
    return transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // HEAD),
        mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] // width,
        image_size=side * patch,
        patch_size=patch,
    )


def load(path: Path, kind: FeatureSet, field: str, device: str) -> Dinov2:
    """DINOv2 of `kind`'s sizes from the folder or torch.hub file `path`.

    Raises:
        UserError: a file is missing or broken, or it is another network.
    """
    expected = f"the files of {kind.published}, or the .pth of torch.hub"
    if path.is_file():
        tensors, place = files.read_tensors(path, field, expected), path
        if "register_tokens" in tensors:
            files.refuse(field, path, "has registers", f"{expected}, without them")
        try:
            config = _hub_config(tensors)
        except (KeyError, ValueError) as error:
            files.refuse(field, path, f"is no DINOv2 (no {error})", expected)
        tensors = from_hub(tensors)
    else:
        config, tensors, place = files.read_folder(path, "dinov2", field, expected)
    if (config.hidden_size, config.patch_size) != (kind.dim, kind.patch):
        problem = f"has {config.hidden_size} numbers, patches of {config.patch_size} px"
        files.refuse(field, path, problem, expected)
    model = files.build(
        transformers.Dinov2Model, config, tensors, place, field, expected
    )
    return Dinov2(model.to(device), kind)
