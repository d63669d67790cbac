"""Hugging Face folder <-> `Decoder`: config.json and safetensors.

Reads Qwen2 and the text part of Qwen2.5-VL, one file or sharded, under both published
namings (`model.layers.…` and `model.language_model.layers.…`); which tensor is what is
`hf_tensors.py`. Every tensor is checked before the first is loaded, and all differences
are reported together. Tokenizers are `tokenizer.py`'s.

Both directions stream, a tensor at a time. Reading, each device takes the slices of the
files that its own shard needs. Writing goes into the files of a folder that is there
(`base`: the model that training began with, whose vision tower, tokenizer and processor
come along) or into one new file.
"""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar3d_jax.config import PolicyConfig
from ar3d_jax.errors import UserError, whole_file, write_whole, writing
from ar3d_jax.policy import hf_tensors, safetensor_files
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.policy.hf_tensors import Parameter, Tensor
from ar3d_jax.policy.safetensor_files import METADATA, WEIGHTS_FILE, Header, Slices
from ar3d_jax.tensor_check import TensorCheck
from ar3d_jax.weights import refuse_adapter

CONFIG_FILE = "config.json"
MODEL_TYPES = ("qwen2", "qwen2_5_vl", "qwen2_5_vl_text")
ROPE_TYPES = ("default", "mrope")  # for text, both are plain RoPE (`rope.py`)
_ROPES = ("rope_parameters", "rope_scaling")  # sections, as transformers 5 and 4 write
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names
_NOT_TEXT = re.compile(r"^(model\.)?visual\.|rotary_emb\.inv_freq$")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")  # not carried along as they are
_EMBED = "model.embed_tokens.weight"
_SHOWN = 4  # differences that an error message spells out


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
        cfg: sizes that the folder must have; also how to run (remat, scan_decode). The
            vocabulary is the tensor's own: it is padded differently everywhere.

    Raises:
        UserError: no such folder, another kind of model, sizes other than `cfg`'s,
            tensors that are missing, too many or of another shape, not finite or all
            zeros.
    """
    folder = Path(path)
    found = read_sizes(folder)
    if cfg is not None:
        check_sizes(folder, found, cfg)
    cfg = dataclasses.replace(
        cfg or found, vocab_size=found.vocab_size, dtype=jnp.dtype(dtype).name
    )
    tensors = _open(folder)
    _check_tensors(folder, tensors, cfg)
    with jax.set_mesh(mesh):
        policy = jax.eval_shape(lambda: Decoder(cfg, jax.random.key(0)))
        for parameter in hf_tensors.parameters(cfg):
            owner, name = _owner(policy, parameter)
            abstract = getattr(owner, name).get_value()
            array = _read(parameter, abstract, tensors)
            setattr(owner, name, nnx.Param(array))
    return policy


def save(
    policy: Decoder,
    path: str | Path,
    *,
    dtype: Any = None,
    base: str | Path | None = None,
) -> None:
    """Writes a folder that `load`, transformers and vLLM read.

    Several hosts call it together; the first one writes.

    Args:
        policy: the decoder.
        path: the folder, made if needed.
        dtype: of the file's tensors; by default the parameters' own. Not with `base`.
        base: a folder with a model of the same sizes. Its files are copied, and the
            text model's tensors replaced, each in the type it has there. None: a Qwen2
            model in one file.

    Raises:
        UserError: the folder cannot be written, `base` is of other sizes.
    """
    folder, first = Path(path), jax.process_index() == 0
    dtype = jnp.dtype(dtype or policy.cfg.dtype)
    if base is None:
        files = {WEIGHTS_FILE: None}
    else:
        _check_base(Path(base), policy.cfg)
        places = safetensor_files.files_of(Path(base))
        files = {file.name: file for file in places}
    with writing(folder):
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            if base is None:
                config = json.dumps(_config(policy.cfg, dtype.name), indent=2) + "\n"
                write_whole(folder / CONFIG_FILE, config)
            else:
                copy_small_files(Path(base), folder)
        for name, source in files.items():
            if source is None:
                shapes = hf_tensors.shapes(policy.cfg)
                header, start = safetensor_files.make_header(shapes, dtype), 0
            else:
                header, start = safetensor_files.read_header(source)
            _write_file(policy, folder / name if first else None, header, source, start)


def _owner(policy: Decoder, parameter: Parameter) -> tuple[nnx.Module, str]:
    *path, name = parameter.path
    return functools.reduce(getattr, path, policy), name


def _read(
    parameter: Parameter, abstract: jax.ShapeDtypeStruct, tensors: Mapping[str, Any]
) -> jax.Array:
    """A parameter from the files, every device its shard."""
    spec = abstract.sharding.spec
    if not parameter.layers:
        (tensor,) = parameter.tensors
        return _part(parameter, tensor, tensors[tensor.name], spec, abstract.dtype)
    array = jnp.zeros(abstract.shape, abstract.dtype, out_sharding=spec)
    for layer in range(parameter.layers):
        for tensor in parameter.tensors:
            theirs = tensors[parameter.name(tensor, layer)]
            part = _part(parameter, tensor, theirs, jax.P(*spec[1:]), abstract.dtype)
            starts = (layer, *(axis.start or 0 for axis in parameter.part(tensor)))
            array = _filled(array, part, starts)
    return array


def _part(
    parameter: Parameter, tensor: Tensor, theirs: Any, spec: jax.P, dtype: Any
) -> jax.Array:
    table = theirs.name.endswith(("embed_tokens.weight", "lm_head.weight"))
    check = TensorCheck(theirs.file, theirs.name, table=table)
    array = jax.make_array_from_callback(
        parameter.part_shape(tensor),
        jax.NamedSharding(jax.sharding.get_mesh(), spec),
        lambda index: parameter.shard(tensor, theirs, index or (), dtype, check),
    )
    check.end()
    return array


@functools.partial(jax.jit, donate_argnums=0)
def _filled(array: jax.Array, part: jax.Array, starts: tuple[Any, ...]) -> jax.Array:
    """With one layer's part of it, in place."""
    return jax.lax.dynamic_update_slice(array, part[None], starts)


