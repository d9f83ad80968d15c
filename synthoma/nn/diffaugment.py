"""Differentiable augmentation: a discriminator sees every image, real and drawn, changed at random.

With few images a discriminator learns them by heart and advises the generator no longer. What is
changed anew each time cannot be learnt by heart; and as drawn images are changed by the same
chances, and gradients pass, the generator has no reason to draw the changes.

Paper: Zhao et al. 2020, Differentiable augmentation for data-efficient GAN training,
https://arxiv.org/abs/2006.10738 (section 3.2; "color", "translation" and "cutout", with the ranges
of its appendix A). There is no saturation: images here are grey or multi-sequence.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: So many images are few. Of 94 X-rays a CGAN drew noise without and chests with it; of 840 slices
#: a DCGAN drew fewer different heads with it in as many steps. Between them nothing was tried.
FEW = 500
#: Added to an image in [-1, 1], at most; and how far the factor on its contrast is from 1, at most.
BRIGHTNESS, CONTRAST = 0.5, 0.5
#: Shares of the side: an image is moved by at most this, and a square of this side is hidden.
SHIFT, HOLE = 1 / 8, 1 / 2


def wanted(setting: bool | Literal["few"], n: int) -> bool:
    """What a setting means for n training images."""
    return n < FEW if setting == "few" else setting


def diffaugment(
    image: Float[Tensor, "n c y x"], generator: torch.Generator
) -> Float[Tensor, "n c y x"]:
    """Each image brighter or darker, with more or less contrast, moved, and a square of it hidden.

    What comes in from outside and what is hidden is 0, the middle of the value range.

    Args:
        image: In [-1, 1]; what is beyond is kept.
        generator: Source of chance, on the CPU.
    """
    n, _, *sides = image.shape
    chance = torch.rand(6, n, generator=generator).to(image)
    brightness, contrast = chance[:2].sub(0.5).mul(2)[:, :, None, None, None]
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    image = (image - mean) * (1 + CONTRAST * contrast) + mean + BRIGHTNESS * brightness

    rows, columns = (torch.arange(side, device=image.device) for side in sides)
    far = [round(SHIFT * side) for side in sides]
    padded = F.pad(image, (far[1], far[1], far[0], far[0]))
    # 0 to twice as far as an image may move: in the padded one, far is no move
    down, right = ((u * (2 * most + 1)).long() for u, most in zip(chance[2:4], far, strict=True))
    case = torch.arange(n, device=image.device)[:, None, None]
    moved = padded[case, :, (rows + down[:, None])[:, :, None], (columns + right[:, None])[:, None]]

    holes = [round(HOLE * side) for side in sides]
    # from half outside to half outside
    top, left = (
        (u * (side + 1)).long() - hole // 2
        for u, side, hole in zip(chance[4:], sides, holes, strict=True)
    )
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + holes[0])
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + holes[1])
    shown = ~(in_rows[:, :, None] & in_columns[:, None])
    return moved.permute(0, 3, 1, 2) * shown[:, None]
