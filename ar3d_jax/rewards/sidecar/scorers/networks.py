"""The embedded scorers' networks: views, words and points to numbers.

* `ViewEncoder`: one grey picture of shaded geometry -> unit vector, coherence, style.
* `TextEncoder`: the words of a prompt -> unit vector of the same space.
* `PointClassifier`: a point cloud -> probabilities of the catalog's classes.

How their outputs become scores is `embedded.py`; how they are trained is
`train_embedded.py`. Sizes are our choice: six views must cost about 15 ms on one core,
because a training step scores 128 objects.
"""

import itertools
import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

SIZE = 112  # pixels inside the view encoder: 224 / 2, about 2.4 pixels per voxel
EMBEDDING = 128  # of pictures and prompts; as many directions as there are captions
BUCKETS = 4096  # rows of the word table; words and their pieces share them by hash
WORD = re.compile(r"[a-z0-9]+")


def grey_pictures(views: UInt8[np.ndarray, "V H W 3"]) -> Float[Tensor, "V 1 S S"]:
    """The views as the encoder sees them: grey, SIZE pixels, white paper as 0."""
    grey = torch.from_numpy(views.mean(axis=3, dtype=np.float32))[:, None]
    if grey.shape[-1] != SIZE:
        grey = functional.adaptive_avg_pool2d(grey, SIZE)
    return 1.0 - grey / 255.0


def word_rows(prompt: str) -> list[list[int]]:
    """For each word of the prompt, its rows of the word table.

    A word is represented by itself and its pieces of three letters, so that "armchairs"
    is near "armchair" and an unseen word is near its relatives. CRC-32 is the hash,
    because Python's own differs between processes.
    """
    rows = []
    for word in WORD.findall(prompt.lower()):
        marked = f"<{word}>"
        pieces = [marked[i : i + 3] for i in range(len(marked) - 2)]
        # The word itself twice as strong as all its pieces together would drown them;
        # once, among 3 to 8 pieces, it separates "bed" from "bedside" well enough.
        rows.append([zlib.crc32(p.encode()) % BUCKETS for p in [word, *pieces]])
    return rows or [[0]]


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is carried, pre-activated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` plus what the convolutions add."""
        y = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(y)))


class ViewEncoder(nn.Module):
    """A small convolutional network over one picture.

    Patches of 4x4 pixels, then 14x14 and 7x7 cells; most of the work is at 14x14 and
    below, where a CPU does it as dense matrix products.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 160)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.body = nn.Sequential(
            nn.Conv2d(1, fine, 4, 4),
            nn.BatchNorm2d(fine),
            nn.ReLU(),
            nn.Conv2d(fine, middle, 2, 2),
            Residual(middle),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, coarse, 2, 2),
            Residual(coarse),
            nn.BatchNorm2d(coarse),
            nn.ReLU(),
        )
        self.project = nn.Linear(2 * coarse, EMBEDDING)
        self.judge = nn.Sequential(
            nn.Linear(2 * coarse, 64), nn.ReLU(), nn.Linear(64, 2)
        )

    def forward(
        self, pictures: Float[Tensor, "B 1 S S"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B 2"]]:
        """Unit vectors, and logits of (coherence, style)."""
        cells = self.body(pictures.contiguous(memory_format=torch.channels_last))
        features = torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], dim=1)
        vectors = functional.normalize(self.project(features), dim=1)
        return vectors, self.judge(features)


class TextEncoder(nn.Module):
    """A weighted bag of words: order is ignored, unseen words are not.

    Attributes:
        none: The vector of "no object", to which spoilt pictures are drawn.
    """

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, width, mode="mean")
        self.weight = nn.Linear(width, 1)
        self.project = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 256),
            nn.ReLU(),
            nn.Linear(256, EMBEDDING),
        )
        self.none = nn.Parameter(torch.randn(EMBEDDING))

    def forward(self, prompts: Sequence[str]) -> Float[Tensor, "B E"]:
        """Unit vectors, one per prompt."""
        rows = [word_rows(prompt) for prompt in prompts]
        words = [row for prompt in rows for row in prompt]
        flat = torch.tensor([row for word in words for row in word])
        starts = torch.tensor(np.cumsum([0] + [len(word) for word in words[:-1]]))
        owner = torch.tensor([i for i, prompt in enumerate(rows) for _ in prompt])
        vectors = self.table(flat, starts)
        # exp without a maximum: the weights are logits of one linear layer, small.
        weights = torch.exp(self.weight(vectors).clamp(-8, 8))
        sums = vectors.new_zeros(len(rows), vectors.shape[1] + 1)
        sums = sums.index_add(0, owner, torch.cat([vectors * weights, weights], 1))
        return functional.normalize(self.project(sums[:, :-1] / sums[:, -1:]), dim=1)

    def no_object(self) -> Float[Tensor, " E"]:
        """The unit vector of "no object"."""
        return functional.normalize(self.none, dim=0)


class PointClassifier(nn.Module):
    """PointNet without its alignment networks: per-point layers, maximum, two layers.

    The last class is "no object".
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 48, 96, 192)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.each = nn.Sequential(*layers)
        self.all = nn.Sequential(
            nn.Linear(2 * widths[-1], 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, classes + 1),
        )

    def forward(self, points: Float[Tensor, "B P 3"]) -> Float[Tensor, "B C"]:
        """Logits of the classes and, last, of "no object"."""
        batch, count, _ = points.shape
        features = self.each(points.reshape(batch * count, 3)).reshape(batch, count, -1)
        return self.all(torch.cat([features.amax(1), features.mean(1)], dim=1))
