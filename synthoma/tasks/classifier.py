"""Classifier: a backbone, dropout, a linear layer, batch norm; what class an image is of.

    image (n, c, side, side) -> features (n, d) -> logits (n, 1 | k) -> probabilities (n, k)

Two classes have one logit and binary cross-entropy, more have one each and cross-entropy.

Papers:
  Han et al. 2019, two-step GAN augmentation (file 002), section III-D: ResNet-50 at 224 pixels,
    dropout 0.5, linear layer, batch norm before the sigmoid; batch 96, SGD 1e-2 with momentum 0.9;
    rate times 0.1 every 20 epochs from scratch, times 0.5 every 5 with ImageNet weights; early
    stopping after 20 epochs
  Zhang et al. 2018, mixup, https://arxiv.org/abs/1710.09412
Differs from the papers: early stopping goes by validation accuracy and stops at 200 epochs, where
Han et al. do not say. An epoch is the images over the batch size, rounded up, dealt as everywhere
here: every image once a round, whole batches across rounds. Grey images have their channel three
times where the backbone is torchvision's.
"""

import math
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import Classic
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import Batch, Classifier, Losses, Player, Request, Turn
from synthoma.errors import DataError
from synthoma.nn import features
from synthoma.tasks import backbones
from synthoma.tasks.backbones import LITE0, SMALL_RESNET

#: Classes of a network that has seen no data.
UNNAMED = ("negative", "positive")


