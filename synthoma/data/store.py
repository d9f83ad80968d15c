"""Dataset folders: a million cases, read as views, written as a stream.

    D/dataset.json   what the folder holds, where patients come from, what was dropped
    D/cases.jsonl    one row a case
    D/shards/*.npy   image arrays (n, c, *space), memory-mapped
    D/splits.json    which patients are in which split

Real and synthetic sets are the same thing. A folder appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from jaxtyping import Int64, Shaped

from synthoma import __version__
from synthoma.data.case import DTYPES, Case, Image, Origin, Real, Synthetic, no_boxes
from synthoma.data.split import SPLITS, Splits, check_splits, split_patients
from synthoma.errors import DataError, LeakError, SettingsError

FORMAT = 1
SHARD_BYTES = 1 << 28
OPEN_SHARDS = 16


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends well, and leaves nothing else.

    Raises:
        SettingsError: `out` exists already; nothing is ever overwritten.
    """
    if out.exists():
        raise SettingsError(f"{out} exists already; nothing is overwritten: give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None


class Shard:
    """A growing .npy file: rows are appended and the header is set right at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype, self.rows = path, shape, dtype, 0
        self.file: BinaryIO = path.open("wb")
        self.header_bytes = self.write_header()

    def write_header(self) -> int:
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(
            self.file,
            {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)},
        )
        return self.file.tell()

    def append(self, values: np.ndarray) -> int:
        self.file.write(np.ascontiguousarray(values).tobytes())
        self.rows += 1
        return self.rows - 1

    def close(self) -> None:
        if self.write_header() != self.header_bytes:
            raise AssertionError("the .npy header grew")  # NumPy pads it for this very purpose
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class DatasetWriter:
    """Writes a dataset folder case by case; use it as a context manager.

    Args:
        out: The folder to create.
        patients_from: Where patient ids come from, in words for reports: "column 'patient'",
            "blocks of 13 ids", "one an image".
        value_range: The values that become -1 and 1 in a batch, such as (0, 255); None for
            values as scanners give them, which `data prepare` scales.
        splits: Which patients are in which split; where None, 7:1:2 by patient, seeded by 0.
        drop_duplicates: Keep the first of several equal images of different patients and count
            the rest as dropped, rather than refuse them.
        about: Further facts for dataset.json.
    """

    def __init__(
        self,
        out: Path,
        *,
        patients_from: str,
        value_range: tuple[float, float] | None = None,
        splits: Splits | Callable[[list[str]], Splits] | None = None,
        drop_duplicates: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.out, self.splits, self.drop_duplicates = out, splits, drop_duplicates
        self.about: dict[str, Any] = {
            "format": FORMAT,
            "synthoma": __version__,
            "patients_from": patients_from,
            "value_range": value_range,
            **(about or {}),
        }
        self.dropped: Counter[str] = Counter()
        self.dropped_examples: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        self.guard = new_folder(self.out)
        self.folder = self.guard.__enter__()
        (self.folder / "shards").mkdir()
        self.rows = (self.folder / "cases.jsonl").open("wb")
        self.digest = hashlib.sha256()
        self.open_shards: dict[tuple[Any, ...], tuple[int, Shard]] = {}
        self.n_shards = self.n_cases = self.n_synthetic = 0
        self.seen_ids: set[str] = set()
        self.seen_images: dict[bytes, tuple[str, str]] = {}
        self.patients: dict[str, None] = {}
        self.labels: dict[str, None] = {}
        self.box_labels: dict[str, None] = {}
        self.generators: dict[str, list[str]] = {}
        self.dimensions: int | None = None
        return self

    def drop(self, reason: str, name: str) -> None:
        """Count a case or file that was left out, and remember the first few by name."""
        self.dropped[reason] += 1
        examples = self.dropped_examples.setdefault(reason, [])
        if len(examples) < 5:
            examples.append(name)

    def add(self, case: Case) -> None:
        """Append a case.

        Raises:
            DataError: The case breaks the contract; the message names it and the field.
            LeakError: The same image was already added under another patient.
        """
        values = case.image.values
        self._check(case)
        key = hashlib.blake2b(
            np.ascontiguousarray(values).tobytes(),
            digest_size=16,
            person=str(values.shape).encode()[:16],
        ).digest()
        known = self.seen_images.setdefault(key, (case.case_id, case.patient_id))
        real = not isinstance(case.origin, Synthetic)
        if real and known[1] != case.patient_id and values.min() != values.max():
            if self.drop_duplicates:
                self.drop("the same image as an earlier patient's", case.case_id)
                return
            raise LeakError(
                f"{case.case_id} (patient {case.patient_id}) is the same image as {known[0]} "
                f"(patient {known[1]}): correct the patients, or leave it out "
                "(data import --drop-duplicates)"
            )
        self.seen_ids.add(case.case_id)
        shard, row = self._store(values)
        line = json.dumps(self._row(case, shard, row, key.hex()), ensure_ascii=False) + "\n"
        self.rows.write(line.encode())
        self.digest.update(line.encode())
        self.n_cases += 1
        self.patients[case.patient_id] = None
        if case.label is not None:
            self.labels[case.label] = None
        self.box_labels.update(dict.fromkeys(case.box_labels))
        if isinstance(case.origin, Synthetic):
            self.n_synthetic += 1
            self.generators.setdefault(case.origin.run, list(case.origin.trained_on))

    def _check(self, case: Case) -> None:
        values, where = case.image.values, f"case {case.case_id!r}"
        if case.case_id in self.seen_ids:
            raise DataError(f"{where}: this id was added already")
        if not case.patient_id:
            raise DataError(f"{where}: the patient id is empty")
        if values.dtype.name not in DTYPES:
            raise DataError(f"{where}: dtype {values.dtype.name}; allowed: {', '.join(DTYPES)}")
        d = len(case.image.space)
        if d not in (2, 3) or 0 in values.shape:
            raise DataError(f"{where}: shape {values.shape}; allowed: (c, (z,) y, x), none empty")
        if self.dimensions not in (None, d):
            raise DataError(f"{where}: {d}D, but earlier cases are {self.dimensions}D")
        self.dimensions = d
        if case.boxes is not None:
            if case.boxes.shape[1] != 2 * d:
                raise DataError(f"{where}: boxes {case.boxes.shape} in a {d}D image")
            if not np.isfinite(case.boxes).all() or (case.boxes[:, d:] <= case.boxes[:, :d]).any():
                raise DataError(f"{where}: a box is empty or not finite: {case.boxes.tolist()}")
            if case.box_labels and len(case.box_labels) != len(case.boxes):
                raise DataError(
                    f"{where}: {len(case.box_labels)} box labels for {len(case.boxes)} boxes"
                )

    def _store(self, values: np.ndarray) -> tuple[int, int]:
        key = (values.shape, values.dtype.str)
        if key in self.open_shards:
            number, shard = self.open_shards.pop(key)
            if (shard.rows + 1) * values.nbytes > SHARD_BYTES:
                shard.close()
                number, shard = self._new_shard(values)
        else:
            if len(self.open_shards) >= OPEN_SHARDS:
                oldest = next(iter(self.open_shards))
                self.open_shards.pop(oldest)[1].close()
            number, shard = self._new_shard(values)
        self.open_shards[key] = (number, shard)  # most recently used last
        return number, shard.append(values)

    def _new_shard(self, values: np.ndarray) -> tuple[int, Shard]:
        number = self.n_shards
        self.n_shards += 1
        path = self.folder / "shards" / f"{number:05}.npy"
        return number, Shard(path, values.shape, values.dtype)

    def _row(self, case: Case, shard: int, row: int, digest: str) -> dict[str, Any]:
        content: dict[str, Any] = {"case_id": case.case_id, "patient_id": case.patient_id}
        if case.label is not None:
            content["label"] = case.label
        if case.boxes is not None:
            content["boxes"] = np.asarray(case.boxes, np.float64).round(4).tolist()
        if case.box_labels:
            content["box_labels"] = list(case.box_labels)
        if case.traits:
            content["traits"] = dict(case.traits)
        if case.image.spacing_mm is not None:
            content["spacing_mm"] = list(case.image.spacing_mm)
        if case.image.affine is not None:
            content["affine"] = case.image.affine.tolist()
        if case.image.unit != "arbitrary":
            content["unit"] = case.image.unit
        if isinstance(case.origin, Synthetic):
            content["origin"] = {
                "synthetic": case.origin.run,
                "seed": case.origin.seed,
                "conditions": dict(case.origin.conditions),
            }
        else:
            content["origin"] = {"real": case.origin.source}
        return content | {"shard": shard, "row": row, "digest": digest}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.rows.close()
        try:
            if error is None:
                self._finish()
        except BaseException as own:
            self.guard.__exit__(type(own), own, own.__traceback__)
            raise
        self.guard.__exit__(kind, error, traceback)

    def _finish(self) -> None:
        for _, shard in self.open_shards.values():
            shard.close()
        if self.n_cases == 0:
            raise DataError(f"{self.out}: no case was left to write; dropped: {dict(self.dropped)}")
        patients = list(self.patients)
        splits = self.splits(patients) if callable(self.splits) else self.splits
        splits = split_patients(patients, seed=0) if splits is None else splits
        check_splits(splits, patients)
        write_json(self.folder / "splits.json", splits)
        write_json(
            self.folder / "dataset.json",
            self.about
            | {
                "n_cases": self.n_cases,
                "n_synthetic": self.n_synthetic,
                "n_patients": len(patients),
                "dimensions": self.dimensions,
                "labels": sorted(self.labels),
                "box_labels": sorted(self.box_labels),
                "generators": {run: {"trained_on": seen} for run, seen in self.generators.items()},
                "dropped": {
                    reason: {"n": n, "for_example": self.dropped_examples[reason]}
                    for reason, n in self.dropped.items()
                },
                "digest": self.digest.hexdigest(),
            },
        )


class Dataset:
    """A dataset folder, or some of its cases; reading gives views of memory-mapped arrays.

    Example:
        ``Dataset.open(path).split("train").where(label="tumour")[0].image.values``
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], index: "Index", rows: np.ndarray
    ) -> None:
        self.folder, self.about, self.index, self.rows = folder, about, index, rows

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Open a dataset folder.

        Raises:
            DataError: It is not one, or is damaged; the message names the file and the field.
        """
        folder = Path(folder)
        if not (folder / "dataset.json").is_file():
            raise DataError(f"{folder}: not a dataset folder (no dataset.json); see `data import`")
        about = read_json(folder / "dataset.json")
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            found = about.get("format") if isinstance(about, dict) else about
            raise DataError(
                f"{folder}/dataset.json: format {found!r}; this synthoma reads {FORMAT}"
            )
        index = Index(folder)
        return cls(folder, about, index, np.arange(len(index)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Case]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Case:
        """The i-th case; its image is a read-only view."""
        content = self.index.read(int(self.rows[i]))
        boxes = content.get("boxes")
        affine = content.get("affine")
        values = self.values(i)
        if boxes is not None:
            boxes = np.asarray(boxes, np.float32) if boxes else no_boxes(values.ndim - 1)
        return Case(
            case_id=content["case_id"],
            patient_id=content["patient_id"],
            image=Image(
                values=values,
                spacing_mm=tuple(content["spacing_mm"]) if "spacing_mm" in content else None,
                affine=None if affine is None else np.asarray(affine, np.float64),
                unit=content.get("unit", "arbitrary"),
            ),
            label=content.get("label"),
            boxes=boxes,
            box_labels=tuple(content.get("box_labels", ())),
            traits=content.get("traits", {}),
            origin=self._origin(content["origin"]),
        )

    def _origin(self, origin: dict[str, Any]) -> Origin:
        if "real" in origin:
            return Real(origin["real"])
        run = origin["synthetic"]
        seen = self.about["generators"][run]["trained_on"]
        return Synthetic(run, origin["seed"], origin["conditions"], tuple(seen))

    def values(self, i: int) -> Shaped[np.ndarray, "c *space"]:
        """The i-th image's array, a read-only view (cheaper than the whole case)."""
        row = int(self.rows[i])
        return self.index.shard(int(self.index.shards[row]))[int(self.index.shard_rows[row])]

    def boxes(self, i: int) -> Shaped[np.ndarray, "m k"]:
        """The i-th case's boxes (m, 2 * dimensions); none where they were never annotated."""
        row = int(self.rows[i])
        start, stop = self.index.box_starts[row], self.index.box_starts[row + 1]
        return self.index.boxes[start:stop].reshape(stop - start, 2 * int(self.about["dimensions"]))

    def box_classes(self, i: int) -> Int64[np.ndarray, " m"]:
        """The class of each box of the i-th case: its place in `box_labels`, 0 where it has none."""
        row = int(self.rows[i])
        return self.index.box_classes[self.index.box_starts[row] : self.index.box_starts[row + 1]]

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
        codes, first = np.unique(self.index.patients[self.rows], return_index=True)
        return [self.index.patient_names[code] for code in codes[np.argsort(first)]]

    @property
    def patient_ids(self) -> list[str]:
        """The patient of every case."""
        return [self.index.patient_names[code] for code in self.index.patients[self.rows]]

    @property
    def splits(self) -> Splits:
        """Which patients are in which split."""
        splits: Splits = read_json(self.folder / "splits.json")
        return splits

    @property
    def generators_saw(self) -> dict[str, list[str]]:
        """For each run that drew cases of this folder, the patients it was trained on."""
        return {run: seen["trained_on"] for run, seen in self.about["generators"].items()}

    def take(self, positions: Shaped[np.ndarray, " n"]) -> "Dataset":
        """These cases alone, in this order."""
        return Dataset(self.folder, self.about, self.index, self.rows[positions])

    def of_patients(self, patients: list[str] | set[str]) -> "Dataset":
        """The cases of these patients."""
        wanted = {
            self.index.patient_codes[name] for name in patients if name in self.index.patient_codes
        }
        return self.take(np.flatnonzero(np.isin(self.index.patients[self.rows], list(wanted))))

    def split(self, name: str) -> "Dataset":
        """The cases of one split: "train", "validation" or "test"."""
        splits = self.splits
        if name not in splits:
            raise SettingsError(f"{self.folder}: no split {name!r}; there are {', '.join(splits)}")
        return self.of_patients(set(splits[name]))

    def where(self, **fields: str) -> "Dataset":
        """The cases whose label or traits have these values: ``where(label="tumour")``."""
        kept = []
        for i in range(len(self)):
            content = self.index.read(int(self.rows[i]))
            found = {**content.get("traits", {}), "label": content.get("label")}
            if all(str(found.get(name)) == value for name, value in fields.items()):
                kept.append(i)
        if not kept:
            wanted = ", ".join(f"{name}={value}" for name, value in fields.items())
            raise DataError(f"{self.folder}: no case has {wanted}; labels are {self.labels}")
        return self.take(np.array(kept))


