"""The optimiser's step on any tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import optim, train
from ar3d_jax.config import OptimConfig
from ar3d_jax.higrpo.update import optimiser
from ar3d_jax.metrics import NoLog


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


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"grad_norm": 1.0, "groups_used": 2}, []),
        ({"grad_norm": np.inf, "groups_used": 2}, ["step 3: the gradient is not fini"]),
        ({"grad_norm": 0.0, "groups_used": 0}, ["step 3: no group has any spread of"]),
    ],
)
def test_a_run_says_that_nothing_was_learnt(metrics, said, monkeypatch):
    lines = []
    monkeypatch.setattr(NoLog, "say", lambda self, line: lines.append(line))
    train._warn_of_no_signal(3, metrics, NoLog())
    assert [line[: len(of)] for line, of in zip(lines, said, strict=True)] == said
