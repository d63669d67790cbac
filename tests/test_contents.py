"""Digests notice other contents, and read little of what is large."""

from pathlib import Path

import numpy as np
import pytest

from ar3d_jax import contents
from ar3d_jax.contents import difference, digest, held
from ar3d_jax.errors import UserError


@pytest.fixture
def small_limits(monkeypatch):
    """100 bytes are large: ends of 10, four samples of 5 at 10, 30, 50 and 70."""
    for name, value in {"WHOLE": 90, "ENDS": 10, "SAMPLES": 4, "SAMPLE": 5}.items():
        monkeypatch.setattr(contents, name, value)


def test_a_file_is_its_bytes(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" * 100)
    other.write_bytes(b"a" * 100)
    assert digest(one) == digest(other)
    assert len(digest(one)) == 16
    found = {digest(one)}
    for data in (b"a" * 99, b"a" * 99 + b"b", b"a" * 50 + b"b" + b"a" * 49, b""):
        one.write_bytes(data)
        found.add(digest(one))
    assert len(found) == 5


def test_of_a_large_file_ends_and_samples_count(small_limits, tmp_path):
    file = tmp_path / "file"
    noticed = []
    file.write_bytes(bytes(100))
    whole = digest(file)
    for place in range(100):
        data = bytearray(100)
        data[place] = 1
        file.write_bytes(data)
        noticed.append(digest(file) != whole)
    wanted = np.zeros(100, bool)
    for start, stop in ((0, 10), (90, 100), (10, 15), (30, 35), (50, 55), (70, 75)):
        wanted[start:stop] = True
    np.testing.assert_array_equal(noticed, wanted)
    file.write_bytes(bytes(101))
    assert digest(file) != whole


def test_of_a_folder_names_and_models_files_count(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.safetensors", "config.json", "deep/digests.json"):
        (folder / name).write_text(name)
    before = digest(folder)
    (folder / "README.md").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "a.json").write_text("x")
    assert digest(folder) == before
    folder.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved") == before
    (tmp_path / "moved" / "deep" / "digests.json").write_text("other")
    assert digest(tmp_path / "moved") != before
    (tmp_path / "moved" / "deep" / "digests.json").write_text("deep/digests.json")
    assert digest(tmp_path / "moved") == before
    (tmp_path / "moved" / "a.safetensors").rename(tmp_path / "moved" / "b.safetensors")
    assert digest(tmp_path / "moved") != before


def test_little_is_read_of_15_gb(tmp_path):
    for number in range(4):
        with (tmp_path / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(4 * 10**9)

    def read() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])

    before = read()
    digest(tmp_path)
    assert read() - before < 20 * 2**20


def test_what_is_held_by_field(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a")
    found = held({"a": "embedded", "b": "", "c": "x/y", "d": str(file), "e": file})
    assert found == {name: (str(file), digest(file)) for name in "de"}
    assert difference({}, found) == ""
    assert difference({"d": [str(file), digest(file)]}, found) == ""
    assert difference({"x": ["", "0"]}, found) == ""
    said = difference({"e": [str(file), "0123"]}, found)
    assert said == f"e={file} held something else (digest 0123, now {digest(file)})"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/gone: No such file"):
        digest(tmp_path / "gone")
