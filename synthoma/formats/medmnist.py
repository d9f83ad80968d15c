"""medmnist: one .npz of MedMNIST with its own splits, 2D or 3D, and back.

    train_images (n, y, x), (n, y, x, 3) or (n, z, y, x) uint8, train_labels (n, 1); val_; test_
        -> cases train/000000, ...

No patients are named, so each image is one: `patients_from` says "one an image". Classes are those
of `classes`, else those in the file (array `classes`, which exports have), else MedMNIST's own by
the file's name, else the numbers. Images of multi-label sets (ChestMNIST) are labelled by one
column, `finding`.

Images are read a block at a time (`npz.py`); nothing is unpickled. An export says which images are
synthetic in `train_runs` (the run that drew each), beside the manifest.

Paper: Yang et al. 2023, MedMNIST v2, https://doi.org/10.1038/s41597-022-01721-8
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.npz import DAMAGED, Member, names_in, new_member, read_whole, write_array
from synthoma.formats.source import SPLIT_NAMES, Entry, Found, Reading, Tally

SUFFIX = ".npz"
#: MedMNIST's names of splits, in the order of names.
SPLITS = ("test", "train", "val")
#: Bytes of the largest image and of labels, and images of the largest split.
LIMIT_IMAGE, LIMIT_LABELS, LIMIT_IMAGES = 1 << 27, 1 << 25, 4_000_000
#: The last character that there is.
MOST_CHARACTER = 0x10FFFF
#: Bytes that are read at a time.
BLOCK_BYTES = 1 << 23

ORGANS = ("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver",
          "lung-left", "lung-right", "pancreas", "spleen")  # fmt: skip
#: MedMNIST's classes, in the order of their numbers.
CLASSES = {
    "pathmnist": ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
                  "normal colon mucosa", "cancer-associated stroma",
                  "colorectal adenocarcinoma epithelium"),
    "chestmnist": ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule",
                   "pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis",
                   "pleural", "hernia"),
    "dermamnist": ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
                   "benign keratosis-like lesions", "dermatofibroma", "melanoma",
                   "melanocytic nevi", "vascular lesions"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": ("basophil", "eosinophil", "erythroblast", "immature granulocytes",
                   "lymphocyte", "monocyte", "neutrophil", "platelet"),
    "tissuemnist": ("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule",
                    "Glomerular endothelial cells", "Interstitial endothelial cells",
                    "Leukocytes", "Podocytes", "Proximal Tubule Segments",
                    "Thick Ascending Limb"),
    "organamnist": ORGANS,
    "organcmnist": ORGANS,
    "organsmnist": ORGANS,
    "organmnist3d": ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left",
                     "bladder", "heart", "lung-right", "lung-left", "spleen", "pancreas"),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle rib fracture", "nondisplaced rib fracture",
                        "displaced rib fracture"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}  # fmt: skip


class MedmnistSettings(BaseModel):
    """How a file's labels are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...] = Field(
        (),
        description="Names of the classes 0, 1, ...; none given: by the file, or its name if it "
        "is one of MedMNIST's, else the numbers.",
    )
    finding: str = Field(
        "",
        description="Multi-label sets: the class whose column is the label, FINDING or "
        "'no FINDING'; the others are left out.",
    )


Settings = MedmnistSettings


