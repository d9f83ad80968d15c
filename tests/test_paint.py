"""PAINT: lesions in real slices, obeying their orders and touching nothing else."""

import pytest
import torch

from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import generator_for, train
from synthoma.errors import DataError, SettingsError
from synthoma.gans.paint import Paint, PaintConfig
from synthoma.nn.conditions import lesion_looks
from synthoma.nn.patches import Region, cut, in_turn, one_box_each, put_back

TINY = PaintConfig(
    side_px=32,
    patch_px=16,
    width=8,
    widest=32,
    batch_size=8,
    feature_side_px=32,
    strides=(4,),
    learning_rate=2e-3,
    average_decay=0.9,
)
REGION = Region(around=2, margin=0.2, least_margin_px=1.5, rim=0.25)
BOX = torch.tensor([[8.0, 10, 20, 18]])


@pytest.fixture
def gan():
    torch.manual_seed(0)
    return Paint(TINY)


def given(n, boxes, case, looks):
    """Random slices with these orders."""
    image = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    orders = {"boxes": torch.tensor(boxes), "looks": torch.tensor(looks)}
    return orders | {"image": image, "box_case": torch.tensor(case)}


def noise(n, seed=0):
    return torch.randn(n, 8, 8, generator=torch.Generator().manual_seed(seed))


def lesions(request, step, move, part=0):
    """Grey slices with one lesion each: a disc of any contrast, with or without a core."""
    chance = torch.Generator().manual_seed(step)
    n, along = request.size, torch.arange(32) + 0.5
    middle = 10 + 12 * torch.rand(n, 2, 1, 1, generator=chance)
    radius = 3 + 4 * torch.rand(n, 1, 1, generator=chance)
    contrast, ring = torch.rand(2, n, 1, 1, generator=chance)
    away = ((along[:, None] - middle[:, 0]) ** 2 + (along - middle[:, 1]) ** 2).sqrt()
    image = torch.full((n, 32, 32), -0.2)
    image = torch.where(away < radius, image + 1.4 * contrast - 0.7, image)
    image = torch.where(away < 0.6 * radius, image - 0.5 * ring, image)
    low, high = (middle[:, :, 0, 0] - radius[:, 0]), (middle[:, :, 0, 0] + radius[:, 0])
    batch = {"image": image[:, None].clamp(-1, 1), "boxes": torch.cat([low, high], dim=1)}
    return batch | {"box_case": torch.arange(n)}


def test_nothing_outside_of_the_region_changes_and_something_inside_does(gan):
    told = given(2, [[3.0, 3, 9, 11], [15, 14, 27, 22], [20, 4, 29, 12]], [0, 0, 1], [[0.5, 0]] * 3)
    before = told["image"].clone()
    after = gan.eval().sample(noise(2), told)
    assert torch.equal(told["image"], before)  # what it was given is not written to
    regions = gan.painted_region(told["boxes"])
    for i, mine in enumerate(((0, 1), (2,))):
        region = regions[list(mine)].any(0)
        assert torch.equal(after[i, 0][~region], before[i, 0][~region])
        for k in mine:
            assert not torch.equal(after[i, 0][regions[k]], before[i, 0][regions[k]])


def test_a_slice_without_an_order_is_left_as_it_is(gan):
    told = given(2, [[3.0, 3, 9, 11]], [1], [[0.5, 0.0]])
    assert torch.equal(gan.eval().sample(noise(2), told)[0], told["image"][0])


def test_two_lesions_of_one_slice_get_other_noise(gan):
    told = given(1, [[3.0, 3, 9, 9], [19, 19, 25, 25]], [0, 0], [[0.5, 0.0]] * 2)
    told["image"] = torch.zeros(1, 1, 32, 32)
    image = gan.eval().sample(noise(1), told)[0, 0]
    assert not torch.allclose(image[3:9, 3:9], image[19:25, 19:25], atol=1e-4)


