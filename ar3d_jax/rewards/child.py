"""A child process as the trainer sees it: started, spoken to, found dead, ended.

Mechanics only. Which request goes to which child, and what a death means for the
objects under way, is `courier.py`; what the child itself does is `wire.run_child`.
"""

import collections
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

from ar3d_jax.errors import starting_python
from ar3d_jax.rewards import wire

START_S = 300.0  # importing and loading take minutes on a cold disk
STOP_S = 5.0  # for an orderly end; then it is killed


class Child:
    """One process with its channel, its log, and the requests it has not answered.

    Attributes:
        name: for messages, "sidecar" or "render worker 0".
        hello: its first message, or None while it is starting.
        about: the scorers, as the sidecar says.
        counters: what they have counted, since it was started.
        deadline: when a start counts as failed, in `time.monotonic` seconds.
        outstanding: what was asked and not yet answered, oldest first.
    """

    def __init__(
        self,
        name: str,
        module: str,
        config: dict[str, Any],
        ring: wire.Ring,
        log: pathlib.Path,
        *,
        start_s: float = START_S,
    ) -> None:
        """Describes the child; `start` starts it, which may take `start_s` seconds."""
        self.name, self.log, self._start_s = name, log, start_s
        self._module, self._config, self._ring = module, config, ring
        self._process: subprocess.Popen[bytes] | None = None
        self.channel: wire.Channel
        self.hello: dict[str, Any] | None = None
        self.about: dict[str, Any] = {}
        self.counters: dict[str, float] = {}
        self._counted_before: collections.Counter[str] = collections.Counter()
        self.deadline = 0.0
        self.failed_starts = 0
        self.outstanding: collections.deque[Any] = collections.deque()

    def start(self) -> None:
        """Starts the process and tells it its config; `hello` follows later.

        Raises:
            UserError: this Python may not be run again.
        """
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._ring.fd)
        with theirs, self.log.open("ab") as log, starting_python():
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        self.channel = wire.Channel(ours)
        self.hello = None
        self._counted_before.update(self.counters)
        self.counters = {}
        self.deadline = time.monotonic() + self._start_s
        start = {"start": {"version": wire.VERSION, "config": self._config}}
        with contextlib.suppress(OSError):  # dead already: its end is read next
            self.channel.send(start)

    @property
    def counted(self) -> dict[str, float]:
        """As `counters`, since the first start."""
        return dict(self._counted_before + collections.Counter(self.counters))

    def end(self, *, grace_s: float = 0.0) -> str:
        """Ends the process, by force after `grace_s`; how it ended, in words."""
        assert self._process is not None
        self.channel.close()
        try:
            status = self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def last_words(self) -> str:
        """The last line of its log: what it died of, if it could say so."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
