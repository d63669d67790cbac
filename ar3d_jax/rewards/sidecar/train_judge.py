r"""Trains the judge on the catalog's training objects.

    python -m ar3d_jax.rewards.sidecar.train_judge --catalog=DIR --out=FILE

after the commands of `train_embedded.py` that make DIR, whose drawn pictures it shares.
FILE (.safetensors, fp16) has in its metadata what was measured on held-out objects. The
default FILE is the shipped one.

Pictures and captions are drawn together by the same contrast as the embedded scorers',
under which damaged pictures belong to "no object"; what differs is in `judge.py` and
here: the seed, and what is done to pictures. Objects are mirrored, which captions
allow, enlarged, moved, darkened, and a piece of them is covered.
"""

import multiprocessing
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from torch.nn import functional

from ar3d_jax.command import run
from ar3d_jax.data.catalog import load_catalog
from ar3d_jax.errors import writing
from ar3d_jax.rewards.sidecar import embedded_report, judge, pictures, train_embedded
from ar3d_jax.rewards.sidecar.batches import Batches, sort_into_classes, texts_of

DRAWING_SEED = 0  # as the embedded scorers': the same file of pictures serves both
ZOOM, SHIFT = 0.15, 0.1  # pictures are enlarged or moved by up to this share
GAMMA = 0.3  # of shades; renderers light differently
COVERED = (8, 32)  # pixels along one side of the piece that is covered


class JudgeBatches(Batches):
    """Batches whose pictures are changed in other ways, and more."""

    def views(self, rows: np.ndarray) -> torch.Tensor:
        """One random view of each row, changed; [B, 1, S, S], white paper is 0."""
        view = self.rng.integers(self.drawn.views.shape[1], size=len(rows))
        grey = self.drawn.views[rows, view].astype(np.float32)
        ink = 1.0 - torch.from_numpy(grey)[:, None] / 255.0
        count = len(rows)
        zoom = 1 + self.rng.uniform(-ZOOM, ZOOM, count)
        change = np.zeros((count, 2, 3), np.float32)
        change[:, 0, 0] = zoom * self.rng.choice((-1, 1), count)
        change[:, 1, 1] = zoom * self.rng.uniform(0.95, 1.05, count)
        change[:, :, 2] = self.rng.uniform(-SHIFT, SHIFT, (count, 2))
        places = functional.affine_grid(
            torch.from_numpy(change), list(ink.shape), align_corners=False
        )
        ink = functional.grid_sample(ink, places, align_corners=False)
        gamma = self.rng.uniform(1 - GAMMA, 1 + GAMMA, (count, 1, 1, 1))
        ink = ink.clamp(0, 1) ** torch.from_numpy(gamma.astype(np.float32))
        for picture in ink[:, 0]:
            height, width = self.rng.integers(*COVERED, size=2)
            top, left = self.rng.integers(judge.SIZE, size=2)
            picture[top : top + height, left : left + width] = 0.0
        return ink


def train_encoders(
    batches: Batches, *, steps: int, size: int = 48
) -> tuple[judge.ViewEncoder, judge.TextEncoder]:
    """Both encoders, after `steps` batches of `size` whole and as many damaged ones."""
    view, text = judge.ViewEncoder(), judge.TextEncoder()
    weights = [*view.parameters(), *text.parameters()]
    for _ in train_embedded.optimise([view, text], steps, "judge", 1e-3):
        whole, hurt = batches.pick(size)
        rows = np.concatenate([whole, hurt])
        loss = train_embedded.contrastive_loss(
            view(batches.views(rows)),
            text(batches.texts(whole)),
            text.no_object(),
            batches.measures(rows)[:, 0],
            batches.labels(whole),
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
    return view, text


def measure(
    judged: judge.Judge,
    conditions: Mapping[str, tuple[pictures.Pictures, list[str]]],
) -> dict[str, Any]:
    """Retrieval and the mean CLIP score under each condition, on held-out objects.

    Args:
        judged: The encoders.
        conditions: Of `embedded_report.draw_conditions`.
    """
    scores, means = {}, {}
    for name, (drawn, prompts) in conditions.items():
        views = [judged.embed_views(v[..., None]) for v in drawn.views]
        texts = np.stack([judged.embed_text(prompt) for prompt in prompts])
        means[name] = np.stack([v.mean(axis=0) for v in views])
        scores[name] = round(100 * float((means[name] * texts).sum(axis=1).mean()), 1)
    own = conditions["right"][1]
    captions = np.stack([judged.embed_text(text) for text in own])
    return {
        "retrieval": embedded_report.retrieval(means["right"], captions, own),
        "clip_score": scores,
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report as lines to print."""
    scores, found = report["clip_score"], report["retrieval"]
    lines = ["held-out objects: CLIP score by the judge"]
    lines += [f"{name:18}{score:6.1f}" for name, score in scores.items()]
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in found.items())])


def train(
    catalog_folder: Path, out: Path, *, steps: int, seed: int, processes: int
) -> dict[str, Any]:
    """Trains, writes `out`, reads it back and measures; returns the report."""
    torch.manual_seed(seed)
    objects = sort_into_classes(load_catalog(catalog_folder))
    recoded = train_embedded.Recoded.load(catalog_folder / "recoded.npz")
    changed = train_embedded.draw_changed(
        catalog_folder, recoded, seed=DRAWING_SEED, processes=processes
    )
    batches = JudgeBatches(changed, objects, np.arange(len(changed)), seed)
    judge.Judge(*train_encoders(batches, steps=steps), {}).save(out)
    judged = judge.Judge.load(out)
    records = objects.catalog.objects
    shares = recoded.held_out_shares.tolist()
    conditions = embedded_report.draw_conditions(
        objects.catalog,
        objects.kind,
        [texts_of(record, record["extents"]) for record in records],
        dict(zip(shares, recoded.held_out_logits, strict=True)),
        processes=processes,
    )
    report = {"steps": steps, "seed": seed} | measure(judged, conditions)
    judge.Judge(judged.view, judged.text, report).save(out)
    return report


def _define_flags() -> None:
    flags.DEFINE_string("catalog", None, "folder of the catalog", required=True)
    flags.DEFINE_string("out", str(judge.WEIGHTS), "weights to write, .safetensors")
    flags.DEFINE_integer("steps", 1600, "of pictures and captions", 1)
    flags.DEFINE_integer("seed", 1, "of all random numbers", 0)
    flags.DEFINE_integer("threads", multiprocessing.cpu_count(), "of torch", 1)
    flags.DEFINE_integer("processes", multiprocessing.cpu_count(), "that draw", 1)


def main(_: list[str]) -> None:
    """Trains, writes and says what was measured."""
    torch.set_num_threads(flags.FLAGS.threads)
    out = Path(flags.FLAGS.out)
    with writing(out):  # now rather than when all is trained
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
    report = train(
        Path(flags.FLAGS.catalog),
        out,
        steps=flags.FLAGS.steps,
        seed=flags.FLAGS.seed,
        processes=flags.FLAGS.processes,
    )
    print(as_text(report))
    print(f"{out}: {out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    _define_flags()
    run(main)
