"""What the players of an adversarial game minimise.

A *game* is a pair of functions of critic logits (before any sigmoid):
``critic(real_logits, fake_logits)`` and ``generator(fake_logits)``. Both return a scalar to
minimise, so every GAN file reads the same whichever game it plays. Penalties on the critic's
gradient are separate functions: a paper adds them, a game does not hide them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Game:
    """One adversarial objective: what the critic minimises, what the generator minimises."""

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


#: Goodfellow et al. 2014, with the non-saturating generator loss of its section 3.
NON_SATURATING = Game(
    critic=lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
    generator=lambda fake: F.softplus(-fake).mean(),
)

#: Mao et al. 2017 (LSGAN), eq. 9: real -> 1, fake -> 0.
LEAST_SQUARES = Game(
    critic=lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
    generator=lambda fake: 0.5 * (fake - 1).square().mean(),
)

#: Lim and Ye 2017; as in Miyato et al. 2018, eq. 17.
HINGE = Game(
    critic=lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    generator=lambda fake: -fake.mean(),
)

#: Arjovsky et al. 2017. Unbounded: pair it with `gradient_penalty` or with weight clipping.
WASSERSTEIN = Game(
    critic=lambda real, fake: fake.mean() - real.mean(),
    generator=lambda fake: -fake.mean(),
)


def alternating(
    game: Game,
    player: str,
    shared: dict[str, Tensor],
    draw: Callable[[], Tensor],
    judge: Callable[[Tensor], Tensor],
    real: Tensor,
) -> Float[Tensor, ""]:
    """What "generator", or else its critic, minimises where both see the same fake images.

    The critic, who moves first, draws them and leaves them, with their graph, as `shared["fake"]`;
    the generator takes them from there.
    """
    if player == "generator":
        return game.generator(judge(shared.pop("fake") if "fake" in shared else draw()))
    shared["fake"] = draw()
    return game.critic(judge(real), judge(shared["fake"].detach()))


def mean_over_maps(loss: Callable[..., Tensor], *maps: list[Tensor]) -> Float[Tensor, ""]:
    """The mean over maps of logits of a loss that takes one, or one of each list."""
    return torch.stack([loss(*own) for own in zip(*maps, strict=True)]).mean()


def gradient_norms(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "n c *space"],
    fake: Float[Tensor, "n c *space"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """||grad D(x_hat)||_2 of each image, where x_hat lies between a real and a fake image.

    The point on the segment is drawn once per image (not per pixel). Works in 2D and 3D.

    Args:
        critic: Maps images to logits of any shape; it sees ``x_hat`` only.
        real: Real images.
        fake: Generated images; detached here, so that what is made of the norms trains the
            critic alone.
        generator: Source of the mixing weights; pass one to make them repeatable.
    """
    one_per_image = (len(real), *[1] * (real.ndim - 1))
    mix = torch.rand(one_per_image, generator=generator, dtype=real.dtype).to(real.device)
    x_hat = torch.lerp(real, fake.detach(), mix).requires_grad_(True)
    (grad,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
    return torch.linalg.vector_norm(grad.flatten(1), dim=1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "n c *space"],
    fake: Float[Tensor, "n c *space"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """WGAN-GP's penalty: (||grad D(x_hat)||_2 - 1)^2, unweighted (Gulrajani et al. 2017, eq. 3).

    Args: as for `gradient_norms`.

    Example:
        A critic that sums its 4 input pixels has gradient norm 2, so it pays (2 - 1)^2 = 1.

        >>> x = torch.zeros(3, 1, 2, 2)
        >>> gradient_penalty(lambda image: image.flatten(1).sum(1), x, x).item()
        1.0
    """
    return (gradient_norms(critic, real, fake, generator=generator) - 1).square().mean()
