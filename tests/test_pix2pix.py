"""Pix2pix has the sizes of the paper, obeys boxes, and its only noise is what its rows drop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthoma.data.batches import Batch, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import generator_for, train
from synthoma.errors import SettingsError
from synthoma.gans.pix2pix import (
    PRESETS,
    Discriminator,
    Generator,
    Pix2pix,
    Pix2pixConfig,
    seeded_by,
)
from synthoma.nn.conditions import draw_boxes

SMALL = Pix2pixConfig(side_px=16, width=8, batch_size=8, learning_rate=2e-3)
ASKED = Request(8, 16, ("image", "boxes"))


def fresh(config: Pix2pixConfig = SMALL) -> Pix2pix:
    torch.manual_seed(0)
    return Pix2pix(config).eval()


def order(n: int) -> Batch:
    boxes = torch.tensor([[2.0, 2, 7, 7], [9, 8, 15, 14]])
    return {"boxes": boxes.repeat(n, 1)[:n], "box_case": torch.arange(n)}


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def disc_in_a_box(request: Request, step: int, move: int, part: int = 0) -> Batch:
    """A bright disc somewhere on grey, in its box; every fourth image has neither."""
    chance = torch.Generator().manual_seed(step)
    n, side = request.size, request.side_px
    centre = 0.25 + 0.5 * torch.rand(n, 2, 1, 1, generator=chance)
    along = (torch.arange(side) + 0.5) / side
    y, x = along[:, None] - centre[:, 0], along[None, :] - centre[:, 1]
    lesion = torch.arange(n) % 4 > 0
    disc = ((y**2 + x**2).sqrt() < 0.2).float() * lesion[:, None, None]
    ends = torch.cat([centre - 0.2, centre + 0.2], dim=1).flatten(1) * side
    return {
        "image": disc[:, None] - 0.5,
        "boxes": ends[lesion],
        "box_case": torch.arange(n)[lesion],
    }


# --- sizes -------------------------------------------------------------------------------------


def kernels(net: nn.Module, kind: type[nn.Module]) -> list[tuple[int, int]]:
    """(features in, features out) of each convolution."""
    layers = [layer for layer in net.modules() if type(layer) is kind]
    assert all(layer.kernel_size == (4, 4) for layer in layers)
    return [(layer.in_channels, layer.out_channels) for layer in layers]


def test_four_convolutions_down_and_four_up_with_what_was_seen_passed_across():
    generator = Generator(Pix2pixConfig())
    assert kernels(generator, nn.Conv2d) == [(1, 64), (64, 128), (128, 256), (256, 512)]
    # but for the first, as many again come across
    up = [(512, 256), (256 + 256, 128), (128 + 128, 64), (64 + 64, 1)]
    assert kernels(generator, nn.ConvTranspose2d) == up


def test_the_discriminator_halves_three_times_and_judges_patches_of_46_pixels():
    discriminator = Discriminator(Pix2pixConfig())
    assert kernels(discriminator, nn.Conv2d) == [(2, 64), (64, 128), (128, 256), (256, 1)]
    logits = discriminator(torch.randn(2, 2, 256, 256))
    assert logits.shape == (2, 1, 31, 31)
    image = torch.randn(2, 2, 256, 256, requires_grad=True)
    (grad,) = torch.autograd.grad(discriminator.eval()(image)[0, 0, 15, 15], image)
    seen = grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [46, 46]


def test_weights_are_as_many_as_the_layers_say():
    gan = Pix2pix(Pix2pixConfig())
    conv = 16 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    up = 16 * (512 * 256 + 512 * 128 + 256 * 64 + 128 * 1)
    norms, biases = 2 * (128 + 256 + 512 + 256 + 128 + 64), 64 + 1
    size = sum(p.numel() for p in gan.generator.parameters())
    assert size == conv + up + norms + biases
    judged = 16 * (2 * 64 + 64 * 128 + 128 * 256 + 256 * 1) + 2 * (128 + 256) + 64 + 1
    assert sum(p.numel() for p in gan.discriminator.parameters()) == judged


def test_first_weights_are_isolas():
    weights = [p.flatten() for p in Generator(Pix2pixConfig()).parameters() if p.ndim == 4]
    assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.01)


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    assert preset.system.side_px == 256
    assert preset.system.batch_size == 4
    assert preset.system.learning_rate == 2e-4
    assert preset.system.distance_weight == 100
    assert preset.train.steps == 3_000_000
    assert preset.train.precision == "float32"
    assert {player.optimizer.defaults["betas"] for player in fresh().players(1)} == {(0.5, 0.999)}


@pytest.mark.parametrize("side_px", [16, 32])
def test_images_have_the_side_and_channels_that_are_asked_for(side_px):
    gan = fresh(SMALL.model_copy(update={"side_px": side_px, "channels": 3}))
    images = gan.sample(noise(2), order(2))
    assert images.shape == (2, 3, side_px, side_px)
    assert images.abs().max() <= 1


# --- noise -------------------------------------------------------------------------------------


def test_dropout_is_the_only_noise():
    gan = fresh()
    one, two = gan.sample(noise(2), {"boxes": torch.zeros(0, 4), "box_case": order(0)["box_case"]})
    assert not torch.equal(one, two)
    condition = torch.zeros(1, 1, 16, 16)
    kept = gan.generator.kept(16, [torch.Generator()])
    everything = [torch.ones_like(keep) for keep in kept]
    assert torch.equal(gan.generator(condition, everything), gan.generator(condition, everything))


def test_half_of_the_features_of_three_decoder_layers_are_kept():
    kept = Generator(Pix2pixConfig()).kept(256, [torch.Generator().manual_seed(k) for k in (1, 2)])
    assert [tuple(keep.shape) for keep in kept] == [
        (2, 256, 32, 32),
        (2, 128, 64, 64),
        (2, 64, 128, 128),
    ]
    for keep in kept:
        assert keep.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / keep.numel() ** 0.5)
        assert not torch.equal(keep[0], keep[1])


def test_the_same_row_draws_the_same_image_whatever_the_batch():
    gan, rows, told = fresh(), noise(6), order(6)
    together = gan.sample(rows, told)
    backwards = gan.sample(rows.flip(0), told | {"box_case": 5 - told["box_case"]}).flip(0)
    torch.testing.assert_close(together, backwards, atol=1e-6, rtol=0)
    for k in range(6):
        alone = gan.sample(
            rows[k : k + 1], {"boxes": told["boxes"][k : k + 1], "box_case": torch.tensor([0])}
        )
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-6, rtol=0)


def test_drawing_leaves_the_global_generator_alone():
    gan, before = fresh(), torch.get_rng_state()
    gan.sample(noise(2), order(2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_last_bit_of_a_row_is_another_seed():
    row = noise(1)[0]
    other = row.clone()
    other[7] = torch.nextafter(row[7], row[7] + 1)
    draws = [torch.rand(4, generator=seeded_by(r)) for r in (row, row.clone(), other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_what_training_drops_comes_from_the_turn():
    gan, batch = fresh().train(), disc_in_a_box(ASKED, 1, 0)
    fakes = []
    for seed in (0, 0, 1):
        shared: dict[str, Tensor] = {}
        torch.manual_seed(len(fakes))
        turn = Turn(1, 0, generator_for(seed, 1, "discriminator", 0), shared)
        gan.losses("discriminator", batch, turn)
        fakes.append(shared["fake"].detach())
    assert torch.equal(fakes[0], fakes[1])
    assert not torch.equal(fakes[0], fakes[2])


# --- the game ----------------------------------------------------------------------------------


def test_the_losses_are_isolas():
    gan, batch, shared = fresh().train(), disc_in_a_box(ASKED, 1, 0), {}
    turn = Turn(1, 0, generator_for(0, 1, "discriminator", 0), shared)
    judged = gan.losses("discriminator", batch, turn)
    fake = shared["fake"].detach()
    paid = gan.losses("generator", batch, Turn(1, 0, torch.Generator(), shared))
    shown = draw_boxes(batch["boxes"], batch["box_case"], images=8, side_px=16)
    real, drawn = (
        gan.discriminator(torch.cat([image, shown], dim=1)) for image in (batch["image"], fake)
    )
    entropy = F.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    torch.testing.assert_close(
        judged["adversarial"], 0.5 * (entropy(real, ones) + entropy(drawn, zeros))
    )
    torch.testing.assert_close(paid["adversarial"], entropy(drawn, ones))
    torch.testing.assert_close(paid["distance"], 100 * (fake - batch["image"]).abs().mean())


def test_learns_to_put_the_bright_disc_where_the_box_is():
    gan = fresh(SMALL)
    train(gan, disc_in_a_box, TrainSettings(steps=150), seed=0)
    images = gan.sample(noise(24), order(16))[:, 0]
    upper, lower = images[:, 3:6, 3:6].mean((1, 2)), images[:, 10:14, 9:13].mean((1, 2))
    assert (upper > lower + 0.5)[0:16:2].all()
    assert (lower > upper + 0.5)[1:16:2].all()
    assert images[16:].mean() < images[:16].mean() - 0.05  # no box, no disc


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, {}, {"boxes": torch.zeros(1, 4)}])
def test_missing_boxes_are_named(given):
    with pytest.raises(SettingsError, match=r"pix2pix was given .*; it needs boxes"):
        fresh().sample(noise(1), given)


def test_boxes_for_images_that_are_not_drawn_are_refused():
    with pytest.raises(SettingsError, match="boxes are given for images 0 to 2; allowed: 0 to 1"):
        fresh().sample(noise(2), order(3))
