import numpy as np

from ar3d_jax.render.sheets import LABEL_HEIGHT, view_sheet

VIEWS = (np.arange(2 * 3 * 20 * 30 * 3) % 251).reshape(2, 3, 20, 30, 3).astype(np.uint8)


def test_a_row_per_object_and_a_column_per_view():
    sheet = np.asarray(view_sheet(VIEWS))
    assert sheet.shape == (40, 90, 3)
    np.testing.assert_array_equal(sheet[20:, 60:], VIEWS[1, 2])


def test_labels_stand_above_their_rows_and_fit():
    sheet = np.asarray(view_sheet(VIEWS, ["a chair " * 100, "b"]))
    top = LABEL_HEIGHT
    assert sheet.shape == (2 * (20 + top), 90, 3)
    np.testing.assert_array_equal(sheet[top : top + 20, :30], VIEWS[0, 0])
    np.testing.assert_array_equal(sheet[-20:, -30:], VIEWS[1, 2])
    assert (sheet[:top] < 128).any()
    assert (sheet[:top, -4:] == 255).all()
