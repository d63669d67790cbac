"""Random networks in the layouts in which the real ones were published, small."""

import json

import numpy as np
import safetensors.torch
import torch
import transformers

CLIP_DIM = 24
DINO_DIM = 64


def views(count=3, size=300, seed=0):
    """Pictures with edges: coarse noise under fine noise."""
    random = np.random.default_rng(seed)
    cells = -(-size // 20)
    coarse = random.integers(0, 200, (count, cells, cells, 3))
    fine = random.integers(0, 55, (count, size, size, 3))
    blocks = np.kron(coarse, np.ones((1, 20, 20, 1), int))[:, :size, :size]
    return (blocks + fine).astype(np.uint8)


def _unlike(model, seed=0):
    """Weights that a forgotten tensor would show: none is 0 or 1 throughout."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            around = 1.0 if "norm" in name and "weight" in name else 0.0
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(around + 0.2 * noise)
    return model.eval()


def clip(folder, *, dim=CLIP_DIM, kind="safetensors", dtype=torch.float32):
    """A folder as openai/clip-vit-base-patch32's."""
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = tokenizer(folder)
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {**sizes, "vocab_size": tokens, **ends},
        "text_config_dict": None,
        "vision_config": {**sizes, "image_size": 224, "patch_size": 32},
        "vision_config_dict": None,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = _unlike(transformers.CLIPModel(transformers.AutoConfig.for_model(**config)))
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    # What older versions of the library saved along.
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "old bin":
        path = folder / "pytorch_model.bin"
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(state, folder / "model.safetensors")


def tokenizer(folder):
    """vocab.json and merges.txt of letters and a few words; how many tokens."""
    letters = [chr(c) for c in range(33, 127)]
    merges = [
        ("c", "h"),
        ("ch", "a"),
        ("i", "r</w>"),
        ("cha", "ir</w>"),
        ("o", "f</w>"),
    ]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return len(pieces)


def dinov2(folder, *, dim=DINO_DIM, layers=2, dtype=torch.float32):
    """A folder as facebook/dinov2-base's; the model."""
    config = transformers.Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=dim // 64,
        image_size=518,
        patch_size=14,
    )
    model = _unlike(transformers.Dinov2Model(config))
    model.to(dtype).save_pretrained(folder)
    return model


def dinov2_hub(model, path, dtype=torch.float32):
    """The model as torch.hub's dinov2_vitl14_pretrain.pth: facebookresearch's names."""
    state = model.state_dict()
    own = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "mask_token": state["embeddings.mask_token"],
    }

    def move(ours, theirs):
        for end in ("weight", "bias"):
            own[f"{ours}.{end}"] = state[f"{theirs}.{end}"]

    move("patch_embed.proj", "embeddings.patch_embeddings.projection")
    for i in range(model.config.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
        move(f"{ours}.norm1", f"{theirs}.norm1")
        for end in ("weight", "bias"):
            parts = [state[f"{theirs}.attention.{k}_proj.{end}"] for k in "qkv"]
            own[f"{ours}.attn.qkv.{end}"] = torch.cat(parts)
        move(f"{ours}.attn.proj", f"{theirs}.attention.o_proj")
        own[f"{ours}.ls1.gamma"] = state[f"{theirs}.layer_scale1.lambda1"]
        move(f"{ours}.norm2", f"{theirs}.norm2")
        move(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
        move(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
        own[f"{ours}.ls2.gamma"] = state[f"{theirs}.layer_scale2.lambda1"]
    move("norm", "layernorm")
    torch.save({name: t.to(dtype).clone() for name, t in own.items()}, path)


def inception(path):
    """As pytorch-fid's file: its names, 1008 classes, seeded numbers; the tensors.

    The numbers come from numpy, name after name in alphabetical order, so that others
    can make the same file.
    """
    from ar3d_jax.rewards.sidecar.features.inception import FidInception

    shapes = {n: tuple(t.shape) for n, t in FidInception().state_dict().items()}
    shapes |= {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    random = np.random.default_rng(2015)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
            continue
        numbers = random.standard_normal(shape, dtype=np.float32)
        if name.endswith("conv.weight"):
            numbers *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("running_var", "bn.weight")):
            numbers = 1 + np.float32(0.1) * np.abs(numbers)
        else:
            numbers *= np.float32(0.1)
        tensors[name] = torch.from_numpy(numbers)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)  # it is of 2019
    return tensors
