"""ShapeLLM: Vicuna that reads a point cloud as 1136 tokens, and answers yes or no.

Formats, sizes and names are those of qizekun/ShapeLLM at f754b0d. The point encoder is
`recon.py`; three MLPs bring its features (positions, groups, the whole) to the language
model's width, and 32 learned tokens follow each: (512+32) + (512+32) + (16+32). The
language model is transformers' `LlamaForCausalLM`, with the projector as its
`model.mm_projector`, where the published files have it. What is asked: `shapellm.py`.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from ar3d_jax.rewards.sidecar.features import files
from ar3d_jax.rewards.sidecar.scorers import recon, torch_files

FIELD = "rewards.shapellm.weights"
EXPECTED = "the files of qizekun/ShapeLLM_7B_general_v1.0"
INDEX = "pytorch_model.bin.index.json"
# The conversation it was trained on, Vicuna's v1: before the points, and after them.
BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions. "
    "USER: "
)
AFTER = "\n{question} ASSISTANT:"
# An answer's first word, as the tokenizer writes it after "ASSISTANT:".
YES, NO = ("▁Yes", "▁yes"), ("▁No", "▁no")
# Published along: the encoder again, which recon.py reads from its own file, as the
# authors do; and tables of angles that older versions of transformers saved.
UNUSED = ("model.vision_tower.", ".rotary_emb.inv_freq")
_PROJECTOR = "model.mm_projector."
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("rms_norm_eps", "hidden_act"),
)
_STATED = {  # by every config.json that this file can read
    **{"model_type": "llava", "mm_projector_type": "mlp2x_gelu"},
    **{"mm_use_pt_start_end": False, "mm_use_pt_patch_token": False},
    **{"with_color": True, "with_ape": True, "with_local": True, "with_global": True},
}
_PLAIN = {  # what this file computes; a config.json may leave them out
    **{"rope_theta": 10000.0, "rope_scaling": None, "quantization_config": None},
    **{"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
}


@dataclasses.dataclass(frozen=True)
class Widths:
    """Of the projector.

    Attributes:
        features: Of the encoder's tokens: 1024.
        first: Of the first hidden layer: 1024.
        second: Of the second: 2048.
        tokens: Of the language model's: 4096.
        prompts: How many learned tokens follow each kind of feature: 32.
    """

    features: int
    first: int
    second: int
    tokens: int
    prompts: int

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> "Widths":
        """Those that the tensors have; KeyError or ValueError where they have none."""
        first, features = tensors[f"{_PROJECTOR}proj1.0.weight"].shape
        second, _ = tensors[f"{_PROJECTOR}proj1.3.weight"].shape
        _, prompts, tokens = tensors[f"{_PROJECTOR}prompt1"].shape
        return Widths(features, first, second, tokens, prompts)


class Projector(nn.Module):
    """From the encoder's features to tokens of the language model."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        prompts = torch.zeros(1, widths.prompts, widths.tokens)
        self.prompt1 = nn.Parameter(prompts)
        self.prompt2 = nn.Parameter(prompts.clone())
        self.prompt3 = nn.Parameter(prompts.clone())
        self.proj1, self.proj2, self.proj3 = (_mlp(widths) for _ in range(3))

    def forward(
        self,
        positions: Float[Tensor, "G D"],
        local: Float[Tensor, "G D"],
        of_all: Float[Tensor, "Q D"],
    ) -> Float[Tensor, "P M"]:
        """All point tokens, in the order of training."""
        rows = (
            *(self.proj1(positions), self.prompt1[0]),
            *(self.proj2(local), self.prompt2[0]),
            *(self.proj3(of_all), self.prompt3[0]),
        )
        return torch.cat(rows)


def _mlp(widths: Widths) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(widths.features, widths.first),
        nn.LayerNorm(widths.first),
        nn.GELU(),
        nn.Linear(widths.first, widths.second),
        nn.LayerNorm(widths.second),
        nn.GELU(),
        nn.Linear(widths.second, widths.tokens),
    )


