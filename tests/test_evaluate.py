"""Evaluation as a user runs it: policies, meshes, comparisons, deaths, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trimesh

from ar3d_jax import evaluate
from ar3d_jax.codec import surface, voxels
from ar3d_jax.config import EvalConfig
from ar3d_jax.data.catalog import load_held_out
from ar3d_jax.errors import UserError
from ar3d_jax.evaluation import benchmarks, objects, settings
from ar3d_jax.evaluation.benchmarks import Item
from ar3d_jax.rewards.sidecar import damage
from tests.small_run import small_config

pytestmark = pytest.mark.usefixtures("egl")

SMALL = ("--config.count=4", "--config.batch=2", "--config.seeds=(0,1)")
DISTANCES = ("kd/embedded", "fd/embedded", "chamfer")
LIKENESSES = ("clip_score/embedded", "iou", "f_score")


def command(workdir, *flags):
    workdir = f"--workdir={workdir}"
    return [sys.executable, "-m", "ar3d_jax.evaluate", workdir, *map(str, flags)]


# Compiles in half the time.
QUICK = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def run(workdir, *flags):
    done = subprocess.run(
        command(workdir, *flags), env=QUICK, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((workdir / "report.json").read_text())


def overall(report, system, step="mesh"):
    (found,) = [of for of in report["systems"] if of["name"] == system]
    return {metric: of["mean"] for metric, of in found["overall"][step].items()}


@pytest.fixture(scope="module")
def policy(weights):
    return f"--policy={weights / 'config.py'}"


@pytest.fixture(scope="module")
def evaluated(policy, tmp_path_factory):
    """The workdir of an evaluation of a small random policy, with two seeds."""
    workdir = tmp_path_factory.mktemp("evaluated")
    run(workdir, policy, *SMALL)
    return workdir


def test_a_policy_is_sampled_measured_and_reported(evaluated):
    report = json.loads((evaluated / "report.json").read_text())
    base, real = report["systems"]
    assert base["steps"] == ["coarse", "refined"]
    assert base["seeds"] == [0, 1]
    assert len(base["objects"]) == 8
    for step in base["steps"]:
        covered = base["coverage"][step]
        assert covered["asked"] == 8
        assert covered["scored"] + len(covered["failed"]) == 8
        for metric in (*DISTANCES, *LIKENESSES, "diversity", "distinct_codes"):
            assert np.isfinite(base["overall"][step][metric]["mean"]), metric
            assert base["overall"][step][metric]["n"] <= 4 or metric == "diversity"
    assert set(report["metrics"]) >= set(base["overall"]["coarse"])
    assert real["overall"]["mesh"]["clip_score/embedded"]["n"] == 4
    assert "kd/embedded" not in real["overall"]["mesh"]
    (difference,) = report["differences"]
    step = base["overall"]
    np.testing.assert_allclose(
        difference["metrics"]["iou"]["mean"],
        step["refined"]["iou"]["mean"] - step["coarse"]["iou"]["mean"],
        atol=1e-6,
    )
    for thing in base["objects"]:
        for of in thing["steps"].values():
            assert (evaluated / of["mesh"]).is_file()
            assert (evaluated / of["views"]).is_file()
    for name in ("report.md", "index.html", "evaluation.json"):
        assert (evaluated / name).stat().st_size > 100


def test_the_same_command_again_measures_nothing_anew(evaluated, policy):
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*.npz")}
    text = (evaluated / "report.json").read_text()
    run(evaluated, policy, *SMALL)
    after = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*.npz")}
    assert before == after
    assert (evaluated / "report.json").read_text() == text


def test_an_evaluation_whose_settings_were_cut_goes_on(evaluated, policy):
    """Nothing is sampled or measured anew; the file is written anew."""
    state = evaluated / "evaluation.json"
    text, report = state.read_text(), (evaluated / "report.json").read_text()
    before = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*.npz")}
    state.write_text(text[: len(text) // 2])
    run(evaluated, policy, *SMALL)
    after = {path: path.stat().st_mtime_ns for path in evaluated.rglob("*.npz")}
    assert before == after
    assert (state.read_text(), (evaluated / "report.json").read_text()) == (
        text,
        report,
    )


DAMAGED = ["", "{", "[]", "7", "\x00" * 100, '{"config": {}}', "[" * 60_000]
DAMAGED += ['{"config": 3, "systems": {}}', '{"config": null, "systems": {}}']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_settings_are_set_aside_in_one_line(tmp_path, capsys, text):
    state, config = tmp_path / "evaluation.json", EvalConfig()
    state.write_text(text)
    settings.remember(config, {"base": "shipped"}, {}, tmp_path)
    said = capsys.readouterr().err
    assert said.startswith(f"{state} is damaged, now evaluation.json.damaged: going on")
    assert said.count("\n") == 1
    assert (tmp_path / "evaluation.json.damaged").read_text() == text
    settings.remember(config, {"base": "shipped"}, {}, tmp_path)  # whole again
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="objects of base from shipped, not other"):
        settings.remember(config, {"base": "other"}, {}, tmp_path)


@pytest.mark.parametrize(
    "sign", ["objects/base/seed_1/*/object.json", "measured/*.npz"]
)
def test_killed_while_sampling_or_measuring(sign, evaluated, policy, tmp_path):
    """The same command then ends in the same report, byte for byte."""
    flags = (policy, *SMALL)
    with subprocess.Popen(
        command(tmp_path, *flags), env=QUICK, stderr=subprocess.DEVNULL
    ) as first:
        while not list(tmp_path.glob(sign)):
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    assert not (tmp_path / "report.json").exists()
    run(tmp_path, *flags)
    for name in ("report.json", "report.md"):
        assert (tmp_path / name).read_text() == (evaluated / name).read_text(), name


def catalog_meshes(folder, count, change):
    """A mesh for each of the first objects: `change(voxels, others, rng)`."""
    held_out = load_held_out(benchmarks.HELD_OUT)
    grids = dict(zip(held_out.ids, held_out.voxels, strict=True))
    items = benchmarks.load("catalog", "", count, folder / "truth").items
    out = folder / "meshes"
    out.mkdir()
    for index, item in enumerate(items):
        rng = np.random.default_rng(index)
        others = grids[items[(index + 1) % count].id]
        grid = change(grids[item.id], others, rng)
        mesh = surface.extract(np.where(grid, 1.0, -1.0).astype(np.float32))
        surface.to_glb(mesh, out / f"{item.id}.glb")
    return out


def primitive(rng):
    kind = rng.integers(4)
    size = rng.uniform(0.3, 0.5, 3)
    mesh = [
        lambda: trimesh.creation.box(2 * size),
        lambda: trimesh.creation.icosphere(2, size[0]),
        lambda: trimesh.creation.cylinder(size[0], size[2] * 2),
        lambda: trimesh.creation.cone(size[0], size[2]),
    ][kind]()
    vertices = mesh.vertices - mesh.bounds.mean(axis=0)
    return voxels.voxelize(vertices, mesh.faces.astype(np.int32), 32)


def test_furniture_before_damaged_furniture_before_primitives(tmp_path):
    def hurt(own, others, rng):
        return damage.foreign_columns(own, others, 0.4, rng)

    changes = {
        "real": lambda own, others, rng: own,
        "damaged": hurt,
        "primitives": lambda own, others, rng: primitive(rng),
    }
    folders = []
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        made = catalog_meshes(tmp_path / name, 24, change)
        folders.append(made.rename(tmp_path / f"{name}_meshes"))
    report = run(tmp_path / "out", "--config.count=24", "--compare", *folders)
    real, damaged, primitives = (overall(report, folder.name) for folder in folders)
    for metric in DISTANCES:
        assert real[metric] < damaged[metric] < primitives[metric], metric
    for metric in LIKENESSES:
        assert real[metric] > damaged[metric] > primitives[metric], metric
    assert real["iou"] == 1.0
    assert abs(real["kd/embedded"]) < 1e-6 or real["kd/embedded"] < 0
    pairs = [(of["a"], of["b"]) for of in report["differences"]]
    assert pairs == [(folders[0].name, folder.name) for folder in folders[1:]]


def huge_glb(path):
    """A file of a few hundred bytes that says it has ten million triangles."""
    count = 30_000_000
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"componentType": 5126, "count": count, "type": "VEC3", "bufferView": 0},
            {"componentType": 5125, "count": count, "type": "SCALAR", "bufferView": 1},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 12 * count},
            {"buffer": 0, "byteOffset": 12 * count, "byteLength": 4 * count},
        ],
        "buffers": [{"byteLength": 16 * count}],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    size = (20 + len(text)).to_bytes(4, "little")
    chunk = len(text).to_bytes(4, "little") + b"JSON"
    path.write_bytes(b"glTF" + (2).to_bytes(4, "little") + size + chunk + text)


def test_broken_empty_huge_missing_and_twice_are_named_and_the_rest_scored(tmp_path):
    folder = catalog_meshes(tmp_path, 8, lambda own, others, rng: own)
    ids = [item.id for item in benchmarks.load("catalog", "", 8, tmp_path).items]
    files = [folder / f"{name}.glb" for name in ids]
    files[0].write_bytes(files[0].read_bytes()[:500])
    trimesh.Trimesh().export(files[1].with_suffix(".ply"))
    files[1].unlink()
    huge_glb(files[2])
    files[3].unlink()
    shutil.copy(files[4], folder / "deeper.glb")
    (folder / "more").mkdir()
    shutil.copy(files[4], folder / "more" / files[4].name)
    report = run(tmp_path / "out", "--config.count=8", f"--meshes={folder}")
    (system, _) = report["systems"]
    covered = system["coverage"]["mesh"]
    reasons = {of["id"]: of["reason"] for of in covered["failed"]}
    assert (covered["asked"], covered["scored"]) == (8, 3)
    assert list(reasons) == ids[:5]
    for name, said in zip(
        ids,
        ("", "", "10,000,000", "no file with this id", "2 files with this id"),
        strict=False,
    ):
        assert said in reasons[name], reasons
        assert "\n" not in reasons[name]
    assert system["strangers"] == ["deeper.glb"]
    assert system["overall"]["mesh"]["iou"]["n"] == 3
    page = (tmp_path / "out" / "report.md").read_text()
    assert all(name in page for name in ids[:5])


def test_compare_a_policy_its_training_and_an_earlier_evaluation(
    evaluated, policy, trained, tmp_path
):
    flags = (policy, *SMALL)
    report = run(tmp_path, *flags, "--compare", "base", trained, evaluated)
    names = [system["name"] for system in report["systems"]]
    assert names == ["base", trained.name, "base-2", "real objects"]
    assert overall(report, "base", "refined") == overall(report, "base-2", "refined")
    same = [of for of in report["differences"] if of["b"] == "base-2"]
    assert [of["step"] for of in same if of["a"] == "base"] == ["coarse", "refined"]
    assert all(of["metrics"]["iou"]["mean"] == 0 for of in same if of["a"] == "base")


def test_a_prompt_that_is_too_long_is_a_failure(weights, tmp_path):
    items = [Item("long", "word " * 400, ""), Item("short", "a box", "")]
    system = evaluate.System("base", "here", config=small_config(weights))
    evaluate.sample(system, items, EvalConfig(batch=2), tmp_path)
    long, short = objects.read(tmp_path, [0], items)
    assert set(long.failures) == {"coarse", "refined"}
    assert "tokens" in long.failures["refined"]
    assert {*short.meshes, *short.failures} == {"coarse", "refined"}
    assert short.plans


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--checkpoint=nowhere",), "workdir of python -m"),
        (("--meshes=nowhere",), "no such folder"),
        (("--meshes=EMPTY",), "no mesh there"),
        (("--compare", "base"), "two or more"),
        (("--compare", "base", "nowhere"), "is not there"),
        (("--meshes=a", "--checkpoint=b"), "expected one of"),
        (("--weights=x/y",), "--policy"),
        (("--config.benchmark=toys5k",), "benchmark"),
        (("--config.benchmark=toys4k",), "config.data"),
        (("--config.features.sets=('clip',)",), "features.sets"),
        (("--config.features.sets=('inception',)",), "inception-2015-12-05"),
        (("--config.features.weights.embedded=/no/where",), "there is no such file"),
        (("--config=configs/eval.py:huge",), "unknown preset"),
        (("--config.sizes=3",), "sizes"),
        (("--best",), "--best without --checkpoint"),
        (("--config.benchmark=reasoning249", "--workdir=EVALUATED"), "another --work"),
        (("--config.batch=5", "--workdir=EVALUATED"), "another --workdir"),
        (("POLICY", "--one_step", *SMALL, "--workdir=EVALUATED"), "shape at once; ch"),
    ],
)
def test_bad_input_is_one_line(flags, expected, evaluated, policy, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "EVALUATED": evaluated, "POLICY": policy}
    words = ["evaluate", f"--workdir={tmp_path / 'out'}", *flags]
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    with pytest.raises(UserError) as error:
        evaluate.main(words)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_the_process_ends_with_status_2(tmp_path):
    flags = ("--compare", "base", "nowhere")
    done = subprocess.run(command(tmp_path, *flags), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --compare: nowhere is not")
    assert "Traceback" not in done.stderr


def test_compare_takes_a_list_of_words():
    joined = evaluate.joined(["x", "--compare", "a", "b", "--workdir=w", "c"])
    assert joined == ["x", "--compare=a,b", "--workdir=w", "c"]
    assert evaluate.joined(["x", "--compare=a", "b"]) == ["x", "--compare=a,b"]


def test_objects_of_other_weights_under_the_same_path_are_refused(weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "weights")
    training, workdir = tmp_path / "training", tmp_path / "run"
    workdir.mkdir()
    for step, digests in (("9", "nine"), ("10", "ten")):
        (training / "checkpoints" / step).mkdir(parents=True)
        (training / "checkpoints" / step / "digests.json").write_text(digests)
    config = small_config(copy)
    systems = [
        evaluate.System("base", "here", config=config),
        evaluate.System("mine", "there", config=config, checkpoint=training),
        evaluate.System("files", "elsewhere", folder=tmp_path),
    ]

    def remember():
        evaluate._remember(EvalConfig(), systems, workdir)

    remember()
    remember()
    for name, field, file in (
        ("base", "policy.weights", copy / "policy" / "model.safetensors"),
        ("base", "codec.weights", copy / "codec.safetensors"),
        ("mine", "checkpoint", training / "checkpoints" / "10" / "digests.json"),
    ):
        before = file.read_bytes()
        file.write_bytes(before + b"x")
        with pytest.raises(UserError, match=f"{name} from when {field}=.* held someth"):
            remember()
        file.write_bytes(before)
    (training / "checkpoints" / "9" / "digests.json").write_text("other")
    remember()
    told = json.loads((workdir / "evaluation.json").read_text())
    assert set(told["held"]) == {"base", "mine"}
    del told["held"]  # as older evaluations are
    (workdir / "evaluation.json").write_text(json.dumps(told))
    (copy / "codec.safetensors").write_bytes(b"x")
    remember()
