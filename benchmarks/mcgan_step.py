"""MCGAN's training step on cubes, against the same networks trained plainly.

    OMP_NUM_THREADS=1 python benchmarks/mcgan_step.py [--side 32] [--width 24] [--batch 8]

Prints JSON. A step is: context discriminator, nodule critic with gradient penalty, generator, three
Adams. The *plain* step is in this file: the product's networks in NCDHW float32, the last
deconvolution of the whole cube and its middle kept, nodules drawn anew for each of the three
players, gradients of no weights that nobody moves. The product's own is `Game.make_step`, in
float32, in bf16, and in bf16 with channels last. They alternate, one thread; ratios are of CPU
seconds, as other jobs share the machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthoma.data.batches import Batch, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.train import Game
from synthoma.gans.mcgan import MCGAN, MCGANConfig, middle, placed, told_of, with_noise
from synthoma.nn.dropout import coins
from synthoma.nn.losses import LEAST_SQUARES, WASSERSTEIN, gradient_penalty


def batches(config: MCGANConfig) -> Callable[[Request, int, int, int], Batch]:
    """Noise, the same in every step."""
    chance = torch.Generator().manual_seed(0)
    shape = (config.batch_size, 1, *[config.side_px] * 3)
    batch = {
        "image": torch.rand(shape, generator=chance) * 2 - 1,
        "size": torch.arange(config.batch_size) % 3,
        "attenuation": torch.arange(config.batch_size) % 3,
    }
    return lambda request, step, move, part=0: batch


class Plain:
    """The step as one would write it first."""

    def __init__(self, gan: MCGAN) -> None:
        self.gan = gan
        nets = (gan.context, gan.critic, gan.generator)
        rate = gan.config.learning_rate
        self.adams = [torch.optim.Adam(n.parameters(), lr=rate, betas=(0.5, 0.999)) for n in nets]
        self.chance = torch.Generator().manual_seed(0)

    def draw(self, noisy: Tensor, told: Tensor) -> Tensor:
        """The whole last deconvolution, and its middle."""
        net = self.gan.generator
        x = torch.cat([noisy, told[..., None, None, None].expand(-1, -1, *noisy.shape[2:])], 1)
        shapes = [(w, *[noisy.shape[-1] // 2 >> k] * 3) for k, w in enumerate(net.widths)]
        kept, passed = coins(shapes[2::-1], [self.chance] * len(noisy)), []
        for down in net.down:
            x = F.leaky_relu(down(x), 0.2)
            passed.append(x)
        for up, keep, across in zip(net.up, kept, passed[2::-1], strict=True):
            x = torch.cat([F.relu(up(x)) * (2 * keep.float()), across], 1)
        return middle(torch.tanh(net.to_image(x)))

    def make_step(self, serve: Callable[[Request, int, int, int], Batch]) -> None:
        """All three players, each with nodules of its own."""
        gan, batch = self.gan, serve(self.gan.request(1), 1, 0, 0)
        real, told = batch["image"], told_of(batch).float()
        noisy = with_noise(real, [self.chance] * len(real), gan.config.noise)

        def minimise(k: int, net: nn.Module, loss: Tensor) -> None:
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight.grad = gradient
            self.adams[k].step()

        with torch.no_grad():
            made = self.draw(noisy, told)
        of_real = gan.judge(torch.cat([real, noisy], 1))
        of_made = gan.judge(torch.cat([placed(noisy, made), noisy], 1))
        minimise(0, gan.context, LEAST_SQUARES.critic(of_real, of_made))
        with torch.no_grad():
            made = self.draw(noisy, told)
        true = middle(real)
        penalty = gradient_penalty(lambda x: gan.value(x, told), true, made, generator=self.chance)
        game = WASSERSTEIN.critic(gan.value(true, told), gan.value(made, told))
        minimise(1, gan.critic, game + gan.config.penalty_weight * penalty)
        made = self.draw(noisy, told)
        around = gan.judge(torch.cat([placed(noisy, made), noisy], 1))
        total = LEAST_SQUARES.generator(around) + WASSERSTEIN.generator(gan.value(made, told))
        minimise(2, gan.generator, total)


def ours(config: MCGANConfig, precision: str, *, channels_last: bool) -> Game:
    """The product's step."""
    torch.manual_seed(0)
    gan = MCGAN(config).train()
    if channels_last:
        gan = gan.to(memory_format=torch.channels_last_3d)
    settings = TrainSettings(steps=10_000, checkpoint_every=10_000, precision=precision)
    return Game(gan, settings, 0, torch.device("cpu"))


def measured(config: MCGANConfig, pairs: int) -> dict[str, object]:
    """CPU seconds of a plain step, and how many times faster each of ours is."""
    torch.manual_seed(0)
    plain = Plain(MCGAN(config).train())
    steps = {
        "float32": ours(config, "float32", channels_last=False),
        "bf16": ours(config, "bf16", channels_last=False),
        "bf16, channels last": ours(config, "bf16", channels_last=True),
    }
    serve = batches(config)
    seconds: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(pairs + 1):  # the first warms up
        base = timed(lambda: plain.make_step(serve))
        own = {name: timed(lambda game=game: game.make_step(serve)) for name, game in steps.items()}
        if k:
            seconds.append(base)
            for name, value in own.items():
                ratios[name].append(base / value)
    return {
        "side_px": config.side_px,
        "width": config.width,
        "batch_size": config.batch_size,
        "pairs": pairs,
        "plain_cpu_seconds": round(median(seconds), 3),
        "times_faster": {
            name: {"median": round(median(v), 2), "range": [round(min(v), 2), round(max(v), 2)]}
            for name, v in ratios.items()
        },
    }


def timed(step: Callable[[], None]) -> float:
    """CPU seconds of a step."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("side", 32), ("width", 24), ("batch", 8), ("pairs", 5)):
        words.add_argument(f"--{name}", type=int, default=default)
    given = words.parse_args()
    torch.set_num_threads(1)
    config = MCGANConfig(side_px=given.side, width=given.width, batch_size=given.batch)
    print(json.dumps(measured(config, given.pairs), indent=1))
