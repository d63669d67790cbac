"""Standard errors: how far a number would move with other objects from the same source.

Objects are what is drawn; views and seeds of an object belong together and never count
as more objects.

- Means over objects: a bootstrap.
- KD and FD: from each object's influence on the number (`influence` of the metric), an
  infinitesimal jackknife. A bootstrap is no choice here. It gives a set repeated
  objects, whose kernel values with themselves KD must leave out, and it narrows
  covariances, which moves FD up by more than its own error. The influences need one
  decomposition, where leaving out objects in turn takes hundreds.

The jackknife's variance, v(n) of n objects, is too large where two sets are nearly of
one distribution: what is left of KD and FD then is of second order, and influences
carry sampling noise. A second-order statistic's own variance is q / n^2, and v(n) =
p / n + 2 q / n^2, if p / n is the first order's. Halves of the objects have v(n / 2) =
2 p / n + 8 q / n^2, so (3 v(n) - v(n / 2) / 2) / 2 is what is sought. It is never less
than v(n) / 2, which it is where p = 0. Our choice: tests/evaluation/test_uncertainty.py
holds the errors against the spread over fresh draws.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ar3d_jax.evaluation import frechet, kernel_distance

Sets = tuple[np.ndarray, ...]  # the reference, then one or two systems: [o, view, d]
# From sets without their object axis to the influence of each vector, set by set.
Influence = Callable[..., Sets]


class Estimate(NamedTuple):
    """A number, its standard error (NaN: of fewer than two objects) and the objects."""

    mean: float
    error: float
    n: int


def over_objects(
    values: Float[np.ndarray, " object *seed"], *, resamples: int, seed: int
) -> Estimate:
    """The mean over objects of the mean over seeds; NaN stands for what failed.

    An object without any value is left out. The error is the standard deviation of the
    mean over `resamples` bootstrap draws of objects by default_rng(seed), times
    (n / (n - 1))^(1/2): resampled objects spread less than fresh ones by that factor.
    """
    values = _over_seeds(values)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Estimate(float(values.mean()) if n else math.nan, math.nan, n)
    random = np.random.default_rng(seed)
    means = [values[random.integers(n, size=n)].mean() for _ in range(resamples)]
    error = np.std(means, ddof=1) * math.sqrt(n / (n - 1))
    return Estimate(float(values.mean()), float(error), n)


def difference(
    a: Float[np.ndarray, " object *seed_a"],
    b: Float[np.ndarray, " object *seed_b"],
    *,
    resamples: int,
    seed: int,
) -> Estimate:
    """The mean of b - a over the objects that both have: row i of both is one object.

    Seeds are averaged first: they are no pairs. Then as `over_objects`.
    """
    found = _over_seeds(b) - _over_seeds(a)
    return over_objects(found, resamples=resamples, seed=seed)


def _over_seeds(values):
    """[object] means of what is not NaN; NaN where nothing is."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    there = ~np.isnan(values)
    count = there.sum(axis=1)
    sums = np.where(there, values, 0).sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def frechet_error(
    x: Float[np.ndarray, "object_x view_x d"],
    y: Float[np.ndarray, "object_y view_y d"],
    *,
    paired: bool,
    seed: int,
) -> float:
    """Standard error of `frechet_distance` of all vectors; NaN below two objects.

    Args:
        x: the reference's vectors by object; several seeds' views stand side by side.
        y: the system's.
        paired: row i of both is one object, so that both are drawn together.
        seed: of the halves into which the objects are divided.
    """
    return math.sqrt(_variance(frechet.influence, (x, y), paired, seed))


def frechet_difference(
    x: Float[np.ndarray, "object_x view_x d"],
    a: Float[np.ndarray, "object_y view_a d"],
    b: Float[np.ndarray, "object_y view_b d"],
    *,
    paired: bool,
    seed: int,
) -> Estimate:
    """FD(x, b) - FD(x, a) of two systems over the same objects, and its error.

    Args:
        x: the reference's vectors by object.
        a: one system's.
        b: the other's, row by row for the same objects as `a`.
        paired: these are the objects of `x` as well.
        seed: as in `frechet_error`.
    """
    reference = _flat(x)
    found = frechet.frechet_distance(reference, _flat(b))
    found -= frechet.frechet_distance(reference, _flat(a))
    variance = _variance(_contrast(frechet.influence), (x, a, b), paired, seed)
    return Estimate(found, math.sqrt(variance), len(a))


