"""Chests with lung nodules, drawn from nothing: non-contrast CT in HU.

    (seed, patient index) -> anatomy + nodules + scanner -> volume (1, z, y, x) int16

No pixel comes from a person. What is drawn: lungs with two branching trees of vessels, airways
with walls beside arteries, and fissures (what a detector confuses with nodules); heart, great
vessels, windpipe and gullet in fat; ribs, spine, breast bone, shoulder blades; muscles, fat and
skin; domes of the diaphragm with liver, stomach and spleen under them; and nodules whose number,
diameters, attenuations and edges follow the counts of LIDC-IDRI (`lidc_counts.py`).

Not modelled: contrast medium, calcified or cavitary nodules, other diseases of the lung save mild
emphysema, arms, the table, motion, streaks, a beam's hardening. Where nodules are attached, and
where in the lung they lie, follows nobody's statistics. Such images test a pipeline; they say
nothing about how it does on patients.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.ndimage import gaussian_filter

from synthoma.data.case import Case, Image, Real
from synthoma.data.vois import size_of
from synthoma.phantoms.chest_anatomy import COARSE, Anatomy, draw_anatomy, draw_build
from synthoma.phantoms.chest_bones import Bones, draw_bones, lay_bones
from synthoma.phantoms.chest_lungs import (
    Lungs,
    draw_lungs,
    lay_parenchyma,
    lay_trees,
)
from synthoma.phantoms.chest_nodules import (
    ATTACHED,
    Lung,
    Seen,
    draw_kind,
    draw_nodule,
    draw_number,
    lay_glass,
    lay_solid,
    measure,
    place,
)
from synthoma.phantoms.chest_space import Grid, Volume

STREAMS = ("build", "anatomy", "bones", "lungs", "nodules", "scanner", "noise")
FAT_HU, MUSCLE_HU, ORGAN_HU, SKIN_HU, GAS_HU = -100.0, 52.0, 42.0, 15.0, -960.0


class ChestConfig(BaseModel):
    """What to draw. Patient i has the same anatomy whatever the field and the voxels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slices: int = Field(128, ge=16, le=512)
    rows: int = Field(112, ge=16, le=512)
    columns: int = Field(160, ge=16, le=512)
    spacing_mm: tuple[float, float, float] = Field(
        (2.0, 2.0, 2.0), description="Along z, y, x. Both lungs take 256 x 224 x 320 mm."
    )
    centre_mm: tuple[float, float, float] = Field(
        (-8.0, 0.0, 0.0),
        description="Of the field: from the middle of the chest upwards, backwards, to the "
        "patient's left. 70 mm to the left is the left lung's middle.",
    )
    patients: int = Field(40, ge=1)
    first_patient: int = Field(0, ge=0, description="Index of the first: more, without repeats.")
    scanners: int = Field(4, ge=1, le=26)
    nodules_least: int = Field(0, ge=0, description="In a scan. 1: no scan is normal.")
    nodules_most: int = Field(8, ge=0, description="In a scan; 0: healthy chests.")
    diameter_least_mm: float = Field(3.0, ge=2, le=60)
    diameter_most_mm: float = Field(40.0, ge=2, le=64)
    wall_share: float = Field(0.3, ge=0, le=1, description="Of nodules at a wall; not LIDC's.")
    vessel_share: float = Field(0.25, ge=0, le=1, description="Of nodules at a vessel; not LIDC's.")

    @model_validator(mode="after")
    def _check(self) -> "ChestConfig":
        if self.nodules_least > self.nodules_most:
            raise ValueError("nodules_least is above nodules_most")
        if self.diameter_least_mm > self.diameter_most_mm:
            raise ValueError("diameter_least_mm is above diameter_most_mm")
        if self.wall_share + self.vessel_share > 1:
            raise ValueError("wall_share and vessel_share are more than 1 together")
        if not all(0.2 <= spacing <= 20 for spacing in self.spacing_mm):
            raise ValueError(f"spacing_mm {self.spacing_mm}; allowed: 0.2 to 20 each")
        return self

    @property
    def grid(self) -> Grid:
        """The voxels of a scan."""
        space = (self.slices, self.rows, self.columns)
        z, y, x = (
            c - (n - 1) / 2 * s
            for c, n, s in zip(self.centre_mm, space, self.spacing_mm, strict=True)
        )
        return Grid((z, y, x), self.spacing_mm, space)


@dataclass(frozen=True)
class Scanner:
    """What one machine, and how it reconstructs, does to HU."""

    name: str
    blur_mm: float
    noise_hu: float
    """Standard deviation in voxels of 1 mm; larger ones average it away."""
    grain_mm: float
    """Correlation of the noise: short for sharp kernels."""
    offset_hu: float


