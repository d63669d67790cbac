"""The one error that a user can cause, and how a command ends because of it.

Library code raises `UserError` with one line: what was given, what was expected, what
to do. `exit_on_user_error` turns it into that line on stderr and exit status 2 (1 where
a training diverged).
Anything else is a bug and keeps its traceback.

Here too is how files are written that are read again: `whole_file`, `write_whole`.
"""

import contextlib
import errno
import io
import os
import re
import select
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
            f"cannot write {path}: {os.strerror(number)}{_elsewhere(error, path)}; "
            f"{remedy}"
        ) from error


def _elsewhere(error: Exception, path: Path) -> str:
    """` (/other)` of an error that names a file which is not `path` nor inside."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return ""
    place = Path(os.fsdecode(name)).absolute()
    return "" if place.is_relative_to(path.absolute()) else f" ({place})"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a name in the same folder to write to; the file is `path` at the end.

    Whole or not at all: after a kill or an error `path` is what it was before. So must
    every file be written that a later command reads.

    Raises:
        UserError: as `writing`.
    """
    partial = path.with_name(f".{path.name}")  # NumPy looks at the end of a name
    with writing(path):
        try:
            yield partial
            with partial.open("rb") as file:  # the bytes before the name
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_whole(path: Path, text: str) -> None:
    r"""Writes a text file as UTF-8, whole or not at all.

    Half a surrogate pair, as file names and JSON may smuggle it in, becomes its escape,
    such as \udcff. In a string of JSON that is its spelling: a reader gets it back.

    Raises:
        UserError: as `writing`.
    """
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def starting_python() -> Iterator[None]:
    """Turns an interpreter, ours, that is gone or may not run into a `UserError`.

    Every process of the package is one more of it; nothing else is executed.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot start another {sys.executable or 'python'}: "
            f"{error.strerror or error}; this Python must be there and be allowed to "
            "run: mend it, or make the environment anew"
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
    memory is full, or a full disk under standard output. Ctrl-C ends it without a word,
    and so does the end of whoever reads a pipe (`| head`). What the terminal's encoding
    lacks is printed as its escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()  # the interpreter's own, after this, could only complain
    except UserError as error:
        _exit(str(error), error.status)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it
    except BrokenPipeError:
        if not _is_read_no_more():
            raise
        sys.exit(141)  # as shells say it
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = error.filename or "standard output or a file"
            _exit(
                f"cannot write {place}: {error.strerror}; free some space there",
                UserError.status,
            )
        if OUT_OF_MEMORY not in str(error) and not isinstance(error, MemoryError):
            raise
        first = (str(error).splitlines() or ["MemoryError"])[0]
        _exit(
            f"out of memory: {first[:200]}; lower objective.micro_batch or "
            "prompts_per_step, or spread over more devices with mesh.fsdp",
            UserError.status,
        )
    finally:
        _let_go()


def _flush() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        with writing(Path("standard output")):
            sys.stdout.flush()


def _is_read_no_more() -> bool:
    """Whether the reader of our output has gone: not the other end of another pipe."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no file
            poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _let_go() -> None:
    """What cannot be written goes nowhere: the interpreter tries again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            continue  # there is none, or it is closed
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _exit(message: str, status: int) -> NoReturn:
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(status)
