"""One optimiser step on any pytree of parameters.

optax's annotations know dicts and lists but no modules: here is the seam, typed `Any`.
The schedules and chains are their trainings' own (`higrpo/update.py`, `sft.py`,
`train_codec.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def init(optimiser: optax.GradientTransformation, parameters: Any) -> Any:
    """The optimiser's state, laid out like the parameters."""
    return optimiser.init(parameters)


def step(
    optimiser: optax.GradientTransformation,
    gradient: Any,
    opt_state: Any,
    parameters: Any,
) -> tuple[Any, Any]:
    """(parameters, opt_state) after one step.

    A gradient that is not finite counts as 0: one such batch would end the training.
    """
    finite = jnp.isfinite(optax.tree.norm(gradient))
    gradient = jax.tree.map(lambda g: jnp.where(finite, g, 0), gradient)
    updates, opt_state = optimiser.update(gradient, opt_state, parameters)
    return optax.apply_updates(parameters, updates), opt_state
