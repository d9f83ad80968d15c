"""brats: folders of BraTS, of any year, to slices with and without tumour. Read only.

    HGG/Brats18_A_1_1/Brats18_A_1_1_t1ce.nii.gz -> ...t1ce.nii.gz#axial-030, ...

`brats_cases.py` says which files are a case and whose. One sequence, several pooled, or several
stacked as channels. A slice is labelled by the area of tumour in its mask; some tumour, but less
than `least_area_mm2`, is ambiguous: the slice is left out and counted.

Every slice of a volume has the same intensity scale: that of the percentiles of all its voxels
that are not 0, taken before any slice is cut.

Papers:
  Han et al. 2018, GAN-based synthetic brain MR image generation: sagittal, slices 80 to 149, the
    four sequences alone or pooled ("Concat")
  Han et al. 2019, Combining noise-to-image and image-to-image GANs: T1c, axial, 30 to 130, padded
    from 240 to 256
Differs from the papers: least areas of tumour and brain, and the percentiles, are ours; the papers
excluded slices by eye.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from synthoma.data.case import Case, Image, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.brats_cases import MASK, SUFFIXES, BratsCase, find_cases
from synthoma.formats.metaimage import SUFFIX, read_mha
from synthoma.formats.slices import cut, len_along
from synthoma.formats.source import Entry, Found, Reading, Tally, inside, walk
from synthoma.formats.volumes import LIMIT_BYTES, Volume, percentiles, read_volume

Sequence = Literal["T1", "T1c", "T2", "FLAIR"]


class BratsSettings(BaseModel):
    """How BraTS cases become slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: tuple[Sequence, ...] = Field(
        ("T1c",), min_length=1, description="Which of T1, T1c, T2, FLAIR; a case must have them."
    )
    combine: Literal["pool", "stack"] = Field(
        "pool",
        description="Several sequences: pool makes each slice of each an image, in equal parts; "
        "stack makes them the channels of one image.",
    )
    axis: Literal["axial", "coronal", "sagittal"] = Field("axial", description="Slices across it.")
    slices: tuple[int, int] | None = Field(
        None, description="Which slices: first and last, both in, counted from 0."
    )
    extent: tuple[float, float] = Field(
        (0.0, 1.0), description="Which slices: from and to, as fractions of the axis."
    )
    every: int = Field(1, ge=1, description="Every n-th slice of those.")
    lesion_values: tuple[int, ...] = Field(
        (), description="Values of the mask that are tumour; none given: all but 0."
    )
    least_area_mm2: float = Field(
        50.0,
        ge=0,
        description="Slices with less tumour, but some, are ambiguous: left out and counted.",
    )
    least_brain: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of a slice that must be brain (not 0); slices with less are left out "
        "and counted.",
    )
    least_voxels: int = Field(
        1, ge=1, description="Components with fewer voxels get no box, and are counted."
    )
    canvas_px: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="Pad slices with 0 or crop them around their centre to this square, without "
        "resizing (the paper: 240 to 256); not given: as they are.",
    )
    intensity: Literal["percentiles", "keep"] = Field(
        "percentiles",
        description="percentiles: those of a volume become 0 and 255, in 8 bits; keep: values as "
        "the file has them, and `data prepare` scales them by the same percentiles.",
    )
    percentiles: tuple[float, float] = Field(
        (1.0, 99.0), description="Of a volume's voxels that are not 0: black and white."
    )
    label_with: str = Field("tumour", description="Label of slices with tumour.")
    label_without: str = Field("normal", description="Label of slices without.")

    @model_validator(mode="after")
    def _check(self) -> "BratsSettings":
        if not 0 <= self.extent[0] < self.extent[1] <= 1:
            raise ValueError(f"extent {self.extent}; allowed: 0 <= from < to <= 1")
        if self.slices is not None and not 0 <= self.slices[0] <= self.slices[1]:
            raise ValueError(f"slices {self.slices}; allowed: 0 <= first <= last")
        if self.slices is not None and self.extent != (0.0, 1.0):
            raise ValueError("slices and extent are given; one is allowed")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles: allowed are two from 0 to 100, the lower one first")
        if len(set(self.sequences)) < len(self.sequences):
            raise ValueError(f"sequences {self.sequences}; allowed: each once")
        if self.combine == "stack" and self.intensity == "keep":
            raise ValueError(
                "stacked sequences have a scale each, which prepare cannot give them; allowed: "
                "intensity=percentiles"
            )
        return self


