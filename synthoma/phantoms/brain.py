"""Brains with metastases, drawn from nothing: skull-stripped axial T1c-like slices.

    (seed, patient index) -> anatomy + lesions + scanner -> slices (1, side, side) uint8

No pixel comes from a person. What is drawn: a folded grey ribbon around white matter, fissures,
ventricles, deep nuclei, enhancing vessels and falx (what a detector confuses with a small
metastasis), and solid or ring-enhancing lesions, some with oedema, that span slices. Left and
right agree up to a smooth warp and a share of their own gyri.

Not modelled: physics (no echo times, no k-space), cerebellum, brain stem, skull and scalp, mass
effect, necrosis that takes up contrast late, blood, motion, and any disease but metastases. Such
images test a pipeline; they say nothing about how it does on patients.

Head coordinates: x to the image's right, y from the forehead to the back, both in half frame
sides (the frame is [-1, 1]), and the level, 0 below the thalamus to 1 near the vertex.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data import boxes as box
from synthoma.data.case import Case, Image, Real, no_boxes

Plane = Float32[np.ndarray, "y x"]
Volume = Float32[np.ndarray, "levels rows columns"]
Mask = Bool[np.ndarray, "y x"]

#: Signal of each tissue before a scanner sees it; 1 is full enhancement.
CSF, GREY, WHITE, NECROSIS, OEDEMA, FALX, VESSEL = 0.13, 0.43, 0.62, 0.22, 0.35, 0.66, 0.95
STREAMS = ("shape", "noise", "lesions", "slice", "scanner")
#: Half frame sides between level 0 and level 1.
HEIGHT = 0.85
#: Thickness of the cortex in half frame sides, about 4 mm.
RIBBON = 0.055
#: Lattice noise repeats after this many half frame sides.
PERIOD = 2.56

# fmt: off
#: Lateral ventricle: at each level, five times x, y, radius, from the frontal to the occipital
#: horn. A radius below 0 is a part that is absent there.
VENTRICLE_LEVELS = (0.0, 0.2, 0.36, 0.48, 0.58)
VENTRICLE = np.array([
    .12, -.36, .030,  .06, -.22, .020,  .05, -.05, -.060,  .33, .33, .020,  .30, .55, -.010,
    .15, -.42, .040,  .06, -.22, .040,  .05, -.05, -.030,  .31, .32, .060,  .24, .60, .015,
    .13, -.40, .040,  .08, -.22, .050,  .09, .00, .045,    .18, .27, .060,  .26, .48, .020,
    .10, -.32, .020,  .10, -.18, .040,  .11, .00, .045,    .15, .20, .040,  .19, .32, .020,
    .10, -.30, -.050, .10, -.18, -.050, .11, .00, -.050,   .15, .20, -.050, .18, .30, -.050,
]).reshape(5, 5, 3)
#: Sylvian fissure in the same form: from the lateral surface to the insula and along it.
SYLVIAN_LEVELS = (0.0, 0.25, 0.42)
SYLVIAN = np.array([
    .80, -.20, .020,  .55, -.22, .018,  .50, -.05, .014,  .53, .12, .008,
    .80, .00, .016,   .55, -.05, .014,  .51, -.16, .010,  .53, -.27, .006,
    .80, .10, .010,   .70, .08, -.010,  .60, -.05, -.030, .60, -.20, -.030,
]).reshape(3, 4, 3)
#: Deep nuclei, ellipsoids: centre x, y, level; half axes x, y, level; turn in radians; signal.
NUCLEI = (
    (.20, -.27, .20, .060, .13, .28, .35, .46),  # caudate head
    (.36, -.07, .16, .065, .21, .24, -.30, .47),  # putamen
    (.28, -.02, .12, .050, .11, .18, -.30, .54),  # pallidum
    (.13, .10, .16, .105, .16, .25, .35, .51),  # thalamus
)
# fmt: on


class BrainConfig(BaseModel):
    """What to draw. Patient i is the same whatever the numbers of patients and slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(256, ge=32, le=1024, description="Side of the square slices.")
    patients: int = Field(40, ge=1)
    first_patient: int = Field(0, ge=0, description="Index of the first: more, without repeats.")
    slices_per_patient: int = Field(8, ge=1)
    scanners: int = Field(4, ge=1, le=26)
    lesions_max: int = Field(5, ge=0, description="Most lesions a patient; 0: tumour-free brains.")
    radius_least: float = Field(0.015, gt=0, le=0.2, description="Of a lesion, share of the side.")
    radius_most: float = Field(0.1, gt=0, le=0.2, description="Of a lesion, share of the side.")
    least_extent: float = Field(
        0.02,
        ge=0,
        description="Share of the side, 2 px at least: a lesion with a smaller box in a "
        "slice is neither drawn there nor annotated.",
    )
    rough: float = Field(0.08, ge=0, description="How far an edge of a rough box strays, in sides.")
    rough_floor_px: float = Field(0.4, ge=0, description="Added to how far an edge strays.")


