"""The networks' process: `python -m ar3d_jax.rewards.sidecar.features SOCKET RING`.

Views of a slot in, vectors into the same slot. The slots and the messages are in
`rewards/wire.py`; `rewards/courier.py` starts and replaces this process.
"""

import contextlib
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ar3d_jax.config import FeaturesConfig, from_config_dict
from ar3d_jax.errors import UserError
from ar3d_jax.rewards import feature_sets, wire
from ar3d_jax.rewards.sidecar.features import networks
from ar3d_jax.rewards.sidecar.features.pictures import Pictures


def start_torch(config: FeaturesConfig) -> str:
    """The device to use; on it, this process and its successor compute the same bits.

    Raises:
        UserError: there is no PyTorch, or no GPU, and one is wanted.
    """
    # Read when the libraries start. Threads that wait sleep: spinning, they would take
    # the cores from render workers, and on a busy machine from each other (6x slower).
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # cuBLAS then sums in the same order each time.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            "the feature networks need PyTorch, which is not installed: "
            "pip install torch"
        ) from error
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise UserError(
            "features.device is cuda, and torch sees no GPU; pass "
            "--config.features.device=auto or cpu"
        )
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    # float32 all through: TF32's 10 bits would move distances between systems.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return "cuda" if there and config.device != "cpu" else "cpu"


def measure_object(
    loaded: Mapping[str, networks.Network],
    caption: str,
    views: UInt8[np.ndarray, "V H W 3"],
    vectors: Float[np.ndarray, " K"],
    sets: tuple[str, ...],
) -> tuple[dict[str, str | None], list[str]]:
    """Fills `vectors`; why sets failed (None: did not), and which cut the caption.

    A failure stays inside its set: the others have their vectors.
    """
    pictures = Pictures(views)
    reasons: dict[str, str | None] = {}
    truncated: list[str] = []
    for name, (seen, read) in feature_sets.split(vectors, sets, len(views)).items():
        reasons[name] = None
        try:
            seen[:] = loaded[name].embed_views(pictures)
            if len(read):
                read[:], cut = loaded[name].embed_text(caption)
                truncated += [name] * cut
            if not (np.isfinite(seen).all() and np.isfinite(read).all()):
                reasons[name] = "the network's numbers are not finite"
        except Exception as error:
            traceback.print_exc()
            reasons[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return reasons, truncated


@contextlib.contextmanager
def _prepare(values: dict[str, Any], ring: wire.Ring) -> Iterator[wire.Answer]:
    config = from_config_dict(values, FeaturesConfig)
    device = start_torch(config)
    loaded = {
        name: networks.load(name, getattr(config.weights, name), device)
        for name in config.sets
    }

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        slot, sequence = request["measure"], request["sequence"]
        sets, started = tuple(request["sets"]), time.perf_counter()
        if ring.drawn[slot] == sequence:
            reasons, truncated = measure_object(
                loaded, request["caption"], ring.views[slot], ring.vectors[slot], sets
            )
        else:
            reason = f"slot {slot} holds another object than announced"
            reasons, truncated = dict.fromkeys(sets, reason), []
        return {
            "measured": slot,
            "sequence": sequence,
            "seconds": time.perf_counter() - started,
            "reasons": reasons,
            "truncated": truncated,
        }

    yield answer


if __name__ == "__main__":
    wire.run_child(_prepare)
