"""The catalog as the scorers learn it: classes, captions, and random batches.

Small classes are put together, captions are made for the very proportions of each
changed copy, and pictures, words and points are varied a little each time. What is
computed from a batch is in `train_embedded.py`; how the pictures came about, in
`pictures.py`.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ar3d_jax.data import captions
from ar3d_jax.data.catalog import Catalog
from ar3d_jax.rewards.sidecar import pictures
from ar3d_jax.rewards.sidecar.scorers import networks, parts

FEWEST = 5  # training objects of a class of its own; smaller ones go together
WORD_DROPOUT = 0.15  # prompts of users lack words and have others
SHIFT = 8  # pixels that a picture may be moved


@dataclasses.dataclass(frozen=True)
class Objects:
    """The catalog as the scorers see it.

    Attributes:
        catalog: The records.
        kind: Class of each object, small classes put together.
        classes: All of them, sorted.
        words: Nouns -> class.
    """

    catalog: Catalog
    kind: list[str]
    classes: list[str]
    words: dict[str, str]


def sort_into_classes(catalog: Catalog) -> Objects:
    """Classes with FEWEST training objects stay, others join "other <group>"."""
    table = captions.table()["classes"]
    records = catalog.objects
    count = collections.Counter(r["class"] for r in records if not r["held_out"])
    merged = {
        name: name if count[name] >= FEWEST else f"other {row['group']}"
        for name, row in table.items()
    }
    count = collections.Counter(
        merged[r["class"]] for r in records if not r["held_out"]
    )
    merged = {k: v if count[v] >= FEWEST else "other" for k, v in merged.items()}
    kind = [merged[record["class"]] for record in records]
    words = {w: merged[name] for name, row in table.items() for w in row["words"]}
    return Objects(catalog, kind, sorted(set(kind)), words)


def texts_of(
    record: Mapping[str, Any], extents: Sequence[float] | np.ndarray
) -> list[str]:
    """Captions to train on: the prompts, which state parts and proportions."""
    return captions.prompts(record, [float(side) for side in extents])


class Batches:
    """Random batches of pictures with their captions or points, forever."""

    def __init__(
        self, drawn: pictures.Pictures, objects: Objects, rows: np.ndarray, seed: int
    ) -> None:
        self.drawn, self.objects = drawn, objects
        self.rng = np.random.default_rng(seed)
        self.whole: dict[int, list[int]] = collections.defaultdict(list)
        self.hurt: dict[int, list[int]] = collections.defaultdict(list)
        for row in rows:
            of = self.whole if drawn.kind[row] in pictures.WHOLE else self.hurt
            of[int(drawn.object[row])].append(int(row))
        self.things = np.array(sorted(set(self.whole) & set(self.hurt)))
        self.label = {k: i for i, k in enumerate(objects.classes)}

    def pick(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `size` different objects: whole ones, then damaged ones."""
        things = self.rng.choice(self.things, size, replace=False)
        rows = [self.rng.choice(self.whole[int(t)]) for t in things]
        hurt = [self.rng.choice(self.hurt[int(t)]) for t in things]
        return np.array(rows), np.array(hurt)

    def views(self, rows: np.ndarray) -> torch.Tensor:
        """One random view of each row, moved a little and lit a little differently."""
        view = self.rng.integers(self.drawn.views.shape[1], size=len(rows))
        grey = self.drawn.views[rows, view].astype(np.float32)
        padded = np.pad(1.0 - grey / 255.0, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        x, y = self.rng.integers(2 * SHIFT + 1, size=(2, len(rows)))
        size = networks.SIZE
        moved = [
            p[a : a + size, b : b + size] for p, a, b in zip(padded, x, y, strict=True)
        ]
        light = self.rng.uniform(0.9, 1.1, (len(rows), 1, 1)).astype(np.float32)
        return torch.from_numpy((np.stack(moved) * light)[:, None])

    def texts(self, rows: np.ndarray) -> list[str]:
        """One random caption of each row, with words left out."""
        chosen = []
        for row in rows:
            record = self.objects.catalog.objects[self.drawn.object[row]]
            texts = texts_of(record, self.drawn.extents[row])
            words = texts[self.rng.integers(len(texts))].split()
            kept = [w for w in words if self.rng.random() >= WORD_DROPOUT]
            chosen.append(" ".join(kept or words))
        return chosen

    def clouds(self, rows: np.ndarray, count: int) -> torch.Tensor:
        """Some of each row's points, normalised as in scoring, slightly moved."""
        chosen = []
        for row in rows:
            points = self.drawn.points[row].astype(np.float32)
            some = parts.cloud(points)[self.rng.permutation(parts.CLOUD)[:count]]
            stretch = self.rng.uniform(0.9, 1.1, 3)
            chosen.append(some * stretch + self.rng.normal(0, 0.01, some.shape))
        return torch.from_numpy(np.stack(chosen).astype(np.float32))

    def labels(self, rows: np.ndarray) -> torch.Tensor:
        """Class numbers."""
        return torch.tensor(
            [self.label[self.objects.kind[self.drawn.object[row]]] for row in rows]
        )

    def measures(self, rows: np.ndarray) -> torch.Tensor:
        """Fidelity and cleanliness."""
        return torch.from_numpy(self.drawn.measures[rows])