@dataclass(frozen=True)
class Scanner:
    """What one machine does to tissue signal."""

    name: str
    brightness: float
    gamma: float
    bias: float
    """Standard deviation of the field's logarithm."""
    noise: float
    """Rician sigma at 256 px, where full enhancement is 1."""
    blur_mm: float


@dataclass(frozen=True, eq=False)
class Lesion:
    """A blob of three dimensions, in head coordinates."""

    y: float
    x: float
    level: float
    radius: float
    """In half frame sides."""
    core: float
    """Radius of the necrotic core in lesion radii; 0 for a solid lesion."""
    oedema: float
    """Radius of the oedema in lesion radii; 1 for none."""
    enhancement: float
    bumps: Float32[np.ndarray, "w 5"]
    """Waves of the outline: wave vector (level, y, x) per radius, phase, amplitude."""


@dataclass(frozen=True, eq=False)
class Patient:
    """Everything about a patient that does not depend on which slices are taken."""

    index: int
    scanner: Scanner
    field_mm: float
    """Side of the frame."""
    turn: float
    size: float
    width: float
    egg: float
    squareness: float
    ventricles: tuple[float, float]
    """Size of the left and of the right lateral ventricle; 1 is usual."""
    sulcus: float
    """Half width of a sulcus in half frame sides: atrophy widens it."""
    folds: Volume
    own_folds: Volume
    gate: Volume
    """Where clefts run deeper and hold veins."""
    specks: Volume
    """Peaks are vessels that cross the slice."""
    warp: Float32[np.ndarray, "2 knots knots knots"]
    bias: Float32[np.ndarray, "corners corners"]
    lesions: tuple[Lesion, ...]


class Seen(NamedTuple):
    """A lesion as one slice shows it."""

    mask: Mask
    kind: Literal["ring", "solid"]


def brains(config: BrainConfig, *, seed: int) -> Iterator[Case]:
    """Draws patients one after another, their slices from the lowest level to the highest.

    Args:
        config: Sizes and numbers. ``lesions_max=0`` gives the same anatomy without tumours.
        seed: Patients of two seeds have nothing in common but the model.

    Yields:
        2D cases ``patient-007/slice-03`` in uint8, background exactly 0, labelled ``tumour`` or
        ``normal``. `Case.boxes` are rough, as a physician's are; ``traits["true_boxes"]``, in the
        same order, are tight. ``traits["lesions"]`` says ``ring`` or ``solid`` and the radius, as
        seen in this slice.

    Example:
        >>> config = BrainConfig(side_px=64, patients=1, slices_per_patient=2, lesions_max=0)
        >>> [(case.case_id, case.label, case.image.space) for case in brains(config, seed=0)]
        [('patient-000/slice-00', 'normal', (64, 64)), ('patient-000/slice-01', 'normal', (64, 64))]
    """
    for index in range(config.first_patient, config.first_patient + config.patients):
        patient = draw_patient(config, index, seed=seed)
        for number in range(config.slices_per_patient):
            level = (number + 0.5) / config.slices_per_patient
            yield _case(config, patient, number, level, seed)


