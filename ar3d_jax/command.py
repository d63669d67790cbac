"""Command lines: absl flags in, a checked config (or plain flag values) out.

`run_config` is for commands with a config file (`train`, `sft`, `train_codec`), where
every field is a flag of its own: `--config.optim.lr=1e-5`. `run` is for all others.
Whatever a user can get wrong here ends as a `UserError`: one line, exit status 2.

ml_collections' own `config_flags` is not used: it refuses a second `--config`, which
`launch/local.sh` needs (the last one wins), names only the last part of an unknown
field, and prints a traceback for an unknown preset. What fields exist and which values
they may have is in `config.py`.
"""

import ast
import contextlib
import fcntl
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import ml_collections
from absl import flags

from ar3d_jax.config import from_config_dict, to_dict
from ar3d_jax.errors import UserError, exit_on_user_error, writing


def run(main: Callable[[list[str]], None], *, verbs: Sequence[str] = ()) -> None:
    """Calls `main([command])` once absl's `flags.FLAGS` are parsed.

    Takes the place of `absl.app.run`, which ends with a page of text and status 1.

    Args:
        main: the command; with verbs, `main([command, verb])`.
        verbs: what the command can do; the command line names one of them.
    """
    with exit_on_user_error():
        verb = [word for word in sys.argv[1:2] if word in verbs]
        helping = not {"-h", "--help"}.isdisjoint(sys.argv)
        if verbs and not verb and not helping:
            given = repr(sys.argv[1]) if sys.argv[1:] else "nothing"
            raise UserError(f"{given} after the command; expected {' or '.join(verbs)}")
        parse(flags.FLAGS, [sys.argv[0], *sys.argv[1 + len(verb) :]])
        main([sys.argv[0], *verb])


def run_config(
    main: Callable[[Any, str], None],
    *,
    section: type,
    config_file: str,
    workdir: str,
    hosts: Any = None,
) -> None:
    """Calls `main(config, workdir)` for a command with `--config` and `--workdir`.

    Args:
        main: the command; its `config` is a `section`.
        section: the dataclass that the config file fills.
        config_file: the default of `--config`.
        workdir: the default of `--workdir`.
        hosts: the module `ar3d_jax.hosts` where several may run the command, by
            `--hosts` (not imported here: processes without JAX use this file).
    """
    with exit_on_user_error():
        define = _define_hosts if hosts else _no_flags
        config, values = parse_config(sys.argv, section, config_file, workdir, define)
        folder = Path(values.workdir)
        if not hosts or values.hosts == "1":
            with alone_in(folder):
                main(config, values.workdir)
            return
        if ":" not in values.config and config.preset == "tiny":
            raise UserError(
                f"--config={values.config} on several hosts is the tiny preset; "
                f"expected a written one, such as --config={values.config}:7b"
            )
        with hosts.joined(values.hosts, values.host_index, values.coordinator):
            alone = alone_in(folder) if hosts.is_first() else contextlib.nullcontext()
            with alone:
                main(config, values.workdir)


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it, until this process ends.

    Raises:
        UserError: another run is using it, or it cannot be made.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    with lock:
        keep_others_out(
            lock,
            f"another run is using {workdir}: wait for its end, or choose another "
            "--workdir",
        )
        yield


