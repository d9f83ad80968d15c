"""From images as scanners give them to what a network trains on: square, 8 bits, one scale.

    grey -> intensity window -> crop to the foreground -> pad or stretch to a square -> resize

Boxes follow. What is left out is counted in dataset.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32
from pydantic import BaseModel, ConfigDict, Field, model_validator

from synthoma.data.boxes import around, clip, shift, sides
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.split import those_left
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError

#: Why a case is left out of what is trained to tell classes apart.
NO_LABEL = "no label"


class Prepare(BaseModel):
    """How images are prepared. Every set that is mixed later must be prepared alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(256, ge=8, le=4096, description="Side of the square result.")
    grey: bool = Field(True, description="Average colour channels into one.")
    intensity: Literal["percentiles", "window", "keep"] = Field(
        "percentiles",
        description="percentiles: of the foreground of the slice, or of its volume where the "
        "import knows them; window: `window`, in the file's units (HU for CT); keep: the range "
        "that the set already has.",
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5),
        description="Foreground percentiles of a slice that become black and white; a volume's are "
        "those that its import took (NIfTI: 1 and 99).",
    )
    window: tuple[float, float] = Field(
        (-1000.0, 400.0), description="Values that become black and white, for `window`."
    )
    crop: bool = Field(True, description="Crop to the foreground before resizing.")
    margin: float = Field(0.02, ge=0, le=1, description="Left around it, as a share of its size.")
    fit: Literal["pad", "stretch"] = Field(
        "pad", description="How a crop becomes square: black borders, or stretched."
    )
    least_box_px: float = Field(
        1.0, ge=0, description="Boxes with a shorter side than this in the result are dropped."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Prepare":
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles: allowed are two from 0 to 100, the lower one first")
        if not -np.inf < self.window[0] < self.window[1] < np.inf:
            raise ValueError("window: allowed are two numbers, the lower one first")
        return self


def prepare(
    dataset: Dataset,
    out: Path,
    settings: Prepare,
    progress: Callable[[int, int], None] = lambda done, n: None,
    *,
    labelled: bool = False,
) -> Dataset:
    """Write a prepared copy of a 2D dataset; splits, patients and labels stay.

    Args:
        labelled: Leave out cases without a label; dataset.json counts them.

    Raises:
        DataError: The set is 3D, or its values cannot be brought into a range.
    """
    about = dataset.about
    if about["dimensions"] != 2:
        raise DataError(f"{dataset.folder}: 3D; `prepare` is for slices (import with an axis)")

    steps = [*about.get("prepared", []), settings.model_dump(mode="json")]
    with DatasetWriter(
        out,
        patients_from=about["patients_from"],
        value_range=(0, 255),
        splits=those_left(dataset.splits),
        drop_duplicates=True,  # two that differ only outside the window are one image now
        about={"prepared": steps, "from": {"digest": about["digest"], "dropped": about["dropped"]}},
    ) as writer:
        for i, case in enumerate(dataset):
            if labelled and case.label is None:
                writer.drop(NO_LABEL, case.case_id)
            elif (done := prepare_case(case, settings, about["value_range"])) is None:
                writer.drop("blank after scaling", case.case_id)
            else:
                for _ in range(count(case.boxes) - count(done.boxes)):
                    writer.drop("box too small at this size", case.case_id)
                writer.add(done)
            progress(i + 1, len(dataset))
    return Dataset.open(out)


def count(boxes: Float[np.ndarray, "m 4"] | None) -> int:
    """How many boxes are known."""
    return 0 if boxes is None else len(boxes)


def prepare_case(
    case: Case, settings: Prepare, value_range: tuple[float, float] | None
) -> Case | None:
    """One prepared case, or None where nothing but background is left.

    Raises:
        DataError: Its values are not finite, or have no known range and intensity is "keep".
    """
    values = case.image.values.astype(np.float32)
    if not np.isfinite(values).all():
        n = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise DataError(
            f"case {case.case_id!r}: {n} of its {values.size} values are not finite (NaN or "
            "infinite); correct the file, or leave it out"
        )
    if settings.grey and values.shape[0] > 1:
        values = values.mean(axis=0, keepdims=True)
    foreground = find_foreground(values)
    if not foreground.any():
        return None
    low, high = black_and_white(values, foreground, case, settings, value_range)
    scaled = np.clip((values - low) * (255 / (high - low)), 0, 255)
    boxes = case.boxes
    if settings.crop:
        y0, x0, y1, x1 = crop_around(foreground, settings.margin, boxes)
        scaled = scaled[:, y0:y1, x0:x1]
        boxes = None if boxes is None else shift(boxes, (-y0, -x0))
    picture, factors, offset = to_square(scaled, settings)
    if picture.max() < 0.5:  # all black in 8 bits
        return None
    kept, labels = None, case.box_labels
    if boxes is not None:
        moved = shift(boxes * np.asarray(factors * 2), offset)
        moved = clip(moved.astype(np.float32), (settings.side_px,) * 2)
        keep = sides(moved).min(axis=1, initial=np.inf) >= settings.least_box_px
        kept = moved[keep]
        labels = tuple(n for n, k in zip(case.box_labels, keep, strict=False) if k)
    spacing = case.image.spacing_mm
    return Case(
        case_id=case.case_id,
        patient_id=case.patient_id,
        image=Image(
            np.rint(picture).astype(np.uint8),
            spacing_mm=spacing and tuple(s / f for s, f in zip(spacing, factors, strict=True)),
        ),
        label=case.label,
        boxes=kept,
        box_labels=labels,
        traits=case.traits,
        origin=case.origin,
    )


def find_foreground(values: Float32[np.ndarray, "c y x"]) -> Bool[np.ndarray, "y x"]:
    """Pixels of the body: brighter than a twentieth of the way from black to bright.

    Black is the median of the image's outermost pixels, but no brighter than its first quartile
    (an X-ray has body at its edges); the minimum would not do, because interpolation leaves
    values below that of the air in stripped images. Bright is the 99th percentile. Specks are
    opened away, so that noise and compression artefacts in the air do not count.
    """
    flat = values.max(axis=0)
    edge = np.concatenate([flat[0], flat[-1], flat[:, 0], flat[:, -1]])
    low = float(min(np.median(edge), np.percentile(flat, 25)))
    high = float(np.percentile(flat, 99))
    if high <= low:
        high = float(flat.max())
    if high <= low:
        return np.zeros(flat.shape, bool)
    mask = (flat > low + 0.05 * (high - low)).astype(np.uint8)
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray((opened if opened.any() else mask).astype(bool))


def black_and_white(
    values: np.ndarray,
    foreground: np.ndarray,
    case: Case,
    settings: Prepare,
    value_range: tuple[float, float] | None,
) -> tuple[float, float]:
    """The values that become 0 and 255."""
    if settings.intensity == "window":
        return settings.window
    if settings.intensity == "keep":
        if value_range is None:
            raise DataError(
                f"case {case.case_id!r}: intensity=keep, but the set has no known range; allowed: "
                "percentiles, window"
            )
        return value_range
    of_volume = case.traits.get("percentiles")
    if isinstance(of_volume, dict) and of_volume:
        known = sorted(of_volume.items(), key=lambda item: float(item[0]))
        low, high = float(known[0][1]), float(known[-1][1])
    else:
        low, high = np.percentile(values[:, foreground], settings.percentiles)
    darkest = float(values.min())
    low = min(low, darkest) if settings.percentiles[0] == 0 else low
    return (float(low), float(high)) if high > low else (darkest, float(values.max()))


def crop_around(
    foreground: Bool[np.ndarray, "y x"],
    margin: float,
    boxes: Float[np.ndarray, "m 4"] | None,
) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1) around the foreground and all boxes, with a margin, within the image."""
    y0, x0, y1, x1 = around(foreground)[0]
    if boxes is not None and len(boxes):
        y0, x0 = min(y0, boxes[:, 0].min()), min(x0, boxes[:, 1].min())
        y1, x1 = max(y1, boxes[:, 2].max()), max(x1, boxes[:, 3].max())
    dy, dx = margin * (y1 - y0), margin * (x1 - x0)
    height, width = foreground.shape
    return (
        max(0, int(np.floor(y0 - dy))),
        max(0, int(np.floor(x0 - dx))),
        min(height, int(np.ceil(y1 + dy))),
        min(width, int(np.ceil(x1 + dx))),
    )


def to_square(
    values: Float32[np.ndarray, "c y x"], settings: Prepare
) -> tuple[Float32[np.ndarray, "c side side"], tuple[float, float], tuple[float, float]]:
    """The image at `side_px`, and the factors and offsets (y, x) that boxes follow."""
    side = settings.side_px
    height, width = values.shape[1:]
    if settings.fit == "stretch":
        new = (side, side)
    else:
        factor = side / max(height, width)
        new = (max(1, round(height * factor)), max(1, round(width * factor)))
    smaller = (min(new[0], height), min(new[1], width))  # an axis may shrink while the other grows
    square = np.zeros((values.shape[0], side, side), np.float32)
    top, left = (side - new[0]) // 2, (side - new[1]) // 2
    for k, plane in enumerate(values):
        part = np.ascontiguousarray(plane)
        if smaller != (height, width):
            part = cv2.resize(part, smaller[::-1], interpolation=cv2.INTER_AREA)
        resized = cv2.resize(part, new[::-1], interpolation=cv2.INTER_LINEAR)
        square[k, top : top + new[0], left : left + new[1]] = resized
    return square, (new[0] / height, new[1] / width), (float(top), float(left))
