"""What a rollout leaves behind, and its log-probabilities under any policy.

A row of a `Sequence` is [prompt][plan][<mesh-start>][codes] or the like, each part in a
slot of fixed width: prompts are padded on the left and plans on the right, so that
every sampled token stands directly after the token that predicts it. Rollout and update
use this layout as it is; nothing is packed again. How rows come about is in
`rollout/two_step.py`.

`sequence_logp` is the hot part of the update. It never holds the logits of a whole
batch: each segment uses its own columns of the head, a chunk of tokens at a time, and
the backward pass computes a chunk's logits again.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ar3d_jax.errors import UserError
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.vocab import Subset, Vocab
from ar3d_jax.sharding import LOGITS_BTV, TOKENS_BT, project

Span = tuple[int, int]  # first index and the one after the last
CHUNK_BYTES = 2**26  # of float32 logits at a time; our choice: small beside activations


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """One part of a row: tokens in a slot of fixed width, the same for all rows.

    Attributes:
        tokens: ids; anything where not valid.
        valid: True for tokens, False for padding.
        sampled: True where the policy drew the token.
        logp: nats, of the token under the distribution that was sampled; 0 where not
            sampled.
    """

    tokens: jax.Array  # B T, int32
    valid: jax.Array  # B T, bool
    sampled: jax.Array  # B T, bool
    logp: jax.Array  # B T, float32

    @classmethod
    def empty(cls, rows: int, steps: int) -> "Segment":
        """A slot without tokens."""

        def zeros(dtype: Any) -> jax.Array:
            return jnp.zeros((rows, steps), dtype, out_sharding=TOKENS_BT)

        return cls(zeros(jnp.int32), zeros(bool), zeros(bool), zeros(jnp.float32))

    @classmethod
    def given(cls, tokens: jax.Array, valid: jax.Array) -> "Segment":
        """Tokens that were not sampled, [B, T]."""
        tokens, valid = (jax.sharding.reshard(x, TOKENS_BT) for x in (tokens, valid))
        empty = cls.empty(*tokens.shape)
        return dataclasses.replace(empty, tokens=tokens, valid=valid)

    @classmethod
    def same(cls, tokens: jax.Array, rows: int) -> "Segment":
        """The same given tokens [T] in every row."""
        tokens = jnp.broadcast_to(tokens[None], (rows, tokens.shape[0]))
        return cls.given(tokens, jnp.ones_like(tokens, bool))

    def write(self, index: jax.Array, *column: jax.Array) -> "Segment":
        """With one token per row at `index`; `column` is in the fields' order."""
        fields = (self.tokens, self.valid, self.sampled, self.logp)
        return type(self)(
            *(
                jax.lax.dynamic_update_index_in_dim(field, new, index, axis=1)
                for field, new in zip(fields, column, strict=True)
            )
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the sampled tokens of a `Sequence` are, and how they were drawn.

    Attributes:
        text: indices of a sampled plan.
        shape: indices of sampled shape tokens.
        temperature: logits were divided by it.
        truncated: top-k or top-p was on.
    """

    text: Span | None = None
    shape: Span | None = None
    temperature: float = 1.0
    truncated: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequence:
    """Rows of tokens, prompt-major: the G rollouts of one prompt follow each other.

    Attributes:
        tokens: as in `Segment`, side by side.
        positions: of each token among its row's valid ones, from 0.
        valid: as in `Segment`.
        sampled: as in `Segment`.
        logp: as in `Segment`; at a token's own index, not at the one before.
        layout: which indices are text and shape.
    """

    tokens: jax.Array  # B T, int32
    positions: jax.Array  # B T, int32
    valid: jax.Array  # B T, bool
    sampled: jax.Array  # B T, bool
    logp: jax.Array  # B T, float32
    layout: Layout = dataclasses.field(metadata={"static": True})


def side_by_side(*segments: Segment) -> Segment:
    """Segments as one wider segment."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *segments)


def join(
    *segments: Segment,
    text: int | None = None,
    shape: int | None = None,
    temperature: float = 1.0,
    truncated: bool = False,
) -> Sequence:
    """A sequence of segments; `text` and `shape` say which of them were sampled."""
    stops = list(itertools.accumulate(part.tokens.shape[1] for part in segments))
    spans = list(zip([0, *stops[:-1]], stops, strict=True))
    row = side_by_side(*segments)
    return Sequence(
        tokens=row.tokens,
        positions=jnp.maximum(jnp.cumsum(row.valid, axis=1) - 1, 0),
        valid=row.valid,
        sampled=row.sampled,
        logp=row.logp,
        layout=Layout(
            text=None if text is None else spans[text],
            shape=None if shape is None else spans[shape],
            temperature=temperature,
            truncated=truncated,
        ),
    )


def sequence_logp(
    policy: Decoder, sequence: Sequence, vocab: Vocab
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each sampled token and entropy of its distribution, in nats.

    Both are of the distribution that was sampled (the segment's subset of ids, at the
    sequence's temperature), and 0 where nothing was sampled. No gradient flows through
    the entropy: it is a metric.

    Raises:
        UserError: the sequence was drawn with top-k or top-p. Which tokens those keep
            changes with the parameters, so a ratio of probabilities would mean nothing.
    """
    layout = sequence.layout
    if layout.truncated:
        raise UserError(
            "rollout.top_k or rollout.top_p is on; expected 0 and 1.0 in training: "
            "probabilities of a truncated distribution cannot be compared"
        )
    hidden = policy.hidden(sequence.tokens, sequence.positions, sequence.valid)
    length = sequence.tokens.shape[1]
    logp = entropy = jnp.zeros_like(sequence.logp)
    for span, subset in ((layout.text, vocab.text), (layout.shape, vocab.shape)):
        if span is None:
            continue
        start, stop = span
        values = token_logp(
            hidden[:, start - 1 : stop - 1],
            subset.columns(policy.head_weights()),
            sequence.tokens[:, start:stop],
            subset,
            temperature=layout.temperature,
        )
        around = ((0, 0), (start, length - stop))
        logp, entropy = (
            total + jnp.pad(value, around)
            for total, value in zip((logp, entropy), values, strict=True)
        )
    return (
        jnp.where(sequence.sampled, logp, 0.0),
        jnp.where(sequence.sampled, entropy, 0.0),
    )


def token_logp(
    hidden: Float[Array, "B T D"],
    columns: Float[Array, "D V2"],
    tokens: Int[Array, "B T"],
    subset: Subset,
    *,
    temperature: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of `tokens` given `hidden`, and entropy, over `subset`'s ids."""
    rows, length = tokens.shape
    chunks = -(-rows * length * subset.size * 4 // CHUNK_BYTES)
    if chunks == 1:
        return _chunk_logp(hidden, columns, tokens, subset, temperature)
    size = -(-length // chunks)

    def split(x: jax.Array) -> jax.Array:
        widths = [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, widths).reshape(rows, chunks, size, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(rows, chunks * size)[:, :length]

    # Chunks along T: B is split over BATCH. The head's gradient adds up in the scan.
    _, values = jax.lax.scan(
        lambda _, chunk: (
            None,
            _chunk_logp(chunk[0], columns, chunk[1], subset, temperature),
        ),
        None,
        (split(hidden), split(tokens)),
    )
    return jax.tree.map(join, values)


def _logits(
    hidden: jax.Array, columns: jax.Array, subset: Subset, temperature: float
) -> jax.Array:
    logits = project(hidden, columns, LOGITS_BTV, jnp.float32)
    return subset.masked(logits / temperature)


def _is_target(logits: jax.Array, tokens: jax.Array, subset: Subset) -> jax.Array:
    """Where each row's own token is; no gather, as V may be split over "tp"."""
    ids = subset.start + jnp.arange(logits.shape[-1])
    return ids[None, None] == tokens[:, :, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunk_logp(
    hidden: jax.Array,
    columns: jax.Array,
    tokens: jax.Array,
    subset: Subset,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability and entropy; logits live only while this is computed."""
    return _chunk_forward(hidden, columns, tokens, subset, temperature)[0]


def _chunk_forward(hidden, columns, tokens, subset, temperature):
    logits = _logits(hidden, columns, subset, temperature)
    top = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(axis=-1)
    log_sum = jnp.log(total) + top[..., 0]
    target = jnp.where(_is_target(logits, tokens, subset), logits, 0.0).sum(axis=-1)
    entropy = log_sum - (weights * logits).sum(axis=-1) / total
    return (target - log_sum, entropy), (hidden, columns, tokens, log_sum)


def _chunk_backward(subset, temperature, saved, cotangents):
    hidden, columns, tokens, log_sum = saved
    logits, pull_back = jax.vjp(
        lambda h, c: _logits(h, c, subset, temperature), hidden, columns
    )
    is_target = _is_target(logits, tokens, subset)
    d_logits = is_target - jnp.exp(logits - log_sum[..., None])
    return *pull_back(d_logits * cotangents[0][..., None]), None


_chunk_logp.defvjp(_chunk_forward, _chunk_backward)
