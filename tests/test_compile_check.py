"""The paper's run compiles for a TPU that is not here, fits it, and says so if not."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest

from ar3d_jax import compile_check
from ar3d_jax.compile_check import Program, asked_for, remedies, replica_groups
from ar3d_jax.config import Config, from_config_dict
from ar3d_jax.errors import UserError
from ar3d_jax.sharding import make_mesh

ROOT = pathlib.Path(__file__).parents[1]
PAPER = from_config_dict(
    runpy.run_path(str(ROOT / "configs/higrpo.py"))["get_config"]("7b"), Config
)
# Optimises less, in a third of the time: sizes stay within a few percent.
QUICK = os.environ | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}


def has_compiler() -> bool:
    there = importlib.util.find_spec("libtpu") is not None
    return there or os.path.exists(os.environ.get("TPU_LIBRARY_PATH", ""))


def test_the_papers_run_fits_the_smallest_topology(tmp_path):
    """7B: two rollouts, the codec and the update for eight v5p chips."""
    if not has_compiler():
        pytest.skip('no TPU compiler: pip install "jax[tpu]", or launch/test.sh')
    command = [sys.executable, "-m", "ar3d_jax.compile_check"]
    flags = [
        f"--config={ROOT / 'configs/higrpo.py'}:7b",
        "--topology=v5p:2x2x2",
        f"--json={tmp_path / 'found.json'}",
    ]
    done = subprocess.run([*command, *flags], env=QUICK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fits: " in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["rollout, coarse", "codec", "rollout, refined", "update"]
    for name in ("rollout, coarse", "rollout, refined"):
        assert found[name]["decode_collectives"] == {}
        assert found[name]["collectives"]["all-gather"] > 0  # the weights, once
    # State in bytes per chip: bf16 policy, reference, moments; float32 master.
    held = 7.67e9 * (2 + 2 + 4 + 4) / 8
    assert found["update"]["arguments"] == pytest.approx(held, rel=0.02)


ONE_STEP = """
import dataclasses, runpy, jax
from ar3d_jax import compile_check
from ar3d_jax.sharding import make_mesh
tiny = runpy.run_path("configs/grpo.py")["PRESETS"]["tiny"]
for plans in (True, False):
    rollout = dataclasses.replace(tiny.rollout, plans=plans)
    config = dataclasses.replace(tiny, rollout=rollout)
    with jax.set_mesh(make_mesh()):
        state, _ = compile_check._state(config)
        key = compile_check._on_mesh(jax.eval_shape(lambda: jax.random.key(0)))
        asked = compile_check._prompts(config), rollout, compile_check._vocab(config)
        found = compile_check._sampling(config, state.policy, *asked, key)
    sampling, sequences = found
    (sequence,) = sequences["shape"]
    print(*sampling, sequence.layout.shape, sequence.layout.text)
"""


def test_one_step_is_one_program_that_samples():
    """Traced in a process of its own: arrays that are shapes fit no annotation."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with_plan, at_once = done.stdout.splitlines()
    tiny = Config()
    prompt, plan = tiny.rollout.prompt_tokens[-1], tiny.rollout.plan_tokens
    first = prompt + plan + 1
    shape = (first, first + tiny.codec.tokens)
    assert with_plan == f"shape {shape} {(prompt, prompt + plan)}"
    assert at_once.startswith("shape (")
    assert at_once.endswith(" None")


def test_groups_of_devices_are_read():
    assert replica_groups("x, replica_groups={{0,2},{1,3}}, y", 4) == [[0, 2], [1, 3]]
    assert replica_groups("x, replica_groups=[2,2]<=[4], y", 4) == [[0, 1], [2, 3]]
    transposed = "x, replica_groups=[2,2]<=[2,2]T(1,0), y"
    assert replica_groups(transposed, 4) == [[0, 2], [1, 3]]
    named = "x, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, y"
    assert replica_groups(named, 4) == [[0, 2], [1, 3]]
    turned = "x, replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'a'}, y"
    assert replica_groups(turned, 6) == [[0, 1], [2, 3], [4, 5]]
    part = "x, replica_groups=mesh['axis_0'=4] {'axis_0':(1)2}, y"
    assert replica_groups(part, 4) == [[0, 1, 2, 3]]
    assert replica_groups("x, replica_groups={}, y", 2) == [[0, 1]]


def test_remedies_are_fields_that_would_help():
    program = Program(1.0, 1, 1, 1, 1, {}, {}, 0)
    for name in ("update", "rollout, coarse"):
        for remedy in remedies(name, program, PAPER)[:-1]:
            field = remedy.split()[0].removeprefix("--config.").split("=")[0]
            section, _, leaf = field.rpartition(".")
            owner = getattr(PAPER, section) if section else PAPER
            assert leaf in {f.name for f in dataclasses.fields(owner)}
    assert "--config.mesh.tp=2" in remedies("rollout, coarse", program, PAPER)[0]


def test_what_cannot_be_compiled_is_too_large_by_the_compilers_own_account(tmp_path):
    """7B on four v5e chips: status 1, how much is missing, and what would help."""
    if not has_compiler():
        pytest.skip('no TPU compiler: pip install "jax[tpu]", or launch/test.sh')
    command = [sys.executable, "-m", "ar3d_jax.compile_check"]
    flags = [
        f"--config={ROOT / 'configs/higrpo.py'}:7b",
        "--topology=v5e:2x2",
        "--config.mesh.fsdp=4",
        f"--json={tmp_path / 'found.json'}",
    ]
    done = subprocess.run([*command, *flags], env=QUICK, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert done.stdout.count("refused by the compiler") == 3
    [line] = done.stderr.splitlines()
    assert line.startswith("does not fit: update needs ")
    assert "or more too much" in line
    assert "--config.lora.rank=64" in line
    found = json.loads((tmp_path / "found.json").read_text())["update"]
    assert found["temporaries"] > 16 * 2**30
    assert "RESOURCE_EXHAUSTED" in found["refused"]


def test_sizes_are_read_from_the_compilers_words():
    words = "the total memory required (23.00G) exceeds available HBM (15.75G)."
    assert asked_for(words) == 23 * 2**30
    assert asked_for("Used 1.5M of 1.0M hbm. Exceeded by 512.0K.") == 1.5 * 2**20
    assert asked_for("no numbers") == 0


@pytest.mark.parametrize("topology", ["v9x:2x2", "nonsense"])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(UserError, match="expected KIND:SHAPE"):
        compile_check.topology_mesh(topology, PAPER)


def test_a_libtpu_that_does_not_fit_is_one_line(monkeypatch):
    """Newer ones give programs that this jax cannot read."""

    class Compiled:
        memory_analysis = staticmethod(lambda: None)

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nat length")

    class Traced:
        def lower(self, lowering_platforms):
            return self

        def compile(self):
            return Compiled()

    with pytest.raises(UserError, match=r'fits it: pip install "jax\[tpu\]"$'):
        compile_check._compile(Traced(), make_mesh(), 0, 0)
