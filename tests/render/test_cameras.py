import json

import numpy as np
import pytest

from ar3d_jax.config import RenderConfig
from ar3d_jax.errors import UserError
from ar3d_jax.render import cameras
from ar3d_jax.render.cameras import camera_poses, projection


def test_positions_of_the_ring():
    poses = camera_poses(6, pitch_deg=30.0, radius=2.0)
    # Height 2 sin 30 = 1, distance from the axis 2 cos 30 = 1.732; 60 degrees apart.
    np.testing.assert_allclose(poses[0, :3, 3], [3**0.5, 0, 1], atol=1e-12)
    np.testing.assert_allclose(poses[1, :3, 3], [3**0.5 / 2, 1.5, 1], atol=1e-12)
    np.testing.assert_allclose(poses[3, :3, 3], [-(3**0.5), 0, 1], atol=1e-12)


def test_cameras_look_at_the_origin_with_z_up():
    for pose in camera_poses(7, pitch_deg=25.0, radius=3.0):
        axes = pose[:3, :3]
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
        assert np.isclose(np.linalg.det(axes), 1)
        # The origin lies straight ahead: on the camera's -z axis, 3 away.
        seen = np.linalg.inv(pose) @ [0, 0, 0, 1]
        np.testing.assert_allclose(seen, [0, 0, -3, 1], atol=1e-12)
        assert axes[2, 0] == 0  # right is level
        assert axes[2, 1] > 0  # up is up


def test_projection_by_hand():
    matrix = projection(90.0, near=1.0, far=3.0)

    def picture(x, y, z):
        clip = matrix @ [x, y, z, 1]
        return clip[:3] / clip[3]

    # Half of 90 degrees is a slope of 1; near is -1 and far is 1.
    np.testing.assert_allclose(picture(1, 1, -1), [1, 1, -1], atol=1e-12)
    np.testing.assert_allclose(picture(1.5, -3, -3), [0.5, -1, 1], atol=1e-12)
    # 40 degrees: the edge of the picture at distance 2 is 2 tan 20 = 0.728 off axis.
    edge = projection(40.0, near=1.0, far=3.0) @ [0.72794, 0, -2, 1]
    np.testing.assert_allclose(edge[0] / edge[3], 1, atol=1e-5)


