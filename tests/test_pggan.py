"""PGGAN has the sizes of the paper, its layers the values of plain ones, its growth a plan."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from synthoma.data.batches import Batch, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import Game, generator_for, train
from synthoma.errors import SettingsError
from synthoma.gans.pggan import PGGAN, PRESETS, Critic, Generator, PGGANConfig, phase, stage
from synthoma.nn import blocks
from synthoma.nn.blocks import EqualConv
from synthoma.nn.losses import gradient_norms

SMALL = PGGANConfig(
    side_px=16, widest=8, base=64, noise_dim=8, batch_size=4, stable_images=8, fade_images=8
)


def serve(request: Request, step: int, move: int, part: int = 0) -> Batch:
    chance = torch.Generator().manual_seed(step)
    side = request.side_px
    return {"image": torch.rand(request.size, 1, side, side, generator=chance) * 2 - 1}


def size(net: nn.Module, without: tuple[str, ...] = ()) -> int:
    named = net.named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith(without))


# --- sizes -------------------------------------------------------------------------------------


def test_at_1024_pixels_both_networks_have_the_23_1_million_weights_of_table_2():
    config = PGGANConfig(side_px=1024, channels=3)
    with torch.device("meta"):
        generator, critic = Generator(config), Critic(config)
    lower = tuple(f"{name}.{k}." for name in ("to_image", "from_image") for k in range(8))
    # table 2 row by row: weights and biases of each convolution
    widths = (512, 512, 512, 512, 256, 128, 64, 32, 16)
    drawn = 512 * 512 * 16 + 512 + (512 * 512 * 9 + 512) + (16 * 3 + 3)
    judged = (3 * 16 + 16) + (513 * 512 * 9 + 512) + (512 * 512 * 16 + 512) + (512 + 1)
    for low, high in pairwise(widths):
        drawn += (low * high * 9 + high) + (high * high * 9 + high)
        judged += (high * high * 9 + high) + (high * low * 9 + low)
    assert size(generator, lower) == drawn == 23_071_507
    assert size(critic, lower) == judged == 23_077_137
    # with the layers between features and pixels of the eight lower resolutions, as the
    # original program prints them
    assert size(generator) == 23_079_115
    assert size(critic) == 23_087_249


def test_feature_maps_halve_from_64_pixels_on():
    config = PGGANConfig(side_px=1024)
    assert [config.width(side) for side in config.sides] == [512] * 4 + [256, 128, 64, 32, 16]


@pytest.mark.parametrize("side_px", [4, 8, 16])
@pytest.mark.parametrize("fade", [0.25, 1.0])
def test_images_have_the_side_that_is_asked_for_and_each_gets_a_logit(side_px, fade):
    fade = 1.0 if side_px == 4 else fade
    image = Generator(SMALL)(torch.randn(5, 8), side_px, fade)
    assert image.shape == (5, 1, side_px, side_px)
    assert Critic(SMALL)(image, side_px, fade).shape == (5,)


def test_the_paper_preset_grows_to_256_pixels_within_its_steps():
    preset = PRESETS["paper"]
    assert phase(preset.system, preset.train.steps) == (256, 1.0)
    assert stage(preset.system, preset.train.steps) == (256, False)
    assert preset.system.augment.shift * 256 == 7.5


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_finishes_growing(name):
    preset = PRESETS[name]
    assert phase(preset.system, preset.train.steps) == (preset.system.side_px, 1.0)


# --- growth ------------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    """Two steps (of 4 images) each: 4 px; 8 px fading, then whole; 16 px fading, then for good."""
    seen = [(phase(SMALL, step), stage(SMALL, step)) for step in range(1, 13)]
    assert seen == [
        *[((4, 1.0), (4, False))] * 2,
        ((8, 0.5), (8, True)),
        ((8, 1.0), (8, True)),
        *[((8, 1.0), (8, False))] * 2,
        ((16, 0.5), (16, True)),
        ((16, 1.0), (16, True)),
        *[((16, 1.0), (16, False))] * 4,
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 99), st.integers(1, 99), st.sampled_from([4, 8, 32]))
def test_growth_never_goes_back_and_only_a_fading_resolution_is_partly_there(
    batch_size, stable_images, fade_images, side_px
):
    config = PGGANConfig(
        side_px=side_px,
        batch_size=batch_size,
        stable_images=stable_images,
        fade_images=fade_images,
    )
    plan = [(*phase(config, step), stage(config, step)) for step in range(1, 200)]
    for (side, fade, (staged, fading)), (next_side, next_fade, _) in pairwise(plan):
        assert side == staged
        assert 0 < fade <= 1
        assert fading or fade == 1
        assert next_side >= side
        assert next_side > side or next_fade >= fade


def test_a_resolution_that_has_not_begun_to_fade_in_changes_nothing():
    generator, critic, noise = Generator(SMALL), Critic(SMALL), torch.randn(4, 8)
    small = generator(noise, 8)
    torch.testing.assert_close(generator(noise, 16, 0.0), blocks.double(small))
    # the critic's doubled image is the small one again once it is halved
    torch.testing.assert_close(critic(blocks.double(small), 16, 0.0), critic(small, 8))


def test_growth_asks_for_larger_images_and_deals_fresh_optimisers():
    gan = PGGAN(SMALL)
    game = Game(gan, TrainSettings(steps=8), 0, torch.device("cpu"))
    sides, optimisers = [], []
    for step in range(1, 9):
        sides.append(gan.request(step).side_px)
        game.make_step(serve)
        optimisers.append(id(game.players[0].optimizer))
        assert gan.sample(torch.randn(1, 8)).shape[-1] == sides[-1]
    assert sides == [4, 4, 8, 8, 8, 8, 16, 16]
    changed = [k + 1 for k in range(1, 8) if optimisers[k] != optimisers[k - 1]]
    assert changed == [3, 5, 7]


def test_real_images_fade_in_like_fake_ones():
    """At the first step of a fade, both players see little more than doubled small images."""
    config = SMALL.model_copy(update={"fade_images": 4_000_000})
    gan, seen = PGGAN(config), []
    at = gan.critic.at
    gan.critic.at = lambda *where, **how: (
        lambda image, **more: seen.append(image.detach()) or at(*where, **how)(image, **more)
    )
    batch = serve(gan.request(3), 3, 0)
    gan.losses("critic", batch, Turn(3, 0, generator_for(0, 3, "critic", 0), {}))
    real = seen[0][:4]
    torch.testing.assert_close(real, blocks.double(blocks.halve(batch["image"])), atol=1e-5, rtol=0)


def test_sampling_goes_on_at_the_resolution_of_the_checkpoint():
    gan, other = PGGAN(SMALL), PGGAN(SMALL)
    train(gan, serve, TrainSettings(steps=5), seed=0)
    other.load_state_dict(gan.state_dict())
    noise = torch.randn(2, 8)
    assert other.sample(noise).shape == (2, 1, 8, 8)
    assert torch.equal(gan.sample(noise), other.sample(noise))


def test_conditions_are_refused():
    with pytest.raises(SettingsError, match="pggan takes no conditions"):
        PGGAN(SMALL).sample(torch.randn(1, 8), {"label": torch.zeros(1)})


# --- layers ------------------------------------------------------------------------------------


def test_doubling_folded_into_the_convolution_is_doubling_then_convolving():
    layer = EqualConv(3, 5, 3, resample="up").double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    plain = F.conv2d(blocks.double(x), layer.weight * layer.scale, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), plain)


def test_halving_folded_into_the_convolution_is_convolving_then_averaging():
    layer = EqualConv(3, 5, 3, resample="down").double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = F.avg_pool2d(F.conv2d(x, layer.weight * layer.scale, layer.bias, padding=1), 2)
    torch.testing.assert_close(layer(x), plain)


@pytest.mark.parametrize("resample", ["none", "up", "down"])
def test_extra_channels_are_a_concatenation(resample):
    both = EqualConv(7, 6, 3, resample=resample).double()
    apart = EqualConv(5, 6, 3, extra=2, resample=resample).double()
    apart.load_state_dict(both.state_dict())
    x, extra = torch.randn(2, 5, 8, 8).double(), torch.randn(2, 2, 8, 8).double()
    torch.testing.assert_close(apart(x, extra), both(torch.cat([x, extra], dim=1)))


@pytest.mark.parametrize("resample", ["none", "up", "down"])
def test_repeated_extra_channels_are_a_concatenation_of_repeats(resample):
    both = EqualConv(5 + 6, 6, 3, resample=resample).double()
    apart = EqualConv(5, 6, 3, extra=2, copies=3, resample=resample).double()
    apart.load_state_dict(both.state_dict())
    x, extra = torch.randn(2, 5, 8, 8).double(), torch.randn(2, 2, 8, 8).double()
    torch.testing.assert_close(apart(x, extra), both(torch.cat([x, extra, extra, extra], dim=1)))


def test_features_keep_unit_variance_through_a_layer_at_the_start():
    """Equalised learning rate: He's constant is applied at run time, joint fan-in included."""
    torch.manual_seed(0)
    x, extra = torch.randn(8, 31, 16, 16), torch.randn(8, 1, 16, 16)
    out = EqualConv(31, 64, 3, extra=1, gain=1.0)(x, extra)
    assert out[..., 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.05)


