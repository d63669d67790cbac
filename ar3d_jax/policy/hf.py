"""Hugging Face folder <-> `Decoder`: config.json and safetensors.

Reads Qwen2 and the text part of Qwen2.5-VL, one file or sharded, under both published
namings (`model.layers.…` and `model.language_model.layers.…`); the vision tower is
passed over. Writes Qwen2 in one file. Every tensor is checked before the first is
loaded, and all differences are reported together. Tokenizers are `tokenizer.py`'s.

One parameter here is several tensors there (see `decoder.py`), and torch stores a
projection as [out, in]:

| here | there |
|---|---|
| qkv [D, K, P, H] | q_proj [N*H, D], k_proj, v_proj [K*H, D] |
| gate_up [D, 2, F] | gate_proj, up_proj [F, D] |
| out [I, D], down [F, D], head [D, V] | o_proj, down_proj, lm_head, transposed |
| embed [V, D], norms | the same |

A tensor is read when its parameter is made, and each parameter goes to its devices
before the next: this is the seam for streaming into shards.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ar3d_jax.config import PolicyConfig
from ar3d_jax.errors import UserError, writing
from ar3d_jax.policy.decoder import Decoder

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MODEL_TYPES = ("qwen2", "qwen2_5_vl", "qwen2_5_vl_text")
_NOT_TEXT = re.compile(r"^(model\.)?visual\.|rotary_emb\.inv_freq$")
_SHOWN = 4  # differences that an error message spells out

Read = Callable[[str], np.ndarray]


def load(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh,
    dtype: Any,
    cfg: PolicyConfig | None = None,
) -> Decoder:
    """The decoder in a Hugging Face folder.

    Args:
        path: the folder.
        mesh: where the parameters go.
        dtype: of the parameters, float32 or bfloat16.
        cfg: sizes that the folder must have; also how to run (remat, scan_decode).

    Raises:
        UserError: no such folder, another kind of model, sizes other than `cfg`'s,
            tensors that are missing, too many or of another shape.
    """
    folder = Path(path)
    found = read_config(folder)
    with ExitStack() as stack:
        read, shapes = _open(folder, stack)
        # Rows may be padded beyond what config.json says: the tensor decides.
        rows = shapes.get("model.embed_tokens.weight", (found.vocab_size,))[0]
        found = dataclasses.replace(found, vocab_size=rows)
        if cfg is not None:
            _check_sizes(folder, found, cfg)
        if found.tied:  # some writers keep the copy
            shapes.pop("lm_head.weight", None)
        _check_tensors(folder, shapes, _shapes(found))
        cfg = dataclasses.replace(cfg or found, dtype=jnp.dtype(dtype).name)
        with jax.set_mesh(mesh):
            policy = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
        for owner, name, value in _parameters(policy, read):
            abstract = getattr(owner, name).get_value()
            layout = jax.sharding.NamedSharding(mesh, abstract.sharding.spec)
            array = jax.device_put(value.astype(cfg.dtype), layout)
            setattr(owner, name, nnx.Param(array))
    return policy


def save(policy: Decoder, path: str | Path, *, dtype: Any = None) -> None:
    """Writes a folder that `load` and transformers read, as a Qwen2 model.

    Args:
        policy: the decoder.
        path: the folder, made if needed.
        dtype: of the file's tensors; by default the parameters' own.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(path)
    dtype = jnp.dtype(dtype or policy.cfg.dtype)
    tensors = {
        name: np.ascontiguousarray(value.astype(dtype))
        for name, value in _tensors(policy)
    }
    config = json.dumps(_config(policy.cfg, dtype.name), indent=2) + "\n"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(config)
        # Whole or not at all: a reader may be waiting.
        partial = folder / (WEIGHTS_FILE + ".partial")
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(folder / WEIGHTS_FILE)


