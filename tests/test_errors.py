"""What ends as one line (disks, damaged files, full memory), and what does not."""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ar3d_jax import errors
from ar3d_jax.errors import (
    Diverged,
    UserError,
    exit_on_user_error,
    reading,
    starting_python,
    whole_file,
    write_whole,
    writing,
)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT]
)
def test_disk_errors_name_the_path_and_the_remedy(number):
    told = r"cannot write /there: .*; (free|choose)"
    with pytest.raises(UserError, match=told), writing(Path("/there")):
        raise OSError(number, os.strerror(number))


def test_a_file_elsewhere_is_named():
    for name, told in (("/there/x", "ied; choose"), ("/y", r"ied \(/y\); choose")):
        with pytest.raises(UserError, match=told), writing(Path("/there")):
            raise PermissionError(errno.EACCES, "denied", name)


def test_other_libraries_spellings_are_understood():
    for text in ("x [os_error_code='28']", "I/O error: No space left (os error 28)"):
        with pytest.raises(UserError, match="free some space"), writing(Path("/x")):
            raise RuntimeError(text)


def test_safetensors_into_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "weights.safetensors"
    with pytest.raises(UserError, match="cannot write"), writing(target):
        save_file({"a": np.zeros(3)}, target)


def test_a_bug_stays_a_bug():
    with pytest.raises(ZeroDivisionError), writing(Path("/x")):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        raise ZeroDivisionError


# NumPy leaves a file that is no zip open until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_say_how_they_are_made(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, a=np.arange(1000))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:500])
    for path, key in ((cut, "a"), (whole, "b"), (tmp_path / "gone.npz", "a")):
        with (
            pytest.raises(UserError, match=r"cannot read .*; make it anew: do this"),
            reading(path, "do this"),
            np.load(path) as arrays,
        ):
            arrays[key]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("given, expected,\n do"), 2, "error: given, expected, do"),
        (Diverged("no numbers"), 1, "error: no numbers"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), 2, "error: out of memory: RES"),
        (MemoryError(), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_status_and_line(capsys, error, status, line):
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        raise error
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == bool(line)


# --- files that are read again --------------------------------------------------------


@pytest.mark.parametrize("ended", [KeyboardInterrupt, ZeroDivisionError, OSError])
def test_a_file_is_whole_or_what_it_was(tmp_path, ended):
    path = tmp_path / "state.json"
    write_whole(path, "before")

    def write_half():
        with whole_file(path) as partial:
            partial.write_text("aft")
            raise ended

    with pytest.raises(ended):
        write_half()
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]
    write_whole(path, "after")
    assert path.read_text() == "after"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "state.json"
    write_whole(path, "before")
    with pytest.raises(UserError, match="free some space"), whole_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "before"


