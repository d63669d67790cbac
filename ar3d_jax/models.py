"""The networks of a run, loaded, and a whole rollout with them.

`sample_steps` samples a paradigm's steps one after the other, so that training can have
coarse shapes scored while refined ones are sampled; everything that only wants objects
(`generate.py`, samples, evaluation) uses the same, and `decode_rows`.
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Texts
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ar3d_jax import hosts, sharding
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.codec import torch_weights
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import Config, PolicyConfig, RolloutConfig
from ar3d_jax.errors import UserError
from ar3d_jax.policy import chat, hf
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import Sequence
from ar3d_jax.policy.tokenizer import Tokenizer
from ar3d_jax.policy.vocab import Vocab
from ar3d_jax.rollout.two_step import (
    rollout_coarse,
    rollout_one_step,
    rollout_refined,
)
from ar3d_jax.weights import resolve_all

CONVERTED = "checkpoints"  # in a folder that `convert.py` made of published weights
DECODE_ROWS = 16  # objects that a device decodes at once; our choice: little memory


@dataclasses.dataclass(frozen=True)
class Models:
    """What a rollout needs.

    Attributes:
        tokenizer: text <-> ids.
        policy: the weights that the config names.
        codec: shape tokens <-> voxels.
    """

    tokenizer: Tokenizer
    policy: Decoder
    codec: Codec

    @property
    def vocab(self) -> Vocab:
        """Which ids mean what."""
        return self.tokenizer.vocab


@dataclasses.dataclass(frozen=True)
class StepSample:
    """What one generation step sampled; rows are prompt-major.

    Attributes:
        name: "coarse", "refined", or the one step of GRPO, "shape".
        sequences: those whose sampled tokens belong to the step; the last one ends in
            its shape.
        plan: which plan the first one has, "global" or "local"; "" for none.
    """

    name: str
    sequences: tuple[Sequence, ...]
    plan: str

    @property
    def shape(self) -> Sequence:
        """The sequence that ends in the step's shape."""
        return self.sequences[-1]


def load_models(config: Config, mesh: jax.sharding.Mesh) -> Models:
    """The tokenizer, policy and codec that `config` names. Call under `set_mesh`.

    Raises:
        UserError: files are missing, damaged, or of other sizes than the config says.
    """
    folder, file = resolve_all(
        {
            "policy.weights": config.policy.weights,
            "codec.weights": config.codec.weights,
        }
    )
    tokenizer = Tokenizer.load(folder)
    policy = load_policy(folder, config.policy, mesh)
    codec = hosts.on_all_devices(torch_weights.load(file, config.codec))
    if tokenizer.vocab.codes != codec.config.codes:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab.codes} mesh tokens; the "
            f"codec {file} has {codec.config.codes} codes: they must belong together"
        )
    check_vocabulary(tokenizer.vocab, policy.embed.shape[0], folder)
    return Models(tokenizer, policy, codec)


def load_policy(folder: Path, cfg: PolicyConfig, mesh: jax.sharding.Mesh) -> Decoder:
    """The policy in a Hugging Face folder, or in one that `convert.py` made of it.

    Raises:
        UserError: as `hf.load`.
    """
    if not (folder / CONVERTED).is_dir():
        return hf.load(folder, mesh=mesh, dtype=cfg.dtype, cfg=cfg)
    found = hf.read_config(folder)
    hf.check_sizes(folder, found, cfg)
    cfg = dataclasses.replace(cfg, vocab_size=found.vocab_size)
    template = {"policy": jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))}
    with Checkpoints(folder / CONVERTED, keep=1, settings={}, read_only=True) as kept:
        restored = kept.restore_latest(template)
    if restored is None:
        raise UserError(f"{folder / CONVERTED} is empty; convert the weights again")
    _check_numbers(restored[0]["policy"], folder)
    return restored[0]["policy"]


def _check_numbers(policy: Decoder, folder: Path) -> None:
    """As `hf.load` looks at tensors; of layers that are stacked, at all together.

    Raises:
        UserError: a parameter is not finite, or all zeros and no bias.
    """
    largest = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.abs(x).max(), tree))
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(largest(policy)))
    for path, value in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = name.removesuffix("/value")
        finite = np.isfinite(np.float32(value))
        if not finite or (value == 0 and not name.endswith("bias")):
            problem = "is all zeros" if finite else "has numbers that are not finite"
            raise UserError(
                f"{folder / CONVERTED}: {name} {problem}; convert the weights again"
            )


def check_vocabulary(vocab: Vocab, rows: int, source: object) -> None:
    """Refuses a tokenizer whose ids go beyond the embedding's rows.

    Raises:
        UserError: they do.
    """
    if vocab.mesh_end >= rows:
        raise UserError(
            f"the tokenizer of {source} has {vocab.mesh_end + 1} ids; "
            f"policy.vocab_size is {rows}: raise it to that or more"
        )


