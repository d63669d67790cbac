"""HPS v2.1: open_clip's numbers from open_clip's file, and one line for bad files."""

import dataclasses
import hashlib
import math
import os
import pathlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ar3d_jax.config import RewardsConfig
from ar3d_jax.config_rewards import HpsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import scorers
from ar3d_jax.rewards.sidecar.scorers import clip_text, hps_v2_1
from ar3d_jax.rewards.sidecar.scorers.hps_v2_1 import FILE, FORWARD, HpsScorer
from tests.rewards.sidecar import hps_checkpoint
from tests.rewards.sidecar.hps_checkpoint import SMALL, Sizes
from tests.rewards.sidecar.resting import rest_and_wake

CHAIR = "a wooden black chair with four legs"
CHAIR_IDS = [49406, 320, 9057, 1449, 4269, 593, 2721, 7072, 49407]
CPU = torch.device("cpu")
SIZE = SMALL.patch * SMALL.side
FIELD = "rewards.hps_v2_1.weights"


def load(path, **fields) -> HpsScorer:
    config = RewardsConfig(hps_v2_1=HpsConfig(weights=str(path), **fields))
    scorer = scorers.load("hps_v2_1", config)
    assert isinstance(scorer, HpsScorer)
    assert isinstance(scorer, scorers.Scorer)
    return scorer


def views(count=3, height=64, width=64, seed=0):
    """Noise whose colours differ from picture to picture, so that cosines do."""
    random = np.random.default_rng(seed)
    around = random.integers(0, 200, (count, 1, 1, 3))
    return (around + random.integers(0, 55, (count, height, width, 3))).astype(np.uint8)


def subject(prompt=CHAIR, pictures=None, roles=("preference",)):
    pictures = views() if pictures is None else pictures
    nothing = np.zeros((0, 3))
    points, colours = nothing.astype(np.float32), nothing.astype(np.uint8)
    return scorers.Subject(prompt, pictures, points, colours, roles)


