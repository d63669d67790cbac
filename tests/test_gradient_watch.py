"""When a training ends because its numbers are none, and what is never saved."""

import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax.errors import Diverged
from ar3d_jax.gradient_watch import LIMIT, GradientWatch, check_weights


def test_five_in_a_row_end_it():
    said = []
    watch = GradientWatch(said.append, "lower lr")
    for step, norm in enumerate([np.nan] * (LIMIT - 1) + [1.0] + [np.inf] * LIMIT):
        watch.check()
        watch.look(step, np.float32(norm))
    with pytest.raises(Diverged, match=r"not finite in 5 steps in a row.*lower lr"):
        watch.check()
    assert len(said) == 2 * LIMIT - 1
    assert said[0] == (
        "step 0: the gradient is not finite and was left out; if this goes on, lower lr"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_saved(value):
    good = {"a": jnp.ones((2, 3)), "b": jnp.zeros(4, jnp.bfloat16)}
    check_weights(good, 7)
    for name, leaf in good.items():
        bad = good | {name: leaf.at[(1,) * leaf.ndim].set(value)}
        with pytest.raises(Diverged, match="not finite after 7 steps, and are not sav"):
            check_weights(bad, 7)
