"""csv: a table of image paths with optional patient, split, label and box columns.

    image,patient,split,label,x0,y0,x1,y1,box_label
    images/1.png,p1,train,tumour,10.0,12.5,30.0,40.5,solid

Several rows of one image are several boxes; a row with empty box columns is an image without. Paths
are relative to the table. Boxes are in pixels, x to the right, y down, continuous: the left edge of
the first pixel is 0, its right edge 1, so half-open voxel intervals are the same numbers.

A column is found under its own name, a box column also as ``x0_px``; any other is named by the
mapping. Separated by commas, semicolons or tabs, whichever the first line has most of.
"""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from synthoma.data.case import Case, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, SettingsError
from synthoma.formats.naming import FileNames
from synthoma.formats.pixels import PictureReader, PictureSettings, write_png
from synthoma.formats.source import (
    TABLE_BYTES,
    Entry,
    Found,
    Reading,
    Tally,
    inside,
    origin_words,
    split_name,
)

Settings = PictureSettings

CORNERS = ("x0", "y0", "x1", "y1")
ONE_AN_IMAGE = ("id", "patient", "split", "label")
COLUMNS = ("image", *ONE_AN_IMAGE, *CORNERS, "box_label")
LINE_CHARACTERS = 1 << 20
TABLE_NAME = "cases.csv"
#: Columns of an export for other programs: the pictures and the manifest say the same.
WRITTEN_ONLY = ("synthetic", "run", "seed")
#: What tables call the class of an image, if not ``label``.
CLASS_WORDS = ("class", "classes", "labels", "category", "diagnosis", "finding", "target", "y")


@dataclass
class Rows:
    """What the rows of one image say together."""

    line: int
    facts: dict[str, str]
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    box_labels: list[str] = field(default_factory=list)


