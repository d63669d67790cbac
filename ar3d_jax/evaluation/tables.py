"""The numbers of a report as tables, the same for the page and for the Markdown file.

A report is the dictionary that `report.py` describes; what is missing in it or null is
a dash here. `page.py` and `markdown.py` write the tables down, and escape their text.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]  # as report.py describes it
MINUS, DASH, ARROW = "\u2212", "\u2013", "\u2192"

# Beyond so many standard errors a paired difference is marked: 5 % by chance, for one.
BEYOND = 2.0


@dataclasses.dataclass(frozen=True)
class Number:
    """One measured cell.

    Attributes:
        value: "27.31", or a dash.
        error: its standard error, "0.42"; "" where there is none.
        note: "n = 12" where that differs from the column's.
        verdict: "better", "worse" or "differs": beyond `BEYOND` errors; "" otherwise.
    """

    value: str
    error: str = ""
    note: str = ""
    verdict: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text (left-aligned) and numbers (right-aligned).

    Attributes:
        title: what it shows.
        head: a column's lines: its name, then what is smaller ("refined", "n = 249").
        rows: as wide as `head`.
        note: one line below; "" for none.
    """

    title: str
    head: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str | Number, ...], ...]
    note: str = ""


def fixed(value: float | int | None, digits: int, sign: str = "") -> str:
    """A number with that many decimals and a real minus; a dash for None.

    Args:
        value: any number.
        digits: decimals.
        sign: "+" writes the sign of what is above 0, too.
    """
    if value is None:
        return DASH
    return f"{value:{sign}.{digits}f}".replace("-", MINUS)


def named(report: Report, metric: str) -> str:
    """The metric's label and which way is better: "CLIP score ↑"."""
    about = report["metrics"][metric]
    arrow = {"higher": " ↑", "lower": " ↓"}.get(about["better"], "")
    return about["label"] + arrow


def columns(report: Report) -> list[tuple[Mapping[str, Any], str]]:
    """Each system with each of its steps, in order: coarse stands beside refined."""
    return [(system, step) for system in report["systems"] for step in system["steps"]]


def first_of(report: Report, family: str) -> str | None:
    """The first metric of a family: "clip_score/judge" of "clip_score"."""
    for metric in report["metrics"]:
        if metric.partition("/")[0] == family:
            return metric
    return None


def measured(found: Mapping[str, Any] | None, digits: int, count: int | None) -> Number:
    """The cell of {"mean", "error", "n"}; n is said where it is not `count`."""
    if not found or found.get("mean") is None:
        return Number(DASH)
    error = found.get("error")
    return Number(
        fixed(found["mean"], digits),
        "" if error is None else fixed(error, digits),
        "" if found["n"] == count else f"n = {found['n']}",
    )


def overall(report: Report) -> Table:
    """Metrics down, systems and steps across."""
    found = [system["overall"].get(step, {}) for system, step in columns(report)]
    counts = [_usual_count(metrics) for metrics in found]
    head: list[tuple[str, ...]] = [("metric",)]
    for (system, step), count in zip(columns(report), counts, strict=True):
        head.append((system["name"], step, f"n = {DASH if count is None else count}"))
    rows = [
        (
            named(report, metric),
            *(
                measured(metrics.get(metric), about["digits"], count)
                for metrics, count in zip(found, counts, strict=True)
            ),
        )
        for metric, about in report["metrics"].items()
        if any(metric in metrics for metrics in found)
    ]
    note = "Mean \u00b1 standard error over objects; n is the number of objects."
    return Table("Overall", tuple(head), tuple(rows), note)


def _usual_count(metrics: Mapping[str, Any]) -> int | None:
    counts = Counter(found["n"] for found in metrics.values())
    return max(counts, key=lambda n: (counts[n], n)) if counts else None


def differences(report: Report) -> Table | None:
    """Paired differences, b - a over the same objects; None where there are none.

    An entry whose a and b are one system compares two of its steps, named in "step".
    """
    entries = report.get("differences") or []
    if not entries:
        return None
    head: list[tuple[str, ...]] = [("metric",)]
    for entry in entries:
        same = entry["a"] == entry["b"]
        name = entry["a"] if same else f"{entry['b']} {MINUS} {entry['a']}"
        count = _usual_count(entry["metrics"])
        head.append((name, entry["step"], f"n = {DASH if count is None else count}"))
    rows = [
        (
            named(report, metric),
            *(_difference(entry, metric, about) for entry in entries),
        )
        for metric, about in report["metrics"].items()
        if any(metric in entry["metrics"] for entry in entries)
    ]
    note = (
        "Paired over the objects that both have, \u00b1 standard error. "
        f"\u25b2 better and \u25bc worse by more than {BEYOND:g} standard errors "
        "(\u25c6: differs, neither way is better)."
    )
    return Table("Paired differences", tuple(head), tuple(rows), note)


def _difference(
    entry: Mapping[str, Any], metric: str, about: Mapping[str, Any]
) -> Number:
    found = entry["metrics"].get(metric)
    cell = measured(found, about["digits"], _usual_count(entry["metrics"]))
    if cell.value == DASH:
        return cell
    mean, error = found["mean"], found.get("error")
    value = fixed(mean, about["digits"], "+")
    verdict = ""
    shown = any(digit in value for digit in "123456789")  # not +0.00: rounding
    if shown and error is not None and abs(mean) > BEYOND * error:
        wanted = {"higher": mean > 0, "lower": mean < 0}.get(about["better"])
        verdict = {None: "differs", True: "better", False: "worse"}[wanted]
    return dataclasses.replace(cell, value=value, verdict=verdict)


