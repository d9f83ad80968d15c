"""Backbones of classifiers: torchvision's by name, EfficientNet-Lite0, and MedMNIST's ResNet-18.

    image (n, c, side, side) in [-1, 1] -> features (n, d)

Papers:
  He et al. 2016, Deep residual learning, https://arxiv.org/abs/1512.03385
  Yang et al. 2023, MedMNIST v2, https://arxiv.org/abs/2110.14795: at 28 pixels, ResNet-18 with a
    3x3 stem and no pooling after it
"""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from synthoma.errors import DataError, ResourceError, SettingsError
from synthoma.nn import features

LITE0 = "efficientnet_lite0"
SMALL_RESNET = "resnet18_3x3"
#: Answer with a tuple in training, or end in no linear layer.
UNFIT = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")


class Scaled(nn.Module):
    """Images in [-1, 1], grey or RGB, as networks of ImageNet want them: three channels, each
    shifted and scaled."""

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("spread", spread[:, None, None], persistent=False)

    def forward(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 3 y x"]:
        return ((image + 1) / 2 - self.mean) / self.spread


class Lite0Scaled(nn.Module):
    """The same for EfficientNet-Lite0, as its own package has it."""

    def forward(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 3 y x"]:
        return features.prepared(image, None)


class SmallResNet(nn.Sequential):
    """ResNet-18 with a 3x3 stem: four stages of two blocks at stride 1, 2, 4, 8.

    image (n, channels, side, side) -> (n, 8 width); at 28 pixels the last maps are 4x4.
    """

    def __init__(self, channels: int, width: int) -> None:
        from torchvision.models.resnet import BasicBlock  # noqa: PLC0415 (seconds of imports)

        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        below = width
        for stride, own in ((1, width), (2, 2 * width), (2, 4 * width), (2, 8 * width)):
            shortcut = None
            if stride > 1:
                shortcut = nn.Sequential(
                    nn.Conv2d(below, own, 1, stride=stride, bias=False), nn.BatchNorm2d(own)
                )
            layers += [BasicBlock(below, own, stride, shortcut), BasicBlock(own, own)]
            below = own
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def make(name: str, *, channels: int, width: int) -> tuple[nn.Module, nn.Module, int]:
    """A backbone with its first weights.

    Args:
        channels: Of the images; all but `SMALL_RESNET` take 1 or 3.
        width: Feature maps of `SMALL_RESNET`'s first stage.

    Returns:
        What goes before it, the network without its classifying layer, and its features' number.

    Raises:
        SettingsError: There is no such backbone.
    """
    if name == SMALL_RESNET:
        return nn.Identity(), SmallResNet(channels, width), 8 * width
    if name == LITE0:
        from timm import create_model  # noqa: PLC0415 (seconds of imports)

        network = create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        return Lite0Scaled(), network, features.VECTOR
    from torchvision import models  # noqa: PLC0415

    check_name(name)
    return Scaled(), *beheaded(models.get_model(name, weights=None))


def check_name(name: str) -> None:
    """Raise a SettingsError where there is no such backbone."""
    from torchvision import models  # noqa: PLC0415

    known = [n for n in models.list_models(module=models) if n not in UNFIT]
    if name not in (LITE0, SMALL_RESNET, *known):
        raise SettingsError(
            f"backbone {name!r}; allowed: {LITE0}, {SMALL_RESNET}, or one of torchvision's: "
            f"{', '.join(known)}"
        )


def beheaded(network: nn.Module) -> tuple[nn.Module, int]:
    """A network without its last linear layer, and how many features that layer saw."""
    name, last = [item for item in network.named_modules() if isinstance(item[1], nn.Linear)][-1]
    network.set_submodule(name, nn.Identity())
    return network, int(last.in_features)


def imagenet_file(name: str) -> Path:
    """Where torchvision keeps a network's first ImageNet weights, once they are fetched.

    Raises:
        ResourceError: They are not there; nothing is ever downloaded here.
    """
    from torchvision.models import get_model_weights  # noqa: PLC0415

    url = next(iter(get_model_weights(name))).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise ResourceError(
            f"ImageNet weights of {name}: no {path}, and synthoma downloads nothing by itself. "
            f"Fetch {url} to that place, or give a file of weights, or take the backbone {LITE0}, "
            "whose weights are installed"
        )
    return path


def digest_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        ResourceError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResourceError(
            f"weights {path}: {error.strerror}; allowed: none, imagenet, or a readable file"
        ) from None


def read_weights(network: nn.Module, path: Path, sha256: str) -> None:
    """Put the weights of a file (.safetensors, or a state dict saved by torch) into a backbone;
    those of its former classifying layer are left.

    Raises:
        ResourceError: The file cannot be read, or is not the one whose digest was kept.
        DataError: It does not hold this network's weights.
    """
    found = digest_of(path)
    if found != sha256:
        raise ResourceError(f"weights {path}: their SHA-256 is {found}, not {sha256}")
    try:
        content = path.read_bytes()
        weights: Mapping[str, Any] = (
            load(content)
            if path.suffix == ".safetensors"
            else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        )
        named = {modern(name): tensor for name, tensor in weights.items()}
        tensors = any(isinstance(tensor, Tensor) for tensor in named.values())
    except Exception:  # pickle, zip, torch and safetensors each have their own
        tensors = False  # and torch's text is not relayed: it advises to run what pickles say
    if not tensors:
        raise DataError(
            f"weights {path}: it holds no state dict of tensors; allowed: .safetensors, or a file "
            "saved by torch.save(model.state_dict(), path)"
        )
    put(network, named, str(path))


def modern(name: str) -> str:
    """The name of a weight today; torchvision's files of DenseNets still have older ones.

    Example:
        >>> modern("features.denseblock1.denselayer2.norm.1.weight")
        'features.denseblock1.denselayer2.norm1.weight'
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def put(network: nn.Module, weights: Mapping[str, Any], source: str) -> None:
    """Copy weights into a network by name.

    Raises:
        DataError: One of the network's is missing or of another shape.
    """
    for name, own in network.state_dict().items():
        given = weights.get(name)
        if name.endswith("num_batches_tracked"):
            continue
        if not isinstance(given, Tensor) or given.shape != own.shape:
            there = tuple(given.shape) if isinstance(given, Tensor) else "missing"
            raise DataError(
                f"weights {source}: {name!r} is {there}, but the network's is {tuple(own.shape)}"
            )
        with torch.no_grad():
            own.copy_(given)
