"""Reports as files: every number arrives, and what is missing is a dash, no crash."""

import copy
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from ar3d_jax.errors import UserError
from ar3d_jax.evaluation import report, tables, wording
from ar3d_jax.evaluation.markdown import escaped, markdown
from ar3d_jax.evaluation.radar import radar
from ar3d_jax.evaluation.ranking import best_and_worst
from ar3d_jax.evaluation.tables import DASH, Number
from tests.evaluation import small_report as small

STEPS = {"coarse": 20.0, "refined": 27.0}


def many(count: int = 9, **changes) -> dict:
    """One system; object i scores 10 + i in its last step."""
    things = [
        small.small_object(
            f"thing-{i}",
            small.CATEGORIES[i % 3],
            {"coarse": 20.0 - i, "refined": 10.0 + i},
        )
        for i in range(count)
    ]
    return small.small_report(small.small_system("ours", things), **changes)


def cell(table, row: str, column: int = 1) -> Number:
    """The cell of the row whose first cell starts so."""
    (found,) = [cells for cells in table.rows if cells[0].startswith(row)]
    return found[column]


def test_all_files_are_written(tmp_path):
    made = many()
    report.write(tmp_path / "deep" / "folder", made)
    folder = tmp_path / "deep" / "folder"
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.json", "report.md", "radar.svg", "index.html"}
    assert json.loads((folder / "report.json").read_text()) == made


def test_what_was_read_from_json_is_written_alike(tmp_path):
    """A comparison is made of reports that were written before."""
    report.write(tmp_path / "a", many())
    report.write(tmp_path / "b", json.loads((tmp_path / "a/report.json").read_text()))
    for name in ("report.json", "report.md", "radar.svg", "index.html"):
        written = [(tmp_path / x / name).read_bytes() for x in "ab"]
        assert written[0] == written[1], name


def test_infinities_are_null_in_the_file_and_dashes_in_the_text(tmp_path):
    made = many()
    overall = made["systems"][0]["overall"]["refined"]
    overall["kd/judge"]["mean"] = float("nan")
    overall["fd/judge"]["error"] = float("inf")
    report.write(tmp_path, made)
    read = json.loads((tmp_path / "report.json").read_text())
    found = read["systems"][0]["overall"]["refined"]
    assert found["kd/judge"]["mean"] is None
    assert found["fd/judge"]["error"] is None
    table = tables.overall(read)
    assert cell(table, "KD", 2) == Number(DASH)
    assert cell(table, "FD", 2).error == ""
    assert "nan" not in (tmp_path / "report.md").read_text().lower()


def test_nothing_was_measured(tmp_path):
    made = many()
    system = made["systems"][0]
    for step in system["steps"]:
        nothing = {"mean": None, "error": None, "n": 0}
        system["overall"][step] = dict.fromkeys(made["metrics"], nothing)
        system["categories"][step] = {}
        system["coverage"][step].update(asked=0, scored=0)
    system["objects"] = []
    report.write(tmp_path, made)
    assert not (tmp_path / "radar.svg").exists()
    assert cell(tables.overall(made), "CLIP") == Number(DASH)


def test_an_earlier_radar_does_not_stay(tmp_path):
    report.write(tmp_path, many())
    made = many()
    made["systems"][0]["categories"] = {}
    made["benchmark"]["categories"] = {}
    report.write(tmp_path, made)
    assert not (tmp_path / "radar.svg").exists()
    assert "By category" not in (tmp_path / "report.md").read_text()
    assert "By category" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("step", ["shape", "mesh"])
def test_a_system_of_one_step(tmp_path, step):
    things = [small.small_object("a", "chair", {step: 20.0})]
    things[0]["plans"] = {}
    things[0]["steps"][step]["views"] = None
    report.write(tmp_path, small.small_report(small.small_system("other", things)))
    page = (tmp_path / "index.html").read_text()
    assert f"<b>{step}</b>" in page
    assert "coarse" not in page.partition("<body>")[2]


def test_systems_of_different_steps_stand_side_by_side(tmp_path):
    ours = small.small_system("ours", [small.small_object("a", "chair", STEPS)])
    other = [small.small_object("a", "chair", {"mesh": 25.0})]
    made = small.small_report(ours, small.small_system("other", other))
    table = tables.overall(made)
    assert [lines[:2] for lines in table.head[1:]] == [
        ("ours", "coarse"),
        ("ours", "refined"),
        ("other", "mesh"),
    ]
    assert [cell(table, "CLIP", i).value for i in (1, 2, 3)] == [
        "20.00",
        "27.00",
        "25.00",
    ]
    report.write(tmp_path, made)
    page = (tmp_path / "index.html").read_text()
    assert page.count('<div class="panel">') == 6  # two lists of one object each


