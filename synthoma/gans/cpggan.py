"""CPGGAN: a PGGAN that draws its lesions where white boxes on a black image say.

    noise z (n, d) + boxes (n, 1, side, side) -> Generator -> image (n, c, side, side)
    image beside boxes (n, c + 1, side, side) -> Critic -> logit (n,)

Papers:
  Han et al. 2019, Learning more with less: conditional PGGAN-based data augmentation for brain
  metastases detection using highly-rough annotation on MR images, section 2.2
  Karras et al. 2018, Progressive growing of GANs, https://arxiv.org/abs/1710.10196
The condition is the share of each pixel that boxes cover, 0 (black) to 1 (white), exact at every
resolution. The generator's 4x4 layers see noise alone; each doubling sees the features before it
with the condition, at their own resolution, concatenated: repeated to as many channels as they
have ("resize the conditioning image to the previous generator's output resolution/channel size"),
so that it speaks as loudly. The critic sees the image with one channel of condition concatenated.
Slices without boxes (normal subjects) have a black condition.
Differs from the paper: nothing known. It states neither phases (Karras et al.'s 800,000 images
each) nor lambda (their 10). As in `pggan`, critic and generator of one step see the same fakes.
"""

from typing import cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.gans.pggan import (
    Critic,
    Generator,
    PGGANConfig,
    deal,
    fitted,
    phase,
    play,
    stage,
)
from synthoma.nn.blocks import convolution_dtype
from synthoma.nn.conditions import check_given, draw_boxes

__all__ = ["CPGGAN", "PRESETS", "CPGGANConfig", "fitted"]


class CPGGANConfig(PGGANConfig):
    """Defaults are Han et al. 2019's, and Karras et al.'s where they say nothing."""

    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(2e-4, gt=0)


class CPGGAN(GAN):
    """The progressive GAN whose lesions lie in given boxes."""

    step: Tensor
    conditions = ("boxes",)

    def __init__(self, config: CPGGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config, condition_channels=1)
        self.critic = Critic(config, condition_channels=1)
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def stage(self, step: int) -> tuple[int, bool]:
        """Side in pixels, and whether it is being faded in."""
        return stage(self.config, step)

    def request(self, step: int) -> Request:
        """Real images and their boxes at the present resolution."""
        side_px, _ = phase(self.config, step)
        return Request(
            self.config.batch_size, side_px, ("image", "boxes"), augment=self.config.augment
        )

    def players(self, step: int) -> tuple[Player, ...]:
        """Critic, generator."""
        return deal(self.config, self.generator, self.critic)

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """WGAN-GP with drift, at the present resolution, given the boxes of the real images."""
        real = batch["image"]
        condition = draw_boxes(
            batch["boxes"].to(real.dtype),
            batch["box_case"],
            images=len(real),
            side_px=real.shape[-1],
        )
        nets = self.generator, self.critic
        return play(self.config, nets, player, turn, real, condition)

    def after_move(self, player: str, batch: Batch, turn: Turn) -> None:
        """Note the step, so that `sample` knows the resolution."""
        self.step.fill_(turn.step)

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1] at the resolution that training has reached; what is beyond is cut.

        Args:
            given: "boxes" (m, 4) in pixels of the finished image (`config.side_px`), whatever the
                present resolution, and "box_case" (m,), which row of `noise` each box is for.

        Raises:
            SettingsError: Boxes are missing, or belong to images that are not asked for.
        """
        told = check_given("cpggan", given, ("boxes", "box_case"), images=len(noise))
        boxes, box_case = told["boxes"].to(noise), told["box_case"].to(noise.device)
        side_px, fade = phase(self.config, int(self.step))
        scale = side_px / self.config.side_px
        condition = draw_boxes(boxes * scale, box_case, images=len(noise), side_px=side_px)
        dtype = convolution_dtype(noise.device)
        images = self.generator(noise, side_px, fade, condition, dtype=dtype)
        return cast(Tensor, images).clamp_(-1, 1)


SYSTEM = CPGGAN

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        CPGGANConfig(),
        TrainSettings(steps=3_000_000, sample_every=10_000, checkpoint_every=5_000),
    ),
    "small": Preset(
        CPGGANConfig(
            side_px=64,
            widest=96,
            base=512,
            noise_dim=96,
            batch_size=16,
            stable_images=16_000,
            fade_images=8_000,
            learning_rate=2e-3,
            fine_from_px=32,
            fine_factor=0.5,
            average_decay=0.99,
            mirror=True,
            frozen_spread=True,
        ),
        TrainSettings(steps=14_000, precision="bf16", sample_every=1000),
    ),
    "smoke": Preset(
        CPGGANConfig(
            side_px=32,
            widest=64,
            base=512,
            noise_dim=64,
            batch_size=8,
            stable_images=1_280,
            fade_images=1_280,
            learning_rate=2e-3,
            average_decay=0.98,
            mirror=True,
            frozen_spread=True,
        ),
        TrainSettings(steps=1_500, precision="bf16", sample_every=250),
    ),
}
