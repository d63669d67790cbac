r"""Objects as the codec returns them, whole or with wrong tokens: examples for scorers.

    python -m ar3d_jax.codec.recode --catalog=DIR [--codec=FILE]

encodes changed training objects (`data/augmentation.py`), exchanges a share of the
shape tokens in half of them, decodes, and writes DIR/recoded.npz; likewise the held-out
objects, for reports. What the embedded scorers must judge are decoded tokens; their
training cannot make any, because it runs without jax. It reads the file:
`rewards/sidecar/train_embedded.py`.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.command import run
from ar3d_jax.data.augmentation import load_augmented
from ar3d_jax.data.catalog import load_catalog
from ar3d_jax.errors import UserError, whole_file
from ar3d_jax.sharding import make_mesh

CODEC = Path(__file__).parents[1] / "assets" / "tiny" / "codec.safetensors"
COPIES = (16, 18, 20, 22)  # of augmentation.py, all facing the front
HELD_OUT_SHARES = (0.0, 0.1, 0.25, 0.5)  # of wrong tokens, every held-out object each
BATCH = 16  # objects at once


def wrong_tokens(
    codes: Int[np.ndarray, "N M"],
    share: Float[np.ndarray, " N"],
    *,
    vocabulary: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, "N M"]:
    """Codes of which about `share` are replaced, by another row's or by any code.

    Another row's tokens at the same places make plausible surfaces in the wrong place;
    any code makes debris. A policy makes both, so each row gets one kind at random.
    """
    rows = rng.permutation(len(codes))
    anything = rng.integers(vocabulary, size=codes.shape)
    source = np.where(rng.random((len(codes), 1)) < 0.5, codes[rows], anything)
    wrong = rng.random(codes.shape) < share[:, None]
    return np.where(wrong, source, codes).astype(codes.dtype)


def recode(
    codec: Codec,
    voxels: Bool[np.ndarray, "N R R R"],
    share: Float[np.ndarray, " N"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "N R R R"]:
    """Logits, float16, of the grids' codes with a share of each row's wrong."""
    codes = _batched(jax.jit(Codec.encode), codec, voxels, "encoding")
    codes = wrong_tokens(codes, share, vocabulary=codec.config.codes, rng=rng)
    return _batched(jax.jit(Codec.decode), codec, codes, "decoding").astype(np.float16)


def _batched(
    function: Callable[..., jax.Array], codec: Codec, array: np.ndarray, title: str
) -> np.ndarray:
    padding = np.repeat(array[:1], -len(array) % BATCH, axis=0)
    padded = np.concatenate([array, padding])
    starts = tqdm(range(0, len(padded), BATCH), title)
    parts = [np.asarray(function(codec, padded[s : s + BATCH])) for s in starts]
    return np.concatenate(parts)[: len(array)]


def _define_flags() -> None:
    flags.DEFINE_string("catalog", None, "folder of the catalog", required=True)
    flags.DEFINE_string("codec", str(CODEC), "the codec's safetensors file")
    flags.DEFINE_integer("seed", 0, "of the exchanged tokens", 0)


def main(_: list[str]) -> None:
    """Writes the file and says how many."""
    folder = Path(flags.FLAGS.catalog)
    changed = load_augmented(folder / "augmented.npz")
    copies = len(changed.object) // len(set(changed.object.tolist()))
    rows = np.flatnonzero(np.isin(np.arange(len(changed.object)) % copies, COPIES))
    if not len(rows):
        raise UserError(
            f"{folder}/augmented.npz has {copies} copies of each object; more than "
            f"{COPIES[0]} are needed: python -m ar3d_jax.data.augmentation --copies=24"
        )
    catalog = load_catalog(folder)
    held_out = np.flatnonzero(catalog.held_out)
    rng = np.random.default_rng(flags.FLAGS.seed)
    share = np.where(rng.random(len(rows)) < 0.5, 0.0, rng.random(len(rows)))
    with jax.set_mesh(make_mesh()):
        codec = torch_weights.load(flags.FLAGS.codec)
        logits = recode(codec, changed.voxels(rows), share, rng)
        unseen = [
            recode(codec, catalog.voxels[held_out], np.full(len(held_out), part), rng)
            for part in HELD_OUT_SHARES
        ]
    columns = {
        "rows": rows,
        "share": share,
        "logits": logits,
        "held_out_shares": np.array(HELD_OUT_SHARES),
        "held_out_logits": np.stack(unseen),
    }
    path = folder / "recoded.npz"
    with whole_file(path) as partial:
        np.savez(partial, **columns)
    print(f"{path}: {len(rows)} objects")


if __name__ == "__main__":
    _define_flags()
    run(main)
