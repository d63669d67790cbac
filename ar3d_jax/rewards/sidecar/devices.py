"""Where a scorer's model computes, in which precision, and that it can be repeated."""

import os

import torch

from ar3d_jax.errors import UserError


def start(threads: int) -> None:
    """This process, and the one that replaces it, compute the same bits on a CPU."""
    # cuBLAS sums in the same order each time; read when the first GPU is used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)


def device_of(name: str, field: str) -> torch.device:
    """The device of a config field; `auto`: the first GPU, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):  # of torch's others none is tested
            raise RuntimeError(f"a device of type {device.type}")
    except RuntimeError as error:
        raise UserError(
            f"config field {field} is {name!r}; expected auto, cpu or cuda:0"
        ) from error
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise UserError(
            f"config field {field} is {name!r}, and PyTorch sees {there} GPUs; "
            "expected auto, cpu or one that is there"
        )
    return device


def dtype_of(name: str, device: torch.device, on_gpu: torch.dtype) -> torch.dtype:
    """The type of a config field; `auto`: `on_gpu` on a GPU, float32 on a CPU."""
    if name == "auto":
        return on_gpu if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def empty() -> None:
    """Gives memory back that PyTorch keeps for itself: another model wants it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
