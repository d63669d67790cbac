"""Guard rails: a training whose numbers are none any more ends, and saves none of them.

A gradient that is not finite counts as 0 (`optim.py`), so a single one costs a step.
Where they go on, nothing is learnt while every line looks busy. Weights that are not
finite never come back: a checkpoint of them would push the good ones out of the folder.

Scores are watched by `score_watch.py`. Used by `train.py`, `sft.py`, `train_codec.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ar3d_jax.errors import Diverged

# Steps in a row whose gradient is not finite. One or two come of a rare batch; each of
# these had another, so it is the weights. Our choice.
LIMIT = 5


class GradientWatch:
    """Counts one run's gradients that are not finite."""

    def __init__(self, say: Callable[[str], None], remedy: str) -> None:
        """`say` writes a line for the user; `remedy` is what may help, in words."""
        self._say, self._remedy, self._count = say, remedy, 0

    def look(self, step: int, grad_norm: Any) -> None:
        """Takes a step's norm; says so where it is not finite."""
        if np.isfinite(grad_norm):
            self._count = 0
            return
        self._count += 1
        self._say(
            f"step {step}: the gradient is not finite and was left out; if this goes "
            f"on, {self._remedy}"
        )

    def check(self) -> None:
        """Ends the run where it makes no sense any more; before, its state is saved.

        Raises:
            Diverged: the last LIMIT gradients were not finite.
        """
        if self._count >= LIMIT:
            raise Diverged(
                f"the gradient was not finite in {self._count} steps in a row, nothing "
                f"is learnt; saved: look at loss and grad_norm in metrics.jsonl, then "
                f"{self._remedy}, and start again"
            )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    found = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(found).all()


def check_weights(weights: Any, step: int) -> None:
    """Before they are saved. All hosts must call it together.

    Raises:
        Diverged: one is not finite.
    """
    if not _all_finite(weights):
        raise Diverged(
            f"weights are not finite after {step} steps, and are not saved: lower the "
            "learning rate; the same command goes on from the checkpoint before"
        )
