"""glTF 2.0 and GLB to parts, by the specification's rules.

Whatever changes where a triangle is or which colour it has is applied, or refused by
name (`gltf_file.py` has the lists). Passed over on purpose: animations (a mesh is drawn
as it stands before they start), cameras and lights, normals, and of a material all but
its base colour and alpha. docs/meshes.md is that list for users, and says which
libraries we tried in place of this file.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ar3d_jax.render.gltf_file import File, extension, known
from ar3d_jax.render.parts import (
    Notes,
    Part,
    check_corners,
    refuse,
    seen,
    strip,
    unit,
)
from ar3d_jax.render.pictures import REPEAT, Texture, Wrap, open_texture

TRIANGLES, STRIP, FAN = 4, 5, 6  # modes of primitives; below are points and lines
# Numbers per triangle that all arrays of a file may hold together: its corners' places,
# normals, colours, joints and so on are at most 75; the rest is for morph targets.
NUMBERS_PER_FACE = 100
ATTRIBUTES = re.compile(
    r"POSITION|NORMAL|TANGENT|(TEXCOORD|COLOR|JOINTS|WEIGHTS)_\d+|_.*"
)
WRAPS: dict[int, Wrap] = {10497: "repeat", 33648: "mirror", 33071: "clamp"}


def read(
    path: pathlib.Path, *, max_faces: int, colours: bool, notes: Notes
) -> list[Part]:
    """The triangles of all nodes of the scene, at their places.

    The JSON is counted before any array is read: loading takes gigabytes and minutes
    for a file that would be refused afterwards.

    Raises:
        ValueError: too large, broken, or with something that is not read.
        OSError: a file cannot be read.
    """
    file = File(path)
    refuse(file.numbers, NUMBERS_PER_FACE * max_faces, "numbers")
    scene = Scene(file, notes)
    faces = sum(
        scene.copies(node) * _triangle_count(file, primitive)
        for node in scene.nodes
        for primitive in scene.primitives(node)
    )
    refuse(faces, max_faces, "faces")
    materials = Materials(file, colours, notes)
    return [
        part
        for node in scene.nodes
        for primitive in scene.primitives(node)
        for part in _parts(file, scene, materials, node, primitive)
    ]


def _triangle_count(file: File, primitive: Mapping[str, Any]) -> int:
    index = primitive.get("indices", primitive["attributes"]["POSITION"])
    count = file.item("accessor", index)["count"]
    if primitive.get("mode", TRIANGLES) == TRIANGLES:
        return count // 3
    return max(count - 2, 0)


# --- Nodes ----------------------------------------------------------------------------


class Scene:
    """Which nodes of a file show a mesh, and where."""

    def __init__(self, file: File, notes: Notes) -> None:
        """Checks that the nodes are trees.

        Raises:
            ValueError: they are not.
        """
        self.file, self.notes = file, notes
        nodes = file.tree.get("nodes", [])
        children = [child for node in nodes for child in node.get("children", [])]
        below = set(children)
        if len(children) != len(below):
            raise ValueError("is not glTF: a node has two parents")
        self._tops = [index for index in range(len(nodes)) if index not in below]
        scenes = file.tree.get("scenes", [])
        self._roots = self._tops  # of a file without scenes
        if scenes:
            if len(scenes) > 1 and "scene" not in file.tree:
                notes.add(f"has {len(scenes)} scenes; the first one is drawn")
            scene = file.item("scene", file.tree.get("scene", 0))
            self._roots = scene.get("nodes", [])
        if below & set(self._roots):
            raise ValueError("is not glTF: a root of the scene has a parent")

    @cached_property
    def nodes(self) -> list[int]:
        """Those that show a mesh, in the order of the scene."""
        found, waiting = [], list(reversed(self._roots))
        while waiting:
            index = waiting.pop()
            node = self.file.item("node", index)
            if not (extension(node, "KHR_node_visibility") or {}).get("visible", True):
                continue
            waiting += reversed(node.get("children", []))
            if "mesh" in node:
                found.append(index)
        return found

    @cached_property
    def places(self) -> dict[int, Float[np.ndarray, "4 4"]]:
        """The global matrix of every node: joints may stand outside of the scene."""
        found: dict[int, np.ndarray] = {}
        waiting = [(index, np.eye(4)) for index in self._tops]
        while waiting:
            index, parent = waiting.pop()
            node = self.file.item("node", index)
            found[index] = parent @ _local(node)
            waiting += [(child, found[index]) for child in node.get("children", [])]
        return found

    def primitives(self, index: int) -> Iterator[dict[str, Any]]:
        """The primitives with triangles of a node's mesh."""
        mesh = self.file.item("mesh", self.file.item("node", index)["mesh"])
        for thing in mesh["primitives"]:
            primitive = known(thing, "primitive")
            mode = primitive.get("mode", TRIANGLES)
            if mode not in range(FAN + 1):
                raise ValueError(f"is not glTF: a primitive has mode {mode}")
            if mode < TRIANGLES:
                self.notes.add("has points or lines; only triangles are drawn")
            else:
                yield primitive

    def _instances(self, index: int) -> dict[str, int]:
        """Accessors of EXT_mesh_gpu_instancing: translation, rotation, scale."""
        node = self.file.item("node", index)
        used = extension(node, "EXT_mesh_gpu_instancing") or {}
        accessors = {
            name.lower(): accessor
            for name, accessor in used.get("attributes", {}).items()
            if not name.startswith("_")
        }
        if strange := sorted(accessors.keys() - {"translation", "rotation", "scale"}):
            raise ValueError(f"has instances with {strange[0]!r}, which is not read")
        if accessors and "skin" in node:
            raise ValueError("has instances with a skin; bake them before export")
        return accessors

    def copies(self, index: int) -> int:
        """How often a node shows its mesh."""
        accessors = self._instances(index).values()
        counts = {self.file.item("accessor", number)["count"] for number in accessors}
        if len(counts) > 1:
            raise ValueError("is not glTF: instances with unequal numbers of places")
        return counts.pop() if counts else 1

    def matrices(self, index: int) -> Float[np.ndarray, "i 4 4"]:
        """The places of a node's mesh: the node's own, or one per instance."""
        accessors = self._instances(index)
        if not accessors:
            return self.places[index][None]
        arrays = {name: self.file.array(number) for name, number in accessors.items()}
        local = [
            _local({name: values[row] for name, values in arrays.items()})
            for row in range(self.copies(index))
        ]
        return self.places[index] @ np.array(local).reshape(-1, 4, 4)

    def joints(self, index: int) -> Float[np.ndarray, "j 4 4"]:
        """What a skin's joints do to vertices: global matrix times inverse bind one."""
        skin = self.file.item("skin", index)
        places = np.array([self.places[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" not in skin:
            return places
        flat = self.file.array(skin["inverseBindMatrices"]).astype(np.float64)
        inverse = flat.reshape(-1, 4, 4).swapaxes(1, 2)  # columns first
        if len(inverse) < len(places):
            raise ValueError("is not glTF: a skin has too few inverseBindMatrices")
        return places @ inverse[: len(places)]


def _local(node: Mapping[str, Any]) -> Float[np.ndarray, "4 4"]:
    """A node's own matrix: given, or of translation, rotation (x, y, z, w), scale."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), np.float64)
    length = x * x + y * y + z * z + w * w
    if length > 0:
        s = 2 / length
        matrix[:3, :3] -= s * np.array(
            [
                [y * y + z * z, z * w - x * y, -x * z - y * w],
                [-x * y - z * w, x * x + z * z, x * w - y * z],
                [y * w - x * z, -y * z - x * w, x * x + y * y],
            ]
        )
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


# --- Meshes ---------------------------------------------------------------------------


def _parts(
    file: File,
    scene: Scene,
    materials: "Materials",
    index: int,
    primitive: Mapping[str, Any],
) -> Iterator[Part]:
    """A primitive's triangles, at each place of its node."""
    node = file.item("node", index)
    arrays = _attributes(file, primitive)
    _morph(file, arrays, primitive.get("targets", []), node)
    vertices = arrays["POSITION"]
    count = len(vertices)
    if any(len(values) != count for values in arrays.values()):
        raise ValueError("is not glTF: attributes of unequal lengths")
    corners = np.arange(count)
    if "indices" in primitive:
        corners = file.array(primitive["indices"]).ravel().astype(np.int64)
    faces = _triangles(corners, primitive.get("mode", TRIANGLES))
    check_corners(faces, count)
    paint = materials.paint(primitive, arrays)
    faces = seen(
        faces,
        paint.alpha,
        paint.uv,
        paint.texture.alpha if paint.texture and paint.cutoff is not None else None,
        wrap=paint.texture.wrap if paint.texture else REPEAT,
        cutoff=paint.cutoff or 0.0,
        notes=scene.notes,
    )
    if not len(faces):
        return
    skinned = "skin" in node  # then the node's own place does not count
    places = [_skin(scene.joints(node["skin"]), arrays)] if skinned else None
    for matrix in places or scene.matrices(index):
        linear, shift = matrix[..., :3, :3], matrix[..., :3, 3]
        moved = np.einsum("...ij,...j->...i", linear, vertices) + shift
        mirrored = np.linalg.det(linear).mean() < 0  # turns the inside out
        yield Part(
            moved,
            faces[:, ::-1] if mirrored else faces,
            paint.colours,
            paint.uv,
            paint.texture,
        )


def _attributes(file: File, primitive: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that change shape or colour, float64 [n, k]; colours 0..1."""
    arrays = {}
    for name, index in primitive["attributes"].items():
        if not ATTRIBUTES.fullmatch(name):
            raise ValueError(f"has the attribute {name}, which is not read")
        if name == "COLOR_0":
            arrays[name] = unit(file.array(index))
        elif name.startswith(("POSITION", "TEXCOORD", "JOINTS", "WEIGHTS")):
            arrays[name] = file.array(index).astype(np.float64)
    return arrays


def _morph(
    file: File,
    arrays: dict[str, np.ndarray],
    targets: list[dict[str, int]],
    node: Mapping[str, Any],
) -> None:
    """Adds the morph targets, by the node's weights or else the mesh's."""
    mesh = file.item("mesh", node["mesh"])
    weights = node.get("weights", mesh.get("weights", [0.0] * len(targets)))
    if len(weights) < len(targets):
        raise ValueError("is not glTF: fewer weights than morph targets")
    for target, weight in zip(targets, weights, strict=False):
        for name, index in target.items() if weight else ():
            if not ATTRIBUTES.fullmatch(name):
                raise ValueError(f"has a morph target of {name}, which is not read")
            if name in arrays:
                arrays[name] = arrays[name] + weight * file.array(index)
    if "COLOR_0" in arrays:
        arrays["COLOR_0"] = np.clip(arrays["COLOR_0"], 0.0, 1.0)


def _skin(
    joints: Float[np.ndarray, "j 4 4"], arrays: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "n 4 4"]:
    """Each vertex's matrix: its joints', by weights that add up to 1."""
    sets = sorted(name[6:] for name in arrays if name.startswith("JOINTS"))
    if not sets or any(f"WEIGHTS{name}" not in arrays for name in sets):
        raise ValueError("has a skin without joints and weights; bake it")
    indices = np.hstack([arrays[f"JOINTS{name}"] for name in sets]).astype(np.int64)
    weights = np.hstack([arrays[f"WEIGHTS{name}"] for name in sets])
    indices = np.where(weights == 0, 0, indices)  # of those, any index may stand there
    check_corners(indices, len(joints))
    total = weights.sum(1, keepdims=True)
    weights[total[:, 0] == 0, 0] = 1.0
    weights /= np.where(total == 0, 1.0, total)
    matrices = np.zeros((len(indices), 4, 4))
    for k in range(indices.shape[1]):
        matrices += weights[:, k, None, None] * joints[indices[:, k]]
    return matrices


def _triangles(corners: Int[np.ndarray, " k"], mode: int) -> Int[np.ndarray, "m 3"]:
    """Triangles, wound alike, of a list, a strip or a fan."""
    if mode == TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if mode == STRIP or len(corners) < 3:
        return strip(corners)
    middle = np.full(len(corners) - 2, corners[0])
    return np.stack([middle, corners[1:-1], corners[2:]], 1)


# --- Materials ------------------------------------------------------------------------


class Paint(NamedTuple):
    """How a primitive is coloured.

    Attributes:
        colours: [n, 3] float64, 0..1; the vertices', times the material's factor.
        alpha: [n] float64, likewise.
        uv: [n, 2] float32.
        texture: of the base colour, or None.
        cutoff: alpha below it is not seen; None: alpha means nothing.
    """

    colours: np.ndarray
    alpha: np.ndarray
    uv: np.ndarray
    texture: Texture | None
    cutoff: float | None


class Materials:
    """The base colours of a file; each texture is opened once."""

    def __init__(self, file: File, colours: bool, notes: Notes) -> None:
        """Without `colours`, textures are opened for their alpha alone."""
        self.file, self.colours, self.notes = file, colours, notes
        self._textures: dict[int, Texture | None] = {}

    def paint(
        self, primitive: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> Paint:
        """Of a primitive with these arrays.

        Raises:
            ValueError: a texture is too large, or has something that is not read.
        """
        count = len(arrays["POSITION"])
        material = {}
        if "material" in primitive:
            material = self.file.item("material", primitive["material"])
        factor, reference = self._base(material)
        own = arrays.get("COLOR_0", np.ones((count, 4)))
        rgba = np.ones((count, 4))
        rgba[:, : own.shape[1]] = own
        rgba *= unit(np.array(factor, np.float64)[None])
        cutoff = self._cutoff(material)
        if cutoff is None:
            rgba[:, 3] = 1.0
        uv, texture = np.zeros((count, 2), np.float32), None
        if reference is not None and (self.colours or cutoff is not None):
            uv, texture = self._texture(known(reference, "texture reference"), arrays)
        if self.colours:
            self._note_effects(material)
        return Paint(rgba[:, :3], rgba[:, 3], uv, texture, cutoff)

    @staticmethod
    def _base(material: Mapping[str, Any]) -> tuple[Any, Any]:
        """Factor and texture reference of the base colour."""
        white = [1.0, 1.0, 1.0, 1.0]
        gloss = extension(material, "KHR_materials_pbrSpecularGlossiness")
        if gloss is not None:
            return gloss.get("diffuseFactor", white), gloss.get("diffuseTexture")
        metal = known(material.get("pbrMetallicRoughness", {}), "pbrMetallicRoughness")
        return metal.get("baseColorFactor", white), metal.get("baseColorTexture")

    @staticmethod
    def _cutoff(material: Mapping[str, Any]) -> float | None:
        mode = material.get("alphaMode", "OPAQUE")
        if mode not in ("OPAQUE", "MASK", "BLEND"):
            raise ValueError(f"has alphaMode {mode}, which is not read")
        if mode == "BLEND":
            return 0.0
        cutoff = float(material.get("alphaCutoff", 0.5))
        return cutoff if mode == "MASK" and cutoff > 0 else None

    def _note_effects(self, material: Mapping[str, Any]) -> None:
        if any(material.get("emissiveFactor", ())):
            self.notes.add("has materials that glow; drawn without their glow")
        glass = extension(material, "KHR_materials_transmission") or {}
        if glass.get("transmissionFactor"):
            self.notes.add("has materials of glass; drawn opaque")

    def _texture(
        self, reference: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, Texture | None]:
        """Places in the texture, float32 [n, 2], and the texture."""
        moved = extension(reference, "KHR_texture_transform") or {}
        number = moved.get("texCoord", reference.get("texCoord", 0))
        uv = arrays.get(f"TEXCOORD_{number}")
        if uv is None:
            self.notes.add("has a texture without places for it; drawn without it")
            return np.zeros((len(arrays["POSITION"]), 2), np.float32), None
        uv = np.nan_to_num(uv) * moved.get("scale", (1.0, 1.0))
        angle = moved.get("rotation", 0.0)
        c, s = np.cos(angle), np.sin(angle)  # counter-clockwise, where v runs down
        uv = uv @ np.array([[c, -s], [s, c]]) + moved.get("offset", (0.0, 0.0))
        index = reference["index"]
        if index not in self._textures:
            self._textures[index] = self._open(index)
        return uv.astype(np.float32), self._textures[index]

    def _open(self, index: int) -> Texture | None:
        texture = self.file.item("texture", index)
        source = texture.get("source")
        for name in ("EXT_texture_webp", "EXT_texture_avif"):
            source = (extension(texture, name) or {}).get("source", source)
        if source is None:
            if extension(texture, "KHR_texture_basisu"):
                raise ValueError("has a KTX2 texture; expected PNG, JPEG or WebP")
            return None  # glTF: such a texture is the application's to fill
        image = self.file.item("image", source)
        name = image.get("uri", "a texture inside of it")[:100]
        try:
            if "uri" in image:
                data = self.file.resource(image["uri"])
            else:
                data = bytes(self.file.view(image["bufferView"]))
        except OSError:
            self.notes.add(f"{name} cannot be read; drawn without this texture")
            return None
        found = open_texture(data)
        if found is None:
            self.notes.add(f"{name} is no known picture; drawn without this texture")
            return None
        sampler = {}
        if "sampler" in texture:
            sampler = self.file.item("sampler", texture["sampler"])
        u: Wrap = WRAPS[sampler.get("wrapS", 10497)]
        v: Wrap = WRAPS[sampler.get("wrapT", 10497)]
        return Texture(found, (u, v))
