"""Refuses weights that cannot be right, while they are read.

A file with NaN in it, or whose end was never written and is zeros, loads like any
other; the network then answers nonsense with a straight face. So every piece of a
tensor is looked at on its way from file to device: one pass over bytes that are in the
processor's cache, no second reading.

What passes: zeros in biases, rows of zeros in tables (tokens that were never seen), and
a few rows of zeros in a matrix (units that died). What is not noticed: numbers that are
finite and wrong. `rewards/sidecar/wrong_tensors.py` does the same for torch's tensors.
"""

import numpy as np

from ar3d_jax.errors import UserError

CUT_ROWS = 8  # of zeros at a matrix's end; dead units are single; our choice
REMEDY = "get it again, or have its training checked"

_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


class TensorCheck:
    """Looks at one tensor, piece after piece."""

    def __init__(self, source: object, name: str, *, table: bool = False) -> None:
        """Begins.

        Args:
            source: the file, for messages.
            name: the tensor's there.
            table: its rows are looked up one by one, as embeddings are: some may be
                zeros.
        """
        self._source, self._name, self._table = source, name, table
        self._largest, self._ndim = 0, 0

    def look(self, piece: np.ndarray, *, last: bool = True) -> None:
        """Takes a piece; `last` if a device's share of the tensor ends with it.

        Raises:
            UserError: it has a number that is not finite, or it ends the share with
                CUT_ROWS rows of zeros.
        """
        bits = _magnitudes(piece)
        if bits.size:
            largest = int(bits.max())
            if largest >= int(_magnitudes(np.array([np.inf], piece.dtype))[0]):
                raise self._refusal("has numbers that are not finite")
            self._largest = max(self._largest, largest)
        self._ndim = piece.ndim
        rows = len(piece) if piece.ndim > 1 and not self._table else 0
        cut = last and rows > CUT_ROWS and not bits[-CUT_ROWS:].any()
        if cut and self._largest:
            raise self._refusal(f"ends in {CUT_ROWS} or more rows of zeros")

    def end(self) -> None:
        """All pieces that this process needs were there.

        Raises:
            UserError: all were zeros, of a matrix or of a norm's scale, which
                multiplies all that goes on.
        """
        scale = self._name.endswith("norm.weight")
        if not self._largest and (self._ndim > 1 or scale):
            raise self._refusal("is all zeros")

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"{self._source}: tensor {self._name} {problem}; {REMEDY}")


def _magnitudes(values: np.ndarray) -> np.ndarray:
    """Floating-point numbers without their signs, as integers in the same order.

    0 is zero; infinity and all NaNs are the largest, from infinity's on.
    """
    kind = _BITS[values.dtype.itemsize]
    return np.atleast_1d(values).view(kind) & kind(np.iinfo(kind).max >> 1)
