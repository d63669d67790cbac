"""Which Hugging Face tensors make up which parameter of `Decoder`, in both directions.

`parameters` is the one table: every parameter's axes by their letters (`shapes.py`),
and the tensors in it, each with the letters of its own axes. A torch axis may be some
of ours flattened: q_proj is [(K P H), D], and one of [D, K, P, H]'s parts along P.
Shapes, reading (`shard`) and writing (`theirs`) follow from it.

No axis that the device mesh splits is one along which parts are put together (L, P, E),
so every device fills its own shard from slices of the files, without the others.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ar3d_jax.config import PolicyConfig
from ar3d_jax.tensor_check import TensorCheck

PIECE_BYTES = 2**24  # read and transposed at a time; our choice: small beside a tensor
_JOINED = "PE"  # along these a parameter is put together from several tensors

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of their tensors, as a part of a parameter.

    Attributes:
        name: in the older naming; of a layer, what follows `model.layers.0.`.
        axes: letters of ours behind each of its axes.
        first: its first entry along the parameter's P or E.
        count: how many it has there.
    """

    name: str
    axes: tuple[str, ...]
    first: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of ours.

    Attributes:
        path: attributes from the decoder to it.
        axes: its letters; L first where layers are stacked.
        sizes: of all letters.
        tensors: what it is made of.
    """

    path: tuple[str, ...]
    axes: str
    sizes: Mapping[str, int]
    tensors: tuple[Tensor, ...]

    @property
    def layers(self) -> int:
        """Layers that are stacked in it; 0 where it is not one of a layer."""
        return self.sizes["L"] if "L" in self.axes else 0

    def name(self, tensor: Tensor, layer: int) -> str:
        """The tensor's full name."""
        return f"model.layers.{layer}.{tensor.name}" if self.layers else tensor.name

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(
            math.prod(self._size(tensor, letter) for letter in letters)
            for letters in tensor.axes
        )

    def part_axes(self) -> str:
        """Letters of a tensor's part of it: its own without L."""
        return self.axes.removeprefix("L")

    def part_shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape of a tensor's part of it."""
        return tuple(self._size(tensor, letter) for letter in self.part_axes())

    def shard(
        self,
        tensor: Tensor,
        readable: Any,
        index: Index,
        dtype: Any,
        check: TensorCheck,
    ) -> np.ndarray:
        """One device's share of a tensor's part, read a piece at a time.

        Args:
            tensor: the part.
            readable: it, in its file: `safetensor_files.Slices`.
            index: the share, on the part's axes.
            dtype: of the result.
            check: looks at the pieces.

        Raises:
            UserError: as `check.look`.
        """
        letters = self.part_axes()
        ranges = {
            letter: range(*slice_.indices(self._size(tensor, letter)))
            for letter, slice_ in zip(letters, index, strict=True)
        }
        share = np.empty([len(ranges[letter]) for letter in letters], dtype)
        for piece in _pieces("".join(tensor.axes), ranges, share.nbytes):
            value = readable[self._flat(tensor, piece)]
            last = all(piece[x].stop == ranges[x].stop for x in letters)
            check.look(value, last=last)
            ours = value.reshape([len(piece[x]) for x in "".join(tensor.axes)])
            order = ["".join(tensor.axes).index(letter) for letter in letters]
            target = tuple(
                slice(piece[x].start - ranges[x].start, piece[x].stop - ranges[x].start)
                for x in letters
            )
            share[target] = ours.transpose(order)
        return share

    def part(self, tensor: Tensor) -> Index:
        """Where the tensor is in one layer of the parameter."""
        return tuple(
            slice(tensor.first, tensor.first + tensor.count)
            if letter in _JOINED
            else slice(None)
            for letter in self.part_axes()
        )

    def theirs(self, tensor: Tensor, part: np.ndarray) -> np.ndarray:
        """A tensor's part of one layer, as the tensor: `shard` the other way."""
        letters = "".join(tensor.axes)
        order = [self.part_axes().index(letter) for letter in letters]
        return np.ascontiguousarray(part.transpose(order)).reshape(self.shape(tensor))

    def _size(self, tensor: Tensor, letter: str) -> int:
        return tensor.count if letter in _JOINED else self.sizes[letter]

    def _flat(self, tensor: Tensor, ranges: Mapping[str, range]) -> Index:
        """The ranges as slices of the tensor's own axes."""

        def flat(letters: str) -> slice:
            start, stride, whole = 0, 1, True
            for letter in reversed(letters):
                size, part = self._size(tensor, letter), ranges[letter]
                assert whole or len(part) == 1, f"{tensor.name}: no one slice of it"
                start += part.start * stride
                stride *= size
                whole = whole and len(part) == size
            count = math.prod(len(ranges[letter]) for letter in letters)
            return slice(start, start + count)

        return tuple(flat(letters) for letters in tensor.axes)


def parameters(cfg: PolicyConfig) -> tuple[Parameter, ...]:
    """All parameters of a decoder."""
    Q = cfg.heads // cfg.kv_heads
    sizes = {
        "V": cfg.vocab_size,
        "L": cfg.layers,
        "D": cfg.width,
        "K": cfg.kv_heads,
        "P": Q + 2,
        "H": cfg.head_size,
        "I": cfg.heads * cfg.head_size,
        "E": 2,
        "F": cfg.mlp_width,
    }

    def whole(path: str, axes: str, name: str, *theirs: str) -> Parameter:
        return Parameter(
            tuple(path.split(".")), axes, sizes, (Tensor(name + ".weight", theirs),)
        )

    def attention(kind: str, *rest: str) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(f"self_attn.{which}_proj.{kind}", ("KPH", *rest), first, count)
            for which, first, count in (("q", 0, Q), ("k", Q, 1), ("v", Q + 1, 1))
        )

    mlp = tuple(
        Tensor(f"mlp.{which}_proj.weight", ("EF", "D"), first)
        for first, which in enumerate(("gate", "up"))
    )
    found = [
        whole("blocks.attention_norm", "LD", "input_layernorm", "D"),
        Parameter(("blocks", "qkv"), "LDKPH", sizes, attention("weight", "D")),
        Parameter(("blocks", "qkv_bias"), "LKPH", sizes, attention("bias")),
        whole("blocks.out", "LID", "self_attn.o_proj", "D", "I"),
        whole("blocks.mlp_norm", "LD", "post_attention_layernorm", "D"),
        Parameter(("blocks", "gate_up"), "LDEF", sizes, mlp),
        whole("blocks.down", "LFD", "mlp.down_proj", "D", "F"),
        whole("embed", "VD", "model.embed_tokens", "V", "D"),
        whole("norm", "D", "model.norm", "D"),
    ]
    if not cfg.tied:
        found.append(whole("head", "DV", "lm_head", "V", "D"))
    return tuple(found)


def shapes(cfg: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor's full name and shape."""
    return {
        parameter.name(tensor, layer): parameter.shape(tensor)
        for parameter in parameters(cfg)
        for layer in range(max(parameter.layers, 1))
        for tensor in parameter.tensors
    }


def _pieces(
    letters: str, ranges: Mapping[str, range], nbytes: int
) -> Iterator[dict[str, range]]:
    """The ranges in pieces of about PIECE_BYTES, cut along the first that can be."""
    cut = next((x for x in letters if len(ranges[x]) > 1), letters[0])
    whole = ranges[cut]
    count = min(len(whole), -(-nbytes // PIECE_BYTES))
    size = -(-len(whole) // max(count, 1))
    for start in range(whole.start, whole.stop, size):
        yield {**ranges, cut: range(start, min(start + size, whole.stop))}