def _case(config: BrainConfig, patient: Patient, number: int, level: float, seed: int) -> Case:
    rng = _rng(seed, patient.index, "slice", round(level * 1e6))
    signal, inside, seen = draw_slice(config, patient, level)
    true = np.concatenate([no_boxes(2), *(box.around(mask) for mask, _ in seen)])
    radii = [round(math.sqrt(mask.sum() / math.pi), 2) for mask, _ in seen]
    patient_id = f"patient-{patient.index:03d}"
    return Case(
        case_id=f"{patient_id}/slice-{number:02d}",
        patient_id=patient_id,
        image=Image(
            scan(signal, inside, patient, rng)[None],
            spacing_mm=(patient.field_mm / config.side_px,) * 2,
        ),
        label="tumour" if seen else "normal",
        boxes=_roughen(true, config, rng),
        box_labels=("metastasis",) * len(seen),
        traits={
            "scanner": patient.scanner.name,
            "slice_level": level,
            "true_boxes": true.tolist(),
            "lesions": [
                {"kind": lesion.kind, "radius_px": radius}
                for lesion, radius in zip(seen, radii, strict=True)
            ],
        },
        origin=Real(f"phantom brain, seed {seed}"),
    )


def _roughen(true: box.Boxes, config: BrainConfig, rng: np.random.Generator) -> box.Boxes:
    """Moves every edge by itself, more often outwards: physicians' boxes are loose."""
    sides = np.tile(box.sides(true), 2)
    outwards = rng.normal(0.5, 1, true.shape) * (config.rough * sides + config.rough_floor_px)
    outwards = np.maximum(outwards, -sides / 4)
    moved = true + outwards * np.array([-1, -1, 1, 1])
    return box.clip(moved.astype(np.float32), (config.side_px,) * 2)


def _rng(seed: int, index: int, stream: str, detail: int = 0) -> np.random.Generator:
    """A generator of its own for every purpose, so that changing one leaves the others alone."""
    key = (index, STREAMS.index(stream), detail)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_scanner(index: int, *, seed: int) -> Scanner:
    """The same scanner whatever their number. Golden steps keep brightness well apart."""
    rng = _rng(seed, index, "scanner")
    step = (_rng(seed, 0, "scanner", 1).random() + index * 0.6180339887) % 1
    return Scanner(
        name=chr(ord("A") + index),
        brightness=0.55 + 0.45 * step,
        gamma=rng.uniform(0.75, 1.3),
        bias=rng.uniform(0.03, 0.11),
        noise=rng.uniform(0.012, 0.04),
        blur_mm=rng.uniform(0.3, 0.9),
    )


def draw_patient(config: BrainConfig, index: int, *, seed: int) -> Patient:
    """Anatomy is a function of seed and index alone.

    Lesions and the scanner come from generators of their own: other settings of theirs leave the
    anatomy as it is.
    """
    shape, noise = _rng(seed, index, "shape"), _rng(seed, index, "noise")
    scanner = int(shape.random() * config.scanners)
    atrophy = shape.uniform(0, 1)
    ventricles = 0.6 + 1.1 * atrophy * shape.uniform(0.5, 1.2)
    asymmetry = shape.normal(0, 0.1)
    size, width = shape.uniform(0.92, 0.97), shape.uniform(0.78, 0.87)
    return Patient(
        index=index,
        scanner=draw_scanner(scanner, seed=seed),
        field_mm=shape.uniform(168, 194),
        turn=math.radians(shape.normal(0, 3)),
        size=size,
        width=width,
        egg=shape.uniform(0.03, 0.13),
        squareness=shape.uniform(0.15, 0.4),
        ventricles=(ventricles * (1 - asymmetry), ventricles * (1 + asymmetry)),
        sulcus=0.006 + 0.008 * atrophy,
        folds=_band_noise(noise, wavelength=0.25),
        own_folds=_band_noise(noise, wavelength=0.25),
        gate=_band_noise(noise, wavelength=0.45),
        specks=_band_noise(noise, wavelength=0.11),
        warp=noise.normal(0, 0.018, (2, 5, 5, 5)).astype(np.float32),
        bias=noise.normal(0, 1, (4, 4)).astype(np.float32),
        lesions=_draw_lesions(config, size, width, _rng(seed, index, "lesions")),
    )


