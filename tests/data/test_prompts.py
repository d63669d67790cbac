"""Prompt files: what is read, what is refused, and batches that resume exactly."""

import json

import pytest

from ar3d_jax.data import prompts
from ar3d_jax.data.prompts import Prompt, PromptSource, held_out_prompts, read_prompts
from ar3d_jax.errors import UserError


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(path, column=""):
    return [row.texts for row in read_prompts(path, column)]


def test_text_file(tmp_path):
    path = write(tmp_path, "p.txt", "\ufeffa chair\r\n\r\n  a  red table \nétagère")
    assert texts(path) == [("a chair",), ("a red table",), ("étagère",)]
    assert [row.id for row in read_prompts(path)] == ["p-1", "p-3", "p-4"]


def test_unicode_line_marks_do_not_split_a_prompt(tmp_path):
    path = write(tmp_path, "p.txt", "a\u2028chair\x85here\n")
    assert texts(path) == [("a chair here",)]


def test_csv(tmp_path):
    path = write(tmp_path, "p.csv", 'id,prompt\n7,"a chair, with\narms"\n8,\n9,x\n')
    assert texts(path) == [("a chair, with arms",), ("x",)]
    assert [row.id for row in read_prompts(path)] == ["7", "9"]


def test_csv_with_captions_as_json_list(tmp_path):
    cell = json.dumps(["a chair", "a seat"]).replace('"', '""')
    path = write(tmp_path, "m.csv", f'sha256,captions\nff,"{cell}"\nee,[]\ndd,plain\n')
    assert texts(path) == [("a chair", "a seat"), ("plain",)]


def test_jsonl(tmp_path):
    lines = [
        {"prompt": "a [b] c", "captions": ["not this"]},
        {"prompt": "d", "held_out": True, "id": 5},
    ]
    path = write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    rows = read_prompts(path)
    assert [row.texts for row in rows] == [("a [b] c",), ("d",)]
    assert rows[1].id == "5"
    assert [row.held_out for row in rows] == [False, True]


def test_numbers_as_ids(tmp_path):
    path = write(tmp_path, "p.jsonl", '{"prompt": "a", "id": 0}\n{"prompt": "b"}\n')
    assert [row.id for row in read_prompts(str(path))] == ["0", "p-2"]


def test_other_columns_are_metadata(tmp_path):
    path = write(tmp_path, "p.csv", "prompt,caption,split\na,b,train\n")
    assert texts(path) == [("a",)]


