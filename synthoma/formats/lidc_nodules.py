"""Nodules from the outlines of several readers: which belong together, how large, of what kind.

    marks of a scan, its slices -> nodules (box, diameter, means of ratings)

**Which belong together.** Two readings are neighbours where some outline pixels of theirs are no
farther apart than the tolerance, at first the slice thickness, in mm between pixel centres. A
nodule is a set of readings that hang together by neighbours. Where a set of a scan has more than
four, the tolerance of that scan is lowered by a tenth, and all are joined anew, down to 0.1 mm:
what still has more than four stays one nodule. That is the rule of pylidc, which has it in voxels
instead of mm. One reader may have outlined two parts of what another outlined as one.

**How large.** The diameter of a reading is the distance of the two farthest pixels of one outline,
as pylidc has it. The outline lies outside of the nodule, so it is about a pixel too long.

**Where.** The pixels within the outlines that include, without those of the outlines themselves; an
outline that encloses none is taken with its own. Slices reach half way to their neighbours. Holes
change no box.

A nodule's box, diameter and ratings are the means over its readings.

Papers:
  Armato et al. 2011, The Lung Image Database Consortium (LIDC) and IDRI
  Fedorov et al. 2020, DICOM re-encoding of volumetrically annotated LIDC nodules (2,651 by pylidc)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist

from synthoma.errors import DataError
from synthoma.formats.lidc_marks import RATINGS, Marks, Outline, Reading

#: Readers of a scan; how far the tolerance is lowered at a time, and at most.
READERS, FACTOR, LEAST_MM = 4, 0.9, 0.1
#: Pixels of all outlines of a scan; LIDC's fullest has 22,000.
LIMIT_OUTLINED = 1 << 16


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of a scan that marks lie on."""

    positions_mm: Float64[np.ndarray, " z"]
    """Rising."""
    spacing_mm: tuple[float, float]
    """Of pixels along y and x."""
    thickness_mm: float
    uids: tuple[str, ...] = ()
    """SOPInstanceUID of each; none where outlines tell their position alone."""
    space: tuple[int, int] = (512, 512)
    """Rows and columns."""

    def slice_of(self, outline: Outline) -> int:
        """On which slice an outline lies: that of its UID, else that of its position.

        Raises:
            DataError: On none, or beyond its edge.
        """
        rows, columns = self.space
        if outline.points[:, 0].max() >= columns or outline.points[:, 1].max() >= rows:
            raise DataError(
                f"an outline reaches pixel {outline.points.max(axis=0).tolist()} (x, y) of a slice "
                f"of {columns} x {rows}"
            )
        if self.uids and outline.slice_uid is not None:
            if outline.slice_uid not in self.uids:
                raise DataError(f"an outline on slice {outline.slice_uid}, which is not there")
            return self.uids.index(outline.slice_uid)
        k = int(np.abs(self.positions_mm - outline.z_mm).argmin())
        apart_mm = abs(float(self.positions_mm[k]) - outline.z_mm)
        if apart_mm > self.distance_mm / 4:
            raise DataError(
                f"an outline at {outline.z_mm:g} mm, {apart_mm:.3g} mm from the nearest slice"
            )
        return k

    @property
    def distance_mm(self) -> float:
        """Between neighbouring slices, the usual."""
        if len(self.positions_mm) < 2:
            return self.thickness_mm
        return float(np.median(np.diff(self.positions_mm)))

    def edges_mm(self, first: int, last: int) -> tuple[float, float]:
        """From where to where some slices reach, half way to their neighbours."""
        places, half = self.positions_mm, self.distance_mm / 2
        low = places[first] - half if first == 0 else (places[first - 1] + places[first]) / 2
        end = len(places) - 1
        high = places[last] + half if last == end else (places[last] + places[last + 1]) / 2
        return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Nodule:
    """What the readings of one nodule say together."""

    box: Float64[np.ndarray, "6"]
    """z in mm, y and x in pixels: (z0, y0, x0, z1, y1, x1), half-open."""
    diameter_mm: float
    readers: int
    """How many outlined it; where it is not told who is who, how many readings there are."""
    ratings: Mapping[str, float]
    """Means of those that were given."""


