"""Boxes are half-open intervals in voxels; 2D is 3D with one slice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import TypeCheckError

from synthoma.data import boxes as box
from synthoma.errors import DataError

FEW = settings(max_examples=40, deadline=None)

corner = st.floats(-50, 50, width=32)
side = st.floats(0.125, 50, width=32)


@st.composite
def some(draw: st.DrawFn, dimensions: int = 2, most: int = 4) -> np.ndarray:
    m = draw(st.integers(1, most))
    low = draw(hnp.arrays(np.float32, (m, dimensions), elements=corner))
    size = draw(hnp.arrays(np.float32, (m, dimensions), elements=side))
    return np.concatenate([low, low + size], axis=1)


def lifted(boxes: np.ndarray) -> np.ndarray:
    """The same boxes in a volume of one slice."""
    m = len(boxes)
    return np.concatenate(
        [np.zeros((m, 1)), boxes[:, :2], np.ones((m, 1)), boxes[:, 2:]], axis=1
    ).astype(boxes.dtype)


@FEW
@given(some(), some())
def test_a_box_in_a_slice_is_a_box_in_a_volume_of_one_slice(a, b):
    deep_a, deep_b = lifted(a), lifted(b)
    np.testing.assert_allclose(box.iou(a, b), box.iou(deep_a, deep_b), atol=1e-12)
    np.testing.assert_allclose(box.volume(a), box.volume(deep_a))
    np.testing.assert_array_equal(lifted(box.clip(a, (20, 30))), box.clip(deep_a, (1, 20, 30)))
    np.testing.assert_array_equal(
        lifted(box.scale(a, (2, 0.5))), box.scale(deep_a, (1.0, 2.0, 0.5))
    )
    np.testing.assert_array_equal(lifted(box.shift(a, (3, -1))), box.shift(deep_a, (0, 3, -1)))


@FEW
@given(some(3), some(3))
def test_overlap_is_symmetric_within_0_and_1_and_whole_with_itself(a, b):
    overlap = box.iou(a, b)
    assert overlap.shape == (len(a), len(b))
    np.testing.assert_allclose(overlap, box.iou(b, a).T)
    assert (overlap >= 0).all()
    assert (overlap <= 1 + 1e-12).all()
    np.testing.assert_allclose(np.diag(box.iou(a, a)), 1)


@FEW
@given(some(), some(), st.tuples(st.integers(-20, 20), st.integers(-20, 20)))
def test_overlap_does_not_change_when_both_boxes_move_or_grow(a, b, offset):
    before = box.iou(a, b)
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    moved = box.iou(box.shift(a64, offset), box.shift(b64, offset))
    np.testing.assert_allclose(moved, before, atol=2e-3)  # float32 keeps 5 digits of the corners
    np.testing.assert_allclose(box.iou(box.scale(a, (2, 4)), box.scale(b, (2, 4))), before)


def test_overlap_worked_by_hand():
    a = np.array([[0, 0, 2, 2]], np.float32)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 0, 2]], np.float32)
    np.testing.assert_allclose(box.iou(a, b), [[1 / 7, 1, 0, 0]])  # touching is not overlapping
    assert box.iou(b[3:], b[3:]).item() == 0  # two empty boxes: 0, not NaN


def test_a_box_inside_out_has_no_volume():
    assert box.volume(np.array([[5, 5, 2, 9]], np.float32)).item() == 0


@FEW
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)))
def test_the_box_around_a_mask_holds_every_true_voxel_and_touches_the_outermost(mask):
    if not mask.any():
        with pytest.raises(DataError, match="empty mask"):
            box.around(mask)
        return
    low, high = box.around(mask)[0].astype(int).reshape(2, -1)
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    assert mask[inside].sum() == mask.sum()
    for axis in range(mask.ndim):
        others = tuple(set(range(mask.ndim)) - {axis})
        along = mask[inside].any(axis=others)
        assert along[0]
        assert along[-1]


def test_boxes_of_another_kind_are_refused_by_shape():
    with pytest.raises(DataError, match=r"\(2, 5\); allowed"):
        box.dimensions_of(np.zeros((2, 5)))
    with pytest.raises((DataError, TypeCheckError)):  # whichever check comes first
        box.iou(np.zeros((1, 4)), np.zeros((1, 6)))
