"""Mesh files of any program to one mesh like the codec's: z up, centred, side 1.

    file -> parts (gltf.py, obj.py, ply.py) -> one mesh

Normalised as TRELLIS normalises its data: the middle of the bounding box goes to the
origin, the longest side becomes 1. Vertices that no triangle uses do not count.

Colours are the file's own numbers, taken for sRGB and changed only by shading:
the base colour texture, times base colour factor, times vertex colour, as glTF says
(its factors are linear light by the letter; most writers put sRGB there). A texture
that is missing or of an unknown kind leaves its part as if it had none, and a note.

`codec/surface.py` writes our own files; `renderer.py` draws.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.render import gltf, obj, ply
from ar3d_jax.render.parts import WHITE, Notes, Part
from ar3d_jax.render.pictures import REPEAT, Wrap

READERS = {".glb": gltf.read, ".gltf": gltf.read, ".obj": obj.read, ".ply": ply.read}


@dataclasses.dataclass(frozen=True)
class PaintedMesh(Mesh):
    """A mesh with colours: at each vertex, times a texture where there is one.

    Attributes:
        colours: [n, 3] uint8 sRGB; white where the file says nothing.
        uv: [n, 2] float32; (0, 0) is the first corner of a texture's first row.
        textures: (m, picture) in the order of the faces: the next m have this picture,
            [height, width, 3] uint8, or None.
        wraps: for each texture, what is seen of it outside of 0..1 along u and v; none
            at all: they repeat.
    """

    colours: np.ndarray
    uv: np.ndarray
    textures: tuple[tuple[int, np.ndarray | None], ...]
    wraps: tuple[tuple[Wrap, Wrap], ...] = ()


def load(
    path: pathlib.Path | str,
    *,
    up: str,
    max_faces: int,
    colours: bool = False,
    notes: list[str] | None = None,
) -> Mesh:
    """The mesh of a file, all its parts in their places; with `colours` a PaintedMesh.

    `up` names the file's up axis; "y", glTF's, undoes `surface.to_glb`. Vertices stay
    as the file has them: split ones are not joined, and a part with a colour per face
    gets three vertices for each. What was passed over on purpose and may be missed,
    such as a texture that is not there, is appended to `notes`: a line each.

    Raises:
        ValueError: the file cannot be read, is broken, has no triangles, more than
            `max_faces`, no size, or vertices that are not finite; one line without the
            file's name.
    """
    path, found = pathlib.Path(path), Notes()
    try:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise ValueError(
                f"is a {path.suffix or 'file without suffix'}; expected "
                f"{', '.join(READERS)}"
            )
        with np.errstate(all="ignore"):  # numbers that are none are found at the end
            parts = reader(path, max_faces=max_faces, colours=colours, notes=found)
        parts = [part for part in parts if len(part.faces)]
        faces = sum(len(part.faces) for part in parts)
        if not faces:
            hidden = " that are seen: all are transparent" if found.hidden else ""
            raise ValueError(f"has no triangles{hidden}")
        if faces > max_faces:
            raise ValueError(
                f"has {faces:,} triangles; at most {max_faces:,} are drawn"
            )
        if notes is not None:
            notes += found
        return _joined(parts, up, colours)
    except OSError as error:
        raise ValueError(f"cannot be read: {_line(error)}") from error
    except MemoryError as error:
        raise ValueError("takes more memory than there is") from error
    except ValueError as error:
        raise ValueError(_line(error)) from error
    # The loaders raise whatever a broken file makes them trip over.
    except Exception as error:
        raise ValueError(f"is broken ({_line(error)})") from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def _joined(parts: list[Part], up: str, colours: bool) -> Mesh:
    """One normalised mesh, parts with the same texture next to each other."""
    groups: dict[int, list[Part]] = {}
    for part in parts:
        groups.setdefault(id(part.texture), []).append(part)
    parts = [part for group in groups.values() for part in group]
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = np.concatenate(
        [part.faces + start for part, start in zip(parts, starts[:-1], strict=True)]
    )
    used = np.zeros(starts[-1], bool)
    used[faces] = True
    vertices = np.concatenate([part.vertices for part in parts])[used]
    if not used.all():
        faces = (np.cumsum(used) - 1)[faces]
    mesh = Mesh(_normalised(vertices, up), faces.astype(np.int32))
    if not colours:
        return mesh
    textures = [
        (sum(len(part.faces) for part in group), group[0].texture)
        for group in groups.values()
    ]
    return PaintedMesh(
        mesh.vertices,
        mesh.faces,
        (np.concatenate([p.colours for p in parts])[used] * WHITE)
        .round()
        .astype(np.uint8),
        np.concatenate([part.uv for part in parts])[used].astype(np.float32),
        tuple((count, texture and texture.colours) for count, texture in textures),
        tuple(texture.wrap if texture else REPEAT for _, texture in textures),
    )


def _normalised(
    vertices: Float[np.ndarray, "n 3"], up: str
) -> Float[np.ndarray, "n 3"]:
    """Turned z-up and moved into [-0.5, 0.5]^3, float32."""
    if not np.isfinite(vertices).all():
        raise ValueError("has vertices that are not finite")
    if up == "y":
        x, y, z = vertices.T
        vertices = np.stack([x, -z, y], 1)
    low, high = vertices.min(0), vertices.max(0)
    size = (high - low).max()
    if not 0 < size < np.inf:
        raise ValueError(f"has no size: its longest side is {size}")
    return ((vertices - (low + high) / 2) / size).astype(np.float32)
