"""One object of boxes, written in glTF's many forms: each file is its plain twin.

`plain` is the twin. `Forms` writes the same triangles with a form of everything drawn
at random: node trees, accessor types, strides, sparse and normalised values, skins,
morph targets, modes, and where the bytes are.
"""

import base64
import json
import urllib.parse

import numpy as np
from hypothesis import strategies as st

from tests.render import mesh_files

CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
BOX = np.array(  # wound outwards
    [
        *((0, 1, 3), (0, 3, 2), (4, 7, 5), (4, 6, 7), (0, 5, 1), (0, 4, 5)),
        *((2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)),
    ]
)
# Place, size and colour of each part: nothing is symmetric.
PARTS = [
    ((-0.5, 0.4, -0.5), (1.0, 0.1, 0.9), (230, 0, 20)),
    ((-0.5, 0.5, -0.5), (1.0, 0.8, 0.1), (10, 30, 220)),
    ((-0.4, 0.0, -0.3), (0.2, 0.4, 0.3), (0, 200, 90)),
]


def part(index):
    """Vertices, faces and one colour."""
    place, size, colour = PARTS[index]
    return CORNERS * size + place, BOX, np.uint8(colour)


def plain(path):
    """One primitive, one node, float32."""
    vertices = np.concatenate([part(k)[0] for k in range(len(PARTS))])
    faces = np.concatenate([BOX + 8 * k for k in range(len(PARTS))])
    colours = np.repeat(np.uint8([part(k)[2] for k in range(len(PARTS))]), 8, axis=0)
    colours = np.hstack([colours, np.full((len(colours), 1), 255, np.uint8)])
    content, data = mesh_files.packed(
        np.float32(vertices), np.uint32(faces.reshape(-1, 1)), colours
    )
    content["accessors"][2]["normalized"] = True
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 2}, "indices": 1}
    tree = content | {
        "meshes": [{"primitives": [primitive]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    return mesh_files.glb(path, tree, data)


def turned(x, y, z, w):
    """The matrix of a quaternion."""
    x, y, z, w = np.array([x, y, z, w]) / np.linalg.norm([x, y, z, w])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def matrix_of(translation, rotation, scale):
    matrix = np.eye(4)
    matrix[:3, :3] = turned(*rotation) * scale
    matrix[:3, 3] = translation
    return matrix


def moved(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


class Forms:
    """A file under construction; `draw` chooses, as hypothesis gives it."""

    def __init__(self, draw):
        self.draw = draw
        self.data = b""
        self.tree = {name: [] for name in ("bufferViews", "accessors", "nodes")}
        self.tree |= {"meshes": [], "skins": [], "scenes": [{"nodes": []}]}
        self.used = set()

    def one_of(self, *choices):
        return self.draw(st.sampled_from(choices))

    def number(self, low, high):
        return self.draw(st.floats(low, high, allow_nan=False, width=32))

    # --- bytes ---

    def view(self, data, stride=None):
        self.data += b"\0" * (-len(self.data) % 4 + 4 * self.one_of(0, 3))
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        if stride:
            view["byteStride"] = stride
        self.data += data
        self.tree["bufferViews"].append(view)
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, array, *, normalized=False, sparse=None, kind=None):
        """Index of an accessor with these numbers, tight or between others' bytes."""
        array = np.ascontiguousarray(array)
        count, width = array.shape
        kinds = mesh_files.KINDS | {"int8": 5120, "int16": 5122}
        widths = {n: name for name, n in mesh_files.TYPES.items()}
        found = {
            "componentType": kinds[array.dtype.name],
            "count": count,
            "type": kind or widths[width],
        }
        if normalized:
            found["normalized"] = True
        base = array
        form = sparse or "none"
        changed = np.zeros(count, bool)
        if form != "none":
            changed[:: self.one_of(1, 2, 3)] = True
            if form == "no base":
                changed |= (array != 0).any(1)
                base = np.zeros_like(array)
            else:
                base = array.copy()
                base[changed] = 1  # what stands below the sparse values is wrong
        if form != "no base":
            row = base.strides[0]
            stride = -(-row // 4) * 4 + 4 * self.one_of(0, 2)
            first = self.one_of(0, 4)
            padded = np.full((count, stride), 77, np.uint8)
            padded[:, :row] = base.view(np.uint8).reshape(count, row)
            tight = stride == row and self.one_of(True, False)
            data = b"\x55" * first + padded.tobytes()
            found["bufferView"] = self.view(data, None if tight else stride)
            found["byteOffset"] = first
        if form != "none":
            rows = np.flatnonzero(changed)
            narrow = self.one_of(np.uint8, np.uint16, np.uint32)
            found["sparse"] = {
                "count": len(rows),
                "indices": {
                    "bufferView": self.view(rows.astype(narrow).tobytes()),
                    "componentType": kinds[np.dtype(narrow).name],
                },
                "values": {"bufferView": self.view(array[rows].tobytes())},
            }
        self.tree["accessors"].append(found)
        return len(self.tree["accessors"]) - 1

    # --- nodes ---

    def node(self, node, parent=None):
        self.tree["nodes"].append(node)
        index = len(self.tree["nodes"]) - 1
        if parent is None:
            self.tree["scenes"][0]["nodes"].append(index)
        else:
            self.tree["nodes"][parent].setdefault("children", []).append(index)
        return index

    def place(self):
        """A random node's properties, and their matrix."""
        sign = self.one_of(1, 1, -1)
        translation = [self.number(-2, 2) for _ in range(3)]
        rotation = np.array([*(self.number(-1, 1) for _ in range(3)), 1.5])
        rotation /= np.linalg.norm(rotation)
        scale = [sign * self.number(0.5, 2), self.number(0.5, 2), self.number(0.5, 2)]
        matrix = matrix_of(translation, rotation, scale)
        if self.one_of(True, False):
            return {"matrix": matrix.T.ravel().tolist()}, matrix
        trs = {"translation": translation, "rotation": rotation.tolist()}
        return trs | {"scale": scale}, matrix

    def chain(self):
        """Some nodes below each other: the last one's index, and its global matrix."""
        parent, matrix = None, np.eye(4)
        for _ in range(self.one_of(0, 1, 2)):
            properties, own = self.place()
            extra = self.one_of({}, {"camera": 0}, {"extras": {"any": 1}})
            parent = self.node(properties | extra, parent)
            matrix = matrix @ own
        return parent, matrix

    # --- meshes ---

    def add(self, index):
        """Writes a part in some form."""
        world, faces, colour = part(index)
        skinned = self.one_of(False, False, True)
        if skinned:
            skin, matrix = self.skin()
            # A skinned node's own place does not count.
            node = self.node(self.place()[0], self.chain()[0])
            self.tree["nodes"][node]["skin"] = skin
        else:
            parent, matrix = self.chain()
            node = self.node({}, parent)
        local = moved(np.linalg.inv(matrix), world)
        if np.linalg.det(matrix) < 0:  # then what is outside is wound clockwise
            faces = faces[:, ::-1]
        attributes, targets = {}, None
        form = self.one_of("float", "float", "normalised", "integer", "morph")
        if form in ("normalised", "integer") and not skinned:
            self.used.add("KHR_mesh_quantization")
            low, size = local.min(0), np.ptp(local, 0)
            kind = self.one_of(np.int16, np.uint16, np.int8)
            top = 120 if kind == np.int8 else 32_000
            steps = np.round((local - low) / size * top)
            # Rounded places are this far away; the tolerance is coarser for bytes.
            scale = size / top * (np.iinfo(kind).max if form == "normalised" else 1)
            self.tree["nodes"][node] |= {
                "translation": low.tolist(),
                "scale": scale.tolist(),
            }
            attributes["POSITION"] = self.accessor(
                steps.astype(kind), normalized=form == "normalised"
            )
        elif form == "morph":
            weights = [self.number(-1, 1), self.number(-1, 1)]
            deltas = np.random.default_rng(index).normal(size=(2, *local.shape))
            base = local - np.tensordot(weights, deltas, 1)
            attributes["POSITION"] = self.accessor(np.float32(base))
            targets = [{"POSITION": self.accessor(np.float32(d))} for d in deltas]
        else:
            sparse = self.one_of("none", "over a base", "no base")
            attributes["POSITION"] = self.accessor(np.float32(local), sparse=sparse)
        attributes["COLOR_0"] = self.colours(colour)
        if skinned:
            attributes |= self.weights()
        mesh = {"primitives": [self.primitive(attributes, faces, targets)]}
        if targets:
            on_node = self.one_of(True, False)
            (self.tree["nodes"][node] if on_node else mesh)["weights"] = weights
            if on_node:
                mesh["weights"] = [0.5, 0.5]  # the node's own count
        self.tree["meshes"].append(mesh)
        self.tree["nodes"][node]["mesh"] = len(self.tree["meshes"]) - 1

    def colours(self, colour):
        rows = np.tile(np.float64([*colour, 255]) / 255, (8, 1))
        rows = rows[:, : self.one_of(3, 4)]
        kind = self.one_of(np.uint8, np.uint16, np.float32)
        if kind == np.float32:
            return self.accessor(np.float32(rows))
        top = np.iinfo(kind).max
        return self.accessor(np.round(rows * top).astype(kind), normalized=True)

    def skin(self):
        """A skin whose two joints move alike, and what they do."""
        joints, inverse = [], []
        wanted = self.place()[1]
        for _ in range(2):
            joint, matrix = self.chain()
            if joint is None:
                joint, matrix = self.node({}), np.eye(4)
            joints.append(joint)
            inverse.append(np.linalg.inv(matrix) @ wanted)
        flat = np.float32([matrix.T.ravel() for matrix in inverse])
        skin = {"joints": joints, "inverseBindMatrices": self.wide(flat)}
        self.tree["skins"].append(skin)
        return len(self.tree["skins"]) - 1, wanted

    def wide(self, flat):
        """An accessor of MAT4."""
        self.tree["accessors"].append(
            {
                "bufferView": self.view(flat.tobytes()),
                "componentType": 5126,
                "count": len(flat),
                "type": "MAT4",
            }
        )
        return len(self.tree["accessors"]) - 1

    def weights(self):
        indices = np.tile([0, 1, 0, 0], (8, 1)).astype(self.one_of(np.uint8, np.uint16))
        share = self.one_of(0.0, 0.2, 1.0)
        weights = np.tile([share, 1 - share, 0, 0], (8, 1))
        kind = self.one_of(np.float32, np.uint8, np.uint16)
        stored = np.float32(weights)
        if kind != np.float32:
            stored = np.round(weights * np.iinfo(kind).max).astype(kind)
        return {
            "JOINTS_0": self.accessor(indices),
            "WEIGHTS_0": self.accessor(stored, normalized=kind != np.float32),
        }

    def primitive(self, attributes, faces, targets):
        found = {"attributes": attributes}
        if targets:
            found["targets"] = targets
        corners = faces.ravel()
        if self.one_of("list", "strip") == "strip":
            # Doubled corners between triangles: what joins two of them has no area.
            found["mode"] = 5
            ends = np.repeat(np.roll(faces[:, :1], -1, axis=0), 2, axis=1)
            corners = np.hstack([faces, faces[:, 2:], ends]).ravel()
        kind = self.one_of(np.uint8, np.uint16, np.uint32)
        sparse = self.one_of("none", "none", "over a base")
        found["indices"] = self.accessor(corners.astype(kind)[:, None], sparse=sparse)
        return found

    # --- files ---

    def write(self, folder):
        """The file: GLB, or glTF with its bytes beside or inside of it."""
        tree = {name: things for name, things in self.tree.items() if things}
        tree["cameras"] = [{"type": "perspective", "perspective": {"yfov": 1.0}}]
        if self.used:
            tree["extensionsUsed"] = tree["extensionsRequired"] = sorted(self.used)
        if self.one_of(True, False):
            tree["scene"] = 0
        elif not self.tree["skins"] and self.one_of(True, False):
            del tree["scenes"]
        where = self.one_of("glb", "beside", "inside")
        if where == "glb":
            return mesh_files.glb(folder / "a.glb", tree, self.data)
        name = "a b\u00e9.bin"
        if where == "beside":
            (folder / name).write_bytes(self.data)
            uri = self.one_of(urllib.parse.quote(name), name)
        else:
            code = base64.b64encode(self.data).decode()
            uri = f"data:application/octet-stream;base64,{code}"
        tree["buffers"] = [{"byteLength": len(self.data), "uri": uri}]
        path = folder / "a.gltf"
        path.write_text(json.dumps({"asset": {"version": "2.0"}} | tree), "utf-8")
        return path
