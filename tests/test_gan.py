"""The first GAN has the sizes of its code, for both pairs of networks."""

import pytest
import torch
from torch import Tensor, nn

from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import Game, generator_for, seed_of
from synthoma.errors import SettingsError
from synthoma.gans.gan import (
    PRESETS,
    Maxout,
    MaxoutConv,
    OriginalGAN,
    OriginalGANConfig,
    decayed,
)
from synthoma.settings import replaced

SMALL = OriginalGANConfig(side_px=16, noise_dim=8, width=32, units=16, batch_size=8)
CONVOLUTIONAL = SMALL.model_copy(
    update={"side_px": 17, "nets": "convolutional", "maps": 4, "judged_maps": 2}
)


def fresh(config: OriginalGANConfig = SMALL) -> OriginalGAN:
    torch.manual_seed(0)
    return OriginalGAN(config)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- sizes -------------------------------------------------------------------------------------


def test_the_connected_pair_is_that_of_mnist():
    with torch.device("meta"):
        gan = OriginalGAN(PRESETS["paper"].system)
    layers = 100 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 784 + 784
    assert count(gan.generator) == layers
    maxout = 784 * 240 * 5 + 240 * 5 + 240 * 240 * 5 + 240 * 5
    assert count(gan.discriminator) == maxout + 240 + 1


def test_the_convolutional_pair_is_that_of_cifar():
    with torch.device("meta"):
        config = PRESETS["convolutional"].system.model_copy(update={"channels": 3})
        gan = OriginalGAN(config)
        assert gan.generator(torch.empty(2, 100)).shape == (2, 3, 32, 32)
        x, sides = torch.empty(2, 3, 32, 32), []
        for layer in gan.discriminator:
            x = layer(x)
            sides += [(x.shape[1], x.shape[2])] if isinstance(layer, MaxoutConv) else []
    assert sides == [(32, 16), (32, 7), (192, 5)]
    hidden = 100 * 8000 + 8000 + 8000 * 8000 + 8000
    assert count(gan.generator) == hidden + 80 * 3 * 5 * 5 + 3 * 32 * 32
    convolutions = (3 * 8 * 8 + 1) * 64 + (32 * 8 * 8 + 1) * 64 + (32 * 5 * 5 + 1) * 384
    assert count(gan.discriminator) == convolutions + (192 * 25 + 1) * 2500 + 501


@pytest.mark.parametrize("side_px", [17, 20, 32, 62])
def test_convolutional_nets_fit_together_at_other_sides(side_px):
    gan = fresh(CONVOLUTIONAL.model_copy(update={"side_px": side_px})).eval()
    images = gan.draw(torch.zeros(2, 8))
    assert images.shape == (2, 1, side_px, side_px)
    assert gan.judge(images).shape == (2,)


def test_a_side_that_no_deconvolution_has_is_refused():
    for side_px in (14, 64):
        with pytest.raises(SettingsError, match=rf"side_px {side_px} .* allowed: 17, 20, ... 32"):
            replaced(CONVOLUTIONAL, {"side_px": side_px}, "system")


def test_the_paper_preset_is_the_papers():
    config = PRESETS["paper"].system
    assert config == OriginalGANConfig()
    assert (config.batch_size, config.optimizer, config.learning_rate) == (100, "sgd", 0.1)
    assert (config.momentum, config.decay) == (0.5, 1.000004)
    assert PRESETS["paper"].train.steps == 250 * 500
    assert PRESETS["convolutional"].system.learning_rate == 0.004
    assert PRESETS["convolutional"].system.batch_size == 128
    for player in fresh().players(1):
        assert type(player.optimizer) is torch.optim.SGD
        assert player.optimizer.defaults["momentum"] == 0.5
        assert player.rate(1, 10) == 1
        assert player.rate(100_001, 10) == pytest.approx(2.718281828**-0.4, rel=1e-5)


def test_the_rate_falls_by_its_factor_and_stays_above_a_millionth():
    assert [decayed(step, decay=2, rate=1) for step in (1, 2, 3)] == [1, 0.5, 0.25]
    assert 0.1 * decayed(10**8, decay=1.000004, rate=0.1) == pytest.approx(1e-6)


def test_first_weights_are_the_codes():
    gan = fresh()
    for net, reach in ((gan.generator, 0.05), (gan.discriminator, 0.005)):
        for key, weights in net.named_parameters():
            most = weights.abs().max().item()
            assert most == 0 if key.endswith("bias") else 0.8 * reach < most <= reach


# --- layers ------------------------------------------------------------------------------------


def test_a_maxout_unit_is_the_largest_of_its_lines():
    layer = Maxout(1, 1, 2)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        layer.linear.bias.zero_()
    assert layer(torch.tensor([[-3.0], [2.0]])).tolist() == [[3], [2]]  # |x|


def test_values_of_the_connected_pair_are_from_0_to_1_inside():
    gan, seen = fresh().eval(), []
    gan.discriminator.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    gan.judge(torch.tensor([-1.0, 1.0]).repeat(128).view(1, 1, 16, 16))
    assert set(seen[0].unique().tolist()) == {0, 1}
    images = gan.draw(torch.randn(50, 8) * 100)
    assert images.abs().max() <= 1
    assert images.min() < 0 < images.max()


# --- the game ----------------------------------------------------------------------------------


def discriminators_turn(gan: OriginalGAN, seed: int) -> dict[str, Tensor]:
    shared: dict[str, Tensor] = {}
    key = (seed, 1, "discriminator", 0)
    torch.manual_seed(seed_of(*key))
    side_px = gan.side_px
    batch = {"image": torch.linspace(-1, 1, 8 * side_px**2).view(8, 1, side_px, side_px)}
    return gan.losses("discriminator", batch, Turn(1, 0, generator_for(*key), shared)) | shared


def test_what_the_discriminator_drops_comes_from_the_seed_of_the_turn():
    gan = fresh().train()
    torch.nn.init.uniform_(gan.discriminator[-2].weight)  # so that logits differ visibly
    first, again, other = (discriminators_turn(gan, seed)["adversarial"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    still = [discriminators_turn(gan.eval(), 0)["adversarial"] for _ in range(2)]
    assert still[0] == still[1] != first


def test_the_discriminators_loss_is_halved():
    """It cannot tell yet: each of its two cross-entropies is log 2."""
    said = discriminators_turn(fresh().train(), 0)
    assert said["adversarial"].item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-3)


def test_what_convolutional_nets_draw_beyond_the_range_is_cut_and_logged():
    gan = fresh(CONVOLUTIONAL)
    with torch.no_grad():
        gan.generator[-1].bias.fill_(3)
    assert discriminators_turn(gan.train(), 0)["log/share_outside"] == 1
    assert (gan.eval().sample(torch.randn(2, 8)) == 1).all()


def test_convolutional_nets_learn():
    config = CONVOLUTIONAL.model_copy(update={"optimizer": "adam", "learning_rate": 5e-3})
    gan = fresh(config.model_copy(update={"decay": 1.0})).train()
    game = Game(gan, TrainSettings(steps=40), 0, torch.device("cpu"))
    real = torch.full((8, 1, 17, 17), 0.8)
    for _ in range(40):
        game.make_step(lambda request, step, move, part=0: {"image": real})
    assert gan.eval().sample(torch.randn(8, 8)).mean() > 0.4


def test_conditions_are_refused():
    with pytest.raises(SettingsError, match="cgan takes a label"):
        fresh().sample(torch.zeros(1, 8), {"label": torch.tensor([0])})
