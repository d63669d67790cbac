"""Embedded scorers: classes in prompts, ranges of roles, and the shipped weights."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ar3d_jax.config_rewards import COARSE_ROLES, REFINED_ROLES, TABLE_ROLES
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import train_embedded
from ar3d_jax.rewards.sidecar.scorers import embedded, networks, parts

ROLES = tuple(dict.fromkeys(COARSE_ROLES + REFINED_ROLES + TABLE_ROLES))
RANGES = {
    "preference": (-1, 1),
    "alignment": (1, 5),
    "category": (0, 1),
    "quality": (3, 15),
    "consistency": (0, 3),
    "parts": (0, 2),
    "align_lmm": (1, 5),
    "consistency_shape": (0, 3),
}
WORDS = {"lamp": "lamp", "table": "table", "table lamp": "lamp", "bed": "bed"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random networks, two classes, one example each."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("scorers") / "scorers.safetensors"
    grids = np.zeros((2, *(parts.CELLS,) * 3), bool)
    grids[0, :, :, -2:] = grids[1, 4:8, 4:8] = True
    modules = {
        "view": networks.ViewEncoder(),
        "text": networks.TextEncoder(),
        "points": networks.PointClassifier(2),
    }
    bank = torch.nn.functional.normalize(torch.randn(2, networks.EMBEDDING), dim=1)
    facts = embedded.Facts(
        classes=["table", "lamp"],
        words=WORDS,
        bank=["table", "lamp"],
        examples={"table": [0], "lamp": [1], "bed": [0]},
        limits={
            "table": {"top": [0.1, 0.9]},
            "lamp": {"stem": [0.1, 0.9]},
            "bed": {"mattress": [0.1, 0.9]},
        },
        match=[0.5, 0.0],
        report={},
    )
    train_embedded.write(path, modules, bank, grids, facts)
    return path


@pytest.fixture(scope="module")
def scorer(weights):
    return embedded.EmbeddedScorer(weights)


def things(seed=0):
    """Views and points of nothing in particular."""
    rng = np.random.default_rng(seed)
    views = rng.integers(0, 256, (6, 224, 224, 3)).astype(np.uint8)
    return views, rng.uniform(-0.5, 0.5, (2048, 3)).astype(np.float32)


def stem():
    """Points of a column as the example of a lamp has it: its one part is complete."""
    sides = (0.1, 0.1, 1.0)
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (2048, 3)) * sides
    return points.astype(np.float32)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("a lamp", "lamp"),
        ("a table lamp with base, stem and bed", "lamp"),
        ("tall LAMPS on a table", "table"),
        ("a low thing with a lamp", "lamp"),  # no noun before "with"
        ("two tables, beside a bed", "table"),
        ("a bedside thing", None),
    ],
)
def test_class_in_a_prompt(prompt, kind):
    assert embedded.class_in(prompt, WORDS) == kind


def test_all_roles_are_in_their_ranges(scorer):
    for seed in range(3):
        scores = scorer.score_object("a table", *things(seed), ROLES)
        assert scores.keys() == set(ROLES)
        for role, (value, reason) in scores.items():
            low, high = RANGES[role]
            assert low <= value <= high, role
            assert reason is None


def test_only_what_is_asked_is_answered_and_the_same_each_time(scorer):
    together = scorer.score_object("a lamp", *things(), ROLES)
    for role in ROLES:
        assert scorer.score_object("a lamp", *things(), (role,)) == {
            role: together[role]
        }


def test_what_table_1_alone_rewards(scorer):
    """The mean match of all views; and shapes without their subject, with parts."""
    views, _ = things()
    scores = scorer.score_object("a lamp", views, stem(), ROLES)
    found = {role: value for role, (value, _) in scores.items()}
    assert found["parts"] > 1.5
    subject = (found["align_lmm"] - 1) / 4
    assert found["align_lmm"] < found["alignment"]  # the mean, not the best view
    assert found["consistency_shape"] == pytest.approx(
        found["consistency"] - subject + found["parts"] / 2, abs=1e-6
    )


def unlike_views():
    """Bars of growing width and darkness: no two views look alike."""
    views = np.full((4, 112, 112, 3), 255, np.uint8)
    for index, view in enumerate(views):
        view[20:90, 20 : 35 + 20 * index] = 200 - 60 * index
    return views


def test_which_view_counts_is_the_roles(scorer):
    """The best one's number for three roles; means and worst ones for the others."""
    views, points = unlike_views(), stem()
    with torch.inference_mode():
        vectors, judged = scorer.view(networks.grey_pictures(views))
        cosines = (vectors @ scorer.text(["a lamp"])[0]).numpy()
        slope, offset = scorer.facts.match
        margins = scorer.margins("a lamp", vectors)
        match = torch.sigmoid(slope * margins + offset).numpy()
        coherence, style = torch.sigmoid(judged).T.numpy()
    parts_score = scorer.score_object("a lamp", views, points, ("parts",))["parts"][0]
    assert parts_score > 1.5
    worst = coherence.min() + style.min()
    expected = {
        "preference": cosines.max(),
        "alignment": 1 + 4 * match.max(),
        # Of the sum: the view that matches best need not be the most coherent one.
        "quality": (3 + 4 * (match + coherence + style)).max(),
        "consistency": match.mean() + worst,
        "align_lmm": 1 + 4 * match.mean(),
        "consistency_shape": worst + parts_score / 2,
    }
    for numbers in (cosines, match, coherence, style):  # else any view would do
        assert np.ptp(numbers) > 1e-3
    found = scorer.score_object("a lamp", views, points, tuple(expected))
    for role, value in expected.items():
        assert found[role] == (pytest.approx(float(value), abs=1e-5), None), role


