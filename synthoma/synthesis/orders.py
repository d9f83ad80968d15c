"""What drawn images shall show: a class, where lesions lie, how they look, what is behind them.

Order i is a function of (data, seed, i) alone. Which parts it has is what the GAN's `conditions`
say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8

from synthoma.data.batches import resize, signed_unit
from synthoma.data.boxes import scale
from synthoma.data.classic import Classic, matrix, move_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, SettingsError
from synthoma.nn.conditions import lesion_looks


@dataclass(frozen=True, eq=False)
class Background:
    """A real image that lesions are painted into."""

    values: UInt8[np.ndarray, "c side side"]
    """The stored pixels, which stay as they are outside of what is painted."""
    boxes: Float32[np.ndarray, "m 4"]
    """Of the lesions that it has already."""
    box_labels: tuple[str, ...]
    label: str | None
    case_id: str
    region: Bool[np.ndarray, "side side"]
    """The pixels that may be painted."""
    passed_over: tuple[str, ...] = ()
    """Ids of backgrounds that were tried before it, and had no place for a lesion."""


@dataclass(frozen=True, eq=False)
class Order:
    """What one image shall show, in pixels of the drawn image."""

    boxes: Float32[np.ndarray, "m 4"]
    box_labels: tuple[str, ...]
    told: dict[str, Any]
    """For the case's origin: which case the boxes came from."""
    looks: Float32[np.ndarray, "m 2"] | None = None
    """Contrast and ring of each box's lesion, see `nn/conditions.py`."""
    label: str | None = None
    """Of the case that the boxes came from; or the class that is ordered, see `kind`."""
    background: Background | None = None
    kind: int | None = None
    """The class as the GAN counts it, where it is told one; it is then told of no boxes."""


Orders = Callable[[int], Order]


def orders_of_classes(
    classes: tuple[str, ...], labels: Sequence[str], *, only: str | None = None, seed: int
) -> Orders:
    """Orders of a class each, in the proportions of some labels, dealt in a seeded order.

    Args:
        classes: In the order in which the GAN counts them.
        labels: Of its training cases. As many images as there are have just these labels.
        only: The class of every image.

    Raises:
        SettingsError: `only` is not a label of any training case.
    """
    if only is not None and only not in labels:
        raise SettingsError(
            f"label {only!r}: no case that it was trained on has it; allowed: "
            f"{', '.join(sorted(set(labels)))}"
        )
    cards = [only] if only is not None else labels

    def order(i: int) -> Order:
        round_, k = divmod(i, len(cards))
        label = cards[int(np.random.default_rng([seed, round_, 5]).permutation(len(cards))[k])]
        return Order(np.zeros((0, 4), np.float32), (), {}, None, label, None, classes.index(label))

    return order


def orders_from(
    dataset: Dataset,
    side_px: int,
    *,
    seed: int,
    conditions: Classic | None,
    looks: bool = False,
) -> Orders:
    """Orders made of the boxes of a dataset's cases, dealt in a seeded order.

    Args:
        conditions: How boxes are moved; None leaves them where they are and deals the cases in
            their own order.
        looks: Whether to order how the lesions look, too: as they do where they come from.

    Raises:
        SettingsError: Boxes have several classes, which no generator is told of.
        DataError: No case has a box.
    """
    if dataset.about["dimensions"] != 2:
        raise DataError(f"{dataset.folder}: boxes in volumes; generators here draw slices")
    with_boxes = cases_with_boxes(dataset)

    def order(i: int) -> Order:
        round_, k = divmod(i, len(with_boxes))
        if conditions is not None:
            k = int(np.random.default_rng([seed, round_]).permutation(len(with_boxes))[k])
        place = with_boxes[k]
        case = dataset[place]
        boxes = boxes_at(dataset, place, side_px)
        look = looks_at(dataset, place, side_px) if looks else None  # before boxes are moved
        kept = np.arange(len(boxes))
        if conditions is not None:
            chance = np.random.default_rng([seed, i, 1])
            for _ in range(10):  # a move that pushes every box out of the image is drawn again
                map_ = matrix(conditions, chance, side_in=side_px, side_out=side_px)
                moved, kept = move_boxes(
                    boxes, map_, side_px, least_visible=conditions.least_visible
                )
                if len(kept):
                    boxes = moved
                    break
            else:
                kept = np.arange(len(boxes))
        labels = tuple(case.box_labels[j] for j in kept) if case.box_labels else ()
        told = {"boxes_of": case.case_id}
        return Order(boxes, labels, told, None if look is None else look[kept], case.label)

    return order


