"""State on disk: everything a run needs to go on as if it had not stopped.

Used by `train.py` and `sft.py`. A checkpoint holds a pytree of arrays (policy,
optimiser, step) under readable names, `policy/blocks/qkv`, and a JSON object with the
rest: random key, position in the data. Weights for other programs are `policy.hf`.

Covered: a kill at any moment (Orbax renames a finished folder into place), a truncated
or altered file (`digests.json` in the folder), a full or read-only disk, arrays of
another model, a run with other settings. Not covered: a disk that loses what it
reported written; two runs in one folder, which `command.alone_in` keeps apart.
"""

import base64
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ar3d_jax import contents, hosts
from ar3d_jax.contents import Held
from ar3d_jax.errors import OUT_OF_MEMORY, UserError, writing

FORMAT = 1  # of the names and the JSON object; another number is refused
_DIGESTS = "digests.json"  # what each file of a checkpoint was when it was written
_METADATA = "_CHECKPOINT_METADATA"  # Orbax's times; written once more, never needed

State = TypeVar("State")


class Checkpoints:
    """The last checkpoints of a run, in one folder; a context manager.

    Attributes:
        directory: where they are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        settings: Mapping[str, Any],
        held: Held | None = None,
        may_change: Callable[[str, Any, Any], bool] = lambda name, saved, new: False,
        read_only: bool = False,
    ) -> None:
        """Opens or creates the folder; clears what a kill left half-written.

        Args:
            directory: its checkpoints belong to one run.
            keep: older ones are deleted.
            settings: JSON values that a resumed run must share with the one that saved,
                such as the seed.
            held: what the paths among the settings hold, by name.
            may_change: whether a setting (its name, as saved, now) may do so.
            read_only: touch nothing, for a folder that a run may be writing to.

        Raises:
            UserError: the folder cannot be written, or has a name that Orbax cannot
                write; or read-only is not there.
        """
        self.directory = directory.absolute()
        try:
            str(self.directory).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"checkpoints in {self.directory}: its name is not UTF-8, and "
                "TensorStore writes to no other; choose another --workdir"
            ) from None
        self._settings = json.loads(json.dumps(settings))
        self._held: dict[str, Any] = dict(held or {})
        self._may_change, self._read_only = may_change, read_only
        _silence_tracebacks()
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"no checkpoints in {self.directory}: expected those of a training"
            )
        with writing(directory):
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            self._orbax = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._write_digests
                    ),
                ),
            )

    def save(self, state: Any, step: int, extras: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; returns when `state` may be donated.

        The newest step that is there already is not written again.

        Args:
            state: a pytree of arrays.
            step: optimiser steps done.
            extras: JSON values, also bytes and random keys.

        Raises:
            UserError: the disk is full or not writable; also where it was so for the
                previous checkpoint, whose writing ended meanwhile.
        """
        if step == self._orbax.latest_step():
            return
        self.wait()
        self._saving = step
        arrays = _by_name(state)
        note = {
            "format": FORMAT,
            "settings": self._settings,
            "held": self._held,
            "arrays": {name: _kind(array) for name, array in arrays.items()},
            "extras": _to_json(extras),
        }
        with writing(self.directory):
            self._orbax.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(arrays), note=ocp.args.JsonSave(note)
                ),
                force=True,
            )

    def restore_latest(
        self, template: State
    ) -> tuple[State, int, dict[str, Any]] | None:
        """The newest readable checkpoint: (state, step, extras); None without one.

        `template` gives names, shapes, types and layouts: arrays, or the abstract ones
        of `jax.eval_shape` under `jax.set_mesh`; a part of what was saved is enough. An
        unreadable checkpoint is said so on stderr, and renamed to `unreadable-<step>`
        (unless read-only).

        Raises:
            UserError: no checkpoint can be read, or the newest readable one belongs to
                another model or run.
        """
        self.wait()
        structure = jax.tree.structure(template)
        wanted = {name: _abstract(leaf) for name, leaf in _by_name(template).items()}
        problems: dict[int, Exception] = {}
        for step in sorted(self._orbax.all_steps(), reverse=True):
            try:
                arrays, extras = self._restore(step, wanted)
            except (UserError, MemoryError):
                raise
            except Exception as error:  # Orbax raises bare Exception for damaged data
                if OUT_OF_MEMORY in str(error):
                    raise  # the checkpoint is not to blame
                problems[step] = error
                continue
            self._set_aside(problems)
            state = jax.tree.unflatten(structure, [arrays[name] for name in wanted])
            return state, step, extras
        if problems:
            raise UserError(
                f"no checkpoint in {self.directory} can be read "
                f"({_first_line(problems[max(problems)])}); "
                "start again in another --workdir"
            )
        return None

    def discard_after(self, step: int) -> int | None:
        """Deletes the checkpoints of later steps; the newest step that is left."""
        self.wait()
        if hosts.is_first():
            for folder in self.directory.iterdir():
                if folder.name.isdigit() and int(folder.name) > step:
                    shutil.rmtree(folder)
        hosts.total(0.0)  # all wait for the first one's deleting
        self._orbax.reload()
        return self._orbax.latest_step()

    def wait(self) -> None:
        """Returns when what was saved is on the disk.

        Raises:
            UserError: the disk is full or not writable.
        """
        with writing(self.directory):
            self._orbax.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finishes writing. An error from inside the block goes first."""
        try:
            self.wait()
        except UserError:
            if error is None:
                raise
        finally:
            self._orbax.close()

    def _restore(
        self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        self._check_digests(self.directory / str(step))
        note = self._orbax.restore(
            step, args=ocp.args.Composite(note=ocp.args.JsonRestore())
        )["note"]
        self._check(step, note, wanted)
        arrays = self._orbax.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                    partial_restore=True,
                )
            ),
        )["arrays"]
        return arrays, _from_json(note["extras"])

    def _write_digests(self) -> None:
        """Called in Orbax's thread when all is written, before the folder is renamed.

        Orbax itself notices a truncated file with pages of tracebacks, and an altered
        one not at all.
        """
        (folder,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        digests = {
            str(path.relative_to(folder)): _digest(path)
            for path in folder.rglob("*")
            if path.is_file() and path.name != _METADATA
        }
        (folder / _DIGESTS).write_text(json.dumps(digests), "utf-8")

    def _check_digests(self, folder: Path) -> None:
        """Each host reads its share of the files; all come to the same answer."""
        problem = None
        try:
            digests = sorted(json.loads((folder / _DIGESTS).read_text("utf-8")).items())
            for name, digest in digests[jax.process_index() :: hosts.count()]:
                if _digest(folder / name) != digest:
                    raise ValueError(f"{name} is not as it was written")
        except (OSError, ValueError) as error:
            problem = error
        if hosts.any_of(problem is not None):
            raise problem or ValueError("another host cannot read it")

    def _check(
        self, step: int, note: Mapping[str, Any], wanted: Mapping[str, Any]
    ) -> None:
        """Raises UserError, naming the first thing that does not fit."""
        place = f"checkpoint {self.directory / str(step)}"
        if note["format"] != FORMAT:
            raise UserError(
                f"{place} has format {note['format']}; expected {FORMAT}: another "
                "version of ar3d_jax wrote it; start again in another --workdir"
            )
        for name, value in self._settings.items():
            saved = note["settings"].get(name)
            if saved != value and not self._may_change(name, saved, value):
                raise UserError(
                    f"{place} was written with {name}={saved!r}; this run has "
                    f"{value!r}: restore that value or choose another --workdir"
                )
        older = note.get("held", {})  # checkpoints before this was kept have none
        if problem := contents.difference(older, self._held):
            raise UserError(
                f"{place} was written when {problem}: restore that or choose another "
                "--workdir"
            )
        self._held = older | self._held  # also of scorers that are off now
        for name, array in wanted.items():
            saved = note["arrays"].get(name, "nothing")
            if saved != _kind(array):
                raise UserError(
                    f"{place} holds {saved} for {name}; this run's model has "
                    f"{_kind(array)}: restore its sizes or choose another --workdir"
                )

    def _set_aside(self, problems: Mapping[int, Exception]) -> None:
        for step, error in problems.items():
            folder = self.directory / str(step)
            target = folder.with_name(f"unreadable-{step}")
            kept = "" if self._read_only else f"kept as {target.name}, "
            print(
                f"checkpoint {folder} cannot be read ({_first_line(error)}); {kept}"
                "going back to the one before",
                file=sys.stderr,
                flush=True,
            )
            if self._read_only or not hosts.is_first():
                continue
            while target.exists():
                target = target.with_name(target.name + "+")
            folder.rename(target)
        if problems and not self._read_only:
            hosts.total(0.0)  # all wait for the first one's renaming
            self._orbax.reload()


def _silence_tracebacks() -> None:
    """Orbax logs a page per failure; what matters arrives as the exception."""
    logging.getLogger("absl").addFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves under their paths, `policy/blocks/q` and `opt_state/0/mu/blocks/q`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix(
            "/value"  # the inside of an nnx.Param
        ): leaf
        for path, leaf in leaves
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _kind(array: Any) -> str:
    """Such as float32[4, 192]."""
    return f"{array.dtype.name}{list(array.shape)}"


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding
    if not isinstance(leaf, jax.Array):
        # `jax.eval_shape` forgets the devices; the mesh that is set knows them.
        spec = sharding.spec if sharding else jax.P()
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _to_json(extras: Mapping[str, Any]) -> Any:
    def encode(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"__bytes__": base64.b64encode(value).decode()}
        if isinstance(value, jax.Array):
            words = np.asarray(jax.random.key_data(value))
            return {"__key__": words.tolist(), "impl": str(jax.random.key_impl(value))}
        raise TypeError(f"{value!r} in extras: expected JSON, bytes or a random key")

    return json.loads(json.dumps(extras, default=encode))


def _from_json(value: Any) -> Any:
    def decode(item: dict[str, Any]) -> Any:
        if "__bytes__" in item:
            return base64.b64decode(item["__bytes__"])
        if "__key__" in item:
            words = jnp.asarray(item["__key__"], jnp.uint32)
            return jax.random.wrap_key_data(words, impl=item["impl"])
        return item

    return json.loads(json.dumps(value), object_hook=decode)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