def test_named_column(tmp_path):
    path = write(tmp_path, "p.csv", "prompt,title\nno,yes\n")
    assert texts(path, "title") == [("yes",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "has no prompts"),
        ("p.txt", "\n \n", "has no prompts"),
        ("p.csv", "", "has no prompts"),
        ("p.csv", "prompt\n", "has no prompts"),
        ("p.jsonl", "", "has no prompts"),
        ("p.parquet", "x", r"expected a \.txt, \.csv or \.jsonl file"),
        (
            "p.csv",
            "id,text\n1,a\n",
            "columns are id, text; expected a column prompt or",
        ),
        ("p.csv", 'prompt\n"a"b\n', "line 2: malformed CSV"),
        ("p.csv", "captions\n[1\n", "line 2: column captions is a malformed JSON list"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: malformed JSON"),
        ("p.jsonl", '"a"\n', "line 1: expected a JSON object"),
        (
            "p.jsonl",
            '{"prompt": "a", "id": [1]}\n',
            "line 1: column id is .1.; expected",
        ),
        ("p.csv", "prompt,Held-Out\na,true\n", "'Held-Out'; expected 'held_out'"),
        ("p.csv", "prompt,holdout\na,true\n", "'holdout'; expected 'held_out'"),
        ("p.jsonl", '{"prompt": "a", "heldout": 1}', "'heldout'; expected 'held_out'"),
        ("p.jsonl", '{"prompt": "a"}\n{"Prompt": "b"}\n', "row 2: column 'Prompt'"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "line 2: column prompt is 3"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2: columns are text"),
        ("p.txt", b"a\nb\xff\n", "line 2: byte 0xff at position 3 is not UTF-8"),
        ("p.txt", b"\xef\xbb\xbfa\n\xff", "line 2: byte 0xff at position 5 is not UTF"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(write(tmp_path, name, content))
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_and_column(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_prompts(str(tmp_path / "absent.txt"))
    path = write(tmp_path, "p.csv", "prompt\na\n")
    with pytest.raises(UserError, match="expected a column title"):
        read_prompts(path, "title")


@pytest.fixture
def ten(tmp_path):
    return write(tmp_path, "ten.txt", "\n".join(f"prompt {i}" for i in range(10)))


def take(source, count):
    return [prompt for _ in range(count) for prompt in next(source)]


def test_every_epoch_has_each_prompt_once_in_a_new_order(ten):
    source = PromptSource(ten, batch=5, seed=0)
    first, second = take(source, 2), take(source, 2)
    assert len({prompt.id for prompt in first}) == 10
    assert {prompt.id for prompt in first} == {prompt.id for prompt in second}
    assert first != second
    assert take(PromptSource(ten, batch=5, seed=0), 2) == first
    assert take(PromptSource(ten, batch=5, seed=1), 2) != first


def test_a_share_of_the_prompts_is_in_every_larger_share(ten):
    def texts(share, seed):
        rows = PromptSource(ten, batch=1, seed=seed, share=share).rows
        return [row.texts[0] for row in rows]

    some, more, every = (texts(share, 0) for share in (0.25, 0.6, 1.0))
    assert (len(some), len(more), len(every)) == (3, 6, 10)
    assert set(some) < set(more) < set(every)
    assert texts(0.25, seed=7) == some != every[:3]


def test_unshuffled_keeps_the_order_of_the_file(ten):
    source = PromptSource(ten, batch=4, seed=0, shuffle=False)
    assert [p.text for p in take(source, 1)] == [f"prompt {i}" for i in range(4)]


def test_batches_go_over_the_end_of_the_file(ten):
    batches = [next(PromptSource(ten, batch=32, seed=0)) for _ in range(2)]
    assert len(batches[0]) == 32


def test_resume_is_exact(ten):
    source = PromptSource(ten, batch=3, seed=4)
    take(source, 5)
    state = json.loads(json.dumps(source.get_state()))
    expected = take(source, 9)
    fresh = PromptSource(ten, batch=3, seed=4)
    fresh.set_state(state)
    assert take(fresh, 9) == expected


def test_one_caption_per_epoch(tmp_path):
    line = json.dumps({"captions": [f"caption {i}" for i in range(4)]})
    path = write(tmp_path, "c.jsonl", line)
    chosen = [prompt.text for prompt in take(PromptSource(path, batch=1, seed=0), 40)]
    assert set(chosen) == {f"caption {i}" for i in range(4)}
    assert chosen == [p.text for p in take(PromptSource(path, batch=1, seed=0), 40)]


def test_held_out_rows_are_never_trained_on(tmp_path):
    rows = [{"id": str(i), "prompt": f"p{i}", "held_out": i > 3} for i in range(6)]
    path = write(tmp_path, "h.jsonl", "\n".join(map(json.dumps, rows)))
    seen = {prompt.text for prompt in take(PromptSource(path, batch=4, seed=0), 5)}
    assert seen == {"p0", "p1", "p2", "p3"}
    assert held_out_prompts(path, 8) == [Prompt("4", "p4"), Prompt("5", "p5")]
    held = write(tmp_path, "all.jsonl", json.dumps(rows[5]))
    with pytest.raises(UserError, match="all rows are held out"):
        PromptSource(held, batch=1, seed=0)


def test_files_without_held_out_rows_give_their_first(ten):
    assert [p.text for p in held_out_prompts(ten, 2)] == ["prompt 0", "prompt 1"]


def test_shipped_prompts():
    rows = [
        json.loads(line) for line in prompts.SHIPPED.read_text("utf-8").splitlines()
    ]
    assert prompts.SHIPPED.stat().st_size < 500_000
    assert len(rows) == len(read_prompts("catalog"))
    assert {"id", "prompt", "class", "parts", "category", "held_out"} == set(rows[0])
    training = {row["prompt"] for row in rows if not row["held_out"]}
    assert not training & {row["prompt"] for row in rows if row["held_out"]}
    assert len(training) > 1000
    classes = {row["prompt"]: row["class"] for row in rows}
    first = [classes[prompt.text] for prompt in held_out_prompts("catalog", 4)]
    assert len(set(first)) == 4


def test_a_column_held_out_in_any_spelling(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(
        "prompt,held_out\na,True\nb,1\nc,yes\nd,\ne,false\nf,0\n", encoding="utf-8"
    )
    rows = read_prompts(str(path))
    assert [row.held_out for row in rows] == [True] * 3 + [False] * 3
    path.write_text("prompt,held_out\na,maybe\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: column held_out is 'maybe'"):
        read_prompts(str(path))
