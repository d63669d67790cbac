"""Which ids mean what, and which of them a segment may sample.

Ids are read from a tokenizer, so the published vocabulary (codes from 151,665 on) and
the small one (`tokenizer.py`) work alike. Text segments sample ordinary text and the
end of turn; shape segments sample codes only, so that no malformed mesh can occur. Both
are ranges of the head's columns: logits of other ids are never computed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ar3d_jax.errors import UserError

IMPOSSIBLE = -1e30  # a logit; finite, so that probability times logit is 0 and not NaN
_TILE = 128  # columns are rounded up to it: splits over "tp", and vectors stay aligned


@dataclasses.dataclass(frozen=True)
class Subset:
    """The ids `start` to `stop`, less the `banned` ones.

    Columns beyond `stop` (up to a multiple of 128) are there and impossible.
    """

    start: int
    stop: int
    banned: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Columns: what the last axis of logits has."""
        return -(-(self.stop - self.start) // _TILE) * _TILE

    def columns(self, head: Float[Array, "D V"]) -> Float[Array, "D V2"]:
        """The subset's part of the head."""
        if (self.start, self.size) == (0, head.shape[1]):
            return head
        ids = self.start + np.arange(self.size)
        layout = jax.typeof(head).sharding.spec
        return head.at[:, ids].get(out_sharding=layout, mode="clip")

    def masked(self, logits: Float[Array, "*rows V2"]) -> Float[Array, "*rows V2"]:
        """Logits with `IMPOSSIBLE` where an id may not be sampled."""
        ids = self.start + np.arange(self.size)
        allowed = (ids < self.stop) & ~np.isin(ids, self.banned)
        if allowed.all():
            return logits
        allowed = jnp.asarray(allowed).reshape((1,) * (logits.ndim - 1) + (-1,))
        return jnp.where(allowed, logits, jnp.asarray(IMPOSSIBLE, logits.dtype))


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Ids of the tokens that are more than text.

    Attributes:
        endoftext: the first id that is not ordinary text; also padding.
        im_start: begins a chat turn.
        im_end: ends a chat turn.
        codes_start: id of `<mesh0>`; code k is codes_start + k.
        codes: size of the codebook.
        mesh_start: begins a shape.
        mesh_end: ends a shape.
    """

    endoftext: int
    im_start: int
    im_end: int
    codes_start: int
    codes: int
    mesh_start: int
    mesh_end: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "Vocab":
        """The ids in a transformers tokenizer.

        Raises:
            UserError: a token is missing, or codes are not contiguous.
        """
        ids = tokenizer.get_vocab()
        names = {
            "endoftext": "<|endoftext|>",
            "im_start": "<|im_start|>",
            "im_end": "<|im_end|>",
            "codes_start": "<mesh0>",
            "mesh_start": "<mesh-start>",
            "mesh_end": "<mesh-end>",
        }
        missing = [token for token in names.values() if token not in ids]
        if missing:
            raise UserError(
                f"the tokenizer lacks {', '.join(missing)}; expected the vocabulary of "
                "ShapeLLM-Omni or one built by ar3d_jax.policy.tokenizer"
            )
        found = {field: ids[token] for field, token in names.items()}
        first = found["codes_start"]
        codes = 0
        while ids.get(f"<mesh{codes}>") == first + codes:
            codes += 1
        if f"<mesh{codes}>" in ids:
            raise UserError(
                f"<mesh{codes}> of the tokenizer has id {ids[f'<mesh{codes}>']}; "
                f"expected {first + codes}: the codes must follow each other"
            )
        return cls(**found, codes=codes)

    @functools.cached_property
    def text(self) -> Subset:
        """What plans are made of: ordinary text and the end of turn."""
        banned = range(self.endoftext, self.im_end)
        return Subset(0, self.im_end + 1, tuple(banned))

    @functools.cached_property
    def shape(self) -> Subset:
        """The codes."""
        return Subset(self.codes_start, self.codes_start + self.codes)


# ShapeLLM-Omni's, where its tokenizer is not at hand.
PUBLISHED = Vocab(
    endoftext=151_643,
    im_start=151_644,
    im_end=151_645,
    codes_start=151_665,
    codes=8192,
    mesh_start=159_857,
    mesh_end=159_858,
)
