"""Nodules in volumes: what they are called, and the cubes that a generator sees of them.

    scan (1, z, y, x), box of a nodule -> cut -> cube with the nodule's box as its middle half
    scan, box, the cube's middle half -> put -> the scan with another nodule in the box

The cube of a box is the region of twice its sides around the same centre, resampled to equal sides,
so that every nodule fills the same middle half (Han's thesis, section 6.2.1).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from jaxtyping import Float, Float32, Shaped

from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.split import those_left
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError

Size = Literal["small", "medium", "large"]
Attenuation = Literal["solid", "part-solid", "ground-glass"]
SIZES: tuple[Size, ...] = get_args(Size)
ATTENUATIONS: tuple[Attenuation, ...] = get_args(Attenuation)

#: HU that become -1 and 1. The thesis does not say which it took: from air to soft tissue with
#: contrast medium; bone and calcification are cut.
WINDOW_HU = (-1000.0, 400.0)


def size_of(diameter_mm: float) -> Size:
    """Small to 10 mm, medium to 20 mm, large above."""
    return "small" if diameter_mm <= 10 else "medium" if diameter_mm <= 20 else "large"


def attenuation_of(texture: float) -> Attenuation:
    """From LIDC's rating of texture, 1 (ground glass) to 5 (solid); a mean of readers is rounded,
    halves up.

    Example:
        >>> [attenuation_of(rating) for rating in (1, 2.4, 2.5, 3.4, 3.5, 5)]
        ['ground-glass', 'ground-glass', 'part-solid', 'part-solid', 'solid', 'solid']
    """
    rating = int(texture + 0.5)
    return "ground-glass" if rating <= 2 else "part-solid" if rating == 3 else "solid"


def voxels_of(box: Shaped[np.ndarray, " 6"]) -> tuple[slice, slice, slice]:
    """The voxels that a box touches."""
    low, high = np.floor(box[:3]).astype(int), np.ceil(box[3:]).astype(int)
    z, y, x = (slice(int(a), max(int(a) + 1, int(b))) for a, b in zip(low, high, strict=True))
    return z, y, x


def resample(
    values: Float32[np.ndarray, "z y x"], space: tuple[int, int, int]
) -> Float32[np.ndarray, "z2 y2 x2"]:
    """Values at another number of voxels, the region the same: averaged along axes that shrink,
    linear along those that grow."""
    depth, height, width = space
    for axis, n in ((1, height), (2, width), (0, depth)):
        old = values.shape[axis]
        if old != n:
            flat = np.ascontiguousarray(np.moveaxis(values, axis, 0)).reshape(old, -1)
            way = cv2.INTER_AREA if n < old else cv2.INTER_LINEAR
            other = cv2.resize(flat, (flat.shape[1], n), interpolation=way)
            rest = [k for a, k in enumerate(values.shape) if a != axis]
            values = np.moveaxis(other.reshape(n, *rest), 0, axis)
    return np.ascontiguousarray(values)


def cut(
    values: Shaped[np.ndarray, "z y x"], box: Shaped[np.ndarray, " 6"], side_px: int
) -> Float32[np.ndarray, "side side side"]:
    """The cube of a box; beyond the scan its edge goes on."""
    region = voxels_of(box)
    wide, pads = [], []
    for own, n in zip(region, values.shape, strict=True):
        length = own.stop - own.start
        low = own.start - length // 2
        high = low + 2 * length
        wide.append(slice(max(0, low), min(n, high)))
        pads.append((max(0, -low), max(0, high - n)))
    if any(own.start >= own.stop for own in wide):
        raise DataError(f"the box {box.tolist()} lies outside of a scan of {values.shape} voxels")
    cube = np.pad(values[tuple(wide)].astype(np.float32), pads, mode="edge")
    return resample(cube, (side_px, side_px, side_px))


def put(
    values: Shaped[np.ndarray, "z y x"],
    box: Shaped[np.ndarray, " 6"],
    nodule: Float[np.ndarray, "half half half"],
) -> None:
    """Replace what is in a box, in place, by the middle half of a cube; voxels outside of the box
    stay as they are.

    Raises:
        DataError: The box leaves the scan.
    """
    region = voxels_of(box)
    if any(own.start < 0 or own.stop > n for own, n in zip(region, values.shape, strict=True)):
        raise DataError(f"the box {box.tolist()} leaves a scan of {values.shape} voxels")
    z, y, x = (own.stop - own.start for own in region)
    made = resample(nodule.astype(np.float32), (z, y, x))
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        made = np.rint(made).clip(limits.min, limits.max)
    values[region] = made


class Nodule(NamedTuple):
    """A nodule whose size and attenuation are known."""

    place: int
    """Which of its case's boxes it is."""
    box: Float32[np.ndarray, " 6"]
    size: Size
    attenuation: Attenuation


def nodules_of(case: Case) -> list[Nodule]:
    """The nodules of a case whose size and attenuation are known.

    Raises:
        DataError: Traits are not one a box.
    """
    boxes = np.zeros((0, 6), np.float32) if case.boxes is None else case.boxes
    sizes, attenuations = (case.traits.get(name, []) for name in ("sizes", "attenuations"))
    if not len(boxes) == len(sizes) == len(attenuations):
        raise DataError(
            f"case {case.case_id!r} has {len(boxes)} boxes, {len(sizes)} sizes and "
            f"{len(attenuations)} attenuations; allowed: one of each a box (traits `sizes`, "
            "`attenuations`)"
        )
    rows = enumerate(zip(boxes, sizes, attenuations, strict=True))
    return [Nodule(k, box, s, a) for k, (box, s, a) in rows if s in SIZES and a in ATTENUATIONS]


def cut_all(
    dataset: Dataset,
    out: Path,
    *,
    side_px: int = 64,
    window_hu: tuple[float, float] = WINDOW_HU,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write the dataset folder `out` of the cubes of all nodules; splits and patients stay.

    A cube is a case (1, side, side, side), int16 HU, with the nodule's box as its middle half, its
    attenuation as label, and `size`, `attenuation`, `scan` and `scan_box` as traits.

    Raises:
        DataError: The dataset is not of volumes, or has no nodule whose traits are known.
    """
    if dataset.about["dimensions"] != 3:
        raise DataError(f"{dataset.folder}: slices; cubes are cut from volumes")

    quarter, rest = side_px // 4, side_px - side_px // 4
    middle = np.array([[quarter] * 3 + [rest] * 3], np.float32)
    about: dict[str, Any] = {"cubes_of": dataset.about["digest"], "window_hu": list(window_hu)}
    with DatasetWriter(
        out,
        patients_from=dataset.about["patients_from"],
        value_range=window_hu,
        splits=those_left(dataset.splits),
        drop_duplicates=True,
        about=about,
    ) as writer:
        for i, case in enumerate(dataset):
            known = nodules_of(case)
            for k, box, size, attenuation in known:
                cube = np.rint(cut(case.image.values[0], box, side_px)).astype(np.int16)[None]
                writer.add(
                    Case(
                        f"{case.case_id}/nodule-{k}",
                        case.patient_id,
                        Image(cube, unit="hu"),
                        label=attenuation,
                        boxes=middle,
                        traits={
                            "size": size,
                            "attenuation": attenuation,
                            "scan": case.case_id,
                            "scan_box": [round(float(edge), 3) for edge in box],
                        },
                        origin=case.origin,
                    )
                )
            if case.boxes is not None:
                for _ in range(len(case.boxes) - len(known)):
                    writer.drop("a nodule of unknown size or attenuation", case.case_id)
            progress(i + 1, len(dataset))
    return Dataset.open(out)