def build(config: transformers.LlamaConfig, widths: Widths) -> Any:
    """The language model with its projector, on torch's default device."""
    language: Any = transformers.LlamaForCausalLM(config)
    language.model.mm_projector = Projector(widths)
    return language


class ShapeLlm:
    """Encoder, projector, language model and tokenizer, ready to be asked."""

    def __init__(
        self, encoder: recon.PointEncoder, language: Any, tokenizer: Any
    ) -> None:
        self._encoder, self._language = encoder, language
        self._projector: Projector = language.model.mm_projector
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._words = [[vocabulary[word] for word in words] for words in (YES, NO)]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._projector.prompt1.device

    def to(self, device: torch.device | str) -> None:
        """Takes all of it there."""
        self._encoder.to(device)
        self._language.to(device)

    @torch.inference_mode()
    def point_tokens(self, cloud: Float[Tensor, "N 6"]) -> Float[Tensor, "P M"]:
        """The cloud as the language model reads it; see `recon.PointEncoder`."""
        own = self._projector.prompt1
        return self._projector(*self._encoder(cloud.to(own.device, own.dtype)))

    @torch.inference_mode()
    def answer(
        self, points: Float[Tensor, "P M"], questions: Sequence[str]
    ) -> Float[Tensor, "q 2"]:
        """Of each question, probabilities that the answer begins with yes, and with no.

        All questions are read in one pass, side by side after one conversation's
        beginning: no question sees another, and each has the positions that it would
        have alone. The beginning, 1136 points and more, is then computed only once.

        Raises:
            ValueError: a question is too long for the language model.
        """
        start = self._embed([self._tokenizer.bos_token_id, *self._tokens(BEFORE)])
        asked = [self._tokens(AFTER.format(question=text)) for text in questions]
        rows = torch.cat([start, points, self._embed([*itertools.chain(*asked)])])
        shared = len(start) + len(points)
        lengths = [len(tokens) for tokens in asked]
        longest = self._language.config.max_position_embeddings
        if shared + max(lengths) > longest:
            raise ValueError(
                f"a question of {max(lengths)} tokens after {shared} of the object; "
                f"ShapeLLM reads {longest}"
            )
        spread = torch.tensor([shared, *lengths])
        owner = torch.arange(len(spread)).repeat_interleave(spread)
        own = [torch.arange(shared, shared + length) for length in lengths]
        places = torch.cat([torch.arange(shared), *own])
        seen = ((owner == 0) | (owner[:, None] == owner)).tril()
        last = torch.tensor(list(itertools.accumulate(lengths))) + (shared - 1)
        logits = self._language(
            inputs_embeds=rows[None],
            attention_mask=seen[None, None].to(rows.device),
            position_ids=places[None].to(rows.device),
            logits_to_keep=last.to(rows.device),
            use_cache=False,
        ).logits[0]
        likely = logits.float().softmax(1)
        yes, no = (likely[:, words].sum(1) for words in self._words)
        return torch.stack([yes, no], dim=1)

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _embed(self, tokens: list[int]) -> Float[Tensor, "T M"]:
        table = self._language.get_input_embeddings()
        return table(torch.tensor(tokens, device=table.weight.device))


