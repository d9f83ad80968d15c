"""Boxes, 2D and 3D in one code.

A box is ((z0,) y0, x0, (z1,) y1, x1): half-open intervals [low, high) along (z,) y, x, in voxels,
floats. Voxel i covers [i, i + 1), so a box around voxels 3 to 5 is (3, 6). Arrays of boxes are
(m, 4) or (m, 6). Every file format's own convention is converted in that format's file.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from synthoma.errors import DataError

Boxes = Float[np.ndarray, "m k"]


def dimensions_of(boxes: Boxes) -> int:
    """2 or 3."""
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6):
        raise DataError(f"boxes have shape {boxes.shape}; allowed: (m, 4) in 2D, (m, 6) in 3D")
    return boxes.shape[1] // 2


def sides(boxes: Boxes) -> Float64[np.ndarray, "m d"]:
    """Length of each box along (z,) y, x; never below 0."""
    d = dimensions_of(boxes)
    return np.maximum(boxes[:, d:].astype(np.float64) - boxes[:, :d], 0.0)


def volume(boxes: Boxes) -> Float64[np.ndarray, " m"]:
    """Area in 2D, volume in 3D."""
    return sides(boxes).prod(axis=1)


def iou(a: Float[np.ndarray, "m k"], b: Float[np.ndarray, "n k"]) -> Float64[np.ndarray, "m n"]:
    """Intersection over union of every pair; 0 where both are empty.

    Example:
        >>> iou(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 1, 2, 3], [5.0, 5, 6, 6]])).round(3)
        array([[0.333, 0.   ]])
    """
    d = dimensions_of(a)
    if dimensions_of(b) != d:
        raise DataError(f"boxes in {d}D cannot meet boxes in {dimensions_of(b)}D")
    low = np.maximum(a[:, None, :d], b[None, :, :d], dtype=np.float64)
    high = np.minimum(a[:, None, d:], b[None, :, d:], dtype=np.float64)
    both = np.maximum(high - low, 0.0).prod(axis=2)
    either = volume(a)[:, None] + volume(b)[None, :] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def clip(boxes: Boxes, space: tuple[int, ...]) -> Float32[np.ndarray, "m k"]:
    """Boxes cut at the edges of an image of size `space` ((z,) y, x)."""
    limit = np.asarray(space * 2, np.float32)
    return np.clip(boxes, 0, limit).astype(np.float32)


def scale(boxes: Boxes, factors: tuple[float, ...]) -> Float32[np.ndarray, "m k"]:
    """Boxes in an image resized by `factors` along (z,) y, x."""
    return (boxes * np.asarray(factors * 2)).astype(np.float32)


def shift(boxes: Boxes, offset: tuple[float, ...]) -> Float32[np.ndarray, "m k"]:
    """Boxes moved by `offset` voxels along (z,) y, x."""
    return (boxes + np.asarray(offset * 2)).astype(np.float32)


def around(mask: Bool[np.ndarray, "*space"]) -> Float32[np.ndarray, "1 k"]:
    """The box around the true voxels of `mask`.

    Raises:
        DataError: The mask is empty.
    """
    if not mask.any():
        raise DataError("an empty mask has no box around it")
    where = [
        np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis})))
        for axis in range(mask.ndim)
    ]
    return np.array([[w[0] for w in where] + [w[-1] + 1 for w in where]], np.float32)
