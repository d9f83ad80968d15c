"""The soft parts of a chest as distances: body, rib cage, lungs, heart, great vessels, diaphragm.

    (build) -> distances in mm on a coarse grid, below 0 inside -> any fine grid

Distances are smooth, so a grid of 4 mm holds them whatever the voxels of the image: the anatomy of
a patient does not depend on the resolution. They are right near surfaces and rough farther off.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from synthoma.phantoms.chest_space import Field, Grid, Point, Tubes, Volume, approach, joined, pipe

COARSE = Grid((-176.0, -144.0, -212.0), (4.0, 4.0, 4.0), (80, 74, 107))
#: Distances are not looked after beyond this.
REACH_MM = 40.0
APEX_MM = 109.0

# fmt: off
#: The rib cage from below: height; outer edge and inner edge of either half from the midline; front
#: and back, all in mm, of a build of 1.
CAGE = np.array([
    (-176, 126,  0,  -80, 80), (-130, 134,  0,  -94, 86), (-90, 137,  0, -101, 91),
    ( -50, 137,  0, -101, 94), ( -10, 133,  0,  -96, 95), ( 30, 124,  0,  -85, 93),
    (  60, 111,  3,  -68, 89), (  78,  97,  8,  -52, 82), ( 91,  82, 13,  -35, 74),
    ( 100,  68, 18,  -18, 65), ( 106,  56, 23,   -4, 57), ( 110, 46, 29,  10, 46),
    ( 144,  42, 34,   20, 36),
], np.float64)
#: The body in the same way: height, half its width, front, back.
BODY = np.array([
    (-176, 160, -124, 122), (-100, 168, -130, 127), (0, 170, -126, 130), (60, 176, -112, 128),
    (90, 190, -96, 122), (115, 205, -76, 114), (144, 205, -62, 104),
], np.float64)
# fmt: on


@dataclass(frozen=True)
class Build:
    """How a patient is built. Lengths in mm, else shares of what is usual."""

    scale: tuple[float, float, float]
    """Height, depth and width."""
    fat_mm: float
    muscle_mm: float
    breast_mm: float
    """How far breasts stand out; 0 for none."""
    domes_mm: tuple[float, float]
    """Height of the right and of the left dome of the diaphragm."""
    heart: float
    aorta: float
    kyphosis: float
    septum_mm: float
    """Half the width of the fat between the lungs in front."""


def draw_build(rng: np.random.Generator) -> Build:
    """Somebody: of any size, lean or not."""
    woman = rng.random() < 0.5
    size = rng.normal(0.95 if woman else 1.02, 0.04)
    high, deep, wide = np.clip(size * rng.normal(1, (0.04, 0.05, 0.03)), 0.82, 1.1)
    right = rng.normal(-72, 9)
    return Build(
        scale=(float(high), float(deep), float(wide)),
        fat_mm=rng.uniform(4, 22),
        muscle_mm=rng.uniform(9, 18) - 2 * woman,
        breast_mm=rng.uniform(12, 40) if woman else 0.0,
        domes_mm=(right, right - rng.uniform(0, 16)),
        heart=rng.uniform(0.88, 1.12),
        aorta=rng.uniform(0.85, 1.2),
        kyphosis=rng.uniform(0.5, 1.4),
        septum_mm=rng.uniform(2, 7),
    )


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Distances on `COARSE`, below 0 inside, and tubes in mm."""

    build: Build
    body: Volume
    cage: Volume
    """The inside of the rib cage, what is below the diaphragm with it."""
    lungs: Volume
    diaphragm: Volume
    """Below 0 under it."""
    organs: Volume
    """Heart, great vessels, gullet; liver, stomach, spleen."""
    gas: Volume
    airways: Tubes
    """Lumen of windpipe and main bronchi."""
    hila: tuple[tuple[Point, Point], tuple[Point, Point]]
    """Where arteries and veins enter the right and the left lung."""
    muscle: Volume
    """Thickness in mm of the muscles outside the ribs."""
    grain: Volume
    """Slow noise of unit variance."""


