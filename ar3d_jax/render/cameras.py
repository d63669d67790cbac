"""Where the cameras stand: plain matrices, no drawing (that is `renderer.py`).

The world is the codec's: z up, the object in [-0.5, 0.5]^3; yaw 0 is the +x axis and 90
the +y axis. Camera axes are OpenGL's, and Blender's: x right, y up, looking along -z.

Three ways to place them, `RenderConfig.cameras`: a ring, a sphere of views as TRELLIS
renders its training data, or the file that such a rendering writes (transforms.json).

What fits: 40 degrees at radius 2 show a ball of radius 2 sin 20 = 0.684 whole. A cube
of side 1 reaches 0.866, and its corners leave the picture: from pitch 30 the nearest
lower corner stands at 1.04 of half the picture at yaw 0, and at 1.32 at yaw 45. The
published protocol is that one, so it stays; few objects fill their cube's corners.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from ar3d_jax.config import RenderConfig
from ar3d_jax.data import tables
from ar3d_jax.errors import UserError, write_whole

Poses = Float[np.ndarray, "V 4 4"]
RIGID = 1e-3  # how far a file's rotation may be from one; Blender's are at 1e-7


@dataclasses.dataclass(frozen=True)
class Cameras:
    """The cameras of all views.

    Attributes:
        poses: [V, 4, 4] float64, camera to world.
        fov_deg: [V] float64, the angle that a picture is wide and high.
    """

    poses: np.ndarray
    fov_deg: np.ndarray


def _towards_origin(
    yaw: Float[np.ndarray, " V"], pitch: Float[np.ndarray, " V"], radius: float
) -> Poses:
    """Poses of cameras that look at the origin, their x axis level; angles in radians.

    Position: radius (cos yaw cos pitch, sin yaw cos pitch, sin pitch), as TRELLIS's
    data renders have it.
    """
    backward = np.stack(
        [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], 1
    )
    right = np.stack([-np.sin(yaw), np.cos(yaw), np.zeros(len(yaw))], 1)
    poses = np.tile(np.eye(4), (len(yaw), 1, 1))
    poses[:, :3, 0] = right
    poses[:, :3, 1] = np.cross(backward, right)
    poses[:, :3, 2] = backward
    poses[:, :3, 3] = radius * backward
    return poses


def camera_poses(views: int, *, pitch_deg: float, radius: float) -> Poses:
    """Camera-to-world matrices of a ring of cameras, `pitch_deg` above the horizon.

    View k of V looks at the origin from yaw 360 k / V degrees, so that six views are 60
    degrees apart. The paper leaves the ring open; pitch 30 degrees and radius 2 are
    those of TRELLIS's evaluation.
    """
    yaw = np.radians(360.0 * np.arange(views) / views)
    return _towards_origin(yaw, np.full(views, np.radians(pitch_deg)), radius)


def hammersley_poses(
    views: int, *, radius: float, offset: tuple[float, float] = (0.0, 0.0)
) -> Poses:
    """Camera-to-world matrices spread over the sphere by a Hammersley sequence.

    As TRELLIS renders its training data (dataset_toolkits; 150 views for features, 24
    in the paper's public script): the height follows k / V, stretched so that a quarter
    of the views, not half, looks from below; the yaw follows the base-2 radical inverse
    of k. TRELLIS draws an `offset` in [0, 1)^2 per object; ours is 0, the same cameras
    for all. View 0 then stands exactly below the object.
    """
    bits = max(1, (views - 1).bit_length())
    digits = (np.arange(views)[:, None] >> np.arange(bits)) & 1
    u = (np.arange(views) + offset[0]) / views
    v = digits @ 0.5 ** np.arange(1, bits + 1) + offset[1]
    u = np.where(u < 0.25, 2 * u, 2 / 3 * u + 1 / 3)
    pitch = np.arccos(np.clip(1 - 2 * u, -1, 1)) - np.pi / 2
    return _towards_origin(2 * np.pi * v, pitch, radius)


def placed(config: RenderConfig) -> Cameras:
    """The cameras that `config.cameras` names; a file's fields of view are its own.

    Raises:
        UserError: the file is none, or has another number of views than the config.
    """
    if config.cameras.endswith(".json"):
        cameras = read_transforms(config.cameras)
        if len(cameras.poses) != config.views:
            raise UserError(
                f"{config.cameras} has {len(cameras.poses)} cameras and render.views "
                f"is {config.views}; set render.views={len(cameras.poses)}"
            )
        return cameras
    if config.cameras == "hammersley":
        found = hammersley_poses(config.views, radius=config.radius)
    else:
        found = camera_poses(
            config.views, pitch_deg=config.pitch_deg, radius=config.radius
        )
    return Cameras(found, np.full(config.views, config.fov_deg))


def poses(config: RenderConfig) -> Poses:
    """Camera-to-world matrices of `placed`, which says what it raises."""
    return placed(config).poses


def projection(fov_deg: float, *, near: float, far: float) -> Float[np.ndarray, "4 4"]:
    """The OpenGL perspective matrix of a square picture `fov_deg` wide and high."""
    focal = 1.0 / np.tan(np.radians(fov_deg) / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0] = matrix[1, 1] = focal
    matrix[2, 2] = (far + near) / (near - far)
    matrix[2, 3] = 2 * far * near / (near - far)
    matrix[3, 2] = -1.0
    return matrix


def lens(pose: Float[np.ndarray, "4 4"], fov_deg: float) -> Float[np.ndarray, "4 4"]:
    """The projection of a camera, its near and far planes just outside the object.

    That lies within sqrt(3) / 2 of the origin; nothing nearer than 0.05 is seen.
    """
    # Rounded: a ring's distance is the configured radius to the last bit.
    depth = round(float(pose[:3, 2] @ pose[:3, 3]), 9)
    near = max(0.05, depth - 1)
    return projection(fov_deg, near=near, far=max(depth + 1, near + 1))


def write_transforms(path: pathlib.Path | str, cameras: Cameras) -> None:
    """Writes transforms.json as TRELLIS's Blender script does, for views 000.png, ...

    Raises:
        UserError: the disk is full or forbids it.
    """
    frames = [
        {
            "file_path": f"{view:03d}.png",
            "camera_angle_x": math.radians(fov),
            "transform_matrix": pose.tolist(),
        }
        for view, (pose, fov) in enumerate(
            zip(cameras.poses, cameras.fov_deg, strict=True)
        )
    ]
    content = {
        "aabb": [[-0.5] * 3, [0.5] * 3],
        "scale": 1.0,
        "offset": [0.0] * 3,
        "frames": frames,
    }
    write_whole(pathlib.Path(path), json.dumps(content, indent=4))


def read_transforms(path: pathlib.Path | str) -> Cameras:
    """The cameras of a transforms.json: TRELLIS's, or any of that family.

    Of each frame `transform_matrix` is read, and `camera_angle_x` (radians) from the
    frame or, where it is the same for all, from the top; what else is there is ignored.

    Raises:
        UserError: it is not such a file, or a matrix is not a camera's pose.
    """
    expected = "expected what TRELLIS's renderings write as transforms.json"
    try:
        content = tables.parse_json(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {expected}") from error
    except ValueError as error:
        line = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is not JSON ({line}); {expected}") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} has no list of frames; {expected}")
    found, angles = [], []
    for number, frame in enumerate(frames):
        try:
            if not isinstance(frame, dict):
                raise ValueError(f"is {str(frame)[:40]}, no object")
            found.append(_pose(frame))
            angles.append(_angle(frame, content))
        except (KeyError, ValueError) as error:
            missing = f"{error} is missing" if isinstance(error, KeyError) else error
            raise UserError(f"{path}, frame {number}: {missing}; {expected}") from error
    return Cameras(np.stack(found), np.degrees(angles))


def _pose(frame: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    given = frame["transform_matrix"]
    try:
        pose = np.array(given, np.float64)
    except (TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError("transform_matrix is not 4 x 4 finite numbers")
    turn = pose[:3, :3]
    off = np.abs(turn.T @ turn - np.eye(3)).max()
    if off > RIGID or np.linalg.det(turn) < 0 or (pose[3] != [0, 0, 0, 1]).any():
        raise ValueError("transform_matrix is not a rotation and a position")
    return pose


def _angle(frame: dict[str, Any], content: dict[str, Any]) -> float:
    name = "camera_angle_x"
    angle = frame[name] if name in frame else content[name]
    number = isinstance(angle, (int, float)) and not isinstance(angle, bool)
    if not number or not 0 < angle < math.pi:
        raise ValueError(f"{name} is {str(angle)[:40]}, not an angle in radians")
    return float(angle)
