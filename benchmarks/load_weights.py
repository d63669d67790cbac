"""Memory and time to read sharded weights: one JSON line.

    python -m benchmarks.load_weights [--gib=2]

A synthetic checkpoint of random bfloat16 tensors in files of 0.5 GiB is read onto
`--devices` devices. On a CPU these are the host's own memory, so `held_gib` (what the
devices have in the end) and what reading takes beyond are in one process. The limit is
1.2 times the largest tensor; `read_s` stands beside reading the files' bytes alone.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from absl import flags

from ar3d_jax import command
from ar3d_jax.config import PolicyConfig
from ar3d_jax.policy import hf_tensors, safetensor_files

GIB = 2**30
FILE_BYTES = GIB // 2


def sizes(gib: float) -> PolicyConfig:
    """A decoder of about `gib` GiB in bfloat16, whose largest tensor is 0.25."""
    return PolicyConfig(
        vocab_size=65_536,
        width=2048,
        layers=max(1, round((gib - 0.5) * GIB / 2 / 51e6)),
        heads=16,
        kv_heads=4,
        head_size=128,
        mlp_width=6656,
        dtype="bfloat16",
        scan_decode=True,
    )


def write(folder: Path, cfg: PolicyConfig) -> int:
    """Random tensors in several files and their index; returns the largest's bytes."""
    from ar3d_jax.policy import hf

    folder.mkdir()
    (folder / hf.CONFIG_FILE).write_text(json.dumps(hf._config(cfg, "bfloat16")))
    shapes = hf_tensors.shapes(cfg)
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = FILE_BYTES
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if size > room and groups[-1]:
            groups.append({})
            room = FILE_BYTES
        groups[-1][name] = shape
        room -= size
    rng = np.random.default_rng(0)
    index = {}
    for number, group in enumerate(groups):
        file = f"model-{number:05}.safetensors"
        header = safetensor_files.make_header(group, ml_dtypes.bfloat16)
        with safetensor_files.new_file(folder / file, header) as put:
            for name, shape in group.items():
                bits = rng.integers(0x3C00, 0x3D00, shape, np.uint16)
                put(bits.view(np.uint8).reshape(-1).data)
                index[name] = file
    (folder / safetensor_files.INDEX_FILE).write_text(json.dumps({"weight_map": index}))
    return 2 * max(int(np.prod(shape)) for shape in shapes.values())


def read(folder: Path, devices: int) -> None:
    """The child: loads, and prints what it took."""
    import jax

    from ar3d_jax.policy import hf
    from ar3d_jax.sharding import make_mesh

    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh(devices)
    with jax.set_mesh(mesh):
        jax.block_until_ready(jax.numpy.ones(8) + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    policy = jax.block_until_ready(hf.load(folder, mesh=mesh, dtype="bfloat16"))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(policy))
    found = {"read_s": seconds, "held": held, "peak": peak, "before": before}
    print(json.dumps(found))


def bytes_alone(folder: Path) -> float:
    """Seconds to read the files and do nothing."""
    began = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as bytes_of:
            while bytes_of.read(1 << 24):
                pass
    return time.perf_counter() - began


def main(_: list[str]) -> None:
    """The command."""
    values = flags.FLAGS
    if values.folder:
        read(Path(values.folder), values.devices)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        largest = write(folder, sizes(values.gib))
        alone = bytes_alone(folder)
        child = [
            *(sys.executable, "-m", "benchmarks.load_weights"),
            f"--folder={folder}",
            f"--devices={values.devices}",
        ]
        done = subprocess.run(child, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    beyond = found["peak"] - found["before"] - found["held"]
    line = {
        "held_gib": round(found["held"] / GIB, 3),
        "largest_tensor_gib": round(largest / GIB, 3),
        "beyond_gib": round(beyond / GIB, 3),
        "beyond_over_largest": round(beyond / largest, 2),
        "limit": 1.2,
        "read_s": round(found["read_s"], 2),
        "bytes_alone_s": round(alone, 2),
        "devices": values.devices,
    }
    print(json.dumps(line))


def _define_flags() -> None:
    flags.DEFINE_float("gib", 2.0, "size of the checkpoint")
    flags.DEFINE_integer("devices", 1, "that share it", 1)
    flags.DEFINE_string("folder", "", "used by the script itself")


if __name__ == "__main__":
    _define_flags()
    command.run(main)
