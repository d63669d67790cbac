"""setup.py, requirements.txt and the scripts agree with each other and the code."""

import ast
import importlib.metadata
import os
import re
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


@pytest.mark.parametrize("script", ["launch/local.sh", "launch/test.sh", ".ci/run"])
def test_scripts_are_valid_and_executable(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def without_python(tmp_path, script):
    """A copy of the clone's scripts on a machine whose Python is too old."""
    clone = tmp_path / "clone"
    (clone / "launch").mkdir(parents=True)
    for name in ("local.sh", "test.sh", "setup_env.sh"):
        (clone / "launch" / name).write_bytes((ROOT / "launch" / name).read_bytes())
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "id", "env"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")
        (tools / name).chmod(0o755)
    return subprocess.run(
        ["/usr/bin/bash", clone / "launch" / script],
        env={"PATH": str(tools)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", ["local.sh", "test.sh"])
def test_no_python_is_one_line_and_exit_2(tmp_path, script):
    result = without_python(tmp_path, script)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Python 3.11 or newer")
    assert result.stderr.count("\n") == 1
