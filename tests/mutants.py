"""Do the tests notice a wrong line? `python -m tests.mutants [--only=NAME ...]`.

Every entry of `mutants.txt` is a small change of the package that an engineer could
write by mistake: a sign, a mean for a maximum, the other step's array, a mask that is
not used. The command copies the tree into a temporary folder, makes one change at a
time there, runs the tests that the entry names, and says which of them failed. A change
under which all of them pass has survived, and a test is missing. The tree itself is
never written to.

Why a kept list, and not mutmut or cosmic-ray: these change every operator of a file,
some thousands here, and know nothing of what a line is for. Most of what survives them
is equivalent (a message, a block size, a layout), so their number says little, and each
run of a test that traces JAX programs costs 5 to 40 seconds of compiling. The list has
the mistakes that matter to the method's result, each with the few tests that are to
notice it: 2 to 40 seconds each, an hour in all.

What would make the answer worthless ends with status 1, too:

* a stale entry, whose old text is not in its file exactly once;
* tests that fail without any change: all named tests run once before the first change;
* a change that breaks the import, or runs out of time: nothing was learnt about it.

`tests/test_mutants.py` holds the list in order whenever the tests run; docs/testing.md
says how to add an entry.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_suffix(".txt")
KILLED, SURVIVED = "killed", "SURVIVED"
STALE, BROKEN, LATE = "STALE", "BROKEN", "LATE"
# Imported before the first fork; none is a plugin of pytest's, which rewrites those.
LIBRARIES = ("jax", "flax.nnx", "optax", "scipy.spatial", "scipy.ndimage")
HEADINGS = ("name", "file", "verdict", "seconds")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        name: unique in the list.
        file: relative to the root.
        old: text that is in the file exactly once.
        new: what replaces it.
        tests: files or node ids, as pytest takes them; one of them is to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's text with the change.

        Raises:
            ValueError: the entry is stale; it says why.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"{self.name}: its old text is {count} times in {self.file}; expected "
                f"once: bring the entry of {LIST.name} up to date"
            )
        return text.replace(self.old, self.new)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one change.

    Attributes:
        name: of the mutant.
        verdict: killed, SURVIVED, STALE, BROKEN (no test ran) or LATE (no time left).
        detail: the test that failed, or what was wrong.
        seconds: that its tests took.
        digest: of the entry, its file and its tests, as they were.
    """

    name: str
    verdict: str
    detail: str
    seconds: float
    digest: str


