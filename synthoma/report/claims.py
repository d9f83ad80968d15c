"""What may be claimed from a table: one sentence a comparison.

    rows -> corrected -> Table -> answers

A gain is claimed only of the table's primary metric, only where the interval of the paired
difference excludes zero, and only where its p-value, corrected for all comparisons with the same
set-up (Holm 1979), is below 0.05. The other metrics' differences are told, and claimed of nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from synthoma.metrics.intervals import holm
from synthoma.report.table import Difference, Estimate, Row, Table, display, interval, number, value

#: What a corrected p-value must be below.
SIGNIFICANT = 0.05

Verdict = Literal[
    "gain", "worse", "difference", "not after Holm's correction", "no difference shown"
]


def corrected(rows: Sequence[Row], primary: str) -> tuple[Row, ...]:
    """The rows, with `p_holm` of each difference in the primary metric.

    A family is all comparisons with one set-up. A difference without a p-value has none after it
    either, and nothing is claimed from it.
    """
    families: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for difference in row.differences:
            if (found := difference.metrics.get(primary)) and found.p is not None:
                families[difference.to].append(found.p)
    after = {to: iter(holm(family)) for to, family in families.items()}

    def with_holm(difference: Difference) -> Difference:
        found = difference.metrics.get(primary)
        known = found is not None and found.p is not None
        p = next(after[difference.to]) if known else None
        return difference.model_copy(update={"p_holm": p})

    return tuple(
        row.model_copy(update={"differences": tuple(with_holm(d) for d in row.differences)})
        for row in rows
    )


def direction(metric: str, difference: Estimate) -> Literal["better", "worse", "different"]:
    """Which way a difference points, whether or not it is shown."""
    better = display(metric).better
    if better is None:
        return "different"
    return "better" if (difference.value > 0) == (better == "higher") else "worse"


def verdict(metric: str, difference: Estimate, p_holm: float | None) -> Verdict:
    """What a paired difference in the primary metric shows."""
    if not difference.excludes_zero:
        return "no difference shown"
    if p_holm is None or p_holm >= SIGNIFICANT:
        return "not after Holm's correction"
    better = display(metric).better
    if better is None:
        return "difference"
    return "gain" if (difference.low > 0) == (better == "higher") else "worse"


def p_text(p: float) -> str:
    """A p-value for people.

    Example:
        >>> p_text(0.314), p_text(0.0421), p_text(0.0009995)
        ('0.31', '0.042', '0.001')
    """
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def p_values(table: Table, metric: str, difference: Difference) -> str:
    """The p-value of a difference, and after Holm where it is the primary metric's; or ""."""
    p = difference.metrics[metric].p
    said = [] if p is None else [f"p = {p_text(p)}"]
    if metric == table.primary and difference.p_holm is not None:
        said.append(f"after Holm {p_text(difference.p_holm)}")
    return ", ".join(said)


def each_training(table: Table, difference: Difference) -> str:
    """The primary metric's difference of each training, where there were several.

    Example:
        ``"+0.05, +0.02, −0.01"``
    """
    percent = display(table.primary).percent
    several = difference.each if len(difference.each) > 1 else ()
    return ", ".join(number(value, percent=percent, signed=True) for value in several)


@dataclass(frozen=True)
class Answer:
    """What one comparison shows."""

    setup: str
    to: str
    metric: str
    verdict: Verdict | Literal["undefined"]
    sentence: str
    synthetic: bool
    """Whether the first set-up was trained with synthetic images."""
    asides: tuple[str, ...]
    """Other metrics whose intervals exclude zero, by direction; not corrected, so not claimed."""


def answers(table: Table) -> list[Answer]:
    """One sentence a comparison, about the table's primary metric."""
    return [_answer(table, row, difference) for row, difference in table.comparisons]


def _answer(table: Table, row: Row, difference: Difference) -> Answer:
    primary = table.primary
    outcome: Verdict | Literal["undefined"] = "undefined"
    if found := difference.metrics.get(primary):
        outcome = verdict(primary, found, difference.p_holm)
        p = p_values(table, primary, difference)
        main = (
            f"{display(primary).label} {value(primary, found, signed=True)} "
            f"{interval(primary, found, signed=True)}{', ' * bool(p)}{p}: {outcome}"
        )
    else:
        reason = why_undefined(table, row, difference, primary)
        main = f"{display(primary).label} undefined ({reason})"
    ways: dict[str, list[str]] = defaultdict(list)
    for metric, other in difference.metrics.items():
        if metric != primary and other.excludes_zero:
            ways[direction(metric, other)].append(display(metric).label)
    asides = tuple(f"{way} in {'; '.join(metrics)}" for way, metrics in ways.items())
    sentence = f"{row.setup} vs {difference.to}: {main}"
    synthetic = row.n_synthetic > 0
    return Answer(row.setup, difference.to, primary, outcome, sentence, synthetic, asides)


def why_undefined(table: Table, row: Row, difference: Difference, metric: str) -> str:
    """Why two set-ups have no difference in a metric."""
    if metric in row.undefined:
        return row.undefined[metric]
    other = table.row(difference.to)
    return other.undefined.get(metric, f"not compared with {other.setup}")
