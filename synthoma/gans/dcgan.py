"""DCGAN: strided convolutions with batch normalisation, from noise to image and from it to a logit.

    noise z (n, d) -> Generator -> image (n, c, side, side) -> Discriminator -> logit (n,)

Papers:
  Han et al. 2018, GAN-based synthetic brain MR image generation, section 3.2.2 (the defaults)
  Radford et al. 2016, Unsupervised representation learning with deep convolutional generative
  adversarial networks, https://arxiv.org/abs/1511.06434 (preset "radford")
Han et al. take Radford et al.'s "with no tanh in the generator, ELU as the discriminator, all
filters of size 4x4, and a half channel size". Five of their six sets are of 128 px, the side here.
What neither says is as in Radford et al.'s code: no biases but those of batch normalisation, which
the image's own layers go without; in the generator's first layer it is over single units, not over
maps; its gains begin as N(1, 0.02); noise is uniform in [-1, 1], here the normal noise that systems
are given through its distribution function; real and fake images pass the discriminator apart.
Differs from the papers: critic and generator of one step see the same fake images. Not stated by
Han et al., so ours: Adam's betas (Radford et al.'s), 128 px as one more doubling with 512 maps at
4x4 as before, and the length, 100 times their 15,400 slices (Radford et al.: 25 times 350,000
faces). Radford et al.'s code has a weight decay of 1e-5 that their paper does not: left out.
Images that are drawn without tanh are cut at [-1, 1].
"""

from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import SettingsError
from synthoma.nn.diffaugment import FEW, diffaugment, wanted
from synthoma.nn.losses import NON_SATURATING, alternating

Side = Literal[16, 32, 64, 128, 256]
SIDES: tuple[int, ...] = get_args(Side)
FilterSide = Literal[4, 5]
Activation = Literal["elu", "leaky relu"]


class DCGANConfig(BaseModel):
    """Defaults are Han et al. 2018's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Side = Field(128, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    noise_dim: int = Field(100, ge=1)
    widest: int = Field(512, ge=1, description="Feature maps at 4x4, halved at each doubling.")
    filter_px: FilterSide = Field(4, description="Side of every filter.")
    bounded: bool = Field(False, description="End the generator with a tanh.")
    activation: Activation = Field("elu", description="Of the discriminator: elu or leaky relu.")
    batch_size: int = Field(64, ge=2, description="Batch normalisation needs two.")
    learning_rate: float = Field(2e-4, gt=0)
    beta: float = Field(0.5, ge=0, lt=1, description="Adam's first; the second is 0.999.")
    mirror: bool = Field(False, description="Flip half of the real images left to right.")
    diffaugment: bool | Literal["few"] = Field(
        False,
        description="Change real and drawn images at random before they are judged; few: where "
        f"there are fewer than {FEW} training images.",
    )


def widths(widest: int, side_px: int) -> list[int]:
    """Feature maps at 4, 8, ... half of the side.

    Example:
        >>> widths(1024, 64)
        [1024, 512, 256, 128]
    """
    return [max(1, widest >> k) for k in range((side_px // 8).bit_length())]


def uniform(noise: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Standard normal noise as noise that is uniform in [-1, 1]."""
    return torch.erf(noise / 2**0.5)


class Generator(nn.Module):
    """z (n, noise_dim) -> image (n, channels, side_px, side_px).

    Args:
        bounded: Whether a tanh keeps images in [-1, 1].
    """

    def __init__(
        self,
        noise_dim: int,
        channels: int,
        side_px: int,
        *,
        widest: int,
        filter_px: int,
        bounded: bool,
    ) -> None:
        super().__init__()
        maps = widths(widest, side_px)

        def up(low: int, high: int) -> nn.Module:
            padding, rest = (filter_px - 1) // 2, filter_px % 2
            return nn.ConvTranspose2d(low, high, filter_px, 2, padding, rest, bias=False)

        layers: list[nn.Module] = [
            nn.Linear(noise_dim, maps[0] * 16, bias=False),
            nn.BatchNorm1d(maps[0] * 16),
            nn.ReLU(),
            nn.Unflatten(1, (maps[0], 4, 4)),
        ]
        for low, high in pairwise(maps):
            layers += [up(low, high), nn.BatchNorm2d(high), nn.ReLU()]
        self.layers = nn.Sequential(*layers, up(maps[-1], channels))
        self.bounded = bounded
        self.apply(begin)

    def forward(self, noise: Float[Tensor, "n d"]) -> Float[Tensor, "n c y x"]:
        """The images."""
        image: Tensor = self.layers(noise).to(noise.dtype)
        return torch.tanh(image) if self.bounded else image