def _band_noise(rng: np.random.Generator, *, wavelength: float) -> Volume:
    """Periodic noise (24, 64, 64) of unit variance whose zeros wind about half a wave apart."""
    shape = (24, 64, 64)
    spans = (1.5 * HEIGHT * min(1, wavelength / 0.25), PERIOD, PERIOD)  # fine noise: tall blobs
    axes = [np.fft.fftfreq(n, span / n) for n, span in zip(shape, spans, strict=True)]
    axes[2] = np.fft.rfftfreq(shape[2], PERIOD / shape[2])
    square = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    window = np.exp(-0.5 * ((np.sqrt(square) * wavelength - 1) / 0.22) ** 2).astype(np.float32)
    field = np.fft.irfftn(np.fft.rfftn(rng.standard_normal(shape, np.float32)) * window)
    return np.asarray(field / field.std(), np.float32)


def _draw_lesions(
    config: BrainConfig, size: float, width: float, rng: np.random.Generator
) -> tuple[Lesion, ...]:
    """Lesions that touch neither one another nor much of a ventricle."""
    if config.lesions_max == 0 or rng.random() < 0.1:
        return ()
    count = math.ceil(config.lesions_max * math.sqrt(rng.random()))
    low, high = 2 * config.radius_least / size, 2 * config.radius_most / size
    lesions: list[Lesion] = []
    for _ in range(40 * count):
        radius = low + (high - low) * rng.beta(1.1, 1.9)
        level, angle = rng.uniform(0.02, 0.98), rng.uniform(0, 2 * np.pi)
        distance = float((0.94 - radius) * math.sqrt(rng.uniform(0.12, 1)) * _girth(level))
        bumps = rng.normal(0, 1.9, (7, 3)), rng.uniform(0, 6.3, (7, 1)), rng.normal(0, 0.1, (7, 1))
        lesion = Lesion(
            x=distance * math.sin(angle) * width,
            y=distance * math.cos(angle),
            level=level,
            radius=radius,
            core=rng.uniform(0.55, 0.78) if radius > 0.07 and rng.random() < 0.6 else 0.0,
            enhancement=rng.uniform(0.84, 1.06),
            oedema=rng.uniform(1.6, 2.6) if rng.random() < 0.6 else 1.0,
            bumps=np.concatenate(bumps, axis=1).astype(np.float32),
        )
        x, y = (np.full((1, 1), value, np.float32) for value in (lesion.x, lesion.y))
        horn = _along(x, y, _at_level(VENTRICLE, VENTRICLE_LEVELS, level)).item()
        apart = (
            np.linalg.norm([o.x - lesion.x, o.y - lesion.y, (o.level - level) * HEIGHT])
            > 1.2 * (o.radius + radius)
            for o in lesions
        )
        if horn > 0.6 * radius and all(apart):
            lesions.append(lesion)
        if len(lesions) == count:
            break
    return tuple(lesions)


