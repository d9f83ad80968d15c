"""What every format shares: the contract of a format, and a distrust of what it is given.

A format's `read` lists what a source holds as entries, sorted by name, without opening the images;
an entry's `read` opens one file and gives the images in it. An entry that cannot be read raises
DataError, is counted, and the import goes on; what is wrong with the source as a whole (a missing
column, a patient in two splits) stops it. `convert.py` drives both directions.

No path of a table leaves its folder, nothing but regular files is opened, and no text file is read
beyond a limit.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel

from synthoma.data.case import Case, Image, Real, Synthetic, Traits
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError

#: Largest table (csv, JSON) in bytes and in values: what a GiB of memory takes in.
TABLE_BYTES, TABLE_VALUES = 1 << 27, 6_000_000
#: Largest text file that belongs to one image.
NOTE_BYTES = 1 << 22

#: What an export adds to a format; see `manifest.py`.
MANIFEST, MANIFEST_ROWS = "synthoma.json", "synthoma.jsonl"

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, eq=False)
class Found:
    """One image as its file and its format describe it; None is what they do not say."""

    name: str
    """Unique in the source: the file's path relative to it, and the slice if it is one."""
    image: Image
    label: str | None = None
    boxes: Float[np.ndarray, "m k"] | None = None
    """As `Case.boxes`, but may still leave the image or be empty."""
    box_labels: tuple[str, ...] = ()
    patient: str | None = None
    split: str | None = None
    number: str | None = None
    """An id that the format gives to the image, for blocks of ids."""
    traits: Traits = field(default_factory=dict)
    origin: Synthetic | None = None
    """Where the file says that it is synthetic."""


@dataclass(frozen=True)
class Entry:
    """A file that may be read, and how."""

    name: str
    read: Callable[[], list[Found]]


class Tally:
    """Counts what a reader leaves out (`dropped`) or changes (`noted`), with a few examples."""

    def __init__(self, drop: Callable[[str, str], None] | None = None) -> None:
        self.noted: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._drop = drop

    def drop(self, reason: str, name: str) -> None:
        """Something was left out."""
        self.dropped[reason] += 1
        if self._drop is not None:
            self._drop(reason, name)

    def note(self, what: str, n: int = 1) -> None:
        """Something was kept, but changed."""
        self.noted[what] += n


@dataclass(frozen=True)
class Reading:
    """What a format found in a source."""

    root: Path
    """The folder that names are relative to."""
    entries: Iterable[Entry]
    """Sorted by name."""
    patients_from: str | None = None
    """In words; None where the format names no patients."""
    patients_guessed: bool = False
    """Patients come from a habit of naming, so that a pattern or a block overrules them."""
    pictures: bool = True
    """Ready-made pictures: in 8 bits, 0 is black and 255 is white."""
    hints: tuple[str, ...] = ()
    """What the source holds, or seems to lack, that a person may have meant otherwise; sentences
    for `data import` to print."""


class Format(Protocol):
    """What a module of `formats` offers."""

    Settings: type[BaseModel]

    def read(
        self, source: Path, settings: Any, tally: Tally, mapping: Mapping[str, str]
    ) -> Reading:
        """List what `source` holds.

        Args:
            source: The file or folder.
            settings: An instance of `Settings`.
            tally: Counts what is left out or changed.
            mapping: Column of a table by the name that synthoma knows it under (csv alone).

        Raises:
            DataError: The source as a whole is not of this format.
        """

    def write(
        self, dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
    ) -> Iterator[tuple[str, Case]]:
        """Write a dataset into the empty folder `out`, case by case.

        Yields:
            The name under which `read` will find the case, and the case; the export is complete
            when the iterator is at its end.

        Args:
            dataset: What to write.
            out: An empty folder.
            splits: The split of every patient.
            tally: Counts what the format cannot say.

        Raises:
            DataError: The format cannot hold these values.
        """


def split_name(text: str, where: str) -> str:
    """One of `SPLITS` from its common names.

    Raises:
        DataError: It is none; `where` says where it stood.

    Example:
        >>> split_name("Val", "row 3")
        'validation'
    """
    try:
        return SPLIT_NAMES[text.strip().lower()]
    except KeyError:
        allowed = ", ".join(SPLIT_NAMES)
        raise DataError(f"{where}: split {text!r}; allowed: {allowed}") from None


def inside(root: Path, name: str) -> Path:
    """The regular file `name` within `root`.

    Raises:
        DataError: The name is absolute, leaves `root` (also through a link), or is no file.
    """
    if not name or "\0" in name:
        raise DataError(f"{root}: a file name is {name!r}")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{name}: refused, it points outside {root}")
    path = root / name
    try:
        if not path.is_file():
            kind = "not a regular file" if path.exists() else "no such file"
            raise DataError(f"{path}: {kind}")
        if not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{name}: refused, it is a link that points outside {root}")
    except OSError as error:
        raise DataError(f"{name[:200]}: {error.strerror}") from None
    return path


def walk(root: Path) -> list[str]:
    """Paths of the files in `root`, relative, sorted: no hidden ones, no linked folders.

    Raises:
        DataError: `root` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder")
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        within = Path(folder).relative_to(root)
        names += [(within / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(set(names) - {MANIFEST, MANIFEST_ROWS})


def read_text(path: Path, limit_bytes: int = NOTE_BYTES) -> str:
    """A text file (UTF-8, with or without a byte order mark).

    Raises:
        DataError: It cannot be read, is longer than the limit, or is not text.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if len(content) > limit_bytes:
        raise DataError(
            f"{path}: larger than {limit_bytes / 2**20:g} MiB, the limit of such a file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_json_within(path: Path, limit_bytes: int = TABLE_BYTES) -> Any:
    """JSON that memory can hold.

    Raises:
        DataError: It is not JSON, or beyond `TABLE_BYTES` or `TABLE_VALUES`.
    """
    text = read_text(path, limit_bytes)
    n_values = text.count(",") + text.count("[") + text.count("{")
    if n_values > TABLE_VALUES:
        raise DataError(f"{path}: {n_values} values; at most {TABLE_VALUES}: divide it")
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def number_in(name: str) -> str | None:
    """The number in a file's name, if there is exactly one.

    Example:
        >>> number_in("images/slice_0012.png"), number_in("images/3-12.png")
        ('0012', None)
    """
    numbers = re.findall(r"\d+", PurePosixPath(name).name.split(".")[0])
    return numbers[0] if len(numbers) == 1 else None


def origin_words(origin: Real | Synthetic) -> dict[str, str]:
    """What a written file says of where it comes from."""
    if isinstance(origin, Synthetic):
        return {"Synthetic": "yes", "Run": origin.run, "Seed": str(origin.seed)}
    return {"Synthetic": "no"}
