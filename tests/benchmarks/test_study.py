"""The rows of the paper's tables: each is a command line that means what it says."""

import shlex
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from scipy import stats

from ar3d_jax import command
from ar3d_jax.config import Config, to_dict
from ar3d_jax.data.prompts import PromptSource
from ar3d_jax.errors import UserError
from ar3d_jax.rewards.ensemble import COARSE_DIVISORS, REFINED_DIVISORS
from ar3d_jax.rewards.sidecar.scorers import embedded
from benchmarks import study, study_rows
from benchmarks.study_rows import FIGURES, TABLES

ROOT = Path(__file__).parents[2]
ROWS = [
    (f"{kind}{number}-{row.name}", row)
    for kind, some in (("table", TABLES), ("figure", FIGURES))
    for number, rows in some.items()
    for row in rows
]
TRAINED = [pytest.param(row, id=name) for name, row in ROWS if row.steps]


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def scorer():
    return embedded.EmbeddedScorer(embedded.WEIGHTS)


def parsed(*words):
    config, _ = command.parse_config(
        ["train", *words], Config, "configs/higrpo.py", "runs/higrpo"
    )
    return config


def config_of(row):
    words = shlex.split(row.command("runs/row"))
    assert words[:3] == ["python", "-m", "ar3d_jax.train"]
    assert words[-1] == "--workdir=runs/row"
    return parsed(*words[3:])


@pytest.mark.parametrize("row", TRAINED)
def test_a_row_sets_what_it_names_and_nothing_else(row):
    config = to_dict(config_of(row))
    loaded = command.load_config_file(row.config).to_dict()
    for field, value in row.fields.items():
        *path, name = field.split(".")
        found, default = config, loaded
        for part in path:
            found, default = found[part], default[part]
        assert found.pop(name) == value, field
        default.pop(name)
    assert config.pop("steps") == row.steps * loaded.pop("steps")
    assert config == loaded


@pytest.mark.parametrize("row", TRAINED)
def test_every_role_that_a_row_rewards_has_a_scorer(row, scorer):
    config = config_of(row)
    steps = {config.rewards.ensemble_of(step) for step in config.step_names}
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (6, 112, 112, 3), dtype=np.uint8)
    points = rng.uniform(-0.5, 0.5, (2048, 3)).astype(np.float32)
    for step in steps:
        roles = config.rewards.roles(step)
        divisors = COARSE_DIVISORS if step == "coarse" else REFINED_DIVISORS
        assert set(roles) <= set(divisors)
        found = scorer.score_object("a lamp", views, points, roles)
        assert all(np.isfinite(found[role][0]) for role in roles)


def rewarded(table, name):
    (row,) = (row for row in TABLES[table] if row.name == name)
    config = config_of(row)
    return {
        step: config.rewards.roles(config.rewards.ensemble_of(step))
        for step in config.step_names
    }


def test_rows_by_hand():
    """The ticks of the paper's tables, read off the print."""
    last = ("preference", "alignment", "consistency_shape")
    assert rewarded("1", "all") == {"shape": last}
    assert rewarded("1", "hps_lmm") == {"shape": ("preference", "align_lmm")}
    assert rewarded("2", "grpo") == {"shape": last}
    assert rewarded("3", "with") == {"shape": ("preference",)}
    assert rewarded("6", "refined") == {
        "shape": ("preference", "quality", "consistency", "parts")
    }
    assert rewarded("6", "higrpo") == {
        "coarse": ("preference", "alignment", "category"),
        "refined": ("preference", "quality", "consistency", "parts"),
    }
    first, *_, full = TABLES["5"]
    assert config_of(first).rewards.roles("coarse") == ()
    assert config_of(first).rewards.roles("refined") == ("preference", "quality")
    assert config_of(full) == parsed("--config=configs/higrpo.py")  # AR3D-R1


