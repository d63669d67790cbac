"""Checkpoints survive kills, damage and full disks, and refuse what does not fit."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from ar3d_jax.checkpoint import Checkpoints
from ar3d_jax.errors import UserError
from ar3d_jax.sharding import make_mesh, ones, param

SETTINGS = {"seed": 0}


class Model(nnx.Module):
    def __init__(self, key, width=8):
        self.q = param(
            key, "q", (2, width, 4), P(None, "fsdp", "tp"), dtype=jnp.float32
        )
        self.norm = ones((width,), P(None), dtype=jnp.bfloat16)


def make_state(seed, width=8):
    model = Model(jax.random.key(seed), width)
    optimiser = jax.jit(optax.adamw(1e-3).init)(model)
    return {"policy": model, "opt_state": optimiser, "step": jnp.asarray(seed)}


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def open_checkpoints(folder, **kwargs):
    return Checkpoints(folder, **({"keep": 3, "settings": SETTINGS} | kwargs))


def biggest_file(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def test_state_layout_and_extras_come_back(mesh, tmp_path):
    extras = {"key": jax.random.key(7), "position": b"\x00\xff", "history": [1, None]}
    state = make_state(3)
    with open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore_latest(state) is None
        checkpoints.save(state, 3, extras)
    with open_checkpoints(tmp_path / "c") as checkpoints:
        restored, step, back = checkpoints.restore_latest(make_state(0))
    assert step == 3
    assert_same(restored, state)
    for leaf, original in zip(*map(jax.tree.leaves, (restored, state)), strict=True):
        assert leaf.sharding == original.sharding
    assert restored["policy"].q[...].sharding.mesh == mesh
    assert jax.random.uniform(back["key"]) == jax.random.uniform(extras["key"])
    assert (back["position"], back["history"]) == (b"\x00\xff", [1, None])


@pytest.mark.parametrize(
    ("saved", "restored_on"),
    [((1, 1), (4, 2)), ((4, 2), (2, 4)), ((4, 2), (1, 1)), ((2, 2, 2), (8, 1))],
)
def test_other_mesh_abstract_template_and_a_part(tmp_path, saved, restored_on):
    with jax.set_mesh(make_mesh(*saved)):
        state = make_state(1)
        with open_checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state, 1, {})
    mesh = make_mesh(*restored_on)
    with jax.set_mesh(mesh):
        template = {"policy": jax.eval_shape(lambda: make_state(0)["policy"])}
        with open_checkpoints(tmp_path) as checkpoints:
            restored, _, _ = checkpoints.restore_latest(template)
    assert_same(restored["policy"], state["policy"])
    layout = restored["policy"].q[...].sharding
    assert layout == jax.NamedSharding(mesh, P(None, "fsdp", "tp"))


def test_donating_the_state_while_it_is_written(tmp_path):
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"x": jnp.arange(4_000_000)}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1, {})
        state = {"x": increment(state["x"])}
        restored, _, _ = checkpoints.restore_latest(state)
    np.testing.assert_array_equal(restored["x"], np.arange(4_000_000))


def test_only_the_last_ones_stay(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            checkpoints.save({"x": jnp.asarray(step)}, step, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_later_ones_can_be_discarded_and_written_again(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.discard_after(9) is None
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), step, {})
        assert checkpoints.discard_after(3) == 3
        assert checkpoints.discard_after(1) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpoints.save(make_state(7), 3, {})
        restored, step, _ = checkpoints.restore_latest(make_state(0))
    assert step == 3
    assert_same(restored, make_state(7))


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete", "flip", "note"])
def test_damage_falls_back_and_says_so(tmp_path, capfd, damage):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            x = jax.random.normal(jax.random.key(step), (64, 64))
            checkpoints.save({"x": x}, step, {"position": "here"})
    victim = biggest_file(tmp_path / "2" / "arrays")
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "empty":
        os.truncate(victim, 0)
    elif damage == "delete":
        victim.unlink()
    elif damage == "flip":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    else:
        note = tmp_path / "2" / "note" / "metadata"
        note.write_text(note.read_text().replace("here", "hare"))
    capfd.readouterr()
    with open_checkpoints(tmp_path) as checkpoints:
        restored, step, _ = checkpoints.restore_latest({"x": jnp.zeros((64, 64))})
        assert step == 1
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1
        assert f"{tmp_path / '2'} cannot be read" in lines[0]
        checkpoints.save(restored, 2, {})  # the number is free again
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2", "unreadable-2"}


def test_reading_beside_a_run_touches_nothing(tmp_path, capfd):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save({"x": jnp.full(9, step)}, step, {})
    os.truncate(biggest_file(tmp_path / "2" / "arrays"), 0)
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # what the run is writing
    before = sorted(tmp_path.rglob("*"))
    with open_checkpoints(tmp_path, settings={}, read_only=True) as checkpoints:
        restored, step, _ = checkpoints.restore_latest({"x": jnp.zeros(9, int)})
    assert step == 1
    assert restored["x"].tolist() == [1] * 9
    assert "going back to the one before" in capfd.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="no checkpoints in"):
        open_checkpoints(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()


def test_nothing_readable_is_a_user_error(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"x": jnp.zeros(9)}, 1, {})
    biggest_file(tmp_path / "1" / "arrays").unlink()
    for manifest in (tmp_path / "1" / "arrays").glob("manifest*"):
        manifest.unlink()
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint in .* can be read .*--workdir"),
    ):
        checkpoints.restore_latest({"x": jnp.zeros(9)})
    assert (tmp_path / "1").exists()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"a": jnp.zeros(3), "b": jnp.zeros((2, 4))}, r"\[2, 3\] for b; .*\[2, 4\]"),
        (
            {"a": jnp.zeros(3), "b": jnp.zeros((2, 3), jnp.int32)},
            "float32.* for b; .*int32",
        ),
        ({"a": jnp.zeros(3), "c": jnp.zeros(1)}, "holds nothing for c"),
    ],
)  # fmt: skip
def test_another_model_is_refused_by_name(tmp_path, template, message):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"a": jnp.zeros(3), "b": jnp.zeros((2, 3))}, 1, {})
        with pytest.raises(UserError, match=message):
            checkpoints.restore_latest(template)


def test_another_run_is_refused(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"a": jnp.zeros(3)}, 1, {})
    with (
        open_checkpoints(tmp_path, settings={"seed": 1}) as checkpoints,
        pytest.raises(UserError, match="seed=0; this run has 1"),
    ):
        checkpoints.restore_latest({"a": jnp.zeros(3)})


def test_another_format_is_refused(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"a": jnp.zeros(3)}, 1, {})
        checkpoints.wait()
        monkeypatch.setattr("ar3d_jax.checkpoint.FORMAT", 2)
        with pytest.raises(UserError, match="format 1; expected 2"):
            checkpoints.restore_latest({"a": jnp.zeros(3)})


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    import jax
    from ar3d_jax.checkpoint import Checkpoints
    from ar3d_jax.errors import exit_on_user_error

    size = int(sys.argv[2])
    with exit_on_user_error():
        with Checkpoints(Path(sys.argv[1]), keep=2, settings={}) as checkpoints:
            for step in range(1, 9):
                x = jax.random.normal(jax.random.key(step), (size,))
                checkpoints.save({"x": x}, step, {"position": step})
                print("began", step, flush=True)
                checkpoints.wait()
""")