def draw_slice(
    config: BrainConfig, patient: Patient, level: float, *, with_lesions: bool = True
) -> tuple[Plane, Mask, list[Seen]]:
    """Tissue signal before the scanner, where there is head, and the lesions that can be seen."""
    side = config.side_px
    fine = 2 * side if side <= 128 else 3 * side // 2  # drawn finer, then averaged
    x, y = _head_grid(patient, fine)
    signal, inside, white = _tissue(patient, level, x, y)
    least = max(2.0, config.least_extent * side)
    seen, bare = [], np.ones_like(signal)
    for lesion in patient.lesions if with_lesions else ():
        if abs(level - lesion.level) * HEIGHT > 1.5 * lesion.radius:
            continue
        shape, hollowness = _lesion_shape(lesion, level, x, y)
        sharpness = lesion.radius * patient.size * fine / 2
        body = _soft((1 - shape) * (sharpness / 2)) * inside
        mask = _shrink(body, side) > 0.5
        if not mask.any() or box.sides(box.around(mask)).min() < least:
            continue
        core = _soft(hollowness * sharpness) * body
        seen.append(Seen(mask, "ring" if (_shrink(core, side) > 0.5).any() else "solid"))
        if lesion.oedema > 1:
            wet = np.clip((lesion.oedema - shape) / 0.4, 0, 1) * (0.2 + 0.7 * white)
            signal += wet * bare * (signal > OEDEMA) * (OEDEMA - signal)
        signal += body * (lesion.enhancement * (1.05 - 0.1 * shape) - signal)
        signal += core * (NECROSIS - signal)
        bare *= 1 - body
    return _shrink(signal, side), _shrink(inside, side) > 0.5, seen


