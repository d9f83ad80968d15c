"""PNG, JPEG and TIFF: pictures with 8 or 16 bits a pixel, one or three channels.

    file <-> values (1 | 3, y, x) uint8, uint16, int16 or float32

What a file declares is checked before anything is decoded: at most `LIMIT_BYTES` decoded, one page,
few scans of a progressive JPEG. A palette becomes colours; transparency is dropped and noted; the
camera's orientation (EXIF) is applied and noted. 16-bit colour is refused: Pillow would read it
as 8-bit.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.case import Case, Image, Synthetic
from synthoma.errors import DataError
from synthoma.formats.source import Tally, origin_words

#: Suffixes, in lower case.
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
KINDS = dict(zip(PICTURES, ("PNG", "JPEG", "JPEG", "TIFF", "TIFF"), strict=True))
#: Decoded size of the largest picture: 11,585 x 11,585 grey pixels of 8 bits.
LIMIT_BYTES = 1 << 27
#: Pixels times scans of the largest JPEG: a small progressive file can ask for hours of decoding.
LIMIT_SCANNED = 1 << 30
#: Channels that differ by no more than this are the same grey, stored three times by a lossy codec.
GREY_TOLERANCE = 2
SAMPLED = 16
#: Rows that are compared at a time.
STRIP = 64
GREY_MODES = {"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I", "F"}
COLOUR_MODES = {"RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr"}
#: What Pillow and the codecs under it raise for a damaged file.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
           OverflowError, MemoryError, AttributeError, ZeroDivisionError, RuntimeError,
           Pillow.DecompressionBombError, Warning)  # fmt: skip


class PictureSettings(BaseModel):
    """How pictures are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    colour: Literal["auto", "grey", "rgb"] = Field(
        "auto",
        description="Channels of every image of the set: grey is one, rgb is three; auto is rgb "
        "if one of 16 images spread over the set has colours, else grey (then a coloured image is "
        "an error that says so).",
    )


class PictureReader:
    """Reads the pictures of one set, all with the same number of channels.

    Args:
        part: Name of the format, under which a person types its settings (csv.colour=rgb).
        settings: Which channels are wanted.
        sample: The paths of the set's files; 16 of them decide what "auto" means.
        tally: Counts what is changed.
    """

    def __init__(
        self,
        part: str,
        settings: PictureSettings,
        sample: Callable[[], Sequence[Path]],
        tally: Tally,
    ) -> None:
        self.part, self.settings, self.sample, self.tally = part, settings, sample, tally
        self.channels = {"auto": 0, "grey": 1, "rgb": 3}[settings.colour]

    def read(self, path: Path) -> tuple[Image, Synthetic | None]:
        """One picture, and where it says that it is synthetic, whose.

        Raises:
            DataError: The file is missing, damaged, too large or of another kind.
        """
        values, text, notes = decode(path)
        for note in notes:
            self.tally.note(note)
        if not self.channels:
            self.channels = self._decide()
        if len(values) == 3 and self.channels == 1:
            values = self._to_grey(path, values)
        elif len(values) == 1 and self.channels == 3:
            values = np.repeat(values, 3, axis=0)
            self.tally.note("grey repeated to three channels")
        origin = None
        if text.get("Synthetic") == "yes":
            seed = text.get("Seed", "")
            origin = Synthetic(text.get("Run", "unknown"), int(seed) if seed.isdecimal() else 0)
        return Image(values), origin

    def _to_grey(self, path: Path, values: Shaped[np.ndarray, "3 y x"]) -> np.ndarray:
        if is_grey(values):
            return values[:1]
        if self.settings.colour == "auto":
            raise DataError(
                f"{path}: in colour, while the set is grey; give --set {self.part}.colour=rgb "
                f"(grey images are repeated to three channels) or --set {self.part}.colour=grey "
                "(colours are averaged)"
            )
        self.tally.note("colour averaged to grey")
        weights = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)  # luma, ITU-R BT.601
        grey: np.ndarray = (
            (values * weights).sum(axis=0, keepdims=True).round().astype(values.dtype)
        )
        return grey

    def _decide(self) -> int:
        paths = self.sample()
        chosen = {round(i * (len(paths) - 1) / (SAMPLED - 1)) for i in range(SAMPLED)}
        for i in sorted(chosen):
            try:
                values, _, _ = decode(paths[i])
            except DataError:
                continue  # it is reported when its turn comes
            if len(values) == 3 and not is_grey(values):
                return 3
        return 1


def is_grey(values: Shaped[np.ndarray, "3 y x"]) -> bool:
    """Whether the three channels are the same but for the noise of a lossy codec."""
    for top in range(0, values.shape[1], STRIP):
        red, green, blue = values[:, top : top + STRIP].astype(np.int32)
        if max(np.abs(red - green).max(), np.abs(green - blue).max()) > GREY_TOLERANCE:
            return False
    return True


