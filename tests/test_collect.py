"""Batches: dynamic sampling, overlap, paradigms, as the run sees them."""

import dataclasses
import itertools
import json
import shutil
import signal
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ar3d_jax import collect, same_run, train
from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.collect import Collector
from ar3d_jax.config import (
    Config,
    LogConfig,
    ObjectiveConfig,
    RewardsConfig,
    RolloutConfig,
)
from ar3d_jax.config_rewards import JUDGES, HpsConfig
from ar3d_jax.errors import Diverged, UserError
from ar3d_jax.higrpo import update
from ar3d_jax.metrics import RunLog
from ar3d_jax.policy.sequence import Segment, join
from ar3d_jax.rewards.client import Scoring
from tests.small_run import PROMPTS, small_config

pytestmark = pytest.mark.usefixtures("egl")
EQUAL = [text for text in PROMPTS if zlib.crc32(text.encode()) % 2]


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    """Trains in this process; (changes) -> the lines, each with its compilations."""
    monkeypatch.setattr(Scoring, "sidecar_module", "tests.rewards.stand_in_sidecar")
    monkeypatch.setenv("STAND_IN_DIR", str(tmp_path))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event)
        if event == "/jax/core/compile/backend_compile_duration"
        else None
    )
    counts = []
    write = RunLog.write

    def counting(log, step, values):
        counts.append(len(compiled))
        write(log, step, values)

    monkeypatch.setattr(RunLog, "write", counting)

    def run(name="run", **changes):
        config = dataclasses.replace(small_config(weights), eval_every=0, **changes)
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        counts.clear()
        train.main(config, str(workdir))
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        for line, before, after in zip(found[1:], counts, counts[1:], strict=False):
            line["compilations"] = after - before
        return found

    yield run
    jax.monitoring.clear_event_listeners()


def test_every_update_is_full_and_nothing_is_compiled_anew(run, monkeypatch):
    """Half of the prompts teach nothing; others take their places."""
    assert 0 < len(EQUAL) < len(PROMPTS)
    monkeypatch.setenv("STAND_IN_SCORES", "equal")
    sampling = ObjectiveConfig(
        micro_batch=2,
        dynamic_sampling="no_spread",
        max_resample=6,
        resample_prompts=1,
    )
    lines = run(objective=sampling, steps=6)
    assert [line["groups_used"] for line in lines] == [2] * 6
    assert sum(line["groups_resampled"] for line in lines) >= 3
    assert all(line["resample_rounds"] >= line["groups_resampled"] for line in lines)
    # The first replaced group compiles its round and its merging; after that, nothing.
    first = next(i for i, line in enumerate(lines) if line["groups_resampled"])
    assert sum(line["compilations"] for line in lines[first + 2 :]) == 0
    plain = run("plain", steps=6)
    assert min(line["groups_used"] for line in plain) < 2

    # Until groups are replaced, both runs have sampled the same: that is `_all`.
    assert_all_is_what_was_sampled(lines[: first + 1], plain)
    kept, all_ = (lines[first][f"reward/refined{end}"] for end in ("", "_all"))
    assert kept != pytest.approx(all_, rel=1e-3)
    assert lines[first]["reward/refined_std_all"] < lines[first]["reward/refined_std"]


def assert_all_is_what_was_sampled(lines, plain):
    """`reward/*_all` of the lines are `reward/*` of a run that replaces nothing."""
    for line, of in zip(lines, plain, strict=False):
        for step in ("coarse", "refined"):
            for name in (f"reward/{step}", f"reward/{step}_std"):
                assert line[f"{name}_all"] == of[f"{name}_all"]
                assert of[f"{name}_all"] == pytest.approx(of[name], rel=1e-5)


def test_plans_that_are_cut_off_are_counted():
    """Of three: an end in the middle, an end at the last chance, and none at all."""
    places = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    valid = jnp.array(places, bool)
    shape = Segment.given(jnp.zeros((3, 5), jnp.int32), jnp.ones((3, 5), bool))
    plan = Segment.given(jnp.zeros((3, 4), jnp.int32), valid)
    both = join(shape, plan, shape, text=1, shape=2)
    assert collect._cut_off((both,)) == 1
    assert collect._cut_off((both, join(shape, shape=0))) == 1
    assert collect._cut_off((join(plan, shape, shape=1),)) == 0  # it was given


