"""The known object, `rewards/known_object.py`, as a server of scorers shows it to them.

A render worker's pictures of it are in `assets/known_object.npz`: a scorer that has no
number for it is found before the first host waits for one.

    python -m ar3d_jax.rewards.sidecar.known_object

draws it anew, which needs EGL. Servers only read the file: drawing has no part in them.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.config import RenderConfig
from ar3d_jax.errors import UserError, exit_on_user_error, reading, whole_file
from ar3d_jax.rewards.known_object import PROMPT, boxes
from ar3d_jax.rewards.sidecar.panel import JsonVerdicts, Panel
from ar3d_jax.rewards.sidecar.scorers import Subject

FILE = Path(__file__).parents[2] / "assets" / "known_object.npz"
POINTS = 2048  # as many as the scorers are shown


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
        """As `known_object.table` takes them."""
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
        roles = tuple(about["roles"])
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
    # With OpenGL, which servers lack.
    from ar3d_jax.render.geometry import surface_points
    from ar3d_jax.render.renderer import Renderer

    with exit_on_user_error(), Renderer(RenderConfig()) as renderer:
        mesh = chair()
        points, colours = surface_points(mesh, POINTS, seed=0)
        with whole_file(FILE) as partial:
            np.savez_compressed(
                partial, views=renderer.draw(mesh), points=points, colours=colours
            )


if __name__ == "__main__":
    main()
