"""What every test runs under: strict JAX, eight fake CPU devices, a mesh, no network.

Shape annotations are checked at run time and warnings are errors: pyproject.toml. These
settings are this process's alone: a process that a test starts sees the environment
that a user would give it, on a CPU and offline.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before the first import of jax
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import jax
import pytest

from tests import small_catalog  # no ar3d_jax here: pytest hooks its imports later

COMPILED = "JAX_COMPILATION_CACHE_DIR"
jax.config.update("jax_compilation_cache_dir", None)  # this process compiles anew
jax.config.update("jax_num_cpu_devices", 8)
# [B] * [B, T] is the classic bug of this kind of program: no silent broadcasting.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Tests are tiny and compile much, and half of that is optimising: not in this process.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0", prepend=" ")
    jax.devices()  # reads the flags

# The same examples in every run, and no time limit on a busy machine.
hypothesis.settings.register_profile(
    "ar3d_jax", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("ar3d_jax")


def pytest_configure(config: pytest.Config) -> None:
    """Runs that a test starts share what they compile: many are the same run again.

    The folder is made once and inherited by the processes that share the tests.
    """
    if not hasattr(config, "workerinput"):
        os.environ[COMPILED] = tempfile.mkdtemp(prefix="ar3d_compiled_")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[COMPILED], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forgets what a file compiled: programs take mappings, and 65,530 are all."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def one_device() -> Iterator[jax.sharding.Mesh]:
    """Every test runs under the 1x1 mesh, unless it asks for `mesh`."""
    from ar3d_jax.sharding import make_mesh

    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(params=[(1, 1, 1), (2, 2, 2)], ids=["1x1x1", "2x2x2"])
def mesh(request: pytest.FixtureRequest) -> Iterator[jax.sharding.Mesh]:
    """The test runs twice: on one device, and on data=2 x fsdp=2 x tp=2."""
    from ar3d_jax.sharding import make_mesh

    data, fsdp, tp = request.param
    if data * fsdp * tp > jax.device_count():
        pytest.skip(f"needs {data * fsdp * tp} devices")
    mesh = make_mesh(fsdp, tp, data)
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="session")
def egl() -> None:
    """Skips the test where there is no EGL to render with."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        pytest.skip("no EGL: apt-get install libegl1 libgl1 libgl1-mesa-dri")


@pytest.fixture(scope="session")
def sh3f_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A furniture catalog of a few boxes."""
    path = tmp_path_factory.mktemp("furniture") / "Test.sh3f"
    small_catalog.write_sh3f(path)
    return path


@pytest.fixture(scope="session")
def catalog_folder(sh3f_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the catalog command makes of `sh3f_file`."""
    from ar3d_jax.data.catalog import build_catalog

    folder = tmp_path_factory.mktemp("catalog")
    build_catalog(sh3f_file.parent, folder, resolution=32, processes=1)
    return folder


@pytest.fixture(scope="session")
def catalog(catalog_folder: Path) -> Any:
    """That catalog, loaded."""
    from ar3d_jax.data.catalog import load_catalog

    return load_catalog(catalog_folder)


@pytest.fixture(scope="session")
def catalog_8(sh3f_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same catalog in 8^3 voxels, with four changed copies of each object."""
    from ar3d_jax.data.augmentation import augmented_voxels
    from ar3d_jax.data.catalog import build_catalog

    folder = tmp_path_factory.mktemp("catalog_8")
    build_catalog(sh3f_file.parent, folder, resolution=8, processes=1)
    rows = augmented_voxels(folder, copies=4, seed=0, resolution=8, processes=1)
    rows.save(folder / "augmented.npz")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small_run.make_weights`."""
    from tests import small_run

    folder = tmp_path_factory.mktemp("weights")
    small_run.make_weights(folder)
    return folder


@pytest.fixture(scope="session")
def trained(weights: Path, egl: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a small run of one step."""
    workdir = tmp_path_factory.mktemp("trained")
    environment = os.environ | {"STAND_IN_DIR": str(tmp_path_factory.mktemp("marks"))}
    command = [sys.executable, "-m", "tests.small_run", str(weights), str(workdir)]
    subprocess.run([*command, "--config.steps=1"], env=environment, check=True)
    return workdir
