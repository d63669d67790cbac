"""Batches without processes: random numbers, rounds, and which row is whose.

Every sampled row has a number of its own for a token, and is scored by what the test
says of that number: what a batch keeps of a row must belong together.
"""

import collections
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import collect
from ar3d_jax.collect import Batch, Collector, batch_metrics, rewards_of
from ar3d_jax.config import ObjectiveConfig, RewardsConfig
from ar3d_jax.config_rewards import WeightsConfig
from ar3d_jax.data.prompts import PromptSource
from ar3d_jax.metrics import Stopwatch
from ar3d_jax.models import Models
from ar3d_jax.policy.sequence import Layout, Sequence
from ar3d_jax.rewards.client import Scores, Scoring
from tests.policy import small_policy
from tests.small_run import PROMPTS, small_config

NAN = float("nan")
GROUPS, G = 2, 2
ROWS = GROUPS * G


def weights(**of_steps):
    """All 0 but those named: `weights(coarse={"preference": 1.0})`."""
    none = WeightsConfig()
    changed = {
        step: dataclasses.replace(
            getattr(none, step),
            **dict.fromkeys(dataclasses.asdict(getattr(none, step)), 0.0)
            | of_steps.get(step, {}),
        )
        for step in ("coarse", "refined")
    }
    return dataclasses.replace(none, **changed)


PREFERENCES = weights(coarse={"preference": 1.0}, refined={"preference": 1.0})


def sequence_of(numbers):
    """Rows of one sampled token, the number."""
    tokens = jnp.asarray(numbers, jnp.int32)[:, None]
    there = jnp.ones(tokens.shape, bool)
    nothing = jnp.zeros(tokens.shape)
    return Sequence(
        tokens=tokens, positions=0 * tokens, valid=there, sampled=there, logp=nothing,
        layout=Layout(shape=(0, 1)),
    )  # fmt: skip


class Numbers(Scoring):
    """Every role of an object is worth `value(step, number)`."""

    def __init__(self, rewards, value):
        self._rewards, self._value = rewards, value

    def submit(self, logits, prompts, step, *, keep_views=False):
        ticket = Scores(self._rewards.roles(step), len(logits), 0.0, None)
        for role in ticket.scores:
            found = [self._value(step, int(x)) for x in logits[:, 0, 0, 0]]
            ticket.scores[role][:] = found
        return ticket

    def collect(self, ticket):
        return ticket.scores, ticket.reasons


