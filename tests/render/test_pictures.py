import io

import numpy as np
import pytest
from PIL import Image

from ar3d_jax.render import pictures
from ar3d_jax.render.pictures import Texture, open_texture


def stored(image, kind="png", **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return open_texture(file.getvalue())


VALUES = np.array([[0, 64, 128], [200, 254, 255]])


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(VALUES.astype(np.uint8)), "png"),
        (Image.fromarray((VALUES * 257).astype(np.uint16)), "png"),
        (Image.fromarray((VALUES * 257).astype(np.int32)), "tiff"),
        (Image.fromarray((VALUES / 255).astype(np.float32)), "tiff"),
        (Image.fromarray(VALUES.astype(np.uint8)).convert("RGB"), "bmp"),
        (Image.fromarray(VALUES.astype(np.uint8)).convert("P"), "png"),
        (Image.fromarray(VALUES.astype(np.uint8)).convert("LA"), "png"),
    ],
)
def test_grey_of_any_depth(image, kind):
    texture = Texture(stored(image, kind))
    np.testing.assert_array_equal(texture.colours, np.repeat(VALUES[..., None], 3, 2))
    assert texture.alpha is None
    np.testing.assert_array_equal(texture.cover, VALUES)


def test_alpha_of_a_palette_and_of_a_channel():
    alpha = np.uint8([[0, 128], [255, 255]])
    own = Image.fromarray(np.dstack([np.full((2, 2, 3), 90, np.uint8), alpha]))
    np.testing.assert_array_equal(Texture(stored(own)).alpha, alpha)
    np.testing.assert_array_equal(Texture(stored(own)).cover, alpha)
    palette = Image.fromarray(np.uint8([[0, 1]]))
    palette.putpalette([9, 9, 9, 80, 80, 80])
    found = Texture(stored(palette, transparency=0))
    np.testing.assert_array_equal(found.alpha, [[0, 255]])
    np.testing.assert_array_equal(found.colours[:, :, 0], [[9, 80]])


def test_what_is_no_picture_is_none():
    assert open_texture(b"") is None
    assert open_texture(b"\xabKTX 20\xbb\r\n\x1a\n" + b"\0" * 99) is None


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        ("repeat", [2, 0, 1, 2, 0, 1]),
        ("mirror", [0, 0, 1, 2, 2, 1]),
        ("clamp", [0, 0, 1, 2, 2, 2]),
    ],
)
def test_what_is_seen_outside_of_a_picture(wrap, expected):
    row = np.repeat(np.uint8([[[0], [1], [2]]]), 3, axis=2)
    u = (np.arange(-1, 5) + 0.5) / 3
    across = np.stack([u, np.full(6, 0.5)], 1)
    found = pictures.lookup(row, across, (wrap, "repeat"))
    assert found[:, 0].tolist() == expected
    down = pictures.lookup(row.swapaxes(0, 1), across[:, ::-1], ("clamp", wrap))
    assert down[:, 0].tolist() == expected
    edge = pictures.lookup(row, np.array([[1.0, 1.0]]), ("clamp", "mirror"))
    assert edge[0, 0] == 2


def test_which_triangles_show_a_visible_pixel():
    visible = np.zeros((4, 4), bool)
    visible[1, 2] = True  # u in 0.5..0.75, v in 0.25..0.5

    def box(left, top, right, bottom):
        return [(left, top), (right, top), (left, bottom)]

    uv = np.array(
        [
            box(0.5, 0.25, 0.75, 0.5),
            box(0.6, 0.3, 0.6, 0.3),  # one place
            box(0.0, 0.0, 0.5, 1.0),  # touches its edge
            box(0.75, 0.0, 1.0, 1.0),
            box(0.0, 0.5, 1.0, 1.0),
            box(0.0, 0.0, 1.0, 0.25),
            box(2.5, -0.75, 2.75, -0.5),  # the same pixel of another tile
            box(2.0, -1.0, 2.5, 0.0),
            box(0.9, 0.5, 1.1, 1.0),  # leaves the picture: anything may show
        ]
    )
    found = pictures.shows(visible, uv)
    assert found.tolist() == [True, True, False, False, False, False, True, False, True]
    clamped = pictures.shows(visible, uv[6:8], ("clamp", "clamp"))
    assert clamped.tolist() == [True, True]
    nothing = pictures.shows(np.zeros((4, 4), bool), uv)
    assert not nothing.any()
