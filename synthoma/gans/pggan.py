"""PGGAN: generator and critic grow together from 4x4 pixels, each new resolution faded in.

    noise z (n, d) -> Generator -> image (n, c, side, side) -> Critic -> logit (n,)
    side: 4 at first, then 8, 16, ... side_px, as the step tells

Papers:
  Karras et al. 2018, Progressive growing of GANs, https://arxiv.org/abs/1710.10196
  Han et al. 2019, Combining noise-to-image and image-to-image GANs, section III-B
Where the paper and its code differ, its code: resampling is folded into the convolutions, so the
critic averages before the activation; minibatch standard deviation within groups of four; noise
is normalised; drift term 0.001 E[D(real)^2]; real images are blended with their halved-and-doubled
selves while a resolution fades in; optimisers start afresh with every phase.
Differs from the papers: critic and generator of one step see the same fake images; the batch does
not shrink with resolution. Han et al. state neither lambda (Karras et al.'s 10) nor phases (100
epochs of their 4,679 tumour slices, shared equally by the 13 phases: ours), and their "random
crop in 0-15 pixels" of a 240 px slice padded to 256 is read as a shift by up to 7.5 of 256 px.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import STILL, Classic
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import SettingsError
from synthoma.nn import blocks
from synthoma.nn.blocks import EqualConv, EqualLinear, leaky_pixel_norm, leaky_relu_
from synthoma.nn.losses import WASSERSTEIN, gradient_norms

Side = Literal[4, 8, 16, 32, 64, 128, 256, 512, 1024]


class PGGANConfig(BaseModel):
    """Defaults are Karras et al. 2018 at Han et al.'s 256x256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Side = Field(256, description="Side of the finished images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    noise_dim: int = Field(512, ge=1)
    widest: int = Field(512, ge=1, description="Most feature maps at any resolution.")
    base: int = Field(8192, ge=1, description="Feature maps at side s: 2 * base / s, up to widest.")
    batch_size: int = Field(16, ge=1)
    stable_images: int = Field(800_000, ge=1, description="Real images shown at each resolution.")
    fade_images: int = Field(800_000, ge=1, description="Real images shown while one fades in.")
    learning_rate: float = Field(1e-3, gt=0)
    fine_from_px: int = Field(1024, ge=4, description="From this side up the rate is multiplied.")
    fine_factor: float = Field(1.0, gt=0, description="By this.")
    penalty_weight: float = Field(10, ge=0, description="Lambda of WGAN-GP.")
    penalty_every: int = Field(
        1, ge=1, description="Steps between penalties, each weighing as much more; 1 is exact."
    )
    penalty_share: float = Field(1, gt=0, le=1, description="Share of the batch that is penalised.")
    frozen_spread: bool = Field(
        False, description="The penalty takes the minibatch deviation for a constant: faster."
    )
    drift_weight: float = Field(1e-3, ge=0, description="Of E[D(real)^2].")
    average_decay: float = Field(
        0.999, ge=0, lt=1, description="Of the generator's moving average, a step."
    )
    mirror: bool = Field(False, description="Flip half of the real images left to right.")
    shift: float = Field(0, ge=0, le=0.5, description="Shift real images by up to this share.")

    def width(self, side_px: int) -> int:
        """Feature maps at a resolution."""
        return max(1, min(self.widest, 2 * self.base // side_px))

    @property
    def sides(self) -> tuple[int, ...]:
        """4, 8, ... side_px."""
        return tuple(4 << k for k in range((self.side_px // 4).bit_length()))

    @property
    def augment(self) -> Classic | None:
        """What happens to real images."""
        if not self.mirror and not self.shift:
            return None
        return STILL.model_copy(update={"flip_x": self.mirror, "shift": self.shift})


def phase(config: PGGANConfig, step: int) -> tuple[int, float]:
    """The side in pixels at a step, and how far it has faded in (1: wholly).

    Example:
        >>> short = PGGANConfig(side_px=8, batch_size=4, stable_images=8, fade_images=8)
        >>> [phase(short, step) for step in range(1, 6)]
        [(4, 1.0), (4, 1.0), (8, 0.5), (8, 1.0), (8, 1.0)]
    """
    grown, faded = _growth(config, step)
    return config.sides[grown], min(1.0, (faded + config.batch_size) / config.fade_images)


def stage(config: PGGANConfig, step: int) -> tuple[int, bool]:
    """The side in pixels at a step, and whether it fades in; the step that completes it does."""
    grown, faded = _growth(config, step)
    return config.sides[grown], faded < config.fade_images


def _growth(config: PGGANConfig, step: int) -> tuple[int, int]:
    """How often the side has doubled, and for how many images the last doubling has faded in."""
    shown = (max(step, 1) - 1) * config.batch_size - config.stable_images
    grown, faded = divmod(shown, config.fade_images + config.stable_images)
    last = len(config.sides) - 1
    return (
        (grown + 1, faded) if 0 <= grown < last else (0 if grown < 0 else last, config.fade_images)
    )


class Generator(nn.Module):
    """z (n, noise_dim) -> image (n, channels, side, side), not bounded.

    Args:
        condition_channels: Of a condition, concatenated at each doubling as often as features.
    """

    def __init__(self, config: PGGANConfig, condition_channels: int = 0) -> None:
        super().__init__()
        sides, width = config.sides, config.width
        self.first = EqualLinear(config.noise_dim, width(4) * 16, gain=2**0.5 / 4, bias=False)
        self.first_bias = nn.Parameter(torch.zeros(width(4), 1, 1))
        self.ups = nn.ModuleList(
            EqualConv(low, high, 3, resample="up", extra=condition_channels, copies=low)
            for low, high in pairwise(width(s) for s in sides)
        )
        self.convs = nn.ModuleList(EqualConv(width(s), width(s), 3) for s in sides)
        self.to_image = nn.ModuleList(
            EqualConv(width(s), config.channels, 1, gain=1.0) for s in sides
        )

    def forward(
        self,
        noise: Float[Tensor, "n d"],
        side_px: int,
        fade: float = 1.0,
        condition: Float[Tensor, "n k y x"] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "n c y x"]:
        """The images at a resolution.

        Args:
            fade: Share of this resolution's own layers in the image; the rest is the doubled
                image of the resolution before.
            condition: At half of `side_px` or any multiple; averaged down where it is needed.
            dtype: Of the convolutions; the weights' own where None.
        """
        dtype = dtype or noise.dtype
        last = side_px.bit_length() - 3
        conditions = blocks.pyramid(condition, 4, side_px // 2)
        x = self.first(blocks.pixel_norm(noise)).unflatten(1, (-1, 4, 4)) + self.first_bias
        x = leaky_pixel_norm(x.to(dtype))
        x = leaky_pixel_norm(blocks.run(self.convs[0], x, None, dtype))
        before = x
        for k in range(1, last + 1):
            before = x
            x = leaky_pixel_norm(blocks.run(self.ups[k - 1], x, conditions.get(2 << k), dtype))
            x = leaky_pixel_norm(blocks.run(self.convs[k], x, None, dtype))
        image = blocks.run(self.to_image[last], x, None, dtype).to(noise.dtype)
        if fade < 1:
            old = blocks.run(self.to_image[last - 1], before, None, dtype).to(noise.dtype)
            image = torch.lerp(blocks.double(old), image, fade)
        return image


class Critic(nn.Module):
    """image (n, channels, side, side) -> logit (n,).

    Args:
        condition_channels: Channels of a condition that is concatenated with the image.
    """

    def __init__(self, config: PGGANConfig, condition_channels: int = 0) -> None:
        super().__init__()
        sides, width = config.sides, config.width
        channels = config.channels + condition_channels
        self.from_image = nn.ModuleList(EqualConv(channels, width(s), 1) for s in sides)
        self.convs = nn.ModuleList(
            EqualConv(width(s), width(s), 3, extra=int(s == 4)) for s in sides
        )
        self.downs = nn.ModuleList(
            EqualConv(width(s), width(s // 2), 3, resample="down") for s in sides[1:]
        )
        self.dense = EqualLinear(width(4) * 16, width(4))
        self.logit = EqualLinear(width(4), 1, gain=1.0)

    def at(
        self, side_px: int, fade: float = 1.0, *, dtype: torch.dtype | None = None
    ) -> Callable[..., Float[Tensor, " n"]]:
        """The critic of one resolution, its weights prepared once for several passes.

        The critic that is returned takes images (with the condition's channels behind their
        own), `parts` (batches behind one another whose minibatch deviations are apart) and
        `frozen_spread` (take that deviation for a constant).
        """
        dtype = dtype or self.logit.weight.dtype
        last = side_px.bit_length() - 3
        entry = blocks.ready(self.from_image[last], dtype, side_px)
        old_entry = (
            blocks.ready(self.from_image[last - 1], dtype, side_px // 2) if fade < 1 else None
        )
        convs = [blocks.ready(self.convs[k], dtype, 4 << k) for k in range(last + 1)]
        downs = [blocks.ready(self.downs[k - 1], dtype, 4 << k) for k in range(1, last + 1)]

        def judge(
            image: Float[Tensor, "n c y x"], *, parts: int = 1, frozen_spread: bool = False
        ) -> Float[Tensor, " n"]:
            x = leaky_relu_(entry(image, None))
            for k in range(last, 0, -1):
                x = leaky_relu_(convs[k](x, None))
                x = leaky_relu_(downs[k - 1](x, None))
                if k == last and old_entry is not None:
                    x = torch.lerp(leaky_relu_(old_entry(blocks.halve(image), None)), x, fade)
            spread = blocks.batch_spread(x.detach() if frozen_spread else x, parts=parts)
            x = leaky_relu_(convs[0](x, spread.expand(-1, 1, 4, 4)))
            x = leaky_relu_(self.dense(x.contiguous().flatten(1)))
            return cast(Tensor, self.logit(x)).squeeze(1)

        return judge

    def forward(
        self, image: Float[Tensor, "n c y x"], side_px: int, fade: float = 1.0
    ) -> Float[Tensor, " n"]:
        """One pass."""
        return self.at(side_px, fade)(image)


def play(
    config: PGGANConfig,
    nets: tuple[Generator, Critic],
    player: str,
    turn: Turn,
    real: Float[Tensor, "n c y x"],
    condition: Float[Tensor, "n k y x"] | None = None,
) -> Losses:
    """What a player of the progressive game minimises: WGAN-GP with drift.

    The critic's turn draws the fake images and leaves them, with their graph, to the generator's.
    Convolutions are in autocast's precision; everything else is in that of the images.
    """
    device, dtype = real.device, blocks.convolution_dtype(real.device)
    side_px, fade = phase(config, turn.step)
    generator, critic = nets

    def draw() -> Tensor:
        noise = torch.randn(len(real), config.noise_dim, generator=turn.generator)
        return cast(
            Tensor,
            generator(noise.to(device, real.dtype), side_px, fade, condition, dtype=dtype),
        )

    def beside(image: Tensor, shown: Tensor | None) -> Tensor:
        return image if shown is None else torch.cat([image, shown], dim=1)

    with torch.autocast(device.type, enabled=False):
        if player == "generator":
            with torch.no_grad():  # the critic's weights stand still
                judge = critic.at(side_px, fade, dtype=dtype)
            fake = turn.shared.pop("fake") if "fake" in turn.shared else draw()
            return {"adversarial": WASSERSTEIN.generator(judge(beside(fake, condition)))}

        if fade < 1:
            real = torch.lerp(blocks.double(blocks.halve(real)), real, fade)
        turn.shared["fake"] = draw()
        fake = turn.shared["fake"].detach()
        turn.shared["log/share_outside"] = (fake.abs() > 1).float().mean()
        judge = critic.at(side_px, fade, dtype=dtype)
        both = None if condition is None else torch.cat([condition, condition])
        logits = judge(beside(torch.cat([real, fake]), both), parts=2)
        of_real, of_fake = logits.chunk(2)
        losses = {
            "adversarial": WASSERSTEIN.critic(of_real, of_fake),
            "drift": config.drift_weight * of_real.square().mean(),
        }
        if turn.step % config.penalty_every == 0:
            n = max(1, round(config.penalty_share * len(real)))
            shown = None if condition is None else condition[:n]
            norms = gradient_norms(
                lambda x: judge(beside(x, shown), frozen_spread=config.frozen_spread),
                real[:n],
                fake[:n],
                generator=turn.generator,
            )
            turn.shared["log/gradient_norm"] = norms.detach().mean()
            weight = config.penalty_weight * config.penalty_every
            losses["penalty"] = weight * (norms - 1).square().mean()
        return losses


def deal(config: PGGANConfig, generator: Generator, critic: Critic) -> tuple[Player, ...]:
    """Critic, then generator; Adam without momentum; the generator is averaged."""

    def adam(net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            net.parameters(), lr=config.learning_rate, betas=(0.0, 0.99), eps=1e-8, fused=True
        )

    def rate(step: int, steps: int) -> float:
        return config.fine_factor if phase(config, step)[0] >= config.fine_from_px else 1.0

    return (
        Player("critic", (critic,), adam(critic), rate=rate),
        Player(
            "generator",
            (generator,),
            adam(generator),
            rate=rate,
            average=lambda step: config.average_decay,
        ),
    )


class PGGAN(GAN):
    """The progressive GAN without conditions."""

    step: Tensor

    def __init__(self, config: PGGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.critic = Critic(config)
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def stage(self, step: int) -> tuple[int, bool]:
        """Side in pixels, and whether it is being faded in."""
        return stage(self.config, step)

    def request(self, step: int) -> Request:
        """Real images at the present resolution."""
        side_px, _ = phase(self.config, step)
        return Request(self.config.batch_size, side_px, augment=self.config.augment)

    def players(self, step: int) -> tuple[Player, ...]:
        """Critic, generator."""
        return deal(self.config, self.generator, self.critic)

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """WGAN-GP with drift, at the present resolution."""
        nets = self.generator, self.critic
        return play(self.config, nets, player, turn, batch["image"])

    def after_move(self, player: str, batch: Batch, turn: Turn) -> None:
        """Note the step, so that `sample` knows the resolution."""
        self.step.fill_(turn.step)

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1] at the resolution that training has reached; what is beyond is cut.

        Raises:
            SettingsError: Conditions were given.
        """
        if given is not None:
            raise SettingsError("pggan takes no conditions; cpggan places boxes")
        side_px, fade = phase(self.config, int(self.step))
        dtype = blocks.convolution_dtype(noise.device)
        return cast(Tensor, self.generator(noise, side_px, fade, dtype=dtype)).clamp_(-1, 1)


def fitted(config: PGGANConfig, pools: dict[str, Pool]) -> PGGANConfig:
    """The settings with what the data decides: the number of channels."""
    channels = pools["real"].channels
    return config.model_copy(update={"channels": channels})


SYSTEM = PGGAN

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        PGGANConfig(stable_images=36_000, fade_images=36_000, shift=7.5 / 256),
        TrainSettings(steps=29_244, sample_every=1000, checkpoint_every=1000),
    ),
    "small": Preset(
        PGGANConfig(
            side_px=64,
            widest=96,
            base=512,
            noise_dim=96,
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
        PGGANConfig(
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
