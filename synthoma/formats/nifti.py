"""nifti: volumes and masks to slices (or whole volumes) with boxes, and back.

    a/p1_t1.nii.gz + a/p1_mask.nii.gz -> cases a/p1_t1.nii.gz#axial-000, ...

Slices are upright, as radiologists look at them (`slices.py`). Whole volumes are (z, y, x) = (to
the head, to the back, to the left), so that their planes are the axial slices. Nothing is
resampled; each slice keeps its affine. `volumes.py` reads one file, `pairs.py` says which mask
belongs to it.

A box surrounds a connected component of the mask: 8 neighbours in a slice, 26 in a volume.
Where the mask is missing boxes are None, which is not the same as a mask that is empty.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from synthoma import __version__
from synthoma.data.case import Case, Synthetic, Unit, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.errors import DataError
from synthoma.formats.naming import FileNames
from synthoma.formats.pairs import Pair, mask_kind, pair, patient_of, sequence_of
from synthoma.formats.sidecar import read_sidecar
from synthoma.formats.slices import SLICE_TO_VOLUME, Axis, cut, len_along
from synthoma.formats.source import Entry, Found, Reading, Tally, inside, walk
from synthoma.formats.volumes import (
    SUFFIXES,
    Volume,
    percentiles,
    read_mask,
    read_volume,
    write_volume,
)

#: Formats of volumes that are told from NIfTI by name, each an error rather than a stray file.
OTHERS = (
    *(".mgz", ".mgh", ".mnc", ".hdr", ".img", ".head", ".brik", ".dcm", ".nrrd", ".nhdr"),
    *(".mha", ".mhd", ".par", ".rec", ".gii"),
)
PERCENTILES = (1.0, 99.0)


class NiftiSettings(BaseModel):
    """How volumes become cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axis: Axis = Field("axial", description="Slices across this axis, or whole volumes.")
    image: str = Field(
        "",
        description='Which files are volumes, such as "*/*_Scan_T1.nii.gz"; empty: all that are '
        "not masks.",
    )
    mask: str = Field(
        "",
        description='Which file is a volume\'s mask, such as "{1}/{2}_Mask.nii.gz" with the stars '
        'of `image`, or "{folder}/{stem}_mask.nii.gz"; empty: a file beside it that is named like '
        "it with mask, seg or label at the end.",
    )
    brain: str = Field(
        "",
        description="Likewise the mask of the brain, outside of which values become 0; empty: a "
        "file beside it that ends in brain_mask. Stripped volumes need none.",
    )
    lesion_values: tuple[int, ...] = Field(
        (), description="Values of the mask that count; none given: all but 0."
    )
    instances: Literal["components", "values"] = Field(
        "components",
        description="What a box surrounds: a connected component, or all voxels of one value of "
        "the mask.",
    )
    least_voxels: int = Field(
        1, ge=1, description="Components with fewer voxels get no box, and are counted."
    )
    extent: tuple[float, float] = Field(
        (0.0, 1.0), description="Which slices: from and to, as fractions of the axis."
    )
    every: int = Field(1, ge=1, description="Every n-th slice.")
    volume_index: int | None = Field(
        None, ge=0, description="Which volume of a 4D file; not given: 4D files are an error."
    )
    unit: Unit = Field(
        "arbitrary",
        description="Of the values, which the file does not say: hu for CT, whose whole volumes "
        "are then ready to train on (-1000 to 400 HU).",
    )
    sequence: str = Field(
        "", description="Trait of every case; empty: from the file's name (T1, T1c, T2, FLAIR)."
    )
    label_with: str = Field("tumour", description="Label of images whose mask is not empty.")
    label_without: str = Field("normal", description="Label of images whose mask is empty.")

    @model_validator(mode="after")
    def _check(self) -> "NiftiSettings":
        first, last = self.extent
        if not 0 <= first < last <= 1:
            raise ValueError(f"extent {self.extent}; allowed: 0 <= from < to <= 1")
        return self


Settings = NiftiSettings


