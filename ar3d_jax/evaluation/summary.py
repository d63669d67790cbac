"""Records to the numbers of a report: per object, per set, per category, paired.

Numbers of one object (CLIP score, IoU, health) are first averaged over seeds, then over
objects; numbers of a set (KD, FD, diversity) see all objects at once. Errors are
standard errors over objects (`uncertainty.py`). What is missing is left out and
counted, never a 0. The dict that comes out is what `report.py` shows.
"""

import collections
import dataclasses
import itertools
import os
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
    wording,
)
from ar3d_jax.evaluation.benchmarks import Benchmark, Item
from ar3d_jax.evaluation.clip_score import clip_score
from ar3d_jax.evaluation.objects import Generated
from ar3d_jax.evaluation.protocol import Protocol
from ar3d_jax.evaluation.record import Record
from ar3d_jax.rewards.feature_sets import FEATURE_SETS

REAL = "real objects"
Statistic = dict[str, Any]  # {"mean", "error", "n"}
Values = dict[str, float]  # of one object, by metric


@dataclasses.dataclass(frozen=True)
class Scored:
    """A system with what was measured.

    Attributes:
        name: of the system.
        source: where it is from.
        objects: all of its objects.
        records: of each object, by step.
        strangers: its files that no item asks for.
    """

    name: str
    source: str
    objects: Sequence[Generated]
    records: Sequence[Mapping[str, Record]]
    strangers: Sequence[str] = ()

    @property
    def steps(self) -> list[str]:
        """All steps of its objects, in their order."""
        names = [[*thing.meshes, *thing.failures] for thing in self.objects]
        order = ("coarse", "refined", "shape", "mesh")
        return sorted(set().union(*names), key=order.index)


class Summary:
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
        """Of one mesh; `truth` is the real object that was asked for, if there is one."""
        found: Values = {}
        for name in self.sets:
            if name in record.texts and name in record.vectors:
                score = clip_score(record.vectors[name], record.texts[name])
                found[f"clip_score/{name}"] = score / 100 if self.compat else score
        if self.compat:
            for name in self.sets:
                if truth and name not in record.texts and name in record.vectors:
                    found[f"similarity/{name}"] = eval_py.similarity(
                        truth.vectors[name], record.vectors[name]
                    )
            return found
        if truth:
            found["iou"] = geometry.voxel_iou(record.voxels, truth.voxels)
            found["chamfer"] = geometry.chamfer(record.points, truth.points)
            found["f_score"] = geometry.f_score(record.points, truth.points)
        return found | dict(record.health)

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
        array = np.asarray(values, np.float64)
        error = None
        if len(array) > 1:
            error = uncertainty.mean_error(array, resamples=self.config.resamples)
        return {"mean": float(array.mean()), "error": error, "n": len(array)}

    def over_sets(
        self, records: Mapping[str, Sequence[Record]]
    ) -> dict[str, Statistic]:
        """KD and FD of all views of all objects against the real ones."""
        if self.compat:
            return {}
        found = {}
        for name in self.sets:
            real = self._vectors({k: [of] for k, of in self.truth.items()}, name)
            made = self._vectors(records, name)
            if len(real) < 2 or len(made) < 2:
                continue
            found |= {
                f"kd/{name}": self._kd(made, real),
                f"fd/{name}": self._fd(made, real),
            }
            flat = made.shape[0] * made.shape[1]
            warning = frechet.sample_warning(flat, made.shape[2])
            if warning:
                self.warnings[f"FD, {name}: {warning}"] = None
        return found

    def _vectors(
        self, records: Mapping[str, Sequence[Record]], name: str
    ) -> np.ndarray:
        """[objects, views, D] float64: all seeds of an object are views of it."""
        rows = [
            np.concatenate([of.vectors[name][:: self.look.every] for of in some])
            for some in records.values()
            if some and all(name in of.vectors for of in some)
        ]
        views = min(map(len, rows), default=0)
        return np.asarray([row[:views] for row in rows], np.float64)

    def _kd(self, made: np.ndarray, real: np.ndarray) -> Statistic:
        options = {
            "subsets": self.config.kd_subsets,
            "subset_size": self.config.kd_subset_size,
        }
        flat = (made.reshape(-1, made.shape[-1]), real.reshape(-1, real.shape[-1]))
        value = kernel_distance.kernel_distance(*flat, **options, seed=0)
        error = uncertainty.kd_error(made, real, resamples=self.config.resamples)
        return {"mean": value, "error": error, "n": len(flat[0])}

    def _fd(self, made: np.ndarray, real: np.ndarray) -> Statistic:
        flat = (made.reshape(-1, made.shape[-1]), real.reshape(-1, real.shape[-1]))
        value = frechet.frechet_distance(*flat)
        return {
            "mean": value,
            "error": uncertainty.fd_error(made, real),
            "n": len(flat[0]),
        }


