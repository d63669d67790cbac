"""Made-up reports: small for tests, and large enough to look at.

python -m tests.evaluation.small_report FOLDER     a few hundred objects, two systems
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ar3d_jax.codec import surface
from ar3d_jax.evaluation import report

ABOUT = {
    "clip_score/judge": (
        "CLIP score (judge)",
        "higher",
        2,
        "Cosine of view and caption.",
    ),
    "kd/judge": ("KD (judge)", "lower", 3, "Kernel distance of the views, times 100."),
    "fd/judge": ("FD (judge)", "lower", 1, "Fréchet distance of the views."),
    "iou": ("IoU", "higher", 3, "Voxels in common with the true shape."),
    "components": ("components", "", 1, "Pieces of the surface."),
}
OF_OBJECTS = ("clip_score/judge", "iou", "components")
CATEGORIES = ("chair", "table", "lamp", "sofa", "cabinet", "bed")


def ball(path: Path, radius: float = 0.6) -> None:
    """A GLB of a few hundred triangles."""
    axis = np.linspace(-1, 1, 12)
    grid = np.stack(np.meshgrid(axis, axis, axis), -1)
    mesh = surface.extract(radius - np.linalg.norm(grid, axis=-1))
    path.parent.mkdir(parents=True, exist_ok=True)
    surface.to_glb(mesh, path)


def views(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8 * 24, 24), (120, 150, 180)).save(path)


def measured(values: list[float], spread: float = 1.0) -> dict:
    error = spread * float(np.std(values)) / max(1, len(values)) ** 0.5
    return {"mean": float(np.mean(values)), "error": error, "n": len(values)}


def small_object(name: str, category: str, steps: dict[str, float]) -> dict:
    """An object whose steps have these CLIP scores, and files where tests put them."""
    return {
        "id": name,
        "caption": f"a {category} called {name}",
        "category": category,
        "seed": 0,
        "plans": {"global": f"one {category}", "local": "smooth"},
        "steps": {
            step: {
                "mesh": f"meshes/{name}-{step}.glb",
                "views": f"meshes/{name}-{step}.png",
                "values": {
                    "clip_score/judge": score,
                    "iou": score / 50,
                    "components": 1,
                },
            }
            for step, score in steps.items()
        },
    }


def small_system(name: str, things: list[dict], failed: list[dict] = ()) -> dict:
    """Its numbers are those of its objects; of sets, made up."""
    steps = list(things[0]["steps"])

    def means(chosen: list[dict], step: str) -> dict:
        found = {
            metric: measured([x["steps"][step]["values"][metric] for x in chosen])
            for metric in OF_OBJECTS
        }
        count = len(chosen)
        near = found["clip_score/judge"]["mean"]
        found["kd/judge"] = {"mean": 6 / near, "error": 0.012, "n": count}
        found["fd/judge"] = {"mean": 700 / near, "error": 0.8, "n": count}
        return {metric: found[metric] for metric in ABOUT}

    categories = dict.fromkeys(x["category"] for x in things)
    return {
        "name": name,
        "source": f"runs/{name}",
        "seeds": [0],
        "steps": steps,
        "coverage": {
            step: {
                "asked": len(things) + len(failed),
                "scored": len(things),
                "failed": list(failed),
            }
            for step in steps
        },
        "strangers": [],
        "overall": {step: means(things, step) for step in steps},
        "categories": {
            step: {
                category: means([x for x in things if x["category"] == category], step)
                for category in categories
            }
            for step in steps
        },
        "objects": things,
    }


def small_report(*systems: dict, differences: list[dict] = ()) -> dict:
    things = systems[0]["objects"]
    names = [x["category"] for x in things]
    return {
        "version": 1,
        "benchmark": {
            "name": "catalog",
            "items": len(things),
            "categories": {name: names.count(name) for name in dict.fromkeys(names)},
            "ids": [x["id"] for x in things],
            "notes": ["Held-out furniture."],
        },
        "protocol": {
            "name": "trellis",
            "views": 8,
            "size": 224,
            "fov_deg": 40.0,
            "pitch_deg": 30.0,
            "radius": 2.0,
            "background": "white",
            "sets": {"judge": "the shipped judge, 112 px, 128 numbers"},
            "notes": ["Other cameras than the paper's."],
        },
        "metrics": {
            name: dict(zip(("label", "better", "digits", "about"), about, strict=True))
            for name, about in ABOUT.items()
        },
        "systems": list(systems),
        "differences": list(differences),
        "warnings": [],
    }


def two_objects(folder: Path) -> dict:
    """A report of one system and two objects, whose files are in `folder`."""
    things = [
        small_object("first", "chair", {"coarse": 20.0, "refined": 27.0}),
        small_object("second", "lamp", {"coarse": 22.0, "refined": 21.0}),
    ]
    for thing in things:
        for step in thing["steps"].values():
            ball(folder / step["mesh"])
            views(folder / step["views"])
    return small_report(small_system("ours", things))


def large(folder: Path, meshes: list[Path]) -> dict:
    """Some 300 objects of two systems; `meshes` are used again and again."""
    luck = random.Random(0)
    categories = [CATEGORIES[int(6 * luck.random() ** 1.6)] for _ in range(300)]
    systems = []
    for name, skill in (("base", 0.0), ("hi-grpo", 2.4)):
        things = []
        for i, category in enumerate(categories):
            level = 22 + CATEGORIES.index(category) + luck.gauss(0, 3)
            scores = {"coarse": level + 0.6 * skill, "refined": level + skill + 0.8}
            thing = small_object(f"{category}-{i:03d}", category, scores)
            thing["caption"] = (
                f"a {category} with {2 + i % 5} legs, rather wide, wooden"
            )
            thing["plans"] = {
                "global": f"A {category} of one wide body and {2 + i % 5} thin legs.",
                "local": "The legs are round and stand at the corners; " * 3,
            }
            for step, found in thing["steps"].items():
                found["values"] = {
                    key: x + luck.gauss(0, 0.02 * abs(x))
                    for key, x in found["values"].items()
                }
                mesh = meshes[i % len(meshes)] / f"{step}.glb"
                found["mesh"] = str(mesh)
                picture = mesh.with_suffix(".png")
                found["views"] = str(picture) if picture.exists() else None
            things.append(thing)
        failed = [
            {"id": "chair-300", "seed": 0, "reason": "the mesh is empty"},
            {"id": "lamp-301", "seed": 0, "reason": "no renderer drew it, twice"},
        ]
        systems.append(small_system(name, things, failed))
    pair = {
        "a": "base",
        "b": "hi-grpo",
        "metrics": {
            "clip_score/judge": {"mean": 2.31, "error": 0.21, "n": 298},
            "kd/judge": {"mean": -0.021, "error": 0.015, "n": 298},
            "fd/judge": {"mean": 2.9, "error": 1.1, "n": 298},
            "iou": {"mean": 0.044, "error": 0.006, "n": 298},
            "components": {"mean": 0.4, "error": 0.1, "n": 212},
        },
    }
    made = small_report(
        *systems, differences=[{**pair, "step": x} for x in ("coarse", "refined")]
    )
    made["warnings"] = ["fd/judge: 300 objects for 128 dimensions are few; prefer KD."]
    systems[0]["overall"]["coarse"]["iou"]["n"] = 212
    systems[1]["overall"]["coarse"]["kd/judge"]["mean"] = None
    return made


if __name__ == "__main__":
    there = Path(sys.argv[1]).resolve()
    sources = [Path(x).resolve() for x in sys.argv[2:]]
    if not sources:
        sources = [there / "meshes" / str(i) for i in range(4)]
        for i, source in enumerate(sources):
            for step in ("coarse", "refined"):
                ball(source / f"{step}.glb", 0.4 + 0.15 * i)
                views(source / f"{step}.png")
    report.write(there, large(there, sources))
