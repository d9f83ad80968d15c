"""Reading dataset folders: views of memory-mapped arrays, a million cases without loading them."""

import os
import shutil
import threading
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped
from pydantic_core import from_json  # twice as fast as the standard library's

from synthoma.data.case import Case, Image, Origin, Real, Synthetic
from synthoma.data.split import Splits, check_splits
from synthoma.data.store import FORMAT, new_folder, read_json, write_json
from synthoma.errors import DataError, SettingsError

#: Shards kept mapped; a mapping holds a file open, and a process may open few (often 1,024).
MAPPED_SHARDS = 64
#: Shards up to this size are read rather than mapped, so that views of them hold no file open.
SMALL_SHARD_BYTES = 1 << 20

#: What dataset.json must have, and of which type.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "n_cases": int,
    "n_synthetic": int,
    "dimensions": int,
    "patients_from": str,
    "labels": list,
    "box_labels": list,
    "generators": dict,
    "dropped": dict,
    "digest": str,
    "value_range": (list, type(None)),
}


class Dataset:
    """A dataset folder, or some of its cases; reading gives views of memory-mapped arrays.

    Safe to read from several threads. Iterate it, index it, or use it where torch wants a map-style
    dataset.

    Example:
        ``Dataset.open(path).split("train").where(label="tumour")[0].image.values``
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], index: "Index", rows: Int[np.ndarray, " n"]
    ) -> None:
        self.folder, self.about, self.index, self.rows = folder, about, index, rows

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open a dataset folder.

        Raises:
            DataError: It is not one, or is damaged; the message names the file and the field.
        """
        folder = Path(folder)
        about = read_about(folder)
        index = Index(folder, about)
        return cls(folder, about, index, np.arange(len(index)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Case]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Case:
        """The i-th case; its image is a read-only view."""
        content = self.index.read(int(self.rows[i]))
        affine = content.get("affine")
        return Case(
            case_id=content["case_id"],
            patient_id=content["patient_id"],
            image=Image(
                values=self.values(i),
                spacing_mm=tuple(content["spacing_mm"]) if "spacing_mm" in content else None,
                affine=None if affine is None else np.asarray(affine, np.float64),
                unit=content.get("unit", "arbitrary"),
            ),
            label=content.get("label"),
            boxes=self.boxes(i) if "boxes" in content else None,
            box_labels=tuple(content.get("box_labels", ())),
            traits=content.get("traits", {}),
            origin=self.index.origin(content["origin"]),
        )

    def values(self, i: int) -> Shaped[np.ndarray, "c *space"]:
        """The i-th image's array, a read-only view (cheaper than the whole case)."""
        row = int(self.rows[i])
        return self.index.image(int(self.index.shards[row]), int(self.index.shard_rows[row]))

    def boxes(self, i: int) -> Float32[np.ndarray, "m k"]:
        """The i-th case's boxes (m, 2 * dimensions); none where they were never annotated."""
        row = int(self.rows[i])
        return self.index.boxes[self.index.box_starts[row] : self.index.box_starts[row + 1]]

    def box_classes(self, i: int) -> Int64[np.ndarray, " m"]:
        """The class of each box of the i-th case: its place in `box_labels`, or 0."""
        row = int(self.rows[i])
        return self.index.box_classes[self.index.box_starts[row] : self.index.box_starts[row + 1]]

    def label(self, i: int) -> str | None:
        """The i-th case's label (cheaper than the whole case)."""
        return self.index.label_names[int(self.index.labels[int(self.rows[i])])]

    @property
    def box_labels(self) -> list[str]:
        """The classes of boxes, sorted; one nameless class where boxes have none."""
        return self.about["box_labels"] or ["lesion"]

    @property
    def labels(self) -> list[str]:
        """The classes of images, sorted."""
        return list(self.about["labels"])

    @property
    def patients(self) -> list[str]:
        """Patient ids of these cases, each once, in order of appearance."""
        return self._names(self.index.patients[self.rows])

    @property
    def real_patients(self) -> list[str]:
        """Patient ids of those of these cases that no generator drew."""
        return self._names(self.index.patients[self.rows[~self.index.synthetic[self.rows]]])

    def _names(self, codes: Int[np.ndarray, " n"]) -> list[str]:
        each, first = np.unique(codes, return_index=True)
        return [self.index.patient_names[code] for code in each[np.argsort(first)]]

    @property
    def patient_ids(self) -> list[str]:
        """The patient of every case."""
        return [self.index.patient_names[code] for code in self.index.patients[self.rows]]

    @property
    def splits(self) -> Splits:
        """Which patients are in which split."""
        path = self.folder / "splits.json"
        splits = read_json(path)
        if not isinstance(splits, dict) or not all(
            isinstance(members, list) and all(isinstance(name, str) for name in members)
            for members in splits.values()
        ):
            raise DataError(f"{path}: not lists of patient ids by split")
        return splits

    @property
    def generators_saw(self) -> dict[str, list[str]]:
        """For each run that drew cases of this folder, the patients it was trained on."""
        return {run: list(seen) for run, seen in self.index.trained_on.items()}

    def take(self, positions: Int[np.ndarray, " n"]) -> "Dataset":
        """These cases alone, in this order."""
        return Dataset(self.folder, self.about, self.index, self.rows[positions])

    def of_patients(self, patients: Collection[str]) -> "Dataset":
        """The cases of these patients."""
        codes = self.index.patient_codes
        wanted = [codes[name] for name in set(patients) if name in codes]
        return self.take(np.flatnonzero(np.isin(self.index.patients[self.rows], wanted)))

    def split(self, name: str) -> "Dataset":
        """The cases of one split: "train", "validation" or "test"."""
        splits = self.splits
        if name not in splits:
            raise SettingsError(f"{self.folder}: no split {name!r}; there are {', '.join(splits)}")
        return self.of_patients(splits[name])

    def where(self, **fields: str) -> "Dataset":
        """The cases whose label or traits have these values: ``where(label="tumour")``.

        By label at once; by a trait each row is read, about 5 s a million.

        Raises:
            DataError: There is none; the message says which values there are.
        """
        kept, wanted = self, dict(fields)
        if "label" in wanted:
            label = wanted.pop("label")
            names = self.index.label_names
            code = names.index(label) if label in names else -2
            kept = self.take(np.flatnonzero(self.index.labels[self.rows] == code))
        found: dict[str, set[str]] = {name: set() for name in wanted}
        if wanted:
            places = []
            for i in range(len(kept)):
                traits = self.index.read(int(kept.rows[i])).get("traits", {})
                own = {name: str(traits[name]) for name in wanted if name in traits}
                for name, value in own.items():
                    if len(found[name]) < 10:
                        found[name].add(value)
                if own == wanted:
                    places.append(i)
            kept = kept.take(np.array(places, np.int64))
        if not len(kept):
            there = [f"labels: {', '.join(self.labels) or 'none'}"]
            there += [f"{name}: {', '.join(sorted(v)) or 'none'}" for name, v in found.items()]
            asked = ", ".join(f"{name}={value}" for name, value in fields.items())
            raise DataError(f"{self.folder}: no case has {asked}; there are {'; '.join(there)}")
        return kept


def read_about(folder: Path) -> dict[str, Any]:
    """The checked content of dataset.json.

    Raises:
        DataError: It is missing, of another format, or lacks a field.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder}: not a dataset folder (no dataset.json); see `data import`")
    about = read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise DataError(f"{path}: format {found!r}; this synthoma reads {FORMAT}")
    for name, kind in FIELDS.items():
        if name not in about or not isinstance(about[name], kind):
            raise DataError(f"{path}: field {name!r} is missing or of the wrong type")
    if about["dimensions"] not in (2, 3):
        raise DataError(f"{path}: dimensions {about['dimensions']}; allowed: 2, 3")
    if about["value_range"] is not None:
        about["value_range"] = pair(about["value_range"], path)
    return about


def pair(value_range: list[Any], path: Path) -> tuple[float, float]:
    """The two values of a range, checked."""
    match value_range:
        case [int() | float() as low, int() | float() as high] if low < high:
            return float(low), float(high)
    raise DataError(f"{path}: value_range {value_range}; allowed: null or [low, higher]")


class Columns:
    """The columns of cases.jsonl while it is read, a few dozen bytes a case."""

    def __init__(self, class_of: dict[str, int]) -> None:
        self.class_of = class_of
        self.patient_codes: dict[str, int] = {}
        self.label_codes: dict[str | None, int] = {}
        self.starts, self.box_starts = array("q", [0]), array("q", [0])
        self.shards, self.shard_rows = array("i"), array("i")
        self.patients, self.labels = array("i"), array("i")
        self.synthetic, self.annotated = array("b"), array("b")
        self.boxes, self.box_classes = array("f"), array("q")

    def add(self, line: bytes, box_numbers: int) -> None:
        """Take in a row; where it is damaged, any of a few exceptions."""
        row = from_json(line)
        patient, label = row["patient_id"], row.get("label")
        self.starts.append(self.starts[-1] + len(line))
        self.shards.append(row["shard"])
        self.shard_rows.append(row["row"])
        self.patients.append(self.patient_codes.setdefault(patient, len(self.patient_codes)))
        self.labels.append(self.label_codes.setdefault(label, len(self.label_codes)))
        self.synthetic.append("synthetic" in row["origin"])
        self.annotated.append("boxes" in row)
        boxes, names = row.get("boxes", ()), row.get("box_labels")
        for box in boxes:
            if len(box) != box_numbers:
                raise ValueError(f"a box of {len(box)} numbers, not {box_numbers}")
            self.boxes.extend(box)
        if names and len(names) != len(boxes):
            raise ValueError(f"{len(names)} box labels for {len(boxes)} boxes")
        self.box_classes.extend([self.class_of[n] for n in names] if names else [0] * len(boxes))
        self.box_starts.append(self.box_starts[-1] + len(boxes))


class Index:
    """The columns of cases.jsonl that batches need, and where each row starts."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.path = folder / "cases.jsonl"
        self.lock = threading.Lock()
        self.maps: OrderedDict[int, np.ndarray] = OrderedDict()
        try:
            self.trained_on = {
                run: tuple(seen["trained_on"]) for run, seen in about["generators"].items()
            }
        except (KeyError, TypeError):
            raise DataError(f"{folder / 'dataset.json'}: field 'generators' is damaged") from None
        columns = Columns({name: code for code, name in enumerate(about["box_labels"])})
        try:
            with self.path.open("rb") as file:
                for line in file:
                    columns.add(line, 2 * int(about["dimensions"]))
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            n = len(columns.box_starts)
            raise DataError(f"{self.path}: row {n} is damaged ({error!r})") from None
        if (n := len(columns.shards)) != about["n_cases"]:
            raise DataError(f"{self.path}: {n} rows, but dataset.json says {about['n_cases']}")
        self.starts = np.array(columns.starts, np.int64)
        self.shards = np.array(columns.shards, np.int32)
        self.shard_rows = np.array(columns.shard_rows, np.int32)
        self.patients = np.array(columns.patients, np.int32)
        self.patient_codes = columns.patient_codes
        self.patient_names = list(columns.patient_codes)
        self.labels = np.array(columns.labels, np.int32)
        self.label_names = list(columns.label_codes)
        self.synthetic = np.array(columns.synthetic, bool)
        self.annotated = np.array(columns.annotated, bool)  # with boxes, be there none
        self.box_starts = np.array(columns.box_starts, np.int64)
        self.boxes = np.array(columns.boxes, np.float32).reshape(-1, 2 * int(about["dimensions"]))
        self.box_classes = np.array(columns.box_classes, np.int64)
        for column in (self.boxes, self.box_classes):  # views of them are handed out
            column.setflags(write=False)
        self.file: BinaryIO = self.path.open("rb")

    def __len__(self) -> int:
        return len(self.shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.folder, self.about)  # another process opens the files itself

    def read(self, row: int) -> dict[str, Any]:
        """What cases.jsonl says in one row."""
        start, stop = int(self.starts[row]), int(self.starts[row + 1])
        content: dict[str, Any] = from_json(os.pread(self.file.fileno(), stop - start, start))
        return content

    def origin(self, content: dict[str, Any]) -> Origin:
        """Where a case came from, of what its row says."""
        if "real" in content:
            return Real(content["real"])
        run = content["synthetic"]
        if run not in self.trained_on:
            raise DataError(f"{self.folder / 'dataset.json'}: no generator {run!r}")
        return Synthetic(run, content["seed"], content["conditions"], self.trained_on[run])

    def image(self, shard: int, row: int) -> Shaped[np.ndarray, "c *space"]:
        """One image of a shard, a read-only view."""
        images = self.shard(shard)
        if not 0 <= row < len(images):
            raise DataError(f"{self.shard_path(shard)}: no row {row}; there are {len(images)}")
        return images[row]

    def shard_path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / "shards" / f"{number:05}.npy"

    def shard(self, number: int) -> Shaped[np.ndarray, "n c *space"]:
        """The images of a shard."""
        with self.lock:
            if number in self.maps:
                self.maps.move_to_end(number)
                return self.maps[number]
            path = self.shard_path(number)
            try:
                small = path.stat().st_size <= SMALL_SHARD_BYTES
                images = np.load(path, mmap_mode=None if small else "r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{path}: {error}") from None
            wanted = int(self.about["dimensions"]) + 2
            if not isinstance(images, np.ndarray) or images.ndim != wanted:
                raise DataError(f"{path}: not an array (n, c, *space) of {wanted} axes")
            images.setflags(write=False)
            self.maps[number] = images
            if len(self.maps) > MAPPED_SHARDS:
                self.maps.popitem(last=False)  # views of it keep it mapped as long as they live
            return images

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def resplit(dataset: Dataset, out: Path, splits: Splits) -> Dataset:
    """The same dataset under another split, in a new folder that shares the image files.

    Raises:
        LeakError: A patient is in two splits.
        DataError: A patient is in none.
    """
    check_splits(splits, dataset.index.patient_names)
    with new_folder(out) as folder:
        share(dataset.folder, folder, "shards/*.npy", "cases.jsonl")
        write_json(folder / "dataset.json", dataset.about)
        write_json(folder / "splits.json", splits)
    return Dataset.open(out)


def share(source: Path, target: Path, *patterns: str) -> None:
    """Hard links in `target` to the files of `source` that match; copies on another disk."""
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        try:
            place.hardlink_to(path)
        except OSError:
            shutil.copy2(path, place)