def number(verdicts):
    (verdict,) = verdicts.values()
    assert verdict[1] is None
    return verdict[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("hps") / FILE
    return path, hps_checkpoint.write(path, SMALL)


@pytest.fixture(scope="module")
def scorer(checkpoint) -> HpsScorer:
    return load(checkpoint[0])


class OpenClip:
    """open_clip's two transformers, straight from the file's tensors."""

    def __init__(self, state):
        self.state = {name: tensor.float() for name, tensor in state.items()}

    def norm(self, name, x):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def blocks(self, prefix, x, heads, mask=None):
        for layer in range(2):
            name = f"{prefix}transformer.resblocks.{layer}"
            attention = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
            start = f"{name}.attn."
            own = {
                key.removeprefix(start): tensor
                for key, tensor in self.state.items()
                if key.startswith(start)
            }
            attention.load_state_dict(own)
            y = self.norm(f"{name}.ln_1", x)
            x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = self.linear(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", x))
            gelu = y * (1 + torch.erf(y / math.sqrt(2))) / 2
            x = x + self.linear(f"{name}.mlp.c_proj", gelu)
        return x

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def look(self, pictures):
        weight = self.state["visual.conv1.weight"]
        patches = functional.conv2d(pictures, weight, stride=weight.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        first = self.state["visual.class_embedding"].expand(len(patches), 1, -1)
        x = torch.cat([first, patches], 1) + self.state["visual.positional_embedding"]
        x = self.blocks("visual.", self.norm("visual.ln_pre", x), heads=3)
        x = self.norm("visual.ln_post", x[:, 0])
        return x @ self.state["visual.proj"]

    def read(self, ids):
        ids = torch.tensor([ids + [0] * (77 - len(ids))])
        x = self.state["token_embedding.weight"][ids]
        x = x + self.state["positional_embedding"]
        mask = torch.full((77, 77), -torch.inf).triu(1)
        x = self.norm("ln_final", self.blocks("", x, heads=2, mask=mask))
        return x[0, ids[0].argmax()] @ self.state["text_projection"]


@torch.inference_mode()
def test_vectors_are_those_of_open_clip(scorer, checkpoint):
    reference = OpenClip(checkpoint[1])
    pictures = views(5)
    wanted = reference.look(hps_v2_1.prepare(pictures, SIZE, CPU))
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    (found,) = scorer.look([pictures])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-2  # pictures make a difference
    for prompt, ids in (
        (CHAIR, CHAIR_IDS),
        ("", [49406, 49407]),
        ("chair " * 100, [49406, *[4269] * 75, 49407]),
    ):
        text = reference.read(ids)
        text = text / text.norm()
        torch.testing.assert_close(scorer.read(prompt), text, rtol=0, atol=1e-5)
        score = number(scorer.score([subject(prompt, pictures)])[0])
        assert score == pytest.approx(float((wanted @ text).max()), abs=1e-5)


def test_the_best_view_counts_alone(scorer):
    pictures = views(6)
    each = [number(scorer.score([subject(pictures=one[None])])[0]) for one in pictures]
    assert max(each) - min(each) > 1e-3
    together = number(scorer.score([subject(pictures=pictures)])[0])
    assert together == pytest.approx(max(each), abs=1e-6)


def test_a_batch_of_objects_is_each_of_them(scorer):
    subjects = [
        subject(f"chair {index}", views(count, *shape, seed=index))
        for index, (count, shape) in enumerate(
            [(6, (64, 64)), (1, (30, 80)), (4, (SIZE, SIZE)), (6, (64, 64))]
        )
    ]
    alone = [number(scorer.score([one])[0]) for one in subjects]
    together = [number(verdicts) for verdicts in scorer.score(subjects)]
    assert np.ptp(alone) > 1e-3
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    again = [number(scorer.score([one])[0]) for one in subjects]
    assert again == alone  # to the bit


def test_only_the_roles_asked_for_are_answered(scorer):
    assert scorer.score([subject(roles=())]) == [{}]
    assert scorer.score([subject()])[0].keys() == {"preference"}


def test_an_array_that_cannot_be_written_or_an_empty_object_is_scored(scorer):
    white = np.full((2, 64, 64, 3), 255, np.uint8)
    white.flags.writeable = False
    assert -1 <= number(scorer.score([subject(pictures=white)])[0]) <= 1


def test_a_number_that_is_none_has_a_reason(tmp_path):
    state = hps_checkpoint.tensors(SMALL)
    # Finite, and its products are not.
    state["visual.proj"] = 3e38 * state["visual.proj"].sign().float()
    torch.save({"state_dict": state}, tmp_path / FILE)
    ((score, reason),) = load(tmp_path).score([subject()])[0].values()
    assert math.isnan(score)
    assert reason == "the network's numbers are not finite"


def test_a_prompt_is_read_once(scorer, monkeypatch):
    seen = []
    real = scorer._model.get_text_features
    monkeypatch.setattr(
        scorer._model, "get_text_features", lambda ids: seen.append(ids) or real(ids)
    )
    scorer.score([subject("one lamp"), subject("one bed"), subject("one lamp")])
    scorer.score([subject("one bed")])
    assert len(seen) == 2


def test_many_pictures_take_turns_and_leave_no_memory_behind(scorer, monkeypatch):
    sizes = []
    real = scorer._model.get_image_features

    def look(pictures):
        sizes.append(len(pictures))
        return real(pictures)

    with monkeypatch.context() as patch:
        patch.setattr(scorer._model, "get_image_features", look)
        many = [subject(pictures=views(50, seed=seed)) for seed in range(5)]
        scorer.score(many)
    assert sizes == [FORWARD, FORWARD, 250 - 2 * FORWARD]

    def mib():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    sixteen = [subject(pictures=views(6, seed=seed)) for seed in range(16)]
    resident = []
    for turn in range(20):  # the pictures of one call, prepared, are 1.8 MiB
        asked = [dataclasses.replace(one, prompt=f"chair {turn}") for one in sixteen]
        scorer.score(asked)
        resident.append(mib())
    assert resident[-1] - resident[5] < 15  # a leak: 25


# Preparation, by hand. Weights of cubic interpolation (a = -0.5) at these distances:
QUARTER, THREE_QUARTERS, FIVE_QUARTERS = 0.8671875, 0.2265625, -0.0703125
BLACK = [-m / s for m, s in zip(hps_v2_1.MEAN, hps_v2_1.STD, strict=True)]


def plain(prepared):
    """Back to 0 to 1, of the first picture; [S, S, 3]."""
    mean, std = torch.tensor(hps_v2_1.MEAN), torch.tensor(hps_v2_1.STD)
    return prepared[0].permute(1, 2, 0) * std + mean


def row(*greys):
    """A square picture whose rows are all so."""
    grey = np.array(greys, np.uint8)
    return np.broadcast_to(grey[None, None, :, None], (1, len(grey), len(grey), 3))


def test_colours_are_normalised_by_channel():
    pictures = np.broadcast_to(np.array([255, 51, 0], np.uint8), (1, 9, 9, 3))
    prepared = hps_v2_1.prepare(pictures, 4, CPU)
    wanted = [
        (1 - 0.48145466) / 0.26862954,
        (0.2 - 0.4578275) / 0.26130258,
        (0 - 0.40821073) / 0.27577711,
    ]
    for channel in range(3):
        np.testing.assert_allclose(prepared[0, channel], wanted[channel], atol=1e-5)


def test_larger_and_smaller_pictures_by_hand():
    outer = FIVE_QUARTERS / (QUARTER + FIVE_QUARTERS)  # below 0: nothing is clamped
    inner = THREE_QUARTERS / (QUARTER + THREE_QUARTERS)
    assert outer < -0.08
    enlarged = plain(hps_v2_1.prepare(row(0, 255), 4, CPU))
    wanted = np.array([outer, inner, 1 - inner, 1 - outer])
    np.testing.assert_allclose(enlarged, _spread(wanted), atol=1e-5)

    total = 2 * QUARTER + THREE_QUARTERS + FIVE_QUARTERS  # twice as wide: antialiasing
    shrunk = plain(hps_v2_1.prepare(row(0, 0, 0, 255), 2, CPU))
    wanted = np.array([FIVE_QUARTERS, QUARTER]) / total
    np.testing.assert_allclose(shrunk, _spread(wanted), atol=1e-5)


def _spread(values):
    return np.broadcast_to(values[None, :, None], (len(values), len(values), 3))


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ((2, 4), (slice(1, 3), slice(0, 4))),
        ((3, 4), (slice(0, 3), slice(0, 4))),  # the odd row is at the bottom
        ((4, 3), (slice(0, 4), slice(0, 3))),  # the odd column is at the right
        ((8, 4), (slice(0, 4), slice(1, 3))),  # halved first
        ((1, 2), (slice(1, 3), slice(0, 4))),  # doubled first
        ((500, 1), (slice(0, 4), slice(1, 2))),  # never less than a pixel
    ],
)
def test_a_picture_that_is_not_square_has_black_borders(shape, inside):
    white = np.full((1, *shape, 3), 255, np.uint8)
    wanted = np.zeros((4, 4, 3))
    wanted[inside] = 1
    prepared = hps_v2_1.prepare(white, 4, CPU)
    np.testing.assert_allclose(plain(prepared), wanted, atol=1e-5)


def test_what_is_transparent_becomes_white():
    pictures = np.zeros((1, 2, 2, 4), np.uint8)
    pictures[0, 0, 1] = (255, 0, 0, 255)
    pictures[0, 1, 0] = (0, 0, 51, 51)
    pictures[0, 1, 1] = (255, 255, 255, 51)
    prepared = plain(hps_v2_1.prepare(pictures, 2, CPU))
    wanted = [[[1, 1, 1], [1, 0, 0]], [[0.8, 0.8, 0.84], [1, 1, 1]]]
    np.testing.assert_allclose(prepared, wanted, atol=1e-5)


def test_tokens_are_those_of_open_clip():
    tokenizer = clip_text.ClipTokenizer()
    assert tokenizer(CHAIR) == CHAIR_IDS
    messy = "  A Wooden\tBLACK\n chair with  four&#32;legs "
    assert tokenizer(messy) == CHAIR_IDS
    assert tokenizer("chair " * 75) == [49406, *[4269] * 75, 49407]
    assert tokenizer("chair " * 76) == [49406, *[4269] * 75, 49407]
    assert tokenizer("") == [49406, 49407]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("A &amp;amp; B", "a & b"),
        ("\u201cIt\u2019s\u201d", '"it\'s"'),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u00a0b\n\n c", "a b c"),
    ],
)
def test_texts_are_cleaned_as_open_clip_does(given, wanted):
    assert clip_text.clean(given) == wanted


