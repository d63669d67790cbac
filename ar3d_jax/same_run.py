"""What a resumed training must share with the one that was saved, and what may change.

The values of config fields (`settings`), and what the paths among them hold (`held`):
a prompt file that was edited, or weights that were replaced under the same name, make
another run. Paths are compared as texts, too: a folder that moved is another value.
"""

from typing import Any

from ar3d_jax import contents, hosts
from ar3d_jax.config import Config, to_dict
from ar3d_jax.config_rewards import JUDGES
from ar3d_jax.contents import Held
from ar3d_jax.errors import UserError
from ar3d_jax.weights import commit_of

# Of a judge: what its answers follow from.
_ANSWERS = ("model", "max_tokens", "temperature", "top_", "repetition_penalty", "seed")

# Fields, or how their names begin, that a resumed run must share with the saved one.
SAME_RUN = (
    "seed",
    "prompts",  # and prompts_per_step
    "group_size",
    "paradigm",
    "policy.weights",  # the reference
    *("lora.", "codec.", "rollout.", "render.", "data."),
    *("rewards.scorers.", "rewards.weights.", "rewards.points"),
    *("rewards.ensemble", "rewards.normalise_scores", "rewards.part_lists"),
    # Of scorers that are off, too: they may be switched on again, and then must be what
    # the first steps were rewarded by. Where and how fast they answer may change.
    "rewards.hps_v2_1.weights",
    *(f"rewards.shapellm.{field}" for field in ("weights", "encoder", "up")),
    *(f"rewards.{judge}.{field}" for judge in JUDGES for field in _ANSWERS),
    "evaluation.judged",
)
# Of those, what only memory and time depend on, or mesh files alone.
FREE = (
    *("rollout.gather", "rollout.stop_early", "rollout.ahead"),
    *("render.workers", "render.max_faces", "render.colours"),
)
# Of those, which may be paths; and which may be Hugging Face ids that this process has
# fetched. The scorers' revisions are `score_watch.replaced`'s.
PATHS = (
    *("prompts", "policy.weights", "codec.weights", "render.cameras"),
    *("rewards.part_lists", "rewards.hps_v2_1.weights"),
    *("rewards.shapellm.weights", "rewards.shapellm.encoder"),
    *(f"rewards.{judge}.model" for judge in JUDGES),
)
FETCHED = ("policy.weights", "codec.weights")


def settings(config: Config) -> dict[str, Any]:
    """The values of SAME_RUN's fields, without those that are FREE, by dotted name."""
    flat = _flat(to_dict(config))
    kept = [name for name in flat if name.startswith(SAME_RUN) and name not in FREE]
    return {name: flat[name] for name in kept}


def held(config: Config) -> Held:
    """What the paths of a config hold, by field; of Hugging Face ids, the commit.

    Call after the models were loaded, under `set_mesh`; all hosts must do it together.

    Raises:
        UserError: one cannot be read, or the hosts hold different things.
    """
    flat = _flat(to_dict(config))
    shipped = {"prompts": "catalog"}
    found = contents.held(
        {name: flat[name] for name in PATHS if shipped.get(name) != flat[name]}
    )
    for name in FETCHED:
        if name not in found and (commit := commit_of(flat[name])):
            found[name] = (flat[name], commit)
    for name in PATHS:
        number = int(found[name][1][:6], 16) if name in found else 0
        if not hosts.agree(number):
            raise UserError(
                f"{name}={flat[name]} holds something else on another host (here: "
                f"{found.get(name, ('', 'nothing'))[1]}); expected the same on all"
            )
    return found


def may_change(name: str, saved: Any, new: Any) -> bool:
    """Of a run that goes on: a scorer may be switched off, and on again.

    Nothing was saved of what older runs did not know: it counts as unchanged.
    """
    return saved is None or (name.startswith("rewards.weights.") and 0 in (saved, new))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
