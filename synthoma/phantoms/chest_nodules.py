"""Nodules of the lung: what LIDC-IDRI's are like, where they may lie, and how they are drawn.

    (counts of LIDC, a patient's lungs) -> nodules -> HU, tight boxes, diameters in mm

Sizes, attenuations and edges follow the counts of `lidc_counts.py`. Where nodules are attached does
not: no public annotation says it, so the shares are settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.distance import pdist

from synthoma.data.vois import ATTENUATIONS, Attenuation
from synthoma.phantoms.chest_space import Field, Grid, Point, Tubes, Volume, paint
from synthoma.phantoms.lidc_counts import EDGES, Edge, lidc_counts

Attached = Literal["free", "wall", "vessel"]

ATTACHED: tuple[Attached, ...] = get_args(Attached)
#: Vessels thinner than this radius in mm attach to no nodule and keep none away: lungs are full of
#: them.
VESSEL_MM = 0.9
#: Nodules keep this far from what they are not attached to.
FREE_MM = 2.0


@dataclass(frozen=True, eq=False)
class Nodule:
    """A nodule before it is drawn."""

    centre: Point
    radius_mm: float
    """Half the longest chord of its axial section through the centre, were it not cut by a wall."""
    attenuation: Attenuation
    edge: Edge
    attached: Attached
    hu: float
    """Of what is solid, or of all of a ground-glass nodule."""
    glass_hu: float
    core: float
    """Radius of a part-solid nodule's core, share of its own."""
    core_at: Point
    """Centre of the core in radii."""
    turn: Float64[np.ndarray, "3 3"]
    axes: Point
    """Half axes in radii, before bumps."""
    bumps: Float32[np.ndarray, "w 5"]
    """Waves of the outline: wave vector, phase, amplitude."""
    spicules: Tubes

    @property
    def reach_mm(self) -> float:
        """From the centre to the farthest of the body, spicules aside."""
        return 1.5 * self.radius_mm


class Seen(NamedTuple):
    """A nodule as the lung holds it."""

    nodule: Nodule
    box_mm: Float64[np.ndarray, "6"]
    """Lowest z, y, x and highest z, y, x of the body."""
    diameter_mm: float
    """The longest distance of two points of one axial section: LIDC's measure."""


def draw_number(least: int, most: int, rng: np.random.Generator) -> int:
    """Of nodules in a scan, as LIDC's scans with `least` to `most` nodules have them."""
    numbers = np.arange(least, most + 1)
    scans = lidc_counts().scans
    weights = np.array([scans[n] if n < len(scans) else 0 for n in numbers], float)
    if not weights.any():
        return least
    return int(rng.choice(numbers, p=weights / weights.sum()))


def draw_kind(
    least_mm: float, most_mm: float, rng: np.random.Generator
) -> tuple[float, Attenuation, Edge]:
    """Diameter in mm, attenuation and edge, together as often as LIDC has them."""
    counts = lidc_counts()
    edges = np.array(counts.bin_edges_mm, float)
    low, high = np.maximum(edges[:-1], least_mm), np.minimum(edges[1:], most_mm)
    share = np.clip(high - low, 0, None) / np.diff(edges)
    weights = counts.nodules * share[:, None, None]
    if not weights.any():  # a range within which LIDC has none
        return rng.uniform(least_mm, most_mm), "solid", "smooth"
    cell = int(rng.choice(weights.size, p=(weights / weights.sum()).ravel()))
    size, attenuation, edge = np.unravel_index(cell, weights.shape)
    return rng.uniform(low[size], high[size]), ATTENUATIONS[attenuation], EDGES[edge]


