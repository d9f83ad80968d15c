"""Where a chest is, and its pipes: grids of voxels in mm, tubes drawn into them, trees grown.

Points are (z, y, x) in mm: z grows to the head, y to the back, x to the patient's left, which is
the image's right. 0 is the midline, 25 mm below the carina, about half way from front to back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.ndimage import map_coordinates

Point = Float64[np.ndarray, "3"]
Points = Float64[np.ndarray, "n 3"]
Volume = Float32[np.ndarray, "z y x"]
#: What broadcasts to a volume: coordinates along one axis, or more.
Field = Float[np.ndarray, "..."]


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel centres of a volume."""

    first_mm: tuple[float, float, float]
    """Centre of voxel (0, 0, 0)."""
    spacing_mm: tuple[float, float, float]
    space: tuple[int, int, int]

    @property
    def voxel_mm(self) -> float:
        """Side of a cube as large as a voxel."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))

    def axes(
        self, box: tuple[slice, slice, slice] | None = None
    ) -> tuple[Float32[np.ndarray, "a 1 1"], Float32[np.ndarray, "b 1"], Float32[np.ndarray, " c"]]:
        """z, y and x of the voxels of a box, such that they broadcast."""
        z, y, x = (
            (first + step * np.arange(n)[part]).astype(np.float32)
            for first, step, n, part in zip(
                self.first_mm,
                self.spacing_mm,
                self.space,
                box or (slice(None),) * 3,
                strict=True,
            )
        )
        return z[:, None, None], y[:, None], x

    @property
    def last_mm(self) -> Point:
        """Centre of the last voxel."""
        return np.array(self.first_mm) + np.array(self.spacing_mm) * (np.array(self.space) - 1)

    def box(self, low: Point, high: Point) -> tuple[slice, slice, slice] | None:
        """The voxels whose centres lie between two corners; None where there are none."""
        first, step = np.array(self.first_mm), np.array(self.spacing_mm)
        start = np.maximum(np.ceil((low - first) / step), 0).astype(int)
        stop = np.minimum(np.floor((high - first) / step) + 1, self.space).astype(int)
        if (stop <= start).any():
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        return z, y, x

    def at(self, volume: Volume, points: Float[np.ndarray, "*n 3"]) -> Float32[np.ndarray, "*n"]:
        """Values between voxels, linear; those of the edge beyond it."""
        places = (points - np.array(self.first_mm)) / np.array(self.spacing_mm)
        return map_coordinates(volume, np.moveaxis(places, -1, 0), order=1, mode="nearest")

    def part(self, box: tuple[slice, slice, slice]) -> "Grid":
        """The grid of a box of this one."""
        (az, ay, ax), (bz, by, bx) = ([s.start for s in box], [s.stop for s in box])
        (z, y, x), (sz, sy, sx) = self.first_mm, self.spacing_mm
        return Grid(
            (z + sz * az, y + sy * ay, x + sx * ax), self.spacing_mm, (bz - az, by - ay, bx - ax)
        )

    def onto(self, volume: Volume, fine: "Grid") -> Float32[np.ndarray, "z2 y2 x2"]:
        """A smooth volume of this grid at the voxels of another, by cubics along each axis."""
        along_z, along_y, along_x = (
            _cubics((first + step * np.arange(n) - own_first) / own_step, known)
            for first, step, n, own_first, own_step, known in zip(
                fine.first_mm, fine.spacing_mm, fine.space,
                self.first_mm, self.spacing_mm, self.space, strict=True,
            )
        )  # fmt: skip
        return along_y @ np.tensordot(along_z, volume, axes=1) @ along_x.T


def _cubics(places: Float64[np.ndarray, " n"], known: int) -> Float32[np.ndarray, "n known"]:
    """Weights of Catmull and Rom's cubics through equidistant values; edges are repeated."""
    places = np.clip(places, 0, known - 1)
    low = np.minimum(places.astype(int), known - 2)
    t = places - low
    shares = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    )
    weights = np.zeros((len(places), known), np.float32)
    for k, share in enumerate(shares):
        np.add.at(weights, (np.arange(len(t)), np.clip(low + k - 1, 0, known - 1)), share)
    return weights


