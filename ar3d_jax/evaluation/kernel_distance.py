"""Kernel distance (KD, of Inception features: KID) between two sets of feature vectors.

The squared maximum mean discrepancy under the kernel k(x, y) = (x.y / d + 1)^3, without
the vectors' kernel values with themselves, and so unbiased (Binkowski et al. 2018;
dgm-eval, torch-fidelity and clean-fid compute the same). It is a difference of means
and may be negative, most of all between equal sets. Its standard error is in
`uncertainty.py`; the public script's similarity is here for `eval_py.py`.
"""

import numpy as np
from jaxtyping import Float

CHUNK = 1 << 24  # kernel values held at once: 128 MiB


def kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subsets: int,
    subset_size: int,
    seed: int,
) -> float:
    """KD x 100 of two sets: the mean of `subset_distances`, as tables print it.

    About 0 for two samples of one distribution, negative for one sample given twice.

    Raises:
        ValueError: see `subset_distances`.
    """
    found = subset_distances(x, y, subsets=subsets, subset_size=subset_size, seed=seed)
    return 100 * float(found.mean())


def subset_distances(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subsets: int,
    subset_size: int,
    seed: int,
) -> Float[np.ndarray, " subsets"]:
    """The squared discrepancy (not x 100) of random subsets, float64.

    A subset is min(subset_size, n, m) vectors of each set, drawn without replacement
    by numpy's default_rng(seed), of x and of y in turn. Each kernel value is computed
    once, however many subsets have it.

    Raises:
        ValueError: fewer than two vectors in a set, or a value that is not finite.
    """
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise ValueError("a kernel distance needs two vectors of each set")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a feature is not finite")
    random = np.random.default_rng(seed)
    in_x, in_y = np.zeros((subsets, len(x))), np.zeros((subsets, len(y)))
    for row_x, row_y in zip(in_x, in_y, strict=True):
        row_x[random.choice(len(x), size, replace=False)] = 1
        row_y[random.choice(len(y), size, replace=False)] = 1
    within = _sums(x, x, in_x, in_x) - in_x @ self_kernel(x)
    within += _sums(y, y, in_y, in_y) - in_y @ self_kernel(y)
    across = _sums(x, y, in_x, in_y)
    return within / (size * (size - 1)) - 2 * across / size**2


def _sums(x, y, in_x, in_y):
    """The sum of the kernel over x and y of each subset: [subset]."""
    total = np.zeros(len(in_x))
    step = max(1, CHUNK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        total += np.sum(in_x[:, rows] * (in_y @ kernel(x[rows], y).T), axis=1)
    return total


def influence(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """How much each vector pulls at the discrepancy of the whole sets (not x 100).

    The derivatives along the weights of all vectors, each set's summing to 0, that a
    standard error is made of (`uncertainty.py`): twice what the vector's mean kernel
    value with its own set exceeds that with the other by, less the mean over the set.
    """
    within_x = _margins(x, x)[0] - self_kernel(x) / len(x)
    within_y = _margins(y, y)[0] - self_kernel(y) / len(y)
    across_x, across_y = _margins(x, y)
    pull_x = 2 * (within_x * len(x) / (len(x) - 1) - across_x)
    pull_y = 2 * (within_y * len(y) / (len(y) - 1) - across_y)
    return pull_x - pull_x.mean(), pull_y - pull_y.mean()


def _margins(x, y):
    """Each vector's mean kernel value with the other set: [n], [m]."""
    step = max(1, CHUNK // len(y))
    of_x, of_y = np.zeros(len(x)), np.zeros(len(y))
    for start in range(0, len(x), step):
        values = kernel(x[start : start + step], y)
        of_x[start : start + step] = values.mean(axis=1)
        of_y += values.sum(axis=0)
    return of_x, of_y / len(x)


def kernel(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """k(x, y) = (x.y / d + 1)^3 of all pairs, float64."""
    return _cube(x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1)


def self_kernel(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """k(x, x) of each vector, float64: what the unbiased estimator leaves out."""
    return _cube(np.square(x, dtype=np.float64).mean(axis=1) + 1)


def _cube(values):
    return values * values * values  # `** 3` takes twenty times as long


def rbf_similarity(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    gamma: float = 1 / 768,
) -> float:
    """Mean over all pairs of exp(-gamma |x - y|^2), in (0, 1]; higher is closer.

    3DGen-R1's eval.py calls this "KD". It is the cross term of a discrepancy alone: a
    similarity, and no distance, which has no fixed value for equal distributions. Its
    gamma is 1 / d of DINOv2-base. Values that are not finite give NaN.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
        return float(np.exp(-gamma * np.maximum(squares, 0)).mean())
