"""PGGAN's training step at 256 px, batch 4, quarter width, against the same step written plainly.

    OMP_NUM_THREADS=1 python benchmarks/pggan_step.py [--pairs 7]

Three minutes on one core; six where others share it. Prints JSON, then a line for people. A
step is: critic with gradient penalty, generator, both Adams, the moving average. The *plain* step
is in this file: NCHW, float32, critic passes apart, average pooling after the activation, the
textbook penalty, nothing else wasteful (no kept graphs, no gradients that nobody uses). The *fast*
one is the product's own, `Game.make_step`. They alternate, one thread, and each fast step is
divided into the plain one of its round; so is the whole loop, `synthoma.engine.train` with batches
from memory. The time of a 3x3 convolution (64 channels, 256x256, batch 4, NCHW float32) is beside
them, for other machines, and ratios of CPU seconds beside those of the clock, for machines with
other jobs.

Two things make the fast step another function than the plain one, as in Karras et al.'s program
and by our setting `frozen_spread`: its critic averages before the activation, and its penalty takes
the minibatch deviation for a constant (the rows "whole penalty" do not). Besides, both of its
players see the same fakes. Its gradients are therefore compared with a third, plain statement of
the *same* function: in float32 they must agree within 1e-3.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthoma.data.batches import Batch, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import Game, generator_for, train
from synthoma.gans.pggan import PGGAN, Critic, Generator, PGGANConfig

#: A quarter of Karras et al.'s feature maps: 128 up to 32 px, 16 at 256; grown from step 4 on.
QUARTER = PGGANConfig(
    side_px=256,
    widest=128,
    base=2048,
    noise_dim=128,
    batch_size=4,
    stable_images=1,
    fade_images=1,
    frozen_spread=True,
)
TOLERANCE = 1e-3


# --- the plain step ----------------------------------------------------------------------------


def convolve(layer: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight * layer.scale, layer.bias, padding=layer.kernel_px // 2)


def pixel_norm(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def draw(generator: Generator, noise: Tensor) -> Tensor:
    """The images of the whole generator, as the paper's table 2 says."""
    x = generator.first(pixel_norm(noise)).unflatten(1, (-1, 4, 4)) + generator.first_bias
    x = pixel_norm(F.leaky_relu(x, 0.2))
    x = pixel_norm(F.leaky_relu(convolve(generator.convs[0], x), 0.2))
    for up, conv in zip(generator.ups, generator.convs[1:], strict=True):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = pixel_norm(F.leaky_relu(convolve(up, x), 0.2))
        x = pixel_norm(F.leaky_relu(convolve(conv, x), 0.2))
    return convolve(generator.to_image[-1], x)


def activate_then_average(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.leaky_relu(x, 0.2), 2)


def average_then_activate(x: Tensor) -> Tensor:
    """As where the averaging is folded into the convolution before it."""
    return F.leaky_relu(F.avg_pool2d(x, 2), 0.2)


def judge(
    critic: Critic,
    image: Tensor,
    halve: Callable[[Tensor], Tensor] = activate_then_average,
    *,
    frozen_spread: bool = False,
) -> Tensor:
    """The logits of the whole critic, as the paper's table 2 says; the batch is one group."""
    x = F.leaky_relu(convolve(critic.from_image[-1], image), 0.2)
    for conv, down in zip(reversed(critic.convs[1:]), reversed(critic.downs), strict=True):
        x = F.leaky_relu(convolve(conv, x), 0.2)
        x = halve(convolve(down, x))
    spread = (x.var(dim=0, correction=0) + 1e-8).sqrt().mean()
    spread = spread.detach() if frozen_spread else spread
    x = torch.cat([x, spread.expand(len(x), 1, 4, 4)], dim=1)
    x = F.leaky_relu(convolve(critic.convs[0], x), 0.2)
    x = F.leaky_relu(critic.dense(x.flatten(1)), 0.2)
    return critic.logit(x).squeeze(1)


def critic_loss(
    judge: Callable[[Tensor], Tensor],
    penalised: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    mix: Tensor,
    config: PGGANConfig,
) -> Tensor:
    """WGAN-GP with drift (Gulrajani et al. 2017, Karras et al. 2018)."""
    of_real, of_fake = judge(real), judge(fake)
    x_hat = torch.lerp(real, fake, mix).requires_grad_()
    (grad,) = torch.autograd.grad(penalised(x_hat).sum(), x_hat, create_graph=True)
    penalty = (grad.flatten(1).norm(dim=1) - 1).square().mean()
    drift = of_real.square().mean()
    return (
        of_fake.mean()
        - of_real.mean()
        + config.penalty_weight * penalty
        + config.drift_weight * drift
    )


