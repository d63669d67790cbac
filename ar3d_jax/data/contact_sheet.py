"""Pictures of voxel grids without a graphics library: one sheet of a whole catalog.

For looking at data: shaded by the direction of the surface, seen from the front, right
and above. Pictures for rewards and evaluation are drawn by `render`.
"""

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

YAW_DEG, PITCH_DEG = 30.0, 25.0
SUPERSAMPLE = 2  # points per voxel side, against holes between drawn points


def draw_voxels(
    voxels: Bool[np.ndarray, "R R R"], size: int
) -> UInt8[np.ndarray, "size size"]:
    """A grey picture of one grid, white background, z up, front (-y) to the viewer."""
    canvas = np.full((size, size), 255, np.uint8)
    filled = np.argwhere(voxels)
    if not len(filled):
        return canvas
    resolution = len(voxels)
    # The normal points to where the blurred grid thins out.
    blurred = voxels.astype(np.float32)
    for axis in range(3):
        for _ in range(2):
            padded = np.pad(
                blurred, [(1, 1) if a == axis else (0, 0) for a in range(3)]
            )
            parts = [np.take(padded, range(k, k + resolution), axis) for k in range(3)]
            blurred = (parts[0] + 2 * parts[1] + parts[2]) / 4
    normal = -np.stack([*np.gradient(blurred)], axis=-1)[tuple(filled.T)]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6

    yaw, pitch = np.deg2rad(YAW_DEG), np.deg2rad(PITCH_DEG)
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    away = np.array(
        [-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)]
    )
    up = np.cross(right, away)
    light = 0.35 * right - away + 0.6 * up
    shade = np.abs(normal @ (light / np.linalg.norm(light)))

    steps = (np.arange(SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    offsets = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    points = (filled[:, None] + offsets).reshape(-1, 3) / resolution - 0.5
    depth = points @ away
    grey = 40 + 190 * np.repeat(shade, len(offsets)) * (
        1 - 0.35 * (depth - depth.min())
    )
    scale = size / 1.6  # the cube's diagonal is 1.73; objects rarely fill its corners
    column = np.clip(size / 2 + scale * (points @ right), 0, size - 2).astype(int)
    row = np.clip(size / 2 - scale * (points @ up), 0, size - 2).astype(int)
    order = np.argsort(-depth, kind="stable")  # far first, near drawn over
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        canvas[row[order] + down, column[order] + across] = grey[order].clip(0, 235)
    return canvas


def contact_sheet(
    pictures: list[UInt8[np.ndarray, "size size"]], labels: list[str], columns: int
) -> Image.Image:
    """All pictures in rows, each above its label."""
    size, caption = len(pictures[0]), 11
    rows = -(-len(pictures) // columns)
    sheet = Image.new("L", (columns * size, rows * (size + caption)), 255)
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(index, columns)
        corner = (column * size, row * (size + caption))
        sheet.paste(Image.fromarray(picture), corner)
        text = label.encode("ascii", "replace").decode()[: size // 6]
        pen.text((corner[0] + 2, corner[1] + size - 1), text, fill=0)
    return sheet