Settings = BratsSettings


def read(
    source: Path, settings: BratsSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the cases of a folder; an entry is a case, which is read whole or not at all.

    Raises:
        DataError: It is no folder, or nothing in it is called as in any BraTS.
    """
    names = walk(source)
    volumes = [name for name in names if name.lower().endswith(SUFFIXES)]
    cases, strays = find_cases(volumes, source.resolve().name)
    if not cases:
        raise DataError(
            f"{source}: no file here is called as in BraTS (..._t1ce.nii.gz, ..MR_T1c.54514.mha); "
            "allowed: " + ", ".join(SUFFIXES)
        )
    for name in sorted(set(names) - set(volumes)):
        tally.drop("not a volume", name)
    for name in strays:
        tally.drop("a volume that is no sequence or mask by its name", name)
    reader = CaseReader(source, settings, tally)
    return Reading(
        source,
        [Entry(case.name, partial(reader.read, case)) for case in cases],
        patients_from="the case's name without its visit, as the year of BraTS has it",
        patients_guessed=True,
        pictures=settings.intensity == "percentiles",
    )


class CaseReader:
    """Reads cases into slices."""

    def __init__(self, root: Path, settings: BratsSettings, tally: Tally) -> None:
        self.root, self.settings, self.tally = root, settings, tally

    def read(self, case: BratsCase) -> list[Found]:
        """The slices of one case that are wanted and clear."""
        files = [self._file(case, sequence) for sequence in self.settings.sequences]
        volumes, n_bytes = [], 0
        for name in files:
            volumes.append(read_any(inside(self.root, name)))
            n_bytes += volumes[-1].values.nbytes
            if n_bytes > LIMIT_BYTES:
                raise DataError(f"{case.name}: its volumes take over {LIMIT_BYTES >> 20} MiB")
            check_place(volumes[-1], volumes[0], name, files[0])
        spreads = [
            spread_of(volume, self.settings.percentiles, name)
            for volume, name in zip(volumes, files, strict=True)
        ]
        tumour = self._tumour(case, volumes[0], files[0])
        axis = self.settings.axis
        wanted = self._wanted(len_along(volumes[0].values, axis), case)
        found: list[Found] = []
        for planes in zip(*(cut(volume, tumour, axis) for volume in volumes), strict=True):
            k, _, mask = planes[0]
            if k not in wanted:
                continue
            end = f"#{axis}-{k:03}"
            images = [self._on_canvas(image) for _, image, _ in planes]
            if mask is not None and self.settings.canvas_px is not None:
                mask = centred(mask[None], self.settings.canvas_px)[0]
            if not self._clear(images[0], mask, case.name + end):
                continue
            if self.settings.intensity == "percentiles":
                images = [scaled(image, s) for image, s in zip(images, spreads, strict=True)]
            if any(image.values.min() == image.values.max() for image in images):
                self.tally.drop("blank slice", case.name + end)
                continue
            about = self._about(case, images[0], mask, end)
            found += [
                replace(about, name=name + end, image=image,
                        traits=dict(about.traits) | self._scale(sequence, spread))
                for name, sequence, image, spread in self._combined(case, files, images, spreads)
            ]  # fmt: skip
        return found

    def _file(self, case: BratsCase, role: str) -> str:
        names = case.files.get(role, [])
        if len(names) != 1:
            there = ", ".join(f"{r} ({len(f)})" for r, f in sorted(case.files.items()))
            raise DataError(f"{case.name}: {len(names)} files are its {role}, one is wanted; has "
                            f"{there}")  # fmt: skip
        return names[0]

    def _tumour(
        self, case: BratsCase, like: Volume, name: str
    ) -> Shaped[np.ndarray, "z y x"] | None:
        """Where tumour is; None where the case has no mask."""
        if MASK not in case.files:
            self.tally.note("case without a mask: its slices have no label and no boxes")
            return None
        file = self._file(case, MASK)
        mask = read_any(inside(self.root, file))
        check_place(mask, like, file, name)
        if mask.values.dtype.kind == "f" and (mask.values != np.rint(mask.values)).any():
            raise DataError(f"{file}: the mask has fractions; allowed: whole numbers")
        values = self.settings.lesion_values
        tumour: np.ndarray = np.isin(mask.values, values) if values else mask.values != 0
        return tumour

    def _wanted(self, n: int, case: BratsCase) -> range:
        if self.settings.slices is not None:
            first, last = self.settings.slices
            if first >= n:
                raise DataError(f"{case.name}: no slice {first}; there are {n}, counted from 0")
            return range(first, min(last + 1, n), self.settings.every)
        start, end = (int(np.ceil(share * n)) for share in self.settings.extent)
        return range(start, end, self.settings.every)

    def _clear(self, image: Image, mask: Shaped[np.ndarray, "y x"] | None, title: str) -> bool:
        """Whether a slice shows enough brain, and enough tumour or none; else it is counted."""
        if np.count_nonzero(image.values) < max(1.0, self.settings.least_brain * image.values.size):
            self.tally.drop("slice with little or no brain", title)
            return False
        if mask is not None and mask.any() and area_mm2(mask, image) < self.settings.least_area_mm2:
            self.tally.drop("ambiguous slice: some tumour, less than least_area_mm2", title)
            return False
        return True

    def _on_canvas(self, image: Image) -> Image:
        """A slice padded or cropped; its affine follows."""
        side = self.settings.canvas_px
        if side is None:
            return image
        height, width = image.space
        move = np.eye(4)  # where the canvas's first pixel is in the slice
        move[:2, 3] = (-((side - width) // 2), -((side - height) // 2))
        affine = None if image.affine is None else image.affine @ move
        return Image(centred(image.values, side), image.spacing_mm, affine)

    def _about(
        self, case: BratsCase, image: Image, mask: Shaped[np.ndarray, "y x"] | None, end: str
    ) -> Found:
        """What is known of a slice, whatever its sequence."""
        traits: dict[str, Any] = {
            "case": case.name,
            "axis": self.settings.axis,
            "slice": int(end.rpartition("-")[2]),
        }
        if case.grade:
            traits["grade"] = case.grade
        about = Found(case.name + end, image, patient=case.patient, traits=traits)
        if mask is None:
            return about
        traits["tumour_mm2"] = round(area_mm2(mask, image), 1)
        label = self.settings.label_with if mask.any() else self.settings.label_without
        return replace(about, label=label, boxes=self._boxes(mask, case.name + end))

    def _combined(
        self,
        case: BratsCase,
        files: list[str],
        images: list[Image],
        spreads: list[tuple[float, float]],
    ) -> list[tuple[str, str, Image, tuple[float, float]]]:
        """An image of each sequence, or one of all: its file, sequence, image and scale."""
        if self.settings.combine == "pool":
            return list(zip(files, self.settings.sequences, images, spreads, strict=True))
        values = np.concatenate([image.values for image in images])
        stacked = Image(values, images[0].spacing_mm, images[0].affine)
        return [(case.name, "+".join(self.settings.sequences), stacked, spreads[0])]

    def _scale(self, sequence: str, spread: tuple[float, float]) -> dict[str, Any]:
        """What the percentiles are in the values that are kept; `data prepare` goes by them."""
        black, white = (0.0, 255.0) if self.settings.intensity == "percentiles" else spread
        low, high = self.settings.percentiles
        return {"sequence": sequence, "percentiles": {f"{low:g}": black, f"{high:g}": white}}

    def _boxes(self, mask: Shaped[np.ndarray, "y x"], title: str) -> Float[np.ndarray, "m 4"]:
        """A box around each component of 8 neighbours."""
        parts, _ = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(parts.ravel())
        boxes = []
        for number, where in enumerate(ndimage.find_objects(parts), 1):
            if sizes[number] < self.settings.least_voxels:
                self.tally.drop("component of too few voxels", title)
                continue
            boxes.append([side.start for side in where] + [side.stop for side in where])
        return np.array(boxes, np.float32) if boxes else no_boxes(2)


def read_any(path: Path) -> Volume:
    """A volume of a kind that some year's BraTS had."""
    return read_mha(path) if path.name.lower().endswith(SUFFIX) else read_volume(path)


def check_place(volume: Volume, like: Volume, name: str, like_name: str) -> None:
    """Raise a DataError where two volumes of a case are not on one grid."""
    if volume.values.shape != like.values.shape:
        raise DataError(
            f"{name}: shape {volume.values.shape} (z, y, x), but {like_name} has "
            f"{like.values.shape}"
        )
    corners = np.array(np.meshgrid(*([0, n] for n in like.values.shape[::-1]), [1])).reshape(4, -1)
    apart_mm = np.abs((volume.affine - like.affine) @ corners).max()
    if apart_mm > 0.1 * min(like.spacing_mm):
        raise DataError(
            f"{name}: lies elsewhere than {like_name}: corners are up to {apart_mm:.3g} mm apart"
        )


def spread_of(volume: Volume, wanted: tuple[float, float], name: str) -> tuple[float, float]:
    """The values of a whole volume that become black and white."""
    spread = percentiles(volume.values, wanted)
    if not spread or not spread[0] < spread[1]:
        raise DataError(f"{name}: no range of values; its percentiles {wanted} are {spread}")
    return spread[0], spread[1]


def scaled(image: Image, spread: tuple[float, float]) -> Image:
    """In 8 bits, `spread` as 0 and 255; what is 0, outside of the brain, stays black.

    Example:
        >>> image = Image(np.array([[[-10, 0, 10, 20]]], np.int16))
        >>> scaled(image, (-10.0, 10.0)).values.tolist()
        [[[0, 0, 255, 255]]]
    """
    low, high = spread
    values = (image.values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    values = np.where(image.values == 0, 0, np.rint(np.clip(values, 0, 255)))
    return Image(values.astype(np.uint8), image.spacing_mm, image.affine)


def centred(values: Shaped[np.ndarray, "c y x"], side: int) -> Shaped[np.ndarray, "c side side"]:
    """Padded with 0 or cropped around the centre, each axis for itself.

    Example:
        >>> centred(np.arange(1, 7).reshape(1, 1, 6), 4)[0].tolist()
        [[0, 0, 0, 0], [2, 3, 4, 5], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    for axis in (1, 2):
        extra = side - values.shape[axis]
        before = extra // 2
        if extra < 0:
            values = values.take(range(-before, side - before), axis)
        else:
            margins = [(0, 0)] * 3
            margins[axis] = (before, extra - before)
            values = np.pad(values, margins)
    return values


def area_mm2(mask: Shaped[np.ndarray, "y x"], image: Image) -> float:
    """The area of a mask on a slice."""
    y, x = image.spacing_mm or (1.0, 1.0)
    return float(np.count_nonzero(mask) * y * x)


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Not offered: slices are not BraTS.

    Raises:
        DataError: Always.
    """
    raise DataError("format brats is only read; allowed for slices: nifti, folder, medmnist, csv")
