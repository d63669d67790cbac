"""PLY, text or binary, to one part.

    http://paulbourke.net/dataformats/ply/

Properties have no fixed names. Read are places, faces and strips of triangles, colours
and alpha of vertices or faces, and places in the texture that a comment names; further
numbers of vertices and faces (normals, quality, curvature) mean neither shape nor
colour.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ar3d_jax.render.parts import (
    Notes,
    Part,
    check_corners,
    refuse,
    seen,
    strip,
    triangles,
    unit,
)
from ar3d_jax.render.pictures import Texture, open_texture

HEADER_BYTES = 1 << 16  # real ones have some hundred
KINDS = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
COLOURS = (
    ("red", "green", "blue", "alpha"),
    ("diffuse_red", "diffuse_green", "diffuse_blue", "diffuse_alpha"),
    ("r", "g", "b", "a"),
)
PLACES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))
CORNERS = ("vertex_indices", "vertex_index")
HARMLESS = {"edge", "camera"}  # elements that are no surface


class Property(NamedTuple):
    """A property: a number's type, and of a list also its length's."""

    name: str
    kind: str
    length: str | None


class Element(NamedTuple):
    """An element of a header: how many there are, and their properties."""

    name: str
    count: int
    properties: list[Property]


class Header(NamedTuple):
    """What stands above the data.

    Attributes:
        order: "" for text; "<" or ">", the order of bytes.
        elements: in the order of their data.
        textures: the names of pictures.
        start: at which byte the data begin.
    """

    order: str
    elements: list[Element]
    textures: list[str]
    start: int


def read(
    path: pathlib.Path, *, max_faces: int, colours: bool, notes: Notes
) -> list[Part]:
    """The triangles of a file.

    Raises:
        ValueError: more than `max_faces` faces, or broken.
        OSError: it cannot be read.
    """
    header = read_header(path)
    for element in header.elements:
        limit = max_faces if element.name == "face" else 3 * max_faces
        refuse(element.count, limit, f"{element.name} elements")
    data = _data(path, header)
    if "vertex" not in data:
        raise ValueError("is not PLY: no element vertex")
    for name in data.keys() - {"vertex", "face", "tristrips"} - HARMLESS:
        notes.add(f"has {name[:20]!r} elements, which are not read")
    if "f_dc_0" in data["vertex"]:
        raise ValueError("is Gaussian splats, which have no triangles; export a mesh")
    return _parts(data, header, path.parent, colours, notes)


def read_header(path: pathlib.Path) -> Header:
    """The header of a file.

    Raises:
        ValueError: it has none, or one with something unknown.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    end = re.search(rb"[\r\n]end_header[ \t]*(\r\n|\n|\r)?", text)
    if not text.startswith(b"ply") or not end:
        raise ValueError("is not PLY: no header from ply to end_header")
    order, elements, textures = None, [], []
    for line in text[: end.start()].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", form, "1.0"] if form in ORDERS:
                order = ORDERS[form]
            case ["element", name, count] if count.isdigit():
                elements.append(Element(name, int(count), []))
            case ["element", *_]:
                raise ValueError("is not PLY: an element without a count")
            case ["property", "list", length, kind, name] if (
                elements and length in KINDS and kind in KINDS
            ):
                elements[-1].properties.append(
                    Property(name, KINDS[kind], KINDS[length])
                )
            case ["property", kind, name] if elements and kind in KINDS:
                elements[-1].properties.append(Property(name, KINDS[kind], None))
            case ["comment", "TextureFile", *_]:
                textures.append(line.partition("TextureFile")[2].strip())
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"is not PLY: its header says {line[:60]!r}")
    if order is None:
        raise ValueError("is not PLY: its header names no format 1.0")
    return Header(order, elements, textures, end.end())


# --- The data -------------------------------------------------------------------------

# Numbers, one per row; or the lengths of lists, and the items of all lists.
Column = np.ndarray | tuple[np.ndarray, np.ndarray]
Columns = dict[str, Column]


def _data(path: pathlib.Path, header: Header) -> dict[str, Columns]:
    """By element and property: what the file has."""
    body = path.read_bytes()[header.start :]
    words = body.split() if not header.order else None
    place, found = 0, {}
    for element in header.elements:
        if words is not None:
            columns, place = _text_rows(element, words, place)
        else:
            columns, place = _equal_rows(element, body, place, header.order) or (
                _unequal_rows(element, body, place, header.order)
            )
        found[element.name] = columns
    return found


