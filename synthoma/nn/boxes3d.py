"""Boxes of 3D detectors in torch: overlap, non-maximum suppression, features of regions.

    boxes (m, 6), scores -> nms -> rows that stay
    maps (n, c, z, y, x), boxes (m, 6) of the input -> roi_align -> (m, c, *bins)

Boxes are half-open, (z0, y0, x0, z1, y1, x1), in voxels: voxel i covers [i, i + 1).

Papers:
  Ren et al. 2015, Faster R-CNN, https://arxiv.org/abs/1506.01497
  He et al. 2017, Mask R-CNN, https://arxiv.org/abs/1703.06870 (section 3: RoIAlign)
In 2D both are torchvision's to the last digits (`tests/test_boxes3d.py`).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

#: Boxes that are compared with all lower ones at once: small enough for a processor's cache.
BLOCK = 256


def iou(a: Float[Tensor, "m 6"], b: Float[Tensor, "n 6"]) -> Float[Tensor, "m n"]:
    """Intersection over union of every pair; 0 where both are empty.

    Example:
        >>> cube = torch.tensor([[0.0, 0, 0, 4, 4, 4]])
        >>> iou(cube, torch.tensor([[3.0, 0, 0, 4, 4, 4], [4.0, 0, 0, 8, 4, 4]]))
        tensor([[0.2500, 0.0000]])
    """
    both = a.new_ones(len(a), len(b))
    for axis in range(3):
        low = torch.maximum(a[:, None, axis], b[None, :, axis])
        high = torch.minimum(a[:, None, axis + 3], b[None, :, axis + 3])
        both *= high.sub_(low).clamp_(min=0)
    either = _volume(a)[:, None] + _volume(b)[None] - both
    return both / either.masked_fill_(either == 0, 1)


def _volume(boxes: Float[Tensor, "m 6"]) -> Float[Tensor, " m"]:
    return (boxes[:, 3:] - boxes[:, :3]).clamp(min=0).prod(dim=1)


def nms(
    boxes: Float[Tensor, "m 6"],
    scores: Float[Tensor, " m"],
    iou_threshold: float,
    *,
    labels: Int64[Tensor, " m"] | None = None,
) -> Int64[Tensor, " k"]:
    """Rows of the boxes that no surer one that stays overlaps by more than the threshold.

    Args:
        labels: Where given, a box covers only boxes of its own label (the class; or image and
            class in one number).

    Returns:
        The surest first; of equal scores the earlier row, as in torchvision.
    """
    kept = []
    waiting = scores.argsort(descending=True, stable=True)
    while len(waiting):
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        block = block[_uncovered(_covers(boxes, labels, block, block, iou_threshold).triu(1))]
        waiting = waiting[~_covers(boxes, labels, block, waiting, iou_threshold).any(dim=0)]
        kept.append(block)
    return torch.cat(kept) if kept else waiting


def _covers(
    boxes: Float[Tensor, "m 6"],
    labels: Int64[Tensor, " m"] | None,
    surer: Int64[Tensor, " s"],
    others: Int64[Tensor, " o"],
    iou_threshold: float,
) -> Bool[Tensor, "s o"]:
    covers = iou(boxes[surer], boxes[others]) > iou_threshold
    return covers if labels is None else covers & (labels[surer, None] == labels[None, others])


def _uncovered(covers: Bool[Tensor, "b b"]) -> Bool[Tensor, " b"]:
    """Who stays when each who stays removes whom it covers; nobody covers an earlier one.

    After k rounds the first k answers are final, as those before them are; in practice a few
    rounds are enough, and no box has to be looked at alone.
    """
    stays = torch.ones(len(covers), dtype=torch.bool, device=covers.device)
    while True:
        next_ = ~(covers & stays[:, None]).any(dim=0)
        if torch.equal(next_, stays):
            return stays
        stays = next_


def roi_align(
    maps: Float[Tensor, "n c z y x"],
    boxes: Float[Tensor, "m 6"],
    image: Int64[Tensor, " m"],
    *,
    stride: tuple[float, float, float],
    bins: tuple[int, int, int] = (7, 7, 7),
    samples: int = 2,
) -> Float[Tensor, "m c bz by bx"]:
    """The mean of each bin of each box, read from the maps by trilinear interpolation.

    torchvision's with `aligned=True`: a cell's value lies at its middle; a bin is read at
    `samples` points along each axis; points beyond the map's border by more than half a cell
    (where cells there would end) are 0, others take the border's values. An empty box reads one
    point.

    Weights factor along the axes, so a box takes three small matrix products over the cells that
    it covers, and no list of points is ever made. Gradients flow to the maps alone, once; they
    are added box by box, in the same order each time. Computed in float32 or more.

    Args:
        boxes: In voxels of the input, float32 or float64.
        image: The row of `maps` that each box lies in.
        stride: Voxels of the input that a cell of the map covers along z, y, x.
        bins: Bins of each box along z, y, x.
    """
    weights, spans = [], []
    for axis in range(3):
        low, high = boxes[:, axis] / stride[axis], boxes[:, axis + 3] / stride[axis]
        weight, span = _weights(low, high, maps.shape[2 + axis], bins[axis], samples)
        weights.append(weight)
        spans.append(span)
    places = torch.cat([image[:, None], *spans], dim=1).tolist()
    with torch.autocast(maps.device.type, enabled=False):
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
        pooled: Tensor = _Pooled.apply(wide, places, *(w.to(wide.dtype) for w in weights))
    return pooled.to(maps.dtype)


@torch.no_grad()
def _weights(
    low: Float[Tensor, " m"], high: Float[Tensor, " m"], cells: int, bins: int, samples: int
) -> tuple[Float[Tensor, "m b cells"], Int64[Tensor, "m 2"]]:
    """What each cell of one axis adds to each bin; the first and one past the last that add.

    Linear interpolation gives a cell the weight 1 - distance, never below 0.
    """
    point = (torch.arange(bins * samples, dtype=low.dtype, device=low.device) + 0.5) / samples
    at = (low - 0.5)[:, None] + point * ((high - low) / bins)[:, None]
    inside = (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1)
    cell = torch.arange(cells, device=low.device)
    weight = (1 - (at[..., None] - cell).abs()).clamp(min=0) * inside[..., None]
    span = torch.stack([at.amin(dim=1).floor(), at.amax(dim=1).floor() + 2], dim=1)
    return weight.unflatten(1, (bins, samples)).mean(dim=2), span.clamp(max=cells).long()


class _Pooled(torch.autograd.Function):
    """Each box's cells, summed with the weights of each axis; the transpose for gradients.

    Autograd by itself would make zeros as large as the maps for every box.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, places: list[list[int]], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        ctx.places, ctx.shape = places, maps.shape
        out = maps.new_empty(len(places), maps.shape[1], *(w.shape[1] for w in weights))
        for m, (image, z0, z1, y0, y1, x0, x1) in enumerate(places):
            along_z, along_y, along_x = (w[m] for w in weights)
            here = maps[image, :, z0:z1, y0:y1, x0:x1] @ along_x[:, x0:x1].T
            here = along_y[:, y0:y1] @ here
            out[m] = (along_z[:, z0:z1] @ here.flatten(2)).view_as(out[m])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weights: tuple[Tensor, ...] = ctx.saved_tensors
        of_maps = grad.new_zeros(ctx.shape)
        for m, (image, z0, z1, y0, y1, x0, x1) in enumerate(ctx.places):
            along_z, along_y, along_x = (w[m] for w in weights)
            here = along_z[:, z0:z1].T @ grad[m].flatten(2)
            here = along_y[:, y0:y1].T @ here.unflatten(2, grad.shape[3:])
            of_maps[image, :, z0:z1, y0:y1, x0:x1] += here @ along_x[:, x0:x1]
        return of_maps, None, *(None for _ in weights)