def test_the_options_of_table_2_by_hand():
    options = {row.name: config_of(row).objective for row in TABLES["2"]}
    assert {name: o.dynamic_sampling for name, o in options.items()} == {
        "grpo": "off",
        **dict.fromkeys(("dynamic", "gspo", "token", "no_kl", "decoupled"), "medium"),
    }
    aggregations = [o.aggregation for o in options.values()]
    assert aggregations == ["sequence"] * 3 + ["token_batch"] * 3
    assert [o.importance for o in options.values()].count("sequence") == 1
    assert options["gspo"].importance == "sequence"
    assert [o.kl_coef for o in options.values()] == [0.01] * 4 + [0.0, 0.01]
    assert [o.clip_high for o in options.values()] == [0.2] * 5 + [0.28]
    assert {o.clip_low for o in options.values()} == {0.2}


def test_the_same_training_is_made_once():
    """Rows of different tables that resolve alike share their runs."""

    def key(row):
        values = types.SimpleNamespace(
            steps=60, prompts_per_step=4, updates_per_rollout=1, minibatches=1
        )
        return study.key_of(row, study.run_fields(row, values), "tiny", 0)

    rows = {name: row for name, row in ROWS}
    same = [
        ("table6-higrpo", "tableown-higrpo"),
        ("table6-plan", "table2-grpo"),
        ("table1-all", "table2-grpo"),
    ]
    assert all(key(rows[a]) == key(rows[b]) for a, b in same)
    different = {key(row) for name, row in ROWS if name.startswith("table2")}
    assert len(different) == 6


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_a_study_with_minibatches_has_configs_that_are_allowed(minibatches):
    values = types.SimpleNamespace(
        steps=60, prompts_per_step=4, updates_per_rollout=4, minibatches=minibatches
    )
    for row in TABLES["2"]:
        fields = study.run_fields(row, values)
        words = [f"--config.{name}={value}" for name, value in fields.items()]
        config = parsed(f"--config={row.config}", *words)
        assert config.objective.updates_per_rollout == 4
        assert config.steps == 60


def test_the_docs_list_every_command():
    text = (ROOT / "docs" / "study_commands.md").read_text()
    assert text == study_rows.as_markdown()
    commands = [line for line in text.splitlines() if line.startswith("python -m ")]
    assert len(commands) == len(ROWS)
    workdirs = {line.split("--workdir=")[1] for line in commands}
    assert len(workdirs) == len(ROWS)  # a run in another's folder would go on there
    for name, row in ROWS:
        start, _ = row.command("/DIR").split("/DIR")
        assert any(line.startswith(start) for line in commands), name


def test_figure_3_sees_its_prompts_more_than_once():
    """Else more data would be the same data."""
    shares = [row.fields["data.share"] for row in FIGURES["3"]]
    assert shares == [0.0333, 0.05, 0.0667, 0.1, 0.1, 0.1]
    prompts = len(PromptSource("catalog", batch=4, seed=0).rows)
    assert prompts * max(shares) < 60 * 4


def test_the_smallest_detectable_effect_is_that_of_a_power_analysis():
    """Simulated: at that difference, four tests of five are significant."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 2, (4000, 6, 5))
    found = [study.detectable(some.tolist()) for some in rows]
    effect = float(np.median(found))
    rows[:, 1] += effect
    hits = []
    for some in rows:
        error, degrees = study.standard_error(some.tolist())
        apart = abs(some[1].mean() - some[0].mean())
        hits.append(apart > stats.t.ppf(0.975, degrees) * error)
    assert np.mean(hits) == pytest.approx(0.8, abs=0.03)
    assert np.isnan(study.detectable([[1.0], [2.0]]))


def test_a_table_of_one_seed_shows_no_errors():
    rows = TABLES["2"][:2]
    found = {row.name: [dict.fromkeys(study.METRICS, 1.0)] for row in rows}
    first, *_, last = study.table(rows, found)
    assert first.startswith("One seed: ")
    assert last.endswith("| 1.00 | 1.000 | 1.000 | 1.000 | +0.00 |")


@pytest.fixture
def study_of(tmp_path):
    """Runs `study.main` with flags, in the test's folder."""

    def call(*words):
        if "table" not in flags.FLAGS:
            study._define_flags()
        flags.FLAGS.unparse_flags()
        for name in ("table", "figure", "results", "workdir", "seeds", "minibatches"):
            flags.FLAGS[name].unparse()
        places = [f"--results={tmp_path / 'r.jsonl'}", f"--workdir={tmp_path / 'w'}"]
        flags.FLAGS(["study", *places, *words])
        study.main([])

    return call


