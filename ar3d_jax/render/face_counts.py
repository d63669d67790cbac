"""How large a mesh file is, read from its header before anything is loaded.

Loaders take gigabytes and minutes for a file that will be refused anyway, and some
never end on a scene that contains itself. What is read here takes milliseconds, but for
OBJ, which has no header: its lines are counted, at a gigabyte per second. Polygons are
counted once here; `meshes.py` counts their triangles when they are loaded.
"""

import collections
import json
import os
import pathlib
import struct
from typing import Any

SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
HEADER_BYTES = 1 << 16  # of a PLY; real ones have some hundred
CHUNK = 1 << 24  # bytes of an OBJ looked at together
# Numbers per triangle that all arrays of a glTF may hold together: its corners' places,
# normals, colours, joints and so on are at most 75; the rest is for morph targets.
NUMBERS_PER_FACE = 100
WIDTHS = {
    "SCALAR": 1,
    "VEC2": 2,
    "VEC3": 3,
    "VEC4": 4,
    "MAT2": 4,
    "MAT3": 9,
    "MAT4": 16,
}
TRIANGLES, STRIP, FAN = 4, 5, 6  # glTF's modes; below are points and lines


def refuse_large(path: pathlib.Path, max_faces: int) -> None:
    """Returns if the file is one that may be loaded.

    Raises:
        ValueError: it has more than `max_faces` triangles or polygons, or more vertices
            and other data than so many can need, or is no file of its kind.
        OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".obj":
        _refuse(_obj_faces(path), max_faces, "faces")
    elif suffix == ".ply":
        for element, count in _ply_elements(path).items():
            limit = max_faces if element == "face" else 3 * max_faces
            _refuse(count, limit, f"{element} elements")
    elif suffix in (".glb", ".gltf"):
        tree = _glb_tree(path) if suffix == ".glb" else json.loads(path.read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("is not glTF: its JSON is no object")
        _check_gltf(tree, max_faces)
    else:
        raise ValueError(
            f"is a {suffix or 'file without suffix'}; expected {', '.join(SUFFIXES)}"
        )


def _refuse(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ValueError(f"has {count:,} {what}; at most {limit:,} are loaded")


def _obj_faces(path: pathlib.Path) -> int:
    """Lines that start with f."""
    faces, before = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            text = before + chunk
            faces += text.count(b"\nf ") + text.count(b"\nf\t")
            before = text[-2:]
    return faces


def _ply_elements(path: pathlib.Path) -> dict[str, int]:
    """How many there are of each element."""
    with path.open("rb") as file:
        header, end, _ = file.read(HEADER_BYTES).partition(b"end_header")
    if not header.startswith(b"ply") or not end:
        raise ValueError("is not PLY: no header from ply to end_header")
    lines = [line.split() for line in header.decode("latin-1").splitlines()]
    elements = [line for line in lines if line[:1] == ["element"]]
    if any(len(line) != 3 or not line[2].isdigit() for line in elements):
        raise ValueError("is not PLY: an element without a count")
    return {name: int(count) for _, name, count in elements}


def _glb_tree(path: pathlib.Path) -> Any:
    """The JSON chunk of a binary glTF."""
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
        return json.loads(file.read(json_length))


def _check_gltf(tree: dict[str, Any], max_faces: int) -> None:
    """Refuses what is too large, and what the loader would misunderstand."""
    needed = {
        name
        for name in tree.get("extensionsRequired", [])
        if "draco" in name.lower() or "meshopt" in name.lower()
    }
    if needed:
        raise ValueError(f"is compressed ({', '.join(needed)}); expected plain glTF")
    accessors = tree.get("accessors", [])
    numbers = sum(a["count"] * WIDTHS[a["type"]] for a in accessors)
    _refuse(numbers, NUMBERS_PER_FACE * max_faces, "numbers")

    meshes = [
        sum(_triangles(part, accessors) for part in mesh["primitives"])
        for mesh in tree.get("meshes", [])
    ]
    nodes = tree.get("nodes", [])
    instances = sum(meshes[node["mesh"]] for node in nodes if "mesh" in node)
    _refuse(max(instances, sum(meshes)), max_faces, "faces")

    parents = collections.Counter(
        child for node in nodes for child in node.get("children", [])
    )
    for scene in tree.get("scenes", []):
        if any(root in parents for root in scene.get("nodes", [])):
            raise ValueError("is not glTF: a root of the scene has a parent")
    if any(count > 1 for count in parents.values()):
        raise ValueError("is not glTF: a node has two parents")


def _triangles(part: dict[str, Any], accessors: list[dict[str, Any]]) -> int:
    mode = part.get("mode", TRIANGLES)
    if mode < TRIANGLES:
        return 0
    if mode == FAN:
        raise ValueError("has triangle fans, which are not read; expected triangles")
    used = [accessors[part["attributes"]["POSITION"]]]
    used += [accessors[part["indices"]]] if "indices" in part else []
    if any("bufferView" not in accessor for accessor in used):
        raise ValueError("has a mesh without data (sparse or compressed)")
    count = used[-1]["count"]
    return max(count - 2, 0) if mode == STRIP else count // 3
