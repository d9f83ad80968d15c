"""GAN: the first; two multilayer perceptrons, or two convolutional networks, play a game.

    noise z (n, d) -> Generator -> image (n, c, side, side) -> Discriminator -> logit (n,)

Papers:
  Goodfellow et al. 2014, Generative adversarial nets, https://arxiv.org/abs/1406.2661, with its
  code (github.com/goodfeli/adversarial), which has the sizes and rates that the paper does not
Two pairs of networks. "connected" (preset "paper"), as for MNIST: two hidden layers of ReLU and a
sigmoid against two of maxout. "convolutional", as for CIFAR-10: a deconvolution (5x5, stride 3, a
bias for each pixel) behind two hidden layers, the second of sigmoids, against three convolutions
and a layer of maxout. The discriminator drops a fifth of its input and half of each layer, when the
generator moves too. The generator's loss is the non-saturating one of section 3; the
discriminator's is halved, as in the code.
Differs from the paper: the players move one after the other (algorithm 1; the code moves both at
once), and see the same fake images. Momentum stays at its first value, 0.5; the code raises it to
0.7 within 250 epochs, which end the training here (ours). The code begins the last biases of
"connected" at the pixels' means: left out. "convolutional" has images in [-1, 1] in place of
contrast-normalised ones; its generator is not bounded, and images that are drawn are cut. Adam is
for the small presets (ours).
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import SettingsError
from synthoma.nn.losses import NON_SATURATING, alternating

Optimizer = Literal["sgd", "adam"]


class OriginalGANConfig(BaseModel):
    """Defaults are Goodfellow et al. 2014's for MNIST."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(28, ge=8, le=256, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    nets: Literal["connected", "convolutional"] = Field(
        "connected", description="connected, or convolutional: of 17, 20, ... 32, ... px."
    )
    noise_dim: int = Field(100, ge=1)
    width: int = Field(1200, ge=1, description="Units of the generator's hidden layers.")
    units: int = Field(
        240, ge=1, description="Maxout units of the discriminator's (last) hidden layers."
    )
    maps: int = Field(80, ge=1, description="Convolutional: what is deconvolved.")
    judged_maps: int = Field(
        32, ge=1, description="Convolutional: of the first two layers that judge; then 6 times."
    )
    batch_size: int = Field(100, ge=1)
    optimizer: Optimizer = Field("sgd", description="sgd with momentum, or adam.")
    learning_rate: float = Field(0.1, gt=0)
    decay: float = Field(1.000004, ge=1, description="The rate is divided by this at each step.")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of sgd; adam's first beta.")
    mirror: bool = Field(False, description="Flip half of the real images left to right.")

    @model_validator(mode="after")
    def sides(self) -> Self:
        """A deconvolution of 5x5 filters, 3 pixels apart, has not every side."""
        if self.nets == "convolutional" and (self.side_px < 17 or self.side_px % 3 != 2):
            raise ValueError(
                f"side_px {self.side_px} of convolutional nets; allowed: 17, 20, ... 32, ... 62, 65"
            )
        return self


