r"""Scores a policy, or any system's meshes, against a benchmark.

    python -m ar3d_jax.evaluate --config=configs/eval.py --workdir=runs/eval \
        --checkpoint=runs/mine

    benchmark -> objects (sampled, or files) -> views -> vectors -> metrics -> report

Without `--checkpoint` the shipped tiny policy is scored; `--meshes=DIR` scores files
named by id. `--compare A B C` puts several side by side, with paired differences: each
is a training's workdir, a folder of meshes, an earlier evaluation's workdir, or the
word `base` for the policy before training. Objects and measurements stay in the
workdir, and the same command goes on where it was cut off.

Not here: what is asked (`evaluation/benchmarks.py`), how objects are looked at
(`protocol.py`, `measure.py`), what the numbers are (`summary.py` and the metrics'
files), and how they are shown (`report.py`).
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from ar3d_jax import command
from ar3d_jax.config import Config, EvalConfig
from ar3d_jax.errors import UserError, exit_on_user_error
from ar3d_jax.evaluation import (
    benchmarks,
    measure,
    objects,
    protocol,
    report,
    settings,
    sources,
    summary,
    wording,
)
from ar3d_jax.evaluation.benchmarks import Benchmark, Item
from ar3d_jax.evaluation.measure import Wanted
from ar3d_jax.evaluation.objects import Generated
from ar3d_jax.evaluation.record import Record
from ar3d_jax.generate import (
    at_once,
    checkpoint_config,
    described,
    load_trained,
    sample_shapes,
)
from ar3d_jax.models import Models, check_length, decode_rows, load_models
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.rewards.feature_sets import find_networks
from ar3d_jax.sharding import make_mesh, shared_equally

BASE = "base"  # the policy before training, in --compare and in reports


@dataclasses.dataclass(frozen=True)
class System:
    """What is scored.

    Attributes:
        name: in the report, and of its folder.
        source: where it is, in words.
        folder: of meshes, or of an earlier evaluation's objects; None for a policy.
        sampled: `folder` has objects that an evaluation sampled.
        checkpoint: of a policy, the training's workdir; None for one before training.
        config: of a policy.
        best: of a checkpoint, the one that the judge liked best.
    """

    name: str
    source: str
    folder: Path | None = None
    sampled: bool = False
    checkpoint: Path | None = None
    config: Config = dataclasses.field(default_factory=Config)
    best: bool = False


# --- Which systems the command line names ---------------------------------------------


def systems_of(values: flags.FlagValues) -> list[System]:
    """The systems that the flags ask for, with different names.

    Raises:
        UserError: flags contradict each other, or name what is not there.
    """
    asked = [name for name in ("checkpoint", "meshes", "compare") if values[name].value]
    if len(asked) > 1:
        raise UserError(
            f"--{asked[0]} together with --{asked[1]}; expected one of --checkpoint, "
            "--meshes and --compare, or none for the shipped policy"
        )
    if values.best and not (values.checkpoint or values.compare):
        raise UserError("--best without --checkpoint; expected a training's workdir")
    if values.compare:
        sources = [source for source in values.compare.split(",") if source]
        if len(set(sources)) < 2:
            raise UserError(
                f"--compare={values.compare}; expected two or more different ones of: "
                f"a training's workdir, a folder of meshes, {BASE}"
            )
        found = [system for source in sources for system in _compared(source, values)]
        return _named_apart(found)
    if values.meshes:
        folder = Path(values.meshes)
        return [System(_folder_name(folder), str(folder), folder=folder)]
    if values.checkpoint:
        return [_trained(Path(values.checkpoint), values)]
    return [_untrained(values)]


def _compared(source: str, values: flags.FlagValues) -> list[System]:
    """The systems of one item of --compare; an earlier evaluation may have several."""
    folder = Path(source)
    if source == BASE:
        return [_untrained(values)]
    if (folder / "objects").is_dir() and (folder / "evaluation.json").is_file():
        return [
            System(_folder_name(of), f"{of} (sampled before)", folder=of, sampled=True)
            for of in sorted((folder / "objects").iterdir())
            if of.is_dir()
        ]
    if (folder / "config.json").is_file():
        return [_trained(folder, values)]
    if folder.is_dir():
        return [System(_folder_name(folder), str(folder), folder=folder)]
    raise UserError(
        f"--compare: {source} is not there; expected a training's workdir, a folder of "
        f"meshes, an evaluation's workdir, or {BASE}"
    )


def _trained(folder: Path, values: flags.FlagValues) -> System:
    """The policy of a training; its step is part of what it is."""
    config = checkpoint_config(folder)
    kept = folder / ("best" if values.best else "checkpoints")
    steps = [int(path.name) for path in kept.glob("*") if path.name.isdigit()]
    name = _folder_name(folder)
    return System(
        f"{name}-best" if values.best else name,
        f"{folder}, step {max(steps)}" if steps else f"{folder}",
        checkpoint=folder,
        config=config,
        best=values.best,
    )


def _untrained(values: flags.FlagValues) -> System:
    """The shipped policy, or the one that --policy and --weights describe."""
    if not values.policy:
        if values.weights or values.codec_weights or values.one_step:
            raise UserError(
                "--weights, --codec_weights or --one_step without --policy; expected "
                "the model's sizes too: --policy=configs/higrpo.py:7b"
            )
        return System(BASE, "the shipped tiny policy")
    config = described(values.policy, values.weights, values.codec_weights)
    source = f"{values.policy}, weights {config.policy.weights}"
    if values.one_step:
        config, source = at_once(config), f"{source}, shape at once"
    return System(BASE, source, config=config)


def _folder_name(folder: Path) -> str:
    return objects.file_name(folder.resolve().name)


def _named_apart(systems: Sequence[System]) -> list[System]:
    """Folders of the same name get a number."""
    taken: dict[str, int] = {}
    apart = []
    for system in systems:
        copy = taken[system.name] = taken.get(system.name, 0) + 1
        name = system.name if copy == 1 else f"{system.name}-{copy}"
        apart.append(dataclasses.replace(system, name=name))
    return apart


# --- Objects --------------------------------------------------------------------------


def sample(
    system: System, items: Sequence[Item], config: EvalConfig, folder: Path
) -> None:
    """Samples the objects of a policy that are not in `folder` yet.

    The sampling of an object depends on the seed and its batch alone, so systems that
    are compared share their random numbers.

    Raises:
        UserError: weights or checkpoint are missing or do not fit; the disk is full.
    """
    batches = [
        (seed, number, items[first : first + config.batch])
        for seed in config.seeds
        for number, first in enumerate(range(0, len(items), config.batch))
    ]
    todo = [batch for batch in batches if objects.missing(folder, batch[0], batch[2])]
    if not todo:
        return
    mesh = make_mesh(config.mesh.fsdp, config.mesh.tp, config.mesh.data)
    with jax.set_mesh(mesh):
        models = load_models(system.config, mesh)
        policy = models.policy
        if system.checkpoint:
            policy = load_trained(
                policy, system.config.lora, system.checkpoint, best=system.best
            )
        total = len(items) * len(config.seeds)
        done = total - sum(len(some) for _, _, some in todo)
        with tqdm(total=total, initial=done, desc=system.name, unit="object") as bar:
            for seed, number, some in todo:
                key = jax.random.fold_in(jax.random.key(seed), number)
                _sample_batch(
                    system, models, policy, some, config.batch, key, seed, folder
                )
                bar.update(len(some))


def _sample_batch(
    system: System,
    models: Models,
    policy: Decoder,
    items: Sequence[Item],
    batch: int,
    key: jax.Array,
    seed: int,
    folder: Path,
) -> None:
    fitting = []
    for item in items:
        problem = _too_long(system, models, item)
        if problem:
            steps = system.config.step_names
            objects.write_failure(folder, seed, item, steps, problem)
        else:
            fitting.append(item)
    if not fitting:
        return
    texts = [item.caption for item in fitting]
    batch = shared_equally(batch)
    filled = texts + texts[-1:] * (batch - len(texts))  # one compiled program
    plans, codes = sample_shapes(models, policy, filled, key, system.config)
    logits = {
        step: decode_rows(models.codec, rows[: len(texts)], all_rows=True)
        for step, rows in codes.items()
    }
    for row, item in enumerate(fitting):
        objects.write(
            folder,
            seed,
            item,
            {which: texts[row] for which, texts in plans.items()},
            {step: rows[row] for step, rows in codes.items()},
            {step: grids[row] for step, grids in logits.items()},
        )


def _too_long(system: System, models: Models, item: Item) -> str:
    """Why a prompt cannot be asked, or "": an object that failed, not the end."""
    try:
        check_length(models.tokenizer, [item.caption], system.config.rollout)
    except UserError as error:
        return str(error)
    return ""


def objects_of(
    system: System, benchmark: Benchmark, config: EvalConfig, workdir: Path
) -> tuple[list[Generated], list[str]]:
    """A system's objects, sampled where need be, and files that no item asks for.

    Raises:
        UserError: whatever a user can mend.
    """
    items = benchmark.items
    if system.folder and not system.sampled:
        return objects.from_meshes(system.folder, items, config.up)
    folder = system.folder or workdir / "objects" / system.name
    seeds: Sequence[int] = config.seeds
    if system.sampled:
        seeds = objects.seeds_in(folder)
    else:
        sample(system, items, config, folder)
    return objects.read(folder, seeds, items), []


# --- Measurements ---------------------------------------------------------------------


def measure_truth(
    items: Sequence[Item],
    look: protocol.Protocol,
    config: EvalConfig,
    networks: dict[str, str],
    workdir: Path,
) -> dict[str, Record]:
    """By id, the records of the real objects that belong to a benchmark's items.

    Raises:
        UserError: as `measure.measure`.
    """
    real = [(item, item.truth) for item in items if item.truth]
    records = measure.measure(
        [Wanted(truth, look.caption(item.caption)) for item, truth in real],
        render=look.truth,
        features=config.features,
        networks=networks,
        folder=workdir / "measured",
        logs=workdir / "logs",
        up="y",
        title="real objects",
    )
    return {item.id: of for (item, _), of in zip(real, records, strict=True)}


def measure_system(
    system: System,
    generated: Sequence[Generated],
    look: protocol.Protocol,
    config: EvalConfig,
    networks: dict[str, str],
    workdir: Path,
) -> list[dict[str, Record]]:
    """For each object, its records by step.

    Raises:
        UserError: as `measure.measure`.
    """
    files = [
        (row, step, Wanted(path, look.caption(thing.item.caption)))
        for row, thing in enumerate(generated)
        for step, path in thing.meshes.items()
    ]
    records = measure.measure(
        [wanted for _, _, wanted in files],
        render=look.generated,
        features=config.features,
        networks=networks,
        folder=workdir / "measured",
        logs=workdir / "logs",
        up=look.up(generated[0].up),
        title=f"{system.name}: views",
    )
    by_step: list[dict[str, Record]] = [{} for _ in generated]
    for (row, step, _), found in zip(files, records, strict=True):
        by_step[row][step] = found
    return by_step


def evaluate(config: EvalConfig, systems: Sequence[System], workdir: Path) -> None:
    """Scores the systems and writes the report to `workdir`.

    Raises:
        UserError: whatever a user can mend.
    """
    networks = find_networks(config.features)  # before hours of sampling
    look = protocol.of(config)
    benchmark = benchmarks.load(
        config.benchmark, config.data, config.count, workdir / "truth"
    )
    references = benchmark
    if not any(item.truth for item in benchmark.items):
        references = benchmarks.load("catalog", "", 0, workdir / "truth")
    _remember(config, systems, workdir)

    answers = [objects_of(system, benchmark, config, workdir) for system in systems]
    truth = measure_truth(references.items, look, config, networks, workdir)
    scored = [
        summary.Scored(
            system.name,
            system.source,
            generated,
            measure_system(system, generated, look, config, networks, workdir),
            strangers,
        )
        for system, (generated, strangers) in zip(systems, answers, strict=True)
    ]
    found = summary.summarise(
        benchmark, references, scored, truth, look, config, workdir
    )
    report.write(workdir, found, config.shown)
    print(wording.in_lines(found))
    print(
        f"{workdir / 'index.html'}: {len(benchmark.items)} objects of {benchmark.name}"
    )


def _remember(config: EvalConfig, systems: Sequence[System], workdir: Path) -> None:
    """Writes the settings, and refuses a workdir whose objects had others.

    Raises:
        UserError: as `settings.remember`.
    """
    named = {system.name: system.source for system in systems}
    held = {
        of.name: sources.held(
            of.config, of.checkpoint, "best" if of.best else "checkpoints"
        )
        for of in systems
        if not of.folder
    }
    settings.remember(config, named, held, workdir)


# --- The command ----------------------------------------------------------------------


def _define_flags(values: flags.FlagValues) -> None:
    def text(name: str, about: str) -> None:
        flags.DEFINE_string(name, "", about, flag_values=values)

    text("checkpoint", "workdir of a training; else the shipped policy")
    text("meshes", "folder of another system's meshes, named by id")
    text("compare", "A B C: workdirs, folders of meshes, or base, side by side")
    text("policy", "of the policy before training: a FILE.py[:PRESET] of train")
    text("weights", "with --policy: other policy weights")
    text("codec_weights", "with --policy: other codec weights")
    flags.DEFINE_bool(
        "best",
        False,
        "the checkpoint that the judge liked best, not the last",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "one_step",
        False,
        "with --policy: a shape at once, as 3DGen-R1 was trained",
        flag_values=values,
    )


def joined(argv: Sequence[str]) -> list[str]:
    """The command line with `--compare A B C` as `--compare=A,B,C`."""
    arguments: list[str] = []
    for word in argv:
        last = arguments[-1] if arguments else ""
        if last.startswith("--compare") and not word.startswith("-"):
            arguments[-1] = f"{last},{word}" if "=" in last else f"{last}={word}"
        else:
            arguments.append(word)
    return arguments


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, values = command.parse_config(
        joined(argv), EvalConfig, "configs/eval.py", "runs/eval", _define_flags
    )
    workdir = Path(values.workdir)
    systems = systems_of(values)
    with command.alone_in(workdir):
        evaluate(config, systems, workdir)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv)
