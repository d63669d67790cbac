r"""Trains the embedded scorers on the catalog's training objects.

    python -m ar3d_jax.data.catalog --out=DIR
    python -m ar3d_jax.data.augmentation --catalog=DIR
    python -m ar3d_jax.codec.recode --catalog=DIR
    python -m ar3d_jax.rewards.sidecar.train_embedded --catalog=DIR --out=FILE

writes FILE (.safetensors, fp16) and, beside it, .json: classes, tables and what was
measured on held-out objects. The default FILE is the shipped one. Drawn pictures are
kept in DIR/pictures_*.npz, so a second training starts at once.

1. draw changed and damaged copies of every object (`pictures.py`, `damage.py`), and
   what the codec makes of them, also with wrong tokens (`codec/recode.py`);
2. views and captions: symmetric InfoNCE, where a damaged picture belongs to its caption
   as far as its fidelity goes, and to "no object" for the rest; two judges regress
   fidelity and cleanliness;
3. points: cross-entropy over classes, softened by fidelity in the same way;
4. limits of part checks and the logistic of the match, the latter on training objects
   that step 2 did not see;
5. write, read back, and measure on held-out objects (`embedded_report.py`).
"""

import dataclasses
import hashlib
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from absl import flags
from torch.nn import functional
from tqdm import tqdm

from ar3d_jax.command import run
from ar3d_jax.data import captions
from ar3d_jax.data.augmentation import load_augmented
from ar3d_jax.data.catalog import load_catalog
from ar3d_jax.errors import UserError, reading, whole_file, write_whole, writing
from ar3d_jax.rewards.sidecar import embedded_report, pictures
from ar3d_jax.rewards.sidecar.batches import (
    Batches,
    Objects,
    sort_into_classes,
    texts_of,
)
from ar3d_jax.rewards.sidecar.scorers import embedded, networks, parts

COPIES = (
    0,
    2,
    4,
    6,
    8,
    10,
    12,
    14,
    1,
    3,
)  # of augmentation.py: even ones face the front
DAMAGED_SHARE = 0.5
TUNE_ONE_IN = 12  # training objects kept for the match's logistic: unseen by step 2
SAME_CLASS = 0.1  # a caption of the same class is this right, beside 1 for the own
EXAMPLES = 4  # a class with fewer takes its group's examples for part checks
CLOUD_IN_TRAINING = 384  # points: a coarser cloud, but twice the steps
LEAST_CONTRAST = 0.06  # between members and strangers: below, a part cannot be checked


