"""Overlap, suppression and features of 3D boxes: by brute force, by law, by torchvision in 2D."""

import itertools

import numpy as np
import pytest
import torch

from synthoma.data import boxes as in_numpy
from synthoma.nn.boxes3d import BLOCK, iou, nms, roi_align


def draw(seed, m, *, spread, side, whole=False):
    """Boxes with corners anywhere in a cube, and scores."""
    chance = torch.Generator().manual_seed(seed)
    low = torch.rand(m, 3, generator=chance) * spread
    high = low + side * (0.2 + torch.rand(m, 3, generator=chance))
    boxes = torch.cat([low, high], dim=1)
    return boxes.round() if whole else boxes, torch.rand(m, generator=chance)


def flat(boxes, axis):
    """torchvision's (x0, y0, x1, y1) of the two axes that are not `axis`."""
    first, second = (other for other in range(3) if other != axis)
    return boxes[:, [second, first, second + 3, first + 3]]


# ---- overlap and suppression


def test_overlap_is_that_of_the_metrics_and_nothing_overlaps_an_empty_box():
    a, _ = draw(0, 40, spread=10, side=6, whole=True)
    b, _ = draw(1, 30, spread=10, side=6, whole=True)
    b[0, 3:] = b[0, :3]
    ours = iou(a.double(), b.double()).numpy()
    np.testing.assert_array_equal(ours, in_numpy.iou(a.double().numpy(), b.double().numpy()))
    assert (ours[:, 0] == 0).all()
    assert iou(b[:1], b[:1]).item() == 0
    assert (ours > 0).any()


def slow_nms(boxes, scores, iou_threshold):
    kept = []
    for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)):
        overlaps = in_numpy.iou(boxes[[row]], boxes[kept])[0] if kept else np.zeros(0)
        if not (overlaps > iou_threshold).any():
            kept.append(row)
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iou_threshold", [0.0, 0.2, 0.5])
def test_suppression_is_the_greedy_loop(seed, iou_threshold):
    """More boxes than one block, with equal scores."""
    boxes, scores = draw(seed, BLOCK + 80, spread=20, side=8, whole=True)
    scores = (scores * 20).round().double()
    kept = nms(boxes.double(), scores, iou_threshold).tolist()
    assert kept == slow_nms(boxes.double().numpy(), scores.numpy(), iou_threshold)
    assert 5 < len(kept) < len(boxes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_suppression_in_one_slice_is_torchvisions(axis):
    from torchvision.ops import nms as nms_2d

    boxes, scores = draw(3, 700, spread=100, side=30)
    boxes[:, axis], boxes[:, axis + 3] = 5, 6
    kept = nms(boxes, scores, 0.3)
    assert kept.tolist() == nms_2d(flat(boxes, axis), scores, 0.3).tolist()
    assert 50 < len(kept) < 400


def test_a_box_that_was_removed_removes_nobody():
    row = torch.tensor([[0.0, 0, x, 4, 4, x + 4] for x in (0, 2, 4)])
    assert nms(row, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]
    assert nms(row, torch.tensor([0.8, 0.9, 0.7]), 0.3).tolist() == [1]
    assert nms(row, torch.tensor([0.5, 0.5, 0.9]), 0.3).tolist() == [2, 0]


def test_an_overlap_of_just_the_threshold_is_allowed():
    pair = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0.0, 0, 0, 2, 4, 4]])
    scores = torch.tensor([0.5, 0.9])
    assert nms(pair, scores, 0.5).tolist() == [1, 0]
    assert nms(pair, scores, 0.49).tolist() == [1]


def test_a_box_covers_only_its_own_class():
    boxes, scores = draw(4, 400, spread=20, side=8)
    labels = torch.arange(400) % 3
    kept = nms(boxes, scores, 0.2, labels=labels)
    apart = [
        rows[nms(boxes[rows], scores[rows], 0.2)]
        for rows in ((labels == label).nonzero()[:, 0] for label in range(3))
    ]
    together = torch.cat(apart)
    assert kept.tolist() == together[scores[together].argsort(descending=True)].tolist()
    assert len(kept) > len(nms(boxes, scores, 0.2))


def test_of_no_boxes_none_stays():
    assert nms(torch.zeros(0, 6), torch.zeros(0), 0.5).tolist() == []


# ---- features of regions


def read_map(cells, at):
    """Trilinear interpolation of one channel at (z, y, x) in cells, as RoIAlign reads it."""
    if any(a < -1 or a > n for a, n in zip(at, cells.shape, strict=True)):
        return 0.0
    at = [min(max(a, 0.0), n - 1.0) for a, n in zip(at, cells.shape, strict=True)]
    low = [min(int(a), n - 1) for a, n in zip(at, cells.shape, strict=True)]
    value = 0.0
    for corner in itertools.product((0, 1), repeat=3):
        cell = [min(c + k, n - 1) for c, k, n in zip(low, corner, cells.shape, strict=True)]
        share = [a - c if k else 1 - (a - c) for a, c, k in zip(at, low, corner, strict=True)]
        value += float(cells[tuple(cell)]) * np.prod(share)
    return value


