"""The judge as a scorer: the CLIP score by an encoder that is never a reward.

It fills one role, `judge`, which has no weight. The encoder is `../judge.py`. An object
without a surface gets what its white pictures give: a low number, not a missing one.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ar3d_jax.rewards.sidecar.judge import Judge

Verdict = tuple[float, str | None]


class JudgeScorer:
    """100 times the mean over views of the cosine of view and prompt; -100 to 100."""

    def __init__(self, judge: Judge) -> None:
        """Takes the encoders."""
        self._judge = judge

    def score(
        self,
        prompt: str,
        views: UInt8[np.ndarray, "V H W 3"],
        points: Float[np.ndarray, "n 3"],
        roles: tuple[str, ...],
    ) -> dict[str, Verdict]:
        """Role -> (number, None)."""
        vectors, text = self._judge.embed_views(views), self._judge.embed_text(prompt)
        return dict.fromkeys(roles, (100 * float((vectors @ text).mean()), None))

    def close(self) -> None:
        """Nothing to give back."""


def load(config: dict[str, Any]) -> JudgeScorer:
    """The shipped judge; `config` is the rewards section as a nested dict.

    Raises:
        UserError: its weights are missing or do not fit.
    """
    torch.set_num_threads(config["threads"])
    # Same object, same bits, in this process or in the one that replaces it.
    torch.use_deterministic_algorithms(True)
    return JudgeScorer(Judge.load())
