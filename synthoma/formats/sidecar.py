"""The JSON beside a NIfTI file that synthoma wrote."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from synthoma.data.case import Image, Synthetic
from synthoma.errors import DataError
from synthoma.formats.slices import Axis
from synthoma.formats.source import NOTE_BYTES, read_json_within


class Sidecar(BaseModel):
    """The JSON beside a NIfTI file that synthoma wrote: what the file itself cannot say."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    synthoma: str
    synthetic: Literal["yes", "no"]
    run: str = ""
    seed: int = 0
    axis: Axis
    dtype: Literal["uint8", "uint16", "int16", "float16", "float32"]
    boxes: tuple[tuple[float, ...], ...] | None = None
    box_labels: tuple[str, ...] = ()

    @property
    def origin(self) -> Synthetic | None:
        """Whose it is, if it is synthetic."""
        return Synthetic(self.run, self.seed) if self.synthetic == "yes" else None

    def axis_of(self, wanted: Axis) -> Axis:
        """A file that holds one slice gives that slice."""
        return wanted if self.axis == "volume" else self.axis

    def own(self, image: Image) -> Image:
        """The image in the type that it had."""
        return Image(image.values.astype(self.dtype), image.spacing_mm, image.affine, image.unit)

    def boxes_in(self, dimensions: int) -> np.ndarray | None:
        """The exact boxes, where boxes were annotated."""
        if self.boxes is None:
            return None
        try:
            return np.array(self.boxes, np.float32).reshape(-1, 2 * dimensions)
        except ValueError:
            raise DataError(f"boxes {self.boxes} in {dimensions}D") from None


def read_sidecar(path: Path) -> Sidecar | None:
    """What synthoma wrote beside a file, None where it did not."""
    beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not beside.is_file():
        return None
    content = read_json_within(beside, NOTE_BYTES)
    if not isinstance(content, dict) or "synthoma" not in content:
        return None
    try:
        return Sidecar.model_validate(content)
    except ValueError as error:
        raise DataError(f"{beside}: damaged ({str(error).splitlines()[0]})") from None
