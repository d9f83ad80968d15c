"""Nodules drawn into volumes, where and as they are ordered.

    scan, orders -> for each: cube around the box -> generator -> its middle half back into the box
        -> scan with other nodules, every voxel outside of their boxes as it was

By default each scan has its nodules of known size and attenuation drawn anew with the same
conditions, each box moved by up to 10 % of its sides and zoomed by up to 10 % (Han's thesis,
section 6.2.1). With orders scans get further nodules instead. Image i is of scan i modulo their
number, and a function of (run, scans, orders, seed, i) alone.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped

from synthoma.data.batches import signed_unit
from synthoma.data.boxes import iou
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.split import all_to_train, check_no_leak
from synthoma.data.store import DatasetWriter
from synthoma.data.vois import (
    ATTENUATIONS,
    SIZES,
    Attenuation,
    Size,
    cut,
    nodules_of,
    put,
    size_of,
    voxels_of,
)
from synthoma.engine.run import Run
from synthoma.engine.system import GAN
from synthoma.engine.train import generator_for
from synthoma.errors import DataError, SettingsError
from synthoma.formats.source import TABLE_BYTES, read_text
from synthoma.synthesis.fit import load_trained
from synthoma.synthesis.mixture import TrainingData, select
from synthoma.synthesis.nodule_copies import NoduleGallery

#: Of a box's sides: by how much it is moved and zoomed at most.
SHIFT, ZOOM = 0.1, 0.1
#: A nodule that is a copy is drawn again with other noise, so many times in all.
TRIES = 3
#: Of a table of orders: the scan's case id, the nodule's centre in voxels, what it shall be.
COLUMNS = ("scan", "z", "y", "x", "diameter_mm", "attenuation")


@dataclass(frozen=True, eq=False)
class Ordered:
    """A nodule that is ordered."""

    box: Float[np.ndarray, " 6"]
    size: Size
    attenuation: Attenuation
    replaces: int | None = None
    """Which box of the scan it takes the place of; None: none."""


class Brush:
    """A trained generator of nodules, and what it needs to know of its training cubes."""

    def __init__(self, run: Path, device: str) -> None:
        system, self.facts = load_trained(run, device)
        if not isinstance(system, GAN) or "traits" not in system.conditions:
            raise SettingsError(f"{run}: {self.facts['name']} draws no nodules; mcgan does")
        self.system, self.device = system, device
        data = TrainingData.model_validate(Run.open(run).facts["data"])
        self.cubes = Dataset.open(data.data)
        self.window: tuple[float, float] = tuple(self.cubes.about["value_range"])
        held_out = self.cubes.split("validation")
        self.gallery = NoduleGallery.of(select(data), held_out if len(held_out) else None)

    def draw(
        self, values: Shaped[np.ndarray, "z y x"], ordered: Ordered, chance: torch.Generator
    ) -> Float32[np.ndarray, "half half half"]:
        """A nodule for its box in a volume, in [-1, 1]."""
        side_px = self.system.side_px
        cube = signed_unit(cut(values, ordered.box, side_px)[None], self.window)
        given = {
            "image": torch.from_numpy(cube)[None],
            "size": torch.tensor([SIZES.index(ordered.size)]),
            "attenuation": torch.tensor([ATTENUATIONS.index(ordered.attenuation)]),
        }
        noise = torch.randn(1, *self.system.noise_shape, generator=chance).to(self.device)
        moved = {name: tensor.to(self.device) for name, tensor in given.items()}
        made = self.system.sample(noise, moved).float().cpu().numpy()[0, 0]
        inner = slice(side_px // 4, side_px - side_px // 4)
        return np.ascontiguousarray(made[inner, inner, inner])

    def in_hu(self, nodule: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, "z y x"]:
        """From [-1, 1] to the values of scans."""
        low, high = self.window
        return (nodule + 1) * np.float32((high - low) / 2) + np.float32(low)


def place(
    run: Path,
    scans: Dataset,
    out: Path,
    *,
    n: int,
    seed: int,
    orders: Mapping[str, Sequence[Ordered]] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write the dataset folder `out` of volumes with drawn nodules.

    A volume with a nodule that stays a copy of a training nodule after `TRIES` is left out and
    counted, so that there may be fewer than n.

    Args:
        scans: Volumes of patients whom the run may show: none of its validation or test split.
        orders: Nodules to add, by the case id of a scan; others get none.

    Raises:
        SettingsError: The run is not of a generator of nodules.
        DataError: An order leaves its scan, meets a nodule or names no scan; or no scan has a
            nodule of known traits.
        LeakError: A scan shows a patient of the run's validation or test split.
    """
    brush = Brush(run, device)
    chosen = scans_with(scans, orders)
    shown = {scans[i].patient_id for i in chosen}
    check_no_leak(brush.cubes.splits, shown, what=f"the scans of {scans.folder}")
    label = next(iter(scans.about["box_labels"]), "")
    saw = tuple(sorted({*brush.facts["trained_on"], *shown}))
    with DatasetWriter(
        out,
        patients_from="synthetic: one a volume",
        value_range=scans.about["value_range"],
        splits=all_to_train,
        about={"seed": seed, "runs": [brush.facts]},
    ) as writer:
        for i in range(n):
            case = scans[chosen[i % len(chosen)]]
            wanted = (
                moved_nodules(case, np.random.default_rng([seed, i, 6]))
                if orders is None
                else orders[case.case_id]
            )
            made = repainted(case, wanted, brush, (seed, i), saw, label)
            if made is None:
                writer.drop("a nodule that is a copy of a training nodule", case.case_id)
            else:
                writer.add(made)
            progress(i + 1, n)
        writer.about["copy_check"] = brush.gallery.facts()
    return Dataset.open(out)


