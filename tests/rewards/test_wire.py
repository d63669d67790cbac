import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.rewards import wire

LAYOUT = wire.Layout(slots=3, resolution=4, views=2, size=5, points=6, vectors=20)


@pytest.fixture
def ring():
    ring = wire.Ring.create(LAYOUT)
    yield ring
    ring.close()


def test_bytes_lie_where_the_table_says(ring):
    # Logits 4 * 4^3 = 256 bytes; views 2 * 5 * 5 * 3 = 150, padded to 192; points 72,
    # padded to 128; colours 18, padded to 64; vectors 80, padded to 128.
    slot_bytes = 64 + 256 + 192 + 128 + 64 + 128
    assert LAYOUT.nbytes == 4096 + 3 * slot_bytes
    ring.sequence[2], ring.drawn[2], ring.point_count[2] = 7, 8, 6
    ring.logits[2], ring.views[2], ring.points[2] = 1.5, 9, -2.5
    ring.colours[2], ring.vectors[2] = 200, 3.5
    with mmap.mmap(ring.fd, LAYOUT.nbytes) as memory:
        header = struct.unpack_from("<8s7I", memory, 0)
        assert header == (b"ar3dring", wire.VERSION, 3, 4, 2, 5, 6, 20)
        slot = memory[4096 + 2 * slot_bytes :]
    assert struct.unpack_from("<QQI", slot, 0) == (7, 8, 6)
    assert struct.unpack_from("<64f", slot, 64) == (1.5,) * 64
    assert slot[64 + 256 :][:150] == bytes([9] * 150)
    assert struct.unpack_from("<18f", slot, 64 + 256 + 192) == (-2.5,) * 18
    assert slot[64 + 256 + 192 + 128 :][:18] == bytes([200] * 18)
    assert struct.unpack_from("<20f", slot, 64 + 256 + 192 + 128 + 64) == (3.5,) * 20


def test_a_ring_of_mesh_files_has_no_room_for_logits():
    layout = wire.Layout(slots=2, resolution=0, views=1, size=16, points=2)
    ring = wire.Ring.create(layout)
    assert layout.nbytes == 4096 + 2 * (64 + 16 * 16 * 3 + 64 + 64)
    ring.points[1] = 2.0
    assert (wire.Ring.attach(ring.fd).points[1] == 2.0).all()
    ring.close()


def test_an_attached_ring_is_the_same_memory(ring):
    other = wire.Ring.attach(ring.fd)
    assert other.layout == LAYOUT
    ring.views[1, 0, 0, 0] = 1, 2, 3
    assert other.views[1, 0, 0, 0].tolist() == [1, 2, 3]
    other.logits[0] = 4.0
    assert (ring.logits[0] == 4.0).all()


def test_a_ring_has_no_name_and_cannot_shrink(ring):
    assert "memfd" in os.readlink(f"/proc/self/fd/{ring.fd}")
    with pytest.raises(PermissionError):
        os.ftruncate(ring.fd, 4096)


IN_A_CONTAINER = """
import os
from ar3d_jax.rewards import wire

ring = wire.Ring.create(wire.Layout(90, 8, 6, 360, 8))
for slot in range(90):
    ring.views[slot] = slot
free = os.statvfs("/dev/shm")
print(free.f_blocks * free.f_frsize, ring.views.nbytes, int(ring.views[89].min()))
"""


def test_the_size_of_dev_shm_does_not_bound_a_ring():
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    inside = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small /dev/shm")
    done = subprocess.run(
        [*inside, sys.executable, "-c", IN_A_CONTAINER],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    size, written, last = map(int, done.stdout.split())
    assert (size, last) == (64 << 20, 89)
    assert written > 200 << 20


def test_too_little_memory_is_one_line():
    with pytest.raises(UserError, match=r"3 objects .* 0\.0 MiB are free.*lower"):
        wire.Ring.create(LAYOUT, available=4096)


def test_available_memory_is_the_machines_or_the_containers(tmp_path):
    assert 2**20 < wire.available_bytes() < 2**50
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    meminfo.write_text("MemTotal:  999 kB\nMemAvailable:  100 kB\nCached: 5 kB\n")
    assert wire.available_bytes(meminfo, group) == 102_400
    group.mkdir()
    (group / "memory.current").write_text("70000\n")
    # A cache of files goes when memory is asked for.
    stat = (
        "anon 40000\nfile 30000\nshmem 10000\ninactive_file 15000\nactive_file 5000\n"
    )
    (group / "memory.stat").write_text(stat)
    for limit, available in (("max", 102_400), ("90000", 40_000), ("900000", 102_400)):
        (group / "memory.max").write_text(limit + "\n")
        assert wire.available_bytes(meminfo, group) == available


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            struct.pack("<8sI", b"ar3dring", wire.VERSION + 1),
            f"version {wire.VERSION + 1}, expected",
        ),
        (b"something", "same ar3d_jax"),
        (struct.pack("<8s6I", b"ar3dring", wire.VERSION, 9, 9, 9, 9, 9), "has 4096 b"),
    ],
)
def test_foreign_memory_is_refused(content, message):
    fd = os.memfd_create("foreign")
    try:
        os.write(fd, content.ljust(4096, b"\0"))
        with pytest.raises(UserError, match=message):
            wire.Ring.attach(fd)
    finally:
        os.close(fd)


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    channel = wire.Channel(left)
    with right:
        yield channel, right
    channel.close()


def test_messages_are_lines(ends):
    channel, end = ends
    channel.send({"a": [1, None, "ü\n"]})
    line = end.recv(100)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"a": [1, None, "ü\n"]}


def test_messages_may_come_in_pieces_and_in_heaps(ends):
    channel, end = ends
    end.sendall(b'{"a": 1}\n{"b"')
    assert channel.receive() == [{"a": 1}]
    end.sendall(b": 2")
    assert channel.receive() == []
    end.sendall(b'}\n{"c": 3}\n')
    assert channel.receive() == [{"b": 2}, {"c": 3}]
    end.sendall(b'{"d": 4}\n')
    end.close()
    assert list(channel) == [{"d": 4}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"nonsense", "Expecting value"),
        (b"", "Expecting value"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"a":' * 60_000, "nested too deeply"),
        (b"[]", "no object"),
        (b"7", "no object"),
        (b'"hello"', "no object"),
        (b"null", "no object"),
        (b'{"a": "\xff"}', "decode"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_no_message_is_refused(ends, line, problem):
    channel, end = ends
    sending = threading.Thread(target=end.sendall, args=[line + b"\n"])
    sending.start()  # more than the socket holds, perhaps
    with pytest.raises(ValueError, match=problem):
        list(channel)
    sending.join()


def test_an_endless_line_is_refused(ends, monkeypatch):
    monkeypatch.setattr(wire, "MESSAGE_BYTES", 100)
    channel, end = ends
    end.sendall(b"x" * 101)
    with pytest.raises(ValueError, match="without an end of line"):
        channel.receive()
    with pytest.raises(ValueError, match="100 at most"):
        channel.send({"a": "x" * 100})


def test_nan_cannot_be_sent(ends):
    with pytest.raises(ValueError, match="JSON"):
        ends[0].send({"a": float("nan")})


def test_scores_keep_their_bits():
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    text = json.dumps([float(value) for value in values])
    assert (np.float32(json.loads(text)) == values).all()
