"""The judge: a second picture and text encoder that is never a reward.

A policy learns whatever its rewards cannot tell from better objects. Whether it also
learned what they were meant to measure is asked of an encoder that had no part in them.
This one shares objects and captions with the embedded scorers (`scorers/networks.py`),
and nothing else: not the kind of network, not the seed, not what was done to the
pictures, and its text encoder reads the order of words.

* `ViewEncoder`: a transformer over 7x7 patches of one grey picture;
* `TextEncoder`: a transformer over words, each the mean of its hashed trigrams;
* `Judge`: both, read from a file; unit vectors of one space.

The CLIP score by the judge is 100 times the mean cosine of views and text. Training is
`train_judge.py`, the scorer `scorers/judge.py`. Sizes are our choice: a picture takes
2 ms on one core.
"""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ar3d_jax.errors import UserError, whole_file
from ar3d_jax.rewards.sidecar import wrong_tensors

WEIGHTS = Path(__file__).parents[2] / "assets" / "tiny" / "judge.safetensors"
REBUILD = "rebuild it with python -m ar3d_jax.rewards.sidecar.train_judge --catalog=DIR"
DIM = 128  # of the common space, as the embedded scorers': a second pair of eyes
SIZE = 112  # pixels of a picture: twice a voxel's and a little
PATCHES = 7  # along one side, of 16 pixels each
ROWS = 4096  # of the trigram table
WORDS = 64  # of a prompt that are read: the longest caption has about 50
TOKEN = re.compile(r"[a-z0-9]+|[,.;:]")


def ink(views: UInt8[np.ndarray, "V H W 3"]) -> Float[Tensor, "V 1 S S"]:
    """Grey, SIZE pixels, white paper as 0 and black as 1."""
    grey = torch.from_numpy(views.mean(axis=3, dtype=np.float32))[:, None]
    if grey.shape[-2:] != (SIZE, SIZE):
        grey = functional.adaptive_avg_pool2d(grey, SIZE)
    return 1.0 - grey / 255.0


@functools.lru_cache(maxsize=1 << 14)
def trigram_rows(word: str) -> tuple[int, ...]:
    """Rows of the table for a word's trigrams, by BLAKE2: the same everywhere.

    The word's ends count as characters; so does its place in no way: that is the
    transformer's.
    """
    marked = f"^^{word}$"
    pieces = [marked[i : i + 3] for i in range(len(marked) - 2)]
    digests = (hashlib.blake2b(p.encode(), digest_size=4).digest() for p in pieces)
    return tuple(int.from_bytes(digest, "little") % ROWS for digest in digests)


class Block(nn.Module):
    """Attention, then a two-layer network; the input is carried around both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(
        self, x: Float[Tensor, "B T W"], there: Bool[Tensor, "B 1 1 T"] | None = None
    ) -> Float[Tensor, "B T W"]:
        """`there` marks the positions that may be looked at; None: all."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=there)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class ViewEncoder(nn.Module):
    """Three convolutions make 7x7 tokens, a transformer relates them to each other."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 4, 4),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(64, width, 3, 2, 1),
        )
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, PATCHES**2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(depth))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, DIM)

    def forward(self, pictures: Float[Tensor, "B 1 S S"]) -> Float[Tensor, "B D"]:
        """Unit vectors."""
        patches = self.stem(pictures).flatten(2).transpose(1, 2)
        first = self.first.expand(len(patches), -1, -1)
        x = torch.cat([first, patches], dim=1) + self.place
        for block in self.blocks:
            x = block(x)
        return functional.normalize(self.project(self.norm(x[:, 0])), dim=1)


class TextEncoder(nn.Module):
    """Words in their order.

    Attributes:
        nothing: The vector of "no object", to which spoilt pictures are drawn in
            training; scores do not use it.
    """

    def __init__(self, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, width, mode="mean")
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, WORDS + 1, width))
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(depth))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, DIM)
        self.nothing = nn.Parameter(torch.randn(DIM))

    def forward(self, prompts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Unit vectors, one per prompt; words after the WORDS-th are not read."""
        texts = [TOKEN.findall(prompt.lower())[:WORDS] or [""] for prompt in prompts]
        longest = max(map(len, texts))
        words = self._words([word for text in texts for word in text])
        lengths = torch.tensor([len(text) for text in texts])
        there = torch.arange(longest) < lengths[:, None]
        x = words.new_zeros(len(texts), longest, words.shape[1])
        x = x.masked_scatter(there[..., None], words)
        first = self.first.expand(len(texts), -1, -1)
        x = torch.cat([first, x], dim=1) + self.place[:, : longest + 1]
        there = functional.pad(there, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, there)
        return functional.normalize(self.project(self.norm(x[:, 0])), dim=1)

    def _words(self, words: list[str]) -> Float[Tensor, "n W"]:
        rows = [trigram_rows(word) for word in words]
        flat: Int[Tensor, " m"] = torch.tensor([row for word in rows for row in word])
        starts = torch.tensor(np.cumsum([0] + [len(word) for word in rows[:-1]]))
        return self.table(flat, starts)

    def no_object(self) -> Float[Tensor, " D"]:
        """The unit vector of "no object"."""
        return functional.normalize(self.nothing, dim=0)


class Judge:
    """The encoders of one weights file.

    Attributes:
        report: What was measured on held-out objects when they were trained.
    """

    def __init__(
        self, view: ViewEncoder, text: TextEncoder, report: dict[str, Any]
    ) -> None:
        """Takes networks as they are; `load` reads them."""
        self.view, self.text, self.report = view.eval(), text.eval(), report
        self.embed_text = functools.lru_cache(maxsize=1024)(self._embed_text)

    @classmethod
    def load(cls, path: Path | str = WEIGHTS) -> "Judge":
        """Reads what `save` wrote.

        Raises:
            UserError: The file is missing, unreadable, of another shape or damaged.
        """
        view, text = ViewEncoder(), TextEncoder()
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
                report = json.loads((file.metadata() or {}).get("report", "{}"))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(
                f"judge: cannot read {path} ({type(error).__name__}); expected a "
                f"safetensors file; {REBUILD}"
            ) from error
        problems = (wrong_tensors.problem_of(*item) for item in tensors.items())
        if problem := next(filter(None, problems), ""):
            raise UserError(f"judge: {path} {problem}; {REBUILD}")
        for prefix, module in (("view.", view), ("text.", text)):
            own = {
                name.removeprefix(prefix): tensor.float()
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"judge: {path} does not fit ({reason[:200]}); {REBUILD}"
                ) from error
        return cls(view, text, report)

    def save(self, path: Path) -> None:
        """Half precision, the report in the metadata."""
        tensors = {
            f"{prefix}.{name}": tensor.half().contiguous()
            for prefix, module in (("view", self.view), ("text", self.text))
            for name, tensor in module.state_dict().items()
        }
        metadata = {"report": json.dumps(self.report)}
        with whole_file(path) as partial:
            safetensors.torch.save_file(tensors, partial, metadata)

    @torch.inference_mode()
    def embed_views(
        self, views: UInt8[np.ndarray, "V H W 3"]
    ) -> Float[np.ndarray, "V D"]:
        """Unit vectors of the views, float32."""
        return self.view(ink(views)).numpy()

    @torch.inference_mode()
    def _embed_text(self, text: str) -> Float[np.ndarray, " D"]:
        """The text's unit vector, float32; kept, so do not write into it."""
        return self.text([text])[0].numpy()
