"""CPGGAN draws boxes exactly, sees them where the paper says, and obeys them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synthoma.data.batches import Batch, Request
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import generator_for, train
from synthoma.errors import SettingsError
from synthoma.gans.cpggan import CPGGAN, PRESETS, CPGGANConfig
from synthoma.gans.pggan import phase
from synthoma.nn import blocks
from synthoma.nn.conditions import draw_boxes

SMALL = CPGGANConfig(
    side_px=16, widest=8, base=64, noise_dim=8, batch_size=4, stable_images=8, fade_images=8
)


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def whole_size(config: CPGGANConfig) -> CPGGAN:
    gan = CPGGAN(config)
    gan.step.fill_(1_000_000)
    return gan.eval()


# --- boxes -------------------------------------------------------------------------------------


def test_a_box_on_pixel_edges_is_white_inside_and_black_outside():
    drawn = draw_boxes(boxes((1, 2, 3, 4)), torch.tensor([1]), images=2, side_px=4)
    assert drawn[0].sum() == 0
    expected = torch.zeros(4, 4)
    expected[1:3, 2:4] = 1
    assert torch.equal(drawn[1, 0], expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-4, 20, width=32), min_size=4, max_size=4))
def test_a_drawn_box_has_the_area_of_its_part_inside_the_image(edges):
    y0, y1 = sorted(edges[:2])
    x0, x1 = sorted(edges[2:])
    drawn = draw_boxes(boxes((y0, x0, y1, x1)), torch.tensor([0]), images=1, side_px=16)
    inside = [min(high, 16) - max(low, 0) for low, high in ((y0, y1), (x0, x1))]
    area = max(inside[0], 0) * max(inside[1], 0)
    assert drawn.sum().item() == pytest.approx(area, abs=1e-3)
    assert 0 <= drawn.min() <= drawn.max() <= 1


def test_drawing_small_is_drawing_large_and_averaging():
    box, which = boxes((2.3, 4.1, 9.9, 13.7)), torch.tensor([0])
    large = draw_boxes(box, which, images=1, side_px=16)
    small = draw_boxes(box / 4, which, images=1, side_px=4)
    torch.testing.assert_close(blocks.pyramid(large, 4, 8)[4], small)


def test_overlapping_boxes_stay_white():
    drawn = draw_boxes(boxes((0, 0, 2, 2), (1, 1, 3, 3)), torch.tensor([0, 0]), images=1, side_px=4)
    assert drawn.max() == 1
    assert drawn.sum() == 7


def test_no_boxes_are_a_black_condition():
    drawn = draw_boxes(boxes(), torch.zeros(0, dtype=torch.int64), images=3, side_px=4)
    assert drawn.shape == (3, 1, 4, 4)
    assert drawn.sum() == 0


# --- where the condition goes ------------------------------------------------------------------


def test_the_first_4x4_features_come_from_noise_alone():
    generator, noise = whole_size(SMALL).generator, torch.randn(2, 8)
    black, white = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert torch.equal(generator(noise, 4, 1.0, black), generator(noise, 4, 1.0, white))
    black, white = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    assert not torch.equal(generator(noise, 8, 1.0, black), generator(noise, 8, 1.0, white))


def test_every_doubling_sees_the_condition_concatenated_at_the_resolution_before_it():
    """The generator at 16 px, written plainly, from the same weights."""
    torch.manual_seed(0)
    generator = whole_size(SMALL).double().generator
    noise = torch.randn(3, 8, dtype=torch.float64)
    condition = torch.rand(3, 1, 16, 16, dtype=torch.float64)

    def act(x: Tensor) -> Tensor:
        return blocks.pixel_norm(F.leaky_relu(x, 0.2))

    def conv(layer, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight * layer.scale, layer.bias, padding=layer.kernel_px // 2)

    x = generator.first(blocks.pixel_norm(noise)).reshape(3, 8, 4, 4) + generator.first_bias
    x = act(conv(generator.convs[0], act(x)))
    for k in (1, 2):
        shown = F.avg_pool2d(condition, 16 // (2 << k))
        x = torch.cat([x, shown.expand_as(x)], dim=1)  # as many channels as features
        x = act(conv(generator.ups[k - 1], blocks.double(x)))
        x = act(conv(generator.convs[k], x))
    image = conv(generator.to_image[2], x)
    torch.testing.assert_close(generator(noise, 16, 1.0, condition), image)


def test_the_critic_judges_the_image_beside_its_boxes():
    gan = whole_size(SMALL)
    image = torch.randn(4, 1, 16, 16)
    black, white = torch.zeros(4, 1, 16, 16), torch.ones(4, 1, 16, 16)
    judge = gan.critic.at(16)
    without, within = (judge(torch.cat([image, shown], dim=1)) for shown in (black, white))
    assert not torch.allclose(without, within)


def test_the_penalty_is_on_the_gradient_of_the_image_alone():
    """A critic that sums the pixels of its condition has no gradient: it pays (0 - 1)^2 * 10."""
    gan = whole_size(SMALL)
    with torch.no_grad():
        gan.critic.from_image[2].weight[:, 0] = 0  # blind to the image
    batch = {
        "image": torch.rand(4, 1, 16, 16),
        "boxes": boxes((2, 2, 5, 5)),
        "box_case": torch.tensor([0]),
    }
    turn = Turn(1000, 0, generator_for(0, 1, "critic", 0), {})
    assert gan.losses("critic", batch, turn)["penalty"].item() == pytest.approx(10)


def test_asks_for_boxes_and_mirrors_where_it_is_told_to():
    request = CPGGAN(SMALL).request(1)
    assert request.fields == ("image", "boxes")
    assert request.augment is None
    mirrored = CPGGAN(SMALL.model_copy(update={"mirror": True})).request(1).augment
    assert mirrored is not None
    assert mirrored.flip_x
    assert not mirrored.flip_y
    assert mirrored.rotate_degrees == mirrored.shift == mirrored.shear == mirrored.zoom == 0


# --- drawing -----------------------------------------------------------------------------------


def test_boxes_are_in_pixels_of_the_finished_image_at_every_resolution():
    gan, noise = CPGGAN(SMALL).eval(), torch.randn(2, 8)
    order = {"boxes": boxes((4, 4, 12, 12)), "box_case": torch.tensor([1])}
    gan.step.fill_(4)  # 8 px, whole
    small = draw_boxes(boxes((2, 2, 6, 6)), torch.tensor([1]), images=2, side_px=8)
    expected = gan.generator(noise, 8, 1.0, small).clamp(-1, 1)
    torch.testing.assert_close(gan.sample(noise, order), expected)


def test_a_box_changes_its_own_image_only():
    gan, noise = whole_size(SMALL), torch.randn(2, 8)
    nothing = {"boxes": boxes(), "box_case": torch.zeros(0, dtype=torch.int64)}
    order = {"boxes": boxes((4, 4, 12, 12)), "box_case": torch.tensor([1])}
    plain, ordered = gan.sample(noise, nothing), gan.sample(noise, order)
    assert torch.equal(plain[0], ordered[0])
    assert not torch.equal(plain[1], ordered[1])


@pytest.mark.parametrize("given", [None, {}, {"boxes": torch.zeros(1, 4)}])
def test_missing_boxes_are_named(given):
    with pytest.raises(SettingsError, match="it needs boxes"):
        CPGGAN(SMALL).sample(torch.randn(1, 8), given)


def test_boxes_for_images_that_are_not_drawn_are_refused():
    order = {"boxes": boxes((4, 4, 12, 12)), "box_case": torch.tensor([2])}
    with pytest.raises(SettingsError, match="boxes are given for images 2 to 2; allowed: 0 to 1"):
        CPGGAN(SMALL).sample(torch.randn(2, 8), order)


# --- presets and learning ----------------------------------------------------------------------


def test_the_paper_preset_is_the_papers():
    preset = PRESETS["paper"]
    assert preset.system.batch_size == 4
    assert preset.system.learning_rate == 2e-4
    assert preset.system.side_px == 256
    assert preset.train.steps == 3_000_000
    assert preset.train.precision == "float32"


@pytest.mark.parametrize("preset", PRESETS.values())
def test_every_preset_finishes_growing(preset):
    assert phase(preset.system, preset.train.steps) == (preset.system.side_px, 1.0)


def disc_in_a_box(request: Request, step: int, move: int, part: int = 0) -> Batch:
    """A bright disc somewhere on black, in its box; every fourth image has neither."""
    chance = torch.Generator().manual_seed(step)
    n, side = request.size, request.side_px
    centre = 0.25 + 0.5 * torch.rand(n, 2, 1, 1, generator=chance)
    along = (torch.arange(16) + 0.5) / 16
    y, x = along[:, None] - centre[:, 0], along[None, :] - centre[:, 1]
    lesion = torch.arange(n) % 4 > 0
    disc = ((y**2 + x**2).sqrt() < 0.2).float() * lesion[:, None, None]
    image = F.adaptive_avg_pool2d(disc[:, None] * 2 - 1, side)
    ends = torch.cat([centre - 0.2, centre + 0.2], dim=1).flatten(1) * side
    return {
        "image": image,
        "boxes": ends[lesion],
        "box_case": torch.arange(n)[lesion],
    }


def test_learns_to_put_the_bright_disc_where_the_box_is():
    torch.manual_seed(0)
    config = CPGGANConfig(
        side_px=16,
        widest=16,
        base=128,
        noise_dim=8,
        batch_size=16,
        stable_images=320,
        fade_images=320,
        learning_rate=3e-3,
        average_decay=0.9,
    )
    gan = CPGGAN(config)
    train(gan, disc_in_a_box, TrainSettings(steps=300), seed=0)
    order = {
        "boxes": boxes((1, 1, 7, 7), (9, 9, 15, 15)).repeat(8, 1),
        "box_case": torch.arange(16),
    }
    chance = torch.Generator().manual_seed(1)
    images = gan.sample(torch.randn(24, 8, generator=chance), order)[:, 0]
    upper, lower = images[:, 2:6, 2:6].mean((1, 2)), images[:, 10:14, 10:14].mean((1, 2))
    assert (upper > lower + 0.5)[0:16:2].all()
    assert (lower > upper + 0.5)[1:16:2].all()
    assert images[16:].mean() < images[:16].mean() - 0.1  # no box, no disc
