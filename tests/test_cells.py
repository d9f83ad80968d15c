from dataclasses import dataclass

import pytest

from synthoma.studies.cells import Stock, finished, refused


def stock(images, *, real=110, ratio=1.0, admitted=True, curated=False):
    return Stock("cgan", admitted, "16 % are read as ordered", images, curated, real, ratio)


@pytest.mark.parametrize(
    ("images", "ratio", "variety"),
    [
        *[(109, 1.0, 0), (110, 1.0, 1), (219, 1.0, 1), (220, 1.0, 2), (10_000, 1.0, 8)],
        *[(54, 0.5, 0), (55, 0.5, 1), (110, 0.5, 2)],
    ],
)
def test_each_image_is_dealt_once_a_round_and_rounds_grow_with_the_images_there_are(
    images, ratio, variety
):
    assert stock(images, ratio=ratio).variety(8) == variety


def test_ratios_of_a_fraction_are_rounded_as_they_are_dealt():
    few = stock(1, real=3, ratio=0.3)  # 0.9 images are one
    assert few.variety(4) == 1  # 1.8 are two
    assert few.refused is None


def test_a_part_without_enough_images_or_not_admitted_refuses_its_setup_with_the_first_reason():
    assert refused([stock(110)]) is None
    assert refused([stock(110), stock(109)]) == "cgan: 109 images were no copies, 110 are needed"
    assert "109 images were kept" in stock(109, curated=True).refused
    assert refused([stock(0, admitted=False), stock(0)]) == "cgan: 16 % are read as ordered"


@dataclass
class Setup:
    name: str


def test_setups_are_compared_on_the_draws_that_all_of_them_have():
    places = [(0, 0), (1, 0), (2, 0)]
    done = {("real", 0), ("real", 1), ("real", 2), ("cgan", 0), ("cgan", 2), ("late", 0)}

    def read(name, d, seed):
        return (d, seed) if (name, d) in done else None

    setups = [Setup("real"), Setup("cgan"), Setup("late"), Setup("never")]
    cells, reasons = finished(setups, places, read, {"late": "too few"})
    assert cells == {"real": [(0, 0), (2, 0)], "cgan": [(0, 0), (2, 0)]}
    assert reasons == {"late": "too few (trained on draw 0, left out)"}
