"""What an export says beyond its format: `synthoma.json` and `synthoma.jsonl`.

    synthoma.json    whether the files are synthetic, by which runs, trained on which patients;
                     where patient ids come from; which values are black and white
    synthoma.jsonl   a row a file: case_id, patient_id, split, label, traits, origin, geometry

Every export has both, so that a synthetic set says so in every format, and so that importing it
again brings back what the format cannot hold. Where a format says something itself (a csv's patient
column), the format is believed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from synthoma import __version__
from synthoma.data.case import Case, Image, Synthetic, Unit
from synthoma.data.dataset import Dataset
from synthoma.data.store import write_json
from synthoma.errors import DataError
from synthoma.formats.source import (
    MANIFEST,
    MANIFEST_ROWS,
    NOTE_BYTES,
    TABLE_BYTES,
    Found,
    read_json_within,
)

Model = TypeVar("Model", bound=BaseModel)


class About(BaseModel):
    """synthoma.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    patients_from: str = "one an image"
    value_range: tuple[float, float] | None = None
    generators: dict[str, tuple[str, ...]] = {}


class Row(BaseModel):
    """A row of synthoma.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    case_id: str
    patient_id: str
    split: str | None = None
    label: str | None = None
    traits: dict[str, Any] = {}
    run: str | None = None
    seed: int = 0
    conditions: dict[str, Any] = {}
    spacing_mm: tuple[float, ...] | None = None
    affine: tuple[tuple[float, ...], ...] | None = None
    unit: Unit = "arbitrary"


@dataclass(frozen=True, eq=False)
class Manifest:
    """An export's manifest, its rows read when they are wanted."""

    folder: Path
    about: About
    starts: dict[str, int]

    def row(self, name: str) -> Row | None:
        """What is said of a file."""
        if name not in self.starts:
            return None
        with (self.folder / MANIFEST_ROWS).open("rb") as file:
            file.seek(self.starts[name])
            return _parse(Row, file.readline(NOTE_BYTES), self.folder / MANIFEST_ROWS)

    def complete(self, found: Found) -> tuple[Found, Row | None]:
        """What was found with what the manifest adds, and the manifest's row of it.

        A slice of a volume that was exported whole has the volume's row, and takes its patient,
        split and origin alone; the row's name is then not the slice's.
        """
        row = self.row(found.name) or self.row(found.name.split("#")[0])
        if row is None:
            return found, None
        origin = found.origin
        if row.run is not None:
            trained_on = self.about.generators.get(row.run, ())
            origin = Synthetic(row.run, row.seed, row.conditions, trained_on)
        found = replace(found, split=found.split or row.split, origin=origin)
        if row.name != found.name:
            return found, row
        affine = None if row.affine is None else np.array(row.affine, np.float64)
        image = Image(found.image.values, row.spacing_mm, affine, row.unit)
        label, traits = found.label or row.label, row.traits
        return replace(found, label=label, traits=traits, image=image), row


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an export, None where there is none.

    Raises:
        DataError: It is damaged.
    """
    if not (folder / MANIFEST).is_file() or not (folder / MANIFEST_ROWS).is_file():
        return None
    about = _parse(About, read_json_within(folder / MANIFEST, TABLE_BYTES), folder / MANIFEST)
    starts, position = {}, 0
    path = folder / MANIFEST_ROWS
    with path.open("rb") as file:
        while line := file.readline(NOTE_BYTES):
            starts[_parse(Row, line, path).name] = position
            position += len(line)
    return Manifest(folder, about, starts)


def _parse(model: type[Model], content: Any, path: Path) -> Model:
    try:
        if isinstance(content, bytes):
            return model.model_validate_json(content)
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}") from None


@contextmanager
def writing_manifest(out: Path, dataset: Dataset, format: str) -> Iterator["ManifestWriter"]:
    """Write an export's manifest while its files are written."""
    with (out / MANIFEST_ROWS).open("w", encoding="utf-8") as file:
        writer = ManifestWriter(file)
        yield writer
    n = writer.n_synthetic
    write_json(
        out / MANIFEST,
        {
            "synthoma": __version__,
            "format": format,
            "synthetic": "no" if n == 0 else "yes" if n == writer.n_cases else "some",
            "n_cases": writer.n_cases,
            "n_synthetic": n,
            "patients_from": dataset.about["patients_from"],
            "value_range": dataset.about["value_range"],
            "generators": dataset.generators_saw,
        },
    )


class ManifestWriter:
    """Writes synthoma.jsonl row by row."""

    def __init__(self, file: Any) -> None:
        self.file, self.n_cases, self.n_synthetic = file, 0, 0

    def add(self, name: str, case: Case, split: str) -> None:
        """Add the row of a written file."""
        image, origin = case.image, case.origin
        row = Row(
            name=name,
            case_id=case.case_id,
            patient_id=case.patient_id,
            split=split,
            label=case.label,
            traits=dict(case.traits),
            spacing_mm=image.spacing_mm,
            affine=None if image.affine is None else image.affine.tolist(),
            unit=image.unit,
        )
        content = row.model_dump(mode="json", exclude_defaults=True)
        if isinstance(origin, Synthetic):
            content |= {"synthetic": "yes", "run": origin.run, "seed": origin.seed}
            content["conditions"] = dict(origin.conditions)
            self.n_synthetic += 1
        self.file.write(json.dumps(content, ensure_ascii=False) + "\n")
        self.n_cases += 1