def read(
    source: Path, settings: NiftiSettings, tally: Tally, mapping: Mapping[str, str]
) -> Reading:
    """List the volumes of a folder, or one file.

    Raises:
        DataError: There is no volume.
        SettingsError: A pattern is not allowed.
    """
    root = source.parent if source.is_file() else source
    names = [source.name] if source.is_file() else walk(root)
    volumes = [name for name in names if name.lower().endswith(SUFFIXES)]
    others = [name for name in names if name.lower().endswith(OTHERS) and source.is_dir()]
    if source.is_file():  # its masks are beside it
        beside = [path.name for path in sorted(root.iterdir()) if path.is_file()]
        known = [name for name in beside if name.lower().endswith(SUFFIXES)]
        pairs = [found for found in pair(known, mask=settings.mask, brain=settings.brain)
                 if found.image == source.name] or [Pair(source.name)]  # fmt: skip
    else:
        pairs = pair(volumes, image=settings.image, mask=settings.mask, brain=settings.brain)
    sidecars = {f"{name[: -len(end)]}.json" for name in volumes for end in SUFFIXES
                if name.endswith(end)}  # fmt: skip
    if not settings.image:
        for name in set(names) - set(volumes) - set(others) - sidecars:
            tally.drop("not a NIfTI file", name)
    reader = VolumeReader(root, settings, tally)
    entries = [Entry(found.image, partial(reader.read, found)) for found in pairs]
    if not settings.image:
        entries += [Entry(name, partial(refuse, root / name)) for name in others]
    return Reading(
        root,
        sorted(entries, key=lambda entry: entry.name),
        patients_from="first folder, or the file's name up to the sequence",
        patients_guessed=True,
        pictures=False,
    )


def refuse(path: Path) -> list[Found]:
    """A file of another format."""
    raise DataError(f"{path}: not NIfTI; allowed: {', '.join(SUFFIXES)}")


class VolumeReader:
    """Reads volumes into cases."""

    def __init__(self, root: Path, settings: NiftiSettings, tally: Tally) -> None:
        self.root, self.settings, self.tally = root, settings, tally

    def read(self, pair: Pair) -> list[Found]:
        """The cases of one volume."""
        if pair.problem:
            raise DataError(pair.problem)
        path = inside(self.root, pair.image)
        volume = read_volume(path, volume_index=self.settings.volume_index)
        if pair.brain is not None:
            brain = read_mask(inside(self.root, pair.brain), volume, pair.image)
            nothing = np.zeros((), volume.values.dtype)
            volume = Volume(np.where(brain != 0, volume.values, nothing), volume.affine)
        sidecar = read_sidecar(path)
        axis, mask = self.settings.axis, pair.mask
        instances = self.settings.instances
        if sidecar is not None:  # a file of ours, whose boxes are known unless it is cut anew
            axis, instances = sidecar.axis_of(axis), "values"
            if axis == sidecar.axis or sidecar.boxes is None:
                mask = None
        lesions = None
        if mask is not None:
            lesions = self._lesions(read_mask(inside(self.root, mask), volume, pair.image))
        traits = self._traits(pair.image, volume)
        found = []
        for k, image, own in cut(volume, lesions, axis):
            if axis != "volume" and not self._wanted(k, len_along(volume.values, axis)):
                continue
            title = pair.image if axis == "volume" else f"{pair.image}#{axis}-{k:03}"
            if image.values.min() == image.values.max():
                self.tally.drop("blank image", title)
                continue
            where = {} if axis == "volume" else {"axis": axis, "slice": k}
            case = Found(title, image, patient=patient_of(pair.image), traits={**traits, **where})
            if own is not None:
                label = self.settings.label_with if own.any() else self.settings.label_without
                boxes = self._boxes(own, instances, title)
                case = replace(case, label=label or None, boxes=boxes)
            case = replace(case, image=replace(image, unit=self.settings.unit))
            if sidecar is not None:
                case = replace(case, image=sidecar.own(image), origin=sidecar.origin)
            if sidecar is not None and axis == sidecar.axis:
                exact = sidecar.boxes_in(len(image.space))
                case = replace(case, boxes=exact, box_labels=sidecar.box_labels)
            found.append(case)
        return found

    def _traits(self, name: str, volume: Volume) -> dict[str, Any]:
        traits: dict[str, Any] = {"volume": name}
        sequence = self.settings.sequence or sequence_of(name)
        if sequence:
            traits["sequence"] = sequence
        spread = percentiles(volume.values, PERCENTILES)
        if spread:
            traits["percentiles"] = {"1": spread[0], "99": spread[1]}
        return traits

    def _wanted(self, k: int, n: int) -> bool:
        first, last = self.settings.extent
        return first <= k / n < last and (k - int(np.ceil(first * n))) % self.settings.every == 0

    def _lesions(self, mask: Shaped[np.ndarray, "z y x"]) -> Shaped[np.ndarray, "z y x"]:
        wanted = self.settings.lesion_values
        return np.where(np.isin(mask, wanted), mask, 0) if wanted else mask

    def _boxes(
        self, mask: Shaped[np.ndarray, "*space"], instances: str, title: str
    ) -> Float[np.ndarray, "m k"]:
        """A box around each component, or each value."""
        d = mask.ndim
        parts: np.ndarray
        if instances == "values":
            parts = np.searchsorted(np.unique(mask[mask != 0]), mask) + 1
            parts[mask == 0] = 0
        else:
            parts, _ = ndimage.label(mask != 0, np.ones((3,) * d))
        sizes = np.bincount(parts.ravel())
        boxes = []
        for number, where in enumerate(ndimage.find_objects(parts), 1):
            if sizes[number] < self.settings.least_voxels:
                self.tally.drop("component of too few voxels", title)
                continue
            boxes.append([side.start for side in where] + [side.stop for side in where])
        return np.array(boxes, np.float32) if boxes else no_boxes(d)


