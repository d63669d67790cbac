"""From records to means, distances of sets, and their standard errors.

Numbers of one object (CLIP score, IoU, health) are first averaged over seeds, then over
objects; KD and FD see all views of all objects at once. Errors are standard errors over
objects (`uncertainty.py`). What is missing is left out and counted, never a 0. Who asks
for which numbers is `summary.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.config import EvalConfig
from ar3d_jax.evaluation import (
    eval_py,
    frechet,
    geometry,
    kernel_distance,
    uncertainty,
)
from ar3d_jax.evaluation.benchmarks import Benchmark
from ar3d_jax.evaluation.clip_score import clip_score
from ar3d_jax.evaluation.protocol import Protocol
from ar3d_jax.evaluation.record import Record

Statistic = dict[str, Any]  # {"mean", "error", "n"}
Values = dict[str, float]  # of one object, by metric


class Aggregate:
    """What all numbers of one evaluation share."""

    def __init__(
        self,
        benchmark: Benchmark,
        truth: Mapping[str, Record],
        look: Protocol,
        config: EvalConfig,
        folder: Path,
    ) -> None:
        """`truth` are records of real objects by id, of the benchmark or borrowed."""
        self.benchmark, self.look, self.config = benchmark, look, config
        self.folder = folder
        self.truth = {name: of for name, of in truth.items() if not of.failure}
        self.sets = config.features.sets
        self.compat = look.name == "eval_py_compat"
        self.warnings: dict[str, None] = {}  # a set that keeps its order

    # --- one object -------------------------------------------------------------------

    def values(self, record: Record, truth: Record | None) -> Values:
        """Of one mesh; `truth` is the real object that was asked for, or None."""
        found: Values = {}
        for name in self.sets:
            if name in record.texts and name in record.vectors:
                score = clip_score(record.vectors[name], record.texts[name])
                found[f"clip_score/{name}"] = score / 100 if self.compat else score
        if self.compat:
            return found | (self._similarities(record, truth) if truth else {})
        if truth:
            found["iou"] = geometry.voxel_iou(record.voxels, truth.voxels)
            found["chamfer"] = geometry.chamfer(record.points, truth.points)
            found["f_score"] = geometry.f_score(record.points, truth.points)
        return found | dict(record.health)

    def _similarities(self, record: Record, truth: Record) -> Values:
        """The public script's "KD" of one object, in sets without a text side."""
        found: Values = {}
        for name, views in record.vectors.items():
            if name not in record.texts and name in truth.vectors:
                one = eval_py.similarity(truth.vectors[name][None], views[None])
                found[f"similarity/{name}"] = one.value
                if one.replaced:
                    self.warnings["similarity: not finite, so 0.0 as in eval.py"] = None
        return found

    # --- many objects -----------------------------------------------------------------

    def over_objects(
        self, values: Mapping[str, Sequence[Values]]
    ) -> dict[str, Statistic]:
        """Means over the objects (by id: one or more seeds) that have each metric."""
        metrics = dict.fromkeys(
            metric for rows in values.values() for row in rows for metric in row
        )
        return {
            metric: self.mean(list(by_object(values, metric).values()))
            for metric in metrics
        }

    def mean(self, values: Sequence[float]) -> Statistic:
        """Mean, standard error and n of one number per object."""
        found = uncertainty.over_objects(
            np.asarray(values, np.float64), resamples=self.config.resamples, seed=0
        )
        return _statistic(found.mean, found.error, found.n)

    def over_sets(
        self, records: Mapping[str, Sequence[Record]]
    ) -> dict[str, Statistic]:
        """KD and FD of all views of all objects against the real ones."""
        found = {}
        for name, real, made, paired in self._pairs_of_sets(records):
            flat = _flat(real), _flat(made)
            kernel = self._subsets | {"seed": 0}
            found[f"kd/{name}"] = _statistic(
                kernel_distance.kernel_distance(*flat, **kernel),
                uncertainty.kernel_error(real, made, paired=paired, **kernel),
                len(made),
            )
            found[f"fd/{name}"] = _statistic(
                frechet.frechet_distance(*flat),
                uncertainty.frechet_error(real, made, paired=paired, seed=0),
                len(made),
            )
            warning = frechet.sample_warning(min(map(len, flat)), made.shape[-1])
            if warning:
                self.warnings[f"FD, {name}: {warning}"] = None
        return found

    def set_differences(
        self,
        first: Mapping[str, Sequence[Record]],
        second: Mapping[str, Sequence[Record]],
    ) -> dict[str, Statistic]:
        """KD and FD of the second minus those of the first, over what both have."""
        both = [name for name in first if name in second]
        mine = self._pairs_of_sets({name: first[name] for name in both})
        theirs = self._pairs_of_sets({name: second[name] for name in both})
        found = {}
        for (name, real, a, paired), (_, _, b, _) in zip(mine, theirs, strict=False):
            if len(a) != len(b):
                continue  # a network failed on some objects of one system
            kd = uncertainty.kernel_difference(
                real, a, b, paired=paired, seed=0, **self._subsets
            )
            fd = uncertainty.frechet_difference(real, a, b, paired=paired, seed=0)
            found |= {f"kd/{name}": _statistic(*kd), f"fd/{name}": _statistic(*fd)}
        return found

    @property
    def _subsets(self) -> dict[str, int]:
        of = self.config
        return {"subsets": of.kd_subsets, "subset_size": of.kd_subset_size}

    def _pairs_of_sets(
        self, records: Mapping[str, Sequence[Record]]
    ) -> list[tuple[str, np.ndarray, np.ndarray, bool]]:
        """(set, real vectors, generated ones, whether row by row the same objects)."""
        if self.compat:
            return []
        truth = {name: [of] for name, of in self.truth.items()}
        pairs = []
        for name in self.sets:
            real_ids, real = self._vectors(truth, name)
            ids, made = self._vectors(records, name)
            if min(len(real), len(made)) > 1:
                pairs.append((name, real, made, ids == real_ids))
        return pairs

    def _vectors(
        self, records: Mapping[str, Sequence[Record]], name: str
    ) -> tuple[list[str], np.ndarray]:
        """Ids, and [objects, views, D] float64: views of all seeds side by side."""
        rows = {
            key: np.concatenate([of.vectors[name][:: self.look.every] for of in some])
            for key, some in records.items()
            if some and all(name in of.vectors for of in some)
        }
        return list(rows), np.asarray(list(rows.values()), np.float64)


def _statistic(mean: float, error: float, n: int) -> Statistic:
    """As the report has it: what is not a number is None."""
    return {
        "mean": mean if np.isfinite(mean) else None,
        "error": error if np.isfinite(error) else None,
        "n": n,
    }


def _flat(vectors: np.ndarray) -> np.ndarray:
    return vectors.reshape(-1, vectors.shape[-1])


def by_object(values: Mapping[str, Sequence[Values]], metric: str) -> dict[str, float]:
    """Id -> mean over seeds, of the objects that have the metric."""
    seeds = {
        name: [row[metric] for row in rows if metric in row]
        for name, rows in values.items()
    }
    return {name: float(np.mean(some)) for name, some in seeds.items() if some}
