"""Training of the embedded scorers: losses and tables, by hand and at toy size."""

import numpy as np
import pytest
import torch

from ar3d_jax.data.catalog import Catalog
from ar3d_jax.rewards.sidecar import batches, damage, pictures, train_embedded
from ar3d_jax.rewards.sidecar.scorers import embedded, networks, parts


@pytest.fixture(autouse=True)
def _one_thread():
    """Toy batches on two threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MEASURED = {
    "mirror": True,
    "lengthwise": True,
    "round": False,
    "feet": 4,
    "thirds": ["four posts", "empty", "full"],
    "open_front": True,
}


def record(number: int, kind: str, *, held_out: bool = False) -> dict:
    return {
        "id": f"object-{number}",
        "name": kind.title(),
        "noun": kind,
        "class": kind,
        "group": "furniture",
        "category": "Living room",
        "tags": [],
        "colours": ["brown"],
        "materials": ["wood"],
        "measured": MEASURED,
        "parts": ["top", "four legs"],
        "extents": [1.0, 0.6, 0.5],
        "held_out": held_out,
    }


def catalog_of(kinds: list[str], held_out: tuple[int, ...] = ()) -> Catalog:
    nothing = np.zeros((0, 3), np.float32)
    offsets = np.zeros(len(kinds) + 1, np.int64)
    return Catalog(
        objects=[record(i, k, held_out=i in held_out) for i, k in enumerate(kinds)],
        packed=np.zeros((len(kinds), 4096), np.uint8),
        resolution=32,
        extents=np.tile(np.float32([1.0, 0.6, 0.5]), (len(kinds), 1)),
        held_out=np.isin(np.arange(len(kinds)), held_out),
        vertices=nothing,
        vertex_offsets=offsets,
        faces=nothing.astype(np.int32),
        face_offsets=offsets,
    )


def drawn_of(count: int, copies: int = 4) -> pictures.Pictures:
    """Bright or dark squares instead of pictures; every second copy is "damaged"."""
    rows = count * copies
    thing = np.repeat(np.arange(count, dtype=np.int32), copies)
    hurt = np.tile(np.arange(copies) % 2 == 1, count)
    shades = np.linspace(0, 200, count)[thing].astype(np.uint8)
    views = np.full((rows, 6, networks.SIZE, networks.SIZE), 255, np.uint8)
    views[:, :, 30:80, 30:80] = shades[:, None, None, None]
    rng = np.random.default_rng(0)
    return pictures.Pictures(
        object=thing,
        extents=np.tile(np.float32([1.0, 0.6, 0.5]), (rows, 1)),
        kind=np.where(hurt, "dust", ""),
        views=views,
        points=rng.uniform(-0.5, 0.5, (rows, 2048, 3)).astype(np.float16),
        measures=np.where(hurt, 0.25, 1.0)[:, None].repeat(2, 1).astype(np.float32),
    )


def test_contrastive_loss_by_numpy():
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((4 + 2 + 1, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    views, texts, none = unit[:4], unit[4:6], unit[6]
    fidelity = np.array([1.0, 1.0, 0.25, 0.5])

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    logits = embedded.SHARPNESS * views @ np.stack([*texts, none]).T
    log_p = log_softmax(logits)
    near = train_embedded.SAME_CLASS / (1 + train_embedded.SAME_CLASS)
    expected = []
    for row, q in enumerate(fidelity):
        own, other = row % 2, 1 - row % 2
        expected.append(
            -q * (1 - near) * log_p[row, own]
            - q * near * log_p[row, other]
            - (1 - q) * log_p[row, 2]
        )
    to_text = np.mean(expected)
    expected = []
    for text in range(2):
        rows = [r for r in range(4) if r != text + 2]  # its own damaged picture is out
        log_q = dict(zip(rows, log_softmax(logits[rows, text]), strict=True))
        expected.append(-(1 - near) * log_q[text] - near * log_q[1 - text])
    loss = train_embedded.contrastive_loss(
        *(torch.from_numpy(a) for a in (views, texts, none, fidelity)),
        torch.tensor([3, 3]),
    )
    assert float(loss) == pytest.approx((to_text + np.mean(expected)) / 2)


def test_batches_pair_whole_and_damaged_rows_of_different_objects():
    objects = batches.sort_into_classes(catalog_of(["chair"] * 6))
    drawn = drawn_of(6)
    source = batches.Batches(drawn, objects, np.arange(len(drawn)), seed=0)
    whole, hurt = source.pick(4)
    assert len(set(drawn.object[whole])) == 4
    np.testing.assert_array_equal(drawn.object[whole], drawn.object[hurt])
    assert (drawn.kind[whole] == "").all()
    assert (drawn.kind[hurt] == "dust").all()
    assert source.views(whole).shape == (4, 1, networks.SIZE, networks.SIZE)
    assert source.clouds(whole, 100).shape == (4, 100, 3)
    assert all(text for text in source.texts(whole))


def test_part_limits_of_two_clear_classes():
    flat, tall = np.zeros((2, parts.CELLS, parts.CELLS, parts.CELLS), bool)
    flat[:, :, -2:] = True
    tall[4:8, 4:8, :] = True
    grids = np.stack([flat, flat, flat, tall, tall, tall])
    limits = train_embedded.part_limits(grids, ["table"] * 3 + ["column"] * 3)
    stranger, member = limits["table"]["top"]
    assert member == pytest.approx(1, abs=1e-3)
    assert stranger < 0.3
    assert set(limits["column"]) <= {"base", "shaft", "capital"}


def test_shapes_are_planned_the_same_for_the_same_seed():
    packed = np.random.default_rng(0).integers(0, 256, (40, 4096), np.uint8)
    things = np.repeat(np.arange(10), 4)
    first, second = (
        pictures.plan_shapes(packed, things, damaged_share=0.5, seed=1)
        for _ in range(2)
    )
    assert [s.kind for s in first] == [s.kind for s in second]
    assert {s.kind for s in first} <= {"", *damage.DAMAGES}
    for row, shape in enumerate(first):
        (other,) = np.flatnonzero((packed == shape.other).all(axis=1))
        assert things[other] != things[row]


def test_pictures_are_drawn_saved_and_read(tmp_path):
    grid = np.zeros((32, 32, 32), bool)
    grid[8:24, 8:24, 8:24] = True
    packed = np.packbits(grid.ravel())
    shapes = [
        pictures.Shape(packed, packed, "", 0.0, (0,)),
        pictures.Shape(packed, packed, "missing_chunks", 1.0, (0,)),
    ]
    drawn = pictures.draw_shapes(shapes, np.array([3, 3]), np.ones((2, 3)), processes=1)
    pictures.save(drawn, tmp_path / "pictures.npz")
    drawn = pictures.load(tmp_path / "pictures.npz")
    assert drawn.views.shape == (2, 6, networks.SIZE, networks.SIZE)
    assert (drawn.views[0] < 250).mean() > 0.05
    assert (drawn.views[1] == 255).all()  # nothing is left
    np.testing.assert_array_equal(drawn.measures, [[1, 1], [0, 0]])
    assert np.abs(drawn.points[0]).max() == pytest.approx(0.25, abs=0.02)
    assert drawn.take(np.array([1])).object.tolist() == [3]
