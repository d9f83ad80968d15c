"""One MetaImage file (.mha), read with distrust and turned to the orientation of `volumes.py`.

    file <-> values (z, y, x), affine

A text header, the last line of which says that the voxels follow in the same file, plain or
deflated. The header is parsed here rather than by SimpleITK, which follows a header to any other
file, and reads a deflated file with damage inside, or with fewer voxels than are declared, without
an error (2.5.7); the tests hold this reader against it.
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
from synthoma.formats.volumes import LIMIT_BYTES, Layout, Volume, orient, read_values

SUFFIX = ".mha"
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
            layout = find_layout(path, fields)
            n_bytes = layout.n_voxels * layout.dtype.itemsize
            there = path.stat().st_size - raw.tell()
            deflated = is_true(fields.get("CompressedData", "False"))
            if deflated and there > LIMIT_BYTES:
                raise DataError(f"{path}: {there / 2**20:.0f} MiB; at most {LIMIT_BYTES >> 20} MiB")
            if not deflated and there != n_bytes:
                raise DataError(f"{path}: {n_bytes} bytes are declared and {there} are there")
            data = inflate(path, raw.read(), n_bytes) if deflated else io.BytesIO(raw.read())
            header = nibabel.Nifti1Header()  # says where the voxels are, and that none is scaled
            header.set_sform(affine_of(path, fields), 1)
            return orient(path, read_values(path, data, header, layout), header)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def read_fields(path: Path, file: BinaryIO) -> dict[str, str]:
    """The header's fields; the file then stands at the first byte of the voxels."""
    start = file.read(LIMIT_HEADER)
    end = re.search(rb"^ElementDataFile *= *(.*?)\r?\n", start, re.MULTILINE)
    if end is None or not re.match(rb"[ -~\t\r\n]*$", start[: end.end()]):
        raise DataError(f"{path}: not MetaImage, a text header that ends in ElementDataFile")
    fields = {}
    for line in start[: end.end()].decode("ascii").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            fields[name.strip()] = value.strip()
    if fields["ElementDataFile"] != "LOCAL":
        raise DataError(
            f"{path}: its voxels are in another file ({fields['ElementDataFile'][:100]!r}); "
            "allowed: LOCAL"
        )
    file.seek(end.end())
    return fields


def find_layout(path: Path, fields: dict[str, str]) -> Layout:
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
    if min(x, y, z) < 1 or n_bytes > LIMIT_BYTES:
        raise DataError(
            f"{path}: declares shape {(x, y, z)} of {dtype.name}; allowed: none empty, at most "
            f"{LIMIT_BYTES >> 20} MiB"
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
