"""Where the cameras stand: plain matrices, no drawing (that is `renderer.py`).

The world is the codec's: z up, the object in [-0.5, 0.5]^3. View k of V looks at the
origin from yaw 360 k / V degrees, so that six views are 60 degrees apart; yaw 0 is the
+x axis and 90 the +y axis. Camera axes are OpenGL's: x right, y up, looking along -z.
"""

import numpy as np
from jaxtyping import Float


def camera_poses(
    views: int, *, pitch_deg: float, radius: float
) -> Float[np.ndarray, "V 4 4"]:
    """Camera-to-world matrices of a ring of cameras, `pitch_deg` above the horizon.

    Position: radius (cos yaw cos pitch, sin yaw cos pitch, sin pitch), as TRELLIS's
    data renders have it. The paper leaves the ring open; pitch 30 degrees and radius 2
    are those of TRELLIS's evaluation.
    """
    yaw = np.radians(360.0 * np.arange(views) / views)
    pitch = np.full(views, np.radians(pitch_deg))
    backward = np.stack(
        [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1
    )
    right = np.stack([-np.sin(yaw), np.cos(yaw), np.zeros(views)], 1)
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, :3, 0] = right
    poses[:, :3, 1] = np.cross(backward, right)
    poses[:, :3, 2] = backward
    poses[:, :3, 3] = radius * backward
    return poses


def projection(fov_deg: float, *, near: float, far: float) -> Float[np.ndarray, "4 4"]:
    """The OpenGL perspective matrix of a square picture `fov_deg` wide and high."""
    focal = 1.0 / np.tan(np.radians(fov_deg) / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0] = matrix[1, 1] = focal
    matrix[2, 2] = (far + near) / (near - far)
    matrix[2, 3] = 2 * far * near / (near - far)
    matrix[3, 2] = -1.0
    return matrix
