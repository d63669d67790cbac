"""Sweet Home 3D furniture files (`.sh3f`): zip, Java properties, OBJ with materials.

`read_pieces` lists what a file holds; `load_surface` reads one piece's mesh, turns it
z-up, normalises it and colours each face. What is done with the pieces is `catalog.py`.
"""

import dataclasses
import io
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import trimesh
from jaxtyping import Float, Int
from trimesh.resolvers import Resolver
from trimesh.visual.material import SimpleMaterial

from ar3d_jax.errors import UserError

PROPERTIES = "PluginFurnitureCatalog.properties"
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


class _ZipResolver(Resolver):
    """Materials and textures that lie beside the OBJ inside the zip."""

    def __init__(self, archive: zipfile.ZipFile, folder: PurePosixPath) -> None:
        self.archive, self.folder = archive, folder

    def get(self, name: str) -> bytes:
        return self.archive.read(str(self.folder / name.strip().removeprefix("./")))

    def write(self, name: str, data: bytes) -> None:
        raise OSError("furniture catalogs are only read")

    def keys(self) -> list[str]:
        return self.archive.namelist()

    def namespaced(self, namespace: str) -> "_ZipResolver":
        return _ZipResolver(self.archive, self.folder / namespace)


def load_surface(archive: zipfile.ZipFile, piece: Piece) -> Surface:
    """The piece's mesh with a colour per face.

    Raises:
        Unusable: It has no model, the model cannot be read, or it has no surface.
    """
    try:
        data = archive.read(piece.model)
    except KeyError as error:
        raise Unusable(f"no file {piece.model or '(none named)'}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Unusable(f"damaged zip: {error}") from error
    resolver = _ZipResolver(archive, PurePosixPath(piece.model).parent)
    try:
        scene = trimesh.load_scene(
            io.BytesIO(data), file_type="obj", resolver=resolver, process=False
        )
    except Exception as error:  # any fault of a stranger's file is a reason to skip it
        raise Unusable(f"unreadable OBJ: {type(error).__name__}: {error}") from error
    parts = [p for p in scene.geometry.values() if isinstance(p, trimesh.Trimesh)]
    meshes = [mesh for mesh in parts if len(mesh.faces) and len(mesh.vertices)]
    if not meshes:
        raise Unusable("no triangles")
    try:
        rotation = np.array([*map(float, piece.rotation.split())]).reshape(3, 3)
        return _surface(meshes, rotation)
    except Unusable:
        raise
    except Exception as error:  # a texture that ends early, a rotation of 8 numbers
        raise Unusable(f"unusable: {type(error).__name__}: {error}") from error


def _surface(meshes: list[trimesh.Trimesh], rotation: np.ndarray) -> Surface:
    counts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    faces = np.concatenate(
        [mesh.faces + first for mesh, first in zip(meshes, counts, strict=True)]
    )
    vertices = np.concatenate([mesh.vertices for mesh in meshes]) @ rotation.T
    if not np.isfinite(vertices).all():
        raise Unusable("vertices are not finite")
    vertices = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1)
    colours, names = zip(*map(_appearance, meshes), strict=True)
    sizes = [len(mesh.faces) for mesh in meshes]
    # Points that no triangle uses would count in the bounding box.
    used, faces = np.unique(faces, return_inverse=True)
    return Surface(
        vertices=normalise(vertices[used]).astype(np.float32),
        faces=faces.reshape(-1, 3).astype(np.int32),
        colours=np.concatenate(colours).astype(np.float32),
        materials=np.repeat(np.arange(len(meshes)), sizes).astype(np.int32),
        material_names=names,
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


def _appearance(mesh: trimesh.Trimesh) -> tuple[np.ndarray, str]:
    """Colour per face, and the material's name with its texture's."""
    material = getattr(mesh.visual, "material", None)
    if not isinstance(material, SimpleMaterial):
        return np.full((len(mesh.faces), 3), 0.7), ""
    image = material.image
    name = f"{material.name or ''} {' '.join(material.kwargs.get('map_kd', []))}"
    uv = getattr(mesh.visual, "uv", None)
    if image is None or uv is None or len(uv) != len(mesh.vertices):
        diffuse = np.asarray(material.diffuse[:3], float) / 255
        return np.tile(diffuse, (len(mesh.faces), 1)), name
    pixels = np.asarray(image.convert("RGB").resize((32, 32)), float) / 255
    return _texture_colours(pixels, uv[mesh.faces].mean(axis=1)), name


def _texture_colours(
    pixels: Float[np.ndarray, "row column 3"], uv: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m 3"]:
    rows, columns = pixels.shape[:2]
    uv = np.nan_to_num(uv) % 1
    row = np.minimum(((1 - uv[:, 1]) * rows).astype(int), rows - 1)
    return pixels[row, np.minimum((uv[:, 0] * columns).astype(int), columns - 1)]


def face_areas(
    vertices: Float[np.ndarray, "n 3"], faces: Int[np.ndarray, "m 3"]
) -> Float[np.ndarray, " m"]:
    """Area of each triangle."""
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