class Plain:
    """The textbook's training, on the product's weights."""

    def __init__(self, gan: PGGAN) -> None:
        self.gan, self.config = gan, gan.config
        adam = {"lr": gan.config.learning_rate, "betas": (0.0, 0.99)}
        self.critic_adam = torch.optim.Adam(gan.critic.parameters(), **adam)
        self.generator_adam = torch.optim.Adam(gan.generator.parameters(), **adam)
        self.average = [p.detach().clone() for p in gan.generator.parameters()]

    def make_step(self, real: Tensor) -> None:
        generator, critic, n = self.gan.generator, self.gan.critic, len(real)

        with torch.no_grad():
            fake = draw(generator, torch.randn(n, self.config.noise_dim))

        def judged(image: Tensor) -> Tensor:
            return judge(critic, image)

        self.critic_adam.zero_grad()
        mix = torch.rand(n, 1, 1, 1)
        critic_loss(judged, judged, real, fake, mix, self.config).backward()
        self.critic_adam.step()

        critic.requires_grad_(False)
        self.generator_adam.zero_grad()
        fake = draw(generator, torch.randn(n, self.config.noise_dim))
        (-judged(fake).mean()).backward()
        self.generator_adam.step()
        critic.requires_grad_(True)

        with torch.no_grad():
            weights = list(generator.parameters())
            torch._foreach_lerp_(self.average, weights, 1 - self.config.average_decay)


# --- the same function? ------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """How far the fast step's gradient, all weights in one vector, is from the plain one."""

    relative_error: float
    cosine: float


def gaps(gan: PGGAN, real: Tensor, precision: str) -> dict[str, Gap]:
    """The fast step's gradients against a plain statement of the same function, by player."""
    fast = {
        "critic": list(gan.critic.parameters()),
        "generator": list(gan.generator.parameters()),
    }
    grown, shared = grown_step(gan.config), dict[str, Tensor]()
    chance = generator_for(0, grown, "critic", 0)
    noise = torch.randn(len(real), gan.config.noise_dim, generator=chance).to(real.dtype)
    mix = torch.rand(len(real), 1, 1, 1, generator=chance, dtype=real.dtype)

    def judged(image: Tensor) -> Tensor:
        return judge(gan.critic, image, average_then_activate)

    def penalised(image: Tensor) -> Tensor:
        frozen = gan.config.frozen_spread
        return judge(gan.critic, image, average_then_activate, frozen_spread=frozen)

    fake = draw(gan.generator, noise)
    plain = {
        "critic": critic_loss(judged, penalised, real, fake.detach(), mix, gan.config),
        "generator": -judged(fake).mean(),
    }
    found = {}
    for player, weights in fast.items():
        turn = Turn(grown, 0, generator_for(0, grown, player, 0), shared)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            terms = gan.losses(player, {"image": real}, turn)
        total = torch.stack(list(terms.values())).sum()
        own, expected = flat(total, weights), flat(plain[player], weights)
        found[player] = Gap(
            ((own - expected).norm() / expected.norm()).item(),
            F.cosine_similarity(own, expected, dim=0).item(),
        )
    return found


def flat(loss: Tensor, weights: list[torch.nn.Parameter]) -> Tensor:
    """The gradient as one vector; weights of the resolutions grown out of have none."""
    grads = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    return torch.cat([grad.flatten().double() for grad in grads if grad is not None])


def grown_step(config: PGGANConfig) -> int:
    """A step at which the growth is over."""
    shown = (config.stable_images + config.fade_images) * len(config.sides)
    return 2 + shown // config.batch_size


# --- how fast? ---------------------------------------------------------------------------------


class Took(NamedTuple):
    """Seconds by the clock, and of this process: where other jobs run, the steadier of the two."""

    wall: float
    cpu: float


def clock() -> Took:
    return Took(time.perf_counter(), time.process_time())


def since(began: Took, steps: int = 1) -> Took:
    now = clock()
    return Took((now.wall - began.wall) / steps, (now.cpu - began.cpu) / steps)


