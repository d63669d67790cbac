"""How well the shipped codec reconstructs objects it never saw: one JSON line.

    python -m benchmarks.codec --catalog=data/catalog [--picture=docs/images/codec.png]

`held_out_iou` is the mean voxel IoU of held-out objects with decode(encode(object));
`unquantised_iou` is the same without the codebook, the limit of these networks;
`training_iou` is of as many training objects. The picture shows originals above
reconstructions.
"""

import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from ar3d_jax import command
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import Config
from ar3d_jax.data.catalog import load_catalog
from ar3d_jax.models import decode_rows
from ar3d_jax.render.sheets import view_sheet
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.sharding import make_mesh
from ar3d_jax.train_codec import iou
from ar3d_jax.weights import EMBEDDED

BATCH = 16
SHOWN = 6  # objects in the picture, evenly spaced through the held-out ones


def mean_iou(codec: Codec, voxels: np.ndarray, *, quantise: bool) -> float:
    """Over objects, a fixed number at a time."""
    batches = [
        np.asarray(iou(codec, voxels[first : first + BATCH], quantise=quantise))
        for first in range(0, len(voxels), BATCH)
    ]
    return round(float(np.concatenate(batches).mean()), 4)


def draw(codec: Codec, voxels: np.ndarray, names: list[str], path: Path) -> None:
    """Original voxels' surfaces above their reconstructions, object by object."""
    tokens = np.asarray(jax.jit(Codec.encode)(codec, voxels))
    with jax.set_mesh(make_mesh()):
        decoded = decode_rows(codec, tokens)
    originals = np.where(voxels, 1.0, -1.0).astype(np.float32)
    grids = np.stack([originals, decoded], axis=1)
    grids = grids.reshape(-1, *voxels.shape[1:])
    render = Config().render
    with (
        tempfile.TemporaryDirectory() as logs,
        Scoring(render, None, voxels.shape[1], 2 * SHOWN, logs) as scoring,
    ):
        ticket = scoring.submit(grids, [""] * len(grids), "coarse", keep_views=True)
        views = scoring.views(ticket)
    labels = [f"{name}: {kind}" for name in names for kind in ("voxels", "decoded")]
    path.parent.mkdir(parents=True, exist_ok=True)
    view_sheet(views, labels).save(path)


def main(_: list[str]) -> None:
    """Prints the line."""
    values = flags.FLAGS
    catalog = load_catalog(values.catalog)
    codec = torch_weights.load(values.weights)
    held_out = catalog.voxels[catalog.held_out]
    training = catalog.voxels[~catalog.held_out][:: len(catalog) // len(held_out)]
    start = time.perf_counter()
    line = {
        "benchmark": "codec",
        "resolution": codec.config.resolution,
        "tokens": codec.config.tokens,
        "codes": codec.config.codes,
        "objects": len(held_out),
        "held_out_iou": mean_iou(codec, held_out, quantise=True),
        "unquantised_iou": mean_iou(codec, held_out, quantise=False),
        "training_iou": mean_iou(codec, training, quantise=True),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if values.picture:
        chosen = np.linspace(0, len(held_out) - 1, SHOWN).astype(int)
        things = [t for t in catalog.objects if t["held_out"]]
        names = [things[i]["name"] for i in chosen]
        draw(codec, held_out[chosen], names, Path(values.picture))
    print(json.dumps(line))


if __name__ == "__main__":
    flags.DEFINE_string("catalog", "data/catalog", "folder of the catalog")
    shipped = str(EMBEDDED / "codec.safetensors")
    flags.DEFINE_string("weights", shipped, "safetensors file of a codec")
    flags.DEFINE_string("picture", "", "also draw reconstructions to this PNG")
    command.run(main)
