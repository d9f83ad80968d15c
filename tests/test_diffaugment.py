import torch

from synthoma.nn.diffaugment import BRIGHTNESS, CONTRAST, FEW, HOLE, diffaugment, wanted


def test_few_images_are_changed_and_many_are_not_unless_it_is_said():
    assert wanted("few", FEW - 1)
    assert not wanted("few", FEW)
    assert wanted(True, 10_000)
    assert not wanted(False, 1)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_same_chance_changes_real_and_drawn_images_alike_and_another_does_not():
    image = torch.rand(8, 1, 16, 16) * 2 - 1
    assert torch.equal(diffaugment(image, chance()), diffaugment(image, chance()))
    assert not torch.equal(diffaugment(image, chance()), diffaugment(image, chance(1)))


def test_a_square_of_half_the_side_is_hidden_wherever_it_lies_in_part_in_the_image():
    image = torch.ones(400, 1, 16, 16)
    shown = diffaugment(image, chance()) != 0
    hidden = (~shown).sum(dim=(1, 2, 3))
    square = (HOLE * 16) ** 2
    assert hidden.float().mean() > square / 2  # and a rim where the image was moved
    assert (~shown[:, 0]).float().mean(dim=0).min() > 0.1  # every pixel has its turn
    assert shown[:, 0].float().mean(dim=0).min() > 0.3


def test_images_are_moved_whole_pixels_both_ways_by_an_eighth_of_the_side_at_most():
    image = torch.zeros(600, 1, 16, 16)
    image[:, :, 8, 8] = 4
    seen = diffaugment(image, chance()).flatten(1)
    found, here = seen.argmax(1), seen.amax(1) > 1  # the others are hidden
    y, x = found[here] // 16, found[here] % 16
    assert set(y.tolist()) == set(x.tolist()) == {6, 7, 8, 9, 10}
    assert y.float().mean().sub(8).abs() < 0.3


def test_brightness_and_contrast_stay_within_their_ranges_and_reach_far():
    image = torch.full((500, 1, 16, 16), 0.4)
    image[:, :, 1::2] = -0.4  # a mean of 0
    seen = diffaugment(image, chance())
    assert seen.amax() <= BRIGHTNESS + 0.4 * (1 + CONTRAST) + 1e-6
    assert seen.amax() > BRIGHTNESS + 0.4
    assert seen.amin() < -BRIGHTNESS - 0.4


def test_gradients_pass_to_every_image():
    image = torch.ones(4, 2, 8, 8, requires_grad=True)
    diffaugment(image, chance()).sum().backward()
    assert (image.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
