"""A report as Markdown, for a terminal or a change's text; pictures: `page.py`."""

import re

from ar3d_jax.evaluation import tables
from ar3d_jax.evaluation.ranking import best_and_worst, value_of
from ar3d_jax.evaluation.tables import Number, Report, Table

_MARKS = {"better": " **▲**", "worse": " **▼**", "differs": " **◆**", "": ""}


def markdown(report: Report, shown: int) -> str:
    """The whole report.

    Args:
        report: as report.py describes it.
        shown: best and worst objects to name, of each system.
    """
    benchmark = report["benchmark"]
    parts = [f"# Evaluation: {escaped(benchmark['name'])}", _introduction(report)]
    if report["warnings"]:
        warnings = "\n".join(f"- {escaped(text)}" for text in report["warnings"])
        parts.append(f"## Warnings\n\n{warnings}")
    main = [tables.overall(report), tables.differences(report)]
    parts += [section(table) for table in main if table]
    if categories := tables.by_category(report):
        parts.append("## By category")
        parts += [section(table, level=3) for table in categories]
    rest = [tables.coverage(report), tables.failures(report), tables.noted(report)]
    parts += [section(table) for table in rest if table]
    parts += _strangers(report)
    parts += _objects(report, shown)
    rest = [tables.published(), tables.explained(report), tables.protocol(report)]
    parts += [section(table) for table in rest]
    parts += [
        f"- {escaped(note)}"
        for note in benchmark["notes"] + report["protocol"]["notes"]
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(report: Report) -> str:
    names = ", ".join(escaped(system["name"]) for system in report["systems"])
    return (
        f"{report['benchmark']['items']} objects, protocol "
        f"{escaped(report['protocol']['name'])}. Systems: {names}. Pictures and "
        "meshes: index.html. Every number: report.json."
    )


def section(table: Table, level: int = 2) -> str:
    """A heading, the table and its note."""
    numeric = [
        any(isinstance(row[i], Number) for row in table.rows)
        for i in range(len(table.head))
    ]
    lines = [
        _row([" ".join(map(escaped, lines)) for lines in table.head]),
        _row(["---:" if x else ":---" for x in numeric]),
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
    ]
    text = f"{'#' * level} {escaped(table.title)}\n\n" + "\n".join(lines)
    return f"{text}\n\n{escaped(table.note)}" if table.note else text


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: str | Number) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    error = f" ± {cell.error}" if cell.error else ""
    note = f" ({cell.note})" if cell.note else ""
    return cell.value + error + note + _MARKS[cell.verdict]


def _strangers(report: Report) -> list[str]:
    return [
        f"Files of {escaped(system['name'])} that match no object: "
        + ", ".join(escaped(name) for name in system["strangers"])
        for system in report["systems"]
        if system["strangers"]
    ]


def _objects(report: Report, shown: int) -> list[str]:
    parts = []
    for ranked in best_and_worst(report, shown):
        about = report["metrics"].get(ranked.metric)
        label = f", {about['label']}" if about else ""
        title = f"{ranked.system}: {ranked.title} ({ranked.step}{label})"
        rows = []
        for thing in ranked.objects:
            value = value_of(thing, ranked.step, ranked.metric)
            number = Number(tables.fixed(value, about["digits"] if about else 2))
            rows.append((thing["id"], str(thing["seed"]), thing["caption"], number))
        head = (("object",), ("seed",), ("caption",), ("value",))
        parts.append(section(Table(title, head, tuple(rows))))
    return parts


def escaped(text: str) -> str:
    """One line in which Markdown and HTML find nothing to act on."""
    text = " ".join(str(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
