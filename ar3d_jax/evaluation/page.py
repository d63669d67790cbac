"""A report as one HTML page that opens from disk, with 3D viewers.

Style, script and viewer (assets/viewer) are in the page itself, and so are the meshes,
as far as `embedded.py` takes them. The page's own policy allows these scripts and no
other, and no connection to anywhere: text from prompts can neither run nor call.
"""

import base64
import hashlib
import html
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

from ar3d_jax.evaluation import tables
from ar3d_jax.evaluation.embedded import embed
from ar3d_jax.evaluation.ranking import Ranked, Thing, best_and_worst
from ar3d_jax.evaluation.tables import Number, Report, Table

VIEWER = Path(__file__).parents[1] / "assets" / "viewer"
_MARKS = {"better": "▲", "worse": "▼", "differs": "◆"}
_HEADLINES = ("clip_score", "kd", "fd", "similarity", "iou")  # families of the tiles


def page(folder: Path, report: Report, shown: int, picture: str | None) -> str:
    """The whole page.

    Args:
        folder: what the report's relative paths are relative to.
        report: as report.py describes it.
        shown: best and worst objects to show, of each system.
        picture: the radar, SVG.
    """
    lists = best_and_worst(report, shown)
    meshes = embed(folder, _by_weight(report, lists))
    keys = {mesh: f"mesh-{i}" for i, mesh in enumerate(meshes)}
    cards = _Cards(folder, report, keys)
    sections = [
        ("Results", _results(report)),
        ("By category", _categories(report, picture)),
        ("Coverage", _coverage(report)),
        ("Objects", "\n".join(cards.section(ranked) for ranked in lists)),
        ("Printed in the paper", _table(tables.published())),
        ("Metrics", _table(tables.explained(report))),
        ("Protocol", _protocol(report)),
    ]
    sections = [(title, body) for title, body in sections if body]
    links = " ".join(f'<a href="#{_key(name)}">{name}</a>' for name, _ in sections)
    links += ' <a href="report.json">report.json</a> <a href="report.md">report.md</a>'
    body = "\n".join(
        f'<section id="{_key(title)}"><h2>{title}</h2>\n{body}</section>'
        for title, body in sections
    )
    data = "\n".join(
        f'<script type="text/plain" id="{keys[mesh]}">{packed}</script>'
        for mesh, packed in meshes.items()
    )
    return (
        f"{_head(report, bool(meshes))}\n<body>\n{_title(report)}\n<nav>{links}</nav>\n"
        f"{_warnings(report)}{_tiles(report)}\n{body}\n"
        f"<footer>Written by ar3d_jax. Every number: report.json.</footer>\n{data}\n"
        f"{_scripts() if meshes else ''}\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _key(title: str) -> str:
    return title.lower().replace(" ", "-")


def _source(name: str) -> str:
    """A shipped script, without the line that names a map nobody has."""
    return (VIEWER / name).read_text(encoding="utf-8").partition("//# sourceMapping")[0]


def _scripts() -> str:
    names = ("model-viewer-umd.min.js", "page.js")
    return "\n".join(f"<script>{_source(name)}</script>" for name in names)


def _head(report: Report, scripted: bool) -> str:
    """What a browser must know first, its policy above all."""
    allowed = "'none'"
    if scripted:
        names = ("model-viewer-umd.min.js", "page.js")
        digests = [hashlib.sha256(_source(name).encode()).digest() for name in names]
        hashes = [f"'sha256-{base64.b64encode(x).decode()}'" for x in digests]
        # The viewer's decoder of compressed meshes, part of it, is WebAssembly.
        allowed = " ".join([*hashes, "'wasm-unsafe-eval'"])
    policy = (
        f"default-src 'none'; script-src {allowed}; "
        "style-src 'unsafe-inline'; "
        "img-src 'self' file: data: blob:; connect-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    style = (VIEWER / "page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation: {_text(report['benchmark']['name'])}</title>\n"
        f"<style>\n{style}</style>\n</head>"
    )


def _title(report: Report) -> str:
    benchmark, protocol = report["benchmark"], report["protocol"]
    systems = ", ".join(system["name"] for system in report["systems"])
    facts = [
        f"{benchmark['items']} objects",
        f"{len(benchmark['categories'])} categories" if benchmark["categories"] else "",
        f"protocol {protocol['name']}",
        f"{protocol['views']} views of {protocol['size']} px",
    ]
    line = " · ".join(_text(fact) for fact in facts if fact)
    return (
        f"<header><h1>{_text(systems)} on {_text(benchmark['name'])}</h1>"
        f"<p>{line}</p></header>"
    )


def _warnings(report: Report) -> str:
    lines = "".join(f"<li>{_text(line)}</li>" for line in report["warnings"])
    return f'<ul class="warnings">{lines}</ul>\n' if lines else ""


def _tiles(report: Report) -> str:
    """The first metric of each family in large figures, one line per column."""
    tiles = []
    for family in _HEADLINES:
        metric = tables.first_of(report, family)
        if metric is None:
            continue
        lines = []
        for system, step in tables.columns(report):
            found = system["overall"].get(step, {}).get(metric)
            digits = report["metrics"][metric]["digits"]
            cell = tables.measured(found, digits, found and found["n"])
            several = len(report["systems"]) > 1
            who = f"{system['name']} {step}" if several else step
            lines.append(
                f'<div><span class="who">{_text(who)}</span><span><span class="main">'
                f"{cell.value}</span>{_error(cell)}</span></div>"
            )
        label = _text(tables.named(report, metric))
        tiles.append(f'<div class="tile"><h3>{label}</h3>{"".join(lines)}</div>')
    return f'<div class="tiles">{"".join(tiles[:4])}</div>' if tiles else ""


def _error(cell: Number) -> str:
    return f'<span class="error">± {cell.error}</span>' if cell.error else ""


def _table(table: Table) -> str:
    """The table, its numbers aligned at the sign before their errors."""
    cells = [[row[i] for row in table.rows] for i in range(len(table.head))]
    kinds = []
    for column in cells:
        numbers = [cell for cell in column if isinstance(cell, Number)]
        paired = any(cell.error for cell in numbers)
        kinds.append("number paired" if paired else "number" if numbers else "")
    head = "".join(
        f'<th class="{kind}">{_text(lines[0])}'
        + "".join(f"<small>{_text(line)}</small>" for line in lines[1:])
        + "</th>"
        for kind, lines in zip(kinds, table.head, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(_cell(x, kind) for x, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n'
        f"</tbody></table></div>{note}\n"
    )


def _cell(cell: str | Number, kind: str) -> str:
    if isinstance(cell, str):
        return f"<td>{_text(cell)}</td>"
    mark = f'<span class="mark">{_MARKS[cell.verdict]}</span>' if cell.verdict else ""
    value = f'<span class="{cell.verdict}">{mark}{cell.value}</span>'
    note = f'<span class="n">{_text(cell.note)}</span>' if cell.note else ""
    if "paired" in kind:
        error = f"± {cell.error}" if cell.error else ""
        note = f'<span class="error">{error}{note}</span>'
    return f'<td class="number">{value}{note}</td>'


def _results(report: Report) -> str:
    found = [tables.overall(report), tables.differences(report)]
    parts = [
        f"<div><h3>{_text(table.title)}</h3>\n{_table(table)}</div>"
        for table in found
        if table
    ]
    return f'<div class="results">{"".join(parts)}</div>'


def _categories(report: Report, picture: str | None) -> str:
    """The radar beside the first metric's table; the others' fold out."""
    parts = [
        f"<details{' open' if i == 0 else ''}><summary>{_text(table.title)}</summary>"
        f"{_table(table)}</details>"
        for i, table in enumerate(tables.by_category(report))
    ]
    if not picture:
        return "\n".join(parts)
    label = report["metrics"][tables.first_of(report, "clip_score")]["label"]
    figure = (
        f"<figure>{picture}<figcaption>{_text(label)} by category. The scale starts "
        "where its innermost number says, not at 0; dashed: a step before the "
        "last.</figcaption></figure>"
    )
    beside = f'<div class="beside">{figure}<div>{parts[0]}</div></div>'
    return "\n".join([beside, *parts[1:]])


def _coverage(report: Report) -> str:
    parts, failed = [_table(tables.coverage(report))], tables.failures(report)
    if failed:
        parts.append(
            f"<details open><summary>{len(failed.rows)} without a score</summary>"
            f'<div class="scroll">{_table(failed)}</div></details>'
        )
    if noted := tables.noted(report):
        parts.append(
            f"<details open><summary>{len(noted.rows)} drawn with something passed "
            f'over</summary><div class="scroll">{_table(noted)}</div></details>'
        )
    for system in report["systems"]:
        if system["strangers"]:
            count, name = len(system["strangers"]), _text(system["name"])
            files = _text(", ".join(system["strangers"]))
            parts.append(
                f"<details><summary>{count} files of {name} match no object</summary>"
                f'<p class="ids">{files}</p></details>'
            )
    return "\n".join(parts)


def _protocol(report: Report) -> str:
    benchmark = report["benchmark"]
    notes = [*report["protocol"]["notes"], *benchmark["notes"]]
    lines = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return (
        _table(tables.protocol(report))
        + (f"<ul>{lines}</ul>" if lines else "")
        + f"<details><summary>{len(benchmark['ids'])} object ids</summary>"
        f'<p class="ids">{_text(", ".join(map(str, benchmark["ids"])))}</p></details>'
    )


def _same(report: Report, thing: Thing) -> list[tuple[Mapping, Thing]]:
    """Every system that has this object and seed, with what it made of it."""
    return [
        (system, other)
        for system in report["systems"]
        for other in system["objects"]
        if (other["id"], other["seed"]) == (thing["id"], thing["seed"])
    ]


def _by_weight(report: Report, lists: Iterable[Ranked]) -> list[str]:
    """Meshes on the page, those that were ranked before those beside them."""
    first, beside = [], []
    for ranked in lists:
        for thing in ranked.objects:
            for system, other in _same(report, thing):
                for step, found in other["steps"].items():
                    mine = (system["name"], step) == (ranked.system, ranked.step)
                    (first if mine else beside).append(found["mesh"])
    return first + beside


class _Cards:
    """The part of the page that shows objects."""

    def __init__(self, folder: Path, report: Report, keys: Mapping[str, str]) -> None:
        self.folder, self.report, self.keys = folder, report, keys

    def section(self, ranked: Ranked) -> str:
        about = self.report["metrics"].get(ranked.metric)
        by = f", by {about['label']} of step {ranked.step}" if about else ""
        name = f"{ranked.system}: " if len(self.report["systems"]) > 1 else ""
        title = (
            f"{name}{ranked.title}{by}" if name else f"{ranked.title.capitalize()}{by}"
        )
        cards = "\n".join(self._card(thing, ranked) for thing in ranked.objects)
        return f"<h3>{_text(title)}</h3>\n{cards}\n"

    def _card(self, thing: Thing, ranked: Ranked) -> str:
        facts = [thing["id"], thing["category"], f"seed {thing['seed']}"]
        line = " · ".join(_text(fact) for fact in facts if fact)
        several = len(self.report["systems"]) > 1
        panels, plans = [], []
        for system, other in _same(self.report, thing):
            who = f"{system['name']} " if several else ""
            panels += [
                self._panel(f"{who}{step}", other["steps"][step], ranked.metric)
                for step in system["steps"]
                if step in other["steps"]
            ]
            plans += [
                f"<p><b>{_text(f'{who}{which}')}</b> {_text(plan)}</p>"
                for which, plan in other["plans"].items()
                if plan
            ]
        told = f"<details><summary>plans</summary>{''.join(plans)}</details>"
        return (
            f'<article class="card"><h4>{_text(thing["caption"])}</h4>'
            f'<p class="small">{line}</p><div class="panels">{"".join(panels)}</div>'
            f"{told if plans else ''}</article>"
        )

    def _panel(self, title: str, found: Mapping, metric: str) -> str:
        values = []
        for name, about in self.report["metrics"].items():
            value = found["values"].get(name)
            if value is not None:
                text = f"{about['label']} {tables.fixed(value, about['digits'])}"
                values.append(
                    f"<b>{_text(text)}</b>" if name == metric else _text(text)
                )
        parts = [
            f'<div class="line"><b>{_text(title)}</b>'
            f'<a href="{_link(found["mesh"])}">mesh</a></div>'
            f'<div class="values">{" · ".join(values)}</div>'
        ]
        if found["mesh"] in self.keys:
            key = self.keys[found["mesh"]]
            parts.append(f'<div class="viewer" data-mesh="{key}">loading</div>')
        if found["views"] and (self.folder / found["views"]).is_file():
            link = _link(found["views"])
            parts.append(
                f'<a href="{link}"><img src="{link}" loading="lazy" '
                f'alt="{_text(title)}, views"></a>'
            )
        return f'<div class="panel">{"".join(parts)}</div>'


def _link(path: str) -> str:
    """A path as an address; nothing in it can be taken for a scheme."""
    if Path(path).is_absolute():
        return _text(Path(path).as_uri())
    return _text(urllib.parse.quote(os.fsencode(path)))
