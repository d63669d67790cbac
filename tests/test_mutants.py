"""The kept list of changes is in order, and the command judges as it says."""

import ast
import subprocess
import sys

import pytest

from tests import mutants
from tests.mutants import ROOT, Mutant, parse

ENTRIES = parse(mutants.LIST.read_text("utf-8"))
LIST = """# A comment.
@ a.py
> tests/a.py

[one]
- x = 1
+ x = 2

[two]
-     y = 1
-     return y
> tests/b.py::test_b
"""


def test_the_list_is_long_and_over_all_that_makes_a_result():
    assert len(ENTRIES) >= 75
    changed = {entry.file.removeprefix("ar3d_jax/") for entry in ENTRIES}
    assert changed >= {
        "checkpoint.py",
        "collect.py",
        "held_out.py",
        "higrpo/advantages.py",
        "higrpo/objective.py",
        "higrpo/selection.py",
        "higrpo/update.py",
        "rewards/ensemble.py",
        "rewards/sidecar/scorers/embedded.py",
        "rewards/sidecar/scorers/shapellm.py",
        "rollout/sampling.py",
        "rollout/two_step.py",
        "evaluation/uncertainty.py",
    }


def test_every_entry_changes_its_file_once_into_python():
    for entry in ENTRIES:
        text = (ROOT / entry.file).read_text("utf-8")
        changed = entry.applied(text)  # a stale entry raises, and names itself
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)), entry.name


def test_the_tests_that_entries_name_are_there():
    for test in {test for entry in ENTRIES for test in entry.tests}:
        text = (ROOT / mutants.file_of(test)).read_text("utf-8")
        name = test.partition("::")[2].partition("[")[0]
        assert f"def {name or 'test_'}" in text, test


def test_a_list_is_read():
    assert parse(LIST) == [
        Mutant("one", "a.py", "x = 1", "x = 2", ("tests/a.py",)),
        Mutant("two", "a.py", "    y = 1\n    return y", "", ("tests/b.py::test_b",)),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[two]", "[one]"), "twice: one"),
        (("[two]", "[T W O]"), "line 9: "),
        (("+ x = 2", "+ x = 1"), "line 5: one lacks"),
        (("- x = 1\n", ""), "line 5: one lacks"),
        (("> tests/a.py", ""), "line 5: one lacks"),
        (("@ a.py", "a.py"), "line 2: 'a.py' begins neither"),
        (("+ x = 2", "? x = 2"), "line 5: "),
    ],
)
def test_a_malformed_list_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parse(LIST.replace(*change))


@pytest.mark.parametrize("text", ["x = 3\n", "x = 1\nx = 1\n"])
def test_a_stale_entry_names_itself(text):
    with pytest.raises(ValueError, match=r"one: its old text is [02] times in a\.py"):
        parse(LIST)[0].applied(text)


def test_an_unknown_name_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        mutants.main(["--only=no_such_change"])
    assert ended.value.code == 2
    assert "no such change" in capsys.readouterr().err.splitlines()[-1]


# In a process without JAX, which must not be forked while it is in use.
JUDGING = """
import pathlib, sys
from tests.mutants import Mutant, check_unchanged, judge
root = pathlib.Path(sys.argv[1])
(root / "tests").mkdir()
(root / "pyproject.toml").write_text("[tool.pytest.ini_options]\\npythonpath = ['.']")
text = "def double(x):\\n    return 2 * x\\n"
(root / "sums.py").write_text(text)
(root / "tests" / "test_sums.py").write_text(
    "from sums import double\\ndef test_double():\\n    assert double(2) == 4\\n"
)
for old, new in (
    ("2 * x", "3 * x"), ("2 * x", "x * x"), ("4 * x", "x"), ("def", "daf"),
    ("2 * x", "__import__('time').sleep(99)"),
):
    limit = 2.0 if "sleep" in new else 60.0
    mutant = Mutant("m", "sums.py", old, new, ("tests/test_sums.py::test_double",))
    found = judge(mutant, root, limit)
    print(found.verdict, found.detail)
    assert (root / "sums.py").read_text() == text
check_unchanged([mutant], root, 60.0)
(root / "sums.py").write_text(text.replace("2", "3"))
try:
    check_unchanged([mutant], root, 60.0)
except ValueError as error:
    print(str(error).splitlines()[0])
"""


def test_a_change_is_killed_survives_or_says_what_was_wrong(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", JUDGING, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    killed, survived, stale, broken, late, unchanged = done.stdout.splitlines()
    assert killed == "killed tests/test_sums.py::test_double"
    assert survived.strip() == "SURVIVED"
    assert stale.startswith("STALE m: its old text is 0 times in sums.py")
    assert broken.startswith("BROKEN pytest ended with status ")
    assert late == "LATE no end within 2 s"
    assert unchanged == "the named tests fail without any change:"


def test_the_last_line_and_the_table_count():
    entries = parse(LIST)
    results = [
        mutants.Result("one", mutants.KILLED, "tests/a.py::test_a", 61.0, "1"),
        mutants.Result("two", mutants.SURVIVED, "", 59.0, "2"),
    ]
    assert mutants.table(entries, results).splitlines() == [
        "name  file  verdict                 seconds",
        "one   a.py  killed by a.py::test_a  61.0",
        "two   a.py  SURVIVED                59.0",
    ]
    assert mutants.last_line(results) == (
        "2 changes: 1 killed, 1 survived, 0 stale, 0 broken, 0 late; 2.0 minutes"
    )
