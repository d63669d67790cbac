"""Mesh files of any system to one mesh like the codec's: z up, centred, side 1.

GLB, glTF, OBJ and PLY, through trimesh. What is too large is refused before that, by
`face_counts.py`; `codec/surface.py` writes our own files; `renderer.py` draws.

Normalised as TRELLIS normalises its data: the middle of the bounding box goes to the
origin, the longest side becomes 1. Vertices that no triangle uses do not count.

Colours are the file's own numbers, taken for sRGB and changed only by shading:
the base colour texture, times base colour factor, times vertex colour, as glTF says
(its factors are linear light by the letter; most writers put sRGB there). In OBJ a
texture replaces Kd. Not read: transparency, texture wrapping other than repeat, texture
transforms, a second uv set, all other maps. A texture that is missing or of an unknown
kind leaves its part as if it had none.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float
from PIL import Image
from trimesh.exchange import gltf
from trimesh.resolvers import FilePathResolver
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from ar3d_jax.codec.surface import Mesh
from ar3d_jax.render.face_counts import refuse_large

TEXTURE_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte as RGB
# Longest side of a texture that is kept; our choice: twice a picture of 512 pixels.
TEXTURE_SIDE = 1024
WHITE = 255


@dataclasses.dataclass(frozen=True)
class PaintedMesh(Mesh):
    """A mesh with colours: at each vertex, times a texture where there is one.

    Attributes:
        colours: [n, 3] uint8 sRGB; white where the file says nothing.
        uv: [n, 2] float32; (0, 0) is the first corner of a texture's first row.
        textures: (m, picture) in the order of the faces: the next m have this picture,
            [height, width, 3] uint8, or None.
    """

    colours: np.ndarray
    uv: np.ndarray
    textures: tuple[tuple[int, np.ndarray | None], ...]


@dataclasses.dataclass
class _Part:
    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    uv: np.ndarray
    texture: Image.Image | None


def load(
    path: pathlib.Path | str,
    *,
    up: str,
    max_faces: int,
    colours: bool = False,
) -> Mesh:
    """The mesh of a file, all its parts in their places; with `colours` a PaintedMesh.

    `up` names the file's up axis; "y", glTF's, undoes `surface.to_glb`. Vertices stay
    as the file has them: split ones are not joined, and a part with a colour per face
    gets three vertices for each.

    Raises:
        ValueError: the file cannot be read, is broken, has no triangles, more than
            `max_faces`, no size, or vertices that are not finite; one line without the
            file's name.
    """
    path = pathlib.Path(path)
    try:
        refuse_large(path, max_faces)
        with np.errstate(all="ignore"):  # numbers that are none are found at the end
            parts = _parts(path, colours)
        faces = sum(len(part.faces) for part in parts)
        if not faces:
            raise ValueError("has no triangles")
        if faces > max_faces:
            raise ValueError(
                f"has {faces:,} triangles; at most {max_faces:,} are drawn"
            )
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


def _parts(path: pathlib.Path, colours: bool) -> list[_Part]:
    """The triangles of every node of the scene, moved to their places."""
    with _pictures_of_any_size():
        scene = _scene(path, colours)
    parts = []
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
            continue
        part = _painted(geometry) if colours else _plain(geometry)
        if part.faces.min() < 0 or part.faces.max() >= len(part.vertices):
            raise ValueError("has a face with a vertex that does not exist")
        part.vertices = part.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        if np.linalg.det(matrix[:3, :3]) < 0:  # a mirror turns the inside out
            part.faces = part.faces[:, ::-1]
        parts.append(part)
    return parts


def _scene(path: pathlib.Path, colours: bool) -> trimesh.Scene:
    kind, resolver = path.suffix.lower()[1:], FilePathResolver(str(path))
    options: dict[str, Any] = {"resolver": resolver, "skip_materials": not colours}
    if kind == "obj":  # trimesh would want to guess an encoding other than UTF-8
        with path.open(encoding="utf-8", errors="replace") as file:
            return trimesh.load_scene(file, file_type=kind, process=False, **options)
    if kind == "ply":
        try:
            return trimesh.load_scene(path, process=False, **options)
        except ValueError as error:
            if "unexpected length" not in str(error):
                raise
            raise ValueError(
                "is cut off, or mixes polygons of several sizes"
            ) from error
    with path.open("rb") as file:
        loader = gltf.load_glb if kind == "glb" else gltf.load_gltf
        content = loader(file, **options)
    for part in content["geometry"].values():
        if "vertex_colors" in part:  # trimesh would cut 16 bits to 8
            part["vertex_colors"] = _bytes(_unit(part["vertex_colors"]))
    return trimesh.load_scene(content)


@contextlib.contextmanager
def _pictures_of_any_size() -> Iterator[None]:
    """Lets trimesh open, not decode, any picture: `_picture` refuses large ones.

    Otherwise Pillow warns of some and refuses others, which trimesh then leaves out.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _plain(geometry: trimesh.Trimesh) -> _Part:
    count = len(geometry.vertices)
    return _Part(
        np.asarray(geometry.vertices, np.float64),
        np.asarray(geometry.faces),
        np.full((count, 3), WHITE, np.uint8),
        np.zeros((count, 2), np.float32),
        None,
    )


