"""The metrics in words: labels, which way is better, digits, what they are."""

from collections.abc import Iterable, Mapping
from typing import Any

ABOUT: dict[str, tuple[str, str, int, str]] = {
    "clip_score": (
        "CLIP score",
        "higher",
        2,
        "cosine of picture and caption x 100, mean over views and objects",
    ),
    "similarity": (
        "RBF similarity",
        "higher",
        4,
        "the public script's KD: mean RBF kernel of real and generated views, an "
        "object at a time",
    ),
    "kd": (
        "KD x100",
        "lower",
        3,
        "unbiased polynomial kernel distance (degree 3) to the real objects' views; "
        "small negative values are chance",
    ),
    "fd": ("FD", "lower", 3, "Frechet distance to the real objects' views"),
    "iou": ("IoU", "higher", 3, "of surface voxels with the real object, 32^3"),
    "chamfer": (
        "Chamfer",
        "lower",
        4,
        "distance of surface points to the real object's, longest side 1",
    ),
    "f_score": ("F-score", "higher", 3, "surface points within 0.02 of the real ones"),
    "components": ("Components", "lower", 2, "separate pieces of the mesh"),
    "watertight": ("Watertight", "higher", 2, "share of meshes that are closed"),
    "degenerate_faces": (
        "Degenerate",
        "lower",
        4,
        "share of triangles without area",
    ),
    "diversity": (
        "Overlap",
        "lower",
        3,
        "mean IoU between objects of different prompts: high means all look alike",
    ),
    "distinct_codes": (
        "Codes",
        "higher",
        0,
        "different shape tokens in all objects together",
    ),
}


def about(metric: str) -> dict[str, Any]:
    """How a metric is shown: label, which way is better, digits, what it is."""
    kind, _, feature_set = metric.partition("/")
    label, better, digits, text = ABOUT[kind]
    if feature_set:
        label = f"{label}, {feature_set}"
    return {"label": label, "better": better, "digits": digits, "about": text}


def ordered(metrics: Iterable[str]) -> list[str]:
    """Metrics as they stand in tables."""
    order = list(ABOUT)
    return sorted(metrics, key=lambda name: order.index(name.partition("/")[0]))


def in_lines(report: Mapping[str, Any]) -> str:
    """Each system's CLIP scores, and what was passed over, for the terminal."""
    lines = []
    for system in report["systems"]:
        for step in system["steps"]:
            covered = system["coverage"][step]
            numbers = [
                f"{about(name)['label']} {of['mean']:.{about(name)['digits']}f}"
                + (f" +- {of['error']:.2g}" if of["error"] else "")
                for name, of in system["overall"][step].items()
                if name.startswith(("clip_score/", "kd/", "iou"))
            ]
            lines.append(
                f"{system['name']} {step}: {covered['scored']} of {covered['asked']} "
                f"scored; {', '.join(numbers)}"
            )
            if noted := covered.get("noted"):
                first = noted[0]
                lines.append(
                    f"warning: {len(noted)} of them drawn with something passed over, "
                    f"such as {first['id']}: {first['notes'][0]}"
                )
    return "\n".join(lines)
