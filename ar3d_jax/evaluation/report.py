"""A finished evaluation as files: every number, a summary, a page to show.

    FOLDER/report.json   the report below, complete
    FOLDER/report.md     its tables
    FOLDER/radar.svg     the first CLIP score by category, where there are 3 or more
    FOLDER/index.html    tables, picture, best and worst objects with 3D viewers; opens
                         from disk, asks the network for nothing

The report is a dictionary; null stands for what could not be measured:

    version     1
    benchmark   name, items (how many), categories {name: how many}, ids, notes
    protocol    name, views, size, fov_deg, pitch_deg, radius, background,
                sets {feature set: what network}, notes
    metrics     {metric: label, better ("higher", "lower" or ""), digits, about}, in the
                order of tables; clip_score/<set>, kd/<set>, fd/<set>, iou, ...
    systems     a list, more than one in a comparison:
        name, source, seeds, strangers (files that match no id)
        steps       ["coarse", "refined"], ["shape"] or ["mesh"]
        coverage    {step: asked, scored, failed [id, seed, reason]}
        overall     {step: {metric: mean, error, n}}
        categories  {step: {category: {metric: mean, error, n}}}
        objects     [id, caption, category, seed, plans {"global", "local"},
                    steps {step: mesh (path), views (path or null), values {metric: x}}]
    differences [a, b, step, metrics {metric: mean of b - a, error, n}], paired; a and b
                are the same system where step names two of its own
    warnings    a list of lines

Paths are relative to the folder, or absolute. The numbers come from `summary.py`; the
views of `page.py` and `markdown.py` share `tables.py`.
"""

import json
import math
from pathlib import Path
from typing import Any

from ar3d_jax.errors import write_whole, writing
from ar3d_jax.evaluation.markdown import markdown
from ar3d_jax.evaluation.page import page
from ar3d_jax.evaluation.radar import radar


def write(folder: Path, report: dict[str, Any], shown: int = 6) -> None:
    """Writes the files; what is there of an earlier report is replaced.

    Args:
        folder: made where it is missing.
        report: as above.
        shown: best and worst objects to show, of each system.

    Raises:
        UserError: the folder cannot be written.
    """
    report = _finite(report)
    picture = radar(report)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(folder / "report.json", text + "\n")
        write_whole(folder / "report.md", markdown(report, shown))
        if picture is None:
            (folder / "radar.svg").unlink(missing_ok=True)
        else:
            write_whole(folder / "radar.svg", picture)
        write_whole(folder / "index.html", page(folder, report, shown, picture))


def _finite(value: Any) -> Any:
    """A copy in which infinities and NaN, which JSON does not know, are null."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