def find_nodules(marks: Marks, slices: Slices) -> list[Nodule]:
    """The nodules that the readings of a scan tell of, from feet to head.

    Raises:
        DataError: An outline lies on no slice, or beyond its edge; or there are too many.
    """
    n = sum(len(outline.points) for reading in marks.readings for outline in reading.outlines)
    if n > LIMIT_OUTLINED:
        raise DataError(f"{n} outlined pixels; at most {LIMIT_OUTLINED}")
    groups = cluster(apart_mm(marks.readings, slices), slices.thickness_mm)
    found = [
        together([one for one, own in zip(marks.readings, groups, strict=True) if own == k], slices)
        for k in range(int(groups.max(initial=-1)) + 1)
    ]
    return sorted(found, key=lambda nodule: nodule.box.tolist())


def apart_mm(readings: tuple[Reading, ...], slices: Slices) -> Float64[np.ndarray, "n n"]:
    """How far the nearest pixels of any two readings' outlines are apart."""
    dy, dx = slices.spacing_mm
    clouds = []
    for reading in readings:
        parts = [
            np.column_stack(
                [
                    np.full(len(outline.points), slices.positions_mm[slices.slice_of(outline)]),
                    outline.points[:, 1] * dy,
                    outline.points[:, 0] * dx,
                ]
            )
            for outline in reading.outlines
        ]
        clouds.append(KDTree(np.concatenate(parts)))
    apart = np.zeros((len(clouds), len(clouds)))
    for i, one in enumerate(clouds):
        for j, other in enumerate(clouds[:i]):
            few, many = sorted((one, other), key=lambda tree: tree.n)
            apart[i, j] = apart[j, i] = np.min(many.query(few.data)[0])
    return apart


def cluster(apart_mm: Float[np.ndarray, "n n"], tolerance_mm: float) -> Int64[np.ndarray, " n"]:
    """The nodule of each reading, counted from 0.

    Args:
        apart_mm: Between readings.
        tolerance_mm: At which neighbours are joined at first.

    Example:
        Five in a row, 1 mm apart but for a gap of 1.9 mm: 2 mm join all five, 1.8 mm do not.

        >>> places = np.array([0, 1, 2, 3.9, 4.9])
        >>> cluster(np.abs(places[:, None] - places), 2.0).tolist()
        [0, 0, 0, 1, 1]
    """
    if not len(apart_mm):
        return np.zeros(0, np.int64)
    while True:
        _, groups = connected_components(apart_mm <= tolerance_mm, directed=False)
        tolerance_mm *= FACTOR
        if np.bincount(groups).max() <= READERS or tolerance_mm < LEAST_MM:
            return groups.astype(np.int64)


def together(readings: list[Reading], slices: Slices) -> Nodule:
    """One nodule."""
    known = {reading.reader for reading in readings if reading.reader is not None}
    ratings = {}
    for name in RATINGS:
        given = [reading.ratings[name] for reading in readings if name in reading.ratings]
        if given:
            ratings[name] = float(np.mean(given))
    return Nodule(
        np.mean([box_of(reading, slices) for reading in readings], axis=0),
        float(np.mean([diameter_of(reading, slices.spacing_mm) for reading in readings])),
        len(known) or len(readings),
        ratings,
    )


def box_of(reading: Reading, slices: Slices) -> Float64[np.ndarray, "6"]:
    """z in mm, y and x in pixels, of what a reader outlined."""
    own = [outline for outline in reading.outlines if outline.inclusion]
    planes = [slices.slice_of(outline) for outline in own]
    lows, highs = zip(*(within(outline) for outline in own), strict=True)
    (y0, x0), (y1, x1) = np.min(lows, axis=0), np.max(highs, axis=0)
    z0, z1 = slices.edges_mm(min(planes), max(planes))
    return np.array([z0, y0, x0, z1, y1, x1], np.float64)


def within(outline: Outline) -> tuple[Float64[np.ndarray, "2"], Float64[np.ndarray, "2"]]:
    """Where the pixels within an outline start and end, along y and x."""
    low, high = outline.points.min(axis=0)[::-1], outline.points.max(axis=0)[::-1]
    encloses: np.ndarray = high - low >= 2
    start = np.where(encloses, low + 1, low)
    end = np.where(encloses, high, high + 1)
    return start.astype(np.float64), end.astype(np.float64)


def diameter_of(reading: Reading, spacing_mm: tuple[float, float]) -> float:
    """The farthest two pixels of one outline, in mm; 0 where all are points."""
    dy, dx = spacing_mm
    return max(
        float(pdist(outline.points * np.array([dx, dy])).max(initial=0.0))
        for outline in reading.outlines
        if outline.inclusion
    )
