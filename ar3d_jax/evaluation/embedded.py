"""Meshes inside a page: a browser reads no files beside a page opened from disk.

Each is a compressed GLB in base64. What would make the page too large, or would ask for
more than the file itself, stays outside: the page links to it.
"""

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

MESH_LIMIT = 2 * 2**20  # bytes of a file; our choice
PAGE_LIMIT = 6 * 2**20  # bytes of all, compressed: 8 MB of base64; our choice

# Extensions for which the viewer would fetch a decoder from the network.
_DECODED_ELSEWHERE = {
    "KHR_draco_mesh_compression",
    "EXT_meshopt_compression",
    "KHR_meshopt_compression",
    "KHR_texture_basisu",
}


def embed(folder: Path, meshes: Iterable[str]) -> dict[str, str]:
    """By path as given: base64 of the gzipped file, first come, first served.

    Args:
        folder: what relative paths are relative to.
        meshes: paths, the most important first; doubles are taken once.
    """
    room, found = PAGE_LIMIT, {}
    for mesh in dict.fromkeys(meshes):
        data = read_glb(folder / mesh)
        if data is None:
            continue
        packed = gzip.compress(data, mtime=0)
        if len(packed) <= room:
            room -= len(packed)
            found[mesh] = base64.b64encode(packed).decode()
    return found


def read_glb(path: Path) -> bytes | None:
    """A binary glTF's bytes if it is small and needs no other file; None otherwise."""
    try:
        if path.suffix.lower() != ".glb" or path.stat().st_size > MESH_LIMIT:
            return None
        data = path.read_bytes()
        length = int.from_bytes(data[12:16], "little")
        if data[:4] != b"glTF" or data[16:20] != b"JSON":
            return None
        scene = json.loads(data[20 : 20 + length])
        links = [
            x.get("uri") for kind in ("buffers", "images") for x in scene.get(kind, [])
        ]
        alone = all(link is None or link.startswith("data:") for link in links)
        used = set(scene.get("extensionsUsed", []))
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return data if alone and not used & _DECODED_ELSEWHERE else None