def _equal_rows(
    element: Element, body: bytes, place: int, order: str
) -> tuple[Columns, int] | None:
    """An element's columns and its end; None where its lists differ in length."""
    lengths, at, fields = {}, place, []
    for name, kind, length in element.properties:  # as the first row has them
        if length:
            own = np.dtype(order + length)
            fits = element.count and at + own.itemsize <= len(body)
            lengths[name] = int(np.frombuffer(body, own, 1, at)[0]) if fits else 0
            fields.append((f"length of {name}", own))
            at += own.itemsize
        shape = (lengths[name],) if length else ()
        fields.append((name, order + kind, shape))
        at += np.dtype(kind).itemsize * (lengths[name] if length else 1)
    row = np.dtype(fields)
    end = place + row.itemsize * element.count
    if end > len(body):
        return None
    rows = np.frombuffer(body, row, element.count, place)
    if any((rows[f"length of {name}"] != n).any() for name, n in lengths.items()):
        return None
    columns: Columns = {name: rows[name] for name, _, _ in element.properties}
    for name, n in lengths.items():
        columns[name] = np.full(element.count, n), rows[name].reshape(-1)
    return columns, end


def _unequal_rows(
    element: Element, body: bytes, place: int, order: str
) -> tuple[Columns, int]:
    """The same, row by row."""
    found: dict[str, list[np.ndarray]] = {p.name: [] for p in element.properties}
    for _ in range(element.count):
        for name, kind, length in element.properties:
            count = 1
            if length:
                own = np.dtype(order + length)
                count = int(_some(body, own, 1, place)[0])
                place += own.itemsize
            values = _some(body, np.dtype(order + kind), count, place)
            found[name].append(values)
            place += values.nbytes
    columns: Columns = {}
    for name, kind, length in element.properties:
        values = np.concatenate([np.zeros(0, kind), *found[name]])
        counts = np.array([len(some) for some in found[name]], np.int64)
        columns[name] = (counts, values) if length else values
    return columns, place


def _some(body: bytes, kind: np.dtype, count: int, place: int) -> np.ndarray:
    if count < 0 or place + count * kind.itemsize > len(body):
        raise ValueError("is cut off: it ends within its data")
    return np.frombuffer(body, kind, count, place)


def _text_rows(element: Element, words: list[bytes], place: int) -> tuple[Columns, int]:
    """The same of text, split into words."""
    found: dict[str, list[bytes]] = {p.name: [] for p in element.properties}
    counts: dict[str, list[int]] = {p.name: [] for p in element.properties}
    for _ in range(element.count):
        for name, _, length in element.properties:
            count = 1
            if length:
                if place >= len(words):
                    raise ValueError("is cut off: it ends within its data")
                count = int(words[place])
                place += 1
            counts[name].append(count)
            found[name] += words[place : place + count]
            place += count
    if place > len(words):
        raise ValueError("is cut off: it ends within its data")
    columns: Columns = {}
    for name, kind, length in element.properties:
        values = np.array([float(word) for word in found[name]]).astype(kind)
        columns[name] = (np.array(counts[name], int), values) if length else values
    return columns, place


# --- What the data mean ---------------------------------------------------------------


class Triangles(NamedTuple):
    """Triangles of all faces and strips.

    Attributes:
        vertices: [t, 3] indices of vertices.
        faces: [t] of which face each is a part; -1 for one of a strip.
        corners: [t, 3] which item of all faces' lists each corner is.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corners: np.ndarray


def _triangles(
    data: Mapping[str, Columns], points: Float[np.ndarray, "n 3"]
) -> Triangles:
    lengths, items = _list(data.get("face", {}), CORNERS)
    starts = lengths.cumsum() - lengths
    check_corners(items, len(points))
    found = [np.zeros((0, 3), np.int64)]
    for length in np.unique(lengths[lengths >= 3]):  # fewer corners have no area
        corners = starts[lengths == length][:, None] + np.arange(length)
        found.append(corners.ravel()[triangles(points, items[corners])])
    corners = np.concatenate(found)
    faces = np.searchsorted(starts, corners[:, 0], side="right") - 1
    strips = _strips(*_list(data.get("tristrips", {}), CORNERS))
    check_corners(strips, len(points))
    none = np.full(len(strips), -1)
    return Triangles(
        np.concatenate([items[corners], strips]),
        np.concatenate([faces, none]),
        np.concatenate([corners, np.full((len(strips), 3), -1)]),
    )


def _list(columns: Columns, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and items of the list that has one of these names; else none."""
    for name in names:
        if isinstance(column := columns.get(name), tuple):
            return column[0], column[1].astype(np.int64)
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _strips(
    lengths: Int[np.ndarray, " m"], items: Int[np.ndarray, " k"]
) -> Int[np.ndarray, "t 3"]:
    """Triangles of strips; -1 ends one and starts the next."""
    found = [np.zeros((0, 3), np.int64)]
    for row in np.split(items, lengths.cumsum()[:-1]):
        for run in np.split(row, np.flatnonzero(row == -1)):
            found.append(strip(run[run != -1]))
    return np.concatenate(found)


