"""CGAN: generator and discriminator are told the class of each image.

    noise z (n, d) + label (n,) -> Generator -> image (n, c, side, side)
    image + label -> Discriminator -> logit (n,)

Papers:
  Mirza and Osindero 2014, Conditional generative adversarial nets,
  https://arxiv.org/abs/1411.1784, section 4.1 (nets "connected", the defaults)
  Radford et al. 2016, https://arxiv.org/abs/1511.06434, whose networks "convolutional" takes
"connected" maps noise and label, and image and label, to hidden layers apart and joins them in the
next. "convolutional" (ours, for the small presets) are DCGAN's networks with 4x4 filters, the label
as one-hot numbers beside the noise and as so many constant maps, 0 or 1, beside the image.
Fake images are ordered the labels of the real ones of their batch. The paper's noise is uniform in
[0, 1] ("convolutional": in [-1, 1]): here the normal noise that systems are given, through its
distribution function.
Differs from the paper: "dropout with probability of 0.5 was applied to both" is read as of hidden
units, in training alone. Momentum stays at 0.5 (there raised to 0.7 at an unknown pace). The
discriminator's loss is halved, as in the code of Goodfellow et al. 2014, and first weights are
theirs; critic and generator of one step see the same fake images. The paper stops by likelihood on
validation images; the length here is `gan`'s.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import DataError, SettingsError
from synthoma.gans import dcgan
from synthoma.gans.gan import Maxout, Optimizer, begin, players_of
from synthoma.nn.diffaugment import FEW, diffaugment, wanted
from synthoma.nn.losses import NON_SATURATING, alternating


class CGANConfig(BaseModel):
    """Defaults are Mirza and Osindero 2014's for MNIST."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(28, ge=8, le=256, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    classes: tuple[str, ...] = Field(
        tuple("0123456789"), min_length=1, description="Of the data, in the order of their labels."
    )
    nets: Literal["connected", "convolutional"] = Field(
        "connected", description="connected, or convolutional: of 16, 32, ... 256 px."
    )
    noise_dim: int = Field(100, ge=1)
    noise_units: int = Field(200, ge=1, description="Connected: of the generator, for the noise.")
    label_units: int = Field(1000, ge=1, description="Connected: of the generator, for the label.")
    joint_units: int = Field(1200, ge=1, description="Connected: of the generator's joint layer.")
    judged_units: int = Field(
        240, ge=1, description="Connected: maxout units for the image, and of the joint layer."
    )
    judged_label_units: int = Field(
        50, ge=1, description="Connected: maxout units of the discriminator for the label."
    )
    widest: int = Field(1024, ge=1, description="Convolutional: feature maps at 4x4.")
    batch_size: int = Field(100, ge=2)
    optimizer: Optimizer = Field("sgd", description="sgd with momentum, or adam.")
    learning_rate: float = Field(0.1, gt=0)
    decay: float = Field(1.00004, ge=1, description="The rate is divided by this at each step.")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of sgd; adam's first beta.")
    mirror: bool = Field(False, description="Flip half of the real images left to right.")
    diffaugment: bool | Literal["few"] = Field(
        False,
        description="Change real and drawn images at random before they are judged; few: where "
        f"there are fewer than {FEW} training images.",
    )

    @model_validator(mode="after")
    def sides(self) -> Self:
        """Convolutional nets double a side of 4 px."""
        if self.nets == "convolutional" and self.side_px not in dcgan.SIDES:
            allowed = ", ".join(map(str, dcgan.SIDES))
            raise ValueError(f"side_px {self.side_px} of convolutional nets; allowed: {allowed}")
        return self