def test_a_batch_that_cannot_be_filled_stays_and_says_so(
    run, monkeypatch, capfd, tmp_path
):
    monkeypatch.setenv("STAND_IN_SCORES", "equal")
    (tmp_path / "equal.txt").write_text("\n".join(EQUAL))
    sampling = ObjectiveConfig(
        micro_batch=2, dynamic_sampling="no_spread", max_resample=1, resample_prompts=2
    )
    lines = run(objective=sampling, steps=2, prompts=str(tmp_path / "equal.txt"))
    assert [line["groups_used"] for line in lines] == [0, 0]
    assert [line["resample_rounds"] for line in lines] == [1, 1]
    assert not any(line["groups_resampled"] for line in lines)
    assert all(line["kl"] is None for line in lines)
    told = "".join(capfd.readouterr())
    for step in (0, 1):
        assert f"step {step}: no group has any spread of rewards" in told


def test_scoring_is_hidden_behind_the_next_rollout(run, monkeypatch):
    """With a sidecar that takes 2 s per batch, a step takes as long as the sidecar."""
    # 2 prompts x 2 rollouts x 2 steps: 8 objects, 2 s.
    monkeypatch.setenv("STAND_IN_SECONDS", "0.25")
    ahead_by_one = RolloutConfig(plan_tokens=4, prompt_tokens=(320,), ahead=1)
    base = {"steps": 8, "checkpoint_every": 100, "log": LogConfig(samples_every=100)}
    apart = run("apart", **base)
    ahead = run("ahead", **base, rollout=ahead_by_one)
    usual = slice(3, 7)  # without compiling, and without the last, which saves

    def mean(lines, key):
        values = [line[f"time/{key}"] for line in lines[usual]]
        return sum(values) / len(values)

    own = mean(ahead, "rollout") + mean(ahead, "codec") + mean(ahead, "update")
    assert mean(ahead, "total") < 1.15 * max(own, 2.0)
    assert mean(apart, "total") > mean(ahead, "total")


def test_coarse_scoring_is_hidden_under_the_refined_rollout(run, monkeypatch):
    """Refined shapes take longer than the coarse ones' scores: only theirs are left."""
    monkeypatch.setenv("STAND_IN_SECONDS", "0.25")  # 4 objects of each step: 1 s
    sample = collect.sample_steps

    def slowly(*args, **kwargs):
        steps = sample(*args, **kwargs)
        yield next(steps)
        time.sleep(1.5)
        yield from steps

    monkeypatch.setattr(collect, "sample_steps", slowly)
    lines = run(steps=4, checkpoint_every=100, log=LogConfig(samples_every=100))[1:]
    waits = [line["time/score_wait"] for line in lines]
    assert all(wait >= 0.9 for wait in waits)  # the refined objects' second
    assert min(waits) < 1.5  # and not the coarse ones', which would make it two


def test_the_parts_of_a_step_add_up_to_its_time(run):
    long_plans = RolloutConfig(plan_tokens=64, prompt_tokens=(320,))
    for line in run(steps=4, checkpoint_every=100, rollout=long_plans)[1:-1]:
        parts = ("rollout", "codec", "score_wait", "update")
        known = sum(line[f"time/{part}"] for part in parts)
        assert line["time/rollout"] > 0.05 * line["time/total"]
        assert 0.8 * line["time/total"] < known <= line["time/total"]


