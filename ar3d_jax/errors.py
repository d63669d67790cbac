"""The one error that a user can cause, and how a command ends because of it.

Library code raises `UserError` with one line: what was given, what was expected, what
to do. `exit_on_user_error` turns it into that line on stderr and exit status 2 (1 where
a training diverged).
Anything else is a bug and keeps its traceback.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from zipfile import BadZipFile

# What a disk says that only its owner can mend.
_DISK_ERRORS = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENOENT: "choose a folder that is there and stays",
    errno.ENOTDIR: "choose a folder, not a file",
    errno.EEXIST: "choose a folder, not a file",
    errno.EISDIR: "choose a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "choose a disk that takes large files",
    errno.EIO: "choose a disk that works",
}
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in what JAX says of a device that is full


class UserError(ValueError):
    """Bad input. The message is one line: given, expected, remedy."""

    status = 2  # of the process that ends because of it


class Diverged(UserError):
    """A training that cannot go on: its input was good, and its numbers are not."""

    status = 1


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a disk that is full, read-only, forbidden or gone into a `UserError`."""
    try:
        yield
    except Exception as error:
        number = _disk_errno(error)
        if number not in _DISK_ERRORS:
            raise
        remedy = _DISK_ERRORS[number]
        raise UserError(
            f"cannot write {path}: {os.strerror(number)}; {remedy}"
        ) from error


def _disk_errno(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    # TensorStore, under Orbax: "... No space left on device [os_error_code='28']";
    # safetensors: "... No space left on device (os error 28)".
    found = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error))
    return int(found[1] or found[2]) if found else 0


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns a file that is missing, cut off or another thing into a `UserError`.

    Args:
        path: the file that is read inside.
        remedy: how to make it: "python -m ...".
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"cannot read {path} ({reason[:200]}); make it anew: {remedy}"
        ) from error


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process with one line if a `UserError` reaches here.

    Its status is 2, or 1 of a training that diverged. So does a machine or device whose
    memory is full. Ctrl-C ends it without a word.
    """
    try:
        yield
    except UserError as error:
        _exit(str(error), error.status)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it
    except Exception as error:
        if OUT_OF_MEMORY not in str(error) and not isinstance(error, MemoryError):
            raise
        first = (str(error).splitlines() or ["MemoryError"])[0]
        _exit(
            f"out of memory: {first[:200]}; lower objective.micro_batch or "
            "prompts_per_step, or spread over more devices with mesh.fsdp",
            UserError.status,
        )


def _exit(message: str, status: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
