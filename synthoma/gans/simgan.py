"""SimGAN: a residual network makes synthetic images look real and stays close to each.

    source (n, c, side, side) -> Network -> refined (n, c, side, side)
    real or refined (n, c, side, side) -> Discriminator -> logits (n, y, x), one a patch

Papers:
  Shrivastava et al. 2017, Learning from simulated and unsupervised images through adversarial
  training, https://arxiv.org/abs/1612.07828 (sections 2.1 to 2.3, algorithm 1, appendix)
  Han et al. 2019, Combining noise-to-image and image-to-image GANs, section III-C: SGD, rate, batch
  and steps, flips, batch normalisation
The refiner pays for what the discriminator sees in each patch and for the distance of each pixel to
the synthetic image (L1, psi the identity). Both are sums over patches, pixels and images, as in
equations 1 to 4: the rate of plain SGD counts on it. First the refiner learns to leave an image
alone, then the discriminator learns from such images, then they play: two moves to one. Half of the
refined images that the discriminator sees come from a history, half of which a batch then replaces.
Networks are the appendix's for 224 px hands (7x7 filters, 10 blocks, patches of 71 px), which is
nearest to 256 px; the small preset has those for eyes (3x3, 4 blocks, patches of 23 px).
Ours where the papers say nothing: lambda, 512 images of history, batch normalisation after every
convolution but the last of each network, the opening counted among the steps, logits in place of
the softmax's two probabilities (the same loss).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import Batch, Losses, Player, Refiner, Request, Turn
from synthoma.nn.domains import DOMAINS, channels_of
from synthoma.nn.losses import NON_SATURATING

Odd = Literal[3, 5, 7]


class SimGANConfig(BaseModel):
    """Defaults are Han et al. 2019's, and Shrivastava et al.'s for hands where they say nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(256, ge=8, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    width: int = Field(64, ge=1, description="Feature maps of the refiner.")
    blocks: int = Field(10, ge=1, description="Residual blocks of the refiner.")
    kernel_px: Odd = Field(7, description="Filters of the refiner.")
    judge_width: int = Field(32, ge=1, description="Feature maps of the discriminator's end.")
    judge_kernels: tuple[Odd, Odd, Odd, Odd] = Field(
        (7, 5, 3, 3), description="Filters of two convolutions, of the max pool, of a convolution."
    )
    judge_strides: tuple[int, int, int, int] = Field((4, 2, 2, 2), description="Of the same.")
    batch_size: int = Field(10, ge=2, multiple_of=2, description="Even: half may be history.")
    learning_rate: float = Field(1e-4, gt=0)
    halved_after: int = Field(15_000, ge=0, description="Step after which the rate is halved.")
    distance_weight: float = Field(0.01, ge=0, description="Of the sum over pixels (lambda).")
    refiner_steps: int = Field(1_000, ge=0, description="Opening of the refiner alone.")
    judge_steps: int = Field(200, ge=0, description="Then of the discriminator alone.")
    refiner_moves: int = Field(2, ge=1, description="Moves to one of the discriminator.")
    history: int = Field(512, ge=1, description="Refined images that are remembered.")
    mirror: bool = Field(True, description="Flip half of the images left to right.")


def convolve(low: int, high: int, kernel_px: int, stride: int = 1) -> nn.Sequential:
    """A convolution with batch normalisation; side / stride, rounded up."""
    return nn.Sequential(
        nn.Conv2d(low, high, kernel_px, stride, padding=kernel_px // 2, bias=False),
        nn.BatchNorm2d(high),
    )


class Block(nn.Module):
    """Two convolutions, added to what they saw; shape kept."""

    def __init__(self, width: int, kernel_px: int) -> None:
        super().__init__()
        self.first = convolve(width, width, kernel_px)
        self.second = convolve(width, width, kernel_px)

    def forward(self, x: Float[Tensor, "n w y x"]) -> Float[Tensor, "n w y x"]:
        """The features after the block."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Network(nn.Sequential):
    """image (n, channels, y, x) -> refined image, not yet cut to [-1, 1]; nothing is halved."""

    def __init__(self, config: SimGANConfig) -> None:
        super().__init__(
            convolve(config.channels, config.width, config.kernel_px),
            nn.ReLU(),
            *(Block(config.width, config.kernel_px) for _ in range(config.blocks)),
            nn.Conv2d(config.width, config.channels, 1),
        )


class Discriminator(nn.Module):
    """image (n, channels, y, x) -> how real each patch is, logits (n, y', x')."""

    def __init__(self, config: SimGANConfig) -> None:
        super().__init__()
        w, (k0, k1, k2, k3) = config.judge_width, config.judge_kernels
        s0, s1, s2, s3 = config.judge_strides
        self.layers = nn.Sequential(
            convolve(config.channels, 3 * w, k0, s0),
            nn.ReLU(),
            convolve(3 * w, 2 * w, k1, s1),
            nn.ReLU(),
            nn.MaxPool2d(k2, s2, padding=k2 // 2),
            convolve(2 * w, w, k3, s3),
            nn.ReLU(),
            convolve(w, w, 1),
            nn.ReLU(),
            nn.Conv2d(w, 2, 1),
        )

    def forward(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n h w"]:
        """Log odds that a patch is real: the difference of the softmax's two inputs."""
        refined, real = self.layers(image).float().unbind(1)
        return real - refined


class SimGAN(Refiner):
    """Refiner, discriminator, and what the refiner made before."""

    history: Tensor
    remembered: Tensor
    training_only = ("history", "remembered")

    def __init__(self, config: SimGANConfig) -> None:
        super().__init__()
        self.config = config
        self.side_px = config.side_px
        self.refiner = Network(config)
        self.discriminator = Discriminator(config)
        # half precision: as fine as any image, and half the checkpoint
        shape = (config.history, config.channels, config.side_px, config.side_px)
        self.register_buffer("history", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("remembered", torch.zeros((), dtype=torch.int64))

    def request(self, step: int) -> Request:
        """Real images, and as many to refine."""
        augment = MIRROR if self.config.mirror else None
        return Request(
            self.config.batch_size, self.config.side_px, augment=augment, domains=DOMAINS
        )

    def stage(self, step: int) -> str:
        """Who plays: "refiner", "discriminator", then "both"."""
        alone = self.config.refiner_steps
        if step <= alone:
            return "refiner"
        return "discriminator" if step <= alone + self.config.judge_steps else "both"

    def players(self, step: int) -> tuple[Player, ...]:
        """Refiner, discriminator; one of them in the opening."""

        def play(name: str, net: nn.Module, moves: int) -> Player:
            sgd = torch.optim.SGD(net.parameters(), lr=self.config.learning_rate)
            return Player(name, (net,), sgd, moves, self.rate)

        stage = self.stage(step)
        refiner = play("refiner", self.refiner, self.config.refiner_moves)
        judge = play("discriminator", self.discriminator, 1)
        if stage == "refiner":
            return (play("refiner", self.refiner, 1),)
        return (judge,) if stage == "discriminator" else (refiner, judge)

    def rate(self, step: int, steps: int) -> float:
        """Halved once."""
        return 0.5 if step > self.config.halved_after else 1.0

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Sums over images, and patches or pixels (equations 1, 2 and 4)."""
        source = batch["source/image"]
        if player == "refiner":
            refined = self.refiner(source).to(source.dtype)
            apart = (refined - source).abs()
            turn.shared["log/refined/distance"] = apart.mean().detach()
            terms = {"distance": self.config.distance_weight * apart.sum()}
            if self.stage(turn.step) == "both":
                logits = self.discriminator(refined)
                terms["adversarial"] = NON_SATURATING.generator(logits) * logits.numel()
            return terms
        with torch.no_grad():
            fresh = self.refiner(source).to(source.dtype)
        turn.shared["fresh"] = fresh
        real = self.discriminator(batch["real/image"])
        fake = self.discriminator(self.mixed(fresh, turn.generator))
        return {"adversarial": NON_SATURATING.critic(real, fake) * real.numel()}

    def mixed(self, fresh: Float[Tensor, "n c y x"], chance: torch.Generator) -> Tensor:
        """Refined images of which half are remembered ones, once there are enough."""
        half, known = len(fresh) // 2, int(self.remembered)
        if known < half:
            return fresh
        chosen = torch.randperm(known, generator=chance)[:half].to(fresh.device)
        return torch.cat([fresh[: len(fresh) - half], self.history[chosen].to(fresh.dtype)])

    @torch.no_grad()
    def after_move(self, player: str, batch: Batch, turn: Turn) -> None:
        """Remember half of what the discriminator saw fresh; once full, in place of others."""
        if player != "discriminator":
            return
        fresh, known = turn.shared["fresh"], int(self.remembered)
        new = fresh[: max(1, len(fresh) // 2)][: len(self.history)]
        free = torch.arange(known, min(known + len(new), len(self.history)))
        taken = torch.randperm(known, generator=turn.generator)[: len(new) - len(free)]
        places = torch.cat([free, taken]).to(fresh.device)
        self.history[places] = new.to(self.history.dtype)
        self.remembered.fill_(known + len(free))

    @torch.no_grad()
    def refine(
        self, image: Float[Tensor, "n c y x"], style: Tensor | None = None
    ) -> Float[Tensor, "n c y x"]:
        """The refined images, in [-1, 1]; there is no style."""
        refined: Tensor = self.refiner(image).to(image.dtype)
        return refined.clamp_(-1, 1)


def fitted(config: SimGANConfig, pools: dict[str, Pool]) -> SimGANConfig:
    """The settings with what the data decides: the number of channels, the same in both domains."""
    return config.model_copy(update={"channels": channels_of(pools)})


SYSTEM = SimGAN

EYES = {"kernel_px": 3, "judge_kernels": (3, 3, 3, 3), "judge_strides": (2, 2, 1, 1)}

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        SimGANConfig(),
        TrainSettings(steps=20_000, sample_every=1_000, checkpoint_every=1_000),
    ),
    "small": Preset(
        SimGANConfig.model_validate(
            EYES
            | {
                "side_px": 64,
                "width": 16,
                "blocks": 4,
                "judge_width": 16,
                "distance_weight": 0.5,
                "learning_rate": 8e-6,  # sums over more pixels than smoke's: at 1e-4 it diverged
                "refiner_steps": 400,
                "judge_steps": 100,
                "halved_after": 900,
            }
        ),
        TrainSettings(steps=1_200, precision="bf16", sample_every=200),
    ),
    "smoke": Preset(
        SimGANConfig.model_validate(
            EYES
            | {
                "side_px": 32,
                "width": 16,
                "blocks": 2,
                "judge_width": 8,
                "distance_weight": 0.5,
                "refiner_steps": 100,
                "judge_steps": 50,
                "halved_after": 500,
            }
        ),
        TrainSettings(steps=600, precision="bf16", sample_every=200),
    ),
}
