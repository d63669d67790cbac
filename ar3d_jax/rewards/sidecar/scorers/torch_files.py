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
        UserError: tensors are missing, unexpected, of another shape or cannot be right.
    """
    wanted = files.numbers_of(module)
    extra = [
        name
        for name in tensors
        if name not in module.state_dict() and not any(part in name for part in unused)
    ]
    field, path, expected = refuse
    files.compare(wanted, tensors, path, field, expected, extra=extra)
    state = {
        name: tensors[name].to(place, dtype)
        if name in wanted
        else torch.zeros_like(tensor, device=place)
        for name, tensor in module.state_dict().items()
    }
    used = ((name, state[name]) for name in wanted)  # as they are on their device
    files.refuse_damage(used, path, field, expected)
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()
