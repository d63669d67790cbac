"""Mesh files scored by command: numbers, order, tables, and what is refused."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ar3d_jax.config import RenderConfig, RewardsConfig
from ar3d_jax.config_rewards import COARSE_ROLES, REFINED_ROLES, ScorersConfig
from ar3d_jax.errors import UserError
from ar3d_jax.render.renderer import Renderer
from ar3d_jax.render.workers import draw_file
from ar3d_jax.rewards import score
from ar3d_jax.rewards.client import Scoring
from ar3d_jax.rewards.score import Scored, Wanted
from ar3d_jax.rewards.sidecar import scorers
from tests.render import mesh_files
from tests.rewards.test_client import prepare_stand_ins

USUAL = tuple(dict.fromkeys(COARSE_ROLES + REFINED_ROLES))
ROOT = Path(__file__).parents[2]
PROMPT = "a red chair with four legs"
# 3 of its 6 pictures, for speed.
SMALL = ("--config.render.views=3", "--config.render.workers=1")


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "ar3d_jax.rewards.score", *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def write_box(path):
    """A grey box three times as high as wide, y up."""
    vertices, faces, _ = mesh_files.cube()
    rows = [f"v {x} {3 * y} {z}" for x, y, z in mesh_files.y_up(vertices)]
    rows += [f"f {a} {b} {c}" for a, b, c in faces + 1]
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    mesh_files.write_cube(folder / "cube.glb")
    write_box(folder / "box.obj")
    (folder / "none.ply").write_text("ply\n")
    (folder / "lines.obj").write_text((folder / "box.obj").read_text() + "\nl 1 2")
    return folder


# --- With the shipped scorers ---------------------------------------------------------


def expected(path, prompt, roles, *, up="y", colours=True):
    """The same without processes: drawn and scored here."""
    render, rewards = RenderConfig(views=3, colours=colours), RewardsConfig()
    views = np.zeros((3, render.size, render.size, 3), np.uint8)
    points = np.zeros((rewards.points, 3), np.float32)
    point_colours = np.zeros((rewards.points, 3), np.uint8)
    with Renderer(render) as renderer:
        draw_file(renderer, str(path), up, views, points, point_colours)
    subject = scorers.Subject(prompt, views, points, point_colours, roles)
    scorer = scorers.load("embedded", rewards)
    assert isinstance(scorer, scorers.Scorer)
    (found,) = scorer.score([subject])
    return {role: value for role, (value, _) in found.items()}


def test_scores_are_those_of_the_scorers_alone(egl, files, tmp_path):
    paths = [files / "cube.glb", files / "none.ply", files / "box.obj"]
    out = tmp_path / "new" / "scores.json"
    done = command(
        *(f"--mesh={path}" for path in paths),
        *(f"--prompt={PROMPT}", "--json", f"--out={out}", *SMALL),
        "--config.rewards.weights.coarse.preference=0",  # does not matter
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = json.loads(out.read_text())
    assert found["scorers"] == dict.fromkeys(USUAL, "embedded")
    assert [row["mesh"] for row in found["meshes"]] == list(map(str, paths))
    assert {row["prompt"] for row in found["meshes"]} == {PROMPT}
    cube, none, box = found["meshes"]
    for row, path in ((cube, paths[0]), (box, paths[2])):
        assert row["reasons"] == {}
        assert row["scores"] == pytest.approx(expected(path, PROMPT, USUAL), rel=1e-4)
    assert none["scores"] == dict.fromkeys(USUAL, None)
    assert set(none["reasons"]) == set(USUAL)
    assert none["reasons"]["parts"].startswith("drawing failed: ValueError: ")


def test_flags_reach_the_workers(egl, files):
    """A list, an axis, grey, a role of the tables; and what is in the table."""
    rows = files / "rows.csv"
    rows.write_text("prompt,mesh\na box,box.obj\na red cube,cube.glb\n")
    roles = ("alignment", "align_lmm")
    flags = ("--up=z", "--config.render.colours=false", f"--roles={','.join(roles)}")
    done = command(f"--list={rows}", *flags, *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["mesh", "prompt", *roles]
    assert lines[1].split() == ["embedded"] * 2
    for line, name, prompt in (
        (lines[2], "box.obj", "a box"),
        (lines[3], "cube.glb", "a red cube"),
    ):
        path = files / name
        numbers = expected(path, prompt, roles, up="z", colours=False)
        cells = [str(path), *prompt.split(), *(f"{numbers[r]:.4f}" for r in roles)]
        assert line.split() == cells
        usual = expected(path, prompt, roles)
        assert f"{usual['alignment']:.4f}" != f"{numbers['alignment']:.4f}"
    assert len(lines) == 4


def test_what_was_passed_over_is_a_warning_of_its_file(egl, files):
    meshes = [f"--mesh={files / name}" for name in ("box.obj", "lines.obj")]
    done = command(*meshes, "--prompt=a box", "--json", "--roles=parts", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    box, lines = json.loads(done.stdout)["meshes"]
    assert box["warnings"] == []
    assert lines["warnings"] == ["has points or lines; only faces are drawn"]
    assert box["scores"] == lines["scores"]


def test_nothing_scored_is_status_1(egl, files):
    done = command(f"--mesh={files / 'none.ply'}", "--prompt=x", *SMALL)
    assert done.returncode == 1
    assert "none.ply  drawing failed: ValueError: " in done.stdout


def test_neither_jax_nor_torch_is_loaded(egl, files):
    script = (
        "import sys\nfrom ar3d_jax.rewards import score\nscore.main()\n"
        "assert not {'jax', 'jaxlib', 'torch'} & set(sys.modules)\nprint('clean')"
    )
    flags = [f"--mesh={files / 'box.obj'}", "--prompt=x", "--roles=parts", *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", script, *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "clean"


# --- With stand-ins: fast, and able to fail -------------------------------------------


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    prepare_stand_ins(tmp_path, monkeypatch)
    monkeypatch.setattr(Scoring, "worker_module", "tests.rewards.stand_in_drawer")
    monkeypatch.setattr(Scoring, "sidecar_module", "tests.rewards.stand_in_sidecar")


def scored(folder, texts, prompts, roles=("parts", "category"), **fields):
    """What comes of files with these texts, which the stand-in draws."""
    wanted = []
    for index, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        path = folder / f"{index}.txt"
        path.write_text(text)
        wanted.append(Wanted(path, prompt))
    render = RenderConfig(views=2, size=16, workers=1)
    found = score.score(
        wanted, roles, render, RewardsConfig(points=5), logs=folder / "logs", **fields
    )
    return list(found)


def test_many_keep_their_order_whatever_dies(stand_ins, tmp_path):
    texts = [f"mesh {i}" for i in range(20)]  # 8 slots
    prompts = [f"thing {i}" for i in range(20)]
    calm = scored(tmp_path, texts, prompts, up="y")
    assert len({one.scores["parts"] for one in calm}) == 20
    assert all(set(one.scores) == {"parts", "category"} for one in calm)
    assert not any(one.reasons for one in calm)
    backwards = scored(tmp_path, texts[::-1], prompts[::-1], up="y")
    assert [one.scores for one in backwards[::-1]] == [one.scores for one in calm]
    lying = scored(tmp_path, texts, prompts, up="z")
    assert all(a.scores != b.scores for a, b in zip(lying, calm, strict=True))

    texts[3], prompts[5], prompts[9] = "broken", "nan", "die"
    rough = scored(tmp_path, texts, prompts, up="y")
    assert rough[3].scores == {}
    assert set(rough[3].reasons.values()) == {
        "drawing failed: ValueError: no mesh in it"
    }
    assert rough[5].reasons == dict.fromkeys(("parts", "category"), "no idea")
    assert "a sidecar died twice" in rough[9].reasons["parts"]
    for index in {*range(20)} - {3, 5, 9}:
        assert rough[index].scores == calm[index].scores


def test_a_scorer_that_cannot_be_loaded_is_one_line(stand_ins, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_START", "bad weights")
    with pytest.raises(UserError, match=r"sidecar does not start: weights w"):
        scored(tmp_path, ["mesh"], ["thing"], up="y")


def test_counts_that_do_not_fit_are_refused(stand_ins, tmp_path):
    rewards = RewardsConfig(points=5)
    with (
        Scoring(RenderConfig(size=16), rewards, 0, 1, tmp_path / "logs") as scoring,
        pytest.raises(ValueError, match="1 meshes and 2 prompts"),
    ):
        scoring.submit_files([Path("a")], ["a", "b"], ("parts",))


# --- What is asked, and what is shown -------------------------------------------------


def test_only_the_scorers_that_are_asked_are_loaded():
    names = ScorersConfig(preference="hps_v2_1", category="qwen_vl", parts="shapellm")
    rewards = RewardsConfig(scorers=names, judge=True)
    for roles, loaded in (
        (("preference",), {"hps_v2_1": ("preference",)}),
        (("parts", "category"), {"qwen_vl": ("category",), "shapellm": ("parts",)}),
        (("align_lmm",), {"embedded": ("align_lmm",)}),
    ):
        assert score.only(rewards, roles).loaded() == loaded


def test_one_prompt_for_all_or_one_for_each(files):
    cube, box = str(files / "cube.glb"), str(files / "box.obj")
    for prompts, pairs in (
        (["a"], [(cube, "a"), (box, "a")]),
        (["a", "b"], [(cube, "a"), (box, "b")]),
    ):
        found = score.wanted_of([cube, box], prompts, "")
        assert [(str(one.mesh), one.prompt) for one in found] == pairs


def test_a_list_is_seen_from_its_folder(files):
    rows = [
        {"prompt": " a cube ", "mesh": "cube.glb", "id": 1},
        {"mesh": str(files / "box.obj"), "prompt": "b"},
    ]
    path = files / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert score.wanted_of([], [], os.path.relpath(path)) == [
        Wanted(Path(os.path.relpath(files / "cube.glb")), "a cube"),
        Wanted(files / "box.obj", "b"),
    ]


def test_the_table():
    long = "a very long prompt about a chair with many legs"
    wanted = [
        Wanted(Path(f"{name}.glb"), text)
        for name, text in (("a", "x"), ("bcd", long), ("e", "z"))
    ]
    found = [
        Scored(wanted[0], {"parts": 0.5, "category": 10.123456}, {}),
        Scored(wanted[1], {"category": 0.0}, {"parts": "no yes, no no"}),
        Scored(wanted[2], {}, dict.fromkeys(("parts", "category"), "no mesh")),
    ]
    names = {"parts": "shapellm", "category": "qwen_vl"}
    assert score.as_table(found, names).splitlines() == [
        "mesh     prompt                                       parts  category",
        "                                                   shapellm   qwen_vl",
        "a.glb    x                                           0.5000   10.1235",
        "bcd.glb  a very long prompt about a chair with...         -    0.0000",
        "e.glb    z                                         no mesh",
        "",
        "bcd.glb, parts: no yes, no no",
    ]
    assert score.as_table(found[:1], names).splitlines() == [
        "prompt: x",
        "",
        "mesh      parts  category",
        "       shapellm   qwen_vl",
        "a.glb    0.5000   10.1235",
    ]
    warned = dataclasses.replace(found[0], warnings=("glows", "has lines"))
    assert score.as_table([warned], names).splitlines()[-4:] == [
        "",
        "a.glb, warning: glows",
        "a.glb, warning: has lines",
        "1 of 1 drawn with something passed over",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no mesh; expected --mesh=FILE"),
        (["--mesh={}/cube.glb"], "1 --mesh and 0 --prompt; expected one prompt"),
        (
            ["--mesh={}/cube.glb"] * 3 + ["--prompt=a", "--prompt=b"],
            "3 --mesh and 2 --prompt; expected one prompt for all meshes, or one for",
        ),
        (["--mesh={}/cube.glb", "--prompt= "], "--prompt is empty"),
        (["--mesh={}/no.glb", "--prompt=a"], "no such mesh: {}/no.glb; expected GLB"),
        (
            ["--mesh={}/no.glb", "--mesh={}", "--prompt=a"],
            "no such mesh: {}/no.glb and 1 more; expected",
        ),
        (
            ["--mesh={}/cube.glb", "--prompt=a", "--roles=parts,beauty"],
            "--roles has 'beauty'; expected some of preference, alignment, category,",
        ),
        (["--mesh={}/cube.glb", "--prompt=a", "--up=x"], "flag --up=x"),
        (["--list={}/bad.csv", "--prompt=a"], "--list together with --mesh or"),
        (["--list={}/bad.txt"], "bad.txt: expected a .csv or .jsonl file"),
        (["--list={}/no.csv"], "no.csv: No such file"),
        (
            ["--list={}/bad.csv"],
            "bad.csv, line 3: mesh and prompt are 'cube.glb' and ''; expected two",
        ),
        (["--list={}/column.csv"], "line 2: mesh and prompt are None and 'a'"),
        (["--list={}/bad.jsonl"], "bad.jsonl, line 2: malformed JSON"),
        (["--list={}/number.jsonl"], "line 1: mesh and prompt are 3 and 'a'"),
        (["--list={}/empty.csv"], "empty.csv has no rows"),
        (["--list={}/gone.csv"], "no such mesh: {}/gone.glb; expected"),
        (
            ["--mesh={}/cube.glb", "--prompt=a", "--out={}/cube.glb/x"],
            "cannot write {}/cube.glb/x: ",
        ),
        (["--mesh={}/cube.glb", "--prompt=a", "--out={}"], "cannot write {}: Is a"),
        (
            ["--mesh={}/cube.glb", "--prompt=a", "--config.rewards.backend=remote"],
            "rewards.remote.servers is (); expected something",
        ),
    ],
)
def test_bad_input_is_one_line(files, flags, message, monkeypatch, capsys):
    for name, text in (
        ("bad.csv", "mesh,prompt\ncube.glb,a\ncube.glb,\n"),
        ("column.csv", "file,prompt\ncube.glb,a\n"),
        ("bad.jsonl", '{"mesh": "cube.glb", "prompt": "a"}\n{"mesh"\n'),
        ("number.jsonl", '{"mesh": 3, "prompt": "a"}\n'),
        ("empty.csv", "mesh,prompt\n"),
        ("gone.csv", "mesh,prompt\ngone.glb,a\n"),
        ("bad.txt", "cube.glb"),
    ):
        (files / name).write_text(text)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tempfile, "tempdir", str(files))  # of logs, which stay
    arguments = [flag.replace("{}", str(files)) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["score", *arguments])
    with pytest.raises(SystemExit) as caught:
        score.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message.replace("{}", str(files)) in said
