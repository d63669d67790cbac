"""The feature sets: which networks look at pictures, how, and where their files are.

A set is one network with one way to prepare a picture; its features are what the
network's own library returns, neither scaled nor normalised. Both sides read this
table: the trainer to lay out the ring, the process in `sidecar/features/` to fill it.

An object's vectors in the ring are, set after set in the order of the config, first one
vector per view, then, of sets that read text, the caption's.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ar3d_jax import weights
from ar3d_jax.config import FeaturesConfig
from ar3d_jax.errors import UserError

Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """One network and how pictures are prepared for it.

    Attributes:
        network: In words.
        published: Where the weights were published, or that they are ours.
        dim: Numbers per view.
        text_dim: Numbers of a caption; 0 for a network that reads no text.
        size: Pixels along one side that the network sees.
        patch: Of those, along one side of a patch; 0 for convolutions.
        resampling: "bicubic" (Pillow's, as the libraries' processors), "bilinear" (four
            neighbours, no smoothing, as pytorch-fid) or "area" (means of pixels).
        mean: Taken from the channels, which run from 0 to 1.
        std: What they are then divided by.
    """

    network: str
    published: str
    dim: int
    text_dim: int
    size: int
    patch: int
    resampling: str
    mean: Colour
    std: Colour

    @property
    def about(self) -> str:
        """All that a reader of its numbers should know, in one line."""
        return (
            f"{self.network}, {self.dim} numbers per view ({self.published}); pictures "
            f"{self.resampling} to {self.size} px, mean {self.mean}, std {self.std}"
        )


# What the networks were trained with: openai/CLIP, and torchvision's for ImageNet.
CLIP_MEAN, CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _clip(letter: str, patch: int, name: str, dim: int) -> FeatureSet:
    network = f"CLIP ViT-{letter}/{patch}, projected, both sides"
    pictures = (224, patch, "bicubic", CLIP_MEAN, CLIP_STD)
    return FeatureSet(network, f"openai/{name}", dim, dim, *pictures)


def _dinov2(letter: str, name: str, dim: int) -> FeatureSet:
    # 224 px as in dgm-eval, whose KD and FD others report; TRELLIS: open.
    network = f"DINOv2 ViT-{letter}/14 without registers, CLS after the last norm"
    pictures = (224, 14, "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    return FeatureSet(network, f"facebook/{name}", dim, 0, *pictures)


FEATURE_SETS = {
    "embedded": FeatureSet(
        "the shipped judge (rewards/sidecar/judge.py), never a reward",
        "ours",
        *(128, 128, 112, 7, "area"),
        *((1.0, 1.0, 1.0), (-1.0, -1.0, -1.0)),  # grey, white paper as 0
    ),
    "clip_b32": _clip("B", 32, "clip-vit-base-patch32", 512),
    "clip_l14": _clip("L", 14, "clip-vit-large-patch14", 768),
    "dinov2_b14": _dinov2("B", "dinov2-base", 768),
    "dinov2_l14": _dinov2("L", "dinov2-large", 1024),
    "inception": FeatureSet(
        "Inception of the Fréchet Inception Distance, last average pool",
        "pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
        *(2048, 0, 299, 0, "bilinear"),
        *((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to -1..1
    ),
}


def count(sets: Sequence[str], views: int) -> int:
    """Numbers of one object's vectors."""
    shapes = (FEATURE_SETS[name] for name in sets)
    return sum(views * each.dim + each.text_dim for each in shapes)


def split(
    vectors: np.ndarray, sets: Sequence[str], views: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Set -> its views' vectors [V, dim] and its caption's [text_dim].

    Both are windows into `vectors`, one object's [K] of the ring, to write or read.
    """
    windows, start = {}, 0
    for name in sets:
        each = FEATURE_SETS[name]
        middle = start + views * each.dim
        end = middle + each.text_dim
        pictures = vectors[start:middle].reshape(views, each.dim)
        windows[name] = (pictures, vectors[middle:end])
        start = end
    return windows


def find_networks(config: FeaturesConfig) -> dict[str, str]:
    """The file or folder of each set's network, downloaded where it is not here.

    Raises:
        UserError: some cannot be had; one line names all of them and what to do.
    """
    sources = {name: getattr(config.weights, name) for name in config.sets}
    empty = [name for name, source in sources.items() if not source]
    named = {f"features.weights.{n}": s for n, s in sources.items() if s}
    problems, places = [_missing(name) for name in empty], list[Path]()
    try:
        places = weights.resolve_all(named)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("; and ".join(problems))
    return {n: str(place) for n, place in zip(sources, places, strict=True)}


def _missing(name: str) -> str:
    field = f"features.weights.{name}"
    published = FEATURE_SETS[name].published
    if name == "inception":
        published = (
            "pt_inception-2015-12-05-6726825d.pth, released by the pytorch-fid project"
        )
    return (
        f"{field} is empty: the set {name} needs {published}; fetch it, then pass "
        f"--config.{field}=FILE"
    )
