"""Small DICOM files for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from synthoma.formats.series import Series, find_series, read_series
from synthoma.formats.source import Tally

CT = "1.2.840.10008.5.1.4.1.1.2"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
#: A chest of 6 x 5 x 4 voxels (z, y, x), all different.
BODY = np.arange(120, dtype=np.int16).reshape(6, 5, 4)


def elements(values: np.ndarray, uid: str = "1.2.3.4", **own: Any) -> Dataset:
    """A CT slice of -1024 and more HU, or whatever `own` says."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = CT, uid, "CT"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.PatientID = "1.2.3", "1.2.3.1", "anna"
    made.RescaleSlope, made.RescaleIntercept, made.RescaleType = 1, -1024, "HU"
    made.PixelSpacing, made.ImageOrientationPatient = [0.7, 0.5], list(AXIAL)
    made.ImagePositionPatient, made.SliceThickness = [-10, -20, 0], 3
    bits = values.dtype.itemsize * 8
    made.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.Rows, made.Columns = values.shape[:2]
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    content = values.tobytes()
    made.PixelData = content + b"\0" * (len(content) % 2)
    made["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in own.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def save(path: Path, made: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)
    return path


def save_series(
    folder: Path,
    *,
    orientation: tuple[float, ...] = AXIAL,
    places_mm: tuple[float, ...] = (0, 2.5, 5, 7.5, 10, 12.5),
    values: np.ndarray = BODY,
    **own: Any,
) -> list[Path]:
    """Slices along the normal, under file names in another order."""
    axes = np.array(orientation).reshape(2, 3)
    normal = np.cross(*axes)
    names = np.random.default_rng(7).permutation(len(places_mm))
    paths = []
    for k, (place_mm, name) in enumerate(zip(places_mm, names, strict=True)):
        position = np.array([-10, -20, 30]) + place_mm * normal
        made = elements(
            values[k],
            uid=f"1.2.3.4.{k}",
            ImageOrientationPatient=[float(np.round(v, 12)) for v in orientation],
            ImagePositionPatient=[f"{v:.10g}" for v in position],
            **own,
        )
        paths.append(save(folder / f"{name}.dcm", made))
    return paths


def only_series(folder: Path) -> Series:
    """The volume of the one series in a folder."""
    (files,) = find_series(folder, Tally())
    return read_series(files)


def rotation(degrees: float) -> tuple[float, ...]:
    """An axial plane turned about all three axes."""
    a, b, c = np.radians([degrees, degrees / 2, degrees / 3])
    turn = (
        np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    )
    return (*turn[:, 0], *turn[:, 1])
