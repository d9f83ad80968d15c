"""One MetaImage volume (.mha, .mhd), read with distrust, in the orientation of `volumes.py`.

    file <-> values (z, y, x), affine

A text header, the last line of which says where the voxels are, plain or deflated: in the same
file (.mha) or in another of the same folder (.mhd). The header is parsed here rather than by
SimpleITK, which follows a header to any other file, and reads a deflated file with damage inside,
or with fewer voxels than are declared, without an error (2.5.7); the tests hold this reader against
it.
"""

import io
import math
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from jaxtyping import Float

from synthoma.errors import DataError
from synthoma.formats.source import inside
from synthoma.formats.volumes import KEPT, LIMIT_BYTES, Layout, Volume, orient, read_values

SUFFIX, SUFFIX_APART = ".mha", ".mhd"
#: What a .mhd may take: a CT of the chest has up to 800 slices of 512 x 512.
LIMIT_APART = 1 << 30
#: Longest header that is looked at.
LIMIT_HEADER = 1 << 16
TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
#: MetaImage's world is LPS+, NIfTI's RAS+.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_mha(path: Path) -> Volume:
    """The volume in a file, its values as `volumes.read_values` keeps them.

    Raises:
        DataError: It is no .mha file, damaged, too large, or of a kind that is not read.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as raw:
            fields = read_fields(path, raw)
            if fields["ElementDataFile"] != "LOCAL":
                raise DataError(
                    f"{path}: its voxels are in another file "
                    f"({fields['ElementDataFile'][:100]!r}); allowed: LOCAL"
                )
            layout = find_layout(path, fields, LIMIT_BYTES)
            n_bytes = layout.n_voxels * layout.dtype.itemsize
            there = path.stat().st_size - raw.tell()
            deflated = is_true(fields.get("CompressedData", "False"))
            if deflated and there > LIMIT_BYTES:
                raise DataError(f"{path}: {there / 2**20:.0f} MiB; at most {LIMIT_BYTES >> 20} MiB")
            if not deflated and there != n_bytes:
                raise DataError(f"{path}: {n_bytes} bytes are declared and {there} are there")
            data = inflate(path, raw.read(), n_bytes) if deflated else io.BytesIO(raw.read())
            header = header_of(path, fields)
            return orient(path, read_values(path, data, header, layout), header)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def read_mhd(path: Path) -> Volume:
    """The volume whose header is a .mhd file and whose voxels, of 8 or 16 bits, are beside it.

    Raises:
        DataError: It is no .mhd file, damaged, too large, or of a kind that is not read; or the
            voxels are in another folder, or there are more or fewer than are declared.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as raw:
            fields = read_fields(path, raw)
        layout = find_layout(path, fields, LIMIT_APART)
        kept = KEPT.get(layout.dtype.str[1:])
        if kept is None:
            raise DataError(f"{path}: {layout.dtype.name}; allowed: whole numbers of 8 or 16 bits")
        name = fields["ElementDataFile"]
        if name == "LOCAL" or "/" in name or "\\" in name:
            raise DataError(
                f"{path}: ElementDataFile = {name[:100]}; allowed: the name of a file beside it"
            )
        try:
            beside = inside(path.parent, name)
        except DataError as error:
            raise DataError(f"{path}: ElementDataFile: {error}") from None
        n_bytes, there = layout.n_voxels * layout.dtype.itemsize, beside.stat().st_size
        if is_true(fields.get("CompressedData", "False")):
            if there > LIMIT_APART:
                raise DataError(f"{beside}: {there >> 20} MiB; at most {LIMIT_APART >> 20} MiB")
            inflated = inflate(beside, beside.read_bytes(), n_bytes)
            data = np.frombuffer(inflated.getbuffer(), layout.dtype)
        elif there != n_bytes:
            raise DataError(f"{path}: {n_bytes} bytes are declared and {there} are in {name}")
        else:
            data = np.fromfile(beside, layout.dtype)
        voxels = data.astype(kept, copy=False).reshape(layout.space, order="F")
        return orient(path, voxels, header_of(path, fields))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def header_of(path: Path, fields: dict[str, str]) -> nibabel.Nifti1Header:
    """Says where the voxels are, and that none is scaled."""
    header = nibabel.Nifti1Header()
    header.set_sform(affine_of(path, fields), 1)
    return header


