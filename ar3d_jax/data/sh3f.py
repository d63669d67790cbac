"""Sweet Home 3D furniture files (`.sh3f`): zip, Java properties, OBJ with materials.

`read_pieces` lists what a file holds; `load_surface` reads one piece's mesh, turns it
z-up, normalises it and colours each face. What is done with the pieces is `catalog.py`.
"""

import dataclasses
import re
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from ar3d_jax.errors import UserError
from ar3d_jax.render import obj
from ar3d_jax.render.parts import Notes, Part
from ar3d_jax.render.pictures import lookup

PROPERTIES = "PluginFurnitureCatalog.properties"
MAX_FACES = 5_000_000  # of a model; the largest has a tenth of it
UNSAID = 0.7  # grey of faces without a material
TEXTURE_SIDE = 32  # pixels to which a texture is averaged
# Tags that name a source, or what the publisher's editor can do with the piece.
NO_KEYWORDS = ("Blend Swap", "SCPTS", "Adjustable")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One entry of a furniture file.

    Attributes:
        id: `<catalog>-<model>` in lower case, e.g. `scopia-bed1`.
        name: Its English name as published.
        tags: Published keywords that say something about the thing.
        category: Published category, e.g. `Living room`.
        creator: Author of the model.
        licence: Licence of the file that holds it.
        source: File name of the `.sh3f`.
        model: Path of the OBJ inside the zip.
        rotation: The publisher's correction of the model: text of 3x3 numbers, row by
            row, y-up.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    category: str
    creator: str
    licence: str
    source: str
    model: str
    rotation: str


@dataclasses.dataclass(frozen=True)
class Surface:
    """A mesh: z-up, longest side 1, bounding box centred at 0, front towards -y.

    Attributes:
        vertices: float32 [n, 3].
        faces: int32 [m, 3].
        colours: float32 [m, 3], RGB in 0..1 per face.
        materials: Name per face, as an index into `material_names`.
        material_names: Names from the MTL file and its textures.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    materials: np.ndarray
    material_names: tuple[str, ...]


class Unusable(Exception):
    """Why a piece cannot be used; the reason goes into the report."""


def parse_properties(data: bytes) -> dict[str, str]:
    r"""Keys and values of a Java properties file: ISO-8859-1, escapes, joined lines."""
    logical, lines = "", []
    # Not splitlines: it would also split at letters such as 0x85.
    for line in re.split(r"\r\n|\r|\n", data.decode("iso-8859-1")):
        line = line.lstrip(" \t\f")
        if not logical and (not line or line[0] in "#!"):
            continue
        # An odd number of backslashes at the end joins the next line.
        if (len(line) - len(line.rstrip("\\"))) % 2:
            logical += line[:-1]
            continue
        lines.append(logical + line)
        logical = ""
    if logical:
        lines.append(logical)
    separator = re.compile(
        r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL
    )
    pairs = (separator.fullmatch(line) for line in lines)
    return {_unescape(p[1]): _unescape(p[2]) for p in pairs if p}


def _unescape(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 5:
            return chr(int(code[1:], 16))
        return {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(code, code)

    text = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", replace, text)
    # Characters beyond the basic plane are written as two surrogates.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def slug(text: str) -> str:
    """Lower-case letters and digits with single hyphens between them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_pieces(path: Path) -> list[Piece]:
    """The pieces of one `.sh3f` file, in its order.

    Raises:
        UserError: The file is not a zip with a furniture catalog inside.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            properties = parse_properties(archive.read(PROPERTIES))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(
            f"{path} is not a furniture catalog ({error}); "
            f"expected a zip that holds {PROPERTIES}"
        ) from error
    numbers = sorted(
        int(match[1]) for key in properties if (match := re.fullmatch(r"id#(\d+)", key))
    )
    return [_piece(properties, number, path.name) for number in numbers]


def _piece(properties: dict[str, str], number: int, source: str) -> Piece:
    def field(name: str, default: str = "") -> str:
        return properties.get(f"{name}#{number}", default).strip()

    tags = tuple(tag for part in field("tags").split(",") if (tag := part.strip()))
    return Piece(
        id=slug(field("id")),
        name=field("name"),
        tags=tuple(tag for tag in tags if tag not in NO_KEYWORDS),
        category=field("category"),
        creator=field("creator"),
        licence=" ".join(properties.get("license", "").split()),
        source=source,
        model=field("model").lstrip("/"),
        rotation=field("modelRotation", "1 0 0 0 1 0 0 0 1"),
    )


def load_surface(archive: zipfile.ZipFile, piece: Piece) -> Surface:
    """The piece's mesh with a colour per face.

    Raises:
        Unusable: It has no model, the model cannot be read, or it has no surface.
    """
    model = PurePosixPath(piece.model)
    if piece.model not in archive.namelist():
        raise Unusable(f"no file {piece.model or '(none named)'}")
    beside = [  # materials and pictures
        name
        for name in archive.namelist()
        if model.parent in PurePosixPath(name).parents
    ]
    with tempfile.TemporaryDirectory() as folder:
        try:
            archive.extractall(folder, beside)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise Unusable(f"damaged zip: {error}") from error
        try:
            parts = obj.read(
                Path(folder) / model, max_faces=MAX_FACES, colours=True, notes=Notes()
            )
        except Exception as error:  # any fault of a stranger's file: skip it
            reason = f"{type(error).__name__}: {error}"
            raise Unusable(f"unreadable OBJ: {reason}") from error
        if not parts:
            raise Unusable("no triangles")
        try:
            rotation = np.array([*map(float, piece.rotation.split())]).reshape(3, 3)
            return _surface(parts, rotation)
        except Unusable:
            raise
        except Exception as error:  # a texture that ends early, a rotation of 8 numbers
            raise Unusable(f"unusable: {type(error).__name__}: {error}") from error


def _surface(parts: list[Part], rotation: np.ndarray) -> Surface:
    counts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = np.concatenate(
        [part.faces + first for part, first in zip(parts, counts, strict=True)]
    )
    vertices = np.concatenate([part.vertices for part in parts]) @ rotation.T
    if not np.isfinite(vertices).all():
        raise Unusable("vertices are not finite")
    vertices = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1)
    sizes = [len(part.faces) for part in parts]
    # Points that no triangle uses would count in the bounding box.
    used, faces = np.unique(faces, return_inverse=True)
    return Surface(
        vertices=normalise(vertices[used]).astype(np.float32),
        faces=faces.reshape(-1, 3).astype(np.int32),
        colours=np.concatenate([*map(_face_colours, parts)]).astype(np.float32),
        materials=np.repeat(np.arange(len(parts)), sizes).astype(np.int32),
        material_names=tuple(part.name for part in parts),
    )


def normalise(vertices: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """The same points with their bounding box centred at 0 and its longest side 1.

    Raises:
        Unusable: The points have no extent.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    longest = (high - low).max()
    if not longest > 0:
        raise Unusable("no extent")
    return (vertices - (low + high) / 2) / longest


def _face_colours(part: Part) -> Float[np.ndarray, "m 3"]:
    """Of each face: its material's colour, or its texture's around its middle."""
    if part.texture is None and not part.name:
        return np.full((len(part.faces), 3), UNSAID)
    if part.texture is None:
        return part.colours[part.faces[:, 0]]
    image = Image.fromarray(part.texture.colours).resize((TEXTURE_SIDE, TEXTURE_SIDE))
    middle = part.uv[part.faces].astype(float).mean(axis=1)
    return lookup(np.asarray(image), middle, part.texture.wrap) / 255


def face_areas(
    vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]
) -> Float[np.ndarray, " m"]:
    """Area of each triangle."""
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
