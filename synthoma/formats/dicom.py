"""dicom: series as slices or whole volumes, single images as they are; synthetic ones written.

    study/000001.dcm ... -> cases study/000001.dcm#axial-000, ...
    xray.dcm -> case xray.dcm            cine.dcm -> cases cine.dcm#000, ...

A series of slices that have a place is a volume (`series.py`), cut upright as NIfTI's are
(`slices.py`) or kept whole. Every other file (an X-ray, a photograph, several frames, a single
slice) gives its frames as they are stored. Which series a file is of, and which patient, its header
says, not its name or folder. DICOM has no boxes and no labels: they are None.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from synthoma.data.case import Image
from synthoma.errors import DataError
from synthoma.formats.dicom_header import Header
from synthoma.formats.dicom_pixels import read_frames
from synthoma.formats.dicom_write import write as write  # noqa: PLC0414  a format's module has it
from synthoma.formats.pairs import sequence_of
from synthoma.formats.series import group_headers, place, read_headers, read_stack
from synthoma.formats.sidecar import Sidecar, read_sidecar
from synthoma.formats.slices import cut, len_along
from synthoma.formats.source import Entry, Found, Reading, Tally, walk
from synthoma.formats.volumes import percentiles

PERCENTILES = (1.0, 99.0)


class DicomSettings(BaseModel):
    """How DICOM files become cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: Literal["axial", "coronal", "sagittal", "volume", "stored"] = Field(
        "axial",
        description="Slices of a series across this axis, or whole volumes; stored: every image "
        "as it is stored, no volume made, which also reads what is no regular stack.",
    )
    modalities: tuple[str, ...] = Field(
        (), description="Modalities that are read, such as [CT]; none given: all."
    )
    extent: tuple[float, float] = Field(
        (0.0, 1.0), description="Which slices of a volume: from and to, as fractions of the axis."
    )
    every: int = Field(1, ge=1, description="Every n-th slice of a volume.")

    @model_validator(mode="after")
    def _check(self) -> "DicomSettings":
        first, last = self.extent
        if not 0 <= first < last <= 1:
            raise ValueError(f"extent {self.extent}; allowed: 0 <= from < to <= 1")
        return self


Settings = DicomSettings


