"""Hybrid: a CPGGAN whose grown generator is fine-tuned against heads on frozen ImageNet features.

    noise z (n, d) + boxes with looks (n, 3, side, side) -> Generator -> image (n, c, side, side)
    part 1, as CPGGAN: image beside boxes and looks -> Critic -> logit (n,)
    part 2: image -> frozen EfficientNet-Lite0 -> Heads, beside boxes and looks -> logit maps

Ours, for budgets of minutes on a CPU, where WGAN-GP alone draws outlines with grain and frozen
features alone collapse (the same head again and again). Made of:
  Han et al. 2019 (CPGGAN, see `cpggan`): the first part, word for word, and the box condition
  Sauer et al. 2021, Projected GANs converge faster, https://arxiv.org/abs/2111.01007: hinge heads
  on several maps of a frozen network (without its random projections)
  Reed et al. 2016, https://arxiv.org/abs/1605.05396: a real image beside a wrong condition is a
  fake, so that heads look at boxes
  Mao et al. 2019, https://arxiv.org/abs/1903.05628, eq. 4: two noises under one condition shall
  give two images
Beside where a lesion lies, the generator is told how it looks (`nn/conditions.py`: contrast and
ring, measured in the training images), so that dark and ring-shaped lesions can be ordered.
"""

from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthoma.data.batches import Pool
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.gans import pggan
from synthoma.gans.cpggan import CPGGANConfig
from synthoma.gans.pggan import Critic, Generator, deal, phase, play, stage
from synthoma.nn import features
from synthoma.nn.blocks import batch_spread, convolution_dtype
from synthoma.nn.conditions import check_given, draw_looks, lesion_looks
from synthoma.nn.losses import HINGE, mean_over_maps

__all__ = ["DEMO", "PRESETS", "Hybrid", "HybridConfig", "fitted"]

#: Boxes, contrast, ring.
CONDITION_CHANNELS = 3
Stride = Literal[2, 4, 8, 16, 32]


class HybridConfig(CPGGANConfig):
    """The first part's settings are CPGGAN's; the second part's follow."""

    projected_from: int = Field(
        2_700_001, ge=2, description="First step of the second part: heads on frozen features."
    )
    feature_side_px: int = Field(
        256, ge=32, multiple_of=32, description="Side at which the frozen network looks."
    )
    strides: tuple[Stride, ...] = Field(
        (4, 8, 16, 32), min_length=1, description="Of the feature maps that heads judge."
    )
    head_width: int = Field(64, ge=1)
    head_rate: float = Field(1e-3, gt=0, description="Learning rate of the heads.")
    generator_rate: float = Field(5e-4, gt=0, description="Of the generator, in the second part.")
    head_start: int = Field(
        20, ge=0, description="Steps of the second part before the generator moves."
    )
    diversity_weight: float = Field(0.1, ge=0, description="Of the mode-seeking term.")
    look_weight: float = Field(1.0, ge=0, description="Of |look drawn - look ordered|.")
    fine_decay: float = Field(0.99, ge=0, lt=1, description="`average_decay` of the second part.")

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.batch_size % 2:
            raise ValueError(f"batch_size {self.batch_size} is odd: noises come in pairs")
        return self


class Head(nn.Module):
    """One feature map beside the condition -> a map of logits."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.entry = spectral_norm(nn.Conv2d(channels, width, 1))
        self.told = spectral_norm(nn.Conv2d(CONDITION_CHANNELS, width, 3, padding=1))
        self.conv = spectral_norm(nn.Conv2d(width + 1, width, 3, padding=1))
        self.logit = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(
        self, seen: Float[Tensor, "n c y x"], condition: Float[Tensor, "n k side side"]
    ) -> Float[Tensor, "n 1 y x"]:
        """Logits; minibatch standard deviation within groups of four, as in PGGAN's critic."""
        small = F.adaptive_avg_pool2d(condition, (seen.shape[-2], seen.shape[-1]))
        x = F.leaky_relu(self.entry(seen) + self.told(small), 0.2)
        spread = batch_spread(x, parts=1).expand(-1, 1, *x.shape[-2:])
        x = F.leaky_relu(self.conv(torch.cat([x, spread], dim=1)), 0.2)
        return cast(Tensor, self.logit(x))


