"""A render worker for tests of mesh files: fast, and without OpenGL.

A "mesh" is a text file, and the picture a function of its words:

| words | the worker |
|---|---|
| broken | says that it cannot be read |
| die once NAME | fills half of the views and kill -9s itself, the first time |
| die | kill -9s itself, each time |
| anything else | fills views and points from the words and the up axis |
"""

import contextlib
import os
import pathlib
import signal
import zlib

import numpy as np

from ar3d_jax.rewards import wire
from tests.rewards.stand_in_sidecar import kill_oneself


@contextlib.contextmanager
def prepare(config, ring):
    def draw(request):
        slot = request["draw"]
        answer = {"drawn": slot, "sequence": request["sequence"], "seconds": 0.5}
        words = pathlib.Path(request["mesh"]).read_text("utf-8")
        random = np.random.default_rng(zlib.crc32((words + request["up"]).encode()))
        views = random.integers(0, 256, ring.views[slot].shape, np.uint8)
        ring.views[slot, :1] = views[:1]
        match words.split():
            case ["broken"]:
                return answer | {"error": "ValueError: no mesh in it"}
            case ["die", "once", name]:
                kill_oneself(name)
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
        ring.views[slot] = views
        ring.points[slot] = random.random(ring.points[slot].shape)
        ring.point_count[slot] = len(ring.points[slot])
        ring.drawn[slot] = request["sequence"]
        return answer | {"error": None}

    yield draw


if __name__ == "__main__":
    wire.run_child(prepare)
