"""Codec weights by the published names: state dict <-> `Codec`.

The shipped tiny codec is stored in the same layout (safetensors), so one reader serves
both; the published file is a torch pickle, which a process with torch turns into
safetensors first (`rewards/sidecar/unpickle.py`). Names follow from attribute names
(see `vqvae.py`); arrays differ only in the order of axes: convolutions are
[out, in, x, y, z] in torch and [x, y, z, in, out] here.
"""

import contextlib
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ar3d_jax import tensor_check
from ar3d_jax.codec.vqvae import Codec
from ar3d_jax.config import CodecConfig
from ar3d_jax.errors import UserError, starting_python, whole_file

KINDS = (".safetensors", ".bin", ".pt", ".pth")  # the first one, and torch's pickles
_RENAMES = {
    "encoder": "Encoder",
    "decoder": "Decoder",
    "out_norm": "out_layer.0",
    "out_conv": "out_layer.2",
    "codebook": "vq.embeddings.weight",
}


def _name(path: tuple) -> str:
    keys = [
        str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path
    ]
    return ".".join(
        _RENAMES.get(key, key) for key in keys if key not in ("value", "raw_value")
    )


def named_leaves(codec: Codec) -> dict[str, Any]:
    """The codec's arrays (or abstract ones) in our layout, by their published names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(codec)
    return {_name(path): leaf for path, leaf in leaves}


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> CodecConfig:
    """The sizes that a state dict of these shapes belongs to.

    The resolution is not in the weights: 4 latent cells make one code, and a codec
    is built for the grid whose coarsest level the published one has (16 cells at
    64^3); `load` takes another resolution where it is given.
    """
    try:
        codes, code_size = shapes["vq.embeddings.weight"]
        channels = [shapes["Encoder.input_layer.weight"][0]]
        blocks, index, count = [], 0, 0
        while any(name.startswith(f"Encoder.blocks.{index}.") for name in shapes):
            down = shapes.get(f"Encoder.blocks.{index}.conv.weight")
            if down is None:
                count += 1
            else:
                blocks.append(count)
                channels.append(down[0])
                count = 0
            index += 1
        blocks.append(count)
        middle = 0
        while f"Encoder.middle_block.{middle}.norm1.weight" in shapes:
            middle += 1
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"the codec weights have no tensor {error.args[0]!r} of the right rank; "
            "expected a safetensors file of the 3D VQ-VAE"
        ) from None
    return CodecConfig(
        channels=tuple(channels),
        blocks=tuple(blocks),
        middle_blocks=middle,
        latent_channels=code_size // 4,
        codes=codes,
        resolution=16 * 2 ** (len(channels) - 1),
    )


def _to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(4, 3, 0, 1, 2) if array.ndim == 5 else array


def _from_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 4, 1, 0) if array.ndim == 5 else array


def from_state_dict(tensors: Mapping[str, np.ndarray], config: CodecConfig) -> Codec:
    """The codec holding `tensors`, in float32.

    Raises:
        UserError: naming all tensors that are missing, unexpected or of a wrong shape.
    """
    template = jax.eval_shape(lambda key: Codec(config, key), jax.random.key(0))
    expected = named_leaves(template)
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors)]
    problems += [f"{name} is unexpected" for name in sorted(tensors.keys() - expected)]
    leaves = []
    for name, leaf in expected.items():
        if name not in tensors:
            continue
        value = _from_torch(np.asarray(tensors[name]))
        if value.shape != leaf.shape:
            want = _to_torch(np.empty(leaf.shape, np.bool_)).shape
            problems.append(f"{name} is {tuple(tensors[name].shape)}, expected {want}")
        leaves.append(jnp.asarray(value, jnp.float32))
    if problems:
        raise UserError(
            f"the codec weights do not fit {config}: {'; '.join(problems[:5])}"
            + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        )
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def load(path: str | pathlib.Path, config: CodecConfig | None = None) -> Codec:
    """The codec stored at `path`; sizes are read from its shapes.

    Args:
        path: a safetensors file or torch pickle with the published tensor names, any
            float type; or a folder with one of them.
        config: the sizes that the weights must have; None takes the file's.

    Raises:
        UserError: the file is missing, unreadable or of other sizes than `config`; a
            tensor is not finite or all zeros.
    """
    path = weights_file(pathlib.Path(path))
    with contextlib.ExitStack() as stack:
        try:
            readable = stack.enter_context(_as_safetensors(path))
            with safetensors.safe_open(str(readable), framework="numpy") as file:
                resolution = (file.metadata() or {}).get("resolution")
            tensors = safetensors.numpy.load_file(str(readable))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"codec weights {path} cannot be read ({error}); expected a "
                "safetensors file or torch checkpoint of the 3D VQ-VAE"
            ) from None
    for name, value in tensors.items():
        table = name == "vq.embeddings.weight"
        check = tensor_check.TensorCheck(path, name, table=table)
        check.look(value)
        if not name.endswith("conv2.weight"):  # which are zeros before training
            check.end()
    found = infer_config({name: tensor.shape for name, tensor in tensors.items()})
    if resolution:
        found = dataclasses.replace(found, resolution=int(resolution))
        if config and config.resolution != found.resolution:
            raise UserError(
                f"codec weights {path} are of {found.resolution}^3 voxels; "
                f"codec.resolution is {config.resolution}: make them equal"
            )
    return from_state_dict(tensors, config or found)


def weights_file(path: pathlib.Path) -> pathlib.Path:
    """The weights in a folder, or the file itself.

    Raises:
        UserError: a folder with none or several.
    """
    if not path.is_dir():
        return path
    found = [file for kind in KINDS for file in sorted(path.glob("*" + kind))]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(
            f"codec weights {path}: {names}; expected one file of {', '.join(KINDS)}: "
            "name the file itself"
        )
    return found[0]


@contextlib.contextmanager
def _as_safetensors(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file itself, or what a process with torch makes of its pickle."""
    if path.suffix not in KINDS[1:] or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "codec.safetensors"
        command = [sys.executable, "-m", "ar3d_jax.rewards.sidecar.unpickle"]
        with starting_python():
            done = subprocess.run(
                [*command, str(path), str(target)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["no torch"])[-1])
        yield target


def save(codec: Codec, path: str | pathlib.Path, dtype: np.typing.DTypeLike) -> None:
    """Writes the codec as safetensors of `dtype`, by the published names."""
    tensors = {
        name: np.ascontiguousarray(_to_torch(np.asarray(leaf, dtype)))
        for name, leaf in named_leaves(codec).items()
    }
    metadata = {"resolution": str(codec.config.resolution)}
    with whole_file(pathlib.Path(path)) as partial:
        safetensors.numpy.save_file(tensors, str(partial), metadata)