def test_an_object_without_its_last_step_is_not_ranked(tmp_path):
    made = many(3)
    del made["systems"][0]["objects"][1]["steps"]["refined"]
    (ranked,) = best_and_worst(made, 6)
    assert [x["id"] for x in ranked.objects] == ["thing-2", "thing-0"]
    report.write(tmp_path, made)


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a folder"):
        report.write(tmp_path / "file", many())


def test_half_a_letter_in_a_caption_does_not_stop_the_report(tmp_path):
    made = many()
    made["systems"][0]["objects"][0]["caption"] = "a chair \ud83d"
    report.write(tmp_path, made)
    assert r"a chair \ud83d" in (tmp_path / "index.html").read_text(encoding="utf-8")
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert told["systems"][0]["objects"][0]["caption"] == "a chair \ud83d"


def test_best_and_worst_by_the_last_steps_first_clip_score():
    best, worst = best_and_worst(many(9), 2)
    assert (best.title, worst.title) == ("best", "worst")
    assert [x["id"] for x in best.objects] == ["thing-8", "thing-7"]
    assert [x["id"] for x in worst.objects] == ["thing-0", "thing-1"]
    (everything,) = best_and_worst(many(4), 2)
    assert [x["id"] for x in everything.objects] == [f"thing-{i}" for i in (3, 2, 1, 0)]


def test_without_a_clip_score_another_metric_decides():
    made = many(6)
    made["metrics"]["clip_score/judge"]["better"] = ""
    made["metrics"]["iou"]["better"] = "lower"
    best, _ = best_and_worst(made, 1)
    assert best.metric == "iou"
    assert [x["id"] for x in best.objects] == ["thing-0"]
    made["metrics"] = {}
    (some,) = best_and_worst(made, 1)
    assert (some.metric, len(some.objects)) == ("", 2)


@pytest.mark.parametrize(
    ("metric", "mean", "error", "verdict"),
    [
        ("clip_score/judge", 1.0, 0.49, "better"),
        ("clip_score/judge", 1.0, 0.5, ""),
        ("clip_score/judge", -1.0, 0.49, "worse"),
        ("clip_score/judge", 1.0, None, ""),
        ("kd/judge", -1.0, 0.1, "better"),
        ("kd/judge", 1.0, 0.1, "worse"),
        ("components", 1.0, 0.1, "differs"),
        ("clip_score/judge", 0.004, 0.0, ""),  # shown as +0.00
        ("clip_score/judge", 0.006, 0.0, "better"),
    ],
)
def test_differences_beyond_two_errors_are_marked(metric, mean, error, verdict):
    entry = {"a": "base", "b": "ours", "step": "refined"}
    entry["metrics"] = {metric: {"mean": mean, "error": error, "n": 9}}
    table = tables.differences(many(differences=[entry]))
    assert table.head[1] == ("ours \u2212 base", "refined", "n = 9")
    (row,) = table.rows
    assert row[1].verdict == verdict
    assert row[1].value[0] == ("+" if mean > 0 else "\u2212")


def test_the_steps_of_one_system_can_be_compared():
    entry = {"a": "ours", "b": "ours", "step": "refined \u2212 coarse"}
    entry["metrics"] = {"iou": {"mean": 0.1, "error": 0.01, "n": 9}}
    table = tables.differences(many(differences=[entry]))
    assert table.head[1][:2] == ("ours", "refined \u2212 coarse")


def test_counts_that_differ_are_said():
    made = many()
    made["systems"][0]["overall"]["refined"]["iou"]["n"] = 4
    table = tables.overall(made)
    assert table.head[2][-1] == "n = 9"
    assert cell(table, "IoU", 2).note == "n = 4"
    assert cell(table, "CLIP", 2).note == ""


def test_failures_name_object_and_reason(tmp_path):
    made = many()
    coverage = made["systems"][0]["coverage"]
    empty = {"id": "lost", "seed": 3, "reason": "the mesh is empty"}
    coverage["coarse"]["failed"] = [empty]
    coverage["refined"]["failed"] = [empty, {**empty, "reason": "not drawn"}]
    made["systems"][0]["strangers"] = ["nobody.glb"]
    report.write(tmp_path, made)
    assert tables.failures(made).rows == (
        ("ours", "lost", "3", "coarse, refined", "the mesh is empty"),
        ("ours", "lost", "3", "refined", "not drawn"),
    )
    for name in ("report.md", "index.html"):
        text = (tmp_path / name).read_text()
        assert "not drawn" in text
        assert "nobody.glb" in text


