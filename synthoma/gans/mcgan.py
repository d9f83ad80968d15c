"""MCGAN: lung nodules of a wanted size and attenuation, drawn into the middle of real surroundings.

    cube with noise in its middle half + size + attenuation (n, 7, side, side, side) -> Generator
        -> nodule (n, 1, side/2, side/2, side/2)
    cube, cube with noise (n, 2, side, ...) -> Context -> logits (n, 1, z, y, x)
    nodule + size + attenuation (n, 7, side/2, ...) -> Critic -> logits (n, 1, z, y, x)

Paper: Han, thesis, section 6.2.1, figure 17, equations 1 and 2 (arXiv 1906.04962 is its first form)
The context discriminator plays by least squares, the nodule critic by Wasserstein with a gradient
penalty; the generator minimises the sum of both, and with `distance_weight` 100 its distance (L1)
to the real nodule too. Chance enters by the noise in the box and by dropout, drawn in samples too.
Differs from the paper: real and synthetic labels are swapped in every third step of the context
discriminator alone; a Wasserstein critic has no labels, and its swapped loss would only shrink it.
Not stated, so ours: 4x4x4 filters of stride 2 and widths as in pix2pix; three such layers and one
of 3x3x3 in both discriminators, batch normalisation in the first (not in its first layer), none in
the critic, whose penalty is a single image's; Adam's betas (0.5, 0.999), of the critic (0.5, 0.9);
dropout 0.5 in the decoder's first three layers; deconvolutions that begin as smooth enlargements,
without which nodules were chequered for thousands of steps. The last deconvolution is computed
where its output is kept: in the middle half.
`small` and `smoke` are trained for thousandths of the paper's steps, so they are also told: no
swapped labels (with them the context discriminator learnt nothing in 1,000 steps), three moves of a
faster critic for one of the others, a fifth of the noise and one layer of dropout (with all of it
nodules were grainy).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from synthoma.data.batches import Pool, Request
from synthoma.data.vois import ATTENUATIONS, SIZES
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Turn
from synthoma.errors import DataError, SettingsError
from synthoma.nn.dropout import coins, seeded_by
from synthoma.nn.losses import LEAST_SQUARES, WASSERSTEIN, gradient_penalty

#: What a batch has of each nodule, and the values that each may have.
TRAITS = (("size", SIZES), ("attenuation", ATTENUATIONS))
#: Maps that tell the generator and the critic what to draw.
TOLD = len(SIZES) + len(ATTENUATIONS)


class MCGANConfig(BaseModel):
    """Defaults are Han's; `distance_weight=100` is the variant with L1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Literal[16, 32, 64, 128] = Field(64, description="Side of a cube, in voxels.")
    channels: int = Field(1, ge=1, description="Image channels.")
    width: int = Field(64, ge=1, description="Feature maps after the first halving, then doubled.")
    batch_size: int = Field(16, ge=2, description="Batch normalisation needs two.")
    learning_rate: float = Field(2e-4, gt=0)
    distance_weight: float = Field(0, ge=0, description="Of the mean absolute error (L1).")
    penalty_weight: float = Field(10, ge=0, description="Of the critic's gradient penalty.")
    noise: float = Field(
        0.5, gt=0, le=1, description="The box is filled with uniform noise from minus this to this."
    )
    dropout_layers: int = Field(3, ge=0, le=3, description="Of the decoder, from its first.")
    critic_moves: int = Field(1, ge=1, description="Of the critic for each of the others.")
    critic_learning_rate: float = Field(2e-4, gt=0)
    swap_every: int = Field(
        3, ge=0, description="Real and synthetic are swapped in every so manieth step; 0: never."
    )
    mirror: bool = Field(True, description="Flip half of the cubes along y, and half along x.")


def widths_of(config: MCGANConfig) -> list[int]:
    """Feature maps at a half, a quarter, an eighth and a sixteenth of the side."""
    return [config.width << k for k in range(4)]


