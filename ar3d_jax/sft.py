"""Supervised training of the policy: `python -m ar3d_jax.sft --config=configs/sft.py`.

    (prompt, plans, voxels) -> codes -> a rollout's three sequences -> cross-entropy

1. Each example becomes the coarse, local and refined sequence, laid out exactly as the
   rollout does (`rollout/two_step.py`). The coarse and the refined shape are the same
   here: reinforcement learning tells them apart.
2. The loss is the mean over all tokens that a rollout would sample, under the
   distribution it would sample from: text from text, codes from codes.
3. A step's examples follow from the seed and the step alone, so a resumed run goes on
   exactly.

Shape tokens are made once, from the voxels of `data/augmentation.py` by the codec. What
comes out is a Hugging Face folder, `policy/` in the workdir, read by `policy/hf.py`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, UInt8
from tqdm import tqdm

from ar3d_jax import command, contents, optim
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.voxels import unpack
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import SftConfig, to_dict
from ar3d_jax.data.augmentation import load_augmented
from ar3d_jax.data.catalog import FILES, load_catalog
from ar3d_jax.data.sft_examples import (
    Example,
    held_out_examples,
    training_examples,
)
from ar3d_jax.errors import Diverged, UserError, whole_file, write_whole, writing
from ar3d_jax.gradient_watch import GradientWatch, check_weights
from ar3d_jax.metrics import RunLog
from ar3d_jax.models import check_vocabulary
from ar3d_jax.policy import chat, hf
from ar3d_jax.policy import tokenizer as tokenizers
from ar3d_jax.policy.chat import Prompts
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Segment, Sequence, join, sequence_logp
from ar3d_jax.policy.tokenizer import Tokenizer
from ar3d_jax.policy.vocab import Vocab
from ar3d_jax.sharding import make_mesh
from ar3d_jax.weights import resolve

ENCODE_ROWS = 32  # objects the codec encodes at once; our choice: little memory
TOKENIZER_EXAMPLES = 8000  # whose texts the small BPE is trained on; our choice
METRICS = (
    "loss",
    "loss/text",
    "loss/codes",
    "grad_norm",
    "examples_per_s",
    "held_out/*",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SftState:
    """What training changes.

    Attributes:
        policy: the decoder that is trained.
        opt_state: optax's.
    """

    policy: Decoder
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples as tokens.

    Attributes:
        prompts: chats with both instructions.
        global_plan: tokens and which are valid, padded on the right.
        local_plan: the same.
        shape: ids of the codes.
    """

    prompts: Prompts
    global_plan: tuple[Any, Any]  # B T, int32 and bool
    local_plan: tuple[Any, Any]  # B T, int32 and bool
    shape: Any  # B M, int32


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained and evaluated on.

    Attributes:
        examples: element i is step-independent; endless.
        codes: of each augmented grid [rows, M].
        held_out: examples that are never trained on.
        held_out_codes: of each catalog object [objects, M]; others are 0.
    """

    examples: Any
    codes: np.ndarray
    held_out: list[Example]
    held_out_codes: np.ndarray


def make_batch(
    examples: list[Example],
    codes: Int[np.ndarray, "rows M"],
    tokenizer: Tokenizer,
    config: SftConfig,
) -> Batch:
    """Examples as tokens; `codes` are those of the rows that examples name.

    Raises:
        UserError: a prompt or plan does not fit.
    """

    def plans(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((len(texts), config.plan_tokens), np.int32)
        valid = np.zeros(tokens.shape, bool)
        for row, text in enumerate(texts):
            ids = [*tokenizer.plain(text), tokenizer.vocab.im_end]
            if len(ids) > config.plan_tokens:
                raise UserError(
                    f"plan {text!r} has {len(ids)} tokens with its end of turn; at "
                    f"most plan_tokens={config.plan_tokens} fit: raise it"
                )
            tokens[row, : len(ids)] = ids
            valid[row, : len(ids)] = True
        return tokens, valid

    shapes = codes[[example.row for example in examples]]
    return Batch(
        prompts=chat.encode(
            tokenizer, [example.prompt for example in examples], config.prompt_tokens
        ),
        global_plan=plans([example.global_plan for example in examples]),
        local_plan=plans([example.local_plan for example in examples]),
        shape=shapes.astype(np.int32) + tokenizer.vocab.codes_start,
    )


def sequences(batch: Batch, vocab: Vocab) -> tuple[Sequence, Sequence, Sequence]:
    """The coarse, local and refined sequence; `sampled` marks what is learned."""
    batch = jax.tree.map(jnp.asarray, batch)
    rows = batch.shape.shape[0]

    def learned(segment: Segment) -> Segment:
        return dataclasses.replace(segment, sampled=segment.valid)

    prompts = batch.prompts
    high = Segment.given(prompts.high, prompts.high_valid)
    low = Segment.given(prompts.low, prompts.low_valid)
    turn = Segment.same(prompts.low_turn, rows)
    plan = Segment.given(*batch.global_plan)
    details = Segment.given(*batch.local_plan)
    begin = Segment.same(jnp.array([vocab.mesh_start]), rows)
    shape = learned(Segment.given(batch.shape, jnp.ones_like(batch.shape, bool)))
    return (
        join(high, learned(plan), begin, shape, text=1, shape=3),
        join(high, plan, turn, learned(details), text=3),
        join(low, details, begin, shape, shape=3),
    )


def token_losses(
    policy: Decoder, batch: Batch, vocab: Vocab
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Sums of -log-probability (nats) over text tokens and codes, and their counts."""
    sums = {"text": jnp.zeros(()), "codes": jnp.zeros(())}
    counts = {"text": jnp.zeros(()), "codes": jnp.zeros(())}
    for sequence in sequences(batch, vocab):
        logp, _ = sequence_logp(policy, sequence, vocab)
        for kind, span in (
            ("text", sequence.layout.text),
            ("codes", sequence.layout.shape),
        ):
            if span is not None:
                sums[kind] -= logp[:, slice(*span)].sum()
                counts[kind] += sequence.sampled[:, slice(*span)].sum()
    return sums, counts