def result(seed, clip):
    return {
        "seed": seed,
        "clip": clip,
        "kd": 0.1,
        "iou": 0.2,
        "overlap": 0.3,
        "rewards": {"reward/shape": [1.0, None, 3.0]},
        "judge": {"0": 40.0, "3": clip},
    }


def test_finished_runs_are_not_made_again(study_of, tmp_path, monkeypatch, capsys):
    """Killed after the second run, the same command makes the others."""
    made = []

    def one_run(row, fields, preset, seed, folder):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((row.name, seed))
        return result(seed, 42.0 + seed)

    monkeypatch.setattr(study, "one_run", one_run)
    with pytest.raises(KeyboardInterrupt):
        study_of("--table=3", "--seeds=2")
    assert made == [("base_direct", 0), ("base", 0)]
    monkeypatch.setattr(
        study,
        "one_run",
        lambda row, fields, preset, seed, folder: made.append((row.name, seed))
        or result(seed, 43.0 + seed),
    )
    study_of("--table=3", "--seeds=2")
    assert made[2:] == [("without", 0), ("with", 0), ("without", 1), ("with", 1)]
    told = capsys.readouterr().out
    assert "| GRPO with plan | 24 | - | 43.50 ± 0.50 | 0.100 ± 0.000 |" in told
    folder = tmp_path / "w"
    assert (folder / "table_3_updates_1.md").read_text() in told
    assert (folder / "table_3_updates_1.png").stat().st_size > 10_000
    lines = (folder / "table_3_updates_1.csv").read_text().splitlines()
    assert lines[0] == "row,metric,seeds,mean,standard_error,paper"
    assert "GRPO with plan,clip,2,43.5,0.5,24.0" in lines
    assert '"before training, plan and shape",clip,1,42.0,,22.7' in lines


def test_a_study_says_what_it_cannot_do_before_it_trains(study_of, tmp_path):
    (tmp_path / "file").touch()
    for words, message in (
        ((), "expected one of --table="),
        (("--table=9",), "no such table or figure: 9; expected 1, 2, 3"),
        (("--table=3", "--minibatches=4"), "--minibatches=4 with --updates_per_rollo"),
        (("--table=3", f"--results={tmp_path}"), "cannot write .*; choose a file"),
        (("--table=3", f"--workdir={tmp_path}/file"), "cannot write .*/file"),
    ):
        with pytest.raises(UserError, match=message):
            study_of(*words)
    (tmp_path / "r.jsonl").write_text('{"key": "a"}\n{"key": "b", "cl')
    with pytest.raises(UserError, match=r"line 2, is not a finished run .*: remove it"):
        study_of("--table=3")


def test_a_training_that_was_stopped_is_no_result(tmp_path, monkeypatch):
    """A signal ends a training with status 0, before its last step."""
    commands = []

    def command_of(module, arguments, folder):
        commands.append(module)
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')

    monkeypatch.setattr(study, "_command", command_of)
    row = TABLES["3"][-1]
    with pytest.raises(UserError, match="run was stopped after 2 steps: start again"):
        study.one_run(row, {"steps": 3}, "tiny", 0, tmp_path)
    assert commands == ["train"]
