"""Darknet-53 with YOLOv3's three heads, and Darknet's `.weights` files.

    image (n, c, h, w) in [-1, 1] -> raw predictions (n, cells, 5 + classes)

`cells` counts strides 32, 16, 8 in that order, each row by row, three anchors a cell. A cell's row
is Darknet's: t_x, t_y, t_w, t_h, objectness, then one logit a class.

Papers:
  Redmon and Farhadi 2018, YOLOv3: an incremental improvement, https://arxiv.org/abs/1804.02767
  (table 1: the backbone; section 2.3: the heads)
The layout of the heads and of the files follows Darknet's published yolov3.cfg and its program
(https://pjreddie.com/darknet): little-endian, a header of three int32 (major, minor, revision)
and the number of images seen (int64 from version 0.2 on, int32 before), then float32: for each
convolution in the order of the cfg its normalisation's shift, scale, running mean and running
variance, then its weights (out, in, y, x); for the three last ones of the heads bias and weights.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from synthoma.errors import DataError, SettingsError

#: Strides of the three heads, in the order of their cells.
STRIDES = (32, 16, 8)
ANCHORS_A_CELL = 3
BOX_VALUES = 5
"""t_x, t_y, t_w, t_h and objectness."""


class Convolution(nn.Sequential):
    """Convolution without bias, batch normalisation, leaky ReLU of slope 0.1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, momentum: float
    ) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        norm = nn.BatchNorm2d(outputs, momentum=momentum)
        super().__init__(convolution, norm, nn.LeakyReLU(0.1, inplace=True))

    @property
    def weight(self) -> Tensor:
        """The convolution's weights (out, in, y, x)."""
        weight: Tensor = self.get_submodule("0").get_parameter("weight")
        return weight

    def tensors(self) -> list[Tensor]:
        """In the order of Darknet's files."""
        norm = self.get_submodule("1")
        names = ("bias", "weight", "running_mean", "running_var")
        return [*(norm.state_dict(keep_vars=True)[name] for name in names), self.weight]