@dataclass(frozen=True, eq=False)
class Patient:
    """Everything about a patient before a scan."""

    index: int
    scanner: Scanner
    anatomy: Anatomy
    bones: Bones
    lungs: Lungs
    nodules: tuple[Seen, ...]


def chests(config: ChestConfig, *, seed: int) -> Iterator[Case]:
    """Draws patients one after another, a scan each.

    Args:
        config: Sizes and numbers. ``nodules_most=0`` gives the same anatomy without nodules.
        seed: Patients of two seeds have nothing in common but the model.

    Yields:
        3D cases ``patient-007`` in int16 HU, slices from the belly to the head, labelled ``nodule``
        or ``normal``; boxes are tight and labelled ``nodule``. Traits have one entry a box, in the
        order of the boxes: ``diameters_mm``, ``sizes`` (``small`` up to 10 mm, ``medium`` up to 20,
        ``large``), ``attenuations`` (``solid``, ``part-solid``, ``ground-glass``), ``attached``
        (``free``, ``wall``, ``vessel``) and ``edges`` (``smooth``, ``lobulated``, ``spiculated``).

    Example:
        >>> config = ChestConfig(slices=16, rows=28, columns=40, spacing_mm=(16, 8, 8), patients=1)
        >>> [(case.case_id, case.image.values.shape) for case in chests(config, seed=0)]
        [('patient-000', (1, 16, 28, 40))]
    """
    for index in range(config.first_patient, config.first_patient + config.patients):
        patient = draw_patient(config, index, seed=seed)
        yield _case(config, patient, seed)


def _case(config: ChestConfig, patient: Patient, seed: int) -> Case:
    grid, name = config.grid, f"patient-{patient.index:03d}"
    chance = _rng(seed, patient.index, "noise")
    values = scan(draw_chest(config, patient), grid, patient.scanner, chance)
    seen = patient.nodules
    # Voxel i covers [i, i + 1), its centre is at i + 0.5.
    corners = np.array([s.box_mm for s in seen]).reshape(-1, 2, 3)
    boxes = (corners - np.array(grid.first_mm)) / np.array(grid.spacing_mm) + 0.5
    sz, sy, sx = grid.spacing_mm
    affine = np.diag([-sx, -sy, sz, 1.0])  # x grows to the left, y to the back: RAS+ turns both
    affine[:3, 3] = [-grid.first_mm[2], -grid.first_mm[1], grid.first_mm[0]]
    return Case(
        case_id=name,
        patient_id=name,
        image=Image(values[None], spacing_mm=grid.spacing_mm, affine=affine, unit="hu"),
        label="nodule" if seen else "normal",
        boxes=boxes.reshape(-1, 6).astype(np.float32),
        box_labels=("nodule",) * len(seen),
        traits={
            "scanner": patient.scanner.name,
            "diameters_mm": [round(s.diameter_mm, 2) for s in seen],
            "sizes": [size_of(round(s.diameter_mm, 2)) for s in seen],
            "attenuations": [s.nodule.attenuation for s in seen],
            "attached": [s.nodule.attached for s in seen],
            "edges": [s.nodule.edge for s in seen],
        },
        origin=Real(f"phantom chest, seed {seed}"),
    )


def _rng(seed: int, index: int, stream: str) -> np.random.Generator:
    """A generator of its own for every purpose, so that changing one leaves the others alone."""
    key = (index, STREAMS.index(stream))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_scanner(index: int, *, seed: int) -> Scanner:
    """The same scanner whatever their number."""
    rng = _rng(seed, index, "scanner")
    return Scanner(
        name=chr(ord("A") + index),
        blur_mm=rng.uniform(0.4, 0.9),
        noise_hu=rng.uniform(18, 45),
        grain_mm=rng.uniform(0.4, 0.9),
        offset_hu=rng.uniform(-6, 6),
    )


def draw_patient(config: ChestConfig, index: int, *, seed: int) -> Patient:
    """Anatomy is a function of seed and index alone; nodules have a generator of their own."""
    chance = _rng(seed, index, "build")
    build = draw_build(chance)
    anatomy = draw_anatomy(build, _rng(seed, index, "anatomy"))
    lungs = draw_lungs(anatomy, _rng(seed, index, "lungs"))
    return Patient(
        index=index,
        scanner=draw_scanner(int(chance.random() * config.scanners), seed=seed),
        anatomy=anatomy,
        bones=draw_bones(anatomy, _rng(seed, index, "bones")),
        lungs=lungs,
        nodules=_draw_nodules(config, anatomy, lungs, _rng(seed, index, "nodules")),
    )


