"""Several hosts, one process each: who has which rows, and how all agree.

Every host runs the same program with the same prompts, random numbers and decisions;
arrays on the mesh are global. What is a host's own: the rows of a batch whose devices
it has, and for those the codec, the drawing, the scoring. A group's rows are on one
host. With one host every function here returns at once, so that callers have no "are
there several?" branches.

A host that fails or is killed ends all of them, at once where the network says so
(`host_watch.py`), else within HEARTBEAT_S. The same command on all hosts goes on from
the last checkpoint.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed

from ar3d_jax.errors import UserError, exit_on_user_error
from ar3d_jax.host_watch import Watch
from ar3d_jax.sharding import ROWS_B

HEARTBEAT_S = 30  # until a silent host counts as dead; our choice, jax's is 100
START_S = 600  # for all hosts to arrive; our choice: a pod's setups differ by minutes

# In what JAX says when it is not this process that failed.
_OTHERS = ("gloo", "coordination", "heartbeat", "distributed service", "unavailable")


@contextlib.contextmanager
def joined(hosts: str, index: int = -1, coordinator: str = "") -> Iterator[None]:
    """Runs the block with all hosts under `jax.distributed`; before any use of JAX.

    Args:
        hosts: "1"; "auto" where the cluster says who is there (TPU pods, SLURM, MPI);
            else their number, with the two other arguments.
        index: of this host, from 0.
        coordinator: ADDRESS:PORT of host 0, which listens there.

    Raises:
        UserError: arguments that do not fit each other, hosts that cannot be found.
    """
    if hosts == "1":
        yield
        return
    watch = _connect(hosts, index, coordinator)
    try:
        yield
    except BaseException as error:
        # Leaving in order would wait for hosts that wait for this one.
        os._exit(_last_words(error, watch))
    watch.done()
    jax.distributed.shutdown()


def _connect(hosts: str, index: int, coordinator: str) -> Watch:
    where: dict[str, Any] = {}
    if hosts != "auto":
        if not hosts.isdigit() or not 0 <= index < int(hosts) or ":" not in coordinator:
            raise UserError(
                f"--hosts={hosts} --host_index={index} --coordinator={coordinator}; "
                "expected --hosts=auto, or a number with an index below it and "
                "ADDRESS:PORT of host 0"
            )
        where = {
            "coordinator_address": coordinator,
            "num_processes": int(hosts),
            "process_id": index,
        }
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=START_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
        # JAX tells nobody what it found out about the first host's address.
        found = coordinator or distributed.global_state.coordinator_address or ""
        address = found.rpartition(":")[0].strip("[]")
        return Watch(jax.process_index(), count(), address)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"--hosts={hosts}: the hosts do not find each other ({error}); expected a "
            "TPU pod, SLURM or MPI, or --hosts=N --host_index=I "
            "--coordinator=ADDRESS:PORT on each"
        ) from error


def _last_words(error: BaseException, watch: Watch) -> int:
    """Says here and to the others why this host ends; returns its exit status."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if any(sign in text.lower() for sign in _OTHERS):
        time.sleep(1)  # the watch knows more, and ends this process
    name = f"host {jax.process_index()} of {count()}"
    try:
        with exit_on_user_error():
            raise error
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        text = str(error)
    except BaseException:
        traceback.print_exc()
        status = 1
    watch.failed(f"{name} has ended with status {status} ({text[:500]})")
    sys.stderr.flush()
    return status


def is_first() -> bool:
    """Whether this is the host that writes what only one may write."""
    return jax.process_index() == 0


def count() -> int:
    """Number of hosts."""
    return jax.process_count()


def name() -> str:
    """Of this host in file names: empty for the only or first one."""
    return "" if is_first() else f"host_{jax.process_index()}"


def check_mesh() -> None:
    """Refuses a mesh that would part a group's rows between hosts.

    Raises:
        UserError: the mesh leaves out a host's devices, or `tp` joins two hosts.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.size < jax.device_count() and count() > 1:
        raise UserError(
            f"mesh.data * mesh.fsdp * mesh.tp is {mesh.size}; {count()} hosts have "
            f"{jax.device_count()} devices together: use them all"
        )
    if any(len(owners) > 1 for owners in _owners()):
        raise UserError(
            f"mesh.tp={mesh.shape['tp']} joins devices of two hosts; expected a "
            "divisor of the number that one host has"
        )


def own_rows(rows: int) -> np.ndarray:
    """Indices of a batch's rows that are this host's, ascending."""
    if count() == 1:
        return np.arange(rows)
    owners = np.array([min(owners) for owners in _owners()])
    of_row = np.repeat(owners, rows // len(owners))
    return np.flatnonzero(of_row == jax.process_index())


def _owners() -> list[set[int]]:
    """The processes of each part of the batch."""
    devices = jax.sharding.get_mesh().devices
    parts = devices.reshape(-1, devices.shape[-1])
    return [{device.process_index for device in part} for part in parts]


def gather(own: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """All hosts' rows, on every host: arrays [own rows] to arrays [rows], float32.

    All hosts must call it together, with the same names.
    """
    if count() == 1 or not own:
        return dict(own)
    table = np.stack([np.asarray(own[name], np.float32) for name in own], axis=1)
    place = {row: i for i, row in enumerate(own_rows(rows))}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        these = range(rows)[index[0]] if index else range(rows)
        return table[[place[row] for row in these]]

    layout = jax.NamedSharding(jax.sharding.get_mesh(), jax.P(*ROWS_B, None))
    array = jax.make_array_from_callback((rows, table.shape[1]), layout, part)
    columns = everywhere(array)
    return {name: columns[:, i] for i, name in enumerate(own)}


def total(value: float) -> float:
    """Its sum over all hosts, on every host. All hosts must call it together."""
    if count() == 1:
        return value
    parts = len(_owners())
    own = len(own_rows(parts))
    return float(gather({"": np.full(own, value / own)}, parts)[""].sum())


def any_of(flag: bool) -> bool:
    """Whether it is True on any host. All hosts must call it together."""
    return total(float(flag)) > 0


def agree(number: int) -> bool:
    """Whether all hosts have the same one, below 2**24, which float32 holds exactly.

    All hosts must call it together.
    """
    if count() == 1:
        return True
    parts = len(_owners())
    own = np.full(len(own_rows(parts)), number)
    return len(set(gather({"": own}, parts)[""].tolist())) == 1


def everywhere(x: jax.Array) -> np.ndarray:
    """The whole of a small global array, on every host."""
    if not x.is_fully_addressable:
        x = jax.sharding.reshard(x, jax.P(*(None,) * x.ndim))
    return np.asarray(x)


def own(x: jax.Array) -> np.ndarray:
    """This host's rows of an array whose first axis is split over devices, in order."""
    if x.is_fully_addressable:
        return np.asarray(x)
    shards = {shard.index[0].start: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def on_all_devices(tree: Any) -> Any:
    """Arrays that every host has, whole on every device of the mesh."""
    layout = jax.NamedSharding(jax.sharding.get_mesh(), jax.P())

    def put(x: jax.Array) -> jax.Array:
        values = np.asarray(x)
        return jax.make_array_from_callback(
            x.shape, layout, lambda index: values[index]
        )

    return jax.tree.map(put, tree)
