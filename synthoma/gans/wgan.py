"""WGAN: a critic that is kept Lipschitz by clipping its weights, with the networks of DCGAN.

    noise z (n, d) -> Generator -> image (n, c, side, side) -> Critic -> logit (n,)

Papers:
  Arjovsky et al. 2017, Wasserstein GAN, https://arxiv.org/abs/1701.07875 (algorithm 1)
  Han et al. 2018, GAN-based synthetic brain MR image generation, section 3.2.2 (the defaults)
"The same DCGAN architecture" is read as Radford et al.'s own, not as Han et al.'s change of it.
Batch and rate are Han et al.'s; clipping and the critic's moves, which they do not state, are
Arjovsky et al.'s, and every parameter of the critic is clipped, those of batch normalisation too.
Differs from the papers: nothing known. Arjovsky et al.'s code, not their paper, gives the critic
100 moves in some steps: left out. The length is not stated: 24,000 moves of the generator (ours).
"""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from synthoma.data.batches import Pool
from synthoma.data.classic import MIRROR
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import GAN, Batch, Losses, Player, Request, Turn
from synthoma.errors import SettingsError
from synthoma.gans.dcgan import Discriminator, FilterSide, Generator, Side, uniform
from synthoma.nn.losses import WASSERSTEIN


class WGANConfig(BaseModel):
    """Defaults are Han et al. 2018's, and Arjovsky et al.'s where they say nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: Side = Field(128, description="Side of the images.")
    channels: int = Field(1, ge=1, description="Image channels.")
    noise_dim: int = Field(100, ge=1)
    widest: int = Field(1024, ge=1, description="Feature maps at 4x4, halved at each doubling.")
    filter_px: FilterSide = Field(5, description="Side of every filter.")
    batch_size: int = Field(64, ge=2, description="Batch normalisation needs two.")
    learning_rate: float = Field(5e-5, gt=0)
    critic_moves: int = Field(5, ge=1, description="Moves of the critic for one of the generator.")
    clip: float = Field(0.01, gt=0, description="Largest absolute weight of the critic.")
    mirror: bool = Field(False, description="Flip half of the real images left to right.")


class WGAN(GAN):
    """The Wasserstein GAN with weight clipping."""

    def __init__(self, config: WGANConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(
            config.noise_dim,
            config.channels,
            config.side_px,
            widest=config.widest,
            filter_px=config.filter_px,
            bounded=True,
        )
        self.critic = Discriminator(
            config.channels,
            config.side_px,
            widest=config.widest,
            filter_px=config.filter_px,
            activation="leaky relu",
        )
        self.noise_shape = (config.noise_dim,)
        self.side_px = config.side_px

    def request(self, step: int) -> Request:
        """Real images, others for each move."""
        augment = MIRROR if self.config.mirror else None
        return Request(self.config.batch_size, self.side_px, augment=augment)

    def players(self, step: int) -> tuple[Player, ...]:
        """Critic, which moves several times, and generator."""

        def rmsprop(net: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.RMSprop(net.parameters(), lr=self.config.learning_rate)

        moves = self.config.critic_moves
        return (
            Player("critic", (self.critic,), rmsprop(self.critic), moves=moves),
            Player("generator", (self.generator,), rmsprop(self.generator)),
        )

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """The Wasserstein game; each move sees its own fake images."""
        real = batch["image"]
        noise = torch.randn(len(real), self.config.noise_dim, generator=turn.generator)
        noise = uniform(noise.to(real))
        if player == "generator":
            return {"adversarial": WASSERSTEIN.generator(self.critic(self.generator(noise)))}
        with torch.no_grad():
            fake = self.generator(noise)
        return {"adversarial": WASSERSTEIN.critic(self.critic(real), self.critic(fake))}

    @torch.no_grad()
    def after_move(self, player: str, batch: Batch, turn: Turn) -> None:
        """Clip the critic's weights."""
        if player == "critic":
            for weight in self.critic.parameters():
                weight.clamp_(-self.config.clip, self.config.clip)

    @torch.no_grad()
    def sample(
        self, noise: Float[Tensor, "n d"], given: Batch | None = None
    ) -> Float[Tensor, "n c y x"]:
        """Images in [-1, 1].

        Raises:
            SettingsError: Conditions were given.
        """
        if given is not None:
            raise SettingsError("wgan takes no conditions; cgan takes a label")
        images: Tensor = self.generator(uniform(noise))
        return images


def fitted(config: WGANConfig, pools: dict[str, Pool]) -> WGANConfig:
    """The settings with what the data decides: the number of channels."""
    channels = pools["real"].channels
    return config.model_copy(update={"channels": channels})


SYSTEM = WGAN

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        WGANConfig(), TrainSettings(steps=24_000, sample_every=1000, checkpoint_every=1000)
    ),
    "small": Preset(
        WGANConfig(
            side_px=64, widest=128, filter_px=4, batch_size=32, learning_rate=2e-4, mirror=True
        ),
        TrainSettings(steps=1_500, precision="bf16", sample_every=250),
    ),
    "smoke": Preset(
        WGANConfig(
            side_px=32,
            noise_dim=64,
            widest=64,
            filter_px=4,
            batch_size=16,
            learning_rate=5e-4,
            mirror=True,
        ),
        TrainSettings(steps=400, precision="bf16", sample_every=100),
    ),
}
