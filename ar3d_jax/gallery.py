"""Generated objects as files to look at: meshes, views, plans, one page for all.

    FOLDER/<name>/coarse.glb  refined.glb  views.png  plans.json   (one step: shape.glb)
    FOLDER/views.png          all objects' views on one sheet
    FOLDER/index.html         the same with prompts and plans, for a browser

`train.py` writes one such folder per `samples/step_N`, `generate.py` one per call. The
views come from `rewards.client` (drawn by the render workers), surfaces from
`codec/surface.py`.
"""

import dataclasses
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ar3d_jax.codec import surface
from ar3d_jax.errors import write_whole, writing
from ar3d_jax.render.sheets import view_sheet


@dataclasses.dataclass(frozen=True)
class GeneratedObject:
    """One rollout, decoded.

    Attributes:
        name: its folder; made safe for file systems.
        prompt: the user's text.
        plans: by "global" and "local".
        logits: by step ("coarse" and "refined", or "shape" alone), [R, R, R] float32.
        views: by step, [V, H, W, 3] uint8.
        scores: by step and role; empty where nothing was scored.
    """

    name: str
    prompt: str
    plans: dict[str, str]
    logits: dict[str, np.ndarray]
    views: dict[str, np.ndarray]
    scores: dict[str, dict[str, float | None]]

    def label(self, step: str) -> str:
        """One line for a sheet."""
        scores = (f"{k} {v:.2f}" for k, v in self.scores[step].items() if v is not None)
        return f"{step}: {self.prompt}  {'  '.join(scores)}"


def write(folder: Path, objects: Sequence[GeneratedObject]) -> Image.Image:
    """Writes the folder and returns the sheet, coarse above refined for each object.

    Raises:
        UserError: the folder cannot be written.
    """
    names = _folder_names([thing.name for thing in objects])
    with writing(folder):
        for name, thing in zip(names, objects, strict=True):
            _write_object(folder / name, thing)
        views = np.stack(
            [thing.views[step] for thing in objects for step in thing.logits]
        )
        labels = [thing.label(step) for thing in objects for step in thing.logits]
        sheet = view_sheet(views, labels)
        sheet.save(folder / "views.png")
        write_whole(folder / "index.html", _page(names, objects))
    return sheet


def _write_object(folder: Path, thing: GeneratedObject) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for step in thing.logits:
        mesh = surface.extract(thing.logits[step])
        surface.to_glb(mesh, folder / f"{step}.glb")
    views = np.stack([thing.views[step] for step in thing.logits])
    view_sheet(views, [thing.label(step) for step in thing.logits]).save(
        folder / "views.png"
    )
    record = {"prompt": thing.prompt, "plans": thing.plans, "scores": thing.scores}
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_whole(folder / "plans.json", text + "\n")


def _folder_names(names: Sequence[str]) -> list[str]:
    """File-system safe, short and different from each other."""
    safe = [re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] for name in names]
    taken: set[str] = set()
    unique = []
    for name in safe:
        candidate, copy = name or "object", 2
        while candidate in taken:
            candidate, copy = f"{name or 'object'}-{copy}", copy + 1
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _page(names: Sequence[str], objects: Sequence[GeneratedObject]) -> str:
    rows = "\n".join(
        f"<section><h2>{html.escape(thing.prompt)}</h2>"
        "<p>"
        + " ".join(
            f'<a href="{name}/{step}.glb">{step}.glb</a>' for step in thing.logits
        )
        + f'</p><img src="{name}/views.png" alt="{" above ".join(thing.logits)}">'
        + "".join(
            f"<p><b>{which} plan</b> {html.escape(plan)}</p>"
            for which, plan in thing.plans.items()
        )
        + "</section>"
        for name, thing in zip(names, objects, strict=True)
    )
    style = "body{font:16px sans-serif;margin:2em}img{max-width:100%}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>ar3d_jax</title>'
        f"<style>{style}</style>\n{rows}\n"
    )
