"""A torch checkpoint as safetensors: `python -m ar3d_jax.rewards.sidecar.unpickle`.

    ... SOURCE.bin TARGET.safetensors

The trainer has no torch and runs this once. Only tensors are read (`weights_only`):
nothing that a pickle could call is called.
"""

import sys

import safetensors.torch
import torch


def main(source: str, target: str) -> int:
    """Exit status 2 and one line where the file holds something else."""
    try:
        state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    except Exception as error:  # of pickle's, of zip's, of torch's: many kinds
        first = (str(error).splitlines() or [type(error).__name__])[0]
        print(first[:200], file=sys.stderr)
        return 2
    safetensors.torch.save_file(tensors, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
