"""YOLOv3's anchors: where they come from, where they lie, and which answers for which box.

They come from the data by k-means over box sizes, with one minus IoU as the distance.

Papers:
  Redmon and Farhadi 2017, YOLO9000, https://arxiv.org/abs/1612.08242 (section 2, dimension
  clusters)
  Redmon and Farhadi 2018, YOLOv3, https://arxiv.org/abs/1804.02767 (sections 2.1 and 2.3)
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from synthoma.data.batches import Pool
from synthoma.data.boxes import sides
from synthoma.errors import DataError
from synthoma.tasks.darknet53 import ANCHORS_A_CELL, STRIDES

#: Nine (height, width), each a share of the image's side, by rising area.
Anchors = tuple[tuple[float, float], ...]

#: YOLOv3's own, from COCO at 416 pixels (there as width x height).
COCO_ANCHORS: Anchors = tuple(
    (height / 416, width / 416)
    for width, height in (
        (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198),
        (373, 326),
    )
)  # fmt: skip

MOST_CASES = 20_000
MOST_SIZES = 5_000
STARTS = 4
ROUNDS = 100
LARGEST_GROWTH = 4.0
"""t_h and t_w are cut here where boxes are decoded: e^4 anchors, so that none is infinite."""


def box_sizes(pool: Pool, *, seed: int = 0) -> Float64[np.ndarray, "m 2"]:
    """(height, width) of the pool's boxes as shares of their image's sides.

    Of more than `MOST_CASES` cases a seeded sample is read.
    """
    cases = np.arange(len(pool))
    if len(cases) > MOST_CASES:
        cases = np.random.default_rng(seed).choice(cases, MOST_CASES, replace=False)
    found = [np.zeros((0, 2))]
    for i in cases:
        which, place = pool.locate(int(i))
        dataset = pool.datasets[which]
        boxes = dataset.boxes(place)
        if len(boxes):
            found.append(sides(boxes) / dataset.values(place).shape[1:])
    return np.concatenate(found)


def shape_iou(
    a: Float64[np.ndarray, "m d"], b: Float64[np.ndarray, "n d"]
) -> Float64[np.ndarray, "m n"]:
    """Intersection over union of every pair of sizes, as if they shared a corner.

    Example:
        >>> shape_iou(np.array([[2.0, 2.0]]), np.array([[1.0, 2.0], [2.0, 2.0]]))
        array([[0.5, 1. ]])
    """
    both = np.minimum(a[:, None], b[None]).prod(axis=2)
    either = a.prod(axis=1)[:, None] + b.prod(axis=1)[None] - both
    return np.asarray(both / either)


def anchors_from(sizes: Float64[np.ndarray, "m 2"], *, n: int = 9, seed: int = 0) -> Anchors:
    """The `n` (height, width) that cover `sizes` best, by rising area, as `sizes_from` has them."""
    return tuple((float(h), float(w)) for h, w in sizes_from(sizes, n=n, seed=seed))


def sizes_from(
    sizes: Float64[np.ndarray, "m d"], *, n: int = 9, seed: int = 0
) -> Float64[np.ndarray, "n d"]:
    """The `n` sizes that cover `sizes` best, by rising area or volume.

    The best of a few seeded starts (k-means++). With fewer than `n` different sizes, theirs are
    joined by the same ones shrunk and grown, which leaves them covered exactly.

    Raises:
        DataError: There are no sizes.
    """
    chance = np.random.default_rng(seed)
    if len(sizes) == 0:
        raise DataError("no case has a box to learn anchors from; annotate some, or set `anchors`")
    distinct = np.unique(sizes, axis=0)
    if len(distinct) <= n:
        grown = np.concatenate([distinct * 2.0**k for k in (0, -0.5, 0.5, -1, 1, -1.5, 1.5, -2, 2)])
        best = grown[:n]
    else:
        if len(sizes) > MOST_SIZES:
            sizes = sizes[chance.choice(len(sizes), MOST_SIZES, replace=False)]
        runs = [cluster(sizes, n, chance) for _ in range(STARTS)]
        best = max(runs, key=lambda centres: float(shape_iou(sizes, centres).max(axis=1).mean()))
    return best[np.lexsort((best[:, 1], best.prod(axis=1)))].round(6)


def cluster(
    sizes: Float64[np.ndarray, "m d"], n: int, chance: np.random.Generator
) -> Float64[np.ndarray, "n d"]:
    """Centres of one run of k-means; a centre that loses all its sizes stays where it was."""
    centres = sizes[chance.integers(len(sizes), size=1)]
    for _ in range(n - 1):
        distance = 1 - shape_iou(sizes, centres).max(axis=1)
        weight = np.maximum(distance, 1e-12) ** 2
        pick = chance.choice(len(sizes), p=weight / weight.sum())
        centres = np.concatenate([centres, sizes[pick : pick + 1]])
    nearest = np.full(len(sizes), -1)
    for _ in range(ROUNDS):
        before, nearest = nearest, shape_iou(sizes, centres).argmax(axis=1)
        if np.array_equal(before, nearest):
            break
        for k in np.unique(nearest):
            centres[k] = sizes[nearest == k].mean(axis=0)
    return centres


@dataclass(frozen=True)
class Grid:
    """Where the cells of the network's answer lie in an image, in pixels."""

    corner: Float[Tensor, "cells 2"]
    """(y, x) of the cell's upper left corner."""
    stride: Float[Tensor, "cells 1"]
    anchor: Float[Tensor, "cells 2"]
    """(height, width)."""
    starts: tuple[int, int, int]
    """First cell of each stride."""


