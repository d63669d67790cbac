"""TRELLIS's metadata files: what is read and what is refused."""

import csv
import json
import math

import pytest

from ar3d_jax.data.trellis_metadata import Asset, read_assets
from ar3d_jax.errors import UserError

A, B = "a" * 64, "0" * 63 + "1"
COLUMNS = ["sha256", "file_identifier", "aesthetic_score", "captions"]


def write(path, rows, columns=COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return path


def test_rows(tmp_path):
    long = ["étagère, with\nshelves " + "x" * 200_000, " ", "a  shelf"]
    rows = [
        [A, "https://x/y", "5.75", json.dumps(long), "raw/y.glb", "True"],
        [B.upper(), "", "", "", "", "False"],
    ]
    columns = [*COLUMNS, "local_path", "rendered"]
    first, second = read_assets(write(tmp_path / "m.csv", rows, columns))
    assert first.captions == ("étagère, with shelves " + "x" * 200_000, "a shelf")
    assert (first.sha256, first.identifier, first.score) == (A, "https://x/y", 5.75)
    assert first.local_path == "raw/y.glb"
    assert second == Asset(B, "", second.score, (), "")
    assert math.isnan(second.score)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["ff", "", "5", "[]"], "line 3: sha256 is 'ff'; expected 64"),
        ([B, "", "high", "[]"], "aesthetic_score is 'high'"),
        ([B, "", "5", "['a chair']"], "captions is malformed JSON"),
        ([B, "", "5", '{"a": 1}'], "expected a JSON list"),
        ([B, "", "5", "[1]"], "expected a JSON list"),
        ([B, "", "5"], "line 3: 3 cells, the header has 4"),
        ([B, "", "5", "[]", "6"], "line 3: 5 cells, the header has 4"),
    ],
)
def test_bad_cells_are_one_line(tmp_path, row, reason):
    path = write(tmp_path / "m.csv", [[A, "", "5", '["a chair"]'], row])
    with pytest.raises(UserError, match=reason) as error:
        list(read_assets(path))
    assert "\n" not in str(error.value)


def test_bad_files_are_one_line(tmp_path):
    path = tmp_path / "m.csv"
    with pytest.raises(UserError, match="No such file"):
        list(read_assets(path))
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no column sha256 among none"):
        list(read_assets(path))
    write(path, [], ["sha256", "caption"])
    with pytest.raises(UserError, match="no column captions among sha256, caption"):
        list(read_assets(path))
    write(path, [[A, "[]"]], ["sha256", "captions"])
    assert len(list(read_assets(path))) == 1
    with pytest.raises(UserError, match="no column aesthetic_score"):
        list(read_assets(path, required=("aesthetic_score",)))
    path.write_bytes(b"sha256,captions\n\xff,\n")
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_assets(path))
    path.write_bytes(f'sha256,captions\n{A},"[]'.encode())
    with pytest.raises(UserError, match="malformed CSV"):
        list(read_assets(path))
