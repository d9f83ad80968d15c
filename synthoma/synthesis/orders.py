"""What drawn images shall show: a class, where lesions lie, how they look, what is behind them.

Order i is a function of (data, seed, i) alone. Which parts it has is what the GAN's `conditions`
say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from synthoma.data.batches import Pool, resize, signed_unit
from synthoma.data.boxes import scale
from synthoma.data.classic import Classic, matrix, move_boxes
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.engine.run import Run
from synthoma.engine.system import GAN
from synthoma.errors import DataError, SettingsError
from synthoma.nn.conditions import lesion_looks, shares_of
from synthoma.synthesis.fit import TrainingData, open_pools, select

#: How training boxes become orders (Han et al. 2019, section 2.2): flips, shift and zoom to 10 %.
CONDITIONS = Classic(
    flip_x=True, flip_y=True, rotate_degrees=0, shift=0.1, shear=0, zoom=0.1, least_visible=0.5
)
#: Lesions that are tried on one background, and backgrounds that are tried for one image.
TRIES = 20
#: A pixel is air up to this share of the image's range above its minimum; a lesion may lie on so
#: much air. 95 % of the lesions of 973 contrast-enhanced MR slices do.
AIR, MOST_AIR = 0.1, 0.1


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


@runtime_checkable
class Painter(Protocol):
    """What a GAN whose conditions have a background offers besides."""

    side_px: int

    def painted_region(self, boxes: Tensor) -> Tensor:
        """Which pixels (m, side, side) painting each of the boxes (m, 4) may change."""


@dataclass(frozen=True)
class Wanted:
    """What the caller of `draw` asked for, the same for every run."""

    seed: int
    given: Dataset | None = None
    boxes: Sequence[Sequence[float]] = ()
    onto: Dataset | None = None
    label: str | None = None
    conditions: Classic = field(default_factory=lambda: CONDITIONS)


def choose_orders(
    folder: Path, system: GAN, facts: dict[str, Any], wanted: Wanted
) -> tuple[Orders | None, tuple[str, ...]]:
    """What the images of a run shall show, and every patient whose images go into them.

    The orders are None for a GAN that takes no conditions. The patients are those that the run was
    trained on, and those of the backgrounds.

    Raises:
        SettingsError: The GAN does not take what was asked for.
        DataError: The run's dataset is another than it was trained on.
        LeakError: A background shows a patient of the run's validation or test split.
    """
    told, seen = system.conditions, set(facts["trained_on"])
    if "label" not in told and wanted.label is not None:
        raise SettingsError(f"{facts['name']} takes no label; cgan does")
    if "boxes" not in told and (wanted.given is not None or len(wanted.boxes)):
        raise SettingsError(f"{facts['name']} takes no boxes; cpggan does")
    if "background" not in told and wanted.onto is not None:
        raise SettingsError(f"{facts['name']} paints into no image; paint does")
    data = TrainingData.model_validate(Run.open(folder).facts["data"])
    if "label" in told:
        check_data(folder, data)
        classes, labels = tuple(facts["system"]["classes"]), labels_of(own_cases(data))
        orders = orders_of_classes(classes, labels, only=wanted.label, seed=wanted.seed)
        return orders, tuple(sorted(seen))
    if "boxes" not in told:
        return None, tuple(sorted(seen))
    looks, paints, side_px = "looks" in told, "background" in told, system.side_px
    from_run = not len(wanted.boxes) and wanted.given is None
    if from_run or looks or (paints and wanted.onto is None):
        check_data(folder, data)
    if len(wanted.boxes):
        orders = orders_of(
            wanted.boxes, side_px, looks_from=select(data) if looks else None, seed=wanted.seed
        )
    else:
        source = select(data) if wanted.given is None else wanted.given
        seen |= set(source.real_patients)  # where and how their lesions lie goes into the images
        conditions = wanted.conditions if wanted.given is None else None
        orders = orders_from(source, side_px, seed=wanted.seed, conditions=conditions, looks=looks)
    if paints:
        backgrounds = Pool(own_cases(data) if wanted.onto is None else [wanted.onto])
        seen |= backgrounds.patients
        if data.split == "train" and wanted.onto is not None:
            splits = Dataset.open(data.data).splits
            check_no_leak(
                splits, backgrounds.patients, what=f"the backgrounds {wanted.onto.folder}"
            )
        if not isinstance(system, Painter):
            raise AssertionError(f"{facts['name']} does not say which pixels it paints")
        tries = TRIES if from_run else 1
        orders = orders_onto(backgrounds, orders, system, seed=wanted.seed, tries=tries)
    return orders, tuple(sorted(seen))


def check_data(folder: Path, data: TrainingData) -> None:
    """Refuse data that are not those a run was trained on."""
    if open_pools(data).digest != Run.open(folder).facts["digest"]:
        raise DataError(f"{data.data}: not the dataset that {folder} was trained on")


def own_cases(data: TrainingData) -> list[Dataset]:
    """The real cases that a run was trained on."""
    return [select(data), *(Dataset.open(further).split("train") for further in data.also)]


def labels_of(datasets: Sequence[Dataset]) -> list[str]:
    """The labels of all cases that have one."""
    labels = (dataset.label(i) for dataset in datasets for i in range(len(dataset)))
    return [label for label in labels if label is not None]


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
