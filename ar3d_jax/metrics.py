"""What a run says while it goes on: metrics.jsonl, TensorBoard, a progress bar.

Not here: how a number is computed, and `samples/` (`train.py`). Every line is on the
disk before the next step starts, and after a resume the file is what an uninterrupted
run would have written. TensorBoard's event files are written with the `tensorboard`
package's own record types: the usual writer packages import torch, and queue events in
a thread that hangs the run when the disk is full.
"""

# Protocol buffer classes come into being when their module is imported.
# pyright: reportAttributeAccessIssue=false
import contextlib
import io
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.plugins.text import metadata as text_plugin
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from ar3d_jax.errors import whole_file, writing

# The keys of a run's line, beside `step`; `*` stands for any ending. Times are in
# seconds, entropy, KL and mismatch in nats per token, groups in prompts. `reward/*_all`
# are of the batch as it was sampled, what says whether the policy learns; other rewards
# and scores are of the groups that dynamic sampling kept, what the update sees. These
# once for each generation step:
_OF_STEPS = (
    "reward/{}_all",
    "reward/{}_std_all",
    "reward/{}",
    "reward/{}_std",
    "score/{}/*",
    "loss/{}",
    "plans_truncated/{}",
)
_OF_RUNS = (
    "score_missing",
    "judge/*",
    "loss",
    "kl",
    "entropy",
    "clip_fraction",
    "ratio_max",
    "mismatch",
    "grad_norm",
    "groups_used",
    "groups_resampled",
    "resample_rounds",
    "plan_tokens",
    "plans_truncated",
    "tokens_per_s/rollout",
    "eval/*",
    "time/rollout",
    "time/codec",
    "time/render",
    "time/score_wait",
    "time/score/*",
    "time/update",
    "time/total",
    "sidecar_restarts",
)


def run_names(steps: Sequence[str]) -> tuple[str, ...]:
    """The keys of a run with these generation steps."""
    own = tuple(key.format(step) for step in steps for key in _OF_STEPS)
    return own + _OF_RUNS


def run_shown(steps: Sequence[str]) -> tuple[str, ...]:
    """Those on the progress bar."""
    return (*(f"reward/{step}_all" for step in steps), "tokens_per_s/rollout")


class Stopwatch:
    """Seconds per part of a step: `with clock("rollout"): ...`.

    Attributes:
        seconds: by part.
        tokens: sampled in the step; whoever samples adds them.
    """

    def __init__(self) -> None:
        """Starts with the step."""
        self.tokens = 0
        # All parts: a step whose rollout was another's (rollout.ahead) has none.
        parts = ("rollout", "codec", "score_wait", "update")
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the block's duration to `part`."""
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        self.seconds[part] = self.seconds.get(part, 0.0) + took

    def line(self, **more: float) -> dict[str, float]:
        """All parts under their metrics' names, with the step's total."""
        total = time.perf_counter() - self._start
        seconds = self.seconds | more
        return {f"time/{part}": s for part, s in seconds.items()} | {
            "time/total": total
        }


