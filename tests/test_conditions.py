"""What generators are told of lesions: boxes as pixels, and looks measured in the image."""

import pytest
import torch

from synthoma.nn.conditions import draw_boxes, draw_looks, lesion_looks


def disc(side: int, *, core: float, rim: float, around: float = -0.5) -> torch.Tensor:
    """A lesion in the middle whose box takes half of the side."""
    along = (torch.arange(side) + 0.5) / side * 4 - 2
    radius = (along[:, None] ** 2 + along[None, :] ** 2).sqrt()
    image = torch.full((side, side), around)
    image[radius <= 1] = rim
    image[radius <= 0.58] = core
    return image[None, None]


BOX, CASE = torch.tensor([[16.0, 16, 48, 48]]), torch.tensor([0])


@pytest.mark.parametrize(
    ("core", "rim", "contrast", "ring"),
    [(0.5, 0.5, 1.0, 0.0), (-0.9, -0.9, -0.4, 0.0), (-0.5, 0.5, 0.66, 1.0)],
)
def test_bright_dark_and_ring_shaped_lesions_measure_as_they_look(core, rim, contrast, ring):
    look = lesion_looks(disc(64, core=core, rim=rim), BOX, CASE)[0]
    assert look[0].item() == pytest.approx(contrast, abs=0.06)
    assert look[1].item() == pytest.approx(ring, abs=0.06)


def test_a_look_is_the_same_at_every_resolution():
    small = lesion_looks(disc(64, core=-0.5, rim=0.5), BOX, CASE)
    large = lesion_looks(disc(256, core=-0.5, rim=0.5), BOX * 4, CASE)
    torch.testing.assert_close(small, large, atol=0.06, rtol=0)


def test_a_look_is_measured_in_its_own_image():
    images = torch.cat([disc(64, core=0.5, rim=0.5), disc(64, core=-0.9, rim=-0.9)])
    both = lesion_looks(images, BOX.repeat(2, 1), torch.tensor([1, 0]))
    assert both[0, 0] < 0 < both[1, 0]


def test_no_boxes_have_no_looks():
    empty = torch.zeros(0, dtype=torch.int64)
    assert lesion_looks(torch.zeros(2, 1, 8, 8), torch.zeros(0, 4), empty).shape == (0, 2)
    drawn = draw_looks(torch.zeros(0, 4), torch.zeros(0, 2), empty, images=2, side_px=8)
    assert torch.equal(drawn, torch.zeros(2, 3, 8, 8))


def test_looks_are_drawn_where_the_box_is_and_averaged_where_two_overlap():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]])
    looks = torch.tensor([[1.0, 0.5], [-1.0, 0.5]])
    case = torch.tensor([0, 0])
    drawn = draw_looks(boxes, looks, case, images=1, side_px=4)[0]
    assert torch.equal(drawn[:1], draw_boxes(boxes, case, images=1, side_px=4)[0])
    assert drawn[1, 0, 0] == 1
    assert drawn[1, 2, 2] == -1
    assert drawn[1, 1, 1] == 0
    assert drawn[2, 1, 1] == 0.5
    assert drawn[:, 3, 3].abs().sum() == 0
