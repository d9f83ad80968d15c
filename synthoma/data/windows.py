"""Windows of volumes that are too large to be seen whole: in training at random, in test all.

volume (c, z, y, x), boxes (m, 6) -> window (c, *space), the boxes that are seen in it
"""

from itertools import product

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.boxes import clip, volume
from synthoma.data.vois import resample


class Window(BaseModel):
    """How windows are cut in training. Defaults: Han's thesis, section 6.2.2.

    Shift is by a share of the window, about the place where the window would have a lesion in its
    middle; windows that are not about a lesion lie anywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: tuple[int, int, int] = Field((160, 176, 224), description="Voxels along z, y, x.")
    about_box: float = Field(0.7, ge=0, le=1, description="Share of windows about a lesion.")
    shift: float = Field(0.15, ge=0, le=0.5, description="Along each axis, as a share of it.")
    zoom: float = Field(0.15, ge=0, le=0.5, description="Scale between 1 - zoom and 1 + zoom.")
    flip: bool = Field(False, description="Mirror along x in half of the windows.")
    least_visible: float = Field(
        0.5, ge=0, le=1, description="A box that keeps less of its volume in the window is dropped."
    )


def cut_window(
    values: Shaped[np.ndarray, "c z y x"],
    boxes: Float[np.ndarray, "m 6"],
    window: Window,
    chance: np.random.Generator,
    *,
    outside: float,
) -> tuple[Float32[np.ndarray, "c z2 y2 x2"], Float32[np.ndarray, "k 6"], Int64[np.ndarray, " k"]]:
    """A random window, with the volume's own values and `outside` where it leaves the volume.

    Returns:
        The window, the boxes that are seen in it, and their rows.
    """
    space = np.array(window.space)
    factors = 1 + window.zoom * chance.uniform(-1, 1, 3)
    sides = np.maximum(1, np.rint(space / factors)).astype(int)  # in voxels of the volume
    about, moves, anywhere = chance.random(), chance.uniform(-1, 1, 3), chance.random(3)
    if len(boxes) and about < window.about_box:
        box = boxes[int(chance.integers(len(boxes)))].astype(np.float64)
        middle = (box[:3] + box[3:]) / 2 + moves * window.shift * sides
        low = np.rint(middle - sides / 2).astype(int)
    else:
        low = np.floor(anywhere * np.maximum(1, np.array(values.shape[1:]) - sides + 1)).astype(int)
    flipped = window.flip and bool(chance.random() < 0.5)
    part = read(values, low, sides, outside)
    image = np.stack([resample(plane, window.space) for plane in part])
    scale = np.tile(space / sides, 2)
    moved = (boxes - np.tile(low, 2)) * scale
    if flipped:
        image = np.ascontiguousarray(image[..., ::-1])
        moved[:, [2, 5]] = space[2] - moved[:, [5, 2]]
    seen = clip(moved, window.space)
    whole = np.maximum(volume(moved), 1e-9)
    kept = np.flatnonzero((volume(seen) >= window.least_visible * whole) & (volume(seen) > 0))
    return image, seen[kept], kept


def read(
    values: Shaped[np.ndarray, "c z y x"],
    low: Int64[np.ndarray, " 3"],
    sides: Int64[np.ndarray, " 3"],
    outside: float,
) -> Float32[np.ndarray, "c z2 y2 x2"]:
    """The voxels from `low` on; `outside` where there are none."""
    found = np.full((len(values), *sides), outside, np.float32)
    start = np.clip(low, 0, values.shape[1:])
    stop = np.clip(low + sides, 0, values.shape[1:])
    here = tuple(slice(a, b) for a, b in zip(start - low, stop - low, strict=True))
    there = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    found[(slice(None), *here)] = values[(slice(None), *there)]
    return found


def windows_over(
    size: tuple[int, int, int], space: tuple[int, int, int], *, overlap: float
) -> list[tuple[int, int, int]]:
    """The low corners of windows that cover a volume, evenly placed, neighbours overlapping by at
    least a share of a window. A volume smaller than a window takes one, which begins at 0.

    Example:
        >>> windows_over((10, 4, 20), (8, 8, 8), overlap=0.25)
        [(0, 0, 0), (0, 0, 6), (0, 0, 12), (2, 0, 0), (2, 0, 6), (2, 0, 12)]
    """
    along = []
    for n, side in zip(size, space, strict=True):
        room = max(0, n - side)
        steps = int(np.ceil(room / max(1.0, side * (1 - overlap))))
        along.append([int(k) for k in np.rint(np.linspace(0, room, steps + 1))])
    return [(z, y, x) for z, y, x in product(*along)]