class Tubes(NamedTuple):
    """Straight pieces of round tubes, each as wide at either end as is said."""

    start: Points
    end: Points
    radius_start: Float64[np.ndarray, " n"]
    radius_end: Float64[np.ndarray, " n"]

    def wider(self, by_mm: float) -> "Tubes":
        return self._replace(
            radius_start=self.radius_start + by_mm, radius_end=self.radius_end + by_mm
        )

    def gap_mm(self, point: Point) -> Float64[np.ndarray, " n"]:
        """From a point to the surface of each tube, below 0 inside."""
        along = self.end - self.start
        share = ((point - self.start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-9)
        share = np.clip(share, 0, 1)
        nearest = self.start + share[:, None] * along
        radius = self.radius_start + share * (self.radius_end - self.radius_start)
        return np.linalg.norm(point - nearest, axis=1) - radius


def joined(parts: list[Tubes]) -> Tubes:
    """Several sets of tubes as one; no part gives none."""
    if not parts:
        return Tubes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    return Tubes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def pipe(points: Points | list[tuple[float, float, float]], radii: float | list[float]) -> Tubes:
    """A tube through points, rounded at the bends, with a radius for all or one a point."""
    line = np.asarray(points, np.float64)
    width = np.broadcast_to(np.asarray(radii, np.float64), len(line))
    both = np.concatenate([line, width[:, None]], axis=1)
    for _ in range(2):  # Chaikin's corner cutting
        cut = np.stack([0.75 * both[:-1] + 0.25 * both[1:], 0.25 * both[:-1] + 0.75 * both[1:]], 1)
        both = np.concatenate([both[:1], cut.reshape(-1, 4), both[-1:]])
    return Tubes(both[:-1, :3], both[1:, :3], both[:-1, 3], both[1:, 3])


class Near(NamedTuple):
    """A tube as the voxels around it see it."""

    box: tuple[slice, slice, slice]
    axis_mm: Volume
    """Distance from its axis, on the box."""
    radius_mm: Volume
    """Of the tube where it is nearest."""
    mean_mm: float


def near(grid: Grid, tubes: Tubes, reach_mm: float) -> Iterator[Near]:
    """Each tube with the voxels no farther than `reach_mm` from it; those outside are left out."""
    widest = np.maximum(tubes.radius_start, tubes.radius_end)[:, None] + reach_mm
    first, step = np.array(grid.first_mm), np.array(grid.spacing_mm)
    low = np.minimum(tubes.start, tubes.end) - widest
    high = np.maximum(tubes.start, tubes.end) + widest
    starts = np.maximum(np.ceil((low - first) / step), 0).astype(int)
    stops = np.minimum(np.floor((high - first) / step) + 1, grid.space).astype(int)
    touched = np.flatnonzero((stops > starts).all(axis=1))
    along = tubes.end - tubes.start
    towards = along / np.maximum((along**2).sum(1, keepdims=True), 1e-9)
    z, y, x = grid.axes()
    for k in touched.tolist():
        (az, ay, ax), (bz, by, bx) = starts[k].tolist(), stops[k].tolist()
        sz, sy, sx = tubes.start[k].tolist()
        (tz, ty, tx), (dz, dy, dx) = towards[k].tolist(), along[k].tolist()
        z_, y_, x_ = z[az:bz] - sz, y[ay:by] - sy, x[ax:bx] - sx
        share = z_ * tz + y_ * ty + x_ * tx
        np.maximum(share, 0, out=share)
        np.minimum(share, 1, out=share)
        square = np.square(z_ - dz * share)
        square += np.square(y_ - dy * share)
        square += np.square(x_ - dx * share)
        a, b = float(tubes.radius_start[k]), float(tubes.radius_end[k])
        share *= b - a
        share += a
        box = (slice(az, bz), slice(ay, by), slice(ax, bx))
        yield Near(box, np.sqrt(square, out=square), share, (a + b) / 2)


def paint(cover: Volume, grid: Grid, tubes: Tubes) -> None:
    """Raises `cover`, 0 to 1, to the share of each voxel that a tube fills.

    A tube thinner than a voxel is drawn as wide as one and as faint as its cross-section is small.
    """
    voxel = grid.voxel_mm
    for box, axis_mm, radius_mm, mean_mm in near(grid, tubes, voxel):
        inside = (np.maximum(radius_mm, voxel / 2) - axis_mm) / voxel + np.float32(0.5)
        inside = np.minimum(inside, 1) * min(1, (2 * mean_mm / voxel) ** 2)  # cover is 0 or more
        np.maximum(cover[box], inside, out=cover[box])


def approach(gaps: Volume, grid: Grid, tubes: Tubes, reach_mm: float) -> None:
    """Lowers `gaps` to the distance from the nearest tube, below 0 inside, as far as it reaches."""
    for box, axis_mm, radius_mm, _ in near(grid, tubes, reach_mm):
        np.minimum(gaps[box], axis_mm - radius_mm, out=gaps[box])


def grow(
    root: Point, leaves: Points, rng: np.random.Generator, *, leaf_mm: float, power: float = 2.6
) -> Tubes:
    """A tree that reaches every leaf: it forks by halving the leaves, as airways fill a lung.

    A branch runs two fifths of the way to the centre of the leaves it serves, and is as wide as
    Murray's law has it for so many: radius**power is shared among children.

    Paper: Tawhai et al. 2000, Generation of an anatomically based three-dimensional model of the
    conducting airways, Annals of Biomedical Engineering 28.
    """
    pieces: list[tuple[Point, Point, float, float]] = []
    open_ends = [(root, leaves, leaf_mm * len(leaves) ** (1 / power))]
    while open_ends:
        start, served, width = open_ends.pop()
        centre = served.mean(axis=0)
        own = leaf_mm * len(served) ** (1 / power)
        end = served[0] if len(served) == 1 else start + rng.uniform(0.3, 0.5) * (centre - start)
        length = float(np.linalg.norm(end - start))
        bend = (start + end) / 2 + rng.normal(0, 0.07 * length, 3)
        first = min(width, 1.25 * own)
        middle = (first + own) / 2
        pieces += [(start, bend, first, middle), (bend, end, middle, own)]
        if len(served) > 1:
            apart = served - centre
            spread = apart.T @ apart + np.diag(rng.uniform(0, 6, 3))
            longest = np.linalg.eigh(spread)[1][:, -1]
            across = apart @ (longest * np.sign(longest[np.abs(longest).argmax()]))
            order = np.argsort(across, kind="stable")
            cut = int(np.clip(round(len(order) * rng.uniform(0.3, 0.7)), 1, len(order) - 1))
            open_ends += [(end, served[order[:cut]], own), (end, served[order[cut:]], own)]
    return Tubes(*(np.array(column) for column in zip(*pieces, strict=True)))
