"""Writing dataset folders: a stream of cases, a million of them, appearing whole or not at all.

    D/dataset.json   what the folder holds, where patients come from, what was dropped
    D/cases.jsonl    one row a case
    D/shards/*.npy   image arrays (n, c, *space), memory-mapped
    D/splits.json    which patients are in which split

Real and synthetic sets are the same thing. `dataset.py` reads them.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from synthoma import __version__
from synthoma.data.boxes import dimensions_of
from synthoma.data.case import DTYPES, Case, Synthetic
from synthoma.data.split import Splits, check_splits, split_patients
from synthoma.errors import DataError, LeakError, SettingsError

FORMAT = 1
SHARD_BYTES = 1 << 28
#: Shards that are open for writing at once; others are closed, and opened again when needed.
OPEN_SHARDS = 16


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends well, and leaves nothing else.

    Raises:
        SettingsError: `out` exists already; nothing is ever overwritten.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    draft.mkdir()
    try:
        yield draft
        sync(draft)
        refuse_existing(out)  # somebody may have made it meanwhile
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(out.parent)


def refuse_existing(out: Path) -> None:
    """Raise a SettingsError where something has the name `out`."""
    if out.exists() or out.is_symlink():
        raise SettingsError(f"{out} exists already; nothing is overwritten: give another --out")


def sync(folder: Path) -> None:
    """Have the disk remember which names a folder holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None


