"""Examples for supervised training: a prompt, both plans, and which voxels they are of.

Texts are made for each augmented copy from its own extents, so that `width 7` is true
of the voxels. Shape tokens are made from the voxels by `ar3d_jax.sft`, which has the
codec. The catalog is `catalog.py`, its copies `augmentation.py`, the words
`captions.py`.
"""

import dataclasses

import grain
import numpy as np

from ar3d_jax.data import captions
from ar3d_jax.data.augmentation import AugmentedVoxels
from ar3d_jax.data.catalog import Catalog


@dataclasses.dataclass(frozen=True)
class Example:
    """One text-shape pair.

    Attributes:
        prompt: What a user would ask.
        global_plan: The plan before the coarse shape.
        local_plan: The plan before the refined shape.
        row: Index into the augmented voxels; of a held-out example into the catalog's.
        object: Index into the catalog.
    """

    prompt: str
    global_plan: str
    local_plan: str
    row: int
    object: int


def describe(
    catalog: Catalog,
    index: int,
    extents: np.ndarray,
    row: int,
    rng: np.random.Generator,
) -> Example:
    """The texts of one object at these extents, with one of its prompts."""
    record = catalog.objects[index]
    prompts = captions.prompts(record, extents)
    return Example(
        prompt=prompts[int(rng.integers(len(prompts)))],
        global_plan=captions.global_plan(record, extents),
        local_plan=captions.local_plan(record, extents),
        row=row,
        object=index,
    )


def training_examples(
    catalog: Catalog, augmented: AugmentedVoxels, *, seed: int
) -> grain.MapDataset:
    """Endless shuffled examples of the copies that face the front.

    Element i follows from `seed` and i alone; `.batch(n, batch_fn=list)` groups them.
    Turned copies are left out, because no text says which way an object is turned.
    """
    rows = np.flatnonzero(augmented.front).tolist()

    def make(row: int, rng: np.random.Generator) -> Example:
        index = int(augmented.object[row])
        return describe(catalog, index, augmented.extents[row], row, rng)

    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat().random_map(make)


def held_out_examples(catalog: Catalog, *, seed: int = 0) -> list[Example]:
    """One example per held-out object, unchanged; rows are those of the catalog."""
    return [
        describe(catalog, i, catalog.extents[i], i, np.random.default_rng((seed, i)))
        for i in np.flatnonzero(catalog.held_out).tolist()
    ]