class Residual(nn.Module):
    """1x1 to half of the channels, 3x3 back, added to the input."""

    def __init__(self, channels: int, *, momentum: float) -> None:
        super().__init__()
        self.change = nn.Sequential(
            Convolution(channels, channels // 2, 1, momentum=momentum),
            Convolution(channels // 2, channels, 3, momentum=momentum),
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.change(features)
        return features + changed


class Darknet53(nn.Module):
    """image (n, c, h, w) -> features at strides 32, 16, 8."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], *, momentum: float
    ) -> None:
        super().__init__()
        self.stem = Convolution(channels, widths[0], 3, momentum=momentum)
        self.stages = nn.ModuleList(
            nn.Sequential(
                Convolution(before, after, 3, stride=2, momentum=momentum),
                *(Residual(after, momentum=momentum) for _ in range(n)),
            )
            for before, after, n in zip(widths[:-1], widths[1:], blocks, strict=True)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.stem(image)
        found = []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return found[4], found[3], found[2]


class Prediction(nn.Conv2d):
    """The last convolution of a head: 1x1 with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)


class Head(nn.Module):
    """Features of one stride, with what the coarser head found -> (its features, predictions)."""

    def __init__(
        self, inputs: int, width: int, outputs: int, *, coarser: int = 0, momentum: float
    ) -> None:
        super().__init__()
        self.lateral = Convolution(coarser, width, 1, momentum=momentum) if coarser else None
        inputs += width if coarser else 0
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                Convolution(inputs, width, 1, momentum=momentum),
                Convolution(width, 2 * width, 3, momentum=momentum),
            ]
            inputs = 2 * width
        self.body = nn.Sequential(*layers, Convolution(inputs, width, 1, momentum=momentum))
        self.widen = Convolution(width, 2 * width, 3, momentum=momentum)
        self.predict = Prediction(2 * width, outputs)

    def forward(self, features: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.lateral is not None and coarser is not None:
            larger = F.interpolate(self.lateral(coarser), scale_factor=2, mode="nearest")
            features = torch.cat([larger, features], dim=1)
        found = self.body(features)
        return found, self.predict(self.widen(found))


class YOLOv3Network(nn.Module):
    """image (n, c, h, w) in [-1, 1], sides divisible by 32 -> raw (n, cells, 5 + classes).

    61,949,149 learnable parameters at the defaults.

    Args:
        width: Times the published channels, rounded to multiples of 8.
        blocks: Residual blocks of each of the five stages.
        momentum: Of batch normalisation's running mean and variance.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 80,
        width: float = 1.0,
        blocks: tuple[int, ...] = (1, 2, 8, 8, 4),
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes
        widths = tuple(max(8, 8 * round(width * 2**k / 8)) for k in range(5, 11))
        outputs = ANCHORS_A_CELL * (BOX_VALUES + classes)
        self.backbone = Darknet53(channels, widths, blocks, momentum=momentum)
        heads = []
        coarser = 0
        for features in (widths[5], widths[4], widths[3]):
            heads.append(Head(features, features // 2, outputs, coarser=coarser, momentum=momentum))
            coarser = features // 2
        self.heads = nn.ModuleList(heads)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Float[Tensor, "n c h w"]) -> Float[Tensor, "n cells values"]:
        if image.shape[1] != self.channels or image.shape[2] % 32 or image.shape[3] % 32:
            raise SettingsError(
                f"YOLOv3 was given images of shape {tuple(image.shape[1:])} (channels, height, "
                f"width); allowed: {self.channels} channels and sides divisible by 32"
            )
        # Darknet's images are in [0, 1]: black is what convolutions pad with
        image = ((image + 1) / 2).contiguous(memory_format=torch.channels_last)
        found: Tensor | None = None
        raw = []
        for head, features in zip(self.heads, self.backbone(image), strict=True):
            found, predictions = head(features, found)
            cells = predictions.permute(0, 2, 3, 1).float()  # free: memory is channels-last
            raw.append(cells.reshape(len(image), -1, BOX_VALUES + self.classes))
        return torch.cat(raw, dim=1)

    @torch.no_grad()
    def expect(self, prior: float) -> None:
        """Set the heads so that a fresh network answers an objectness around `prior`."""
        for head in self.heads:
            bias = head.get_submodule("predict").get_parameter("bias")
            bias.view(ANCHORS_A_CELL, -1)[:, 4] = math.log(prior / (1 - prior))

    def convolutions(self, *, backbone_only: bool = False) -> Iterator[list[Tensor]]:
        """The tensors of each convolution, in the order in which Darknet's files hold them."""
        source = self.backbone if backbone_only else self
        for module in source.modules():
            if isinstance(module, Convolution):
                yield module.tensors()
            elif isinstance(module, Prediction):
                yield [module.get_parameter("bias"), module.weight]


@torch.no_grad()
def read_weights(
    network: YOLOv3Network, path: Path, *, part: Literal["all", "backbone"] = "all"
) -> int:
    """Fill `network` from a Darknet `.weights` file.

    A file that ends after the backbone (such as darknet53.conv.74) fills the backbone alone. A
    grey network also reads files for colour: its first weights are then the sum over the three
    colours, which answers to a grey image as the file's network does to that image in colour.

    Args:
        network: Filled in place; left as it was where an error is raised.
        path: The file.
        part: "backbone" takes the backbone and leaves the rest of the file, whatever its classes.

    Returns:
        How many convolutions were filled: 52 for Darknet-53 alone, 75 with the heads.

    Raises:
        DataError: The file's size is not this network's, or a value is not finite.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = header_bytes(file.read(20))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    only, in_colour = contents(network, path, size - header, part)
    stem = network.backbone.stem.weight
    colours = 2 * stem.numel()
    tensors = [t for group in network.convolutions(backbone_only=only) for t in group]
    count = sum(tensor.numel() for tensor in tensors) + (colours if in_colour else 0)
    values = np.fromfile(path, "<f4", count, offset=header)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: it holds values that are not finite")
    start = 0
    for tensor in tensors:
        shape = list(tensor.shape)
        if in_colour and tensor is stem:
            shape[1] = 3
        stop = start + int(np.prod(shape))
        read = torch.from_numpy(values[start:stop].astype(np.float32)).reshape(shape)
        tensor.copy_(read.sum(1, keepdim=True) if in_colour and tensor is stem else read)
        start = stop
    return sum(1 for _ in network.convolutions(backbone_only=only))


def contents(
    network: YOLOv3Network, path: Path, size: int, part: Literal["all", "backbone"]
) -> tuple[bool, bool]:
    """Whether the backbone alone is read, and whether the file is for colour and we are grey.

    Both follow from the file's `size` in bytes after its header.
    """
    colour = 8 * network.backbone.stem.weight.numel() if network.channels == 1 else 0
    backbone, whole = (
        4 * sum(t.numel() for group in network.convolutions(backbone_only=only) for t in group)
        for only in (True, False)
    )
    if part == "all" and size in (whole, whole + colour):
        return False, size != whole
    if size in (backbone, backbone + colour):
        return True, size != backbone
    if part == "backbone" and size > backbone + colour:
        inputs = [m.in_channels + 1 for m in network.modules() if isinstance(m, Prediction)]
        for_other_classes = (size - whole) % (4 * ANCHORS_A_CELL * sum(inputs)) == 0
        return True, colour > 0 and not for_other_classes
    expected = f"{backbone} or more" if part == "backbone" else f"{whole}, or {backbone} (backbone)"
    more = f" (each {colour} more for colour images)" if colour else ""
    raise DataError(
        f"{path}: {size} bytes follow the header, {expected} expected{more} for "
        f"{network.channels} channels and {network.classes} classes. A damaged file, or another "
        "network's? part='backbone' reads the backbone of a network with other classes"
    )


@torch.no_grad()
def write_weights(
    network: YOLOv3Network,
    path: Path,
    *,
    part: Literal["all", "backbone"] = "all",
    images_seen: int = 0,
) -> None:
    """Write a Darknet `.weights` file, version 0.2."""
    with path.open("wb") as file:
        file.write(struct.pack("<iiiq", 0, 2, 0, images_seen))
        for tensors in network.convolutions(backbone_only=part == "backbone"):
            for tensor in tensors:
                file.write(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes())


def header_bytes(start: bytes) -> int:
    """Length of the header: the number of images seen grew to 8 bytes with version 0.2."""
    if len(start) < 20:
        return 20
    major, minor, _ = struct.unpack("<iii", start[:12])
    return 20 if major * 10 + minor >= 2 and max(major, minor) < 1000 else 16