def test_the_sphere_by_hand():
    """Of four views: u is 0, 1/4, 1/2, 3/4, stretched 0, 1/2, 2/3, 5/6; yaw by bits."""
    poses = cameras.hammersley_poses(4, radius=2.0)
    np.testing.assert_allclose(poses[0, :3, 3], [0, 0, -2], atol=1e-12)
    # Height 2 (2 u - 1); the yaws 180, 90 and 270 degrees are 1/2, 1/4 and 3/4.
    np.testing.assert_allclose(poses[1, :3, 3], [-2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(poses[2, :3, 3], [0, 32**0.5 / 3, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(poses[3, :3, 3], [0, -(20**0.5) / 3, 4 / 3], atol=1e-12)


@pytest.mark.parametrize(("views", "below"), [(24, 6), (150, 38)])
def test_a_quarter_of_the_sphere_looks_from_below(views, below):
    heights = cameras.hammersley_poses(views, radius=2.0)[:, 2, 3]
    assert (heights < -1e-9).sum() == below
    # A turn of the yaw and a step of the height: TRELLIS's offset.
    moved = cameras.hammersley_poses(views, radius=2.0, offset=(0.5, 0.25))
    assert (moved[:, 2, 3] > heights).all()
    turned = cameras.hammersley_poses(views, radius=2.0, offset=(0.0, 0.25))
    x, y, z = cameras.hammersley_poses(views, radius=2.0)[:, :3, 3].T
    np.testing.assert_allclose(turned[:, :3, 3], np.stack([-y, x, z], 1), atol=1e-12)


def test_spheres_of_views_look_at_the_origin():
    for pose in cameras.hammersley_poses(24, radius=3.0):
        np.testing.assert_allclose(
            np.linalg.inv(pose) @ [0, 0, 0, 1], [0, 0, -3, 1], atol=1e-12
        )
        assert pose[2, 0] == 0  # right is level, even from below
        assert np.isclose(np.linalg.det(pose[:3, :3]), 1)


def test_the_config_chooses():
    ring = cameras.poses(RenderConfig(views=4, pitch_deg=10.0, radius=1.7))
    expected = camera_poses(4, pitch_deg=10.0, radius=1.7)
    np.testing.assert_array_equal(ring, expected)
    placed = cameras.placed(RenderConfig(views=24, cameras="hammersley", fov_deg=35.0))
    expected = cameras.hammersley_poses(24, radius=2.0)
    np.testing.assert_array_equal(placed.poses, expected)
    np.testing.assert_array_equal(placed.fov_deg, [35.0] * 24)


def test_a_cubes_corners_leave_the_picture():
    """What the module's docstring says of the published protocol."""
    corners = np.array(np.meshgrid(*[[-0.5, 0.5, 1]] * 3)).reshape(3, -1).T
    corners = np.c_[corners[(np.abs(corners) == 0.5).all(1)], np.ones(8)]
    reach = []
    for pose in cameras.poses(RenderConfig(views=8))[:2]:
        clip = corners @ (cameras.lens(pose, 40.0) @ np.linalg.inv(pose)).T
        reach.append(np.abs(clip[:, :2] / clip[:, 3:]).max())
    np.testing.assert_allclose(reach, [1.043, 1.320], atol=1e-3)


@pytest.mark.parametrize("radius", [2.0, 1.7, 1.3, 0.7, 10.0])
def test_the_planes_are_around_the_object(radius):
    pose = camera_poses(6, pitch_deg=30.0, radius=radius)[1]
    expected = projection(40.0, near=max(0.05, radius - 1), far=radius + 1)
    np.testing.assert_array_equal(cameras.lens(pose, 40.0), expected)


def test_a_camera_that_looks_away_has_a_lens():
    pose = np.eye(4)
    pose[2, 3] = -5.0  # looks down, from below the object
    assert np.isfinite(cameras.lens(pose, 40.0)).all()


def test_transforms_come_back(tmp_path):
    path = tmp_path / "transforms.json"
    poses = cameras.hammersley_poses(24, radius=2.0, offset=(0.3, 0.7))
    fov = np.linspace(10.0, 70.0, 24)
    cameras.write_transforms(path, cameras.Cameras(poses, fov))
    back = cameras.read_transforms(path)
    np.testing.assert_array_equal(back.poses, poses)
    np.testing.assert_allclose(back.fov_deg, fov, rtol=1e-14)
    placed = cameras.placed(RenderConfig(views=24, cameras=str(path), fov_deg=99.0))
    np.testing.assert_array_equal(placed.poses, poses)
    np.testing.assert_array_equal(placed.fov_deg, back.fov_deg)  # not the config's
    content = json.loads(path.read_text())
    assert set(content) == {"aabb", "scale", "offset", "frames"}
    assert content["frames"][3]["file_path"] == "003.png"
    with pytest.raises(UserError, match=r"has 24 cameras and .*; set render.views=24"):
        cameras.placed(RenderConfig(views=8, cameras=str(path)))


POSE = camera_poses(3, pitch_deg=20.0, radius=2.0)[1]
FRAME = {"camera_angle_x": 0.7, "transform_matrix": POSE.tolist()}


def frame(**changes):
    return {"frames": [FRAME, FRAME | changes]}


def test_a_foreign_file_may_say_more(tmp_path):
    """As NeRF's and Instant-NGP's: one angle for all, other keys."""
    path = tmp_path / "a.json"
    wide = {"frames": [FRAME | {"depth": {"min": 1, "max": 3}, "rotation": 0.1}]}
    path.write_text(json.dumps(wide | {"camera_angle_x": 1, "w": 800, "frame": []}))
    assert cameras.read_transforms(path).fov_deg == np.degrees(0.7)
    short = {"frames": [{"transform_matrix": FRAME["transform_matrix"]}]}
    path.write_text(json.dumps(short | {"camera_angle_x": 1}))
    back = cameras.read_transforms(path)
    assert back.fov_deg == np.degrees(1)
    np.testing.assert_array_equal(back.poses, POSE[None])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "has no list of frames"),
        ({}, "has no list of frames"),
        ({"frames": []}, "has no list of frames"),
        ({"frames": {"0": FRAME}}, "has no list of frames"),
        ({"frames": [FRAME, 7]}, "frame 1: is 7, no object"),
        ({"frames": [FRAME, [7]]}, r"frame 1: is \[7\], no object"),
        ({"frames": [{"camera_angle_x": 1}]}, "0: 'transform_matrix' is missing"),
        ({"frames": [{"transform_matrix": POSE.tolist()}]}, "'camera_angle_x' is miss"),
        (frame(camera_angle_x="wide"), "1: camera_angle_x is wide, not an angle"),
        (frame(camera_angle_x=40), "camera_angle_x is 40, not an angle in radians"),
        (frame(camera_angle_x=True), "not an angle"),
        (frame(camera_angle_x=float("nan")), "not an angle"),
        (frame(transform_matrix=[]), "not 4 x 4 finite numbers"),
        (frame(transform_matrix=POSE[:3].tolist()), "not 4 x 4 finite numbers"),
        (frame(transform_matrix=[[1, 2], [3]]), "not 4 x 4 finite numbers"),
        (frame(transform_matrix={"0": 1}), "not 4 x 4 finite numbers"),
        (frame(transform_matrix=np.full((4, 4), np.nan).tolist()), "not 4 x 4 finite"),
        (frame(transform_matrix=np.zeros((4, 4)).tolist()), "not a rotation and a"),
        (frame(transform_matrix=(2 * POSE).tolist()), "not a rotation and a"),
        (frame(transform_matrix=POSE.T.tolist()), "not a rotation and a"),
        (
            frame(transform_matrix=(POSE * [-1, 1, 1, 1]).tolist()),
            "not a rotation and a position",
        ),
    ],
)
def test_a_broken_file_is_one_line(content, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason) as caught:
        cameras.read_transforms(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("as transforms.json")


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        cameras.read_transforms(path)
    for text in ("", "{", "\xff", "[" * 100_000, '{"frames": [], "frames": []}'):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="is not JSON"):
            cameras.read_transforms(path)
    with pytest.raises(UserError, match="cannot write"):
        cameras.write_transforms(
            tmp_path / "a.json" / "b.json", cameras.Cameras(POSE[None], np.ones(1))
        )
