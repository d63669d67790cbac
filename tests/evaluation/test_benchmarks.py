"""The four benchmarks: what is in them, in which order, and what is refused."""

import collections
import itertools
import json

import numpy as np
import pytest
import trimesh

from ar3d_jax.data.catalog import is_held_out, load_held_out
from ar3d_jax.data.near_duplicates import NearDuplicates, similarity
from ar3d_jax.data.prompts import read_prompts
from ar3d_jax.errors import UserError
from ar3d_jax.evaluation.annotations import CATEGORIES
from ar3d_jax.evaluation.benchmarks import HELD_OUT, load
from tests.data.test_trellis_metadata import write as write_metadata


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory):
    return load("reasoning249", "", 0, tmp_path_factory.mktemp("truth"))


def test_catalog_is_every_held_out_object_with_its_truth(tmp_path):
    folder = tmp_path / "truth"
    benchmark = load("catalog", "", 0, folder)
    names = [item.id for item in benchmark.items]
    shipped = [row for row in read_prompts("catalog") if row.held_out]
    assert sorted(names) == sorted({row.id.rpartition(".")[0] for row in shipped})
    assert len(names) == len({name.lower() for name in names}) == 75
    assert all(is_held_out(name) for name in names)
    assert benchmark.items[0].caption == shipped[0].texts[0]
    assert sorted(path.stem for path in folder.iterdir()) == sorted(names)
    assert all(item.truth == folder / f"{item.id}.glb" for item in benchmark.items)
    # The first few are different things, furniture first.
    assert [item.category for item in benchmark.items[:4]] == ["furniture"] * 4
    assert len({item.category for item in benchmark.items}) > 10


def test_truth_meshes_are_the_voxels_turned_y_up(tmp_path):
    items = load("catalog", "", 6, tmp_path).items
    held_out = load_held_out(HELD_OUT)
    for item in items:
        mesh = trimesh.load_mesh(item.truth)
        x, y, z = mesh.vertices.T  # y up
        points = np.stack([x, -z, y], axis=1)
        voxels = held_out.voxels[held_out.ids.index(item.id)]
        # A vertex is midway between the centres of a full and an empty cell, and there
        # is one for each such pair of neighbours.
        full = np.pad(voxels, 1)
        place = (points + 0.5) * 32 + 0.5
        below, above = np.floor(place + 0.25), np.ceil(place - 0.25)
        ends = [full[tuple(cells.astype(int).T)] for cells in (below, above)]
        assert (ends[0] != ends[1]).all()
        pairs = sum((np.diff(full, axis=axis)).sum() for axis in range(3))
        assert len(np.unique(points, axis=0)) == pairs
        assert mesh.volume > 0  # wound from outside


def test_truth_meshes_are_written_once(tmp_path):
    item = load("catalog", "", 1, tmp_path).items[0]
    item.truth.write_bytes(b"mine")
    assert load("catalog", "", 2, tmp_path).items[0] == item
    assert item.truth.read_bytes() == b"mine"
    with pytest.raises(UserError, match="cannot write"):
        load("catalog", "", 1, item.truth)


def test_reasoning_has_the_papers_proportions(reasoning):
    counts = collections.Counter(item.category for item in reasoning.items)
    assert counts == CATEGORIES
    assert sum(counts.values()) == 249
    numbers = collections.Counter()
    for item in reasoning.items:
        numbers[item.category] += 1
        assert item.id == f"{item.category}-{numbers[item.category]:03}"
        assert item.truth is None


def test_reasoning_prompts_are_short_and_say_what_to_expect(reasoning):
    for item in reasoning.items:
        assert 5 <= len(item.caption.split()) <= 25, item.id
        assert item.caption == " ".join(item.caption.split())
        assert item.expects, item.id
        for part, count in item.expects.items():
            assert part == part.strip().lower(), item.id
            assert count is None or (isinstance(count, int) and count > 0), item.id
    exact = sum(any(x.expects.values()) for x in reasoning.items)
    assert exact == 249  # each has a part that can be counted


def test_reasoning_prompts_are_all_different(reasoning):
    """Not even alike: half of the threshold of near-duplicates."""
    texts = [item.caption for item in reasoning.items]
    alike = {
        (a, b) for a, b in itertools.combinations(texts, 2) if similarity(a, b) > 0.35
    }
    assert not alike
    openings = collections.Counter(" ".join(text.split()[:3]).lower() for text in texts)
    assert openings.most_common(1)[0][1] <= 3


def test_reasoning_prompts_resemble_no_prompt_of_the_catalog(reasoning):
    captions = NearDuplicates(
        (row.texts[0] for row in read_prompts("catalog")), threshold=0.5
    )
    found = [captions.find(item.caption) for item in reasoning.items]
    assert found == [None] * 249


def test_a_few_of_reasoning_are_of_every_category(reasoning, tmp_path):
    benchmark = load("reasoning249", "", 12, tmp_path)
    assert [item.category for item in benchmark.items[:6]] == [*CATEGORIES, "spatial"]
    assert benchmark.items[5].id == "spatial-002"
    assert benchmark.notes[0] == "12 of 249 objects"
    assert reasoning.notes[0] == "249 of 249 objects"


NAMES = [f"{digit}" * 64 for digit in "31f"]


