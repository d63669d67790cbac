"""Mesh files that tests write: coloured cubes, and glTF put together by hand."""

import json
import struct

import numpy as np
import trimesh

COLOURS = {
    (0, 1): (255, 0, 0),
    (0, -1): (0, 255, 255),
    (1, 1): (0, 255, 0),
    (1, -1): (255, 0, 255),
    (2, 1): (0, 0, 255),
    (2, -1): (255, 255, 0),
}  # of the face at side +-1 of axis 0, 1, 2 of our z-up world


def cube():
    """Vertices, faces and colours of a cube of side 1, each side for itself, z up."""
    vertices, faces, colours = [], [], []
    for (axis, side), colour in COLOURS.items():
        square = np.float32([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
        vertices.append(np.insert(square, axis, side / 2, axis=1))
        corners = np.int32([[0, 1, 2], [0, 2, 3]]) + 4 * len(faces)
        outwards = side * (-1 if axis == 1 else 1)
        faces.append(corners if outwards > 0 else corners[:, ::-1])
        colours += [colour] * 4
    return np.concatenate(vertices), np.concatenate(faces), np.uint8(colours)


def y_up(vertices):
    x, y, z = np.asarray(vertices).T
    return np.stack([x, z, -y], 1)


def write_cube(path, kind="vertex"):
    """The cube, y up, with its colours at vertices or, in a PLY, at faces."""
    vertices, faces, colours = cube()
    vertices = y_up(vertices)
    if kind == "vertex":
        mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)
    elif kind == "face":
        mesh = trimesh.Trimesh(
            vertices, faces, face_colors=colours[faces[:, 0]], process=False
        )
    path.write_bytes(mesh.export(file_type=path.suffix[1:]))
    return path


def glb(path, tree, data=b""):
    """A binary glTF of this JSON and these bytes, which are its buffer 0."""
    data += b"\0" * (-len(data) % 4)
    tree = {"asset": {"version": "2.0"}, "buffers": [{"byteLength": len(data)}]} | tree
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if data:
        chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
KINDS = {"uint8": 5121, "uint16": 5123, "uint32": 5125, "float32": 5126}


def packed(*arrays):
    """bufferViews, accessors and data of arrays, one of each per array."""
    views, accessors, data = [], [], b""
    widths = {width: name for name, width in TYPES.items()}
    for array in arrays:
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": array.nbytes})
        accessors.append(
            {
                "bufferView": len(accessors),
                "componentType": KINDS[array.dtype.name],
                "count": len(array),
                "type": widths[array[0].size],
            }
        )
        data += array.tobytes() + b"\0" * (-array.nbytes % 4)
    return {"bufferViews": views, "accessors": accessors}, data
