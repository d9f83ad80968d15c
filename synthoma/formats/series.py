"""Slices of one DICOM series as a volume.

    files of a folder -> series told apart -> volume (z, y, x), LPS+

Slices are ordered by ImagePositionPatient along their normal, whatever their files or instance
numbers say, and the distance between them is that of the positions, not SliceThickness. What is no
regular stack is refused with the reason: slices that are missing, doubled, tilted against the
stack, or of different sizes, spacings, directions or frames of reference.

Voxels are turned to LPS+ as `volumes.py` does: flipped and swapped, never resampled.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from synthoma.data.case import Unit
from synthoma.errors import DataError
from synthoma.formats.dicom_header import Header, NoImage, NotDicom, read_header
from synthoma.formats.dicom_pixels import read_frames
from synthoma.formats.source import Tally, inside, walk
from synthoma.formats.volumes import LPS, Volume

#: What a volume may take in memory.
LIMIT_BYTES = 1 << 30
#: How far a slice may be from its place, as a part of the distance between slices (positions are
#: often written to a tenth of a millimetre) and of a pixel.
IRREGULAR, ASIDE = 0.2, 0.5
#: What must be the same in all slices, and what up to a tolerance (mm, or parts of a unit vector).
SAME = ("modality", "rows", "columns", "samples", "photometric", "frame_of_reference")
ALIKE, TOLERANCE = ("spacing_mm", "orientation"), 1e-3


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one series; headers were read, pixels were not."""

    series_uid: str
    study_uid: str
    patient: str
    """PatientID; "" where it is missing."""
    modality: str
    files: tuple[Path, ...]
    """Sorted by path."""


@dataclass(frozen=True, eq=False)
class Series:
    """A series as a volume."""

    volume: Volume
    """Values are int16 HU in CT."""
    slice_uids: tuple[str, ...]
    """SOPInstanceUID of each z; empty where slices are not across z (coronal, sagittal)."""
    positions_mm: Float[np.ndarray, " z"]
    """Of each slice along the normal, rising with the index (with z, where slices are across z)."""
    slice_thickness_mm: float | None
    """As stated; not the distance between slices."""
    padded: int
    """Voxels of PixelPaddingValue, set to -1024 in CT and else to 0."""
    unit: Unit = "arbitrary"


def find_series(root: Path, tally: Tally) -> list[SeriesFiles]:
    """Every series in `root` and the folders below, sorted by their first files' paths.

    Files that are not DICOM, have no image, or cannot be read are counted in `tally`.

    Raises:
        DataError: `root` is no folder.
    """
    headers, problems = read_headers(root, walk(root), tally)
    for name in problems:
        tally.drop("unreadable DICOM file", name)
    return [series_files(group) for group in group_headers(headers)]


def read_headers(
    root: Path, names: list[str], tally: Tally
) -> tuple[list[Header], dict[str, DataError]]:
    """The headers of files, and what is wrong with those that cannot be read, by name."""
    headers, problems = [], {}
    for name in names:
        try:
            headers.append(read_header(inside(root, name)))
        except NotDicom:
            tally.drop("not a DICOM file", name)
        except NoImage as error:
            tally.drop(str(error).split(": ", 1)[1], name)
        except DataError as error:
            problems[name] = error
    return headers, problems


def group_headers(headers: list[Header]) -> list[list[Header]]:
    """Headers by series; files that name none are on their own."""
    groups: dict[str, list[Header]] = {}
    for header in sorted(headers, key=lambda header: header.path):
        groups.setdefault(header.series_uid or str(header.path), []).append(header)
    return list(groups.values())


def series_files(headers: list[Header]) -> SeriesFiles:
    """The files of one series."""
    first = headers[0]
    return SeriesFiles(
        first.series_uid,
        first.study_uid,
        first.patient,
        first.modality,
        tuple(header.path for header in headers),
    )


def read_series(series: SeriesFiles) -> Series:
    """The volume of a series.

    Raises:
        DataError: A file cannot be read, or the files are no regular stack of slices; the message
            names files and the reason.
    """
    return read_stack([read_header(path) for path in series.files])


