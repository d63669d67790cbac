"""The judge as a scorer: the CLIP score by an encoder that is never a reward.

It fills one role, `judge`, which has no weight. The encoder is `../judge.py`. An object
without a surface gets what its white pictures give: a low number, not a missing one.
"""

from collections.abc import Sequence

from ar3d_jax.config import RewardsConfig
from ar3d_jax.rewards.sidecar import devices
from ar3d_jax.rewards.sidecar.judge import Judge
from ar3d_jax.rewards.sidecar.scorers import About, Subject, Verdicts


class JudgeScorer:
    """100 times the mean over views of the cosine of view and prompt; -100 to 100."""

    about = About("judge", "shipped", "cpu")
    batch = 1  # the same bits, whatever else is scored

    def __init__(self, judge: Judge) -> None:
        """Takes the encoders."""
        self._judge = judge

    def score(self, subjects: Sequence[Subject]) -> list[Verdicts]:
        """Of each object, role -> (number, None)."""
        return [self._score(subject) for subject in subjects]

    def _score(self, subject: Subject) -> Verdicts:
        vectors = self._judge.embed_views(subject.views)
        cosines = vectors @ self._judge.embed_text(subject.prompt)
        return dict.fromkeys(subject.roles, (100 * float(cosines.mean()), None))

    def wake(self) -> None:
        """It lives in the machine's memory."""

    def rest(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to give back."""


def load(config: RewardsConfig) -> JudgeScorer:
    """The shipped judge.

    Raises:
        UserError: its weights are missing or do not fit.
    """
    devices.start(config.threads)
    return JudgeScorer(Judge.load())
