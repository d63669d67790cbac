"""Random checkpoints in the layout in which HPS v2.1 was published, of any size."""

import dataclasses
import math

import torch


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of both transformers; the defaults are the published ones."""

    vision: int = 1280  # width
    vision_layers: int = 32
    text: int = 1024  # width
    text_layers: int = 24
    embedding: int = 1024
    patch: int = 14
    side: int = 16  # patches


SMALL = Sizes(
    *(192, 2, 128, 2, 48),
    patch=8,
    side=5,
)


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """open_clip's names and shapes, in its order."""
    vision, text = sizes.vision, sizes.text
    return {
        "positional_embedding": (77, text),
        "text_projection": (text, sizes.embedding),
        "logit_scale": (),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": (sizes.side**2 + 1, vision),
        "visual.proj": (vision, sizes.embedding),
        "visual.conv1.weight": (vision, 3, sizes.patch, sizes.patch),
        **_norm("visual.ln_pre", vision),
        **_blocks("visual.", vision, sizes.vision_layers),
        **_norm("visual.ln_post", vision),
        **_blocks("", text, sizes.text_layers),
        "token_embedding.weight": (49408, text),
        **_norm("ln_final", text),
    }


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _blocks(prefix, width, layers):
    found = {}
    for layer in range(layers):
        name = f"{prefix}transformer.resblocks.{layer}"
        found |= _norm(f"{name}.ln_1", width)
        found[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        found[f"{name}.attn.in_proj_bias"] = (3 * width,)
        found[f"{name}.attn.out_proj.weight"] = (width, width)
        found[f"{name}.attn.out_proj.bias"] = (width,)
        found |= _norm(f"{name}.ln_2", width)
        found[f"{name}.mlp.c_fc.weight"] = (4 * width, width)
        found[f"{name}.mlp.c_fc.bias"] = (4 * width,)
        found[f"{name}.mlp.c_proj.weight"] = (width, 4 * width)
        found[f"{name}.mlp.c_proj.bias"] = (width,)
    return found


def tensors(sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ones in float16; none is 0 or 1 throughout, so a forgotten one shows.

    They are pieces of one long noise: drawing a billion numbers takes a minute.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2**20 + 7, generator=generator)
    found, start = {}, 0
    for name, shape in shapes(sizes).items():
        count, start = math.prod(shape), (start + 65_537) % len(noise)
        piece = noise.roll(-start).repeat(-(-count // len(noise)))[:count]
        scale = shape[-1] ** -0.5 if len(shape) > 1 and "embedding" not in name else 0.2
        around = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        found[name] = (around + scale * piece).reshape(shape).half()
    return found


def write(path, sizes: Sizes, seed: int = 0) -> dict[str, torch.Tensor]:
    """The file, as published; what is in it."""
    state = tensors(sizes, seed)
    torch.save({"epoch": 1, "state_dict": state}, path)
    return state
