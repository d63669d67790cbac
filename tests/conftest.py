"""What every test runs under: strict JAX, eight fake CPU devices, a mesh, no network.

Shape annotations are checked at run time and warnings are errors: pyproject.toml. These
settings are this process's alone: a process that a test starts sees the environment
that a user would give it, on a CPU and offline.
"""

import ctypes
import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before the first import of jax
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# [B] * [B, T] is the classic bug of this kind of program: no silent broadcasting.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# The same examples in every run, and no time limit on a busy machine.
hypothesis.settings.register_profile(
    "ar3d_jax", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("ar3d_jax")


@pytest.fixture(autouse=True)
def one_device() -> Iterator[jax.sharding.Mesh]:
    """Every test runs under the 1x1 mesh, unless it asks for `mesh`."""
    from ar3d_jax.sharding import make_mesh

    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(params=[(1, 1), (4, 2)], ids=["1x1", "4x2"])
def mesh(request: pytest.FixtureRequest) -> Iterator[jax.sharding.Mesh]:
    """The test runs twice: on one device, and on fsdp=4 x tp=2."""
    from ar3d_jax.sharding import make_mesh

    fsdp, tp = request.param
    if fsdp * tp > jax.device_count():
        pytest.skip(f"needs {fsdp * tp} devices")
    mesh = make_mesh(fsdp, tp)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="session")
def egl() -> None:
    """Skips the test where there is no EGL to render with."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        pytest.skip("no EGL: apt-get install libegl1 libgl1 libgl1-mesa-dri")
