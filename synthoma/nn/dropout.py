"""Dropout as a GAN's noise: drawn in samples too, and a function of a row of noise alone."""

from collections.abc import Sequence
from hashlib import sha256

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def coins(
    shapes: Sequence[tuple[int, ...]], chance: Sequence[torch.Generator]
) -> list[Bool[Tensor, "n ..."]]:
    """Which features are kept, a fair coin for each: of each layer's shape, one image a generator.

    Each generator's coins are drawn layer by layer, so that they do not depend on other images.
    """
    drawn = [[torch.rand(shape, generator=own) < 0.5 for shape in shapes] for own in chance]
    return [torch.stack(layer) for layer in zip(*drawn, strict=True)]


def seeded_by(row: Float[Tensor, " d"]) -> torch.Generator:
    """A generator that depends on the bits of a row of noise and nothing else."""
    digest = sha256(row.detach().to("cpu", torch.float32).numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
