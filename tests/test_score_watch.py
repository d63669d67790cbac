"""What is said of scores that look wrong, and when a run ends because of them."""

import collections
import dataclasses

import numpy as np
import pytest

from ar3d_jax.collect import Batch
from ar3d_jax.config_rewards import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import known_object
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.rewards.ticket import Scores
from ar3d_jax.score_watch import ScoreWatch, check_scorers, replaced, switched
from tests.rewards.test_client import RENDER, prepare_stand_ins

NAN = float("nan")


class Run:
    """A watch, what it said, and its last metrics."""

    def __init__(self, **changes):
        self.said = []
        self.counters = {"judge/a/sent": 5.0}
        self.watch = ScoreWatch(
            RewardsConfig(**changes), self.said.append, self.counters
        )
        self.step = 0
        self.metrics = {}

    def see(self, *values, missing=None, latencies=()):
        count = int(np.isnan(values).sum()) if missing is None else missing
        batch = Batch(
            {},
            {"coarse": {"category": np.array(values)}},
            {},
            missing=collections.Counter({"coarse/category": count}),
            scored=len(values),
            latencies={"category": list(latencies)},
        )
        self.said.clear()
        self.metrics = self.watch.look(self.step, batch, self.counters)
        self.step += 1
        return self


def test_numbers_by_hand():
    run = Run().see(1.0, 3.0, NAN, NAN, latencies=[1.0, 2.0, 3.0])
    assert run.metrics == {
        "score/coarse/category_missing": 0.5,
        "score/coarse/category_std": 1.0,
        "time/score/category_p50": 2.0,
        "time/score/category_p95": pytest.approx(2.9),
        "judge/a/sent": 0.0,
    }
    assert np.isnan(Run().see(NAN, NAN).metrics["score/coarse/category_std"])
    assert "time/score/category_p50" not in Run().see(1.0, 2.0).metrics


def test_what_judges_counted_since_the_line_before():
    run = Run()
    run.counters |= {"judge/a/sent": 8.0, "judge/b/failed": 2.0}
    metrics = run.see(1.0, 2.0).metrics
    assert (metrics["judge/a/sent"], metrics["judge/b/failed"]) == (3.0, 2.0)
    run.counters["judge/a/sent"] = 9.0
    metrics = run.see(1.0, 2.0).metrics
    assert (metrics["judge/a/sent"], metrics["judge/b/failed"]) == (1.0, 0.0)


def test_missing_scores_of_groups_that_were_left_out_count():
    assert (
        Run().see(1.0, 2.0, missing=1).metrics["score/coarse/category_missing"] == 0.5
    )


def test_many_missing_scores_are_said_once_and_when_it_is_over():
    run = Run(missing_alarm=0.3)
    assert run.see(1.0, 2.0, 3.0, NAN).said == []
    (line,) = run.see(1.0, 2.0, NAN, NAN).said
    assert line.startswith("step 1: 50% of the scores coarse/category are missing")
    assert run.see(1.0, 3.0, NAN, NAN).said == []
    assert run.see(1.0, 2.0, 3.0, 4.0).said == [
        "step 3: no longer: coarse/category missing"
    ]


def test_scores_that_are_all_equal_are_said():
    run = Run()
    (line,) = run.see(0.0, 0.0, 0.0).said
    assert "all scores coarse/category of the batch are 0" in line
    assert run.see(0.0, 1.0).said == ["step 1: no longer: coarse/category flat"]
    assert run.see(NAN, 1.0).said == [
        "step 2: 50% of the scores coarse/category are missing, more than "
        "rewards.missing_alarm=0.2"
    ]


def test_a_score_that_is_frozen_over_steps_is_said():
    run = Run(frozen_alarm=3)
    assert run.see(1.0, 2.0).said == run.see(1.0, 2.0).said == []
    (line,) = run.see(2.0, 1.0).said
    assert "have had the mean 1.5 for 3 steps" in line
    assert run.see(2.0, 1.5).said == ["step 3: no longer: coarse/category frozen"]


def test_missing_scores_end_the_run_only_where_that_is_wanted():
    for changes, limit in (({}, None), ({"stop_after": 2}, 2)):
        on_failure = "mask" if limit is None else "stop"
        run = Run(on_failure=on_failure, **changes)
        run.see(1.0, NAN).watch.check()
        run.see(1.0, 2.0).watch.check()
        run.see(1.0, NAN).watch.check()
        run.see(1.0, NAN)
        if limit is None:
            run.watch.check()
        else:
            with pytest.raises(UserError, match="missing in 2 steps in a row"):
                run.watch.check()


def outlasts(missing, steps, **changes):
    """Whether a run with the default limit goes on after such steps."""
    run = Run(on_failure="stop", **changes)
    for _ in range(steps):
        run.see(*[1.0, 2.0] * 50, missing=missing).watch.check()
    return True


def test_a_hiccup_does_not_end_a_run_and_scores_that_are_gone_do():
    assert outlasts(missing=100, steps=4)
    assert outlasts(missing=20, steps=50)  # a fifth: some answers cannot be read
    for missing, changes in ((100, {}), (21, {}), (1, {"missing_alarm": 1e-6})):
        assert outlasts(missing, 4, **changes)
        with pytest.raises(UserError, match="missing in 5 steps in a row"):
            outlasts(missing, 5, **changes)


def test_what_was_switched_is_said():
    saved = {"coarse": {"category": 1.0, "alignment": 1.0}, "refined": {}}
    now = {"coarse": {"category": 0.0, "alignment": 1.0}, "refined": {}}
    assert switched(saved, now) == ["rewards.weights.coarse.category is 0, was 1"]


