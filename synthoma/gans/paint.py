"""PAINT: a GAN that paints lesions into real slices, each with the position and look ordered.

    slice (n, c, side, side) + box + look -> patch around the box, its middle hidden (m, c, p, p)
    hidden patch + noise -> Generator -> patch (m, c, p, p) -> back into the slice, in its region
    patch -> frozen features -> Context -> logits;  its middle, box, look -> Lesion -> logits

Papers:
  Han et al. 2019, Synthesizing diverse lung nodules wherever massively: 3D multi-conditional
  GAN-based CT image augmentation for object detection, https://arxiv.org/abs/1906.04962
Differs from the paper, whose MCGAN is 3D; this is ours, in 2D, for small sets: the region follows
the box and has a soft rim, so that there is no seam; looks (see `nn/conditions.py`) stand in for
annotated sizes and attenuations, and what is painted is measured, too; half of a step's lesions
are painted with the look of another; the context critic sees frozen features (hinge loss), the
lesion critic pixels (LSGAN); two noises must give two lesions.
"""

from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthoma.data.batches import Pool
from synthoma.data.classic import STILL
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import DataError, SettingsError
from synthoma.nn import features
from synthoma.nn.blocks import batch_spread
from synthoma.nn.conditions import check_given, draw_looks, lesion_looks
from synthoma.nn.losses import HINGE, LEAST_SQUARES, mean_over_maps
from synthoma.nn.patches import Region, cut, in_turn, one_box_each, put_back

#: Covered, contrast, ring.
CONDITION_CHANNELS = 3
#: Side of the noise, which is stretched over the hidden region.
NOISE_PX = 8
Stride = Literal[2, 4, 8, 16, 32]


class PaintConfig(BaseModel):
    """Defaults are ours; the paper's volumes are 64^3 with nodules in their middle 32^3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(256, ge=8, description="Side of the slices that are painted into.")
    channels: int = Field(1, ge=1, description="Image channels.")
    patch_px: int = Field(128, ge=16, description="Side at which patches are painted.")
    around: float = Field(2.0, ge=1.5, description="Side of a patch, in longer sides of its box.")
    margin: float = Field(0.2, ge=0, description="Painted beyond a box, in halves of its sides,")
    least_margin_px: float = Field(1.5, ge=0.5, description="but at least this, in slice pixels.")
    rim: float = Field(0.25, gt=0, lt=1, description="Share of the region that fades into it.")
    width: int = Field(48, ge=8, description="Feature maps at full resolution.")
    widest: int = Field(192, ge=8, description="Most feature maps at any resolution.")
    batch_size: int = Field(16, ge=2)
    feature_side_px: int = Field(
        256, ge=32, multiple_of=32, description="Side at which the frozen network looks."
    )
    strides: tuple[Stride, ...] = Field((4, 8), min_length=1, description="Of the maps it sees.")
    head_width: int = Field(64, ge=1)
    learning_rate: float = Field(5e-4, gt=0, description="Of the generator.")
    critic_rate: float = Field(1e-3, gt=0, description="Of the critics.")
    reconstruction_weight: float = Field(
        2.0, ge=0, description="Of the L1 distance to the real lesion, where its look was ordered."
    )
    look_weight: float = Field(3.0, ge=0, description="Of |look painted - look ordered|.")
    diversity_weight: float = Field(0.1, ge=0, description="Of the mode-seeking term.")
    context_weight: float = Field(1.0, ge=0, description="Of the context critic's game.")
    lesion_weight: float = Field(1.0, ge=0, description="Of the lesion critic's game.")
    average_decay: float = Field(0.995, ge=0, lt=1, description="Of the generator's average.")
    flip: bool = Field(True, description="Mirror real slices along both axes.")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.patch_px % 8:
            raise ValueError(f"patch_px {self.patch_px}; allowed: multiples of 8")
        return self


class Generator(nn.Module):
    """A U-Net. (hidden patch, alpha, condition) + noise -> patch; three halvings."""

    def __init__(self, config: PaintConfig) -> None:
        super().__init__()
        widths = [min(config.width << k, config.widest) for k in range(4)]
        seen = config.channels + 1 + CONDITION_CHANNELS + 1
        self.entry = nn.Conv2d(seen, widths[0], 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(widths[k], widths[k + 1], 4, stride=2, padding=1) for k in range(3)
        )
        self.told = nn.Linear(NOISE_PX**2, 2 * widths[3])
        self.middle = nn.Conv2d(widths[3], widths[3], 3, padding=1)
        self.ups = nn.ModuleList(
            nn.Conv2d(widths[k + 1] + widths[k], widths[k], 3, padding=1) for k in (2, 1, 0)
        )
        self.exit = nn.Conv2d(widths[0], config.channels, 3, padding=1)
        nn.init.normal_(self.exit.weight, std=0.01)  # begins with the mean of the surroundings
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def forward(
        self,
        patch: Float[Tensor, "n c p p"],
        alpha: Float[Tensor, "n 1 p p"],
        condition: Float[Tensor, "n k p p"],
        noise: Float[Tensor, "n h h"],
    ) -> Float[Tensor, "n c p p"]:
        """What the region shall show.

        Args:
            patch: Real pixels; what `alpha` hides is taken away here.
        """
        seen = 1 - alpha
        around = (patch * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
        hidden = patch * seen + around * alpha
        spots = F.interpolate(noise[:, None], patch.shape[-2:], mode="bicubic") * alpha
        x = F.leaky_relu(self.entry(torch.cat([hidden, alpha, condition, spots], dim=1)), 0.2)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = F.leaky_relu(normed(down(x)), 0.2)
        gain, shift = self.told(noise.flatten(1))[:, :, None, None].chunk(2, dim=1)
        x = F.leaky_relu(normed(self.middle(x)) * (1 + gain) + shift, 0.2)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(normed(up(torch.cat([x, skip], dim=1))), 0.2)
        return (hidden + self.exit(x).float()).clamp(-1.1, 1.1)


def normed(x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
    """Features of length one at every pixel, as in PGGAN: levels of grey survive it."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()