@pytest.fixture
def toys(tmp_path):
    folder = tmp_path / "toys"
    (folder / "raw" / "cat").mkdir(parents=True)
    (folder / "raw" / "cat" / "a.glb").touch()
    (folder / "raw" / "cat" / "b.obj").touch()
    captions = json.dumps(["first", "second", "third", "fourth"])
    kinds = ["airplane/airplane_000/x.blend", "ice_cream_012", "cat/cat_1/y.blend"]
    meshes = ["raw/cat/a.glb", "raw/cat/b.blend", ""]
    rows = [
        [name, kind, "5", captions, mesh]
        for name, kind, mesh in zip(NAMES, kinds, meshes, strict=True)
    ]
    rows += [["e" * 64, "dog/d.blend", "5", "", ""], rows[0]]
    columns = ["sha256", "file_identifier", "aesthetic_score", "captions", "local_path"]
    write_metadata(folder / "metadata.csv", rows, columns)
    return folder


def test_toys4k(toys, tmp_path):
    benchmark = load("toys4k", str(toys), 0, tmp_path)
    one, three, last = benchmark.items
    assert [item.id for item in benchmark.items] == sorted(NAMES)
    assert [x.category for x in benchmark.items] == ["ice_cream", "airplane", "cat"]
    # 0x11111111 % 4 is 1, 0x33333333 % 4 and 0xffffffff % 4 are 3.
    assert [x.caption for x in benchmark.items] == ["second", "fourth", "fourth"]
    assert one.truth == toys / "raw" / "cat" / "b.obj"
    assert three.truth == toys / "raw" / "cat" / "a.glb"
    assert last.truth is None
    assert "1 objects without captions and 1 repeated rows left out" in benchmark.notes
    assert "2 objects have a mesh of ground truth" in benchmark.notes
    few = load("toys4k", str(toys), 5, tmp_path)
    assert few.notes[0] == "3 of 3 objects (5 asked for)"


def test_toys4k_refuses(toys, tmp_path):
    with pytest.raises(UserError, match=r"no metadata\.csv"):
        load("toys4k", str(tmp_path), 0, tmp_path)
    write_metadata(toys / "metadata.csv", [], ["sha256", "file_identifier", "captions"])
    with pytest.raises(UserError, match="no object has a caption"):
        load("toys4k", str(toys), 0, tmp_path)


ROWS = [
    {"id": "b-1", "caption": "a  chair", "category": "Spatial", "mesh": "m.glb"},
    {"id": "a_2", "caption": "a fox", "category": "stylized"},
    {"id": 7, "caption": "a bench", "category": "spatial", "mesh": ""},
]


def annotate(folder, rows, name="mme.jsonl"):
    path = folder / name
    if path.suffix == ".csv":
        columns = ["id", "caption", "category", "mesh"]
        table = [columns, *[[str(r.get(c, "")) for c in columns] for r in rows]]
        path.write_text("\n".join(",".join(cells) for cells in table))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.parametrize("name", ["mme.jsonl", "mme.json", "mme.csv"])
def test_mme3dr(tmp_path, name):
    (tmp_path / "m.glb").touch()
    benchmark = load("mme3dr", annotate(tmp_path, ROWS, name), 2, tmp_path)
    chair, fox = benchmark.items  # categories in turn
    assert (chair.id, chair.caption, chair.category) == ("b-1", "a chair", "spatial")
    assert chair.truth == tmp_path / "m.glb"
    assert (fox.id, fox.category, fox.truth) == ("a_2", "stylised", None)
    assert benchmark.notes[0] == "2 of 3 objects"
    assert "spatial: 2 objects; the paper has 40" in benchmark.notes
    assert (
        load("mme3dr", annotate(tmp_path, ROWS, name), 0, tmp_path).items[2].id == "7"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category": "food"}, "line 2: category 'food'; expected one of spatial,"),
        ({"category": None}, "line 2: no category"),
        ({"caption": " "}, "line 2: no caption"),
        ({"caption": ["a"]}, "line 2: no caption"),
        ({"id": "B-1"}, "line 2: id 'B-1' is in 1 already"),
        ({"id": "a/b"}, "line 2: id 'a/b' is no file name"),
        ({"id": ".."}, "is no file name"),
        ({"id": "x" * 200}, "is no file name"),
        ({"mesh": "absent.glb"}, "line 2: no mesh .*absent.glb"),
    ],
)
def test_mme3dr_rows_are_checked(tmp_path, change, reason):
    (tmp_path / "m.glb").touch()
    path = annotate(tmp_path, [ROWS[0], ROWS[1] | change])
    with pytest.raises(UserError, match=reason) as error:
        load("mme3dr", path, 0, tmp_path)
    assert "\n" not in str(error.value)


def test_mme3dr_files_are_checked(tmp_path):
    for name, content, reason in [
        ("a.txt", "", "expected a .jsonl, .json or .csv file"),
        ("a.json", "{", "malformed JSON"),
        ("a.json", "{}", "expected a JSON list"),
        ("a.json", "[]", "are empty"),
        ("a.jsonl", "", "are empty"),
        ("a.csv", "id,caption\n1,a chair\n", "line 2: no category"),
        ("a.csv", "id,caption,category\n1,a chair\n", "line 2: 2 cells, the header h"),
        ("a.jsonl", '{"id": "a", "Mesh": "m.glb"}\n', "'Mesh'; expected 'mesh'"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=reason):
            load("mme3dr", str(tmp_path / name), 0, tmp_path)
    with pytest.raises(UserError, match="No such file"):
        load("mme3dr", str(tmp_path / "absent.json"), 0, tmp_path)


def test_names_and_data_go_together(tmp_path):
    with pytest.raises(UserError, match="expected catalog, reasoning249, toys4k"):
        load("mme", "", 0, tmp_path)
    with pytest.raises(UserError, match="without data"):
        load("toys4k", "", 0, tmp_path)
    with pytest.raises(UserError, match="expected no data"):
        load("catalog", "x", 0, tmp_path)
