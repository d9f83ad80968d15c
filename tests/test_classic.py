"""Classic augmentation moves image and boxes by one and the same map."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthoma.data.batches import resize
from synthoma.data.boxes import scale
from synthoma.data.classic import (
    STILL,
    Classic,
    augment,
    change_intensity,
    matrix,
    move_boxes,
    warp,
)
from synthoma.errors import DataError

SIDE = 64


def picture(seed: int = 0, side: int = SIDE, channels: int = 1) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return chance.uniform(-1, 1, (channels, side, side)).astype(np.float32)


def smooth(seed: int = 0, side: int = SIDE) -> np.ndarray:
    return cv2.GaussianBlur(picture(seed, side)[0], (0, 0), 3)[None] * 5


BOX = np.array([[10, 20, 30, 45], [40, 3, 50, 9]], np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_no_change_is_exactly_no_change(seed):
    image = picture(seed, channels=2)
    same, boxes, kept = augment(image, BOX, STILL, np.random.default_rng(seed), side_px=SIDE)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(boxes, BOX)
    assert kept.tolist() == [0, 1]


def test_a_flip_is_exactly_a_flip_of_image_and_box():
    image, seen = picture(), set()
    flips = STILL.model_copy(update={"flip_x": True, "flip_y": True})
    for seed in range(20):
        got, boxes, _ = augment(image, BOX, flips, np.random.default_rng(seed), side_px=SIDE)
        over = matrix(flips, np.random.default_rng(seed), side_in=SIDE, side_out=SIDE)
        x, y = over[0, 0] < 0, over[1, 1] < 0
        wanted = image[:, :: -1 if y else 1, :: -1 if x else 1]
        np.testing.assert_array_equal(got, wanted)
        low, high = BOX[:, :2].copy(), BOX[:, 2:].copy()
        for axis, flipped in enumerate((y, x)):
            if flipped:
                low[:, axis], high[:, axis] = SIDE - BOX[:, 2 + axis], SIDE - BOX[:, axis]
        np.testing.assert_array_equal(boxes, np.concatenate([low, high], axis=1))
        seen.add((x, y))
    assert len(seen) == 4


WILD = Classic(rotate_degrees=180, shift=0.3, shear=0.3, zoom=0.3, least_visible=0.0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    side_px=st.sampled_from([48, 64, 100, 150]),
    radii=st.tuples(st.floats(6, 20), st.floats(6, 20)),
    centre=st.tuples(st.floats(30, 70), st.floats(30, 70)),
)
def test_a_moved_box_still_holds_its_lesion_and_fits_it(seed, side_px, radii, centre):
    y, x = np.mgrid[0:100, 0:100] + 0.5
    lesion = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    image = np.where(lesion, 1, -1).astype(np.float32)[None]
    box = np.array(
        [[centre[0] - radii[0], centre[1] - radii[1], centre[0] + radii[0], centre[1] + radii[1]]],
        np.float32,
    )
    moved, boxes, kept = augment(image, box, WILD, np.random.default_rng(seed), side_px=side_px)
    rows, columns = np.nonzero(moved[0] > 0)
    if not len(kept):
        assert len(rows) == 0
        return
    if not len(rows):
        return
    drawn = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
    inside = np.array([-1, -1, 1, 1]) * (drawn - boxes[0])
    pixel = max(1, side_px / 100)  # of the image that is coarser
    assert inside.max() <= pixel
    whole = (boxes[0, :2] > 0).all() and (boxes[0, 2:] < side_px).all()
    if whole:  # at the image's edge the ellipse's own part of its box may be cut off
        assert np.abs(inside).max() <= 1.5 * pixel


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("side_px", [50, 64, 96])
def test_one_resample_is_what_torch_samples_at_the_same_points(seed, side_px):
    """torch puts pixel centres at half integers with align_corners=False, as we do."""
    image = smooth(seed)
    over = matrix(WILD, np.random.default_rng(seed), side_in=SIDE, side_out=side_px)
    ours = warp(image, over, side_px)
    y, x = np.mgrid[0:side_px, 0:side_px] + 0.5
    back = np.linalg.inv(over) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    grid = torch.from_numpy((back[:2].T / SIDE * 2 - 1).reshape(1, side_px, side_px, 2)).float()
    theirs = torch.nn.functional.grid_sample(
        torch.from_numpy(image + 1)[None], grid, align_corners=False
    )
    np.testing.assert_allclose(ours, theirs[0].numpy() - 1, atol=0.02)  # 1/32 px in OpenCV


@pytest.mark.parametrize("side_px", [32, 128, 96, 20])
def test_a_picture_and_its_box_agree_at_another_side(side_px):
    """Half a pixel of disagreement would show here as a box that is off by up to two pixels."""
    image = np.full((1, SIDE, SIDE), -1, np.float32)
    image[:, 8:24, 32:56] = 1
    box = np.array([[8, 32, 24, 56]], np.float32)
    wanted = scale(box, (side_px / SIDE,) * 2)
    got, moved, _ = augment(image, box, STILL, np.random.default_rng(0), side_px=side_px)
    np.testing.assert_allclose(moved, wanted, atol=1e-4)
    for picture_ in (got, resize(image, side_px)):
        mass = (picture_[0] + 1) / 2
        for axis, (low, high) in enumerate(((0, 2), (1, 3))):
            weight = mass.sum(axis=1 - axis)
            centre = (weight * (np.arange(side_px) + 0.5)).sum() / weight.sum()
            assert centre == pytest.approx((wanted[0, low] + wanted[0, high]) / 2, abs=0.05)
        area = (wanted[0, 2] - wanted[0, 0]) * (wanted[0, 3] - wanted[0, 1])
        assert mass.sum() == pytest.approx(area, rel=0.05)


def test_a_fine_pattern_is_averaged_and_not_sampled_when_it_shrinks():
    noise = picture(side=128)
    small = warp(noise, np.diag([0.25, 0.25, 1]), 32)
    np.testing.assert_allclose(
        small, noise.reshape(1, 32, 4, 32, 4).mean(axis=(2, 4)), rtol=0, atol=1e-5
    )


def test_what_leaves_the_image_is_cut_and_what_is_hardly_left_is_dropped():
    right = np.array([[1, 0, 30], [0, 1, 0], [0, 0, 1]], np.float64)
    boxes = np.array([[0, 20, 10, 40], [0, 30, 10, 50], [0, 40, 10, 60]], np.float32)
    moved, kept = move_boxes(boxes, right, SIDE, least_visible=0.15)
    np.testing.assert_allclose(moved, [[0, 50, 10, 64], [0, 60, 10, 64]], atol=1e-5)
    assert kept.tolist() == [0, 1]
    none, kept = move_boxes(boxes[:0], right, SIDE, least_visible=0.15)
    assert none.shape == (0, 4)
    assert len(kept) == 0


def test_the_same_chance_draws_the_same_flips_whatever_else_is_set():
    flips = STILL.model_copy(update={"flip_x": True})
    one, both = (
        matrix(classic, np.random.default_rng(4), side_in=8, side_out=8)
        for classic in (flips, Classic())
    )
    assert np.sign(one[0, 0]) == np.sign(both[0, 0])


LOUD = STILL.model_copy(update={"gamma": 1.0, "contrast": 0.5, "brightness": 0.5})


@pytest.mark.parametrize("seed", range(10))
def test_background_stays_black_and_values_stay_in_range_when_intensities_change(seed):
    image = np.full((1, SIDE, SIDE), -1, np.float32)
    image[:, 16:48, 16:48] = smooth(seed)[:, 16:48, 16:48].clip(-0.9, 1)
    image[0, 0, :2] = [np.nextafter(np.float32(-1), -2), np.nextafter(np.float32(-1), 0)]
    changed = change_intensity(image, LOUD, np.random.default_rng(seed))
    assert np.isfinite(changed).all()
    assert (changed[:, :16] == -1).all()
    assert (np.abs(changed) <= 1).all()
    assert changed.dtype == np.float32
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize("field", ["gamma", "contrast", "brightness", "noise", "blur_px"])
def test_each_intensity_change_changes_and_is_repeatable(field):
    classic = STILL.model_copy(update={field: 1.0})
    image = smooth().clip(-0.9, 0.9)
    once, again = (change_intensity(image, classic, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, image)


def test_blur_smooths_and_noise_roughens():
    image, chance = picture() / 2, np.random.default_rng
    rough = np.abs(np.diff(image)).mean()
    blurred = change_intensity(image, STILL.model_copy(update={"blur_px": 3.0}), chance(1))
    noisy = change_intensity(image, STILL.model_copy(update={"noise": 0.3}), chance(1))
    assert np.abs(np.diff(blurred)).mean() < rough < np.abs(np.diff(noisy)).mean()


def test_what_is_not_a_square_slice_is_refused_with_the_way_out():
    with pytest.raises(DataError, match="data prepare"):
        augment(
            np.zeros((1, 8, 9), np.float32),
            np.zeros((0, 4), np.float32),
            STILL,
            np.random.default_rng(0),
            side_px=8,
        )
