"""Large published torch files onto modules, with one line for all that does not fit.

Files are mapped into memory (`files.read_tensors`), not read: of ReCon++'s, two thirds
are its optimizer's, and of an LLM's 15 GB a module takes one tensor after the other.
Modules are built on torch's `meta` device, without numbers, and get the file's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ar3d_jax.rewards.sidecar.features import files

_NAMED = 3  # of the tensors that do not fit, so many of each kind are named


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
