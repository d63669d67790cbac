"""HPS v2.1 (arXiv 2306.09341): how much people like a picture for a prompt.

Role `preference`: the cosine of picture and prompt, best view; 0.1 to 0.35 is usual.
It is the plain cosine: no logit scale, and not the 100 times of published tables. As
its authors say, it compares pictures of one prompt.

The network is a CLIP in open_clip's layout, `open_clip_file.py`; the prompt's tokens
are `clip_text.py`. HPS v2.0 has the same layout and other scores: only the file's name
and revision, in `about`, tell them apart. In float16 the weights are float16, half the
memory, where the authors keep float32 ones and cast them at each step (autocast).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ar3d_jax import weights
from ar3d_jax.config import RewardsConfig
from ar3d_jax.rewards.sidecar import devices, revisions
from ar3d_jax.rewards.sidecar.scorers import About, Subject, Verdicts, open_clip_file
from ar3d_jax.rewards.sidecar.scorers.clip_text import ClipTokenizer

FILE = "HPS_v2.1_compressed.pt"
EXPECTED = f"{FILE} of xswu/HPSv2"
FIELD = "rewards.hps_v2_1.weights"
# Pictures per forward pass, 16 objects of 6 views: 1.5 GiB in float32.
FORWARD = 96
PROMPTS = 1024  # whose vectors are kept
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)


def prepare(
    views: UInt8[np.ndarray, "V H W C"], size: int, device: torch.device
) -> Float[Tensor, "V 3 S S"]:
    """Pictures as the authors prepare them, on the device, in float32.

    From 0 to 1 first; then the longest side to `size`, bicubic with antialiasing, where
    values leave 0 to 1 a little and are not clamped; then black borders to a square,
    the odd one at the bottom or right; then by CLIP's mean and std. Antialiasing is
    what torchvision does to a tensor since 0.17; before, it did not.

    Args:
        views: of 3 channels, or of 4: those go onto white first, our choice because
            the renderer's background is white (theirs cannot score them).
        size: pixels, the network's.
        device: where to compute.
    """
    # A copy: torch warns about arrays that cannot be written, and these may be such.
    pictures = torch.tensor(views, device=device).permute(0, 3, 1, 2).float() / 255
    if pictures.shape[1] == 4:
        colour, alpha = pictures[:, :3], pictures[:, 3:]
        pictures = colour * alpha + (1 - alpha)
    scale = size / max(pictures.shape[2:])
    height, width = (max(1, round(side * scale)) for side in pictures.shape[2:])
    resized = functional.interpolate(
        pictures, (height, width), mode="bicubic", antialias=True
    )
    top, left = (size - height) // 2, (size - width) // 2
    square = functional.pad(
        resized, (left, size - width - left, top, size - height - top)
    )
    mean, std = torch.tensor([MEAN, STD], device=device)[:, None, :, None, None]
    return (square - mean) / std


class HpsScorer:
    """The network on its device."""

    def __init__(self, model: Any, about: About, batch: int) -> None:
        """Takes the network, where it is, and which one it is."""
        self.about, self.batch = about, batch
        self._model, self._device = model.eval(), model.device
        self._tokenizer = ClipTokenizer()
        self._read_once = functools.lru_cache(maxsize=PROMPTS)(self._read)

    @torch.inference_mode()
    def score(self, subjects: Sequence[Subject]) -> list[Verdicts]:
        """See `Scorer`."""
        vectors = self.look([subject.views for subject in subjects])
        verdicts = []
        for subject, seen in zip(subjects, vectors, strict=True):
            best = float((seen @ self._read_once(subject.prompt)).max())
            finite = math.isfinite(best)
            reason = None if finite else "the network's numbers are not finite"
            verdict = (best if finite else math.nan, reason)
            verdicts.append(dict.fromkeys(subject.roles, verdict))
        return verdicts

    @torch.inference_mode()
    def look(
        self, objects: Sequence[UInt8[np.ndarray, "_ _ _ _"]]
    ) -> list[Float[Tensor, "_ E"]]:
        """Unit vectors of all objects' views, in float32, FORWARD views at a time."""
        size = self._model.config.vision_config.image_size
        pictures = torch.cat(
            [prepare(views, size, self._model.device) for views in objects]
        ).to(self._model.dtype)
        vectors = [
            self._model.get_image_features(some).pooler_output.float()
            for some in pictures.split(FORWARD)
        ]
        unit = functional.normalize(torch.cat(vectors), dim=-1)
        return list(unit.split([len(views) for views in objects]))

    @torch.inference_mode()
    def read(self, prompt: str) -> Float[Tensor, " E"]:
        """The prompt's unit vector, in float32."""
        return self._read_once(prompt)

    def _read(self, prompt: str) -> Tensor:
        # No padding and no mask: attention is causal, and the vector is at the end.
        ids = torch.tensor([self._tokenizer(prompt)], device=self._model.device)
        vector = self._model.get_text_features(ids).pooler_output[0].float()
        return functional.normalize(vector, dim=-1)

    def wake(self) -> None:
        """Brings the network to its device."""
        self._model.to(self._device)

    def rest(self) -> None:
        """Takes it to the machine's memory; prompts' vectors stay."""
        self._model.to("cpu")
        devices.empty()

    def close(self) -> None:
        """Nothing to give back."""


def load(config: RewardsConfig) -> HpsScorer:
    """The scorer that `config.hps_v2_1` describes.

    Raises:
        UserError: its file is missing, broken or another network's, or the device is
            not there.
    """
    own = config.hps_v2_1
    devices.start(config.threads)
    device = devices.device_of(own.device, "rewards.hps_v2_1.device")
    path = weights.resolve(own.weights, FIELD)
    path = path / FILE if path.is_dir() else path
    model = open_clip_file.load(path, FIELD, EXPECTED)
    dtype = devices.dtype_of(own.dtype, device, torch.float16)
    about = About(path.name, revisions.revision_of(path), str(device))
    return HpsScorer(model.to(device=device, dtype=dtype), about, own.batch)
