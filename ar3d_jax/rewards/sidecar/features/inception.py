"""The Inception network of the Fréchet Inception Distance, as ported to PyTorch.

The published numbers come from TensorFlow's Inception of 2015-12-05. pytorch-fid's file
holds its weights; module and parameter names here are that file's. Three things differ
from torchvision's Inception v3: means over a window do not count the padding, the last
block takes a maximum in place of that mean, and there are 1008 classes, which play no
part here. Features are the 2048 means over the last 8x8 cells (Heusel et al. 2017).
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ar3d_jax.rewards.feature_sets import FeatureSet
from ar3d_jax.rewards.sidecar.features import files
from ar3d_jax.rewards.sidecar.features.pictures import Pictures

# A layer: its name, channels out, kernel height and width.
Layer = tuple[str, int, int, int]
# A branch: layers one after the other; several in one place see the same, side by side.
Branch = tuple[tuple[Layer, ...], ...]


class Convolution(nn.Module):
    """Convolution, BatchNorm, ReLU. With a stride or `valid`, without padding."""

    def __init__(
        self,
        before: int,
        after: int,
        height: int,
        width: int,
        stride: int = 1,
        *,
        valid: bool = False,
    ) -> None:
        super().__init__()
        padding = (0, 0) if valid or stride > 1 else (height // 2, width // 2)
        kernel = (height, width)
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Float[Tensor, "V C H W"]) -> Float[Tensor, "V D I J"]:
        """The layer's output, none below 0."""
        return functional.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, their outputs one after the other.

    The last branch pools: a mean without padding or a maximum, then `pool` channels by
    a 1x1 convolution; or, in a block that halves the picture, the maximum alone.
    """

    def __init__(
        self, before: int, branches: tuple[Branch, ...], pool: int, kind: str = "mean"
    ) -> None:
        super().__init__()
        self.kind = kind
        self.names: list[list[list[str]]] = []
        for branch in branches:
            width, steps = before, []
            for step in branch:
                # Only the last layer of a branch halves.
                stride = 2 if kind == "halve" and step is branch[-1] else 1
                for name, *sizes in step:
                    self.add_module(name, Convolution(width, *sizes, stride=stride))
                width = sum(after for _, after, _, _ in step)
                steps.append([name for name, *_ in step])
            self.names.append(steps)
        if pool:
            self.branch_pool = Convolution(before, pool, 1, 1)

    def forward(self, x: Float[Tensor, "V C H W"]) -> Float[Tensor, "V D I J"]:
        """All branches' channels."""
        outputs = []
        for steps in self.names:
            y = x
            for names in steps:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            outputs.append(y)
        if self.kind == "halve":
            pooled = functional.max_pool2d(x, 3, 2)
        elif self.kind == "max":
            pooled = self.branch_pool(functional.max_pool2d(x, 3, 1, 1))
        else:
            mean = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            pooled = self.branch_pool(mean)
        return torch.cat([*outputs, pooled], 1)


def _chain(*layers: Layer) -> Branch:
    return tuple((layer,) for layer in layers)


def _triple(name: str, first: int, *after: int) -> Branch:
    """1x1, then two 3x3."""
    return _chain(
        (f"{name}_1", first, 1, 1),
        (f"{name}_2", after[0], 3, 3),
        (f"{name}_3", after[1], 3, 3),
    )


def _fine(before: int, pool: int) -> Block:
    """Of 35x35 cells."""
    five = _chain(("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5))
    one, three = _chain(("branch1x1", 64, 1, 1)), _triple("branch3x3dbl", 64, 96, 96)
    return Block(before, (one, five, three), pool)


def _middle(width: int) -> Block:
    """Of 17x17 cells; `width` channels between long and tall kernels."""
    seven = _chain(
        ("branch7x7_1", width, 1, 1),
        ("branch7x7_2", width, 1, 7),
        ("branch7x7_3", 192, 7, 1),
    )
    double = _chain(
        ("branch7x7dbl_1", width, 1, 1),
        ("branch7x7dbl_2", width, 7, 1),
        ("branch7x7dbl_3", width, 1, 7),
        ("branch7x7dbl_4", width, 7, 1),
        ("branch7x7dbl_5", 192, 1, 7),
    )
    return Block(768, (_chain(("branch1x1", 192, 1, 1)), seven, double), 192)


def _coarse(before: int, kind: str) -> Block:
    """Of 8x8 cells."""

    def fork(name: str) -> tuple[Layer, ...]:
        return ((f"{name}a", 384, 1, 3), (f"{name}b", 384, 3, 1))

    three = (*_chain(("branch3x3_1", 384, 1, 1)), fork("branch3x3_2"))
    double = (
        *_chain(("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3)),
        fork("branch3x3dbl_3"),
    )
    one = _chain(("branch1x1", 320, 1, 1))
    return Block(before, (one, three, double), 192, kind)


class FidInception(nn.Module):
    """Pictures of 299 px, from -1 to 1, to 2048 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 3, valid=True)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 3, valid=True)
        self.Mixed_5b = _fine(192, 32)
        self.Mixed_5c = _fine(256, 64)
        self.Mixed_5d = _fine(288, 64)
        three = _chain(("branch3x3", 384, 3, 3))
        double = _triple("branch3x3dbl", 64, 96, 96)
        self.Mixed_6a = Block(288, (three, double), 0, "halve")
        self.Mixed_6b = _middle(128)
        self.Mixed_6c = _middle(160)
        self.Mixed_6d = _middle(160)
        self.Mixed_6e = _middle(192)
        three = _chain(("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3))
        seven = _chain(
            ("branch7x7x3_1", 192, 1, 1),
            ("branch7x7x3_2", 192, 1, 7),
            ("branch7x7x3_3", 192, 7, 1),
            ("branch7x7x3_4", 192, 3, 3),
        )
        self.Mixed_7a = Block(768, (three, seven), 0, "halve")
        self.Mixed_7b = _coarse(1280, "mean")
        self.Mixed_7c = _coarse(2048, "max")

    def forward(self, x: Float[Tensor, "V 3 S S"]) -> Float[Tensor, "V D"]:
        """The last average pool."""
        for name, layer in self.named_children():
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = functional.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


class Inception:
    """The network on its device."""

    def __init__(self, model: FidInception, kind: FeatureSet, device: str) -> None:
        self._model, self._kind, self._device = model, kind, device

    @torch.inference_mode()
    def embed_views(self, pictures: Pictures) -> Float[np.ndarray, "V D"]:
        """See `Network`."""
        views = torch.from_numpy(pictures.views).to(self._device)
        # "bilinear": four neighbours, no smoothing, as pytorch-fid.
        pixels = functional.interpolate(
            views.permute(0, 3, 1, 2).float() / 255,
            (self._kind.size, self._kind.size),
            mode="bilinear",
            align_corners=False,
        )
        return self._model(2 * pixels - 1).cpu().numpy()

    def embed_text(self, text: str) -> tuple[Float[np.ndarray, " D"], bool]:
        """Never asked."""
        raise NotImplementedError("Inception reads no text")


def load(path: Path, kind: FeatureSet, field: str, device: str) -> Inception:
    """The network from pytorch-fid's file.

    Raises:
        UserError: it is missing or broken, or holds another network.
    """
    expected = kind.published
    tensors = files.read_tensors(path, field, expected)
    model = FidInception()
    files.fill(model, tensors, path, field, expected)
    # Pictures come channels last; so a CPU takes a quarter less time.
    model = model.eval().to(device, memory_format=torch.channels_last)  # pyright: ignore
    return Inception(model, kind, device)
