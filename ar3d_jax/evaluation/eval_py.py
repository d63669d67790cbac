"""The numbers of 3DGen-R1's public script, eval.py, for those who compare with it.

They are no kernel distance and no CLIP score as tables print them: see
`kernel_distance.py` and `clip_score.py`. Facts of the script at commit 8bf297d.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ar3d_jax.evaluation.clip_score import clip_score
from ar3d_jax.evaluation.kernel_distance import rbf_similarity


class Similarity(NamedTuple):
    """The script's "KD", where higher is closer, and how often it was made up.

    Attributes:
        value: the mean over objects of each one's own similarity, in [0, 1].
        objects: each object's, in order.
        replaced: indices of the objects whose similarity was not finite. The script
            gives them 0.0 without a word, which under "lower is better" is the best
            (features that are NaN already raise in its library, and the object is
            dropped; here they are flagged as well).
    """

    value: float
    objects: tuple[float, ...]
    replaced: tuple[int, ...]


def similarity(
    truth: Float[np.ndarray, "object view_x d"],
    views: Float[np.ndarray, "object view_y d"],
) -> Similarity:
    """Per object over its views alone, never pooled, then the mean over objects.

    The kernel's gamma is 1 / d: 1/768 for the script's DINOv2-base. Objects that failed
    are absent, as in the script. NaN for no objects.
    """
    gamma = 1 / truth.shape[-1]
    found = [rbf_similarity(x, y, gamma) for x, y in zip(truth, views, strict=True)]
    replaced = tuple(i for i, value in enumerate(found) if not np.isfinite(value))
    kept = tuple(value if np.isfinite(value) else 0.0 for value in found)
    return Similarity(float(np.mean(kept)) if kept else np.nan, kept, replaced)


def clip_cosine(
    views: Float[np.ndarray, "view D"], text: Float[np.ndarray, " D"]
) -> float:
    """Mean over the views of cosine(view, text), not x 100.

    Raises:
        ValueError: see `clip_score`.
    """
    return clip_score(views, text) / 100


def compat_caption(caption: str) -> str:
    """What the script gives CLIP: the caption up to its first full stop.

    "A 2.5 m tall tree." becomes "A 2". If nothing stands before the stop, it is the
    first 77 characters. The script raises for more than 77 tokens of the result and
    drops the object; no tokens are counted here.
    """
    first = caption.split(".", 1)[0]
    return first if first.strip() else caption[:77]
