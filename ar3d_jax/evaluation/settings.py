"""The settings of an evaluation's folder, whose objects are of one evaluation.

    WORKDIR/evaluation.json   config, systems {name: source}, held {name: digests}

The same command goes on in its folder; another benchmark, or another policy under the
name of one that was sampled, is refused there.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ar3d_jax.config import EvalConfig, to_dict
from ar3d_jax.contents import Held
from ar3d_jax.errors import UserError, write_whole, writing
from ar3d_jax.evaluation import sources

FILE = "evaluation.json"
SAME = ("benchmark", "data", "batch")  # fields that decide what objects there are


def remember(
    config: EvalConfig,
    systems: Mapping[str, str],
    held: Mapping[str, Held],
    workdir: Path,
) -> None:
    """Writes the settings, and refuses a folder whose objects had others.

    A damaged file is set aside, which is said on stderr: objects know their prompts
    themselves, but not their policy.

    Args:
        config: the evaluation's.
        systems: by name, the source of each.
        held: by name, what the weights of those that are policies hold.
        workdir: the evaluation's.

    Raises:
        UserError: the folder has objects of another benchmark, or of another policy, or
            cannot be written.
    """
    path = workdir / FILE
    before, settings = _read(path)
    known = before["systems"]
    for name, source in systems.items():
        if known.get(name, source) != source:
            raise UserError(
                f"{workdir} has objects of {name} from {known[name]}, not {source}; "
                "choose another --workdir"
            )
    for name, old in settings.items():
        if old != (new := getattr(config, name)):
            raise UserError(
                f"{workdir} is an evaluation with {name} {old!r}, not {new!r}; "
                "choose another --workdir"
            )
    sources.refuse_others(before["held"], held, workdir)
    told = {
        "config": to_dict(config),
        "systems": known | {**systems},
        "held": before["held"] | {**held},
    }
    write_whole(path, json.dumps(told, indent=2) + "\n")


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, object]]:
    """What `remember` wrote: of systems, and the settings of all objects."""
    nothing = {"systems": {}, "held": {}}
    if not path.exists():
        return nothing, {}
    with writing(path):
        text = path.read_bytes()
    try:
        before = json.loads(text)
        same = {name: before["config"][name] for name in SAME}
        # Older files say nothing of what weights held.
        kept = {name: before.get(name, {}) for name in ("systems", "held")}
        return {name: dict(of.items()) for name, of in kept.items()}, same
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        damaged = path.with_name(f"{path.name}.damaged")
        with writing(path):
            path.replace(damaged)
        print(
            f"{path} is damaged, now {damaged.name}: going on with this command's "
            "settings; if an earlier command had another policy, choose another "
            "--workdir",
            file=sys.stderr,
        )
        return nothing, {}
