"""WGAN plays algorithm 1 of its paper with Radford's networks."""

import pytest
import torch
from torch import Tensor, nn

from synthoma.data.batches import Batch, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import Game
from synthoma.errors import SettingsError
from synthoma.gans.wgan import PRESETS, WGAN, WGANConfig

SMALL = WGANConfig(side_px=16, noise_dim=8, widest=16, filter_px=4, batch_size=8)


def fresh(config: WGANConfig = SMALL) -> WGAN:
    torch.manual_seed(0)
    return WGAN(config).train()


def game_of(gan: WGAN) -> Game:
    return Game(gan, TrainSettings(steps=2), 0, torch.device("cpu"))


def grey(request: Request, step: int, move: int, part: int = 0) -> Batch:
    chance = torch.Generator().manual_seed(10 * step + move)
    return {"image": torch.rand(request.size, 1, 16, 16, generator=chance)}


def test_the_papers_networks_are_radfords_with_one_doubling_more():
    with torch.device("meta"):
        gan = WGAN(PRESETS["paper"].system)
    maps = [m for m in gan.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    sizes = [(m.in_channels, m.out_channels) for m in maps]
    assert sizes == [(1024, 512), (512, 256), (256, 128), (128, 64), (64, 1)]
    assert {m.kernel_size for m in maps} == {(5, 5)}
    between = 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 64
    drawn = 100 * 1024 * 16 + 2 * 1024 * 16 + 25 * (between + 64) + 2 * (512 + 256 + 128 + 64)
    judged = 25 * (64 + between) + 2 * (1024 + 512 + 256 + 128) + 1024 * 16
    assert sum(p.numel() for p in gan.generator.parameters()) == drawn
    assert sum(p.numel() for p in gan.critic.parameters()) == judged
    assert not [m for m in gan.critic.modules() if isinstance(m, nn.Sigmoid | nn.ELU)]


def test_the_paper_preset_is_the_papers():
    config = PRESETS["paper"].system
    assert config == WGANConfig()
    assert (config.batch_size, config.learning_rate) == (64, 5e-5)
    assert (config.critic_moves, config.clip) == (5, 0.01)
    critic, generator = fresh(SMALL).players(1)
    assert (critic.name, critic.moves, generator.moves) == ("critic", 5, 1)
    assert {type(p.optimizer) for p in (critic, generator)} == {torch.optim.RMSprop}


def test_after_its_moves_no_weight_of_the_critic_is_beyond_the_clip():
    gan = fresh()
    widest = max(p.abs().max() for p in gan.critic.parameters())
    assert widest > 0.9  # gains of batch normalisation
    game_of(gan).make_step(grey)
    for weight in gan.critic.parameters():
        assert weight.abs().max() <= torch.tensor(0.01)
    assert max(p.abs().max() for p in gan.generator.parameters()) > 0.9  # is not clipped


def test_each_move_of_the_critic_sees_other_real_images_and_other_noise():
    gan, seen, asked = fresh(), [], []
    gan.critic.register_forward_pre_hook(lambda net, images: seen.append(images[0].detach()))

    def serve(request: Request, step: int, move: int, part: int = 0) -> Batch:
        asked.append(move)
        return grey(request, step, move, part)

    game_of(gan).make_step(serve)
    assert asked == [0, 1, 2, 3, 4, 0]  # five of the critic, one of the generator
    reals, fakes = seen[:-1:2], [*seen[1:-1:2], seen[-1]]
    assert len(reals) == 5
    assert len(fakes) == 6
    for images in (reals, fakes):
        assert len({float(image.sum()) for image in images}) == len(images)


def test_the_losses_are_differences_of_means():
    gan, batch = fresh(), grey(Request(8, 16), 1, 0)

    def turn() -> Turn:
        return Turn(1, 0, torch.Generator().manual_seed(3), {})

    seen: list[Tensor] = []
    gan.critic.register_forward_hook(lambda net, images, logits: seen.append(logits))
    judged = gan.losses("critic", batch, turn())["adversarial"]
    of_real, of_fake = seen
    torch.testing.assert_close(judged, of_fake.mean() - of_real.mean())
    paid = gan.losses("generator", batch, turn())["adversarial"]
    torch.testing.assert_close(paid, -of_fake.mean())
    assert not judged.isclose(paid)


def test_conditions_are_refused():
    with pytest.raises(SettingsError, match="cgan takes a label"):
        fresh().sample(torch.zeros(1, 8), {"label": torch.tensor([0])})