def by_category(report: Report) -> list[Table]:
    """One table per metric: categories down, systems and steps across."""
    sizes: Mapping[str, int] = report["benchmark"]["categories"]
    found = [system["categories"].get(step, {}) for system, step in columns(report)]
    names = [*sizes, *(x for steps in found for x in steps if x not in sizes)]
    names = list(dict.fromkeys(names))
    head = (("category",), ("objects",))
    head += tuple((system["name"], step) for system, step in columns(report))
    tables = []
    for metric, about in report["metrics"].items():
        rows = []
        for name in names:
            cells = [steps.get(name, {}).get(metric) for steps in found]
            if any(cells):
                size = sizes.get(name)
                numbers = [measured(cell, about["digits"], size) for cell in cells]
                label = Number(DASH if size is None else str(size))
                rows.append((name, label, *numbers))
        if rows:
            tables.append(Table(named(report, metric), head, tuple(rows)))
    return tables


def coverage(report: Report) -> Table:
    """How many objects were asked for, and how many have a score."""
    rows = []
    for system, step in columns(report):
        found = system["coverage"].get(step)
        if not found:
            continue
        asked, scored = found["asked"], found["scored"]
        share = f"{100 * scored / asked:.1f} %" if asked else DASH
        counts = (asked, scored, len(found["failed"]))
        rows.append((system["name"], step, *(Number(str(n)) for n in counts)))
        rows[-1] += (Number(share),)
    head = ("system", "step", "asked", "scored", "failed", "coverage")
    note = "Means are over the objects that were scored."
    return Table("Coverage", tuple((x,) for x in head), tuple(rows), note)


def failures(report: Report) -> Table | None:
    """Every object without a score, with its reason; None if all have one."""
    steps: dict[tuple[str, ...], list[str]] = {}
    for system, step in columns(report):
        for fail in system["coverage"].get(step, {}).get("failed", []):
            row = (system["name"], fail["id"], str(fail["seed"]), fail["reason"])
            steps.setdefault(row, []).append(step)
    rows = [
        (name, thing, seed, ", ".join(failed), reason)
        for (name, thing, seed, reason), failed in steps.items()
    ]
    head = ("system", "object", "seed", "step", "reason")
    return Table("Failed", tuple((x,) for x in head), tuple(rows)) if rows else None


def noted(report: Report) -> Table | None:
    """Every file of which something was passed over; None if there is none."""
    rows = [
        (system["name"], note["id"], step, "; ".join(note["notes"]))
        for system, step in columns(report)
        for note in system["coverage"].get(step, {}).get("noted", [])
    ]
    head = (("system",), ("object",), ("step",), ("the file",))
    note = "These objects are scored; what their files have more is not drawn."
    return Table("Passed over", head, tuple(rows), note) if rows else None


def explained(report: Report) -> Table:
    """What each metric says."""
    rows = [
        (named(report, metric), about["about"])
        for metric, about in report["metrics"].items()
    ]
    note = "↑ higher is better, ↓ lower is better."
    return Table("Metrics", (("metric",), ("what it is",)), tuple(rows), note)


def protocol(report: Report) -> Table:
    """How the objects were looked at, and by which networks."""
    words = {
        "name": ("protocol", ""),
        "views": ("views of an object", ""),
        "size": ("size of a view", " px"),
        "fov_deg": ("field of view", "\u00b0"),
        "pitch_deg": ("pitch", "\u00b0"),
        "radius": ("distance of the camera", ""),
        "background": ("background", ""),
    }
    said = report["protocol"]
    rows = [
        (label, f"{said[key]}{unit}")
        for key, (label, unit) in words.items()
        if said.get(key) is not None
    ]
    rows += [(f"features: {name}", about) for name, about in said["sets"].items()]
    rows += [
        (system["name"], f"{system['source']}; seeds {_listed(system['seeds'])}")
        for system in report["systems"]
    ]
    return Table("Protocol", (("",), ("",)), tuple(rows))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or DASH


# arXiv 2512.10949v1, table 4, for MME-3DR and Toys4K: CLIP score, KD of Inception, KD
# of DINOv2, FD of Inception.
_PRINTED = {
    "LGM": ("16.3 1.507 49.10 47.8", "20.6 1.192 36.79 41.0"),
    "3DTopia-XL": ("15.9 1.635 78.41 61.9", "18.8 1.439 56.23 54.3"),
    "SAR3D": ("16.7 1.374 16.89 38.6", "20.0 0.650 15.84 29.5"),
    "Trellis": ("23.4 0.302 4.27 27.5", "26.8 0.175 2.67 23.1"),
    "ShapeLLM-Omni": ("19.8 0.451 6.73 34.1", "22.7 0.249 3.27 27.7"),
    "AR3D-R1": ("28.5 0.194 2.74 25.9", "29.3 0.156 1.85 20.4"),
}


def published() -> Table:
    """The comparison the paper prints, which no other pipeline's numbers belong to."""
    measures = ("CLIP ↑", "KD Inception ↓", "KD DINOv2 ↓", "FD Inception ↓")
    head = [("method",)]
    head += [(of, name) for of in ("MME-3DR", "Toys4K") for name in measures]
    rows = [
        (method, *(Number(x) for half in halves for x in half.split()))
        for method, halves in _PRINTED.items()
    ]
    note = (
        "Printed in arXiv 2512.10949v1, table 4; KD is times 100. Measured by another "
        "pipeline, whose objects, cameras and networks are not published: not "
        "comparable with the numbers above, only with each other."
    )
    return Table("Printed in the paper", tuple(head), tuple(rows), note)