class Shard:
    """A growing .npy file: rows are appended and the header is set right at the end."""

    def __init__(
        self, number: int, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.number, self.shape, self.dtype, self.rows = number, shape, dtype, 0
        self.path = folder / f"{number:05}.npy"
        self.file: BinaryIO | None = self.path.open("xb")
        self.header_bytes = self.write_header(self.file)

    def write_header(self, file: BinaryIO) -> int:
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.shape)},
        )
        return file.tell()

    def append(self, values: Shaped[np.ndarray, "c *space"]) -> int:
        """Add a row, and return its number."""
        if self.file is None:
            self.file = self.path.open("r+b")
            self.file.seek(0, os.SEEK_END)
        self.file.write(values.data)
        self.rows += 1
        return self.rows - 1

    def pause(self) -> None:
        """Let go of the file until the next row."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def finish(self) -> None:
        """Set the header right and let go of the file."""
        self.pause()
        with self.path.open("r+b") as file:
            if self.write_header(file) != self.header_bytes:
                raise AssertionError("the .npy header grew")  # NumPy pads it for this very purpose
            file.flush()
            os.fsync(file.fileno())


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

    def __enter__(self) -> "DatasetWriter":
        self.guard = new_folder(self.out)
        self.folder = self.guard.__enter__()
        (self.folder / "shards").mkdir()
        self.rows = (self.folder / "cases.jsonl").open("wb")
        self.digest = hashlib.sha256()
        self.shards: dict[tuple[Any, ...], Shard] = {}
        self.open_shards: OrderedDict[int, Shard] = OrderedDict()
        self.n_shards = self.n_cases = self.n_synthetic = 0
        self.seen_ids: set[str] = set()
        self.seen_images: dict[bytes, tuple[str, str]] = {}
        self.patients: dict[str, None] = {}
        self.labels: dict[str, None] = {}
        self.box_labels: dict[str, None] = {}
        self.generators: dict[str, tuple[str, ...]] = {}
        self.dimensions: int | None = None
        self.boxes_have_labels: bool | None = None
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
        self._check(case)
        values = case.image.values
        little_endian = values.dtype.newbyteorder("<")
        values = np.ascontiguousarray(values, little_endian)
        key = hashlib.blake2b(
            values.data, digest_size=16, person=str(values.shape).encode()[:16]
        ).digest()
        comparable = not isinstance(case.origin, Synthetic) and values.min() != values.max()
        known = self.seen_images.get(key) if comparable else None
        if known is not None and known[1] != case.patient_id:
            if self.drop_duplicates:
                self.drop("the same image as an earlier patient's", case.case_id)
                return
            raise LeakError(
                f"{case.case_id} (patient {case.patient_id}) is the same image as {known[0]} "
                f"(patient {known[1]}): correct the patients, or leave it out "
                "(data import --drop-duplicates)"
            )
        shard = self._shard(values)
        line = self._line(case, shard, key.hex())
        shard.append(values)
        self.rows.write(line)
        self.digest.update(line)
        self._remember(case)
        if comparable:
            self.seen_images.setdefault(key, (case.case_id, case.patient_id))

    def _check(self, case: Case) -> None:
        values, where = case.image.values, f"case {case.case_id!r}"
        if not case.case_id or case.case_id in self.seen_ids:
            raise DataError(f"{where}: this id is empty or was added already")
        if not case.patient_id:
            raise DataError(f"{where}: the patient id is empty")
        if values.dtype.name not in DTYPES:
            raise DataError(f"{where}: dtype {values.dtype.name}; allowed: {', '.join(DTYPES)}")
        d = len(case.image.space)
        if d not in (2, 3) or 0 in values.shape:
            raise DataError(f"{where}: shape {values.shape}; allowed: (c, (z,) y, x), none empty")
        if self.dimensions not in (None, d):
            raise DataError(f"{where}: {d}D, but earlier cases are {self.dimensions}D")
        spacing = case.image.spacing_mm
        if spacing is not None and (len(spacing) != d or not all(s > 0 for s in spacing)):
            raise DataError(f"{where}: spacing_mm {spacing}; allowed: {d} numbers above 0")
        self._check_boxes(case, d)
        if isinstance(case.origin, Synthetic):
            seen = self.generators.get(case.origin.run, case.origin.trained_on)
            if seen != case.origin.trained_on:
                raise DataError(
                    f"{where}: its run {case.origin.run} was trained on other patients than "
                    "earlier cases say"
                )

    def _check_boxes(self, case: Case, d: int) -> None:
        where = f"case {case.case_id!r}"
        n = 0 if case.boxes is None else len(case.boxes)
        if case.boxes is not None:
            if dimensions_of(case.boxes) != d:
                raise DataError(f"{where}: boxes {case.boxes.shape} in a {d}D image")
            boxes = case.boxes.astype(np.float32)
            if not np.isfinite(boxes).all() or (boxes[:, d:] <= boxes[:, :d]).any():
                raise DataError(f"{where}: a box is empty or not finite: {case.boxes.tolist()}")
        if case.box_labels and len(case.box_labels) != n:
            raise DataError(f"{where}: {len(case.box_labels)} box labels for {n} boxes")
        if n and self.boxes_have_labels not in (None, bool(case.box_labels)):
            raise DataError(
                f"{where}: its boxes have {'' if case.box_labels else 'no '}labels, unlike those "
                "of earlier cases; label all boxes or none"
            )

    def _remember(self, case: Case) -> None:
        self.n_cases += 1
        self.dimensions = len(case.image.space)
        if case.boxes is not None and len(case.boxes):
            self.boxes_have_labels = bool(case.box_labels)
        self.seen_ids.add(case.case_id)
        self.patients[case.patient_id] = None
        if case.label is not None:
            self.labels[case.label] = None
        self.box_labels.update(dict.fromkeys(case.box_labels))
        if isinstance(case.origin, Synthetic):
            self.n_synthetic += 1
            self.generators.setdefault(case.origin.run, case.origin.trained_on)

    def _shard(self, values: Shaped[np.ndarray, "c *space"]) -> Shard:
        """The shard that takes the next image of this shape and type."""
        key = (values.shape, values.dtype.str)
        shard = self.shards.get(key)
        if shard is not None and (shard.rows + 1) * values.nbytes > SHARD_BYTES:
            self.open_shards.pop(shard.number, None)
            shard.finish()
            shard = None
        if shard is None:
            shard = Shard(self.n_shards, self.folder / "shards", values.shape, values.dtype)
            self.shards[key] = shard
            self.n_shards += 1
        self.open_shards[shard.number] = shard
        self.open_shards.move_to_end(shard.number)
        if len(self.open_shards) > OPEN_SHARDS:
            self.open_shards.popitem(last=False)[1].pause()
        return shard

    def _line(self, case: Case, shard: Shard, digest: str) -> bytes:
        row = self._row(case) | {"shard": shard.number, "row": shard.rows, "digest": digest}
        try:
            return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"case {case.case_id!r}: its traits, names or conditions cannot be written as JSON "
                f"({error})"
            ) from None

    def _row(self, case: Case) -> dict[str, Any]:
        content: dict[str, Any] = {"case_id": case.case_id, "patient_id": case.patient_id}
        if case.label is not None:
            content["label"] = case.label
        if case.boxes is not None:  # the shortest decimals that read back as the same float32
            content["boxes"] = [
                [float(str(edge)) for edge in box] for box in case.boxes.astype(np.float32)
            ]
        if case.box_labels:
            content["box_labels"] = list(case.box_labels)
        if case.traits:
            content["traits"] = dict(case.traits)
        if case.image.spacing_mm is not None:
            content["spacing_mm"] = [float(s) for s in case.image.spacing_mm]
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
        return content

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            try:
                if error is None:
                    self._finish()
            finally:
                self.rows.close()
                for shard in self.shards.values():
                    shard.pause()
        except BaseException as own:
            self.guard.__exit__(type(own), own, own.__traceback__)
            raise
        self.guard.__exit__(kind, error, traceback)

    def _finish(self) -> None:
        if self.n_cases == 0:
            raise DataError(f"{self.out}: no case was left to write; dropped: {dict(self.dropped)}")
        value_range = self.about["value_range"]
        if value_range is not None and not value_range[0] < value_range[1]:
            raise DataError(f"{self.out}: value_range {value_range}; allowed: (low, higher)")
        for shard in self.shards.values():
            shard.finish()
        self.rows.flush()
        os.fsync(self.rows.fileno())
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
