"""coco: `annotations.json` and `images/` (Microsoft COCO object detection).

    {"images": [{"id": 1, "file_name": "1.png", "width": 640, "height": 480}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, width, height]}],
     "categories": [{"id": 1, "name": "tumour"}]}

Boxes are x, y of the upper left corner, width and height in pixels, continuous: [x, x + width)
here.
A file name is relative to `images/` beside the table, or to the table's own folder. Annotations of
crowds are left out and counted; images without annotations are images known to have no boxes.
An image's entry may have `patient`, `split` and `label`, which COCO does not know; exports do.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from synthoma.data.case import Case, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.naming import FileNames
from synthoma.formats.pixels import PictureReader, PictureSettings, write_png
from synthoma.formats.source import (
    Entry,
    Found,
    Reading,
    Tally,
    inside,
    origin_words,
    read_json_within,
    split_name,
)

Settings = PictureSettings

TABLE_NAME = "annotations.json"
UNNAMED = "lesion"


class Picture(BaseModel):
    """An entry of `images`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None
    patient: str | None = None
    split: str | None = None
    label: str | None = None


class Annotation(BaseModel):
    """An entry of `annotations`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image_id: int | str
    category_id: int | str
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    iscrowd: int = 0


class Category(BaseModel):
    """An entry of `categories`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int | str
    name: str


Model = TypeVar("Model", bound=BaseModel)


def read(
    source: Path, settings: PictureSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the images of a table: the JSON file, or a folder with `annotations.json`.

    Raises:
        DataError: The table is missing or damaged; the message names its entry.
    """
    table = source / TABLE_NAME if source.is_dir() else source
    content = read_json_within(table)
    if not isinstance(content, dict):
        raise DataError(f"{table}: not COCO, which is an object with images and annotations")
    categories = {c.id: c.name for c in parse(table, content, "categories", Category)}
    listed: dict[int | str, Picture] = {}
    for picture in parse(table, content, "images", Picture):
        if listed.setdefault(picture.id, picture) is not picture:
            raise DataError(f"{table}: two images have the id {picture.id!r}")
    boxes: dict[int | str, list[tuple[float, ...]]] = {key: [] for key in listed}
    labels: dict[int | str, list[str]] = {key: [] for key in listed}
    for annotation in parse(table, content, "annotations", Annotation):
        key = annotation.image_id
        if key not in listed:
            tally.drop("annotation of an image that is not listed", f"image_id {key}")
            continue
        if annotation.category_id not in categories:
            raise DataError(f"{table}: no category {annotation.category_id!r}, of image {key!r}")
        if annotation.iscrowd:
            tally.drop("annotation of a crowd", listed[key].file_name)
            continue
        x, y, width, height = annotation.bbox
        boxes[key].append((y, x, y + height, x + width))
        labels[key].append(categories[annotation.category_id])
    del content
    root = table.parent
    names = {key: place(root, picture.file_name) for key, picture in listed.items()}
    pictures = PictureReader(
        "coco", settings, lambda: [root / name for name in names.values()], tally
    )

    def read_one(key: int | str) -> list[Found]:
        picture, name = listed[key], names[key]
        image, origin = pictures.read(inside(root, name))
        said = (picture.height, picture.width)
        if None not in said and said != image.space:
            raise DataError(
                f"{root / name}: {table.name} says {said[1]} x {said[0]} pixels, the image has "
                f"{image.space[1]} x {image.space[0]}"
            )
        own = boxes[key]
        return [
            Found(
                name,
                image,
                label=picture.label,
                boxes=np.array(own, np.float32) if own else no_boxes(2),
                box_labels=tuple(labels[key]),
                patient=picture.patient,
                split=split_name(picture.split, f"{table}, {name}") if picture.split else None,
                origin=origin,
            )
        ]

    entries = [Entry(names[key], partial(read_one, key)) for key in listed]
    named = any(picture.patient for picture in listed.values())
    return Reading(
        root,
        sorted(entries, key=lambda entry: entry.name),
        patients_from="images[].patient" if named else None,
    )


def parse(table: Path, content: dict[str, object], key: str, model: type[Model]) -> list[Model]:
    """The entries of a list.

    Raises:
        DataError: There is no such list, or an entry is wrong; the message says which.
    """
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{table}: not COCO, there is no list of {key}")
    parsed = []
    for number, entry in enumerate(entries):
        try:
            parsed.append(model.model_validate(entry))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in (key, number, *first["loc"]))
            raise DataError(f"{table}: {where}: {first['msg']}") from None
    return parsed


def place(root: Path, file_name: str) -> str:
    """The image's path relative to the table."""
    name = PurePosixPath(file_name).as_posix()
    if ".." not in name and not name.startswith("/") and (root / "images" / name).is_file():
        return f"images/{name}"
    return name


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `annotations.json` and `images/*.png`; category ids count from 1, in order of names.

    Raises:
        DataError: The images cannot be PNG (values below 0 or fractions).
    """
    (out / "images").mkdir()
    names = FileNames()
    known = list(dataset.about["box_labels"]) or [UNNAMED]
    category_of = {name: number for number, name in enumerate(known, 1)}
    pictures: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, case in enumerate(dataset, 1):
        name = f"{names.of(case.case_id)}.png"
        write_png(out / "images" / name, case)
        height, width = case.image.space
        picture: dict[str, object] = {
            "id": number,
            "file_name": name,
            "width": width,
            "height": height,
            "patient": case.patient_id,
            "split": splits[case.patient_id],
            **({"label": case.label} if case.label is not None else {}),
            **{key.lower(): word for key, word in origin_words(case.origin).items()},
        }
        pictures.append(picture)
        if case.boxes is None:
            tally.note("boxes never annotated, written as no boxes")
        boxes = [] if case.boxes is None else case.boxes.astype(np.float64).tolist()
        for i, (y0, x0, y1, x1) in enumerate(boxes):
            label = case.box_labels[i] if case.box_labels else known[0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_of[label],
                    "bbox": [round(v, 6) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "area": round((x1 - x0) * (y1 - y0), 6),
                    "iscrowd": 0,
                }
            )
        yield f"images/{name}", case
    content = {
        "info": {"description": "written by synthoma; see synthoma.json"},
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in category_of.items()],
    }
    with (out / TABLE_NAME).open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)
