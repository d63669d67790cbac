"""CLIP from a published folder: projected vectors of pictures and captions.

transformers' `CLIPModel` and tokenizer do the work. Vectors are not normalised.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float

from ar3d_jax.rewards.feature_sets import FeatureSet
from ar3d_jax.rewards.sidecar.features import files
from ar3d_jax.rewards.sidecar.features.pictures import Pictures

TOKENIZER = ("tokenizer.json", "vocab.json")  # one of them; the latter with merges.txt


class Clip:
    """Both sides of one CLIP."""

    def __init__(
        self, model: transformers.CLIPModel, tokenizer: Any, kind: FeatureSet
    ) -> None:
        self._model: Any = model  # its annotations name more types than it has
        self._tokenizer, self._kind = tokenizer, kind
        self._longest = self._model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def embed_views(self, pictures: Pictures) -> Float[np.ndarray, "V D"]:
        """See `Network`."""
        pixels = torch.from_numpy(pictures.bicubic(self._kind)).to(self._model.device)
        found = self._model.get_image_features(pixels)
        return found.pooler_output.cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, text: str) -> tuple[Float[np.ndarray, " D"], bool]:
        """See `Network`; the caption is cut after 77 tokens, with both its ends."""
        tokens = self._tokenizer(text, verbose=False)["input_ids"]
        truncated = len(tokens) > self._longest
        if truncated:
            tokens = tokens[: self._longest - 1] + tokens[-1:]
        ids = torch.tensor([tokens], device=self._model.device)
        found = self._model.get_text_features(ids)
        return found.pooler_output[0].cpu().numpy(), truncated


def load(path: Path, kind: FeatureSet, field: str, device: str) -> Clip:
    """CLIP of `kind`'s sizes from the folder `path`.

    Raises:
        UserError: a file is missing or broken, or it is another network.
    """
    expected = f"the files of {kind.published}"
    config, tensors, place = files.read_folder(path, "clip", field, expected)
    sizes = (
        config.projection_dim,
        config.vision_config.image_size,
        config.vision_config.patch_size,
    )
    if sizes != (kind.dim, kind.size, kind.patch):
        problem = "has {} numbers, {} px and patches of {} px".format(*sizes)
        files.refuse(field, path, problem, expected)
    if not any((path / name).is_file() for name in TOKENIZER):
        files.refuse(field, path, f"has no {' or '.join(TOKENIZER)}", expected)
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            str(path), local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises plain Exceptions
        problem = f"has a tokenizer that cannot be read ({files.first_line(error)})"
        files.refuse(field, path, problem, expected)
    if len(tokenizer) > config.text_config.vocab_size:
        problem = f"has a tokenizer of {len(tokenizer)} tokens, and fewer in its config"
        files.refuse(field, path, problem, expected)
    model = files.build(transformers.CLIPModel, config, tensors, place, field, expected)
    return Clip(model.to(device), tokenizer, kind)