def _draw_nodules(
    config: ChestConfig, anatomy: Anatomy, lungs: Lungs, rng: np.random.Generator
) -> tuple[Seen, ...]:
    """Nodules that do not touch; one that fits nowhere as asked is attached otherwise, or left."""
    grid = config.grid
    lung = Lung(COARSE, anatomy.lungs, lungs.vessels, np.array(grid.first_mm), grid.last_mm)
    shares = [1 - config.wall_share - config.vessel_share, config.wall_share, config.vessel_share]
    seen: list[Seen] = []
    for _ in range(draw_number(config.nodules_least, config.nodules_most, rng)):
        kind = draw_kind(config.diameter_least_mm, config.diameter_most_mm, rng)
        nodule = draw_nodule(*kind, rng)
        wish = ATTACHED[int(rng.choice(3, p=shares))]
        for attached in (wish, *(a for a in ATTACHED if a != wish)):
            found = place(nodule, attached, lung, [s.nodule for s in seen], rng)
            measured = measure(found, lung) if found is not None else None
            if measured is not None and measured.diameter_mm > 0.8 * kind[0]:  # not cut much
                seen.append(measured)
                break
    return tuple(seen)


def draw_chest(config: ChestConfig, patient: Patient, *, with_nodules: bool = True) -> Volume:
    """HU on the voxels of `config.grid`, before a scanner sees them."""
    grid, anatomy = config.grid, patient.anatomy
    grain = COARSE.onto(anatomy.grain, grid)
    lungs = _cover(COARSE.onto(anatomy.lungs, grid), grid)
    nodules = [s.nodule for s in patient.nodules] if with_nodules else []

    values = lay_parenchyma(grid, anatomy, patient.lungs, grain)
    for nodule in nodules:
        lay_glass(values, grid, nodule, grain)
    values = values * lungs + _around_lungs(grid, patient, grain) * (1 - lungs)
    lay_trees(values, grid, patient.lungs)
    for nodule in nodules:
        lay_solid(values, grid, nodule, lungs)
    return values


def _around_lungs(grid: Grid, patient: Patient, grain: Volume) -> Volume:
    """HU of all that is not lung."""
    anatomy, build = patient.anatomy, patient.anatomy.build
    body, cage, muscle, organs, gas = (
        COARSE.onto(part, grid)
        for part in (anatomy.body, anatomy.cage, anatomy.muscle, anatomy.organs, anatomy.gas)
    )
    values = FAT_HU + 8 * grain
    between = np.abs(cage - 6) - 5.5 - grain  # the ribs' own muscles
    outside = np.abs(cage - 14.5 - 1.5 * grain - muscle / 2) - muscle / 2
    muscles = np.maximum(np.minimum(between, outside), body + 0.4 * build.fat_mm)
    skin = np.abs(body + 1) - 1
    for gap, hu in (
        (muscles, MUSCLE_HU + 5 * grain),
        (skin, SKIN_HU),
        (np.maximum(organs, cage), ORGAN_HU + 4 * grain),
        (gas, GAS_HU),
    ):
        values += _cover(gap, grid) * (hu - values)
    lay_bones(values, grid, anatomy, patient.bones, cage)
    return -1000 + _cover(body, grid) * (values + 1000)


def _cover(gap: Volume, grid: Grid) -> Volume:
    """Share of each voxel on the inner side of a surface, given the distance from it."""
    return np.clip(0.5 - gap / np.float32(grid.voxel_mm), 0, 1)


def scan(
    values: Volume, grid: Grid, scanner: Scanner, rng: np.random.Generator
) -> Int16[np.ndarray, "z y x"]:
    """What a scanner makes of HU: blurred, noisy, whole numbers from -1024 to 3071."""
    spacing = np.array(grid.spacing_mm)
    blurred = gaussian_filter(values, scanner.blur_mm / spacing, truncate=3)
    noise = rng.standard_normal(values.shape, np.float32)
    noise = gaussian_filter(noise, np.maximum(scanner.grain_mm / spacing, 0.3), truncate=3)
    strength = scanner.noise_hu * min(1.0, float(spacing.prod()) ** -0.4) / float(noise.std())
    shoulders: Float32[np.ndarray, "z 1 1"] = np.clip((grid.axes()[0] - 60) / 60, 0, 1)
    noisy = blurred + scanner.offset_hu + noise * (strength * (1 + 0.7 * shoulders))
    return np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
