"""yolo: `images/`, `labels/*.txt` and `data.yaml` or `classes.txt` (as ultralytics reads them).

    images/train/1.png   labels/train/1.txt   one line a box: class cx cy width height

Numbers are fractions of the image's width and height; cx, cy is the box's centre, so a box is
[(cx - width / 2) * W, (cx + width / 2) * W) here. Classes count from 0; their names come from
`names` in data.yaml (list or object) or the lines of classes.txt, else they are "0", "1", …
A split is a folder under `images`, the same under `labels`, or above both (train/images). An image
without a label file, or with an empty one, is known to have no boxes. YOLO knows neither patients
nor a label of the image: the manifest keeps them. Lines of polygons (more than five numbers) are
refused: their boxes would be ours, not the annotator's.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from synthoma.data.case import Case, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.naming import FileNames
from synthoma.formats.pixels import PICTURES, PictureReader, PictureSettings, write_png
from synthoma.formats.source import (
    SPLIT_NAMES,
    Entry,
    Found,
    Reading,
    Tally,
    inside,
    read_text,
    walk,
)

Settings = PictureSettings

YAML_BYTES = 1 << 18
FOLDER_OF = {"train": "train", "validation": "val", "test": "test"}
UNNAMED = "lesion"


def read(
    source: Path, settings: PictureSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the images of a YOLO folder.

    Raises:
        DataError: There is no folder `images`, or the names of classes are damaged.
    """
    names, labels = [], set()
    for name in walk(source):
        folders = PurePosixPath(name).parts[:2]
        if "images" in folders and name.lower().endswith(PICTURES):
            names.append(name)
        elif "labels" in folders and name.endswith(".txt") and not name.endswith("classes.txt"):
            labels.add(name)
        elif "images" in folders:
            tally.drop("not a picture", name)
    if not names:
        raise DataError(f"{source}: no pictures in images/; YOLO has images/ and labels/")
    classes = read_classes(source)
    label_of = {name: label_path(name) for name in names}
    for name in sorted(labels - set(label_of.values())):
        tally.drop("labels without image", name)
    splits = {name: split_of(name) for name in names}
    pictures = PictureReader("yolo", settings, lambda: [source / name for name in names], tally)

    def read_one(name: str) -> list[Found]:
        image, origin = pictures.read(inside(source, name))
        boxes: np.ndarray = no_boxes(2)
        own: tuple[str, ...] = ()
        if label_of[name] in labels:
            boxes, own = read_labels(inside(source, label_of[name]), image.space, classes)
        return [Found(name, image, boxes=boxes, box_labels=own, split=splits[name], origin=origin)]

    return Reading(source, [Entry(name, partial(read_one, name)) for name in names])


def label_path(name: str) -> str:
    """The label file of an image.

    Example:
        >>> label_path("images/train/1.jpg"), label_path("train/images/1.jpg")
        ('labels/train/1.txt', 'train/labels/1.txt')
    """
    parts = list(PurePosixPath(name).with_suffix(".txt").parts)
    parts[parts.index("images")] = "labels"
    return PurePosixPath(*parts).as_posix()


def split_of(name: str) -> str | None:
    """The split that a folder names.

    Example:
        >>> split_of("images/val/1.jpg"), split_of("test/images/1.jpg"), split_of("images/1.jpg")
        ('validation', 'test', None)
    """
    parts = PurePosixPath(name).parts[:-1]
    at = parts.index("images")
    return next((SPLIT_NAMES[p.lower()] for p in (*parts[:at], *parts[at + 1 : at + 2])
                 if p.lower() in SPLIT_NAMES), None)  # fmt: skip


def read_classes(source: Path) -> dict[int, str]:
    """Names by number; empty where there are none."""
    for path in (source / "data.yaml", source / "data.yml", source / "dataset.yaml"):
        if not path.is_file():
            continue
        try:
            content: Any = yaml.safe_load(read_text(path, YAML_BYTES))
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise DataError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list):
            names = dict(enumerate(names))
        if isinstance(names, dict):
            try:
                return {int(number): str(name) for number, name in names.items()}
            except (TypeError, ValueError):
                raise DataError(f"{path}: names {names}; allowed: names by number") from None
    for path in (source / "classes.txt", source / "labels" / "classes.txt"):
        if path.is_file():
            return dict(enumerate(line.strip() for line in read_text(path).split("\n")))
    return {}


def read_labels(
    path: Path, space: tuple[int, ...], classes: Mapping[int, str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Boxes (m, 4) in pixels and the class of each."""
    height, width = space
    boxes, labels = [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            code, (cx, cy, w, h) = int(words[0]), (float(word) for word in words[1:])
        except ValueError:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r}; allowed: class cx cy width height"
            ) from None
        if not all(math.isfinite(v) for v in (cx, cy, w, h)) or max(abs(cx), abs(cy), w, h) > 10:
            raise DataError(f"{path}, line {number}: {line[:80]!r}; allowed: fractions from 0 to 1")
        if classes and code not in classes:
            raise DataError(f"{path}, line {number}: class {code}; there are {sorted(classes)}")
        y0, x0 = (cy - h / 2) * height, (cx - w / 2) * width
        boxes.append((y0, x0, y0 + h * height, x0 + w * width))
        labels.append(classes.get(code, str(code)))
    return (np.array(boxes, np.float32) if boxes else no_boxes(2)), tuple(labels)


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `images/SPLIT/*.png`, `labels/SPLIT/*.txt` and `data.yaml`, which ultralytics reads.

    Raises:
        DataError: The images cannot be PNG (values below 0 or fractions).
    """
    names = FileNames()
    known = list(dataset.about["box_labels"]) or [UNNAMED]
    code_of = {name: code for code, name in enumerate(known)}
    for folder in FOLDER_OF.values():
        (out / "images" / folder).mkdir(parents=True)
        (out / "labels" / folder).mkdir(parents=True)
    for case in dataset:
        place = f"{FOLDER_OF[splits[case.patient_id]]}/{names.of(case.case_id)}"
        write_png(out / f"images/{place}.png", case)
        if case.boxes is None:
            tally.note("boxes never annotated, written as no boxes")
        height, width = case.image.space
        lines = []
        for i, box in enumerate([] if case.boxes is None else case.boxes.astype(np.float64)):
            y0, x0, y1, x1 = box / (height, width, height, width)
            code = code_of[case.box_labels[i]] if case.box_labels else 0
            numbers = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            lines.append(" ".join([str(code), *(f"{v:.9f}" for v in numbers)]) + "\n")
        (out / f"labels/{place}.txt").write_text("".join(lines), encoding="utf-8")
        yield f"images/{place}.png", case
    # No `path`: ultralytics then takes the folder of data.yaml.
    places = {"train": "images/train", "val": "images/val", "test": "images/test"}
    about = places | {"names": dict(enumerate(known))}
    text = "# written by synthoma; see synthoma.json\n" + yaml.safe_dump(about, allow_unicode=True)
    (out / "data.yaml").write_text(text, encoding="utf-8")
