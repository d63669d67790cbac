"""The paper's tables and figure 3 in miniature, one training after the other.

    python -m benchmarks.study --table=2 [--seeds=3] [--steps=60] [--preset=tiny] \
        [--updates_per_rollout=1] [--prompts_per_step=4] [--results=docs/study.jsonl]

Every row of a table (`study_rows.py`) has the same prompts, seeds and steps. After each
training the last policy is evaluated on the catalog's held-out objects by the judge,
which is never a reward: that is what is compared, not rewards. Each finished run is a
line of `--results`; runs that are there are not made again, whatever machine made them.
What makes a run is the row's overrides, preset and seed, not the defaults of the config
file: after a change of those, name another file. At the end the table is printed, and
written to the workdir, as Markdown and as CSV, beside a picture of rewards and judge's
scores along the runs. One JSON line closes the output.

The smallest detectable effect comes first: the difference of two rows' means that this
many seeds would find significant (5%, two-sided) with 80% power, by the spread between
seeds, pooled over rows. Smaller ones are noise here, whatever they are in the paper.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from scipy import ndimage, stats
from tqdm import tqdm

from ar3d_jax import command
from ar3d_jax.errors import UserError, writing
from benchmarks.study_rows import FIGURES, TABLES, Row

matplotlib.use("agg")
METRICS = {  # of the evaluation's report, of a row's last step
    "clip": "clip_score/embedded",
    "kd": "kd/embedded",
    "iou": "iou",
    "overlap": "diversity",
}
LABELS = {
    "clip": "CLIP score by the judge",
    "kd": "KD x100",
    "iou": "IoU",
    "overlap": "overlap",
}
POWER, LEVEL = 0.8, 0.05

Result = dict[str, Any]


def run_fields(row: Row, values: flags.FlagValues) -> dict[str, object]:
    """A row's fields with those that the study sets for all."""
    if not row.steps:
        return dict(row.fields)
    fields = row.changes()
    fields["steps"] = round(row.steps * values.steps)
    fields["eval_every"] = max(1, values.steps // 3)
    fields["log.samples_every"] = 10_000
    if values.prompts_per_step:
        fields["prompts_per_step"] = values.prompts_per_step
    if values.updates_per_rollout > 1:
        fields["objective.updates_per_rollout"] = values.updates_per_rollout
        fields["objective.minibatches"] = values.minibatches
        if values.minibatches > 1:  # four parts of four prompts have 8 rows each
            fields["objective.micro_batch"] = 8
    return fields


def key_of(row: Row, fields: Mapping[str, object], preset: str, seed: int) -> str:
    """What makes two runs the same: rows of different tables may share one."""
    said = json.dumps([row.config, dict(fields), preset, seed], sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=6).hexdigest()


def one_run(
    row: Row, fields: Mapping[str, object], preset: str, seed: int, folder: Path
) -> Result:
    """Trains and evaluates; what came of it.

    Raises:
        UserError: a command failed; its log has why.
    """
    trained = folder / "run"
    evaluated = ["--config=configs/eval.py", f"--workdir={folder / 'evaluation'}"]
    evaluated.append("--config.seeds=(0,1)")
    if not row.steps:
        evaluated += row.policy_flags(preset)
    else:
        flags_ = [f"--config.{name}={value}" for name, value in fields.items()]
        where = [f"--config={row.config}:{preset}", f"--workdir={trained}"]
        _command("train", [*where, f"--config.seed={seed}", *flags_], folder)
        done = len(_lines(trained / "metrics.jsonl"))
        if done < int(str(fields["steps"])):  # a signal ends it with status 0
            raise UserError(f"{trained} was stopped after {done} steps: start again")
        evaluated.append(f"--checkpoint={trained}")
    _command("evaluate", evaluated, folder)
    report = json.loads((folder / "evaluation" / "report.json").read_text("utf-8"))
    system = report["systems"][0]
    step = system["steps"][-1]
    result: Result = {"seed": seed, "step": step}
    for name, metric in METRICS.items():
        result[name] = system["overall"][step][metric]["mean"]
        result[f"{name}_error"] = system["overall"][step][metric]["error"]
    if row.steps:
        result |= _curves(trained)
    return result


def _command(module: str, arguments: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{module}.log"
    with log.open("ab") as file:
        done = subprocess.run(
            [sys.executable, "-m", f"ar3d_jax.{module}", *arguments],
            stdout=file,
            stderr=file,
        )
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise UserError(f"{module} ended with {done.returncode}: {last} (see {log})")


def _curves(workdir: Path) -> Result:
    """Along the run: rewards, the judge's scores, groups, seconds.

    Rewards are those before dynamic sampling. (The finished runs of docs/study.jsonl
    have those of the groups that it kept.)
    """
    lines = _lines(workdir / "metrics.jsonl")
    rewards = [name for name in lines[0] if name.startswith("reward/")]
    means = [name for name in rewards if "_std" not in name and name.endswith("_all")]
    judged = _lines(workdir / "evaluations.jsonl")
    last = "refined" if "eval/refined/clip_score" in judged[0] else "shape"
    return {
        "rewards": {name: [line[name] for line in lines] for name in means},
        "judge": {of["step"]: of[f"eval/{last}/clip_score"] for of in judged},
        "kl": lines[-1]["kl"],
        "clip_fraction": _mean(lines, "clip_fraction"),
        "groups_resampled": _mean(lines, "groups_resampled"),
        "resample_rounds": _mean(lines, "resample_rounds"),
        "seconds": round(float(np.median([line["time/total"] for line in lines])), 2),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Of the steps that have the number: one that had nothing to learn from has not."""
    values = [line[name] for line in lines if line[name] is not None]
    return float(np.mean(values)) if values else None


# --- the table ------------------------------------------------------------------------


def standard_error(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Of the difference of two rows' means, and its degrees of freedom.

    By the spread between seeds, pooled over all rows: three seeds of one row alone say
    little of it.
    """
    n = min(map(len, groups))
    if n < 2:
        return float("nan"), 0
    spread = [np.var(group, ddof=1) for group in groups]
    return float(np.sqrt(2 * np.mean(spread) / n)), len(groups) * (n - 1)


def detectable(groups: Sequence[Sequence[float]]) -> float:
    """The smallest difference of two means that would be found: `LEVEL`, `POWER`."""
    error, degrees = standard_error(groups)
    if not degrees:
        return float("nan")
    factor = stats.t.ppf(1 - LEVEL / 2, degrees) + stats.t.ppf(POWER, degrees)
    return float(factor * error)


def table(rows: Sequence[Row], found: Mapping[str, list[Result]]) -> list[str]:
    """Markdown: the paper's numbers beside ours.

    The last column is the difference of the judge's score from the first trained row's;
    bold where it is significant at `LEVEL` (one comparison, two-sided).
    """
    trained = [row for row in rows if row.steps]
    groups = [[r["clip"] for r in found[row.name]] for row in trained]
    error, degrees = standard_error(groups)
    told = "One seed: which differences are chance, nothing here can tell."
    if degrees:
        told = (
            "Smallest detectable difference of two rows' CLIP scores, 5%, power 80%, "
            f"with {min(map(len, groups))} seeds: {detectable(groups):.2f}."
        )
    lines = [
        told,
        "",
        "| row | paper: CLIP | KD | ours: CLIP, judge | KD x100 | IoU | overlap "
        "| CLIP against the first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = np.mean(groups[0])
    least = stats.t.ppf(1 - LEVEL / 2, degrees) * error  # that is significant
    for row in rows:
        cells = [_cell([r[name] for r in found[row.name]], name) for name in METRICS]
        paper = ["-" if x is None else f"{x:g}" for x in (row.clip, row.kd)]
        apart = np.mean([r["clip"] for r in found[row.name]]) - first
        text = f"{apart:+.2f}" if row in trained[1:] else ""
        if text and degrees:
            text += f" ± {error:.2f}"
            text = f"**{text}**" if abs(apart) > least else text
        lines.append(f"| {' | '.join([row.label, *paper, *cells, text])} |")
    return lines


def _cell(values: Sequence[float], name: str) -> str:
    digits = {"clip": 2}.get(name, 3)
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {stats.sem(values):.{digits}f}" if values[1:] else text


def write_csv(
    rows: Sequence[Row], found: Mapping[str, list[Result]], path: Path
) -> None:
    """A line per row and metric: mean, and standard error over seeds."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "metric", "seeds", "mean", "standard_error", "paper"])
        for row in rows:
            for metric in METRICS:
                values = [r[metric] for r in found[row.name]]
                error = stats.sem(values) if values[1:] else ""
                paper = {"clip": row.clip, "kd": row.kd}.get(metric)
                line = [row.label, metric, len(values), np.mean(values), error]
                writer.writerow([*line, "" if paper is None else paper])


def _smooth(curves: np.ndarray, width: int = 7) -> np.ndarray:
    """The mean of [runs, steps], over `width` steps; what is missing is left out."""
    there = np.isfinite(curves)
    total = ndimage.uniform_filter1d(np.where(there, curves, 0.0).mean(axis=0), width)
    share = ndimage.uniform_filter1d(there.mean(axis=0), width)
    return total / np.maximum(share, 1e-9)


def draw(rows: Sequence[Row], found: Mapping[str, list[Result]], path: Path) -> None:
    """Rewards of the training prompts, and the judge's scores, along the runs."""
    figure, (rewards, judge) = plt.subplots(1, 2, figsize=(13, 5))
    for row in rows:
        results = [r for r in found[row.name] if "rewards" in r]
        if not results:
            continue
        curves = [list(r["rewards"].values())[-1] for r in results]
        rewards.plot(_smooth(np.array(curves, float)), label=row.label)
        steps = [int(step) for step in results[0]["judge"]]
        scores = np.array([list(r["judge"].values()) for r in results])
        error = stats.sem(scores) if len(scores) > 1 else 0
        judge.errorbar(steps, scores.mean(axis=0), error, capsize=3, label=row.label)
    rewards.set(title="reward, training prompts (scales differ)", xlabel="step")
    judge.set(title="CLIP score by the judge, held-out prompts", xlabel="step")
    judge.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


# --- the command ----------------------------------------------------------------------


def main(_: list[str]) -> None:
    """Runs what is missing, then shows the table."""
    values = flags.FLAGS
    if bool(values.table) == bool(values.figure):
        raise UserError("expected one of --table=1|2|3|5|6|own and --figure=3")
    which = TABLES if values.table else FIGURES
    number = values.table or values.figure
    if number not in which:
        raise UserError(
            f"no such table or figure: {number}; expected {', '.join(which)}"
        )
    if values.updates_per_rollout % values.minibatches:
        raise UserError(
            f"--minibatches={values.minibatches} with --updates_per_rollout="
            f"{values.updates_per_rollout}; expected a multiple of it"
        )
    rows = which[number]
    results, workdir = Path(values.results), Path(values.workdir)
    for folder in (results.parent, workdir):
        with writing(folder):  # now rather than when hours are over
            folder.mkdir(parents=True, exist_ok=True)
    with writing(results):
        results.open("a", encoding="utf-8").close()
    known = _known(results)
    found: dict[str, list[Result]] = {row.name: [] for row in rows}
    runs = [(row, seed) for seed in range(values.seeds) for row in rows]
    for row, seed in tqdm(runs, unit="run"):
        seed = seed if row.steps else 0  # before training: one evaluation
        fields = run_fields(row, values)
        key = key_of(row, fields, values.preset, seed)
        if key not in known:
            folder = workdir / key
            known[key] = one_run(row, fields, values.preset, seed, folder)
            line = {"key": key, "row": row.name, "fields": fields, **known[key]}
            with writing(results), results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
        if row.steps or not found[row.name]:
            found[row.name].append(known[key])
    lines = table(rows, found)
    print("\n".join(lines))
    updates = values.updates_per_rollout
    name = f"{'table' if values.table else 'figure'}_{number}_updates_{updates}"
    with writing(workdir):
        (workdir / f"{name}.md").write_text("\n".join(lines) + "\n")
        write_csv(rows, found, workdir / f"{name}.csv")
        draw(rows, found, workdir / f"{name}.png")
    print(f"{workdir}/{name}.md, .csv and .png")
    means = {
        row.name: {
            m: round(float(np.mean([r[m] for r in found[row.name]])), 4)
            for m in METRICS
        }
        for row in rows
    }
    line = {"benchmark": "study", "which": number, "seeds": values.seeds, "rows": means}
    print(json.dumps(line), flush=True)


def _known(path: Path) -> dict[str, Result]:
    """Results by key.

    Raises:
        UserError: a line is no result, as after a machine that went down.
    """
    found = {}
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        try:
            if line:
                result = json.loads(line)
                found[result["key"]] = result
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}, is not a finished run ({error}): remove it"
            ) from error
    return found


def _define_flags() -> None:
    flags.DEFINE_string("table", "", "1, 2, 3, 5, 6 or own: what the paper has not")
    flags.DEFINE_string("figure", "", "3")
    flags.DEFINE_string("preset", "tiny", "of the config files")
    flags.DEFINE_integer("seeds", 3, "trainings per row", 1)
    flags.DEFINE_integer("steps", 60, "optimiser steps; figure 3 multiplies them", 2)
    flags.DEFINE_integer("prompts_per_step", 4, "in every run; 0: the preset's", 0)
    flags.DEFINE_integer("updates_per_rollout", 1, "in every run", 1)
    flags.DEFINE_integer("minibatches", 1, "with several updates: parts of a batch", 1)
    flags.DEFINE_string("workdir", "runs/study", "folder of trainings and tables")
    flags.DEFINE_string(
        "results", "docs/study.jsonl", "file with a line per finished run"
    )


if __name__ == "__main__":
    _define_flags()
    command.run(main)
