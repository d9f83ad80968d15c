"""What a generator is told of lesions: where they lie (white boxes on black), how they look.

A look is two numbers, measured in the image itself, so that no annotation is needed:

    contrast   mean inside the box (its inscribed ellipse) minus mean around it
    ring       mean of the ellipse's rim minus mean of its core; high for ring-shaped lesions

both in units of the image, [-1, 1], hence from -2 to 2.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from synthoma.errors import SettingsError

#: Points a side of the grid on which a look is measured, from -AROUND to AROUND half boxes.
POINTS, AROUND = 24, 1.5


def check_given(
    system: str, given: Mapping[str, Tensor] | None, names: tuple[str, ...], *, images: int
) -> Mapping[str, Tensor]:
    """What was given, if a generator can draw from it.

    Args:
        names: What it must be given, "boxes" and "box_case" among it.
        images: How many are asked for.

    Raises:
        SettingsError: One of them is missing, or boxes are of images that are not asked for.
    """
    if given is None or not set(names) <= given.keys():
        had = "nothing" if given is None else ", ".join(given)
        raise SettingsError(
            f"{system} was given {had}; it needs boxes: {', '.join(map(repr, names))}; those of "
            "lesions empty for images without any"
        )
    case = given["box_case"]
    if len(case) and not 0 <= int(case.min()) <= int(case.max()) < images:
        raise SettingsError(
            f"boxes are given for images {int(case.min())} to {int(case.max())}; allowed: 0 to "
            f"{images - 1}, one image for each row of noise"
        )
    return given


def draw_boxes(
    boxes: Float[Tensor, "m 4"], box_case: Int[Tensor, " m"], *, images: int, side_px: int
) -> Float[Tensor, "n 1 y x"]:
    """White boxes on black: the share of each pixel that a box covers, 0 to 1.

    Where boxes overlap, the pixel takes the larger share.

    Args:
        boxes: (y0, x0, y1, x1) in pixels of the drawing; parts outside are cut.
        box_case: Which image each box is in.

    Example:
        >>> draw_boxes(torch.tensor([[0, 0.5, 1, 2]]), torch.tensor([0]), images=1, side_px=2)
        tensor([[[[0.5000, 1.0000],
                  [0.0000, 0.0000]]]])
    """
    return _largest(shares_of(boxes, side_px), box_case, images)


def draw_looks(
    boxes: Float[Tensor, "m 4"],
    looks: Float[Tensor, "m 2"],
    box_case: Int[Tensor, " m"],
    *,
    images: int,
    side_px: int,
) -> Float[Tensor, "n 3 y x"]:
    """`draw_boxes`, and behind it contrast and ring of the boxes times the share they cover.

    Where boxes overlap, looks are averaged, weighted by what each covers.
    """
    shares = shares_of(boxes, side_px)
    covered = _largest(shares, box_case, images)
    told = torch.stack([shares, *(shares * look[:, None, None] for look in looks.T)], dim=1)
    summed = told.new_zeros(images, 3, side_px, side_px).index_add_(0, box_case, told)
    return torch.cat([covered, covered * summed[:, 1:] / summed[:, :1].clamp_min(1e-6)], dim=1)


def shares_of(boxes: Float[Tensor, "m 4"], side_px: int) -> Float[Tensor, "m y x"]:
    """The share of each pixel that each box covers."""
    pixel = torch.arange(side_px, dtype=boxes.dtype, device=boxes.device)
    low, high = boxes[:, :2, None], boxes[:, 2:, None]
    along = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(0, 1)
    return along[:, 0, :, None] * along[:, 1, None, :]


def _largest(
    shares: Float[Tensor, "m y x"], box_case: Int[Tensor, " m"], images: int
) -> Float[Tensor, "n 1 y x"]:
    drawn = shares.new_zeros(images, *shares.shape[1:])
    where = box_case[:, None, None].expand_as(shares)
    return drawn.scatter_reduce_(0, where, shares, "amax").unsqueeze(1)


def lesion_looks(
    image: Float[Tensor, "n c y x"], boxes: Float[Tensor, "m 4"], box_case: Int[Tensor, " m"]
) -> Float[Tensor, "m 2"]:
    """(contrast, ring) of each box, measured on a grid that moves and stretches with it.

    The same at every resolution but for interpolation. Points outside the image take its edge.
    """
    along = torch.linspace(-AROUND, AROUND, POINTS, dtype=image.dtype, device=image.device)
    v, u = torch.meshgrid(along, along, indexing="ij")
    radius, reach = (u**2 + v**2).sqrt(), torch.maximum(u.abs(), v.abs())
    if not len(boxes):
        return image.new_zeros(0, 2)
    boxes = boxes.to(image.dtype)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    y = middle[:, 0, None, None] + half[:, 0, None, None] * v
    x = middle[:, 1, None, None] + half[:, 1, None, None] * u
    size = torch.tensor(image.shape[-2:], dtype=image.dtype, device=image.device)
    points = torch.stack([2 * x / size[1] - 1, 2 * y / size[0] - 1], dim=-1)
    values = F.grid_sample(
        image[box_case], points, padding_mode="border", align_corners=False
    ).mean(1)

    def mean(mask: Tensor) -> Tensor:
        return values[:, mask].mean(1)

    contrast = mean(radius <= 1) - mean(reach >= 1.2)
    ring = mean((radius > 0.65) & (radius <= 1)) - mean(radius <= 0.5)
    return torch.stack([contrast, ring], dim=1)
