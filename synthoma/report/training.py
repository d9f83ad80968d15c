"""Charts of a training: losses, validations and diversity against the step."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from synthoma.report.figures import POINTS, Chart, Series, TrainingRun, chart, no_ticks
from synthoma.report.table import display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: (step, value) of each row that has it.
Points = list[tuple[float, float]]


def training_charts(run: TrainingRun) -> list[Chart]:
    """What a log holds against the step, as far as it does.

    Loss terms, a chart a player; a metric of the validations, a chart each; how diverse the drawn
    images were, by pixels and by features, beside the real set.
    """
    losses: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    judged: dict[str, Points] = defaultdict(list)
    spread: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for row in run.rows:
        for name, value in row.items():
            if "/" in name and _is_number(value):
                player, term = name.split("/", 1)
                losses[player][term].append((row["step"], value))
        for name, value in (row.get("validation") or {}).items():
            if _is_number(value):
                judged[name].append((row["step"], value))
        for name, value in (row.get("diversity") or {}).items():
            if _is_number(value):
                kind, whose = name.removeprefix("real "), "real" if "real " in name else "synthetic"
                spread[kind][whose].append((row["step"], value))
    charts = [_training_chart(run.name, player, terms) for player, terms in losses.items()]
    charts += [
        _training_chart(run.name, f"validation, {display(name).label}", {"": points})
        for name, points in judged.items()
    ]
    return charts + [
        _training_chart(run.name, f"spread of {kind}", lines) for kind, lines in spread.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _training_chart(run: str, title: str, terms: Mapping[str, Points]) -> Chart:
    lines = [(Series(i), np.array(points, np.float64)) for i, points in enumerate(terms.values())]

    def draw(axes: "Axes", colours: Sequence[str]) -> None:
        for look, points in lines:
            mean, low, high = _binned(points)
            colour = colours[look.colour]
            if len(mean) < len(points):
                axes.fill_between(mean[:, 0], low, high, color=colour, alpha=0.13, linewidth=0)
            dot: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) <= 12 else {}
            axes.plot(
                mean[:, 0], mean[:, 1], color=colour, linewidth=1.5, dashes=look.dashes, **dot
            )
        size = np.abs(np.concatenate([points[:, 1] for _, points in lines]))
        usual = max(float(np.median(size)), 1e-6)
        if len(size) > 8 and size.max() > 50 * usual:  # one spike would flatten everything
            axes.set_yscale("symlog", linthresh=usual)
            axes.yaxis.set_minor_locator(no_ticks())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        axes.set_xlabel("Step")

    legend = tuple(zip(terms, (look for look, _ in lines), strict=True)) if len(terms) > 1 else ()
    ends = "; ".join(
        f"{name} ends at {points[-1][1]:.3g}".strip() for name, points in terms.items()
    )
    alt = f"{run}, {title}, against the training step: {ends}."
    return replace(chart(title, alt, draw, (4.4, 2.8)), legend=legend)


def _binned(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of equal runs of points, at most `POINTS` / 2, with the least and greatest of each."""
    groups = np.array_split(xy, min(len(xy), POINTS // 2))
    mean = np.array([group.mean(axis=0) for group in groups])
    extremes = [(group[:, 1].min(), group[:, 1].max()) for group in groups]
    return mean, *np.array(extremes).T
