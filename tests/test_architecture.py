"""The rules of the package's structure, read from its source and from sys.modules."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ar3d_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = SOURCES + sorted((ROOT / "configs").glob("*.py"))

# From the bottom up: a file imports from its own layer and from those before it. Files
# of ar3d_jax/ that are in no layer are entry points, above all of them.
LAYERS = (
    {"shapes", "config", "sharding", "errors", "command"},
    {"policy", "codec", "appearance", "data", "rewards.wire"},
    {"rollout", "higrpo", "rewards", "render", "evaluation"},
    {"checkpoint", "metrics"},
)
STRANGERS = {"rollout", "higrpo", "rewards"}  # they meet in train.py, through pytrees

# What the sidecar and the render workers import must work without jax.
WITHOUT_JAX = ("rewards.sidecar", "rewards.wire", "render", "codec.surface")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}

FUNCTION_LIMIT = 80
FILE_LIMIT = 500
LONG_FUNCTIONS = {("train.py", "main")}  # the run on one page


def module_name(path: Path) -> str:
    """ "policy.decoder" of ar3d_jax/policy/decoder.py; "" of the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in SOURCES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of all modules a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, as `module_name` writes them."""
    names = {name.removeprefix("ar3d_jax.") for name in imports(path) if "." in name}
    return names & set(MODULES)


def layer(module: str) -> int:
    """Index in LAYERS of the longest prefix of `module` that is there."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for index, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names:
                return index
    return len(LAYERS) if module else 0


@cache
def closure(module: str) -> frozenset[str]:
    """`module`, its packages' __init__ files, and everything they import in turn."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += own_imports(MODULES[name])
        waiting += [name.rpartition(".")[0]] if name else []
    return frozenset(seen)


def under(module: str, packages: tuple[str, ...]) -> bool:
    """Whether `module` is one of `packages` or inside one."""
    return any(module == name or module.startswith(name + ".") for name in packages)


def top_level(names: frozenset[str]) -> set[str]:
    """First parts: "jax" of "jax.numpy"."""
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards(module):
    upwards = {x for x in own_imports(MODULES[module]) if layer(x) > layer(module)}
    assert not upwards, f"{module} imports {upwards}, of a higher layer"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_rollout_higrpo_and_rewards_are_strangers(module):
    package = module.partition(".")[0]
    if package in STRANGERS:
        others = {x.partition(".")[0] for x in own_imports(MODULES[module])}
        assert not others & (STRANGERS - {package})


@pytest.mark.parametrize("module", sorted(MODULES))
def test_torch_is_in_the_sidecar_only(module):
    if not under(module, ("rewards.sidecar",)):
        assert "torch" not in top_level(imports(MODULES[module]))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_jax_in_sidecar_and_render_workers(module):
    if under(module, WITHOUT_JAX):
        for name in closure(module):
            found = JAX & top_level(imports(MODULES[name]))
            assert not found, f"{module} needs {name}, which imports {found}"


def test_layers_name_what_exists():
    """A typing error in WITHOUT_JAX would pass every test above."""
    assert set(WITHOUT_JAX) <= set(MODULES)


def loaded(modules: list[str], unwanted: set[str]) -> set[str]:
    """Which of `unwanted` a fresh process has loaded after importing `modules`."""
    lines = [f"import ar3d_jax.{name}" for name in modules if name]
    script = "\n".join([*lines, "import sys", "print(*sys.modules)"])
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return unwanted & set(result.stdout.split())


def importable(module: str) -> bool:
    return not module.endswith("__main__")


def test_trainer_loads_no_torch():
    """Not even through a library (transformers would, for some of its classes)."""
    sidecar = ("rewards.sidecar",)
    trainer = [m for m in MODULES if importable(m) and not under(m, sidecar)]
    assert loaded(trainer, {"torch"}) == set()


def test_sidecar_and_render_workers_load_no_jax():
    """Not even through a library (jaxtyping.Array would)."""
    workers = [m for m in MODULES if importable(m) and under(m, WITHOUT_JAX)]
    assert loaded(workers, JAX) == set()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_are_taken_apart_in_two_files_only(path):
    """nnx.split, merge and state turn names into arrays: at the disk's edge only."""
    if module_name(path) in ("checkpoint", "policy.hf"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("nnx.split", "nnx.merge", "nnx.state"), node.lineno


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LIMIT
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            allowed = (path.name, node.name) in LONG_FUNCTIONS
            assert lines <= FUNCTION_LIMIT or allowed, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_say_what_a_thing_is(path):
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Handler", "Engine"))
