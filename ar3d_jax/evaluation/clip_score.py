"""CLIP score: how well views of an object fit its caption.

Which CLIP, which views and which caption are the caller's; `eval_py.py` has the public
script's variant.
"""

import numpy as np
from jaxtyping import Float


def clip_score(
    views: Float[np.ndarray, "view D"], text: Float[np.ndarray, " D"]
) -> float:
    """Mean over the views of cosine(view, text) x 100, from -100 to 100.

    Negative cosines stay negative, as in TRELLIS's evaluation (supplement, C.1); the
    definition of Hessel et al. 2021 clamps them at 0 and multiplies by 2.5.

    Raises:
        ValueError: a vector without direction (0 or not finite), or no view.
    """
    if not len(views):
        raise ValueError("no view to score")
    return 100 * float((_unit(views) @ _unit(text)).mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise ValueError("a vector is 0 or not finite, so it has no direction")
    return vectors / length