class Generator(nn.Module):
    """Cube with noise and what is told (n, channels + 6, side, ...) -> nodule (n, channels,
    side/2, ...) in [-1, 1]."""

    def __init__(self, config: MCGANConfig) -> None:
        super().__init__()
        self.widths = widths = widths_of(config)
        self.dropout_layers = config.dropout_layers
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for low, high in pairwise([config.channels + TOLD, *widths]):
            self.down.append(
                nn.Sequential(
                    nn.Conv3d(low, high, 4, stride=2, padding=1, bias=False), nn.BatchNorm3d(high)
                )
            )
        for high, low in pairwise(widths[::-1]):
            features = high if high == widths[-1] else 2 * high  # with those passed across
            self.up.append(
                nn.Sequential(
                    nn.ConvTranspose3d(features, low, 4, stride=2, padding=1, bias=False),
                    nn.BatchNorm3d(low),
                )
            )
        self.to_image = nn.ConvTranspose3d(2 * widths[0], config.channels, 4, stride=2, padding=1)
        self.apply(begin)

    def kept(self, side_px: int, chance: Sequence[torch.Generator]) -> list[Tensor]:
        """Which features each decoder layer with dropout keeps, a fair coin for each; one cube a
        generator."""
        shapes = [(w, *[side_px // 2 >> k] * 3) for k, w in enumerate(self.widths)]
        return coins(shapes[2::-1][: self.dropout_layers], chance)

    def forward(
        self, seen: Float[Tensor, "n k z y x"], kept: Sequence[Tensor]
    ) -> Float[Tensor, "n c z2 y2 x2"]:
        """The nodules of a decoder that keeps the features `kept` and drops the others."""
        x, passed = seen, list[Tensor]()
        for down in self.down:
            x = F.leaky_relu(down(x), 0.2)
            passed.append(x)
        for k, (up, across) in enumerate(zip(self.up, passed[2::-1], strict=True)):
            x = F.relu(up(x))
            if k < len(kept):
                x = x * (2 * kept[k].to(x.dtype))
            x = torch.cat([x, across], dim=1)
        quarter = x.shape[-1] // 4
        near = slice(quarter - 1, 3 * quarter + 1)  # the middle half, and a voxel around it
        made: Tensor = self.to_image(x[..., near, near, near])[..., 2:-2, 2:-2, 2:-2]
        return torch.tanh(made.to(seen.dtype))


class Discriminator(nn.Module):
    """Volumes (n, maps, side, ...) -> logits (n, 1, side / 8, ...)."""

    def __init__(self, maps: int, width: int, *, normalised: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(maps, width, 4, stride=2, padding=1)]
        layers.append(nn.LeakyReLU(0.2))
        for _ in range(2):
            layers.append(nn.Conv3d(width, 2 * width, 4, stride=2, padding=1, bias=not normalised))
            layers += [nn.BatchNorm3d(2 * width)] if normalised else []
            layers.append(nn.LeakyReLU(0.2))
            width *= 2
        self.layers = nn.Sequential(*layers)
        self.logits = nn.Conv3d(width, 1, 3, padding=1)
        self.apply(begin)

    def forward(self, volume: Float[Tensor, "n k z y x"]) -> Float[Tensor, "n 1 z2 y2 x2"]:
        """The logits, in float32: in bf16 on CPUs the gradient of the last weights reads memory
        that nobody wrote (torch 2.15, oneDNN, one output channel, few voxels)."""
        features = self.layers(volume)
        with torch.autocast(volume.device.type, enabled=False):
            logits: Tensor = self.logits(features.float())
        return logits.to(volume.dtype)


def begin(layer: nn.Module) -> None:
    """Isola et al.'s first weights, as pix2pix's; a deconvolution begins as a linear enlargement of
    each map times such a weight, of the same variance."""
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.normal_(layer.weight, 0, 0.02)
    if isinstance(layer, nn.ConvTranspose3d):
        ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
        enlarge = ramp[:, None, None] * ramp[:, None] * ramp
        with torch.no_grad():
            each = layer.weight[:, :, :1, :1, :1] * 8**0.5  # of the 64 taps 8 meet in a voxel
            layer.weight.copy_(each * enlarge)


class MCGAN(GAN):
    """A generator between a discriminator of what is around and a critic of what is within."""

    dimensions = 3
    conditions = ("background", "traits")

    def __init__(self, config: MCGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.context = Discriminator(2 * config.channels, config.width, normalised=True)
        self.critic = Discriminator(config.channels + TOLD, config.width, normalised=False)
        self.noise_shape = (8,)  # a seed; one normal number would repeat within thousands
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real cubes, with the size and attenuation of their nodules."""
        return Request(self.config.batch_size, self.side_px, traits=TRAITS)

    def players(self, step: int) -> tuple[Player, ...]:
        """Context discriminator, nodule critic, generator."""

        config = self.config

        def play(name: str, net: nn.Module, rate: float, beta: float, moves: int = 1) -> Player:
            adam = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.5, beta), fused=True)
            return Player(name, (net,), adam, moves=moves)

        return (
            play("context", self.context, config.learning_rate, 0.999),
            play("critic", self.critic, config.critic_learning_rate, 0.9, config.critic_moves),
            play("generator", self.generator, config.learning_rate, 0.999),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Equations 1 and 2; all moves of a step are of the same cubes."""
        shared, config = turn.shared, self.config
        if "real" not in shared:  # whoever moves first
            real = batch["image"]
            shared["real"] = flipped(real, turn.generator) if config.mirror else real
            shared["told"] = told_of(batch).to(real)
            chance = [turn.generator] * len(real)
            shared["noisy"] = with_noise(shared["real"], chance, config.noise)
            shared["nodule"] = self.paint(shared["noisy"], shared["told"], chance)
        real, noisy, told = shared["real"], shared["noisy"], shared["told"]
        true, made = middle(real), shared["nodule"]
        if player == "context":
            of_real = self.judge(torch.cat([real, noisy], dim=1))
            of_made = self.judge(torch.cat([placed(noisy, made.detach()), noisy], dim=1))
            if config.swap_every and turn.step % config.swap_every == 0:
                of_real, of_made = of_made, of_real
            return {"adversarial": LEAST_SQUARES.critic(of_real, of_made)}
        if player == "critic":
            penalty = gradient_penalty(
                lambda x: self.value(x, told), true, made.detach(), generator=turn.generator
            )
            of_real, of_made = self.value(true, told), self.value(made.detach(), told)
            return {
                "adversarial": WASSERSTEIN.critic(of_real, of_made),
                "penalty": config.penalty_weight * penalty,
            }
        around = self.judge(torch.cat([placed(noisy, made), noisy], dim=1))
        terms = {
            "context": LEAST_SQUARES.generator(around),
            "nodule": WASSERSTEIN.generator(self.value(made, told)),
        }
        if config.distance_weight:
            terms["distance"] = config.distance_weight * F.l1_loss(made, true)
        shared["log/distance"] = (made - true).abs().mean().detach()
        return terms

    def judge(self, pair: Float[Tensor, "n k z y x"]) -> Tensor:
        """Logits of the context discriminator."""
        logits: Tensor = self.context(pair)
        return logits

    def value(self, nodule: Float[Tensor, "n c z y x"], told: Float[Tensor, "n 6"]) -> Tensor:
        """What the critic makes of a nodule that shall be as told."""
        logits: Tensor = self.critic(torch.cat([nodule, tiled(told, nodule)], dim=1))
        return logits.mean(dim=(1, 2, 3, 4))

    def paint(self, noisy: Tensor, told: Tensor, chance: Sequence[torch.Generator]) -> Tensor:
        """Nodules for cubes with noise, what is dropped drawn from a generator each."""
        kept = [keep.to(noisy.device) for keep in self.generator.kept(noisy.shape[-1], chance)]
        nodule: Tensor = self.generator(torch.cat([noisy, tiled(told, noisy)], dim=1), kept)
        return nodule

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n 8"], given: Batch | None = None
    ) -> Float[Tensor, "n c z y x"]:
        """Cubes in [-1, 1] with a nodule in their middle half, the rest as it was given.

        Args:
            noise: Each row seeds the noise and the dropout of its cube.
            given: "image" (n, c, side, side, side) in [-1, 1], whose middle half is not looked at;
                "size" and "attenuation" (n,), by their places in `SIZES` and `ATTENUATIONS`.

        Raises:
            SettingsError: One of them is missing.
        """
        wanted = ("image", *(name for name, _ in TRAITS))
        if given is None or not set(wanted) <= given.keys():
            had = "nothing" if given is None else ", ".join(given)
            raise SettingsError(f"mcgan was given {had}; it needs {', '.join(wanted)}, one a cube")
        chance = [seeded_by(row) for row in noise]
        noisy = with_noise(given["image"].to(noise), chance, self.config.noise)
        return placed(noisy, self.paint(noisy, told_of(given).to(noise), chance))


def told_of(batch: Batch) -> Int64[Tensor, "n 6"]:
    """Size and attenuation as one-hot numbers behind one another."""
    return torch.cat([F.one_hot(batch[name], len(names)) for name, names in TRAITS], dim=1)


def tiled(told: Float[Tensor, "n k"], like: Float[Tensor, "n c z y x"]) -> Tensor:
    """Each number as a constant volume."""
    return told[:, :, None, None, None].expand(-1, -1, *like.shape[2:])


def middle(cube: Shaped[Tensor, "n c z y x"]) -> Shaped[Tensor, "n c z2 y2 x2"]:
    """The middle half of each axis."""
    quarter = cube.shape[-1] // 4
    half = slice(quarter, cube.shape[-1] - quarter)
    return cube[..., half, half, half]


def placed(cube: Float[Tensor, "n c z y x"], nodule: Tensor) -> Float[Tensor, "n c z y x"]:
    """The cube with another middle half."""
    quarter = cube.shape[-1] // 4
    within = torch.zeros(1, 1, *cube.shape[2:], dtype=torch.bool, device=cube.device)
    middle(within)[...] = True
    return torch.where(within, F.pad(nodule, [quarter] * 6), cube)


def with_noise(
    cube: Float[Tensor, "n c z y x"], chance: Sequence[torch.Generator], most: float
) -> Float[Tensor, "n c z y x"]:
    """The cube with uniform noise from -most to most in its middle half."""
    shape = (cube.shape[1], *[cube.shape[-1] // 2] * 3)
    noise = torch.stack([torch.rand(shape, generator=generator) for generator in chance]) - 0.5
    return placed(cube, (2 * most * noise).to(cube))


def flipped(
    cube: Float[Tensor, "n c z y x"], generator: torch.Generator
) -> Float[Tensor, "n c z y x"]:
    """Each cube flipped along y or not, and along x or not."""
    for axis in (3, 4):
        coin = torch.rand(len(cube), generator=generator).to(cube.device) < 0.5
        cube = torch.where(coin[:, None, None, None, None], cube.flip(axis), cube)
    return cube


def fitted(config: MCGANConfig, pools: dict[str, Pool]) -> MCGANConfig:
    """The settings with what the data decides: the number of channels.

    Raises:
        DataError: Cubes of another side, or no cubes.
    """
    for dataset in pools["real"].datasets:
        if dataset.values(0).shape[1:] != (config.side_px,) * 3:
            raise DataError(
                f"{dataset.folder}: not cubes of {config.side_px} voxels; cut them with `synthoma "
                f"data cubes SCANS --side-px {config.side_px}`, or set system.side_px"
            )
    return config.model_copy(update={"channels": pools["real"].channels})


SYSTEM = MCGAN

#: What a training of minutes needs; see the head of this file.
_SHORT: dict[str, Any] = {
    "batch_size": 8,
    "swap_every": 0,
    "critic_moves": 3,
    "critic_learning_rate": 4e-4,
    "noise": 0.1,
    "dropout_layers": 1,
}

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        MCGANConfig(),
        TrainSettings(steps=6_000_000, sample_every=50_000, checkpoint_every=10_000),
    ),
    "small": Preset(
        MCGANConfig(side_px=32, width=24, **_SHORT),
        TrainSettings(steps=1_200, precision="bf16", sample_every=300),
    ),
    "smoke": Preset(
        MCGANConfig(side_px=16, width=16, **_SHORT),
        TrainSettings(steps=600, precision="bf16", sample_every=200),
    ),
}
