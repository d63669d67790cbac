"""Held-out evaluation during training: better, or only better rewarded?

    prompts -> rollout -> codec -> views -> the judge

Every `eval_every` steps, before the first and after the last one, the same held-out
prompts are sampled with the same random numbers, in batches of training's size, so that
nothing is compiled for it unless their length is another of `rollout.prompt_tokens`
than that of training's prompts. The judge is an encoder that is never a reward
(`rewards/sidecar/judge.py`). What it says goes to three places:

* `eval/*` on the step's line of `metrics.jsonl`;
* `WORKDIR/evaluations.jsonl`, a line per evaluation, that before the first step
  included, with the CLIP score of each prompt;
* `WORKDIR/best`, the policy whose objects, of the last step, it liked best so far.

A line's step is the number of optimiser steps done. After a resume all three are what
an uninterrupted run would have left. How to read them is docs/judging.md.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from ar3d_jax import hosts
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.config import Config
from ar3d_jax.data.prompts import held_out_prompts
from ar3d_jax.errors import writing
from ar3d_jax.metrics import DurableFile, keep_lines_before, lines_before, number
from ar3d_jax.models import (
    Models,
    check_length,
    decode_rows,
    sample_steps,
    shape_codes,
)
from ar3d_jax.policy import lora
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.sharding import fold_in_name

FILE = "evaluations.jsonl"
BEST = "best"  # a folder beside `checkpoints`, with the policy alone
Pending = dict[str, Any]  # by step: a ticket, and each row's numbers on its shape


class HeldOut:
    """The evaluations of one run; `held_out` makes it.

    Attributes:
        prompts: What is sampled each time, a group of each.
    """

    def __init__(
        self,
        config: Config,
        models: Models,
        scoring: Scoring,
        say: Callable[[str], None],
        *,
        key: jax.Array,
        lines: DurableFile | None,
        best: Checkpoints | None,
        best_score: float,
    ) -> None:
        """Takes what `held_out` opened.

        Raises:
            UserError: a prompt is too long.
        """
        self.prompts = held_out_prompts(
            config.prompts, config.evaluation.judged, config.data.column
        )
        texts = [prompt.text for prompt in self.prompts]
        check_length(models.tokenizer, texts, config.rollout)
        self._config, self._models, self._scoring = config, models, scoring
        self._say, self._lines = say, lines
        self._best, self._best_score = best, best_score
        self._key = fold_in_name(key, "held out")

    def after(self, step: int, policy: Decoder) -> dict[str, float]:
        """The metrics of `policy` after `step` steps; empty where none are due.

        All hosts must call it together. `<step>` is coarse or refined, or shape:

        * `eval/<step>/clip_score`: 100 x mean cosine of views and prompt, by the judge;
        * `eval/<step>/diversity`: IoU of pairs of one prompt's objects: lower is more;
        * `eval/<step>/components`: connected pieces per object;
        * `eval/missing`: objects that could not be judged;
        * `eval/seconds`: what all this took.

        Raises:
            UserError: the disk is full; the judge or a render worker failed for good.
        """
        every = self._config.eval_every
        if not every or (step % every and step != self._config.steps):
            return {}
        started = time.perf_counter()
        rows = self._measure(policy)
        groups = {
            name: values.reshape(len(self.prompts), self._config.group_size)
            for name, values in rows.items()
        }
        metrics = {f"eval/{name}": _mean(values) for name, values in groups.items()}
        steps = self._config.step_names
        scores = {s: _mean_rows(groups[f"{s}/clip_score"]) for s in steps}
        judged = [rows[f"{s}/clip_score"] for s in steps]
        metrics["eval/missing"] = int(np.isnan(judged).sum())
        metrics["eval/seconds"] = time.perf_counter() - started
        self._keep_if_best(step, policy, metrics[judged_by(self._config)])
        self._write(step, metrics, scores)
        return metrics

    def wait(self) -> None:
        """Returns when the best policy is on the disk.

        A checkpoint of the run is to be written after it: else a kill in between would
        leave a run that goes on without.
        """
        if self._best:
            self._best.wait()

    def _measure(self, policy: Decoder) -> dict[str, np.ndarray]:
        """Each number of each row; a batch is judged while the next is sampled."""
        batch = self._config.prompts_per_step
        found: list[dict[str, np.ndarray]] = []
        waiting: Pending | None = None
        for first in range(0, len(self.prompts), batch):
            texts = [prompt.text for prompt in self.prompts[first : first + batch]]
            pending = self._sample(policy, texts, first)
            if waiting:
                found.append(self._collect(waiting))
            waiting = pending
        assert waiting, "no prompts"
        found.append(self._collect(waiting))
        count = len(self.prompts) * self._config.group_size
        return {
            name: np.concatenate([part[name] for part in found])[:count]
            for name in found[0]
        }

    def _sample(self, policy: Decoder, texts: list[str], first: int) -> Pending:
        """One batch, filled up with its last prompt; this host's rows are judged."""
        config, models = self._config, self._models
        group = config.group_size
        filled = texts + texts[-1:] * (config.prompts_per_step - len(texts))
        key = jax.random.fold_in(self._key, first)
        steps = sample_steps(
            models,
            policy,
            filled,
            key,
            config.rollout,
            paradigm=config.paradigm,
            group_size=group,
        )
        own = hosts.own_rows(len(filled) * group)
        wanted = own < len(texts) * group
        pending: Pending = {}
        for step in steps:
            codes = shape_codes(step.shape, models.vocab)
            logits = decode_rows(models.codec, codes)
            prompts = [filled[row // group] for row in own[wanted]]
            ticket = self._scoring.submit(logits[wanted], prompts, "judge")
            pending[step.name] = wanted, ticket, _shape_numbers(logits > 0, group)
        return pending

    def _collect(self, pending: Pending) -> dict[str, np.ndarray]:
        """All hosts' rows of a batch."""
        own: dict[str, np.ndarray] = {}
        for step, (wanted, ticket, numbers) in pending.items():
            scores, reasons = self._scoring.collect(ticket)
            if why := next(filter(None, reasons["judge"]), None):
                self._say(f"held-out evaluation: not all could be judged; {why}")
            judged = np.full(len(wanted), np.nan, np.float32)
            judged[wanted] = scores["judge"]
            own[f"{step}/clip_score"] = judged
            own |= {f"{step}/{name}": values for name, values in numbers.items()}
        rows = self._config.prompts_per_step * self._config.group_size
        return hosts.gather(own, rows)

    def _keep_if_best(self, step: int, policy: Decoder, score: float) -> None:
        if self._best and score > self._best_score:
            self._best_score = score
            self._best.save({"policy": lora.trained(policy)}, step, {"score": score})

    def _write(
        self, step: int, metrics: dict[str, float], scores: dict[str, np.ndarray]
    ) -> None:
        if not self._lines:
            return
        told = [f"{metrics[f'eval/{s}/clip_score']:.2f} ({s})" for s in scores]
        self._say(f"step {step}: judge {', '.join(told)}")
        by_prompt = {
            prompt.id: {s: number(of[i]) for s, of in scores.items()}
            for i, prompt in enumerate(self.prompts)
        }
        numbers = {name: number(value) for name, value in metrics.items()}
        record = {"step": step} | numbers | {"prompts": by_prompt}
        self._lines.write(json.dumps(record, allow_nan=False).encode() + b"\n")


def judged_by(config: Config) -> str:
    """The metric by which the best policy is chosen."""
    return f"eval/{config.step_names[-1]}/clip_score"


@contextlib.contextmanager
def held_out(
    config: Config,
    models: Models,
    scoring: Scoring,
    say: Callable[[str], None],
    folder: Path,
    *,
    key: jax.Array,
    first_step: int,
) -> Iterator[HeldOut]:
    """Opens the evaluations of the run in the workdir `folder`.

    What belongs to steps after `first_step`, where the run goes on, is dropped. With
    `eval_every` 0 nothing is opened, and nothing will be due.

    Raises:
        UserError: the folder cannot be written; a prompt is too long.
    """
    with contextlib.ExitStack() as stack:
        lines = best = None
        best_score = -np.inf
        if config.eval_every:
            path = folder / FILE
            end = first_step + 1 if first_step else 0  # at 0 a run begins anew
            records = [json.loads(line) for line in lines_before(path, end)]
            if hosts.is_first():
                with writing(path):
                    keep_lines_before(path, end)
                    lines = DurableFile(path)
                stack.callback(lines.close)
            if config.evaluation.keep_best:
                best = stack.enter_context(
                    Checkpoints(folder / BEST, keep=1, settings={})
                )
                newest = best.discard_after(end - 1)
                kept = [r for r in records if r["step"] == newest]
                best_score = kept[0][judged_by(config)] if kept else -np.inf
        yield HeldOut(
            config,
            models,
            scoring,
            say,
            key=key,
            lines=lines,
            best=best,
            best_score=best_score,
        )


def _shape_numbers(
    voxels: Bool[np.ndarray, "N R R R"], group: int
) -> dict[str, Float[np.ndarray, " N"]]:
    """Of each row: its pieces, and how much it is like its group's other rows."""
    labels = np.zeros(voxels.shape, np.int32)
    for grid, found in zip(voxels, labels, strict=True):
        ndimage.label(grid, np.ones((3, 3, 3)), output=found)
    flat = voxels.reshape(-1, group, voxels[0].size).astype(np.float32)
    both = flat @ flat.swapaxes(1, 2)
    size = flat.sum(axis=2)
    either = size[:, :, None] + size[:, None] - both
    iou = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    diversity = (iou.sum(axis=2) - 1) / (group - 1)
    return {
        "diversity": diversity.reshape(-1),
        "components": labels.max(axis=(1, 2, 3)).astype(np.float32),
    }


def _mean(values: np.ndarray) -> float:
    """Of those that are there, prompts weighing the same; NaN where none is."""
    there = _mean_rows(values)
    there = there[np.isfinite(there)]
    return float(there.mean(dtype=np.float64)) if there.size else float("nan")


def _mean_rows(values: np.ndarray) -> np.ndarray:
    """Of each row, those that are there; NaN where none is."""
    there = np.isfinite(values)
    sums = np.where(there, values, 0).sum(axis=1, dtype=np.float64)
    none = np.full(len(values), np.nan)
    return np.divide(sums, there.sum(axis=1), out=none, where=there.any(axis=1))
