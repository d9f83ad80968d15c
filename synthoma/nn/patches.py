"""Square patches around boxes: cut out of slices, and put back where they are painted.

A lesion is painted in a *region* around its box, a superellipse. Alpha tells how much of a pixel is
painted: 1 within the region, 0 outside, smooth in its rim, so that there is no seam.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

#: Exponent of the region's outline: 2 is an ellipse, more is nearer to a box.
ROUNDNESS = 3
#: Least side of a patch, in sides of its region.
LEAST_AROUND = 1.25


@dataclass(frozen=True)
class Region:
    """Where lesions are painted."""

    around: float
    """Side of a patch, in longer sides of its box."""
    margin: float
    """How far beyond its box the region reaches, in halves of the box's sides,"""
    least_margin_px: float
    """but at least so far, in pixels of the slice."""
    rim: float
    """Share of the region, from its outline inwards, in which alpha rises to 1."""

    def reach(self, boxes: Float[Tensor, "m 4"]) -> Float[Tensor, "m 2"]:
        """How far the regions reach from the middles of boxes, along y and x."""
        half = (boxes[:, 2:] - boxes[:, :2]) / 2
        return half + (self.margin * half).clamp_min(self.least_margin_px)

    def frames(
        self, boxes: Float[Tensor, "m 4"]
    ) -> tuple[Float[Tensor, "m 2"], Float[Tensor, " m"]]:
        """The low corner (y, x) of the patch around each box, and its side, in slice pixels."""
        longer = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
        least = LEAST_AROUND * 2 * self.reach(boxes).amax(dim=1)
        size = torch.maximum(self.around * longer, least)
        return (boxes[:, :2] + boxes[:, 2:]) / 2 - size[:, None] / 2, size

    def alpha(
        self, boxes: Float[Tensor, "m 4"], y: Float[Tensor, "m h w"], x: Float[Tensor, "m h w"]
    ) -> Float[Tensor, "m 1 h w"]:
        """How much is painted at places of a slice."""
        reach, centre = self.reach(boxes), (boxes[:, :2] + boxes[:, 2:]) / 2
        v = (y - centre[:, 0, None, None]).abs() / reach[:, 0, None, None]
        u = (x - centre[:, 1, None, None]).abs() / reach[:, 1, None, None]
        radius = (u**ROUNDNESS + v**ROUNDNESS) ** (1 / ROUNDNESS)
        t = ((1 - radius) / self.rim).clamp(0, 1)
        return (t * t * (3 - 2 * t))[:, None]

    def alpha_in_slice(self, boxes: Float[Tensor, "m 4"], side_px: int) -> Float[Tensor, "m 1 h w"]:
        """How much of each pixel of a slice is painted."""
        return self.alpha(boxes, *pixels(len(boxes), side_px, boxes.device))


def cut(
    image: Float[Tensor, "m c y x"], boxes: Float[Tensor, "m 4"], region: Region, patch_px: int
) -> tuple[Float[Tensor, "m c p p"], Float[Tensor, "m 4"], Float[Tensor, "m 1 p p"]]:
    """The patches around boxes, one an image, bilinear, beyond the image its edge; the boxes in
    pixels of the patch; alpha."""
    low, size = region.frames(boxes)
    along = (torch.arange(patch_px, device=boxes.device) + 0.5) / patch_px
    places = low[:, :, None] + size[:, None, None] * along  # (m, 2, p) in slice pixels
    y = places[:, 0, :, None].expand(-1, -1, patch_px)
    x = places[:, 1, None, :].expand(-1, patch_px, -1)
    grid = torch.stack([x / image.shape[-1], y / image.shape[-2]], dim=-1) * 2 - 1
    patch = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    local = (boxes - low.repeat(1, 2)) * (patch_px / size[:, None])
    return patch, local, region.alpha(boxes, y, x)


def put_back(
    image: Float[Tensor, "m c y x"],
    patch: Float[Tensor, "m c p p"],
    boxes: Float[Tensor, "m 4"],
    region: Region,
) -> Float[Tensor, "m c y x"]:
    """The slices with patches in their regions; where alpha is 0 they are exactly as they were."""
    low, size = region.frames(boxes)
    y, x = pixels(len(boxes), image.shape[-1], boxes.device)
    places = [(x - low[:, 1, None, None]), (y - low[:, 0, None, None])]
    grid = torch.stack(places, dim=-1) / size[:, None, None, None] * 2 - 1
    back = F.grid_sample(patch, grid, padding_mode="border", align_corners=False)
    alpha = region.alpha(boxes, y, x)
    return torch.where(alpha > 0, torch.lerp(image, back, alpha), image)


def pixels(
    m: int, side_px: int, device: torch.device
) -> tuple[Float[Tensor, "m side side"], Float[Tensor, "m side side"]]:
    """The middles of a square slice's pixels, y and x."""
    along = torch.arange(side_px, device=device) + 0.5
    y, x = torch.meshgrid(along, along, indexing="ij")
    return y.expand(m, -1, -1), x.expand(m, -1, -1)


def one_box_each(
    boxes: Float[Tensor, "m 4"], case: Int[Tensor, " m"], chance: torch.Generator
) -> tuple[Float[Tensor, "k 4"], Int[Tensor, " k"]]:
    """A random box of each image that has any, and which image that is, rising."""
    of_case = case.tolist()
    chosen = {of_case[k]: k for k in torch.randperm(len(case), generator=chance).tolist()}
    kept = torch.tensor([chosen[i] for i in sorted(chosen)], dtype=torch.int64, device=case.device)
    return boxes[kept], case[kept]


def in_turn(case: Int[Tensor, " m"]) -> Iterator[Int[Tensor, " k"]]:
    """Boxes to paint at once: the first of each image, then the second, ..."""
    rank = (case[:, None] == case).tril(-1).sum(1)
    return (torch.nonzero(rank == turn)[:, 0] for turn in range(len(rank.unique())))
