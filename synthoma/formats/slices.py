"""Upright slices of a volume.

Axial: anterior up, the patient's left on the right, counted from feet to head. Coronal: superior
up, the patient's left on the right, counted from front to back. Sagittal: superior up, anterior on
the left, counted from the patient's right to left. Radiologists look at slices so.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from synthoma.data.case import Image
from synthoma.formats.volumes import Volume

Axis = Literal["axial", "coronal", "sagittal", "volume"]
#: Where an upright slice's x, y and normal run in LPS+ voxels.
SLICE_TO_VOLUME = {
    "axial": np.eye(4),
    "coronal": np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]),
    "sagittal": np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]),
}


def len_along(values: Shaped[np.ndarray, "z y x"], axis: Axis) -> int:
    """How many slices there are."""
    return int(values.shape[("axial", "coronal", "sagittal").index(axis)])


def cut(
    volume: Volume, mask: Shaped[np.ndarray, "z y x"] | None, axis: Axis
) -> Iterator[tuple[int, Image, Shaped[np.ndarray, "*space"] | None]]:
    """Slices across an axis, upright, with the mask's: number, image, mask."""
    values = volume.values
    sz, sy, sx = volume.spacing_mm
    if axis == "volume":
        yield 0, Image(values[None], (sz, sy, sx), volume.affine), mask
        return
    for k in range(len_along(values, axis)):
        view: Any  # of the array, and where it starts in the volume's (x, y, z)
        if axis == "axial":
            view, start, spacing = np.s_[k], (0, 0, k), (sy, sx)
        elif axis == "coronal":
            view, start, spacing = np.s_[::-1, k], (0, k, len(values) - 1), (sz, sx)
        else:
            view, start, spacing = np.s_[::-1, :, k], (k, 0, len(values) - 1), (sz, sy)
        place = SLICE_TO_VOLUME[axis].copy()
        place[:3, 3] = start
        own = None if mask is None else mask[view]
        yield k, Image(values[view][None], spacing, volume.affine @ place), own