def test_leaky_relu_has_the_gradients_and_second_gradients_of_the_plain_one():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def own(x: Tensor) -> Tensor:
        return blocks.leaky_relu_(x * 1.0)

    torch.testing.assert_close(own(x), F.leaky_relu(x, 0.2))
    assert torch.autograd.gradcheck(own, x)
    assert torch.autograd.gradgradcheck(own, x)


def test_leaky_pixel_norm_is_leaky_relu_then_pixel_norm_with_its_gradient():
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    plain = blocks.pixel_norm(F.leaky_relu(x, 0.2))
    torch.testing.assert_close(blocks.leaky_pixel_norm(x), plain)
    assert plain.square().mean(1).sub(1).abs().max() < 1e-5
    assert torch.autograd.gradcheck(blocks.leaky_pixel_norm, x)


def test_leaky_pixel_norm_refuses_to_be_differentiated_twice():
    x = torch.randn(1, 2, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(blocks.leaky_pixel_norm(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


def test_batch_spread_is_that_of_the_original_program_and_keeps_parts_apart():
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    y = x.reshape(4, 2, 3, 4, 4)  # [group, number of groups, c, h, w], its own order
    by_hand = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean((1, 2, 3)).repeat(4)
    torch.testing.assert_close(blocks.batch_spread(x).flatten(), by_hand)
    twice = blocks.batch_spread(torch.cat([x, 2 * x]), parts=2).flatten()
    torch.testing.assert_close(twice[:8], by_hand)
    torch.testing.assert_close(twice[8:], 2 * by_hand, rtol=1e-6, atol=0)


def test_a_collapsed_batch_has_no_spread():
    assert blocks.batch_spread(torch.ones(4, 3, 4, 4)).max() < 1e-3


# --- the game ----------------------------------------------------------------------------------


def plain_critic(critic: Critic, image: Tensor) -> Tensor:
    """The critic at 16 px, written plainly, from the same weights."""

    def conv(layer: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight * layer.scale, layer.bias, padding=layer.kernel_px // 2)

    x = F.leaky_relu(conv(critic.from_image[2], image), 0.2)
    for k in (2, 1):
        x = F.leaky_relu(conv(critic.convs[k], x), 0.2)
        x = F.leaky_relu(F.avg_pool2d(conv(critic.downs[k - 1], x), 2), 0.2)
    y = x.reshape(4, len(x) // 4, -1)
    spread = (y.var(0, correction=0) + 1e-8).sqrt().mean(1).repeat(4)
    x = torch.cat([x, spread[:, None, None, None].expand(-1, 1, 4, 4)], dim=1)
    x = F.leaky_relu(conv(critic.convs[0], x), 0.2)
    x = F.leaky_relu(critic.dense(x.flatten(1)), 0.2)
    return critic.logit(x).squeeze(1)


def test_the_critics_losses_and_gradients_are_those_of_the_textbook():
    """One pass for real and fake, prepared weights, own activations: nothing but speed."""
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"stable_images": 4, "fade_images": 4})
    gan = PGGAN(config).double()
    weights = list(gan.critic.parameters())
    shared: dict[str, Tensor] = {}
    real = torch.rand(4, 1, 16, 16, dtype=torch.float64) * 2 - 1
    turn = Turn(9, 0, generator_for(0, 9, "critic", 0), shared)
    losses = gan.losses("critic", {"image": real}, turn)
    fake = shared["fake"].detach()
    of_real, of_fake = plain_critic(gan.critic, real), plain_critic(gan.critic, fake)
    chance = generator_for(0, 9, "critic", 0)
    torch.randn(4, 8, generator=chance)  # the noise of the fakes
    mix = torch.rand(4, 1, 1, 1, generator=chance, dtype=torch.float64)
    x_hat = torch.lerp(real, fake, mix).requires_grad_()
    (grad,) = torch.autograd.grad(plain_critic(gan.critic, x_hat).sum(), x_hat, create_graph=True)
    norms = grad.flatten(1).norm(dim=1)
    assert shared["log/gradient_norm"].item() == pytest.approx(norms.mean().item())
    expected = {
        "adversarial": of_fake.mean() - of_real.mean(),
        "drift": 1e-3 * of_real.square().mean(),
        "penalty": 10 * (norms - 1).square().mean(),
    }
    assert losses.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(losses[name], term)
        own = torch.autograd.grad(losses[name], weights, retain_graph=True, allow_unused=True)
        plain = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        for mine, theirs in zip(own, plain, strict=True):
            if mine is not None or theirs is not None:
                zero = torch.zeros(())
                torch.testing.assert_close(
                    *torch.broadcast_tensors(
                        zero if mine is None else mine, zero if theirs is None else theirs
                    ),
                    check_dtype=False,
                )


class Convolutions(TorchDispatchMode):
    """Counts convolutions, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_with_a_frozen_spread_the_penalty_does_not_go_back_through_the_critic():
    """Its second backward needs two convolutions a layer; plain activations cost four."""
    critic = Critic(SMALL)
    judge = critic.at(16)
    x = torch.randn(4, 1, 16, 16)
    norms = gradient_norms(lambda image: judge(image, frozen_spread=True), x, x)
    with Convolutions() as seen:
        norms.sum().backward(inputs=list(critic.parameters()))
    assert seen.counts["convolution_backward.default"] == 0


def test_the_generator_plays_the_fake_images_that_the_critic_saw():
    gan, shared = PGGAN(SMALL), {}
    batch = serve(gan.request(1), 1, 0)
    gan.losses("critic", batch, Turn(1, 0, generator_for(0, 1, "critic", 0), shared))
    fake = shared["fake"]
    losses = gan.losses("generator", batch, Turn(1, 0, generator_for(0, 1, "generator", 0), shared))
    assert losses["adversarial"].item() == pytest.approx(-gan.critic(fake, 4).mean().item())
    losses["adversarial"].backward(inputs=list(gan.generator.parameters()))
    assert gan.generator.first.weight.grad.abs().sum() > 0
    assert gan.critic.logit.weight.grad is None


def test_bfloat16_is_close_to_float32():
    """Within 2 % of the largest pixel and logit at the start; weights stay float32."""
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"widest": 32, "base": 256})
    generator, critic, noise = Generator(config), Critic(config), torch.randn(8, 8)
    exact, rough = generator(noise, 16), generator(noise, 16, dtype=torch.bfloat16)
    assert exact.dtype == rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.02 * exact.abs().max()
    judged, roughly = critic.at(16)(exact), critic.at(16, dtype=torch.bfloat16)(exact)
    assert judged.dtype == roughly.dtype == torch.float32
    assert (judged - roughly).abs().max() < 0.02 * judged.abs().max()


def test_a_penalty_every_fourth_step_weighs_four_times_as_much():
    config = SMALL.model_copy(update={"penalty_every": 4, "penalty_share": 0.5})
    gan = PGGAN(config)

    def terms(step: int) -> dict[str, Tensor]:
        batch = serve(Request(4, phase(config, step)[0]), step, 0)
        return gan.losses("critic", batch, Turn(step, 0, torch.Generator(), {}))

    assert "penalty" not in terms(3)
    assert "penalty" in terms(4)