class Heads(nn.Module):
    """A head for each map of the frozen network."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {str(s): Head(features.CHANNELS[s], config.head_width) for s in config.strides}
        )

    def forward(
        self, maps: dict[int, Tensor], condition: Float[Tensor, "n k y x"]
    ) -> list[Float[Tensor, "n 1 h w"]]:
        """A map of logits for each feature map."""
        return [self.heads[str(stride)](seen, condition) for stride, seen in maps.items()]


class Hybrid(GAN):
    """CPGGAN with looks, then projected fine-tuning."""

    step: Tensor
    conditions = ("boxes", "looks")

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config, condition_channels=CONDITION_CHANNELS)
        self.critic = Critic(config, condition_channels=CONDITION_CHANNELS)
        self.heads = Heads(config)
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def projected(self, step: int) -> bool:
        """Whether a step is of the second part."""
        return step >= self.config.projected_from

    def stage(self, step: int) -> tuple[bool, int, bool]:
        """The part, side in pixels, and whether that is being faded in."""
        return self.projected(step), *stage(self.config, step)

    def request(self, step: int) -> Request:
        """Real images and their boxes at the present resolution."""
        side_px, _ = phase(self.config, step)
        augment = self.config.augment
        return Request(self.config.batch_size, side_px, ("image", "boxes"), augment=augment)

    def players(self, step: int) -> tuple[Player, ...]:
        """Critic and generator; in the second part, heads and generator."""
        if not self.projected(step):
            return deal(self.config, self.generator, self.critic)
        config, start = self.config, self.config.projected_from

        def adam(net: nn.Module, rate: float) -> torch.optim.Optimizer:
            return torch.optim.Adam(net.parameters(), lr=rate, betas=(0.0, 0.99), fused=True)

        def falling(step: int, steps: int) -> float:
            """A straight line to a tenth."""
            return 1 - 0.9 * (step - start) / max(1, steps - start)

        def late(step: int, steps: int) -> float:
            return 0.0 if step < start + config.head_start else falling(step, steps)

        return (
            Player("heads", (self.heads,), adam(self.heads, config.head_rate), rate=falling),
            Player(
                "generator",
                (self.generator,),
                adam(self.generator, config.generator_rate),
                rate=late,
                average=lambda step: config.fine_decay,
            ),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """WGAN-GP as CPGGAN's, then the hinge game on frozen features."""
        real = batch["image"]
        boxes, case = batch["boxes"].to(real.dtype), batch["box_case"]
        looks = lesion_looks(real, boxes, case)
        condition = draw_looks(boxes, looks, case, images=len(real), side_px=real.shape[-1])
        if not self.projected(turn.step):
            nets = self.generator, self.critic
            return play(self.config, nets, player, turn, real, condition)
        return self.fine_tune(player, turn, real, condition, (boxes, looks, case))

    def fine_tune(
        self,
        player: str,
        turn: Turn,
        real: Float[Tensor, "n c y x"],
        condition: Float[Tensor, "n k y x"],
        lesions: tuple[Tensor, Tensor, Tensor],
    ) -> Losses:
        """The second part: each condition of the first half of the batch is drawn with two noises.

        Autocast is off: the generator's convolutions ask for its precision themselves, features
        and heads stay in float32.
        """
        config, half = self.config, len(real) // 2
        dtype = convolution_dtype(real.device)
        twice = condition[:half].repeat(2, 1, 1, 1)

        def draw() -> tuple[Tensor, Tensor]:
            noise = torch.randn(len(real), config.noise_dim, generator=turn.generator)
            noise = noise.to(real.device, real.dtype)
            side_px, fade = phase(config, turn.step)
            return self.generator(noise, side_px, fade, twice, dtype=dtype), noise

        def maps(image: Tensor) -> dict[int, Tensor]:
            return features.maps(image, config.strides, config.feature_side_px)

        with torch.autocast(real.device.type, enabled=False):
            if "fake" not in turn.shared:
                turn.shared["fake"], turn.shared["noise"] = draw()
            fake = turn.shared["fake"]
            if player == "heads":
                with torch.no_grad():
                    of_real, of_fake = maps(real), maps(fake)
                right = self.heads(of_real, condition)
                wrong = self.heads(of_real, condition.roll(1, dims=0))
                drawn = self.heads(of_fake, twice)
                turn.shared["log/right"] = torch.stack([m.mean() for m in right]).mean().detach()
                turn.shared["log/drawn"] = torch.stack([m.mean() for m in drawn]).mean().detach()
                return {
                    "adversarial": mean_over_maps(HINGE.critic, right, drawn),
                    "mismatched": 0.5 * mean_over_maps(lambda m: F.relu(1 + m).mean(), wrong),
                }
            terms = {"adversarial": mean_over_maps(HINGE.generator, self.heads(maps(fake), twice))}
            if config.diversity_weight:
                noise = turn.shared["noise"]
                images, noises = ((x[:half] - x[half:]).abs().mean() for x in (fake, noise))
                terms["diversity"] = config.diversity_weight * noises / (images + 1e-5)
            if config.look_weight and len(lesions[0]):
                terms["looks"] = config.look_weight * look_error(fake, lesions, half)
            return terms

    def after_move(self, player: str, batch: Batch, turn: Turn) -> None:
        """Note the step, so that `sample` knows the resolution."""
        self.step.fill_(turn.step)

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1] at the resolution that training has reached; what is beyond is cut.

        Args:
            given: "boxes" (m, 4) in pixels of the finished image, "box_case" (m,) and "looks"
                (m, 2).

        Raises:
            SettingsError: One of them is missing, or boxes are of images not asked for.
        """
        told = check_given("hybrid", given, ("boxes", "box_case", "looks"), images=len(noise))
        boxes, looks = told["boxes"].to(noise), told["looks"].to(noise)
        case = told["box_case"].to(noise.device)
        side_px, fade = phase(self.config, int(self.step))
        scale = side_px / self.config.side_px
        condition = draw_looks(boxes * scale, looks, case, images=len(noise), side_px=side_px)
        dtype = convolution_dtype(noise.device)
        images = self.generator(noise, side_px, fade, condition, dtype=dtype)
        return cast(Tensor, images).clamp_(-1, 1)


def look_error(
    fake: Float[Tensor, "n c y x"], lesions: tuple[Tensor, Tensor, Tensor], half: int
) -> Float[Tensor, ""]:
    """Mean |drawn - ordered| of contrast and ring, of images that were drawn twice."""
    boxes, looks, case = lesions
    used = case < half
    boxes, looks, case = boxes[used].repeat(2, 1), looks[used].repeat(2, 1), case[used]
    drawn = lesion_looks(fake, boxes, torch.cat([case, case + half]))
    return (drawn - looks).abs().sum() / max(1, 2 * len(looks))


def fitted(config: HybridConfig, pools: dict[str, Pool]) -> HybridConfig:
    """The settings with what the data decides: the number of channels.

    Raises:
        DataError: The frozen network does not look at images of so many channels.
    """
    found = cast(HybridConfig, pggan.fitted(config, pools))
    features.check_channels(found.channels)
    return found


SYSTEM = Hybrid

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        HybridConfig(),
        TrainSettings(steps=3_000_000, sample_every=10_000, checkpoint_every=5_000),
    ),
    "smoke": Preset(
        HybridConfig(
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
            projected_from=1_301,
            feature_side_px=64,
        ),
        TrainSettings(steps=1_600, precision="bf16", sample_every=400),
    ),
    "small": Preset(
        HybridConfig(
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
            projected_from=10_001,
            feature_side_px=64,
        ),
        TrainSettings(steps=14_000, precision="bf16", sample_every=1000),
    ),
}

#: The verb `demo`: 64 px in minutes on one thread. Deal it slices with lesions only.
DEMO = Preset(
    HybridConfig(
        side_px=64,
        widest=64,
        base=512,
        noise_dim=64,
        batch_size=8,
        stable_images=2_000,
        fade_images=2_000,
        learning_rate=2e-3,
        fine_from_px=32,
        fine_factor=0.5,
        penalty_share=0.5,
        average_decay=0.99,
        mirror=True,
        frozen_spread=True,
        projected_from=2_401,
        feature_side_px=64,
    ),
    TrainSettings(steps=3_500, precision="bf16", sample_every=500),
)
