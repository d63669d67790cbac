"""setup.py, requirements.txt and the scripts agree with each other and the code."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ar3d_jax

ROOT = Path(__file__).parents[1]


def requirements(file):
    lines = (ROOT / file).read_text().splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    return [Requirement(text) for text in texts if text and not text.startswith("-r")]


def setup_keywords(monkeypatch):
    """What setup.py hands to setuptools."""
    import setuptools

    found = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    monkeypatch.chdir(ROOT)
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pins_are_exact_and_inside_the_ranges_of_setup(monkeypatch):
    keywords = setup_keywords(monkeypatch)
    ranges = [*keywords["install_requires"], *keywords["extras_require"]["dev"]]
    wanted = {normal(Requirement(text).name): Requirement(text) for text in ranges}
    pins = {normal(pin.name): pin for pin in requirements("requirements.txt")}
    assert pins.keys() == wanted.keys()
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert wanted[name].specifier.contains(specifier.version), name


def test_cuda_build_is_of_the_same_version():
    jax = {
        str(pin.specifier)
        for pin in requirements("requirements.txt")
        if pin.name == "jax"
    }
    (cuda,) = requirements("requirements-cuda12.txt")
    assert (cuda.name, cuda.extras, {str(cuda.specifier)}) == ("jax", {"cuda12"}, jax)


def test_every_import_is_a_requirement():
    """Nothing is imported that came only as a dependency of a dependency."""
    owners = importlib.metadata.packages_distributions()
    pinned = {normal(pin.name) for pin in requirements("requirements.txt")}
    loose = set()
    for path in [*(ROOT / "ar3d_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in {name.partition(".")[0] for name in names}:
                found = {normal(owner) for owner in owners.get(name, [])}
                known = name in sys.stdlib_module_names or name == "ar3d_jax"
                if not known and not found & pinned:
                    loose.add((path.name, name))
    assert not loose


def test_version_is_in_the_changelog(monkeypatch):
    version = setup_keywords(monkeypatch)["version"]
    assert version == ar3d_jax.__version__
    assert re.search(
        rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_shipped_files_are_package_data(monkeypatch):
    keywords = setup_keywords(monkeypatch)
    package = ROOT / "ar3d_jax"
    covered = {
        path
        for glob in keywords["package_data"]["ar3d_jax"]
        for path in package.glob(glob)
    }
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path in covered, path


@pytest.mark.parametrize(
    "script",
    [
        *("launch/local.sh", "launch/test.sh", ".ci/run"),
        *(
            "launch/rewards_vllm.sh",
            "launch/tpu_vm.sh",
            "launch/tpu_worker.sh",
            "launch/gke.sh",
            "launch/slurm.sh",
        ),
    ],
)
def test_scripts_are_valid_and_executable(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


PYTHON_STUB = """#!/bin/sh
# Stands in for the environment's interpreter: writes down what it is asked to do.
case "$*" in
  *--version*) echo "Python 3.11.0" ;;
  *pip\\ install*) echo "$*" >> "$LOG"; exit "${PIP_STATUS:-0}" ;;
  "-m ar3d_jax.train"*) for x in "$@"; do echo "$x" >> "$LOG"; done ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """The scripts in a folder of their own, with a few tools and no Debian around."""
    (tmp_path / "launch").mkdir()
    for file in ("launch/local.sh", "launch/test.sh", "launch/setup_env.sh"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    for file in ("requirements.txt", "requirements-cuda12.txt"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "sh", "dirname", "basename", "cat", "cksum", "grep", "id"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def launch(clone, script, *arguments, **environment):
    return subprocess.run(
        [clone / "bin/bash", clone / "launch" / script, *arguments],
        env={"PATH": str(clone / "bin"), "LOG": str(clone / "log"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", ["local.sh", "test.sh"])
def test_no_python_is_one_line_and_exit_2(clone, script):
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        write_program(clone / "bin" / name, "#!/bin/sh\nexit 1\n")
    result = launch(clone, script)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Python 3.11 or newer")
    assert result.stderr.count("\n") == 1


def test_no_venv_module_is_one_line_and_exit_2(clone):
    stub = """#!/bin/sh
case "$2" in *ensurepip*) exit 1 ;; *print*) echo python3.11-venv ;; esac
"""
    write_program(clone / "bin/python3", stub)
    result = launch(clone, "local.sh")
    assert result.returncode == 2
    assert "sudo apt-get install python3.11-venv" in result.stderr
    assert result.stderr.count("\n") == 1


def installs(clone):
    lines = (clone / "log").read_text().splitlines() if (clone / "log").exists() else []
    return [Path(x.rpartition(" ")[2]).name for x in lines if "pip install" in x]


def test_installs_once_and_again_when_requirements_change(clone):
    write_program(clone / ".venv/bin/python", PYTHON_STUB)
    for _ in range(2):
        assert launch(clone, "local.sh").returncode == 0
    assert installs(clone) == ["requirements.txt"]
    with (clone / "requirements.txt").open("a") as file:
        file.write("rich==15.0.0\n")
    assert launch(clone, "local.sh").returncode == 0
    assert installs(clone) == ["requirements.txt"] * 2


def test_a_failed_install_is_tried_again(clone):
    write_program(clone / ".venv/bin/python", PYTHON_STUB)
    result = launch(clone, "local.sh", PIP_STATUS="1")
    assert result.returncode == 2
    assert "error: pip could not install" in result.stderr
    assert launch(clone, "local.sh").returncode == 0
    assert installs(clone) == ["requirements.txt"] * 2


@pytest.mark.parametrize(
    ("answer", "file"),
    [
        ("echo 'GPU 0: NVIDIA H100'", "requirements-cuda12.txt"),
        ("echo 'No devices were found'", "requirements.txt"),
        ("exit 9", "requirements.txt"),  # a driver without its device
    ],
)
def test_cuda_build_where_there_is_a_gpu(clone, answer, file):
    write_program(clone / ".venv/bin/python", PYTHON_STUB)
    write_program(clone / "bin/nvidia-smi", f"#!/bin/sh\n{answer}\n")
    assert launch(clone, "local.sh").returncode == 0
    assert installs(clone) == [file]


def test_flags_reach_the_training_unchanged(clone):
    write_program(clone / ".venv/bin/python", PYTHON_STUB)
    launch(clone, "local.sh", "--workdir=a b", "--config.steps=3")
    assert (clone / "log").read_text().splitlines()[-5:] == [
        "-m",
        "ar3d_jax.train",
        "--config=configs/higrpo.py",
        "--workdir=a b",
        "--config.steps=3",
    ]