def test_the_region_holds_the_ellipse_of_its_box_and_little_more():
    alpha = REGION.alpha_in_slice(BOX, 32)[0, 0]
    assert alpha[14, 14] == 1
    assert (alpha[8:20, 14] > 0.4).all()
    assert (alpha[14, 10:18] > 0.4).all()
    assert alpha[:6].max() == alpha[22:].max() == alpha[:, :8].max() == alpha[:, 20:].max() == 0
    assert alpha[7, 14] > 0  # beyond an edge,
    assert alpha[7, 9] == 0  # but not beyond a corner


def test_a_patch_that_is_cut_and_put_back_is_the_slice_again():
    along = torch.linspace(-1, 1, 32)
    image = (along[:, None] * 0.5 + along * 0.3)[None, None]  # bilinear: resampling is exact
    patch, local, alpha = cut(image, BOX, REGION, 24)
    assert torch.allclose(put_back(image, patch, BOX, REGION), image, atol=1e-5)
    assert torch.allclose((local[:, :2] + local[:, 2:]) / 2, torch.full((1, 2), 12.0))
    assert torch.allclose(local[0, 2] - local[0, 0], torch.tensor(24 / 2.0))
    assert alpha[0, 0, 12, 12] == 1
    assert alpha[0, 0, 0].max() == 0


def test_looks_are_the_same_in_a_patch_as_in_its_slice():
    batch = lesions(type("R", (), {"size": 8}), 1, 0)
    patch, local, _ = cut(batch["image"], batch["boxes"], REGION, 32)
    each = torch.arange(8)
    there, here = (
        lesion_looks(batch["image"], batch["boxes"], each),
        lesion_looks(patch, local, each),
    )
    assert torch.allclose(there, here, atol=0.1)


def test_each_slice_gives_one_of_its_boxes_and_those_without_give_none():
    boxes, case = torch.arange(20.0).reshape(5, 4), torch.tensor([1, 1, 1, 3, 3])
    firsts = set()
    for seed in range(20):
        chosen, of = one_box_each(boxes, case, torch.Generator().manual_seed(seed))
        assert of.tolist() == [1, 3]
        firsts.add(int(chosen[0, 0]))
    assert firsts == {0, 4, 8}
    assert [turn.tolist() for turn in in_turn(case)] == [[0, 3], [1, 4], [2]]


def test_a_batch_without_boxes_says_what_to_do(gan):
    batch = {"image": torch.zeros(4, 1, 32, 32), "boxes": torch.zeros(0, 4)}
    batch["box_case"] = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(DataError, match="--boxed"):
        gan.losses("critics", batch, Turn(1, 0, generator_for(0, 1, "critics", 0)))


def test_orders_that_are_missing_or_wrong_are_refused(gan):
    whole = given(2, [[3.0, 3, 9, 11]], [1], [[0.5, 0.0]])
    with pytest.raises(SettingsError, match="given nothing; it needs"):
        gan.sample(noise(2))
    with pytest.raises(SettingsError, match="'looks'"):
        gan.sample(noise(2), {k: v for k, v in whole.items() if k != "looks"})
    with pytest.raises(SettingsError, match="images 1 to 1; allowed: 0 to 0"):
        gan.sample(noise(1), whole | {"image": whole["image"][:1]})
    with pytest.raises(SettingsError, match=r"\(2, 1, 16, 16\)"):
        gan.sample(noise(2), whole | {"image": torch.zeros(2, 1, 16, 16)})


def test_it_learns_to_paint_what_is_ordered_bright_dark_and_with_a_core():
    torch.manual_seed(0)
    gan = Paint(TINY.model_copy(update={"learning_rate": 5e-3, "look_weight": 20.0}))
    train(gan, lesions, TrainSettings(steps=40, checkpoint_every=40), seed=0)
    looks = [[0.6, 0.0], [-0.6, 0.0], [0.2, 0.4], [0.2, 0.0]]
    told = given(4, [[9.0, 9, 21, 21]] * 4, [0, 1, 2, 3], looks)
    told["image"] = torch.full((4, 1, 32, 32), -0.2)
    painted = lesion_looks(gan.sample(noise(4), told), told["boxes"], told["box_case"])
    assert painted[0, 0] > 0.2
    assert painted[1, 0] < -0.2
    assert painted[2, 1] > painted[3, 1] + 0.1
