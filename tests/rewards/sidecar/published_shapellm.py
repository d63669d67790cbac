"""A small random ShapeLLM in the layout in which the real one was published.

Names and shapes are written out here, from the authors' code, not taken from ours.
"""

import json

import numpy as np
import torch
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

SMALL = {"width": 128, "depth": 2, "queries": 16}
HIDDEN, LAYERS, MLP = 32, 2, 48
FIRST, SECOND, PROMPTS = 24, 40, 32  # of the projector


def _layer(shapes, name, before, after, *kernel):
    shapes |= {f"{name}.weight": (after, before, *kernel), f"{name}.bias": (after,)}


def _norm(shapes, name, width, *, batch=False):
    shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if batch:
        shapes |= {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
        shapes |= {f"{name}.num_batches_tracked": ()}


def _block(shapes, name, width, layers):
    for end, times in layers.items():
        _layer(shapes, f"{name}.attn.{end}", width, times * width)
    _layer(shapes, f"{name}.mlp.fc1", width, 4 * width)
    _layer(shapes, f"{name}.mlp.fc2", 4 * width, width)
    _norm(shapes, f"{name}.norm1", width)
    _norm(shapes, f"{name}.norm2", width)


def encoder_shapes(width, depth, queries):
    """Of all tensors under `base_model` in best_lvis.pth, without the prefix."""
    shapes = {"model.global_query": (1, queries, width)}
    for conv, (before, hidden, after) in {
        "first_conv": (6, 128, 256),
        "second_conv": (512, 512, width),
    }.items():
        _layer(shapes, f"model.embed.{conv}.0", before, hidden, 1)
        _norm(shapes, f"model.embed.{conv}.1", hidden, batch=True)
        _layer(shapes, f"model.embed.{conv}.3", hidden, after, 1)
    for name in ("pos_embed", "decoder_pos_embed"):
        _layer(shapes, f"model.{name}.0", 3, 128)
        _layer(shapes, f"model.{name}.2", 128, width)
    for i in range(depth):
        blocks = "model.encoder.blocks"
        _block(shapes, f"{blocks}.local_blocks.{i}", width, {"qkv": 3, "proj": 1})
        cross = {"q": 1, "kv": 2, "proj": 1}
        _block(shapes, f"{blocks}.global_blocks.{i}", width, cross)
    _norm(shapes, "model.encoder.ln_f1", width)
    _norm(shapes, "model.encoder.ln_f2", width)
    # What the language model does not ask for.
    _norm(shapes, "model.norm", width)
    shapes |= {"model.decoder.mask_token": (1, 1, width)}
    _block(shapes, "model.decoder.blocks.0", width, {"qkv": 3, "proj": 1})
    _norm(shapes, "model.decoder.ln_f", width)
    _layer(shapes, "model.decoder.increase_dim.0", width, 6 * 32, 1)
    _layer(shapes, "img_proj", width, 1280)
    _layer(shapes, "text_proj", width, 1280)
    return shapes


def language_shapes(vocabulary, features):
    """Of the language model's and the projector's tensors."""
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for end in "qkvo":
            shapes[f"{layer}.self_attn.{end}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{layer}.mlp.up_proj.weight"] = (MLP, HIDDEN)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, MLP)
        shapes[f"{layer}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}
    for i in (1, 2, 3):
        own = f"model.mm_projector.proj{i}"
        shapes[f"model.mm_projector.prompt{i}"] = (1, PROMPTS, HIDDEN)
        _layer(shapes, f"{own}.0", features, FIRST)
        _norm(shapes, f"{own}.1", FIRST)
        _layer(shapes, f"{own}.3", FIRST, SECOND)
        _norm(shapes, f"{own}.4", SECOND)
        _layer(shapes, f"{own}.6", SECOND, HIDDEN)
    return shapes


def numbers(shapes, seed):
    """Numbers that a forgotten tensor would show: none is 0 or 1 throughout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            tensors[name] = 1 + 0.3 * noise.abs()
        elif len(shape) == 1 and name.endswith("weight"):
            tensors[name] = 1 + 0.2 * noise
        elif "embed_tokens" in name:
            tensors[name] = noise
        elif len(shape) > 1 and name.endswith("weight"):
            sharp = 3 if "q_proj" in name or "k_proj" in name else 1
            tensors[name] = sharp * noise / np.prod(shape[1:]) ** 0.5
        else:
            tensors[name] = 0.3 * noise
    return tensors


def encoder(path, seed=0, **sizes):
    """As best_lvis.pth; its tensors under the names without the prefix."""
    tensors = numbers(encoder_shapes(**(SMALL | sizes)), seed)
    stored = {f"module.{name}": tensor for name, tensor in tensors.items()}
    moments = {0: {"step": 3, "exp_avg": torch.ones(4)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    accuracies = {"epoch": 9, "best_lvis_acc": 53.7, "best_scanobjectnn_acc": 0.0}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"base_model": stored, "optimizer": optimizer, **accuracies}, path)
    return tensors


def tokenizer(path):
    """tokenizer.model: bytes, letters and a few words; how many tokens."""
    model = sentencepiece.ModelProto()
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    for word in ("▁Yes", "▁yes", "▁No", "▁no", "▁part", "▁leg"):
        pieces += [(word[:end], 1) for end in range(2, len(word) + 1)]
    pieces += [("▁", 1), *((chr(code), 1) for code in range(33, 127))]
    for piece, kind in dict(pieces).items():
        model.pieces.add(piece=piece, score=-float(len(model.pieces)), type=kind)
    model.trainer_spec.model_type = 2
    path.write_bytes(model.SerializeToString())
    return len(model.pieces)


def config(vocabulary):
    """config.json as it was published with the 7B model, but small."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": MLP,
        "max_position_embeddings": 2048,
        "max_sequence_length": 2048,
        "mm_hidden_size": SMALL["width"],
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_pt_patch_token": False,
        "mm_use_pt_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "ReConV2/cfgs/pretrain/large/openshape.yaml",
        "model_type": "llava",
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "pad_token_id": -1,
        "pretraining_tp": 1,
        "prompt_token_num": PROMPTS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "sample_points_num": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_mm_proj": True,
        "vision_tower_path": "./checkpoints/recon/large.pth",
        "vocab_size": vocabulary,
        "with_ape": True,
        "with_color": True,
        "with_global": True,
        "with_local": True,
    }


def folder(path, seed=1, features=SMALL["width"]):
    """As qizekun/ShapeLLM_7B_general_v1.0; the tensors that count."""
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer(path / "tokenizer.model")
    (path / "config.json").write_text(json.dumps(config(vocabulary)))
    tensors = numbers(language_shapes(vocabulary, features), seed)
    along = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.vision_tower.vision_tower.img_proj.bias": torch.ones(4),
    }
    write_shards(path, tensors | along)
    return tensors


def write_shards(path, tensors):
    """Two files, the language model's head in the second, and their index."""
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    where = {n: names["lm_head" in n or "projector" in n] for n in tensors}
    for file in names:
        torch.save({n: tensors[n] for n in tensors if where[n] == file}, path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def points(count, seed=0):
    """Points and colours of a lopsided object."""
    random = np.random.default_rng(seed)
    xyz = random.standard_normal((count, 3)).astype(np.float32) * [0.2, 0.1, 0.5]
    return xyz.astype(np.float32), random.integers(0, 256, (count, 3), dtype=np.uint8)