def draw_anatomy(build: Build, rng: np.random.Generator) -> Anatomy:
    """A patient without bones, without what is inside the lungs, and without disease."""
    z, y, x = COARSE.axes()
    high, deep, wide = build.scale
    z, y, x = z / np.float32(high), y / np.float32(deep), x / np.float32(wide)
    bumps, uneven, grain = (slow_noise(rng, wave) for wave in (45.0, 60.0, 30.0))
    one_sided = 1 + np.float32(rng.normal(0, 0.012)) * np.sign(x)
    halves, middle = _cage(z, y, x * one_sided)
    halves = halves * np.float32(min(deep, wide)) + 1.6 * bumps
    cage = smooth_least(halves, middle, 20)
    diaphragm = _diaphragm(build, z, y, x) + 2.5 * uneven
    chest, airways, hila = _mediastinum(build, rng)
    fat = _septum(build, z, y, x)
    between = smooth_least(smooth_least(chest - 5 - 1.5 * grain, fat, 9), _spine_bed(build), 6)
    lungs = smooth_most(smooth_most(halves, -smooth_least(diaphragm, between, 16), 4), -between, 3)
    lungs = smooth_most(lungs, (z - np.float32(APEX_MM)) * np.float32(high), 8)
    belly, gas = _abdomen(z, y, x)
    below = np.maximum(np.minimum(belly, _liver(z, y, x, diaphragm)), diaphragm + 3)
    crus = np.abs(diaphragm + 1.5) - 1.5
    return Anatomy(
        build=build,
        body=_body(build, z, y, x) + 2 * uneven,
        cage=cage,
        lungs=lungs,
        diaphragm=diaphragm,
        organs=np.minimum(chest, np.minimum(np.maximum(below, cage + 2), np.maximum(crus, cage))),
        gas=np.maximum(gas, diaphragm + 8),
        airways=airways,
        hila=hila,
        muscle=_muscle(z, y, x) * np.float32(build.muscle_mm) * np.exp(0.35 * uneven),
        grain=grain,
    )


def spine_y(build: Build, z: Field) -> Float32[np.ndarray, "..."]:
    """Centre of the vertebral bodies at a height, in mm: bent backwards in the middle."""
    bend = np.square((z / build.scale[0] + 15) / 100) * (8 * build.kyphosis)
    return np.asarray((69 - bend) * build.scale[1], np.float32)


def slow_noise(rng: np.random.Generator, wave_mm: float) -> Volume:
    """Noise of about unit variance on `COARSE` that changes over `wave_mm`."""
    first = np.array(COARSE.first_mm)
    last = first + np.array(COARSE.spacing_mm) * np.array(COARSE.space)
    n_z, n_y, n_x = (int(n) for n in np.ceil((last - first) * 2 / wave_mm) + 3)
    knots = Grid(COARSE.first_mm, (wave_mm / 2,) * 3, (n_z, n_y, n_x))
    return 1.5 * knots.onto(rng.standard_normal(knots.space, np.float32), COARSE)


def smooth_least(a: Field, b: Field, width: float) -> Volume:
    """The lower of two distances, where they are close a little lower: edges filled."""
    closeness = np.maximum(np.float32(width) - np.abs(a - b), 0)
    return np.minimum(a, b) - np.square(closeness) * np.float32(0.25 / width)


def smooth_most(a: Field, b: Field, width: float) -> Volume:
    """The higher of two distances, edges rounded."""
    return -smooth_least(-a, -b, width)


def _cage(z: Field, y: Field, x: Field) -> tuple[Volume, Volume]:
    """Two eggs side by side at each height, as wide as `CAGE` has it; what is between them."""
    outer, inner, front, back = (np.interp(z, CAGE[:, 0], column) for column in CAGE.T[1:])
    v = (y - (front + back) / 2) / ((back - front) / 2)
    u = (np.abs(x) - (outer + inner) / 2) / ((outer - inner) / 2 * (1 + 0.11 * v))
    inside = (np.abs(u) ** 2.2 + np.abs(v) ** 2.2) ** (1 / 2.2) - 1
    middle = (np.abs(x / (0.8 * outer)) ** 2.4 + np.abs(1.12 * v + 0.05) ** 2.4) ** (1 / 2.4) - 1
    return _as_distance(inside.astype(np.float32)), _as_distance(middle.astype(np.float32))


def _muscle(z: Field, y: Field, x: Field) -> Volume:
    """How thick muscles outside the ribs are: on the breast, below the arms, along the spine."""
    aside = np.abs(x)
    breast = _rise(-y, 10, 60) * _rise(aside, 12, 40) * _rise(z, -25, 10)
    back = _rise(y, -40, 30) * _rise(aside, 45, 90) * _rise(z, -140, 40)
    spine = _rise(y, 50, 80) * _rise(-aside, -58, -25)
    top = _rise(z, 60, 100)
    return np.asarray(0.12 + 0.9 * breast + 0.9 * back + 1.7 * spine + 0.8 * top, np.float32)


