import numpy as np
import pytest

from ar3d_jax.codec.surface import Mesh, extract
from ar3d_jax.config import RenderConfig
from ar3d_jax.render import cameras
from ar3d_jax.render.renderer import Renderer

pytestmark = pytest.mark.usefixtures("egl")
CONFIG = RenderConfig(size=64)
WHITE, BACKGROUND = 255, (255, 255, 255)


@pytest.fixture(scope="module")
def renderer():
    with Renderer(CONFIG) as renderer:
        yield renderer


def square(axis, side):
    """One face of the cube [-0.25, 0.25]^3, wound to be seen from outside."""
    corners = np.float32([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 4
    vertices = np.insert(corners, axis, side / 4, axis=1)
    # (u, v) without axis y is (x, z), whose cross product is -y.
    outwards = side * (-1 if axis == 1 else 1)
    faces = np.int32([[0, 1, 2], [0, 2, 3]])
    return Mesh(vertices, faces if outwards > 0 else faces[:, ::-1].copy())


def pixels(points, view):
    """Columns and rows where the camera formula puts world points."""
    poses = cameras.camera_poses(6, pitch_deg=30.0, radius=2.0)
    lens = cameras.projection(40.0, near=1.0, far=3.0)
    clip = np.c_[points, np.ones(len(points))] @ (lens @ np.linalg.inv(poses[view])).T
    x, y = (clip[:, :2] / clip[:, 3:]).T
    return (x + 1) / 2 * CONFIG.size, (1 - y) / 2 * CONFIG.size


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_cubes_faces_are_seen_where_the_formula_says(renderer, axis, side):
    mesh = square(axis, side)
    views = renderer.draw(mesh)
    normal = np.eye(3)[axis] * side
    for view, pose in enumerate(cameras.camera_poses(6, pitch_deg=30.0, radius=2.0)):
        drawn = (views[view] != WHITE).any(-1)
        if (pose[:3, 3] - normal / 4) @ normal <= 1e-9:  # the camera is behind it
            assert not drawn.any()
            continue
        columns, rows = pixels(mesh.vertices, view)
        found = np.nonzero(drawn)
        np.testing.assert_allclose(found[0].min(), rows.min(), atol=1)
        np.testing.assert_allclose(found[0].max() + 1, rows.max(), atol=1)
        np.testing.assert_allclose(found[1].min(), columns.min(), atol=1)
        np.testing.assert_allclose(found[1].max() + 1, columns.max(), atol=1)


def ball(centre, radius=0.2):
    axes = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 16)] * 3, indexing="ij"), -1)
    distance = np.linalg.norm(axes - np.float32(centre), axis=-1)
    return extract(((radius - distance) * 10).astype(np.float32))


def test_rows_run_downwards_and_columns_to_the_right(renderer):
    for centre, view, expected in (
        ((0, 0, 0.25), 0, "top"),
        ((0, 0, -0.25), 3, "bottom"),
        ((0, 0.25, 0), 0, "right"),  # from +x, +y is on the right
        ((0, 0.25, 0), 3, "left"),
    ):
        row, column = (np.argwhere(renderer.draw(ball(centre))[view, :, :, 0] < 255)).T
        place = {"top": -row, "bottom": row, "left": -column, "right": column}
        middle = CONFIG.size // 2
        sign = -1 if expected in ("top", "left") else 1
        assert np.median(place[expected]) > sign * middle


def test_geometry_is_light_grey_smooth_and_lit_from_above_the_camera(renderer):
    view = renderer.draw(ball((0, 0, 0)))[0].astype(int)
    assert (view[..., 0] == view[..., 1]).all()
    assert (view[..., 0] == view[..., 2]).all()
    assert tuple(view[0, 0]) == BACKGROUND
    grey = view[..., 0]
    darkest, lightest = np.percentile(grey[grey < 255], [2, 90])  # but for the edge
    assert 60 < darkest < lightest < 230
    middle = CONFIG.size // 2
    column = grey[:, middle][grey[:, middle] < 255]
    assert column[: len(column) // 2].mean() > column[len(column) // 2 :].mean() + 10
    assert np.abs(np.diff(column)).max() < 30  # no facets


def test_the_light_turns_with_the_camera(renderer):
    views = renderer.draw(ball((0, 0, 0))).astype(int)
    assert np.abs(views[0] - views[3]).mean() < 1  # a ball looks the same all round


def test_edges_are_smooth(renderer):
    view = renderer.draw(square(0, 1))[1]  # slanted edges
    assert len(np.unique(view)) > 3


def test_nothing_is_a_white_picture(renderer):
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    assert (renderer.draw(empty) == WHITE).all()


def test_the_same_mesh_gives_the_same_bits(renderer):
    first = renderer.draw(ball((0.1, 0, 0)))
    renderer.draw(square(0, 1), two_sided=True)
    out = np.zeros_like(first)
    assert renderer.draw(ball((0.1, 0, 0)), out) is out
    np.testing.assert_array_equal(first, out)


def test_both_sides_on_request(renderer):
    from_outside = renderer.draw(square(0, 1))
    views = renderer.draw(square(0, 1), two_sided=True)
    np.testing.assert_array_equal(views[0], from_outside[0])
    assert (from_outside[3] == WHITE).all()
    assert (views[3] != WHITE).any()


def test_views_may_take_several_passes(renderer, monkeypatch):
    whole = renderer.draw(ball((0.1, 0.2, 0)))
    monkeypatch.setattr(renderer, "_views_per_pass", 4)
    np.testing.assert_array_equal(renderer.draw(ball((0.1, 0.2, 0))), whole)


def test_other_numbers_of_views():
    with Renderer(RenderConfig(size=32, views=4, pitch_deg=0.0)) as renderer:
        views = renderer.draw(square(1, 1))
    assert views.shape == (4, 32, 32, 3)
    assert [(view != WHITE).any() for view in views] == [False, True, False, False]
