"""The optimiser's step on any tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import optim
from ar3d_jax.config import OptimConfig
from ar3d_jax.higrpo.update import optimiser


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_a_broken_gradient_leaves_only_weight_decay(broken):
    """And the next step is as if it had been 0."""
    adamw = optimiser(OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.5))
    before = {"a": jnp.ones(3), "b": jnp.full((2, 2), -2.0)}
    bad = {"a": jnp.array([1.0, broken, 1.0]), "b": jnp.ones((2, 2))}
    good = jax.tree.map(jnp.ones_like, before)

    def steps(first):
        parameters, state = before, optim.init(adamw, before)
        found = []
        for gradient in (first, good):
            parameters, state = optim.step(adamw, gradient, state, parameters)
            found.append(parameters)
        return found

    found, expected = steps(bad), steps(jax.tree.map(jnp.zeros_like, before))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_allclose(found[0]["a"], 1 - 0.1 * 0.5, rtol=1e-6)
    assert (found[1]["a"] < found[0]["a"]).all()
