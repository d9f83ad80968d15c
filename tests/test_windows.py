"""Windows of volumes: what they show, and where the boxes in them are."""

from itertools import pairwise

import numpy as np
import pytest

from synthoma.data.windows import Window, cut_window, windows_over

PLAIN = Window(space=(8, 10, 12), zoom=0, shift=0)
BOX = np.array([[10, 12, 14, 14, 16, 20]], np.float32)


def volume(space=(24, 26, 28)):
    values = np.zeros((1, *space), np.int16)
    values[0, 10:14, 12:16, 14:20] = 100
    return values


def chance(seed=0):
    return np.random.default_rng(seed)


def test_a_window_about_a_box_has_it_in_its_middle():
    about = PLAIN.model_copy(update={"about_box": 1.0})
    image, boxes, kept = cut_window(volume(), BOX, about, chance(), outside=-7)
    assert image.shape == (1, 8, 10, 12)
    assert boxes.tolist() == [[2, 3, 3, 6, 7, 9]]
    assert kept.tolist() == [0]
    inside = image[0, 2:6, 3:7, 3:9]
    assert inside.min() == 100
    assert (image == 100).sum() == inside.size


@pytest.mark.parametrize("seed", range(20))
def test_boxes_stay_on_what_they_surround_under_shift_zoom_and_flip(seed):
    window = Window(space=(16, 18, 20), shift=0.2, zoom=0.3, about_box=1, flip=True)
    image, boxes, kept = cut_window(volume(), BOX, window, chance(seed), outside=0)
    if not len(kept):
        return
    lit = np.argwhere(image[0] > 50)
    box = boxes[0]
    assert np.abs(lit.min(0) - box[:3]).max() < 1.6
    assert np.abs(lit.max(0) + 1 - box[3:]).max() < 1.6


def test_beyond_the_volume_there_is_what_was_said():
    small = np.full((1, 4, 4, 4), 5, np.int16)
    image, *_ = cut_window(small, BOX[:0], PLAIN, chance(), outside=-7)
    assert (image == 5).sum() == 64
    assert (image == -7).sum() == image.size - 64


def test_a_box_that_is_hardly_seen_is_dropped():
    window = PLAIN.model_copy(update={"about_box": 0.0, "least_visible": 0.9})
    seen = set()
    for seed in range(60):
        _, boxes, kept = cut_window(volume(), BOX, window, chance(seed), outside=0)
        seen.add(len(kept))
        if len(kept):
            assert np.prod(boxes[0, 3:] - boxes[0, :3]) >= 0.9 * 4 * 4 * 6
    assert seen == {0, 1}


def test_windows_anywhere_reach_every_corner_and_never_leave_a_larger_volume():
    window = PLAIN.model_copy(update={"about_box": 0.0})
    values = np.arange(24 * 26 * 28).reshape(1, 24, 26, 28).astype(np.float32)
    firsts = []
    for seed in range(300):
        image, *_ = cut_window(values, BOX, window, chance(seed), outside=-1)
        assert image.min() >= 0
        firsts.append(np.unravel_index(int(image[0, 0, 0, 0]), (24, 26, 28)))
    assert np.min(firsts, axis=0).tolist() == [0, 0, 0]
    assert np.max(firsts, axis=0).tolist() == [16, 16, 16]


@pytest.mark.parametrize("size", [(5, 5, 5), (8, 10, 12), (9, 30, 100), (64, 64, 64)])
def test_windows_cover_a_volume_and_overlap(size):
    space = (8, 10, 12)
    corners = windows_over(size, space, overlap=0.25)
    assert len(set(corners)) == len(corners)
    covered = np.zeros(size, bool)
    for low in corners:
        covered[tuple(slice(a, a + s) for a, s in zip(low, space, strict=True))] = True
        assert all(a == 0 or a + s <= n for a, s, n in zip(low, space, size, strict=True))
    assert covered.all()
    for axis in range(3):
        along = sorted({low[axis] for low in corners})
        assert all(b - a <= 0.75 * space[axis] + 1 for a, b in pairwise(along))
