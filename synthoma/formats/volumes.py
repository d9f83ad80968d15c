"""One NIfTI file, read with distrust and turned to one orientation.

    file <-> values (z, y, x), affine

Voxels are ordered LPS+: x grows to the patient's left, y to the back, z to the head, so that
``values[k]`` is an axial slice as radiologists look at it (from below: anterior up, the patient's
left on the right). World coordinates stay NIfTI's own, millimetres in RAS+. Axes are flipped and
swapped, never resampled: an oblique volume keeps its oblique affine.

What the header declares is checked before data are read, and no more is inflated than it declares.
Header extensions are skipped. NIfTI-1 and NIfTI-2 in one file, ``.nii`` or ``.nii.gz``; not the
.hdr/.img pair, CIFTI, or values that are complex, colours or of more than 64 bits.
"""

import gzip
import logging
import math
import zlib
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Bool, Float, Shaped
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from synthoma.errors import DataError

SUFFIXES = (".nii", ".nii.gz")
#: What a volume may take in memory, and what a header may declare up to its end.
LIMIT_BYTES, LIMIT_DECLARED = 320 << 20, 1 << 30
#: Voxels that are converted at a time.
PIECE = 1 << 20
#: Types that are kept, by NumPy's code.
KEPT = {"u1": np.uint8, "i1": np.int16, "i2": np.int16, "u2": np.uint16}
#: Header extensions that are skipped.
LIMIT_EXTENSIONS = 1 << 24
#: Deflate cannot inflate by more than this.
MOST_INFLATION = 1032
CIFTI_INTENTS = range(3000, 3100)
#: What nibabel raises for a header that makes no sense.
DAMAGED = (nibabel.spatialimages.HeaderDataError, ArithmeticError, ValueError, LookupError,
           TypeError)  # fmt: skip
#: No voxel is this far away.
FARTHEST_MM = 1e6
QUIET = logging.Logger("nifti", logging.CRITICAL)
LPS = axcodes2ornt(("L", "P", "S"))


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in LPS+ voxel order."""

    values: Shaped[np.ndarray, "z y x"]
    affine: Float[np.ndarray, "4 4"]
    """Takes (x, y, z, 1) to mm in RAS+."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Along z, y, x."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


def read_volume(path: Path, *, volume_index: int | None = None) -> Volume:
    """The volume in a file, its values as `read_values` keeps them.

    Args:
        path: A .nii or .nii.gz file.
        volume_index: Which volume of several in a 4D file.

    Raises:
        DataError: It is no NIfTI file, damaged, too large, or of a kind that is not read.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            size = path.stat().st_size * (MOST_INFLATION if zipped else 1)
            file: BufferedIOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
            header = read_header(path, file)
            layout = find_layout(path, header, size, volume_index)
            data = read_values(path, file, header, layout)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    return orient(path, data, header)


def read_header(path: Path, file: BufferedIOBase) -> Any:
    """The header at the start of a file, nibabel's."""
    start = file.read(348)
    kind: Any = nibabel.Nifti1Header
    if start[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):  # 540
        start += file.read(540 - 348)
        kind = nibabel.Nifti2Header
    elif start[:4] not in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):  # 348
        raise DataError(f"{path}: not NIfTI; allowed: {', '.join(SUFFIXES)}")
    if len(start) < kind.sizeof_hdr:
        raise DataError(f"{path}: not NIfTI, {len(start)} bytes; a header has {kind.sizeof_hdr}")
    try:
        header = kind(start, check=False)
        if not header["magic"].item().startswith(b"n+"):
            raise DataError(f"{path}: not NIfTI in one file; allowed: {', '.join(SUFFIXES)}")
        header.check_fix(logger=QUIET, error_level=40)
        header.get_data_dtype()
        header.get_slope_inter()
        header.get_data_shape()
        header.get_data_offset()
        header.get_best_affine()
    except DAMAGED as error:
        raise DataError(f"{path}: damaged header ({error})") from None
    if int(header["intent_code"]) in CIFTI_INTENTS:
        raise DataError(f"{path}: not a volume but CIFTI; allowed: NIfTI volumes")
    return header


@dataclass(frozen=True)
class Layout:
    """Where in a file the numbers of a volume are."""

    space: tuple[int, int, int]
    dtype: np.dtype[Any]
    start: int
    """First byte."""

    @property
    def n_voxels(self) -> int:
        return math.prod(self.space)


