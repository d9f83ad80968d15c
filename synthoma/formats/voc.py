"""voc: `JPEGImages/` and `Annotations/*.xml` (Pascal VOC).

    Annotations/1.xml       file name, size, objects with name and bndbox
    JPEGImages/1.jpg        the image of the same stem, or that the annotation names
    ImageSets/Main/*.txt    stems of train, val and test, where there are such lists

VOC counts pixels from 1 and its boxes include both edges: (xmin, ymin, xmax, ymax) covers pixels
xmin to xmax, which is [xmin - 1, xmax) here. Written boxes are whole pixels: fractions are rounded
outward and counted. VOC knows neither patients nor a label of the image: the manifest keeps them.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError, SubElement, indent, tostring

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import Field

from synthoma.data.case import Case, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.naming import FileNames
from synthoma.formats.pixels import PICTURES, PictureReader, PictureSettings, write_png
from synthoma.formats.source import (
    TABLE_BYTES,
    Entry,
    Found,
    Reading,
    Tally,
    inside,
    origin_words,
    read_text,
    split_name,
    walk,
)

IMAGES, ANNOTATIONS, LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
LIST_OF = {"train": "train", "validation": "val", "test": "test"}
UNNAMED = "lesion"


class VocSettings(PictureSettings):
    """How VOC folders are read."""

    drop_difficult: bool = Field(
        False, description="Leave out (and count) objects that are marked as difficult."
    )


Settings = VocSettings


def read(source: Path, settings: VocSettings, tally: Tally, mapping: Mapping[str, str]) -> Reading:
    """List the annotated images of a VOC folder.

    Raises:
        DataError: There is no `JPEGImages` or `Annotations`, or an image is in two lists.
    """
    for folder in (IMAGES, ANNOTATIONS):
        if not (source / folder).is_dir():
            raise DataError(f"{source}: no folder {folder}; VOC has {IMAGES} and {ANNOTATIONS}")
    image_of: dict[str, str] = {}
    for name in walk(source / IMAGES):
        if name.lower().endswith(PICTURES):
            image_of.setdefault(PurePosixPath(name).with_suffix("").as_posix(), f"{IMAGES}/{name}")
        else:
            tally.drop("not a picture", f"{IMAGES}/{name}")
    notes = [name for name in walk(source / ANNOTATIONS) if name.lower().endswith(".xml")]
    stems = [name[: -len(".xml")] for name in notes]
    for stem in sorted(set(image_of) - set(stems)):
        tally.drop("image without annotation", image_of[stem])
    split_of = read_lists(source / LISTS)
    sample = [source / name for name in image_of.values()]
    pictures = PictureReader("voc", settings, lambda: sample, tally)

    def read_one(stem: str) -> list[Found]:
        note = inside(source, f"{ANNOTATIONS}/{stem}.xml")
        root = parse(note)
        name = image_of.get(stem)
        if name is None:  # the annotation may name an image of another stem
            named = (root.findtext("filename") or "").strip()
            if not named:
                raise DataError(f"{note}: no image of this name in {IMAGES}, and no <filename>")
            name = f"{IMAGES}/{named}"
        image, origin = pictures.read(inside(source, name))
        check_size(note, root, image.space)
        boxes, labels = boxes_of(note, root, settings, tally)
        split = split_of.get(stem) if split_of else None
        return [Found(name, image, boxes=boxes, box_labels=labels, split=split, origin=origin)]

    def entries() -> Iterator[Entry]:
        for stem in stems:
            if split_of and stem not in split_of:
                tally.drop(f"in no list of {LISTS}", f"{ANNOTATIONS}/{stem}.xml")
            else:
                yield Entry(f"{ANNOTATIONS}/{stem}.xml", partial(read_one, stem))

    return Reading(source, entries())


def read_lists(folder: Path) -> dict[str, str]:
    """The split of each stem, from train.txt, val.txt and test.txt; empty where there are none."""
    split_of: dict[str, str] = {}
    for name in ("train", "val", "validation", "test"):
        path = folder / f"{name}.txt"
        if not path.is_file():
            continue
        for line in read_text(path, TABLE_BYTES).splitlines():
            stem = line.split()[0] if line.split() else ""
            split = split_name(name, str(path))
            if stem and split_of.setdefault(stem, split) != split:
                raise DataError(f"{path}: {stem} is in {split_of[stem]} too")
    return split_of


def parse(path: Path) -> Element:
    """The root of an annotation.

    Raises:
        DataError: It is not XML, or has entities or a document type of its own.
    """
    try:
        root = fromstring(read_text(path), forbid_dtd=True)
    except DefusedXmlException as error:
        kind = type(error).__name__
        raise DataError(f"{path}: refused, XML with its own entities ({kind})") from None
    except (ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not XML ({error})") from None
    if root.tag != "annotation":
        raise DataError(f"{path}: <{root.tag[:50]}>; a VOC annotation starts with <annotation>")
    element: Element = root
    return element


def check_size(path: Path, root: Element, space: tuple[int, ...]) -> None:
    """Refuse an annotation that was made for an image of another size."""
    try:
        said = tuple(int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError:
        raise DataError(f"{path}: <size> is not in whole pixels") from None
    if all(said) and said != space:
        raise DataError(
            f"{path}: says {said[1]} x {said[0]} pixels, the image has {space[1]} x {space[0]}"
        )


def boxes_of(
    path: Path, root: Element, settings: VocSettings, tally: Tally
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Boxes (m, 4) and the class of each."""
    boxes, labels = [], []
    for thing in root.iterfind("object"):
        if settings.drop_difficult and (thing.findtext("difficult") or "0").strip() == "1":
            tally.drop("object marked as difficult", path.name)
            continue
        corners = [thing.findtext(f"bndbox/{c}") for c in ("ymin", "xmin", "ymax", "xmax")]
        try:
            y0, x0, y1, x1 = (float(corner or "") for corner in corners)
        except ValueError:
            raise DataError(f"{path}: bndbox {corners}; allowed: four numbers") from None
        if not all(math.isfinite(v) for v in (y0, x0, y1, x1)):
            raise DataError(f"{path}: bndbox {corners} is not finite")
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: an object without a name")
        boxes.append((y0 - 1, x0 - 1, y1, x1))
        labels.append(name)
    return (np.array(boxes, np.float32) if boxes else no_boxes(2)), tuple(labels)


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `JPEGImages/*.png`, `Annotations/*.xml` and the lists of splits.

    Raises:
        DataError: The images cannot be PNG (values below 0 or fractions).
    """
    for folder in (IMAGES, ANNOTATIONS, LISTS):
        (out / folder).mkdir(parents=True)
    lists = {split: (out / LISTS / f"{name}.txt").open("w") for split, name in LIST_OF.items()}
    names = FileNames()
    try:
        for case in dataset:
            stem = names.of(case.case_id)
            write_png(out / IMAGES / f"{stem}.png", case)
            root = annotation(case, f"{stem}.png", tally)
            indent(root)
            (out / ANNOTATIONS / f"{stem}.xml").write_bytes(tostring(root, "utf-8"))
            lists[splits[case.patient_id]].write(f"{stem}\n")
            yield f"{IMAGES}/{stem}.png", case
    finally:
        for file in lists.values():
            file.close()


def annotation(case: Case, file_name: str, tally: Tally) -> Element:
    """A case as a VOC annotation."""
    root = Element("annotation")
    put(root, "folder", IMAGES)
    put(root, "filename", file_name)
    source = SubElement(root, "source")
    put(source, "database", "synthoma")
    for key, word in origin_words(case.origin).items():
        put(source, key.lower(), word)
    size = SubElement(root, "size")
    (height, width), depth = case.image.space, case.image.values.shape[0]
    for key, number in (("width", width), ("height", height), ("depth", depth)):
        put(size, key, str(number))
    put(root, "segmented", "0")
    boxes = np.zeros((0, 4)) if case.boxes is None else case.boxes.astype(np.float64)
    if case.boxes is None:
        tally.note("boxes never annotated, written as no boxes")
    labels = case.box_labels or (UNNAMED,) * len(boxes)
    for box, label in zip(boxes, labels, strict=True):
        whole = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])])
        if (whole != box).any():
            tally.note("box rounded outward to whole pixels")
        thing = SubElement(root, "object")
        put(thing, "name", label)
        for key, word in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            put(thing, key, word)
        bndbox = SubElement(thing, "bndbox")
        y0, x0, y1, x1 = (int(v) for v in whole)
        for key, number in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1)):
            put(bndbox, key, str(number))
    return root


def put(parent: Element, tag: str, text: str) -> None:
    """Add ``<tag>text</tag>``, without the control characters that XML cannot hold."""
    clean = "".join(c for c in text if c.isprintable() or c in "\t\n")
    SubElement(parent, tag).text = clean