def by_object(values: Mapping[str, Sequence[Values]], metric: str) -> dict[str, float]:
    """Id -> mean over seeds, of the objects that have the metric."""
    seeds = {
        name: [row[metric] for row in rows if metric in row]
        for name, rows in values.items()
    }
    return {name: float(np.mean(some)) for name, some in seeds.items() if some}


def summarise(
    benchmark: Benchmark,
    references: Benchmark,
    systems: Sequence[Scored],
    truth: Mapping[str, Record],
    look: Protocol,
    config: EvalConfig,
    folder: Path,
) -> dict[str, Any]:
    """The report of an evaluation.

    Args:
        benchmark: what was asked.
        references: whose real objects KD and FD compare with; `benchmark` or another.
        systems: what was scored.
        truth: by id, the records of the references' real objects.
        look: the protocol.
        config: of the evaluation.
        folder: where the report will be; its files are named from there.
    """
    own = references is benchmark
    shared = Summary(benchmark, truth, look, config, folder)
    asked = {
        item.id: shared.truth.get(item.id) if own else None for item in benchmark.items
    }
    values = [_values_of(shared, system, asked) for system in systems]
    told = [
        _system(shared, system, of) for system, of in zip(systems, values, strict=True)
    ]
    real = [_real(shared, references)] if shared.truth and not shared.compat else []
    notes = list(benchmark.notes)
    if not own:
        notes.append(
            f"it has no real objects: KD and FD compare with those of "
            f"{references.name}; they tell systems apart, and are no distance to this "
            "benchmark's objects"
        )
    missing = [name for name, of in truth.items() if of.failure]
    if missing:
        notes.append(f"real objects that cannot be drawn: {', '.join(missing)}")
    counts = collections.Counter(item.category for item in benchmark.items)
    steps = [(system, step) for system in told for step in system["steps"]]
    names = dict.fromkeys(m for system, step in steps for m in system["overall"][step])
    return {
        "version": 1,
        "benchmark": {
            "name": benchmark.name,
            "items": len(benchmark.items),
            "categories": dict(counts) if any(counts) else {},
            "ids": [item.id for item in benchmark.items],
            "notes": notes,
        },
        "protocol": _protocol(look, config),
        "metrics": {name: wording.about(name) for name in wording.ordered(names)},
        "systems": [*told, *real],
        "differences": _differences(shared, systems, values),
        "warnings": list(shared.warnings),
        "shown": config.shown,
    }


# --- one system -----------------------------------------------------------------------

# step -> id -> one entry per seed
ByStep = dict[str, dict[str, list[Values]]]


def _values_of(
    shared: Summary, system: Scored, asked: Mapping[str, Record | None]
) -> ByStep:
    found: ByStep = {step: {} for step in system.steps}
    for thing, records in zip(system.objects, system.records, strict=True):
        for step, record in records.items():
            if not record.failure:
                name = thing.item.id
                value = shared.values(record, asked[name])
                found[step].setdefault(name, []).append(value)
    return found


def _system(shared: Summary, system: Scored, values: ByStep) -> dict[str, Any]:
    categories = list(dict.fromkeys(item.category for item in shared.benchmark.items))
    category = {item.id: item.category for item in shared.benchmark.items}
    return {
        "name": system.name,
        "source": system.source,
        "seeds": sorted({thing.seed for thing in system.objects}),
        "steps": system.steps,
        "coverage": {step: _coverage(system, step) for step in system.steps},
        "strangers": list(system.strangers),
        "overall": {
            step: {
                **shared.over_objects(values[step]),
                **shared.over_sets(_records(system, step)),
                **({} if shared.compat else _variety(system, step)),
            }
            for step in system.steps
        },
        "categories": {
            step: {
                kind: shared.over_objects(
                    {k: rows for k, rows in values[step].items() if category[k] == kind}
                )
                for kind in categories
            }
            for step in system.steps
        }
        if any(categories)
        else {},
        "objects": _objects(shared, system, values),
    }


def _records(system: Scored, step: str) -> dict[str, list[Record]]:
    """By id, the records that are no failures; an object without any is left out."""
    found: dict[str, list[Record]] = {}
    for thing, records in zip(system.objects, system.records, strict=True):
        if step in records and not records[step].failure:
            found.setdefault(thing.item.id, []).append(records[step])
    most = max(map(len, found.values()), default=0)
    return {name: some for name, some in found.items() if len(some) == most}


def _coverage(system: Scored, step: str) -> dict[str, Any]:
    failed = []
    for thing, records in zip(system.objects, system.records, strict=True):
        reason = thing.failures.get(step, "")
        if step in records:
            record = records[step]
            reason = record.failure or "; ".join(
                f"{name}: {why}" for name, why in record.reasons.items()
            )
        if reason or step not in records:
            reason = reason or "not sampled"
            failed.append({"id": thing.item.id, "seed": thing.seed, "reason": reason})
    asked = len(system.objects)
    return {"asked": asked, "scored": asked - len(failed), "failed": failed}


