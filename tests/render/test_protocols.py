"""A cube with six colours, seen by every camera of every protocol.

What should be seen is computed here from the cameras' poses alone: a ray through each
pixel's middle against the six sides. Nothing of the renderer's own matrices is used.
"""

import json

import numpy as np
import pytest

from ar3d_jax.config import RenderConfig
from ar3d_jax.render import cameras, meshes
from ar3d_jax.render.renderer import Renderer
from tests.render.mesh_files import COLOURS, write_cube

pytestmark = pytest.mark.usefixtures("egl")
SIZE = 96
FACES = list(COLOURS)  # (axis, side)
NOTHING = -1


def blender_file(path, views=12):
    """A transforms.json with TRELLIS's keys; each camera has its own lens."""
    random, frames = np.random.default_rng(3), []
    for view in range(views):
        yaw, fov = random.uniform(0, 2 * np.pi), random.uniform(0.2, 1.2)
        sine = np.linspace(-0.9, 0.98, views)[view]
        cosine = np.sqrt(1 - sine**2)
        radius = 0.75 / np.sin(fov / 2)
        eye = radius * np.array([np.cos(yaw) * cosine, np.sin(yaw) * cosine, sine])
        ahead = -eye / radius
        right = np.cross(ahead, [0, 0, 1])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(right, ahead), -ahead, eye], 1)
        pose = pose.astype(np.float32).astype(float)  # Blender's numbers
        frames.append(
            {
                "file_path": f"{view:03d}.png",
                "camera_angle_x": fov,
                "transform_matrix": pose.tolist(),
                "depth": {"min": radius - 0.87, "max": radius + 0.87},
            }
        )
    box = {"aabb": [[-0.5] * 3, [0.5] * 3], "scale": 0.8, "offset": [0, 0.1, 0]}
    path.write_text(json.dumps(box | {"frames": frames}, indent=4))
    return str(path)


def config(name, folder):
    fields = {
        "ring of 8": {"views": 8},
        "ring of 4": {"views": 4},
        "hammersley": {"views": 24, "cameras": "hammersley"},
        "transforms": {"views": 12, "cameras": str(folder / "transforms.json")},
    }[name]
    return RenderConfig(size=SIZE, colours=True, **fields)