def parse(text: str) -> list[Mutant]:
    """The mutants of a list, which `mutants.txt` explains at its top.

    Raises:
        ValueError: a line or an entry is malformed; it names the line.
    """
    found: list[Mutant] = []
    file, shared = "", ()
    for number, block in _blocks(text):
        head, lines = block[0], block[1:]
        kinds = {line[:1] for line in lines}
        if head.startswith("@ ") and kinds <= {">"}:
            file, shared = head[2:].strip(), _marked(lines, ">")
        elif (name := re.fullmatch(r"\[([a-z0-9_]+)\]", head)) and kinds <= set(">-+"):
            old, new = _marked(lines, "-"), _marked(lines, "+")
            mutant = Mutant(
                name[1], file, "\n".join(old), "\n".join(new),
                _marked(lines, ">") or shared,
            )  # fmt: skip
            if not (file and old and mutant.tests) or old == new:
                raise ValueError(
                    f"line {number}: {name[1]} lacks a file, an old text, tests, or a "
                    "change"
                )
            found.append(mutant)
        else:
            raise ValueError(f"line {number}: {head!r} begins neither file nor change")
    names = [mutant.name for mutant in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names are there twice: {', '.join(twice)}")
    return found


def _blocks(text: str) -> list[tuple[int, list[str]]]:
    """Lines from each `@` or `[` to the next, with the number of the first."""
    found: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line[0] in "@[" or not found:
            found.append((number, [line]))
        else:
            found[-1][1].append(line)
    return found


def _marked(lines: Iterable[str], mark: str) -> tuple[str, ...]:
    """What stands behind `mark` and a space."""
    return tuple(line[2:] for line in lines if line[:1] == mark)


def file_of(test: str) -> str:
    """The file of a node id."""
    return test.partition("::")[0]


def digest(mutant: Mutant, root: Path) -> str:
    """Changes with the entry, its file or its tests."""
    whole = hashlib.blake2b(repr(mutant).encode(), digest_size=8)
    for name in dict.fromkeys([mutant.file, *map(file_of, mutant.tests)]):
        path = root / name
        whole.update(path.read_bytes() if path.is_file() else b"")
    return whole.hexdigest()


def copy_tree(target: Path) -> None:
    """Everything that git would commit, into `target`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
    for name in names.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


class CompiledOnce:
    """A plugin of pytest's: entries share the programs that they leave as they are.

    The key of JAX's cache is the program, so a changed one is compiled anew.
    """

    def __init__(self, root: Path) -> None:
        """Beside the copy, so that no test sees the programs."""
        self._folder = root.with_name(f"{root.name}_compiled")

    def pytest_sessionstart(self) -> None:
        """After tests/conftest.py, which wants no cache."""
        jax = importlib.import_module("jax")
        jax.config.update("jax_compilation_cache_dir", str(self._folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def run_tests(root: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    """pytest's status, None where time ran out, and what it said.

    In a fork of this process, which has imported the large libraries already: half of
    the time of most entries. No device is in use here, and no thread runs.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        child = os.fork()
        if not child:
            _be_pytest(root, tests, output.fileno())
        ends = time.monotonic() + limit
        try:
            while time.monotonic() < ends:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    child = 0
                    output.seek(0)
                    return os.waitstatus_to_exitcode(status), output.read()
                time.sleep(0.05)
            return None, f"no end within {limit:g} s"
        finally:
            if child:
                os.killpg(child, signal.SIGKILL)  # and the processes that tests started
                os.waitpid(child, 0)


def _be_pytest(root: Path, tests: Sequence[str], output: int) -> NoReturn:
    """What the fork does: pytest in the copy, as if started there."""
    status = -1
    try:
        os.setsid()
        os.chdir(root)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # No .pyc: two changes within a second may have one size, and so one .pyc.
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["COLUMNS"] = "200"
        sys.path[:] = [str(root), *(p for p in sys.path if p not in ("", str(ROOT)))]
        for name in [n for n in sys.modules if n.partition(".")[0] == "tests"]:
            del sys.modules[name]
        options = ["-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
        pytest = importlib.import_module("pytest")
        status = int(pytest.main([*tests, *options], plugins=[CompiledOnce(root)]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def judge(mutant: Mutant, root: Path, limit: float) -> Result:
    """Makes the change in the copy, runs its tests, and takes the change back."""
    path, mark = root / mutant.file, digest(mutant, root)
    started = time.monotonic()

    def result(verdict: str, detail: str) -> Result:
        seconds = round(time.monotonic() - started, 1)
        return Result(mutant.name, verdict, detail, seconds, mark)

    try:
        text = path.read_text("utf-8")
        changed = mutant.applied(text)
    except (OSError, ValueError) as error:
        return result(STALE, str(error))
    try:
        path.write_text(changed, "utf-8")
        status, said = run_tests(root, mutant.tests, limit)
    finally:
        path.write_text(text, "utf-8")
    if status is None:
        return result(LATE, said)
    if status == 0:
        return result(SURVIVED, "")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.M)
    if status == 1 and failed:
        return result(KILLED, failed[1])
    last = said.strip().splitlines()[-1:] or [""]
    return result(BROKEN, f"pytest ended with status {status}: {last[0]}")


def check_unchanged(mutants: Sequence[Mutant], root: Path, limit: float) -> None:
    """Runs all named tests without any change.

    Raises:
        ValueError: one fails, or is not there.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    whole = {test for test in tests if "::" not in test}
    tests = [t for t in tests if t in whole or file_of(t) not in whole]
    status, said = run_tests(root, tests, limit)
    if status != 0:
        raise ValueError(f"the named tests fail without any change:\n{said[-3000:]}")


def known_results(path: Path | None) -> dict[str, Result]:
    """By digest, what an earlier run wrote; a last line that was cut off is passed."""
    found = {}
    for line in path.read_text("utf-8").splitlines() if path and path.exists() else ():
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[result.digest] = result
    return found


def table(mutants: Sequence[Mutant], results: Sequence[Result]) -> str:
    """A row per change, in columns as wide as what they hold."""
    rows = [HEADINGS]
    for mutant, result in zip(mutants, results, strict=True):
        verdict = f"{result.verdict} {result.detail}".strip()
        if result.verdict == KILLED:
            verdict = f"killed by {result.detail.removeprefix('tests/')}"
        file = mutant.file.removeprefix("ar3d_jax/")
        rows.append((mutant.name, file, verdict, f"{result.seconds:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def last_line(results: Sequence[Result]) -> str:
    """The numbers."""
    counts = [r.verdict for r in results]
    others = [f"{counts.count(v)} {v.lower()}" for v in (STALE, BROKEN, LATE)]
    minutes = sum(result.seconds for result in results) / 60
    return (
        f"{len(results)} changes: {counts.count(KILLED)} killed, "
        f"{counts.count(SURVIVED)} survived, {', '.join(others)}; {minutes:.1f} minutes"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this change alone; repeatable"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds per change")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="goes on: what stands there and is still so is not run again",
    )
    options = parser.parse_args(arguments)
    try:
        mutants = parse(LIST.read_text("utf-8"))
    except ValueError as error:
        parser.error(f"{LIST}, {error}")
    names = [mutant.name for mutant in mutants]
    wanted = options.only or names
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f"no such change in {LIST}: {', '.join(unknown)}")
    mutants = [mutant for mutant in mutants if mutant.name in wanted]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as tests/conftest.py has it
    for library in LIBRARIES:
        importlib.import_module(library)
    tqdm.monitor_interval = 0  # no thread of its own
    results = []
    with tempfile.TemporaryDirectory(prefix="ar3d_mutants_") as folder:
        root = Path(folder) / "tree"
        copy_tree(root)
        known = known_results(options.results)
        open_ones = [m for m in mutants if digest(m, root) not in known]
        print(f"{len(open_ones)} changes; first their tests without any", flush=True)
        if open_ones:
            try:
                check_unchanged(open_ones, root, 20 * options.limit)
            except ValueError as error:
                print(error, file=sys.stderr)
                return 1
        for mutant in tqdm(mutants, unit="change", disable=None):
            result = known.get(digest(mutant, root))
            if result is None:
                result = judge(mutant, root, options.limit)
                tqdm.write(f"{mutant.name}: {result.verdict} {result.detail}")
                if options.results:
                    with options.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(dataclasses.asdict(result)) + "\n")
            results.append(result)
    print(table(mutants, results))
    print(last_line(results))
    return 0 if all(result.verdict == KILLED for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