def grid_over(height: int, width: int, anchors: Float[Tensor, "9 2"]) -> Grid:
    """The cells of an image of `height` x `width`, in the order of the network's answer.

    Args:
        anchors: (height, width) as shares of the image's, by rising area: the last three are
            those of stride 32.
    """
    corners, strides, sizes, starts, cells = [], [], [], [], 0
    per_level = anchors * torch.tensor([height, width], device=anchors.device)
    for level, stride in enumerate(STRIDES):
        rows, columns = height // stride, width // stride
        y, x = torch.meshgrid(
            torch.arange(rows, device=anchors.device),
            torch.arange(columns, device=anchors.device),
            indexing="ij",
        )
        corner = torch.stack([y, x], dim=-1).reshape(-1, 2).repeat_interleave(ANCHORS_A_CELL, 0)
        corners.append(corner * float(stride))
        strides.append(torch.full((len(corner), 1), float(stride), device=anchors.device))
        first = ANCHORS_A_CELL * (len(STRIDES) - 1 - level)
        sizes.append(per_level[first : first + ANCHORS_A_CELL].repeat(rows * columns, 1))
        starts.append(cells)
        cells += len(corner)
    return Grid(
        torch.cat(corners), torch.cat(strides), torch.cat(sizes), (starts[0], starts[1], starts[2])
    )


def decode(
    raw: Float[Tensor, "*n cells values"],
    corner: Float[Tensor, "cells 2"],
    stride: Float[Tensor, "cells 1"],
    anchor: Float[Tensor, "cells 2"],
) -> Float[Tensor, "*n cells 4"]:
    """Boxes (y0, x0, y1, x1) in pixels (YOLOv3, section 2.1)."""
    centre = corner + raw[..., 0:2].flip(-1).sigmoid() * stride
    half = anchor * raw[..., 2:4].flip(-1).clamp(max=LARGEST_GROWTH).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


@dataclass(frozen=True)
class Targets:
    """Which prediction answers for which box; one row a box that has one to itself."""

    case: Int64[Tensor, " k"]
    cell: Int64[Tensor, " k"]
    offset: Float[Tensor, "k 2"]
    """(x, y) of the box's centre in its cell, in [0, 1]."""
    growth: Float[Tensor, "k 2"]
    """log of (width, height) over the anchor's."""
    row: Int64[Tensor, " k"]
    """Which of the given boxes it is."""


