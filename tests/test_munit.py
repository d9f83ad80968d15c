"""MUNIT has the sizes of its appendix, keeps content from style, and pays what equations say."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from synthoma.engine.system import Turn
from synthoma.errors import SettingsError
from synthoma.gans.munit import (
    MUNIT,
    PRESETS,
    ContentEncoder,
    Decoder,
    Discriminator,
    MUNITConfig,
    StyleEncoder,
    adapt,
)

SMALL = MUNITConfig(
    side_px=16,
    width=4,
    blocks=1,
    style_width=8,
    judge_width=4,
    judge_halvings=2,
    scales=2,
    batch_size=2,
)


def fresh() -> MUNIT:
    torch.manual_seed(0)
    return MUNIT(SMALL)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def convolution(kernel_px: int, low: int, high: int) -> int:
    return kernel_px**2 * low * high + high


def test_sizes_are_those_of_the_appendix():
    config = MUNITConfig()
    # c7s1-64, d128, d256, then R256 four times
    front = convolution(7, 1, 64) + convolution(4, 64, 128) + convolution(4, 128, 256)
    blocks = 4 * 2 * convolution(3, 256, 256)
    assert count(ContentEncoder(config)) == front + blocks
    # c7s1-64, d128, d256, d256, d256, GAP, fc8
    style = front + 2 * convolution(4, 256, 256) + convolution(1, 256, 8)
    assert count(StyleEncoder(config)) == style
    # R256 four times, u128, u64, c7s1-1; fc256, fc256 and scale and shift of eight convolutions
    up = convolution(5, 256, 128) + 2 * 128 + convolution(5, 128, 64) + 2 * 64
    layers = convolution(1, 8, 256) + convolution(1, 256, 256) + convolution(1, 256, 8 * 2 * 256)
    assert count(Decoder(config)) == blocks + up + convolution(7, 64, 1) + layers
    # d64, d128, d256, d512 at each of three scales
    widths = [1, 64, 128, 256, 512]
    judge = sum(convolution(4, a, b) for a, b in pairwise(widths))
    assert count(Discriminator(config)) == 3 * (judge + convolution(1, 512, 1))


def test_shapes_are_those_of_256_px():
    config = MUNITConfig(width=2, judge_width=2)
    image = torch.zeros(1, 1, 256, 256)
    content, style = ContentEncoder(config)(image), StyleEncoder(config)(image)
    assert content.shape == (1, 8, 64, 64)
    assert style.shape == (1, 8)
    assert Decoder(config)(content, style).shape == image.shape
    sides = [logits.shape for logits in Discriminator(config)(image)]
    assert sides == [(1, 1, 16, 16), (1, 1, 8, 8), (1, 1, 4, 4)]


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    own = preset.system
    assert (own.image_weight, own.content_weight, own.style_weight) == (10, 1, 1)
    assert (own.batch_size, own.learning_rate, preset.train.steps) == (1, 1e-4, 100_000)
    assert own.style_dim == 8
    assert own.mirror
    for player in fresh().players(1):
        assert player.optimizer.defaults["betas"] == (0.5, 0.999)
        rates = [player.rate(step, 100_000) for step in (20_000, 20_001, 100_000)]
        assert rates == [1, 0.5, 0.0625]


def test_a_style_is_the_scale_and_shift_of_normalised_features():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 7 + 5
    scale, shift = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, 0.0, 4.0])
    styled = adapt(x, torch.stack([scale, shift])[None, :, :, None, None].expand(2, 2, 3, 1, 1))
    torch.testing.assert_close(styled.mean((2, 3)), shift.expand(2, 3), atol=1e-4, rtol=0)
    spread = styled.std((2, 3), correction=0)
    torch.testing.assert_close(spread, scale.abs().expand(2, 3), atol=1e-3, rtol=0)


def test_content_has_lost_the_brightness_and_contrast_that_style_keeps():
    gan = fresh()
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    content, brighter = (gan.content["real"](x) for x in (image, 1.5 * image + 0.3))
    torch.testing.assert_close(content, brighter, atol=1e-2, rtol=1e-2)
    assert (gan.style["real"](image) - gan.style["real"](1.5 * image + 0.3)).abs().max() > 0.01


def test_another_style_is_another_image_and_none_is_refused():
    gan = fresh().eval()
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    one, two = (gan.refine(image, torch.full((1, 8), value)) for value in (-1.0, 1.0))
    assert not torch.equal(one, two)
    with pytest.raises(SettingsError, match=r"no style; it needs one for each image, \(n, 8\)"):
        gan.refine(image)


def test_fewer_halvings_keep_more_places_in_the_content():
    config = SMALL.model_copy(update={"halvings": 1})
    image = torch.zeros(1, 1, 16, 16)
    content = ContentEncoder(config)(image)
    assert content.shape == (1, 8, 8, 8)
    assert Decoder(config)(content, torch.zeros(1, 8)).shape == image.shape


def test_images_that_come_back_from_the_other_domain_are_paid_for_where_asked():
    torch.manual_seed(0)
    gan = MUNIT(SMALL.model_copy(update={"cycle_weight": 3}))
    chance = torch.Generator().manual_seed(1)
    x = {d: torch.rand(2, 1, 16, 16, generator=chance) - 0.5 for d in ("real", "source")}
    other = {"real": "source", "source": "real"}
    shared: dict[str, Tensor] = {}
    batch = {f"{d}/image": image for d, image in x.items()}
    paid = gan.losses("translators", batch, Turn(1, 0, torch.Generator().manual_seed(2), shared))
    back = {
        d: gan.decode(d, gan.content[other[d]](shared[f"{d} translated"]), gan.style[d](x[d]))
        for d in x
    }
    torch.testing.assert_close(paid["cycle"], 3 * sum(F.l1_loss(back[d], x[d]) for d in x))


def test_the_losses_are_those_of_the_equations():
    gan = fresh()
    chance = torch.Generator().manual_seed(1)
    x = {d: torch.rand(2, 1, 16, 16, generator=chance) - 0.5 for d in ("real", "source")}
    other = {"real": "source", "source": "real"}
    shared: dict[str, Tensor] = {}
    batch = {f"{d}/image": image for d, image in x.items()}
    turn = Turn(1, 0, torch.Generator().manual_seed(2), shared)
    judged = gan.losses("discriminators", batch, turn)
    paid = gan.losses("translators", batch, turn)

    def judge(d: str, image: Tensor, real: float) -> Tensor:
        return 0.5 * sum(((logits - real) ** 2).mean() for logits in gan.discriminators[d](image))

    again = torch.Generator().manual_seed(2)
    drawn = {other[d]: torch.randn(2, 8, generator=again) for d in x}
    content = {d: gan.content[d](x[d]) for d in x}
    there = {d: gan.decoders[other[d]](content[d], drawn[other[d]]) for d in x}
    torch.testing.assert_close(
        judged["adversarial"], sum(judge(d, x[d], 1) + judge(d, there[other[d]], 0) for d in x)
    )
    wanted = {
        "adversarial": sum(judge(other[d], there[d], 1) for d in x),
        "image": 10
        * sum(F.l1_loss(gan.decoders[d](content[d], gan.style[d](x[d])), x[d]) for d in x),
        "content": sum(F.l1_loss(gan.content[other[d]](there[d]), content[d]) for d in x),
        "style": sum(F.l1_loss(gan.style[other[d]](there[d]), drawn[other[d]]) for d in x),
    }
    assert paid.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(paid[name], value)


def test_too_many_halvings_are_refused_by_name():
    with pytest.raises(ValidationError, match=r"scales\n.*4 halvings of 32 px leave nothing"):
        MUNITConfig(side_px=32)