def test_half_surrogates_come_back_from_json(tmp_path):
    told = {"a chair \U0001f600 \udcff": "\ud800"}
    write_whole(tmp_path / "x.json", json.dumps(told, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == told


def writes(tree):
    """Where a file is written at its own name: `write_text`, `savez(path)`, ..."""
    names = {"write_text", "write_bytes", "savez", "savez_compressed", "save_file"}
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any("whole_file(" in ast.unparse(item.context_expr) for item in node.items)
    ]
    whole = {call for block in blocks for call in ast.walk(block)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or node in whole:
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield ast.unparse(node.func)


# Nobody reads these as whole files but those who have seen their writer end.
OTHERS = {
    "checkpoint: (folder / _DIGESTS).write_text",  # Orbax renames the folder
    "codec.surface: pathlib.Path(path).write_bytes",  # callers have `whole_file`
    "rewards.score: out.write_text",  # may be /dev/stdout
    "rewards.sidecar.unpickle: safetensors.torch.save_file",  # a temporary folder
    "train: log.write_text",  # TensorBoard's
}


def test_every_file_that_is_read_again_is_written_whole():
    package = Path(errors.__file__).parent
    found = {
        f"{'.'.join(path.relative_to(package).with_suffix('').parts)}: {call}"
        for path in package.rglob("*.py")
        if path.name != "errors.py"
        for call in writes(ast.parse(path.read_text()))
    }
    assert found == OTHERS


# --- the process's end ----------------------------------------------------------------

SCRIPT = f"""
import sys
sys.path.insert(0, {str(Path(errors.__file__).parents[1])!r})
from ar3d_jax.errors import UserError, exit_on_user_error

def long():
    for _ in range(100_000):
        print("x" * 100)

def refuse():
    print("x")
    raise UserError("given, expected, do")

def other():
    raise BrokenPipeError(32, "of a child")

ENDS = dict(
    short=lambda: print("x"), long=long, refuse=refuse, exit=lambda: (print(1), exit()),
    other=other, any=lambda: print("\\U0001f600 \\udcff \\u00e9"),
)
with exit_on_user_error():
    ENDS[sys.argv[1]]()
"""


def ended(folder, how, *options, stdout=subprocess.PIPE, **environment):
    """Standard output, what stderr got, and the status of the script."""
    (folder / "script.py").write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *options, "script.py", how],
        cwd=folder,
        env=kept | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    return done.stdout, done.stderr.decode(), done.returncode


@pytest.fixture
def unread():
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("options", [(), ("-u",)])
@pytest.mark.parametrize("how", ["short", "long", "exit"])
def test_a_closed_pipe_ends_quietly(tmp_path, unread, how, options):
    assert ended(tmp_path, how, *options, stdout=unread) == (None, "", 141)


def test_a_closed_pipe_hides_no_refusal(tmp_path, unread):
    line = "error: given, expected, do\n"
    assert ended(tmp_path, "refuse", stdout=unread) == (None, line, 2)


def test_a_pipe_that_is_not_ours_is_a_bug(tmp_path):
    _, said, status = ended(tmp_path, "other")
    assert (said.splitlines()[-1], status) == (
        "BrokenPipeError: [Errno 32] of a child",
        1,
    )


@pytest.mark.parametrize("options", [(), ("-u",)])
@pytest.mark.parametrize("how", ["short", "long", "exit"])
def test_full_standard_output_is_one_line(tmp_path, how, options):
    with Path("/dev/full").open("w") as full:
        _, said, status = ended(tmp_path, how, *options, stdout=full)
    assert said.startswith("error: cannot write standard output")
    assert (said.count("\n"), status) == (1, 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_anything_is_printed_in_any_encoding(tmp_path, encoding):
    printed, said, status = ended(tmp_path, "any", PYTHONIOENCODING=encoding)
    assert (said, status) == ("", 0)
    expected = "\U0001f600 \udcff \u00e9\n".encode(encoding, "backslashreplace")
    assert printed == expected


# --- other programs -------------------------------------------------------------------


def test_an_interpreter_that_may_not_run_is_named(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("")
    monkeypatch.setattr(sys, "executable", str(program))
    for start in (subprocess.run, lambda line: os.execv(line[0], line)):
        with (
            pytest.raises(UserError, match=f"cannot start another {program}: Permiss"),
            writing(tmp_path),
            starting_python(),
        ):
            start([str(program)])


def starts(tree):
    """Lines that start a program outside of `starting_python`."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and "starting_python" in ast.unparse(node.items[-1])
    ]
    guarded = {call for block in blocks for call in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node not in guarded:
            name = ast.unparse(node.func)
            if name.startswith("os.exec") or name in (
                "subprocess.run",
                "subprocess.Popen",
            ):
                yield f"line {node.lineno}: {name}"


def test_every_program_that_is_started_is_named_where_it_may_not_run():
    package = Path(errors.__file__).parent
    found = [
        f"{path.relative_to(package)}, {line}"
        for path in package.rglob("*.py")
        for line in starts(ast.parse(path.read_text()))
    ]
    assert not found
