"""The networks' process for tests: the real one, with networks that obey the caption.

| caption | the networks |
|---|---|
| raise | the first set's raises |
| nan | the first set's numbers are not finite |
| die once NAME | kill -9 their own process after half of the work, the first time |
| die | kill -9 their own process, each time |
| long ... | say that the caption did not fit |
| anything else | numbers from the views' and the caption's bytes |
"""

import os
import signal
import zlib

import numpy as np

from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire
from ar3d_jax.rewards.feature_sets import FEATURE_SETS
from ar3d_jax.rewards.sidecar.features import __main__ as process
from ar3d_jax.rewards.sidecar.features import networks
from tests.rewards.stand_in_sidecar import kill_oneself


def numbers(content, count):
    random = np.random.default_rng(zlib.crc32(content))
    return random.standard_normal(count).astype(np.float32)


class ObedientNetwork:
    def __init__(self, name):
        self.name = name

    def embed_views(self, pictures):
        seen = [view.tobytes() + self.name.encode() for view in pictures.views]
        return np.stack([numbers(s, FEATURE_SETS[self.name].dim) for s in seen])

    def embed_text(self, text):
        match text.split():
            case ["raise"]:
                raise ValueError("as I\nwas told")
            case ["nan"]:
                return np.float32("nan"), False
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["die", "once", name]:
                kill_oneself(name)
        width = FEATURE_SETS[self.name].text_dim
        return numbers(text.encode(), width), text.startswith("long")


def load(name, path, device):
    if path == "broken":
        raise UserError(f"features.weights.{name}: broken")
    return ObedientNetwork(name)


if __name__ == "__main__":
    networks.load = load
    process.start_torch = lambda config: "cpu"  # takes seconds
    wire.run_child(process._prepare)
