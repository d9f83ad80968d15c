"""Pix2pix: a U-Net paints a brain around white boxes, a patch critic tells it from a real one.

    boxes (n, 1, side, side), dropout -> Generator -> image (n, c, side, side)
    image beside boxes (n, c + 1, side, side) -> Discriminator -> logits (n, 1, y, x), one a patch

Papers:
  Han et al. 2019, Learning more with less: conditional PGGAN-based data augmentation for brain
  metastases detection using highly-rough annotation on MR images, section 2.2 (the baseline)
  Isola et al. 2017, Image-to-image translation with conditional adversarial networks,
  https://arxiv.org/abs/1611.07004 (sections 3 and 6.1), where the first says nothing
Han et al. give one sentence: "a conventional conditional GAN with a U-Net-like generator with 4
convolutional/deconvolutional layers in encoders/decoders, along with a discriminator with 3
decoders", of the image "with dropout noises". The three "decoders" are read as three convolutions
of stride 2, before the one that gives logits. Isola et al.'s are: 4x4 filters, 64 feature maps
doubled at each halving, dropout of one half in the first three layers of the decoder, when drawing
too; loss, its halving for the discriminator, 100 x L1, N(0, 0.02) weights, Adam's betas. CPGGAN's
steps, batch and rate are taken to hold here as well.
Differs from the papers: batch normalisation uses running statistics when drawing (Isola et al.:
those of the batch drawn), so that an image depends on its own noise and boxes alone. What is
dropped is drawn from a generator seeded by the image's noise, not by torch's dropout.
Han et al. call its images "completely unrealistic" at 256 px: at the bottleneck of 16x16 no feature
sees the whole head. At 64 px it does.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.nn.conditions import check_given, draw_boxes
from synthoma.nn.dropout import coins, seeded_by
from synthoma.nn.losses import NON_SATURATING


class Pix2pixConfig(BaseModel):
    """Defaults are Han et al. 2019's, and Isola et al.'s where they say nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Literal[16, 32, 64, 128, 256, 512] = Field(256, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    width: int = Field(64, ge=1, description="Feature maps after the first halving, then doubled.")
    batch_size: int = Field(4, ge=2, description="Batch normalisation needs two.")
    learning_rate: float = Field(2e-4, gt=0)
    distance_weight: float = Field(100, ge=0, description="Of the mean absolute error (L1).")
    mirror: bool = Field(False, description="Flip half of the real images left to right.")


class Generator(nn.Module):
    """boxes (n, 1, side, side) -> image (n, channels, side, side) in [-1, 1]."""

    def __init__(self, config: Pix2pixConfig) -> None:
        super().__init__()
        widths = [config.width << k for k in range(4)]
        self.widths = widths
        self.down = nn.ModuleList([nn.Conv2d(1, widths[0], 4, stride=2, padding=1)])
        self.up = nn.ModuleList()
        for low, high in pairwise(widths):
            self.down.append(
                nn.Sequential(
                    nn.Conv2d(low, high, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(high)
                )
            )
        for high, low in pairwise(widths[::-1]):
            features = high if high == widths[-1] else 2 * high  # with those passed across
            self.up.append(
                nn.Sequential(
                    nn.ConvTranspose2d(features, low, 4, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(low),
                )
            )
        self.to_image = nn.ConvTranspose2d(2 * widths[0], config.channels, 4, stride=2, padding=1)
        self.apply(begin)

    def kept(self, side_px: int, chance: Sequence[torch.Generator]) -> list[Bool[Tensor, "n ..."]]:
        """Which features each decoder layer keeps, a fair coin for each; one image a generator."""
        shapes = [(w, side_px // 2 >> k, side_px // 2 >> k) for k, w in enumerate(self.widths)]
        return coins(shapes[2::-1], chance)

    def forward(
        self, condition: Float[Tensor, "n 1 y x"], kept: Sequence[Tensor]
    ) -> Float[Tensor, "n c y x"]:
        """The images whose decoder keeps the features `kept` and drops the others."""
        x, passed = condition, list[Tensor]()
        for down in self.down:
            x = F.leaky_relu(down(x), 0.2)
            passed.append(x)
        for up, keep, across in zip(self.up, kept, passed[2::-1], strict=True):
            x = F.relu(up(x)) * (2 * keep.to(x.dtype))
            x = torch.cat([x, across], dim=1)
        return torch.tanh(self.to_image(x).to(condition.dtype))


class Discriminator(nn.Sequential):
    """image beside boxes (n, channels + 1, side, side) -> logits (n, 1, side / 8 - 1, ...)."""

    def __init__(self, config: Pix2pixConfig) -> None:
        width = config.width
        layers: list[nn.Module] = [
            nn.Conv2d(config.channels + 1, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for _ in range(2):
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        super().__init__(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.apply(begin)


def begin(layer: nn.Module) -> None:
    """Isola et al.'s first weights."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0, 0.02)


class Pix2pix(GAN):
    """The image-to-image baseline."""

    conditions = ("boxes",)

    def __init__(self, config: Pix2pixConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)
        self.noise_shape = (8,)  # a seed; one normal number would repeat within thousands
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real images and their boxes."""
        augment = MIRROR if self.config.mirror else None
        return Request(
            self.config.batch_size, self.config.side_px, ("image", "boxes"), augment=augment
        )

    def players(self, step: int) -> tuple[Player, ...]:
        """Discriminator, generator."""

        def adam(net: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.Adam(
                net.parameters(), lr=self.config.learning_rate, betas=(0.5, 0.999), fused=True
            )

        return (
            Player("discriminator", (self.discriminator,), adam(self.discriminator)),
            Player("generator", (self.generator,), adam(self.generator)),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The non-saturating game of patches; the generator pays for its distance to the real."""
        real = batch["image"]
        condition = draw_boxes(
            batch["boxes"].to(real.dtype),
            batch["box_case"],
            images=len(real),
            side_px=real.shape[-1],
        )

        def draw() -> Tensor:
            return self.paint(condition, [turn.generator] * len(real))

        def judge(image: Tensor) -> Tensor:
            logits: Tensor = self.discriminator(torch.cat([image, condition], dim=1))
            return logits.to(image.dtype)

        if player == "generator":
            fake = turn.shared.pop("fake") if "fake" in turn.shared else draw()
            return {
                "adversarial": NON_SATURATING.generator(judge(fake)),
                "distance": self.config.distance_weight * F.l1_loss(fake, real),
            }
        turn.shared["fake"] = draw()
        fake = turn.shared["fake"].detach()
        return {"adversarial": NON_SATURATING.critic(judge(real), judge(fake)) / 2}

    def paint(self, condition: Tensor, chance: Sequence[torch.Generator]) -> Tensor:
        """The images of conditions, what is dropped drawn from a generator each."""
        kept = self.generator.kept(condition.shape[-1], chance)
        image: Tensor = self.generator(condition, [keep.to(condition.device) for keep in kept])
        return image

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n 8"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1].

        Args:
            noise: Each row seeds the dropout of its image.
            given: "boxes" (m, 4) in pixels, and "box_case" (m,), which row each box is for.

        Raises:
            SettingsError: Boxes are missing, or belong to images that are not asked for.
        """
        told = check_given("pix2pix", given, ("boxes", "box_case"), images=len(noise))
        boxes, box_case = told["boxes"].to(noise), told["box_case"].to(noise.device)
        condition = draw_boxes(boxes, box_case, images=len(noise), side_px=self.side_px)
        return self.paint(condition, [seeded_by(row) for row in noise])


def fitted(config: Pix2pixConfig, pools: dict[str, Pool]) -> Pix2pixConfig:
    """The settings with what the data decides: the number of channels."""
    channels = pools["real"].channels
    return config.model_copy(update={"channels": channels})


SYSTEM = Pix2pix

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        Pix2pixConfig(),
        TrainSettings(steps=3_000_000, sample_every=10_000, checkpoint_every=5_000),
    ),
    "small": Preset(
        Pix2pixConfig(side_px=64, width=32, batch_size=8, mirror=True),
        TrainSettings(steps=6_000, precision="bf16", sample_every=1000),
    ),
    "smoke": Preset(
        Pix2pixConfig(side_px=32, width=16, batch_size=8, mirror=True),
        TrainSettings(steps=1_000, precision="bf16", sample_every=250),
    ),
}