@functools.partial(jax.jit, static_argnames="part")
def _layer_part(
    array: jax.Array, layer: jax.Array, part: tuple[tuple[int, int] | None, ...]
) -> jax.Array:
    """One layer's part, on every device."""
    array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
    array = array[tuple(slice(*bounds) if bounds else slice(None) for bounds in part)]
    return jax.sharding.reshard(array, jax.P())


def _written(
    policy: Decoder, parameter: Parameter, tensor: Tensor, layer: int
) -> np.ndarray:
    """A tensor of the files, from the parameter that holds it."""
    owner, name = _owner(policy, parameter)
    array = getattr(owner, name).get_value()
    if parameter.layers:
        part = tuple(
            None if axis.start is None else (axis.start, axis.stop)
            for axis in parameter.part(tensor)
        )
        array = _layer_part(array, jnp.int32(layer), part)
    else:
        array = jax.sharding.reshard(array, jax.P())
    return parameter.theirs(tensor, np.asarray(jax.device_get(array)))


def _write_file(
    policy: Decoder,
    target: Path | None,
    header: Header,
    source: Path | None,
    start: int,
) -> None:
    """One file; without a target (hosts other than the first) only the gathering."""
    ours = {
        parameter.name(tensor, layer): (parameter, tensor, layer)
        for parameter in hf_tensors.parameters(policy.cfg)
        for layer in range(max(parameter.layers, 1))
        for tensor in parameter.tensors
    }
    if policy.cfg.tied:  # some writers keep the copy
        ours["lm_head.weight"] = ours[_EMBED]
    with ExitStack() as stack:
        write = None
        if target:
            write = stack.enter_context(safetensor_files.new_file(target, header))
        kept = stack.enter_context(source.open("rb")) if source else None
        for key, entry in header.items():
            if key == METADATA:
                continue
            if place := ours.get(_older_name(key)):
                value = _written(policy, *place)
                if write:
                    write(safetensor_files.as_bytes(value, entry))
            elif write and kept:
                for some in safetensor_files.copied_bytes(kept, start, entry):
                    write(some)


