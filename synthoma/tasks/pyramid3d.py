"""The network of the 3D detector: a residual backbone, a feature pyramid, and two heads.

    volume (n, c, z, y, x) -> Pyramid -> maps (n, w, z/s, y/s, x/s) at strides 4, 8, 16
    map -> ProposalHead -> logits (n, a, ...), deltas (n, 6 a, ...)
    regions (m, w, b, b, b) -> BoxHead -> class logits (m, 1 + classes), deltas (m, 6)

Papers:
  Lin et al. 2017, Feature pyramid networks, https://arxiv.org/abs/1612.03144
  Wu and He 2018, Group normalization, https://arxiv.org/abs/1803.08494 (batches are of two)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: Of the pyramid's maps.
STRIDES = (4, 8, 16)


def groups(width: int) -> nn.GroupNorm:
    """Eight channels a group, or as many as divide."""
    return nn.GroupNorm(max(1, width // 8) if width % 8 == 0 else 1, width)


class Residual(nn.Module):
    """Two 3x3x3 convolutions, added to what they saw; side / stride."""

    def __init__(self, low: int, high: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(low, high, 3, stride, 1, bias=False),
            groups(high),
            nn.ReLU(inplace=True),
            nn.Conv3d(high, high, 3, padding=1, bias=False),
            groups(high),
        )
        same = low == high and stride == 1
        self.past = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv3d(low, high, 1, stride, bias=False), groups(high))
        )

    def forward(self, x: Float[Tensor, "n low z y x"]) -> Float[Tensor, "n high z2 y2 x2"]:
        """The features after the block."""
        return F.relu(self.past(x) + self.layers(x))


class Pyramid(nn.Module):
    """volume -> maps at `STRIDES`, finest first, each (n, maps, z/s, y/s, x/s)."""

    def __init__(self, channels: int, width: int, blocks: int, maps: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, 3, stride=2, padding=1, bias=False),
            groups(width),
            nn.ReLU(inplace=True),
        )
        self.stages, self.across = nn.ModuleList(), nn.ModuleList()
        low = width
        for k in range(len(STRIDES)):
            high = width << (k + 1)
            parts = [Residual(low, high, 2), *(Residual(high, high, 1) for _ in range(blocks - 1))]
            self.stages.append(nn.Sequential(*parts))
            self.across.append(nn.Conv3d(high, maps, 1))
            low = high
        self.smooth = nn.ModuleList([nn.Conv3d(maps, maps, 3, padding=1) for _ in STRIDES])

    def forward(self, volume: Float[Tensor, "n c z y x"]) -> list[Tensor]:
        """The maps."""
        x, sideways = self.stem(volume), []
        for stage, across in zip(self.stages, self.across, strict=True):
            x = stage(x)
            sideways.append(across(x))
        found = [sideways[-1]]
        for own in sideways[-2::-1]:
            found.append(own + F.interpolate(found[-1], size=own.shape[2:], mode="nearest"))
        return [smooth(own) for smooth, own in zip(self.smooth, found[::-1], strict=True)]


class ProposalHead(nn.Module):
    """The same small network on every map: is there something of an anchor's size, and where."""

    def __init__(self, maps: int, anchors: int) -> None:
        super().__init__()
        self.shared = nn.Conv3d(maps, maps, 3, padding=1)
        self.logits, self.deltas = nn.Conv3d(maps, anchors, 1), nn.Conv3d(maps, 6 * anchors, 1)
        for layer in (self.shared, self.logits, self.deltas):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(torch.as_tensor(layer.bias))

    def forward(self, maps: list[Tensor]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k 6"]]:
        """Logits and deltas of all anchors, in the order of `anchors_over`."""
        logits, deltas = [], []
        for own in maps:
            x = F.relu(self.shared(own))
            logits.append(self.logits(x).movedim(1, -1).flatten(1))
            deltas.append(self.deltas(x).movedim(1, -1).flatten(1).unflatten(1, (-1, 6)))
        return torch.cat(logits, 1), torch.cat(deltas, 1)


class BoxHead(nn.Module):
    """What a region is, and how its box is mended."""

    def __init__(self, maps: int, bins: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(maps * bins**3, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )
        self.logits, self.deltas = nn.Linear(hidden, 1 + classes), nn.Linear(hidden, 6)
        nn.init.normal_(self.logits.weight, 0, 0.01)
        nn.init.normal_(self.deltas.weight, 0, 0.001)

    def forward(
        self, regions: Float[Tensor, "m w b b b"]
    ) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m 6"]]:
        """Logits, the first of nothing, and deltas."""
        x = self.layers(regions)
        return self.logits(x), self.deltas(x)


def anchors_over(
    space: tuple[int, int, int], sizes: Float[Tensor, "l a 3"]
) -> tuple[Float[Tensor, "k 6"], list[int]]:
    """Every anchor of a volume as a box, and how many each map has.

    Args:
        sizes: Of the anchors of each map, (z, y, x) in voxels.
    """
    found, counts = [], []
    for stride, own in zip(STRIDES, sizes, strict=True):
        along = [(torch.arange(-(-n // stride), device=sizes.device) + 0.5) * stride for n in space]
        middle = torch.stack(torch.meshgrid(*along, indexing="ij"), dim=-1).reshape(-1, 1, 3)
        boxes = torch.cat([middle - own / 2, middle + own / 2], dim=-1).reshape(-1, 6)
        found.append(boxes)
        counts.append(len(boxes))
    return torch.cat(found), counts
