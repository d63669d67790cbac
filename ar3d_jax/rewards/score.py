r"""Scores of mesh files: `python -m ar3d_jax.rewards.score --mesh=FILE --prompt=TEXT`.

    python -m ar3d_jax.rewards.score --mesh=a.glb --mesh=b.obj --prompt="a wooden chair"
    python -m ar3d_jax.rewards.score --list=meshes.csv --config=configs/higrpo.py:7b \
        --config.rewards.scorers.preference=hps_v2_1 --roles=preference --json

The training's workers draw them and its scorers look: what anybody's mesh would be
rewarded with. Colours of the files are drawn, unless --config.render.colours=false.
Scores are the models' own numbers, before weights and divisors (`ensemble.py`), so
--config.rewards.weights does not matter. A list has the columns mesh, as seen from the
list's folder, and prompt. Exit status: 0 if any mesh has a score, 1 if none has, 2 for
bad input.
"""

import collections
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from ar3d_jax import command
from ar3d_jax.config import Config, RenderConfig, RewardsConfig
from ar3d_jax.config_rewards import (
    COARSE_ROLES,
    REFINED_ROLES,
    TABLE_ROLES,
    CoarseWeights,
    RefinedWeights,
    WeightsConfig,
)
from ar3d_jax.data import tables
from ar3d_jax.errors import UserError, exit_on_user_error, writing
from ar3d_jax.rewards.client import Scoring

USUAL_ROLES = tuple(dict.fromkeys(COARSE_ROLES + REFINED_ROLES))
LONG = 10  # meshes from which on a progress bar is worth its line
PROMPT_WIDTH = 40  # characters of a prompt in the table
SLOTS_PER_WORKER = 8  # see `Scoring`


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A mesh file, and the text that it should be an object of."""

    mesh: Path
    prompt: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """What came of one mesh.

    Attributes:
        wanted: The mesh.
        scores: By role; only where there is a number.
        reasons: By role; why there is none.
        warnings: What was passed over in its file, a line each.
    """

    wanted: Wanted
    scores: Mapping[str, float]
    reasons: Mapping[str, str]
    warnings: tuple[str, ...] = ()


# --- What is asked --------------------------------------------------------------------


def read_list(path: Path) -> list[Wanted]:
    """The rows of a .csv or .jsonl file with the columns mesh and prompt.

    Meshes are relative to the folder of the list; other columns are ignored.

    Raises:
        UserError: no such file, another type of file, malformed, a row without a mesh
            or prompt, or no rows.
    """
    rows = []
    table = tables.read(
        path, "--list", kinds=(".csv", ".jsonl"), known=("mesh", "prompt")
    )
    for number, values in table:
        cells = [values.get(name) for name in ("mesh", "prompt")]
        texts = [cell.strip() for cell in cells if isinstance(cell, str)]
        if len(texts) < 2 or not all(texts):
            raise UserError(
                f"--list={path}, line {number}: mesh and prompt are {cells[0]!r} and "
                f"{cells[1]!r}; expected two texts, in columns of these names"
            )
        rows.append(Wanted(path.parent / texts[0], texts[1]))
    if not rows:
        raise UserError(
            f"--list={path} has no rows; expected a mesh and prompt in each"
        )
    return rows


def wanted_of(meshes: Sequence[str], prompts: Sequence[str], rows: str) -> list[Wanted]:
    """The meshes that the flags name, each with its prompt.

    Raises:
        UserError: there are none, one is not there, or the counts do not fit.
    """
    if rows:
        if meshes or prompts:
            raise UserError("--list together with --mesh or --prompt; expected one way")
        found = read_list(Path(rows))
    else:
        if not meshes:
            raise UserError("no mesh; expected --mesh=FILE, once or more, or --list")
        if len(prompts) not in (1, len(meshes)):
            raise UserError(
                f"{len(meshes)} --mesh and {len(prompts)} --prompt; expected one "
                "prompt for all meshes, or one for each"
            )
        if not all(prompt.strip() for prompt in prompts):
            raise UserError("--prompt is empty; expected what the mesh should be")
        each = prompts if len(prompts) > 1 else [*prompts] * len(meshes)
        found = [Wanted(Path(m), p) for m, p in zip(meshes, each, strict=True)]
    missing = [one.mesh for one in found if not one.mesh.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UserError(
            f"no such mesh: {missing[0]}{more}; expected GLB, glTF, OBJ or PLY files"
        )
    return found


def check_roles(names: Sequence[str]) -> tuple[str, ...]:
    """The roles of --roles, without repetitions; of an empty one, the ensembles'.

    Raises:
        UserError: one does not exist.
    """
    known = USUAL_ROLES + TABLE_ROLES
    roles = tuple(dict.fromkeys(name.strip() for name in names)) or USUAL_ROLES
    for role in roles:
        if role not in known:
            raise UserError(
                f"--roles has {role!r}; expected some of {', '.join(known)}"
            )
    return roles


def only(rewards: RewardsConfig, roles: Sequence[str]) -> RewardsConfig:
    """The section with exactly these roles' scorers loaded: weights of 1 and 0."""
    kinds: tuple[Any, ...] = (CoarseWeights, RefinedWeights)
    coarse, refined = (
        kind(**{f.name: float(f.name in roles) for f in dataclasses.fields(kind)})
        for kind in kinds
    )
    weights = WeightsConfig(coarse, refined)
    return dataclasses.replace(rewards, weights=weights, judge=False)


