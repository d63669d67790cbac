"""Trains the shape codec: `python -m ar3d_jax.train_codec --config=configs/codec.py`.

    voxels -> encoder -> nearest codes -> decoder -> logits -> Dice + cross-entropy

1. Without quantisation first, until latents mean something.
2. K-means of the latents then starts the codebook; from there on codes are a moving
   average of the latents assigned to them, and dead codes move to latents in use.
3. In the end tokens stand still: encoder and codebook are frozen, and the decoder alone
   learns to make the most of them, for less than half the price of a step, on objects
   that face the front, as those that the policy makes do.

With `--config.refine=FILE` only the third part runs, on from that file's codec:
policies and tokens that were made with it stay valid.

Weights that are kept are a moving average, too. Every `eval_every` steps the voxel IoU
of held-out objects is measured.

The grids are `data/augmentation.py`'s, turned and mirrored once more on the fly. What
comes out is `codec.safetensors`, read by `codec/torch_weights.py`.
"""

import contextlib
import dataclasses
import enum
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from ar3d_jax import command, contents, optim
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.quantizer import Codebook, kmeans, nearest_codes, update_codebook
from ar3d_jax.codec.vqvae import Codec, Decoder
from ar3d_jax.config import CodecTrainingConfig, to_dict
from ar3d_jax.data.augmentation import AugmentedVoxels, load_augmented
from ar3d_jax.data.catalog import FILES, load_catalog
from ar3d_jax.errors import Diverged, UserError, writing
from ar3d_jax.gradient_watch import GradientWatch, check_weights
from ar3d_jax.metrics import RunLog

SHOWN = ("loss", "commitment", "codes_used")
METRICS = (*SHOWN, "grad_norm", "held_out/*")


class Phase(enum.Enum):
    """What a step trains."""

    CONTINUOUS = "encoder and decoder, without codes"
    QUANTISED = "encoder, codebook and decoder"
    DECODER = "decoder"

    @classmethod
    def of(cls, step: int, config: CodecTrainingConfig) -> "Phase":
        """The phase of step `step`."""
        if step < config.warmup:
            return cls.CONTINUOUS
        return cls.QUANTISED if step < config.steps else cls.DECODER


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodecState:
    """Everything that a step changes.

    Attributes:
        codec: the weights that are trained; their codebook is `codebook.codes`.
        average: moving average of the weights.
        opt_state: AdamW's.
        codebook: codes and the statistics they follow from.
        step: steps done.
    """

    codec: Codec
    average: Codec
    opt_state: optax.OptState
    codebook: Codebook
    step: jax.Array


def reconstruction_loss(
    logits: Float[Array, "B R R R"], voxels: Bool[Array, "B R R R"]
) -> Float[Array, ""]:
    """Dice + cross-entropy, mean over objects.

    Dice is that of TRELLIS: 1 - (2 sum(p y) + 1) / (sum p + sum y + 1).
    The cross-entropy beside it is our choice: it keeps a gradient where Dice saturates.
    """
    y = voxels.astype(jnp.float32)
    p = jax.nn.sigmoid(logits)
    axes = (1, 2, 3)
    overlap = 2 * jnp.sum(p * y, axes) + 1
    dice = 1 - overlap / (jnp.sum(p, axes) + jnp.sum(y, axes) + 1)
    # Surfaces fill some 5% of the grid; the sum is over voxels, per occupied voxel.
    cross = optax.sigmoid_binary_cross_entropy(logits, y)
    return jnp.mean(dice + jnp.sum(cross, axes) / (jnp.sum(y, axes) + 1))


def make_optimizer(config: CodecTrainingConfig) -> optax.GradientTransformation:
    """AdamW; warm-up and cosine decay to 1% of `lr`, and once more for the decoder."""
    last = config.lr / 100
    everything = optax.warmup_cosine_decay_schedule(
        0.0, config.lr, config.lr_warmup, config.steps, last
    )
    decoder = optax.warmup_cosine_decay_schedule(
        last, config.lr / 2, config.lr_warmup, config.decoder_steps + 1, last
    )
    schedule = (
        decoder
        if config.refine
        else optax.join_schedules([everything, decoder], [config.steps])
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=1e-4),
    )