def read(
    source: Path, settings: PictureSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the images of a table: a file, or a folder that holds exactly one csv file.

    Raises:
        DataError: The table is missing or damaged, lacks a column, or contradicts itself; the
            message names its row.
        SettingsError: The mapping has a name that is not in `COLUMNS`.
    """
    table = find_table(source)
    columns, images, hints = read_table(table, mapping)
    root = table.parent
    pictures = PictureReader("csv", settings, lambda: [root / name for name in images], tally)
    boxed = "x0" in columns

    def read_one(name: str) -> list[Found]:
        image, origin = pictures.read(inside(root, name))
        rows = images[name]
        boxes = None
        if boxed:
            boxes = np.array(rows.boxes, np.float32) if rows.boxes else no_boxes(2)
        return [
            Found(
                name,
                image,
                label=rows.facts["label"] or None,
                boxes=boxes,
                box_labels=tuple(rows.box_labels) if "box_label" in columns else (),
                patient=rows.facts["patient"] or None,
                split=rows.facts["split"] or None,
                number=rows.facts["id"] or None,
                origin=origin,
            )
        ]

    entries = (Entry(name, partial(read_one, name)) for name in sorted(images))
    named = f"column {columns['patient']!r}" if "patient" in columns else None
    return Reading(root, entries, patients_from=named, hints=hints)


def find_table(source: Path) -> Path:
    """The table itself, or the only one in a folder."""
    if not source.is_dir():
        return source
    tables = sorted(source.glob("*.csv"))
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables[:5]) or "none"
        raise DataError(f"{source}: a folder with one .csv file is wanted, found {names}; name it")
    return tables[0]


def read_table(
    table: Path, mapping: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Rows], tuple[str, ...]]:
    """The column of each name, the rows of each image, and a sentence on columns not used."""
    try:
        if not table.is_file():
            raise DataError(f"{table}: {'not a file' if table.exists() else 'no such file'}")
        if table.stat().st_size > TABLE_BYTES:
            raise DataError(f"{table}: larger than {TABLE_BYTES / 2**20:g} MiB: divide it")
        with table.open(encoding="utf-8-sig", newline="") as file:
            return _read_table(table, file, mapping)
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise DataError(f"{table}: not a table ({error})") from None
    except OSError as error:
        raise DataError(f"{table}: {error.strerror}") from None


def _read_table(
    table: Path, file: TextIO, mapping: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Rows], tuple[str, ...]]:
    lines = _lines(table, file)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)
    (header,) = list(csv.reader([first], delimiter=separator)) or [[]]
    header = [name.strip() for name in header]
    columns = find_columns(table, header, mapping)
    hints = not_used(header, columns)
    places = {name: header.index(column) for name, column in columns.items()}
    images: dict[str, Rows] = {}
    nameless: dict[bool, int] = {}  # the first row of a box without, and of one with a label
    reader = csv.reader(lines, delimiter=separator)
    for cells in reader:
        if not any(cells):
            continue
        line = reader.line_num + 1
        if len(cells) != len(header):
            raise DataError(
                f"{table}, row {line}: {len(cells)} cells, but the first row names {len(header)}"
            )
        said = {name: cells[place].strip() for name, place in places.items()}
        name = said["image"].removeprefix("./")
        if not name:
            raise DataError(f"{table}, row {line}: no image (column {columns['image']!r})")
        facts = {key: said.get(key, "") for key in ONE_AN_IMAGE}
        if facts["split"]:
            facts["split"] = split_name(facts["split"], f"{table}, row {line}")
        rows = images.setdefault(name, Rows(line, facts))
        for key, value in facts.items():
            if rows.facts[key] != value:
                raise DataError(
                    f"{table}, row {line}: {name} has {key} {value!r}, but {rows.facts[key]!r} in "
                    f"row {rows.line}"
                )
        box = _box(said, f"{table}, row {line}") if "x0" in columns else None
        if box:
            rows.boxes.append(box)
            rows.box_labels.append(said.get("box_label", ""))
            nameless.setdefault(not said.get("box_label"), line)
    if not images:
        raise DataError(f"{table}: no rows")
    if len(nameless) == 2:
        raise DataError(
            f"{table}, row {nameless[True]}: a box without box_label, but row {nameless[False]} "
            "has one; give all or none"
        )
    if True in nameless:
        columns.pop("box_label", None)
    return columns, images, hints


def _lines(table: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if len(line) > LINE_CHARACTERS:
            raise DataError(f"{table}, row {number}: {len(line)} characters, not a table")
        yield line


def find_columns(table: Path, header: list[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """The column of each name of `COLUMNS` that the table has.

    Example:
        >>> find_columns(Path("t.csv"), ["file", "x0_px"], {"image": "file"})
        Traceback (most recent call last):
            ...
        synthoma.errors.DataError: t.csv: no column for y0, x1, y1; columns are file, x0_px
    """
    for name, column in mapping.items():
        if name not in COLUMNS:
            example = f"{column}={name}" if column in COLUMNS else "image=filename"
            raise SettingsError(
                f"--map {name}={column}: the form is NAME=COLUMN, as --map {example}; "
                f"allowed names: {', '.join(COLUMNS)}"
            )
        if column not in header:
            raise DataError(f"{table}: no column {column!r}; columns are {', '.join(header)}")
    columns = dict(mapping)
    for name in COLUMNS:
        candidates = (name, f"{name}_px") if name in CORNERS else (name,)
        for column in candidates:
            if column in header and name not in columns:
                columns[name] = column
    boxed = [name for name in CORNERS if name in columns]
    missing = [name for name in CORNERS if name not in columns] if boxed else []
    if "image" not in columns:
        missing.insert(0, "image")
    if missing:
        raise DataError(
            f"{table}: no column for {', '.join(missing)}; columns are {', '.join(header[:50])}"
        )
    for column in columns.values():
        if header.count(column) > 1:
            raise DataError(f"{table}: two columns are named {column!r}")
    return columns


def not_used(header: list[str], columns: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence that names the columns without a use, if there are any.

    Example:
        >>> not_used(["image", "class"], {"image": "image"})
        ('columns not used: class; --map label=class if it names the class',)
    """
    exported = WRITTEN_ONLY if set(WRITTEN_ONLY) <= set(header) else ()
    unused = [name for name in header if name and name not in (*columns.values(), *exported)]
    if not unused:
        return ()
    more = f" and {len(unused) - 20} more" if len(unused) > 20 else ""
    text = f"columns not used: {', '.join(unused[:20])}{more}"
    if "label" in columns:
        return (text,)
    likely = [name for name in unused if name.lower() in CLASS_WORDS] or unused
    if len(likely) == 1:
        return (f"{text}; --map label={likely[0]} if it names the class",)
    return (f"{text}; --map label=COLUMN if one of them names the class",)


def _box(said: dict[str, str], where: str) -> tuple[float, ...] | None:
    """(y0, x0, y1, x1), or None where the row has no box."""
    corners = [said[name] for name in CORNERS]
    if not any(corners):
        return None
    try:
        x0, y0, x1, y1 = (float(corner) for corner in corners)
    except ValueError:
        raise DataError(f"{where}: box {corners}; allowed: four numbers or four blanks") from None
    if not all(math.isfinite(corner) for corner in (x0, y0, x1, y1)):
        raise DataError(f"{where}: box {corners} is not finite")
    return y0, x0, y1, x1


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `cases.csv` and `images/*.png`; columns that say nothing are left out.

    Raises:
        DataError: The images cannot be PNG (values below 0 or fractions).
    """
    (out / "images").mkdir()
    names = FileNames()
    boxed = any(case.boxes is not None for case in dataset)
    columns = ["image", "patient", "split"]
    columns += ["label"] if dataset.labels else []
    columns += [*CORNERS, "box_label"] if boxed else []
    columns += ["synthetic", "run", "seed"]
    with (out / TABLE_NAME).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        for case in dataset:
            name = f"images/{names.of(case.case_id)}.png"
            write_png(out / name, case)
            row: dict[str, object] = {
                "image": name,
                "patient": case.patient_id,
                "split": splits[case.patient_id],
                "label": case.label or "",
                **{key.lower(): word for key, word in origin_words(case.origin).items()},
            }
            if case.boxes is None and boxed:
                tally.note("boxes never annotated, written as no boxes")
            boxes = [] if case.boxes is None else case.boxes.tolist()
            labels = case.box_labels or ("",) * len(boxes)
            for (y0, x0, y1, x1), label in zip(boxes, labels, strict=True):
                corners = dict(zip(CORNERS, (f"{v:.6f}" for v in (x0, y0, x1, y1)), strict=True))
                table.writerow(row | corners | {"box_label": label})
            if not boxes:
                table.writerow(row)
            yield name, case
