"""SimGAN has the sizes of its appendix, pays sums, and remembers what it refined before."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthoma.data.batches import Batch
from synthoma.engine.system import Turn
from synthoma.engine.train import generator_for
from synthoma.gans.simgan import EYES, PRESETS, Discriminator, Network, SimGAN, SimGANConfig

SMALL = SimGANConfig.model_validate(
    EYES
    | {"side_px": 16, "width": 4, "blocks": 1, "judge_width": 4, "batch_size": 4, "history": 5}
    | {"refiner_steps": 2, "judge_steps": 3, "halved_after": 7}
)


def fresh() -> SimGAN:
    torch.manual_seed(0)
    return SimGAN(SMALL)


def batch(seed: int = 0) -> Batch:
    chance = torch.Generator().manual_seed(seed)
    return {
        f"{domain}/image": torch.rand(4, 1, 16, 16, generator=chance) - 0.5
        for domain in ("real", "source")
    }


def turn(step: int, shared: dict[str, Tensor] | None = None) -> Turn:
    return Turn(
        step, 0, generator_for(0, step, "discriminator", 0), {} if shared is None else shared
    )


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_refiner_has_ten_blocks_of_two_7x7_convolutions_and_halves_nothing():
    refiner = Network(SimGANConfig())
    norm = 2 * 64
    assert count(refiner) == (49 * 64 + norm) + 10 * 2 * (49 * 64 * 64 + norm) + (64 + 1)
    assert refiner(torch.zeros(2, 1, 24, 24)).shape == (2, 1, 24, 24)


def test_the_discriminator_is_the_appendixs_for_hands():
    judge = Discriminator(SimGANConfig())
    layers = [layer for layer in judge.layers.modules() if isinstance(layer, nn.Conv2d)]
    assert [(c.kernel_size[0], c.stride[0], c.out_channels) for c in layers] == [
        (7, 4, 96),
        (5, 2, 64),
        (3, 2, 32),
        (1, 1, 32),
        (1, 1, 2),
    ]
    weights = 49 * 96 + 25 * 96 * 64 + 9 * 64 * 32 + 32 * 32 + 32 * 2 + 2
    assert count(judge) == weights + 2 * (96 + 64 + 32 + 32)
    assert judge(torch.zeros(2, 1, 256, 256)).shape == (2, 8, 8)


@pytest.mark.parametrize(("own", "side", "seen"), [({}, 256, 71), (EYES, 64, 23)])
def test_a_logit_sees_a_patch_only(own, side, seen):
    torch.manual_seed(0)
    judge = Discriminator(SimGANConfig.model_validate(own | {"side_px": side})).eval()
    for layer in judge.layers:  # a pool passes on one pixel only; an average, all that it sees
        if isinstance(layer, nn.MaxPool2d):
            at = list(judge.layers).index(layer)
            judge.layers[at] = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    image = torch.randn(1, 1, side, side, requires_grad=True)
    logits = judge(image)
    middle = logits.shape[-1] // 2
    (grad,) = torch.autograd.grad(logits[0, middle, middle], image)
    at = grad[0, 0].abs().nonzero()
    assert (at.amax(0) - at.amin(0) + 1).tolist() == [seen, seen]


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    assert preset.system.batch_size == 10
    assert preset.system.learning_rate == 1e-4
    assert preset.system.mirror
    assert preset.train.steps == 20_000
    gan = SimGAN(SimGANConfig(side_px=32, history=1))
    for player in gan.players(20_000):
        assert isinstance(player.optimizer, torch.optim.SGD)
        assert player.optimizer.defaults["momentum"] == 0
        assert [player.rate(step, 20_000) for step in (15_000, 15_001)] == [1.0, 0.5]


def test_it_opens_with_the_refiner_then_the_discriminator_then_two_moves_to_one():
    gan = fresh()
    moves = [{p.name: p.moves for p in gan.players(step)} for step in (1, 2, 3, 5, 6, 99)]
    alone, judge = {"refiner": 1}, {"discriminator": 1}
    assert moves == [alone, alone, judge, judge, {"refiner": 2} | judge, {"refiner": 2} | judge]


def test_the_losses_are_sums_over_images_pixels_and_patches():
    gan, own, shared = fresh().train(), batch(), {}
    judged = gan.losses("discriminator", own, turn(6, shared))
    fake, real = shared["fresh"], own["real/image"]
    ones = torch.ones(4, 4, 4, dtype=torch.int64)
    entropy = F.cross_entropy(gan.discriminator.layers(real), ones, reduction="sum")
    entropy += F.cross_entropy(gan.discriminator.layers(fake), 0 * ones, reduction="sum")
    torch.testing.assert_close(judged["adversarial"], entropy)
    paid = gan.losses("refiner", own, turn(6))
    refined = gan.refiner(own["source/image"])
    wanted = F.cross_entropy(gan.discriminator.layers(refined), ones, reduction="sum")
    torch.testing.assert_close(paid["adversarial"], wanted)
    apart = (refined - own["source/image"]).abs().sum()
    torch.testing.assert_close(paid["distance"], SMALL.distance_weight * apart)
    assert gan.losses("refiner", own, turn(1)).keys() == {"distance"}  # the opening


def test_half_of_each_batch_is_remembered_and_replaces_others_once_the_history_is_full():
    gan, known = fresh(), []
    for step in range(1, 8):
        before, shared = gan.history.clone(), {"fresh": torch.full((4, 1, 16, 16), float(step))}
        gan.after_move("discriminator", {}, turn(step, shared))
        known.append(int(gan.remembered))
        changed = (gan.history != before).flatten(1).any(1)
        assert changed.sum() == 2
        assert (gan.history[changed] == step).all()
    assert known == [2, 4, 5, 5, 5, 5, 5]
    before = gan.history.clone()
    gan.after_move("refiner", {}, turn(9, {}))
    assert torch.equal(gan.history, before)


def test_half_of_what_the_discriminator_sees_is_history_once_there_is_some():
    gan, fresh_ones = fresh(), torch.ones(4, 1, 16, 16)
    chance = torch.Generator().manual_seed(0)
    assert torch.equal(gan.mixed(fresh_ones, chance), fresh_ones)
    gan.history[:3], gan.history[3:] = 0.5, -1
    gan.remembered.fill_(3)
    seen = gan.mixed(fresh_ones, chance).flatten(1)
    assert (seen[:2] == 1).all()
    assert (seen[2:] == 0.5).all()  # never a place that nothing was put into yet