@functools.partial(
    jax.jit, static_argnames=("config", "phase"), donate_argnames="state"
)
def train_step(
    state: CodecState,
    voxels: Bool[Array, "B R R R"],
    key: jax.Array,
    *,
    config: CodecTrainingConfig,
    phase: Phase,
) -> tuple[CodecState, dict[str, jax.Array]]:
    """One step of AdamW and, where codes move, of the codebook; (state, metrics)."""
    codes = state.codebook.codes

    def loss_fn(codec: Codec) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        latents = codec.latents(voxels)
        if phase is Phase.CONTINUOUS:
            return reconstruction_loss(codec.decode_latents(latents), voxels), (
                latents,
                jnp.zeros(()),
            )
        nearest = codes[nearest_codes(latents, codes)]
        # Straight-through: the decoder's gradient reaches the encoder unchanged.
        through = latents + jax.lax.stop_gradient(nearest - latents)
        commitment = jnp.mean((latents - jax.lax.stop_gradient(nearest)) ** 2)
        loss = reconstruction_loss(codec.decode_latents(through), voxels)
        return loss + config.commitment * commitment, (latents, commitment)

    (loss, (latents, commitment)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
        state.codec
    )
    codec, opt_state = optim.step(
        make_optimizer(config), gradient, state.opt_state, state.codec
    )
    if phase is Phase.DECODER:
        codec = with_decoder(state.codec, codec.decoder)
    decay = jnp.minimum(config.average_decay, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(
        lambda a, w: decay * a + (1 - decay) * w, state.average, codec
    )
    codebook, used = state.codebook, jnp.zeros(())
    if phase is Phase.QUANTISED:
        flat = latents.reshape(-1, latents.shape[-1])
        codebook, used = update_codebook(codebook, flat, key, config.code_decay)
    state = CodecState(codec, average, opt_state, codebook, state.step + 1)
    metrics = {"loss": loss, "commitment": commitment, "codes_used": used}
    return state, metrics | {"grad_norm": optax.tree.norm(gradient)}


@functools.partial(jax.jit, static_argnames="quantise")
def iou(
    codec: Codec, voxels: Bool[Array, "B R R R"], *, quantise: bool
) -> Float[Array, " B"]:
    """Voxel IoU of each object with its reconstruction."""
    latents = codec.latents(voxels)
    if quantise:
        codes = codec.codebook.get_value()
        latents = codes[nearest_codes(latents, codes)]
    found = codec.decode_latents(latents) > 0
    axes = (1, 2, 3)
    return jnp.sum(found & voxels, axes) / jnp.sum(found | voxels, axes)


def with_decoder(codec: Codec, decoder: Decoder) -> Codec:
    """`codec` with another decoder."""
    leaves, structure = jax.tree.flatten(codec)
    new = iter(jax.tree.leaves(decoder))
    names = torch_weights.named_leaves(codec)
    return jax.tree.unflatten(
        structure,
        [
            next(new) if name.startswith("Decoder.") else leaf
            for name, leaf in zip(names, leaves, strict=True)
        ],
    )


def draw_batch(
    rows: AugmentedVoxels, step: int, config: CodecTrainingConfig, *, front: bool
) -> np.ndarray:
    """Step `step`'s grids [batch, R, R, R], each turned by quarters and mirrored.

    With `front` only objects that face the front, not turned.
    """
    rng = np.random.default_rng((config.seed, step))
    among = np.flatnonzero(rows.front) if front else np.arange(len(rows.object))
    grids = rows.voxels(among[rng.integers(len(among), size=config.batch)])
    turns = (1 if front else 4, 2)
    for i, (quarter, mirror) in enumerate(rng.integers(turns, size=(config.batch, 2))):
        grid = np.rot90(grids[i], quarter, axes=(0, 1))
        grids[i] = grid[::-1] if mirror else grid
    return grids


def start_codebook(
    state: CodecState, rows: AugmentedVoxels, config: CodecTrainingConfig
) -> CodecState:
    """`state` with the codebook that k-means finds in the latents of random grids."""
    latents = jax.jit(Codec.latents)
    batches = [
        latents(state.codec, draw_batch(rows, config.steps + i, config, front=False))
        for i in range(config.kmeans_batches)
    ]
    flat = jnp.concatenate(batches).reshape(-1, config.codec.code_size)
    codes = kmeans(flat, config.codec.codes, jax.random.key(config.seed))
    return dataclasses.replace(state, codebook=Codebook.of(codes))


def evaluate(state: CodecState, voxels: np.ndarray, *, quantise: bool) -> float:
    """Mean IoU over `voxels` [n, R, R, R] with the averaged weights."""
    codec = averaged(state)
    batches = np.array_split(voxels, -(-len(voxels) // 16))
    return float(
        np.mean(np.concatenate([iou(codec, b, quantise=quantise) for b in batches]))
    )


def freeze_codes(state: CodecState) -> CodecState:
    """`state` at the averaged weights, whose tokens are the ones to keep."""
    codec = averaged(state)
    return dataclasses.replace(
        state,
        codec=jax.tree.map(jnp.copy, codec),
        average=jax.tree.map(jnp.copy, codec),
    )


def averaged(state: CodecState) -> Codec:
    """The codec to keep: averaged weights with the codebook."""
    leaves, structure = jax.tree.flatten(state.average)
    names = list(torch_weights.named_leaves(state.average))
    leaves[names.index("vq.embeddings.weight")] = state.codebook.codes
    return jax.tree.unflatten(structure, leaves)


def load_data(config: CodecTrainingConfig) -> tuple[AugmentedVoxels, np.ndarray]:
    """The grids to train on, and the held-out objects' [n, R, R, R] bool.

    Raises:
        UserError: no catalog, other resolution, nothing held out.
    """
    rows = load_augmented(Path(config.catalog) / "augmented.npz")
    catalog = load_catalog(config.catalog)
    if rows.resolution != config.codec.resolution:
        raise UserError(
            f"{config.catalog} has {rows.resolution}^3 voxels; codec.resolution is "
            f"{config.codec.resolution}: make the catalog with that --resolution"
        )
    held_out = catalog.voxels[catalog.held_out]
    if not len(held_out) or catalog.resolution != rows.resolution:
        raise UserError(
            f"{config.catalog} has {len(held_out)} held-out objects of "
            f"{catalog.resolution}^3 voxels, training grids of {rows.resolution}^3; "
            "expected both, and equal: make the catalog and its copies anew"
        )
    return rows, held_out


def train(config: CodecTrainingConfig, workdir: str) -> None:
    """The run: goes on where `workdir` has a checkpoint, ends with the weights.

    Raises:
        UserError: no catalog, other resolution, a folder that cannot be written; the
            training diverged.
    """
    rows, held_out = load_data(config)
    codec = Codec(config.codec, jax.random.key(config.seed))
    if config.refine:
        codec = torch_weights.load(config.refine, config.codec)
    state = CodecState(
        codec=codec,
        average=jax.tree.map(jnp.copy, codec),
        opt_state=optim.init(make_optimizer(config), codec),
        codebook=Codebook.of(codec.codebook.get_value()),
        step=jnp.zeros((), jnp.int32),
    )
    folder = Path(workdir)
    total = config.steps + config.decoder_steps
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(folder))
        checkpoints = stack.enter_context(
            Checkpoints(
                folder / "checkpoints",
                keep=2,
                settings={"config": to_dict(config)},
                held=contents.held(
                    {"refine": config.refine}
                    | {f"catalog/{x}": Path(config.catalog) / x for x in FILES}
                ),
            )
        )
        start = config.steps if config.refine else 0
        if (restored := checkpoints.restore_latest(state)) is not None:
            state, start, _ = restored
        log = stack.enter_context(
            RunLog(folder, names=METRICS, shown=SHOWN, steps=total, first_step=start)
        )
        gradients = GradientWatch(log.say, "lower lr")

        def save(done: int) -> None:
            kept = averaged(state)
            check_weights(kept, done)
            checkpoints.save(state, done, {})
            torch_weights.save(kept, folder / "codec.safetensors", np.float16)

        for step in range(start, total):
            phase = Phase.of(step, config)
            if step == config.warmup:
                state = start_codebook(state, rows, config)
            if step == config.steps:
                state = freeze_codes(state)
            batch = draw_batch(rows, step, config, front=phase is Phase.DECODER)
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            state, metrics = train_step(state, batch, key, config=config, phase=phase)
            line = jax.device_get(metrics)
            done = step + 1
            if done % config.eval_every == 0 or done == total:
                quantise = phase is not Phase.CONTINUOUS
                found = evaluate(state, held_out, quantise=quantise)
                line["held_out/iou"] = found
                log.say(f"step {done}: held-out IoU {found:.4f}")
            log.write(step, line)
            gradients.look(step, line["grad_norm"])
            if done % config.checkpoint_every == 0 or done == total:
                save(done)
            try:
                gradients.check()
            except Diverged:
                save(done)
                raise
    print(f"{folder / 'codec.safetensors'}: {total} steps")


def main() -> None:
    """The command."""
    command.run_config(
        train,
        section=CodecTrainingConfig,
        config_file="configs/codec.py",
        workdir="runs/codec",
    )


if __name__ == "__main__":
    main()