def _rise(value: Field, low: float, high: float) -> Field:
    """0 up to `low`, 1 from `high` on, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _body(build: Build, z: Field, y: Field, x: Field) -> Volume:
    half, front, back = (np.interp(z, BODY[:, 0], column) for column in BODY.T[1:])
    half, front, back = half + build.fat_mm, front - 0.7 * build.fat_mm, back + 0.5 * build.fat_mm
    u, v = x / half, (y - (front + back) / 2) / ((back - front) / 2)
    inside = (np.abs(u) ** 2.5 + np.abs(v) ** 2.5) ** (1 / 2.5) - 1
    body = _as_distance(inside.astype(np.float32))
    if build.breast_mm:
        centre, axes = (-25, -98, 78), (62, 30 + build.breast_mm, 62)
        body = smooth_least(body, _ellipsoid(z, y, np.abs(x), centre, axes), 20)
    return body


def _as_distance(inside: Volume) -> Volume:
    """Any smooth function that is 0 on a surface as a distance in mm from it, about."""
    along_z, *in_plane = (np.square(g) for g in np.gradient(inside, *COARSE.spacing_mm))
    level = in_plane[0] + in_plane[1]
    slope = np.sqrt(level + np.minimum(along_z, level))  # far off, changes along z mislead
    return np.clip(inside / np.maximum(slope, 2e-3), -REACH_MM * 2, REACH_MM * 2)


def _ellipsoid(
    z: Field, y: Field, x: Field, centre: tuple[float, ...], axes: tuple[float, ...]
) -> Field:
    """Distance, about, from an upright ellipsoid; centre and half axes along z, y, x in mm."""
    (cz, cy, cx), (az, ay, ax) = centre, axes
    share = np.sqrt(((z - cz) / az) ** 2 + ((y - cy) / ay) ** 2 + ((x - cx) / ax) ** 2)
    steep = np.sqrt(((z - cz) / az**2) ** 2 + ((y - cy) / ay**2) ** 2 + ((x - cx) / ax**2) ** 2)
    return share * (share - 1) / np.maximum(steep, 1e-6)


def _diaphragm(build: Build, z: Field, y: Field, x: Field) -> Volume:
    """Two domes, steep at the back and the sides. Below 0 under them."""
    right, left = build.domes_mm
    back = np.where(y > -5, 62 * np.square((y + 5) / 88), 26 * np.square((y + 5) / 88))
    domes = [
        top - np.where(np.abs(x) > abs(centre), 66, 14) * np.square((x - centre) / 76) - back
        for top, centre in ((right, -62.0), (left, 62.0))
    ]
    towards = np.clip(x / 30 + 0.5, 0, 1)
    height = np.asarray(domes[0] * (1 - towards) + domes[1] * towards, np.float32)
    flat = height[0] if height.ndim == 3 else height
    slope = np.hypot(*np.gradient(flat, *COARSE.spacing_mm[1:]))
    return (z - height) / np.sqrt(1 + np.square(np.minimum(slope, 3)))


def _septum(build: Build, z: Field, y: Field, x: Field) -> Volume:
    """The fat between the lungs: narrow in front of and behind the heart, wide at the top."""
    aside = 3 * np.sin(y / 35)
    width = build.septum_mm + np.clip((z - 45) / 5, 0, 14) + np.clip((y - 25) / 6, 0, 9)
    return np.asarray(np.abs(x - aside) - width, np.float32)


def _spine_bed(build: Build) -> Volume:
    """What the spine keeps the lungs away from."""
    z, y, x = COARSE.axes()
    round_it = np.hypot(x, y - spine_y(build, z)) - 23 * build.scale[2]
    behind = np.maximum(np.abs(x) - 21 * build.scale[2], spine_y(build, z) - y)
    return smooth_least(round_it, np.asarray(behind, np.float32), 4)


def _mediastinum(
    build: Build, rng: np.random.Generator
) -> tuple[Volume, Tubes, tuple[tuple[Point, Point], tuple[Point, Point]]]:
    """Heart, vessels and gullet as one distance; the airways; where vessels enter the lungs."""
    scale = np.array(build.scale)

    def placed(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
        moved = (np.array(points) + rng.normal(0, 1.5, (len(points), 3))) * scale
        return [(float(p), float(q), float(r)) for p, q, r in moved]

    # fmt: off
    a, v = build.aorta, rng.uniform(0.9, 1.1)
    aorta = pipe(placed([
        (-8, -22, 4), (14, -33, -16), (38, -26, -14), (53, -6, 4), (50, 18, 20), (36, 36, 25),
        (0, 44, 24), (-50, 46, 20), (-100, 46, 12), (-180, 44, 4),
    ]), [15 * a, 16 * a, 15 * a, 13 * a, 12 * a, 12 * a, 12 * a, 11 * a, 11 * a, 10 * a])
    trunk = pipe(placed([(-12, -50, 12), (4, -42, 22), (18, -20, 18)]), [14 * v, 13 * v, 12 * v])
    right_artery = placed([(18, -18, 16), (15, -8, -8), (9, -1, -32), (4, 5, -44)])
    left_artery = placed([(18, -18, 18), (23, 0, 32), (17, 12, 42)])
    cava = pipe(placed([(68, -24, -27), (20, -22, -29), (-12, -18, -29)]), 8.5 * v)
    low_cava = pipe(placed([(-50, -4, -24), (-90, 4, -24), (-170, 8, -20)]), 11 * v)
    gullet = pipe(placed([(140, 26, 3), (60, 27, 4), (10, 29, 4), (-50, 30, 8), (-95, 14, 18)]), 6)
    upper = [
        pipe(placed([(52, -14, -5), (82, -12, -12), (140, -2, -34)]), [7, 6, 5]),
        pipe(placed([(53, -5, 5), (86, -2, 13), (140, 2, 30)]), [5, 4, 4]),
        pipe(placed([(52, 8, 15), (84, 12, 24), (112, 8, 50), (116, -4, 90)]), [6, 5, 5, 5]),
        pipe(placed([(66, -26, -27), (76, -36, 2), (94, -28, 34), (104, -30, 80)]), [7, 6, 6, 6]),
        pipe(placed([(66, -24, -27), (92, -18, -33), (106, -22, -70)]), [7, 7, 6]),
    ]
    carina, right, left = placed([(24, 19, 1), (8, 18, -34), (6, 22, 38)])
    windpipe = placed([(144, 4, 0), (90, 6, 0), (55, 13, 0)])
    # fmt: on
    airways = joined(
        [
            pipe([*windpipe, carina], [9, 8.5, 8.5, 8]),
            pipe([carina, right], [7.5, 6.5]),
            pipe([carina, left], [6.5, 5.5]),
        ]
    )  # fmt: skip
    roots = placed([(4, 6, -40), (-18, 12, -34), (14, 14, 40), (-16, 14, 36)])
    tubes = [
        aorta, trunk, cava, low_cava, gullet, *upper, airways.wider(1.5),
        pipe(right_artery, [11 * v, 10 * v, 9 * v, 7 * v]), pipe(left_artery, [11 * v, 10 * v, 8]),
        pipe(placed([(-16, 14, -14), roots[1]]), 8), pipe(placed([(-14, 14, 14), roots[3]]), 8),
    ]  # fmt: skip
    gaps = np.full(COARSE.space, REACH_MM, np.float32)
    approach(gaps, COARSE, joined(tubes), REACH_MM / 2)
    z, y, x = (axis / np.float32(s) for axis, s in zip(COARSE.axes(), build.scale, strict=True))
    heart = _heart(z, y, x, build.heart)
    (p, q, r, s) = (np.array(root) for root in roots)
    return np.minimum(gaps, heart), airways, ((p, q), (r, s))


def _heart(z: Field, y: Field, x: Field, size: float) -> Volume:
    """Ventricles that point down, forward and to the left; both atria behind them."""
    forward = np.array([-0.52, -0.42, 0.74])
    aside = np.array([0.0, 0.87, 0.49])
    up = np.cross(forward, aside)
    dz, dy, dx = z + 42, y + 30, x - 26
    turned = [
        np.asarray(a * dz + b * dy + c * dx, np.float32)
        for a, b, c in (forward, aside / np.linalg.norm(aside), up / np.linalg.norm(up))
    ]
    axes = (58 * size, 42 * size, 45 * size)
    ventricles = _ellipsoid(turned[0], turned[1], turned[2], (0, 0, 0), axes)
    right_atrium = _ellipsoid(z, y, x, (-32, -20, -24), (34 * size, 30 * size, 26 * size))
    left_atrium = _ellipsoid(z, y, x, (-14, 12, 2), (24 * size, 19 * size, 34 * size))
    return smooth_least(smooth_least(ventricles, right_atrium, 10), left_atrium, 8)


def _liver(z: Field, y: Field, x: Field, diaphragm: Volume) -> Volume:
    """All that is under the right dome, tapering to the left."""
    wedge = x - 10 - 0.35 * (z + 120) + 0.5 * y
    return np.asarray(np.maximum(diaphragm + 2, np.float32(0.8) * wedge), np.float32)


def _abdomen(z: Field, y: Field, x: Field) -> tuple[Volume, Volume]:
    """Stomach and spleen; the gas that rises to the front of the stomach."""
    stomach = _ellipsoid(z, y, x, (-130, -18, 52), (44, 52, 40))
    spleen = _ellipsoid(z, y, x, (-128, 46, 92), (44, 38, 26))
    gas = np.maximum(stomach + 4, y + 38)
    return np.minimum(stomach, spleen), np.asarray(gas, np.float32)
