"""Held-out evaluation: when, of what, what is written, what a resume leaves of it."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from ar3d_jax import held_out
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.generate import load_trained
from ar3d_jax.models import load_models
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.sharding import make_mesh
from tests.small_run import PROMPTS, small_config


class Judge(Scoring):
    """Scores objects with the number that is hidden in their first voxel."""

    def __init__(self):
        self.asked = []

    def submit(self, logits, prompts, step, *, keep_views=False):
        self.asked += prompts
        assert step == "judge"
        return logits[:, 0, 0, 0]

    def collect(self, ticket):
        reasons = [None if np.isfinite(x) else "no idea" for x in ticket]
        return {"judge": ticket.astype(np.float32)}, {"judge": reasons}


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    """Evaluations whose scores are `scores[step]`, or a function of the prompt."""
    config = dataclasses.replace(small_config(weights), steps=5)
    models = load_models(config, make_mesh())
    state = types.SimpleNamespace(
        config=config, models=models, folder=tmp_path, said=[], keys=[], judge=Judge()
    )
    state.scores = lambda step, prompt, sample: 10.0

    def sample_steps(models, policy, texts, key, cfg, *, paradigm, group_size):
        assert len(texts) == config.prompts_per_step
        state.keys.append(jax.random.key_data(key).tolist())
        rows = [(text, sample) for text in texts for sample in range(group_size)]
        for name in ("coarse", "refined"):
            yield types.SimpleNamespace(name=name, shape=(name, rows))

    def decode_rows(codec, sequence):
        step, rows = sequence
        logits = np.full((len(rows), 8, 8, 8), -1.0, np.float32)
        logits[:, 2:4, 2:4, 2:4] = 1.0
        logits[:, 0, 0, 0] = [state.scores(step, *row) for row in rows]
        return logits

    monkeypatch.setattr(held_out, "sample_steps", sample_steps)
    monkeypatch.setattr(held_out, "shape_codes", lambda sequence, vocab: sequence)
    monkeypatch.setattr(held_out, "decode_rows", decode_rows)

    def opened(first_step=0, **changes):
        return held_out.held_out(
            dataclasses.replace(config, **changes),
            models,
            state.judge,
            state.said.append,
            tmp_path,
            key=jax.random.key(0),
            first_step=first_step,
        )

    state.open = opened
    return state


def records(folder):
    text = (folder / "evaluations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def best(folder):
    return [int(path.name) for path in (folder / "best").iterdir()]


def test_scores_are_means_over_samples_then_prompts(run):
    run.scores = lambda step, prompt, sample: (
        float("nan")
        if (prompt, sample) == (PROMPTS[1], 1)
        else PROMPTS.index(prompt) + 10 * sample + 100 * (step == "refined")
    )
    with run.open() as evaluation:
        metrics = evaluation.after(0, run.models.policy)
    # Three prompts of two samples; of the second prompt one sample is missing.
    expected = np.mean([(0 + 10) / 2, 1, (2 + 12) / 2])
    assert metrics["eval/coarse/clip_score"] == pytest.approx(expected)
    assert metrics["eval/refined/clip_score"] == pytest.approx(100 + expected)
    assert metrics["eval/missing"] == 2
    (record,) = records(run.folder)
    assert record["step"] == 0
    assert list(record["prompts"].values()) == [
        {"coarse": 5.0, "refined": 105.0},
        {"coarse": 1.0, "refined": 101.0},
        {"coarse": 7.0, "refined": 107.0},
    ]
    assert {k: v for k, v in record.items() if k.startswith("eval/")} == metrics
    # What fills a batch up is not judged.
    assert sorted(run.judge.asked) == sorted(2 * 2 * list(PROMPTS[:3]))
    assert sum("no idea" in line for line in run.said) == 2


def test_a_missing_score_everywhere_is_null(run):
    run.scores = lambda step, prompt, sample: float("nan")
    with run.open() as evaluation:
        metrics = evaluation.after(0, run.models.policy)
    assert np.isnan(metrics["eval/refined/clip_score"])
    assert records(run.folder)[0]["eval/refined/clip_score"] is None
    assert not best(run.folder)


def test_every_so_often_and_at_the_end_with_the_same_keys(run):
    with run.open() as evaluation:
        due = [bool(evaluation.after(step, run.models.policy)) for step in range(6)]
    assert due == [True, False, True, False, True, True]
    keys = [tuple(map(tuple, np.reshape(run.keys, (4, 2, -1))[i])) for i in range(4)]
    assert len(set(keys)) == 1
    assert len(set(keys[0])) == 2  # another key for each batch


def test_off_leaves_nothing(run):
    with run.open(eval_every=0) as evaluation:
        assert evaluation.after(0, run.models.policy) == {}
        evaluation.wait()
    assert not list(run.folder.iterdir())


def judged(run, first_step, scores):
    """Evaluates at the steps of `scores`, which are the means."""
    with run.open(first_step, steps=100) as evaluation:
        for step, score in scores.items():
            run.scores = lambda *_, score=score: score
            policy = jax.tree.map(lambda x, step=step: x + step, run.models.policy)
            evaluation.after(step, policy)


def test_the_best_is_kept_and_found(run):
    judged(run, 0, {0: 5.0, 2: 9.0, 4: 7.0})
    assert best(run.folder) == [2]
    found = load_trained(
        run.models.policy, run.config.lora, run.folder, best=True
    ).embed
    np.testing.assert_allclose(found, run.models.policy.embed + 2, rtol=1e-6)


def test_the_best_is_that_of_the_refined_step(run):
    """The coarse shapes of another step are better; nobody gets to see these."""
    coarse, refined = {0: 9.0, 2: 5.0, 4: 8.0}, {0: 5.0, 2: 9.0, 4: 7.0}
    with run.open(steps=100) as evaluation:
        for step in coarse:
            run.scores = lambda name, *_, step=step: (
                coarse[step] if name == "coarse" else refined[step]
            )
            evaluation.after(step, run.models.policy)
    assert best(run.folder) == [2]
    with Checkpoints(run.folder / "best", keep=1, settings={}) as checkpoints:
        restored = checkpoints.restore_latest({"policy": run.models.policy})
    assert restored is not None
    assert restored[2] == {"score": 9.0}


def test_a_run_that_goes_on_keeps_what_was_before_and_nothing_after(run):
    judged(run, 0, {0: 5.0, 2: 9.0, 4: 7.0})
    judged(run, 4, {6: 8.0})  # not better than that of step 2
    assert [record["step"] for record in records(run.folder)] == [0, 2, 4, 6]
    assert best(run.folder) == [2]
    judged(run, 1, {2: 6.0})  # from before the best one
    assert [record["step"] for record in records(run.folder)] == [0, 2]
    assert best(run.folder) == [2]
    with Checkpoints(run.folder / "best", keep=1, settings={}) as checkpoints:
        policy = {"policy": run.models.policy}
        restored = checkpoints.restore_latest(policy)
    assert restored is not None
    assert restored[2] == {"score": 6.0}  # written anew


def test_a_run_that_begins_anew_does_so_here_too(run):
    judged(run, 0, {0: 5.0, 2: 9.0})
    with (run.folder / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 4, "ev')  # a kill
    judged(run, 0, {0: 4.0})
    assert [record["step"] for record in records(run.folder)] == [0]
    assert best(run.folder) == [0]


def test_numbers_on_shapes_by_hand():
    voxels = np.zeros((4, 8, 8, 8), bool)
    voxels[0, :2, :2, :2] = voxels[1, 1:3, :2, :2] = True  # 8 each, 4 in common
    voxels[2, 0, 0, 0] = voxels[2, 1, 1, 1] = voxels[2, 5, 5, 5] = True  # corners touch
    numbers = held_out._shape_numbers(voxels, 2)
    np.testing.assert_allclose(numbers["diversity"], [1 / 3, 1 / 3, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(numbers["components"], [1, 1, 2, 0])
    assert (held_out._shape_numbers(voxels[3:].repeat(2, 0), 2)["diversity"] == 1).all()
