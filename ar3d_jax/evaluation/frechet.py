"""Frechet distance (FD, of Inception features: FID) between two sets of vectors.

The squared 2-Wasserstein distance of the Gaussians with the sets' means and sample
covariances: |mu - nu|^2 + tr A + tr B - 2 tr (A B)^(1/2), by Heusel et al. 2017.
Covariances are never formed: with A = X'X and B = Y'Y of centred, scaled rows X and Y,
the last trace is the sum of the singular values of X Y'. That is exact for covariances
without full rank, where others add 1e-6 to their diagonals, and as small as the smaller
of d and the number of vectors. Its standard error is in `uncertainty.py`.
"""

import numpy as np
from jaxtyping import Float


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """FD of two sets, 0 or more, in float64.

    It is biased upwards by sampling, the more so the fewer vectors there are for their
    dimension: compare sets of one size only, and see `sample_warning`.

    Raises:
        ValueError: fewer than two vectors in a set, or a value that is not finite.
    """
    (mean_x, rows_x), (mean_y, rows_y) = centred(x), centred(y)
    across = _small(rows_x) @ _small(rows_y).T
    overlap = np.linalg.svd(across, compute_uv=False).sum()
    spread = np.square(rows_x).sum() + np.square(rows_y).sum()
    found = np.square(mean_x - mean_y).sum() + spread - 2 * overlap
    return max(float(found), 0.0)  # rounding of equal sets


def centred(
    x: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "n d"]]:
    """The mean, and rows whose product X'X is the sample covariance (over n - 1).

    Raises:
        ValueError: fewer than two vectors, or a value that is not finite.
    """
    if len(x) < 2:
        raise ValueError("a Frechet distance needs two vectors of each set")
    if not np.isfinite(x).all():
        raise ValueError("a feature is not finite")
    mean = x.mean(axis=0, dtype=np.float64)
    return mean, (x - mean) / np.sqrt(len(x) - 1)


def _small(rows):
    """Rows with the same product X'X, at most d of them."""
    if len(rows) <= rows.shape[1]:
        return rows
    return np.asarray(np.linalg.qr(rows, mode="r"))


def influence(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """How much each vector pulls at FD: its change per weight moved to that vector.

    The derivatives along the weights of all vectors, each set's summing to 0, that a
    standard error is made of (`uncertainty.py`). With X Y' = U S V', the derivative of
    the sum of its singular values along the weight 1/n of row i is n/2 (U S U')_ii;
    moving the means adds nothing, as U is orthogonal to the weights.
    """
    (mean_x, rows_x), (mean_y, rows_y) = centred(x), centred(y)
    basis_x, small_x = _factors(rows_x)
    basis_y, small_y = _factors(rows_y)
    left, values, right = np.linalg.svd(small_x @ small_y.T, full_matrices=False)
    left = left if basis_x is None else basis_x @ left
    right = right.T if basis_y is None else basis_y @ right.T

    def pull(rows, vectors, shift):
        n = len(rows)
        overlap = np.square(vectors) @ values
        found = n * (np.square(rows).sum(axis=1) - overlap)
        found += 2 * np.sqrt(n - 1) * rows @ shift
        return found - found.mean()

    shift = mean_x - mean_y
    return pull(rows_x, left, shift), pull(rows_y, right, -shift)


def _factors(rows):
    """Q (None: identity) and `_small(rows)`, whose product the rows are."""
    if len(rows) <= rows.shape[1]:
        return None, rows
    return np.linalg.qr(rows)


def sample_warning(n: int, d: int) -> str | None:
    """One line where n vectors are too few for an FD in d dimensions, or None.

    With n <= d the covariance has no full rank, and the bias exceeds what is measured.
    """
    if n > d:
        return None
    return (
        f"FD of {n} vectors in {d} dimensions is biased, as their covariance has no "
        f"full rank: take more than {d} vectors, or read KD"
    )