def run_child(folder, size):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(size)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As this process has it, so that both round alike.
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )


def test_kill_while_saving_leaves_the_one_before(tmp_path):
    """The child is killed the moment it has begun to write its third checkpoint."""
    size = 3_000_000
    child = run_child(tmp_path, size)
    for line in child.stdout:
        if line == "began 3\n":
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with Checkpoints(tmp_path, keep=2, settings={}) as checkpoints:
        restored, step, extras = checkpoints.restore_latest({"x": jnp.zeros(size)})
        checkpoints.save(restored, 4, {})
    assert step in (2, 3)
    assert extras == {"position": step}
    np.testing.assert_array_equal(
        restored["x"], jax.random.normal(jax.random.key(step), (size,))
    )
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_one_line(small_disk):
    child = run_child(small_disk / "checkpoints", 1_000_000)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 2
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert "No space left on device; free some space" in lines[0]


def test_read_only_disk_is_one_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="Read-only file system; choose a folder"):
        open_checkpoints(small_disk / "checkpoints")


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="choose a folder, not a file"):
        open_checkpoints(tmp_path / "checkpoints")


def test_a_name_that_tensorstore_cannot_write_is_one_line(tmp_path):
    """Now, and not at the first checkpoint, after an hour of training."""
    folder = tmp_path / os.fsdecode(b"run\xff")
    with pytest.raises(UserError, match=r"its name is not UTF-8.*choose another"):
        open_checkpoints(folder)
    assert not folder.exists()
    with open_checkpoints(tmp_path / "Stühle") as checkpoints:
        checkpoints.save(make_state(1), 1, {})


def test_what_a_path_held_belongs_to_the_run(mesh, tmp_path):
    state = make_state(1)
    with open_checkpoints(tmp_path) as checkpoints:  # as before this was kept
        checkpoints.save(state, 1, {})
    mine = {"prompts": ("p.txt", "aa"), "scorer": ("s.pt", "bb")}
    with open_checkpoints(tmp_path, held=mine) as checkpoints:
        assert checkpoints.restore_latest(state)[1] == 1
        checkpoints.save(state, 2, {})
    without = {"prompts": ("p.txt", "aa")}  # of a scorer that is gone, and not used
    with open_checkpoints(tmp_path, held=without) as checkpoints:
        assert checkpoints.restore_latest(state)[1] == 2
        checkpoints.save(state, 3, {})
    for other in ({"prompts": ("p.txt", "cc")}, {"scorer": ("s.pt", "cc")}):
        ((name, (path, _)),) = other.items()
        with (
            open_checkpoints(tmp_path, held=other) as checkpoints,
            pytest.raises(UserError) as caught,
        ):
            checkpoints.restore_latest(state)
        said = f"3 was written when {name}={path} held something else (digest "
        assert said in str(caught.value)
        assert str(caught.value).endswith(
            "now cc): restore that or choose another --workdir"
        )
