"""Image, Case and where a case came from: the nouns of the toolkit.

Axis order is (z,) y, x everywhere. Boxes are half-open intervals in voxels, floats, in the order
((z0,) y0, x0, (z1,) y1, x1); see `boxes.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

Unit = Literal["arbitrary", "hu", "signed_unit"]
#: What `Case.traits` may hold: anything JSON has.
Traits = Mapping[str, Any]

#: Array types that a dataset folder stores.
DTYPES = ("uint8", "uint16", "int16", "float16", "float32")


@dataclass(frozen=True, eq=False)
class Image:
    """A 2D or 3D image."""

    values: Shaped[np.ndarray, "c *space"]
    """Channels first, then (z,) y, x. One of `DTYPES`."""
    spacing_mm: tuple[float, ...] | None = None
    """Distance between voxel centres along each spatial axis, in the order of the axes."""
    affine: Float[np.ndarray, "4 4"] | None = None
    """Takes (x, y, z, 1), the voxel index with its axes reversed, to world mm (RAS+); for a slice
    z is 0."""
    unit: Unit = "arbitrary"

    @property
    def space(self) -> tuple[int, ...]:
        """Size along (z,) y, x in voxels."""
        return self.values.shape[1:]


@dataclass(frozen=True)
class Real:
    """A case that was read from a file (or, for phantoms, stands for one)."""

    source: str
    """The file, relative to what was imported."""


@dataclass(frozen=True)
class Synthetic:
    """A case that a generator drew."""

    run: str
    """Which run drew it: the id in its run.json."""
    seed: int
    conditions: Traits = field(default_factory=dict)
    """What was ordered, beside the case's own label and boxes."""
    trained_on: tuple[str, ...] = ()
    """Every patient whose images the generator saw."""


Origin = Real | Synthetic


def no_boxes(dimensions: int) -> Float[np.ndarray, "0 k"]:
    """An empty box array of the right width."""
    return np.zeros((0, 2 * dimensions), np.float32)


@dataclass(frozen=True, eq=False)
class Case:
    """One image with everything that is known of it."""

    case_id: str
    """Unique in its dataset; from the file's relative path."""
    patient_id: str
    image: Image
    label: str | None = None
    boxes: Float[np.ndarray, "m k"] | None = None
    """(m, 4) in 2D, (m, 6) in 3D. None where boxes were never annotated, which is not the same as
    an image known to have none, (0, 4)."""
    box_labels: tuple[str, ...] = ()
    """One a box, or empty where boxes have no classes."""
    traits: Traits = field(default_factory=dict)
    origin: Origin = field(default_factory=lambda: Real(""))