def decode(path: Path) -> tuple[Shaped[np.ndarray, "c y x"], dict[str, str], list[str]]:
    """A picture's values, its text entries, and what was changed in reading it.

    Raises:
        DataError: As `PictureReader.read`.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # damaged EXIF, which we need not
            return _decode(path)
    except DataError:
        raise
    except UnidentifiedImageError:
        kind = KINDS.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path}: not a picture; allowed: {', '.join(PICTURES)}") from None
        raise DataError(
            f"{path}: its content is not that of a {kind} picture (damaged, or a file of another "
            "kind under this name); allowed content: PNG, JPEG, TIFF"
        ) from None
    except DAMAGED as error:
        raise DataError(f"{path}: damaged picture ({str(error) or type(error).__name__})") from None


def _decode(path: Path) -> tuple[np.ndarray, dict[str, str], list[str]]:
    notes = []
    with Pillow.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
        _check_declared(path, picture)
        text = {k: v for k, v in picture.info.items() if isinstance(k, str) and isinstance(v, str)}
        turned = picture.getexif().get(0x0112, 1) not in (0, 1)
        picture.load()
        mode = picture.mode
        upright = ImageOps.exif_transpose(picture) if turned else picture
        if turned:
            notes.append("turned upright (EXIF)")
        if "A" in mode or "a" in mode or "transparency" in picture.info:
            notes.append("transparency dropped")
        if mode in COLOUR_MODES:
            if "transparency" in upright.info and mode == "P":
                upright = upright.convert("RGBA")
            values = np.asarray(upright if mode == "RGB" else upright.convert("RGB"))
            return np.ascontiguousarray(values.transpose(2, 0, 1)), text, notes
        if mode not in GREY_MODES:
            raise DataError(f"{path}: pixels of kind {mode!r}; allowed: grey, RGB, palette, CMYK")
        if mode in ("1", "LA", "La"):
            upright = upright.convert("L")
        return _exact(path, np.asarray(upright))[None], text, notes


def _check_declared(path: Path, picture: Pillow.Image) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise DataError(f"{path}: {width} x {height} pixels")
    tags: Any = getattr(picture, "tag_v2", {})
    tile = [tags.get(code, 1) for code in (322, 323)]
    tile = [side if isinstance(side, int) else 1 for side in tile]
    n_pixels = max(width * height, tile[0] * tile[1])
    n_bytes = n_pixels * (3 if picture.mode in COLOUR_MODES else 1)
    n_bytes *= {"I": 4, "F": 4}.get(picture.mode, 2 if picture.mode.startswith("I;16") else 1)
    if n_bytes > LIMIT_BYTES:
        raise DataError(
            f"{path}: declares {width} x {height} pixels, {n_bytes / 2**20:.0f} MiB decoded; "
            f"at most {LIMIT_BYTES / 2**20:.0f} MiB"
        )
    if getattr(picture, "is_animated", False):
        raise DataError(f"{path}: more than one page or frame; allowed: one picture a file")
    if picture.format == "PNG":
        with path.open("rb") as file:
            start = file.read(26)
        if start[24] == 16 and picture.mode in COLOUR_MODES:
            raise DataError(f"{path}: 16-bit colour; allowed: 16-bit grey or 8-bit colour")
    if picture.format == "JPEG":
        n_scans = path.read_bytes().count(b"\xff\xda") if path.stat().st_size < LIMIT_BYTES else 99
        if n_scans * width * height > LIMIT_SCANNED:
            raise DataError(f"{path}: {n_scans} scans of {width} x {height} pixels; refused")


def _exact(path: Path, values: Shaped[np.ndarray, "y x"]) -> Shaped[np.ndarray, "y x"]:
    """The same values in a type that a dataset folder stores."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(f"{path}: {np.count_nonzero(~np.isfinite(values))} pixels not finite")
        return values.astype(np.float32)
    for kind in ("uint8", "uint16", "int16"):
        limits = np.iinfo(kind)
        if values.dtype == np.dtype(kind) or (
            values.dtype.itemsize > 2 and values.min() >= limits.min and values.max() <= limits.max
        ):
            return np.ascontiguousarray(values, np.dtype(kind))
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return values.astype(np.uint16)
    raise DataError(f"{path}: values from {values.min()} to {values.max()}; allowed: 16 bits")


def write_png(path: Path, case: Case) -> None:
    """Write a case's image as PNG; a text chunk says whether it is synthetic.

    Args:
        path: The file to write.
        case: Its image is (1, y, x) uint8 or uint16 (int16 if nothing is below 0), or (3, y, x)
            uint8.

    Raises:
        DataError: PNG cannot hold the values.
    """
    values = case.image.values
    if values.dtype == np.int16 and values.min() >= 0:
        values = values.astype(np.uint16)
    fits = values.dtype == np.uint8 or (values.dtype == np.uint16 and len(values) == 1)
    if values.ndim != 3 or len(values) not in (1, 3) or not fits:
        raise DataError(
            f"case {case.case_id!r}: {values.dtype.name} {values.shape} with values from "
            f"{values.min()} to {values.max()} cannot be a PNG; prepare the dataset first "
            "(data prepare), or export it as nifti"
        )
    text = PngInfo()
    for key, word in origin_words(case.origin).items():
        text.add_itxt(key, word) if not word.isascii() else text.add_text(key, word)
    pixels = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(
        buffer, "PNG", pnginfo=text, compress_level=1
    )
    path.write_bytes(buffer.getvalue())
