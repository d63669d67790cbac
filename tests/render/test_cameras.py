import numpy as np

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
