"""Synthetic images as DICOM files: what they are, and that they are synthetic.

    volume (z, y, x) -> synthetic-00001/0001.dcm, ...        slice (y, x) -> synthetic-00001.dcm

CT Image Storage where values are Hounsfield units; MR Image Storage for other grey images that have
a place in a scanner (its ScanningSequence is RM, "research mode", as none was run); Secondary
Capture for all else. Every file says SyntheticData (0008,001C) YES, ImageType DERIVED\\SECONDARY,
and who made it.

Nothing of a patient is written: only synthetic cases are, under numbers, with identifiers made
from their run, seed and number. A real case is refused: its own DICOM files have what a copy would
lack, and a copy could be taken for them. What DICOM has no place for (boxes, the type of the
values) is in the JSON beside a file.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from nibabel.orientations import io_orientation
from pydicom.dataset import Dataset as Elements
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from synthoma import __version__
from synthoma.data.case import Case, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.dicom_header import DERIVATION
from synthoma.formats.source import Tally
from synthoma.formats.volumes import LPS

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: Where UIDs come from: UUIDs of names, written under the root 2.25 that belongs to nobody.
NAMES = uuid.UUID("6f6d1c0e-52a5-4a4f-9a57-3b1c5d0f8e21")
#: What must be there and may be empty.
EMPTY = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientBirthDate", "PatientSex", "Laterality"),
)
#: How far from square an affine may be.
SQUARE = 1e-4


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `synthetic-N.dcm` for each slice, `synthetic-N/0001.dcm` and on for each volume.

    Raises:
        DataError: A case is real, or DICOM cannot hold its values.
    """
    for number, case in enumerate(dataset, 1):
        origin = case.origin
        if not isinstance(origin, Synthetic):
            raise DataError(
                f"case {case.case_id!r} is real; as DICOM only synthetic cases are written. "
                "Allowed: a synthetic dataset, or another format (nifti keeps the geometry)"
            )
        stem = f"synthetic-{number:05}"
        names = [f"{stem}.dcm"]
        if len(case.image.space) == 3:
            (out / stem).mkdir()
            names = [f"{stem}/{k + 1:04}.dcm" for k in range(case.image.space[0])]
        files = slices_of(case, origin, number, tally)
        for name, elements in zip(names, files, strict=True):
            elements.save_as(out / name, enforce_file_format=True)
        (out / f"{names[0]}.json").write_text(json.dumps(beside(case, origin), indent=1) + "\n")
        yield names[0], case


def beside(case: Case, origin: Synthetic) -> dict[str, Any]:
    """What the JSON beside the first file says (`sidecar.py`)."""
    return {
        "synthoma": __version__,
        "synthetic": "yes",
        "run": origin.run,
        "seed": origin.seed,
        "axis": "volume" if len(case.image.space) == 3 else "axial",
        "dtype": case.image.values.dtype.name,
        "boxes": None if case.boxes is None else case.boxes.tolist(),
        "box_labels": list(case.box_labels),
    }


def slices_of(case: Case, origin: Synthetic, number: int, tally: Tally) -> Iterator[Elements]:
    """The files of one case."""
    image = case.image
    values = storable(case, tally)
    placed = image.affine is not None or len(image.space) == 3
    kind = CT if image.unit == "hu" else MR if placed and len(values) == 1 else SECONDARY_CAPTURE
    identity = f"{origin.run}/{origin.seed}/{number}"
    planes = values[:, None] if len(image.space) == 2 else values
    affine = None if kind == SECONDARY_CAPTURE else affine_of(case)
    for k in range(planes.shape[1]):
        elements = common(origin, identity, kind)
        elements.SOPInstanceUID = uid(f"{identity}/image/{k}")
        elements.InstanceNumber = k + 1
        if kind == CT:
            add_ct(elements)
        elif kind == MR:
            add_mr(elements)
        else:
            elements.ConversionType = "SYN"
            elements.PatientOrientation = None
            elements.BurnedInAnnotation = "NO"
            if image.spacing_mm:
                elements.PixelSpacing = decimals(image.spacing_mm)
        if affine is not None:
            add_plane(elements, affine, k, f"{identity}/frame")
        add_pixels(elements, planes[:, k])
        elements.file_meta = FileMetaDataset()
        elements.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        elements.file_meta.MediaStorageSOPClassUID = elements.SOPClassUID
        elements.file_meta.MediaStorageSOPInstanceUID = elements.SOPInstanceUID
        yield elements


def storable(case: Case, tally: Tally) -> Shaped[np.ndarray, "c *space"]:
    """Values of 8 or 16 bits."""
    values, unit = case.image.values, case.image.unit
    if unit == "hu":
        whole = np.rint(values)
        if len(values) != 1 or whole.min() < -(2**15) or whole.max() >= 2**15:
            raise DataError(
                f"case {case.case_id!r}: {len(values)} channels, {values.min()} to {values.max()} "
                "HU; as CT: one, 16 bits"
            )
        if values.dtype.kind == "f":
            tally.note("rounded to whole HU")
        return whole.astype(np.int16)
    in_colour = len(values) == 3 and values.dtype == np.uint8 and len(case.image.space) == 2
    if values.dtype.kind == "f" or (len(values) != 1 and not in_colour):
        raise DataError(
            f"case {case.case_id!r}: {len(values)} channels of {values.dtype.name}; as DICOM: "
            "one of 8 or 16 bits, or colours of 8 bits (2D). Prepare the dataset first (data "
            "prepare), or export it as nifti"
        )
    return values