def read(
    source: Path, settings: MedmnistSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """Check a file (or the only .npz of a folder) and list its images, a block of them an entry.

    Raises:
        DataError: It is not MedMNIST's, is damaged, or its labels are not clear.
    """
    path = find_file(source)
    there = names_in(path)
    present = [split for split in SPLITS if f"{split}_images" in there]
    if not present:
        raise DataError(
            f"{path}: arrays {sorted(there)[:8]}; allowed: "
            + ", ".join(f"{split}_images, {split}_labels" for split in SPLITS)
        )
    inside = read_names(path, "classes") if "classes" in there else ()
    known = CLASSES.get(re.sub(r"_\d+$", "", path.stem.lower()), ())
    classes = settings.classes or inside or known
    entries = []
    for split in present:
        member = Member(path, f"{split}_images")
        check_images(member)
        labels = read_labels(path, f"{split}_labels", member.shape[0])
        names = name_labels(labels, classes, settings.finding, f"{path}: {split}_labels")
        runs = read_names(path, f"{split}_runs") if f"{split}_runs" in there else ("",) * len(names)
        if len(runs) != len(names):
            raise DataError(f"{path}: {split}_runs has {len(runs)} rows for {len(names)} images")
        images = Images(member, split, names, runs, tally)
        rows = max(1, BLOCK_BYTES // math.prod(member.shape[1:]))
        entries += [
            Entry(f"{split}/{start:06}", partial(images.read, start, min(start + rows, len(names))))
            for start in range(0, len(names), rows)
        ]
    return Reading(path.parent, entries)


def find_file(source: Path) -> Path:
    """The file, or the only one of a folder."""
    if source.is_dir():
        found = sorted(path for path in source.glob(f"*{SUFFIX}") if path.is_file())
        if len(found) != 1:
            raise DataError(f"{source}: {len(found)} files end in {SUFFIX}; allowed: one")
        return found[0]
    if not source.is_file():
        raise DataError(f"{source}: {'not a regular file' if source.exists() else 'no such file'}")
    return source


def read_names(path: Path, name: str) -> tuple[str, ...]:
    """A list of text, such as the classes that an export of ours names."""
    member = Member(path, name)
    if member.dtype.str[:2] != "<U" or not member.dtype.itemsize or len(member.shape) != 1:
        raise DataError(
            f"{member.where}: {member.shape} of {member.dtype}; allowed: a list of text"
        )
    texts = read_whole(member, LIMIT_LABELS)
    if texts.size and texts.view(np.uint32).max() > MOST_CHARACTER:
        raise DataError(f"{member.where}: not text")
    return tuple(str(text) for text in texts)


def read_labels(path: Path, name: str, n: int) -> Int[np.ndarray, "n columns"]:
    """A row an image."""
    member = Member(path, name)
    if member.dtype.kind not in "iub" or len(member.shape) not in (1, 2) or member.shape[0] != n:
        raise DataError(
            f"{member.where}: {member.shape} of {member.dtype}; allowed: whole numbers, "
            f"({n}, 1), one row an image"
        )
    labels = read_whole(member, LIMIT_LABELS).astype(np.int64)
    return labels[:, None] if labels.ndim == 1 else labels


def check_images(member: Member) -> None:
    """Refuse what is no set of images."""
    shape, dtype = member.shape, member.dtype
    if dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape[1:]:
        raise DataError(
            f"{member.where}: {shape} of {dtype}; allowed: uint8, (n, y, x), (n, y, x, 3) or "
            "(n, z, y, x)"
        )
    if shape[0] > LIMIT_IMAGES or math.prod(shape[1:]) > LIMIT_IMAGE:
        raise DataError(
            f"{member.where}: {shape}; at most {LIMIT_IMAGES} images of "
            f"{LIMIT_IMAGE >> 20} MiB each"
        )


def name_labels(
    labels: Int[np.ndarray, "n columns"], classes: tuple[str, ...], finding: str, where: str
) -> list[str]:
    """The label of every image.

    Example:
        >>> name_labels(np.array([[1], [0]]), ("normal", "pneumonia"), "", "")
        ['pneumonia', 'normal']
        >>> name_labels(np.array([[0, 1], [1, 0]]), ("mass", "nodule"), "nodule", "")
        ['nodule', 'no nodule']
    """
    columns = labels.shape[1]
    if columns == 1:
        if finding:
            raise DataError(f"{where}: one label an image; `finding` is for multi-label sets")
        least, most = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if least < 0 or (classes and most >= len(classes)):
            raise DataError(f"{where}: labels {least} to {most}; classes: {list(classes)}")
        return [classes[n] if classes else str(n) for n in labels[:, 0]]
    names = classes or tuple(str(i) for i in range(columns))
    if len(names) != columns:
        raise DataError(f"{where}: {columns} columns, but {len(names)} classes: {list(names)}")
    if finding not in names:
        raise DataError(
            f"{where}: multi-label, {columns} columns; choose the one that is the label with "
            f"finding, allowed: {', '.join(names)}"
        )
    column = labels[:, names.index(finding)]
    if not np.isin(column, (0, 1)).all():
        raise DataError(f"{where}: {finding} has other values than 0 and 1")
    return [finding if yes else f"no {finding}" for yes in column]


class Images:
    """The images of a split, read from first to last."""

    def __init__(
        self, member: Member, split: str, labels: list[str], runs: tuple[str, ...], tally: Tally
    ) -> None:
        self.member, self.split, self.tally = member, split, tally
        self.labels, self.runs = labels, runs
        self.file: BufferedIOBase | None = None
        self.done, self.broken = 0, False

    def read(self, start: int, end: int) -> list[Found]:
        """A block of images; none where the array is damaged, whose checksum does not say where."""
        try:
            if start == 0:
                self.member.check()
            if self.broken:
                return []
            values = self._rows(start, end)
        except DAMAGED as error:
            self.broken = True
            problem = f"{self.member.where}: damaged or truncated ({error}); none of it is read"
            raise DataError(problem) from None
        finally:
            for i in range(start, end if self.broken else start):
                self.tally.drop("image in a damaged array", f"{self.split}/{i:06}")
        if end == len(self.labels):
            self._close()
        return [
            Found(
                f"{self.split}/{i:06}",
                Image(image),
                label=self.labels[i],
                split=SPLIT_NAMES[self.split],
                number=str(i),
                origin=Synthetic(self.runs[i], 0) if self.runs[i] else None,
            )
            for i, image in enumerate(values, start)
        ]

    def _rows(self, start: int, end: int) -> UInt8[np.ndarray, "n c *space"]:
        if self.file is None or self.done != start:
            self._close()
            self.file = self.member.rows()
            skipped = start * math.prod(self.member.shape[1:])
            self.file.seek(skipped, 1)
        shape = (end - start, *self.member.shape[1:])
        content = self.file.read(math.prod(shape))
        if len(content) < math.prod(shape):
            raise EOFError("too short")
        self.done = end
        values = np.frombuffer(content, np.uint8).reshape(shape)
        colour = len(shape) == 4 and shape[-1] == 3
        return np.moveaxis(values, -1, 1) if colour else values[:, None]

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write medmnist.npz: images, labels (n, 1) by split, and `classes`.

    Raises:
        DataError: Images are not all uint8 of one size, or one has no label.
    """
    if not dataset.labels:
        raise DataError("no case has a label; medmnist wants one an image")
    classes, first = dataset.labels, dataset[0].image.values.shape
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for i, patient in enumerate(dataset.patient_ids):
        name = next(split for split in SPLITS if SPLIT_NAMES[split] == splits[patient])
        places[name].append(i)
    with zipfile.ZipFile(out / "medmnist.npz", "x", zipfile.ZIP_DEFLATED, compresslevel=3) as file:
        for split, chosen in places.items():
            shape = (len(chosen), *(first[1:] if first[0] == 1 else (*first[1:], first[0])))
            numbers, runs = np.zeros((len(chosen), 1), np.int64), [""] * len(chosen)
            with new_member(file, f"{split}_images", shape, np.dtype(np.uint8)) as member:
                for row, i in enumerate(chosen):
                    case = dataset[i]
                    check_case(case, first)
                    member.write(np.moveaxis(case.image.values, 0, -1).tobytes())
                    numbers[row] = classes.index(case.label or "")
                    if isinstance(case.origin, Synthetic):
                        runs[row] = case.origin.run
                    if case.boxes is not None and len(case.boxes):
                        tally.note("box left out: the format medmnist has none", len(case.boxes))
                    yield f"{split}/{row:06}", case
            few = numbers.astype(np.uint8 if len(classes) <= 256 else np.uint16)
            write_array(file, f"{split}_labels", few)
            if any(runs):
                write_array(file, f"{split}_runs", np.array(runs, np.str_))
        write_array(file, "classes", np.array(classes, np.str_))


def check_case(case: Case, shape: tuple[int, ...]) -> None:
    """Raise a DataError for a case that does not fit among the others."""
    values = case.image.values
    if values.dtype != np.uint8 or values.shape != shape or len(values) not in (1, 3):
        raise DataError(
            f"case {case.case_id!r}: {values.shape} of {values.dtype}, the first case {shape}; "
            "allowed in medmnist: uint8, 1 or 3 channels, all of one size (synthoma data prepare)"
        )
    if case.label is None:
        raise DataError(f"case {case.case_id!r}: no label; medmnist wants one an image")