VARIANTS = {
    # One step without a plan, as everything that table 2 has, and off-policy.
    "grpo": {
        "paradigm": "grpo",
        "rewards": RewardsConfig(points=64, ensemble="coarse", normalise_scores=True),
        "rollout": RolloutConfig(plans=False, prompt_tokens=(8, 320)),
        "objective": ObjectiveConfig(
            micro_batch=2,
            aggregation="sequence",
            importance="sequence",
            updates_per_rollout=4,
            minibatches=2,
            correct_mismatch=2.0,
            dynamic_sampling="medium",
            band_low=0.3,
            band_high=0.7,
            max_resample=1,
            resample_prompts=1,
            kl_coef=0.0,
        ),
    },
    # Two steps, ahead of their scores, with a lambda that moves.
    "ahead": {
        "rollout": RolloutConfig(plan_tokens=4, prompt_tokens=(320,), ahead=1),
        "objective": ObjectiveConfig(
            micro_batch=2,
            dynamic_sampling="off",
            lam=0.0,
            lam_steps=10,
            dual_clip=3.0,
            advantage_std="batch",
        ),
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_of_any_algorithm_is_exact(run, name, monkeypatch):
    """Cut off at a checkpoint, with rollouts ahead and a band that has begun."""
    loaded = []
    load = train.load_models
    monkeypatch.setattr(
        train, "load_models", lambda *args: loaded.append(load(*args)) or loaded[-1]
    )
    changes = VARIANTS[name] | {"checkpoint_every": 15, "prompts_per_step": 2}
    changes |= {"log": LogConfig(samples_every=100)}

    orders = []  # one key per step, for the parts of its batch

    def minibatches(objective, prompts, key):
        orders.append(tuple(jax.random.key_data(key).tolist()))
        return update.minibatches(objective, prompts, key)

    monkeypatch.setattr(train, "minibatches", minibatches)

    def numbers(lines):
        unlike = ("time/", "tokens_per_s/", "compilations")
        return [
            {k: v for k, v in line.items() if not k.startswith(unlike)}
            for line in lines
        ]

    whole = run("whole", steps=18, **changes)
    run("cut", steps=15, **changes)
    resumed = run("cut", steps=18, **changes)
    assert numbers(resumed) == numbers(whole)
    assert len(set(orders[:18])) == 18
    assert orders[18:] == orders[:18]
    last = whole[-1]
    if name == "grpo":
        assert sum(line["groups_resampled"] for line in whole) > 0
        assert last["plan_tokens"] == 0
        assert {key for key in last if key.startswith("reward/")} == {
            "reward/shape_all",
            "reward/shape_std_all",
            "reward/shape",
            "reward/shape_std",
        }
        assert last["plans_truncated"] is last["plans_truncated/shape"] is None
        assert last["kl"] is None  # no reference, and nothing that could be one
        for models in loaded:
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(models.policy))
        assert last["ratio_max"] > 1.0001  # off-policy
    else:
        # Before a checkpoint, and at the end, nothing is sampled ahead.
        without = [line["step"] for line in whole if not line["time/rollout"]]
        assert without == [14, 17]
        assert max(line["ratio_max"] for line in whole[1:]) > 1.0001  # stale by one


def test_prompts_of_a_batch_ahead_come_again_after_a_stop(run, monkeypatch):
    """No prompt is left out and none is doubled, though the batch was not kept."""
    texts = {}
    launch = Collector.launch

    def recording(self, policy, step, clock, **kwargs):
        position = self._source.get_state()
        texts[step] = [prompt.text for prompt in self._source.take(2)]
        self._source.set_state(position)
        return launch(self, policy, step, clock, **kwargs)

    monkeypatch.setattr(Collector, "launch", recording)
    ahead = RolloutConfig(plan_tokens=4, prompt_tokens=(320,), ahead=1)
    changes = {"steps": 5, "checkpoint_every": 100, "rollout": ahead}
    run("whole", **changes)
    whole = dict(texts)
    assert len(whole) == 5
    texts.clear()

    def stopped(self, step, values):
        write(self, step, values)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        write = RunLog.write
        patch.setattr(RunLog, "write", stopped)
        assert len(run("cut", **changes)) == 2
    assert sorted(texts) == [0, 1, 2]  # the third was ahead
    del texts[2]
    assert len(run("cut", **changes)) == 5
    assert texts == whole


def test_a_scorer_is_switched_off_in_a_run_that_goes_on_and_on_again(run, capfd):
    """Its scores vanish from the metrics, and the run says what has changed."""
    on = RewardsConfig(points=8)
    coarse = dataclasses.replace(on.weights.coarse, category=0.0)
    off = dataclasses.replace(
        on, weights=dataclasses.replace(on.weights, coarse=coarse)
    )
    run(steps=1, rewards=on)
    run(steps=2, rewards=off)
    assert "weights.coarse.category is 0, was 1" in "".join(capfd.readouterr())
    lines = run(steps=3, rewards=on)
    assert "weights.coarse.category is 1, was 0" in "".join(capfd.readouterr())
    scored = ["score/coarse/category" in line for line in lines]
    assert scored == [True, False, True]
    assert [line["score/coarse/category_missing"] for line in lines[::2]] == [0, 0]
    assert lines[0]["time/score/category_p95"] > 0


ANSWERED = ("model", "max_tokens", "temperature", "top_p", "top_k")
OTHERS = {
    "hps_v2_1": ("weights",),
    "shapellm": ("weights", "encoder", "up"),
    **{judge: (*ANSWERED, "repetition_penalty", "seed") for judge in JUDGES},
    "": ("part_lists",),
}
SAME = {
    "hps_v2_1": ("device", "batch"),
    "qwen_vl": ("device", "batch", "in_flight", "request_s", "server"),
    "": ("backend", "deadline_s", "start_s", "threads", "remote"),
}


def changed(section, field):
    """The default config with another value of one field of the rewards."""
    other = {"up": "y", "server": "transformers", "backend": "remote"}
    rewards = RewardsConfig()
    model = getattr(rewards, section) if section else rewards
    value = getattr(model, field)
    if field == "remote":
        value = dataclasses.replace(value, servers=("gpu1:7071",))
    elif isinstance(value, str):
        value = other.get(field, "another")
    else:
        value = value + 1
    model = dataclasses.replace(model, **{field: value})
    if section:
        model = dataclasses.replace(rewards, **{section: model})
    return dataclasses.replace(Config(), rewards=model)


def test_a_run_that_goes_on_keeps_what_its_rewards_are():
    """And may change where, and how fast, they come to be."""
    mine = same_run.settings(Config())
    for fields, name in ((OTHERS, "kept"), (SAME, "free")):
        for section, names in fields.items():
            for field in names:
                differ = same_run.settings(changed(section, field)) != mine
                assert differ == (name == "kept"), (section, field)


@pytest.mark.parametrize(
    ("section", "changes", "free"),
    [
        ("rollout", {"gather": False, "stop_early": False, "ahead": 1}, True),
        ("rollout", {"plan_tokens": 5}, False),
        ("rollout", {"temperature": 0.5}, False),
        ("render", {"workers": 5}, True),
        ("render", {"background": "black"}, False),
        ("render", {"light": "camera"}, False),
        ("render", {"cameras": "hammersley"}, False),
    ],
)
def test_a_run_that_goes_on_keeps_its_rollouts_and_pictures(section, changes, free):
    """And may change what only memory and time depend on."""
    config = Config()
    other = dataclasses.replace(getattr(config, section), **changes)
    config = dataclasses.replace(config, **{section: other})
    assert (same_run.settings(config) == same_run.settings(Config())) == free


def test_another_reward_model_is_refused_in_a_run_that_goes_on(run):
    run(steps=1)
    other = RewardsConfig(points=64, hps_v2_1=HpsConfig(weights="mine.pt"))
    with pytest.raises(
        UserError, match=r"hps_v2_1\.weights='xswu/HPSv2'; this run has"
    ):
        run(steps=2, rewards=other)


def test_other_contents_under_the_same_path_are_refused(run, weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "weights")
    config = small_config(copy)
    paths = {
        "prompts": config.prompts,
        "policy": config.policy,
        "codec": config.codec,
    }
    run(steps=1, **paths)
    assert len(run(steps=2, **paths)) == 2
    files = {
        "prompts": copy / "prompts.txt",
        "policy.weights": copy / "policy" / "tokenizer_config.json",
        "codec.weights": copy / "codec.safetensors",
    }
    for field, file in files.items():
        before = file.read_bytes()
        if file.suffix == ".safetensors":
            file.write_bytes(before[:-4] + b"\0\0\0\0")
        else:
            file.write_bytes(before + b"\n")
        with pytest.raises(UserError, match=rf"{field}=.* held something else .*--wor"):
            run(steps=3, **paths)
        file.write_bytes(before)
    assert len(run(steps=3, **paths)) == 3


def test_a_gradient_that_stays_broken_ends_the_run(run, tmp_path, monkeypatch):
    """After its state was saved: five steps, though none was to be saved."""
    update = train.update_step

    def broken(*args, **kwargs):
        state, metrics = update(*args, **kwargs)
        return state, metrics | {"grad_norm": np.float32(np.nan)}

    monkeypatch.setattr(train, "update_step", broken)
    with pytest.raises(Diverged, match=r"5 steps in a row.*lower optim\.lr"):
        run(steps=20, checkpoint_every=100)
    kept = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["5"]
    with pytest.raises(Diverged):  # also where it would be complete
        run(steps=10, checkpoint_every=100)


def test_weights_that_are_not_finite_are_never_saved(run, tmp_path, monkeypatch):
    update, calls = train.update_step, []

    def wild(*args, **kwargs):
        state, metrics = update(*args, **kwargs)
        calls.append(np.nan if len(calls) == 1 else 1.0)
        policy = jax.tree.map(lambda x: x * calls[-1], state.policy)
        return dataclasses.replace(state, policy=policy), metrics

    monkeypatch.setattr(train, "update_step", wild)
    with pytest.raises(Diverged, match="weights are not finite after 2 steps"):
        run(steps=4, checkpoint_every=1)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]


