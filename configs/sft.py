"""Supervised training of the policy.

    python -m ar3d_jax.sft --config=configs/sft.py --workdir=runs/sft \
        --config.catalog=data/catalog

`tiny` is the shipped policy: 2.8 M parameters, plans of at most 48 tokens, 128 shape
tokens of the shipped codec. `--config.codec.weights=FILE` takes another codec.
"""

import ml_collections

from ar3d_jax.config import SftConfig, to_config_dict
from ar3d_jax.errors import UserError


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    """The preset's values; raises UserError for an unknown preset."""
    if preset != "tiny":
        raise UserError(f"unknown preset {preset!r} of configs/sft.py; expected tiny")
    return to_config_dict(SftConfig())
