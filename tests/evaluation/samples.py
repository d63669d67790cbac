"""Seeded feature sets that golden numbers of other libraries were computed for."""

import numpy as np


def two_sets(seed, n, m, d):
    """Float64 [n, d] and [m, d]: white noise, and mixed noise with another mean."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((d, d)) / np.sqrt(d)
    x = random.standard_normal((n, d))
    return x, random.standard_normal((m, d)) @ mix + 0.3
