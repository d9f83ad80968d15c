"""PAINT: a GAN that paints lesions into real slices, each with the position and look ordered.

    slice (n, c, side, side) + box + look -> patch around the box, its middle hidden (m, c, p, p)
    hidden patch + noise -> Generator -> patch (m, c, p, p) -> back into the slice, in its region
    patch -> Critic "context" -> logits;  its middle beside the look -> Critic "lesion" -> logits

Papers:
  Han et al. 2019, Synthesizing diverse lung nodules wherever massively: 3D multi-conditional
  GAN-based CT image augmentation for object detection, https://arxiv.org/abs/1906.04962
Differs from the paper, whose MCGAN is 3D; this is ours, in 2D, for small sets: the region follows
the box and has a soft rim, so that there is no seam; looks are measured in the images (contrast,
ring; see `nn/conditions.py`) in place of annotated sizes and attenuations, and what is painted is
measured, too; half of the lesions in a step are painted with the look of another; both critics
play the hinge game under spectral normalisation; two noises must give two lesions.
"""

from collections.abc import Iterator
from typing import Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthoma.data.batches import Pool
from synthoma.data.classic import STILL
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import DataError, SettingsError
from synthoma.nn.blocks import batch_spread
from synthoma.nn.conditions import draw_looks, lesion_looks
from synthoma.nn.losses import HINGE

#: Covered, contrast, ring.
CONDITION_CHANNELS = 3
#: Exponent of the region's outline: 2 is an ellipse, more is nearer to its box.
ROUNDNESS = 4
#: Side of the noise, which is stretched over the hidden region.
NOISE_PX = 8


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
    learning_rate: float = Field(5e-4, gt=0, description="Of generator and critics.")
    reconstruction_weight: float = Field(
        2.0, ge=0, description="Of the L1 distance to the real lesion, where its look was ordered."
    )
    look_weight: float = Field(2.0, ge=0, description="Of |look painted - look ordered|.")
    diversity_weight: float = Field(0.1, ge=0, description="Of the mode-seeking term.")
    lesion_weight: float = Field(1.0, ge=0, description="Of the lesion critic beside the other.")
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
        """What the region shall show; outside of it, what is there.

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
        fill = (hidden + self.exit(x).float()).clamp(-1.1, 1.1)
        return torch.lerp(patch, fill, alpha)


def normed(x: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
    """Features of length one at every pixel, as in PGGAN: levels of grey survive it."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()


