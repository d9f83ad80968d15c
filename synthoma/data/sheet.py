"""Contact sheets: many images in one PNG, their boxes drawn on a copy, never in the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from synthoma.errors import DataError

#: Colours of boxes by class, distinguishable by most colour-blind people (Wong 2011).
COLOURS = ((240, 228, 66), (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167))


def to_bytes(
    values: np.ndarray, value_range: tuple[float, float] | None
) -> UInt8[np.ndarray, "c y x"]:
    """Grey values 0 to 255 for showing; without a range, the image's own extremes are used.

    A volume is shown by its middle slice, NaN as 0.
    """
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    known = np.isfinite(values)
    values = np.where(known, values, 0).astype(np.float32)
    low, high = value_range or (float(values.min()), float(values.max()))
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def draw_boxes(
    image: UInt8[np.ndarray, "c y x"],
    boxes: Float[np.ndarray, "m 4"],
    *,
    side_px: int,
    classes: Sequence[int] | None = None,
) -> UInt8[np.ndarray, "side side 3"]:
    """An RGB picture of `side_px`, the image fitted into it and its boxes outlined."""
    grey = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, axis=0)
    height, width = grey.shape[1:]
    factor = side_px / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    fitted = cv2.resize(np.ascontiguousarray(grey.transpose(1, 2, 0)), size, interpolation=way)
    canvas = np.zeros((side_px, side_px, 3), np.uint8)
    top, left = (side_px - size[1]) // 2, (side_px - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = fitted
    for k, (y0, x0, y1, x1) in enumerate(np.asarray(boxes, np.float64)):
        low = (round(left + x0 * factor) - 1, round(top + y0 * factor) - 1)
        high = (round(left + x1 * factor), round(top + y1 * factor))
        colour = COLOURS[(classes[k] if classes is not None else 0) % len(COLOURS)]
        cv2.rectangle(canvas, low, high, colour, 1)
    return canvas


def contact_sheet(
    tiles: Sequence[UInt8[np.ndarray, "side side 3"]], *, columns: int = 8, gap_px: int = 2
) -> UInt8[np.ndarray, "y x 3"]:
    """Tiles of one size in rows, on black.

    Raises:
        DataError: There are none.
    """
    if not tiles:
        raise DataError("there is no picture to show")
    side = tiles[0].shape[0]
    rows = -(-len(tiles) // columns)
    columns = min(columns, len(tiles))
    step = side + gap_px
    sheet = np.zeros((rows * step - gap_px, columns * step - gap_px, 3), np.uint8)
    for k, tile in enumerate(tiles):
        y, x = divmod(k, columns)
        sheet[y * step : y * step + side, x * step : x * step + side] = tile
    return sheet


def titled(picture: UInt8[np.ndarray, "y x 3"], text: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture under a line of text, on black, as wide as the wider of both."""
    font, size, strip_px = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 18
    width = max(picture.shape[1], cv2.getTextSize(text, font, size, 1)[0][0] + 8)
    whole = np.zeros((strip_px + picture.shape[0], width, 3), np.uint8)
    cv2.putText(whole, text, (4, strip_px - 6), font, size, (255, 255, 255), 1, cv2.LINE_AA)
    whole[strip_px:, : picture.shape[1]] = picture
    return whole


def write_png(
    path: Path, picture: UInt8[np.ndarray, "y x 3"], facts: Mapping[str, str] | None = None
) -> None:
    """Write a PNG with text chunks; a synthetic picture carries ``Synthetic: yes`` in `facts`."""
    chunks = PngInfo()
    for name, text in (facts or {}).items():
        chunks.add_itxt(name, text)
    draft = path.with_name(f".{path.name}.partial")
    try:
        Picture.fromarray(picture).save(draft, format="PNG", pnginfo=chunks)
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