class Index:
    """The columns of cases.jsonl that batches need, and where each row starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "cases.jsonl"
        starts, shards, shard_rows, patients, counts = [0], [], [], [], [0]
        boxes: list[list[float]] = []
        classes: list[int] = []
        self.patient_codes: dict[str, int] = {}
        names = read_json(folder / "dataset.json").get("box_labels", [])
        class_of = {name: code for code, name in enumerate(names)}
        try:
            with path.open("rb") as file:
                for line in file:
                    content = json.loads(line)
                    starts.append(starts[-1] + len(line))
                    shards.append(content["shard"])
                    shard_rows.append(content["row"])
                    code = self.patient_codes.setdefault(
                        content["patient_id"], len(self.patient_codes)
                    )
                    patients.append(code)
                    own = content.get("boxes", ())
                    boxes.extend(own)
                    counts.append(len(own))
                    labels = content.get("box_labels")
                    classes.extend([class_of[n] for n in labels] if labels else [0] * len(own))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: row {len(shards) + 1} is damaged ({error!r})") from None
        self.starts = np.array(starts, np.int64)
        self.shards = np.array(shards, np.int32)
        self.shard_rows = np.array(shard_rows, np.int32)
        self.patients = np.array(patients, np.int32)
        self.patient_names = list(self.patient_codes)
        self.box_starts = np.cumsum(counts, dtype=np.int64)
        self.boxes = np.array(boxes, np.float32)
        self.box_classes = np.array(classes, np.int64)
        self.file: BinaryIO = path.open("rb")
        self.maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, row: int) -> dict[str, Any]:
        start, stop = int(self.starts[row]), int(self.starts[row + 1])
        content: dict[str, Any] = json.loads(os.pread(self.file.fileno(), stop - start, start))
        return content

    def shard(self, number: int) -> np.ndarray:
        if number not in self.maps:
            path = self.folder / "shards" / f"{number:05}.npy"
            try:
                self.maps[number] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: {error}") from None
        return self.maps[number]

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def resplit(dataset: Dataset, out: Path, splits: Splits) -> Dataset:
    """The same dataset under another split, in a new folder that shares the image files.

    Raises:
        LeakError: A patient is in two splits.
        DataError: A patient is in none.
    """
    check_splits(splits, dataset.patients)
    with new_folder(out) as folder:
        (folder / "shards").mkdir()
        for path in (*(dataset.folder / "shards").glob("*.npy"), dataset.folder / "cases.jsonl"):
            target = folder / path.relative_to(dataset.folder)
            try:
                target.hardlink_to(path)
            except OSError:  # another disk
                shutil.copy2(path, target)
        write_json(folder / "dataset.json", dataset.about)
        write_json(folder / "splits.json", splits)
    return Dataset.open(out)


__all__ = ["SPLITS", "Dataset", "DatasetWriter", "new_folder", "read_json", "write_json"]
