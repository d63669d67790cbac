"""Views per second from logits in the trainer to pictures in shared memory.

    python -m benchmarks.render

Two render workers draw 32 objects of 32^3 logits, six views of 224 px each: transport,
marching cubes, drawing and surface points included. The peer, in turns with it in the
same run, is pyrender as its documentation uses it: `OffscreenRenderer.render` once per
view, from meshes that are ready, with as many threads as Mesa likes.

`views_per_cpu_s` counts processor time, which a busy machine does not stretch as much.

Target: at least 60 views per second on two cores. Prints one JSON line.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import trimesh
from scipy.ndimage import gaussian_filter

from ar3d_jax.codec.surface import extract
from ar3d_jax.config import RenderConfig
from ar3d_jax.render.cameras import camera_poses
from ar3d_jax.rewards.client import Scoring

OBJECTS, RESOLUTION, ROUNDS, PEER_OBJECTS = 32, 32, 7, 4
CONFIG = RenderConfig()


def objects(count: int) -> np.ndarray:
    """Logits of round things with arms and holes: about 10,000 triangles each."""
    random = np.random.default_rng(0)
    axis = (np.arange(RESOLUTION) + 0.5) / RESOLUTION - 0.5
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    ball = 20 * (0.33 - np.linalg.norm(grid, axis=-1))
    noise = [random.standard_normal(ball.shape) for _ in range(count)]
    smooth = [gaussian_filter(field, 2.5) for field in noise]
    return np.stack([ball + 3 * f / f.std() for f in smooth]).astype(np.float32)


def cpu_s(scoring: Scoring) -> float:
    """Processor seconds so far, of this process and of `scoring`'s."""
    stats = [Path(f"/proc/{p['pid']}/stat") for p in scoring.processes.values()]
    ticks = [
        stat.read_text("utf-8").rpartition(")")[2].split()[11:13] for stat in stats
    ]
    children = sum(int(tick) for pair in ticks for tick in pair)
    return time.process_time() + children / os.sysconf("SC_CLK_TCK")


class Peer:
    """pyrender's own way."""

    def __init__(self) -> None:
        os.environ["PYOPENGL_PLATFORM"] = "egl"
        import pyrender

        self.pyrender = pyrender
        self.renderer = pyrender.OffscreenRenderer(CONFIG.size, CONFIG.size)
        self.scene = pyrender.Scene(bg_color=[1.0, 1.0, 1.0], ambient_light=[0.3] * 3)
        lens = pyrender.PerspectiveCamera(yfov=np.radians(CONFIG.fov_deg))
        self.camera = self.scene.add(lens)
        self.light = self.scene.add(pyrender.DirectionalLight(intensity=3.0))

    def draw(self, mesh: trimesh.Trimesh) -> None:
        """Draws all views of a mesh."""
        node = self.scene.add(self.pyrender.Mesh.from_trimesh(mesh, smooth=True))
        for pose in camera_poses(
            CONFIG.views, pitch_deg=CONFIG.pitch_deg, radius=CONFIG.radius
        ):
            self.scene.set_pose(self.camera, pose)
            self.scene.set_pose(self.light, pose)
            self.renderer.render(self.scene)
        self.scene.remove_node(node)


def main() -> None:
    """Measures and prints."""
    load = os.getloadavg()[0]
    logits = objects(OBJECTS)
    meshes = [extract(grid) for grid in logits]
    smooth = [trimesh.Trimesh(m.vertices, m.faces, process=False) for m in meshes]
    prompts, own, peers = [""] * OBJECTS, [], []
    peer = Peer()
    peer.draw(smooth[0])
    with (
        tempfile.TemporaryDirectory() as logs,
        Scoring(CONFIG, None, RESOLUTION, 8, logs) as scoring,
    ):
        scoring.collect(scoring.submit(logits, prompts, "coarse"))  # warm
        own_cpu = peer_cpu = 0.0
        for _ in range(ROUNDS):
            started, own_cpu = time.perf_counter(), own_cpu - cpu_s(scoring)
            scoring.collect(scoring.submit(logits, prompts, "coarse"))
            own.append(OBJECTS * CONFIG.views / (time.perf_counter() - started))
            own_cpu += cpu_s(scoring)
            started, peer_cpu = time.perf_counter(), peer_cpu - time.process_time()
            for mesh in smooth[:PEER_OBJECTS]:
                peer.draw(mesh)
            peers.append(PEER_OBJECTS * CONFIG.views / (time.perf_counter() - started))
            peer_cpu += time.process_time()
    result = {
        "benchmark": "render",
        "views_per_s": round(statistics.median(own), 1),
        "best_views_per_s": round(max(own), 1),
        "pyrender_views_per_s": round(statistics.median(peers), 1),
        "best_pyrender_views_per_s": round(max(peers), 1),
        "ratio": round(
            statistics.median(a / b for a, b in zip(own, peers, strict=True)), 2
        ),
        "views_per_cpu_s": round(ROUNDS * OBJECTS * CONFIG.views / own_cpu, 1),
        "pyrender_views_per_cpu_s": round(
            ROUNDS * PEER_OBJECTS * CONFIG.views / peer_cpu, 1
        ),
        "triangles": int(np.median([len(mesh.faces) for mesh in meshes])),
        "size": CONFIG.size,
        "workers": CONFIG.workers,
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
        "target_views_per_s": 60,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