def draw_nodule(
    diameter_mm: float, attenuation: Attenuation, edge: Edge, rng: np.random.Generator
) -> Nodule:
    """A free nodule at the origin; `place` moves it."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    n = {"smooth": 4, "lobulated": 7, "spiculated": 9}[edge]
    height = {"smooth": 0.035, "lobulated": 0.11, "spiculated": 0.08}[edge]
    wave = {"smooth": 1.6, "lobulated": 2.3, "spiculated": 3.2}[edge]
    bumps = rng.normal(0, wave, (n, 3)), rng.uniform(0, 6.3, (n, 1)), rng.normal(0, height, (n, 1))
    core_at = rng.normal(0, 0.13, 3)
    nodule = Nodule(
        centre=np.zeros(3),
        radius_mm=1.0,
        attenuation=attenuation,
        edge=edge,
        attached="free",
        hu=rng.uniform(5, 55),
        glass_hu=rng.uniform(-680, -470),
        core=rng.uniform(0.45, 0.7),
        core_at=core_at,
        turn=turn,
        axes=np.array([1.0, rng.uniform(0.78, 1), rng.uniform(0.68, 1)]),
        bumps=np.concatenate(bumps, axis=1).astype(np.float32),
        spicules=Tubes(*(np.zeros((0, 3)),) * 2, *(np.zeros(0),) * 2),
    )
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    round_it = np.stack([np.zeros(72), np.sin(angle), np.cos(angle)], axis=1)
    outline = round_it / shape_of(nodule, *round_it.T.astype(np.float32))[:, None]
    radius = diameter_mm / float(pdist(outline).max())
    nodule = replace(nodule, radius_mm=radius)
    return replace(nodule, spicules=_spicules(nodule, rng)) if edge == "spiculated" else nodule


def _spicules(nodule: Nodule, rng: np.random.Generator) -> Tubes:
    """Thin strands that run outwards from the surface of a nodule at the origin."""
    n = int(rng.integers(12, 24))
    towards = rng.standard_normal((n, 3))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    surface = nodule.radius_mm / shape_of(nodule, *(towards * nodule.radius_mm).T)
    length = rng.uniform(0.3, 1, n) * min(nodule.radius_mm, 10) + 1
    start = towards * (0.9 * surface)[:, None]
    end = start + (towards + rng.normal(0, 0.2, (n, 3))) * length[:, None]
    thick = rng.uniform(0.7, 1.2, n) * min(1, nodule.radius_mm / 5)
    return Tubes(start, end, thick, 0.4 * thick)


def shape_of(nodule: Nodule, z: Field, y: Field, x: Field) -> Float32[np.ndarray, "..."]:
    """Distance from the centre over that of the surface in the same direction; 1 on it."""
    dz, dy, dx = (
        (np.asarray(axis - c, np.float32) / np.float32(nodule.radius_mm))
        for axis, c in zip((z, y, x), nodule.centre, strict=True)
    )
    distance = np.sqrt(dz * dz + dy * dy + dx * dx) + np.float32(1e-6)
    uz, uy, ux = dz / distance, dy / distance, dx / distance
    turned = [
        (row[0] * uz + row[1] * uy + row[2] * ux) / axis
        for row, axis in zip(nodule.turn.astype(np.float32), nodule.axes, strict=True)
    ]
    inverse = np.sqrt(sum(np.square(t) for t in turned))
    waves = sum(a * np.sin(kz * uz + ky * uy + kx * ux + p) for kz, ky, kx, p, a in nodule.bumps)
    return np.asarray(distance * inverse / (1 + np.clip(waves, -0.3, 0.3)), np.float32)


class Lung(NamedTuple):
    """What nodules are placed in."""

    grid: Grid
    gap: Volume
    """Distance from the lungs' surface in mm, below 0 inside, on `grid`."""
    vessels: Tubes
    low: Point
    high: Point
    """Corners of the field of view: a nodule lies in it whole."""


def place(
    nodule: Nodule,
    attached: Attached,
    lung: Lung,
    others: Sequence[Nodule],
    rng: np.random.Generator,
) -> Nodule | None:
    """The nodule at a place where it is attached as asked for, or None where none was found."""
    around = 1.15 * nodule.radius_mm
    low, high = lung.low + around, lung.high - around
    wide = np.maximum(lung.vessels.radius_start, lung.vessels.radius_end) > VESSEL_MM
    vessels = Tubes(*(column[wide] for column in lung.vessels))
    near, far = _depths(attached, nodule.radius_mm)
    if attached == "vessel":
        seeds = vessels.end
    else:
        fitting = np.argwhere((lung.gap < 2 - near) & (lung.gap > -2 - far))
        seeds = fitting * np.array(lung.grid.spacing_mm) + np.array(lung.grid.first_mm)
    in_view = np.flatnonzero(((seeds > low - 4) & (seeds < high + 4)).all(axis=1))
    for _ in range(100 if len(in_view) else 0):
        k = int(rng.choice(in_view))
        if attached == "vessel":
            centre = _beside(vessels, k, nodule.radius_mm, rng)
        else:
            centre = seeds[k] + rng.uniform(-0.5, 0.5, 3) * np.array(lung.grid.spacing_mm)
        depth = -float(lung.grid.at(lung.gap, centre[None])[0])
        if not near < depth < far or (centre < low).any() or (centre > high).any():
            continue
        if not all(
            np.linalg.norm(o.centre - centre) > 1.3 * (o.radius_mm + nodule.radius_mm) + 3
            for o in others
        ):
            continue
        vessel_gap = float(vessels.gap_mm(centre).min(initial=np.inf))
        if attached == "vessel" and vessel_gap > 0.8 * nodule.radius_mm:
            continue
        if attached == "free" and vessel_gap < around + FREE_MM / 2:
            continue
        spicules = nodule.spicules._replace(
            start=nodule.spicules.start + centre, end=nodule.spicules.end + centre
        )
        return replace(nodule, centre=centre, attached=attached, spicules=spicules)
    return None


