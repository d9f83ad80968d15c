"""Classic augmentation: one composed affine resample of image and boxes, then intensity changes.

Flips, rotation, shear, zoom, shift and the resize to the served side are multiplied into one 2x3
matrix and applied by a single OpenCV warp, so that an image is interpolated once.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.boxes import clip, volume
from synthoma.errors import DataError


class Classic(BaseModel):
    """What classic augmentation may do. Defaults: Han et al. 2019 (file 002), two-step paper.

    Every range is symmetric about "no change"; each change is drawn independently and uniformly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip_x: bool = Field(True, description="Mirror left and right in half of the images.")
    flip_y: bool = Field(True, description="Mirror top and bottom in half of the images.")
    rotate_degrees: float = Field(10, ge=0, le=180)
    shift: float = Field(0.08, ge=0, le=0.5, description="Along y and x, as a share of the side.")
    shear: float = Field(0.08, ge=0, le=0.5, description="x moves by up to this share of y.")
    zoom: float = Field(0.08, ge=0, le=0.5, description="Scale between 1 - zoom and 1 + zoom.")
    brightness: float = Field(0, ge=0, le=1, description="Added, as a share of the value range.")
    contrast: float = Field(0, ge=0, le=1, description="Times 1 - contrast to 1 + contrast.")
    gamma: float = Field(0, ge=0, le=2, description="Exponent from 1 / (1 + gamma) to 1 + gamma.")
    noise: float = Field(
        0, ge=0, le=1, description="Standard deviation of Gaussian noise, up to this."
    )
    blur_px: float = Field(0, ge=0, le=5, description="Sigma of a Gaussian blur, up to this.")
    least_visible: float = Field(
        0.25, ge=0, le=1, description="A box that keeps less of its area in the image is dropped."
    )

    def in_words(self) -> str:
        """What is done to an image, for a report.

        Example:
            >>> Classic(flip_y=False, shift=0, shear=0, zoom=0).in_words()
            'mirrored left to right, turned by up to 10 degrees'
        """
        done = {
            "mirrored left to right": self.flip_x,
            "mirrored top to bottom": self.flip_y,
            f"turned by up to {self.rotate_degrees:g} degrees": self.rotate_degrees,
            f"shifted by up to {self.shift:.0%} of the side": self.shift,
            f"sheared by up to {self.shear:.0%}": self.shear,
            f"zoomed by up to {self.zoom:.0%}": self.zoom,
            f"brightness by up to {self.brightness:.0%}": self.brightness,
            f"contrast by up to {self.contrast:.0%}": self.contrast,
            f"gamma by up to {self.gamma:g}": self.gamma,
            f"noise of up to {self.noise:g}": self.noise,
            f"blurred by up to {self.blur_px:g} px": self.blur_px,
        }
        return ", ".join(words for words, wanted in done.items() if wanted) or "nothing"


#: Signal, of 1, below which a pixel is background: what interpolation leaves of -1 is not quite -1.
SILENCE = 1e-5

#: No change at all: the identity of `augment`.
STILL = Classic(flip_x=False, flip_y=False, rotate_degrees=0, shift=0, shear=0, zoom=0)

#: Half of the images flipped left to right, and nothing else.
MIRROR: Classic = STILL.model_copy(update={"flip_x": True})


def matrix(
    classic: Classic, chance: np.random.Generator, *, side_in: int, side_out: int
) -> Float64[np.ndarray, "3 3"]:
    """A random affine map from (x, y, 1) of the input to (x, y, 1) of the output, in pixel edges.

    Coordinates count from the image's corner, so that the centre of the first pixel is at 0.5.
    Always draws the same number of random values, whatever the settings.
    """
    flips = chance.random(2) < 0.5
    angle, shear, zoom, *shifts = chance.uniform(-1, 1, 5)
    radians = np.deg2rad(angle * classic.rotate_degrees)
    cos, sin = np.cos(radians), np.sin(radians)
    grow = 1 + zoom * classic.zoom
    flip = np.diag(
        [
            -1.0 if classic.flip_x and flips[0] else 1.0,
            -1.0 if classic.flip_y and flips[1] else 1.0,
            1.0,
        ]
    )
    rotate = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    slant = np.array([[1, shear * classic.shear, 0], [0, 1, 0], [0, 0, 1]])
    scale = np.diag([grow * side_out / side_in, grow * side_out / side_in, 1.0])
    from_centre = np.array([[1, 0, -side_in / 2], [0, 1, -side_in / 2], [0, 0, 1]])
    dx, dy = np.asarray(shifts) * classic.shift * side_out
    to_centre = np.array([[1, 0, side_out / 2 + dx], [0, 1, side_out / 2 + dy], [0, 0, 1]])
    return np.asarray(to_centre @ scale @ slant @ rotate @ flip @ from_centre)