def make_optimizer(config: SftConfig) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm; warm-up, then cosine to 2% of `lr`."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.lr, config.warmup_steps, config.steps, config.lr / 50
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=config.weight_decay),
    )


@functools.partial(
    jax.jit, static_argnames=("vocab", "config"), donate_argnames="state"
)
def train_step(
    state: SftState, batch: Batch, *, vocab: Vocab, config: SftConfig
) -> tuple[SftState, dict[str, jax.Array]]:
    """One step of AdamW; the state after it and metrics."""

    def loss_of(policy: Decoder) -> tuple[jax.Array, dict[str, jax.Array]]:
        sums, counts = token_losses(policy, batch, vocab)
        means = {f"loss/{kind}": sums[kind] / counts[kind] for kind in sums}
        total = functools.reduce(jnp.add, sums.values())
        return total / functools.reduce(jnp.add, counts.values()), means

    (loss, means), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.policy)
    policy, opt_state = optim.step(
        make_optimizer(config), gradient, state.opt_state, state.policy
    )
    metrics = {"loss": loss, **means, "grad_norm": optax.tree.norm(gradient)}
    return SftState(policy, opt_state), metrics


_token_losses = jax.jit(token_losses, static_argnames="vocab")


def held_out_perplexity(
    policy: Decoder, data: Data, tokenizer: Tokenizer, config: SftConfig
) -> dict[str, float]:
    """Perplexity of held-out texts and of held-out codes, each per token."""
    sums = {"text": 0.0, "codes": 0.0}
    counts = dict(sums)
    # A last, smaller batch would compile again: its few examples are left out.
    size = min(config.batch, len(data.held_out))
    for first in range(0, len(data.held_out) - size + 1, max(size, 1)):
        examples = data.held_out[first : first + size]
        batch = make_batch(examples, data.held_out_codes, tokenizer, config)
        values = jax.device_get(_token_losses(policy, batch, tokenizer.vocab))
        for total, value in zip((sums, counts), values, strict=True):
            for kind in total:
                total[kind] += float(value[kind])
    return {
        f"held_out/{kind}_perplexity": math.exp(sums[kind] / max(counts[kind], 1))
        for kind in sums
    }


def build_tokenizer(examples: Any, codes: int) -> Tokenizer:
    """The small tokenizer, trained on the texts of a dataset of examples."""
    some = [examples[i] for i in range(TOKENIZER_EXAMPLES)]
    texts = [
        text
        for example in some
        for text in (example.prompt, example.global_plan, example.local_plan)
    ]
    # What surrounds every prompt should be short, so it counts as often as plans do.
    frame = "".join((chat.TEMPLATE, chat.HIGH, chat.LOW, chat.HEAD, chat.TAIL))
    words = re.sub(r"<\|\w+\|>|\{\w+\}", "\n", frame)
    return tokenizers.build([*texts, *[words] * len(some)], codes=codes)


