"""UnifiedReward-Think: alignment of each view, the best view counts.

The model was trained to compare pairs; the paper has it rate one picture. So it gets
the pointwise prompt of its parent, of which only the alignment line is read: our choice
because no other prompt for it is published.
"""

from ar3d_jax.config import RewardsConfig
from ar3d_jax.rewards.sidecar import answers, chat
from ar3d_jax.rewards.sidecar.scorers import Correspondent, Scorer
from ar3d_jax.rewards.sidecar.scorers.unified_2 import ViewByView


def load(config: RewardsConfig) -> Scorer | Correspondent:
    """UnifiedReward-Think.

    Raises:
        UserError: its weights are missing or do not fit; its endpoints do not answer.
    """
    judge = ViewByView({"alignment": answers.alignment_of_think})
    return chat.load("unified_think", judge, config)