def kernel_error(
    x: Float[np.ndarray, "object_x view_x d"],
    y: Float[np.ndarray, "object_y view_y d"],
    *,
    paired: bool,
    subsets: int,
    subset_size: int,
    seed: int,
) -> float:
    """Standard error of `kernel_distance` (x 100) of all vectors.

    To the objects' part it adds that of drawing subsets, where these are smaller than
    the sets. Arguments as in `frechet_error` and `kernel_distance`.
    """
    variance = _variance(kernel_distance.influence, (x, y), paired, seed)
    if subset_size < max(len(_flat(x)), len(_flat(y))):
        drawn = kernel_distance.subset_distances(
            _flat(x), _flat(y), subsets=subsets, subset_size=subset_size, seed=seed
        )
        variance += _of_mean(drawn)
    return 100 * math.sqrt(variance)


def kernel_difference(
    x: Float[np.ndarray, "object_x view_x d"],
    a: Float[np.ndarray, "object_y view_a d"],
    b: Float[np.ndarray, "object_y view_b d"],
    *,
    paired: bool,
    subsets: int,
    subset_size: int,
    seed: int,
) -> Estimate:
    """KD(x, b) - KD(x, a) (x 100) of two systems over the same objects, and its error.

    Arguments as in `frechet_difference` and `kernel_distance`.
    """
    drawn_a, drawn_b = (
        kernel_distance.subset_distances(
            _flat(x), _flat(y), subsets=subsets, subset_size=subset_size, seed=seed
        )
        for y in (a, b)
    )
    found = drawn_b - drawn_a
    variance = _variance(_contrast(kernel_distance.influence), (x, a, b), paired, seed)
    variance += _of_mean(found)
    return Estimate(100 * float(found.mean()), 100 * math.sqrt(variance), len(a))


def _of_mean(drawn: np.ndarray) -> float:
    """Variance of the mean of independent draws; of one draw it is unknown, so 0."""
    return float(np.var(drawn, ddof=1)) / len(drawn) if len(drawn) > 1 else 0.0


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _contrast(influence: Influence) -> Influence:
    """The influences on metric(x, b) - metric(x, a) from those on the metric."""

    def of_difference(x, a, b):
        (x_a, y_a), (x_b, y_b) = influence(x, a), influence(x, b)
        return x_b - x_a, -y_a, y_b

    return of_difference


def _variance(influence: Influence, sets: Sets, paired: bool, seed: int) -> float:
    """Of the number whose influences these are, as in the docstring of the module.

    Raises:
        ValueError: sets of the same objects differ in how many they have.
    """
    counts = [len(x) for x in sets]
    same = counts if paired else counts[1:]
    if len(set(same)) > 1:
        raise ValueError(f"sets of the same objects have {same} of them")
    if min(counts) < 2:
        return math.nan
    whole = _first_order(influence, sets, paired)
    if min(counts) < 4:  # there are no halves of two objects
        return whole
    random = np.random.default_rng(seed)
    order_x = random.permutation(counts[0])
    order_y = order_x if paired else random.permutation(counts[1])
    halves = 0.0
    for part in (slice(0, None, 2), slice(1, None, 2)):
        half = sets[0][order_x[part]], *(y[order_y[part]] for y in sets[1:])
        halves += _first_order(influence, half, paired) / 2
    return max(1.5 * whole - 0.25 * halves, 0.5 * whole)


def _first_order(influence: Influence, sets: Sets, paired: bool) -> float:
    """The variance of the objects' mean influence: the infinitesimal jackknife's."""
    pulls = influence(*(_flat(x) for x in sets))
    x, *others = (
        pull.reshape(len(x), -1).mean(axis=1)
        for pull, x in zip(pulls, sets, strict=True)
    )
    y = np.sum(others, axis=0)
    independent = [x + y] if paired else [x, y]
    return sum(float(np.var(group, ddof=1)) / len(group) for group in independent)
