"""Planes through a nodule: which way is up, how large, what a plane cuts."""

import numpy as np

from synthoma.data.views import boxes_at, three_views

BOX = np.array([8, 8, 8, 16, 16, 16.0])


def test_a_ball_is_round_and_half_as_wide_as_each_view_whatever_the_voxels():
    spacing = (2.0, 1.0, 0.5)
    z, y, x = np.meshgrid(*(np.arange(n) + 0.5 for n in (30, 60, 120)), indexing="ij")
    far = np.sqrt((2 * z - 30) ** 2 + (y - 30) ** 2 + (x / 2 - 30) ** 2)
    ball = (far < 10).astype(np.float32)
    box = np.array([10, 20, 40, 20, 40, 80.0])
    seen = three_views(ball, box, value_range=(0, 1), spacing_mm=spacing, side_px=80, gap_px=0)
    assert seen.shape == (1, 80, 240)
    for k in range(3):
        rows, columns = np.nonzero(seen[0, :, 80 * k : 80 * (k + 1)] > 127)
        for along in (rows, columns):
            assert abs(along.max() - along.min() + 1 - 40) <= 3
            assert abs((along.max() + along.min()) / 2 - 39.5) <= 1


def test_the_head_is_up_and_axial_rows_run_backwards():
    volume = np.zeros((24, 24, 24), np.float32)
    volume[15, 12, 12] = 1  # towards the head
    _, coronal, sagittal = np.split(
        three_views(volume, BOX, value_range=(0, 1), side_px=48, gap_px=0)[0], 3, axis=1
    )
    for plane in (coronal, sagittal):
        assert np.argwhere(plane > 60)[:, 0].max() < 24
    volume[:] = 0
    volume[12, 15, 12] = 1
    axial = three_views(volume, BOX, value_range=(0, 1), side_px=48, gap_px=0)[0, :, :48]
    assert np.argwhere(axial > 60)[:, 0].min() > 24


def test_beyond_the_volume_is_black():
    volume = np.ones((24, 24, 24), np.float32)
    corner = np.array([0, 0, 0, 8, 8, 8.0])
    axial = three_views(volume, corner, value_range=(0, 1), side_px=32, gap_px=0)[0, :, :32]
    assert axial[:6].max() == axial[:, :6].max() == 0
    assert axial[16:, 16:].min() == 255


def test_a_plane_cuts_the_boxes_that_hold_its_voxels():
    boxes = np.array([[2, 1, 1, 4, 5, 6], [4, 0, 0, 6, 2, 2], [2.5, 7, 7, 3.5, 9, 9]])
    assert boxes_at(boxes, 3).tolist() == [[1, 1, 5, 6], [7, 7, 9, 9]]
    assert boxes_at(boxes, 4).tolist() == [[0, 0, 2, 2]]
