r"""Parts of every prompt, once: `python -m ar3d_jax.data.parts --out=parts.jsonl`.

    python -m ar3d_jax.data.parts --prompts=data/prompts.jsonl --out=parts.jsonl \
        --backend=openai --config.rewards.qwen_vl.endpoints=http://localhost:8000/v1
    python -m ar3d_jax.train ... --config.rewards.part_lists=parts.jsonl

A judge, `rewards.qwen_vl`, is asked which parts an object of each prompt has, and how
many of each; where its answer is no list, and with --backend=words everywhere, the
prompt's own words decide (`part_lists.py`). A line is on the disk before its prompt is
done with, so the same command goes on after whatever ended it.

Here are the file and the words; who asks is `rewards/sidecar/list_parts.py`, which
takes this process over.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import flags
from tqdm import tqdm

from ar3d_jax import command
from ar3d_jax.config import Config, RewardsConfig
from ar3d_jax.data import part_lists
from ar3d_jax.data.part_lists import Parts
from ar3d_jax.data.prompts import read_prompts
from ar3d_jax.errors import UserError, exit_on_user_error, starting_python, writing

BACKENDS = ("words", "local", "openai")
ASKING = "ar3d_jax.rewards.sidecar.list_parts"


@dataclasses.dataclass(frozen=True)
class Task:
    """What the command line asks for.

    Attributes:
        prompts: All of the set, captions too, each once.
        out: The file.
        rewards: Where and how the judge answers; its `backend` is not looked at.
        backend: One of BACKENDS.
    """

    prompts: tuple[str, ...]
    out: Path
    rewards: RewardsConfig
    backend: str


class ListFile:
    """The file, open for more lines.

    Attributes:
        there: Prompts that had a line when it was opened.
        judged: Lines of this run that the judge wrote.
        worded: Lines of this run by the prompts' words.
    """

    def __init__(self, path: Path, there: frozenset[str], file: BinaryIO) -> None:
        """`open_list` calls this."""
        self.there, self.judged, self.worded = there, 0, 0
        self._path, self._file = path, file

    def by_judge(self, prompt: str, parts: Parts) -> None:
        """Appends a line."""
        self.judged += 1
        self._append(prompt, parts, {"by": "judge"})

    def by_words(self, prompt: str, why: str = "") -> None:
        """Appends a line of the prompt's own words, and `why` not the judge's."""
        self.worded += 1
        source = {"by": "words"} | ({"why": why} if why else {})
        self._append(prompt, part_lists.noun_phrases(prompt), source)

    def _append(self, prompt: str, parts: Parts, source: dict[str, str]) -> None:
        rows = [{"name": name, "count": count} for name, count in parts]
        line = json.dumps({"prompt": prompt, "parts": rows} | source)
        with writing(self._path):
            self._file.write(line.encode() + b"\n")  # unbuffered


@contextlib.contextmanager
def open_list(path: Path) -> Iterator[ListFile]:
    """The file, made or mended: a last line that was cut off is removed.

    Raises:
        UserError: it cannot be written, another run is writing it, or a line of it is
            no part list.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    with file:
        command.keep_others_out(
            file,
            f"another run is writing {path}: wait for its end, or choose another --out",
        )
        with writing(path):
            _mend(file)
        yield ListFile(path, frozenset(part_lists.read(path)), file)


def _mend(file: BinaryIO) -> None:
    """Ends the last line: with a line break if it is whole, else where it begins."""
    file.seek(0)
    text = file.read()
    start = text.rfind(b"\n") + 1
    if start == len(text):
        return
    try:
        json.loads(text[start:])
    except ValueError:
        file.truncate(start)
    else:
        file.write(b"\n")


def write_words(prompts: list[str], lists: ListFile) -> None:
    """Appends every prompt's line by its words."""
    for prompt in tqdm(prompts, "parts", unit="prompt"):
        lists.by_words(prompt)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "prompts",
        "",
        "catalog, or a .txt, .csv or .jsonl file; empty: config.prompts",
        flag_values=values,
    )
    flags.DEFINE_string("out", "", "the .jsonl file to write", flag_values=values)
    flags.DEFINE_enum(
        "backend",
        None,
        BACKENDS,
        "who answers: the prompt's words, the judge in this process, its endpoints; "
        "by default as config.rewards.backend",
        flag_values=values,
    )


def read_command(argv: list[str]) -> Task:
    """What a command line asks for.

    Raises:
        UserError: a flag is wrong or missing; the prompts cannot be read.
    """
    config, values = command.parse_config(
        argv, Config, "configs/higrpo.py", None, _define
    )
    out = Path(values.out)
    if out.suffix != ".jsonl":
        raise UserError(f"--out={values.out}; expected the .jsonl file to write")
    backend = values.backend or config.rewards.backend
    if backend not in BACKENDS:
        raise UserError(
            f"rewards.backend is {backend}, whose servers only score; expected "
            f"--backend={' or '.join(BACKENDS)}"
        )
    if backend == "openai" and not config.rewards.qwen_vl.endpoints:
        raise UserError(
            "rewards.qwen_vl.endpoints is (); expected one http://host:port/v1 or "
            "more, as the backend is openai"
        )
    rows = read_prompts(values.prompts or config.prompts, config.data.column)
    prompts = dict.fromkeys(text for row in rows for text in row.texts)
    return Task(tuple(prompts), out, config.rewards, backend)


def main(argv: list[str]) -> None:
    """Writes the file; without a judge here, with one in its own process."""
    with exit_on_user_error():
        task = read_command(argv)
        if task.backend != "words":
            with starting_python():
                os.execv(sys.executable, [sys.executable, "-m", ASKING, *argv[1:]])
        with open_list(task.out) as lists:
            write_words([p for p in task.prompts if p not in lists.there], lists)
        print(summary(task, lists))


def summary(task: Task, lists: ListFile) -> str:
    """One line: who wrote how many lists, where they are and how to use them."""
    there = sum(prompt in lists.there for prompt in task.prompts)
    return (
        f"{task.out}: {lists.judged} prompts by the judge, {lists.worded} by their "
        f"words, {there} were there; use it with --config.rewards.part_lists={task.out}"
    )


if __name__ == "__main__":
    main(sys.argv)
