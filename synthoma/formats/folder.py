"""folder: one folder a class, pictures within.

    normal/1.png, tumour/2.png                    the class is the folder
    train/normal/1.png, validation/tumour/2.png   the split is the folder above

The first folder is the split if every picture is under train, val (valid, validation) or test;
the next one is the class; deeper folders change nothing. Pictures that lie in no folder have no
class. Boxes are not known.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from synthoma.data.case import Case
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.naming import FileNames
from synthoma.formats.pixels import PICTURES, PictureReader, PictureSettings, write_png
from synthoma.formats.source import SPLIT_NAMES, Entry, Found, Reading, Tally, inside, walk

Settings = PictureSettings

UNNAMED = "unlabelled"


def read(
    source: Path, settings: PictureSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the pictures of a folder.

    Raises:
        DataError: It is no folder.
    """
    names = []
    for name in walk(source):
        if name.lower().endswith(PICTURES):
            names.append(name)
        else:
            tally.drop("not a picture", name)
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    split = bool(names) and all(
        parts and parts[0].lower() in SPLIT_NAMES for parts in folders.values()
    )
    pictures = PictureReader("folder", settings, lambda: [source / name for name in names], tally)

    def read_one(name: str) -> list[Found]:
        image, origin = pictures.read(inside(source, name))
        parts = folders[name]
        own_split = SPLIT_NAMES[parts[0].lower()] if split else None
        classes = [part for part in parts[1 if split else 0 :][:1] if part != UNNAMED]
        label = classes[0] if classes else None
        return [Found(name, image, label=label, split=own_split, origin=origin)]

    entries = [Entry(name, partial(read_one, name)) for name in names]
    classed = any(len(parts) > split for parts in folders.values())
    form = "SPLIT/CLASS/PICTURE" if split else "CLASS/PICTURE"
    hint = f"no class folders were found, so there are no labels; they are read from {form}"
    return Reading(source, entries, hints=() if classed else (hint,))


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `SPLIT/CLASS/*.png`; boxes are left out and counted.

    Raises:
        DataError: The images cannot be PNG, or a label cannot be the name of a folder.
    """
    names = FileNames()
    for case in dataset:
        label = case.label or UNNAMED
        if label in (".", "..") or set(label) & set('/\\:*?"<>|\0') or label[0] == ".":
            raise DataError(f"case {case.case_id!r}: label {label!r} cannot be a folder's name")
        if case.boxes is not None and len(case.boxes):
            tally.note("box left out: the format folder has none", len(case.boxes))
        name = f"{splits[case.patient_id]}/{label}/{names.of(case.case_id)}.png"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(out / name, case)
        yield name, case
