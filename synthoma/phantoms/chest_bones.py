"""Ribs, spine, breast bone, shoulder blades and collar bones, drawn into a chest in HU."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from synthoma.phantoms.chest_anatomy import COARSE, Anatomy, spine_y
from synthoma.phantoms.chest_space import Grid, Points, Tubes, Volume, joined, paint, pipe

CORTEX_HU, MARROW_HU, DISC_HU, CORD_HU, CARTILAGE_HU = 620.0, 230.0, 90.0, 30.0, 110.0
CORTEX_MM = 1.6
#: Height of a vertebra with its disc.
VERTEBRA_MM = 23.5


class Bones(NamedTuple):
    """What is drawn as tubes."""

    bone: Tubes
    cartilage: Tubes


def draw_bones(anatomy: Anatomy, rng: np.random.Generator) -> Bones:
    """Ribs around this patient's rib cage, and collar bones."""
    high, deep, wide = anatomy.build.scale
    bone, cartilage = [], []
    for number in range(12):
        top = (132 - VERTEBRA_MM * number) * high
        fall = (24 + 7 * min(number, 8)) * rng.uniform(0.9, 1.1) * high
        for side in (-1, 1):
            end = rng.uniform(2.2, 2.45) if number < 10 else rng.uniform(1.5, 1.8)
            angles = np.linspace(0.36, end, 10)
            heights = top - fall * (1 - np.cos(angles * 1.15)) / 1.8 + rng.normal(0, 1.5)
            rib = _around(anatomy, heights, angles, side)
            for lift in (-2.6, 2.6):  # a rib is higher than thick
                bone.append(pipe(rib + np.array([lift, 0, 0]), rng.uniform(3.4, 4.0)))
            if number < 7:
                to = rib[-1] * [0, 0, 0.0] + [min(rib[-1, 0] + 14, 70 - 13 * number), 0, side * 13]
                to[1] = _front(anatomy, to[0])
                middle = (rib[-1] + to) / 2 - [6, 5, 0]
                cartilage.append(pipe(np.array([rib[-1], middle, to]), [5.0, 5.0, 4.5]))
    for side in (-1, 1):
        ends = [(84, -58, 16), (96, -64, 52), (112, -38, 96), (120, 6, 150)]
        points = np.array(ends) * [high, deep, side * wide]
        bone.append(pipe(points, [8.0, 6.0, 6.0, 7.0]))
    return Bones(joined(bone), joined(cartilage))


def _around(anatomy: Anatomy, heights: np.ndarray, angles: np.ndarray, side: int) -> Points:
    """Points 6 mm outside the rib cage, at angles from the back to the front."""
    centre_y, reach = -5.0, np.linspace(190, 10, 61)
    steps = reach[None, :, None]
    towards = np.stack([np.zeros_like(angles), np.cos(angles), side * np.sin(angles)], axis=1)
    start = np.stack([heights, np.full_like(heights, centre_y), np.zeros_like(heights)], axis=1)
    rays = start[:, None] + steps * towards[:, None]
    gap = COARSE.at(anatomy.cage, rays)
    first = np.argmax(gap < 6, axis=1)  # from outside inwards
    return rays[np.arange(len(rays)), first]


def _front(anatomy: Anatomy, height: float) -> float:
    """y of the inside of the rib cage 30 mm aside of the midline."""
    y = np.arange(-135.0, 0, 1)
    points = np.stack([np.full_like(y, height), y, np.full_like(y, 30.0)], axis=1)
    inside = COARSE.at(anatomy.cage, points) < 0
    return float(y[np.argmax(inside)]) - 6 if inside.any() else -40.0


def lay_bones(values: Volume, grid: Grid, anatomy: Anatomy, bones: Bones, cage: Volume) -> None:
    """Draws all bones over `values` in HU. `cage` is the distance from the rib cage on `grid`."""
    for tubes, hu in ((bones.cartilage, CARTILAGE_HU), (bones.bone, CORTEX_HU)):
        cover = np.zeros_like(values)
        paint(cover, grid, tubes)
        values += cover * (np.float32(hu) - values)
    cover = np.zeros_like(values)
    paint(cover, grid, bones.bone.wider(-CORTEX_MM))
    values += cover * (np.float32(MARROW_HU) - values)
    _lay_spine(values, grid, anatomy)
    _lay_breast_bone(values, grid, anatomy)
    _lay_shoulder_blades(values, grid, anatomy, cage)


