"""A sidecar for tests: the real server, with a scorer that does as the prompt says.

| prompt | the scorer |
|---|---|
| raise | raises |
| nan | has no value, and says why |
| mute | says nothing about any role |
| die once NAME | kill -9s its own process, the first time |
| die | kill -9s its own process, each time |
| hang | never returns, and holds the interpreter: nothing else in the process runs |
| anything else | a number from the views', the points' and the prompt's bytes |

With STAND_IN_SCORES=smooth that number hardly changes where the object hardly does;
with STAND_IN_SCORES=equal it is the same for all objects of half of the prompts. A
score takes STAND_IN_SECONDS.
"""

import ctypes
import math
import os
import pathlib
import signal
import time
import zlib

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import scorers, server


def kill_oneself(name):
    """kill -9 of this process, but only the first time for one name."""
    mark = pathlib.Path(os.environ["STAND_IN_DIR"]) / name
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class ObedientScorer:
    about = scorers.About("obedient", "1", "here")
    batch = 1

    def wake(self):
        pass

    def rest(self):
        pass

    def score(self, subjects):
        return [
            self.score_object(s.prompt, s.views, s.points, s.roles) for s in subjects
        ]

    def score_object(self, prompt, views, points, roles):
        match prompt.split():
            case ["raise"]:
                raise ValueError("as I was told")
            case ["nan"]:
                return dict.fromkeys(roles, (float("nan"), "no idea"))
            case ["mute"]:
                return {}
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["die", "once", name]:
                kill_oneself(name)
            case ["hang"]:
                pathlib.Path(os.environ["STAND_IN_DIR"], "hanging").touch()
                ctypes.PyDLL(None).pause()  # PyDLL keeps the interpreter's lock
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        kind = os.environ.get("STAND_IN_SCORES")
        if kind == "equal" and zlib.crc32(prompt.encode()) % 2:
            return dict.fromkeys(roles, (0.5, None))
        if kind == "smooth":
            return {role: (_smooth(views, prompt + role), None) for role in roles}
        content = views.tobytes() + points.tobytes() + prompt.encode()
        return {
            role: (zlib.crc32(role.encode(), zlib.crc32(content)) / 2**32, None)
            for role in roles
        }

    def close(self):
        pathlib.Path(os.environ["STAND_IN_DIR"], "closed").touch()


def _smooth(views, text):
    return math.sin(float(views.mean()) / 9 + zlib.crc32(text.encode()))


def load(config):
    match os.environ.get("STAND_IN_START"):
        case "bad weights":
            raise UserError("weights w: a has shape (2,), expected (3,)")
        case "crash":
            raise RuntimeError("out of luck")
    return ObedientScorer()


if __name__ == "__main__":
    scorers.SCORERS = dict.fromkeys(scorers.SCORERS, "tests.rewards.stand_in_sidecar")
    server.main()