class ClassifierConfig(BaseModel):
    """Defaults are Han et al. 2019's (file 002), without ImageNet weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(
        "resnet50",
        description=f"One of torchvision's classification networks by its name there, {LITE0}, or "
        f"{SMALL_RESNET} (MedMNIST's ResNet-18 for small images).",
    )
    side_px: int = Field(224, ge=8, description="Side in training and test.")
    channels: int = Field(1, ge=1, description="Image channels; the data decide.")
    classes: tuple[str, ...] | None = Field(None, description="Their names; the data decide.")
    positive: str = Field(
        "",
        description="Of two classes, the one whose sensitivity and precision are told. "
        "Empty: the last by name.",
    )
    weights: Literal["none", "imagenet"] | Path = Field(
        "none",
        description="First weights: none, imagenet, or a file (.safetensors or a state dict saved "
        f"by torch). Nothing is downloaded; those of {LITE0} are installed.",
    )
    weights_sha256: str = Field(
        "", description="Of the file of weights; empty: what it is when the run begins."
    )
    width: int = Field(64, ge=1, description=f"Feature maps of {SMALL_RESNET}'s first stage.")
    dropout: float = Field(0.5, ge=0, lt=1)
    output_norm: bool = Field(True, description="Batch norm between linear layer and sigmoid.")
    batch_size: int = Field(96, ge=2)
    parts: int = Field(1, ge=1, description="Parts that a batch is computed in; divides it.")
    steps_per_epoch: int | None = Field(
        None,
        ge=1,
        description="Unset: training images over batch_size. Set it where set-ups with more and "
        "with fewer images shall train for as many steps.",
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(1e-2, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(0.0, ge=0, description="Of kernels, not of norms and biases.")
    schedule: Literal["steps", "cosine", "constant"] = Field(
        "steps", description="steps: times `decay` every `decay_epochs`."
    )
    decay: float | None = Field(
        None, gt=0, le=1, description="Unset: 0.1 from scratch, 0.5 with first weights."
    )
    decay_epochs: int | None = Field(
        None, ge=1, description="Unset: 20 from scratch, 5 with first weights."
    )
    mix: float = Field(
        0.0,
        ge=0,
        description="MixUp: images and labels are blended in a share drawn from Beta(mix, mix), "
        "one a batch; 0: not at all.",
    )
    augment: Classic | None = Field(Classic(), description="Classic augmentation in training.")

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        if self.batch_size % self.parts or self.batch_size // self.parts < 2:
            raise ValueError(
                f"parts ({self.parts}) must divide batch_size ({self.batch_size}) and leave 2 "
                "images a part (batch norm)"
            )
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError(f"classes must name at least two, not {self.classes}")
        if self.positive and self.classes and self.positive not in self.classes:
            raise ValueError(f"positive {self.positive!r} is none of {', '.join(self.classes)}")
        if self.backbone == SMALL_RESNET and self.weights == "imagenet":
            raise ValueError(f"there are no ImageNet weights of {SMALL_RESNET}; take {LITE0}")
        return self

    @property
    def packaged(self) -> bool:
        """Whether the first weights are those that are installed."""
        return self.backbone == LITE0 and self.weights == "imagenet"


def fitted(config: ClassifierConfig, pools: dict[str, Pool]) -> ClassifierConfig:
    """`config` with what the training data decide: channels, classes, steps an epoch; and with the
    file of first weights and its digest.

    Raises:
        DataError: The data are not 2D, have fewer than two labels, other classes than `config`
            names, or channels that the backbone cannot take.
        ResourceError: The first weights are not on this machine.
        SettingsError: There is no such backbone.
    """
    pool = pools["real"]
    folders = ", ".join(str(dataset.folder) for dataset in pool.datasets)
    if pool.datasets[0].about["dimensions"] != 2:
        raise DataError(f"{folders}: this classifier looks at 2D images; these are 3D")
    classes = tuple(pool.labels)
    if len(classes) < 2:
        raise DataError(
            f"{folders}: the labels are {', '.join(classes) or 'none'}; at least two are needed"
        )
    if config.classes not in (None, classes):
        raise DataError(
            f"{folders}: their labels are {', '.join(classes)}; the settings say "
            f"{', '.join(config.classes or ())}. Leave `classes` unset to take the data's"
        )
    if config.positive and config.positive not in classes:
        raise DataError(f"{folders}: no label {config.positive!r} (system.positive); there are "
                        f"{', '.join(classes)}")  # fmt: skip
    backbones.check_name(config.backbone)
    channels = {int(dataset.values(0).shape[0]) for dataset in pool.datasets}
    if len(channels) > 1 or (config.backbone != SMALL_RESNET and not channels <= {1, 3}):
        raise DataError(
            f"{folders}: images of {', '.join(map(str, sorted(channels)))} channels; allowed: 1 "
            f"or 3, and the same in all (with {SMALL_RESNET} any)"
        )
    weights, sha256 = config.weights, config.weights_sha256
    if weights != "none" and not config.packaged:
        named = backbones.imagenet_file(config.backbone) if weights == "imagenet" else Path(weights)
        weights = named.absolute()
        sha256 = sha256 or backbones.digest_of(weights)
    return ClassifierConfig.model_validate(
        dict(config)
        | {
            "channels": channels.pop(),
            "classes": classes,
            "steps_per_epoch": config.steps_per_epoch or math.ceil(len(pool) / config.batch_size),
            "weights": weights,
            "weights_sha256": sha256,
        }
    )


class BackboneClassifier(Classifier):
    """A backbone under a fresh head. `fitted(config, pools)` fills in what the data decide."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = config.classes or UNNAMED
        self.positive = config.positive
        self.side_px = config.side_px
        self.scaled, self.backbone, n = backbones.make(
            config.backbone, channels=config.channels, width=config.width
        )
        outputs = 1 if len(self.classes) == 2 else len(self.classes)
        head: list[nn.Module] = [nn.Dropout(config.dropout), nn.Linear(n, outputs)]
        self.head = nn.Sequential(*head, *([nn.BatchNorm1d(outputs)] * config.output_norm))

    def begin(self) -> None:
        """Read the first weights."""
        config = self.config
        if config.packaged:
            cpu = torch.device("cpu")
            backbones.put(self.backbone, features.lite0(cpu).state_dict(), features.NAME)
        elif isinstance(config.weights, Path):
            backbones.read_weights(self.backbone, config.weights, config.weights_sha256)
        elif config.weights != "none":
            raise AssertionError("`fitted` names the file of the weights")

    def request(self, step: int) -> Request:
        return Request(
            size=self.config.batch_size,
            side_px=self.config.side_px,
            fields=("image", "label"),
            augment=self.config.augment,
            parts=self.config.parts,
        )

    def players(self, step: int) -> tuple[Player, ...]:
        config, moving = self.config, (self.backbone, self.head)
        weights = [p for module in moving for p in module.parameters()]
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        return (Player("classifier", moving, optimizer, rate=self.rate),)

    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate at a step of so many; by epochs, constant where no data have
        said how long one is. The cosine ends at 1 %."""
        config = self.config
        if config.schedule == "cosine":
            return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        if config.schedule == "constant" or config.steps_per_epoch is None:
            return 1.0
        decay, epochs = (0.1, 20) if config.weights == "none" else (0.5, 5)
        drops = (step - 1) // (config.steps_per_epoch * (config.decay_epochs or epochs))
        return float((config.decay or decay) ** drops)

    def logits(self, image: Float[Tensor, "n c side side"]) -> Float[Tensor, "n outputs"]:
        """Before the sigmoid (of the second of two classes) or the softmax."""
        answer: Tensor = self.head(self.backbone(self.scaled(image)))
        return answer.float()

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Binary cross-entropy of two classes, cross-entropy of more."""
        image = batch["image"]
        wanted = F.one_hot(batch["label"], len(self.classes)).to(image)
        if self.config.mix:
            image, wanted = mixed(image, wanted, self.config.mix, turn.generator)
        logits = self.logits(image)
        if len(self.classes) == 2:
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], wanted[:, 1])
        else:
            loss = F.cross_entropy(logits, wanted)
        return {"cross_entropy": loss}

    @torch.no_grad()
    def classify(self, image: Float[Tensor, "n c side side"]) -> Float[Tensor, "n k"]:
        logits = self.logits(image).double()  # in float32, sure answers would all be 1 and equal
        if len(self.classes) > 2:
            return logits.softmax(dim=1)
        return torch.cat([(-logits).sigmoid(), logits.sigmoid()], dim=1)


