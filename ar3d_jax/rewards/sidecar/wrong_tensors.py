"""What cannot be right about a network's tensors: `ar3d_jax/tensor_check.py` for torch.

A reward model that holds NaN or zeros would score, and nobody would see it.
"""

import torch
from torch import Tensor

PIECE = 1 << 24  # numbers looked at at once: little memory beside a tensor
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def problem_of(name: str, tensor: Tensor) -> str:
    """What cannot be right about a network's tensor, in words; "" where nothing is.

    As `ar3d_jax/tensor_check.py`: numbers that are not finite, and matrices that are
    all zeros. Vectors may be zeros, as biases are, and tokens of masks, [1, D].
    """
    if not tensor.is_floating_point() or tensor.element_size() not in _BITS:
        return ""
    kind = _BITS[tensor.element_size()]
    sign = torch.iinfo(kind).max
    infinity = torch.tensor([torch.inf], dtype=tensor.dtype).view(kind).item()
    # Without its sign a number's bits are an integer in the same order: 0 is zero, and
    # infinity and all NaNs are the largest.
    pieces = tensor.detach().reshape(-1).split(PIECE)
    largest = max(
        (int((p.view(kind) & sign).max()) for p in pieces if len(p)), default=1
    )
    if largest >= infinity:
        return f"has a tensor {name} with numbers that are not finite"
    matrix = sum(size > 1 for size in tensor.shape) > 1
    return f"has a tensor {name} that is all zeros" if matrix and not largest else ""
