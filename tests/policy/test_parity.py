"""Parity with transformers at small sizes: logits, decoding, gradients, bfloat16.

Six random models go through real files: `save_pretrained`, then `hf.load`. What reading
and writing of folders does beyond that is in `test_hf.py`.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from torch.nn import functional

from ar3d_jax.policy import hf
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.sequence import token_logp
from ar3d_jax.policy.vocab import Subset
from ar3d_jax.rollout.generate import prefill, sample
from ar3d_jax.rollout.sampling import TopK, uniforms
from ar3d_jax.sharding import make_mesh
from tests.policy.torch_policy import (
    greedy_of,
    logits_of,
    positions_of,
    qwen2,
    qwen25_vl,
    text_parameters,
)

LOGIT_ERROR = 1e-4
STEPS = 200
LENGTHS, PROMPTS = (300, 211, 37), (40, 23, 5)  # tokens per row of a batch


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and how ours runs.

    Attributes:
        make: of `torch_policy`.
        tied: one matrix for embedding and head.
        vocab: its size.
        width: of the model.
        heads: query and key/value heads.
        head_size: where it is not width / heads.
        layers: blocks.
        remat: `policy.remat`.
        scan: `policy.scan_decode`.
        seed: of the weights; such that no greedy choice is a close call.
    """

    make: Callable[..., torch.nn.Module]
    tied: bool
    vocab: int
    width: int
    heads: tuple[int, int]
    head_size: int | None = None
    layers: int = 2
    remat: str = "off"
    scan: bool = False
    seed: int = 0

    def model(self, seed: int) -> torch.nn.Module:
        """With random weights."""
        own_size = {"head_dim": self.head_size} if self.head_size else {}
        return self.make(
            tied=self.tied,
            seed=seed,
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=80,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads[0],
            num_key_value_heads=self.heads[1],
            **own_size,
        )


CASES = {
    "group of 1, odd vocabulary": Case(qwen2, False, 1003, 64, (4, 4), scan=True),
    "group of 4, tied": Case(
        qwen2, True, 512, 48, (8, 2), 8, remat="attention", seed=3
    ),
    "group of 7, odd vocabulary": Case(
        qwen2, False, 1003, 40, (7, 1), 8, remat="full", seed=3
    ),
    "group of 7, tied": Case(qwen2, True, 640, 96, (14, 2), 16, scan=True, seed=3),
    "VL, group of 4": Case(
        qwen25_vl, False, 1003, 64, (4, 1), scan=True, remat="attention", seed=1
    ),
    "VL, group of 1, tied": Case(qwen25_vl, True, 301, 64, (2, 2), layers=3, seed=1),
}
FORWARD = jax.jit(Decoder.__call__)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights twice.

    Attributes:
        case: their sizes.
        folder: where they are.
        model: transformers'.
        policy: ours.
    """

    case: Case
    folder: Path
    model: torch.nn.Module
    policy: Decoder


def load(folder: Path, case: Case, dtype: str = "float32") -> Decoder:
    cfg = dataclasses.replace(
        hf.read_sizes(folder), remat=case.remat, scan_decode=case.scan, dtype=dtype
    )
    return hf.load(folder, mesh=make_mesh(), dtype=dtype, cfg=cfg)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    case, folder = request.param, tmp_path_factory.mktemp("model")
    model = case.model(case.seed)
    model.save_pretrained(folder)
    return Pair(case, folder, model, load(folder, case))


def batch(case: Case, lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens, padded on the left with other ones, and which of them count."""
    longest = max(lengths)
    tokens = np.random.default_rng(0).integers(0, case.vocab, (len(lengths), longest))
    missing = longest - np.array(lengths)[:, None]
    return tokens.astype(np.int32), np.arange(longest)[None] >= missing