def test_a_scorer_that_became_another_is_said():
    saved = {
        "hps_v2_1": {"model": "hps", "revision": "a1"},
        "qwen_vl": {"model": "qwen", "revision": "as served"},
        "shapellm": {"model": "off now", "revision": "0"},
    }
    now = {
        "hps_v2_1": {"model": "hps", "revision": "b2"},
        "qwen_vl": {"model": "qwen", "revision": "as served"},
        "unified_2": {"model": "on since", "revision": "0"},
    }
    assert replaced(saved, now) == ["hps_v2_1 is hps (b2), was hps (a1)"]


# --- before the first step ------------------------------------------------------------


def test_the_known_chair_has_all_its_parts():
    for resolution in (32, 64):
        inside = known_object.logits(resolution) > 0
        middle = resolution // 2
        below, seat, above = (
            inside[..., int(z * resolution)].any(axis=None) for z in (0.2, 0.5, 0.8)
        )
        assert below
        assert seat
        assert above
        assert not inside[:, :middle, int(0.8 * resolution)].any()  # the back is behind
        assert 0.02 < inside.mean() < 0.15


@pytest.fixture
def scoring(tmp_path, monkeypatch):
    prepare_stand_ins(tmp_path, monkeypatch)
    monkeypatch.setattr(Scoring, "worker_module", "tests.rewards.stand_in_worker")
    monkeypatch.setattr(Scoring, "sidecar_module", "tests.rewards.stand_in_sidecar")

    def make(rewards):
        return Scoring(RENDER, rewards, 8, 4, tmp_path / "logs")

    return make


def test_a_table_of_all_scorers_is_said(scoring):
    rewards, said = RewardsConfig(points=8, judge=True), []
    with scoring(rewards) as open_scoring:
        check_scorers(open_scoring, rewards, ("coarse", "refined"), said.append)
    assert said[0] == "a wooden chair with four legs, as every scorer sees it:"
    head, row = said[1:]  # the judge is no reward
    assert tuple(head.split()) == known_object.HEADINGS
    assert row.startswith("embedded")
    assert "obedient" in row
    roles = dict.fromkeys(rewards.roles("coarse") + rewards.roles("refined"))
    assert " ".join(roles) in row
    assert row.count(" 0.") == len(roles) + 1  # and the seconds


def test_a_scorer_without_any_score_ends_the_run_before_it_begins(scoring, monkeypatch):
    monkeypatch.setattr(known_object, "PROMPT", "raise")
    rewards, said = RewardsConfig(points=8), []
    with (
        pytest.raises(UserError, match="embedded has no category: ValueError: as I"),
        scoring(rewards) as open_scoring,
    ):
        check_scorers(open_scoring, rewards, ("coarse",), said.append)
    assert said[-1].split()[-3:] == ["-"] * 3


class Answers(Scoring):
    """Without processes: each step's answers, a number or a reason per role."""

    resolution = 8
    about = None

    def __init__(self, about, **by_step):
        row = {"model": "m", "revision": "1", "place": "here"}
        self.about = {name: {"roles": roles} | row for name, roles in about.items()}
        self._by_step = by_step

    def submit(self, logits, prompts, step):
        ticket = Scores(tuple(self._by_step[step]), 1, 0.0, None)
        for role, answer in self._by_step[step].items():
            ticket.latencies[role].append(1.0)
            if isinstance(answer, str):
                ticket.reasons[role][0] = answer
            else:
                ticket.scores[role][0] = answer
        return ticket

    def collect(self, ticket):
        return ticket.scores, ticket.reasons


ABOUT = {"gpu1/hps": ["preference"], "gpu1/rest": ["category", "quality", "parts"]}


@pytest.mark.parametrize(
    ("coarse", "refined", "told", "dashes"),
    [
        # The other step's answer hides nothing, whichever came first.
        ({"preference": "no idea"}, {"preference": 1.0}, "preference: no idea", 1),
        ({"preference": 1.0}, {"preference": "no idea"}, "preference: no idea", 1),
        # Other roles' answers hide nothing either.
        (
            {"preference": 1.0, "category": 1.0},
            {"preference": 1.0, "quality": 2.0, "parts": "bad: 7"},
            "parts: bad: 7",
            1,
        ),
        # A role that nobody fills has no row.
        ({"alignment": "nobody"}, {"quality": 2.0}, "alignment: nobody", 0),
    ],
)
def test_any_role_without_a_score_ends_the_run(coarse, refined, told, dashes):
    rewards, said = RewardsConfig(), []
    answers = Answers(ABOUT, coarse=coarse, refined=refined)
    with pytest.raises(UserError, match=f"legs', embedded has no {told}; mend"):
        check_scorers(answers, rewards, ("coarse", "refined"), said.append)
    assert sum(line.split().count("-") for line in said[2:]) == dashes


def test_one_step_training_asks_its_own_ensemble_alone(scoring):
    rewards = RewardsConfig(points=8, ensemble="coarse")
    none = {role: 0.0 for role in rewards.roles("refined")}
    weights = dataclasses.replace(
        rewards.weights, refined=dataclasses.replace(rewards.weights.refined, **none)
    )
    rewards, said = dataclasses.replace(rewards, weights=weights), []
    with scoring(rewards) as open_scoring:
        check_scorers(open_scoring, rewards, ("shape",), said.append)
    assert "category" in said[-1]
    assert "parts" not in said[-1]
