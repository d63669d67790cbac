"""What the embedded scorers are worth on objects they never saw.

Two questions: do captions and views of held-out objects find each other, and does every
role put the right object above another one, that above a damaged one, and dust last?
The answers are in `scorers.json`, under `report`.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ar3d_jax.config_rewards import COARSE_ROLES, REFINED_ROLES, TABLE_ROLES
from ar3d_jax.data.catalog import Catalog
from ar3d_jax.rewards.sidecar import pictures
from ar3d_jax.rewards.sidecar.scorers import embedded, networks

ROLES = tuple(dict.fromkeys(COARSE_ROLES + REFINED_ROLES + TABLE_ROLES))

# Name of a condition -> (damage, strength, whether the prompt is another object's).
CONDITIONS: dict[str, tuple[str, float, bool]] = {
    "right": ("", 0.0, False),
    "other class": ("", 0.0, True),
    "columns 10%": ("foreign_columns", 0.1, False),
    "columns 25%": ("foreign_columns", 0.25, False),
    "columns 50%": ("foreign_columns", 0.5, False),
    "chunks 50%": ("missing_chunks", 0.5, False),
    "dust added": ("dust", 0.5, False),
    "blob": ("blob", 1.0, False),
    "only dust": ("only_dust", 1.0, False),
}


def retrieval(
    images: Float[np.ndarray, "n D"],
    captions: Float[np.ndarray, "n D"],
    texts: Sequence[str],
) -> dict[str, float]:
    """How often the own caption or object is first, or among five, by mean cosine.

    Objects that share a caption count as each other's.

    Args:
        images: Each object's mean over views of unit vectors.
        captions: Unit vector of each text.
        texts: Of each object, its own.
    """
    similar = images @ captions.T
    own = np.array([[a == b for b in texts] for a in texts])
    result: dict[str, float] = {"objects": len(texts)}
    for name, table, right in (
        ("image to text", similar, own),
        ("text to image", similar.T, own.T),
    ):
        best = np.where(right, table, -np.inf).max(axis=1, keepdims=True)
        rank = ((table > best) & ~right).sum(axis=1)
        for top in (1, 5):
            result[f"{name}, top {top}"] = round(float((rank < top).mean()), 3)
    for top in (1, 5):
        result[f"chance, top {top}"] = round(min(1.0, top * float(own.mean())), 3)
    return result


def score_all(
    scorer: embedded.EmbeddedScorer,
    drawn: pictures.Pictures,
    texts: Sequence[str],
) -> tuple[dict[str, float], list[float]]:
    """Mean of each role, and the seconds that each object took."""
    scores, seconds = [], []
    for row, text in enumerate(texts):
        views = np.repeat(drawn.views[row][..., None], 3, axis=-1)
        points = drawn.points[row].astype(np.float32)
        points = points if np.ptp(points) > 0 else points[:0]  # nothing was drawn
        started = time.perf_counter()
        answer = scorer.score_object(text, views, points, ROLES)
        seconds.append(time.perf_counter() - started)
        scores.append([answer[role][0] for role in ROLES])
    means = np.mean(scores, axis=0)
    return {r: round(float(m), 3) for r, m in zip(ROLES, means, strict=True)}, seconds


def draw_conditions(
    catalog: Catalog,
    kinds: Sequence[str],
    texts: Sequence[Sequence[str]],
    recoded: Mapping[float, np.ndarray],
    *,
    processes: int,
) -> dict[str, tuple[pictures.Pictures, list[str]]]:
    """Name of a condition -> the held-out objects under it, and their prompts.

    Args:
        catalog: All objects.
        kinds: Class of each.
        texts: Captions of each; the fourth, with proportions and parts, is used.
        recoded: Share of wrong tokens -> the codec's logits of the held-out objects.
        processes: Drawing processes.
    """
    rows = np.flatnonzero(catalog.held_out).tolist()
    rng = np.random.default_rng(0)
    own = [texts[row][3] for row in rows]
    other = [[r for r in rows if kinds[r] != kinds[row]] for row in rows]
    strangers = [texts[int(rng.choice(choices))][3] for choices in other]
    shapes = [
        pictures.Shape(
            catalog.packed[row],
            catalog.packed[rng.choice(rows)],
            kind,
            strength,
            (7, i),
        )
        for kind, strength, _ in CONDITIONS.values()
        for i, row in enumerate(rows)
    ]
    shapes += [
        pictures.Shape(catalog.packed[row], catalog.packed[row], "", 0.0, (0,), decoded)
        for logits in recoded.values()
        for row, decoded in zip(rows, logits, strict=True)
    ]
    conditions = {name: other for name, (_, _, other) in CONDITIONS.items()} | {
        f"{share:.0%} wrong tokens": False for share in recoded
    }
    repeated = np.tile(rows, len(conditions))
    drawn = pictures.draw_shapes(
        shapes, repeated, catalog.extents[repeated], processes=processes
    )
    return {
        name: (
            drawn.take(np.arange(len(rows)) + number * len(rows)),
            strangers if stranger else own,
        )
        for number, (name, stranger) in enumerate(conditions.items())
    }


def measure(
    weights: Path, conditions: Mapping[str, tuple[pictures.Pictures, list[str]]]
) -> dict[str, Any]:
    """Retrieval and a table of roles and conditions, on the held-out objects.

    Args:
        weights: The written weights file.
        conditions: Of `draw_conditions`.
    """
    scorer = embedded.EmbeddedScorer(weights)
    roles, seconds = {}, []
    for name, (drawn, prompts) in conditions.items():
        roles[name], took = score_all(scorer, drawn, prompts)
        seconds += took
    drawn, own = conditions["right"]
    with torch.inference_mode():
        views = [networks.grey_pictures(v[..., None]) for v in drawn.views]
        images = torch.stack([scorer.view(v)[0].mean(0) for v in views]).numpy()
        captions = scorer.text(own).numpy()
    return {
        "retrieval": retrieval(images, captions, own),
        "roles": roles,
        "ms_per_object": round(1e3 * statistics.median(seconds), 1),
        "torch_threads": torch.get_num_threads(),
    }


def as_text(report: dict[str, Any]) -> str:
    """The report as a table to print."""
    lines = ["held-out objects", "", f"{'':18}" + "".join(f"{r:>12}" for r in ROLES)]
    for name, means in report["roles"].items():
        lines.append(f"{name:18}" + "".join(f"{means[role]:12.3f}" for role in ROLES))
    lines.append("")
    lines += [f"{name}: {value}" for name, value in report["retrieval"].items()]
    return "\n".join([*lines, f"ms per object: {report['ms_per_object']}"])