def our_logits(policy: Decoder, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    arguments = (jnp.asarray(x) for x in (tokens, positions_of(valid), valid))
    return np.asarray(FORWARD(policy, *arguments))[valid]


@functools.partial(jax.jit, static_argnames="steps")
def greedy(
    policy: Decoder, tokens: jax.Array, valid: jax.Array, *, steps: int
) -> jax.Array:
    """A rollout's segment, of which top-k leaves the most likely token only."""
    layers = policy.layers()
    hidden, cache = prefill(policy, layers, tokens, valid)
    segment, _, _ = sample(
        policy,
        layers,
        cache,
        hidden,
        uniforms(jax.random.key(0), len(tokens), steps),
        subset=Subset(0, policy.cfg.vocab_size),
        filters=(TopK(1),),
    )
    return segment.tokens


def assert_decided(
    model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray, new: np.ndarray
) -> None:
    """Greedy tokens are diverse, and no second choice is as near as rounding."""
    assert min(len(set(row)) for row in new.tolist()) >= 20
    everything = np.concatenate([tokens, new], axis=1)
    valid = np.pad(valid, ((0, 0), (0, new.shape[1])), constant_values=True)
    with torch.inference_mode():
        logits = logits_of(model, everything, valid)[:, tokens.shape[1] - 1 : -1]
    best = logits.topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > 2 * LOGIT_ERROR


def test_logits(pair: Pair):
    tokens, valid = batch(pair.case, LENGTHS)
    with torch.inference_mode():
        theirs = logits_of(pair.model, tokens, valid).numpy()[valid]
    assert theirs.std() > 1
    ours = our_logits(pair.policy, tokens, valid)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGIT_ERROR)


def test_greedy_tokens(pair: Pair):
    """200 of them through the cache, after prompts padded on the left."""
    tokens, valid = batch(pair.case, PROMPTS)
    theirs = greedy_of(pair.model, tokens, valid, steps=STEPS)
    assert_decided(pair.model, tokens, valid, theirs)
    ours = greedy(pair.policy, jnp.asarray(tokens), jnp.asarray(valid), steps=STEPS)
    np.testing.assert_array_equal(ours, theirs)


def test_gradients(pair: Pair, tmp_path: Path):
    """Of the mean cross-entropy of valid tokens, by what training computes it with."""
    tokens, valid = batch(pair.case, LENGTHS)
    predicted = valid[:, :-1] & valid[:, 1:]

    @jax.jit
    @jax.grad
    def gradient(policy: Decoder) -> jax.Array:
        hidden = policy.hidden(*map(jnp.asarray, (tokens, positions_of(valid), valid)))
        subset = Subset(0, pair.case.vocab)
        columns = subset.columns(policy.head_weights())
        logp, _ = token_logp(
            hidden[:, :-1], columns, jnp.asarray(tokens[:, 1:]), subset, temperature=1.0
        )
        return -jnp.where(predicted, logp, 0.0).sum() / predicted.sum()

    # A gradient is a `Decoder`, too: saved like one, its tensors have their names.
    hf.save(gradient(pair.policy), tmp_path)
    ours = load_file(tmp_path / hf.WEIGHTS_FILE)

    logits = logits_of(pair.model, tokens, valid)[:, :-1][torch.tensor(predicted)]
    targets = torch.tensor(tokens[:, 1:][predicted]).long()
    pair.model.zero_grad()
    functional.cross_entropy(logits, targets).backward()
    theirs = text_parameters(pair.model)
    assert ours.keys() == theirs.keys()
    errors = {}
    for name, parameter in theirs.items():
        difference = np.linalg.norm(ours[name] - parameter.grad.numpy())
        errors[name] = float(difference / parameter.grad.norm())
    assert max(errors.values()) < 1e-3, errors


def test_bfloat16_error(pair: Pair):
    """Rounding costs no more than it costs transformers."""
    tokens, valid = batch(pair.case, LENGTHS)
    ours = our_logits(load(pair.folder, pair.case, "bfloat16"), tokens, valid)
    with torch.inference_mode():
        exact, theirs = (
            logits_of(model, tokens, valid).numpy()[valid]
            for model in (pair.model, copy.deepcopy(pair.model).bfloat16())
        )
    ours, theirs = (np.sqrt(np.square(x - exact).mean()) for x in (ours, theirs))
    assert 0 < ours < 1.5 * theirs


def test_what_we_save_decodes_the_same(tmp_path: Path):
    """In transformers as in ours: a folder of its own, and a VL model's with others."""
    case = CASES["VL, group of 4"]
    case.model(case.seed).save_pretrained(tmp_path / "trained")
    case.model(case.seed + 1).save_pretrained(tmp_path / "base")
    policy = load(tmp_path / "trained", case)
    tokens, valid = batch(case, PROMPTS)
    ours = greedy(policy, jnp.asarray(tokens), jnp.asarray(valid), steps=STEPS)
    for base, kind in (
        (None, transformers.Qwen2ForCausalLM),
        (tmp_path / "base", transformers.Qwen2_5_VLForConditionalGeneration),
    ):
        folder = tmp_path / f"out-{kind.__name__}"
        hf.save(policy, folder, base=base)
        model = kind.from_pretrained(folder).eval()
        theirs = greedy_of(model, tokens, valid, steps=STEPS)
        assert_decided(model, tokens, valid, theirs)
        np.testing.assert_array_equal(ours, theirs)