def read_config(folder: Path) -> PolicyConfig:
    """Sizes of the model in a folder.

    Raises:
        UserError: no config.json, another kind of model, or a field is missing.
    """
    path = folder / CONFIG_FILE
    try:
        whole = json.loads(path.read_text())
        if not isinstance(whole, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path}: {error}; expected a Hugging Face folder with a "
            "Qwen2 or Qwen2.5-VL model"
        ) from error
    # Newer Qwen2.5-VL configs keep the text model's fields in a section of their own.
    values = {**whole, **whole.get("text_config", {})}
    rope = {**values, **(values.get("rope_parameters") or {})}
    if values.get("model_type") not in MODEL_TYPES or values.get("use_sliding_window"):
        raise UserError(
            f"{path}: model_type {values.get('model_type')!r}, use_sliding_window "
            f"{values.get('use_sliding_window')!r}; expected one of "
            f"{', '.join(MODEL_TYPES)} with full attention"
        )
    if rope.get("rope_type", "default") != "default":
        raise UserError(
            f"{path}: rope_type {rope['rope_type']!r}; expected default (unscaled)"
        )
    try:
        heads = values["num_attention_heads"]
        return PolicyConfig(
            weights=str(folder),
            vocab_size=values["vocab_size"],
            width=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values["num_key_value_heads"],
            head_size=values.get("head_dim") or values["hidden_size"] // heads,
            mlp_width=values["intermediate_size"],
            rope_theta=float(rope["rope_theta"]),
            rms_eps=values["rms_norm_eps"],
            tied=whole.get("tie_word_embeddings", False),
            max_positions=values["max_position_embeddings"],
        )
    except KeyError as error:
        raise UserError(f"{path} has no field {error}; expected it") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a field of another type ({error})") from error


def _check_sizes(folder: Path, found: PolicyConfig, cfg: PolicyConfig) -> None:
    how_to_run = {"weights", "dtype", "remat", "scan_decode", "max_positions"}
    differences = [
        f"policy.{field.name}={ours!r} but the folder has {theirs!r}"
        for field in dataclasses.fields(cfg)
        if field.name not in how_to_run
        and (ours := getattr(cfg, field.name)) != (theirs := getattr(found, field.name))
    ]
    if differences:
        raise UserError(
            f"weights {folder} do not fit the config: {'; '.join(differences)}; "
            "change either"
        )


def _shapes(cfg: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor's name, in the older naming, and shape."""
    D, F = cfg.width, cfg.mlp_width
    queries, keys = cfg.heads * cfg.head_size, cfg.kv_heads * cfg.head_size
    layer = {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (queries, D),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, D),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, D),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (D, queries),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    shapes = {
        f"model.layers.{i}.{name}": shape
        for i in range(cfg.layers)
        for name, shape in layer.items()
    }
    shapes["model.embed_tokens.weight"] = (cfg.vocab_size, D)
    shapes["model.norm.weight"] = (D,)
    if not cfg.tied:
        shapes["lm_head.weight"] = (cfg.vocab_size, D)
    return shapes


def _open(folder: Path, stack: ExitStack) -> tuple[Read, dict[str, tuple[int, ...]]]:
    """Opens the folder's files: how to read a text tensor, and all their shapes."""
    where = {}
    for file in _files(folder):
        try:
            tensors = stack.enter_context(safe_open(file, framework="np"))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot read {file}: {error}; expected a whole safetensors file"
            ) from error
        for key in tensors.keys():  # noqa: SIM118  not a dict
            if not _NOT_TEXT.search(key):
                name = key.replace("model.language_model.", "model.", 1)
                where[name] = (tensors, key)

    def read(name: str) -> np.ndarray:
        tensors, key = where[name]
        return tensors.get_tensor(key)

    shapes = {
        name: tuple(tensors.get_slice(key).get_shape())
        for name, (tensors, key) in where.items()
    }
    return read, shapes


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    try:
        index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
        return [folder / name for name in sorted(set(index.values()))]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no weights in {folder}; expected {WEIGHTS_FILE}, or {INDEX_FILE} and the "
            "files it names"
        ) from error


def _check_tensors(
    folder: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} is not known" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"weights in {folder} do not fit {CONFIG_FILE}: "
            f"{'; '.join(wrong[:_SHOWN])}{more}; get the folder again"
        )