def copy_small_files(base: Path, folder: Path) -> None:
    """Copies all but weights: config, index, tokenizer, processor, template."""
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            with whole_file(folder / file.name) as partial:
                shutil.copyfile(file, partial)


def _check_base(base: Path, cfg: PolicyConfig) -> None:
    check_sizes(base, dataclasses.replace(read_sizes(base), dtype=cfg.dtype), cfg)
    _check_tensors(base, _open(base), cfg)


def read_sizes(folder: Path) -> PolicyConfig:
    """As `read_config`, with the vocabulary that the tensors have: often padded.

    Raises:
        UserError: no such folder, another kind of model.
    """
    found = read_config(folder)
    embed = _open(folder).get(_EMBED)
    rows = embed.shape[0] if embed else found.vocab_size
    return dataclasses.replace(found, vocab_size=rows)


def read_config(folder: Path) -> PolicyConfig:
    """Sizes of the model in a folder.

    Raises:
        UserError: no config.json, another kind of model, or a field is missing.
    """
    refuse_adapter(folder)
    path = folder / CONFIG_FILE
    try:
        whole = json.loads(path.read_text("utf-8"))
        if not isinstance(whole, dict):
            raise ValueError("no JSON object")
        # Newer Qwen2.5-VL configs keep the text model's fields in a section of their
        # own, and RoPE's in another; older ones have `rope_scaling`.
        values = {**whole, **(whole.get("text_config") or {})}
        ropes = [
            {"rope_theta": values.get("rope_theta")},
            *({**(values.get(name) or {})} for name in _ROPES),
        ]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"cannot read {path}: {error}; expected a Hugging Face folder with a "
            "Qwen2 or Qwen2.5-VL model"
        ) from error
    _check_kind(path, values, ropes)
    theta = _rope_theta(path, ropes)
    try:
        heads = values["num_attention_heads"]
        tied = whole.get("tie_word_embeddings") or values.get("tie_word_embeddings")
        if tied not in (True, False, None):
            raise ValueError(f"tie_word_embeddings {tied!r}")
        return PolicyConfig(
            weights=str(folder),
            vocab_size=values["vocab_size"],
            width=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values["num_key_value_heads"],
            head_size=values.get("head_dim") or values["hidden_size"] // heads,
            mlp_width=values["intermediate_size"],
            rope_theta=float(theta),
            rms_eps=float(values["rms_norm_eps"]),
            tied=bool(tied),
            max_positions=values["max_position_embeddings"],
        )
    except KeyError as error:
        raise UserError(f"{path} has no field {error}; expected it") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} has a field that does not fit ({error})") from error


def _rope_theta(path: Path, ropes: Sequence[Mapping[str, Any]]) -> Any:
    """The one that is stated, at the top (as until transformers 4) or in a section."""
    stated = [rope["rope_theta"] for rope in ropes if rope.get("rope_theta")]
    if not stated:
        raise UserError(
            f"{path} has no rope_theta, at the top or in {' or '.join(_ROPES)}; "
            "expected it: copy it from the config.json of the base model"
        )
    if any(theta != stated[0] for theta in stated):
        raise UserError(
            f"{path} states rope_theta {' and '.join(map(str, stated))}; expected one"
        )
    return stated[0]


