"""What ends as one line (disks, damaged files, full memory), and what does not."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ar3d_jax.errors import Diverged, UserError, exit_on_user_error, reading, writing


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT]
)
def test_disk_errors_name_the_path_and_the_remedy(number):
    told = r"cannot write /there: .*; (free|choose)"
    with pytest.raises(UserError, match=told), writing(Path("/there")):
        raise OSError(number, os.strerror(number))


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
