"""What was measured of some systems, as the dict that `report.py` shows.

Overall, per category, per object, and paired: refined against coarse, and each system
against the first. The numbers are `aggregate.py`'s.
"""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar3d_jax.config import EvalConfig
from ar3d_jax.evaluation import geometry, wording
from ar3d_jax.evaluation.aggregate import Aggregate, Statistic, Values, by_object
from ar3d_jax.evaluation.benchmarks import Benchmark, Item
from ar3d_jax.evaluation.objects import Generated
from ar3d_jax.evaluation.protocol import Protocol
from ar3d_jax.evaluation.record import Record
from ar3d_jax.rewards.feature_sets import FEATURE_SETS

REAL = "real objects"


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
    shared = Aggregate(benchmark, truth, look, config, folder)
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
    }


# --- one system -----------------------------------------------------------------------

# step -> id -> one entry per seed
ByStep = dict[str, dict[str, list[Values]]]


def _values_of(
    shared: Aggregate, system: Scored, asked: Mapping[str, Record | None]
) -> ByStep:
    found: ByStep = {step: {} for step in system.steps}
    for thing, records in zip(system.objects, system.records, strict=True):
        for step, record in records.items():
            if not record.failure:
                name = thing.item.id
                value = shared.values(record, asked[name])
                found[step].setdefault(name, []).append(value)
    return found


def _system(shared: Aggregate, system: Scored, values: ByStep) -> dict[str, Any]:
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
    noted = [
        {"id": thing.item.id, "seed": thing.seed, "notes": list(records[step].notes)}
        for thing, records in zip(system.objects, system.records, strict=True)
        if step in records and records[step].notes
    ]
    counts = {"asked": asked, "scored": asked - len(failed)}
    return {**counts, "failed": failed, "noted": noted}


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


def _objects(shared: Aggregate, system: Scored, values: ByStep) -> list[dict[str, Any]]:
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


def _real(shared: Aggregate, references: Benchmark) -> dict[str, Any]:
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
    shared: Aggregate, systems: Sequence[Scored], values: Sequence[ByStep]
) -> list[dict[str, Any]]:
    """Refined against coarse of each system, and each system against the first."""
    pairs: list[tuple[tuple[int, str], tuple[int, str]]] = [
        ((index, "coarse"), (index, "refined"))
        for index, of in enumerate(values)
        if {"coarse", "refined"} <= set(of)
    ]
    pairs += [
        ((0, step), (index, step))
        for index, of in enumerate(values)
        for step in of
        if index and step in values[0]
    ]
    found = []
    for (a, step), (b, other) in pairs:
        sets = _records(systems[a], step), _records(systems[b], other)
        found.append(
            {
                "a": systems[a].name,
                "b": systems[b].name,
                "step": other if step == other else f"{other} \N{MINUS SIGN} {step}",
                "metrics": {
                    **_paired(shared, values[a][step], values[b][other]),
                    **shared.set_differences(*sets),
                },
            }
        )
    return found


def _paired(
    shared: Aggregate,
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
