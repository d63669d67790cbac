"""Codec training.

    python -m ar3d_jax.train_codec --config=configs/codec.py --workdir=runs/codec \
        --config.catalog=data/catalog

`tiny` is the shipped codec: 32^3 voxels, 128 shape tokens.
"""

import ml_collections

from ar3d_jax.config import CodecTrainingConfig, to_config_dict
from ar3d_jax.errors import UserError


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    """The preset's values; raises UserError for an unknown preset."""
    if preset != "tiny":
        raise UserError(f"unknown preset {preset!r} of configs/codec.py; expected tiny")
    return to_config_dict(CodecTrainingConfig())
