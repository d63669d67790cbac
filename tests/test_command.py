"""Command lines, good and bad."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from ar3d_jax.command import alone_in, load_config_file, parse, parse_config
from ar3d_jax.config import Config
from ar3d_jax.errors import UserError

ROOT = Path(__file__).parents[1]
HIGRPO = str(ROOT / "configs/higrpo.py")


def config_of(*arguments):
    return parse_config(["train", *arguments], Config, HIGRPO, "runs/higrpo")[0]


def test_defaults():
    config, values = parse_config(["train"], Config, HIGRPO, "runs/higrpo")
    assert config == Config()
    assert values.workdir == "runs/higrpo"


def test_overrides_of_every_type():
    config, values = parse_config(
        [
            "train",
            "--workdir=runs/x",
            "--config.steps=3",
            "--config.optim.lr=1",
            "--config.optim.eps=1e-5",
            "--config.prompts=7",  # a file may be called 7
            "--config.codec.channels=(8, 16)",
            "--config.codec.blocks=1,1",
            "--config.rollout.prompt_tokens=64",
            "--noconfig.log.tensorboard",
            "--config.policy.tied",
            "--config.policy.scan_decode=True",
            "--config.seed",
            "5",
        ],
        Config,
        HIGRPO,
        "runs/higrpo",
    )
    assert values.workdir == "runs/x"
    assert (config.steps, config.seed, config.prompts) == (3, 5, "7")
    assert (config.optim.lr, config.optim.eps) == (1.0, 1e-5)
    assert (config.codec.channels, config.codec.blocks) == ((8, 16), (1, 1))
    assert config.rollout.prompt_tokens == (64,)
    assert (config.log.tensorboard, config.policy.tied) == (False, True)
    assert config.policy.scan_decode is True


@pytest.mark.parametrize("written", ["a:1,b:2", "('a:1','b:2')", '["a:1", "b:2"]'])
def test_tuples_of_texts_may_be_written_with_commas_alone(written):
    flag = f"--config.rewards.remote.servers={written}"
    assert config_of(f"--config={HIGRPO}", flag).rewards.remote.servers == (
        "a:1",
        "b:2",
    )
    flag = "--config.rewards.remote.servers=a:1"
    assert config_of(f"--config={HIGRPO}", flag).rewards.remote.servers == ("a:1",)


def readme_algorithms():
    """(what, config file, fields) of each row of README's table."""
    text = (ROOT / "README.md").read_text().split("## Algorithms")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| wanted"):
            what, fields = line.strip("| ").split(" | ")
            name = "grpo" if "configs/grpo.py" in what else "higrpo"
            yield pytest.param(name, re.findall(r"`([^`]+)`", fields), id=what)


@pytest.mark.parametrize(("name", "fields"), [*readme_algorithms()])
def test_every_algorithm_that_the_readme_names_is_a_config(name, fields):
    default = config_of(f"--config={ROOT}/configs/{name}.py")
    words = [f"--config.{field}" for field in fields]
    config = config_of(f"--config={ROOT}/configs/{name}.py", *words)
    for field in fields:
        section, _, leaf = field.split("=")[0].partition(".")
        values = [getattr(getattr(c, section), leaf) for c in (config, default)]
        assert values[0] != values[1] or leaf == "lam_end", field


def test_gspo_of_the_readme_averages_sequences():
    """Its ratio and its mean are both of sequences (arXiv 2507.18071)."""
    (row,) = [row for row in readme_algorithms() if row.id == "GSPO"]
    name, fields = row.values
    config = config_of(
        f"--config={ROOT}/configs/{name}.py", *[f"--config.{f}" for f in fields]
    )
    objective = config.objective
    assert (objective.importance, objective.aggregation) == ("sequence", "sequence")
    assert objective.clip_bounds == (3e-4, 4e-4)


def test_the_last_config_and_the_last_value_win():
    """`launch/local.sh` gives a --config before the user's own."""
    config = config_of(
        f"--config={HIGRPO}",
        "--config.seed=1",
        f"--config={HIGRPO}:7b",
        "--config.seed=2",
    )
    assert (config.preset, config.seed) == ("7b", 2)


