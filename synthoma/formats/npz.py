"""Arrays in a .npz, read with distrust: no pickles, and what is declared is checked first.

A .npz is a zip of .npy files. The list of members is measured before zipfile reads it, a member
that claims to inflate into far more than its bytes can mean is refused, and large arrays are
streams of rows.
"""

import math
import zipfile
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from synthoma.errors import DataError

#: Bytes that a zip's list of members may take: some ten thousand.
LIMIT_LISTING = 1 << 20
#: An array above FREE_BYTES may be this many times as large as what it is inflated from: shapes in
#: black and white (AdrenalMNIST3D) are about 120 times.
FREE_BYTES, MOST_INFLATION = 1 << 26, 200
#: What zipfile, zlib and NumPy raise for a damaged file.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError,
           NotImplementedError, LookupError, TypeError, OverflowError)  # fmt: skip


def names_in(path: Path) -> set[str]:
    """The arrays of a .npz.

    Raises:
        DataError: It is none.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16) - 100))
            end = file.read()
        # what a zip's two closing records say that its list of members takes
        told = [
            int.from_bytes(end[at + start : at + start + n], "little")
            for mark, start, n in ((b"PK\x05\x06", 12, 4), (b"PK\x06\x06", 40, 8))
            if (at := end.rfind(mark)) >= 0
        ]
        if not told:
            raise DataError(f"{path}: not a .npz, or truncated")
        if max((size for size in told if size != 0xFFFFFFFF), default=0) > LIMIT_LISTING:
            raise DataError(f"{path}: too many arrays for a .npz")
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGED as error:
        raise DataError(f"{path}: not a readable .npz ({error})") from None


class Member:
    """An array in a .npz: its header, checked, and a stream of its rows."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.where = f"{path}: {name}"
        try:
            with zipfile.ZipFile(path) as archive:
                about = archive.getinfo(f"{name}.npy")
                with archive.open(about) as file:
                    self.shape, self.dtype = read_header(cast("BufferedIOBase", file))
        except KeyError:
            raise DataError(f"{path}: no array {name!r}") from None
        except DAMAGED as error:
            raise DataError(f"{self.where}: damaged ({error})") from None
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        if n_bytes > about.file_size:
            raise DataError(
                f"{self.where}: declares {self.shape}, but holds {about.file_size} bytes"
            )
        if about.file_size > FREE_BYTES + MOST_INFLATION * about.compress_size:
            raise DataError(
                f"{self.where}: {about.compress_size} bytes would inflate to {about.file_size}; "
                f"at most {MOST_INFLATION} times as many"
            )

    def rows(self) -> BufferedIOBase:
        """The bytes behind the header, from the first row; closing it closes the file."""
        archive = zipfile.ZipFile(self.path)  # stays open until the stream is closed
        file = cast("BufferedIOBase", archive.open(f"{self.name}.npy"))
        read_header(file)
        return file

    def check(self) -> None:
        """Read to the end once, where zipfile compares the checksum; raises one of `DAMAGED`."""
        with self.rows() as file:
            while file.read(1 << 20):
                pass


def read_header(file: BufferedIOBase) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and type of a .npy array in rows, at the start of a stream."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = readers[version[0]](file)
    if dtype.hasobject:
        raise ValueError("pickled objects, which are never read")
    if by_columns and len(shape) > 1 and sorted(shape)[-2] > 1:
        raise ValueError("in Fortran's order; allowed: C's")
    if any(side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return tuple(int(side) for side in shape), dtype


def read_whole(member: Member, limit_bytes: int) -> np.ndarray:
    """A small array."""
    n_bytes = math.prod(member.shape) * member.dtype.itemsize
    if n_bytes > limit_bytes:
        raise DataError(f"{member.where}: {member.shape} of {member.dtype}; too large")
    try:
        with member.rows() as file:
            content = file.read(n_bytes)
            file.read(1)  # at the end of an array zipfile checks its sum
    except DAMAGED as error:
        raise DataError(f"{member.where}: damaged ({error})") from None
    if len(content) < n_bytes:
        raise DataError(f"{member.where}: truncated")
    return np.frombuffer(content, member.dtype).reshape(member.shape)


def new_member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> BufferedIOBase:
    """A new array in a .npz, its header written; the same array makes the same bytes."""
    about = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    about.compress_type = zipfile.ZIP_DEFLATED
    file = cast("BufferedIOBase", archive.open(about, "w", force_zip64=True))
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )
    return file


def write_array(archive: zipfile.ZipFile, name: str, values: Shaped[np.ndarray, "..."]) -> None:
    """A small array."""
    with new_member(archive, name, values.shape, values.dtype) as file:
        file.write(values.tobytes())
