"""One object that every scorer is shown before a server of scorers serves.

A chair of eleven boxes, as a render worker draws it, in `assets/known_object.npz`. That
a scorer has a number for it says that weights, device and endpoints work, before the
first host waits for them; the number itself shows two servers that differ.

    python -m ar3d_jax.rewards.sidecar.known_object

draws it anew, which needs EGL. Servers only read the file: drawing has no part in them.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.config import RenderConfig
from ar3d_jax.errors import UserError, exit_on_user_error, reading, writing
from ar3d_jax.rewards.sidecar.panel import JsonVerdicts, Panel
from ar3d_jax.rewards.sidecar.scorers import Subject

FILE = Path(__file__).parents[2] / "assets" / "known_object.npz"
PROMPT = "a wooden chair with four legs"
POINTS = 2048  # as many as the scorers are shown
HEADINGS = ("scorer", "roles", "model", "revision", "place", "seconds", "score")

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Row:
    """What one scorer made of the object.

    Attributes:
        name: The scorer's.
        about: Its model, revision and place.
        scores: By role.
        seconds: From asking to its answer, with nobody else asked meanwhile.
    """

    name: str
    about: dict[str, object]
    scores: dict[str, float]
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADINGS`."""
        return (
            self.name,
            " ".join(self.scores),
            *(str(self.about[key]) for key in ("model", "revision", "place")),
            f"{self.seconds:.2f}",
            " ".join(f"{score:.4f}" for score in self.scores.values()),
        )


def read(path: Path = FILE) -> Subject:
    """The object, to be scored for no role yet.

    Raises:
        UserError: the file cannot be read.
    """
    with reading(path, "python -m ar3d_jax.rewards.sidecar.known_object"):
        with np.load(path, allow_pickle=False) as file:
            arrays = file["views"], file["points"], file["colours"]
        return Subject(PROMPT, *arrays, roles=())


async def score(panel: Panel, patience: float) -> list[Row]:
    """What each scorer of `panel` makes of the object, one scorer after the other.

    Args:
        panel: The scorers.
        patience: Seconds that each may take.

    Raises:
        UserError: one has no number for a role that it fills.
    """
    known, rows = read(), []
    for name, about in panel.about.items():
        roles = tuple(about["roles"])  # type: ignore[call-overload]
        found: JsonVerdicts = {}
        started = time.monotonic()
        asked = dataclasses.replace(known, roles=roles)
        await panel.judge(asked, started + patience, found.update)
        seconds = time.monotonic() - started
        for role, (_, reason) in found.items():
            if reason is not None:
                raise UserError(
                    f"{name} has no {role} of the known object, {PROMPT!r}: {reason}; "
                    f"see rewards.{name}"
                )
        scores = {
            role: value for role in roles if (value := found[role][0]) is not None
        }
        rows.append(Row(name, about, scores, seconds))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as text, in columns."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def boxes() -> list[Box]:
    """The chair's, by opposite corners; z is up, and the chair looks along -y."""
    legs = [
        ((x, y, -0.5), (x + 0.06, y + 0.06, -0.06))
        for x in (-0.24, 0.18)
        for y in (-0.24, 0.18)
    ]
    posts = [((x, 0.19, 0.0), (x + 0.05, 0.24, 0.5)) for x in (-0.24, 0.19)]
    slats = [((-0.19, 0.2, z), (0.19, 0.23, z + 0.07)) for z in (0.13, 0.26, 0.39)]
    seat = ((-0.25, -0.25, -0.06), (0.25, 0.25, 0.0))
    stretcher = ((-0.18, 0.2, -0.3), (0.18, 0.22, -0.26))
    return [*legs, *posts, *slats, seat, stretcher]


def chair() -> Mesh:
    """The boxes' surfaces: 12 triangles each, seen from outside."""
    # Corner 4 x + 2 y + z of the unit cube, counter-clockwise from outside.
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4)]
    quads = np.array([*sides, (1, 5, 7, 3)])
    triangles = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])
    cube = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(8, 3)
    vertices, faces = [], []
    for low, high in boxes():
        corners = np.where(cube, high, low)
        # A face's corners are its own: shared ones would round the box's edges.
        faces.append(np.arange(36).reshape(12, 3) + 36 * len(faces))
        vertices.append(corners[triangles.ravel()])
    return Mesh(
        np.concatenate(vertices).astype(np.float32),
        np.concatenate(faces).astype(np.int32),
    )


def main() -> None:
    """Draws the object and writes the file."""
    from ar3d_jax.render.geometry import (
        surface_points,
    )  # with OpenGL, which servers lack
    from ar3d_jax.render.renderer import Renderer

    with exit_on_user_error(), Renderer(RenderConfig()) as renderer, writing(FILE):
        mesh = chair()
        points, colours = surface_points(mesh, POINTS, seed=0)
        np.savez_compressed(
            FILE, views=renderer.draw(mesh), points=points, colours=colours
        )


if __name__ == "__main__":
    main()
