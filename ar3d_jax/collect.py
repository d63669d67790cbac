"""A batch to learn from: prompts -> rollout -> codec -> views and scores -> rewards.

Coarse objects are drawn and scored while the refined rollout runs. `launch` returns as
soon as everything is sampled, `finish` when all scores are in, so that a caller may
launch the next batch in between (`rollout.ahead`). Groups that teach nothing are
replaced by groups of further prompts (`objective.dynamic_sampling`, `selection.py`), in
rounds of one size until the batch is full or `max_resample` is reached: nothing is
compiled anew, and every host decides alike, from the same numbers.

One batch is `train.py`'s; how steps are sampled is `models.sample_steps`, how objects
are scored `rewards/client.py`, what scores add up to `rewards/ensemble.py`.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ar3d_jax import hosts
from ar3d_jax.config import Config, to_dict
from ar3d_jax.data.prompts import PromptSource
from ar3d_jax.higrpo.advantages import group_spread
from ar3d_jax.higrpo.selection import Selection
from ar3d_jax.higrpo.update import ScoredRollouts
from ar3d_jax.metrics import Stopwatch
from ar3d_jax.models import (
    Models,
    check_length,
    decode_rows,
    sample_steps,
    shape_codes,
)
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Sequence
from ar3d_jax.rewards.client import Scores, Scoring
from ar3d_jax.rewards.ensemble import total_rewards
from ar3d_jax.sharding import fold_in_name, shared_equally

ByRole = dict[str, np.ndarray]  # a score's values, one per row


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A batch that is sampled, and whose objects are being scored.

    Attributes:
        sequences: by step, whose sampled tokens belong to it.
        tickets: by step, of this host's objects.
        rows: of all hosts.
        position: of the prompts' source, before those of this batch were taken.
        truncated: by step, plans that reached `rollout.plan_tokens` without an end of
            turn, of all hosts.
    """

    sequences: dict[str, tuple[Sequence, ...]]
    tickets: dict[str, Scores]
    rows: int
    position: dict[str, Any]
    truncated: Counter[str]


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch whose scores are in.

    Attributes:
        sequences: by step, whose sampled tokens belong to it.
        scores: by step and role, of all hosts' rows; NaN where one is missing.
        rewards: by step, [B, G], that is trained on; NaN where a score is missing.
        all_scores: as `scores`, before any group was left out or replaced.
        all_rewards: as `rewards`, likewise.
        truncated: by step, plans that were cut off; of groups that were left out, too.
        missing: by "step/role", scores that no rollout got; of groups that were left
            out, too.
        scored: rows of all hosts that were scored, likewise.
        latencies: by role, seconds from asking to answer, of this host.
        replaced: groups of further prompts among them.
        rounds: of further prompts that were sampled.
        draw_s: seconds that render workers spent on it.
    """

    sequences: dict[str, tuple[Sequence, ...]]
    scores: dict[str, ByRole]
    rewards: dict[str, np.ndarray]
    all_scores: dict[str, ByRole] = dataclasses.field(default_factory=dict)
    all_rewards: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    truncated: Counter[str] = dataclasses.field(default_factory=Counter)
    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    scored: int = 0
    latencies: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    replaced: int = 0
    rounds: int = 0
    draw_s: float = 0.0

    @property
    def rollouts(self) -> ScoredRollouts:
        """What the update takes."""
        rewards = {name: of.astype(np.float32) for name, of in self.rewards.items()}
        return ScoredRollouts(self.sequences, rewards)


class Collector:
    """Makes a run's batches.

    Attributes:
        selection: which groups are kept; its state belongs into a checkpoint.
    """

    def __init__(
        self,
        config: Config,
        models: Models,
        scoring: Scoring,
        source: PromptSource,
        key: jax.Array,
        say: Callable[[str], None],
    ) -> None:
        """Takes what the run has opened; `key` is the run's."""
        self._config, self._models, self._scoring = config, models, scoring
        self._source, self._key, self._say = source, key, say
        self.selection = Selection(config.objective)
        self._rollout = config.rollout
        if config.objective.dynamic_sampling != "off":
            # Batches that are put together must be equally wide.
            texts = [text for row in source.rows for text in row.texts]
            width = check_length(models.tokenizer, texts, config.rollout)
            self._rollout = dataclasses.replace(config.rollout, prompt_tokens=(width,))

    def launch(
        self, policy: Decoder, step: int, clock: Stopwatch, *, again: int = 0
    ) -> Waiting:
        """Samples the next prompts and hands their objects over for scoring.

        Args:
            policy: that samples.
            step: the optimiser step that the batch is for; with `again`, the round of
                dynamic sampling, it picks the random numbers.
            clock: gets the seconds of `rollout` and `codec`.
            again: 0 for the batch itself.
        """
        config, group = self._config, self._config.group_size
        count = config.prompts_per_step
        if again:
            count = config.objective.resample_prompts or count
            count = shared_equally(count)
        position = self._source.get_state()
        texts = [prompt.text for prompt in self._source.take(count)]
        per_row = [text for text in texts for _ in range(group)]
        own = [per_row[row] for row in hosts.own_rows(len(per_row))]
        key = jax.random.fold_in(self._key, step)
        if again:
            key = jax.random.fold_in(fold_in_name(key, "again"), again)
        steps = sample_steps(
            self._models,
            policy,
            texts,
            key,
            self._rollout,
            paradigm=config.paradigm,
            group_size=group,
        )
        waiting = Waiting({}, {}, len(per_row), position, Counter())
        for _ in config.step_names:
            with clock("rollout"):
                sampled = next(steps)
                jax.block_until_ready(sampled.sequences)
                clock.tokens += sum(
                    int(hosts.everywhere(part.sampled).sum())
                    for part in sampled.sequences
                )
            waiting.sequences[sampled.name] = sampled.sequences
            waiting.truncated[sampled.name] = _cut_off(sampled.sequences)
            ensemble = config.rewards.ensemble_of(sampled.name)
            if not config.rewards.roles(ensemble):
                continue  # equation 9 still trains a coarse step, by the refined reward
            with clock("codec"):
                codes = shape_codes(sampled.shape, self._models.vocab)
                logits = decode_rows(self._models.codec, codes)
            waiting.tickets[sampled.name] = self._scoring.submit(logits, own, ensemble)
        return waiting

    def finish(
        self, waiting: Waiting, policy: Decoder, step: int, clock: Stopwatch
    ) -> Batch:
        """Waits for the scores, and fills the places of groups that teach nothing."""
        batch = self._scored(waiting, step, clock)
        keep = self._choose(batch)
        rounds = 0
        while not keep.all() and rounds < self._config.objective.max_resample:
            rounds += 1
            more = self.launch(policy, step, clock, again=rounds)
            further = self._scored(more, step, clock)
            good = self._choose(further)
            batch, keep = self._filled(batch, keep, further, good)
        return dataclasses.replace(batch, rounds=rounds)

    def _choose(self, batch: Batch) -> np.ndarray:
        """Which groups teach something: `Selection.choose`.

        The band compares plain sums at the lambda that the run ends with: normalised
        scores have no mean, and with lambda moves the scale.
        """
        plain = rewards_of(batch.scores, self._config, self._config.objective.final_lam)
        first = plain[self._config.step_names[0]]
        return self.selection.choose(
            batch.rewards, first.reshape(-1, self._config.group_size)
        )

    def _scored(self, waiting: Waiting, step: int, clock: Stopwatch) -> Batch:
        """Scores of all hosts, and what they add up to."""
        config = self._config
        scores: dict[str, ByRole] = {name: {} for name in waiting.sequences}
        with clock("score_wait"):
            for name, ticket in waiting.tickets.items():
                own, reasons = self._scoring.collect(ticket)
                if line := reasons_in_words(reasons):
                    self._say(line)
                scores[name] = hosts.gather(own, waiting.rows)
        rewards = rewards_of(
            scores,
            config,
            config.objective.lam_at(step),
            normalise=config.group_size * config.rewards.normalise_scores,
        )
        shape = (-1, config.group_size)
        rewards = {name: reward.reshape(shape) for name, reward in rewards.items()}
        return Batch(
            waiting.sequences,
            scores,
            rewards,
            all_scores=scores,
            all_rewards=rewards,
            truncated=waiting.truncated,
            missing=Counter(
                {
                    f"{name}/{role}": int(np.isnan(values).sum())
                    for name, roles in scores.items()
                    for role, values in roles.items()
                }
            ),
            scored=waiting.rows,
            latencies=_joined(*(of.latencies for of in waiting.tickets.values())),
            draw_s=sum(ticket.draw_s for ticket in waiting.tickets.values()),
        )

    def _filled(
        self, batch: Batch, keep: np.ndarray, further: Batch, good: np.ndarray
    ) -> tuple[Batch, np.ndarray]:
        """The batch with good groups of another in the places that are not kept."""
        places, donors = np.flatnonzero(~keep), np.flatnonzero(good)
        count = min(len(places), len(donors))
        groups = len(keep)
        source = np.arange(groups)  # of each group, in both batches together
        source[places[:count]] = groups + donors[:count]
        members = np.arange(self._config.group_size)
        rows = (source[:, None] * len(members) + members).reshape(-1)

        def rows_from(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.concatenate([one, other])[rows]

        kept = keep.copy()
        kept[places[:count]] = True
        return Batch(
            _merged(batch.sequences, further.sequences, jnp.asarray(rows)),
            jax.tree.map(rows_from, batch.scores, further.scores),
            {
                name: np.concatenate([of, further.rewards[name]])[source]
                for name, of in batch.rewards.items()
            },
            all_scores=batch.all_scores,
            all_rewards=batch.all_rewards,
            truncated=batch.truncated + further.truncated,
            missing=batch.missing + further.missing,
            scored=batch.scored + further.scored,
            latencies=_joined(batch.latencies, further.latencies),
            replaced=batch.replaced + count,
            draw_s=batch.draw_s + further.draw_s,
        ), kept


def reasons_in_words(reasons: Mapping[str, list[str | None]]) -> str | None:
    """How many scores are missing, and an example of the most frequent kind of reason.

    `reasons` are by role. A kind is what stands before the first ": ": what follows may
    be the answer itself, and unlike any other. None where no score is missing.
    """
    why = [reason for rows in reasons.values() for reason in rows if reason]
    if not why:
        return None
    kinds = [reason.partition(": ")[0] for reason in why]
    kind, times = Counter(kinds).most_common(1)[0]
    example = why[kinds.index(kind)]
    return f"{len(why)} scores are missing; {times} such as: {example}"


def rewards_of(
    scores: Mapping[str, ByRole], config: Config, lam: float, *, normalise: int = 0
) -> dict[str, np.ndarray]:
    """By step, each row's reward: equations (7) to (9), or one ensemble's for GRPO."""
    weights: dict[str, Any] = to_dict(config.rewards.weights)
    if config.paradigm == "higrpo":
        both = scores["coarse"], scores["refined"]
        totals = total_rewards(*both, weights, lam, normalise=normalise)
        return dict(zip(config.step_names, totals, strict=True))
    ensemble = config.rewards.ensemble
    by_step = {"coarse": {}, "refined": {}, ensemble: scores["shape"]}
    alone = {"coarse": {}, "refined": {}, ensemble: weights[ensemble]}
    high, low = total_rewards(
        by_step["coarse"], by_step["refined"], alone, 0.0, normalise=normalise
    )
    return {"shape": high if ensemble == "coarse" else low}


def batch_metrics(batch: Batch, config: Config, clock: Stopwatch) -> dict[str, Any]:
    """What the metrics say of a batch: rewards and scores, groups, sampled tokens."""
    # Lambda 0: of the coarse step, its own reward alone.
    alone = rewards_of(batch.scores, config, 0.0)
    before = rewards_of(batch.all_scores, config, 0.0)
    sampled = [
        hosts.everywhere(sequence.sampled)
        for sequences in batch.sequences.values()
        for sequence in sequences
    ]
    tokens = sum(int(part.sum()) for part in sampled)
    rows, steps = config.prompts_per_step * config.group_size, len(batch.sequences)
    shapes = rows * steps * config.codec.tokens
    cut_off = {
        name: batch.truncated[name] / batch.scored if config.rollout.plans else np.nan
        for name in alone
    }
    return {
        **{f"reward/{name}_all": _mean(reward) for name, reward in before.items()},
        **{
            f"reward/{name}_std_all": _spread(reward)
            for name, reward in batch.all_rewards.items()
        },
        **{f"reward/{name}": _mean(reward) for name, reward in alone.items()},
        "plans_truncated": float(np.mean([*cut_off.values()])),
        **{f"plans_truncated/{name}": share for name, share in cut_off.items()},
        **{
            f"score/{name}/{role}": _mean(values)
            for name, roles in batch.scores.items()
            for role, values in roles.items()
        },
        "score_missing": batch.missing.total(),
        "groups_resampled": batch.replaced,
        "resample_rounds": batch.rounds,
        "plan_tokens": (tokens - shapes) / (steps * rows),
        "tokens_per_s/rollout": clock.tokens / clock.seconds["rollout"]
        if clock.tokens
        else 0.0,  # with `ahead`, a step whose rollout was another's
    }


def _joined(*latencies: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """By role, all that there are."""
    roles = dict.fromkeys(role for each in latencies for role in each)
    return {r: [s for each in latencies for s in each.get(r, ())] for r in roles}


def _mean(values: np.ndarray) -> float:
    """Of those that are there; NaN, without a warning, where none is."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else float("nan")


def _spread(rewards: np.ndarray) -> float:
    """As the update's `reward/*_std`: equal to it where no group was left out."""
    rewards = rewards.astype(np.float32)
    return float(group_spread(rewards, np.ones_like(rewards, bool)))


def _cut_off(sequences: tuple[Sequence, ...]) -> int:
    """Plans of all hosts whose end of turn was put there, as no room was left.

    Only of them the last of the plan's places is taken: `rollout.generate.sample`.
    """
    spans = [(part, part.layout.text) for part in sequences if part.layout.text]
    ends = [hosts.everywhere(part.valid)[:, stop - 1] for part, (_, stop) in spans]
    return sum(int(end.sum()) for end in ends)


@jax.jit
def _merged(one: Any, other: Any, rows: jax.Array) -> Any:
    """Rows of two batches' sequences side by side, laid out as before."""

    def take(x: jax.Array, y: jax.Array) -> jax.Array:
        everywhere = jax.P(*(None,) * x.ndim)
        both = jnp.concatenate([jax.sharding.reshard(z, everywhere) for z in (x, y)])
        return jax.sharding.reshard(both[rows], jax.typeof(x).sharding.spec)

    return jax.tree.map(take, one, other)
