import numpy as np
import pytest

from ar3d_jax.codec.surface import Mesh, extract
from ar3d_jax.config import RenderConfig
from ar3d_jax.render import cameras
from ar3d_jax.render.meshes import PaintedMesh
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


def painted(uv, textures, colours=255):
    """The cube's +x side with these texture coordinates."""
    mesh = square(0, 1)
    return PaintedMesh(
        mesh.vertices,
        mesh.faces,
        np.broadcast_to(np.uint8(colours), (4, 3)),
        np.float32(uv),
        textures,
    )


@pytest.fixture(scope="module")
def painter():
    settings = RenderConfig(size=64, views=4, pitch_deg=0.0, colours=True)
    with Renderer(settings) as painter:
        yield painter


# square(0, 1) has corners at y, z = (-, -), (+, -), (+, +), (-, +): seen from +x that
# is bottom left, bottom right, top right, top left.
WHOLE = [[0, 1], [1, 1], [1, 0], [0, 0]]
FOUR = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]])


def test_a_textures_first_row_is_where_v_is_0(painter):
    large = FOUR.repeat(32, 0).repeat(32, 1)
    view = painter.draw(painted(WHOLE, ((2, large),)))[0]
    for row, column, colour in (
        (22, 22, FOUR[0, 0]),
        (22, 42, FOUR[0, 1]),
        (42, 22, FOUR[1, 0]),
        (42, 42, FOUR[1, 1]),
    ):
        np.testing.assert_array_equal(view[row, column] > 100, colour > 100)


def test_textures_repeat_and_belong_to_their_faces(painter):
    large = ((2, FOUR.repeat(32, 0).repeat(32, 1)),)
    once = painter.draw(painted(WHOLE, large))[0, 18:46, 18:46].astype(int)
    moved = painter.draw(painted(np.float32(WHOLE) - 7, large))[0, 18:46, 18:46]
    assert np.abs(once - moved).max() <= 2
    pictures = ((1, FOUR[:1, :1]), (1, FOUR[:1, 1:]))
    view = painter.draw(painted(WHOLE, pictures))[0]
    # Faces 0 1 2 and 0 2 3: below and above the diagonal from bottom left.
    np.testing.assert_array_equal(view[40, 40] > 100, FOUR[0, 0] > 100)
    np.testing.assert_array_equal(view[24, 24] > 100, FOUR[0, 1] > 100)


def test_white_paint_is_the_grey_of_geometry(painter):
    plain = painter.draw(square(0, 1))
    white = painter.draw(painted(WHOLE, ((2, None),)))
    assert (plain[0] != WHITE).any()
    np.testing.assert_array_equal(white, plain)
    np.testing.assert_array_equal(painter.draw(square(0, 1)), plain)
    half = painter.draw(painted(WHOLE, ((2, None),), colours=[51, 255, 255]))[0]
    middle = plain[0, 32, 32].astype(float)
    np.testing.assert_allclose(half[32, 32], middle * [0.2, 1, 1], atol=1)


def test_fine_textures_are_averaged(painter):
    noise = np.random.default_rng(0).integers(0, 2, (1024, 1024, 1)).astype(np.uint8)
    view = painter.draw(painted(WHOLE, ((2, noise.repeat(3, 2) * 255),)))[0]
    inner = view[24:40, 24:40, 0].astype(int)
    assert np.ptp(inner) < 40  # 32 x 32 texels a pixel; single ones would give 0 or 255


def test_pictures_do_not_depend_on_what_was_painted_before(painter):
    first = painter.draw(ball((0.1, 0, 0)))
    painter.draw(painted(WHOLE, ((2, FOUR),)), two_sided=True)
    np.testing.assert_array_equal(painter.draw(ball((0.1, 0, 0))), first)