def check_length(tokenizer: Tokenizer, texts: Texts[str], cfg: RolloutConfig) -> int:
    """The compiled length that holds all prompts; refuses what does not fit.

    Raises:
        UserError: one is too long.
    """
    return _encode(tokenizer, texts, cfg)[1]


def _encode(
    tokenizer: Tokenizer, texts: Texts[str], cfg: RolloutConfig
) -> tuple[Any, int]:
    """Prompts as a rollout takes them, with a plan or without, and their length."""
    if cfg.plans:
        prompts = chat.encode(tokenizer, texts, cfg.prompt_tokens)
        return prompts, prompts.high.shape[1]
    direct = chat.encode_direct(tokenizer, texts, cfg.prompt_tokens)
    return direct, direct[0].shape[1]


def sample_steps(
    models: Models,
    policy: Decoder,
    texts: Texts[str],
    key: jax.Array,
    cfg: RolloutConfig,
    *,
    paradigm: str,
    group_size: int,
) -> Iterator[StepSample]:
    """A paradigm's steps for each text, `group_size` times, as they are sampled.

    higrpo: coarse, then refined, each with its plan. grpo: one step, `shape`, after a
    global plan (`rollout.plans`) or at once, as the paper's published model answers.

    Raises:
        UserError: a prompt is too long.
    """
    prompts, length = _encode(models.tokenizer, texts, cfg)
    # Programs are told the length that there is, not which others there could be: who
    # allows different lengths shares what is compiled.
    cfg = dataclasses.replace(cfg, prompt_tokens=(length,))
    sizes = {"group_size": group_size, "shape_tokens": models.codec.config.tokens}
    arguments = (cfg, models.vocab, key)
    if not cfg.plans:
        shapes = rollout_one_step(policy, *prompts, *arguments, **sizes)
        yield StepSample("shape", (shapes,), "")
        return
    coarse, cache = rollout_coarse(policy, prompts, *arguments, **sizes)
    if paradigm == "grpo":
        yield StepSample("shape", (coarse,), "global")
        return
    yield StepSample("coarse", (coarse,), "global")
    local, refined = rollout_refined(
        policy, prompts, coarse, cache, *arguments, **sizes
    )
    yield StepSample("refined", (local, refined), "local")


def shape_codes(sequence: Sequence, vocab: Vocab) -> np.ndarray:
    """The sampled shape of each row as codes [rows, M], int32."""
    assert sequence.layout.shape, "a sequence without a sampled shape"
    start, stop = sequence.layout.shape
    return hosts.everywhere(sequence.tokens)[:, start:stop] - vocab.codes_start


def plan_texts(sequence: Sequence, tokenizer: Tokenizer) -> list[str]:
    """The sampled plan of each row."""
    assert sequence.layout.text, "a sequence without a sampled plan"
    start, stop = sequence.layout.text
    tokens = hosts.everywhere(sequence.tokens)[:, start:stop]
    valid = hosts.everywhere(sequence.valid)[:, start:stop]
    return [
        tokenizer.decode(row[keep].tolist())
        for row, keep in zip(tokens, valid, strict=True)
    ]


@jax.jit
def decode_codes(codec: Codec, codes: jax.Array) -> jax.Array:
    """Logits [N, R, R, R] of shape tokens [N, M]; each device decodes its rows."""
    codes = jax.sharding.reshard(codes, jax.P(*sharding.OBJECTS_B, None))
    return jax.shard_map(Codec.decode, out_specs=sharding.OBJECTS_B)(codec, codes)


def decode_rows(
    codec: Codec, codes: np.ndarray, *, all_rows: bool = False
) -> Float[np.ndarray, "N R R R"]:
    """Logits of this host's rows of shape tokens [N, M], or on every host of all.

    All hosts must call it together, with the same tokens; some are decoded at a time.
    """
    shape = jax.sharding.get_mesh().shape
    parts = shape["data"] * shape["fsdp"]
    rows = len(codes)
    each = -(-rows // parts)  # as `hosts.own_rows` shares them out
    step = shape["tp"] * min(DECODE_ROWS, -(-each // shape["tp"]))
    codes = np.pad(codes, ((0, parts * each - rows), (0, 0)))
    codes = codes.reshape(parts, each, -1)
    codes = np.pad(codes, ((0, 0), (0, -each % step), (0, 0)))
    fetch = hosts.everywhere if all_rows else hosts.own
    batches = []
    for first in range(0, codes.shape[1], step):
        some = codes[:, first : first + step].reshape(parts * step, -1)
        logits = fetch(decode_codes(codec, some))
        batches.append(logits.reshape(-1, step, *logits.shape[1:]))
    logits = np.concatenate(batches, axis=1)[:, :each]
    return logits.reshape(-1, *logits.shape[2:])[:rows]
