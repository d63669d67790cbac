"""Evaluation: a checkpoint, or any system's meshes, against a benchmark.

    python -m ar3d_jax.evaluate --config=configs/eval.py --workdir=runs/eval

scores the shipped tiny policy on the catalog's held-out objects, by the embedded judge:
minutes on two CPU cores. `:full` is TRELLIS's protocol with the published networks,
`:eval_py` the numbers of the paper's public script. `--checkpoint=DIR` takes a
training's workdir, `--meshes=DIR` a folder of meshes named by id.
"""

import ml_collections

from ar3d_jax.config import EvalConfig, FeaturesConfig, to_config_dict
from ar3d_jax.errors import UserError


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    """The locked config of a preset.

    Raises:
        UserError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(
            f"unknown preset {preset!r} of configs/eval.py; expected "
            + " or ".join(PRESETS)
        )
    return to_config_dict(PRESETS[preset])


PRESETS = {
    "tiny": EvalConfig(),
    # TRELLIS's protocol, as far as it is published: docs/evaluation.md.
    "full": EvalConfig(
        preset="full",
        size=512,
        features=FeaturesConfig(
            sets=("clip_b32", "clip_l14", "dinov2_l14", "inception"), threads=8
        ),
        workers=8,
    ),
    # What 3DGen-R1's eval.py computes, named as such.
    "eval_py": EvalConfig(
        preset="eval_py",
        protocol="eval_py_compat",
        size=299,  # its renderings
        features=FeaturesConfig(sets=("clip_b32", "dinov2_b14")),
    ),
}
