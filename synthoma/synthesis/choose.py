"""Which orders the images of a run follow: what its GAN takes, and what the caller asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthoma.data.batches import Pool
from synthoma.data.classic import Classic
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.engine.run import Run
from synthoma.engine.system import GAN
from synthoma.errors import DataError, SettingsError
from synthoma.synthesis.backgrounds import TRIES, Painter, orders_onto
from synthoma.synthesis.mixture import TrainingData, open_pools, select
from synthoma.synthesis.orders import Orders, orders_from, orders_of, orders_of_classes

#: How training boxes become orders (Han et al. 2019, section 2.2): flips, shift and zoom to 10 %.
CONDITIONS = Classic(
    flip_x=True, flip_y=True, rotate_degrees=0, shift=0.1, shear=0, zoom=0.1, least_visible=0.5
)


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
