"""What a DICOM file says of its image, read with distrust.

Only the elements that are wanted are kept, from at most `LIMIT_READS` reads and `LIMIT_HEADER`
bytes; a deflated file is inflated to `LIMIT_DECODED` at most; the size that a header declares is
checked before anybody reads a pixel (`dicom_pixels.py`).
"""

import io
import logging
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from synthoma.data.case import Synthetic
from synthoma.errors import DataError

#: What a header may cost: reads, bytes in all, bytes of one element.
LIMIT_READS, LIMIT_HEADER, LIMIT_ELEMENT = 300_000, 1 << 25, 1 << 18
#: Bytes of one text or list of numbers.
LIMIT_TEXT = 4096
#: All frames of a file, decoded, and a deflated file, inflated, in bytes; one frame in numbers.
LIMIT_DECODED, LIMIT_FRAME = 1 << 28, 1 << 25
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
#: Where the file's magic ends, and how long the element is that says the length of group 2.
MAGIC, GROUP_LENGTH = 132, 12
#: Transfer syntaxes whose pixels lie in the file as they are.
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
#: Modalities whose pixels are no image of a patient.
NO_IMAGES = {"SEG", "RTDOSE"}
#: Enhanced objects say place, spacing and rescaling a frame, in sequences that are not read.
ENHANCED = "1.2.840.10008.5.1.4.1.1."
ENHANCED_KINDS = {"2.1": "CT", "4.1": "MR", "128.1": "PET", "2.2": "CT", "4.4": "MR"}
KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"),
    *("Modality", "SeriesDescription", "Manufacturer", "FrameOfReferenceUID", "ImageType"),
    *("SyntheticData", "DerivationDescription", "SliceThickness", "ImagePositionPatient"),
    *("ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
)
TAGS: list[Any] = [tag_for_keyword(keyword) for keyword in KEYWORDS]
PIXEL_DATA = {0x7FE00008, 0x7FE00009, 0x7FE00010}
#: What pydicom raises for a file that is damaged.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError,
           RuntimeError, MemoryError, struct.error, zlib.error,
           pydicom.errors.InvalidDicomError)  # fmt: skip
#: How a synthetic file says whose it is, in DerivationDescription.
DERIVATION = "Synthetic image, made by synthoma; run {run}; seed {seed}"
logging.getLogger("pydicom").addHandler(logging.NullHandler())  # what it warns of is our error


class NotDicom(DataError):
    """Not a DICOM file."""


class NoImage(DataError):
    """A DICOM file without an image of a patient: a report, a plan, outlines, a directory."""


@dataclass(frozen=True, eq=False)
class Header:
    """What a file with an image says of it."""

    path: Path
    sop_uid: str
    series_uid: str
    study_uid: str
    patient: str
    modality: str
    description: str
    """SeriesDescription."""
    manufacturer: str
    frame_of_reference: str
    is_localiser: bool
    """A CT or MR scout, as ImageType says."""
    origin: Synthetic | None
    """Whose it is, where it says that it is synthetic."""
    transfer_syntax: str
    n_frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    padding: tuple[int, int] | None
    """Stored values that mean "nothing here", bit patterns: from and to, both included."""
    rescale: tuple[float, float] | None
    """Slope and intercept, where they are given."""
    has_table: bool
    """Whether a modality LUT stands in their place."""
    spacing_mm: tuple[float, float] | None
    """Between rows (y) and between columns (x)."""
    position_mm: tuple[float, ...] | None
    """(x, y, z) of the first pixel's centre, LPS."""
    orientation: tuple[float, ...] | None
    """The directions along a row and along a column, two unit vectors, LPS."""
    slice_thickness_mm: float | None
    start: int
    """Where the pixels start in the (inflated) file."""

    @property
    def is_hu(self) -> bool:
        """Whether values are Hounsfield units."""
        return self.modality == "CT" and self.rescale is not None

    @property
    def is_plain(self) -> bool:
        """Whether the pixels can be taken from the file as they are."""
        grey = self.photometric in ("MONOCHROME1", "MONOCHROME2") and self.samples == 1
        return grey and self.transfer_syntax in PLAIN and self.bits_allocated in (8, 16)


class Bounded:
    """A file of which only so much may be read, in so many pieces."""

    name = None

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.n_reads, self.n_bytes = path, file, 0, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, n: int = -1) -> bytes:
        """As a file's."""
        content = self.file.read(min(n, LIMIT_ELEMENT + 1) if n >= 0 else LIMIT_ELEMENT + 1)
        self.n_reads += 1
        self.n_bytes += len(content)
        if (
            len(content) > LIMIT_ELEMENT
            or self.n_reads > LIMIT_READS
            or self.n_bytes > LIMIT_HEADER
        ):
            raise DataError(
                f"{self.path}: a header beyond the limit of {LIMIT_HEADER >> 20} MiB, "
                f"{LIMIT_ELEMENT >> 10} KiB an element and {LIMIT_READS} reads"
            )
        return content