def write(
    dataset: Dataset, out: Path, splits: Mapping[str, str], tally: Tally
) -> Iterator[tuple[str, Case]]:
    """Write `X.nii.gz`, `X_mask.nii.gz` (box i has the value i + 1) and `X.json` for each case.

    Raises:
        DataError: A case has more than one channel.
    """
    names = FileNames()
    for case in dataset:
        values, d = case.image.values, len(case.image.space)
        if len(values) != 1:
            raise DataError(f"case {case.case_id!r}: {len(values)} channels; nifti holds one")
        stem = names.of(case.case_id)
        if mask_kind(stem)[0]:
            stem = names.of(f"{stem}-volume")
        axis = "volume" if d == 3 else case.traits.get("axis")
        if axis not in ("axial", "coronal", "sagittal", "volume"):
            axis = "axial"
        affine = case.image.affine
        if affine is None:  # LPS+ voxels at the case's spacing, or 1 mm
            z, y, x = (1.0, 1.0, 1.0, *(case.image.spacing_mm or (1.0,) * d))[-3:]
            affine = np.diag([-x, -y, z, 1.0])
            if d == 2:
                affine = affine @ SLICE_TO_VOLUME[axis]
        space = (1, *values.shape[1:]) if d == 2 else values.shape[1:]
        synthetic = isinstance(case.origin, Synthetic)
        about = "synthetic, made by synthoma" if synthetic else "written by synthoma"
        path = out / f"{stem}.nii.gz"
        write_volume(path, values.reshape(space), affine, about)
        if case.boxes is not None:
            mask = paint(case.boxes, case.image.space).reshape(space)
            write_volume(out / f"{stem}_mask.nii.gz", mask, affine, about)
        sidecar: dict[str, Any] = {
            "synthoma": __version__,
            "synthetic": "yes" if synthetic else "no",
            "case_id": case.case_id,
            "axis": axis,
            "dtype": values.dtype.name,
            "boxes": None if case.boxes is None else case.boxes.tolist(),
            "box_labels": list(case.box_labels),
        }
        if isinstance(case.origin, Synthetic):
            sidecar |= {"run": case.origin.run, "seed": case.origin.seed}
        (out / f"{stem}.json").write_text(json.dumps(sidecar, indent=1) + "\n")
        name = f"{stem}.nii.gz"
        yield (name if d == 3 else f"{name}#{axis}-000"), case


def paint(boxes: Float[np.ndarray, "m k"], space: tuple[int, ...]) -> Shaped[np.ndarray, "*space"]:
    """A mask in which the voxels that box i touches are i + 1, later boxes over earlier ones."""
    mask = np.zeros(space, np.uint8 if len(boxes) < 256 else np.uint16)
    d = len(space)
    for number, box in enumerate(boxes, 1):
        low = np.maximum(np.floor(box[:d]), 0).astype(int)
        high = np.ceil(box[d:]).astype(int)
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = number
    return mask
