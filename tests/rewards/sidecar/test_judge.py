"""The judge: what it sees and reads, its file, and that it is not the scorers again."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ar3d_jax.config import RewardsConfig
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import judge
from ar3d_jax.rewards.sidecar.scorers import Subject, embedded, networks
from ar3d_jax.rewards.sidecar.scorers import judge as scorer

WHITE = np.full((6, 224, 224, 3), 255, np.uint8)

POINTS, COLOURS = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return judge.Judge(judge.ViewEncoder(), judge.TextEncoder(), {"steps": 0})


@pytest.fixture(scope="module")
def shipped():
    return judge.Judge.load()


def views(seed=0, size=224):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (6, size, size, 3)).astype(np.uint8)


def test_any_size_of_picture_becomes_ink_on_nothing():
    for size in (112, 224, 448, 300):
        page = np.full((1, size, size, 3), 255, np.uint8)
        assert not judge.ink(page).any()
        assert (judge.ink(0 * page) == 1).all()
        assert judge.ink(page).shape == (1, 1, judge.SIZE, judge.SIZE)


def test_trigrams_are_the_same_in_every_process():
    assert judge.trigram_rows("bed") == (694, 3302, 3971, 618)
    chair, chairs = judge.trigram_rows("chair"), judge.trigram_rows("chairs")
    assert len(set(chair) & set(chairs)) == 5  # all but the ending
    assert not set(chair) & set(judge.trigram_rows("bowl"))


def test_vectors_are_unit_and_the_same_alone_and_in_company(untrained):
    pictures = views()
    together = untrained.embed_views(pictures)
    assert together.shape == (6, judge.DIM)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alone = untrained.embed_views(pictures[2:3])[0]
    np.testing.assert_allclose(alone, together[2], atol=1e-5)
    texts = ["a tall chair, with arms", "lamp", "?", "", "word " * 500]
    with torch.inference_mode():
        in_company = untrained.text(texts).numpy()
    for text, vector in zip(texts, in_company, strict=True):
        alone = untrained.embed_text(text)
        assert np.linalg.norm(alone) == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(alone, vector, atol=1e-5)


def test_the_order_of_words_counts(shipped):
    """Which it does not for the scorers' text encoder."""
    one, other = "a red table with a lamp", "a red lamp with a table"
    assert shipped.embed_text(one) @ shipped.embed_text(other) < 0.95
    text = networks.TextEncoder().eval()
    with torch.inference_mode():
        first, second = text([one, other])
    assert float(first @ second) == pytest.approx(1, abs=1e-5)


def test_what_is_saved_is_read(untrained, tmp_path):
    path = tmp_path / "judge.safetensors"
    untrained.save(path)
    again = judge.Judge.load(path)
    assert again.report == {"steps": 0}
    before, after = untrained.embed_views(views()), again.embed_views(views())
    np.testing.assert_allclose(before, after, atol=0.01)  # half precision
    again.save(tmp_path / "second.safetensors")
    assert (tmp_path / "second.safetensors").read_bytes() == path.read_bytes()


def test_files_that_are_missing_or_do_not_fit_are_named(tmp_path):
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UserError, match=r"cannot read .*rebuild it with"):
        judge.Judge.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"cannot read .*rebuild it with"):
        judge.Judge.load(path)
    path.write_bytes(embedded.WEIGHTS.read_bytes())
    with pytest.raises(UserError, match=r"does not fit .*rebuild it with"):
        judge.Judge.load(path)
    tensors = load_file(judge.WEIGHTS)
    tensors["text.table.weight"][:] = 0
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"text\.table\.weight that is all zeros; reb"):
        judge.Judge.load(path)


def test_the_score_is_the_mean_cosine_in_hundredths(shipped):
    loaded, pictures = scorer.load(RewardsConfig()), views()
    subject = Subject("a chair", pictures, POINTS, COLOURS, ("judge",))
    (found,) = loaded.score([subject])
    (score,) = found.values()
    cosines = shipped.embed_views(pictures) @ shipped.embed_text("a chair")
    assert score == (pytest.approx(100 * cosines.mean(), abs=1e-3), None)
    assert loaded.score([subject] * 2) == [{"judge": score}] * 2


def test_an_empty_object_is_a_bad_one(shipped):
    """It gets what white pictures give, far below what an object gets."""
    loaded = scorer.load(RewardsConfig())
    subject = Subject("a chair", WHITE, POINTS, COLOURS, ("judge",))
    ((value, reason),) = loaded.score([subject])[0].values()
    assert reason is None
    assert value < shipped.report["clip_score"]["right"] / 2


def test_the_shipped_judge_knows_held_out_objects(shipped):
    """What was measured when it was trained; the numbers are docs/scorers.md's."""
    found, means = shipped.report["retrieval"], shipped.report["clip_score"]
    assert found["objects"] >= 70
    for way in ("image to text", "text to image"):
        assert found[f"{way}, top 5"] > 4 * found["chance, top 5"]
    assert means["right"] > means["columns 25%"] > means["columns 50%"]
    assert means["columns 50%"] > max(means["only dust"], means["blob"])
    assert means["right"] > means["other class"]
    assert means["0% wrong tokens"] > means["25% wrong tokens"]
    assert means["25% wrong tokens"] > means["50% wrong tokens"]