class Discriminator(nn.Module):
    """image (n, channels, side_px, side_px) -> logit (n,)."""

    def __init__(
        self, channels: int, side_px: int, *, widest: int, filter_px: int, activation: Activation
    ) -> None:
        super().__init__()
        maps = widths(widest, side_px)[::-1]

        def down(low: int, high: int) -> nn.Module:
            return nn.Conv2d(low, high, filter_px, 2, (filter_px - 1) // 2, bias=False)

        def active() -> nn.Module:
            return nn.ELU() if activation == "elu" else nn.LeakyReLU(0.2)

        layers = [down(channels, maps[0]), active()]
        for low, high in pairwise(maps):
            layers += [down(low, high), nn.BatchNorm2d(high), active()]
        logit = nn.Linear(maps[-1] * 16, 1, bias=False)
        self.layers = nn.Sequential(*layers, nn.Flatten(), logit, nn.Flatten(0))
        self.apply(begin)

    def forward(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, " n"]:
        """One pass; batch normalisation is over the images that are given together."""
        logits: Tensor = self.layers(image)
        return logits.to(image.dtype)


def begin(layer: nn.Module) -> None:
    """Radford et al.'s first weights."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(layer.weight, 0, 0.02)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1, 0.02)


class DCGAN(GAN):
    """The deep convolutional GAN."""

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(
            config.noise_dim,
            config.channels,
            config.side_px,
            widest=config.widest,
            filter_px=config.filter_px,
            bounded=config.bounded,
        )
        self.discriminator = Discriminator(
            config.channels,
            config.side_px,
            widest=config.widest,
            filter_px=config.filter_px,
            activation=config.activation,
        )
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real images."""
        augment = MIRROR if self.config.mirror else None
        return Request(self.config.batch_size, self.side_px, augment=augment)

    def players(self, step: int) -> tuple[Player, ...]:
        """Discriminator, generator."""

        def adam(net: nn.Module) -> torch.optim.Optimizer:
            betas = (self.config.beta, 0.999)
            return torch.optim.Adam(
                net.parameters(), lr=self.config.learning_rate, betas=betas, fused=True
            )

        return (
            Player("discriminator", (self.discriminator,), adam(self.discriminator)),
            Player("generator", (self.generator,), adam(self.generator)),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The non-saturating game."""
        real = batch["image"]

        def draw() -> Tensor:
            noise = torch.randn(len(real), self.config.noise_dim, generator=turn.generator)
            image: Tensor = self.generator(uniform(noise.to(real)))
            return image

        def judge(image: Tensor) -> Tensor:
            seen = diffaugment(image, turn.generator) if self.config.diffaugment else image
            logits: Tensor = self.discriminator(seen)
            return logits

        loss = alternating(NON_SATURATING, player, turn.shared, draw, judge, real)
        if player != "generator" and not self.config.bounded:
            outside = turn.shared["fake"].detach().abs() > 1
            turn.shared["log/share_outside"] = outside.float().mean()
        return {"adversarial": loss}

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1]; what is beyond is cut.

        Raises:
            SettingsError: Conditions were given.
        """
        if given is not None:
            raise SettingsError("dcgan takes no conditions; cgan takes a label")
        images: Tensor = self.generator(uniform(noise))
        return images.clamp(-1, 1)


def fitted(config: DCGANConfig, pools: dict[str, Pool]) -> DCGANConfig:
    """The settings with what the data decides: the number of channels, differentiable augmentation
    where it is left to them."""
    pool = pools["real"]
    changes = {"channels": pool.channels, "diffaugment": wanted(config.diffaugment, len(pool))}
    return config.model_copy(update=changes)


SYSTEM = DCGAN

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        DCGANConfig(), TrainSettings(steps=24_000, sample_every=1000, checkpoint_every=1000)
    ),
    "small": Preset(
        # on phantom brains these stay grey at 2e-4 (1,000 steps: a spread of .01, real .22), and
        # at 1e-3 are heads after 240 steps, with ventricles where Radford's tanh and leaky relu are
        DCGANConfig(
            side_px=64,
            widest=128,
            bounded=True,
            activation="leaky relu",
            batch_size=32,
            learning_rate=1e-3,
            mirror=True,
            diffaugment="few",
        ),
        TrainSettings(steps=2_000, precision="bf16", sample_every=500),
    ),
    "smoke": Preset(
        DCGANConfig(
            side_px=32,
            noise_dim=64,
            widest=64,
            bounded=True,
            activation="leaky relu",
            batch_size=16,
            learning_rate=1e-3,
            mirror=True,
            diffaugment="few",
        ),
        TrainSettings(steps=1_000, precision="bf16", sample_every=250),
    ),
    "radford": Preset(
        DCGANConfig(
            side_px=64,
            widest=1024,
            filter_px=5,
            bounded=True,
            activation="leaky relu",
            batch_size=128,
        ),
        TrainSettings(steps=68_000, sample_every=1000, checkpoint_every=1000),
    ),
}
