"""A radar picture as SVG: one spoke per category, one line per system and step.

The scale runs between the two round numbers around all values, not from 0: the rings
say which. Readable on white and on black.
"""

import html
import math
from collections.abc import Mapping

from ar3d_jax.evaluation.tables import Report, columns, first_of, fixed

SPOKES = 12  # more are not readable: the largest categories stay; our choice
_COLOURS = ("#3987c9", "#e0752d", "#2ba37a", "#c470a4", "#c79a1e", "#8a7fd6")
_WIDTH, _HEIGHT, _RADIUS, _RINGS = 420, 330, 120, 4


def radar(report: Report) -> str | None:
    """The picture of the first CLIP score by category, as a file of its own.

    None where there is nothing to draw: no CLIP score, or fewer than 3 categories.
    """
    metric = first_of(report, "clip_score")
    lines = {} if metric is None else _lines(report, metric)
    known = {name for values in lines.values() for name in values}
    sizes = report["benchmark"]["categories"]
    largest = sorted(known, key=lambda name: (-sizes.get(name, 0), name))[:SPOKES]
    spokes = [name for name in sizes if name in largest]
    spokes += sorted(set(largest) - set(spokes))
    if metric is None or len(spokes) < 3:
        return None
    values = [v[name] for v in lines.values() for name in spokes if name in v]
    low, high, ring = _scale(min(values), max(values))
    parts = [_grid(spokes, low, high, ring)]
    for (name, step), found in lines.items():
        colour, dashed = _look(report, name, step)
        points = [
            (spoke, found[spoke], _point(i / len(spokes), share))
            for i, spoke in enumerate(spokes)
            if spoke in found
            for share in [(found[spoke] - low) / (high - low)]
        ]
        parts.append(_line(f"{name} {step}", points, colour, dashed))
    parts.append(_legend(report, lines))
    label = html.escape(report["metrics"][metric]["label"])
    height = _HEIGHT + 22 * len(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="radar" viewBox="0 0 {_WIDTH} '
        f'{height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{label} by category"><style>.radar{{color:#333;font:12.5px '
        "system-ui,sans-serif}@media(prefers-color-scheme:dark){.radar{color:#ccc}}"
        f"</style>\n{chr(10).join(parts)}\n</svg>\n"
    )


def _lines(report: Report, metric: str) -> dict[tuple[str, str], dict[str, float]]:
    """By system and step: the mean of each category that has one."""
    lines = {}
    for system, step in columns(report):
        means = {
            name: float(found[metric]["mean"])
            for name, found in system["categories"].get(step, {}).items()
            if found.get(metric, {}).get("mean") is not None
        }
        if means:
            lines[system["name"], step] = means
    return lines


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Round ends around the values, and the distance of the rings between them."""
    room = max(high - low, abs(high) * 1e-3, 1e-6)
    low -= 0.1 * room  # or the smallest would be the picture's centre
    power = 10.0 ** math.floor(math.log10(room / _RINGS))
    for ring in (power * x for x in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 20)):
        start = math.floor(low / ring) * ring
        if start + _RINGS * ring >= high:
            return start, start + _RINGS * ring, ring
    raise AssertionError((low, high))


def _point(turn: float, share: float) -> tuple[float, float]:
    """`turn` of a circle clockwise from the top, `share` of the radius outwards."""
    angle, distance = 2 * math.pi * turn, _RADIUS * share
    x = _WIDTH / 2 + distance * math.sin(angle)
    return round(x, 1), round(_HEIGHT / 2 - distance * math.cos(angle), 1)


def _grid(spokes: list[str], low: float, high: float, ring: float) -> str:
    parts = []
    digits = max(0, 1 - math.floor(math.log10(ring)))
    for k in range(1, _RINGS + 1):
        corners = [_point(i / len(spokes), k / _RINGS) for i in range(len(spokes))]
        parts.append(
            f'<polygon points="{_joined(corners)}" fill="none" stroke="currentColor" '
            'stroke-opacity=".18"/>'
        )
    for i, spoke in enumerate(spokes):
        x, y = _point(i / len(spokes), 1.0)
        parts.append(
            f'<line x1="{_WIDTH / 2}" y1="{_HEIGHT / 2}" x2="{x}" y2="{y}" '
            'stroke="currentColor" stroke-opacity=".18"/>'
        )
        x, y = _point(i / len(spokes), 1.09)
        side = x - _WIDTH / 2
        anchor = "middle" if abs(side) < 20 else "start" if side > 0 else "end"
        name = spoke if len(spoke) <= 24 else spoke[:23] + "…"
        parts.append(
            f'<text x="{x}" y="{y + 4}" text-anchor="{anchor}" fill="currentColor">'
            f"{html.escape(name)}</text>"
        )
    for k in range(_RINGS + 1):
        _, y = _point(0.0, k / _RINGS)
        text = fixed(low + (high - low) * k / _RINGS, digits)
        parts.append(
            f'<text x="{_WIDTH / 2 + 5}" y="{y + 3}" font-size="10" '
            f'fill="currentColor" opacity=".6">{text}</text>'
        )
    return "\n".join(parts)


def _line(
    name: str,
    points: list[tuple[str, float, tuple[float, float]]],
    colour: str,
    dashed: bool,
) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    fill = 0 if dashed else 0.09
    parts = [
        f'<polygon points="{_joined([at for _, _, at in points])}" fill="{colour}" '
        f'fill-opacity="{fill}" stroke="{colour}" stroke-width="2"{dash}/>'
    ]
    for spoke, value, (x, y) in points:
        title = html.escape(f"{name}, {spoke}: {value:.4g}")
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="3.2" fill="{colour}"><title>{title}</title>'
            "</circle>"
        )
    return "\n".join(parts)


def _legend(report: Report, lines: Mapping[tuple[str, str], object]) -> str:
    parts = []
    for row, (name, step) in enumerate(lines):
        colour, dashed = _look(report, name, step)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        y = _HEIGHT + 22 * row
        parts.append(
            f'<line x1="{_WIDTH / 2 - 90}" x2="{_WIDTH / 2 - 56}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" stroke-width="2.5"{dash}/>'
            f'<text x="{_WIDTH / 2 - 46}" y="{y + 4}" fill="currentColor">'
            f"{html.escape(f'{name} {step}')}</text>"
        )
    return "\n".join(parts)


def _look(report: Report, name: str, step: str) -> tuple[str, bool]:
    """A system's colour; dashed is any step but its last."""
    for i, system in enumerate(report["systems"]):
        if system["name"] == name:
            return _COLOURS[i % len(_COLOURS)], step != system["steps"][-1]
    raise KeyError(name)


def _joined(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