def test_a_run_of_an_older_version_goes_on(run, monkeypatch):
    """Which had saved less of what rewards are."""
    with monkeypatch.context() as older:
        known = [n for n in same_run.SAME_RUN if not n.startswith("rewards.hps_v2_1")]
        unknown, save = ("weights", "scorers"), Checkpoints.save
        older.setattr(same_run, "SAME_RUN", tuple(known))
        older.setattr(
            Checkpoints,
            "save",
            lambda self, state, step, extras: save(
                self, state, step, {k: extras[k] for k in extras if k not in unknown}
            ),
        )
        run(steps=1)
    assert [line["step"] for line in run(steps=2)] == [0, 1]


def test_a_scorer_of_another_revision_is_said_when_it_comes_back(
    run, monkeypatch, capfd
):
    """Also where it was away meanwhile. What judges count is on the lines."""
    about = Scoring.about.fget

    def report(revision):
        monkeypatch.setattr(
            Scoring,
            "about",
            property(
                lambda self: {
                    name: row | {"revision": revision}
                    for name, row in about(self).items()
                    if revision
                }
            ),
        )

    counts = itertools.count()
    monkeypatch.setattr(
        Scoring, "counters", property(lambda self: {"judge/a/sent": next(counts) * 2.0})
    )
    for step, revision in enumerate(("1", "", "1")):
        report(revision)
        lines = run(steps=step + 1)
    assert "another scorer" not in "".join(capfd.readouterr())
    report("2")
    run(steps=4)
    told = "".join(capfd.readouterr())
    assert "another scorer: embedded is obedient (2), was obedient (1)\n" in told
    assert [line["judge/a/sent"] for line in lines] == [2.0] * 3