@pytest.fixture
def make(tmp_path, monkeypatch):
    """(value, **objective) -> a collector; row r of its call c has number 100 c + r."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    keys = []

    def sample_steps(models, policy, texts, key, cfg, *, paradigm, group_size):
        numbers = 100 * len(keys) + np.arange(len(texts) * group_size)
        keys.append(tuple(jax.random.key_data(key).tolist()))
        for name in ("coarse", "refined"):
            sequences = (sequence_of(numbers),)
            yield types.SimpleNamespace(
                name=name, sequences=sequences, shape=sequences[-1]
            )

    def decode_rows(codec, numbers):
        return np.broadcast_to(numbers[:, None, None, None], (len(numbers), 8, 8, 8))

    monkeypatch.setattr(collect, "sample_steps", sample_steps)
    monkeypatch.setattr(collect, "check_length", lambda *_: 320)
    monkeypatch.setattr(
        collect, "shape_codes", lambda sequence, _: np.asarray(sequence.tokens)[:, 0]
    )
    monkeypatch.setattr(collect, "decode_rows", decode_rows)
    models = object.__new__(Models)
    tokenizer = types.SimpleNamespace(vocab=small_policy.VOCAB)
    models.__dict__.update(tokenizer=tokenizer, codec=None)

    def make(value, rewards=PREFERENCES, **objective):
        objective = {
            "micro_batch": 2,
            "dynamic_sampling": "no_spread",
            "resample_prompts": GROUPS,
        } | objective
        config = dataclasses.replace(
            small_config(tmp_path),
            rewards=RewardsConfig(weights=rewards),
            objective=ObjectiveConfig(**objective),
        )
        source = PromptSource(config.prompts, batch=GROUPS, seed=0)
        scoring = Numbers(config.rewards, value)
        key = jax.random.key(3)
        return Collector(config, models, scoring, source, key, print), keys

    return make


def batch_of(collector, step=0):
    policy, clock = small_policy.make_policy(), Stopwatch()
    return collector.finish(collector.launch(policy, step, clock), policy, step, clock)


def numbers_of(batch, step):
    (sequence,) = batch.sequences[step]
    return np.asarray(sequence.tokens)[:, 0].tolist()


def test_every_step_and_every_round_has_noise_of_its_own(make):
    """And the same noise when the run goes on from a checkpoint and comes by again."""
    collector, keys = make(lambda step, number: 0.0)
    policy, clock = small_policy.make_policy(), Stopwatch()
    turns = [(step, again) for step in (0, 1, 2, 7) for again in (0, 1, 2, 7)]
    for step, again in turns + turns:
        collector.launch(policy, step, clock, again=again)
    first, second = keys[: len(turns)], keys[len(turns) :]
    assert len(set(first)) == len(turns)
    assert first == second


def test_places_are_filled_round_by_round(make):
    """Of the first batch group 1 teaches nothing, of the next both, then the other."""

    def value(step, number):
        call, row = divmod(number, 100)
        differs = {(0, 0), (2, 1)}  # (call, group)
        return number + 0.0 if (call, row // G) in differs else 5.0

    collector, keys = make(value, max_resample=6)
    batch = batch_of(collector)
    assert len(keys) == len(set(keys)) == 3
    assert (batch.rounds, batch.replaced, batch.scored) == (2, 1, 3 * ROWS)
    wanted = [0, 1, 202, 203]
    for step in ("coarse", "refined"):
        assert numbers_of(batch, step) == wanted
        assert batch.scores[step]["preference"].tolist() == wanted
    refined = np.reshape(wanted, (GROUPS, G))
    np.testing.assert_array_equal(batch.rewards["refined"], refined)
    np.testing.assert_array_equal(batch.rewards["coarse"], 2 * refined)
    np.testing.assert_array_equal(batch.rollouts.rewards["coarse"], 2 * refined)


def test_a_batch_that_cannot_be_filled_ends_after_the_last_round(make):
    collector, keys = make(lambda step, number: 1.0, max_resample=3)
    batch = batch_of(collector)
    assert (batch.rounds, batch.replaced, len(keys)) == (3, 0, 4)
    assert numbers_of(batch, "refined") == [0, 1, 2, 3]


def test_nothing_is_sampled_again_where_that_is_off_or_not_needed(make):
    for changes, value in (
        ({"dynamic_sampling": "off"}, lambda step, number: 1.0),
        ({}, lambda step, number: number + 0.0),
    ):
        collector, keys = make(value, **changes)
        keys.clear()
        assert batch_of(collector).rounds == 0
        assert len(keys) == 1


def test_a_missing_score_is_counted_and_takes_its_rewards_along(make):
    """Of row 1 no coarse score, of row 2 no refined one, which is in both rewards."""
    missing = {("coarse", 1), ("refined", 2)}

    def value(step, number):
        return NAN if (step, number) in missing else number + 1.0

    collector, _ = make(value, dynamic_sampling="off")
    batch = batch_of(collector)
    assert batch.missing == {"coarse/preference": 1, "refined/preference": 1}
    np.testing.assert_array_equal(batch.rewards["refined"], [[1, 2], [NAN, 4]])
    np.testing.assert_array_equal(batch.rewards["coarse"], [[2, NAN], [NAN, 8]])


def test_lambda_is_that_of_the_step(make):
    """Equation 9: 10 x row for the coarse shape, and 0, 1 or 2 x row for what came."""

    def value(step, number):
        return number % 100 * (10.0 if step == "coarse" else 1.0)

    moving = {"lam": 0.0, "lam_end": 2.0, "lam_steps": 4}
    collector, _ = make(value, dynamic_sampling="off", **moving)
    rows = np.arange(ROWS).reshape(GROUPS, G)
    for step, lam in ((0, 0), (2, 1), (4, 2), (9, 2)):
        batch = batch_of(collector, step)
        np.testing.assert_allclose(batch.rewards["coarse"], (10 + lam) * rows)
        np.testing.assert_allclose(batch.rewards["refined"], rows)


@pytest.mark.parametrize("ensemble", ["coarse", "refined"])
def test_one_step_training_is_rewarded_by_its_ensemble(tmp_path, ensemble):
    """Each ensemble's own weights and divisors, equations 7 and 8."""
    rewards = RewardsConfig(
        ensemble=ensemble,
        weights=weights(
            coarse={"preference": 1.0, "alignment": 2.0},
            refined={"preference": 3.0, "parts": 4.0},
        ),
    )
    config = dataclasses.replace(
        small_config(tmp_path), paradigm="grpo", rewards=rewards
    )
    scores = {"preference": np.array([1.0, 2.0])}
    scores |= (
        {"alignment": np.array([5.0, 3.0])}
        if ensemble == "coarse"
        else {"parts": np.array([2.0, 1.0])}
    )
    found = rewards_of({"shape": scores}, config, 1.0)
    expected = [11.0, 8.0] if ensemble == "coarse" else [3 + 4.0, 6 + 2.0]
    assert list(found) == ["shape"]
    np.testing.assert_allclose(found["shape"], expected)


