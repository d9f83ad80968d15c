"""Volumes as pictures: planes through a place, boxes where a plane cuts them.

volume (z, y, x), box of a nodule -> three_views -> axial, coronal and sagittal plane, side by side
volume, z -> boxes_at -> what the axial plane cuts of boxes
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from synthoma.data.sheet import to_bytes

#: What is seen around a box: so many times its longest side, each way of a plane.
AROUND = 2.0


def three_views(
    values: Shaped[np.ndarray, "z y x"],
    box: Shaped[np.ndarray, " 6"],
    *,
    value_range: tuple[float, float],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    side_px: int = 64,
    gap_px: int = 1,
) -> UInt8[np.ndarray, "1 side w"]:
    """The axial, coronal and sagittal plane through the middle of a box, of equal sides in mm, the
    head up; black beyond the volume.

    Args:
        value_range: Black and white.
    """
    box, spacing = np.asarray(box, np.float64), np.asarray(spacing_mm)
    centre = (box[:3] + box[3:]) / 2
    width_mm = AROUND * float(((box[3:] - box[:3]) * spacing).max())
    low, size = centre - width_mm / spacing / 2, width_mm / spacing
    planes = []
    for across, flipped in ((0, False), (1, True), (2, True)):
        place = int(np.clip(centre[across], 0, values.shape[across] - 1))
        rows, columns = (axis for axis in range(3) if axis != across)
        plane = values.take(place, axis=across).astype(np.float32)
        scale_y, scale_x = side_px / size[rows], side_px / size[columns]
        # the middle of the first pixel of the picture is half a pixel into the region
        into = np.array(
            [
                [scale_x, 0, (0.5 - low[columns]) * scale_x - 0.5],
                [0, scale_y, (0.5 - low[rows]) * scale_y - 0.5],
            ]
        )
        border = float(value_range[0])
        seen = cv2.warpAffine(
            plane,
            into,
            (side_px, side_px),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(border,) * 4,
        )
        planes.append(to_bytes((seen[::-1] if flipped else seen)[None], value_range))
        planes.append(np.zeros((1, side_px, gap_px), np.uint8))
    return np.concatenate(planes[:-1], axis=2)


def boxes_at(boxes: Float[np.ndarray, "m 6"], z: int) -> Float32[np.ndarray, "k 4"]:
    """Of boxes in a volume those that the axial plane `z` cuts, as (y0, x0, y1, x1)."""
    return np.asarray(boxes[cut_by(boxes, z)][:, [1, 2, 4, 5]], np.float32)


def cut_by(boxes: Float[np.ndarray, "m 6"], z: int) -> Shaped[np.ndarray, " m"]:
    """Which boxes the axial plane `z` cuts."""
    return np.asarray((boxes[:, 0] < z + 1) & (boxes[:, 3] > z))