def slow_roi(cells, box, stride, bins, samples):
    out = np.zeros(bins)
    low, high = np.array(box[:3]) / stride - 0.5, np.array(box[3:]) / stride - 0.5
    for place in np.ndindex(*bins):
        steps = itertools.product(range(samples), repeat=3)
        points = [
            low + (np.array(place) + (np.array(step) + 0.5) / samples) * (high - low) / bins
            for step in steps
        ]
        out[place] = np.mean([read_map(cells, point) for point in points])
    return out


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_features_are_the_mean_of_points_read_one_by_one(samples):
    """Boxes inside, across each border, far outside, empty, and smaller than a cell."""
    chance = torch.Generator().manual_seed(samples)
    maps = torch.randn(2, 2, 4, 5, 6, generator=chance, dtype=torch.float64)
    boxes = torch.tensor(
        [
            [2.0, 3, 4, 10, 14, 20],
            [-9, -3, -5, 4, 6, 8],
            [12, 10, 18, 22, 30, 33],
            [-60, 0, 0, -40, 4, 4],
            [0, 0, 0, 0, 0, 0],
            [5.1, 5.2, 5.3, 5.9, 6.1, 6.0],
        ],
        dtype=torch.float64,
    )
    image = torch.tensor([0, 1, 1, 0, 0, 1])
    stride, bins = (4.0, 2.0, 3.0), (2, 3, 4)
    ours = roi_align(maps, boxes, image, stride=stride, bins=bins, samples=samples)
    assert ours.shape == (6, 2, 2, 3, 4)
    for m, channel in itertools.product(range(6), range(2)):
        slow = slow_roi(maps[image[m], channel].numpy(), boxes[m].tolist(), stride, bins, samples)
        np.testing.assert_allclose(ours[m, channel].numpy(), slow, rtol=0, atol=1e-12)
    assert (ours[3] == 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("samples", [1, 2])
def test_features_and_gradients_in_one_slice_are_torchvisions(axis, samples):
    from torchvision.ops import roi_align as roi_align_2d

    chance = torch.Generator().manual_seed(axis)
    plane = torch.randn(2, 3, 18, 25, generator=chance, dtype=torch.float64, requires_grad=True)
    solid = plane.detach().unsqueeze(2 + axis).requires_grad_()  # one cell thick
    boxes, _ = draw(axis, 30, spread=110, side=60)
    boxes = boxes.double() - 20  # some lie across the border
    boxes[:, axis], boxes[:, axis + 3] = 1, 3  # inside the one cell
    image = torch.arange(30) % 2
    bins = [7, 7, 7]
    bins[axis] = 1
    ours = roi_align(
        solid, boxes, image, stride=(4.0, 4.0, 4.0), bins=tuple(bins), samples=samples
    ).squeeze(2 + axis)
    theirs = roi_align_2d(
        plane,
        torch.cat([image[:, None], flat(boxes, axis)], dim=1),
        output_size=7,
        spatial_scale=1 / 4,
        sampling_ratio=samples,
        aligned=True,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (theirs == 0).any()
    weight = torch.randn(theirs.shape, generator=chance, dtype=torch.float64)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(solid.grad.squeeze(2 + axis), plane.grad, rtol=0, atol=1e-12)


def test_a_map_that_rises_evenly_is_read_at_the_middle_of_each_bin():
    """Voxel i's value lies at i + 1/2, as boxes are half-open: nothing is shifted."""
    stride = torch.tensor([4.0, 2.0, 8.0])
    slope = torch.tensor([1.0, -2.0, 0.5])
    grid = torch.stack(torch.meshgrid(*map(torch.arange, (9, 12, 8)), indexing="ij"), dim=-1)
    maps = (((grid + 0.5) * stride) @ slope)[None, None]
    box = torch.tensor([[7.0, 4.5, 11.0, 21.0, 18.0, 40.0]])
    ours = roi_align(maps, box, torch.tensor([0]), stride=tuple(stride.tolist()), bins=(2, 1, 4))[
        0, 0
    ]
    middle = [
        torch.linspace(float(low), float(high), 2 * n + 1)[1::2]
        for low, high, n in zip(box[0, :3], box[0, 3:], (2, 1, 4), strict=True)
    ]
    expected = torch.stack(torch.meshgrid(*middle, indexing="ij"), dim=-1) @ slope
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_gradients_are_those_of_small_steps():
    maps = torch.randn(2, 1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    boxes, _ = draw(0, 5, spread=12, side=10)
    image = torch.tensor([0, 1, 1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda x: roi_align(
            x, boxes.double() - 3, image, stride=(4.0, 3.0, 2.0), bins=(2, 2, 3), samples=2
        ),
        [maps],
    )


def test_gradients_do_not_move_boxes_and_boxes_without_gradient_are_no_obstacle():
    maps = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 0, 3, 4, 5]], requires_grad=True)
    roi_align(maps, boxes, torch.tensor([0]), stride=(1.0, 1.0, 1.0)).sum().backward()
    assert boxes.grad is None
    # the mean of each of 343 bins, of each of two channels
    assert maps.grad.sum().item() == pytest.approx(2 * 343, rel=1e-4)


def test_no_boxes_have_no_features_and_a_gradient_of_nought():
    maps = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    none = roi_align(maps, torch.zeros(0, 6), torch.zeros(0, dtype=int), stride=(1.0, 1.0, 1.0))
    assert none.shape == (0, 2, 7, 7, 7)
    none.sum().backward()
    assert (maps.grad == 0).all()


def test_bfloat16_maps_are_read_in_float32_and_given_back_as_bfloat16():
    chance = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 4, 6, 7, 8, generator=chance).bfloat16()
    boxes, _ = draw(0, 6, spread=20, side=10)
    image, stride = torch.zeros(6, dtype=int), (4.0, 4.0, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        ours = roi_align(maps, boxes, image, stride=stride)
    exact = roi_align(maps.float(), boxes, image, stride=stride)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.bfloat16())


def test_memory_layout_changes_nothing():
    maps = torch.randn(2, 8, 6, 7, 8)
    boxes, _ = draw(0, 6, spread=20, side=10)
    image, stride = torch.arange(6) % 2, (4.0, 4.0, 4.0)
    last = roi_align(maps.to(memory_format=torch.channels_last_3d), boxes, image, stride=stride)
    torch.testing.assert_close(last, roi_align(maps, boxes, image, stride=stride))
