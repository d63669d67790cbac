"""A furniture catalog of a few boxes, written as Sweet Home 3D writes them."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HEAD = """# A comment
id=Test
name=Test catalog
license=CC0 \\u00a9 nobody

"""

# Ids are chosen so that `test-lamp8` is held out and the others are not.
PIECES = [
    ("Test#chair", "Ch\\u00e2ir", "Blend Swap, Seat", "Office", "/chair/chair.obj", ""),
    ("Test#table", "Coffee table", "", "Living room", "/table/table.obj", ""),
    ("Test#lying", "Box", "", "Kitchen", "/tall/tall.obj", "1 0 0 0 0 1 0 -1 0"),
    ("Test#lamp8", "Desk lamp", "", "Lights", "/tall/tall.obj", ""),
    ("Test#cot", "Bed", "", "Bedroom", "/tall/tall.obj", ""),
    ("Test#gone", "Sofa", "", "Bedroom", "/gone/gone.obj", ""),
    ("Test#empty", "Air", "", "Bedroom", "/empty/empty.obj", ""),
    ("Test#flat", "Arrow", "", "Exterior", "/flat/flat.obj", ""),
    ("Test#broken", "Rock", "", "Exterior", "/broken/broken.obj", ""),
]


def box(low, high, first, material):
    """OBJ lines of a box, y up, counting vertices from `first`."""
    ends = np.array([low, high], float)
    corners = [(x, y, z) for x in ends[:, 0] for y in ends[:, 1] for z in ends[:, 2]]
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    lines += ["vt 0.1 0.1", "vt 0.2 0.1", "vt 0.2 0.2", "vt 0.1 0.2"]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4)]
    quads += [(1, 5, 7, 3)]
    lines.append(f"usemtl {material}")
    for quad in quads:
        lines.append(
            "f " + " ".join(f"{first + c}/{k + 1}" for k, c in enumerate(quad))
        )
    return lines


def chair():
    """Seat, four legs, and a back behind: front is +z, up is y."""
    boxes = [((0, 4, 0), (8, 5, 8)), ((0, 5, 0), (8, 10, 1))]
    boxes += [((x, 0, z), (x + 1, 4, z + 1)) for x in (0, 7) for z in (0, 7)]
    lines = ["mtllib chair.mtl"]
    for number, (low, high) in enumerate(boxes):
        lines += box(low, high, 8 * number + 1, "oak_wood" if number else "cushion")
    return "\n".join(lines)


def table():
    boxes = [((0, 4, 0), (12, 5, 6))]
    boxes += [((x, 0, z), (x + 1, 4, z + 1)) for x in (0, 11) for z in (0, 5)]
    lines = ["mtllib table.mtl"]
    for number, (low, high) in enumerate(boxes):
        lines += box(low, high, 8 * number + 1, "paint")
    return "\n".join(lines)


def write_sh3f(path: Path) -> None:
    lines = [HEAD]
    for number, (key, name, tags, category, model, rotation) in enumerate(PIECES, 1):
        fields = {"id": key, "name": name, "tags": tags, "category": category}
        fields |= {"model": model, "creator": "Me", "modelRotation": rotation}
        lines += [f"{k}#{number}={v}" for k, v in fields.items() if v or k == "tags"]
    texture = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 20, 20)).save(texture, "PNG")
    tall = "\n".join(box((0, 0, 0), (2, 8, 4), 1, "none"))
    flat = "\n".join(box((0, 0, 0), (9, 0.001, 4), 1, "none"))
    material = (
        "newmtl cushion\nKd 1 1 1\nmap_Kd red.png\nnewmtl oak_wood\nKd .4 .3 .2\n"
    )
    files = {
        "PluginFurnitureCatalog.properties": "\n".join(lines).encode("iso-8859-1"),
        "chair/chair.obj": chair(),
        "chair/chair.mtl": material,
        "chair/red.png": texture.getvalue(),
        "table/table.obj": table(),
        "table/table.mtl": "newmtl paint\nKd 0 0 0\n",
        "tall/tall.obj": tall,
        "flat/flat.obj": flat,
        "empty/empty.obj": "# nothing\n",
        "broken/broken.obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
