"""What a frozen network makes of every image of a set, kept in a file; how far from real they are.

    set -> batches at one side -> network -> vectors (n, d) of length 1, float32, memory-mapped
    real vectors (m, d) -> Manifold; vectors (n, d) -> distance (n,), about 1 for honest images

Directions are compared, not lengths: an empty image has a short vector and is nearer to brains, by
Euclid, than a fair drawing of one. Measured on phantoms at 64 px with EfficientNet-Lite0, in
distances of honest images: by direction other patients' slices 1.02, a generator of minutes 1.6,
blurred slices 2.2, noise and empty images 2.7 to 2.8; by Euclid 1.02, 1.65, 1.8, 1.8 and 1.6.

Memory is bounded by a batch of images and by `REFERENCE` real vectors, whatever the sets' sizes.

Papers:
  Kynkäänniemi et al. 2019, Improved precision and recall metric, https://arxiv.org/abs/1904.06991:
    real images as points whose k-th nearest neighbours say how far the manifold reaches
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from synthoma.data.batches import resize, signed_unit
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.nn import features
from synthoma.tasks import backbones
from synthoma.tasks.backbones import LITE0, SMALL_RESNET

#: Images (n, c, side, side) in [-1, 1] to vectors (n, d).
Extract = Callable[[Tensor], Tensor]
#: Real images that distances are measured to, at most; more are drawn from by chance.
REFERENCE = 8192
#: Vectors whose distances to all of them are in memory at once.
ROWS = 512


class Look(BaseModel):
    """Which network looks at the images, and at which side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(
        LITE0,
        description=f"{LITE0}, whose weights are installed, or one of torchvision's classification "
        "networks by its name there (Han et al. 2019: densenet169).",
    )
    weights: Literal["imagenet"] | Path = Field(
        "imagenet",
        description="imagenet, or a file (.safetensors or a state dict saved by torch). Nothing is "
        "downloaded.",
    )
    side_px: int = Field(
        128,
        ge=32,
        le=512,
        description="Side at which it looks. Images are brought to the side of the smaller of both "
        "sets before, so that resolution does not tell real from synthetic.",
    )
    batch: int = Field(64, ge=1, description="Images in memory at once.")

    @model_validator(mode="after")
    def agree(self) -> "Look":
        """There are weights."""
        if self.backbone == SMALL_RESNET and self.weights == "imagenet":
            raise ValueError(f"there are no ImageNet weights of {SMALL_RESNET}; take {LITE0}")
        return self


def extractor(look: Look, channels: int, device: torch.device) -> Extract:
    """The frozen network.

    Raises:
        SettingsError: There is no such backbone.
        ResourceError: Its weights are not on this machine; the message says where to get them.
        DataError: The file is of another network, or images have channels that it cannot see.
    """
    if look.backbone != SMALL_RESNET:
        features.check_channels(channels)
    if look.backbone == LITE0 and look.weights == "imagenet":
        return features.vectors
    before, network, _ = backbones.make(look.backbone, channels=channels, width=64)
    path = (
        look.weights if isinstance(look.weights, Path) else backbones.imagenet_file(look.backbone)
    )
    backbones.read_weights(network, path, backbones.digest_of(path))
    whole = torch.nn.Sequential(before, network).eval().requires_grad_(False).to(device)
    return torch.no_grad()(whole)