def test_what_was_passed_over_names_object_and_file(tmp_path):
    made = many()
    assert tables.noted(made) is None
    note = {"id": "thing-0", "seed": 0, "notes": ["a.png is not there", "glows"]}
    made["systems"][0]["coverage"]["refined"]["noted"] = [note]
    assert tables.noted(made).rows == (
        ("ours", "thing-0", "refined", "a.png is not there; glows"),
    )
    report.write(tmp_path, made)
    for name in ("report.md", "index.html"):
        assert "a.png is not there" in (tmp_path / name).read_text()
    lines = wording.in_lines(made).splitlines()
    (line,) = [line for line in lines if line.startswith("warning: 1 of them drawn")]
    assert "thing-0: a.png is not there" in line


def test_markdown_has_every_table(tmp_path):
    made = many(differences=[])
    made["warnings"] = ["few objects"]
    text = markdown(made, shown=2)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    assert headings[:3] == ["Evaluation: catalog", "Warnings", "Overall"]
    assert {"Coverage", "Printed in the paper", "Metrics", "Protocol"} <= set(headings)
    assert "| CLIP score (judge) ↑ | 16.00 ± 0.86 | 14.00 ± 0.86 |" in text
    assert "- few objects" in text
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block


def test_markdown_escapes():
    text = "a | b\n# c <b> `d` *e* [f](g) & \\"
    assert escaped(text) == (
        "a \\| b # c &lt;b&gt; \\`d\\` \\*e\\* \\[f\\](g) &amp; \\\\"
    )


def test_the_papers_table():
    rows = {row[0]: [cell.value for cell in row[1:]] for row in tables.published().rows}
    assert len(rows) == 6
    printed = "28.5 0.194 2.74 25.9 29.3 0.156 1.85 20.4"
    assert rows["AR3D-R1"] == printed.split()
    assert all(len(numbers) == 8 for numbers in rows.values())
    assert "not comparable" in tables.published().note


def points(picture: str) -> list[list[str]]:
    """The corners of the polygons that are filled: one list per line."""
    root = ElementTree.fromstring(picture)
    shapes = root.iter("{http://www.w3.org/2000/svg}polygon")
    return [x.get("points").split() for x in shapes if x.get("fill") != "none"]


def test_radar_draws_every_step_and_category():
    made = many()
    picture = radar(made)
    lines = points(picture)
    assert [len(line) for line in lines] == [3, 3]
    for word in (*small.CATEGORIES[:3], "ours coarse", "ours refined"):
        assert word in picture
    without = copy.deepcopy(made)
    found = without["systems"][0]["categories"]["refined"]["lamp"]
    found["clip_score/judge"]["mean"] = None
    assert [len(line) for line in points(radar(without))] == [3, 2]


@pytest.mark.parametrize(
    "means", [(20, 20, 20), (-3, 0, 3), (0.2, 0.21, 0.2), (1, 99, 5)]
)
def test_radar_scale_holds_all_values(means):
    made = many()
    for step in made["systems"][0]["categories"].values():
        for category, mean in zip(step.values(), means, strict=True):
            category["clip_score/judge"]["mean"] = mean
    line, _ = points(radar(made))
    for corner in line:
        x, y = map(float, corner.split(","))
        distance = ((x - 210) ** 2 + (y - 165) ** 2) ** 0.5
        assert 0 < distance <= 120.2


def test_radar_needs_three_categories_and_a_clip_score():
    made = many(2)
    assert radar(made) is None
    made = many()
    made["metrics"] = {"iou": made["metrics"]["iou"]}
    assert radar(made) is None


def test_radar_of_many_categories_keeps_the_largest():
    made = many()
    system = made["systems"][0]
    means = system["overall"]["refined"]
    names = [f"kind-{i}" for i in range(40)]
    made["benchmark"]["categories"] = {name: 100 - i for i, name in enumerate(names)}
    system["categories"] = {"refined": dict.fromkeys(names, means)}
    picture = radar(made)
    assert [len(line) for line in points(picture)] == [12]
    assert "kind-11<" in picture
    assert "kind-12<" not in picture
