"""Guard rails: what scores look like, and what is said when they look wrong.

A reward model that answers nonsense does not stop a training, it ruins it: every line
goes on looking well. So each role's scores are watched, and a run can be told to end.
Before the first step `check_scorers` has every scorer judge an object that is known.

Who scores is `rewards/client.py`; what a missing score means for a rollout,
`higrpo/advantages.py`.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ar3d_jax.collect import Batch
from ar3d_jax.config_rewards import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import known_object
from ar3d_jax.rewards.client import Scoring

Say = Callable[[str], None]
PERCENTILES = (50, 95)


class ScoreWatch:
    """Watches one run's scores, batch after batch."""

    def __init__(
        self, config: RewardsConfig, say: Say, counters: Mapping[str, float]
    ) -> None:
        """`say` writes a line for the user; `counters` are as `look` takes them."""
        self._config, self._say, self._counters = config, say, dict(counters)
        self._alarms: set[str] = set()  # said, and not over
        self._means: dict[str, collections.deque[float]] = {}
        self._failing = 0  # steps in a row

    def look(
        self, step: int, batch: Batch, counters: Mapping[str, float]
    ) -> dict[str, float]:
        """The metrics of a batch's scores; says what is newly wrong, and what is over.

        Of each step's roles: `score/<step>/<role>_std` over the batch, `_missing`, the
        share that no rollout got, of groups that were left out, too; and of each role
        `time/score/<role>_p50` and `_p95`, in seconds from asking to answer. Of
        `counters`, `Scoring.counters` at this moment, what was added since the last
        look.
        """
        before, self._counters = self._counters, dict(counters)
        found = {name: n - before.get(name, 0.0) for name, n in counters.items()}
        for name, roles in batch.scores.items():
            for role, values in roles.items():
                key = f"score/{name}/{role}"
                there = values[np.isfinite(values)]
                missing = batch.missing[f"{name}/{role}"] / batch.scored
                found[f"{key}_missing"] = missing
                found[f"{key}_std"] = float(there.std()) if there.size else float("nan")
                self._judge(step, f"{name}/{role}", there, missing)
        for role, seconds in batch.latencies.items():
            for percent in PERCENTILES if seconds else ():
                name = f"time/score/{role}_p{percent}"
                found[name] = float(np.percentile(seconds, percent))
        limit = self._config.missing_alarm * batch.scored
        too_many = any(count > limit for count in batch.missing.values())
        self._failing = self._failing + 1 if too_many else 0
        return found

    def _judge(self, step: int, name: str, there: np.ndarray, missing: float) -> None:
        limit = self._config.missing_alarm
        self._alarm(
            step,
            f"{name} missing",
            missing > limit,
            f"{missing:.0%} of the scores {name} are missing, more than "
            f"rewards.missing_alarm={limit:g}",
        )
        flat = there.size > 1 and bool((there == there[0]).all())
        self._alarm(
            step,
            f"{name} flat",
            flat,
            f"all scores {name} of the batch are {there[0] if there.size else 0:g}: "
            "they tell no object from another",
        )
        count = self._config.frozen_alarm
        means = self._means.setdefault(name, collections.deque(maxlen=count))
        means.append(float(there.mean()) if there.size else float("nan"))
        frozen = len(means) == count and len(set(means)) == 1
        self._alarm(
            step,
            f"{name} frozen",
            frozen,
            f"the scores {name} have had the mean {means[0]:g} for {count} steps: is "
            "its scorer alive?",
        )

    def _alarm(self, step: int, alarm: str, wrong: bool, line: str) -> None:
        """Says so once when it begins, and once when it is over."""
        if wrong and alarm not in self._alarms:
            self._say(f"step {step}: {line}")
            self._alarms.add(alarm)
        elif not wrong and alarm in self._alarms:
            self._say(f"step {step}: no longer: {alarm}")
            self._alarms.discard(alarm)

    def check(self) -> None:
        """Ends the run where `rewards.on_failure` says so.

        Raises:
            UserError: for `rewards.stop_after` steps in a row a larger share of some
                role's scores has been missing than `rewards.missing_alarm`.
        """
        limit = self._config.stop_after
        if self._config.on_failure == "stop" and self._failing >= limit:
            raise UserError(
                f"scores were missing in {self._failing} steps in a row, and "
                f"rewards.on_failure is stop after {limit}; saved: mend the scorer and "
                "start again, or pass --config.rewards.on_failure=mask, or switch it "
                "off with its weight 0"
            )


def switched(saved: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """What a resumed run has switched on or off, in words: weights by step and role."""
    return [
        f"rewards.weights.{step}.{role} is {weights[step][role]:g}, was {before:g}"
        for step, roles in saved.items()
        for role, before in roles.items()
        if weights[step][role] != before
    ]


def replaced(
    saved: Mapping[str, Mapping[str, str]], about: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Scorers of a resumed run whose model or revision is another, in words.

    Both by name, as `identities` has them; one that only one of them has is not here.
    """
    return [
        f"{name} is {own['model']} ({own['revision']}), was {before['model']} "
        f"({before['revision']})"
        for name, own in about.items()
        if (before := saved.get(name, own)) != own
    ]


def identities(scoring: Scoring) -> dict[str, dict[str, str]]:
    """Scorer -> its model and revision, for a checkpoint."""
    return {
        name: {key: str(about[key]) for key in ("model", "revision")}
        for name, about in scoring.about.items()
    }


def check_scorers(
    scoring: Scoring, config: RewardsConfig, steps: Sequence[str], say: Say
) -> None:
    """Has every scorer judge the known object, and says what came of it: a table.

    Each step's answers count by themselves, those of a role that both have, too.

    Raises:
        UserError: a role has no score; it names the scorer, the role and the reason.
    """
    grid = known_object.logits(scoring.resolution)[None]
    scores: dict[str, float] = {}
    seconds: dict[str, float] = {}
    failures: dict[str, str] = {}
    tickets = [
        scoring.submit(grid, [known_object.PROMPT], config.ensemble_of(step))
        for step in steps
        if config.roles(config.ensemble_of(step))
    ]
    for ticket in tickets:
        values, reasons = scoring.collect(ticket)
        scores |= {role: float(value[0]) for role, value in values.items()}
        for role, took in ticket.latencies.items():
            seconds[role] = max(seconds.get(role, 0.0), *took, 0.0)
        failures |= {role: reason for role, (reason,) in reasons.items() if reason}
    rows = []
    for name, about in scoring.about.items():
        roles = [role for role in about["roles"] if role in scores]
        if not roles:  # the judge, which is no reward
            continue
        slowest = max(seconds[role] for role in roles)
        told = ["-" if role in failures else f"{scores[role]:.4f}" for role in roles]
        own = [str(about[key]) for key in ("model", "revision", "place")]
        rows.append([name, " ".join(roles), *own, f"{slowest:.2f}", " ".join(told)])
    say(f"{known_object.PROMPT}, as every scorer sees it:")
    for line in known_object.table(rows):
        say(line)
    if failures:
        missing = "; ".join(
            f"{getattr(config.scorers, role)} has no {role}: {reason}"
            for role, reason in failures.items()
        )
        raise UserError(
            f"of the known object, {known_object.PROMPT!r}, {missing}; mend that, or "
            "switch the role off with its weight 0"
        )