def read_fields(path: Path, file: BinaryIO) -> dict[str, str]:
    """The header's fields; the file then stands at the first byte of the voxels."""
    start = file.read(LIMIT_HEADER)
    end = re.search(rb"^ElementDataFile *= *(.*?)(\r?\n|\Z)", start, re.MULTILINE)
    if end is None or not re.match(rb"[ -~\t\r\n]*$", start[: end.end()]):
        raise DataError(f"{path}: not MetaImage, a text header that ends in ElementDataFile")
    fields = {}
    for line in start[: end.end()].decode("ascii").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name.strip()] = value.strip()
    file.seek(end.end())
    return fields


def find_layout(path: Path, fields: dict[str, str], limit_bytes: int) -> Layout:
    """Check what a header declares."""
    for name, allowed in (
        ("ObjectType", "Image"), ("NDims", "3"), ("BinaryData", "True"), ("HeaderSize", "0"),
        ("ElementNumberOfChannels", "1"),
    ):  # fmt: skip
        if fields.get(name, allowed) != allowed:
            raise DataError(f"{path}: {name} = {fields[name][:100]}; allowed: {allowed}")
    kind = fields.get("ElementType", "missing")
    if kind not in TYPES:
        raise DataError(f"{path}: ElementType {kind[:100]}; allowed: {', '.join(TYPES)}")
    most_significant_first = fields.get("BinaryDataByteOrderMSB") or fields.get(
        "ElementByteOrderMSB", "False"
    )
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if is_true(most_significant_first) else "<")
    x, y, z = (int(side) for side in numbers(path, fields, "DimSize", 3))
    n_bytes = math.prod((x, y, z)) * dtype.itemsize
    if min(x, y, z) < 1 or n_bytes > limit_bytes:
        raise DataError(
            f"{path}: declares shape {(x, y, z)} of {dtype.name}; allowed: none empty, at most "
            f"{limit_bytes >> 20} MiB"
        )
    return Layout((x, y, z), dtype, 0)


def affine_of(path: Path, fields: dict[str, str]) -> Float[np.ndarray, "4 4"]:
    """Takes (x, y, z, 1) to mm in RAS+."""

    def told(names: tuple[str, ...], otherwise: np.ndarray) -> np.ndarray:
        found = next((name for name in names if name in fields), None)
        if found is None:
            return otherwise.ravel()
        return np.array(numbers(path, fields, found, otherwise.size))

    # three numbers an axis of the array: its direction in the world
    axes = told(("TransformMatrix", "Rotation", "Orientation"), np.eye(3)).reshape(3, 3)
    spacing = told(("ElementSpacing", "ElementSize"), np.ones(3))
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ axes.T @ np.diag(spacing)
    affine[:3, 3] = LPS_TO_RAS @ told(("Offset", "Origin", "Position"), np.zeros(3))
    return affine


def numbers(path: Path, fields: dict[str, str], name: str, n: int) -> list[float]:
    """The numbers of a field."""
    words = fields.get(name, "missing").split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != n or not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        raise DataError(f"{path}: {name} = {' '.join(words)[:100]}; allowed: {n} numbers")
    return values


def is_true(word: str) -> bool:
    """A header's True or False, of which the first letter counts."""
    return word[:1].upper() in ("T", "1")


def inflate(path: Path, data: bytes, n_bytes: int) -> Any:
    """Exactly the bytes that are declared, their checksum compared."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, n_bytes)
        more = stream.decompress(stream.unconsumed_tail, 1)  # reads the checksum
    except zlib.error as error:
        raise DataError(f"{path}: damaged ({error})") from None
    if len(inflated) < n_bytes or more or not stream.eof:
        raise DataError(f"{path}: damaged or truncated, {n_bytes} bytes of voxels are declared")
    return io.BytesIO(inflated)