def find_layout(path: Path, header: Any, size: int, volume_index: int | None) -> Layout:
    """Check what a header declares; `size` is the most bytes that the file can give."""
    shape = tuple(int(side) for side in header.get_data_shape())
    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(
            f"{path}: values of type {header.get_value_label('datatype')}; allowed: whole numbers "
            "and floats of up to 64 bits"
        )
    if len(shape) < 2 or min(shape) < 1:
        raise DataError(f"{path}: shape {shape}; allowed: (x, y, z), none empty")
    x, y, z = (*shape, 1)[:3]
    n_volumes = math.prod(shape[3:])
    index = 0 if volume_index is None else volume_index
    if n_volumes > 1 and volume_index is None:
        raise DataError(
            f"{path}: {n_volumes} volumes, shape {shape}; allowed: (x, y, z), or choose one with "
            f"volume_index=0 to {n_volumes - 1}"
        )
    if not 0 <= index < n_volumes:
        raise DataError(f"{path}: no volume {index}; there are {n_volumes}, counted from 0")
    offset = header.get_data_offset()
    if not header.sizeof_hdr <= offset <= LIMIT_EXTENSIONS:
        raise DataError(f"{path}: damaged header (data start at byte {offset})")
    start = offset + index * x * y * z * dtype.itemsize
    end = start + x * y * z * dtype.itemsize
    if end > LIMIT_DECLARED or x * y * z > LIMIT_BYTES:
        raise DataError(
            f"{path}: declares shape {shape} of {dtype.name}, {end / 2**20:.0f} MiB; at most "
            f"{LIMIT_DECLARED / 2**20:.0f} MiB and {LIMIT_BYTES / 2**20:.0f} million voxels"
        )
    if end > size:
        raise DataError(f"{path}: truncated, {end} bytes are declared and at most {size} are there")
    return Layout((x, y, z), dtype, start)


def read_values(
    path: Path, file: BufferedIOBase, header: Any, layout: Layout
) -> Shaped[np.ndarray, "i j k"]:
    """The values of a volume as the file orders them.

    8 and 16 bits stay as they are (signed bytes become int16), wider whole numbers become int16
    where all fit, all else float32: piece by piece, so that only the result is in memory.
    """
    slope, inter = (
        own if number is None else number
        for own, number in zip((1.0, 0.0), header.get_slope_inter(), strict=True)
    )
    scaled = (slope, inter) != (1.0, 0.0)
    code = layout.dtype.str[1:]
    kind: Any = np.float32 if scaled or code[0] == "f" else KEPT.get(code, np.int16)
    out = empty(path, layout, kind)
    skip(path, file, layout.start - file.tell())
    n_bad, done = 0, 0
    while done < layout.n_voxels:
        n = min(PIECE, layout.n_voxels - done)
        piece = np.frombuffer(file.read(n * layout.dtype.itemsize), np.uint8)
        if len(piece) < n * layout.dtype.itemsize:
            raise DataError(f"{path}: truncated, {done} of {layout.n_voxels} voxels are there")
        part = piece.view(layout.dtype)
        if scaled:
            part = part * np.float64(slope) + np.float64(inter)
        if out.dtype == np.float32:
            n_bad += n - int(np.count_nonzero(np.abs(part) <= np.finfo(np.float32).max))
        elif code not in KEPT and (part.min() < -(2**15) or part.max() >= 2**15):
            wide = empty(path, layout, np.float32)
            wide[:done] = out[:done]
            out = wide
        with np.errstate(over="ignore", invalid="ignore"):
            out[done : done + n] = part
        done += n
    if n_bad:
        raise DataError(f"{path}: {n_bad} of {done} values are not finite 32-bit numbers")
    if isinstance(file, gzip.GzipFile):
        file.read(1 << 16)  # at the end of the file gzip checks its sum
    return out.reshape(layout.space, order="F")


def empty(path: Path, layout: Layout, kind: Any) -> np.ndarray:
    """Room for the values, if they fit."""
    n_bytes = layout.n_voxels * np.dtype(kind).itemsize
    if n_bytes > LIMIT_BYTES:
        raise DataError(
            f"{path}: shape {layout.space} takes {n_bytes / 2**20:.0f} MiB; at most "
            f"{LIMIT_BYTES / 2**20:.0f} MiB"
        )
    return np.empty(layout.n_voxels, kind)


