"""A contact sheet shows the images as they are, and where the boxes are."""

import numpy as np
import pytest
from PIL import Image as Picture

from synthoma.data.sheet import COLOURS, contact_sheet, draw_boxes, to_bytes, write_png
from synthoma.errors import DataError


def test_a_known_range_is_shown_from_black_to_white_and_cut_outside():
    values = np.array([[[-1.0, 0.0, 1.0, 5.0]]], np.float32)
    assert to_bytes(values, (-1, 1)).ravel().tolist() == [0, 128, 255, 255]


def test_an_unknown_range_is_the_image_s_own():
    assert to_bytes(np.array([[[200, 300, 400]]], np.int16), None).ravel().tolist() == [0, 128, 255]
    assert to_bytes(np.full((1, 2, 2), 7, np.uint8), None).max() == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_shown_as_black(bad):
    values = np.array([[[bad, 0.0, 1.0]]], np.float32)
    assert to_bytes(values, None).ravel().tolist() == [0, 0, 255]


def test_a_volume_is_shown_by_its_middle_slice():
    values = np.zeros((1, 5, 2, 2), np.uint8)
    values[:, 2] = 255
    assert to_bytes(values, (0, 255)).tolist() == [[[255, 255], [255, 255]]]


def test_a_box_is_outlined_just_outside_of_what_it_holds():
    image = np.zeros((1, 20, 20), np.uint8)
    drawn = draw_boxes(image, np.array([[5, 4, 10, 12]], np.float32), side_px=20)
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 3, 12)
    assert not drawn[5:10, 4:12].any()
    assert (drawn[4, 3:13] == COLOURS[0]).all()


def test_boxes_follow_an_image_that_is_not_square():
    image = np.zeros((1, 10, 20), np.uint8)
    image[:, 2:6, 4:10] = 255
    box = np.array([[2, 4, 6, 10]], np.float32)
    drawn = draw_boxes(image, box, side_px=40, classes=[1])
    outline = (drawn == COLOURS[1]).all(axis=2)
    rows, columns = np.nonzero(outline)
    bright = np.argwhere((drawn == 255).all(axis=2))
    assert (rows.min(), columns.min()) == (13, 7)
    assert (bright.min(axis=0) >= (14, 8)).all()
    assert (bright.max(axis=0) < (rows.max(), columns.max())).all()


def test_classes_have_colours_and_colour_images_stay_coloured():
    boxes = np.array([[1, 1, 3, 3], [5, 5, 7, 7]], np.float32)
    drawn = draw_boxes(np.zeros((1, 9, 9), np.uint8), boxes, side_px=9, classes=[0, 7])
    assert tuple(drawn[0, 1]) == COLOURS[0]
    assert tuple(drawn[4, 5]) == COLOURS[7 % len(COLOURS)]
    red = np.zeros((3, 4, 4), np.uint8)
    red[0] = 200
    assert draw_boxes(red, boxes[:0], side_px=4)[2, 2].tolist() == [200, 0, 0]


def test_tiles_are_laid_in_rows():
    tiles = [np.full((4, 4, 3), i, np.uint8) for i in range(1, 6)]
    sheet = contact_sheet(tiles, columns=3, gap_px=1)
    assert sheet.shape == (9, 14, 3)
    assert [sheet[0, 5 * k, 0] for k in range(3)] == [1, 2, 3]
    assert [sheet[5, 5 * k, 0] for k in range(3)] == [4, 5, 0]
    assert contact_sheet(tiles[:2], columns=8, gap_px=1).shape == (4, 9, 3)
    with pytest.raises(DataError, match="no picture"):
        contact_sheet([])


def test_a_picture_is_written_whole_with_its_facts(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", picture, {"Synthetic": "yes", "Run": "ü日"})
    with Picture.open(tmp_path / "a.png") as read:
        np.testing.assert_array_equal(np.asarray(read), picture)
        assert read.info["Synthetic"] == "yes"
        assert read.info["Run"] == "ü日"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