class Critic(nn.Module):
    """image -> a map of logits, of (side / 8)^2; spectral normalisation."""

    def __init__(self, channels: int, width: int, widest: int) -> None:
        super().__init__()
        widths = [channels, *(min(width << k, widest) for k in (1, 2, 3))]
        self.downs = nn.ModuleList(
            spectral_norm(nn.Conv2d(widths[k], widths[k + 1], 4, stride=2, padding=1))
            for k in range(3)
        )
        self.last = spectral_norm(nn.Conv2d(widths[3] + 1, widths[3], 3, padding=1))
        self.logit = spectral_norm(nn.Conv2d(widths[3], 1, 1))

    def forward(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n 1 h w"]:
        """Logits; minibatch standard deviation within groups of four."""
        x = image
        for down in self.downs:
            x = F.leaky_relu(down(x), 0.2)
        spread = batch_spread(x).to(x.dtype).expand(-1, 1, *x.shape[-2:])
        x = F.leaky_relu(self.last(torch.cat([x, spread], dim=1)), 0.2)
        return cast(Tensor, self.logit(x))


class Paint(GAN):
    """Lesions painted into real slices."""

    conditions = ("boxes", "looks", "background")

    def __init__(self, config: PaintConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.context = Critic(config.channels, config.width, config.widest)
        lesion_channels = config.channels + CONDITION_CHANNELS
        self.lesion = Critic(lesion_channels, config.width, config.widest)
        self.noise_shape = (NOISE_PX, NOISE_PX)
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real slices with the boxes of their lesions."""
        augment = STILL.model_copy(update={"flip_x": True, "flip_y": True})
        return Request(
            self.config.batch_size,
            self.config.side_px,
            ("image", "boxes"),
            augment=augment if self.config.flip else None,
        )

    def players(self, step: int) -> tuple[Player, ...]:
        """Both critics as one player, then the generator; rates fall to a tenth."""

        def adam(*nets: nn.Module) -> torch.optim.Optimizer:
            weights = [p for net in nets for p in net.parameters()]
            rate = self.config.learning_rate
            return torch.optim.Adam(weights, lr=rate, betas=(0.0, 0.99), fused=True)

        def falling(step: int, steps: int) -> float:
            return 1 - 0.9 * step / steps

        critics, decay = (self.context, self.lesion), self.config.average_decay
        return (
            Player("critics", critics, adam(*critics), rate=falling),
            Player(
                "generator",
                (self.generator,),
                adam(self.generator),
                rate=falling,
                average=lambda step: min(decay, step / (step + 10)),
            ),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The hinge game; the generator's look, reconstruction and diversity terms beside it.

        Raises:
            DataError: No slice of the batch has a box.
        """
        config = self.config
        if "painted" not in turn.shared:
            turn.shared |= self.play(batch, turn)
        shown = {name: turn.shared[name] for name in PLAYED}
        real, fake, condition = shown["real"], shown["painted"], shown["condition"]
        n = len(real)
        if player == "critics":
            beside = [
                middle(torch.cat([x, c], dim=1))
                for x, c in (
                    (real, shown["own"]),
                    (fake.detach(), condition),
                    (real, shown["own"].roll(1, 0)),
                )
            ]
            right, drawn = self.context(real), self.context(fake.detach())
            fits, made, wrong = (self.lesion(x) for x in beside)
            turn.shared["log/real"], turn.shared["log/fake"] = right.mean(), drawn.mean()
            return {
                "context": HINGE.critic(right, drawn),
                "lesion": config.lesion_weight * HINGE.critic(fits, made),
                "mismatched": config.lesion_weight * 0.5 * F.relu(1 + wrong).mean(),
            }
        made = self.lesion(middle(torch.cat([fake, condition], dim=1)))
        terms = {
            "context": HINGE.generator(self.context(fake)),
            "lesion": config.lesion_weight * HINGE.generator(made),
        }
        with torch.autocast(real.device.type, enabled=False):
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

    def play(self, batch: Batch, turn: Turn) -> dict[str, Tensor]:
        """Paint over one lesion of each slice that has any."""
        config, image = self.config, batch["image"]
        device, chance = image.device, turn.generator
        boxes, case = one_box_each(batch["boxes"].to(image.dtype), batch["box_case"], chance)
        patches, local, alpha = self.cut(image[case], boxes)
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
            "painted": self.generator(patches, alpha, condition, noise),
            "alpha": alpha,
            "boxes": local,
            "looks": wanted,
            "same": same.to(image.dtype),
            "own": own,
            "condition": condition,
        }
        half = max(1, n // 2)
        noise = torch.randn(half, *self.noise_shape, generator=chance).to(image)
        played["second"] = self.generator(patches[:half], alpha[:half], condition[:half], noise)
        return played

    def cut(
        self, image: Float[Tensor, "m c y x"], boxes: Float[Tensor, "m 4"]
    ) -> tuple[Float[Tensor, "m c p p"], Float[Tensor, "m 4"], Float[Tensor, "m 1 p p"]]:
        """The patches around boxes, one an image; the boxes in pixels of the patch; alpha."""
        config, side = self.config, image.shape[-1]
        low, size = patch_frames(boxes, config)
        along = (torch.arange(config.patch_px, device=boxes.device) + 0.5) / config.patch_px
        places = low[:, :, None] + size[:, None, None] * along  # (m, 2, p) in slice pixels
        y = places[:, 0, :, None].expand(-1, -1, config.patch_px)
        x = places[:, 1, None, :].expand(-1, config.patch_px, -1)
        grid = torch.stack([x, y], dim=-1) * 2 / side - 1
        patch = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
        local = (boxes - low.repeat(1, 2)) * (config.patch_px / size[:, None])
        return patch, local, alpha_at(boxes, y, x, config)[:, None]

    def painted_region(self, boxes: Float[Tensor, "m 4"]) -> Bool[Tensor, "m side side"]:
        """Which pixels of a slice painting each box may change."""
        y, x = pixels(len(boxes), self.config.side_px, boxes.device)
        return alpha_at(boxes, y, x, self.config) > 0

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
        for rank, chosen in enumerate(in_turn(case)):
            mine, own = case[chosen], boxes[chosen]
            patch, local, alpha = self.cut(image[mine], own)
            each = torch.arange(len(own), device=own.device)
            p = self.config.patch_px
            condition = draw_looks(local, looks[chosen], each, images=len(own), side_px=p)
            fresh = noise[mine].roll(rank, dims=2)  # another noise for each lesion of a slice
            painted = self.generator(patch, alpha, condition, fresh).clamp(-1, 1)
            image[mine] = self.put_back(image[mine], painted, own)
        return image

    def put_back(
        self,
        image: Float[Tensor, "m c y x"],
        painted: Float[Tensor, "m c p p"],
        boxes: Float[Tensor, "m 4"],
    ) -> Float[Tensor, "m c y x"]:
        """The slices with their patches in place, faded in at the rim of the region."""
        low, size = patch_frames(boxes, self.config)
        y, x = pixels(len(boxes), self.config.side_px, boxes.device)
        alpha = alpha_at(boxes, y, x, self.config)[:, None]
        y = (y - low[:, 0, None, None]) / size[:, None, None]
        x = (x - low[:, 1, None, None]) / size[:, None, None]
        grid = torch.stack([x, y], dim=-1) * 2 - 1
        back = F.grid_sample(painted, grid, padding_mode="border", align_corners=False)
        return torch.where(alpha > 0, back, image)


#: What critics leave for the generator.
PLAYED = (
    "real", "painted", "second", "alpha", "boxes", "looks", "same", "own", "condition",
)  # fmt: skip


def middle(patch: Float[Tensor, "n c p p"]) -> Float[Tensor, "n c h h"]:
    """The middle of a patch, three quarters of its side."""
    edge = patch.shape[-1] // 8
    return patch[..., edge:-edge, edge:-edge]


def one_box_each(
    boxes: Float[Tensor, "m 4"], case: Int[Tensor, " m"], chance: torch.Generator
) -> tuple[Float[Tensor, "k 4"], Int[Tensor, " k"]]:
    """A random box of each image that has any."""
    if not len(boxes):
        raise DataError("no slice of a batch has a box to paint over; train with --boxed")
    order = torch.randperm(len(case), generator=chance).to(case.device)
    first = {int(case[k]): int(k) for k in order.tolist()}
    kept = torch.tensor([first[i] for i in sorted(first)], device=case.device)
    return boxes[kept], case[kept]


def patch_frames(
    boxes: Float[Tensor, "m 4"], config: PaintConfig
) -> tuple[Float[Tensor, "m 2"], Float[Tensor, " m"]]:
    """The low corner (y, x) of the square patch around each box, and its side, in slice pixels."""
    reach = half_reach(boxes, config).max(dim=1).values
    longer = (boxes[:, 2:] - boxes[:, :2]).max(dim=1).values
    size = torch.maximum(config.around * longer, 2.5 * reach)  # some surroundings, always
    return (boxes[:, :2] + boxes[:, 2:]) / 2 - size[:, None] / 2, size


def half_reach(boxes: Float[Tensor, "m 4"], config: PaintConfig) -> Float[Tensor, "m 2"]:
    """How far from a box's middle its region reaches, along y and x."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return half + (config.margin * half).clamp_min(config.least_margin_px)


def alpha_at(
    boxes: Float[Tensor, "m 4"],
    y: Float[Tensor, "m h w"],
    x: Float[Tensor, "m h w"],
    config: PaintConfig,
) -> Float[Tensor, "m h w"]:
    """How much is painted at places of a slice: 1 within, 0 outside of the region, smooth between.

    The region is a superellipse, near to its box but round at the corners.
    """
    reach, centre = half_reach(boxes, config), (boxes[:, :2] + boxes[:, 2:]) / 2
    v = (y - centre[:, 0, None, None]).abs() / reach[:, 0, None, None]
    u = (x - centre[:, 1, None, None]).abs() / reach[:, 1, None, None]
    radius = (u**ROUNDNESS + v**ROUNDNESS) ** (1 / ROUNDNESS)
    t = ((1 - radius) / config.rim).clamp(0, 1)
    return t * t * (3 - 2 * t)


def pixels(m: int, side_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The middles (m, side, side) of a slice's pixels, y and x."""
    along = torch.arange(side_px, device=device) + 0.5
    y, x = torch.meshgrid(along, along, indexing="ij")
    return y.expand(m, -1, -1), x.expand(m, -1, -1)


def in_turn(case: Int[Tensor, " m"]) -> Iterator[Int[Tensor, " k"]]:
    """Boxes to paint at once: the first of each image, then the second, ..."""
    seen: dict[int, int] = {}
    turns: list[list[int]] = []
    for k, i in enumerate(case.tolist()):
        rank = seen.get(i, 0)
        seen[i] = rank + 1
        if rank == len(turns):
            turns.append([])
        turns[rank].append(k)
    return (torch.tensor(chosen, device=case.device) for chosen in turns)


def checked(
    given: Batch | None, noise: Tensor, config: PaintConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A copy of the slices, boxes, which slice each is in, and looks."""
    if given is None or not {"image", "boxes", "box_case", "looks"} <= given.keys():
        had = "nothing" if given is None else ", ".join(given)
        raise SettingsError(
            f"paint was given {had}; it needs 'image' (n, c, side, side), 'boxes' (m, 4), "
            "'box_case' (m,) and 'looks' (m, 2)"
        )
    image, case = given["image"].to(noise).clone(), given["box_case"].to(noise.device)
    shape = (len(noise), config.channels, config.side_px, config.side_px)
    if image.shape != shape:
        raise SettingsError(f"paint was given images {tuple(image.shape)}; allowed: {shape}")
    if len(case) and not 0 <= int(case.min()) <= int(case.max()) < len(noise):
        raise SettingsError(
            f"boxes are given for images {int(case.min())} to {int(case.max())}; "
            f"allowed: 0 to {len(noise) - 1}, one image for each row of noise"
        )
    return image, given["boxes"].to(noise), case, given["looks"].to(noise)


def fitted(config: PaintConfig, pools: dict[str, Pool]) -> PaintConfig:
    """The settings with what the data decides: the number of channels."""
    channels = pools["real"].datasets[0].values(0).shape[0]
    return config.model_copy(update={"channels": channels})


SYSTEM = Paint

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        PaintConfig(),
        TrainSettings(steps=100_000, precision="bf16", sample_every=5_000, checkpoint_every=2_000),
    ),
    "small": Preset(
        PaintConfig(side_px=64, patch_px=32, width=32, widest=96),
        TrainSettings(steps=3_000, precision="bf16", sample_every=500),
    ),
    "smoke": Preset(
        PaintConfig(side_px=32, patch_px=32, width=16, widest=64, batch_size=8),
        TrainSettings(steps=300, precision="bf16", sample_every=100),
    ),
}
