"""Pictures on surfaces: any file that Pillow reads, as 8-bit sRGB and alpha.

A texture is opened at once and decoded when its pixels are needed: large ones are
refused by their header.
"""

import dataclasses
import io
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

TEXTURE_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte as RGB
# Longest side of a texture that is kept; our choice: twice a picture of 512 pixels.
TEXTURE_SIDE = 1024

Wrap = Literal["repeat", "mirror", "clamp"]  # outside 0..1: what is seen of a texture
REPEAT: tuple[Wrap, Wrap] = ("repeat", "repeat")


@dataclasses.dataclass(frozen=True, eq=False)
class Texture:
    """A picture that parts of a mesh share.

    Attributes:
        image: as Pillow opened it.
        wrap: along u and v.
        base, gain: the picture's colours become base + gain * colour (MTL's -mm).
    """

    image: Image.Image
    wrap: tuple[Wrap, Wrap] = REPEAT
    base: float = 0.0
    gain: float = 1.0

    @cached_property
    def colours(self) -> UInt8[np.ndarray, "h w 3"]:
        """Its colours, at most TEXTURE_SIDE wide and high."""
        image = _eight_bits(self.image).convert("RGB")
        factor = -(-max(image.size) // TEXTURE_SIDE)
        pixels = np.asarray(image.reduce(factor) if factor > 1 else image)
        if (self.base, self.gain) == (0.0, 1.0):
            return pixels
        moved = self.base * 255 + self.gain * pixels
        return np.clip(moved, 0, 255).round().astype(np.uint8)

    @cached_property
    def alpha(self) -> UInt8[np.ndarray, "h w"] | None:
        """Its alpha, in full size; None where every pixel is opaque."""
        image = _eight_bits(self.image)
        if not image.has_transparency_data:
            return None
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        return None if alpha.min() == 255 else alpha

    @cached_property
    def cover(self) -> UInt8[np.ndarray, "h w"] | None:
        """As an alpha texture (MTL's map_d): its alpha, or else its brightness."""
        if self.alpha is not None:
            return self.alpha
        return np.asarray(_eight_bits(self.image).convert("L"))


def open_texture(data: bytes) -> Image.Image | None:
    """The picture in a file's bytes; None for a kind of file that Pillow cannot read.

    Raises:
        ValueError: it has more than TEXTURE_PIXELS pixels.
    """
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        # Without a limit Pillow opens any size and decodes nothing yet. With one, it
        # warns of some and refuses others, which looks like a file that is no picture.
        image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError):
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = before
    width, height = image.size
    if width * height > TEXTURE_PIXELS:
        raise ValueError(
            f"has a texture of {width} x {height} pixels; at most "
            f"{TEXTURE_PIXELS:,} pixels are read"
        )
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of 16 bits as 8: Pillow's own conversion cuts them at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    return Image.fromarray((np.clip(values / top, 0, 1) * 255).round().astype(np.uint8))


# --- Where a texture is looked up -----------------------------------------------------


def _pixel(place: Float[np.ndarray, " n"], size: int, wrap: Wrap) -> np.ndarray:
    """Indices of the pixels that are nearest to `place`, where 0..1 is the picture."""
    if wrap == "clamp":
        place = np.clip(place, 0.0, 1.0)
    elif wrap == "mirror":
        place = 1.0 - np.abs(place % 2.0 - 1.0)
    else:
        place = place % 1.0
    return np.minimum((place * size).astype(int), size - 1)


def lookup(
    picture: UInt8[np.ndarray, "h w 3"],
    uv: Float[np.ndarray, "n 2"],
    wrap: tuple[Wrap, Wrap] = REPEAT,
) -> UInt8[np.ndarray, "n 3"]:
    """The pixel at each place; (0, 0) is the first corner of the first row."""
    height, width = picture.shape[:2]
    column = _pixel(uv[:, 0], width, wrap[0])
    return picture[_pixel(uv[:, 1], height, wrap[1]), column]


def shows(
    visible: Bool[np.ndarray, "h w"],
    uv: Float[np.ndarray, "m 3 2"],
    wrap: tuple[Wrap, Wrap] = REPEAT,
) -> Bool[np.ndarray, " m"]:
    """Which triangles may show a visible pixel.

    Exact for a triangle's bounding box in the picture, and so on the safe side: only
    triangles without a visible pixel in their box are told to show none. A box that
    leaves the picture counts as the whole picture.
    """
    height, width = visible.shape
    size = np.array([width, height])
    low, high = uv.min(1), uv.max(1)
    tile = np.where([kind == "repeat" for kind in wrap], np.floor(low), 0.0)
    inside = ((low >= tile) & (high <= tile + 1)).all(1)
    # A thousandth of a pixel: corners that lie on a pixel's edge are seldom exact.
    first = np.floor((low - tile) * size + 1e-3)
    last = np.maximum(np.ceil((high - tile) * size - 1e-3) - 1, first)
    left, top = np.clip(first, 0, size - 1).astype(int).T
    right, bottom = np.clip(last, 0, size - 1).astype(int).T + 1
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = visible.cumsum(0).cumsum(1)
    count = (
        sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    )
    return np.where(inside, count > 0, visible.any())