def mixed(
    image: Float[Tensor, "n c y x"],
    wanted: Float[Tensor, "n k"],
    alpha: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n c y x"], Float[Tensor, "n k"]]:
    """Each image blended with another of the batch, and its label alike (mixup, section 2)."""
    chance = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = float(chance.beta(alpha, alpha))
    other = torch.randperm(len(image), generator=generator).to(image.device)
    return (
        share * image + (1 - share) * image[other],
        share * wanted + (1 - share) * wanted[other],
    )


SYSTEM = BackboneClassifier

#: Steps that end no run: the epochs do.
_UNBOUNDED = 10_000_000

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        ClassifierConfig(),
        TrainSettings(
            steps=_UNBOUNDED, epochs=200, checkpoint_every=500, keep_best="accuracy", patience=20
        ),
    ),
    "small": Preset(
        ClassifierConfig(
            backbone=LITE0,
            weights="imagenet",
            side_px=128,
            batch_size=32,
            optimizer="adamw",
            learning_rate=5e-4,
            weight_decay=0.01,
            schedule="cosine",
        ),
        TrainSettings(steps=400, checkpoint_every=100, validate_every=100),
    ),
    "smoke": Preset(
        ClassifierConfig(
            backbone=SMALL_RESNET,
            width=16,
            side_px=32,
            batch_size=32,
            dropout=0.0,
            optimizer="adamw",
            learning_rate=2e-3,
            schedule="cosine",
        ),
        TrainSettings(steps=60, checkpoint_every=30, log_every=10),
    ),
    "medmnist": Preset(
        ClassifierConfig(
            backbone=SMALL_RESNET,
            side_px=28,
            batch_size=128,
            dropout=0.0,
            output_norm=False,
            optimizer="adamw",
            learning_rate=1e-3,
            schedule="cosine",
        ),
        TrainSettings(
            steps=_UNBOUNDED, epochs=10, precision="bf16", checkpoint_every=100, keep_best="auc"
        ),
    ),
}