def test_missing_scores_end_a_run_that_wants_it_with_all_that_it_learnt(run, tmp_path):
    (tmp_path / "nan.txt").write_text("nan\na chair\n")
    strict = RewardsConfig(points=8, on_failure="stop", stop_after=2)
    changes = {"prompts": str(tmp_path / "nan.txt"), "steps": 4, "checkpoint_every": 4}
    with pytest.raises(UserError, match="missing in 2 steps in a row"):
        run(rewards=strict, **changes)
    lines = run(rewards=dataclasses.replace(strict, on_failure="mask"), **changes)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]  # went on after the second
    assert all(line["score/refined/parts_missing"] == 0.5 for line in lines)
    assert all(line["groups_used"] == 1 for line in lines)


def test_a_run_that_is_complete_ends_well_whatever_is_missing(run, tmp_path):
    (tmp_path / "nan.txt").write_text("nan\na chair\n")
    strict = RewardsConfig(points=8, on_failure="stop", stop_after=2)
    changes = {"prompts": str(tmp_path / "nan.txt"), "checkpoint_every": 4}
    lines = run(rewards=strict, steps=2, **changes)
    assert [line["score/refined/parts_missing"] for line in lines] == [0.5, 0.5]
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_reasons_are_counted_by_kind_not_by_what_was_answered():
    reasons = {
        "category": [None, "unreadable: 'a'", "late"],
        "quality": ["unreadable: 'b'", "late", "unreadable: c: d"],
    }
    line = "5 scores are missing; 3 such as: unreadable: 'a'"
    assert collect.reasons_in_words(reasons) == line
    assert collect.reasons_in_words({"category": [None], "quality": []}) is None