PROTOCOLS = ["ring of 8", "ring of 4", "hammersley", "transforms"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocols")
    blender_file(folder / "transforms.json")
    return folder


@pytest.fixture(scope="module", params=["glb vertex", "ply face"])
def cube(request, folder):
    suffix, kind = request.param.split()
    path = write_cube(folder / f"cube.{suffix}", kind)
    return meshes.load(path, up="y", max_faces=12, colours=True)


def expected_faces(pose, fov_deg):
    """Which of FACES each pixel shows, or NOTHING."""
    middle = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    x, y = np.meshgrid(middle, -middle)
    slope = np.tan(np.radians(fov_deg) / 2)
    ahead = np.stack([x * slope, y * slope, np.full_like(x, -1)], -1)
    ray, eye = ahead @ pose[:3, :3].T, pose[:3, 3]
    shown = np.full((SIZE, SIZE), NOTHING)
    for number, (axis, side) in enumerate(FACES):
        normal = np.eye(3)[axis] * side
        if normal @ (eye - normal / 2) <= 0:  # seen from behind
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = (side / 2 - eye[axis]) / ray[..., axis]
            point = eye + reach[..., None] * ray
        others = np.delete(point, axis, -1)
        shown[(reach > 0) & (np.abs(others) <= 0.5).all(-1)] = number
    return shown


def drawn_faces(picture, background):
    """The same, read from colours: each is one of six, darker where it is shaded."""
    top = np.maximum(picture.max(-1, keepdims=True), 1)
    kind = np.round(picture / top * 255).astype(int)
    shown = np.full(picture.shape[:2], -2)
    for number, face in enumerate(FACES):
        shown[(kind == COLOURS[face]).all(-1)] = number
    shown[(picture == background).all(-1)] = NOTHING
    return shown


def inside(shown):
    """Pixels whose eight neighbours show the same: no edge is near."""
    same = np.ones_like(shown, bool)
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            same &= np.roll(shown, (rows, columns), (0, 1)) == shown
    same[[0, -1]] = same[:, [0, -1]] = False
    return same


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_view_shows_the_faces_that_its_camera_sees(name, cube, folder):
    settings = config(name, folder)
    placed = cameras.placed(settings)
    with Renderer(settings) as renderer:
        views = renderer.draw(cube, two_sided=True)
    assert len(views) == settings.views
    seen_at_all = set()
    for view, (pose, fov) in enumerate(zip(placed.poses, placed.fov_deg, strict=True)):
        expected = expected_faces(pose, fov)
        drawn = drawn_faces(views[view], 255)
        sure = inside(expected)
        np.testing.assert_array_equal(drawn[sure], expected[sure])
        facing = {
            number
            for number, (axis, side) in enumerate(FACES)
            if side * pose[axis, 3] - 0.5 > 0  # n . (c - p)
        }
        many = {k for k in range(6) if (expected[sure] == k).sum() > 10}
        found = set(drawn[inside(drawn)].tolist()) & set(range(6))
        assert many <= found <= facing
        # What faces the camera and is not found is seen at a grazing angle.
        for number in facing - many:
            assert (expected == number).sum() < 0.05 * SIZE**2
        seen_at_all |= found
    below = {"ring of 8": 5, "ring of 4": 5}  # nobody of a ring sees the bottom
    assert len(seen_at_all) == below.get(name, 6)


def colour_at(views, view, row, column):
    value = views[view, int(row * SIZE), int(column * SIZE)].astype(int)
    return tuple((value > value.max() / 2).astype(int) * 255)


def test_left_right_and_top_by_hand(cube, folder):
    """From between +x and +y: +x is at the left, +y at the right, +z on top."""
    with Renderer(config("ring of 8", folder)) as renderer:
        views = renderer.draw(cube)
    assert colour_at(views, 1, 0.6, 0.3) == COLOURS[0, 1]
    assert colour_at(views, 1, 0.6, 0.7) == COLOURS[1, 1]
    assert colour_at(views, 1, 0.15, 0.5) == COLOURS[2, 1]
    # From +y, a quarter further: +y is in front; from -x, half a turn: -x.
    assert colour_at(views, 2, 0.7, 0.5) == COLOURS[1, 1]
    assert colour_at(views, 4, 0.7, 0.5) == COLOURS[0, -1]
    with Renderer(config("hammersley", folder)) as renderer:
        below = renderer.draw(cube)[0]
    # From straight below at yaw 0: right is +y, so up in the picture is +x.
    assert colour_at(below[None], 0, 0.5, 0.5) == COLOURS[2, -1]


def test_colours_only_where_they_are_asked_for(cube, folder):
    with Renderer(RenderConfig(size=SIZE, views=8)) as renderer:
        grey = renderer.draw(cube)
    assert (grey == grey[..., :1]).all()
    assert ((grey < 250) & (grey > 0)).any()


@pytest.mark.parametrize("background", ["white", "black"])
def test_backgrounds(background, cube, folder):
    settings = RenderConfig(size=SIZE, views=4, background=background)
    value = {"white": 255, "black": 0}[background]
    with Renderer(settings) as renderer:
        view = renderer.draw(cube)[0]
    outside = expected_faces(cameras.poses(settings)[0], 40.0) == NOTHING
    sure = inside(outside)
    assert (view[outside & sure] == value).all()
    assert (np.abs(view[~outside & sure].astype(int) - value) > 30).all()


def test_lights(cube):
    """A side is as bright as the light's angle to it says."""
    found = {}
    for light in ("shoulder", "camera"):
        settings = RenderConfig(size=SIZE, views=4, pitch_deg=0.0, light=light)
        with Renderer(settings) as renderer:
            found[light] = renderer.draw(cube)[0, SIZE // 2, SIZE // 2, 0] / 255
    shoulder = 1 / np.linalg.norm([-0.35, 0.6, 1.0])  # the cosine of its angle
    np.testing.assert_allclose(found["shoulder"], 0.27 + 0.6 * shoulder, atol=0.004)
    np.testing.assert_allclose(found["camera"], 0.27 + 0.6, atol=0.004)
