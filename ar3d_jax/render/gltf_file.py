"""What is in a glTF 2.0 or GLB file: its JSON, its arrays, and what may stand there.

    https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html

A property, attribute or extension that is neither applied nor known to be harmless is
refused by its name; the lists are here. What scenes and materials mean is `gltf.py`.
"""

import base64
import binascii
import json
import math
import os
import pathlib
import re
import struct
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ar3d_jax.render.parts import check_corners

# --- What is known --------------------------------------------------------------------

# Properties of each kind of object; `name`, `extras` and `extensions` all may have.
PROPERTIES = {
    "file": "asset extensionsUsed extensionsRequired accessors animations buffers "
    "bufferViews cameras images materials meshes nodes samplers scene scenes skins "
    "textures",
    "asset": "copyright generator version minVersion",
    "scene": "nodes",
    "node": "camera children skin matrix mesh rotation scale translation weights",
    "mesh": "primitives weights",
    "primitive": "attributes indices material mode targets",
    "skin": "inverseBindMatrices skeleton joints",
    "material": "pbrMetallicRoughness normalTexture occlusionTexture emissiveTexture "
    "emissiveFactor alphaMode alphaCutoff doubleSided",
    "pbrMetallicRoughness": "baseColorFactor baseColorTexture metallicFactor "
    "roughnessFactor metallicRoughnessTexture",
    "texture reference": "index texCoord",
    "texture": "sampler source",
    "sampler": "magFilter minFilter wrapS wrapT",
    "image": "uri mimeType bufferView",
    "accessor": "bufferView byteOffset componentType normalized count type max min "
    "sparse",
    "sparse": "count indices values",
    "sparse indices": "bufferView byteOffset componentType",
    "sparse values": "bufferView byteOffset",
    "bufferView": "buffer byteOffset byteLength byteStride target",
    "buffer": "uri byteLength",
    "EXT_mesh_gpu_instancing": "attributes",
    "KHR_node_visibility": "visible",
    "KHR_texture_transform": "offset rotation scale texCoord",
    "KHR_materials_pbrSpecularGlossiness": "diffuseFactor diffuseTexture "
    "specularFactor glossinessFactor specularGlossinessTexture",
    "EXT_texture_webp": "source",
    "EXT_texture_avif": "source",
}
# Extensions that are applied where they may stand.
APPLIED = {
    "EXT_mesh_gpu_instancing",
    "KHR_node_visibility",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
    "KHR_materials_pbrSpecularGlossiness",
    "EXT_texture_webp",
    "EXT_texture_avif",
}
# Extensions that change neither shape nor base colour: how a surface shines, lights,
# what an application does with a node, where a file comes from.
HARMLESS = {
    *(
        "KHR_materials_anisotropy",
        "KHR_materials_clearcoat",
        "KHR_materials_dispersion",
    ),
    *("KHR_materials_diffuse_transmission", "KHR_materials_emissive_strength"),
    *("KHR_materials_ior", "KHR_materials_iridescence", "KHR_materials_sheen"),
    *("KHR_materials_specular", "KHR_materials_transmission", "KHR_materials_unlit"),
    *("KHR_materials_variants", "KHR_materials_volume"),
    *("ADOBE_materials_clearcoat_specular", "ADOBE_materials_clearcoat_tint"),
    "ADOBE_materials_thin_transparency",
    *("KHR_lights_punctual", "EXT_lights_image_based", "EXT_lights_ies"),
    *("KHR_animation_pointer", "KHR_interactivity"),
    *("KHR_node_hoverability", "KHR_node_selectability"),
    *("KHR_xmp", "KHR_xmp_json_ld", "KHR_audio_emitter"),
    *("EXT_mesh_features", "EXT_structural_metadata", "EXT_instance_features"),
    *("EXT_mesh_manifold", "CESIUM_primitive_outline", "FB_geometry_metadata"),
    *("MSFT_lod", "MSFT_screencoverage"),
    *(
        "MSFT_packing_normalRoughnessMetallic",
        "MSFT_packing_occlusionRoughnessMetallic",
    ),
    *("VRM", "VRMC_vrm", "VRMC_springBone", "VRMC_node_constraint"),
    *("VRMC_materials_mtoon", "VRMC_materials_hdr_emissiveMultiplier"),
    *("MOZ_hubs_components", "OMI_physics_body", "OMI_physics_shape"),
    *("AGI_articulations", "AGI_stk_metadata", "GODOT_single_root"),
}
# Beside data that any reader understands; without such data they are refused.
FALLBACKS = {
    "KHR_draco_mesh_compression",
    "EXT_meshopt_compression",
    "KHR_meshopt_compression",
    "KHR_texture_basisu",
    "MSFT_texture_dds",
}
ATTRIBUTES = re.compile(
    r"POSITION|NORMAL|TANGENT|(TEXCOORD|COLOR|JOINTS|WEIGHTS)_\d+|_.*"
)

