"""Every kind of list that can be read in two ways is refused, with file and line."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ar3d_jax.data import tables
from ar3d_jax.errors import UserError

KINDS = (".csv", ".jsonl", ".json", ".txt")


def rows(path, content, **options):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    return list(tables.read(path, "list", kinds=KINDS, **options))


def test_rows_have_the_line_where_they_begin(tmp_path):
    found = rows(tmp_path / "a.csv", '\nid, prompt \n1,"a\n""b"", c"\n\n2,d\n')
    assert found == [
        (3, {"id": "1", "prompt": 'a\n"b", c'}),
        (6, {"id": "2", "prompt": "d"}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_in_any_way(tmp_path, end):
    assert rows(tmp_path / "a.txt", f"é{end}{end}b\u2028c{end}") == [
        (1, {"text": "é"}),
        (2, {"text": ""}),
        (3, {"text": "b\u2028c"}),
    ]
    text = f'\ufeffid,prompt{end}1,"a{end}b"{end}2,c{end}'
    assert rows(tmp_path / "a.csv", text) == [
        (2, {"id": "1", "prompt": "a\nb"}),
        (4, {"id": "2", "prompt": "c"}),
    ]


def test_json_of_both_forms(tmp_path):
    assert rows(tmp_path / "a.jsonl", '{"a": 1}\n \n{"a": [2]}') == [
        (1, {"a": 1}),
        (3, {"a": [2]}),
    ]
    assert rows(tmp_path / "a.json", '[{"a": 1},\n {"a": {"b": 2}}]\n') == [
        (1, {"a": 1}),
        (2, {"a": {"b": 2}}),
    ]


def test_a_column_of_row_numbers_is_passed_over(tmp_path):
    """What pandas writes without index=False."""
    found = rows(tmp_path / "a.csv", ",prompt\n0,a\n1,b\n")
    assert [cells for _, cells in found] == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "id,prompt\n1,a\n2,a red chair, with a back\n",
            "line 3: 3 cells, th",
        ),
        ("a.csv", 'id,prompt\n1,"a\nb"\n2\n', "line 4: 1 cells, the header has 2"),
        (
            "a.csv",
            "prompt\na red chair, with a back\n",
            "line 2: 2 cells, the header h",
        ),
        ("a.csv", "prompt,prompt\na,b\n", "line 1: column 'prompt' stands twice"),
        ("a.csv", "prompt, prompt\na,b\n", "line 1: column 'prompt' stands twice"),
        ("a.csv", "prompt,\na red chair, blue\n", "line 1: column 2 of the header has"),
        ("a.csv", '""\na\n', "line 1: column 1 of the header has no name"),
        ("a.csv", ",prompt\nred,a chair\n", "line 2: 'red' is in a column without a n"),
        ("a.csv", "id;prompt\n1;a\n", "line 1: 'id;prompt' is separated by semicolons"),
        ("a.csv", "id\tprompt\n1\ta\n", "is separated by tabs; expected commas"),
        (
            "a.csv",
            'id,prompt\n1,a\n2,"b\n3,c\n',
            "line 3: malformed CSV .a quote is nev",
        ),
        ("a.csv", 'id,prompt\n1,"a\n2,"b"\n', "line 2: malformed CSV"),
        (
            "a.csv",
            b"id,prompt\r1,a\r2,\xff\r",
            "line 3: byte 0xff at position 16 is not",
        ),
        ("a.csv", "id,prompt\n1,a\0b\n", "line 2: a NUL byte; expected text in UTF-8"),
        ("a.txt", "a\n".encode("utf-16"), "is UTF-16; expected UTF-8"),
        ("a.txt", "a\nb\n".encode("utf-16-le"), "line 1: a NUL byte"),
        (
            "a.jsonl",
            '{"a": 1}\n{"a": 1, "a": 2}\n',
            "line 2: malformed JSON .the key 'a'",
        ),
        (
            "a.jsonl",
            '{"a": {"b": 1, "b": 1}}\n',
            "line 1: malformed JSON .the key 'b' s",
        ),
        ("a.jsonl", "[" * 100_000, "line 1: malformed JSON .nested too deeply"),
        ("a.jsonl", "[1]\n", "line 1: expected a JSON object"),
        (
            "a.json",
            '[{"a": 1}, {"a": 1, "a": 2}]',
            "malformed JSON .the key 'a' stands",
        ),
        ("a.json", '[{"a": 1}, 2]', "object 2: expected a JSON object"),
        ("a.json", '{"a": 1}', "expected a JSON list of objects"),
        ("a.json", "", "malformed JSON"),
        ("a.xml", "", r"expected a \.csv, \.jsonl, \.json or \.txt file"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        rows(tmp_path / name, content)
    assert str(caught.value).startswith(f"list {tmp_path / name}")
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    for name, reason in (("no.csv", "No such file"), (".", "Is a directory")):
        with pytest.raises(UserError, match=reason):
            list(tables.read(tmp_path / name, "list"))


def test_nearly_known_columns(tmp_path):
    known = {"known": ("id", "mesh", "held_out"), "guarded": ("held_out",)}
    for name in ("Mesh", "ID", "held out", "is_held_out", "hold_out"):
        with pytest.raises(UserError, match=f"row 2: column '{name}'; expected"):
            rows(tmp_path / "a.csv", f"x,{name}\n1,a\n", **known)
    # Beside the right one it is another thing.
    assert rows(tmp_path / "a.csv", "mesh,Mesh,ids\na,b,c\n", **known)


def test_progress_and_header(tmp_path):
    read, told = [], []
    text = "id,prompt\n1,é\n"
    rows(tmp_path / "a.csv", text, progress=read.append, header=told.append)
    rows(tmp_path / "a.csv", "", header=told.append)
    assert sum(read) == len(text.encode())
    assert [list(names) for names in told] == [["id", "prompt"], []]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))


@given(table=st.lists(st.tuples(CELL, CELL), max_size=5))
def test_what_python_writes_comes_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "prompt"), *table])
    found = tables.read(path, "list", kinds=KINDS)
    assert [tuple(cells.values()) for _, cells in found] == table