BAD_FILES = {
    "empty.py": ("", "get_config"),
    "syntax.py": ("def get_config(:", "SyntaxError"),
    "name.py": ("def get_config():\n    return nowhere", "line 2.*nowhere"),
    "field.py": ("def get_config():\n    return {'stepz': 1}", "stepz"),
    "rule.py": ("def get_config():\n    return {'steps': 0}", "steps"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_config_files(tmp_path, name):
    source, named = BAD_FILES[name]
    (tmp_path / name).write_text(source)
    with pytest.raises(UserError, match=named):
        config_of(f"--config={tmp_path / name}")


BAD_LINES = {
    "unknown field": ("--config.stepz=3", r"config\.stepz.*config\.steps"),
    "unknown nested field": ("--config.policy.widht=3", r"config\.policy\.widht"),
    "a section": ("--config.policy=3", r"config\.policy"),
    "wrong type": ("--config.steps=many", "steps is 'many'.*expected int"),
    "no whole number": ("--config.steps=1.5", "steps is 1.5.*expected int"),
    "no number": ("--config.optim.lr=fast", "optim.lr is 'fast'.*expected float"),
    "no bool": ("--config.log.tensorboard=7", "log.tensorboard.*expected bool"),
    "no tuple": ("--config.codec.channels=a,b", r"codec\.channels"),
    "a value that a rule refuses": ("--config.group_size=1", "group_size"),
    "missing value": ("--config.steps", r"config\.steps"),
    "unknown flag": ("--wrokdir=x", "wrokdir.*workdir"),
    "stray argument": ("tiny", "'tiny'"),
    "missing file": ("--config=nowhere.py", "'nowhere.py' not found"),
    "a folder": (f"--config={ROOT}", "not found"),
    "unknown preset": (f"--config={HIGRPO}:huge", "'huge'; expected tiny or 7b"),
    "missing flag file": ("--flagfile=nowhere", "nowhere"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_command_lines(case):
    argument, named = BAD_LINES[case]
    with pytest.raises(UserError, match=named):
        config_of(argument)


COMMAND = f"""
'''The docstring that --help prints.'''
import sys
sys.path.insert(0, {str(ROOT)!r})
from ar3d_jax import command
from ar3d_jax.config import Config

if __name__ == "__main__":
    command.run_config(
        lambda config, workdir: print(config.steps, workdir),
        section=Config, config_file={HIGRPO!r}, workdir="runs/higrpo",
    )
"""


def run_command(tmp_path, *arguments):
    (tmp_path / "command.py").write_text(COMMAND)
    return subprocess.run(
        [sys.executable, "command.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("case", ["unknown field", "wrong type", "unknown preset"])
def test_exit_status_2_and_one_line(tmp_path, case):
    result = run_command(tmp_path, BAD_LINES[case][0])
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_command_runs_and_helps(tmp_path):
    assert run_command(tmp_path, "--config.steps=3").stdout == "3 runs/higrpo\n"
    help_text = run_command(tmp_path, "--help").stdout
    assert "The docstring that --help prints." in help_text
    assert "config.rewards.weights.coarse.category" in help_text


def test_plain_flags():
    def values():
        found = flags.FlagValues()
        flags.DEFINE_string("out", None, "", flag_values=found, required=True)
        flags.DEFINE_integer("resolution", 32, "", flag_values=found)
        return found

    parsed = values()
    parse(parsed, ["catalog", "--out=x"])
    assert (parsed["out"].value, parsed["resolution"].value) == ("x", 32)
    with pytest.raises(UserError, match="--out"):
        parse(values(), ["catalog"])
    with pytest.raises(UserError, match="resolution"):
        parse(values(), ["catalog", "--out=x", "--resolution=fine"])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    workdir = tmp_path / "new" / "run"
    with (
        alone_in(workdir),
        pytest.raises(UserError, match="another run is using"),
        alone_in(workdir),
    ):
        pass
    with alone_in(workdir):  # free again
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), alone_in(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="that is there"), alone_in(Path("/proc/none")):
        pass


@pytest.mark.parametrize("flag", ["workdir", "config"])
def test_an_empty_value_is_one_line(flag):
    with pytest.raises(UserError, match=f"--{flag} is empty; expected a value"):
        parse_config(["train", f"--{flag}="], Config, HIGRPO, "runs/higrpo")


def test_a_config_file_that_returns_nothing_is_one_line(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("def get_config():\n    pass\n")
    with pytest.raises(UserError, match=r"get_config\(\) returned None"):
        load_config_file(str(path))
