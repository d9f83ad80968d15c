"""The rows of a study's table, whatever the task: values with intervals, paired differences."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from synthoma.metrics.detection import UndefinedMetricError
from synthoma.metrics.intervals import Interval, PatientMetric, interval, paired_difference
from synthoma.report.claims import corrected
from synthoma.report.table import Difference, Estimate, Row


def rows_of(
    facts: Mapping[str, Sequence[Mapping[str, Any]]],
    metrics: Mapping[str, Mapping[str, PatientMetric]],
    each: Mapping[str, Sequence[float]],
    *,
    primary: str,
    baseline: str,
    also: Sequence[str] = (),
    seed: int,
) -> tuple[Row, ...]:
    """A row of the table for each set-up, with paired differences.

    The k-th cells of all set-ups share their draw of patients and their seed. Values average over
    cells; the intervals resample test patients and hold neither draws nor seeds, so each difference
    also keeps the primary metric's of `each` pair of cells.

    Args:
        facts: By set-up, the cell.json of each cell.
        metrics: By set-up and name, over its cells.
        each: By set-up, the primary metric of each cell; none where it is undefined.
        baseline: The set-up that every other one is compared with, where it is in `facts`.
        also: Further ones that those listed below them are compared with.

    Raises:
        AssertionError: The cells of two set-ups are not of the same draws and seeds.
    """
    wanted = pairs_of(facts)

    def difference(setup: str, to: str) -> Difference:
        found, _ = estimates(
            {
                name: partial(paired_difference, own, metrics[to][name], seed=seed)
                for name, own in metrics[setup].items()
            }
        )
        apart = tuple(a - b for a, b in zip(each[setup], each[to], strict=True))
        return Difference(to=to, metrics=found, each=apart)

    rows, above = [], set[str]()
    for setup, cells in facts.items():
        values, undefined = estimates(
            {name: partial(interval, own, seed=seed) for name, own in metrics[setup].items()}
        )
        compared = [baseline] if baseline in facts and setup != baseline else []
        compared += [other for other in also if other in above and other != baseline]
        rows.append(
            Row(
                setup=setup,
                n_real=mean_over_draws(cells, "n_real"),
                n_synthetic=mean_over_draws(cells, "n_synthetic"),
                draws=len({draw for draw, _ in wanted}),
                seeds=len(cells),
                metrics=values,
                differences=tuple(difference(setup, to) for to in compared),
                undefined=undefined,
            )
        )
        above.add(setup)
    return corrected(rows, primary)


def pairs_of(facts: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[int, int]]:
    """The draw and seed of each cell, once they are known to be the same in every set-up.

    Raises:
        AssertionError: They are not.
    """
    pairs = {name: [(cell["draw"], cell["seed"]) for cell in own] for name, own in facts.items()}
    wanted = next(iter(pairs.values()))
    for name, own in pairs.items():
        if own != wanted:
            raise AssertionError(f"{name!r} has (draw, seed) {own}, not {wanted}")
    return wanted


def mean_over_draws(cells: Sequence[Mapping[str, Any]], name: str) -> int:
    """A count of images, which may differ by draw."""
    of_draw = {cell["draw"]: cell[name] for cell in cells}
    return round(sum(of_draw.values()) / len(of_draw))


def estimates(
    wanted: Mapping[str, Callable[[], Interval]],
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Each interval that is defined, and why the others are not."""
    values, undefined = {}, {}
    for name, compute in wanted.items():
        try:
            values[name] = estimate(compute())
        except UndefinedMetricError as error:
            undefined[name] = error.reason
    return values, undefined


def estimate(found: Interval) -> Estimate:
    """An interval as reports keep it."""
    return Estimate(value=found.value, low=found.low, high=found.high, n=found.n, p=found.p)
