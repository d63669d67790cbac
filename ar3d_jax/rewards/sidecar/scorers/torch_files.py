"""Large published torch files onto modules, with one line for all that does not fit.

Files are mapped into memory, not read: of ReCon++'s, two thirds are its optimizer's,
and of an LLM's 15 GB a module takes one tensor after the other. Nothing that a pickle
could call is called. Modules are built on torch's `meta` device, without numbers, and
get the file's.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ar3d_jax.rewards.sidecar.features import files

_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, AttributeError, KeyError),
    pickle.UnpicklingError,
)
_NAMED = 3  # of the tensors that do not fit, so many of each kind are named


def read(path: Path, key: str | None, field: str, expected: str) -> dict[str, Tensor]:
    """All tensors of a torch file, or of its entry `key`; they stay on the disk.

    Raises:
        UserError: it is missing or broken, or holds something else.
    """
    if not path.is_file():
        files.refuse(field, path, "is no file", expected)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        files.refuse(
            field, path, f"cannot be read ({files.first_line(error)})", expected
        )
    if key is not None:
        if not isinstance(state, dict) or key not in state:
            files.refuse(field, path, f"has no {key}", expected)
        state = state[key]
    tensors = isinstance(state, dict) and all(
        isinstance(tensor, Tensor) for tensor in state.values()
    )
    if not tensors:
        files.refuse(field, path, "holds something else than named tensors", expected)
    return state


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    unused: Sequence[str],
    place: torch.device,
    dtype: torch.dtype,
    refuse: tuple[str, Path, str],
) -> None:
    """Gives a module on the `meta` device these numbers, ready to use.

    Args:
        module: its names are the file's.
        tensors: by name.
        unused: pieces of names of tensors that are published along and play no part.
        place: where the module is to be.
        dtype: of its numbers.
        refuse: `field`, `path` and `expected` of `files.refuse`.

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
    """
    # BatchNorm counts what it was trained on, which plays no part here.
    wanted = {n: t for n, t in module.state_dict().items() if t.is_floating_point()}
    known = {n for n in tensors if not any(piece in n for piece in unused)}
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = {
        "lacks": [name for name in wanted if name not in tensors],
        "has beyond": [n for n in known if n not in module.state_dict()],
        "has of another shape": shapes,
    }
    said = [f"{what} {_some(names)}" for what, names in problems.items() if names]
    if said:
        field, path, expected = refuse
        files.refuse(field, path, ", ".join(said), expected)
    state = {
        name: tensors[name].to(place, dtype)
        if name in wanted
        else torch.zeros_like(tensor, device=place)
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
