"""Hi-GRPO's rollout: per prompt x, G times a coarse and a refined shape with plans.

With chat(x, I) for the prompt and an instruction I as the model's user turn:

1. global plan s and coarse shape t: chat(x, HIGH) s <mesh-start> t
2. local plan v: chat(x, HIGH) s [turn with LOW] v
3. refined shape o: chat(x, LOW) v <mesh-start> o

`rollout_coarse` does the first line, `rollout_refined` the others, so that coarse
shapes can be drawn and scored meanwhile. A prompt is computed once for its G samples,
and the first line's chat and plan once for both lines that start with them. Each
function is one jitted program per (prompt length, prompts, G). Models that were trained
to answer with a shape at once have `rollout_one_step`. One segment's loop is in
`generate.py`, the sequences' layout in `policy/sequence.py`.

With `rollout.refined_sees_coarse` (our own idea) line 3 is chat(x, LOW) v <mesh-start>
t <mesh-end> <mesh-start> o: the refined shape may correct the coarse one.

Not in the paper, our choices: a plan that has no end of turn by its last token gets one
there, unsampled, so that what follows is always well-formed; shapes have no
`<mesh-end>`, their length is known.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from ar3d_jax.config import RolloutConfig
from ar3d_jax.policy.cache import Cache
from ar3d_jax.policy.chat import Prompts
from ar3d_jax.policy.decoder import Decoder, Layers
from ar3d_jax.policy.sequence import Segment, Sequence, join, side_by_side
from ar3d_jax.policy.vocab import Vocab
from ar3d_jax.rollout.generate import append, prefill, sample
from ar3d_jax.rollout.sampling import filters, uniforms
from ar3d_jax.sharding import TOKENS_BT, fold_in_name, gathered

_STATIC = ("cfg", "vocab", "group_size", "shape_tokens")


@functools.partial(jax.jit, static_argnames=_STATIC)
def rollout_coarse(
    policy: Decoder,
    prompts: Prompts,
    cfg: RolloutConfig,
    vocab: Vocab,
    key: Key[Array, ""],
    *,
    group_size: int,
    shape_tokens: int,
) -> tuple[Sequence, Cache]:
    """Global plans and coarse shapes, and the cache of chat(x, HIGH) s.

    Rows are prompt-major: prompt b's samples are rows b * G to b * G + G - 1. What a
    row draws depends on (key, row) and the policy, not on the other rows.
    """
    run = _run(policy, cfg, vocab, key)
    prompt, hidden, cache = run.prompt(prompts.high, prompts.high_valid, group_size)
    plan, hidden, planned = run.plan(cache, hidden, "global plan")
    begin, hidden, cache = run.begin_shape(planned)
    shape = run.shape(cache, hidden, "coarse shape", shape_tokens)
    return run.sequence(prompt, plan, begin, shape, text=1, shape=3), planned


@functools.partial(jax.jit, static_argnames=_STATIC)
def rollout_refined(
    policy: Decoder,
    prompts: Prompts,
    coarse: Sequence,
    cache: Cache,
    cfg: RolloutConfig,
    vocab: Vocab,
    key: Key[Array, ""],
    *,
    group_size: int,
    shape_tokens: int,
) -> tuple[Sequence, Sequence]:
    """Local plans and refined shapes, from what `rollout_coarse` returned."""
    run = _run(policy, cfg, vocab, key)
    before = Segment.given(
        coarse.tokens[:, : cache.slots], coarse.valid[:, : cache.slots]
    )
    turn, hidden, cache = run.turn(cache, prompts.low_turn)
    plan, _, _ = run.plan(cache, hidden, "local plan")
    local = run.sequence(before, turn, plan, text=2)

    prompt, _, cache = run.prompt(prompts.low, prompts.low_valid, group_size)
    plan = Segment.given(plan.tokens, plan.valid)  # context here: sampled above
    if cfg.refined_sees_coarse:
        plan = side_by_side(plan, run.shape_seen(coarse))
    begin, hidden, cache = run.begin_shape(cache, plan)
    shape = run.shape(cache, hidden, "refined shape", shape_tokens)
    return local, run.sequence(prompt, plan, begin, shape, shape=3)


@functools.partial(jax.jit, static_argnames=_STATIC)
def rollout_one_step(
    policy: Decoder,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    cfg: RolloutConfig,
    vocab: Vocab,
    key: Key[Array, ""],
    *,
    group_size: int,
    shape_tokens: int,
) -> Sequence:
    """Shapes straight from prompts, as one-step models were trained: chat(x) t."""
    run = _run(policy, cfg, vocab, key)
    prompt, _, cache = run.prompt(tokens, valid, group_size)
    begin, hidden, cache = run.begin_shape(cache)
    shape = run.shape(cache, hidden, "shape", shape_tokens)
    return run.sequence(prompt, begin, shape, shape=2)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all segments of one program share, and how each kind is written."""

    policy: Decoder
    layers: Layers
    cfg: RolloutConfig
    vocab: Vocab
    key: jax.Array

    def prompt(
        self, tokens: jax.Array, valid: jax.Array, group_size: int
    ) -> tuple[Segment, jax.Array, Cache]:
        """Prompts, computed once and repeated for their groups."""
        hidden, cache = prefill(self.policy, self.layers, tokens, valid)
        tokens, valid, hidden = (
            jnp.repeat(x, group_size, axis=0, out_sharding=TOKENS_BT)
            for x in (tokens, valid, hidden)
        )
        return Segment.given(tokens, valid), hidden, cache.repeated(group_size)

    def turn(self, cache: Cache, tokens: jax.Array) -> tuple[Segment, jax.Array, Cache]:
        """The same tokens [T] in every row."""
        turn = Segment.same(tokens, cache.rows)
        return turn, *append(self.policy, self.layers, cache, turn.tokens, turn.valid)

    def begin_shape(
        self, cache: Cache, plan: Segment | None = None
    ) -> tuple[Segment, jax.Array, Cache]:
        """`<mesh-start>`, after a plan that the cache does not hold yet."""
        begin = Segment.same(jnp.array([self.vocab.mesh_start]), cache.rows)
        added = side_by_side(plan, begin) if plan else begin
        return begin, *append(
            self.policy, self.layers, cache, added.tokens, added.valid
        )

    def shape_seen(self, sequence: Sequence) -> Segment:
        """A shape sampled before, as context: `<mesh-start>` t `<mesh-end>`."""
        assert sequence.layout.shape, "a sequence without a sampled shape"
        span = slice(*sequence.layout.shape)
        tokens, valid = sequence.tokens[:, span], sequence.valid[:, span]
        first, last = (
            Segment.same(jnp.array([token]), tokens.shape[0])
            for token in (self.vocab.mesh_start, self.vocab.mesh_end)
        )
        return side_by_side(first, Segment.given(tokens, valid), last)

    def plan(
        self, cache: Cache, hidden: jax.Array, name: str
    ) -> tuple[Segment, jax.Array, Cache]:
        """Sampled text up to its end of turn; `name` picks the random numbers."""
        return sample(
            self.policy,
            self.layers,
            cache,
            hidden,
            self._numbers(cache, name, self.cfg.plan_tokens),
            subset=self.vocab.text,
            filters=filters(self.cfg),
            end=self.vocab.im_end,
            stop_early=self.cfg.stop_early,
        )

    def shape(self, cache: Cache, hidden: jax.Array, name: str, tokens: int) -> Segment:
        """Sampled codes, as many as a shape has."""
        segment, _, _ = sample(
            self.policy,
            self.layers,
            cache,
            hidden,
            self._numbers(cache, name, tokens),
            subset=self.vocab.shape,
            filters=filters(self.cfg),
        )
        return segment

    def sequence(
        self, *parts: Segment, text: int | None = None, shape: int | None = None
    ) -> Sequence:
        """Segments side by side; `text` and `shape` say which of them were sampled."""
        return join(
            *parts,
            text=text,
            shape=shape,
            temperature=self.cfg.temperature,
            truncated=self.cfg.top_k > 0 or self.cfg.top_p < 1,
        )

    def _numbers(self, cache: Cache, name: str, steps: int) -> jax.Array:
        return uniforms(fold_in_name(self.key, name), cache.rows, steps)


def _run(
    policy: Decoder, cfg: RolloutConfig, vocab: Vocab, key: Key[Array, ""]
) -> _Run:
    if cfg.gather:
        policy = gathered(policy)
    return _Run(policy, policy.layers(), cfg, vocab, key)
