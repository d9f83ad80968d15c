"""UNIT has the sizes of its table, shares two blocks, and pays what its equations say."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from synthoma.engine.system import Turn
from synthoma.gans.unit import PRESETS, UNIT, Discriminator, Encoder, Generator, UNITConfig

SMALL = UNITConfig(side_px=16, width=4, blocks=1, judge_halvings=2, judge_width=4, batch_size=2)


def fresh() -> UNIT:
    torch.manual_seed(0)
    return UNIT(SMALL)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def convolution(kernel_px: int, low: int, high: int) -> int:
    return kernel_px**2 * low * high + high


def residual(low: int, high: int) -> int:
    past = 0 if low == high else convolution(1, low, high)
    return convolution(3, low, high) + convolution(3, high, high) + past


def test_sizes_are_those_of_the_table():
    config = UNITConfig()
    encoder = convolution(7, 1, 64) + convolution(3, 64, 128) + convolution(3, 128, 256)
    assert count(Encoder(config)) == encoder + residual(256, 512) + 2 * residual(512, 512)
    generator = convolution(3, 512, 256) + convolution(3, 256, 128) + convolution(1, 128, 1)
    assert count(Generator(config)) == 3 * residual(512, 512) + generator
    widths = [1, 64, 128, 256, 512, 1024]
    judge = sum(convolution(3, a, b) for a, b in pairwise(widths))
    assert count(Discriminator(config)) == judge + convolution(2, 1024, 1)


def test_shapes_are_those_of_256_px():
    config = UNITConfig(width=2, judge_width=2)
    image = torch.zeros(1, 1, 256, 256)
    code = Encoder(config)(image)
    assert code.shape == (1, 16, 64, 64)
    assert Generator(config)(code).shape == image.shape
    assert Discriminator(config)(image).shape == (1, 1, 7, 7)


def test_fewer_halvings_keep_more_places_in_the_code():
    config = SMALL.model_copy(update={"halvings": 1})
    image = torch.zeros(1, 1, 16, 16)
    code = Encoder(config)(image)
    assert code.shape == (1, 16, 8, 8)
    assert Generator(config)(code).shape == image.shape
    gan = UNIT(config)
    assert gan.decode("real", gan.encode("source", image)).shape == image.shape


def test_the_last_encoding_and_first_decoding_block_are_one_for_both_domains():
    own = [name for name, _ in fresh().named_parameters() if not name.startswith("disc")]
    shared = [name for name in own if name.split(".")[1] not in ("real", "source")]
    assert {name.split(".")[0] for name in shared} == {"to_code", "from_code"}
    whole = UNITConfig()
    assert count(UNIT(SMALL).to_code) == residual(8 * SMALL.width, 8 * SMALL.width)
    assert whole.blocks == 3  # beside the shared one


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    own = preset.system
    assert (own.adversarial_weight, own.divergence_weight, own.distance_weight) == (10, 0.1, 100)
    assert (own.batch_size, own.learning_rate, preset.train.steps) == (1, 1e-4, 100_000)
    for player in fresh().players(1):
        assert player.optimizer.defaults["betas"] == (0.5, 0.999)
        rates = [player.rate(step, 100_000) for step in (1, 20_000, 20_001, 40_001, 100_000)]
        assert rates == [1, 1, 0.5, 0.25, 0.0625]


def test_the_losses_are_those_of_the_equations():
    gan = fresh()
    chance = torch.Generator().manual_seed(1)
    x = {d: torch.rand(2, 1, 16, 16, generator=chance) - 0.5 for d in ("real", "source")}
    other = {"real": "source", "source": "real"}
    shared: dict = {}
    batch = {f"{d}/image": image for d, image in x.items()}
    judged = gan.losses(
        "discriminators", batch, Turn(1, 0, torch.Generator().manual_seed(2), shared)
    )
    paid = gan.losses("translators", batch, Turn(1, 0, torch.Generator().manual_seed(3), shared))

    def noise(generator: torch.Generator) -> torch.Tensor:
        return torch.randn(2, 32, 4, 4, generator=generator)

    def judge(d: str, image: torch.Tensor, real: float) -> torch.Tensor:
        logits = gan.discriminators[d](image)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    first, second = torch.Generator().manual_seed(2), torch.Generator().manual_seed(3)
    mean = {d: gan.encode(d, x[d]) for d in x}
    code = {d: mean[d] + noise(first) for d in x}
    there = {d: gan.decode(other[d], code[d]) for d in x}
    again = {d: gan.encode(other[d], there[d]) for d in x}
    back = {d: gan.decode(d, again[d] + noise(second)) for d in x}
    torch.testing.assert_close(
        judged["adversarial"],
        10 * sum(judge(d, x[d], 1.0) + judge(d, there[other[d]], 0.0) for d in x),
    )
    wanted = {
        "adversarial": 10 * sum(judge(other[d], there[d], 1.0) for d in x),
        "distance": 100 * sum((gan.decode(d, code[d]) - x[d]).abs().mean() for d in x),
        "cycle": 100 * sum((back[d] - x[d]).abs().mean() for d in x),
        "divergence": 0.1 * sum((mean[d] ** 2 + again[d] ** 2).mean() / 2 for d in x),
    }
    assert paid.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(paid[name], value)


def test_too_many_halvings_are_refused_by_name():
    with pytest.raises(ValidationError, match=r"judge_halvings\n.*less than 2 px of 32"):
        UNITConfig(side_px=32)