def orders_of(
    boxes: Sequence[Sequence[float]],
    side_px: int,
    *,
    looks_from: Dataset | None = None,
    seed: int = 0,
) -> Orders:
    """The same boxes for every image.

    Args:
        boxes: (y0, x0, y1, x1) each, as shares of the side, from 0 to 1.
        looks_from: Where looks are wanted: each box looks like a random lesion of these cases.
    """
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    if (array < 0).any() or (array > 1).any() or (array[:, 2:] <= array[:, :2]).any():
        raise SettingsError(
            f"boxes {array.tolist()}; allowed: y0,x0,y1,x1 from 0 to 1 with y0 < y1 and x0 < x1"
        )
    array, told = array * side_px, {"boxes_of": "the command line"}
    if looks_from is None:
        return lambda i: Order(array, (), told)
    dataset, with_boxes = looks_from, cases_with_boxes(looks_from)

    def order(i: int) -> Order:
        chance = np.random.default_rng([seed, i, 2])
        places = [with_boxes[k] for k in chance.integers(len(with_boxes), size=len(array))]
        of_cases = [looks_at(dataset, place, side_px) for place in places]
        looks = np.stack([looks[chance.integers(len(looks))] for looks in of_cases])
        names = dataset.about["box_labels"] * len(array)
        return Order(array, tuple(names), told, looks, dataset.label(places[0]))

    return order


def served(dataset: Dataset, place: int, side_px: int) -> Float32[np.ndarray, "c side side"]:
    """An image as batches serve it: in [-1, 1], at a side."""
    values, value_range = dataset.values(place), dataset.about["value_range"]
    if value_range is None or values.ndim != 3 or values.shape[1] != values.shape[2]:
        raise DataError(f"{dataset.folder}: not square 2D images; run `synthoma data prepare`")
    return resize(signed_unit(values, value_range), side_px)


def stored(images: Float32[np.ndarray, "*n c y x"]) -> UInt8[np.ndarray, "*n c y x"]:
    """Images in [-1, 1] as drawn sets store them."""
    return np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def boxes_at(dataset: Dataset, place: int, side_px: int) -> Float32[np.ndarray, "m 4"]:
    """A case's boxes in pixels of its image at a side."""
    space = dataset.values(place).shape[1:]
    return scale(dataset.boxes(place), (side_px / space[0], side_px / space[1]))


def looks_at(dataset: Dataset, place: int, side_px: int) -> Float32[np.ndarray, "m 2"]:
    """How the lesions of a case look, measured at a side."""
    image = torch.from_numpy(served(dataset, place, side_px))[None]
    boxes = torch.from_numpy(boxes_at(dataset, place, side_px))
    return lesion_looks(image, boxes, torch.zeros(len(boxes), dtype=torch.int64)).numpy()


def cases_with_boxes(dataset: Dataset) -> list[int]:
    """The places of the cases with a box.

    Raises:
        SettingsError: Boxes have several classes, which no generator is told of.
        DataError: No case has a box.
    """
    if len(dataset.box_labels) > 1:
        raise SettingsError(
            f"{dataset.folder}: boxes of {len(dataset.box_labels)} classes "
            f"({', '.join(dataset.box_labels)}); the generator knows one kind and would mislabel"
        )
    with_boxes = [i for i in range(len(dataset)) if len(dataset.boxes(i))]
    if not with_boxes:
        raise DataError(f"{dataset.folder}: no case has a box to order")
    return with_boxes
