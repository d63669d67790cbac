"""The training prompts drawn from TRELLIS-500K: shares, exclusions, report, errors."""

import csv
import hashlib
import json
import random
import subprocess
import sys

import pytest

from ar3d_jax.data.build_prompts import Settings, build_prompts
from ar3d_jax.data.prompts import REASONING, PromptSource, read_prompts
from ar3d_jax.errors import UserError

NAMES = {"ObjaverseXL_sketchfab": 2.0, "HSSD": 1.0}
SYLLABLES = ["bar", "dol", "fen", "gim", "hup", "jas", "kel", "lom", "mir", "nop"]


def name_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def caption(number, words=6):
    """A text that resembles no other number's."""
    rng = random.Random(number)
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(words))


def write(folder, name, rows):
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["sha256", "file_identifier", "aesthetic_score", "captions"]
        writer.writerows([columns, *rows])


def row(number, texts=None, score="6.0"):
    texts = [caption(number, 40), caption(number)] if texts is None else texts
    return [name_of(number), f"x/{number}", score, json.dumps(texts) if texts else ""]


REASONING_TEXT = read_prompts(str(REASONING))[0].texts[0]
CATALOG_TEXT = next(r.texts[0] for r in read_prompts("catalog") if r.held_out)


@pytest.fixture
def metadata(tmp_path):
    """120 and 30 usable rows, and one row for each reason to leave one out."""
    bad = [
        row(900),  # a test object
        row(0),  # twice
        row(901, score="4.0"),
        row(902, score=""),
        row(903, texts=[]),
        row(904, texts=["two words", caption(904, 16)]),
    ]
    alike = [
        row(905, texts=[caption(910).upper() + "!"]),
        row(906, texts=[REASONING_TEXT]),
        row(907, texts=["the " + CATALOG_TEXT.removeprefix("a ")]),
        row(908, texts=[caption(5)]),
    ]
    write(tmp_path, "ObjaverseXL_sketchfab", [row(n) for n in range(120)] + bad + alike)
    write(tmp_path, "HSSD", [row(n) for n in range(200, 230)])
    write(tmp_path, "Toys4k", [row(900), row(910)])
    return tmp_path


def settings(**changes):
    values = {"sources": NAMES, "count": 60, "held_out": 6, "seed": 0}
    return Settings(**values | changes)


def test_shares_and_held_out(metadata):
    rows, report = build_prompts(metadata, settings())
    assert len(rows) == 66
    assert [r["held_out"] for r in rows] == [False] * 60 + [True] * 6
    assert sum(r["source"] == "HSSD" for r in rows) == 22
    assert sum(r["source"] == "HSSD" for r in rows[60:]) == 2
    by_name = {name_of(n): caption(n) for n in range(230)}
    for r in rows:  # the 40 words are never the prompt
        assert r["prompt"] == by_name[r["id"]]
    assert report["sources"]["HSSD"]["chosen"] == 22


def test_the_rest_is_taken_where_a_source_ends(metadata):
    rows, report = build_prompts(metadata, settings(count=140))
    assert report["sources"]["HSSD"] == {
        **dict.fromkeys(["test_object", "repeated", "low_score"], 0),
        **dict.fromkeys(["no_caption", "no_short"], 0),
        **dict.fromkeys(["like_reasoning249", "like_catalog", "like_Toys4k"], 0),
        **dict.fromkeys(["rows", "usable", "looked_at", "chosen"], 30),
        "like_each_other": 0,
    }
    assert len({r["prompt"] for r in rows}) == len(rows) == 146


def test_every_exclusion_is_counted(metadata):
    _, report = build_prompts(metadata, settings(count=150, held_out=0))
    assert report["sources"]["ObjaverseXL_sketchfab"] == {
        "rows": 130,
        "test_object": 1,
        "repeated": 1,
        "low_score": 2,
        "no_caption": 1,
        "no_short": 1,
        "usable": 124,
        "looked_at": 124,
        "like_reasoning249": 1,
        "like_catalog": 1,
        "like_Toys4k": 1,
        "like_each_other": 1,
        "chosen": 120,
    }
    with pytest.raises(UserError, match="150 captions are left of 151"):
        build_prompts(metadata, settings(count=151, held_out=0))


@pytest.mark.parametrize("kept_out", [905, 906, 907])
def test_texts_like_the_test_sets_are_left_out(metadata, kept_out):
    rows, _ = build_prompts(metadata, settings(count=150, held_out=0))
    assert name_of(kept_out) not in {r["id"] for r in rows}
    twins = {name_of(5), name_of(908)} & {r["id"] for r in rows}
    assert len(twins) == 1


def test_without_the_test_set(metadata):
    (metadata / "Toys4k.csv").unlink()
    with pytest.raises(UserError, match=r"no Toys4k\.csv"):
        build_prompts(metadata, settings())
    _, report = build_prompts(metadata, settings(), test_set=False)
    assert report["test_ids"] == 0
    assert "Toys4k.csv" not in report["files"]


def test_same_list_for_any_order_of_rows_and_another_for_another_seed(metadata):
    first, _ = build_prompts(metadata, settings())
    path = metadata / "HSSD.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]) + "\n")
    assert build_prompts(metadata, settings())[0] == first
    other, _ = build_prompts(metadata, settings(seed=1))
    assert {r["id"] for r in other} != {r["id"] for r in first}


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "ar3d_jax.data.prompts", *flags],
        capture_output=True,
        text=True,
    )


def test_command_line(metadata, tmp_path):
    out = tmp_path / "new" / "prompts.jsonl"
    flags = [f"--metadata={metadata}", f"--out={out}", "--count=50", "--held_out=4"]
    result = command(*flags, "--sources=ObjaverseXL_sketchfab:2,HSSD:1")
    assert result.returncode == 0, result.stderr
    assert "54 prompts (ObjaverseXL_sketchfab 36, HSSD 18)" in result.stdout
    report = json.loads((tmp_path / "new" / "prompts.report.json").read_text())
    digest = hashlib.sha256((metadata / "HSSD.csv").read_bytes()).hexdigest()
    assert report["files"]["HSSD.csv"] == f"sha256:{digest}"
    assert report["settings"]["most_words"] == 15
    source = PromptSource(str(out), batch=10, seed=0)
    assert len(source.rows) == 50
    for text, *bad in [
        ("no column aesthetic_score", "--sources=Broken"),
        ("No such file", "--sources=Absent:1"),
        ("expected NAME:SHARE", "--sources=HSSD:0"),
        ("expected FEWEST-MOST", "--words=5"),
        ("expected a .jsonl file", f"--out={tmp_path}/x.csv"),
        ("captions are left", "--sources=HSSD"),
    ]:
        (metadata / "Broken.csv").write_text("sha256,captions\n")
        result = command(*flags, *bad)
        assert result.returncode == 2
        assert text in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: ")