def _lesion_shape(lesion: Lesion, level: float, x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """Distance from the centre over the bumpy outline's, and depth in the core, both in radii."""
    dz = (level - lesion.level) * HEIGHT / lesion.radius
    dy, dx = (y - lesion.y) / lesion.radius, (x - lesion.x) / lesion.radius
    distance = np.sqrt(dz**2 + dy**2 + dx**2)
    near = distance < 3.8  # oedema ends at 2.6 bumpy radii
    dy, dx = dy[near], dx[near]
    waves = sum(a * np.sin(kz * dz + ky * dy + kx * dx + p) for kz, ky, kx, p, a in lesion.bumps)
    bumps = np.zeros_like(distance)
    bumps[near] = np.clip(waves, -0.4, 0.4)
    shape = distance / (1 + bumps)
    if lesion.core == 0:
        return shape, np.full_like(shape, -1)
    return shape, np.minimum(lesion.core - distance / (1 - 0.6 * bumps), 0.85 - shape)


def _tissue(patient: Patient, level: float, x: Plane, y: Plane) -> tuple[Plane, Plane, Plane]:
    """Signal, cover of the head (0 to 1) and cover of white matter of a healthy brain."""
    fine = len(x)
    px = patient.size * fine / 2  # pixels in a half frame side
    wx, wy = (_resized(_between(w, level * (len(w) - 1)), fine) for w in patient.warp)
    x, y = x + wx, y + wy
    mirrored = np.abs(x)
    girth = _girth(level)

    a = np.square(x / (patient.width * girth * (1 + patient.egg * y)))
    b = np.square(y / girth)
    notch = 0.035 * np.exp(-np.square(x / 0.05)) * b
    r = np.sqrt(np.maximum(a + b - patient.squareness * a * b, 0)) + notch
    inside = _soft((1 - r) * px)

    # Clefts between gyri: zeros of noise that is stretched towards the surface.
    opening = _step(level, 0.46, 0.64) * 0.62
    callosum = np.minimum(y + 0.44 - opening, 0.42 - opening - y)  # above 0 inside
    fissure = np.maximum(mirrored - 1.1 * patient.sulcus, callosum)
    depth = np.minimum(1 - r, 2.2 * mirrored + 2 * np.maximum(callosum, 0))
    stretch = 0.5 + 0.5 / np.maximum(r, 0.62)
    folds = _look_up(patient.folds, mirrored * stretch, y * stretch, level)
    folds += 0.6 * _look_up(patient.own_folds, x * stretch, y * stretch, level)
    slope = np.hypot(cv2.Sobel(folds, -1, 1, 0), cv2.Sobel(folds, -1, 0, 1)) / 8
    crease = np.abs(folds) / (slope * px + 1)
    gate = _look_up(patient.gate, x, y, level)
    reach = 0.125 + 0.08 * _step(level, 0.5, 1)  # deeper clefts near the vertex
    sulci = crease - patient.sulcus * np.clip(2.0 + 0.4 * gate - depth / reach, -1, 1.7)
    coarse_x, coarse_y = _shrink(x, fine // 2), _shrink(y, fine // 2)
    sylvian = _resized(_along(coarse_x, coarse_y, _at_level(SYLVIAN, SYLVIAN_LEVELS, level)), fine)
    clefts = np.minimum(
        np.minimum(sulci, fissure), np.minimum(sylvian, 1 - r - 0.8 * patient.sulcus)
    )
    from_cleft = cv2.distanceTransform((clefts > 0).astype(np.uint8), cv2.DIST_L2, 5) / px

    grey = _soft((RIBBON - from_cleft) * px * 0.6)
    white = 1 - grey
    signal = WHITE + 0.012 * gate + grey * (GREY - WHITE)
    for cover, nucleus in _nuclei(mirrored, y, level, px):
        signal += cover * (nucleus - signal)
        white = white * (1 - cover)

    left, right = patient.ventricles
    size = np.where(coarse_x < 0, np.float32(left), np.float32(right))
    horns = _at_level(VENTRICLE, VENTRICLE_LEVELS, level)
    ventricle = _resized(_along(coarse_x, coarse_y, horns, size), fine)
    third = np.hypot(x / 0.017, (y - 0.06) / 0.15) - math.sqrt(max(0.0, 1 - (level / 0.3) ** 2))
    fluid = _soft(np.minimum(np.minimum(clefts, ventricle), third * 0.017) * -px)
    white = white * (1 - fluid)
    signal += fluid * (CSF - signal)

    falx = _soft((0.005 - np.maximum(mirrored, fissure)) * px)
    signal += 0.8 * falx * (FALX - signal)
    veins = _soft((0.007 - crease) * px) * np.clip((gate - 1.1) * 4, 0, 1) * (depth < 0.22)
    dots = np.clip((_look_up(patient.specks, x, y, level) - 1.9) * 2, 0, 1) * (from_cleft < RIBBON)
    always = _named_vessels(x, y / girth, level) * inside
    vessels = np.maximum(np.maximum(veins, dots), always)
    signal += vessels * (VESSEL - signal)
    return signal * inside, inside, white


def _nuclei(mirrored: Plane, y: Plane, level: float, px: float) -> Iterator[tuple[Plane, float]]:
    """Cover and signal of each deep nucleus that the level cuts."""
    for cx, cy, cz, ax, ay, az, turn, signal in NUCLEI:
        room = 1 - ((level - cz) / az) ** 2
        if room > 0:
            u = (mirrored - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
            v = (y - cy) * math.cos(turn) - (mirrored - cx) * math.sin(turn)
            yield _soft((math.sqrt(room) - np.hypot(u / ax, v / ay)) * (ax * px * 0.6)), signal


def _named_vessels(x: Plane, y: Plane, level: float) -> Plane:
    """What enhances in everyone: sagittal sinus, vein of Galen, choroid plexus."""
    discs = [(0.0, 0.955, 0.034), (0.0, -0.955, 0.016)]
    if 0.1 < level < 0.34:
        discs += [(0.0, 0.37, 0.02), (0.29, 0.31, 0.022), (0.275, 0.36, 0.018)]
    mirrored = np.abs(x)
    nearest = np.min([np.hypot(mirrored - cx, y - cy) - radius for cx, cy, radius in discs], axis=0)
    return _soft(nearest * np.float32(-len(x) / 2))


def scan(
    signal: Plane, inside: Mask, patient: Patient, rng: np.random.Generator
) -> UInt8[np.ndarray, "y x"]:
    """What the patient's scanner makes of tissue signal."""
    scanner, side = patient.scanner, len(signal)
    bias = np.exp(scanner.bias * _resized(patient.bias, side))
    sigma = scanner.blur_mm * side / patient.field_mm
    blurred = cv2.GaussianBlur(signal, (0, 0), max(sigma, 0.2))
    exposed = np.power(np.maximum(blurred, 0), scanner.gamma) * bias
    noise = scanner.noise * math.sqrt(side / 256) * rng.standard_normal((2, side, side), np.float32)
    magnitude = np.hypot(exposed + noise[0], noise[1]) * (scanner.brightness * 250)
    return np.where(inside, np.clip(np.rint(magnitude), 0, 255), 0).astype(np.uint8)


def _head_grid(patient: Patient, fine: int) -> tuple[Plane, Plane]:
    """Head coordinates of every pixel: x and y."""
    axis = ((np.arange(fine, dtype=np.float32) + 0.5) * (2 / fine) - 1) / patient.size
    column, row = np.meshgrid(axis, axis)
    cos, sin = math.cos(patient.turn), math.sin(patient.turn)
    return column * cos + row * sin, row * cos - column * sin


def _girth(level: float) -> float:
    """Size of the head at a level, 1 at its widest."""
    return math.sqrt(1 - 0.65 * max(0.0, level - 0.3) ** 2)


def _step(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def _soft(inwards_px: Plane) -> Plane:
    """Cover, 0 to 1, of pixels whose distance from an edge is given, positive inside."""
    return np.clip(inwards_px + np.float32(0.5), 0, 1)


def _shrink(plane: Plane, side: int) -> Float32[np.ndarray, "side side"]:
    return np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _resized(coarse: Plane, side: int) -> Float32[np.ndarray, "side side"]:
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)


def _between(volume: Volume, position: float) -> Float32[np.ndarray, "rows columns"]:
    """The plane at a fractional position of a volume that repeats."""
    low = int(position)
    share = np.float32(position - low)
    return volume[low % len(volume)] * (1 - share) + volume[(low + 1) % len(volume)] * share


def _look_up(volume: Volume, x: Plane, y: Plane, level: float) -> Plane:
    plane = _between(volume, level * len(volume) / 1.5)
    scale = np.float32(plane.shape[0] / PERIOD)
    return np.asarray(
        cv2.remap(plane, x * scale, y * scale, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
    )


def _at_level(keys: np.ndarray, levels: tuple[float, ...], level: float) -> np.ndarray:
    """Control points (p, 3) at a level, linear between key levels and fixed beyond them."""
    high = int(np.clip(np.searchsorted(levels, level), 1, len(levels) - 1))
    share = _step(level, levels[high - 1], levels[high])
    return keys[high - 1] * (1 - share) + keys[high] * share


def _along(x: Plane, y: Plane, chain: np.ndarray, size: Plane | float = 1.0) -> Plane:
    """Signed distance, negative inside, to a chain of capsules (x, y, radius) on either side."""
    x, nearest = np.abs(x), np.full(x.shape, 9, np.float32)
    cut = np.stack([0.75 * chain[:-1] + 0.25 * chain[1:], 0.25 * chain[:-1] + 0.75 * chain[1:]], 1)
    chain = np.concatenate([chain[:1], cut.reshape(-1, 3), chain[-1:]])  # corners cut
    for (ax, ay, ar), (bx, by, br) in zip(chain[:-1].tolist(), chain[1:].tolist(), strict=True):
        dx, dy = bx - ax, by - ay
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        radius = ar + t * (br - ar)
        gap = np.hypot(x - ax - t * dx, y - ay - t * dy) - radius * size
        nearest = np.minimum(nearest, gap)
    return nearest
