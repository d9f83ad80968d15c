"""Points in the plane by kind, such as real and synthetic images after t-SNE, as a figure.

    Scatter --matplotlib--> Chart

Kinds differ in mark and in colour. They are drawn in turns, so that none covers another whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from synthoma.errors import DataError
from synthoma.report.figures import Chart, Series, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Turns in which the kinds are drawn.
TURNS = 12


@dataclass(frozen=True, eq=False)
class Scatter:
    """Points and what each is; `DataError` where they do not fit together."""

    title: str
    points: Float[np.ndarray, "n 2"]
    category: Sequence[str]
    """Of each point, such as "real" or "synthetic"."""
    note: str = ""
    """What the points are, how they came into the plane."""

    def __post_init__(self) -> None:
        if len(self.points) != len(self.category) or not len(self.points):
            raise DataError(
                f"scatter {self.title!r}: {len(self.points)} points, {len(self.category)} "
                "categories; allowed: one category a point, one point at least"
            )
        if not np.isfinite(self.points).all():
            raise DataError(f"scatter {self.title!r}: points that are not finite numbers")


def scatter_chart(scatter: Scatter) -> Chart:
    """The points without axes: distances after t-SNE have no unit."""
    points = np.asarray(scatter.points, np.float64)
    names = list(dict.fromkeys(scatter.category))
    kind = np.array([names.index(name) for name in scatter.category])
    looks = [Series(i) for i in range(len(names))]
    size = float(np.clip(12_000 / len(points), 8, 40))  # points squared; all of them fill the plane

    def draw(axes: "Axes", colours: Sequence[str]) -> None:
        own = [np.array_split(np.flatnonzero(kind == i), TURNS) for i in range(len(names))]
        for turn in range(TURNS):
            for look, rows in zip(looks, own, strict=True):
                x, y = points[rows[turn]].T
                axes.scatter(
                    x, y, s=size, marker=look.mark, color=colours[look.colour],
                    linewidths=0, alpha=0.75, rasterized=True,
                )  # fmt: skip
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(True)

    counts = "; ".join(f"{name}, {(kind == i).sum():,} points" for i, name in enumerate(names))
    alt = f"Scatter, {scatter.title}: {counts}."
    if len(points) > 1 and len(names) > 1:
        alt += (
            f" The nearest other point is of the same kind for {_together(points, kind):.0%} of "
            f"them; a chance order would give {_by_chance(kind):.0%}."
        )
    legend = tuple(zip(names, looks, strict=True))
    return replace(chart(scatter.title, alt, draw, (5.2, 4.6)), legend=legend)


def _together(points: Float[np.ndarray, "n 2"], kind: Int64[np.ndarray, " n"]) -> float:
    """Share of points whose nearest other point is of their kind."""
    from scipy.spatial import cKDTree  # noqa: PLC0415

    nearest = np.asarray(cKDTree(points).query(points, k=2)[1])
    other = np.where(nearest[:, 0] == np.arange(len(points)), nearest[:, 1], nearest[:, 0])
    return float((kind[other] == kind).mean())


def _by_chance(kind: Int64[np.ndarray, " n"]) -> float:
    """The same if every order of the kinds were as likely."""
    count, n = np.bincount(kind), len(kind)
    return float((count * (count - 1)).sum() / (n * (n - 1)))
