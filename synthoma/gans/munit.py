"""MUNIT: an image is what it shows (content) and how it looks (style); only the look is exchanged.

    image of a domain (n, c, side, side) -> content (n, w, side/2^h, side/2^h), style (n, d)
    content, style -> Decoder of a domain -> image of that domain (n, c, side, side)
    image -> Discriminator of its domain -> logits (n, 1, y, x) at each of three scales

Papers:
  Huang et al. 2018, Multimodal unsupervised image-to-image translation,
  https://arxiv.org/abs/1804.04732 (equations 1 to 7, section 5.1, appendix B)
  Han, thesis, section 4.2.3: steps, batch, rate and its halvings, flips
A style is drawn from N(0, 1) to translate, and enters as scale and shift of normalised features
(AdaIN). Images come back from their own codes; content and style come back from a translation.
Ours where the papers say nothing: Kaiming's first weights in all networks; least squares with the
factor one half, summed over scales. No perceptual loss: the paper has it for streets at 512 px.
The presets `small` and `smoke` halve the side once and pay for images that come back from the other
domain: with two halvings and no such price, images of 32 px became stripes.
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
from synthoma.errors import SettingsError
from synthoma.nn.domains import DOMAINS, OTHER, channels_of
from synthoma.nn.losses import LEAST_SQUARES


class MUNITConfig(BaseModel):
    """Defaults are Huang et al. 2018's, and those of Han's thesis where it trains for MR images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Literal[16, 32, 64, 128, 256, 512] = Field(256, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    width: int = Field(64, ge=1, description="Feature maps at full side, doubled at each halving.")
    halvings: int = Field(2, ge=1, le=3, description="How often the side of a content is halved.")
    blocks: int = Field(4, ge=1, description="Residual blocks of a content encoder, of a decoder.")
    style_dim: int = Field(8, ge=1, description="Numbers in a style.")
    style_width: int = Field(256, ge=1, description="Units of the layers between style and AdaIN.")
    judge_width: int = Field(64, ge=1, description="Feature maps of a discriminator's first layer.")
    judge_halvings: int = Field(4, ge=1, description="Strided layers of a discriminator.")
    scales: int = Field(
        3, ge=1, validate_default=True, description="At how many scales images are judged."
    )
    batch_size: int = Field(1, ge=1, description="Images of each domain.")
    learning_rate: float = Field(1e-4, gt=0)
    halved_every: int = Field(20_000, ge=1, description="Steps after which the rate is halved.")
    image_weight: float = Field(10, ge=0, description="Of images that come back (lambda x).")
    content_weight: float = Field(1, ge=0, description="Of content that comes back (lambda c).")
    style_weight: float = Field(1, ge=0, description="Of styles that come back (lambda s).")
    cycle_weight: float = Field(
        0, ge=0, description="Of images that come back from the other domain; 0: not asked."
    )
    twins: bool = Field(
        False, description="Both domains' networks begin with the same weights, judges apart."
    )
    mirror: bool = Field(True, description="Flip half of the images left to right.")

    @field_validator("scales")
    @classmethod
    def leaves_something(cls, scales: int, info: ValidationInfo) -> int:
        """The coarsest discriminator judges at least one patch."""
        side_px, halvings = info.data.get("side_px", 512), info.data.get("judge_halvings", 1)
        if side_px >> (halvings + scales - 1) < 1:
            raise ValueError(f"{halvings} halvings of {side_px} px leave nothing at scale {scales}")
        return scales


def widths_of(config: MUNITConfig) -> list[int]:
    """Feature maps at full side, at half, and so on down to the content's."""
    return [config.width << k for k in range(config.halvings + 1)]


def convolve(low: int, high: int, kernel_px: int, stride: int = 1) -> nn.Conv2d:
    """A convolution with reflected edges; side / stride."""
    padding = (kernel_px - stride + 1) // 2
    return nn.Conv2d(low, high, kernel_px, stride, padding, padding_mode="reflect")


class Residual(nn.Module):
    """Two 3x3 convolutions with instance normalisation, added to what they saw; shape kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolve(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            convolve(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Float[Tensor, "n w y x"]) -> Float[Tensor, "n w y x"]:
        """The features after the block."""
        return x + self.layers(x)


class ContentEncoder(nn.Sequential):
    """image (n, channels, side, side) -> content (n, w, side / 2^h, side / 2^h)."""

    def __init__(self, config: MUNITConfig) -> None:
        widths = widths_of(config)
        layers: list[nn.Module] = [convolve(config.channels, widths[0], 7)]
        layers += [nn.InstanceNorm2d(widths[0]), nn.ReLU()]
        for low, high in pairwise(widths):
            layers += [convolve(low, high, 4, stride=2), nn.InstanceNorm2d(high), nn.ReLU()]
        super().__init__(*layers, *(Residual(widths[-1]) for _ in range(config.blocks)))


class StyleEncoder(nn.Sequential):
    """image (n, channels, side, side) -> style (n, style_dim); instance norms would remove it."""

    def __init__(self, config: MUNITConfig) -> None:
        w = config.width
        layers: list[nn.Module] = [convolve(config.channels, w, 7), nn.ReLU()]
        for low, high in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w), (4 * w, 4 * w)):
            layers += [convolve(low, high, 4, stride=2), nn.ReLU()]
        super().__init__(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * w, config.style_dim)
        )


class StyledResidual(nn.Module):
    """A residual block whose normalised features get their scale and shift from a style."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolve(width, width, 3)
        self.second = convolve(width, width, 3)

    def forward(
        self, x: Float[Tensor, "n w y x"], style: Float[Tensor, "n 2 2 w 1 1"]
    ) -> Float[Tensor, "n w y x"]:
        """The features after the block; `style` has scale and shift for each convolution."""
        inner = torch.relu(adapt(self.first(x), style[:, 0]))
        return x + adapt(self.second(inner), style[:, 1])


def adapt(x: Float[Tensor, "n w y x"], style: Float[Tensor, "n 2 w 1 1"]) -> Tensor:
    """Adaptive instance normalisation (equation 7)."""
    return F.instance_norm(x) * style[:, 0] + style[:, 1]


class Decoder(nn.Module):
    """content (n, w, side/2^h, side/2^h), style (n, d) -> image (n, channels, side, side)."""

    def __init__(self, config: MUNITConfig) -> None:
        super().__init__()
        widths, inner = widths_of(config)[::-1], config.style_width
        self.blocks = nn.ModuleList([StyledResidual(widths[0]) for _ in range(config.blocks)])
        self.to_styles = nn.Sequential(
            nn.Linear(config.style_dim, inner),
            nn.ReLU(),
            nn.Linear(inner, inner),
            nn.ReLU(),
            nn.Linear(inner, config.blocks * 2 * 2 * widths[0]),
        )
        layers: list[nn.Module] = []
        for high, low in pairwise(widths):
            layers += [
                nn.Upsample(scale_factor=2),
                convolve(high, low, 5),
                nn.GroupNorm(1, low),  # one group: layer normalisation
                nn.ReLU(),
            ]
        self.up = nn.Sequential(*layers, convolve(widths[-1], config.channels, 7), nn.Tanh())

    def forward(
        self, content: Float[Tensor, "n w h v"], style: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n c y x"]:
        """The image with this content in this style."""
        shape = (len(self.blocks), 2, 2, content.shape[1], 1, 1)
        styles = self.to_styles(style).unflatten(1, shape)
        for k, block in enumerate(self.blocks):
            content = block(content, styles[:, k])
        image: Tensor = self.up(content)
        return image


class Discriminator(nn.Module):
    """image (n, channels, side, side) -> logits (n, 1, y, x) at each scale, finest first."""

    def __init__(self, config: MUNITConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for _ in range(config.scales):
            layers, low = list[nn.Module](), config.channels
            for k in range(config.judge_halvings):
                high = config.judge_width << k
                layers += [convolve(low, high, 4, stride=2), nn.LeakyReLU(0.2)]
                low = high
            self.scales.append(nn.Sequential(*layers, nn.Conv2d(low, 1, 1)))

    def forward(self, image: Float[Tensor, "n c y x"]) -> list[Tensor]:
        """The logits."""
        found = []
        for scale in self.scales:
            found.append(scale(image).to(image.dtype))
            image = F.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)
        return found


class MUNIT(Refiner):
    """For each domain two encoders, a decoder and a discriminator."""

    def __init__(self, config: MUNITConfig) -> None:
        super().__init__()
        self.config = config
        self.side_px = config.side_px
        self.style_shape = (config.style_dim,)
        self.content = nn.ModuleDict({domain: ContentEncoder(config) for domain in DOMAINS})
        self.style = nn.ModuleDict({domain: StyleEncoder(config) for domain in DOMAINS})
        self.decoders = nn.ModuleDict({domain: Decoder(config) for domain in DOMAINS})
        self.discriminators = nn.ModuleDict({domain: Discriminator(config) for domain in DOMAINS})
        self.apply(begin)
        if config.twins:
            for nets in (self.content, self.style, self.decoders):
                nets["source"].load_state_dict(nets["real"].state_dict())

    def request(self, step: int) -> Request:
        """As many images of each domain."""
        augment = MIRROR if self.config.mirror else None
        return Request(
            self.config.batch_size, self.config.side_px, augment=augment, domains=DOMAINS
        )

    def players(self, step: int) -> tuple[Player, ...]:
        """The discriminators, then the translators."""

        def play(name: str, *nets: nn.Module) -> Player:
            weights = [p for net in nets for p in net.parameters()]
            adam = torch.optim.Adam(
                weights, lr=self.config.learning_rate, betas=(0.5, 0.999), fused=True
            )
            return Player(name, nets, adam, rate=self.rate)

        return (
            play("discriminators", self.discriminators),
            play("translators", self.content, self.style, self.decoders),
        )

    def rate(self, step: int, steps: int) -> float:
        """Halved again and again."""
        return 0.5 ** ((step - 1) // self.config.halved_every)

    def decode(self, domain: str, content: Tensor, style: Tensor) -> Tensor:
        """The image of a domain with this content in this style."""
        image: Tensor = self.decoders[domain](content, style)
        return image.float()

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Equations 2 to 6; terms of both domains are summed."""
        shared, config = turn.shared, self.config
        if "real content" not in shared:  # by whoever moves first
            for d in DOMAINS:
                image = batch[f"{d}/image"]
                drawn = torch.randn(len(image), config.style_dim, generator=turn.generator)
                shared[f"{OTHER[d]} drawn"] = drawn.to(image.device)
                shared[f"{d} content"] = self.content[d](image)
                shared[f"{d} translated"] = self.decode(
                    OTHER[d], shared[f"{d} content"], shared[f"{OTHER[d]} drawn"]
                )
        made = {d: shared[f"{d} translated"] for d in DOMAINS}  # images of the other domain
        if player == "discriminators":
            games = [
                LEAST_SQUARES.critic(real, fake)
                for d in DOMAINS
                for real, fake in zip(
                    self.discriminators[OTHER[d]](batch[f"{OTHER[d]}/image"]),
                    self.discriminators[OTHER[d]](made[d].detach()),
                    strict=True,
                )
            ]
            return {"adversarial": torch.stack(games).sum()}
        terms: dict[str, list[Tensor]] = {
            k: [] for k in ("adversarial", "image", "content", "style")
        }
        if config.cycle_weight:
            terms["cycle"] = []
        for d in DOMAINS:
            image, content = batch[f"{d}/image"], shared[f"{d} content"]
            judged = self.discriminators[OTHER[d]](made[d])
            style, again = self.style[d](image), self.content[OTHER[d]](made[d])
            terms["adversarial"] += [LEAST_SQUARES.generator(logits) for logits in judged]
            terms["image"].append(F.l1_loss(self.decode(d, content, style), image))
            terms["content"].append(F.l1_loss(again, content))
            terms["style"].append(
                F.l1_loss(self.style[OTHER[d]](made[d]), shared[f"{OTHER[d]} drawn"])
            )
            if config.cycle_weight:
                terms["cycle"].append(F.l1_loss(self.decode(d, again, style), image))
        shared["log/refined/distance"] = (
            (made["source"] - batch["source/image"]).abs().mean().detach()
        )
        weights = {
            "adversarial": 1.0,
            "image": config.image_weight,
            "content": config.content_weight,
            "style": config.style_weight,
            "cycle": config.cycle_weight,
        }
        return {name: weights[name] * torch.stack(own).sum() for name, own in terms.items()}

    @torch.no_grad()
    def refine(
        self, image: Float[Tensor, "n c y x"], style: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images of the source as images of the real domain, each in its style.

        Raises:
            SettingsError: There is no style.
        """
        if style is None:
            raise SettingsError(
                f"munit was given no style; it needs one for each image, (n, {self.style_shape[0]})"
            )
        return self.decode("real", self.content["source"](image), style)


def begin(layer: nn.Module) -> None:
    """He et al.'s first weights."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def fitted(config: MUNITConfig, pools: dict[str, Pool]) -> MUNITConfig:
    """The settings with what the data decides: the number of channels, the same in both domains."""
    return config.model_copy(update={"channels": channels_of(pools)})


SYSTEM = MUNIT

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        MUNITConfig(),
        TrainSettings(steps=100_000, sample_every=5_000, checkpoint_every=1_000),
    ),
    "small": Preset(
        MUNITConfig(
            side_px=64,
            width=16,
            halvings=1,  # at 2 small images keep outlines alone
            blocks=2,
            style_width=64,
            judge_width=16,
            judge_halvings=3,
            scales=2,
            batch_size=4,
            learning_rate=1e-3,
            halved_every=1_000,
            cycle_weight=10,
            twins=True,
        ),
        TrainSettings(steps=1_500, precision="bf16", sample_every=250),
    ),
    "smoke": Preset(
        MUNITConfig(
            side_px=32,
            width=12,
            halvings=1,  # at 2 small images keep outlines alone
            blocks=1,
            style_width=32,
            judge_width=16,
            judge_halvings=2,
            scales=2,
            batch_size=4,
            learning_rate=1e-3,
            halved_every=400,
            cycle_weight=10,
            twins=True,
        ),
        TrainSettings(steps=600, precision="bf16", sample_every=200),
    ),
}