def test_the_vocabulary_is_the_published_one_and_has_its_licence():
    """NOTICE says: unchanged."""
    digest = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert hashlib.sha256(clip_text.MERGES.read_bytes()).hexdigest() == digest
    licence = (clip_text.MERGES.parent / "CLIP.LICENSE.txt").read_text()
    assert "Copyright (c) 2021 OpenAI" in licence


def test_a_folder_or_a_file_is_the_same_scorer(checkpoint, scorer):
    path, _ = checkpoint
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert scorer.about == scorers.About(FILE, f"sha256:{digest}", "cpu")
    assert scorer.batch == 16
    folder = load(path.parent, batch=3)
    assert (folder.about, folder.batch) == (scorer.about, 3)
    assert folder.score([subject()]) == scorer.score([subject()])
    folder.close()


@pytest.mark.parametrize(("dtype", "near"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_precision_is_near(checkpoint, scorer, dtype, near):
    half = load(checkpoint[0], dtype=dtype)
    wanted = number(scorer.score([subject()])[0])
    found = number(half.score([subject()])[0])
    assert found != wanted
    assert found == pytest.approx(wanted, abs=near)


def test_a_gpu_that_is_not_there_is_one_line(checkpoint):
    with pytest.raises(UserError, match=r"hps_v2_1\.device is 'cuda:99'.*cpu"):
        load(checkpoint[0], device="cuda:99")


def test_after_a_rest_the_scores_are_the_same(checkpoint):
    scorer = load(checkpoint[0])
    scores = scorer.score([subject()])
    rest_and_wake(scorer, scorer._model)
    assert scorer.score([subject()]) == scores
    rest_and_wake(scorer, scorer._model)
    # None of it was kept from before.
    fresh = load(checkpoint[0])
    asked = subject("a red sofa", views(2, seed=3))
    assert scorer.score([asked]) == fresh.score([asked])


def _without(*names):
    def spoil(state):
        for name in names:
            del state[name]

    return spoil


def _other_width(state):
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    state[name] = state[name][:-1]


def _many_problems(state):
    del state["visual.proj"]
    _other_width(state)
    state["score_head.weight"] = torch.zeros(1)


def _no_square(state):
    name = "visual.positional_embedding"
    state[name] = state[name][:-1]


def _vgg(state):
    state.clear()
    state["features.0.weight"] = torch.zeros(64, 3, 3, 3)


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (_without("visual.proj"), ["lacks visual.proj"]),
        (
            _without("transformer.resblocks.1.ln_1.bias", "logit_scale"),
            ["lacks logit_scale, transformer.resblocks.1.ln_1.bias"],
        ),
        (_other_width, ["in_proj_weight of shape (575, 192), not (576, 192)"]),
        (_no_square, ["has 25 positions, not 1 and a square of patches"]),
        (
            _many_problems,
            ["lacks visual.proj", "not (576, 192)", "has besides score_head.weight"],
        ),
        (
            _vgg,
            ["lacks logit_scale, visual.conv1.weight", "more", "features.0.weight"],
        ),
    ],
)
def test_another_network_is_one_line(tmp_path, spoil, messages):
    state = hps_checkpoint.tensors(SMALL)
    spoil(state)
    torch.save({"state_dict": state}, tmp_path / FILE)
    _refused(tmp_path / FILE, "is no CLIP of open_clip's layout", *messages)