def keep_others_out(file: IO[Any], busy: str) -> None:
    """Locks an open file until it is closed; a file system without locks has none.

    Raises:
        UserError: another process has it; the message is `busy`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError:
        pass


def parse(
    values: flags.FlagValues, argv: Sequence[str], *, known_only: bool = False
) -> None:
    """Fills `values` from a command line. `--help` prints the flags and exits.

    Args:
        values: absl's flags, declared.
        argv: the command line; its first item is the command's name.
        known_only: pass over flags that were not declared.

    Raises:
        UserError: an unknown flag, a bad, missing or empty value, a stray argument.
    """
    if not known_only and not {"-h", "--help"}.isdisjoint(argv):
        print(f"{sys.modules['__main__'].__doc__ or ''}\n{values.get_help()}")
        sys.exit(0)
    values.set_gnu_getopt(known_only)  # else the value of a passed-over flag ends it
    try:
        stray = values(argv, known_only=known_only)[1:]
    except flags.Error as error:
        raise UserError(f"{error}; --help lists the flags") from None
    if stray and not known_only:
        raise UserError(f"unexpected argument {stray[0]!r}; expected --name=value")
    for name in values:  # "--workdir=$UNSET" is the folder where one stands
        flag, of_config = values[name], name.startswith("config.")
        if flag.present and flag.value == "" != flag.default and not of_config:
            raise UserError(f"--{name} is empty; expected a value, or no such flag")


def _no_flags(values: flags.FlagValues) -> None:
    """No flags beside --config, --workdir and the fields."""


def parse_config(
    argv: Sequence[str],
    section: type,
    config_file: str,
    workdir: str | None,
    define: Callable[[flags.FlagValues], None] = _no_flags,
) -> tuple[Any, flags.FlagValues]:
    """The config that a command line asks for, and its other flags.

    Args:
        argv: the command line.
        section: the dataclass that the config file fills.
        config_file: the default of `--config`.
        workdir: the default of `--workdir`; None where there is no such flag.
        define: declares the command's other flags.

    Raises:
        UserError: as `parse`; a config file that is missing or fails; an unknown
            preset; a value that the config refuses.
    """
    # The file comes first: its values are the defaults of the fields' flags.
    files = _define_files(config_file, workdir, define)
    parse(files, argv, known_only=True)
    fields = to_dict(from_config_dict(load_config_file(files.config), section))

    values = _define_files(config_file, workdir, define)
    _define_fields(values, fields, "config.")
    parse(values, argv)
    # Libraries have flags of their own and refuse to read them before a parse.
    flags.FLAGS.mark_as_parsed()
    config = from_config_dict(_collect_fields(values, fields, "config."), section)
    return config, values


def load_config_file(path: str) -> Any:
    """What get_config() of FILE.py returns, or get_config(PRESET) of FILE.py:PRESET.

    Raises:
        UserError: there is no such file, or it fails.
    """
    file, _, preset = path.partition(":")
    if not os.path.isfile(file):
        raise UserError(f"config file {file!r} not found; expected FILE.py[:PRESET]")
    try:
        found = runpy.run_path(file)["get_config"](*([preset] if preset else []))
        if not isinstance(found, Mapping | ml_collections.ConfigDict):
            raise TypeError(f"get_config() returned {found!r}, no ConfigDict")
        return found
    except UserError:
        raise
    except Exception as error:  # whatever the user's file raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        where = f" in line {lines[-1]}" if lines else ""
        raise UserError(
            f"config file {path!r} fails{where}: {type(error).__name__}: {error}; "
            "expected a file with get_config([PRESET])"
        ) from error


class _FieldParser(flags.ArgumentParser):
    """A flag's text as a Python value. `from_config_dict` checks that it fits."""

    def __init__(self, default: Any):
        self.kind = type(default)

    def parse(self, argument: Any) -> Any:
        """Texts stay texts where the field is one; commas separate those of a tuple."""
        if self.kind is str or not isinstance(argument, str):
            return argument
        try:
            value = ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            value = {"true": True, "false": False}.get(argument.lower(), argument)
        if self.kind is not tuple or isinstance(value, list | tuple):
            return value
        return tuple(value.split(",")) if isinstance(value, str) else (value,)


def _define_files(
    config_file: str, workdir: str | None, define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config",
        config_file,
        "file with get_config(), a preset after a colon: FILE.py[:PRESET]",
        flag_values=values,
    )
    if workdir is not None:
        flags.DEFINE_string(
            "workdir",
            workdir,
            "folder of the run, which goes on where it has a checkpoint",
            flag_values=values,
        )
    define(values)
    return values


def _define_hosts(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "hosts",
        "1",
        "several hosts, one process each: auto (TPU pod, SLURM, MPI), or their number",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "host_index", -1, "of this host, with --hosts=NUMBER", flag_values=values
    )
    flags.DEFINE_string(
        "coordinator",
        "",
        "ADDRESS:PORT of host 0, with --hosts=NUMBER",
        flag_values=values,
    )


def _define_fields(values: flags.FlagValues, fields: dict, prefix: str) -> None:
    for name, default in fields.items():
        if isinstance(default, dict):
            _define_fields(values, default, f"{prefix}{name}.")
            continue
        flag = flags.Flag(
            parser=_FieldParser(default),
            serializer=flags.ArgumentSerializer(),
            name=prefix + name,
            default=default,
            help_string="",
            boolean=isinstance(default, bool),  # --config.x and --noconfig.x
        )
        flags.DEFINE_flag(flag, values)


def _collect_fields(values: flags.FlagValues, fields: dict, prefix: str) -> dict:
    return {
        name: _collect_fields(values, default, f"{prefix}{name}.")
        if isinstance(default, dict)
        else values[prefix + name].value
        for name, default in fields.items()
    }
