import dataclasses

import numpy as np
import pytest

from ar3d_jax.codec import surface
from ar3d_jax.config import RenderConfig
from ar3d_jax.render import workers
from ar3d_jax.render.renderer import Renderer
from ar3d_jax.rewards import wire
from tests.render import mesh_files

pytestmark = pytest.mark.usefixtures("egl")
CONFIG = RenderConfig(size=32, views=4, max_faces=12)


@pytest.fixture
def ring():
    ring = wire.Ring.create(
        wire.Layout(slots=2, resolution=8, views=4, size=32, points=50)
    )
    ring.sequence[:] = [7, 8]
    yield ring
    ring.close()


@pytest.fixture
def draw(ring):
    with workers._prepare(dataclasses.asdict(CONFIG), ring) as draw:
        yield draw


def test_a_file_is_drawn_and_gets_points(draw, ring, tmp_path):
    path = mesh_files.write_cube(tmp_path / "a.glb")
    answer = draw({"draw": 1, "sequence": 8, "mesh": str(path), "up": "y"})
    assert answer["error"] is None
    assert (ring.drawn[1], ring.point_count[1]) == (8, 50)
    points = ring.points[1].copy()
    np.testing.assert_allclose(np.abs(points).max(1), 0.5, atol=1e-6)
    with Renderer(CONFIG) as renderer:
        vertices, faces, _ = mesh_files.cube()
        views = renderer.draw(surface.Mesh(vertices, faces), two_sided=True)
    np.testing.assert_array_equal(ring.views[1], views)
    # Equal files have equal points; the slot does not matter.
    draw({"draw": 0, "sequence": 7, "mesh": str(path)})
    np.testing.assert_array_equal(ring.points[0], points)


def test_both_sides_are_drawn(draw, ring, tmp_path):
    vertices, faces, _ = mesh_files.cube()
    surface.to_glb(surface.Mesh(vertices, faces[:, ::-1].copy()), tmp_path / "a.glb")
    draw({"draw": 0, "sequence": 7, "mesh": str(tmp_path / "a.glb"), "up": "y"})
    assert (ring.views[0] < 255).mean() > 0.3


def test_the_up_axis_is_the_requests(draw, ring, tmp_path):
    tall = np.float32([[0, 0, 0], [0.2, 0, 0], [0, 0.2, 0], [0, 0, 1]])
    faces = np.int32([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    surface.to_glb(surface.Mesh(tall, faces), tmp_path / "a.glb")
    for up, axis in (("y", 2), ("z", 1)):
        draw({"draw": 0, "sequence": 7, "mesh": str(tmp_path / "a.glb"), "up": up})
        assert np.ptp(ring.points[0], axis=0).argmax() == axis


def test_a_file_that_is_refused_is_one_objects_failure(draw, ring, tmp_path, capfd):
    (tmp_path / "a.glb").write_bytes(b"nothing")
    answer = draw({"draw": 0, "sequence": 7, "mesh": str(tmp_path / "a.glb")})
    assert answer["error"] == "ValueError: is not binary glTF: 7 bytes"
    assert ring.drawn[0] == 0
    assert "not binary glTF" in capfd.readouterr().err
    line = "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"
    (tmp_path / "a.obj").write_text(line)
    answer = draw({"draw": 0, "sequence": 7, "mesh": str(tmp_path / "a.obj")})
    assert answer["error"] == "ValueError: a mesh without area has no surface points"
    (tmp_path / "a.obj").write_text(line + "f 1 2 3\n" * 12)
    answer = draw({"draw": 0, "sequence": 7, "mesh": str(tmp_path / "a.obj")})
    assert answer["error"] == "ValueError: has 13 faces; at most 12 are loaded"


def test_logits_are_drawn_as_ever(draw, ring):
    ring.logits[0] = np.random.default_rng(0).normal(size=(8, 8, 8))
    assert draw({"draw": 0, "sequence": 7})["error"] is None
    views = np.zeros_like(ring.views[0])
    points, colours = np.zeros_like(ring.points[0]), np.zeros_like(ring.colours[0])
    with Renderer(CONFIG) as renderer:
        workers.draw_object(renderer, ring.logits[0], views, points, colours)
    np.testing.assert_array_equal(ring.views[0], views)
    np.testing.assert_array_equal(ring.points[0], points)
