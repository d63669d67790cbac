"""A render worker: `python -m ar3d_jax.render.workers SOCKET_FD RING_FD`.

Logits in a slot, or a mesh file named in the message, become views and surface points
in the slot. `rewards/courier.py`
starts it and keeps it alive, `rewards/wire.py` has the slots and the messages. Never
loads jax: `draw_object` is all that a picture needs, here and wherever one is drawn
offline.
"""

import contextlib
import hashlib
import os
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.codec import surface
from ar3d_jax.config import RenderConfig, from_config_dict
from ar3d_jax.render import meshes
from ar3d_jax.render.geometry import surface_points
from ar3d_jax.render.renderer import Renderer
from ar3d_jax.rewards import wire

FILE_SEED = 0  # of the surface points of mesh files


def draw_object(
    renderer: Renderer,
    logits: Float[np.ndarray, "R R R"],
    views: UInt8[np.ndarray, "V H W 3"],
    points: Float[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
) -> int:
    """Fills the arrays from the logits' surface; how many points are valid.

    That is all of them, or 0 for an object without a surface, which is drawn as an
    empty picture. The points' seed comes from the logits: equal logits give equal bits
    in any worker, slot and order.

    Raises:
        ValueError: the logits are not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("the logits are not finite")
    mesh = surface.extract(logits)
    renderer.draw(mesh, views)
    digest = hashlib.blake2b(logits.tobytes(), digest_size=8).digest()
    return _fill_points(mesh, points, colours, int.from_bytes(digest, "little"))


def draw_file(
    renderer: Renderer,
    path: str,
    up: str,
    views: UInt8[np.ndarray, "V H W 3"],
    points: Float[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
) -> tuple[int, list[str]]:
    """Fills the arrays from a mesh file: how many points are valid, all; and notes.

    It is drawn from both sides, as nobody knows how it is wound. The seed of the points
    is the same for all files: an object that is written in two ways gets nearly the
    same points. Notes are those of `meshes.load`.

    Raises:
        ValueError: `meshes.load` refuses it, or it has no area.
    """
    config = renderer.config
    notes: list[str] = []
    mesh = meshes.load(
        path, up=up, max_faces=config.max_faces, colours=config.colours, notes=notes
    )
    renderer.draw(mesh, views, two_sided=True)
    return _fill_points(mesh, points, colours, FILE_SEED, alike=True), notes


def _fill_points(
    mesh: surface.Mesh,
    points: Float[np.ndarray, "n 3"],
    colours: UInt8[np.ndarray, "n 3"],
    seed: int,
    *,
    alike: bool = False,
) -> int:
    points[:], colours[:] = 0.0, 0
    if not len(mesh.faces):
        return 0
    points[:], colours[:] = surface_points(mesh, len(points), seed, alike=alike)
    return len(points)


@contextlib.contextmanager
def _prepare(config: dict[str, Any], ring: wire.Ring) -> Iterator[wire.Answer]:
    # Mesa: draw in this thread (there is a worker per core), leave no cache behind.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    os.environ.setdefault("MESA_SHADER_CACHE_DISABLE", "true")
    renderer = Renderer(from_config_dict(config, RenderConfig))

    def draw(request: dict[str, Any]) -> dict[str, Any]:
        slot, sequence = request["draw"], request["sequence"]
        started, problem, notes = time.perf_counter(), None, []
        try:
            if ring.sequence[slot] != sequence:
                raise ValueError(f"slot {slot} holds another object than announced")
            target = ring.views[slot], ring.points[slot], ring.colours[slot]
            if path := request.get("mesh"):
                up = request.get("up", "y")
                count, notes = draw_file(renderer, path, up, *target)
            else:
                count = draw_object(renderer, ring.logits[slot], *target)
            ring.point_count[slot] = count
            ring.drawn[slot] = sequence
        except Exception as error:  # one object's failure is one object's
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        return {
            "drawn": slot,
            "sequence": sequence,
            "seconds": seconds,
            "error": problem,
            "notes": notes,
        }

    with renderer:
        yield draw


if __name__ == "__main__":
    wire.run_child(_prepare)