def _solid(values: Volume, gap: Volume, voxel: float, marrow_hu: float) -> None:
    """Draws a bone with its cortex, given the distance from its surface."""
    for depth, hu in ((0.0, CORTEX_HU), (CORTEX_MM, marrow_hu)):
        cover = np.clip(0.5 - (gap + depth) / voxel, 0, 1)
        values += cover * (np.float32(hu) - values)


def _lay_spine(values: Volume, grid: Grid, anatomy: Anatomy) -> None:
    build = anatomy.build
    deep, wide = build.scale[1:]
    box = grid.box(np.array([-1e3, 20, -52 * wide]), np.array([1e3, 150, 52 * wide]))
    if box is None:
        return
    z, y, x = grid.axes(box)
    part, voxel = values[box], grid.voxel_mm
    y = (y - spine_y(build, z)) / np.float32(deep)
    x = x / np.float32(wide)
    lean = z + 0.25 * np.maximum(y, 0)  # arches hang lower than bodies
    phase = np.abs((lean / (VERTEBRA_MM * build.scale[0])) % 1 - 0.5)  # 0 mid body, 0.5 mid disc
    waist = 1 + 0.09 * (phase / 0.5) ** 2
    body = np.sqrt((x / 17) ** 2 + (y / 14.5) ** 2) - waist
    body = np.maximum(body * 15, (phase - 0.4) * VERTEBRA_MM)
    disc = np.clip(0.5 - (np.sqrt((x / 17) ** 2 + (y / 14.5) ** 2) - 1) * 15 / voxel, 0, 1)
    part += disc * (DISC_HU - part)
    canal = np.hypot(x, y - 23.0)
    arch = np.maximum(np.abs(canal - 11.5) - 2.2, (phase - 0.3) * VERTEBRA_MM)
    pedicle = np.maximum(np.abs(np.abs(x) - 12) - 3.5, np.abs(y - 15) - 6)
    spinous = np.maximum(np.abs(x) - 2.8, np.abs(y - 45) - 12)
    sweep = np.abs(x) * 0.55 + 17
    transverse = np.maximum(np.abs(y - sweep - 6) - 4.5, np.abs(np.abs(x) - 24) - 13)
    thin = np.maximum(np.minimum(np.minimum(pedicle, spinous), transverse), (phase - 0.2) * 24)
    _solid(part, np.minimum(np.minimum(arch, thin), body).astype(np.float32), voxel, MARROW_HU)
    cord = np.clip(0.5 - (canal - 9) / voxel, 0, 1)
    part += cord * (CORD_HU - part)


def _lay_breast_bone(values: Volume, grid: Grid, anatomy: Anatomy) -> None:
    high, _, wide = anatomy.build.scale
    heights = np.linspace(-58 * high, 92 * high, 12)
    fronts = np.array([_front(anatomy, height) for height in heights]) - 1
    box = grid.box(np.array([heights[0], fronts.min() - 14, -30]), np.array([heights[-1], 0, 30]))
    if box is None:
        return
    z, y, x = grid.axes(box)
    middle = np.interp(z, heights, fronts)
    half = wide * np.interp(z / high, [-58, -40, 40, 60, 92], [5, 16, 14, 16, 27])
    across = np.sqrt(np.square(x / half) + np.square((y - middle) / 6) + 1e-6)
    gap = ((across - 1) * 6).astype(np.float32)
    _solid(values[box], gap, grid.voxel_mm, MARROW_HU - 60)


def _lay_shoulder_blades(values: Volume, grid: Grid, anatomy: Anatomy, cage: Volume) -> None:
    """Thin plates that follow the ribs behind and aside, with a thick outer edge."""
    high, deep, wide = anatomy.build.scale
    box = grid.box(np.array([-40 * high, -20, -1e3]), np.array([96 * high, 1e3, 1e3]))
    if box is None:
        return
    z, y, x = grid.axes(box)
    up: Float32[np.ndarray, "z 1 1"] = np.clip((z / high + 40) / 130, 0, 1)
    aside = np.abs(x) / wide
    inner = 92 - 26 * up
    outer = 104 + 34 * up
    thick = 1.5 + 2.5 * np.exp(-np.square((aside - outer + 6) / 6))
    plate = np.abs(cage[box] - 20) - thick
    edge = np.maximum(np.maximum(inner - aside, aside - outer), 24 * deep - y - 0.25 * z)
    gap = np.maximum(plate, edge * math.cos(0.5)).astype(np.float32)
    _solid(values[box], gap, grid.voxel_mm, MARROW_HU)