def _depths(attached: Attached, radius: float) -> tuple[float, float]:
    """How far below the lung's surface the centre of a nodule lies, in mm."""
    if attached == "wall":
        return max(0.35 * radius, 0.8), 0.85 * radius + 0.3
    return 1.15 * radius + FREE_MM, np.inf


def _beside(vessels: Tubes, k: int, radius: float, rng: np.random.Generator) -> Point:
    """A point so far from vessel k that a nodule around it touches the vessel's side."""
    aside = np.cross(vessels.end[k] - vessels.start[k], rng.standard_normal(3))
    aside /= max(float(np.linalg.norm(aside)), 1e-6)
    away = vessels.radius_end[k] + radius * rng.uniform(0.3, 0.75)
    return np.asarray(vessels.end[k] + aside * away)


def measure(nodule: Nodule, lung: Lung) -> Seen | None:
    """Box and diameter of what lies within the lung, on a grid of its own; None for nothing."""
    step, reach = nodule.radius_mm / 12, nodule.reach_mm
    n = int(np.ceil(2 * reach / step)) + 1
    first = nodule.centre - step * (n - 1) / 2
    own = Grid((float(first[0]), float(first[1]), float(first[2])), (step,) * 3, (n, n, n))
    z, y, x = own.axes()
    places = np.stack(np.broadcast_arrays(z, y, x), axis=-1)
    body = (shape_of(nodule, z, y, x) < 1) & (lung.grid.at(lung.gap, places) < 0)
    if not body.any():
        return None
    where = np.argwhere(body)
    low, high = first + (where.min(0) - 0.5) * step, first + (where.max(0) + 0.5) * step
    longest = 0.0
    for section in body:
        if section.any():
            rows = np.flatnonzero(section.any(axis=1))
            left = section[rows].argmax(axis=1)
            right = n - 1 - section[rows, ::-1].argmax(axis=1)
            ends = np.concatenate([np.stack([rows, left], 1), np.stack([rows, right], 1)])
            longest = max(longest, (float(pdist(ends).max()) if len(ends) > 1 else 0) + 1)
    return Seen(nodule, np.concatenate([low, high]), longest * step)


def lay_glass(values: Volume, grid: Grid, nodule: Nodule, grain: Volume) -> None:
    """Draws what is ground glass of a nodule into parenchyma, before vessels."""
    if nodule.attenuation == "solid":
        return
    box = _around(nodule, grid)
    if box is not None:
        cover = _cover(nodule, grid, box, soft_mm=1 + 0.15 * nodule.radius_mm)
        uneven = nodule.glass_hu + 25 * grain[box]
        values[box] += cover * (np.clip(uneven, -700, -450) - values[box])


def lay_solid(values: Volume, grid: Grid, nodule: Nodule, lungs: Volume) -> None:
    """Draws what is solid of a nodule over vessels; `lungs` is the share of lung in each voxel."""
    box = _around(nodule, grid)
    if box is None or nodule.attenuation == "ground-glass":
        return
    if nodule.attenuation == "part-solid":
        core = replace(
            nodule,
            centre=nodule.centre + nodule.core_at * nodule.radius_mm,
            radius_mm=nodule.core * nodule.radius_mm,
        )
        cover = _cover(core, grid, box, soft_mm=1)
    else:
        cover = _cover(nodule, grid, box, soft_mm=0)
    if len(nodule.spicules.start):
        paint(cover, grid.part(box), nodule.spicules)
    values[box] += cover * lungs[box] * (np.float32(nodule.hu) - values[box])


def _around(nodule: Nodule, grid: Grid) -> tuple[slice, slice, slice] | None:
    reach = nodule.reach_mm + (12 if len(nodule.spicules.start) else 2) + 2 * grid.voxel_mm
    return grid.box(nodule.centre - reach, nodule.centre + reach)


def _cover(
    nodule: Nodule, grid: Grid, box: tuple[slice, slice, slice], *, soft_mm: float
) -> Volume:
    """Share of each voxel of a box that a nodule fills, from 27 points in it where it is small."""
    offsets = (-1 / 3, 0.0, 1 / 3) if nodule.radius_mm < 3 * grid.voxel_mm else (0.0,)
    width = np.float32(max(grid.voxel_mm / len(offsets), soft_mm))
    z, y, x = grid.axes(box)
    total: Volume | None = None
    for a in offsets:
        for b in offsets:
            for c in offsets:
                dz, dy, dx = (o * s for o, s in zip((a, b, c), grid.spacing_mm, strict=True))
                shape = shape_of(nodule, z + dz, y + dy, x + dx)
                part = np.clip(0.5 + (1 - shape) * np.float32(nodule.radius_mm) / width, 0, 1)
                total = part if total is None else total + part
    assert total is not None
    return np.asarray(total / len(offsets) ** 3, np.float32)
