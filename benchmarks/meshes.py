"""Seconds of reading mesh files, beside trimesh.

    python -m benchmarks.meshes [--side=500]

A sheet of side x side vertices with texture coordinates, 2 (side - 1)^2 triangles, as
OBJ (quadrilaterals), binary PLY and GLB:

- ours: `render.meshes.load` with colours, which also joins and normalises;
- peer: `trimesh.load_scene(process=False)`, which of a GLB makes views of its bytes.

Both read in turns, so that other load meets both; a ratio is the median over rounds of
ours / trimesh's. `triangles` are what ours found, of every file the same.

Target: at most 3 of trimesh's seconds for OBJ, and 10 s for a million triangles of any
kind (`render.max_faces`'s reason). Prints one JSON line.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import trimesh

from ar3d_jax.render import meshes

ROUNDS = 3


def write(folder: Path, side: int) -> list[Path]:
    """The sheet in three formats."""
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    vertices = np.stack([x, y, np.sin(9 * x) * y / 4], -1).reshape(-1, 3)
    corner = np.arange(side * side).reshape(side, side)
    quads = [corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]]
    quads = np.stack([c.ravel() for c in quads], 1)
    obj = folder / "sheet.obj"
    with obj.open("w") as file:
        np.savetxt(file, vertices, "v %.6f %.6f %.6f")
        np.savetxt(file, vertices[:, :2], "vt %.6f %.6f")
        corners = np.repeat(quads + 1, 2, axis=1)
        np.savetxt(file, corners, "f %d/%d %d/%d %d/%d %d/%d")
    faces = quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    others = [folder / "sheet.ply", folder / "sheet.glb"]
    for path in others:
        mesh.export(path)
    return [obj, *others]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=500)
    side = parser.parse_args().side
    result: dict[str, object] = {"benchmark": "meshes", "cpu": platform.processor()}
    with tempfile.TemporaryDirectory() as folder:
        for path in write(Path(folder), side):
            ours, peer, found = [], [], 0
            for _ in range(ROUNDS):
                began = time.perf_counter()
                mesh = meshes.load(path, up="z", max_faces=10_000_000, colours=True)
                read = time.perf_counter()
                trimesh.load_scene(path, process=False)
                peer.append(time.perf_counter() - read)
                ours.append(read - began)
                found = len(mesh.faces)
            ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
            kind = path.suffix[1:]
            result["triangles"] = found
            result[f"{kind}_s"] = round(statistics.median(ours), 3)
            result[f"{kind}_trimesh_s"] = round(statistics.median(peer), 3)
            result[f"{kind}_ratio"] = round(ratio, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