class Context(nn.Module):
    """Maps of the frozen network -> maps of logits, from a head on each; spectral normalisation."""

    def __init__(self, config: PaintConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {str(s): Head(features.CHANNELS[s], config.head_width) for s in config.strides}
        )

    def forward(self, maps: dict[int, Tensor]) -> list[Float[Tensor, "n 1 h w"]]:
        """A map of logits for each map of features."""
        return [self.heads[str(stride)](seen) for stride, seen in maps.items()]


class Head(nn.Module):
    """features -> logits, (n, channels, h, w) -> (n, 1, h, w)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.entry = spectral_norm(nn.Conv2d(channels, width, 1))
        self.conv = spectral_norm(nn.Conv2d(width + 1, width, 3, padding=1))
        self.logit = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, seen: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        """Logits; minibatch standard deviation within groups of four."""
        x = F.leaky_relu(self.entry(seen), 0.2)
        spread = batch_spread(x).expand(-1, 1, *x.shape[-2:])
        x = F.leaky_relu(self.conv(torch.cat([x, spread], dim=1)), 0.2)
        return cast(Tensor, self.logit(x))


class Lesion(nn.Module):
    """The middle of a patch beside its condition -> a map of logits; three halvings."""

    def __init__(self, config: PaintConfig) -> None:
        super().__init__()
        seen = config.channels + CONDITION_CHANNELS
        widths = [seen, *(min(config.width << k, config.widest) for k in (1, 2, 3))]
        self.downs = nn.ModuleList(
            nn.Conv2d(widths[k], widths[k + 1], 4, stride=2, padding=1) for k in range(3)
        )
        self.logit = nn.Conv2d(widths[3] + 1, 1, 3, padding=1)

    def forward(
        self, patch: Float[Tensor, "n c p p"], condition: Float[Tensor, "n k p p"]
    ) -> Float[Tensor, "n 1 h w"]:
        """Logits; minibatch standard deviation within groups of four."""
        edge = patch.shape[-1] // 8
        x = torch.cat([patch, condition], dim=1)[..., edge:-edge, edge:-edge]
        for k, down in enumerate(self.downs):
            x = F.leaky_relu(down(x) if k == 0 else normed(down(x)), 0.2)
        spread = batch_spread(x).to(x.dtype).expand(-1, 1, *x.shape[-2:])
        return cast(Tensor, self.logit(torch.cat([x, spread], dim=1)))


class Paint(GAN):
    """Lesions painted into real slices."""

    conditions = ("boxes", "looks", "background")

    def __init__(self, config: PaintConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.context = Context(config)
        self.lesion = Lesion(config)
        self.region = Region(config.around, config.margin, config.least_margin_px, config.rim)
        self.noise_shape = (NOISE_PX, NOISE_PX)
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real slices with the boxes of their lesions."""
        flip, config = self.config.flip, self.config
        augment = STILL.model_copy(update={"flip_x": True, "flip_y": True}) if flip else None
        return Request(config.batch_size, config.side_px, ("image", "boxes"), augment=augment)

    def players(self, step: int) -> tuple[Player, ...]:
        """Both critics as one player, then the generator; rates fall to a tenth."""

        def adam(rate: float, *nets: nn.Module) -> torch.optim.Optimizer:
            weights = [p for net in nets for p in net.parameters()]
            return torch.optim.Adam(weights, lr=rate, betas=(0.0, 0.99), fused=True)

        def falling(step: int, steps: int) -> float:
            return 1 - 0.9 * step / steps

        config, critics = self.config, (self.context, self.lesion)
        return (
            Player("critics", critics, adam(config.critic_rate, *critics), rate=falling),
            Player(
                "generator",
                (self.generator,),
                adam(config.learning_rate, self.generator),
                rate=falling,
                average=lambda step: min(config.average_decay, step / (step + 10)),
            ),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The hinge game; the generator's look, reconstruction and diversity terms beside it.

        Raises:
            DataError: No slice of the batch has a box.
        """
        config, shown = self.config, turn.shared
        if "painted" not in shown:
            shown |= self.play(batch, turn)
        real, fake, condition = shown["real"], shown["painted"], shown["condition"]
        n = len(real)
        if player == "critics":
            fake = fake.detach()
            with torch.no_grad():
                maps = self.maps(real), self.maps(fake)
            with torch.autocast(real.device.type, enabled=False):
                right, drawn = (self.context(seen) for seen in maps)
            own, others = shown["own"], shown["own"].roll(1, 0)
            fits, made = self.lesion(real, own), self.lesion(fake, condition)
            wrong = self.lesion(real, others)
            shown["log/real"] = torch.stack([m.mean() for m in right]).mean().detach()
            shown["log/fake"] = torch.stack([m.mean() for m in drawn]).mean().detach()
            return {
                "context": mean_over_maps(HINGE.critic, right, drawn),
                "lesion": LEAST_SQUARES.critic(fits, made),
                "mismatched": 0.25 * wrong.square().mean(),
            }
        made = self.lesion(fake, condition)
        terms = {"lesion": config.lesion_weight * LEAST_SQUARES.generator(made)}
        with torch.autocast(real.device.type, enabled=False):
            drawn = self.context(self.maps(fake))
            terms["context"] = config.context_weight * mean_over_maps(HINGE.generator, drawn)
            look = lesion_looks(fake.float(), shown["boxes"], torch.arange(n, device=real.device))
            terms["looks"] = config.look_weight * (look - shown["looks"]).abs().mean()
            alpha, same = shown["alpha"], shown["same"][:, None, None, None]
            missed = (fake - real).abs() * alpha * same
            weight = (alpha * same).sum().clamp_min(1)
            terms["reconstruction"] = config.reconstruction_weight * missed.sum() / weight
            if config.diversity_weight:
                second = shown["second"]
                apart = ((fake[: len(second)] - second).abs() * alpha[: len(second)]).sum()
                apart = apart / alpha[: len(second)].sum()
                terms["diversity"] = config.diversity_weight / (apart + 0.02)
        return terms

    def maps(self, patch: Float[Tensor, "n c p p"]) -> dict[int, Tensor]:
        """What the frozen network sees in a patch."""
        return features.maps(patch, self.config.strides, self.config.feature_side_px)

    def play(self, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """Paint over one lesion of each slice that has any."""
        config, image = self.config, batch["image"]
        device, chance = image.device, turn.generator
        boxes, case = one_box_each(batch["boxes"].to(image.dtype), batch["box_case"], chance)
        if not len(boxes):
            raise DataError("no slice of a batch has a box to paint over; train with --boxed")
        patches, local, alpha = cut(image[case], boxes, self.region, config.patch_px)
        n = len(boxes)
        each = torch.arange(n, device=device)
        looks = lesion_looks(patches, local, each)
        same = each % 2 == 0
        other = looks.roll(1 + int(torch.randint(max(1, n - 1), (1,), generator=chance)), 0)
        wanted = torch.where(same[:, None], looks, other)
        own, condition = (
            draw_looks(local, told, each, images=n, side_px=config.patch_px)
            for told in (looks, wanted)
        )
        noise = torch.randn(n, *self.noise_shape, generator=chance).to(image)
        played = {
            "real": patches,
            "painted": torch.lerp(patches, self.generator(patches, alpha, condition, noise), alpha),
            "alpha": alpha,
            "boxes": local,
            "looks": wanted,
            "same": same.to(image.dtype),
            "own": own,
            "condition": condition,
        }
        half = max(1, n // 2)
        noise = torch.randn(half, *self.noise_shape, generator=chance).to(image)
        few, hidden = patches[:half], alpha[:half]
        second = self.generator(few, hidden, condition[:half], noise)
        return played | {"second": torch.lerp(few, second, hidden)}

    def painted_region(self, boxes: Float[Tensor, "m 4"]) -> Bool[Tensor, "m side side"]:
        """Which pixels of a slice painting each box may change."""
        return self.region.alpha_in_slice(boxes, self.config.side_px)[:, 0] > 0

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n h h"], given: Batch | None = None
    ) -> Float[Tensor, "n c side side"]:
        """The slices with lesions painted into them, box after box; outside of `painted_region`
        they are as they were.

        Args:
            given: "image" (n, c, side, side), "boxes" (m, 4) in its pixels, "box_case" (m,) and
                "looks" (m, 2).

        Raises:
            SettingsError: One of them is missing or of another size, or boxes are of images not
                asked for.
        """
        image, boxes, case, looks = checked(given, noise, self.config)
        p = self.config.patch_px
        for rank, chosen in enumerate(in_turn(case)):
            mine, own = case[chosen], boxes[chosen]
            patch, local, alpha = cut(image[mine], own, self.region, p)
            each = torch.arange(len(own), device=own.device)
            condition = draw_looks(local, looks[chosen], each, images=len(own), side_px=p)
            fresh = noise[mine].roll(rank, dims=2)  # another noise for each lesion of a slice
            fill = self.generator(patch, alpha, condition, fresh).clamp(-1, 1)
            image[mine] = put_back(image[mine], fill, own, self.region)
        return image


def checked(
    given: Batch | None, noise: Tensor, config: PaintConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A copy of the slices, boxes, which slice each is in, and looks."""
    told = check_given("paint", given, ("image", "boxes", "box_case", "looks"), images=len(noise))
    image, case = told["image"].to(noise).clone(), told["box_case"].to(noise.device)
    shape = (len(noise), config.channels, config.side_px, config.side_px)
    if image.shape != shape:
        raise SettingsError(f"paint was given images {tuple(image.shape)}; allowed: {shape}")
    return image, told["boxes"].to(noise), case, told["looks"].to(noise)


def fitted(config: PaintConfig, pools: dict[str, Pool]) -> PaintConfig:
    """The settings with what the data decides: the number of channels."""
    channels = pools["real"].channels
    features.check_channels(channels)
    return config.model_copy(update={"channels": channels})


SYSTEM = Paint

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        PaintConfig(),
        TrainSettings(steps=100_000, precision="bf16", sample_every=5_000, checkpoint_every=2_000),
    ),
    "small": Preset(
        PaintConfig(side_px=64, patch_px=32, width=32, widest=96, feature_side_px=64),
        TrainSettings(steps=1_200, precision="bf16", sample_every=300),
    ),
    "smoke": Preset(
        PaintConfig(side_px=32, patch_px=32, width=16, widest=64, batch_size=8, feature_side_px=64),
        TrainSettings(steps=300, precision="bf16", sample_every=100),
    ),
}
