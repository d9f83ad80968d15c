"""The pixels of a DICOM file as values of its modality.

    Header -> stored values (y, x) -> values (y, x), HU in CT; or colours (3, y, x)

Plain grey pixels are taken from the file as they lie there; all else (compressed, colour,
big-endian, packed bits) is decoded in another process (`dicom_decode.py`).

Values are those behind the modality LUT, in no display window. MONOCHROME1 is inverted within its
stored bits, so that more is brighter. Where PixelPaddingValue stands a voxel becomes -1024 in CT,
else 0 (or the least of the others, if that is below): nothing is there. It is compared by its bits:
many files state it unsigned and mean it signed.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import pydicom
from jaxtyping import Bool, Shaped
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from synthoma.errors import DataError
from synthoma.formats.dicom_decode import decoded
from synthoma.formats.dicom_header import Header, open_file

AIR_HU = -1024
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")


def read_frames(header: Header) -> Iterator[tuple[Shaped[np.ndarray, "c y x"], int]]:
    """The frames of a file: values, and how many of them are padding.

    Values are uint8, uint16, int16 or float32, one channel, or three of uint8; int16 HU in CT.

    Raises:
        DataError: The file is truncated or damaged, cannot be decoded, or its values do not fit.
    """
    n, path, n_frames = 0, header.path, header.n_frames
    if header.samples == 3 and header.bits_allocated != 8:
        raise DataError(f"{path}: colours of {header.bits_allocated} bits; allowed: 8")
    if header.is_plain:
        frames = plain_frames(header)
    else:
        frames = decoded(path, transfer_syntax=header.transfer_syntax, n_frames=n_frames)
    for n, frame in enumerate(frames, 1):
        if n > n_frames:
            raise DataError(f"{path}: more frames than the {n_frames} it declares")
        if frame.shape[:2] != (header.rows, header.columns):
            raise DataError(
                f"{path}: decodes to {frame.shape} pixels, declared are "
                f"({header.rows}, {header.columns})"
            )
        if frame.ndim == 3 or header.photometric == "PALETTE COLOR":
            yield colours(header, frame), 0
        else:
            values, n_padded = scaled(header, frame)
            yield values[None], n_padded
    if n < n_frames:
        raise DataError(f"{path}: truncated, {n} of {n_frames} frames are there")


def plain_frames(header: Header) -> Iterator[Shaped[np.ndarray, "y x"]]:
    """Stored values as they lie in the file, in little endian."""
    kind = np.dtype(f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    n_bytes = header.rows * header.columns * kind.itemsize
    above = header.bits_allocated - 1 - header.high_bit
    unused = header.bits_allocated - header.bits_stored
    with open_file(header.path) as file:
        file.seek(header.start)
        for k in range(header.n_frames):
            content = file.read(n_bytes)
            if len(content) < n_bytes:
                raise DataError(
                    f"{header.path}: truncated, frame {k + 1} of {header.n_frames} has "
                    f"{len(content)} of {n_bytes} bytes"
                )
            frame = np.frombuffer(content, kind).reshape(header.rows, header.columns)
            # Old files keep overlays in the bits that are not used.
            yield (frame << above) >> unused if unused else frame


def scaled(
    header: Header, stored: Shaped[np.ndarray, "y x"]
) -> tuple[Shaped[np.ndarray, "y x"], int]:
    """Stored values as values of the modality, and how many of them are padding.

    Raises:
        DataError: They do not fit.
    """
    padded = find_padding(header, stored)
    if header.photometric == "MONOCHROME1":
        low, high = stored_limits(header)
        if stored.dtype.kind == "f" or stored.min() < low or stored.max() > high:
            raise DataError(f"{header.path}: MONOCHROME1 with values outside of its bits")
        stored = (low + high - stored.astype(np.int64)).astype(stored.dtype)
    values = through_table(header, stored) if header.has_table else rescaled(header, stored)
    n_padded = int(padded.sum())
    rest = values[~padded] if n_padded else values
    if header.is_hu and rest.size and not -(2**15) <= rest.min() <= rest.max() < 2**15:
        raise DataError(f"{header.path}: {rest.min()} to {rest.max()} HU; allowed: 16 bits")
    if n_padded:
        nothing = min(0, rest.min()) if rest.size else 0
        wide = values if values.dtype.kind == "f" else values.astype(np.int64)
        values = np.where(padded, AIR_HU if header.is_hu else nothing, wide)
    return exact(header, values), n_padded


def rescaled(header: Header, stored: Shaped[np.ndarray, "y x"]) -> Shaped[np.ndarray, "y x"]:
    """Values by slope and intercept: whole numbers where these are whole, and in CT."""
    slope, intercept = header.rescale or (1.0, 0.0)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    if slope.is_integer() and intercept.is_integer() and stored.dtype.kind != "f":
        wide = np.int64 if stored.dtype.itemsize > 2 or abs(slope) > 2**14 else np.int32
        return stored.astype(wide) * int(slope) + int(intercept)
    values = stored * np.float64(slope) + np.float64(intercept)
    return np.rint(values) if header.is_hu else values  # noise of a CT is ten HU and more


def find_padding(header: Header, stored: np.ndarray) -> Bool[np.ndarray, "y x"]:
    """Where PixelPaddingValue stands."""
    if header.padding is None or stored.dtype.kind == "f":
        return np.zeros(stored.shape, bool)
    mask, half = (1 << header.bits_stored) - 1, 1 << (header.bits_stored - 1)
    ends = [bits & mask for bits in header.padding]
    if header.signed:
        ends = [bits - (mask + 1) if bits >= half else bits for bits in ends]
    low, high = min(ends), max(ends)
    kind = np.iinfo(stored.dtype)
    if high < kind.min or low > kind.max:
        return np.zeros(stored.shape, bool)
    return (stored >= max(low, kind.min)) & (stored <= min(high, kind.max))


def stored_limits(header: Header) -> tuple[int, int]:
    """The least and the greatest value that the stored bits can say."""
    n = 1 << header.bits_stored
    return (-n // 2, n // 2 - 1) if header.signed else (0, n - 1)


def through_table(header: Header, stored: np.ndarray) -> np.ndarray:
    """Values through the modality LUT, where a table stands in place of slope and intercept."""
    with open_file(header.path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(
            file, stop_before_pixels=True, force=True, specific_tags=["ModalityLUTSequence"]
        )
        try:
            return np.asarray(apply_modality_lut(stored, dataset))
        except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
            raise DataError(f"{header.path}: damaged modality LUT ({error})") from None


def colours(header: Header, frame: np.ndarray) -> Shaped[np.ndarray, "3 y x"]:
    """Red, green and blue of 8 bits."""
    path = header.path
    if header.photometric == "PALETTE COLOR" and frame.ndim == 2:
        with open_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            try:
                frame = apply_color_lut(frame, dataset)[..., :3]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: damaged palette ({error})") from None
        if frame.dtype == np.uint16:  # entries of 16 bits for 8 bits a colour, as the standard has
            frame = (frame >> 8).astype(np.uint8)
    if frame.dtype != np.uint8 or frame.shape[2:] != (3,):
        raise DataError(
            f"{path}: {header.photometric} of {frame.dtype.name}; allowed in colour: 8 bits"
        )
    return np.ascontiguousarray(frame.transpose(2, 0, 1))


def exact(header: Header, values: np.ndarray) -> np.ndarray:
    """The same values in a type that a dataset folder stores: 8 or 16 bits, else float32."""
    if values.dtype.kind == "f":
        if not (np.abs(values) <= np.finfo(np.float32).max).all():
            raise DataError(f"{header.path}: values that are not finite 32-bit numbers")
        return values.astype(np.int16 if header.is_hu else np.float32)
    kinds = ("int16",) if header.is_hu else ("uint8", "uint16", "int16")
    same = values.dtype.newbyteorder("=")
    if same.name in kinds:
        return np.ascontiguousarray(values, same)
    for kind in kinds[-2:]:
        limits = np.iinfo(kind)
        if values.min() >= limits.min and values.max() <= limits.max:
            return values.astype(kind)
    return values.astype(np.float32)