def skip(path: Path, file: BufferedIOBase, n_bytes: int) -> None:
    """Read past bytes that nobody wants."""
    while n_bytes > 0:
        got = len(file.read(min(n_bytes, 1 << 20)))
        if not got:
            raise DataError(f"{path}: truncated before the data")
        n_bytes -= got


def orient(path: Path, data: Shaped[np.ndarray, "i j k"], header: Any) -> Volume:
    """Flip and swap axes to LPS+."""
    affine = np.asarray(header.get_best_affine(), np.float64)
    sane = np.isfinite(affine).all() and np.abs(affine).max() < FARTHEST_MM
    if not sane or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{path}: the affine is no place in a scanner: {affine.tolist()}")
    now = io_orientation(affine)
    if np.isnan(now).any():
        raise DataError(f"{path}: the affine does not say which axis is which: {affine.tolist()}")
    change = ornt_transform(now, LPS)
    turned = affine @ inv_ornt_aff(change, data.shape)
    return Volume(apply_orientation(data, change).T, turned)


def read_mask(path: Path, like: Volume, name: str) -> Shaped[np.ndarray, "z y x"]:
    """A mask's whole numbers.

    Args:
        path: The mask.
        like: The volume that it must lie on.
        name: Names the volume in messages.

    Raises:
        DataError: As `read_volume`; or its shape or affine is another; or it has fractions.
    """
    mask = read_volume(path)
    if mask.values.shape != like.values.shape:
        raise DataError(
            f"{path}: mask of shape {mask.values.shape} (z, y, x), but {name} has "
            f"{like.values.shape}"
        )
    corners = np.array(np.meshgrid(*([0, n] for n in like.values.shape[::-1]), [1])).reshape(4, -1)
    apart_mm = np.abs((mask.affine - like.affine) @ corners).max()
    if apart_mm > 0.1 * min(like.spacing_mm):
        raise DataError(
            f"{path}: mask lies elsewhere than {name}: corners are up to {apart_mm:.3g} mm apart; "
            "their affines must agree"
        )
    if mask.values.dtype.kind == "f" and (mask.values != np.rint(mask.values)).any():
        raise DataError(f"{path}: the mask has fractions; allowed: whole numbers")
    return mask.values


def percentiles(values: Shaped[np.ndarray, "z y x"], wanted: tuple[float, ...]) -> list[float]:
    """Percentiles of the voxels that are not zero (linear between ranks); none if all are zero.

    Example:
        >>> percentiles(np.array([[[0, 1, 2, 3, 0]]], np.int16), (0.0, 50.0, 75.0))
        [1.0, 2.0, 2.5]
    """
    if values.dtype.kind in "iu":  # sorted by counting
        low = int(values.min())
        counts = np.zeros(int(values.max()) - low + 1, np.int64)
        for plane in values:
            counts += np.bincount(plane.ravel().astype(np.int64) - low, minlength=len(counts))
        if low <= 0 <= low + len(counts) - 1:
            counts[-low] = 0
        if not counts.sum():
            return []
        ranks = np.asarray(wanted) / 100 * (counts.sum() - 1)
        below, above = (
            np.searchsorted(counts.cumsum(), rank(ranks), side="right") + low
            for rank in (np.floor, np.ceil)
        )
        between = below + (above - below) * (ranks - np.floor(ranks))
        return [float(v) for v in between]
    some: Bool[np.ndarray, "z y x"] = values != 0
    if not some.any():
        return []
    return [float(v) for v in np.percentile(values[some], wanted)]


def write_volume(path: Path, values: Shaped[np.ndarray, "z y x"], affine: Any, about: str) -> None:
    """Write .nii.gz; the same values make the same bytes.

    Args:
        path: The file.
        values: In the order of `affine`, float16 as float32.
        affine: Takes (x, y, z, 1) to mm in RAS+.
        about: At most 79 ASCII characters for the header's description.
    """
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    image = nibabel.Nifti1Image(values.T, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = about.encode("ascii", "replace")[:79]
    path.write_bytes(gzip.compress(image.to_bytes(), 3, mtime=0))