def _columns(columns: Columns, names: Sequence[str]) -> np.ndarray | None:
    """The numbers with these names, [n, len(names)]; None unless all are there."""
    found = [columns.get(name) for name in names]
    numbers = [column for column in found if isinstance(column, np.ndarray)]
    return np.stack(numbers, 1) if len(numbers) == len(names) else None


def _colours(columns: Columns) -> Float[np.ndarray, "n 4"] | None:
    """Red, green, blue and alpha, 0..1; None where there is no colour."""
    for names in COLOURS:
        rgb = _columns(columns, names[:3])
        if rgb is not None:
            alpha = _columns(columns, names[3:])
            opaque = np.ones((len(rgb), 1))
            return np.hstack([unit(rgb), opaque if alpha is None else unit(alpha)])
    return None


def _parts(
    data: Mapping[str, Columns],
    header: Header,
    folder: pathlib.Path,
    colours: bool,
    notes: Notes,
) -> list[Part]:
    """One part, or with textures one per texture."""
    vertex, face = data["vertex"], data.get("face", {})
    points = _columns(vertex, ("x", "y", "z"))
    if points is None:
        raise ValueError("is not PLY: vertices without x, y, z")
    points = points.astype(np.float64)
    found = _triangles(data, points)
    rgba = _colours(vertex)
    rgba = np.ones((len(points), 4)) if rgba is None else rgba
    names = header.textures if colours else []
    uv, wedges = _places(vertex), _wedges(face, found)
    faces, own = found.vertices, _colours(face)
    if own is not None or (names and wedges is not None):  # each corner for itself
        at, of = faces.ravel(), np.repeat(found.faces, 3)
        points, rgba, faces = points[at], rgba[at], np.arange(len(at)).reshape(-1, 3)
        uv = wedges if wedges is not None else None if uv is None else uv[at]
        if own is not None:
            rgba = np.where((of >= 0)[:, None], own[of], rgba)
    if uv is None:
        uv, names = np.zeros((len(points), 2)), []
    uv = np.nan_to_num(np.stack([uv[:, 0], 1 - uv[:, 1]], 1)).astype(np.float32)
    number = face.get("texnumber")
    parts = []
    for index, name in enumerate(names or [""]):
        mine = faces
        if isinstance(number, np.ndarray) and names:
            mine = faces[np.where(found.faces >= 0, number[found.faces], 0) == index]
        elif index:  # further textures, which no face names
            break
        texture = _texture(folder / name, notes) if name else None
        shown = seen(mine, rgba[:, 3], uv, None, notes=notes)
        parts.append(Part(points, shown, rgba[:, :3], uv, texture))
    return parts


def _places(vertex: Columns) -> np.ndarray | None:
    """Each vertex's place in the texture, [n, 2], v upwards; None without any."""
    pairs = (_columns(vertex, names) for names in PLACES)
    return next((pair for pair in pairs if pair is not None), None)


def _wedges(face: Columns, found: Triangles) -> np.ndarray | None:
    """Likewise of each triangle's corners, where faces name them."""
    column = face.get("texcoord")
    if not isinstance(column, tuple) or not len(column[1]):
        return None
    if len(column[1]) != 2 * len(_list(face, CORNERS)[1]):
        raise ValueError("is not PLY: texcoord has not two numbers per corner")
    corner = found.corners.ravel()
    return np.where((corner >= 0)[:, None], column[1].reshape(-1, 2)[corner], 0.0)


def _texture(path: pathlib.Path, notes: Notes) -> Texture | None:
    try:
        image = open_texture(path.read_bytes())
    except OSError:
        notes.add(f"{path.name} cannot be read; drawn without this texture")
        return None
    if image is None:
        notes.add(f"{path.name} is no known picture; drawn without this texture")
    return image and Texture(image)
