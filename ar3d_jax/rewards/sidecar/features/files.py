"""Published files to torch modules, with one line for all that can be wrong.

Nothing that a pickle could call is called: torch files are read as tensors only.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from ar3d_jax.errors import UserError
from ar3d_jax.rewards.sidecar import wrong_tensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a published folder
_NAMED = 3  # of the tensors that do not fit, so many of each kind are named

# By name: what a tensor has, and what it should have; a size may be known as a letter.
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int | str, ...]]]


def refuse(field: str, path: Path, problem: str, expected: str) -> NoReturn:
    """Ends the loading.

    Raises:
        UserError: always; `field` of the config names `path`, which has a `problem`.
    """
    raise UserError(
        f"{field}: {path} {problem}; expected {expected}: fetch it again, or pass "
        f"another --config.{field}"
    )


def misfits(
    missing: Iterable[str], misshapen: Shapes, extra: Iterable[str] = ()
) -> str:
    """Which tensors of a file do not fit, in words; nothing where all do.

    As in "lacks a, b, c and 2 more; has d of shape (1,), not (2,); has besides e".
    """
    shapes = [f"{name} of shape {a}, not {b}" for name, (a, b) in misshapen.items()]
    kinds = {"lacks": list(missing), "has": shapes, "has besides": list(extra)}
    return "; ".join(f"{verb} {_some(names)}" for verb, names in kinds.items() if names)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def first_line(error: Exception) -> str:
    """What an exception says, in one line that is not too long."""
    said = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {said}"


def refuse_damage(
    tensors: Iterable[tuple[str, Tensor]], path: Path, field: str, expected: str
) -> None:
    """Refuses tensors, by name, as `wrong_tensors.problem_of` says it.

    Raises:
        UserError: one cannot be right.
    """
    for name, tensor in tensors:
        if problem := wrong_tensors.problem_of(name, tensor):
            refuse(field, path, problem, expected)


def read_tensors(
    path: Path, field: str, expected: str, *, key: str | None = None, mmap: bool = False
) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch file, or of a torch file's entry `key`.

    With `mmap` those of a torch file stay on the disk until they are used.

    Raises:
        UserError: it is missing or broken, or holds something else.
    """
    if not path.is_file():
        refuse(field, path, "is no file", expected)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # of pickle's, of zip's, of torch's: many kinds
        refuse(field, path, f"cannot be read ({first_line(error)})", expected)
    where = ""
    if key is not None:
        if not isinstance(state, dict) or key not in state:
            refuse(field, path, f"has no {key}", expected)
        state, where = state[key], f" under {key}"
    tensors = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor)
        for name, tensor in state.items()
    )
    if not tensors:
        problem = f"holds something else than named tensors{where}"
        refuse(field, path, problem, expected)
    return state


def read_folder(
    folder: Path, kind: str, field: str, expected: str
) -> tuple[Any, dict[str, Tensor], Path]:
    """Of a published folder: its config, its tensors, and their file.

    Args:
        folder: with config.json and one of `WEIGHTS`.
        kind: the model_type that the config must state.
        field: of our config, for messages.
        expected: what the folder should be, for messages.

    Raises:
        UserError: a file is missing or broken, or it is another kind of network.
    """
    if not folder.is_dir():
        refuse(field, folder, "is no folder", expected)
    place = folder / "config.json"
    try:
        stated = json.loads(place.read_text("utf-8"))
        found = stated["model_type"]
        config = transformers.AutoConfig.for_model(**stated) if found == kind else None
    except FileNotFoundError:
        refuse(field, folder, "has no config.json", expected)
    except Exception as error:  # transformers checks fields with kinds of its own
        refuse(field, place, f"cannot be read ({first_line(error)})", expected)
    if config is None:
        refuse(field, folder, f"is a network of type {found!r}, not {kind}", expected)
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        refuse(field, folder, f"has no {' or '.join(WEIGHTS)}", expected)
    return config, read_tensors(there[0], field, expected), there[0]


def build(
    model: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    path: Path,
    field: str,
    expected: str,
) -> Any:
    """The transformers class `model` with these tensors, in float32, ready to use.

    Raises:
        UserError: a tensor is missing, has another shape or cannot be right.
    """
    transformers.logging.set_verbosity_error()  # what it would report, we raise
    transformers.logging.disable_progress_bar()
    built, found = model.from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # Sets: in order, so that the same file gives the same line.
    misshapen = sorted(found["mismatched_keys"])
    shapes: Shapes = {name: (tuple(a), tuple(b)) for name, a, b in misshapen}
    problem = misfits(sorted(found["missing_keys"]), shapes)
    if problem:
        refuse(field, path, problem, expected)
    refuse_damage(built.named_parameters(), path, field, expected)
    return built.eval()


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    field: str,
    expected: str,
) -> None:
    """Copies the tensors that a module of ours has names for.

    Raises:
        UserError: a tensor is missing, has another shape or cannot be right.
    """
    wanted = numbers_of(module)
    compare(wanted, tensors, path, field, expected)
    used = ((name, tensors[name]) for name in wanted)
    refuse_damage(used, path, field, expected)
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def numbers_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by name, but for those that play no part here.

    BatchNorm counts what it was trained on, in integers.
    """
    state = module.state_dict()
    return {name: t for name, t in state.items() if t.is_floating_point()}


def compare(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    path: Path,
    field: str,
    expected: str,
    *,
    extra: Iterable[str] = (),
) -> None:
    """Makes sure that `tensors` have all the `wanted` ones, in their shapes.

    Raises:
        UserError: they have not, or there are `extra` ones.
    """
    shapes: Shapes = {
        name: (tuple(tensors[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    }
    problem = misfits((name for name in wanted if name not in tensors), shapes, extra)
    if problem:
        refuse(field, path, problem, expected)