# --- Scores ---------------------------------------------------------------------------


def score(
    wanted: Sequence[Wanted],
    roles: tuple[str, ...],
    render: RenderConfig,
    rewards: RewardsConfig,
    *,
    up: str,
    logs: Path,
) -> Iterator[Scored]:
    """Each mesh's scores, in order.

    No more are under way than fit the ring: `rewards.deadline_s` is one mesh's, however
    many wait.

    Args:
        wanted: the meshes.
        roles: what they are scored for.
        render: cameras, light and colours.
        rewards: which scorers fill the roles; its weights are not looked at.
        up: the files' up axis, "y" or "z".
        logs: where the processes write theirs.

    Raises:
        UserError: a process cannot start or failed for good; a prompt is too long.
    """
    slots = SLOTS_PER_WORKER * render.workers
    with Scoring(render, only(rewards, roles), 0, slots, logs) as scoring:
        under_way: collections.deque = collections.deque()
        for index, one in enumerate(wanted, 1):
            ticket = scoring.submit_files([one.mesh], [one.prompt], roles, up=up)
            under_way.append((one, ticket))
            while len(under_way) == slots or (under_way and index == len(wanted)):
                first, ticket = under_way.popleft()
                yield _scored(first, *scoring.collect(ticket), ticket.notes[0])


def _scored(
    wanted: Wanted,
    scores: Mapping[str, np.ndarray],
    reasons: Mapping[str, Sequence[str | None]],
    warnings: tuple[str, ...],
) -> Scored:
    """Of a ticket of one object."""
    return Scored(
        wanted,
        {role: float(s[0]) for role, s in scores.items() if np.isfinite(s[0])},
        {role: reason for role, (reason,) in reasons.items() if reason is not None},
        warnings,
    )


# --- What is shown --------------------------------------------------------------------


def as_json(scored: Sequence[Scored], scorers: Mapping[str, str]) -> str:
    """A JSON document: scorers by role; of each mesh scores, reasons and warnings."""
    rows = [
        {
            "mesh": str(one.wanted.mesh),
            "prompt": one.wanted.prompt,
            "scores": {role: one.scores.get(role) for role in scorers},
            "reasons": one.reasons,
            "warnings": list(one.warnings),
        }
        for one in scored
    ]
    document = {"scorers": scorers, "meshes": rows}
    return json.dumps(document, indent=1)  # ASCII: whatever the terminal's encoding is


