"""What a report is made of, and how its facts are put into words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from synthoma.errors import DataError
from synthoma.report.claims import Answer, answers
from synthoma.report.figures import Detected, Froc, Picture, TrainingRun
from synthoma.report.scatter import Scatter
from synthoma.report.table import Estimate, PublishedRow, Table, display, number


@dataclass(frozen=True, eq=False)
class Grid:
    """Pictures that belong together."""

    title: str
    pictures: Sequence[Picture]
    synthetic: bool
    """Whether a generator drew them; said in the heading, under every picture and in its file."""
    note: str = ""
    """Where they come from, how they were chosen."""


@dataclass(frozen=True, eq=False)
class SmallTable:
    """Words and numbers beside the results: what was curated, copied, spent.

    Raises:
        DataError: A row has more or fewer cells than there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """As they are to be read; the first cell of each is its name."""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(
                    f"table {self.title!r}: the row {list(row)} has {len(row)} cells for "
                    f"{len(self.columns)} columns"
                )


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that a report shows. Only the first three have no default."""

    title: str
    question: str
    """One paragraph."""
    table: Table
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    intervals: str = (
        "95 % intervals from resampling test patients, for these very trainings: they hold neither "
        "the chance of training nor that of which patients were trained on, which the differences "
        "of each training show. p: two-sided, from the same resamples; Holm: corrected for all "
        "comparisons with the same set-up. Other metrics are not corrected."
    )
    """How the intervals were made, in a few sentences."""
    small_tables: Sequence[SmallTable] = ()
    froc: Sequence[Froc] = ()
    grids: Sequence[Grid] = ()
    detections: Sequence[Detected] = ()
    detection_threshold: float = 0.5
    """Detections with a lower score are not drawn."""
    scatters: Sequence[Scatter] = ()
    training: Sequence[TrainingRun] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Nested, as JSON has it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    seeds: Sequence[int] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each part took."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the data: cases, patients per split, dropped counts, digest."""


def summary(report: Report) -> str:
    """How many comparisons show a gain, in one sentence."""
    found = answers(report.table)
    if not found:
        return "No set-up was compared with another, so no gain can be claimed."
    gains, label = sum(a.verdict == "gain" for a in found), display(found[0].metric).label
    if len(found) == 1:
        return f"The comparison shows {'a' if gains else 'no'} gain in {label}."
    drawn = [answer for answer in found if answer.synthetic]
    if not drawn or len(drawn) == len(found):
        return f"{of_them(found, 'comparisons')} a gain in {label}."
    others = [answer for answer in found if not answer.synthetic]
    rest = sum(answer.verdict == "gain" for answer in others)
    return (
        f"{of_them(drawn, 'comparisons of set-ups with synthetic images')} a gain in {label}; "
        f"{rest or 'none'} of the {len(others)} without."
    )


def of_them(found: Sequence[Answer], what: str) -> str:
    """How many of some comparisons show something.

    Example:
        ``"None of 3 comparisons shows"``, ``"2 of 3 comparisons show"``
    """
    gains = sum(answer.verdict == "gain" for answer in found)
    return f"{gains or 'None'} of {len(found)} {what} show{'s' * (gains < 2)}"


def times(seconds: Mapping[str, float]) -> list[tuple[str, str]]:
    """How long each part took, and all of them together."""
    rows = [(name, duration(part)) for name, part in seconds.items()]
    return [*rows, ("total", duration(sum(seconds.values())))] if rows else []


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(3.21), duration(75), duration(7384)
        ('3.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def flat(content: Mapping[str, Any], path: str = "", joint: str = ".") -> list[tuple[str, str]]:
    """Nested settings as rows of a dotted name and a value.

    Example:
        >>> flat({"gan": {"width": 64, "sides": [4, 8]}, "seed": 0})
        [('gan.width', '64'), ('gan.sides', '4, 8'), ('seed', '0')]
    """
    rows: list[tuple[str, str]] = []
    for name, item in content.items():
        if isinstance(item, Mapping) and item:
            rows += flat(item, f"{path}{name}{joint}", joint)
        elif isinstance(item, list | tuple) and not any(
            isinstance(part, Mapping | list | tuple) for part in item
        ):
            rows.append((f"{path}{name}", ", ".join(str(part) for part in item) or "none"))
        elif isinstance(item, str):
            rows.append((f"{path}{name}", item))
        else:
            rows.append((f"{path}{name}", json.dumps(item, ensure_ascii=False, default=str)))
    return rows


def adherence_lines(table: Table) -> list[tuple[str, Estimate]]:
    """What the adherence is of, and how high it is."""
    found = table.adherence
    if found is None:
        return []
    lines = (
        ("Synthetic images, the boxes that were ordered", found.ordered),
        ("Synthetic images, another image's boxes (chance)", found.shuffled),
        ("Real images, their own boxes (ceiling)", found.real),
    )
    return [(name, estimate) for name, estimate in lines if estimate is not None]


class Beside(NamedTuple):
    """A published value in words, and ours where a set-up of the same name has one."""

    metric: str
    published: str
    ours: Estimate | None


def published_lines(table: Table) -> tuple[list[str], list[tuple[PublishedRow, list[Beside]]]]:
    """The published metrics, and by row each value with ours."""
    rows = table.published or ()
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    ours = {row.setup: row.metrics for row in table.rows}

    def beside(row: PublishedRow, metric: str) -> Beside:
        found, percent = row.metrics.get(metric), display(metric).percent
        said = "–" if found is None else number(found, percent=percent) + " %" * percent
        return Beside(metric, said, ours.get(row.setup, {}).get(metric))

    return metrics, [(row, [beside(row, metric) for metric in metrics]) for row in rows]
