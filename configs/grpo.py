"""One-step GRPO: the baselines of the paper's tables 1, 2, 3 and 6.

    python -m ar3d_jax.train --config=configs/grpo.py --workdir=runs/grpo

One shape per rollout, after one plan, rewarded by one ensemble: `refined` unless
`--config.rewards.ensemble=coarse`. `--config.rollout.plans=false` leaves out the plan.
`:7b` is the same at the paper's size. All else is as in configs/higrpo.py, without what
AR3D-R1's recipe adds (docs/study_commands.md has every row of the tables as a command).
"""

import dataclasses
import runpy
from pathlib import Path

import ml_collections

from ar3d_jax.config import Config, to_config_dict
from ar3d_jax.errors import UserError

HIGRPO = runpy.run_path(str(Path(__file__).with_name("higrpo.py")))


def _one_step(base: Config) -> Config:
    """The same with one generation step, and without AR3D-R1's additions."""
    objective = dataclasses.replace(
        base.objective, dynamic_sampling="off", clip_high=base.objective.clip_low
    )
    return dataclasses.replace(
        base,
        paradigm="grpo",
        rewards=dataclasses.replace(base.rewards, ensemble="refined"),
        objective=objective,
    )


PRESETS = {name: _one_step(base) for name, base in HIGRPO["PRESETS"].items()}


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    """The locked config of a preset.

    Raises:
        UserError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; expected {' or '.join(PRESETS)}")
    return to_config_dict(PRESETS[preset])