class ConnectedGenerator(nn.Module):
    """z (n, noise_dim), normal, and one-hot label (n, classes) -> image in [-1, 1]."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        self.noise = nn.Linear(config.noise_dim, config.noise_units)
        self.label = nn.Linear(len(config.classes), config.label_units)
        self.joint = nn.Linear(config.noise_units + config.label_units, config.joint_units)
        self.pixels = nn.Linear(config.joint_units, config.channels * config.side_px**2)
        self.space = (config.channels, config.side_px, config.side_px)
        begin(self, 0.05)

    def forward(
        self, noise: Float[Tensor, "n d"], label: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n c y x"]:
        """The images."""
        chance = (1 + torch.erf(noise / 2**0.5)) / 2
        parts = torch.cat([self.noise(chance), self.label(label)], dim=1)
        x = F.dropout(F.relu(parts), 0.5, self.training)
        x = F.dropout(F.relu(self.joint(x)), 0.5, self.training)
        pixels: Tensor = torch.sigmoid(self.pixels(x).to(noise.dtype))
        return pixels.unflatten(1, self.space) * 2 - 1


class ConnectedDiscriminator(nn.Module):
    """image (n, c, side, side) and one-hot label (n, classes) -> logit (n,)."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        units, label_units = config.judged_units, config.judged_label_units
        self.image = Maxout(config.channels * config.side_px**2, units, 5)
        self.label = Maxout(len(config.classes), label_units, 5)
        self.joint = Maxout(units + label_units, units, 4)
        self.logit = nn.Linear(units, 1)
        begin(self, 0.005)

    def forward(
        self, image: Float[Tensor, "n c y x"], label: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """One pass; the image is seen from 0 to 1."""
        parts = [self.image((image.flatten(1) + 1) / 2), self.label(label)]
        x = F.dropout(torch.cat(parts, dim=1), 0.5, self.training)
        x = F.dropout(self.joint(x), 0.5, self.training)
        logits: Tensor = self.logit(x).to(image.dtype)
        return logits[:, 0]


class ConvolutionalGenerator(nn.Module):
    """z (n, noise_dim) and one-hot label (n, classes) -> image in [-1, 1]."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        self.draw = dcgan.Generator(
            config.noise_dim + len(config.classes),
            config.channels,
            config.side_px,
            widest=config.widest,
            filter_px=4,
            bounded=True,
        )

    def forward(
        self, noise: Float[Tensor, "n d"], label: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n c y x"]:
        """The images."""
        image: Tensor = self.draw(torch.cat([dcgan.uniform(noise), label], dim=1))
        return image


class ConvolutionalDiscriminator(nn.Module):
    """image (n, c, side, side) and one-hot label (n, classes) -> logit (n,)."""

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        self.judge = dcgan.Discriminator(
            config.channels + len(config.classes),
            config.side_px,
            widest=config.widest,
            filter_px=4,
            activation="leaky relu",
        )

    def forward(
        self, image: Float[Tensor, "n c y x"], label: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """One pass; batch normalisation is over the images that are given together."""
        maps = label[:, :, None, None].expand(-1, -1, *image.shape[2:])
        logits: Tensor = self.judge(torch.cat([image, maps], dim=1))
        return logits


class CGAN(GAN):
    """The GAN that is told classes."""

    conditions = ("label",)

    def __init__(self, config: CGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator: nn.Module
        self.discriminator: nn.Module
        if config.nets == "connected":
            self.generator = ConnectedGenerator(config)
            self.discriminator = ConnectedDiscriminator(config)
        else:
            self.generator = ConvolutionalGenerator(config)
            self.discriminator = ConvolutionalDiscriminator(config)
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real images and their labels."""
        augment = MIRROR if self.config.mirror else None
        return Request(self.config.batch_size, self.side_px, ("image", "label"), augment=augment)

    def players(self, step: int) -> tuple[Player, ...]:
        """Discriminator, generator."""
        config = self.config
        return players_of(
            self.discriminator,
            self.generator,
            config.optimizer,
            rate=config.learning_rate,
            momentum=config.momentum,
            decay=config.decay,
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The non-saturating game, each image beside its label."""
        real = batch["image"]
        label = self.one_hot(batch["label"]).to(real)

        def draw() -> Tensor:
            noise = torch.randn(len(real), self.config.noise_dim, generator=turn.generator)
            image: Tensor = self.generator(noise.to(real), label)
            return image

        def judge(image: Tensor) -> Tensor:
            seen = diffaugment(image, turn.generator) if self.config.diffaugment else image
            logits: Tensor = self.discriminator(seen, label)
            return logits

        loss = alternating(NON_SATURATING, player, turn.shared, draw, judge, real)
        return {"adversarial": loss if player == "generator" else loss / 2}

    def one_hot(self, label: Int64[Tensor, " n"]) -> Int64[Tensor, "n k"]:
        """1 in the column of each image's class."""
        return F.one_hot(label, len(self.config.classes))

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1].

        Args:
            given: "label" (n,), the place of each image's class in `config.classes`.

        Raises:
            SettingsError: Labels are missing, too few, or of no class.
        """
        if given is None or "label" not in given:
            had = "nothing" if given is None else ", ".join(given)
            raise SettingsError(f"cgan was given {had}; it needs 'label' (n,), one an image")
        label, k = given["label"], len(self.config.classes)
        if label.shape != (len(noise),):
            raise SettingsError(f"{len(label)} labels for {len(noise)} images; give one for each")
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) < k:
            raise SettingsError(
                f"labels from {int(label.min())} to {int(label.max())}; allowed: 0 to {k - 1}, "
                f"for {', '.join(self.config.classes)}"
            )
        image: Tensor = self.generator(noise, self.one_hot(label).to(noise))
        return image


def fitted(config: CGANConfig, pools: dict[str, Pool]) -> CGANConfig:
    """The settings with what the data decides: the number of channels, the classes, differentiable
    augmentation where it is left to them.

    Raises:
        DataError: No case has a label.
    """
    pool = pools["real"]
    if not pool.labels:
        raise DataError(
            f"{pool.datasets[0].folder}: no case has a label, and cgan is told one; import labels, "
            "or train dcgan"
        )
    changes = {
        "channels": pool.channels,
        "classes": tuple(pool.labels),
        "diffaugment": wanted(config.diffaugment, len(pool)),
    }
    return config.model_copy(update=changes)


SYSTEM = CGAN

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        CGANConfig(), TrainSettings(steps=125_000, sample_every=5_000, checkpoint_every=5_000)
    ),
    "small": Preset(
        CGANConfig(
            side_px=64,
            nets="convolutional",
            widest=128,
            batch_size=32,
            optimizer="adam",
            learning_rate=1e-3,
            decay=1,
            mirror=True,
            diffaugment="few",
        ),
        TrainSettings(steps=2_500, precision="bf16", sample_every=500),
    ),
    "smoke": Preset(
        CGANConfig(
            side_px=32,
            nets="convolutional",
            noise_dim=64,
            widest=64,
            batch_size=16,
            optimizer="adam",
            learning_rate=1e-3,
            decay=1,
            mirror=True,
            diffaugment="few",
        ),
        TrainSettings(steps=1_000, precision="bf16", sample_every=250),
    ),
}