def test_what_the_metrics_say_of_a_batch_by_hand(tmp_path):
    """The coarse reward is the coarse shapes' own, without what they led to.

    What was sampled first is beside what was kept: its groups are of two rows here.
    """
    config = dataclasses.replace(
        small_config(tmp_path), rewards=RewardsConfig(weights=PREFERENCES)
    )
    coarse, refined = np.array([1.0, 2, 3, NAN]), np.array([10.0, 20, 30, 40])
    scores = {"coarse": {"preference": coarse}, "refined": {"preference": refined}}
    trained_on = rewards_of(scores, config, 1.0)
    np.testing.assert_allclose(trained_on["coarse"], coarse + refined)
    codes = config.codec.tokens
    sampled = jnp.ones((ROWS, codes + 5), bool).at[0, :2].set(False)
    sequence = dataclasses.replace(sequence_of(range(ROWS)), sampled=sampled)
    batch = Batch(
        {"coarse": (sequence,), "refined": (sequence,)},
        scores,
        {name: of.reshape(GROUPS, G) for name, of in trained_on.items()},
        all_scores={
            "coarse": {"preference": np.array([0.0, 0, 3, NAN])},
            "refined": {"preference": np.array([4.0, 0, 0, 0])},
        },
        all_rewards={"coarse": np.array([[4.0, 0], [0, 0]])},
        truncated=collections.Counter({"coarse": 1, "refined": 3}),
        missing=collections.Counter({"coarse/preference": 1}),
        scored=ROWS,
        replaced=3,
        rounds=2,
    )
    clock = Stopwatch()
    clock.tokens, clock.seconds["rollout"] = 600, 3.0
    assert (
        batch_metrics(batch, config, clock).items()
        >= {
            "reward/coarse": 2.0,
            "reward/refined": 25.0,
            "reward/coarse_all": 1.0,
            "reward/refined_all": 1.0,
            "reward/coarse_std_all": 1.0,
            "plans_truncated/coarse": 0.25,
            "plans_truncated/refined": 0.75,
            "plans_truncated": 0.5,
            "score/coarse/preference": 2.0,
            "score/refined/preference": 25.0,
            "score_missing": 1,
            "groups_resampled": 3,
            "resample_rounds": 2,
            "plan_tokens": (4 * 5 - 2) / 4,
            "tokens_per_s/rollout": 200.0,
        }.items()
    )