def contrastive_loss(
    vectors: torch.Tensor,
    texts: torch.Tensor,
    none: torch.Tensor,
    fidelity: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Symmetric InfoNCE with soft targets.

    Rows 0..B-1 of `vectors` are whole pictures of captions 0..B-1, rows B..2B-1 damaged
    ones of the same. A picture of fidelity q belongs to its caption with weight q (and
    SAME_CLASS q to captions of its class) and to "no object" with 1 - q. A caption
    belongs to its whole picture; its own damaged one is neither right nor wrong.
    """
    size = len(texts)
    logits = embedded.SHARPNESS * vectors @ torch.cat([texts, none[None]]).T
    alike = SAME_CLASS * (labels[:, None] == labels[None]).float()
    alike = alike.fill_diagonal_(1.0)
    alike = (alike / alike.sum(1, keepdim=True)).repeat(2, 1)
    target = torch.cat([alike * fidelity[:, None], 1 - fidelity[:, None]], dim=1)
    to_text = functional.cross_entropy(logits, target)
    own_damaged = torch.zeros(2 * size, size, dtype=torch.bool)
    own_damaged[size:] = torch.eye(size, dtype=torch.bool)
    to_picture = logits[:, :size].masked_fill(own_damaged, -1e9).T
    right = torch.cat([alike[:size], torch.zeros(size, size)], dim=1)
    return (to_text + functional.cross_entropy(to_picture, right)) / 2


def optimise(
    modules: Sequence[torch.nn.Module], steps: int, name: str, lr: float
) -> Iterator[torch.optim.Optimizer]:
    """AdamW with a warm-up and a cosine; yields before each step is to be computed."""
    weights = [p for module in modules for p in module.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lr, total_steps=steps, pct_start=0.05
    )
    for module in modules:
        module.train()
    for _ in tqdm(range(steps), desc=name, unit="step", mininterval=5):
        optimiser.zero_grad()
        yield optimiser
        optimiser.step()
        schedule.step()
    for module in modules:
        module.eval()


def train_encoders(
    batches: Batches, *, steps: int, size: int = 48
) -> tuple[networks.ViewEncoder, networks.TextEncoder]:
    """Step 2 of the module's list."""
    view, text = networks.ViewEncoder(), networks.TextEncoder()
    for _ in optimise([view, text], steps, "views and captions", 2e-3):
        whole, hurt = batches.pick(size)
        rows = np.concatenate([whole, hurt])
        vectors, judged = view(batches.views(rows))
        measures = batches.measures(rows)
        loss = contrastive_loss(
            vectors,
            text(batches.texts(whole)),
            text.no_object(),
            measures[:, 0],
            batches.labels(whole),
        )
        loss = loss + functional.binary_cross_entropy_with_logits(judged, measures)
        loss.backward()
    return view, text


def train_points(
    batches: Batches, *, steps: int, size: int = 48
) -> networks.PointClassifier:
    """Step 3 of the module's list."""
    classes = len(batches.objects.classes)
    points = networks.PointClassifier(classes)
    for _ in optimise([points], steps, "points", 3e-3):
        whole, hurt = batches.pick(size)
        rows = np.concatenate([whole, hurt[: size // 2]])
        fidelity = batches.measures(rows)[:, :1]
        kind = functional.one_hot(batches.labels(rows), classes).float()
        target = torch.cat([kind * fidelity, 1 - fidelity], dim=1)
        logits = points(batches.clouds(rows, CLOUD_IN_TRAINING))
        functional.cross_entropy(logits, target, label_smoothing=0.05).backward()
    return points


def part_limits(
    grids: np.ndarray, kinds: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Class -> part -> (likeness of strangers, likeness of members); see `parts.py`.

    Parts by which strangers cannot be told from members are left out, except the one
    that tells most.
    """
    table, kind = captions.table()["classes"], np.array(kinds)
    soft = parts.soften(grids)
    limits = {}
    for name in sorted(set(kinds)):
        members = np.flatnonzero(kind == name)
        found = {}
        for part in table[name]["parts"] if name in table else ("body",):
            best = np.full(len(soft), -1.0, np.float32)
            for example in members:
                alike = parts.likeness(soft[example], soft, part)
                alike[example] = -1.0  # an object is no example for itself
                best = np.maximum(best, alike)
            stranger, member = best[kind != name].mean(), np.median(best[members])
            found[part] = [round(float(stranger), 4), round(float(member), 4)]
        contrast = {
            part: member - stranger for part, (stranger, member) in found.items()
        }
        clearest = max(contrast, key=lambda part: contrast[part])
        stranger, member = found[clearest]
        # Members and strangers as good as alike: some room for a slope between them.
        found[clearest] = [stranger, max(member, stranger + LEAST_CONTRAST)]
        limits[name] = {
            part: limit
            for part, limit in found.items()
            if contrast[part] >= LEAST_CONTRAST or part == clearest
        }
    return limits


def match_logistic(
    scorer: embedded.EmbeddedScorer,
    drawn: pictures.Pictures,
    objects: Objects,
    rows: np.ndarray,
) -> list[float]:
    """Slope and offset that turn margins into probabilities.

    Fitted on own captions, right as far as the picture's fidelity goes, and on as many
    captions of other classes.
    """
    rng = np.random.default_rng(0)
    margins, targets = [], []
    kind = np.array([objects.kind[thing] for thing in drawn.object])
    for row in rows:
        with torch.inference_mode():
            vectors, _ = scorer.view(
                networks.grey_pictures(drawn.views[row][..., None])
            )
        stranger = rng.choice(rows[kind[rows] != kind[row]])
        for other, right in ((row, float(drawn.measures[row, 0])), (stranger, 0.0)):
            record = objects.catalog.objects[drawn.object[other]]
            text = str(rng.choice(texts_of(record, drawn.extents[other])))
            with torch.inference_mode():
                margins.append(scorer.margins(text, vectors))
            targets.append(torch.full((len(vectors),), right))
    x, y = torch.cat(margins).clone(), torch.cat(targets)
    line = torch.tensor([0.5, 0.0], requires_grad=True)
    optimiser = torch.optim.LBFGS([line], max_iter=100)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = functional.binary_cross_entropy_with_logits(line[0] * x + line[1], y)
        value.backward()
        return value

    optimiser.step(loss)
    slope, offset = line.tolist()
    return [round(slope, 4), round(offset, 4)]


def write(
    path: Path,
    modules: Mapping[str, torch.nn.Module],
    bank: torch.Tensor,
    grids: np.ndarray,
    facts: embedded.Facts,
) -> None:
    """The weights file and the facts beside it."""
    tensors = {
        f"{prefix}.{name}": value.half()
        for prefix, module in modules.items()
        for name, value in module.state_dict().items()
        if value.dtype.is_floating_point
    }
    tensors["bank"] = bank.half()
    tensors["examples"] = torch.from_numpy(
        np.packbits(grids.reshape(len(grids), -1), 1)
    )
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    text = json.dumps(dataclasses.asdict(facts), indent=1)
    with whole_file(path) as partial:
        safetensors.torch.save_file(tensors, partial)
    write_whole(path.with_suffix(".json"), text + "\n")


@dataclasses.dataclass(frozen=True)
class Recoded:
    """What `codec/recode.py` wrote.

    Attributes:
        rows: Of the augmented grids.
        share: Of wrong tokens in each.
        logits: float16 [n, R, R, R], decoded.
        held_out_shares: [s].
        held_out_logits: [s, held-out objects, R, R, R].
    """

    rows: np.ndarray
    share: np.ndarray
    logits: np.ndarray
    held_out_shares: np.ndarray
    held_out_logits: np.ndarray

    @classmethod
    def load(cls, path: Path) -> "Recoded":
        """Raises a UserError where there is no such file."""
        if not path.is_file():
            raise UserError(
                f"no file {path}; expected the output of python -m "
                f"ar3d_jax.codec.recode --catalog={path.parent}"
            )
        remedy = f"python -m ar3d_jax.codec.recode --catalog={path.parent}"
        with reading(path, remedy), np.load(path) as arrays:
            return cls(**{f.name: arrays[f.name] for f in dataclasses.fields(cls)})


def draw_changed(
    folder: Path, recoded: Recoded, *, seed: int, processes: int
) -> pictures.Pictures:
    """Changed training objects, half of them damaged, and what the codec made of some.

    Kept in the folder under names that change with what is drawn.
    """
    changed = load_augmented(folder / "augmented.npz")
    copies = len(changed.object) // len(set(changed.object.tolist()))
    rows = np.flatnonzero(np.isin(np.arange(len(changed.object)) % copies, COPIES))
    plan = pictures.plan_shapes(
        changed.packed[rows],
        changed.object[rows],
        damaged_share=DAMAGED_SHARE,
        seed=seed,
    )
    decoded = [
        pictures.Shape(grid, grid, kind, float(share), (0,), logits)
        for grid, kind, share, logits in zip(
            changed.packed[recoded.rows],
            np.where(recoded.share > 0, "wrong_tokens", "recoded").tolist(),
            recoded.share,
            recoded.logits,
            strict=True,
        )
    ]
    sets = (
        (plan, changed.object[rows], changed.extents[rows]),
        (decoded, changed.object[recoded.rows], changed.extents[recoded.rows]),
    )
    first, second = (_drawn(folder, *part, processes) for part in sets)
    return first.join(second)


def draw_unchanged(
    folder: Path, objects: Objects, *, seed: int, processes: int
) -> pictures.Pictures:
    """All objects as they are, kept likewise."""
    catalog = objects.catalog
    things = np.arange(len(catalog))
    shapes = pictures.plan_shapes(catalog.packed, things, damaged_share=0.0, seed=seed)
    return _drawn(folder, shapes, things, catalog.extents, processes)


def _drawn(
    folder: Path,
    shapes: list[pictures.Shape],
    things: np.ndarray,
    extents: np.ndarray,
    processes: int,
) -> pictures.Pictures:
    digest = hashlib.blake2b(repr((pictures.POINTS, len(shapes))).encode())
    for shape in shapes:
        digest.update(shape.voxels.tobytes() + repr(shape.seed).encode())
        digest.update(shape.kind.encode() + repr(shape.strength).encode())
        if shape.logits is not None:
            digest.update(shape.logits.tobytes())
    path = folder / f"pictures_{digest.hexdigest()[:12]}.npz"
    if not path.is_file():
        with writing(path):
            drawn = pictures.draw_shapes(shapes, things, extents, processes=processes)
            pictures.save(drawn, path)
    return pictures.load(path)


def train(
    catalog_folder: Path,
    out: Path,
    *,
    steps: int,
    points_steps: int,
    seed: int,
    processes: int,
) -> embedded.Facts:
    """The five steps of the module's list; the facts that were written."""
    torch.manual_seed(seed)
    objects = sort_into_classes(load_catalog(catalog_folder))
    records = objects.catalog.objects
    recoded = Recoded.load(catalog_folder / "recoded.npz")
    drawing = {"seed": seed, "processes": processes}
    changed = draw_changed(catalog_folder, recoded, **drawing)
    unchanged = draw_unchanged(catalog_folder, objects, **drawing)
    training = np.flatnonzero(~objects.catalog.held_out)
    tuning = training[::TUNE_ONE_IN]
    for_tuning = np.isin(changed.object, tuning)
    batches = Batches(changed, objects, np.flatnonzero(~for_tuning), seed)
    view, text = train_encoders(batches, steps=steps)
    everything = Batches(changed, objects, np.arange(len(changed)), seed)
    points = train_points(everything, steps=points_steps)

    grids = np.stack(
        [parts.occupancy(unchanged.points[i].astype(np.float32)) for i in training]
    )
    kinds = [objects.kind[i] for i in training]
    rng = np.random.default_rng(seed)
    told = [
        str(rng.choice(texts_of(records[i], records[i]["extents"]))) for i in training
    ]
    with torch.inference_mode():
        bank = text(told)
    facts = embedded.Facts(
        classes=objects.classes,
        words=objects.words,
        bank=kinds,
        examples={k: [i for i, of in enumerate(kinds) if of == k] for k in set(kinds)},
        limits=part_limits(grids, kinds),
        match=[1.0, 0.0],
        report={},
    )
    modules = {"view": view, "text": text, "points": points}
    write(out, modules, bank, grids, facts)
    scorer = embedded.EmbeddedScorer(out)
    match = match_logistic(scorer, changed, objects, np.flatnonzero(for_tuning))
    facts = dataclasses.replace(facts, match=match)
    write(out, modules, bank, grids, facts)
    texts = [texts_of(record, record["extents"]) for record in records]
    shares = recoded.held_out_shares.tolist()
    conditions = embedded_report.draw_conditions(
        objects.catalog,
        objects.kind,
        texts,
        dict(zip(shares, recoded.held_out_logits, strict=True)),
        processes=processes,
    )
    report = embedded_report.measure(out, conditions)
    facts = dataclasses.replace(facts, report=report)
    write(out, modules, bank, grids, facts)
    return facts


def _define_flags() -> None:
    flags.DEFINE_string("catalog", None, "folder of the catalog", required=True)
    flags.DEFINE_string("out", str(embedded.WEIGHTS), "weights to write, .safetensors")
    flags.DEFINE_integer("steps", 1500, "of views and captions", 1)
    flags.DEFINE_integer("points_steps", 800, "of points", 1)
    flags.DEFINE_integer("seed", 0, "of all random numbers", 0)
    flags.DEFINE_integer("threads", multiprocessing.cpu_count(), "of torch", 1)
    flags.DEFINE_integer("processes", multiprocessing.cpu_count(), "that draw", 1)


def main(_: list[str]) -> None:
    """Trains, writes and says what was measured."""
    torch.set_num_threads(flags.FLAGS.threads)
    out = Path(flags.FLAGS.out)
    with writing(out):  # now rather than when all is trained
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    facts = train(
        Path(flags.FLAGS.catalog),
        out,
        steps=flags.FLAGS.steps,
        points_steps=flags.FLAGS.points_steps,
        seed=flags.FLAGS.seed,
        processes=flags.FLAGS.processes,
    )
    print(embedded_report.as_text(facts.report))
    print(f"{out}: {out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    _define_flags()
    run(main)