def read_orders(path: Path, scans: Dataset) -> dict[str, list[Ordered]]:
    """A table of nodules to add: columns `COLUMNS`, a row each.

    Raises:
        DataError: A column is missing, or a row is wrong; the message names the row.
    """
    rows = list(csv.reader(read_text(path, TABLE_BYTES).splitlines()))
    if not rows or rows[0] != list(COLUMNS):
        had = ", ".join(rows[0]) if rows else "nothing"
        raise DataError(f"{path}: columns {had}; allowed: {', '.join(COLUMNS)}")
    by_id = {scans[i].case_id: scans[i] for i in range(len(scans))}
    found: dict[str, list[Ordered]] = {}
    for number, row in enumerate(rows[1:], 2):
        where = f"{path}, row {number}"
        name, attenuation = (row[0], row[-1]) if len(row) == len(COLUMNS) else ("", "")
        if name not in by_id:
            raise DataError(f"{where}: no scan {name!r} in {scans.folder}")
        try:
            *centre, diameter_mm = (float(cell) for cell in row[1:5])
        except ValueError:
            centre, diameter_mm = [], float("nan")
        if not np.isfinite([*centre, diameter_mm]).all():
            raise DataError(f"{where}: {', '.join(COLUMNS[1:5])} must be numbers")
        if diameter_mm <= 0:
            raise DataError(f"{where}: diameter_mm {diameter_mm:g}; allowed: above 0")
        if attenuation not in ATTENUATIONS:
            raise DataError(
                f"{where}: attenuation {attenuation!r}; allowed: {', '.join(ATTENUATIONS)}"
            )
        half = diameter_mm / 2 / np.asarray(by_id[name].image.spacing_mm or (1.0, 1.0, 1.0))
        box = np.concatenate([np.asarray(centre) - half, np.asarray(centre) + half])
        kind = ATTENUATIONS[ATTENUATIONS.index(attenuation)]
        found.setdefault(name, []).append(Ordered(box, size_of(diameter_mm), kind))
    return found


def scans_with(scans: Dataset, orders: Mapping[str, Sequence[Ordered]] | None) -> list[int]:
    """The places of the scans that are drawn into."""
    names = {scans[i].case_id: i for i in range(len(scans))}
    if orders is None:
        found = [i for i in range(len(scans)) if nodules_of(scans[i])]
        if not found:
            raise DataError(
                f"{scans.folder}: no scan has a nodule of known size and attenuation to draw anew; "
                "order nodules with --nodules"
            )
        return found
    if unknown := orders.keys() - names.keys():
        raise DataError(
            f"{scans.folder}: nodules are ordered in {min(unknown)!r}, which is not there"
        )
    for name, own in orders.items():
        check_places(scans[names[name]], own)
    return [names[name] for name in orders]