def warp(
    image: Float32[np.ndarray, "c y x"],
    map_: Float64[np.ndarray, "3 3"],
    side_out: int,
    *,
    fill: float = -1.0,
) -> Float32[np.ndarray, "c side side"]:
    """`image` under `map_`, bilinear, constant fill; area-averaged first where it shrinks much."""
    side_in = image.shape[1]
    shrink = side_in / side_out
    if shrink >= 2:  # a warp samples; averaging first keeps it from aliasing
        smaller = int(side_in / int(shrink))
        planes = [cv2.resize(p, (smaller, smaller), interpolation=cv2.INTER_AREA) for p in image]
        image = np.stack(planes)
        map_ = map_ @ np.diag([side_in / smaller, side_in / smaller, 1.0])
    # OpenCV puts a pixel's centre at its integer coordinate, half a pixel from our edges
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    centres = np.linalg.inv(half) @ map_ @ half
    planes = [
        cv2.warpAffine(
            np.ascontiguousarray(plane),
            centres[:2],
            (side_out, side_out),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
        for plane in image
    ]
    return np.stack(planes)


def move_boxes(
    boxes: Float[np.ndarray, "m 4"],
    map_: Float64[np.ndarray, "3 3"],
    side_out: int,
    *,
    least_visible: float,
) -> tuple[Float32[np.ndarray, "k 4"], Int64[np.ndarray, " k"]]:
    """The axis-parallel boxes around the moved boxes, cut at the image.

    A turned box is replaced by the box around the ellipse inscribed in it (a lesion is rounder
    than its box), so that turning does not inflate boxes.

    Returns:
        Boxes and the indices of those that were kept.
    """
    if len(boxes) == 0:
        return boxes.reshape(0, 4).astype(np.float32), np.zeros(0, np.int64)
    y0, x0, y1, x1 = np.asarray(boxes, np.float64).T
    centre = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, np.ones(len(boxes))])
    cx, cy, _ = map_ @ centre
    radii = np.stack([(x1 - x0) / 2, (y1 - y0) / 2])
    half_x, half_y = np.sqrt((map_[:2, :2] ** 2) @ radii**2)
    moved = np.stack([cy - half_y, cx - half_x, cy + half_y, cx + half_x], axis=1)
    cut = clip(moved.astype(np.float32), (side_out, side_out))
    kept = np.flatnonzero((volume(cut) >= least_visible * volume(moved)) & (volume(cut) > 0))
    return cut[kept], kept


def change_intensity(
    image: Float32[np.ndarray, "c *space"], classic: Classic, chance: np.random.Generator
) -> Float32[np.ndarray, "c *space"]:
    """Gamma, contrast, brightness, blur and noise of an image in [-1, 1], cut to [-1, 1].

    Background (-1) stays background under gamma, contrast and brightness, which act on the signal
    above it: what was stripped away does not light up.
    """
    gamma, contrast, brightness = chance.uniform(-1, 1, 3)
    blur, noise = chance.random(2)
    if classic.gamma or classic.contrast or classic.brightness:
        signal = (image + 1) / 2
        signal[signal < SILENCE] = 0
        changed = signal ** np.float32((1 + classic.gamma) ** gamma)
        changed = changed * np.float32(1 + contrast * classic.contrast)
        changed = changed + np.float32(brightness * classic.brightness) * (signal > 0)
        image = changed * 2 - 1
    if classic.blur_px and blur * classic.blur_px > 0.1:
        sigma = blur * classic.blur_px
        image = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in image])
    if classic.noise:
        spread = np.float32(2 * noise * classic.noise)
        image = image + spread * chance.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, -1, 1)


def augment(
    image: Float32[np.ndarray, "c y x"],
    boxes: Float[np.ndarray, "m 4"],
    classic: Classic,
    chance: np.random.Generator,
    *,
    side_px: int,
) -> tuple[Float32[np.ndarray, "c side side"], Float32[np.ndarray, "k 4"], Int64[np.ndarray, " k"]]:
    """A randomly changed copy of a square image in [-1, 1] and its boxes.

    Returns:
        The image at `side_px`, the boxes that are still visible, and their indices.

    Raises:
        DataError: The image is not square, or not 2D.
    """
    if image.ndim != 3 or image.shape[1] != image.shape[2]:
        raise DataError(
            f"classic augmentation is for square 2D images, not {image.shape}; run "
            "`synthoma data prepare`, or ask for no augmentation"
        )
    map_ = matrix(classic, chance, side_in=image.shape[1], side_out=side_px)
    changed = change_intensity(warp(image, map_, side_px), classic, chance)
    moved, kept = move_boxes(boxes, map_, side_px, least_visible=classic.least_visible)
    return changed, moved, kept