def assign(
    boxes: Float[Tensor, "m 4"],
    box_case: Int64[Tensor, " m"],
    grid: Grid,
    anchors: Float[Tensor, "9 2"],
    space: tuple[int, int],
    *,
    also_from_iou: float = 1.0,
) -> Targets:
    """Give each box the anchor whose shape fits best, in the cell of its centre.

    Of several boxes with the same anchor, cell and image the last one stays, as in Darknet; the
    others are not trained on, but predictions that fit them count as no false alarms.

    Args:
        also_from_iou: Further anchors whose shape overlaps a box's by this much answer for it too,
            unless one is the best of another box; at 1 none does (Redmon & Farhadi 2018).
    """
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp_min(1e-3)
    shapes = anchors * torch.tensor(space, device=anchors.device)
    both = torch.minimum(size[:, None], shapes).prod(-1)
    fit = both / (size.prod(-1)[:, None] + shapes.prod(-1) - both)
    order, best = torch.arange(len(boxes), device=boxes.device), fit.argmax(dim=1)
    further = fit >= also_from_iou if also_from_iou < 1 else torch.zeros_like(fit, dtype=torch.bool)
    further[order, best] = False
    of_box, anchor = further.nonzero(as_tuple=True)
    of_box, anchor = torch.cat([of_box, order]), torch.cat([anchor, best])  # the best come last

    level = len(STRIDES) - 1 - anchor // ANCHORS_A_CELL
    strides = torch.tensor(STRIDES, device=boxes.device)
    stride, start = strides[level], torch.tensor(grid.starts, device=boxes.device)[level]
    rows, columns = space[0] // stride, space[1] // stride
    y = (centre[of_box, 0] / stride).long().clamp_min(0).minimum(rows - 1)
    x = (centre[of_box, 1] / stride).long().clamp_min(0).minimum(columns - 1)
    cell = start + (y * columns + x) * ANCHORS_A_CELL + anchor % ANCHORS_A_CELL
    _, place = torch.unique(box_case[of_box] * len(grid.stride) + cell, return_inverse=True)
    claim = torch.arange(len(cell), device=boxes.device)
    last = torch.full_like(claim, -1).scatter_reduce(0, place, claim, "amax")
    won = last[last >= 0]
    at, row = cell[won], of_box[won]
    return Targets(
        case=box_case[row],
        cell=at,
        offset=((centre[row] - grid.corner[at]) / grid.stride[at]).clamp(0, 1).flip(-1),
        growth=(size[row] / grid.anchor[at]).log().flip(-1),
        row=row,
    )


def pair_iou(a: Float[Tensor, "*m 4"], b: Float[Tensor, "*n 4"]) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of boxes, row against row (broadcast)."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp_min(0).prod(-1)

    both = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    either = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - both
    iou = both / either.clamp_min(1e-9)
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return iou, iou - (hull - either) / hull.clamp_min(1e-9)


@torch.no_grad()
def fits_a_box(
    predicted: Float[Tensor, "n cells 4"],
    boxes: Float[Tensor, "m 4"],
    box_case: Int64[Tensor, " m"],
    least_iou: float,
) -> Tensor:
    """Which predictions (n, cells) overlap a box of their image by `least_iou` or more."""
    fits = torch.zeros(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
    for rows in torch.arange(len(boxes), device=boxes.device).split(64):  # bounds the memory
        iou, _ = pair_iou(predicted[box_case[rows]], boxes[rows][:, None])
        near = (iou >= least_iou).to(torch.int32)
        fits |= torch.zeros_like(fits, dtype=torch.int32).index_add_(0, box_case[rows], near) > 0
    return fits
