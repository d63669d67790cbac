"""Which objects of a report are shown: the best and the worst of each system."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ar3d_jax.evaluation.tables import Report

Thing = Mapping[str, Any]  # one of a system's "objects"


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Some objects of one system, in order.

    Attributes:
        title: "best", "worst" or, where there are few, "all objects, best first".
        system: its name.
        step: whose values decided.
        metric: which value decided; "" where no object has any.
        objects: entries of the system's "objects".
    """

    title: str
    system: str
    step: str
    metric: str
    objects: tuple[Thing, ...]


def value_of(thing: Thing, step: str, metric: str) -> float | int | None:
    """An object's value; None where it has none."""
    return thing["steps"].get(step, {}).get("values", {}).get(metric)


def best_and_worst(report: Report, shown: int) -> list[Ranked]:
    """For each system its `shown` best and worst objects, by its last step.

    What decides is the first CLIP score that an object has a value of, else the first
    metric of which one way is better.
    """
    lists = []
    for system in report["systems"]:
        step, things = system["steps"][-1], system["objects"]
        metric = _deciding(report, things, step)
        values = [(value_of(thing, step, metric), thing) for thing in things]
        pairs = [(value, thing) for value, thing in values if value is not None]
        higher = report["metrics"].get(metric, {}).get("better") != "lower"
        pairs.sort(key=lambda pair: pair[0], reverse=higher)
        scored = [thing for _, thing in pairs]
        if not metric:
            parts = [("objects", things[: 2 * shown])]
        elif len(scored) <= 2 * shown:
            parts = [("all objects, best first", scored)]
        else:
            parts = [("best", scored[:shown]), ("worst", scored[: -shown - 1 : -1])]
        lists += [
            Ranked(title, system["name"], step, metric, tuple(chosen))
            for title, chosen in parts
            if chosen
        ]
    return lists


def _deciding(report: Report, things: list[Thing], step: str) -> str:
    sided = [name for name, about in report["metrics"].items() if about["better"]]
    sided.sort(key=lambda name: not name.startswith("clip_score/"))
    for metric in sided:
        if any(value_of(thing, step, metric) is not None for thing in things):
            return metric
    return ""
