"""The settings of an evaluation's folder, whose objects are of one evaluation.

    WORKDIR/evaluation.json   config, and systems {name: source}

The same command goes on in its folder; another benchmark, or another policy under the
name of one that was sampled, is refused there.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from ar3d_jax.config import EvalConfig, to_dict
from ar3d_jax.errors import UserError, write_whole, writing

FILE = "evaluation.json"
SAME = ("benchmark", "data", "batch")  # fields that decide what objects there are


def remember(config: EvalConfig, systems: Mapping[str, str], workdir: Path) -> None:
    """Writes the settings, and refuses a folder whose objects had others.

    A damaged file is set aside, which is said on stderr: objects know their prompts
    themselves, but not their policy.

    Args:
        config: the evaluation's.
        systems: by name, the source of each.
        workdir: the evaluation's.

    Raises:
        UserError: the folder has objects of another benchmark, or of another policy, or
            cannot be written.
    """
    path = workdir / FILE
    sources, settings = _read(path)
    for name, source in systems.items():
        if sources.get(name, source) != source:
            raise UserError(
                f"{workdir} has objects of {name} from {sources[name]}, not {source}; "
                "choose another --workdir"
            )
    for name, old in settings.items():
        if old != (new := getattr(config, name)):
            raise UserError(
                f"{workdir} is an evaluation with {name} {old!r}, not {new!r}; "
                "choose another --workdir"
            )
    told = {"config": to_dict(config), "systems": sources | {**systems}}
    write_whole(path, json.dumps(told, indent=2) + "\n")


def _read(path: Path) -> tuple[dict[str, str], dict[str, object]]:
    """What `remember` wrote: systems' sources, and the settings of all objects."""
    if not path.exists():
        return {}, {}
    with writing(path):
        text = path.read_bytes()
    try:
        before = json.loads(text)
        same = {name: before["config"][name] for name in SAME}
        return dict(before["systems"].items()), same
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
        return {}, {}
