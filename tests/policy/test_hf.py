"""Folders, read and written: namings, shards, types, meshes, and what is refused.

That decoding, gradients and bfloat16 are transformers' is `test_parity.py`.
"""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ar3d_jax.config import PolicyConfig
from ar3d_jax.errors import UserError
from ar3d_jax.policy import hf
from ar3d_jax.policy.decoder import Decoder
from ar3d_jax.sharding import make_mesh
from tests.policy.torch_policy import (
    SIZES,
    logits_of,
    positions_of,
    qwen2,
    qwen25_vl,
)


def batch(padding: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SIZES["vocab_size"], (4, 12))
    lengths = np.array([12, 9, 5, 1])[:, None]
    index = np.arange(12)[None]
    valid = {
        "none": np.ones((4, 12), bool),
        "right": index < lengths,
        "left": index >= 12 - lengths,
    }[padding]
    return tokens, valid


def theirs_of(model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray):
    with torch.inference_mode():
        return logits_of(model, tokens, valid).numpy()[valid]


def assert_same_logits(policy: Decoder, model: torch.nn.Module) -> None:
    for padding in ("none", "left", "right"):
        tokens, valid = batch(padding)
        ours = jax.jit(type(policy).__call__)(
            policy, *map(jnp.asarray, (tokens, positions_of(valid), valid))
        )
        theirs = theirs_of(model, tokens, valid)
        np.testing.assert_allclose(
            np.asarray(ours)[valid], theirs, atol=1e-4, err_msg=padding
        )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_to_a_mesh_and_back(mesh: jax.sharding.Mesh, tmp_path: Path, tied: bool):
    model = qwen2(tied=tied)
    model.save_pretrained(tmp_path / "there")
    policy = hf.load(tmp_path / "there", mesh=mesh, dtype="float32")
    assert_same_logits(policy, model)
    hf.save(policy, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "there")
    there, back = (
        transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict()
        for name in ("there", "back")
    )
    more = ("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "hidden_act")
    for field in (*SIZES, *more):
        assert back[field] == there[field], field


@pytest.mark.parametrize("naming", ["older", "newer"])
def test_qwen25_vl_text_in_both_namings(tmp_path: Path, naming: str):
    model = qwen25_vl(tied=False)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    text, vision = {
        "older": ("model.", "visual."),
        "newer": ("model.language_model.", "model.visual."),
    }[naming]

    def renamed(name: str) -> str:
        name = name.removeprefix("model.").removeprefix("language_model.")
        if name.startswith("visual."):
            return vision + name.removeprefix("visual.")
        return name if name.startswith("lm_head.") else text + name

    tensors = {renamed(name): value for name, value in load_file(path).items()}
    assert text + "layers.0.mlp.up_proj.weight" in tensors
    assert vision + "patch_embed.proj.weight" in tensors
    save_file(tensors, path)
    policy = hf.load(tmp_path, mesh=make_mesh(), dtype="float32")
    assert_same_logits(policy, model)


def test_sharded_files(tmp_path: Path):
    model = qwen2(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(hf.load(tmp_path, mesh=make_mesh(), dtype="float32"), model)


def test_the_index_decides_which_copy_counts(tmp_path: Path):
    model = qwen2(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    place = tmp_path / "model.safetensors.index.json"
    placed = json.loads(place.read_text())["weight_map"]
    first, last = min(placed.values()), max(placed.values())
    for file, other in ((first, last), (last, first)):  # whichever is read later
        name = next(name for name, where in placed.items() if where == other)
        stale = load_file(tmp_path / other)[name] + 1
        tensors = load_file(tmp_path / file)
        save_file({**tensors, name: stale}, tmp_path / file)
    assert_same_logits(hf.load(tmp_path, mesh=make_mesh(), dtype="float32"), model)
    more = {**load_file(tmp_path / first), "model.more": np.ones(1, np.float32)}
    save_file(more, tmp_path / first)
    with pytest.raises(UserError, match=r"has a tensor model\.more, which .* not name"):
        hf.load(tmp_path, mesh=make_mesh(), dtype="float32")
    place.write_text(json.dumps({"weight_map": placed | {"model.more": last}}))
    with pytest.raises(
        UserError, match=r"has no tensor model\.more, which .* places th"
    ):
        hf.load(tmp_path, mesh=make_mesh(), dtype="float32")


def test_bfloat16_file_and_config_without_section(tmp_path: Path):
    """The published form: bf16, rope_theta and everything else at the top level."""
    model = qwen2(tied=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["model_type"] = "qwen2_5_vl"
    path.write_text(json.dumps(config))
    policy = hf.load(tmp_path, mesh=make_mesh(), dtype="float32")
    assert_same_logits(policy, model)
    half = hf.load(tmp_path, mesh=make_mesh(), dtype=jnp.bfloat16)
    assert half.embed.get_value().dtype == jnp.bfloat16


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_into_the_folder_it_came_from(
    mesh: jax.sharding.Mesh, tmp_path: Path, tied: bool
):
    """Published form: sharded, bf16, with a vision tower and a tokenizer beside."""
    model = qwen25_vl(tied=tied).to(torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="20KB")
    (base / "tokenizer.json").write_text("{}")
    (base / "preprocessor_config.json").write_text("{}")
    policy = hf.load(base, mesh=mesh, dtype="bfloat16")
    hf.save(policy, tmp_path / "same", base=base)
    assert contents(tmp_path / "same") == contents(base)
    names = {file.name for file in base.iterdir()}
    assert {file.name for file in (tmp_path / "same").iterdir()} == names

    policy.norm[...] = policy.norm[...] + 1
    hf.save(policy, tmp_path / "trained", base=base)
    trained, before = contents(tmp_path / "trained"), contents(base)
    changed = {name for name in before if trained[name] != before[name]}
    assert len(changed) == 1
    assert changed.pop().endswith("norm.weight")
    model, again = (
        transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
        for folder in (base, tmp_path / "trained")
    )
    with torch.no_grad():
        model.model.language_model.norm.weight += 1
    tokens, valid = batch("left")
    theirs, ours = (theirs_of(m, tokens, valid) for m in (model, again))
    np.testing.assert_array_equal(ours, theirs)


def contents(folder: Path) -> dict[str, bytes]:
    """Every tensor's type, shape and bytes."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            found[name] = (tensor.dtype.name, tensor.shape, tensor.tobytes())
    return found


def test_a_base_of_other_sizes_is_refused(saved: Path, tmp_path: Path):
    cfg = dataclasses.replace(hf.read_config(saved), layers=1)
    policy = Decoder(cfg, jax.random.key(0))
    with pytest.raises(UserError, match=r"policy\.layers=1 but the folder has 2"):
        hf.save(policy, tmp_path / "out", base=saved)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    qwen2(tied=False).save_pretrained(folder)
    return folder


def test_every_wrong_tensor_is_in_one_line(saved: Path, tmp_path: Path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["model.extra.weight"] = np.zeros(3, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :16].copy()
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:
        hf.load(folder, mesh=make_mesh(), dtype="float32")
    message = str(caught.value)
    assert "model.norm.weight is missing" in message
    assert "model.extra.weight is not known" in message
    assert "lm_head.weight has shape (96, 16), expected (96, 32)" in message
    assert "\n" not in message


def test_sizes_must_agree_with_the_config(saved: Path):
    cfg = hf.read_config(saved)
    assert hf.load(saved, mesh=make_mesh(), dtype="float32", cfg=cfg).cfg == cfg
    with pytest.raises(UserError, match=r"policy.layers=4 but the folder has 2"):
        hf.load(saved, mesh=make_mesh(), dtype="float32", cfg=PolicyConfig())


def change(folder: Path, **fields) -> None:
    """Sets fields of config.json; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    config = {name: value for name, value in config.items() if value is not None}
    path.write_text(json.dumps(config))


def index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


def retype(folder: Path, name: str, dtype: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[name].astype(dtype)}, path)


def rename(folder: Path, name: str, more: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, more: tensors[name]}, path)


MAP = '{"weight_map": {"x": "y"}}'
DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "cannot read .*config"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    "section": (lambda f: change(f, text_config="x"), "cannot read .*config.json"),
    "rope": (lambda f: change(f, rope_parameters="x"), "cannot read .*config.json"),
    "no field": (lambda f: change(f, hidden_size=None), "no field 'hidden_size'"),
    "no heads": (lambda f: change(f, num_attention_heads=0), "does not fit"),
    "odd heads": (lambda f: change(f, num_attention_heads=5), "policy.heads is 5"),
    "word": (lambda f: change(f, rms_norm_eps="small"), "to float: 'small'"),
    "no boolean": (lambda f: change(f, tie_word_embeddings="no"), "ings 'no'"),
    "another tied": (
        lambda f: change(f, tie_word_embeddings=True),
        "lm_head.weight is there and differs",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights in"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"),
        "cannot read .*model.safetensors",
    ),
    "index list": (lambda f: index(f, '{"weight_map": []}'), "cannot read .*index"),
    "index numbers": (lambda f: index(f, '{"weight_map": {"x": 1}}'), "cannot read"),
    "elsewhere": (lambda f: index(f, '{"weight_map": {"x": "../y"}}'), "cannot read"),
    "empty index": (lambda f: index(f, '{"weight_map": {}}'), "cannot read .*index"),
    "no shard": (
        lambda f: index(f, '{"weight_map": {"x": "y"}}'),
        "index.json names y, which is not there",
    ),
    "both": (
        lambda f: (shutil.copy(f / "model.safetensors", f / "y"), index(f, MAP))
        and shutil.copy(f / "y", f / "model.safetensors"),
        "has model.safetensors and model.safetensors.index.json with other files",
    ),
    "no rope_theta": (
        lambda f: change(f, rope_parameters=None),
        "config.json has no rope_theta, at the top or in rope_parameters",
    ),
    "two rope_thetas": (
        lambda f: change(f, rope_theta=5.0),
        "states rope_theta 5.0 an",
    ),
    "adapter": (
        lambda f: (f / "adapter_config.json").touch(),
        "has an adapter, adapter_config.json, beside the weights of a model",
    ),
    "adapter alone": (
        lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        "has an adapter, adapter_model.safetensors, and no weights of a model",
    ),
    "two namings": (
        lambda f: rename(f, "model.norm.weight", "model.language_model.norm.weight"),
        "one by two names",
    ),
    "integers": (
        lambda f: retype(f, "model.norm.weight", "int32"),
        "model.norm.weight has type I32, expected F64",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_unreadable_folder(saved: Path, tmp_path: Path, damage, message):
    folder = shutil.copytree(saved, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        hf.load(folder, mesh=make_mesh(), dtype="float32")
    assert "\n" not in str(caught.value)


YARN = {"rope_theta": 1e6, "factor": 4.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama"},
        {"use_sliding_window": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", **YARN}},
        {"rope_parameters": None, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_parameters": None, "rope_scaling": {"rope_type": "linear", **YARN}},
        {"rope_scaling": {"type": "yarn", **YARN, "rope_theta": None}},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": "sliding_attention"},
        {"quantization_config": {"quant_method": "awq"}},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_other_models_are_refused(saved: Path, tmp_path: Path, fields):
    folder = shutil.copytree(saved, tmp_path / "copy")
    change(folder, **fields)
    with pytest.raises(UserError, match=r"expected .* unscaled RoPE"):
        hf.read_config(folder)


def test_older_fields_say_the_same(saved: Path, tmp_path: Path):
    """As Qwen2.5-VL was published: M-RoPE, which is plain RoPE for text."""
    folder = shutil.copytree(saved, tmp_path / "copy")
    mrope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    theta = hf.read_config(saved).rope_theta
    for fields in (
        {"rope_theta": theta, "rope_scaling": mrope},
        {"rope_scaling": mrope | {"rope_theta": theta}},
        {"rope_parameters": mrope | {"rope_theta": theta}},
    ):
        change(folder, **{"rope_parameters": None, "rope_scaling": None, **fields})
        found, before = hf.read_config(folder), hf.read_config(saved)
        assert dataclasses.replace(found, weights=before.weights) == before


def test_tied_in_the_section_of_the_text(tmp_path: Path):
    """Where transformers before 5 wrote it, and a copy of the matrix that it kept."""
    model = qwen25_vl(tied=True)
    model.save_pretrained(tmp_path)
    change(tmp_path, tie_word_embeddings=None)
    path = tmp_path / "config.json"
    assert json.loads(path.read_text())["text_config"]["tie_word_embeddings"]
    tensors = load_file(tmp_path / "model.safetensors")
    (embed,) = (x for name, x in tensors.items() if "embed_tokens" in name)
    save_file({**tensors, "lm_head.weight": embed.copy()}, tmp_path / hf.WEIGHTS_FILE)
    assert_same_logits(hf.load(tmp_path, mesh=make_mesh(), dtype="float32"), model)
