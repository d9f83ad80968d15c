"""Which cases a run is trained on: real folders, synthetic ones at a ratio, another domain.

dataset folders -> the cases asked for, checked for leaks -> pools that deal batches
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.batches import Pool
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.errors import DataError, SettingsError


class Mixed(BaseModel):
    """A synthetic folder that is mixed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    ratio: float = Field(1.0, gt=0, description="Synthetic images for each real one.")


class TrainingData(BaseModel):
    """Which cases a run is trained on; run.json keeps it, so that a resumed run finds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="The real dataset folder.")
    split: str = Field("train", description="Its split; empty for all cases.")
    where: dict[str, str] = Field(
        default_factory=dict, description="Only cases whose label or traits have these values."
    )
    patients: tuple[str, ...] = Field((), description="Only these patients; empty for all.")
    boxed: bool = Field(False, description="Only cases with a box, of `data`.")
    also: tuple[Path, ...] = Field(
        (), description="Further real folders whose training split is mixed in (normal slices)."
    )
    synthetic: tuple[Mixed, ...] = ()
    repeat: int = Field(
        1,
        ge=1,
        description="How often each real case is dealt in a round. So many times more synthetic "
        "images are dealt with them, at the same ratios.",
    )
    synthetic_first: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of the steps, from the first, that see synthetic images alone; the "
        "others then see real ones alone. 0: mixed throughout; 1: real ones are never seen.",
    )
    source: Path | None = Field(None, description="The other domain, for systems with two.")


@dataclass(frozen=True)
class Pools:
    """The opened `TrainingData`."""

    domains: dict[str, Pool]
    opening: Pool | None
    """Where synthetic images come first: they alone."""
    validation: Dataset | None
    """None where that split has no case."""
    seen: list[str]
    """Every patient that the run sees, itself or through a generator."""
    digest: str
    n_real: int
    n_synthetic: int


def open_pools(data: TrainingData) -> Pools:
    """Select the cases.

    Raises:
        LeakError: A generator of the synthetic cases saw a validation or test patient.
        DataError: A folder lacks the cases that were asked for.
    """
    whole, real = Dataset.open(data.data), select(data)
    parts = [real, *(Dataset.open(folder).split("train") for folder in data.also)]
    synthetic = [take_synthetic(mixed, len(real) * data.repeat) for mixed in data.synthetic]
    if data.synthetic_first and not synthetic:
        raise SettingsError("synthetic_first without a synthetic folder to begin with")
    # real and synthetic in one pool also where they come apart, so that both know every class
    everything = Pool(parts * data.repeat + synthetic)
    domains, opening = {"real": everything}, None
    if data.synthetic_first:
        domains["real"], opening = (
            everything.part(range(len(parts))),
            everything.part(range(len(parts) * data.repeat, len(everything.datasets))),
        )
    if data.source is not None:
        domains["source"] = Pool([select_source(data.source, data.where)])
    seen = sorted(everything.patients.union(*(pool.patients for pool in domains.values())))
    if data.split == "train":
        check_no_leak(whole.splits, seen, what="this mixture")
    held_out = set(whole.splits.get("validation", ()))
    validation = whole.of_patients(held_out) if data.split == "train" else None
    digest = hashlib.sha256()
    dealt = domains | ({"opening": opening} if opening is not None else {})
    for name, domain in dealt.items():
        for dataset in domain.datasets:  # the files, and which of their cases
            digest.update(f"{name} {dataset.about['digest']} ".encode() + dataset.rows.tobytes())
    return Pools(
        domains,
        opening,
        validation if validation is not None and len(validation) else None,
        seen,
        digest.hexdigest(),
        len(real),
        sum(map(len, synthetic)),
    )


def take_synthetic(mixed: Mixed, n_real: int) -> Dataset:
    """As many images, from the first, as the ratio wants."""
    synthetic, n = Dataset.open(mixed.folder), round(mixed.ratio * n_real)
    if n > len(synthetic):
        raise DataError(
            f"{mixed.folder}: {len(synthetic)} images, but ratio {mixed.ratio:g} on {n_real} real "
            f"ones needs {n}"
        )
    return synthetic.take(np.arange(n))


def select(data: TrainingData) -> Dataset:
    """The cases of the real dataset folder that are trained on."""
    real = Dataset.open(data.data)
    real = real.split(data.split) if data.split else real
    real = real.where(**data.where) if data.where else real
    if unknown := set(data.patients) - set(real.patients):
        raise DataError(f"{data.data}: no selected case is of patient {min(unknown)}")
    real = real.of_patients(set(data.patients)) if data.patients else real
    if data.boxed:
        real = real.take(np.flatnonzero([len(real.boxes(i)) > 0 for i in range(len(real))]))
    return real


def select_source(folder: Path, where: Mapping[str, str]) -> Dataset:
    """The cases of the other domain; of the class that is trained on, where it has classes."""
    source, label = Dataset.open(folder).split("train"), where.get("label")
    return source.where(label=label) if label is not None and source.labels else source


def has_boxes(dataset: Dataset) -> bool:
    """Whether there is a box to find."""
    return any(len(dataset.boxes(i)) for i in range(len(dataset)))


def absolute(data: TrainingData) -> TrainingData:
    """The same cases with paths that hold wherever a run is resumed from."""
    paths: dict[str, Any] = {"data": data.data.absolute()}
    paths["also"] = tuple(folder.absolute() for folder in data.also)
    paths["synthetic"] = tuple(
        mixed.model_copy(update={"folder": mixed.folder.absolute()}) for mixed in data.synthetic
    )
    paths["source"] = data.source.absolute() if data.source is not None else None
    return data.model_copy(update=paths)
