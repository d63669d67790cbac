"""What a run leaves of its numbers: whole lines, no torch, nothing twice."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ar3d_jax.errors import UserError
from ar3d_jax.metrics import RunLog, run_names, run_shown

NAMES = ("loss", "score/*", "rate")

STEPS = ("coarse", "refined")
RUN_NAMES = run_names(STEPS)


def open_log(folder, first_step=0, **kwargs):
    return RunLog(
        folder, names=NAMES, shown=("loss",), steps=5, first_step=first_step, **kwargs
    )


def read(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_per_step_with_null_for_nan(tmp_path):
    with open_log(tmp_path) as log:
        log.write(0, {"loss": np.float32(0.1), "rate": 3, "score/a": np.nan})
        log.write(1, {"loss": float("inf"), "rate": np.int32(4)})
    assert read(tmp_path) == [
        {"step": 0, "loss": float(np.float32(0.1)), "rate": 3, "score/a": None},
        {"step": 1, "loss": None, "rate": 4},
    ]


def test_a_line_is_on_the_disk_when_write_returns(tmp_path):
    script = (
        "import sys, os; from pathlib import Path; sys.path.insert(0, '.')\n"
        "from ar3d_jax.metrics import RunLog\n"
        "log = RunLog(Path(sys.argv[1]), names=('loss',), shown=(), steps=1)\n"
        "log.write(0, {'loss': 2.5})\n"
        "assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert read(tmp_path) == [{"step": 0, "loss": 2.5}]
    assert events(tmp_path).Scalars("loss")[0].value == 2.5


def test_resume_gives_the_file_of_an_uninterrupted_run(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, starts in ((whole, [0]), (cut, [0, 2])):
        folder.mkdir()
        for start in starts:
            with open_log(folder, first_step=start) as log:
                for step in range(start, 5):
                    log.write(step, {"loss": step / 3, "rate": 1})
    assert (whole / "metrics.jsonl").read_bytes() == (
        cut / "metrics.jsonl"
    ).read_bytes()


@pytest.mark.parametrize(
    "rest", ['{"step": 1, "lo', '{"step": 1}', "\x00\x00\n", "[]\n"]
)
def test_what_a_kill_left_of_a_line_is_dropped(tmp_path, rest):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n' + rest)
    with open_log(tmp_path, first_step=2):
        assert read(tmp_path) == [{"step": 0}]


def test_starting_over_starts_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with open_log(tmp_path):
        assert read(tmp_path) == []


@pytest.mark.parametrize(
    ("values", "wrong"),
    [({"loss": 1, "rate": 1, "los": 2}, "los"), ({"loss": 1, "score/a": 1}, "rate")],
)
def test_names_are_the_contract(tmp_path, values, wrong):
    with open_log(tmp_path) as log, pytest.raises(ValueError, match=rf"\['{wrong}'\]"):
        log.write(0, values)
    assert read(tmp_path) == []


def test_the_contract_of_a_higrpo_line(tmp_path):
    values = {name: 0.0 for name in RUN_NAMES if not name.endswith("*")}
    values |= {"score/coarse/alignment": 1.0, "eval/reward": 1.0}
    with RunLog(tmp_path, names=RUN_NAMES, shown=run_shown(STEPS), steps=1) as log:
        log.write(0, values)
    assert read(tmp_path) == [{"step": 0, **values}]


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_reads_scalars_pictures_and_texts(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    with open_log(tmp_path) as log:
        log.write(0, {"loss": 0.5, "rate": np.nan, "score/a": 1})
        log.write_picture(0, "views", picture)
        log.write_text(0, "plan", "a *red* chair")
    seen = events(tmp_path)
    assert seen.Tags()["scalars"] == ["loss", "score/a"]
    assert (seen.Images("views")[0].width, seen.Images("views")[0].height) == (6, 4)
    assert seen.Tensors("plan")[0].tensor_proto.string_val == [b"a *red* chair"]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    for start in (0, 2):
        with open_log(tmp_path, first_step=start) as log:
            for step in range(start, 4):
                log.write(step, {"loss": start + step, "rate": 0})
        for path in tmp_path.glob("events*"):  # the next start is another second
            os.rename(path, path.with_name(path.name.replace(".1", f".{start}1", 1)))
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss")] == [
        (0, 0),
        (1, 1),
        (2, 4),
        (3, 5),
    ]


def test_the_progress_bar_shows_steps_rate_and_loss(tmp_path, capsys):
    with open_log(tmp_path, first_step=3, tensorboard=False) as log:
        log.write(3, {"loss": 0.25, "rate": 1})
        log.write(4, {"loss": 0.125, "rate": 1})
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "loss=0.125" in shown
    assert "step/s" in shown or "s/step" in shown
    assert not list(tmp_path.glob("events*"))


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
    with open("/dev/full", "ab", buffering=0) as full, open_log(tmp_path) as log:
        log._lines.close()
        monkeypatch.setattr(log._lines, "_file", full)
        with pytest.raises(UserError, match="No space left on device; free some space"):
            log.write(0, {"loss": 1, "rate": 1})


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="choose a folder that is there"):
        open_log(tmp_path / "missing")