COMPONENTS = {
    5120: "i1",
    5121: "u1",
    5122: "<i2",
    5123: "<u2",
    5125: "<u4",
    5126: "<f4",
}
SHAPES = {
    "SCALAR": (1, 1),
    "VEC2": (1, 2),
    "VEC3": (1, 3),
    "VEC4": (1, 4),
    "MAT2": (2, 2),
    "MAT3": (3, 3),
    "MAT4": (4, 4),
}  # columns, and numbers in each


def known(thing: Any, kind: str) -> dict[str, Any]:
    """The object, if this file knows all that it has.

    Raises:
        ValueError: it is no object, or has something unknown.
    """
    if not isinstance(thing, dict):
        raise ValueError(f"is not glTF: a {kind} is no JSON object")
    allowed = {*PROPERTIES[kind].split(), "name", "extras", "extensions"}
    for name in thing.keys() - allowed:
        raise ValueError(
            f"has {name!r} in a {kind}, which is not read; export plain glTF 2.0"
        )
    for name in thing.get("extensions", {}).keys() - APPLIED - HARMLESS - FALLBACKS:
        raise ValueError(
            f"uses {name} in a {kind}, which is not read; export without it"
        )
    return thing


def extension(thing: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the object says under the extension; None where it does not use it.

    Raises:
        ValueError: the extension is applied, and has something unknown.
    """
    found = thing.get("extensions", {}).get(name)
    return known(found, name) if name in PROPERTIES and found is not None else found


# --- The file -------------------------------------------------------------------------


def read_tree(path: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The JSON of a .gltf or .glb, and at which byte a GLB's own buffer starts.

    Raises:
        ValueError: it is no glTF 2.0, is cut off, or needs what is not read.
        OSError: it cannot be read.
    """
    start = 0
    if path.suffix.lower() == ".glb":
        text, start = _glb_json(path)
    else:
        text = path.read_bytes()
    tree = known(json.loads(text.decode("utf-8-sig")), "file")
    asset = known(tree.get("asset", {}), "asset")
    version = str(asset.get("minVersion", asset.get("version", "2.0")))
    if version != "2.0":
        raise ValueError(f"is glTF {version}; expected 2.0")
    needed = set(tree.get("extensionsRequired", []))
    packed = [n for n in sorted(needed) if re.search("draco|meshopt|basisu", n.lower())]
    if packed:
        raise ValueError(f"is compressed ({', '.join(packed)}); expected plain glTF")
    if strange := sorted(needed - APPLIED - HARMLESS):
        raise ValueError(
            f"requires {', '.join(strange)}, which is not read; export without it"
        )
    return tree, start


def _glb_json(path: pathlib.Path) -> tuple[bytes, int]:
    with path.open("rb") as file:
        start = file.read(20)
        if len(start) < 20:
            raise ValueError(f"is not binary glTF: {len(start)} bytes")
        magic, version, length, json_length, kind = struct.unpack("<4sIII4s", start)
        if magic != b"glTF" or version != 2 or kind != b"JSON":
            raise ValueError("is not binary glTF 2: no such header")
        size = os.fstat(file.fileno()).st_size
        if length > size or json_length > size - 20:
            raise ValueError(f"is cut off: {size:,} bytes of {length:,}")
        return file.read(json_length), 20 + json_length


class File:
    """One glTF file: its JSON, and the data that its indices mean."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the JSON.

        Raises:
            ValueError: as `read_tree`.
            OSError: it cannot be read.
        """
        self.path = path
        self.tree, self._start = read_tree(path)
        self._buffers: dict[int, bytes] = {}

    @property
    def numbers(self) -> int:
        """How many all accessors hold together, by their own account."""
        return sum(
            accessor["count"] * math.prod(SHAPES[accessor["type"]])
            for accessor in self.tree.get("accessors", [])
        )

    def item(self, kind: str, index: Any) -> dict[str, Any]:
        """The object with that number among its kind, such as "accessor".

        Raises:
            ValueError: there is none, or it has something unknown.
        """
        plural = "meshes" if kind == "mesh" else f"{kind}s"
        items = self.tree.get(plural, [])
        if not isinstance(index, int) or not 0 <= index < len(items):
            raise ValueError(f"is not glTF: there is no {kind} {index}")
        return known(items[index], kind)

    # --- arrays ---

    def buffer(self, index: int) -> bytes:
        """The bytes of a buffer: the GLB's own, a data URI, or a file beside it."""
        if index not in self._buffers:
            buffer = self.item("buffer", index)
            if "uri" in buffer:
                data = self.resource(buffer["uri"])
            elif index == 0 and self._start:
                data = self._own_buffer()
            else:
                raise ValueError(f"has no data in buffer {index}: it is compressed")
            if len(data) < buffer["byteLength"]:
                raise ValueError(
                    f"is cut off: buffer {index} has {len(data):,} bytes of "
                    f"{buffer['byteLength']:,}"
                )
            self._buffers[index] = data
        return self._buffers[index]

    def _own_buffer(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._start)
            length, kind = struct.unpack("<I4s", file.read(8))
            if kind != b"BIN\0":
                raise ValueError("is not binary glTF: its second chunk is not BIN")
            return file.read(length)

    def resource(self, uri: str) -> bytes:
        """What a URI names: data in itself, or a file as seen from this one.

        Raises:
            ValueError: it is somewhere else.
            OSError: there is no such file.
        """
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            if head.endswith(";base64"):
                try:
                    return base64.b64decode(urllib.parse.unquote(body))
                except binascii.Error as error:
                    raise ValueError(f"has a broken data URI ({error})") from error
            return urllib.parse.unquote_to_bytes(body)
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", uri):
            raise ValueError(f"refers to {uri[:100]}; expected files beside it")
        decoded = urllib.parse.unquote(uri)
        # Some writers do not encode names, or write a path as Windows does.
        names = dict.fromkeys((decoded, uri, decoded.replace("\\", "/")))
        paths = [self.path.parent / name for name in names]
        return next((path for path in paths if path.exists()), paths[0]).read_bytes()

    def view(self, index: int) -> memoryview:
        """The bytes of a bufferView."""
        view = self.item("bufferView", index)
        first = view.get("byteOffset", 0)
        data = memoryview(self.buffer(view["buffer"]))
        data = data[first : first + view["byteLength"]]
        if len(data) < view["byteLength"]:
            raise ValueError(f"is cut off: bufferView {index} ends behind its buffer")
        return data

    def array(self, index: int) -> np.ndarray:
        """The numbers of an accessor, [count, numbers]; matrices column by column.

        Normalised integers become float64 in 0..1 or -1..1; others stay what they are.
        """
        accessor = self.item("accessor", index)
        columns, rows = SHAPES[accessor["type"]]
        kind = np.dtype(COMPONENTS[accessor["componentType"]])
        count = accessor["count"]
        if "bufferView" in accessor:
            view = self.item("bufferView", accessor["bufferView"])
            values = _unpacked(
                self.view(accessor["bufferView"]),
                accessor.get("byteOffset", 0),
                (count, columns, rows),
                kind,
                view.get("byteStride", 0),
            )
        elif "sparse" in accessor:
            values = np.zeros((count, columns, rows), kind)
        else:
            raise ValueError("has a mesh without data (it is compressed, or broken)")
        if "sparse" in accessor:
            values = values.copy()
            places, changed = self._sparse(known(accessor["sparse"], "sparse"), values)
            check_corners(places, count)
            values[places] = changed
        values = values.reshape(count, columns * rows)
        if accessor.get("normalized") and kind.kind in "iu":
            return np.maximum(values / np.iinfo(kind).max, -1.0)
        return values

    def _sparse(
        self, sparse: dict[str, Any], base: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which rows of `base` are others, and their values."""
        indices = known(sparse["indices"], "sparse indices")
        values = known(sparse["values"], "sparse values")
        count, kind = sparse["count"], np.dtype(COMPONENTS[indices["componentType"]])
        places = _unpacked(
            self.view(indices["bufferView"]),
            indices.get("byteOffset", 0),
            (count, 1, 1),
            kind,
        )
        changed = _unpacked(
            self.view(values["bufferView"]),
            values.get("byteOffset", 0),
            (count, *base.shape[1:]),
            base.dtype,
        )
        return places.ravel(), changed

    def matrices(self, index: int) -> Float[np.ndarray, "n 4 4"]:
        """An accessor of MAT4."""
        return self.array(index).astype(np.float64).reshape(-1, 4, 4).swapaxes(1, 2)


def _unpacked(
    data: memoryview,
    offset: int,
    shape: tuple[int, int, int],
    kind: np.dtype,
    stride: int = 0,
) -> np.ndarray:
    """Numbers [count, columns, rows] out of bytes, `stride` bytes from row to row.

    Columns of matrices start at multiples of four bytes.
    """
    count, columns, rows = shape
    column = rows * kind.itemsize
    if columns > 1:
        column = -(-column // 4) * 4
    size = (columns - 1) * column + rows * kind.itemsize
    stride = stride or columns * column
    if count and offset + stride * (count - 1) + size > len(data):
        raise ValueError("is cut off: an accessor ends behind its bufferView")
    strides = (stride, column, kind.itemsize)
    return np.ndarray(shape, kind, data, offset if count else 0, strides)