def check_places(case: Case, orders: Sequence[Ordered]) -> None:
    """Refuse orders that leave a scan, or meet one of its nodules or one another."""
    taken = np.zeros((0, 6)) if case.boxes is None else np.asarray(case.boxes, np.float64)
    for ordered in orders:
        region = voxels_of(ordered.box)
        if any(r.start < 0 or r.stop > n for r, n in zip(region, case.image.space, strict=True)):
            raise DataError(
                f"case {case.case_id!r}: a nodule is ordered at {ordered.box.round(1).tolist()}, "
                f"outside of its {case.image.space} voxels"
            )
        box = np.array([[*(r.start for r in region), *(r.stop for r in region)]], np.float64)
        if len(taken) and iou(box, taken).any():
            raise DataError(
                f"case {case.case_id!r}: the nodule ordered at {ordered.box.round(1).tolist()} "
                "meets another"
            )
        taken = np.concatenate([taken, box])


def moved_nodules(case: Case, chance: np.random.Generator) -> list[Ordered]:
    """The nodules of a scan, each a little elsewhere and of another size; within the scan."""
    found, limit = [], np.asarray(case.image.space)
    for nodule in nodules_of(case):
        low, high = nodule.box[:3].astype(np.float64), nodule.box[3:].astype(np.float64)
        shift, zoom = chance.uniform(-SHIFT, SHIFT, 3), 1 + chance.uniform(-ZOOM, ZOOM, 3)
        middle, half = (low + high) / 2 + shift * (high - low), zoom * (high - low) / 2
        box = np.concatenate([(middle - half).clip(0), np.minimum(middle + half, limit)])
        found.append(Ordered(box, nodule.size, nodule.attenuation, replaces=nodule.place))
    return found


def repainted(
    case: Case,
    wanted: Sequence[Ordered],
    brush: Brush,
    numbers: tuple[int, int],
    saw: tuple[str, ...],
    label: str,
) -> Case | None:
    """The scan with the nodules drawn; None where one of them stays a copy."""
    values: Any = np.array(case.image.values[0])
    seed, i = numbers
    name = f"{brush.facts['id']}/seed-{seed}/{i:06}"
    for j, ordered in enumerate(wanted):
        for attempt in range(TRIES):
            chance = generator_for(seed, i, "nodule", j, attempt)
            nodule = brush.draw(values, ordered, chance)
            if not brush.gallery.is_copy(f"{name}#{j}", nodule):
                break
        else:
            return None
        put(values, ordered.box, brush.in_hu(nodule))
    origin = Synthetic(brush.facts["id"], seed, {}, saw)
    return described(case, values, wanted, origin, name, label)


def described(
    case: Case,
    values: np.ndarray,
    wanted: Sequence[Ordered],
    origin: Synthetic,
    name: str,
    label: str,
) -> Case:
    """The drawn volume as a case: its own nodules that are left first, then the drawn ones."""
    replaced = {own.replaces for own in wanted}
    before = np.zeros((0, 6), np.float32) if case.boxes is None else case.boxes
    left = [k for k in range(len(before)) if k not in replaced]
    boxes = np.array([[*before[k]] for k in left] + [[*own.box] for own in wanted], np.float32)

    def both(trait: str, drawn: list[str]) -> list[Any]:
        own = case.traits.get(trait, [None] * len(before))
        return [own[k] for k in left] + drawn

    told = {
        "background": case.case_id,
        "painted": [[round(float(edge), 3) for edge in own.box] for own in wanted],
        "replaced": sorted(k for k in replaced if k is not None),
    }
    labels = [case.box_labels[k] for k in left if case.box_labels] + [label] * len(wanted)
    return Case(
        name,
        name,
        Image(values[None], case.image.spacing_mm, case.image.affine, case.image.unit),
        label=case.label,
        boxes=boxes.reshape(-1, 6),
        box_labels=tuple(labels) if label else (),
        traits={
            "sizes": both("sizes", [own.size for own in wanted]),
            "attenuations": both("attenuations", [own.attenuation for own in wanted]),
        },
        origin=Synthetic(origin.run, origin.seed, told, origin.trained_on),
    )
