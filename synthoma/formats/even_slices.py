"""Slices of a CT at even distances: the one way in which its readers resample."""

import math

import numpy as np
from jaxtyping import Float, Int16

from synthoma.errors import DataError
from synthoma.formats.source import Tally
from synthoma.formats.volumes import Volume

#: What a volume may take in memory.
LIMIT_BYTES = 1 << 30
#: Of air outside of the patient and of what lies outside of the scanner's view, in HU.
FLOOR_HU = -1024


def raise_to_floor(values: Int16[np.ndarray, "z y x"], tally: Tally) -> None:
    """Make what scanners write outside of their view air, in place, and count the scan."""
    if values.min() < FLOOR_HU:
        np.maximum(values, FLOOR_HU, out=values)
        tally.note(f"scans with voxels outside of the view, now {FLOOR_HU} HU")


def even_slices(
    volume: Volume, positions_mm: Float[np.ndarray, " z"], distance_mm: float, name: str
) -> Volume:
    """A CT with axial slices so far apart, from its first one on, linear between neighbours.

    Where slices were nearer, some are skipped; nothing is averaged. Rows and columns stay. The box
    coordinate of a position is ``(position - positions_mm[0]) / distance_mm + 0.5``.

    Args:
        volume: int16.
        positions_mm: Of its slices, rising.
        distance_mm: Wanted.
        name: Names the volume in messages.

    Raises:
        DataError: The result does not fit into `LIMIT_BYTES`.
    """
    old: Int16[np.ndarray, "z y x"] = volume.values
    length_mm = float(positions_mm[-1] - positions_mm[0])
    n_bytes = (length_mm / distance_mm + 1) * math.prod(old.shape[1:]) * 2
    if not n_bytes <= LIMIT_BYTES:
        raise DataError(
            f"{name}: {length_mm:.4g} mm in slices of {distance_mm:g} mm take {n_bytes / 2**20:.0f}"
            f" MiB; at most {LIMIT_BYTES >> 20} MiB"
        )
    places = positions_mm[0] + distance_mm * np.arange(int(length_mm / distance_mm + 1e-6) + 1)
    new = np.empty((len(places), *old.shape[1:]), np.int16)
    for k, place in enumerate(places):
        above = min(int(np.searchsorted(positions_mm, place)), len(old) - 1)
        below = max(above - 1, 0)
        gap = positions_mm[above] - positions_mm[below]
        share = np.float32((place - positions_mm[below]) / gap if gap > 0 else 0)
        low = old[below].astype(np.float32)
        np.rint(low + share * (old[above] - low), out=new[k], casting="unsafe")
    affine = volume.affine.copy()
    affine[:3, 2] *= distance_mm / np.linalg.norm(affine[:3, 2])
    return Volume(new, affine)
