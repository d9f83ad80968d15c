"""Do drawn nodules help a detector of volumes? The whole question on one's own scans, in one table.

    scans with nodules -> cubes -> draws of training patients -> MCGAN with and without L1
    -> the scans with their nodules drawn anew, once, twice, ... for each real scan
    -> 3D Faster R-CNN on real; + synthetic ... -> test once -> CPM, by size, by attenuation

Run: synthoma augment SCANS --task detect3d --scale small --out runs/does-it-help
Low data: ... --slices 60 --draws 3     (a case is a scan)

Every set-up of a draw sees the same real scans, makes the same number of optimiser steps on batches
of the same size, starts from the same weights at each seed, with the same anchors, and is tested
once, on the test split, with the weights that were best on the validation split. Scans are studied
as they were imported. A set in whose scans the draw's own detector finds too few of the drawn
nodules is refused. `detect3d_work.py` does it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
    model_validator,
)

from synthoma.data.dataset import Dataset
from synthoma.errors import SettingsError
from synthoma.phantoms.chest import ChestConfig
from synthoma.settings import merged, replaced
from synthoma.studies.augment import BASELINE, SEEDS, check_rows
from synthoma.studies.trained import Trained, checked, preset

#: What is trained, by the name of its settings: the system, and what differs from its preset.
GENERATORS: dict[str, dict[str, Any]] = {"mcgan": {}, "mcgan-l1": {"distance_weight": 100}}
#: Synthetic scans for each real one.
RATIOS = {"paper": (1.0, 2.0, 3.0), "small": (1.0, 2.0), "smoke": (1.0,)}


class ScanSetup(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    set: str = Field("", description="The generator whose scans are mixed in; empty: none.")
    ratio: NonNegativeFloat = Field(0, description="Synthetic scans a real one.")


class ScanStudy(BaseModel):
    """Everything that decides the table; study.json keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["detect3d"] = "detect3d"
    name: str = Field("augment", description="augment, or the paper whose table it is.")
    dataset: Path
    scale: str
    generators: dict[str, Trained]
    detector: Trained
    setups: tuple[ScanSetup, ...] = Field(min_length=2)
    phantoms: ChestConfig | None = Field(None, description="Draw these as the dataset first.")
    slices: int = Field(
        0, ge=0, description="Training scans of a draw, of whole patients; 0: all of them."
    )
    draws: int = Field(1, ge=1, description="Draws of patients, no patient in two.")
    least_found: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Refuse a set in which drawn nodules are found less than this share as often "
        "as real ones; 0 refuses none.",
    )
    seeds: int = Field(1, ge=1, description="Detectors trained for each set-up of a draw.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        check_rows([setup.name for setup in self.setups], self.draws, self.slices)
        for setup in self.setups:
            if (setup.name == BASELINE) == bool(setup.set) or bool(setup.set) != bool(setup.ratio):
                raise ValueError(f"{setup.name!r}: a set and its ratio in every row but {BASELINE}")
            if setup.set and setup.set not in self.generators:
                raise ValueError(f"{setup.name!r} wants scans of {setup.set!r}, no generator here")
        if len({source.system["side_px"] for source in self.generators.values()}) > 1:
            raise ValueError("generators see cubes of one side: give all the same side_px")
        return self


def rows(ratios: Sequence[float], sets: Sequence[str] = tuple(GENERATORS)) -> tuple[ScanSetup, ...]:
    """The baseline, then every set at every ratio."""
    mixed = [
        ScanSetup(name=f"{BASELINE} + {name} {ratio:g}:1", set=name, ratio=ratio)
        for name in sets
        for ratio in ratios
    ]
    return (ScanSetup(name=BASELINE), *mixed)


def settings_for(
    dataset: Path,
    *,
    scale: str,
    seed: int,
    slices: int = 0,
    draws: int = 1,
    overrides: Mapping[str, Mapping[str, Any]],
) -> ScanStudy:
    """The study of a dataset of scans at a scale.

    Args:
        slices: Training scans of a draw; 0 for all.
        overrides: By part ("study", "detector", "detector_train"; "mcgan", "mcgan-l1" and each of
            them with "_train"), then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
    """
    check_parts(scale, overrides)
    own = dict(overrides.get("study", {}))
    if wrong := set(own) - {"ratios", "without", "least_found", "seeds"}:
        raise SettingsError(
            f"no settings study.{sorted(wrong)}; allowed: ratios, without, least_found, seeds"
        )
    ratios, left_out = checked(own.pop("ratios", RATIOS[scale])), own.pop("without", [])
    if not isinstance(left_out, list) or set(left_out) - set(GENERATORS):
        raise SettingsError(f"study.without={left_out}; allowed: a list of {', '.join(GENERATORS)}")
    sets = tuple(name for name in GENERATORS if name not in left_out)
    if not sets:
        raise SettingsError("every set-up with a generator was left out")
    study = build(
        "augment",
        Dataset.open(dataset).folder.absolute(),
        scale,
        setups=rows(ratios, sets),
        overrides=overrides,
        slices=slices,
        draws=draws,
        seed=seed,
    )
    return replaced(study, own, "study")


def check_parts(
    scale: str, overrides: Mapping[str, Mapping[str, Any]], further: tuple[str, ...] = ()
) -> None:
    """Refuse a scale or a part of the settings that there is not."""
    if scale not in SEEDS:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SEEDS)}")
    trained = ("detector", *GENERATORS)
    parts = ["study", *further, *(part + more for part in trained for more in ("", "_train"))]
    if wrong := set(overrides) - set(parts):
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {', '.join(parts)}")


def build(
    name: str,
    dataset: Path,
    scale: str,
    *,
    setups: tuple[ScanSetup, ...],
    overrides: Mapping[str, Mapping[str, Any]],
    **fields: Any,
) -> ScanStudy:
    """The study of some set-ups, with the presets of a scale.

    Raises:
        SettingsError: A field or value that is not allowed.
    """
    told = merged(GENERATORS, overrides)
    used = dict.fromkeys(setup.set for setup in setups if setup.set)
    try:
        return ScanStudy(
            name=name,
            dataset=dataset,
            scale=scale,
            generators={of: Trained(**preset(of, "mcgan", scale, told)) for of in used},
            detector=Trained(**preset("detector", "rcnn3d", scale, told)),
            setups=setups,
            seeds=SEEDS[scale],
            **fields,
        )
    except ValidationError as error:
        raise SettingsError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