def test_weights_that_cannot_be_right_are_one_line(tmp_path):
    for name, value, problem in (
        ("visual.proj", math.nan, "visual_projection.weight with numbers that are not"),
        ("token_embedding.weight", 0.0, "token_embedding.weight that is all zeros"),
    ):
        state = hps_checkpoint.tensors(SMALL)
        state[name][:] = value
        torch.save({"state_dict": state}, tmp_path / FILE)
        _refused(tmp_path / FILE, problem)


def test_a_width_without_whole_heads_is_one_line(tmp_path):
    hps_checkpoint.write(tmp_path / FILE, dataclasses.replace(SMALL, vision=100))
    _refused(tmp_path, "has width 100, not a multiple of 64")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, checkpoint):
    path = tmp_path / FILE
    _refused(tmp_path, f"{FILE} is no file")
    content = checkpoint[0].read_bytes()
    for broken in (content[: len(content) // 2], b"<html>not found</html>", b""):
        path.write_bytes(broken)
        _refused(path, "cannot be read")
    for other in ([1], {"model": {}}, torch.zeros(3)):
        torch.save(other, path)
        _refused(path, "has no state_dict; expected")
    for other in ({"a": 1}, {1: torch.zeros(1)}, [torch.zeros(1)]):
        torch.save({"state_dict": other}, path)
        _refused(path, "holds something else than named tensors under state_dict; ")


@pytest.mark.parametrize("source", ["no/such/file.pt", "xswu/HPSv2"])
def test_weights_that_are_not_here_are_one_line(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(source)
    line = str(caught.value)
    assert line.startswith(f"{FIELD} is '{source}'")
    assert "\n" not in line


def _refused(path, *messages):
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{FIELD}: ")
    assert f"expected {FILE} of xswu/HPSv2" in line
    assert f"--config.{FIELD}" in line
    assert "\n" not in line
    assert len(line) < 900
    for message in messages:
        assert message in line


@pytest.mark.slow
def test_the_published_sizes(tmp_path):
    """986,109,441 numbers in 686 tensors of float16; facts of the published file."""
    shapes = hps_checkpoint.shapes(Sizes())
    assert len(shapes) == 686
    assert sum(map(math.prod, shapes.values())) == 986_109_441
    path = tmp_path / FILE
    hps_checkpoint.write(path, Sizes())
    assert path.stat().st_size == pytest.approx(2 * 986_109_441, rel=1e-3)
    try:
        scorer = load(path)
    finally:
        path.unlink()
    assert sum(p.numel() for p in scorer._model.parameters()) == 986_109_441
    config = scorer._model.config
    heads = [
        part.num_attention_heads for part in (config.vision_config, config.text_config)
    ]
    assert heads == [16, 16]
    assert config.vision_config.image_size == 224
    assert config.projection_dim == 1024
    score = number(scorer.score([subject(pictures=views(1, 512, 512))])[0])
    assert 1e-4 < abs(score) < 1