def read_stack(headers: list[Header]) -> Series:
    """The volume of slices whose headers were read."""
    headers, positions = in_order(headers)
    first = headers[0]
    n_bytes = len(headers) * first.rows * first.columns * 2
    if n_bytes > LIMIT_BYTES:
        raise DataError(
            f"{first.path}: {len(headers)} slices of {first.rows} x {first.columns}, "
            f"{n_bytes >> 20} MiB; at most {LIMIT_BYTES >> 20} MiB"
        )
    values: np.ndarray | None = None
    n_padded = 0
    for k, header in enumerate(headers):
        ((frame, n),) = read_frames(header)
        if len(frame) != 1:
            raise DataError(f"{header.path}: in colour; a volume is grey")
        if values is None:
            values = np.empty((len(headers), *frame.shape[1:]), frame.dtype)
        kind = np.result_type(values.dtype, frame.dtype)
        if kind != values.dtype:  # PET scales every slice by itself, and some need more
            values = values.astype(np.float32 if kind.itemsize > 2 else kind)
        values[k] = frame[0]
        n_padded += n
    assert values is not None
    affine = place(headers)
    change = ornt_transform(io_orientation(affine), LPS)
    turned = affine @ inv_ornt_aff(change, values.shape[::-1])
    volume = Volume(apply_orientation(values.T, change).T, turned)
    across, rising = change[2, 0] == 2, change[2, 1] > 0
    uids = tuple(header.sop_uid for header in headers)
    return Series(
        volume,
        slice_uids=(uids if rising else uids[::-1]) if across else (),
        positions_mm=positions if rising else -positions[::-1],
        slice_thickness_mm=first.slice_thickness_mm,
        padded=n_padded,
        unit="hu" if all(header.is_hu for header in headers) else "arbitrary",
    )


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a slice lies, in LPS."""

    position_mm: Float[np.ndarray, "3"]
    """The centre of its first pixel."""
    along_row: Float[np.ndarray, "3"]
    """To the next pixel of a row (x), in mm."""
    along_column: Float[np.ndarray, "3"]
    """To the next pixel of a column (y), in mm."""

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """A unit vector."""
        normal = np.cross(self.along_row, self.along_column)
        return np.asarray(normal / np.linalg.norm(normal))


def plane_of(header: Header) -> Plane:
    """Where a slice lies.

    Raises:
        DataError: It does not say.
    """
    position, directions = header.position_mm, header.orientation
    if position is None or directions is None or header.spacing_mm is None:
        raise DataError(
            f"{header.path}: a slice of a volume says ImagePositionPatient, "
            "ImageOrientationPatient and PixelSpacing; this one does not"
        )
    dy, dx = header.spacing_mm
    along = np.array(directions).reshape(2, 3)
    return Plane(np.array(position), along[0] * dx, along[1] * dy)


def in_order(headers: list[Header]) -> tuple[list[Header], Float[np.ndarray, " z"]]:
    """Slices in the order of their positions along the normal, and these, rising, in mm.

    Raises:
        DataError: They are no regular stack.
    """
    if len(headers) < 2:
        raise DataError(f"{headers[0].path}: a single image; a volume has 2 slices or more")
    check_same(headers)
    planes = [plane_of(header) for header in headers]
    first = planes[0]
    places = np.array([plane.position_mm for plane in planes])
    order = np.argsort(places @ first.normal, kind="stable")
    headers, places = [headers[i] for i in order], places[order]
    along = places @ first.normal
    check_regular(headers, along)
    line = places[0] + np.outer(along - along[0], first.normal)
    aside = np.linalg.norm(places - line, axis=1)
    pixel_mm = min(np.linalg.norm(first.along_row), np.linalg.norm(first.along_column))
    if aside.max() > ASIDE * pixel_mm:
        raise DataError(
            f"{headers[int(aside.argmax())].path}: {aside.max():.3g} mm beside the line of the "
            "other slices (a tilted gantry); allowed: slices that lie square to their stack"
        )
    return headers, along


def check_same(headers: list[Header]) -> None:
    """Refuse slices that cannot be of one volume."""
    first = headers[0]
    for header in headers:
        if header.n_frames > 1:
            raise DataError(f"{header.path}: {header.n_frames} frames in a series of slices")
        for name in SAME:
            if getattr(header, name) != getattr(first, name):
                raise mixed(first, header, name)
        for name in ALIKE:
            one, other = getattr(first, name), getattr(header, name)
            same = one is None if other is None else one is not None
            if not same or (one and not np.allclose(one, other, 0, TOLERANCE)):
                raise mixed(first, header, name)


def mixed(first: Header, other: Header, name: str) -> DataError:
    """Two slices that differ in what they may not differ in."""
    return DataError(
        f"{other.path}: {name} {getattr(other, name)}, but {first.path.name} of the same series "
        f"has {getattr(first, name)}: a mixed series (a scout, or several scans under one UID)"
    )


def check_regular(headers: list[Header], along: Float[np.ndarray, " z"]) -> None:
    """Refuse slices that are doubled, missing, or not equally far apart."""
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    for (one, other), gap in zip(pairwise(headers), gaps, strict=True):
        if gap < max(IRREGULAR * usual, 1e-3):
            same = " and the same SOPInstanceUID" if one.sop_uid == other.sop_uid else ""
            raise DataError(
                f"{other.path}: a duplicate of {one.path.name}, at the same place{same} (a copy, "
                "or several echoes or times under one UID)"
            )
    odd = np.flatnonzero(gaps > 1.5 * usual)
    if len(odd) and len(odd) <= max(1, len(gaps) // 10):
        k = int(odd[0])
        n = round(float(gaps[k]) / usual) - 1
        raise DataError(
            f"{headers[k].path}: {n} slice{'s' * (n > 1)} missing between it and "
            f"{headers[k + 1].path.name} ({gaps[k]:.4g} mm, elsewhere {usual:.4g} mm); such gaps: "
            f"{len(odd)}"
        )
    even = np.linspace(along[0], along[-1], len(along))
    if np.abs(along - even).max() > IRREGULAR * usual:
        raise DataError(
            f"{headers[0].path}: mixed spacing, slices are {gaps.min():.4g} to {gaps.max():.4g} mm "
            f"apart in its series of {len(headers)}; allowed: equal distances"
        )


def place(headers: list[Header]) -> Float[np.ndarray, "4 4"]:
    """Takes (column, row, slice, 1) to mm in RAS+; slices are in order.

    Of a single slice the next one would be as far as it is thick, or 1 mm.
    """
    first, last = plane_of(headers[0]), plane_of(headers[-1])
    if len(headers) == 1:
        step = first.normal * (headers[0].slice_thickness_mm or 1.0)
    else:
        step = (last.position_mm - first.position_mm) / (len(headers) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([first.along_row, first.along_column, step, first.position_mm], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
