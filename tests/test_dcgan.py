"""DCGAN has the sizes of its two papers, and what they say of its layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthoma.engine.system import Turn
from synthoma.engine.train import generator_for
from synthoma.errors import SettingsError
from synthoma.gans.dcgan import DCGAN, PRESETS, DCGANConfig, uniform, widths

SMALL = DCGANConfig(side_px=16, noise_dim=8, widest=16, batch_size=8)


def fresh(config: DCGANConfig = SMALL) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(config)


def weightless(config: DCGANConfig) -> DCGAN:
    """Of full size, without the memory."""
    with torch.device("meta"):
        return DCGAN(config)


def maps(net: nn.Module, kind: type[nn.Module]) -> list[tuple[int, int]]:
    """(feature maps in, feature maps out) of each convolution."""
    return [(m.in_channels, m.out_channels) for m in net.modules() if type(m) is kind]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- sizes -------------------------------------------------------------------------------------


def test_the_papers_networks_have_half_of_radfords_channels_and_4x4_filters():
    gan = weightless(PRESETS["paper"].system)
    up = [(512, 256), (256, 128), (128, 64), (64, 32), (32, 1)]
    assert maps(gan.generator, nn.ConvTranspose2d) == up
    assert maps(gan.discriminator, nn.Conv2d) == [(high, low) for low, high in up[::-1]]
    convolutions = [m for m in gan.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert {m.kernel_size for m in convolutions} == {(4, 4)}
    kinds = {type(m) for m in gan.discriminator.modules()}
    assert nn.ELU in kinds
    assert nn.LeakyReLU not in kinds

    between = 512 * 256 + 256 * 128 + 128 * 64 + 64 * 32
    first, norms = 100 * 512 * 16 + 2 * 512 * 16, 2 * (256 + 128 + 64 + 32)
    assert count(gan.generator) == first + 16 * (between + 32) + norms
    norms = 2 * (512 + 256 + 128 + 64)
    assert count(gan.discriminator) == 16 * (1 * 32 + between) + norms + 512 * 16


def test_radfords_networks_are_those_of_his_figure_1():
    gan = weightless(PRESETS["radford"].system.model_copy(update={"channels": 3}))
    up = [(1024, 512), (512, 256), (256, 128), (128, 3)]
    assert maps(gan.generator, nn.ConvTranspose2d) == up
    assert maps(gan.discriminator, nn.Conv2d) == [(high, low) for low, high in up[::-1]]
    convolutions = [m for m in gan.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert {m.kernel_size for m in convolutions} == {(5, 5)}
    slopes = {m.negative_slope for m in gan.discriminator.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}

    between = 1024 * 512 + 512 * 256 + 256 * 128
    first, norms = 100 * 1024 * 16 + 2 * 1024 * 16, 2 * (512 + 256 + 128)
    assert count(gan.generator) == first + 25 * (between + 128 * 3) + norms
    assert count(gan.discriminator) == (
        25 * (3 * 128 + between) + 2 * (1024 + 512 + 256) + 1024 * 16
    )


def test_the_image_layers_and_the_logit_have_neither_bias_nor_normalisation():
    gan = weightless(DCGANConfig())
    assert not [
        key
        for key, m in gan.named_modules()
        if getattr(m, "bias", None) is not None
        and not isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    kinds = [type(m) for m in gan.discriminator.layers]
    assert kinds[:3] == [nn.Conv2d, nn.ELU, nn.Conv2d]
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d) - 1
    assert type(gan.generator.layers[-1]) is nn.ConvTranspose2d  # no tanh


@pytest.mark.parametrize("filter_px", [4, 5])
@pytest.mark.parametrize("side_px", [16, 32, 64])
def test_each_layer_doubles_or_halves_whatever_the_filter(side_px, filter_px):
    config = DCGANConfig(side_px=side_px, widest=4, filter_px=filter_px, channels=2)
    gan = fresh(config).eval()
    assert gan.generator(torch.zeros(2, 100)).shape == (2, 2, side_px, side_px)
    assert gan.discriminator(torch.zeros(2, 2, side_px, side_px)).shape == (2,)
    assert len(widths(4, side_px)) == len(maps(gan.generator, nn.ConvTranspose2d))


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    assert preset.system == DCGANConfig()
    assert (preset.system.batch_size, preset.system.learning_rate) == (64, 2e-4)
    assert preset.train.precision == "float32"
    assert preset.train.steps == 100 * 15_400 // 64 - 62  # 100 epochs, rounded
    optimizers = [player.optimizer for player in fresh().players(1)]
    assert {(type(o), o.defaults["betas"]) for o in optimizers} == {
        (torch.optim.Adam, (0.5, 0.999))
    }


def test_first_weights_are_radfords():
    gan = fresh(DCGANConfig(side_px=32, widest=64))
    flat = torch.cat([p.flatten() for p in gan.parameters() if p.ndim > 1])
    assert flat.mean().item() == pytest.approx(0, abs=1e-3)
    assert flat.std().item() == pytest.approx(0.02, rel=0.02)


# --- images ------------------------------------------------------------------------------------


def test_normal_noise_becomes_uniform():
    noise = uniform(torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)))
    quantiles = torch.quantile(noise, torch.linspace(0, 1, 11))
    torch.testing.assert_close(quantiles, torch.linspace(-1, 1, 11), atol=0.01, rtol=0)


def loud(gan: DCGAN) -> DCGAN:
    """One whose generator goes far beyond [-1, 1]."""
    with torch.no_grad():
        gan.generator.layers[-1].weight.mul_(1000)
    return gan


def losses(gan: DCGAN, real: Tensor) -> dict[str, Tensor]:
    shared: dict[str, Tensor] = {}
    turn = Turn(1, 0, generator_for(0, 1, "discriminator", 0), shared)
    return gan.losses("discriminator", {"image": real}, turn) | shared


def test_without_tanh_images_are_cut_when_drawn_and_what_is_cut_is_logged():
    gan = loud(fresh())
    said = losses(gan.train(), torch.zeros(8, 1, 16, 16))
    beyond = (said["fake"].abs() > 1).float().mean()
    assert said["log/share_outside"] == beyond > 0.5
    images = gan.eval().sample(torch.randn(4, 8))
    assert (images.min(), images.max()) == (-1, 1)


def test_with_tanh_nothing_is_cut():
    gan = loud(fresh(SMALL.model_copy(update={"bounded": True})))
    said = losses(gan.train(), torch.zeros(8, 1, 16, 16))
    assert "log/share_outside" not in said
    assert said["fake"].abs().max() <= 1


def test_an_image_depends_on_its_own_noise_alone():
    gan, noise = fresh().eval(), torch.randn(6, 8)
    together = gan.sample(noise)
    for k in range(6):
        torch.testing.assert_close(gan.sample(noise[k : k + 1])[0], together[k])


# --- the game ----------------------------------------------------------------------------------


def test_real_and_fake_images_pass_the_discriminator_apart():
    gan, real = fresh().train(), torch.rand(8, 1, 16, 16)
    said = losses(gan, real)
    of_real, of_fake = (gan.discriminator(image) for image in (real, said["fake"].detach()))
    entropy = F.binary_cross_entropy_with_logits
    apart = entropy(of_real, torch.ones(8)) + entropy(of_fake, torch.zeros(8))
    torch.testing.assert_close(said["adversarial"], apart)
    together = gan.discriminator(torch.cat([real, said["fake"].detach()]))
    assert not torch.allclose(together[:8], of_real)


def test_the_generator_is_paid_for_what_passes_as_real():
    gan, batch = fresh().train(), {"image": torch.rand(8, 1, 16, 16)}
    shared = {"fake": torch.rand(8, 1, 16, 16)}
    judged = gan.discriminator(shared["fake"])
    paid = gan.losses("generator", batch, Turn(1, 0, torch.Generator(), shared))
    torch.testing.assert_close(paid["adversarial"], -torch.sigmoid(judged).log().mean())


def test_conditions_are_refused():
    with pytest.raises(SettingsError, match="cgan takes a label"):
        fresh().sample(torch.zeros(1, 8), {"label": torch.tensor([0])})