class Memory:
    """Serves random images from memory, and notes when each step began."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}
        self.began: dict[int, Took] = {}

    def __call__(self, request: Request, step: int, move: int, part: int = 0) -> Batch:
        self.began.setdefault(step, clock())
        side = request.side_px
        if side not in self.kept:
            chance = torch.Generator().manual_seed(side)
            drawn = torch.rand(request.size, 1, side, side, generator=chance)
            self.kept[side] = drawn * 2 - 1
        return {"image": self.kept[side]}


def fresh(config: PGGANConfig) -> PGGAN:
    torch.manual_seed(0)
    return PGGAN(config)


def timed(work: Callable[[], object]) -> Took:
    began = clock()
    work()
    return since(began)


def timed_loop(config: PGGANConfig, precision: str, steps: int) -> Took:
    """One grown step inside `synthoma.engine.train`, the mean of `steps`."""
    serve, grown = Memory(), grown_step(config)
    settings = TrainSettings(steps=grown + steps, precision=precision, threads=1)
    train(fresh(config), serve, settings, seed=0)
    return since(serve.began[grown + 1], steps)


def measure(config: PGGANConfig, *, pairs: int) -> dict[str, list[Took]]:
    """What a step took, by variant, one of each in every round; "kernel" is the convolution."""
    serve, grown = Memory(), grown_step(config)
    real = serve(Request(config.batch_size, config.side_px), 0, 0)["image"]
    plain = Plain(fresh(config))
    x, w = torch.randn(4, 64, 256, 256), torch.randn(64, 64, 3, 3)

    def kernel() -> Tensor:
        with torch.no_grad():
            return F.conv2d(x, w, padding=1)

    def fast(precision: str, *, frozen_spread: bool = True) -> Callable[[], object]:
        chosen = config.model_copy(update={"frozen_spread": frozen_spread})
        settings = TrainSettings(steps=10**9, precision=precision)
        game = Game(fresh(chosen).train(), settings, 0, torch.device("cpu"))
        game.step = grown
        return lambda: game.make_step(serve)

    work: dict[str, Callable[[], object]] = {
        "kernel": kernel,
        "plain": lambda: plain.make_step(real),
        "float32": fast("float32"),
        "float32, whole penalty": fast("float32", frozen_spread=False),
        "bf16": fast("bf16"),
        "bf16, whole penalty": fast("bf16", frozen_spread=False),
    }
    for once in work.values():
        once()
    took: dict[str, list[Took]] = {name: [] for name in work}
    took |= {"float32, loop": [], "bf16, loop": []}
    for _ in range(pairs):
        for name, once in work.items():
            took[name].append(timed(once))
        for precision in ("float32", "bf16"):
            took[f"{precision}, loop"].append(timed_loop(config, precision, 2))
    return took


def ratios(took: dict[str, list[Took]], of: str, to: str) -> dict[str, list[float]]:
    """[median, lowest, highest] of the paired ratios, by either clock."""
    pairs = list(zip(took[of], took[to], strict=True))
    by_clock = {
        "wall": [a.wall / b.wall for a, b in pairs],
        "cpu": [a.cpu / b.cpu for a, b in pairs],
    }
    return {
        name: [round(v, 2) for v in (median(each), min(each), max(each))]
        for name, each in by_clock.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    real = Memory()(Request(QUARTER.batch_size, QUARTER.side_px), 0, 0)["image"]
    close = {name: gaps(fresh(QUARTER), real, name) for name in ("float32", "bf16")}
    took = measure(QUARTER, pairs=arguments.pairs)
    steps = [name for name in took if name != "kernel"]
    fast = {name: ratios(took, "plain", name) for name in steps if name != "plain"}
    seconds = {name: median(each.cpu for each in took[name]) for name in took}
    told = {
        "torch": torch.__version__,
        "pairs": arguments.pairs,
        "load_average": {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)},
        "cpu_seconds": {name: round(value, 4) for name, value in seconds.items()},
        "images_per_cpu_second": {name: round(4 / seconds[name], 2) for name in steps},
        "kernels_per_step": {name: ratios(took, name, "kernel")["cpu"] for name in steps},
        "times_faster_than_plain": fast,
        "gradients": {
            precision: {
                player: {key: float(f"{value:.3g}") for key, value in vars(gap).items()}
                for player, gap in by_player.items()
            }
            for precision, by_player in close.items()
        },
    }
    print(json.dumps(told, indent=1))
    said = "; ".join(
        f"{name} {by['cpu'][0]}x [{by['cpu'][1]}, {by['cpu'][2]}] (clock {by['wall'][0]}x)"
        for name, by in fast.items()
    )
    print(f"times faster than plain, one thread, in CPU seconds, load {load:.1f}: {said}")
    worst = max(gap.relative_error for gap in close["float32"].values())
    if worst > TOLERANCE:
        sys.exit(f"float32 gradients differ by {worst:.1e}; allowed: {TOLERANCE}")


if __name__ == "__main__":
    main()
