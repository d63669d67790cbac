"""Hears at once when another host ends, and says so in one line.

JAX notices a lost host too, when its heartbeats fail, and aborts with a stack trace.
Here every host holds a connection to the first one: the kernel closes it when a process
dies, however it dies, and a host that fails by itself says why before. A machine that
loses its network without closing anything is left to JAX. Used by `hosts.py`.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading

import numpy as np
from jax.experimental import multihost_utils

LOST = 75  # exit status (EX_TEMPFAIL): try again. A user's mistake is 2, a bug is 1
CONNECT_S = 60  # our choice: all hosts are up when they connect
_DONE = b"\0"  # the last word of a host that ends well
_LONGEST = 4096


class Watch:
    """The connections of this host: the first one's to all, another one's to it."""

    def __init__(self, index: int, count: int, address: str) -> None:
        """Connects all hosts; they must call it together.

        Args:
            index: of this host.
            count: hosts.
            address: where the others reach the first one.
        """
        listener = None
        if index == 0:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server(("", 0), family=family, backlog=count)
        port = listener.getsockname()[1] if listener else 0
        port = int(multihost_utils.broadcast_one_to_all(np.int32(port)))
        self._index = index
        self._peers: dict[int, socket.socket] = {}
        if listener:
            with listener:
                listener.settimeout(CONNECT_S)
                for _ in range(count - 1):
                    peer, _ = listener.accept()
                    self._peers[int.from_bytes(peer.recv(4), "big")] = peer
        else:
            peer = socket.create_connection((address, port), CONNECT_S)
            peer.sendall(index.to_bytes(4, "big"))
            self._peers[0] = peer
        for peer in self._peers.values():
            peer.settimeout(None)
        threading.Thread(target=self._listen, daemon=True).start()

    def done(self) -> None:
        """This host has finished: when its connection closes, that is no failure."""
        self._send(_DONE)

    def failed(self, reason: str) -> None:
        """This host ends because of `reason`."""
        self._send(reason.encode()[:_LONGEST])

    def _send(self, data: bytes, but: int = -1) -> None:
        for index, peer in self._peers.items():
            if index != but:
                with contextlib.suppress(OSError):  # it is gone itself
                    peer.sendall(data)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        heard = self._peers[key.data].recv(_LONGEST)
                    except OSError:
                        heard = b""
                    if heard == _DONE:
                        selector.unregister(key.fileobj)
                    else:
                        self._end(key.data, heard.decode(errors="replace"))

    def _end(self, index: int, reason: str) -> None:
        # What the first host passes on names the host already.
        why = reason if "host" in reason else f"host {index} has ended"
        self._send(why.encode(), but=index)
        print(  # on a line of its own, after a progress bar
            f"\nerror: {why}; host {self._index} ends too: start the same command on "
            "all hosts again, it goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)