def open_file(path: Path) -> BinaryIO:
    """A file as it is, or inflated in memory.

    Raises:
        DataError: It cannot be read, or inflates beyond `LIMIT_DECODED`.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            start = file.read(2048)
            if start[MAGIC - 4 : MAGIC] == b"DICM" and DEFLATED in start:
                return io.BytesIO(inflate(path, file, start))
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def inflate(path: Path, file: BinaryIO, start: bytes) -> bytes:
    """A deflated file as the same file not deflated."""
    if start[MAGIC : MAGIC + 4] != b"\2\0\0\0":
        raise DataError(f"{path}: deflated, but does not say where its first group ends")
    end = MAGIC + GROUP_LENGTH + int.from_bytes(start[MAGIC + 8 : MAGIC + 12], "little")
    file.seek(end)
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = machine.decompress(file.read(LIMIT_DECODED), LIMIT_DECODED)
    except zlib.error as error:
        raise DataError(f"{path}: damaged, cannot be inflated ({error})") from None
    if not machine.eof:
        beyond = f"inflates beyond the limit of {LIMIT_DECODED >> 20} MiB; refused"
        raise DataError(f"{path}: {beyond if len(content) == LIMIT_DECODED else 'truncated'}")
    return start[:end].replace(DEFLATED, EXPLICIT) + content


def read_header(path: Path) -> Header:
    """What a file says; its pixels are not read.

    Raises:
        NotDicom: It is no DICOM file.
        NoImage: It has no pixels, or they are no image of a patient.
        DataError: It is damaged, beyond a limit, or of a kind that is not read.
    """
    with open_file(path) as raw, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are not as the standard says
        named = raw.read(MAGIC)[MAGIC - 4 :] == b"DICM"
        if not named and path.suffix.lower() not in (".dcm", ".dicom", ".ima"):
            raise NotDicom(f"{path}: not DICOM")
        raw.seek(0)
        file: Any = Bounded(path, raw)
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=TAGS)
            fields = Fields(path, dataset)
            if not named and not fields.text("SOPClassUID"):
                raise NotDicom(f"{path}: not DICOM")
            return fields.header(raw)
        except DAMAGED as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{path}: damaged header ({reason[:200]})") from None


class Fields:
    """The elements of one file, each checked."""

    def __init__(self, path: Path, dataset: pydicom.FileDataset) -> None:
        self.path, self.dataset = path, dataset

    def get(self, keyword: str) -> Any:
        """A value as pydicom makes it; None where it is missing or empty."""
        tag: Any = tag_for_keyword(keyword)
        if tag not in self.dataset:
            return None
        length = getattr(self.dataset.get_item(tag), "length", 0)
        if length > LIMIT_TEXT and keyword != "ModalityLUTSequence":
            raise DataError(f"{self.path}: {keyword} of {length} bytes; at most {LIMIT_TEXT}")
        value = self.dataset[tag].value
        return None if value is None or value == "" else value

    def text(self, keyword: str) -> str:
        """A text; "" where it is missing."""
        value = self.get(keyword)
        return "" if value is None else str(value).strip().strip("\0")

    def whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.get(keyword)
        if value is None and default is not None:
            return default
        if value is None:
            raise DataError(f"{self.path}: no {keyword}")
        try:
            return int(value)
        except (TypeError, ValueError):
            raise DataError(f"{self.path}: {keyword} {value!r}; allowed: a whole number") from None

    def floats(self, keyword: str, n: int) -> tuple[float, ...] | None:
        """So many finite numbers, or None where the element is missing."""
        value = self.get(keyword)
        if value is None:
            return None
        try:
            numbers = tuple(float(v) for v in (value if n > 1 else [value]))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != n or not all(math.isfinite(v) and abs(v) < 1e9 for v in numbers):
            raise DataError(f"{self.path}: {keyword} {value!r}; allowed: {n} numbers")
        return numbers

    def bits(self, keyword: str, default: int) -> int:
        """A stored value as its bits: files state it signed or unsigned as they like."""
        return self.whole(keyword, default) & 0xFFFFFFFF

    def header(self, raw: BinaryIO) -> Header:
        """All of it; `raw` stands where the pixels should start."""
        modality = self.text("Modality")
        kind = self.text("SOPClassUID").removeprefix(ENHANCED)
        if kind in ENHANCED_KINDS:
            raise DataError(
                f"{self.path}: Enhanced {ENHANCED_KINDS[kind]}, whose frames each have their place "
                "and scale; allowed: one image a file (convert it, e.g. with dcm4che's emf2sf)"
            )
        start = self._find_pixels(raw, modality)
        rescale, spacing = None, self.floats("PixelSpacing", 2)
        if (slope := self.floats("RescaleSlope", 1)) is not None:
            rescale = (slope[0], (self.floats("RescaleIntercept", 1) or (0.0,))[0])
            if not slope[0]:
                raise DataError(f"{self.path}: RescaleSlope 0")
        orientation = self.floats("ImageOrientationPatient", 6)
        if spacing is None:  # a projection's, at the detector
            spacing = self.floats("ImagerPixelSpacing", 2)
        if spacing is not None and min(spacing) <= 0:
            raise DataError(f"{self.path}: PixelSpacing {spacing}; allowed: above 0 mm")
        if orientation is not None:
            axes = np.array(orientation).reshape(2, 3)
            if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
                raise DataError(
                    f"{self.path}: ImageOrientationPatient {orientation}; allowed: two unit "
                    "vectors at a right angle"
                )
        thickness = self.floats("SliceThickness", 1)
        padding = None
        if self.get("PixelPaddingValue") is not None:
            low = self.bits("PixelPaddingValue", 0)
            padding = (low, self.bits("PixelPaddingRangeLimit", low))
        allocated = self.whole("BitsAllocated")
        stored = self.whole("BitsStored", allocated)
        header = Header(
            path=self.path,
            sop_uid=self.text("SOPInstanceUID"),
            series_uid=self.text("SeriesInstanceUID"),
            study_uid=self.text("StudyInstanceUID"),
            patient=self.text("PatientID"),
            modality=modality,
            description=self.text("SeriesDescription"),
            manufacturer=self.text("Manufacturer"),
            frame_of_reference=self.text("FrameOfReferenceUID"),
            is_localiser="LOCALIZER" in self.text("ImageType").upper(),
            origin=origin_of(self.text("SyntheticData"), self.text("DerivationDescription")),
            transfer_syntax=str(self._transfer_syntax()),
            n_frames=self.whole("NumberOfFrames", 1) or 1,
            rows=self.whole("Rows"),
            columns=self.whole("Columns"),
            samples=self.whole("SamplesPerPixel", 1),
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=self.whole("HighBit", stored - 1),
            signed=self.whole("PixelRepresentation", 0) == 1,
            photometric=self.text("PhotometricInterpretation"),
            padding=padding,
            rescale=rescale,
            has_table=bool(self.get("ModalityLUTSequence")),
            spacing_mm=spacing,  # type: ignore[arg-type]
            position_mm=self.floats("ImagePositionPatient", 3),
            orientation=orientation,
            slice_thickness_mm=thickness[0] if thickness and thickness[0] > 0 else None,
            start=start,
        )
        check_declared(header)
        return header

    def _transfer_syntax(self) -> str:
        named = self.dataset.file_meta.get("TransferSyntaxUID")
        if named:
            return str(named)
        implicit, little = self.dataset.original_encoding
        if not little:
            return str(pydicom.uid.ExplicitVRBigEndian)
        return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)

    def _find_pixels(self, raw: BinaryIO, modality: str) -> int:
        """Where the pixels start."""
        implicit, little = self.dataset.original_encoding
        order = "<" if little else ">"
        head = raw.read(12)
        group, element = struct.unpack(f"{order}HH", head[:4]) if len(head) == 12 else (0, 0)
        if (group << 16 | element) not in PIXEL_DATA or modality in NO_IMAGES:
            kind = self.get("SOPClassUID") or self.dataset.file_meta.get("MediaStorageSOPClassUID")
            name = getattr(kind, "name", "") or modality or "of no kind"
            what = "no image of a patient" if modality in NO_IMAGES else "no pixels"
            raise NoImage(f"{self.path}: {what} ({name})")
        return raw.tell() - (4 if implicit else 0)


def check_declared(header: Header) -> None:
    """Refuse what no decoder should be asked for.

    Raises:
        DataError: Sizes or bits are absurd, too large, or of a kind that is not read.
    """
    path, bits = header.path, header.bits_allocated
    sides = (header.n_frames, header.rows, header.columns)
    if min(sides) < 1 or header.samples not in (1, 3):
        raise DataError(f"{path}: {sides} frames, rows, columns of {header.samples} samples")
    n_bytes = math.prod(sides) * header.samples * max(bits, 8) // 8
    if n_bytes > LIMIT_DECODED or header.rows * header.columns * header.samples > LIMIT_FRAME:
        raise DataError(
            f"{path}: declares {sides} frames, rows, columns, {n_bytes >> 20} MiB decoded; at most "
            f"{LIMIT_DECODED >> 20} MiB, and {LIMIT_FRAME >> 20} million numbers a frame"
        )
    highest = header.high_bit
    if bits not in (1, 8, 16, 32, 64) or not 1 <= header.bits_stored <= highest + 1 <= bits:
        raise DataError(
            f"{path}: {bits} bits allocated, {header.bits_stored} stored, the highest {highest}"
        )


def origin_of(synthetic_data: str, derivation: str) -> Synthetic | None:
    """Whose an image is that says it is synthetic.

    Example:
        >>> origin_of("YES", DERIVATION.format(run="mcgan-1", seed=7))
        Synthetic(run='mcgan-1', seed=7, conditions={}, trained_on=())
        >>> origin_of("", "")
    """
    if synthetic_data != "YES":
        return None
    said = re.search(r"; run (.*); seed (\d+)$", derivation)
    return Synthetic(said[1], int(said[2])) if said else Synthetic("unknown", 0)
