"""Wavefront OBJ and MTL to parts.

    http://paulbourke.net/dataformats/obj/  and  .../mtl/

Text of any age and program: with a byte order mark, indented, with comments behind the
data, lines joined by backslashes, names in UTF-8 or Latin-1. A texture replaces Kd:
writers put black, grey or white beside it, though MTL says that they multiply.
Free-form surfaces are refused. Passed over on purpose: lines and points, normals (but
vertices that a file splits by them stay split), groups, and of materials all but Kd,
map_Kd, d, Tr and map_d.
"""

import io
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ar3d_jax.render import mtl
from ar3d_jax.render.mtl import rest, text_of, uncommented
from ar3d_jax.render.parts import (
    Notes,
    Part,
    check_corners,
    refuse,
    seen,
    triangles,
)
from ar3d_jax.render.pictures import REPEAT

CHUNK = 1 << 24  # bytes that are counted together
# Statements that change neither shape nor colour, and those of free-form surfaces.
HARMLESS = {"g", "o", "s", "vn", "vp", "mg", "bevel", "c_interp", "d_interp", "lod"}
FREE_FORM = {"cstype", "deg", "bmat", "step", "curv", "curv2", "surf", "parm", "trim"}
FREE_FORM |= {"hole", "scrv", "sp", "end", "con", "ctech", "stech"}


def read(
    path: pathlib.Path, *, max_faces: int, colours: bool, notes: Notes
) -> list[Part]:
    """The triangles of a file, a part per material.

    Raises:
        ValueError: more than `max_faces` faces, broken, UTF-16, or a free-form surface.
        OSError: it cannot be read.
    """
    refuse(count_faces(path), max_faces, "faces")
    content = _parse(text_of(path.read_bytes()), notes)
    materials = mtl.read_materials(content.libraries, path.parent, notes)
    parts = []
    for name, faces in content.faces.items():
        found = materials.get(name) or materials.get(uncommented(name))
        if name and found is None and content.libraries:
            notes.add(f"has no material {name!r}; drawn white")
        for polygons in faces:
            part = _part(content, polygons, found or mtl.Material(), colours, notes)
            if part is not None:
                part.name = f"{name} {part.name}".strip()
                parts.append(part)
    return parts


def count_faces(path: pathlib.Path) -> int:
    """Lines that start with f, without reading the file as a whole.

    Raises:
        OSError: it cannot be read.
    """
    faces, before = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            text = before + chunk
            faces += text.count(b"\nf ") + text.count(b"\nf\t")
            before = text[-2:]
    return faces


# --- The text -------------------------------------------------------------------------


class Content(NamedTuple):
    """What an OBJ file says.

    Attributes:
        vertices: [n, 3] float64.
        colours: [n, 3] float64 in 0..1; white where it says nothing.
        uv: [t, 2] float64, v upwards.
        faces: by material name, arrays [m, k, 3] of m polygons with k corners, each
            with its vertex, uv and normal; -1: none.
        libraries: the names of mtllib lines.
    """

    vertices: np.ndarray
    colours: np.ndarray
    uv: np.ndarray
    faces: dict[str, list[np.ndarray]]
    libraries: list[str]


class _Faces(NamedTuple):
    """Face lines that are read together: of one material, length and form.

    Lists of words and numbers, not of lines: millions of small lists are slow to make.
    """

    words: list[str]
    above: list[int]  # of each line: how many vertices, uvs and normals stand above it