def load(
    folder: Path, encoder: Path, place: torch.device, dtype: torch.dtype
) -> ShapeLlm:
    """ShapeLLM of a published folder, with the encoder of another published file.

    Raises:
        UserError: a file is missing or broken, or it is another network.
    """
    if not folder.is_dir():
        files.refuse(FIELD, folder, "is no folder", EXPECTED)
    config = _read_config(folder)
    tokenizer = _read_tokenizer(folder, config.vocab_size)
    tensors = _read_tensors(folder)
    try:
        widths = Widths.of(tensors)
    except (KeyError, ValueError) as error:
        files.refuse(FIELD, folder, f"is no ShapeLLM (no {error})", EXPECTED)
    points = recon.load(encoder, place, dtype)
    if points.sizes.width != widths.features:
        problem = f"reads {widths.features} numbers per group of points"
        wanted = f"{points.sizes.width}, as {encoder} gives them"
        files.refuse(FIELD, folder, problem, wanted)
    with torch.device("meta"):
        language = build(config, widths)
    torch_files.fill(
        language,
        tensors,
        unused=UNUSED,
        place=place,
        dtype=dtype,
        refuse=(FIELD, folder, EXPECTED),
    )
    # Its angles are in no file.
    rotary = language.model.rotary_emb
    language.model.rotary_emb = type(rotary)(config).to(place)
    return ShapeLlm(points, language, tokenizer)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        stated = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        files.refuse(
            FIELD, path, f"cannot be read ({files.first_line(error)})", EXPECTED
        )
    if not isinstance(stated, dict):
        files.refuse(FIELD, path, "is no JSON object", EXPECTED)
    return stated


def _read_config(folder: Path) -> transformers.LlamaConfig:
    path = folder / "config.json"
    stated = _read_json(path)
    for name, value in (_STATED | _PLAIN).items():
        found = stated.get(name)
        if found != value and not (name in _PLAIN and found is None):
            problem = f"states {name} {stated.get(name)!r}, not {value!r}"
            files.refuse(FIELD, path, problem, EXPECTED)
    sizes: dict[str, Any] = {name: stated[name] for name in _SIZES if name in stated}
    sizes["attn_implementation"] = "sdpa"  # it takes `answer`'s mask as it is
    try:
        return transformers.LlamaConfig(**sizes)
    except Exception as error:  # transformers checks fields with kinds of its own
        files.refuse(
            FIELD, path, f"cannot be read ({files.first_line(error)})", EXPECTED
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Those of all files that the index names."""
    names = _read_json(folder / INDEX).get("weight_map")
    plain = isinstance(names, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in names.values()
    )
    if not plain or not names:
        files.refuse(FIELD, folder / INDEX, "names no files beside it", EXPECTED)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(names.values())):
        there = files.read_tensors(folder / file, FIELD, EXPECTED, mmap=True)
        missing = [n for n, where in names.items() if where == file and n not in there]
        if missing:
            problem = f"has no {missing[0]}, which {INDEX} places there"
            files.refuse(FIELD, folder / file, problem, EXPECTED)
        # Of a tensor that is in several files the index says which counts.
        tensors |= {n: t for n, t in there.items() if names.get(n, file) == file}
    return tensors


def _read_tokenizer(folder: Path, vocabulary: int) -> Any:
    """From tokenizer.json where there is one, else from the published tokenizer.model.

    For the latter transformers wants the package sentencepiece, of which it would use
    nothing but the format.
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer: Any = transformers.LlamaTokenizer.from_pretrained(
                str(folder), local_files_only=True
            )
        else:
            path = folder / "tokenizer.model"
            formats: Any = import_protobuf()
            model = formats.ModelProto()
            model.ParseFromString(path.read_bytes())
            pieces = {piece.piece: i for i, piece in enumerate(model.pieces)}
            tokenizer = transformers.LlamaTokenizer(
                vocab=pieces, merges=generate_merges(pieces)
            )
    except Exception as error:  # of protobuf's and of tokenizers': plain Exceptions
        files.refuse(
            FIELD, path, f"cannot be read ({files.first_line(error)})", EXPECTED
        )
    missing = [word for word in (*YES, *NO) if word not in tokenizer.get_vocab()]
    if missing:
        files.refuse(FIELD, path, f"has no {', '.join(missing)}", EXPECTED)
    if len(tokenizer) > vocabulary:
        problem = f"has {len(tokenizer)} tokens, and config.json {vocabulary}"
        files.refuse(FIELD, path, problem, EXPECTED)
    return tokenizer