def _parameters(
    policy: Decoder, read: Read
) -> Iterator[tuple[nnx.Module, str, np.ndarray]]:
    """(module, attribute, value) of every parameter, in this project's layout."""
    cfg = policy.cfg
    D, K, H = cfg.width, cfg.kv_heads, cfg.head_size

    def stacked(
        make: Callable[[Callable[[str], np.ndarray]], np.ndarray],
    ) -> np.ndarray:
        return np.stack(
            [
                make(lambda name, i=i: read(f"model.layers.{i}.{name}"))
                for i in range(cfg.layers)
            ]
        )

    def qkv(kind: str, *rest: int) -> np.ndarray:
        """[L, K, P, H, *rest]: each key/value head's queries, key and value."""
        return stacked(
            lambda layer: np.concatenate(
                [
                    layer(f"self_attn.{which}_proj.{kind}").reshape(K, -1, H, *rest)
                    for which in "qkv"
                ],
                axis=1,
            )
        )

    blocks = policy.blocks
    yield blocks, "attention_norm", stacked(lambda get: get("input_layernorm.weight"))
    yield blocks, "qkv", np.moveaxis(qkv("weight", D), -1, 1)
    yield blocks, "qkv_bias", qkv("bias")
    yield blocks, "out", stacked(lambda get: get("self_attn.o_proj.weight").T)
    yield (
        blocks,
        "mlp_norm",
        stacked(lambda get: get("post_attention_layernorm.weight")),
    )
    yield (
        blocks,
        "gate_up",
        stacked(
            lambda get: np.stack(
                [get(f"mlp.{which}_proj.weight").T for which in ("gate", "up")], axis=1
            )
        ),
    )
    yield blocks, "down", stacked(lambda get: get("mlp.down_proj.weight").T)
    yield policy, "embed", read("model.embed_tokens.weight")
    yield policy, "norm", read("model.norm.weight")
    if not cfg.tied:
        yield policy, "head", read("lm_head.weight").T


def _tensors(policy: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """(name, value) of every tensor, in torch's layout: `_parameters` the other way."""
    cfg, blocks = policy.cfg, policy.blocks

    def host(param: nnx.Param) -> np.ndarray:
        return np.asarray(jax.device_get(param.get_value()))

    qkv = np.moveaxis(host(blocks.qkv), 1, -1)  # L K P H D
    parts = {"q": slice(0, -2), "k": slice(-2, -1), "v": slice(-1, None)}
    bias, gate_up = host(blocks.qkv_bias), host(blocks.gate_up)
    per_layer = {
        "input_layernorm.weight": host(blocks.attention_norm),
        "self_attn.o_proj.weight": host(blocks.out).swapaxes(1, 2),
        "post_attention_layernorm.weight": host(blocks.mlp_norm),
        "mlp.gate_proj.weight": gate_up[:, :, 0].swapaxes(1, 2),
        "mlp.up_proj.weight": gate_up[:, :, 1].swapaxes(1, 2),
        "mlp.down_proj.weight": host(blocks.down).swapaxes(1, 2),
    }
    for which, part in parts.items():
        per_layer[f"self_attn.{which}_proj.weight"] = qkv[:, :, part].reshape(
            cfg.layers, -1, cfg.width
        )
        per_layer[f"self_attn.{which}_proj.bias"] = bias[:, :, part].reshape(
            cfg.layers, -1
        )
    for name, values in per_layer.items():
        for i, value in enumerate(values):
            yield f"model.layers.{i}.{name}", value
    yield "model.embed_tokens.weight", host(policy.embed)
    yield "model.norm.weight", host(policy.norm)
    if policy.head is not None:
        yield "lm_head.weight", host(policy.head).T


def _config(cfg: PolicyConfig, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "intermediate_size": cfg.mlp_width,
        "hidden_act": "silu",
        "rope_theta": cfg.rope_theta,
        "rms_norm_eps": cfg.rms_eps,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.max_positions,
        "use_sliding_window": False,
        "torch_dtype": dtype,
    }