def _parse(text: str, notes: Notes) -> Content:
    vertices: list[str] = []
    lengths: list[int] = []  # of vertex lines
    uvs: list[str] = []
    normals, material = 0, ""
    groups: dict[tuple[str, int, int], _Faces] = {}
    libraries: list[str] = []
    for line in io.StringIO(text):
        words = (uncommented(line) if "#" in line else line).split()
        if not words:
            continue
        word = words[0]
        if word == "v":
            vertices += words[1:]
            lengths.append(len(words) - 1)
        elif word == "vt":
            uvs += words[1:3] if len(words) > 2 else (words[1], "0")  # "vt u": a line
        elif word == "f" or word == "fo":
            key = (material, len(words) - 1, words[-1].count("/"))
            group = groups.get(key) or groups.setdefault(key, _Faces([], []))
            group.words.extend(words[1:])
            group.above.extend((len(lengths), len(uvs) // 2, normals))
        elif word == "vn":
            normals += 1
        elif word == "usemtl":
            material = rest(line)
        elif word == "mtllib":
            libraries.append(rest(line))
        elif word == "l" or word == "p":
            notes.add("has points or lines; only faces are drawn")
        elif word in FREE_FORM:
            raise ValueError(
                f"has free-form surfaces ({word}), which are not read; convert them "
                "to polygons"
            )
        elif word not in HARMLESS:
            notes.add(f"has {word[:20]!r} lines, which are not read")
    places, colours = _vertices(vertices, np.array(lengths, int))
    faces: dict[str, list[np.ndarray]] = {}
    for (name, length, _), group in groups.items():
        if length >= 3:  # with two corners it has no area
            corners = _corners(group, length)
            check_corners(corners[..., 0], len(places))
            uv = corners[..., 1]
            check_corners(uv[uv != -1], len(uvs) // 2)
            faces.setdefault(name, []).append(corners)
    uv = np.array([*map(float, uvs)]).reshape(-1, 2)
    return Content(places, colours, uv, faces, libraries)


def _vertices(
    words: list[str], lengths: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Places and colours: v x y z [w], or v x y z r g b [a], 0..1 or 0..255.

    Args:
        words: of all lines, one behind the other.
        lengths: how many there are of each line.
    """
    for length in np.unique(lengths):
        if length not in (3, 4, 6, 7):
            raise ValueError(f"has a vertex of {length} numbers; expected x y z")
    numbers = np.array([*map(float, words)])
    starts = (lengths.cumsum() - lengths)[:, None] + np.arange(3)
    places, colours = numbers[starts], np.ones((len(lengths), 3))
    painted = lengths >= 6
    colours[painted] = numbers[starts[painted] + 3]
    if colours.max(initial=0.0) > 1:
        colours[painted] /= 255
    return places, np.nan_to_num(np.clip(colours, 0.0, 1.0))


def _corners(group: _Faces, length: int) -> Int[np.ndarray, "m k 3"]:
    """Vertex, uv and normal of each corner, from 0; -1 where there is none.

    A number below 0 counts back from what stands above the line.
    """
    words = group.words
    first = words[0]
    kinds = [0, 2] if "//" in first else [*range(first.count("/") + 1)]
    text = " ".join(words)
    given = np.zeros((len(words), 3), np.int64)
    alike = text.count("/") == first.count("/") * len(words)
    alike &= text.count("//") == ("//" in first) * len(words)
    flat = text.replace("/", " ").split() if alike else []
    if len(flat) == len(kinds) * len(words):
        given[:, kinds] = np.array([*map(int, flat)]).reshape(-1, len(kinds))
    else:  # 1/2 beside 3//4, or 5/ with nothing behind
        for row, word in enumerate(words):
            for kind, number in enumerate(word.split("/")[:3]):
                given[row, kind] = int(number or 0)
    given = given.reshape(-1, length, 3)
    above = np.array(group.above).reshape(-1, 1, 3)
    corners = np.where(given < 0, above + given, given - 1)
    if (corners[given < 0] < 0).any() or (given[..., 0] == 0).any():
        raise ValueError("has a face with a vertex that does not exist")
    return corners


# --- Parts ----------------------------------------------------------------------------


def _part(
    content: Content,
    polygons: Int[np.ndarray, "m k 3"],
    material: mtl.Material,
    colours: bool,
    notes: Notes,
) -> Part | None:
    """The polygons as triangles, in their material; None where nothing is seen."""
    corners = polygons.reshape(-1, 3)
    faces = triangles(content.vertices, polygons[..., 0])
    picture, cover = material.picture if colours else None, material.cover
    if (picture or cover) and (corners[:, 1] < 0).any():
        notes.add("has a texture on faces without places for it; drawn without it")
        picture = cover = None
    # A vertex is what differs in place, in its place in a texture, or in its normal.
    wanted = corners if picture or cover else corners * [1, 0, 1]
    base = wanted.max(0) + 2
    code = (wanted[:, 0] * base[1] + wanted[:, 1] + 1) * base[2] + wanted[:, 2] + 1
    _, first, row = np.unique(code, return_index=True, return_inverse=True)
    chosen, faces = corners[first], row.ravel()[faces]

    def places(on: mtl.Map | None) -> np.ndarray:
        if on is None:
            return np.zeros((len(chosen), 2), np.float32)
        return on.places(content.uv[chosen[:, 1]])

    faces = seen(
        faces,
        np.full(len(chosen), material.alpha),
        places(cover),
        cover.texture.cover if cover else None,
        wrap=cover.texture.wrap if cover else REPEAT,
        notes=notes,
    )
    if not len(faces):
        return None
    own = content.colours[chosen[:, 0]]
    return Part(
        content.vertices[chosen[:, 0]],
        faces,
        own if picture else own * material.colour,
        places(picture),
        picture.texture if picture else None,
        picture.name if picture else "",
    )