def _check_kind(
    path: Path, values: Mapping[str, Any], ropes: Sequence[Mapping[str, Any]]
) -> None:
    """Refuses a model that is computed in another way.

    Biases and norms that this decoder has not are refused with their tensors.
    """
    wanted = [
        ("model_type", values.get("model_type"), MODEL_TYPES),
        ("use_sliding_window", values.get("use_sliding_window") or False, (False,)),
        ("hidden_act", values.get("hidden_act", "silu"), ("silu",)),
        ("quantization_config", values.get("quantization_config"), (None,)),
    ]
    kinds = values.get("layer_types") or []
    kinds = kinds if isinstance(kinds, list) else [kinds]
    other = [kind for kind in kinds if kind != "full_attention"]
    wanted += [("layer_types", kind, ("full_attention",)) for kind in other[:1]]
    for rope in (values, *ropes):
        part = rope.get("partial_rotary_factor") or 1
        wanted.append(("partial_rotary_factor", part, (1,)))
    for rope in ropes:
        for name in ("rope_type", "type"):
            wanted.append((name, rope.get(name) or "default", ROPE_TYPES))
    wrong = [
        f"{field} {given!r}, expected {' or '.join(map(str, allowed))}"
        for field, given, allowed in wanted
        if given not in allowed
    ]
    if wrong:
        raise UserError(
            f"{path}: {'; '.join(wrong)}; give a Qwen2 or Qwen2.5-VL model with full "
            "attention, unscaled RoPE and plain weights"
        )


def check_sizes(folder: Path, found: PolicyConfig, cfg: PolicyConfig) -> None:
    """Refuses a folder whose sizes, `found`, are not the config's.

    Raises:
        UserError: naming all that differ.
    """
    how_to_run = {
        "weights",
        "dtype",
        "remat",
        "attention",
        "scan_decode",
        "max_positions",
    }
    differences = [
        f"policy.{field.name}={ours!r} but the folder has {theirs!r}"
        for field in dataclasses.fields(cfg)
        if field.name not in {*how_to_run, "vocab_size"}
        and (ours := getattr(cfg, field.name)) != (theirs := getattr(found, field.name))
    ]
    if differences:
        raise UserError(
            f"weights {folder} do not fit the config: {'; '.join(differences)}; "
            "change either"
        )


def _older_name(key: str) -> str:
    return key.replace("model.language_model.", "model.", 1)


def _open(folder: Path) -> dict[str, Slices]:
    """The folder's text tensors by their older names."""
    found: dict[str, Slices] = {}
    for name, tensor in safetensor_files.tensors_of(folder).items():
        if _NOT_TEXT.search(name):
            continue
        twin = found.setdefault(_older_name(name), tensor)
        if twin is not tensor:
            raise UserError(
                f"{folder} has the tensors {twin.name} and {name}, one by two names; "
                "expected one of them: get the folder again"
            )
    return found


def _check_tensors(folder: Path, tensors: Mapping[str, Any], cfg: PolicyConfig) -> None:
    expected = hf_tensors.shapes(cfg)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if cfg.tied:  # some writers keep the copy
        found.pop("lm_head.weight", None)
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} is not known" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    wrong += [
        f"{name} has type {kind}, expected {' or '.join(FLOATS)}"
        for name in sorted(expected.keys() & found.keys())
        if (kind := tensors[name].dtype) not in FLOATS
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"weights in {folder} do not fit {CONFIG_FILE}: "
            f"{'; '.join(wrong[:_SHOWN])}{more}; get the folder again"
        )
    head, embed = (tensors.get(x) for x in ("lm_head.weight", _EMBED))
    if cfg.tied and head and embed and not _equal(head, embed):
        raise UserError(
            f"{folder / CONFIG_FILE}: tie_word_embeddings is true, but lm_head.weight "
            f"is there and differs from {_EMBED}; set it to false"
        )


def _equal(one: Slices, other: Slices) -> bool:
    """Whether two matrices in files are the same; they are read a piece at a time."""
    rows, columns = one.shape
    step = max(hf_tensors.PIECE_BYTES // (4 * columns), 1)
    pieces = (slice(i, min(i + step, rows)) for i in range(0, rows, step))
    return one.shape == other.shape and all(
        np.array_equal(one[piece], other[piece]) for piece in pieces
    )


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
