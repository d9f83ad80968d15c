"""What is inside the lungs: two trees of vessels, airways beside arteries, fissures, parenchyma."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from synthoma.phantoms.chest_anatomy import COARSE, Anatomy
from synthoma.phantoms.chest_space import Grid, Points, Tubes, Volume, grow, joined, paint

AIR_HU, WALL_HU = -985.0, 20.0
#: Arteries and veins that reach the outer lung, in a lung.
LEAVES = (620, 460)
LEAF_MM = 0.6


class Lungs(NamedTuple):
    """Tubes of both lungs, and what the parenchyma is like."""

    vessels: Tubes
    airways: Tubes
    """Lumen; the wall is a fifth of its radius and at least 0.5 mm."""
    air_hu: float
    """Of the parenchyma at the middle height of a lying patient."""
    gradient: float
    """HU a mm towards the back."""
    blood_hu: float
    holes_hu: float
    """How much darker emphysema is; 0 for none."""


def draw_lungs(anatomy: Anatomy, rng: np.random.Generator) -> Lungs:
    """Trees that fill this patient's lungs."""
    vessels, airways = [], [anatomy.airways]
    for side, (artery, vein) in zip((-1, 1), anatomy.hila, strict=True):
        arteries = grow(artery, _inside(anatomy, side, LEAVES[0], rng), rng, leaf_mm=LEAF_MM)
        veins = grow(vein, _inside(anatomy, side, LEAVES[1], rng), rng, leaf_mm=LEAF_MM)
        vessels += [arteries, veins]
        airways.append(_beside(arteries, anatomy))
    return Lungs(
        vessels=joined(vessels),
        airways=joined(airways),
        air_hu=rng.uniform(-885, -825),
        gradient=rng.uniform(0.1, 0.5),
        blood_hu=rng.uniform(32, 55),
        holes_hu=rng.uniform(15, 50) if rng.random() < 0.3 else 0.0,
    )


def _inside(anatomy: Anatomy, side: int, n: int, rng: np.random.Generator) -> Points:
    """Points all over a lung, not close to its surface."""
    deep = np.argwhere(anatomy.lungs < -5)
    middle = -COARSE.first_mm[2] / COARSE.spacing_mm[2]
    deep = deep[(deep[:, 2] - middle) * side > 0]
    chosen = deep[rng.integers(len(deep), size=n)] + rng.uniform(-0.5, 0.5, (n, 3))
    return chosen * np.array(COARSE.spacing_mm) + np.array(COARSE.first_mm)


def _beside(arteries: Tubes, anatomy: Anatomy) -> Tubes:
    """Airways run beside arteries, about as wide, as far as their walls can be seen."""
    wide = arteries.radius_end > 1.9
    for ends in (arteries.start, arteries.end):  # no air in the heart
        wide &= COARSE.at(anatomy.lungs, ends) < 5
    own = Tubes(*(column[wide] for column in arteries))
    along = own.end - own.start
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    aside = np.array([0.45, 0.75, 0.2]) - (along @ [0.45, 0.75, 0.2])[:, None] * along
    aside /= np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-6)
    first, last = 0.75 * own.radius_start, 0.75 * own.radius_end
    return Tubes(
        own.start + aside * (own.radius_start + first + 0.6)[:, None],
        own.end + aside * (own.radius_end + last + 0.6)[:, None],
        first,
        last,
    )


def lay_parenchyma(grid: Grid, anatomy: Anatomy, lungs: Lungs, grain: Volume) -> Volume:
    """HU of lungs without vessels; `grain` is the anatomy's on this grid."""
    _, y, x = grid.axes()
    values = lungs.air_hu + lungs.gradient * y + 11 * grain
    if lungs.holes_hu:
        values -= lungs.holes_hu * np.clip(grain - 0.3, 0, 1.5)
    for cover in _fissures(grid, anatomy, x):
        values += cover * (-500 - values)
    return np.asarray(values, np.float32)


def _fissures(grid: Grid, anatomy: Anatomy, x: Float32[np.ndarray, " x"]) -> list[Volume]:
    """Cover of the oblique fissures of both lungs, and of the right lung's horizontal one."""
    high, deep, _ = anatomy.build.scale
    z, y, _ = grid.axes()
    z, y = z / high, y / deep
    bent = 6 * np.sin(x / 38 + 1) + 4 * np.sin(y / 30)
    oblique = (z - 50 - 0.95 * (y - 70) - bent) / 1.4
    level = z - 2 - 0.06 * y - 4 * np.sin(x / 25)
    level = np.maximum(np.abs(level), np.maximum(-oblique, x + 12))  # the right lung, in front
    thin = 0.7 / grid.voxel_mm
    return [
        np.clip(1 - np.abs(gap) / grid.voxel_mm, 0, 1) * min(1, thin) for gap in (oblique, level)
    ]


def lay_trees(values: Volume, grid: Grid, lungs: Lungs) -> None:
    """Draws vessels, then airways with their walls, over the parenchyma."""
    cover = np.zeros_like(values)
    paint(cover, grid, lungs.vessels)
    values += cover * (np.float32(lungs.blood_hu) - values)
    lay_airways(values, grid, lungs.airways)


def lay_airways(values: Volume, grid: Grid, airways: Tubes) -> None:
    """Draws walls and then the air in them."""
    thick = np.maximum(0.5, 0.2 * airways.radius_end)
    walls = airways._replace(
        radius_start=airways.radius_start + thick, radius_end=airways.radius_end + thick
    )
    for tubes, hu in ((walls, WALL_HU), (airways, AIR_HU)):
        cover = np.zeros_like(values)
        paint(cover, grid, tubes)
        values += cover * (np.float32(hu) - values)