class RunLog:
    """The three outputs of a run; a context manager.

    Lines of `metrics.jsonl` for `first_step` and later are dropped: they belong to a
    run that was cut off after its last checkpoint. TensorBoard hides such steps
    likewise.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        names: Sequence[str],
        shown: Sequence[str],
        steps: int,
        first_step: int = 0,
        tensorboard: bool = True,
    ) -> None:
        """Opens the files in `workdir`, which must exist.

        Args:
            workdir: where metrics.jsonl and the event files go.
            names: the keys of each line, `prefix/*` for an open set.
            shown: the keys that the progress bar shows.
            steps: optimiser steps of the whole run.
            first_step: the step that is written first; above 0 after a resume.
            tensorboard: write event files too.

        Raises:
            UserError: `workdir` cannot be written.
        """
        self._exact = {name for name in names if not name.endswith("*")}
        self._prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
        self._shown = shown
        self._path = workdir / "metrics.jsonl"
        with writing(workdir):
            keep_lines_before(self._path, first_step)
            self._lines = DurableFile(self._path)
            self._events = _EventFile(workdir, first_step) if tensorboard else None
        self._bar = tqdm(
            total=steps, initial=first_step, unit="step", dynamic_ncols=True
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one step's numbers, and moves the progress bar.

        NaN and infinity become null in the file and are left out of TensorBoard.

        Raises:
            ValueError: a key that is not among the names, or one of them is missing.
            UserError: the disk is full.
        """
        wrong = {
            name for name in values if not name.startswith(self._prefixes or ("\0",))
        }
        if wrong != self._exact:
            raise ValueError(
                f"metrics differ from the contract by {sorted(wrong ^ self._exact)}"
            )
        numbers = {name: number(value) for name, value in values.items()}
        line = json.dumps({"step": step} | numbers, allow_nan=False) + "\n"
        with writing(self._path):
            self._lines.write(line.encode())
            if self._events:
                self._events.scalars(step, numbers)
        self._bar.set_postfix(
            {name: numbers[name] for name in self._shown}, refresh=False
        )
        self._bar.update(step + 1 - self._bar.n)

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture for TensorBoard, uint8 RGB [height, width, 3]."""
        if self._events:
            with writing(self._path.parent):
                self._events.picture(step, name, picture)

    def write_text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard, Markdown."""
        if self._events:
            with writing(self._path.parent):
                self._events.text(step, name, text)

    def say(self, line: str) -> None:
        """Prints a line on stderr without breaking the progress bar."""
        self._bar.write(line, file=self._bar.fp)

    def __enter__(self) -> "RunLog":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the files; everything was written already."""
        self._bar.close()
        self._lines.close()
        if self._events:
            self._events.close()


class NoLog:
    """What hosts other than the first have in place of a `RunLog`."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Nothing."""

    def write_text(self, step: int, name: str, text: str) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Prints a line on stderr."""
        print(line, file=sys.stderr, flush=True)


def number(value: Any) -> float | int | None:
    """A scalar as JSON has it: NaN and infinity are None."""
    scalar = np.asarray(value).item()
    return scalar if math.isfinite(scalar) else None


def lines_before(path: Path, first_step: int) -> list[bytes]:
    """The file's lines of earlier steps, up to what a kill left of a line."""
    kept = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            if json.loads(line)["step"] >= first_step or not line.endswith(b"\n"):
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    return kept


def keep_lines_before(path: Path, first_step: int) -> None:
    """Drops all other lines of the file, if there is one; atomically."""
    if not path.exists():
        return
    kept = b"".join(lines_before(path, first_step))
    with whole_file(path) as partial:
        partial.write_bytes(kept)


class DurableFile:
    """A file to append to; what `write` returned from is on the disk.

    Unbuffered: a buffer that met a full disk would try again, and fail again, when the
    interpreter ends.
    """

    def __init__(self, path: Path) -> None:
        """Creates the file if there is none."""
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """All of it."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def flush(self) -> None:
        """Waits for the disk itself."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more writes."""
        self._file.close()


class _EventFile:
    """A TensorBoard event file; one per start of a run."""

    def __init__(self, folder: Path, first_step: int) -> None:
        origin = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        path = folder / f"events.out.tfevents.{origin}"
        self._records = RecordWriter(DurableFile(path))
        self._record(event_pb2.Event(file_version="brain.Event:2"))
        # TensorBoard hides what earlier files hold from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._record(event_pb2.Event(step=first_step, session_log=start))

    def scalars(self, step: int, numbers: Mapping[str, float | int | None]) -> None:
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
            if number is not None
        ]
        self._summary(step, values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        png = io.BytesIO()
        Image.fromarray(picture).save(png, format="PNG")
        image = summary_pb2.Summary.Image(
            height=picture.shape[0],
            width=picture.shape[1],
            colorspace=3,
            encoded_image_string=png.getvalue(),
        )
        self._summary(step, [summary_pb2.Summary.Value(tag=name, image=image)])

    def text(self, step: int, name: str, text: str) -> None:
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[text.encode()]
        )
        kind = text_plugin.create_summary_metadata(display_name=name, description="")
        self._summary(
            step, [summary_pb2.Summary.Value(tag=name, tensor=tensor, metadata=kind)]
        )

    def close(self) -> None:
        self._records.close()

    def _summary(self, step: int, values: list[summary_pb2.Summary.Value]) -> None:
        self._record(
            event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values))
        )

    def _record(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()
