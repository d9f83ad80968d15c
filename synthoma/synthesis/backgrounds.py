"""Orders to paint lesions into real images: where a lesion has a place, and what may change.

Order i is a function of (backgrounds, lesions, seed, i) alone.
"""

from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from synthoma.data.batches import Pool
from synthoma.errors import DataError
from synthoma.nn.conditions import shares_of
from synthoma.synthesis.orders import Background, Order, Orders, boxes_at, served, stored

#: Lesions that are tried on one background, and backgrounds that are tried for one image.
TRIES = 20
#: A pixel is air up to this share of the image's range above its minimum; a lesion may lie on so
#: much air. 95 % of the lesions of 973 contrast-enhanced MR slices do.
AIR, MOST_AIR = 0.1, 0.1


@runtime_checkable
class Painter(Protocol):
    """What a GAN whose conditions have a background offers besides."""

    side_px: int

    def painted_region(self, boxes: Tensor) -> Tensor:
        """Which pixels (m, side, side) painting each of the boxes (m, 4) may change."""


def orders_onto(
    backgrounds: Pool, lesions: Orders, painter: Painter, *, seed: int, tries: int
) -> Orders:
    """Orders to paint lesions into real images.

    A lesion has a place where it lies on tissue, and where painting touches neither a lesion of
    the background nor another that is painted. Lesions of an order that have none are left out.
    Where no lesion of `tries` orders has one, another background is taken.

    Args:
        lesions: Those to paint; where `tries` is 1, order i goes to image i.

    Raises:
        DataError: Of `TRIES` backgrounds none has a place; or boxes have labels in one of the
            sets and none in another.
    """
    side_px, labelled = painter.side_px, bool(lesions(0).box_labels)
    for dataset in backgrounds.datasets:
        if len(dataset.index.boxes) and bool(dataset.about["box_labels"]) != labelled:
            raise DataError(
                f"{dataset.folder}: its boxes have {'no ' if labelled else ''}labels, unlike those "
                "of the lesions to paint; label both, or neither"
            )

    def order(i: int) -> Order:
        round_, k = divmod(i, len(backgrounds))
        first = np.random.default_rng([seed, round_, 3]).permutation(len(backgrounds))[k]
        others = np.random.default_rng([seed, i, 4]).integers(len(backgrounds), size=TRIES - 1)
        passed_over: list[str] = []
        for place in (int(first), *map(int, others)):
            background = background_at(backgrounds, place, side_px)
            for k in range(tries):
                wanted = lesions(i * tries + k)
                if wanted.told["boxes_of"] == background.case_id:
                    continue  # its own lesions, once more
                kept, region = places(wanted.boxes, background, painter)
                if kept:
                    labels = tuple(wanted.box_labels[j] for j in kept if wanted.box_labels)
                    return replace(
                        wanted,
                        boxes=wanted.boxes[kept],
                        looks=None if wanted.looks is None else wanted.looks[kept],
                        box_labels=labels,
                        background=replace(
                            background, region=region, passed_over=tuple(passed_over)
                        ),
                    )
            passed_over.append(background.case_id)
        raise DataError(
            f"image {i}: {TRIES} backgrounds have no place for a lesion, for example "
            f"{passed_over[0]}: everywhere air, or lesions that are there already"
        )

    return order


def places(
    boxes: Float32[np.ndarray, "m 4"], background: Background, painter: Painter
) -> tuple[list[int], Bool[np.ndarray, "side side"]]:
    """Which boxes have a place on a background, and the pixels that painting them may change."""
    side_px = painter.side_px
    regions = painter.painted_region(torch.from_numpy(boxes)).cpu().numpy()
    inside = shares_of(torch.from_numpy(boxes), side_px).numpy()
    values = background.values.mean(axis=0, dtype=np.float32)
    air = values <= values.min() + AIR * (values.max() - values.min())
    taken = shares_of(torch.from_numpy(background.boxes), side_px).sum(0).numpy() > 0
    kept, region = [], np.zeros((side_px, side_px), bool)
    for j in range(len(boxes)):
        on_air = (inside[j] * air).sum() / max(inside[j].sum(), 1e-6)
        if on_air <= MOST_AIR and not (regions[j] & taken).any():
            kept.append(j)
            region |= regions[j]
            taken |= regions[j]
    return kept, region


def background_at(pool: Pool, i: int, side_px: int) -> Background:
    """A case as a background."""
    which, place = pool.locate(i)
    dataset = pool.datasets[which]
    case = dataset[place]
    values = dataset.values(place)
    as_stored = values.dtype == np.uint8 and tuple(dataset.about["value_range"]) == (0, 255)
    if not as_stored or values.shape[1:] != (side_px, side_px):
        values = stored(served(dataset, place, side_px))
    return Background(
        values,
        boxes_at(dataset, place, side_px),
        case.box_labels,
        case.label,
        case.case_id,
        np.zeros((side_px, side_px), bool),
    )
