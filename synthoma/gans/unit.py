"""UNIT: two VAEs whose codes lie in one space, so that what one encodes the other can decode.

    image of a domain (n, c, side, side) -> Encoder, shared block -> code (n, d, side/2^h, side/2^h)
    code -> shared block, Generator of a domain -> image of that domain (n, c, side, side)
    image -> Discriminator of its domain -> logits (n, 1, y, x)

Papers:
  Liu et al. 2017, Unsupervised image-to-image translation networks,
  https://arxiv.org/abs/1703.00848 (equations 2 to 7, section 4, the appendix's table of layers)
  Han et al. 2019, Combining noise-to-image and image-to-image GANs, section III-C: steps, batch,
  rate and its halvings, flips
The last block of the encoders and the first of the generators are one for both domains. A code is
N(mean, 1). Each domain pays for reconstruction, for its code's divergence from N(0, 1), for how its
translation into the other looks, and for what comes back (cycle), with the same two prices.
Ours where the papers say nothing or little: prices are of means over pixels and code (the weights
balance so); the first residual block of an encoder passes its input through a 1x1 convolution, as
the table has 256 feature maps before it and 512 within; instance normalisation within residual
blocks alone; a slope of 0.2; PyTorch's first weights. Images are refined with the mean as the code,
so that the same image is always refined to the same.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import Batch, Losses, Player, Refiner, Request, Turn
from synthoma.nn.domains import DOMAINS, OTHER, channels_of
from synthoma.nn.losses import NON_SATURATING


class UNITConfig(BaseModel):
    """Defaults are Liu et al. 2017's, and Han et al. 2019's where those train for MR images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Literal[16, 32, 64, 128, 256, 512] = Field(256, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    width: int = Field(64, ge=1, description="Feature maps at full side, doubled at each halving.")
    halvings: int = Field(2, ge=1, le=3, description="How often the side of a code is halved.")
    blocks: int = Field(3, ge=1, description="Residual blocks of each domain's own.")
    judge_halvings: int = Field(
        5, ge=1, validate_default=True, description="Strided layers of the discriminators."
    )
    judge_width: int = Field(64, ge=1, description="Feature maps after the first of them.")
    batch_size: int = Field(1, ge=1, description="Images of each domain.")
    learning_rate: float = Field(1e-4, gt=0)
    halved_every: int = Field(20_000, ge=1, description="Steps after which the rate is halved.")
    adversarial_weight: float = Field(10, ge=0, description="lambda 0.")
    divergence_weight: float = Field(0.1, ge=0, description="lambda 1 and 3.")
    distance_weight: float = Field(100, ge=0, description="lambda 2 and 4.")
    mirror: bool = Field(True, description="Flip half of the images left to right.")

    @field_validator("judge_halvings")
    @classmethod
    def leaves_something(cls, halvings: int, info: ValidationInfo) -> int:
        """The discriminators' last filter is 2x2."""
        if (side_px := info.data.get("side_px", 512)) >> halvings < 2:
            raise ValueError(f"less than 2 px of {side_px} are left to judge")
        return halvings


def widths_of(config: UNITConfig) -> list[int]:
    """Feature maps at full side, at half, and so on; last those of a code, at the last side."""
    return [config.width << k for k in range(config.halvings + 2)]


class Residual(nn.Module):
    """Two 3x3 convolutions, added to what they saw; shape kept."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(low, high, 3, padding=1),
            nn.InstanceNorm2d(high),
            nn.LeakyReLU(0.2),
            nn.Conv2d(high, high, 3, padding=1),
            nn.InstanceNorm2d(high),
        )
        self.past = nn.Identity() if low == high else nn.Conv2d(low, high, 1)

    def forward(self, x: Float[Tensor, "n low y x"]) -> Float[Tensor, "n high y x"]:
        """The features after the block."""
        return self.past(x) + self.layers(x)


class Encoder(nn.Sequential):
    """image (n, channels, side, side) -> features (n, d, side / 2^h, side / 2^h)."""

    def __init__(self, config: UNITConfig) -> None:
        *widths, deep = widths_of(config)
        layers: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 7, padding=3)]
        for low, high in pairwise(widths):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(low, high, 3, stride=2, padding=1)]
        super().__init__(
            *layers,
            nn.LeakyReLU(0.2),
            Residual(widths[-1], deep),
            *(Residual(deep, deep) for _ in range(config.blocks - 1)),
        )


class Generator(nn.Sequential):
    """features (n, d, side / 2^h, side / 2^h) -> image (n, channels, side, side)."""

    def __init__(self, config: UNITConfig) -> None:
        widths = widths_of(config)[:0:-1]  # back to twice the encoder's first
        layers: list[nn.Module] = [Residual(widths[0], widths[0]) for _ in range(config.blocks)]
        for high, low in pairwise(widths):
            up = nn.ConvTranspose2d(high, low, 3, stride=2, padding=1, output_padding=1)
            layers += [up, nn.LeakyReLU(0.2)]
        last = nn.Conv2d(widths[-1], config.channels, 1)  # transposed, stride 1 and 1x1: the same
        super().__init__(*layers, last, nn.Tanh())


class Discriminator(nn.Sequential):
    """image (n, channels, side, side) -> logits (n, 1, y, x), one a patch."""

    def __init__(self, config: UNITConfig) -> None:
        widths = [config.judge_width << k for k in range(config.judge_halvings)]
        layers: list[nn.Module] = []
        for low, high in pairwise([config.channels, *widths]):
            layers += [nn.Conv2d(low, high, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 2))


class UNIT(Refiner):
    """Both VAEs, and who judges each."""

    def __init__(self, config: UNITConfig) -> None:
        super().__init__()
        self.config = config
        self.side_px = config.side_px
        self.encoders = nn.ModuleDict({domain: Encoder(config) for domain in DOMAINS})
        deep = widths_of(config)[-1]
        self.to_code, self.from_code = Residual(deep, deep), Residual(deep, deep)
        self.generators = nn.ModuleDict({domain: Generator(config) for domain in DOMAINS})
        self.discriminators = nn.ModuleDict({domain: Discriminator(config) for domain in DOMAINS})

    def request(self, step: int) -> Request:
        """As many images of each domain."""
        augment = MIRROR if self.config.mirror else None
        return Request(
            self.config.batch_size, self.config.side_px, augment=augment, domains=DOMAINS
        )

    def players(self, step: int) -> tuple[Player, ...]:
        """The discriminators, then the VAEs."""
        translating = (self.encoders, self.to_code, self.from_code, self.generators)

        def play(name: str, *nets: nn.Module) -> Player:
            weights = [p for net in nets for p in net.parameters()]
            adam = torch.optim.Adam(
                weights, lr=self.config.learning_rate, betas=(0.5, 0.999), fused=True
            )
            return Player(name, nets, adam, rate=self.rate)

        return play("discriminators", self.discriminators), play("translators", *translating)

    def rate(self, step: int, steps: int) -> float:
        """Halved again and again."""
        return 0.5 ** ((step - 1) // self.config.halved_every)

    def encode(self, domain: str, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n d h w"]:
        """The mean of the code of an image of a domain."""
        code: Tensor = self.to_code(self.encoders[domain](image))
        return code.to(image.dtype)

    def decode(self, domain: str, code: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c y x"]:
        """The image of a domain that a code stands for."""
        image: Tensor = self.generators[domain](self.from_code(code))
        return image.to(code.dtype)

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Equations 2 to 7; terms of both domains are summed."""
        shared, config = turn.shared, self.config
        weights = {
            "adversarial": config.adversarial_weight,
            "distance": config.distance_weight,
            "divergence": config.divergence_weight,
            "cycle": config.distance_weight,
        }

        def noisy(mean: Tensor) -> Tensor:
            return mean + torch.randn(mean.shape, generator=turn.generator).to(mean.device)

        def judge(domain: str, image: Tensor) -> Tensor:
            logits: Tensor = self.discriminators[domain](image)
            return logits.to(image.dtype)

        if "real mean" not in shared:  # by whoever moves first
            for domain in DOMAINS:
                mean = shared[f"{domain} mean"] = self.encode(domain, batch[f"{domain}/image"])
                code = shared[f"{domain} code"] = noisy(mean)
                shared[f"{domain} translated"] = self.decode(OTHER[domain], code)
        made = {d: shared[f"{d} translated"] for d in DOMAINS}  # images of the other domain
        if player == "discriminators":
            games = [
                NON_SATURATING.critic(
                    judge(OTHER[d], batch[f"{OTHER[d]}/image"]), judge(OTHER[d], made[d].detach())
                )
                for d in DOMAINS
            ]
            return {"adversarial": weights["adversarial"] * torch.stack(games).sum()}
        terms: dict[str, list[Tensor]] = {name: [] for name in weights}
        for d in DOMAINS:
            image, mean, code = batch[f"{d}/image"], shared[f"{d} mean"], shared[f"{d} code"]
            again = self.encode(OTHER[d], made[d])
            terms["adversarial"].append(NON_SATURATING.generator(judge(OTHER[d], made[d])))
            terms["distance"].append(F.l1_loss(self.decode(d, code), image))
            terms["cycle"].append(F.l1_loss(self.decode(d, noisy(again)), image))
            terms["divergence"].append((mean.square().mean() + again.square().mean()) / 2)
        shared["log/refined/distance"] = (
            (made["source"] - batch["source/image"]).abs().mean().detach()
        )
        return {name: weights[name] * torch.stack(own).sum() for name, own in terms.items()}

    @torch.no_grad()
    def refine(
        self, image: Float[Tensor, "n c y x"], style: Tensor | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images of the source as images of the real domain; there is no style."""
        return self.decode("real", self.encode("source", image))


def fitted(config: UNITConfig, pools: dict[str, Pool]) -> UNITConfig:
    """The settings with what the data decides: the number of channels, the same in both domains."""
    return config.model_copy(update={"channels": channels_of(pools)})


SYSTEM = UNIT

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        UNITConfig(),
        TrainSettings(steps=100_000, sample_every=5_000, checkpoint_every=1_000),
    ),
    "small": Preset(
        UNITConfig(
            side_px=64,
            width=8,
            halvings=1,  # at 2 small images keep outlines alone
            blocks=2,
            judge_halvings=3,
            judge_width=32,
            batch_size=4,
            learning_rate=1e-3,
            halved_every=1_000,
            adversarial_weight=2,  # at 10 the toy of the contract tests lost its shape
        ),
        TrainSettings(steps=2_500, precision="bf16", sample_every=500),
    ),
    "smoke": Preset(
        UNITConfig(
            side_px=32,
            width=8,
            halvings=1,  # at 2 small images keep outlines alone
            blocks=1,
            judge_halvings=2,
            judge_width=16,
            batch_size=4,
            learning_rate=1e-3,
            halved_every=400,
            adversarial_weight=2,  # at 10 the toy of the contract tests lost its shape
        ),
        TrainSettings(steps=600, precision="bf16", sample_every=200),
    ),
}