def _painted(geometry: trimesh.Trimesh) -> _Part:
    """The part with its colours, vertices split where a colour belongs to a face."""
    part = _plain(geometry)
    visual: Any = geometry.visual
    if visual.kind == "vertex":
        part.colours = np.asarray(visual.vertex_colors)[:, :3]
    elif visual.kind == "face":
        part.vertices = part.vertices[part.faces].reshape(-1, 3)
        part.faces = np.arange(len(part.vertices)).reshape(-1, 3)
        part.colours = np.repeat(np.asarray(visual.face_colors)[:, :3], 3, axis=0)
        part.uv = np.zeros((len(part.vertices), 2), np.float32)
    elif visual.kind == "texture":
        factor, part.texture = _base_colour(visual.material)
        own = visual.vertex_attributes.get("color")
        if own is not None and len(own) == len(part.vertices):
            factor = factor * _unit(own)[:, :3]
        part.colours = np.broadcast_to(_bytes(factor), (len(part.vertices), 3))
        uv = None if visual.uv is None else np.asarray(visual.uv, np.float32)
        if uv is None or uv.shape != (len(part.vertices), 2):
            part.texture = None
        else:  # trimesh's v runs upwards
            part.uv = np.nan_to_num(np.stack([uv[:, 0], 1 - uv[:, 1]], 1))
    return part


def _unit(values: Any) -> Float[np.ndarray, "n c"]:
    """Colours as 0..1, whatever numbers the file has."""
    values = np.asarray(values)
    scale = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    return np.nan_to_num(np.clip(values / scale, 0.0, 1.0))


def _bytes(unit: np.ndarray) -> np.ndarray:
    return (unit * WHITE).round().astype(np.uint8)


def _base_colour(material: Any) -> tuple[Float[np.ndarray, "3"], Image.Image | None]:
    """Factor and texture of a material; (1, 1, 1) and None where it has none."""
    white = np.ones(3)
    if isinstance(material, PBRMaterial):
        factor = material.baseColorFactor
        texture = material.baseColorTexture
        return white if factor is None else _unit(factor[None])[0, :3], texture
    if isinstance(material, SimpleMaterial):
        own = "kd" in material.kwargs and material.image is None
        return _unit(material.diffuse[None])[0, :3] if own else white, material.image
    return white, None


def _picture(texture: Image.Image | None) -> np.ndarray | None:
    if texture is None:
        return None
    width, height = texture.size
    if width * height > TEXTURE_PIXELS:
        raise ValueError(
            f"has a texture of {width} x {height} pixels; at most "
            f"{TEXTURE_PIXELS:,} pixels are read"
        )
    texture = texture.convert("RGB")
    factor = -(-max(width, height) // TEXTURE_SIDE)
    return np.asarray(texture.reduce(factor) if factor > 1 else texture)


def _joined(parts: list[_Part], up: str, colours: bool) -> Mesh:
    """One normalised mesh, parts with the same texture next to each other."""
    groups: dict[int, list[_Part]] = {}
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
        np.concatenate([part.colours for part in parts])[used],
        np.concatenate([part.uv for part in parts])[used].astype(np.float32),
        tuple((count, _picture(image)) for count, image in textures),
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