def affine_of(case: Case) -> Float[np.ndarray, "4 4"]:
    """Takes (x, y, z, 1) to mm in LPS; without an affine, upright at the case's spacing or 1 mm."""
    image = case.image
    if image.affine is None:
        z, y, x = (1.0, 1.0, 1.0, *(image.spacing_mm or (1.0,) * len(image.space)))[-3:]
        return np.diag([x, y, z, 1.0])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if len(image.space) == 2 and not lengths[2]:
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1]) / lengths[0]
        lengths[2] = lengths[1]
    axes = affine[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > SQUARE:
        raise DataError(
            f"case {case.case_id!r}: its axes are not at right angles ({axes.tolist()}); allowed "
            "as DICOM: slices that lie square to their stack"
        )
    if len(image.space) == 3 and (io_orientation(image.affine) != LPS).any():
        raise DataError(
            f"case {case.case_id!r}: its voxels are not in LPS+ order, in which volumes are read: "
            "they would come back flipped, and their boxes would not"
        )
    return affine


def common(origin: Synthetic, identity: str, kind: str) -> Elements:
    """What every file says, of a patient who is none."""
    elements = Elements()
    elements.SpecificCharacterSet = "ISO_IR 192"
    elements.SOPClassUID = kind
    elements.SyntheticData = "YES"
    elements.ImageType = ["DERIVED", "SECONDARY"]
    elements.Modality = {CT: "CT", MR: "MR"}.get(kind, "OT")
    elements.Manufacturer = elements.ManufacturerModelName = "synthoma"
    elements.SoftwareVersions = __version__
    elements.SeriesDescription = "Synthetic"
    elements.DerivationDescription = DERIVATION.format(run=origin.run, seed=origin.seed)
    elements.PatientName = "SYNTHETIC^IMAGE"
    elements.PatientID = f"SYNTHETIC-{uuid.uuid5(NAMES, identity).hex[:16].upper()}"
    elements.PatientIdentityRemoved = "YES"
    elements.DeidentificationMethod = "Synthetic image: no element is of a patient"
    elements.StudyInstanceUID = uid(f"{identity}/study")
    elements.SeriesInstanceUID = uid(f"{identity}/series")
    elements.StudyID, elements.SeriesNumber = "1", 1
    for keyword in EMPTY:
        setattr(elements, keyword, "")
    return elements


def add_ct(elements: Elements) -> None:
    """What a CT image must say besides."""
    elements.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    elements.RescaleIntercept, elements.RescaleSlope, elements.RescaleType = "0", "1", "HU"
    elements.KVP = elements.AcquisitionNumber = None


def add_mr(elements: Elements) -> None:
    """What an MR image must say besides; no sequence was run."""
    elements.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    elements.ScanningSequence, elements.SequenceVariant = "RM", "NONE"
    elements.ScanOptions = elements.MRAcquisitionType = ""
    elements.EchoTime = elements.EchoTrainLength = elements.RepetitionTime = None


def add_plane(elements: Elements, affine: Float[np.ndarray, "4 4"], k: int, frame: str) -> None:
    """Where slice k lies."""
    dx, dy, dz = np.linalg.norm(affine[:3, :3], axis=0)
    elements.FrameOfReferenceUID = uid(frame)
    elements.PositionReferenceIndicator = elements.PatientPosition = ""
    elements.PixelSpacing = decimals((dy, dx))
    elements.SliceThickness = decimals((dz,))[0]
    elements.ImageOrientationPatient = decimals([*affine[:3, 0] / dx, *affine[:3, 1] / dy])
    elements.ImagePositionPatient = decimals(affine[:3, 3] + k * affine[:3, 2])


def add_pixels(elements: Elements, values: Shaped[np.ndarray, "c y x"]) -> None:
    """The pixels themselves."""
    if elements.SOPClassUID == MR:  # which has 16 bits
        values = values.astype(np.int16 if values.dtype == np.int16 else np.uint16)
    elements.SamplesPerPixel, elements.Rows, elements.Columns = values.shape
    elements.PhotometricInterpretation = "MONOCHROME2" if len(values) == 1 else "RGB"
    if len(values) == 3:
        elements.PlanarConfiguration = 0
    bits = values.dtype.itemsize * 8
    elements.BitsAllocated = elements.BitsStored = bits
    elements.HighBit = bits - 1
    elements.PixelRepresentation = int(values.dtype.kind == "i")
    pixels = np.ascontiguousarray(values.transpose(1, 2, 0), values.dtype.newbyteorder("<"))
    content = pixels.tobytes()
    elements.PixelData = content + b"\0" * (len(content) % 2)
    elements["PixelData"].VR = "OB" if bits == 8 else "OW"


def decimals(numbers: Any) -> list[str]:
    """Numbers in DICOM's 16 characters."""
    return [format_number_as_ds(float(number) + 0.0) for number in numbers]


def uid(name: str) -> str:
    """The same for the same name, and of nobody else's."""
    return f"2.25.{uuid.uuid5(NAMES, name).int}"