def write_vectors(
    dataset: Dataset,
    extract: Extract,
    path: Path,
    *,
    stored_px: int,
    look: Look,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Float32[np.ndarray, "n d"]:
    """Write the vectors of a 2D set into a new file, a batch at a time.

    Args:
        stored_px: Side that every image is brought to first.

    Returns:
        The file, memory-mapped, read-only.

    Raises:
        DataError: A vector is not finite; the message names the image.
    """
    d = 0
    with path.open("xb") as file:
        for first in range(0, len(dataset), look.batch):
            places = range(first, min(first + look.batch, len(dataset)))
            images = np.stack([seen(dataset, i, stored_px, look.side_px) for i in places])
            found = extract(torch.from_numpy(images).to(device)).float().cpu().numpy()
            if not (fine := np.isfinite(found).all(axis=1)).all():
                name = dataset[first + int(np.argmin(fine))].case_id
                raise DataError(f"{dataset.folder}: {name}: its features are not finite numbers")
            d = found.shape[1]
            length = np.linalg.norm(found, axis=1, keepdims=True)
            file.write(np.ascontiguousarray(found / np.maximum(length, 1e-12), np.float32).data)
            progress(places[-1] + 1, len(dataset))
    return np.memmap(path, np.float32, "r", shape=(len(dataset), d))


def seen(
    dataset: Dataset, i: int, stored_px: int, side_px: int
) -> Float32[np.ndarray, "c side side"]:
    """The i-th image in [-1, 1], as the network is shown it."""
    image = signed_unit(dataset.values(i), dataset.about["value_range"])
    return resize(resize(image, stored_px), side_px)


def common_side(*sets: Dataset) -> int:
    """The smallest side of the sets' images, of which the first stands for all.

    Raises:
        DataError: A set is empty, not 2D, not prepared, or has other channels than the others.
    """
    for dataset in sets:
        if not len(dataset):
            raise DataError(f"{dataset.folder}: there is no image to look at")
        if dataset.about["dimensions"] != 2 or dataset.about["value_range"] is None:
            raise DataError(f"{dataset.folder}: allowed: 2D images that `data prepare` has made")
    shapes = [dataset.values(0).shape for dataset in sets]
    if len({channels for channels, *_ in shapes}) > 1:
        raise DataError(
            f"{', '.join(str(dataset.folder) for dataset in sets)}: images of "
            f"{' and '.join(str(channels) for channels, *_ in shapes)} channels cannot be compared"
        )
    return min(side for _, *space in shapes for side in space)


@dataclass(frozen=True, eq=False)
class Manifold:
    """Real images as points, and how far honest images are from them."""

    points: Float[Tensor, "m d"]
    neighbours: int
    honest: float
    """Mean distance of a real image to the `neighbours`-th nearest of other patients."""

    @classmethod
    def of(
        cls, vectors: Float32[np.ndarray, "m d"], patients: Sequence[str], neighbours: int
    ) -> "Manifold":
        """The manifold of real images.

        No patient is held out for the yardstick: each image is compared with those of all other
        patients, as a new patient's would be.

        Raises:
            DataError: Too few images of other patients, or all images alike.
        """
        points = torch.from_numpy(np.array(vectors))
        whose = torch.from_numpy(np.unique(np.asarray(patients), return_inverse=True)[1])
        far = torch.cat(
            [
                nearest(points[rows], points, neighbours, whose[rows, None] == whose)
                for rows in torch.arange(len(points)).split(ROWS)
            ]
        )
        if not (far < torch.inf).all():
            raise DataError(
                f"{len(points)} real images of {len(set(patients))} patients; each needs "
                f"{neighbours} images of other patients to compare with"
            )
        if not (honest := far.mean().item()):
            raise DataError("all real images are the same; distances to them say nothing")
        return cls(points, neighbours, honest)

    def distance(self, vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, " n"]:
        """How far each image is from its `neighbours`-th nearest real one, over what is honest."""
        found = [
            nearest(torch.from_numpy(np.array(vectors[k : k + ROWS])), self.points, self.neighbours)
            for k in range(0, len(vectors), ROWS)
        ]
        return (torch.cat(found) / self.honest).numpy()


def nearest(
    points: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    k: int,
    besides: Tensor | None = None,
) -> Float[Tensor, " n"]:
    """The distance of each point to its k-th nearest of the reference, infinite without one.

    Args:
        besides: (n, m), pairs that do not count.

    Example:
        >>> nearest(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [2.0]]), 2).item()
        2.0
    """
    if len(reference) < k:
        return torch.full((len(points),), torch.inf)
    distance = torch.cdist(points, reference)
    if besides is not None:
        distance = distance.masked_fill(besides, torch.inf)
    return distance.kthvalue(k, dim=1).values
