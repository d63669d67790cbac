"""The shipped files: small, complete, loadable, and worth something."""

import hashlib
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors

import ar3d_jax
from ar3d_jax.codec.voxels import voxelize
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import Config
from ar3d_jax.data.catalog import is_held_out
from ar3d_jax.data.prompts import REASONING, held_out_prompts, read_prompts
from ar3d_jax.models import Models, load_models, plan_texts, sample_steps, shape_codes
from ar3d_jax.sharding import make_mesh

ASSETS = Path(ar3d_jax.__file__).parent / "assets"
TINY = ASSETS / "tiny"
LIMIT_MIB = 20


@pytest.fixture(scope="module")
def models() -> Models:
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        return load_models(Config(), mesh)


def boxes(*pairs) -> np.ndarray:
    """Voxels of axis-parallel boxes, given by opposite corners."""
    vertices, faces = [], []
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4)]
    quads += [(1, 5, 7, 3)]
    for low, high in pairs:
        ends = np.array([low, high], float)
        first = len(vertices)
        vertices += [
            (x, y, z) for x in ends[:, 0] for y in ends[:, 1] for z in ends[:, 2]
        ]
        for a, b, c, d in quads:
            faces += [
                (first + a, first + b, first + c),
                (first + a, first + c, first + d),
            ]
    return voxelize(np.array(vertices), np.array(faces), 32)


def test_all_files_are_small_together():
    size = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    assert size < LIMIT_MIB * 2**20


def test_the_viewer_is_the_published_one_and_has_its_licences():
    """NOTICE and the licence file say: 4.4.0, unchanged."""
    viewer = ASSETS / "viewer"
    data = (viewer / "model-viewer-umd.min.js").read_bytes()
    assert len(data) < 1.1e6
    digest = "d785423b1d046ea84a9f59ef6cf15f3077603e1bf938b01ced9b0240691884a2"
    assert hashlib.sha256(data).hexdigest() == digest
    assert b"</script" not in data.lower()  # it is pasted into pages
    assert "Apache License" in (viewer / "model-viewer.LICENSE.txt").read_text()
    others = (viewer / "model-viewer.third-party.txt").read_text(encoding="utf-8")
    for name in ("three.js", "Lit", "gainmap-js", "fflate", "meshopt", "ktx", "zstd"):
        assert name in others


@pytest.mark.parametrize(
    "name",
    [
        *("codec.safetensors", "policy/model.safetensors", "scorers.safetensors"),
        "judge.safetensors",
    ],
)
def test_weights_are_half_precision_and_finite(name):
    with safetensors.safe_open(str(TINY / name), framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118  no mapping
            tensor = file.get_tensor(key)
            assert tensor.dtype in (np.float16, np.uint8), key
            assert np.isfinite(tensor.astype(np.float32)).all(), key


def test_prompts_keep_held_out_objects_apart():
    rows = read_prompts("catalog")
    for row in rows:
        thing = row.id.rpartition(".")[0]
        assert row.held_out == is_held_out(thing), row.id
    held_out = [row for row in rows if row.held_out]
    assert 0.05 < len(held_out) / len(rows) < 0.15
    assert len(held_out_prompts("catalog", 10_000)) == len(held_out)


@pytest.mark.parametrize("source", ["catalog", str(REASONING)])
def test_no_prompt_doubles_a_word(source):
    """In whatever case, and across punctuation; numbers may: "depth 4, height 4"."""
    for row in read_prompts(source):
        words = re.findall(r"[^\W_]+", " ".join(row.texts).lower())
        doubled = [a for a, b in itertools.pairwise(words) if a == b]
        assert not doubled, row


def test_prompts_that_a_noun_had_doubled_are_as_the_generator_makes_them():
    """`round` is said once of what is called round: eleven texts, ids as before."""
    texts = {row.id: row.texts[0] for row in read_prompts("catalog")}
    assert len(texts) == 2440
    assert texts["scopia-round-table.1"] == "a low, round table"
    assert texts["scopia-round-table.4"] == "a grey wooden round table, low"
    assert texts["blend-swap-cc-by-cafe-set-mota-table.1"] == "a medium, round table"
    assert texts["kator-legaz-bullet-trash-can.2"] == (
        "a tall, round trash can with body and rim"
    )
    assert len(set(texts.values())) == 2440


def test_the_codec_keeps_a_table_and_a_chair(models):
    legs = [
        ((x, y, -0.4), (x + 0.08, y + 0.08, 0.1))
        for x in (-0.5, 0.42)
        for y in (-0.3, 0.22)
    ]
    table = boxes(((-0.5, -0.3, 0.1), (0.5, 0.3, 0.18)), *legs)
    seat = ((-0.25, -0.25, -0.05), (0.25, 0.25, 0.03))
    back = ((-0.25, 0.19, 0.03), (0.25, 0.25, 0.5))
    posts = [
        ((x, y, -0.5), (x + 0.06, y + 0.06, -0.05))
        for x in (-0.25, 0.19)
        for y in (-0.25, 0.19)
    ]
    grids = np.stack([table, boxes(seat, back, *posts)])
    codes = jax.jit(Codec.encode)(models.codec, grids)
    found = np.asarray(jax.jit(Codec.decode)(models.codec, codes)) > 0
    axes = (1, 2, 3)
    iou = (found & grids).sum(axes) / (found | grids).sum(axes)
    assert (iou > 0.6).all(), iou


def test_the_policy_plans_and_shapes_what_it_is_asked_for(models):
    config = Config()
    texts = ["a low wide table with four legs", "a tall square chair"]
    with jax.set_mesh(make_mesh()):
        coarse, refined = sample_steps(
            models,
            models.policy,
            texts,
            jax.random.key(0),
            config.rollout,
            paradigm="higrpo",
            group_size=4,
        )
    plans = plan_texts(coarse.shape, models.tokenizer)
    assert sum("table" in plan.lower() for plan in plans[:4]) >= 3, plans
    assert sum("chair" in plan.lower() for plan in plans[4:]) >= 3, plans
    for step in (coarse, refined):
        codes = shape_codes(step.shape, models.vocab)
        assert codes.shape == (8, config.codec.tokens)
        assert (codes >= 0).all()
        assert (codes < config.codec.codes).all()
        assert len(np.unique(codes, axis=0)) == 8
        logits = np.asarray(jax.jit(Codec.decode)(models.codec, codes))
        assert ((logits > 0).sum(axis=(1, 2, 3)) > 100).all()
