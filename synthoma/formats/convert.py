"""Files to a dataset folder and back: what `data import` and `data export` do in every format.

Cases stream from the reader to the dataset folder, in the order of their names, so the same files
make the same folder. A file that cannot be read is counted with its message and left out; boxes are
cut at the edges of their image and counted; what is wrong with the whole source stops the import.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from synthoma.data.boxes import clip, sides
from synthoma.data.case import Case, Real
from synthoma.data.dataset import Dataset
from synthoma.data.split import Splits, splits_from_cases
from synthoma.data.store import DatasetWriter, new_folder
from synthoma.data.vois import WINDOW_HU
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.formats import load_format
from synthoma.formats.manifest import Manifest, read_manifest, writing_manifest
from synthoma.formats.patients import patient_rule
from synthoma.formats.source import Entry, Found, Tally

UNREADABLE = "unreadable"
#: Boxes thinner than this along any axis are empty; edges this far out are rounding, not a cut.
LEAST_SIDE_PX = 0.01


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    n_cases: int
    n_patients: int
    n_boxes: int
    patients_from: str
    splits_from: str
    """ "the source", or how they were made."""
    dropped: Mapping[str, int]
    """How many files, cases or boxes were left out, by reason."""
    noted: Mapping[str, int]
    """How many were kept but changed."""
    errors: tuple[str, ...]
    """One message a file that could not be read; each names its file."""
    n_labelled: int = 0
    n_boxed: int = 0
    """Cases that were annotated with boxes, be there none in them."""
    hints: tuple[str, ...] = ()
    """As `Reading.hints`."""


@dataclass(frozen=True)
class ExportSummary:
    """What an export did."""

    n_cases: int
    n_synthetic: int
    noted: Mapping[str, int]
    """What the format could not say as it was."""


def import_dataset(
    source: Path,
    out: Path,
    *,
    format: str,
    settings: BaseModel | None = None,
    mapping: Mapping[str, str] | None = None,
    patient_block: int | None = None,
    patient_pattern: str | None = None,
    drop_duplicates: bool = False,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> ImportSummary:
    """Read files into a new dataset folder.

    Args:
        source: A file or folder, as the format wants it.
        out: The dataset folder to create.
        format: A name of `synthoma.formats.FORMATS`.
        settings: An instance of the format's `Settings`; None for the defaults.
        mapping: Column by name, for csv.
        patient_block: Images of so many consecutive ids are one patient.
        patient_pattern: A regular expression that finds the patient in the relative path.
        drop_duplicates: Leave out images that an earlier patient has too, rather than stop.
        progress: Told (files done, files).

    Raises:
        SettingsError: A setting is not allowed, or `out` exists.
        DataError: The source is not of this format, or no file of it could be read.
        LeakError: A patient is in two splits, or two patients have the same image.
    """
    module = load_format(format)
    if settings is None:
        settings = module.Settings()
    if not isinstance(settings, module.Settings):
        raise SettingsError(f"settings of format {format}: a {module.Settings.__name__} is wanted")
    if mapping and format != "csv":
        raise SettingsError(f"--map names the columns of a csv table; format {format} has none")
    with DatasetWriter(Path(out), patients_from="", drop_duplicates=drop_duplicates) as writer:
        under_way = _Import(writer, format, Path(source), settings, mapping or {})
        under_way.progress = progress
        return under_way.run(patient_block, patient_pattern)


class _Import:
    """One import under way."""

    def __init__(
        self,
        writer: DatasetWriter,
        format: str,
        source: Path,
        settings: BaseModel,
        mapping: Mapping[str, str],
    ) -> None:
        self.writer, self.source = writer, source
        self.tally = Tally(writer.drop)
        self.reading = load_format(format).read(source, settings, self.tally, mapping)
        self.manifest: Manifest | None = read_manifest(self.reading.root)
        self.home: dict[str, str] = {}
        self.without_split: str | None = None
        self.errors: list[str] = []
        self.dtypes: set[str] = set()
        self.kinds: set[tuple[int, str]] = set()
        self.n_boxes = self.n_boxed = self.n_labelled = 0
        self.progress: Callable[[int, int], None] = lambda done, n: None
        writer.about["imported"] = {
            "format": format,
            "source": source.name,
            "settings": settings.model_dump(mode="json"),
            **({"columns": dict(mapping)} if mapping else {}),
        }

    def run(self, block: int | None, pattern: str | None) -> ImportSummary:
        rule, words = patient_rule(self.reading, block=block, pattern=pattern)
        named = self.reading.patients_from is not None and not self.reading.patients_guessed
        listed = self.manifest is not None and not named and block is None and pattern is None
        n_listed = 0
        entries = list(self.reading.entries)
        for number, entry in enumerate(entries, 1):
            for read in self._read(entry):
                found, row = self.manifest.complete(read) if self.manifest else (read, None)
                patient = row.patient_id if listed and row is not None else rule(read)
                n_listed += row is not None and row.patient_id == patient
                self._check_split(found, patient)
                exported = row is not None and row.name == found.name
                self._add(found, patient, row.case_id if row and exported else found.name)
            self.progress(number, len(entries))
        if self.manifest and n_listed:
            rest = "" if n_listed == self.writer.n_cases else f"; of other files, {words}"
            words = self.manifest.about.patients_from + rest
        return self._summary(words)

    def _read(self, entry: Entry) -> list[Found]:
        try:
            return entry.read()
        except (DataError, MemoryError) as error:
            self.errors.append(str(error) or f"{entry.name}: out of memory")
            self.writer.drop(UNREADABLE, entry.name)
            return []

    def _check_split(self, found: Found, patient: str) -> None:
        if found.split is None:
            self.without_split = self.without_split or found.name
        else:
            before = self.home.setdefault(patient, found.split)
            if before != found.split:
                raise LeakError(
                    f"patient {patient} is in two splits, {before} and {found.split} ({found.name})"
                )
        if self.home and self.without_split is not None:
            raise DataError(
                f"{self.without_split} has no split, but patient {next(iter(self.home))} has: "
                "give all or none"
            )

    def _add(self, found: Found, patient: str, case_id: str) -> None:
        boxes, box_labels = self._fit_boxes(found)
        file = found.name.split("#")[0]
        n_before = self.writer.n_cases
        self.writer.add(
            Case(
                case_id=case_id,
                patient_id=patient,
                image=found.image,
                label=found.label,
                boxes=boxes,
                box_labels=box_labels,
                traits=found.traits,
                origin=found.origin or Real(file),
            )
        )
        if self.writer.n_cases == n_before:
            return  # a duplicate, which the writer has counted
        self.dtypes.add(found.image.values.dtype.name)
        self.kinds.add((len(found.image.space), found.image.unit))
        self.n_boxes += 0 if boxes is None else len(boxes)
        self.n_boxed += boxes is not None
        self.n_labelled += found.label is not None

    def _fit_boxes(self, found: Found) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Boxes cut at the image's edges, without the empty ones; both are counted."""
        if found.boxes is None or not len(found.boxes):
            return found.boxes, ()
        boxes = clip(found.boxes, found.image.space)
        kept: np.ndarray = np.all(sides(boxes) >= LEAST_SIDE_PX, axis=1)
        cut: np.ndarray = np.any(np.abs(boxes - found.boxes) > LEAST_SIDE_PX, axis=1)
        for _ in range(int((~kept).sum())):
            self.tally.drop("box empty or outside its image", found.name)
        if (kept & cut).any():
            self.tally.note("box cut at the edge of its image", int((kept & cut).sum()))
        labels = found.box_labels
        return boxes[kept], tuple(n for n, keep in zip(labels, kept, strict=False) if keep)

    def _splits(self, patients: list[str]) -> Splits:
        return splits_from_cases((patient, self.home[patient]) for patient in patients)

    def _summary(self, patients_from: str) -> ImportSummary:
        writer = self.writer
        if writer.n_cases == 0:
            first = f": {self.errors[0]}" if self.errors else ""
            raise DataError(
                f"{self.source}: nothing could be read ({len(self.errors)} unreadable files, "
                f"left out: {dict(writer.dropped)}){first}"
            )
        value_range = (0.0, 255.0) if self.reading.pictures and self.dtypes == {"uint8"} else None
        if self.kinds == {(3, "hu")}:  # whole CTs, which `prepare` does not take
            value_range = WINDOW_HU
        if self.manifest is not None and self.manifest.about.value_range is not None:
            value_range = self.manifest.about.value_range
        splits_from = "the source" if self.home else "7:1:2 by patient, seed 0"
        writer.splits = self._splits if self.home else None
        writer.about |= {
            "patients_from": patients_from,
            "value_range": value_range,
            "splits_from": splits_from,
            "noted": dict(self.tally.noted),
            "errors": self.errors[:100],
        }
        return ImportSummary(
            n_cases=writer.n_cases,
            n_patients=len(writer.patients),
            n_boxes=self.n_boxes,
            patients_from=patients_from,
            splits_from=splits_from,
            dropped=Counter(writer.dropped),
            noted=Counter(self.tally.noted),
            errors=tuple(self.errors),
            n_labelled=self.n_labelled,
            n_boxed=self.n_boxed,
            hints=self.reading.hints,
        )


def export_dataset(dataset: Dataset, out: Path, *, format: str) -> ExportSummary:
    """Write a dataset, or some of its cases, as files of a format, with a manifest.

    Args:
        dataset: What to write.
        out: The folder to create.
        format: A name of `synthoma.formats.FORMATS`.

    Raises:
        SettingsError: `out` exists.
        DataError: The format cannot hold these images; the message says what to do.
    """
    module = load_format(format)
    if format not in ("nifti", "dicom") and dataset.about["dimensions"] != 2:
        raise DataError(f"format {format} holds 2D images, these are 3D; allowed: nifti, dicom")
    splits = {patient: name for name, members in dataset.splits.items() for patient in members}
    tally = Tally()
    with new_folder(Path(out)) as folder, writing_manifest(folder, dataset, format) as manifest:
        for name, case in module.write(dataset, folder, splits, tally):
            manifest.add(name, case, splits[case.patient_id])
    return ExportSummary(manifest.n_cases, manifest.n_synthetic, Counter(tally.noted))


__all__: list[str] = ["ExportSummary", "ImportSummary", "export_dataset", "import_dataset"]
