"""The rules of the package's structure, read from its source and from sys.modules."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ar3d_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = SOURCES + sorted((ROOT / "configs").glob("*.py"))

# From the bottom up: a file imports from its own layer and from those before it. Files
# of ar3d_jax/ that are in no layer are entry points, above all of them.
LAYERS = (
    {"shapes", "config", "sharding", "errors", "command", "optim", "weights", "hosts"}
    | {"config_checks", "config_rewards", "host_watch", "tensor_check", "contents"},
    {"policy", "codec", "appearance", "data", "render", "rewards.wire"},
    {"rollout", "higrpo", "rewards", "render.workers", "evaluation"},
    {"checkpoint", "metrics"},
)
STRANGERS = {"rollout", "higrpo", "rewards"}  # they meet in train.py, through pytrees

# What the sidecar and the render workers import must work without jax.
WITHOUT_JAX = ("rewards.sidecar", "rewards.wire", "render", "codec.surface")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}

FUNCTION_LIMIT = 80
FILE_LIMIT = 500
LONG_FILES = {"config.py"}  # one commented field after the other
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


def package(module: str) -> str:
    """The folder of ar3d_jax a module is in: "policy" of "policy.decoder"."""
    return module.partition(".")[0]


def top_level(names: frozenset[str]) -> set[str]:
    """First parts: "jax" of "jax.numpy"."""
    return {name.partition(".")[0] for name in names}


def test_imports_go_downwards():
    upwards = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in own_imports(path)
        if layer(name) > layer(module)
    ]
    assert not upwards


def test_rollout_higrpo_and_rewards_are_strangers():
    acquainted = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in own_imports(path)
        if {package(module), package(name)} <= STRANGERS
        and package(module) != package(name)
    ]
    assert not acquainted


def test_torch_is_in_the_sidecar_only():
    outside = [m for m in MODULES if not under(m, ("rewards.sidecar",))]
    assert not [m for m in outside if "torch" in top_level(imports(MODULES[m]))]


def test_no_jax_in_sidecar_and_render_workers():
    found = {
        f"{module} needs {name}, which imports jax"
        for module in MODULES
        if under(module, WITHOUT_JAX)
        for name in closure(module)
        if JAX & top_level(imports(MODULES[name]))
    }
    assert not found


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


def nodes(path: Path, *kinds: type) -> list[ast.AST]:
    """All nodes of these kinds in a file."""
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_modules_are_taken_apart_in_two_files_only():
    """nnx.split, merge and state turn names into arrays: at the disk's edge only."""
    elsewhere = [
        f"{module}, line {node.lineno}: nnx.{node.attr}"
        for module, path in MODULES.items()
        if module not in ("checkpoint", "policy.hf")
        for node in nodes(path, ast.Attribute)
        if node.attr in ("split", "merge", "state")
        and isinstance(node.value, ast.Name)
        and node.value.id == "nnx"
    ]
    assert not elsewhere


def test_sizes():
    assert not [
        str(path.relative_to(ROOT))
        for path in CODE
        if len(path.read_text().splitlines()) > FILE_LIMIT
        and path.name not in LONG_FILES
    ]
    long = [
        f"{path.name}: {node.name} has {lines} lines"
        for path in CODE
        for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
        if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LIMIT
        and (path.name, node.name) not in LONG_FUNCTIONS
    ]
    assert not long


def test_names_say_what_a_thing_is():
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert not drawers & {path.stem for path in CODE}
    classes = [node.name for path in CODE for node in nodes(path, ast.ClassDef)]
    assert not [x for x in classes if x.endswith(("Manager", "Handler", "Engine"))]
