"""A checkpoint in open_clip's layout as transformers' `CLIPModel`.

The file is a dict whose `state_dict` has open_clip's names for a CLIP with two
transformers. Sizes are what its tensors have, so a smaller CLIP loads, too. What says
nothing in the file is open_clip's ViT-H-14: exact GELU, LayerNorm with 1e-5, the text
vector at the largest id; an attention head has 64 numbers, and 80 at width 1280.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from torch import Tensor

from ar3d_jax.rewards.sidecar.features import files

# open_clip's name, CLIPModel's, and the shape in the file. D is the width of pictures,
# F of their MLP, N their positions, P a patch; K and M are width and MLP of texts; E is
# the common embedding. The first tensor of the file that has a letter says its size.
# `visual.proj` and `text_projection` multiply from the right there: transposed here.
_ONCE = (
    ("logit_scale", "logit_scale", ""),
    (
        "visual.conv1.weight",
        "vision_model.embeddings.patch_embedding.weight",
        "D 3 P P",
    ),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding", "D"),
    (
        "visual.positional_embedding",
        "vision_model.embeddings.position_embedding.weight",
        "N D",
    ),
    ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight", "D"),
    ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias", "D"),
    ("visual.ln_post.weight", "vision_model.post_layernorm.weight", "D"),
    ("visual.ln_post.bias", "vision_model.post_layernorm.bias", "D"),
    ("visual.proj", "visual_projection.weight", "D E"),
    (
        "token_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
        "49408 K",
    ),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", "77 K"),
    ("ln_final.weight", "text_model.final_layer_norm.weight", "K"),
    ("ln_final.bias", "text_model.final_layer_norm.bias", "K"),
    ("text_projection", "text_projection.weight", "K E"),
)
_TRANSPOSED = ("visual.proj", "text_projection")
# Likewise of every block; * stands for q, k and v, whose rows follow each other.
_BLOCK = (
    ("ln_1.weight", "layer_norm1.weight", "D"),
    ("ln_1.bias", "layer_norm1.bias", "D"),
    ("attn.in_proj_weight", "self_attn.*_proj.weight", "3D D"),
    ("attn.in_proj_bias", "self_attn.*_proj.bias", "3D"),
    ("attn.out_proj.weight", "self_attn.out_proj.weight", "D D"),
    ("attn.out_proj.bias", "self_attn.out_proj.bias", "D"),
    ("ln_2.weight", "layer_norm2.weight", "D"),
    ("ln_2.bias", "layer_norm2.bias", "D"),
    ("mlp.c_fc.weight", "mlp.fc1.weight", "F D"),
    ("mlp.c_fc.bias", "mlp.fc1.bias", "F"),
    ("mlp.c_proj.weight", "mlp.fc2.weight", "D F"),
    ("mlp.c_proj.bias", "mlp.fc2.bias", "D"),
)
_TEXT_LETTERS = str.maketrans("DF", "KM")


class Row(NamedTuple):
    """One tensor of the file.

    Attributes:
        source: Its name there.
        target: CLIPModel's name; with a *, those of q, k and v.
        shape: Numbers and letters, as in the tables.
    """

    source: str
    target: str
    shape: str


def load(path: Path, field: str, expected: str) -> Any:
    """The `CLIPModel` of a checkpoint, in float32 on the CPU, ready to use.

    Args:
        path: the file.
        field: of our config, for messages.
        expected: what the file should be, for messages.

    Raises:
        UserError: the file is missing or broken, holds something that a pickle would
            have to call, or another network; all that does not fit is in the message.
    """
    tensors = files.read_tensors(path, field, expected, key="state_dict")
    layers = [_count_blocks(tensors, prefix) for prefix in ("visual.", "")]
    rows = list(_rows(*layers))
    sizes, problem = _measure(tensors, rows)
    problem = problem or "; ".join(_check_sizes(sizes))
    if problem:
        problem = f"is no CLIP of open_clip's layout: {problem}"
        files.refuse(field, path, problem, expected)
    renamed = dict(part for row in rows for part in _renamed(row, tensors[row.source]))
    config = _config(sizes, *layers)
    return files.build(transformers.CLIPModel, config, renamed, path, field, expected)


def _count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")
    return len({found[1] for name in tensors if (found := pattern.match(name))})


def _rows(vision_layers: int, text_layers: int) -> Iterator[Row]:
    yield from (Row(*row) for row in _ONCE)
    for prefix, tower, layers in (
        ("visual.", "vision_model", vision_layers),
        ("", "text_model", text_layers),
    ):
        for layer in range(max(1, layers)):
            for source, target, shape in _BLOCK:
                yield Row(
                    f"{prefix}transformer.resblocks.{layer}.{source}",
                    f"{tower}.encoder.layers.{layer}.{target}",
                    shape if prefix else shape.translate(_TEXT_LETTERS),
                )


def _measure(
    tensors: Mapping[str, Tensor], rows: list[Row]
) -> tuple[dict[str, int], str]:
    """Size of each letter; what is missing, too much or of another shape, in words."""
    sizes: dict[str, int] = {}
    missing: list[str] = []
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int | str, ...]]] = {}
    for source, _, shape in rows:
        if source not in tensors:
            missing.append(source)
            continue
        found, axes = tuple(tensors[source].shape), shape.split()
        for axis, size in zip(axes, found, strict=False):
            if axis.isalpha():
                sizes.setdefault(axis, size)
        wanted = tuple(_length(axis, sizes) for axis in axes)
        if found != wanted:
            misshapen[source] = found, wanted
    extra = sorted(tensors.keys() - {row.source for row in rows})
    return sizes, files.misfits(missing, misshapen, extra)


def _length(axis: str, sizes: Mapping[str, int]) -> int | str:
    """Of an axis: 3, D or 3D; as it is written where the letter's size is not known."""
    times, letter = re.fullmatch(r"(\d*)([A-Z]?)", axis).groups()  # pyright: ignore
    if letter and letter not in sizes:
        return axis
    return int(times or 1) * (sizes[letter] if letter else 1)


def _check_sizes(sizes: Mapping[str, int]) -> list[str]:
    if not all(sizes.values()):
        return ["has empty tensors"]
    problems, positions = [], sizes["N"]
    if positions == 1 or math.isqrt(positions - 1) ** 2 != positions - 1:
        problems.append(f"has {positions} positions, not 1 and a square of patches")
    for width in (sizes["D"], sizes["K"]):
        if width % _head(width):
            problems.append(f"has width {width}, not a multiple of {_head(width)}")
    return problems


def _head(width: int) -> int:
    return 80 if width == 1280 else 64  # open_clip's ViT-H-14, and its smaller ones


def _renamed(row: Row, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if "*" in row.target:
        for kind, part in zip("qkv", tensor.chunk(3), strict=True):
            yield row.target.replace("*", kind), part
    else:
        yield row.target, tensor.T if row.source in _TRANSPOSED else tensor


def _config(
    sizes: Mapping[str, int], vision_layers: int, text_layers: int
) -> transformers.CLIPConfig:
    def tower(width: int, mlp: int, layers: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": width // _head(width),
            "hidden_act": "gelu",  # the library's default is OpenAI's quick_gelu
            "projection_dim": sizes["E"],
        }

    vision = tower(sizes["D"], sizes["F"], vision_layers)
    vision["patch_size"] = sizes["P"]
    vision["image_size"] = math.isqrt(sizes["N"] - 1) * sizes["P"]
    text = tower(sizes["K"], sizes["M"], text_layers)
    text["eos_token_id"] = 2  # so the library takes the largest id, as open_clip does
    return transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=sizes["E"]
    )
