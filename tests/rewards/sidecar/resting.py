"""What rests and wakes, on a machine without a GPU."""

import pytest
import torch

from ar3d_jax.rewards.sidecar import devices

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def rest_and_wake(owner, *modules):
    """Rests and wakes it; and before, as if it were on a GPU, sees what would move.

    Args:
        owner: a scorer or a chat, on the CPU.
        modules: all that it must move.
    """
    moves = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module,
            "to",
            lambda module, place: moves.append((module, torch.device(place))),
        )
        patch.setattr(devices, "empty", lambda: moves.append("empty"))
        patch.setattr(owner, "_device", GPU)
        owner.rest()
        assert moves == [*((module, CPU) for module in modules), "empty"]
        moves.clear()
        owner.wake()
        assert moves == [(module, GPU) for module in modules]
    owner.rest()
    owner.wake()
