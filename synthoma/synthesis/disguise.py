"""How far an image is from another one in slight disguise: tangent distance with alignment.

The distance is the share of an image's variance, from 0 to 1, that a target leaves unexplained once
the target may be moved, zoomed and turned a little, brightened, blurred and passed through a mild
gamma. Both are band-passed first: outlines and slow shading are alike in all patients.

Papers:
  Simard, LeCun, Denker 1993, Efficient pattern recognition using a new transformation distance
  Baker, Matthews 2004, Lucas-Kanade 20 years on: a unifying framework (the alignment)
Differs from the papers: an image is explained by the tangents of its target alone, not of both;
pixels that the alignment brings in from outside the image do not count.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

#: What a target explains an image by; the first six also tell how to move it.
COLUMNS = ("one", "image", "move y", "move x", "zoom", "turn", "blur", "gamma")
#: Added to the Gram matrix of unit columns: they may be alike, and this keeps factors modest.
RIDGE = 1e-3
#: Shares of the side: where weights fall to 0, and the rim of an image that is not compared once
#: it is moved.
EDGE, RIM = 0.1, 0.125
#: Less variance than this share of a whole image's is nothing to compare.
BLANK = 0.01


def pattern(
    image: Float32[np.ndarray, "y x"], side_px: int, band: tuple[float, float]
) -> Float32[np.ndarray, "s s"]:
    """The image at this side, band-passed, with mean square 1; zero where it is blank."""
    shrinks = min(image.shape) >= side_px
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(np.ascontiguousarray(image), (side_px, side_px), interpolation=how)
    inner, outer = (
        cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) for sigma in band
    )
    passed = inner - outer
    size = float(np.sqrt(np.mean(passed**2)))
    if size <= 1e-4 * max(1e-6, float(np.abs(small).max())):
        return np.zeros_like(passed)
    return np.asarray(passed / size)


def taper(side_px: int, share: float) -> Float[Tensor, "s s"]:
    """1 in the middle, falling to 0 at the edges over a share of the side."""
    place = (torch.arange(side_px) + 0.5) / side_px
    line = (torch.minimum(place, 1 - place) / share).clamp(max=1)
    return line[:, None] * line


def changes(image: Float[Tensor, "n s s"]) -> Float[Tensor, "n k p"]:
    """What an image explains, flattened: a constant, itself, and what it changes by when moved
    along y and x, zoomed, turned (all in pixels), blurred and passed through a gamma."""
    n, side = image.shape[:2]
    wide = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    up, down = wide[:, :-2, 1:-1], wide[:, 2:, 1:-1]
    left, right = wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]
    along_y, along_x = (down - up) / 2, (right - left) / 2
    place = torch.arange(side) - (side - 1) / 2
    y, x = place[:, None], place
    columns = image.new_empty(n, len(COLUMNS), side, side)
    columns[:, 0] = 1
    columns[:, 1] = image
    columns[:, 2] = along_y
    columns[:, 3] = along_x
    columns[:, 4] = y * along_y + x * along_x
    columns[:, 5] = x * along_y - y * along_x
    columns[:, 6] = up + down + left + right - 4 * image
    columns[:, 7] = image**2
    return columns.flatten(2)


def screened(coarse: Float[Tensor, "*n h h"]) -> Float[Tensor, "*n p"]:
    """Unit vectors that weigh the middle more: the edges go first when an image moves."""
    return F.normalize((coarse * taper(coarse.shape[-1], 0.2).sqrt()).flatten(-2), dim=-1)


def screens(coarse: Float[Tensor, "n h h"]) -> Float[Tensor, "m p"]:
    """Orthonormal bases of each image, its moves, zoom and turn, for `screened` vectors.

    (5 * n, p): the first vectors of all images, then the second ones. The squared products of a
    unit vector with the five of an image add up to the share of it that they explain.
    """
    raw = changes(coarse)[:, 1:6] * taper(coarse.shape[-1], 0.2).sqrt().flatten()
    basis = torch.linalg.qr(F.normalize(raw, dim=2).transpose(1, 2))[0]
    blank = coarse.flatten(1).norm(dim=1) == 0
    return (basis * ~blank[:, None, None]).permute(2, 0, 1).flatten(0, 1).contiguous()


def explain(
    image: Float[Tensor, "m p"], columns: Float[Tensor, "m k p"], weight: Float[Tensor, "m p"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m j"]]:
    """Weighted least squares: the share of an image's variance that is left, and the coefficients
    when only the first six columns explain."""
    weighted = columns * weight[:, None]
    gram = weighted @ columns.transpose(1, 2)
    product = (weighted @ image[:, :, None])[:, :, 0]
    square = (weight * image**2).sum(1)
    size = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-9).sqrt()
    gram, product = gram / size[:, :, None] / size[:, None], product / size
    ridged = gram + RIDGE * torch.eye(len(COLUMNS))
    found = torch.linalg.solve(ridged, product)
    left = square - (found * (2 * product - (gram @ found[:, :, None])[:, :, 0])).sum(1)
    mass = weight.sum(1)
    whole = square - product[:, 0] ** 2
    share = (left / whole.clamp_min(1e-6)).clamp(0, 1)
    moves = torch.linalg.solve(ridged[:, :6, :6], product[:, :6]) / size[:, :6]
    return torch.where(whole > BLANK * mass, share, 1.0), moves


def align(
    image: Float[Tensor, "m s s"], columns: Float[Tensor, "m k p"], steps: int
) -> Float[Tensor, " m"]:
    """The distance of each image to a target, the least along the steps of the alignment.

    Args:
        columns: `changes` of the targets.
        steps: Gauss-Newton steps.
    """
    m, side = image.shape[:2]
    edge = taper(side, EDGE).flatten().expand(m, -1)
    # what enters from outside, or was band-passed near the edge, is not compared once moved
    rim = round(RIM * side)
    inside = F.pad(image.new_ones(m, 1, side - 2 * rim, side - 2 * rim), (rim,) * 4)
    source = torch.cat([image[:, None], inside], 1)
    map_ = torch.eye(3).repeat(m, 1, 1)
    least, moves = explain(image.flatten(1), columns, edge)
    for _ in range(steps):
        map_ = map_ @ undo(moves, side)
        grid = F.affine_grid(map_[:, :2], [m, 1, side, side], align_corners=False)
        moved, seen = F.grid_sample(source, grid, align_corners=False).flatten(2).unbind(1)
        share, moves = explain(moved, columns, edge * seen)
        least = torch.minimum(least, share)
    return least


def undo(moves: Float[Tensor, "m k"], side: int) -> Float[Tensor, "m 3 3"]:
    """The map that takes back the move, zoom and turn that coefficients stand for.

    image(u) is near size * target(u + d(u)), so image(u - d(u)) is near the target. Torch's maps
    take (x, y, 1), from -1 to 1 across the image. Steps are kept small.
    """
    size = torch.where(moves[:, 1].abs() < 1e-3, 1e-3, moves[:, 1])
    y, x = (moves[:, 2:4] / size[:, None]).clamp(-1, 1).T * (2 / side)
    zoom = (moves[:, 4] / size).clamp(-0.06, 0.06)
    turn = (moves[:, 5] / size).clamp(-0.1, 0.1)
    zero = torch.zeros_like(zoom)
    rows = [1 - zoom, turn, -x, -turn, 1 - zoom, -y, zero, zero, zero + 1]
    return torch.stack(rows, 1).view(-1, 3, 3)