@pytest.mark.parametrize(
    ("probabilities", "category"),
    [
        ([0.16, *[0.14] * 6], 1.0),  # the most probable, however improbable
        ([0.21, 0.4, 0.29, 0.1, 0, 0, 0], 1.0),  # the third, and probable enough
        ([0.19, 0.41, 0.3, 0.1, 0, 0, 0], 0.0),  # the third, too improbable
        ([0.22, 0.27, 0.26, 0.25, 0, 0, 0], 0.0),  # the fourth
    ],
)
def test_a_class_is_recognised_among_the_three_most_probable(
    scorer, monkeypatch, probabilities, category
):
    """Of six classes and "no object", as the docstring's TOP and SURE have it."""
    classes = ["lamp", "table", "bed", "chair", "sofa", "box"]
    facts = dataclasses.replace(scorer.facts, classes=classes)
    monkeypatch.setattr(scorer, "facts", facts)
    logits = torch.tensor([probabilities]).clamp(min=1e-9).log()
    monkeypatch.setattr(scorer, "points", lambda cloud: logits)
    found = scorer.score_object("a lamp", *things(), ("category",))
    assert found == {"category": (category, None)}


def test_margins_are_against_captions_of_other_classes(scorer):
    """The bank's table and "no object": a mean of exponentials, not a sum."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, networks.EMBEDDING)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with torch.inference_mode():
        own = scorer.text(["a lamp"])[0].numpy()
        found = scorer.margins("a lamp", torch.from_numpy(vectors)).numpy()
    assert scorer.facts.bank == ["table", "lamp"]
    strangers = np.stack([scorer._bank[0].numpy(), scorer._none.numpy()])
    rivals = np.exp(embedded.SHARPNESS * vectors @ strangers.T).mean(axis=1)
    expected = embedded.SHARPNESS * vectors @ own - np.log(rivals)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_empty_object_is_scored(scorer):
    views = np.full((6, 224, 224, 3), 255, np.uint8)
    scores = scorer.score_object("a lamp", views, np.zeros((0, 3), np.float32), ROLES)
    assert scores["category"] == (0.0, None)
    assert scores["parts"] == (0.0, None)
    assert all(np.isfinite(value) for value, _ in scores.values())


def test_a_prompt_without_a_known_noun_takes_the_nearest_caption(scorer):
    for role, (value, _) in scorer.score_object("???", *things(), ROLES).items():
        assert np.isfinite(value), role


def test_files_that_are_missing_or_do_not_fit_are_named(weights, tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*\.json.*rebuild it with"):
        embedded.EmbeddedScorer(tmp_path / "scorers.safetensors")
    copy = tmp_path / "scorers.safetensors"
    facts = weights.with_suffix(".json").read_text()
    copy.with_suffix(".json").write_text(facts)
    with pytest.raises(UserError, match=r"cannot read .*\.safetensors"):
        embedded.EmbeddedScorer(copy)
    copy.write_bytes(weights.read_bytes())
    more = json.loads(facts) | {"classes": ["table", "lamp", "bed"]}
    copy.with_suffix(".json").write_text(json.dumps(more))
    with pytest.raises(UserError, match=r"points\.all.* of shape .*, expected"):
        embedded.EmbeddedScorer(copy)
    copy.with_suffix(".json").write_text(facts)
    tensors = load_file(weights)
    tensors["text.weight.weight"][:] = torch.nan
    save_file(tensors, copy)
    with pytest.raises(UserError, match=r"text\.weight\.weight with numbers that are"):
        embedded.EmbeddedScorer(copy)


def test_the_shipped_scorers_know_held_out_objects():
    """What was measured when they were trained; the numbers are docs/scorers.md's."""
    report = embedded.EmbeddedScorer(embedded.WEIGHTS).facts.report
    found = report["retrieval"]
    assert found["objects"] >= 70
    for way in ("image to text", "text to image"):
        assert found[f"{way}, top 5"] > 4 * found["chance, top 5"]
    means = report["roles"]
    for role in ROLES:
        assert means["right"][role] > means["other class"][role], role
        assert means["right"][role] > means["only dust"][role], role
        assert means["0% wrong tokens"][role] > means["50% wrong tokens"][role], role


def test_the_shipped_scorers_prefer_a_table_to_a_blob_for_a_table():
    scorer = embedded.EmbeddedScorer(embedded.WEIGHTS)
    rng = np.random.default_rng(0)
    top = rng.uniform((-0.5, -0.3, 0.2), (0.5, 0.3, 0.25), (1400, 3))
    corners = rng.choice([-1, 1], (648, 2)) * (0.45, 0.25)
    legs = np.concatenate([corners, rng.uniform(-0.25, 0.2, (648, 1))], axis=1)
    legs[:, :2] += rng.uniform(-0.03, 0.03, (648, 2))
    table = rng.permutation(np.concatenate([top, legs])).astype(np.float32)
    blob = rng.normal(size=(2048, 3))
    blob = (0.4 * blob / np.linalg.norm(blob, axis=1, keepdims=True)).astype(np.float32)
    views, _ = things()
    wanted = ("category", "parts")
    of_table = scorer.score_object(
        "a table with top and four legs", views, table, wanted
    )
    of_blob = scorer.score_object("a table with top and four legs", views, blob, wanted)
    assert of_table["category"] == (1.0, None)
    assert of_blob["category"] == (0.0, None)
    assert of_table["parts"][0] > of_blob["parts"][0] + 0.5
