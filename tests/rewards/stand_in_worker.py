"""A render worker for tests that are not about pictures: fast, and without OpenGL.

`views` and `points` are filled from the logits. The first logit says more:

| logits[0, 0, 0] | the worker |
|---|---|
| 1000 | fills half of the views and kill -9s itself, the first time |
| 2000 | kill -9s itself, each time |
| 3000 | answers about another slot, the first time |
| 4000 | never answers, and holds the interpreter |
"""

import contextlib
import ctypes
import os
import signal

import numpy as np

from ar3d_jax.rewards import wire
from tests.rewards.stand_in_sidecar import kill_oneself


@contextlib.contextmanager
def prepare(config, ring):
    def draw(request):
        slot, sequence = request["draw"], request["sequence"]
        if not np.isfinite(ring.logits[slot]).all():
            return answer(slot, sequence, "ValueError: the logits are not finite")
        content = ring.logits[slot].ravel()
        ring.views[slot, :3] = int(content[1:100].sum()) % 256
        match content[0]:
            case 1000:
                kill_oneself("worker died")
            case 2000:
                os.kill(os.getpid(), signal.SIGKILL)
            case 3000 if not os.path.exists(mark := os.environ["STAND_IN_DIR"] + "/m"):
                open(mark, "w").close()
                return answer(slot + 1, sequence)
            case 4000:
                ctypes.PyDLL(None).pause()
        ring.views[slot, 3:] = int(content[1:200].sum()) % 256
        ring.points[slot] = content[1:4]
        ring.point_count[slot] = len(ring.points[slot])
        ring.drawn[slot] = sequence
        return answer(slot, sequence)

    yield draw


def answer(slot, sequence, error=None):
    return {"drawn": slot, "sequence": sequence, "seconds": 0.0, "error": error}


if __name__ == "__main__":
    wire.VERSION = int(os.environ.get("STAND_IN_VERSION", wire.VERSION))
    wire.run_child(prepare)