class Maxout(nn.Module):
    """The largest of several linear functions, for each unit (Goodfellow et al. 2013)."""

    def __init__(self, features: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, units * pieces)
        self.pieces = pieces

    def forward(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n units"]:
        """The units."""
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


class MaxoutConv(nn.Module):
    """A convolution, its largest of 2 pieces, and the largest of overlapping squares."""

    def __init__(
        self, low: int, high: int, filter_px: int, padding: int, *, square_px: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(low, 2 * high, filter_px, padding=padding)
        self.square_px = square_px

    def forward(self, x: Float[Tensor, "n low y x"]) -> Float[Tensor, "n high v u"]:
        """The maps, of about half the side; a last square may reach over the edge."""
        largest = F.max_pool2d(self.conv(x), self.square_px, stride=2, ceil_mode=True)
        return largest.unflatten(1, (-1, 2)).amax(2)


def connected_generator(config: OriginalGANConfig) -> nn.Sequential:
    """z (n, noise_dim) -> image (n, c, side, side) in [0, 1]."""
    space = (config.channels, config.side_px, config.side_px)
    return nn.Sequential(
        nn.Linear(config.noise_dim, config.width),
        nn.ReLU(),
        nn.Linear(config.width, config.width),
        nn.ReLU(),
        nn.Linear(config.width, config.channels * config.side_px**2),
        nn.Sigmoid(),
        nn.Unflatten(1, space),
    )


def connected_discriminator(config: OriginalGANConfig) -> nn.Sequential:
    """image (n, c, side, side) in [0, 1] -> logit (n,)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        Maxout(config.channels * config.side_px**2, config.units, 5),
        nn.Dropout(0.5),
        Maxout(config.units, config.units, 5),
        nn.Dropout(0.5),
        nn.Linear(config.units, 1),
        nn.Flatten(0),
    )


class PixelBias(nn.Module):
    """A bias for each pixel."""

    def __init__(self, channels: int, side_px: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, side_px, side_px))

    def forward(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
        """The image with it."""
        return image + self.bias


def convolutional_generator(config: OriginalGANConfig) -> nn.Sequential:
    """z (n, noise_dim) -> image (n, c, side, side), not bounded."""
    coarse_px = (config.side_px - 2) // 3  # 5x5 filters, 3 pixels apart
    return nn.Sequential(
        nn.Linear(config.noise_dim, config.width),
        nn.ReLU(),
        nn.Linear(config.width, config.maps * coarse_px**2),
        nn.Sigmoid(),
        nn.Unflatten(1, (config.maps, coarse_px, coarse_px)),
        nn.ConvTranspose2d(config.maps, config.channels, 5, stride=3, bias=False),
        PixelBias(config.channels, config.side_px),
    )


def convolutional_discriminator(config: OriginalGANConfig) -> nn.Sequential:
    """image (n, c, side, side) -> logit (n,)."""
    maps, last, side_px = config.judged_maps, 6 * config.judged_maps, config.side_px
    for shrunk, square_px in ((8 - 8, 4), (8 - 6, 4), (5 - 6, 2)):  # filters, less the padding
        side_px = 1 + -((side_px - shrunk + 1 - square_px) // -2)
    return nn.Sequential(
        nn.Dropout(0.2),
        MaxoutConv(config.channels, maps, 8, 4, square_px=4),
        nn.Dropout(0.5),
        MaxoutConv(maps, maps, 8, 3, square_px=4),
        nn.Dropout(0.5),
        MaxoutConv(maps, last, 5, 3, square_px=2),
        nn.Flatten(),
        nn.Dropout(0.5),
        Maxout(last * side_px**2, config.units, 5),
        nn.Dropout(0.5),
        nn.Linear(config.units, 1),
        nn.Flatten(0),
    )


def begin(net: nn.Module, reach: float) -> None:
    """First weights between -reach and reach, and no biases."""
    for name, weights in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weights)
        else:
            nn.init.uniform_(weights, -reach, reach)


def optimizer_of(
    net: nn.Module, kind: Optimizer, *, rate: float, momentum: float
) -> torch.optim.Optimizer:
    """Gradient descent with momentum, or Adam."""
    if kind == "sgd":
        return torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
    return torch.optim.Adam(net.parameters(), lr=rate, betas=(momentum, 0.999), fused=True)


def players_of(
    discriminator: nn.Module,
    generator: nn.Module,
    optimizer: Optimizer,
    *,
    rate: float,
    momentum: float,
    decay: float,
) -> tuple[Player, ...]:
    """Discriminator, then generator, with rates that fall as in Goodfellow's code."""

    def factor(step: int, steps: int) -> float:
        return decayed(step, decay=decay, rate=rate)

    nets = {"discriminator": discriminator, "generator": generator}
    return tuple(
        Player(
            name, (net,), optimizer_of(net, optimizer, rate=rate, momentum=momentum), rate=factor
        )
        for name, net in nets.items()
    )


def decayed(step: int, *, decay: float, rate: float) -> float:
    """The factor on a rate that is divided by `decay` at each step and stays above 1e-6.

    Example:
        >>> decayed(3, decay=2, rate=1)
        0.25
        >>> round(decayed(10**7, decay=1.000004, rate=0.1), 9)
        1e-05
    """
    return max(decay ** (1 - step), 1e-6 / rate)


class OriginalGAN(GAN):
    """The first GAN."""

    def __init__(self, config: OriginalGANConfig) -> None:
        super().__init__()
        self.config = config
        if config.nets == "connected":
            self.generator = connected_generator(config)
            self.discriminator = connected_discriminator(config)
        else:
            self.generator = convolutional_generator(config)
            self.discriminator = convolutional_discriminator(config)
        begin(self.generator, 0.05)
        begin(self.discriminator, 0.005)
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real images."""
        augment = MIRROR if self.config.mirror else None
        return Request(self.config.batch_size, self.side_px, augment=augment)

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
        """The non-saturating game; what the discriminator drops is drawn by torch's dropout."""
        real = batch["image"]

        def draw() -> Tensor:
            noise = torch.randn(len(real), self.config.noise_dim, generator=turn.generator)
            return self.draw(noise.to(real))

        loss = alternating(NON_SATURATING, player, turn.shared, draw, self.judge, real)
        if player == "generator":
            return {"adversarial": loss}
        if self.config.nets == "convolutional":
            outside = turn.shared["fake"].detach().abs() > 1
            turn.shared["log/share_outside"] = outside.float().mean()
        return {"adversarial": loss / 2}

    def draw(self, noise: Float[Tensor, "n d"]) -> Float[Tensor, "n c y x"]:
        """Images; those of "connected" are in [-1, 1]."""
        image: Tensor = self.generator(noise).to(noise.dtype)
        return image * 2 - 1 if self.config.nets == "connected" else image

    def judge(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, " n"]:
        """Logits; "connected" sees values from 0 to 1, as it drops them to 0."""
        seen = (image + 1) / 2 if self.config.nets == "connected" else image
        logits: Tensor = self.discriminator(seen)
        return logits.to(image.dtype)

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1]; what is beyond is cut.

        Raises:
            SettingsError: Conditions were given.
        """
        if given is not None:
            raise SettingsError("gan takes no conditions; cgan takes a label")
        return self.draw(noise).clamp(-1, 1)


def fitted(config: OriginalGANConfig, pools: dict[str, Pool]) -> OriginalGANConfig:
    """The settings with what the data decides: the number of channels."""
    channels = pools["real"].channels
    return config.model_copy(update={"channels": channels})


SYSTEM = OriginalGAN

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        OriginalGANConfig(),
        TrainSettings(steps=125_000, sample_every=5_000, checkpoint_every=5_000),
    ),
    "small": Preset(
        OriginalGANConfig(
            side_px=64,
            width=512,
            batch_size=32,
            optimizer="adam",
            learning_rate=2e-4,
            decay=1,
            mirror=True,
        ),
        TrainSettings(steps=8_000, precision="bf16", sample_every=1000),
    ),
    "smoke": Preset(
        OriginalGANConfig(
            side_px=32,
            width=256,
            units=120,
            batch_size=16,
            optimizer="adam",
            learning_rate=2e-4,
            decay=1,
            mirror=True,
        ),
        TrainSettings(steps=2_000, precision="bf16", sample_every=500),
    ),
    "convolutional": Preset(
        OriginalGANConfig(
            side_px=32,
            nets="convolutional",
            width=8000,
            units=500,
            batch_size=128,
            learning_rate=0.004,
        ),
        TrainSettings(steps=78_000, sample_every=5_000, checkpoint_every=5_000),
    ),
}
