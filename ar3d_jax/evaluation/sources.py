"""What an evaluated policy was made of: others under the same paths are noticed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar3d_jax import contents
from ar3d_jax.config import Config
from ar3d_jax.contents import Held
from ar3d_jax.errors import UserError


def held(config: Config, checkpoint: Path | None, kept: str) -> Held:
    """What the weights of a policy under evaluation hold, by field.

    Args:
        config: of the policy.
        checkpoint: the training's workdir; None for a policy before training.
        kept: the folder of it with checkpoints, of which the newest counts.

    Raises:
        UserError: one cannot be read.
    """
    paths: dict[str, str | Path] = {
        "policy.weights": config.policy.weights,
        "codec.weights": config.codec.weights,
    }
    if checkpoint:
        steps = [p for p in (checkpoint / kept).glob("*") if p.name.isdigit()]
        # Digests of all its files are in one of them (`checkpoint.py`).
        if steps:
            newest = max(steps, key=lambda path: int(path.name))
            paths["checkpoint"] = newest
    return contents.held(paths)


def refuse_others(
    before: Mapping[str, Any], now: Mapping[str, Held], workdir: Path
) -> None:
    """Refuses a workdir whose objects came from other weights under the same paths.

    Args:
        before: by system, what was held when its objects were sampled.
        now: by system, `held`.
        workdir: of the evaluation.

    Raises:
        UserError: it has such objects.
    """
    for name, own in now.items():
        if problem := contents.difference(before.get(name, {}), own):
            raise UserError(
                f"{workdir} has objects of {name} from when {problem}; restore it, or "
                "choose another --workdir"
            )