def as_table(scored: Sequence[Scored], scorers: Mapping[str, str]) -> str:
    """A row per mesh, a column per role, and below why scores are missing, warnings.

    Where all are missing for one reason, as of a mesh that cannot be drawn, the row
    says it.
    """
    prompts = {one.wanted.prompt for one in scored}
    several = len(prompts) > 1
    head = [["mesh", ""]] + [["prompt", ""]] * several
    columns = head + [[role, name] for role, name in scorers.items()]
    ends, notes = [], []
    for one in scored:
        mesh, reasons = str(one.wanted.mesh), list(one.reasons.values())
        whole = not one.scores and len(set(reasons)) == 1
        texts = [mesh] + [_short(one.wanted.prompt)] * several
        texts += [
            f"{one.scores[role]:.4f}" if role in one.scores else "" if whole else "-"
            for role in scorers
        ]
        for column, text in zip(columns, texts, strict=True):
            column.append(text)
        ends.append(reasons[0] if whole else "")
        if not whole:
            notes += [f"{mesh}, {role}: {why}" for role, why in one.reasons.items()]
    widths = [max(map(len, column)) for column in columns]
    lines = [] if several else [f"prompt: {prompts.pop()}", ""]
    for row, end in zip(zip(*columns, strict=True), ["", "", *ends], strict=True):
        # Names to the left, numbers to the right; a reason takes the numbers' place.
        cells = [
            text.ljust(width) if index < len(head) else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        cells = [*cells[: len(head)], end] if end else cells
        lines.append("  ".join(cells).rstrip())
    warned = [one for one in scored if one.warnings]
    notes += [
        f"{one.wanted.mesh}, warning: {line}" for one in warned for line in one.warnings
    ]
    if warned:
        notes.append(f"{len(warned)} of {len(scored)} drawn with something passed over")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _short(prompt: str) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= PROMPT_WIDTH else text[: PROMPT_WIDTH - 3] + "..."


# --- The command ----------------------------------------------------------------------


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "mesh", [], "GLB, glTF, OBJ or PLY; may be repeated", flag_values=values
    )
    flags.DEFINE_multi_string(
        "prompt",
        [],
        "what all meshes should be, or, repeated, each of them",
        flag_values=values,
    )
    flags.DEFINE_string(
        "list",
        "",
        "in place of both: a .csv or .jsonl file with mesh and prompt",
        flag_values=values,
    )
    flags.DEFINE_list(
        "roles",
        [],
        f"of {', '.join(USUAL_ROLES + TABLE_ROLES)}; empty: all but the last two",
        flag_values=values,
    )
    flags.DEFINE_enum("up", "y", ["y", "z"], "axis of the files", flag_values=values)
    flags.DEFINE_bool("json", False, "JSON in place of a table", flag_values=values)
    flags.DEFINE_string(
        "out", "", "file to write, in place of standard output", flag_values=values
    )


def main() -> None:
    """Scores the meshes of the command line; exits as the module says."""
    with exit_on_user_error():
        config, values = command.parse_config(
            sys.argv, Config, "configs/higrpo.py", None, _define
        )
        wanted = wanted_of(values.mesh, values.prompt, values.list)
        roles = check_roles(values.roles)
        render = config.render
        if not values["config.render.colours"].present:
            render = dataclasses.replace(render, colours=True)
        out = Path(values.out) if values.out else None
        if out:  # not after an hour of scoring
            with writing(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                out.open("a").close()
        # It stays after an error, whose message may name a file of it.
        logs = Path(tempfile.mkdtemp(prefix="ar3d-score-"))
        found = score(wanted, roles, render, config.rewards, up=values.up, logs=logs)
        bar = tqdm(
            found, "scores", len(wanted), unit="mesh", disable=len(wanted) < LONG
        )
        scored = list(bar)
        shutil.rmtree(logs)
        scorers = {role: getattr(config.rewards.scorers, role) for role in roles}
        text = (as_json if values.json else as_table)(scored, scorers)
        if out:
            with writing(out):
                out.write_text(text + "\n", "utf-8", errors="backslashreplace")
        else:
            print(text)
        if not any(one.scores for one in scored):
            sys.exit(1)


if __name__ == "__main__":
    main()