def _variety(system: Scored, step: str) -> dict[str, Statistic]:
    """How alike the objects of different prompts are, and how many codes they use."""
    by_seed: dict[int, list[Record]] = collections.defaultdict(list)
    codes: dict[int, set[int]] = collections.defaultdict(set)
    for thing, records in zip(system.objects, system.records, strict=True):
        if step in records and not records[step].failure:
            by_seed[thing.seed].append(records[step])
            codes[thing.seed] |= set(thing.codes.get(step, ()))
    found = {}
    alike = [
        geometry.diversity(np.stack([of.voxels for of in some]))
        for some in by_seed.values()
        if len(some) > 1
    ]
    if alike:
        found["diversity"] = _over_seeds(alike)
    if any(codes.values()):
        found["distinct_codes"] = _over_seeds([float(len(of)) for of in codes.values()])
    return found


def _over_seeds(values: Sequence[float]) -> Statistic:
    error = None
    if len(values) > 1:
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "error": error, "n": len(values)}


def _objects(shared: Summary, system: Scored, values: ByStep) -> list[dict[str, Any]]:
    rows = {
        step: {k: iter(some) for k, some in of.items()} for step, of in values.items()
    }
    told = []
    for thing, records in zip(system.objects, system.records, strict=True):
        steps = {
            step: {
                "mesh": os.path.relpath(thing.meshes[step], shared.folder),
                "views": os.path.relpath(record.picture, shared.folder)
                if record.picture
                else None,
                "values": next(rows[step][thing.item.id]),
            }
            for step, record in records.items()
            if not record.failure
        }
        told.append(
            {
                "id": thing.item.id,
                "caption": thing.item.caption,
                "category": thing.item.category,
                "seed": thing.seed,
                "plans": dict(thing.plans),
                "steps": steps,
            }
        )
    return told


def _real(shared: Summary, references: Benchmark) -> dict[str, Any]:
    """The real objects as a system of their own: what a perfect one would reach."""
    items: list[Item] = [item for item in references.items if item.id in shared.truth]
    things = [Generated(item, 0, {"mesh": item.truth}) for item in items if item.truth]
    records = [{"mesh": shared.truth[item.id]} for item in items]
    system = Scored(REAL, f"the real objects of {references.name}", things, records)
    values = {
        "mesh": {
            item.id: [shared.values(shared.truth[item.id], None)] for item in items
        }
    }
    return {
        "name": REAL,
        "source": system.source,
        "seeds": [0],
        "steps": ["mesh"],
        "coverage": {"mesh": _coverage(system, "mesh")},
        "strangers": [],
        "overall": {
            "mesh": {
                **shared.over_objects(values["mesh"]),
                **_variety(system, "mesh"),
            }
        },
        "categories": {},
        "objects": _objects(shared, system, values),
    }


# --- pairs ----------------------------------------------------------------------------


def _differences(
    shared: Summary, systems: Sequence[Scored], values: Sequence[ByStep]
) -> list[dict[str, Any]]:
    """Refined against coarse of each system, and each system against the first."""
    pairs = [
        ((system.name, "coarse"), (system.name, "refined"), of["coarse"], of["refined"])
        for system, of in zip(systems, values, strict=True)
        if {"coarse", "refined"} <= set(of)
    ]
    for (a, first), (b, other) in itertools.combinations(
        zip(systems, values, strict=True), 2
    ):
        if a is systems[0]:
            pairs += [
                ((a.name, step), (b.name, step), first[step], other[step])
                for step in first
                if step in other
            ]
    return [
        {
            "a": a if step == other else f"{a}, {step}",
            "b": b if step == other else f"{b}, {other}",
            "step": other,
            "metrics": _paired(shared, first, second),
        }
        for (a, step), (b, other), first, second in pairs
    ]


def _paired(
    shared: Summary,
    first: Mapping[str, Sequence[Values]],
    second: Mapping[str, Sequence[Values]],
) -> dict[str, Statistic]:
    """Mean of second - first over the objects that both have."""
    metrics = dict.fromkeys(m for rows in second.values() for row in rows for m in row)
    found = {}
    for metric in metrics:
        a, b = by_object(first, metric), by_object(second, metric)
        both = [b[name] - a[name] for name in a if name in b]
        if both:
            found[metric] = shared.mean(both)
    return found


def _protocol(look: Protocol, config: EvalConfig) -> dict[str, Any]:
    render = look.generated
    return {
        "name": look.name,
        "views": render.views,
        "size": render.size,
        "fov_deg": render.fov_deg,
        "pitch_deg": render.pitch_deg,
        "radius": render.radius,
        "background": render.background,
        "sets": {name: FEATURE_SETS[name].about for name in config.features.sets},
        "notes": list(look.notes),
    }