def load_data(config: SftConfig, folder: Path) -> Data:
    """Examples and their codes, which are made once and kept in `folder`.

    Raises:
        UserError: no catalog, other resolution, no codec.
    """
    catalog = load_catalog(config.catalog)
    grids = load_augmented(Path(config.catalog) / "augmented.npz")
    if grids.resolution != config.codec.resolution:
        raise UserError(
            f"{config.catalog} has {grids.resolution}^3 voxels; codec.resolution is "
            f"{config.codec.resolution}: make the catalog with that --resolution"
        )
    file = torch_weights.weights_file(resolve(config.codec.weights, "codec.weights"))
    codec = torch_weights.load(file, config.codec)
    kept = folder / f"codes-{_digest(file.read_bytes(), grids.packed)}.npz"
    if not kept.is_file():
        codes = encode_shapes(codec, grids.packed, np.flatnonzero(grids.front))
        rows = np.flatnonzero(catalog.held_out)
        held_out = encode_shapes(codec, catalog.packed, rows)
        with whole_file(kept) as partial:
            np.savez(partial, codes=codes, held_out=held_out)
    with np.load(kept) as arrays:
        return Data(
            examples=training_examples(catalog, grids, seed=config.seed),
            codes=arrays["codes"],
            held_out=held_out_examples(catalog),
            held_out_codes=arrays["held_out"],
        )


def encode_shapes(
    codec: Codec, packed: UInt8[np.ndarray, "n bytes"], rows: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, "n M"]:
    """Codes of the packed grids that `rows` names; zeros for all others."""
    encode = jax.jit(Codec.encode)
    codes = np.zeros((len(packed), codec.config.tokens), np.int32)
    for first in tqdm(range(0, len(rows), ENCODE_ROWS), desc="shape tokens"):
        some = rows[first : first + ENCODE_ROWS]
        filled = np.resize(some, ENCODE_ROWS)  # one compiled size
        grids = unpack(packed[filled], codec.config.resolution)
        codes[some] = np.asarray(encode(codec, grids))[: len(some)]
    return codes


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def export(policy: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes what `models.load_models` reads: float16 weights and the tokenizer."""
    hf.save(policy, folder, dtype="float16")
    tokenizer.save(folder)


def train(config: SftConfig, workdir: str) -> None:
    """The run: goes on where `workdir` has a checkpoint, ends with the weights.

    Raises:
        UserError: no catalog or codec, sizes that do not fit, no space; the training
            diverged.
    """
    folder = Path(workdir)
    mesh = make_mesh(config.mesh.fsdp, config.mesh.tp, config.mesh.data)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        data = load_data(config, folder)
        tokenizer = build_tokenizer(data.examples, config.codec.codes)
        check_vocabulary(tokenizer.vocab, config.policy.vocab_size, config.catalog)
        state = init_state(config)
        checkpoints = stack.enter_context(
            Checkpoints(
                folder / "checkpoints",
                keep=2,
                settings={"config": to_dict(config)},
                held=contents.held(
                    {"codec.weights": config.codec.weights}
                    | {f"catalog/{x}": Path(config.catalog) / x for x in FILES}
                ),
            )
        )
        start = 0
        if (restored := checkpoints.restore_latest(state)) is not None:
            state, start, _ = restored
        write_whole(folder / "config.json", json.dumps(to_dict(config), indent=2))
        log = stack.enter_context(
            RunLog(
                folder,
                names=METRICS,
                shown=("loss/text", "loss/codes", "examples_per_s"),
                steps=config.steps,
                first_step=start,
            )
        )
        gradients = GradientWatch(log.say, "lower lr")

        def save(done: int) -> None:
            check_weights(state.policy, done)
            checkpoints.save(state, done, {})
            export(state.policy, tokenizer, folder / "policy")

        for step in range(start, config.steps):
            began = time.perf_counter()
            numbers = range(step * config.batch, (step + 1) * config.batch)
            examples = [data.examples[i] for i in numbers]
            batch = make_batch(examples, data.codes, tokenizer, config)
            state, metrics = train_step(
                state, batch, vocab=tokenizer.vocab, config=config
            )
            line = jax.device_get(metrics)
            line["examples_per_s"] = config.batch / (time.perf_counter() - began)
            done = step + 1
            if done % config.eval_every == 0 or done == config.steps:
                found = held_out_perplexity(state.policy, data, tokenizer, config)
                line |= found
                values = ", ".join(f"{k} {v:.3f}" for k, v in found.items())
                log.say(f"step {done}: {values}")
            log.write(step, line)
            gradients.look(step, line["grad_norm"])
            if done % config.checkpoint_every == 0 or done == config.steps:
                save(done)
            try:
                gradients.check()
            except Diverged:
                save(done)
                raise
    print(f"{folder / 'policy'}: {config.steps} steps")


@functools.partial(jax.jit, static_argnames="config")
def init_state(config: SftConfig) -> SftState:
    """Random weights."""
    policy = Decoder(config.policy, jax.random.key(config.seed))
    return SftState(policy, optim.init(make_optimizer(config), policy))


def main() -> None:
    """The command."""
    command.run_config(
        train, section=SftConfig, config_file="configs/sft.py", workdir="runs/sft"
    )


if __name__ == "__main__":
    main()
