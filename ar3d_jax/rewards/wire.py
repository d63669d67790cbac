r"""The wire between the trainer, its render workers and its sidecar.

Arrays lie in one ring of shared memory; small JSON messages on a Unix-domain socket per
process say which slot of the ring is meant. No pickle crosses, and nothing has a name:
the memory is an anonymous file and the sockets are pairs, both inherited. When the last
process is gone, killed or not, so are they.

This file holds the layout, the sockets, and what every child does first. Who starts and
restarts children is `courier.py`; the children are `render/workers.py` and `sidecar/`.

The ring: a header, then `slots` slots. Little-endian; offsets in bytes.

| header    | type | field                                            | written by    |
|-----------|------|--------------------------------------------------|---------------|
| 0         | 8s   | magic, `ar3dring`                                | trainer, once |
| 8         | u32  | version of this layout and of the messages       | trainer, once |
| 12        | u32  | slots                                            | trainer, once |
| 16        | u32  | R, voxels along one side                         | trainer, once |
| 20        | u32  | V, views per object                              | trainer, once |
| 24        | u32  | H = W, pixels along one side                     | trainer, once |
| 28        | u32  | n, surface points per object                     | trainer, once |
| 32        | u32  | K, numbers of an object's feature vectors        | trainer, once |
| 36..4095  |      | zero                                             |               |

Slot i starts at 4096 + i * slot_bytes; slot_bytes and offsets are multiples of 64.

| slot      | type         | field                                    | written by    |
|-----------|--------------|------------------------------------------|---------------|
| 0         | u64          | sequence: which filling of the ring      | trainer       |
| 8         | u64          | drawn: the sequence that was drawn       | worker, last  |
| 16        | u32          | point_count: n, or 0 for an empty mesh   | worker        |
| 64        | f32[R,R,R]   | logits of the object                     | trainer       |
| then      | u8[V,H,W,3]  | views, first row on top                  | worker        |
| then      | f32[n,3]     | points on the surface                    | worker        |
| then      | u8[n,3]      | their colours, sRGB                      | worker        |
| then      | f32[K]       | vectors, as `feature_sets.py` lays them  | sidecar       |

Scoring has K = 0. Measuring has R = 0: its objects are files of meshes, which the
worker reads itself.

A slot's life; only the trainer knows and changes the state, the others act when told:

    free --object copied in--> filled --draw sent--> drawing --drawn came--> drawn
     ^                          ^                       |                      |
     |                          +----- worker died -----+        score or measure sent
     |                                                                         v
     +---- answer stored ---- scored <------- scored or measured came ----- scoring
                                                drawn <--- sidecar died ------+

In `drawing` the slot belongs to one worker, in `scoring` to the sidecar, otherwise to
the trainer; a slot is taken back only from a process that answered or is dead.

Messages, one JSON object per line:

| message                                                                    | from    |
|----------------------------------------------------------------------------|---------|
| {start: {version, config: {...}}}                                          | trainer |
| {hello: {version, pid, imported: [...]}} or {failed: "one line"}           | child   |
| {draw: slot, sequence}; of a file, also mesh: path and up: y or z          | trainer |
| {drawn: slot, sequence, seconds, error: null or "why", notes: ["line"]}    | worker  |
| {about: {scorer: {roles, model, revision, place}}}, once, after hello      | sidecar |
| {score: slot, sequence, prompt, roles: [...], patience}                    | trainer |
| {begun: slot, sequence, roles: [...]}                                      | sidecar |
| {scored: slot, sequence, seconds, scores: {role: [number or null, why]}}   | sidecar |
| {counters: {scorer/kind: number}}, so far, beside some of these            | sidecar |
| {measure: slot, sequence, caption, sets: [...]}                            | trainer |
| {measured: slot, sequence, seconds, reasons: {set: why}, truncated: [set]} | sidecar |

Objects are scored side by side, and by several scorers at once: `scored` comes once per
scorer, with its roles, in any order; after `patience` seconds, with a reason, where
there is no score. `begun` comes before a scorer of the sidecar's own process takes an
object in hand: if that process then dies, it may have died of the object. All other
requests are answered in turn. `notes` say what was passed over in a mesh file. `why` is
null where a set has its vectors; `truncated`
lists the sets that saw only the beginning of the caption.

Covered: death of any process at any time (kill -9 included), a child that hangs or does
not start, versions that differ, a slot whose content is not the one that was announced
(`sequence`), too little memory for the ring. Not covered: a child of another user or
machine, a process that scribbles over memory that is not its own, byte orders.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import fcntl
import json
import mmap
import os
import pathlib
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from ar3d_jax.errors import UserError

VERSION = 3
MAGIC = b"ar3dring"
HEADER_BYTES = 4096
MESSAGE_BYTES = 1 << 20  # a longer line is no message of ours
SEND_S = 10  # a process that reads nothing for so long is taken for dead
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_ENCODE = json.JSONEncoder(allow_nan=False).encode

_HEADER = np.dtype(
    {
        "names": [
            *("magic", "version", "slots", "resolution"),
            *("views", "size", "points", "vectors"),
        ],
        "formats": ["S8"] + ["<u4"] * 7,
        "offsets": [0, *range(8, 36, 4)],
        "itemsize": HEADER_BYTES,
    }
)


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes that place every byte of a ring.

    Attributes:
        slots: objects that may be under way at a time.
        resolution: voxels along one side, R.
        views: pictures per object, V.
        size: pixels along one side of a picture.
        points: surface points per object.
        vectors: numbers of an object's feature vectors, K.
    """

    slots: int
    resolution: int
    views: int
    size: int
    points: int
    vectors: int = 0

    @property
    def slot(self) -> np.dtype:
        """One slot, as the module's table has it."""
        logits, views = 64, 64 + _aligned(4 * self.resolution**3)
        points = views + _aligned(self.views * self.size**2 * 3)
        colours = points + _aligned(12 * self.points)
        vectors = colours + _aligned(3 * self.points)
        fields = {
            "sequence": ("<u8", 0),
            "drawn": ("<u8", 8),
            "point_count": ("<u4", 16),
            "logits": (("<f4", (self.resolution,) * 3), logits),
            "views": (("u1", (self.views, self.size, self.size, 3)), views),
            "points": (("<f4", (self.points, 3)), points),
            "colours": (("u1", (self.points, 3)), colours),
            "vectors": (("<f4", (self.vectors,)), vectors),
        }
        return np.dtype(
            {
                "names": list(fields),
                "formats": [kind for kind, _ in fields.values()],
                "offsets": [offset for _, offset in fields.values()],
                "itemsize": vectors + _aligned(4 * self.vectors),
            }
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole ring."""
        return HEADER_BYTES + self.slots * self.slot.itemsize


def available_bytes(
    meminfo: pathlib.Path = pathlib.Path("/proc/meminfo"),
    group: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
) -> int:
    """Memory that the ring may take: what the machine has left, or this container.

    The ring is an anonymous file: /dev/shm's own size, 64 MiB in many containers, does
    not bound it, memory does.
    """
    fields = (line.split() for line in meminfo.read_text("utf-8").splitlines())
    free = next(int(field[1]) for field in fields if field[0] == "MemAvailable:") * 1024
    try:
        limit = (group / "memory.max").read_text("utf-8").strip()
        used = int((group / "memory.current").read_text("utf-8"))
        fields = (
            line.split()
            for line in (group / "memory.stat").read_text("utf-8").splitlines()
        )
        used -= sum(int(n) for name, n in fields if name.endswith("active_file"))
    except OSError:  # no control group of our own, or an old kind
        return free
    return free if limit == "max" else min(free, int(limit) - used)


class Ring:
    """The shared memory, as arrays over all slots: `ring.views[slot]` and so on."""

    def __init__(self, fd: int, layout: Layout) -> None:
        """Maps the file `fd`; `create` and `attach` call this."""
        self.fd = fd
        self.layout = layout
        self._memory = mmap.mmap(fd, layout.nbytes)
        slots = np.ndarray(layout.slots, layout.slot, self._memory, HEADER_BYTES)
        self.sequence, self.drawn = slots["sequence"], slots["drawn"]
        self.point_count, self.logits = slots["point_count"], slots["logits"]
        self.views, self.points = slots["views"], slots["points"]
        self.colours, self.vectors = slots["colours"], slots["vectors"]

    @classmethod
    def create(cls, layout: Layout, available: int | None = None) -> "Ring":
        """A new ring, all of its memory taken at once.

        Raises:
            UserError: there is less than that (or than `available` bytes).
        """
        available = available_bytes() if available is None else available
        if layout.nbytes > available:
            raise UserError(
                f"shared memory: {layout.slots} objects under way take "
                f"{layout.nbytes / 2**20:.1f} MiB, {available / 2**20:.1f} MiB are "
                "free; give the machine or container more memory, or lower render.size "
                "or render.views"
            )
        fd = os.memfd_create("ar3d-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, layout.nbytes)
        except OSError as error:
            os.close(fd)
            raise UserError(
                f"shared memory: {layout.nbytes / 2**20:.1f} MiB cannot be taken "
                f"({error.strerror}); free some, or lower render.size or render.views"
            ) from error
        # Nobody can shrink it under the others, who would die of SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        ring = cls(fd, layout)
        header = np.ndarray((), _HEADER, ring._memory)
        header["magic"], header["version"] = MAGIC, VERSION
        for field, value in dataclasses.asdict(layout).items():
            header[field] = value
        return ring

    @classmethod
    def attach(cls, fd: int) -> "Ring":
        """The ring that another process made; its layout is read from the header.

        Raises:
            UserError: it is no ring, or one of another version.
        """
        size = os.fstat(fd).st_size
        header = np.zeros((), _HEADER)
        if size >= HEADER_BYTES:
            header = np.frombuffer(os.pread(fd, HEADER_BYTES, 0), _HEADER)[0]
        if header["magic"] != MAGIC or header["version"] != VERSION:
            raise UserError(
                f"shared memory holds {bytes(header['magic'])!r} version "
                f"{int(header['version'])}, expected {MAGIC!r} version {VERSION}: "
                "trainer and child must be the same ar3d_jax"
            )
        fields = [field.name for field in dataclasses.fields(Layout)]
        layout = Layout(**{field: int(header[field]) for field in fields})
        if size != layout.nbytes:
            raise UserError(f"shared memory has {size} bytes, not {layout.nbytes}")
        return cls(fd, layout)

    def close(self) -> None:
        """Closes the file; the memory itself lives as long as an array refers to it."""
        os.close(self.fd)


def read_object(text: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ValueError: it is none, or deeper than anybody writes one.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"JSON that is no object: {text[:40]!r}")
    return found


class Channel:
    """One end of a socket that carries JSON objects, one per line."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over `end`, a connected stream socket."""
        limit = struct.pack("ll", SEND_S, 0)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket = end
        self._received = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def put(self, message: dict[str, Any]) -> None:
        """Keeps `message` for the next `flush`."""
        line = _ENCODE(message).encode() + b"\n"
        if len(line) > MESSAGE_BYTES:
            raise ValueError(f"a message of {len(line)} bytes; {MESSAGE_BYTES} at most")
        self._unsent += line

    def flush(self) -> None:
        """Sends what was put, at once: each sending wakes the other end.

        Raises:
            OSError: the other end is gone, or has read nothing for `SEND_S` seconds.
        """
        unsent, self._unsent = self._unsent, bytearray()
        if unsent:
            self._socket.sendall(unsent)

    def send(self, message: dict[str, Any]) -> None:
        """Puts and flushes: see both."""
        self.put(message)
        self.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Waits for data; the messages that it completes, or None at the end.

        Raises:
            ValueError: what came is no message.
        """
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError:
            return None
        if not data:
            return None
        self._received += data
        *lines, rest = self._received.split(b"\n")
        if len(rest) > MESSAGE_BYTES:
            raise ValueError(f"more than {MESSAGE_BYTES} bytes without an end of line")
        self._received = bytearray(rest)
        return [read_object(line) for line in lines]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Messages as they come, until the other end closes."""
        while (messages := self.receive()) is not None:
            yield from messages

    def close(self) -> None:
        """Closes this end: the other one sees the end of the stream."""
        self._socket.close()


@contextlib.contextmanager
def _living_with_the_trainer(socket_fd: int) -> Iterator[Channel]:
    """The channel to the trainer, in a process that lives as long as the trainer.

    It ends with the trainer in two ways: the channel reads its end, and the kernel
    kills the child when its parent dies, which also holds while the child is stuck in a
    library. Signals to the whole terminal (Ctrl-C) or job (SIGTERM) are the trainer's
    to answer: it may still need scores to finish its step.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=socket_fd))
    try:
        yield channel
    except ConnectionError:
        pass  # the trainer is gone: nobody is left to tell
    finally:
        channel.close()


Answer = Callable[[dict[str, Any]], dict[str, Any]]
Tools = TypeVar("Tools")
Prepare = Callable[[dict[str, Any], Ring], contextlib.AbstractContextManager[Tools]]


def answer_in_turn(channel: Channel, answer: Answer) -> None:
    """One answer per request, in order, until the trainer closes its end."""
    for request in channel:
        channel.send(answer(request))


def run_child(
    prepare: Prepare[Tools], work: Callable[[Channel, Tools], None] = answer_in_turn
) -> None:
    """A child's main function: start, hello, then its work.

    `prepare` gets the start message's config and the ring; a `UserError` of it ends the
    child with status 2 and reaches the trainer as its one line. What it yields goes to
    `work`, which returns when the trainer has closed its end. The command line is
    `python -m module SOCKET_FD RING_FD`.
    """
    socket_fd, ring_fd = int(sys.argv[1]), int(sys.argv[2])
    with (
        _living_with_the_trainer(socket_fd) as channel,
        contextlib.ExitStack() as stack,
    ):
        start = next(iter(channel), None)
        if start is None:
            return
        try:
            version = start["start"]["version"]
            if version != VERSION:
                raise UserError(
                    f"wire version {version} of the trainer is not {VERSION}"
                )
            ring = Ring.attach(ring_fd)
            tools = stack.enter_context(prepare(start["start"]["config"], ring))
        except UserError as error:
            channel.send({"failed": str(error)})
            sys.exit(2)
        # The big libraries that this process has loaded: a test reads them.
        imported = [name for name in ("jax", "torch") if name in sys.modules]
        hello = {"version": VERSION, "pid": os.getpid(), "imported": imported}
        channel.send({"hello": hello})
        work(channel, tools)
