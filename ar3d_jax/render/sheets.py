"""Sheets of views to look at: one row of pictures per object, with a label.

For samples, reports and docs; scorers see the views themselves.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont, ImageFont, load_default

LABEL_HEIGHT = 18  # pixels above each row


def view_sheet(
    views: UInt8[np.ndarray, "N V H W 3"], labels: Sequence[str] = ()
) -> Image.Image:
    """Object n's V views in row n, under `labels[n]` where there is one."""
    objects, count, height, width, _ = views.shape
    label_height = LABEL_HEIGHT if labels else 0
    row_height = height + label_height
    sheet = Image.new("RGB", (count * width, objects * row_height), "white")
    pen, font = ImageDraw.Draw(sheet), load_default()
    for row in range(objects):
        top = row * row_height
        for column in range(count):
            picture = Image.fromarray(views[row, column])
            sheet.paste(picture, (column * width, top + label_height))
        if row < len(labels):
            text = _fitting(labels[row], font, sheet.width - 8)
            pen.text((4, top + 3), text, fill="black", font=font)
    return sheet


def _fitting(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """`text` on one line, cut so that it is at most `width` pixels wide."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