def read(
    source: Path, settings: DicomSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the series and images of a folder, or one file. All headers are read, no pixels.

    Raises:
        DataError: `source` is neither a file nor a folder.
    """
    root = source.parent if source.is_file() else source
    names = [source.name] if source.is_file() else walk(root)
    known = set(names)
    names = [name for name in names if name.removesuffix(".json") not in known - {name}]
    headers, problems = read_headers(root, names, tally)
    reader = DicomReader(root, settings, tally)
    entries = [Entry(name, partial(refuse, error)) for name, error in problems.items()]
    for group in group_headers(headers):
        entries += reader.entries(group)
    return Reading(
        root,
        sorted(entries, key=lambda entry: entry.name),
        patients_from="PatientID, or the study where it is missing",
        patients_guessed=True,  # many sets have one "anonymous" for all
    )


def refuse(error: DataError) -> list[Found]:
    """A file whose header could not be read."""
    raise error


class DicomReader:
    """Reads series and single images into cases."""

    def __init__(self, root: Path, settings: DicomSettings, tally: Tally) -> None:
        self.root, self.settings, self.tally = root, settings, tally

    def entries(self, group: list[Header]) -> list[Entry]:
        """What is to be read of one series: itself as a volume, or each of its files."""
        axis, modalities = self.settings.axis, self.settings.modalities
        wanted = []
        for header in group:
            if modalities and header.modality not in modalities:
                self.tally.drop(f"modality {header.modality}", self._name(header))
            elif header.is_localiser and axis != "stored":
                self.tally.drop("localiser", self._name(header))
            else:
                wanted.append(header)
        placed = any(h.position_mm and h.orientation and h.n_frames == 1 for h in wanted)
        if len(wanted) > 1 and placed and axis != "stored":
            return [Entry(self._name(wanted[0]), partial(self.read_volume, wanted))]
        if axis == "volume":
            for header in wanted:
                self.tally.drop("single image, no volume", self._name(header))
            return []
        return [Entry(self._name(header), partial(self.read_image, header)) for header in wanted]

    def read_volume(self, headers: list[Header]) -> list[Found]:
        """The cases of a series."""
        name, axis = self._name(headers[0]), self.settings.axis
        assert axis != "stored"
        series = read_stack(headers)
        if series.padded:
            self.tally.note("voxels of padding set to nothing", series.padded)
        volume, traits = series.volume, {**self._traits(headers[0]), "volume": name}
        if series.unit != "hu" and (spread := percentiles(volume.values, PERCENTILES)):
            traits["percentiles"] = {"1": spread[0], "99": spread[1]}
        sidecar = read_sidecar(headers[0].path)
        found = []
        for k, cut_out, _ in cut(volume, None, axis):
            image = Image(cut_out.values, cut_out.spacing_mm, cut_out.affine, series.unit)
            title = name if axis == "volume" else f"{name}#{axis}-{k:03}"
            if axis != "volume" and not self._wanted(k, len_along(volume.values, axis)):
                continue
            where = {} if axis == "volume" else {"axis": axis, "slice": k}
            found += self._found(headers[0], title, image, {**traits, **where}, sidecar)
        return found

    def read_image(self, header: Header) -> list[Found]:
        """The cases of one file, a case a frame."""
        name, found = self._name(header), []
        unit: Literal["hu", "arbitrary"] = "hu" if header.is_hu else "arbitrary"
        placed = header.position_mm and header.orientation and header.spacing_mm
        sidecar = read_sidecar(header.path)
        for k, (values, n_padded) in enumerate(read_frames(header)):
            if n_padded:
                self.tally.note("voxels of padding set to nothing", n_padded)
            one = header.n_frames == 1
            affine = place([header]) if placed and one else None
            image = Image(values, header.spacing_mm, affine, unit)
            title = name if one else f"{name}#{k:03}"
            found += self._found(header, title, image, self._traits(header), sidecar)
        return found

    def _found(
        self,
        header: Header,
        title: str,
        image: Image,
        traits: dict[str, Any],
        sidecar: Sidecar | None,
    ) -> list[Found]:
        if image.values.min() == image.values.max():
            self.tally.drop("blank image", title)
            return []
        origin, boxes = header.origin, None
        box_labels: tuple[str, ...] = ()
        if sidecar is not None:  # a file of ours
            origin = sidecar.origin
            image = sidecar.own(image)
            if (sidecar.axis == "volume") == (len(image.space) == 3):
                boxes, box_labels = sidecar.boxes_in(len(image.space)), sidecar.box_labels
        return [
            Found(
                title,
                image,
                boxes=boxes,
                box_labels=box_labels,
                patient=patient_of(header, self._name(header)),
                traits=traits,
                origin=origin,
            )
        ]

    def _name(self, header: Header) -> str:
        return header.path.relative_to(self.root).as_posix()

    def _traits(self, header: Header) -> dict[str, Any]:
        traits: dict[str, Any] = {"modality": header.modality} if header.modality else {}
        if header.manufacturer:
            traits["scanner"] = header.manufacturer
        if header.modality == "MR" and (sequence := sequence_of(header.description)):
            traits["sequence"] = sequence
        if header.photometric == "MONOCHROME1":
            self.tally.note("MONOCHROME1 inverted")
        return traits

    def _wanted(self, k: int, n: int) -> bool:
        first, last = self.settings.extent
        return first <= k / n < last and (k - int(np.ceil(first * n))) % self.settings.every == 0


def patient_of(header: Header, name: str) -> str:
    """Whose image it is: PatientID, else the study, the series or the file."""
    return header.patient or header.study_uid or header.series_uid or name
