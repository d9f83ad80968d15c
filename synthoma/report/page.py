"""One study's report: table.json, report.md and report.html, which needs nothing beside itself."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from synthoma.data.store import write_json
from synthoma.errors import DataError
from synthoma.report.claims import answers, each_training, p_values, why_undefined
from synthoma.report.content import (
    Grid,
    Report,
    SmallTable,
    adherence_lines,
    flat,
    published_lines,
    summary,
    times,
)
from synthoma.report.figures import (
    DARK,
    LIGHT,
    Detected,
    Picture,
    Series,
    Tile,
    froc_chart,
    marks_of,
    side_limit,
    tile,
)
from synthoma.report.markdown import to_markdown
from synthoma.report.scatter import Scatter, scatter_chart
from synthoma.report.table import (
    Difference,
    Estimate,
    Footnotes,
    Row,
    Table,
    display,
    interval,
    value,
)
from synthoma.report.training import training_charts

__all__ = ["Grid", "Report", "Scatter", "SmallTable", "to_html", "write_report"]


def write_report(out: Path, report: Report) -> None:
    """Write table.json, report.md and report.html into the folder `out`, each whole or not at all.

    The same report gives the same bytes.

    Raises:
        DataError: A picture, a curve or a detection is not what its class says.
    """
    html, markdown = to_html(report), to_markdown(report)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "table.json", report.table.model_dump(mode="json"))
    _write_text(out / "report.md", markdown)
    _write_text(out / "report.html", html)


def _write_text(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def to_html(report: Report) -> str:
    """The page: no script, nothing to load, every string escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    table, notes = report.table, Footnotes()
    metrics, published = published_lines(table)
    series = _series(report)
    limit = side_limit(
        [p.image.shape for grid in report.grids for p in grid.pictures]
        + [slice_.image.shape for slice_ in report.detections]
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        report=report,
        table=table,
        answers=answers(table),
        summary=summary(report),
        headings=[_Heading.of(metric) for metric in table.metrics],
        results=[_Line.of_results(table, row, notes) for row in table.rows],
        differences=_differences(table, notes),
        several=any(len(difference.each) > 1 for _, difference in table.comparisons),
        reasons=notes.reasons,
        refused=[(refusal.setup, refusal.reason) for refusal in table.refused],
        adherence=[
            (name, estimate, _cell("adherence", estimate, show_n=True))
            for name, estimate in adherence_lines(table)
        ],
        published_headings=[_Heading.of(metric) for metric in metrics],
        published=[
            (row, [(c.published, c.ours and _cell(c.metric, c.ours)) for c in cells])
            for row, cells in published
        ],
        froc=[(froc_chart(froc, series), froc) for froc in report.froc],
        legend=[(name, look) for name, look in series.items() if _is_drawn(report, name)],
        colours=list(enumerate(zip(LIGHT, DARK, strict=True))),
        grids=[
            (grid, [tile(p, limit=limit, synthetic=grid.synthetic) for p in grid.pictures])
            for grid in report.grids
        ],
        columns=_found_by(report),
        detections=[_drawn(report, slice_, limit) for slice_ in report.detections],
        scatters=[(scatter_chart(scatter), scatter.note) for scatter in report.scatters],
        training=[(run.name, training_charts(run)) for run in report.training],
        data=flat(report.data, joint=": "),
        seconds=times(report.seconds),
        settings=flat(report.settings),
    )


@dataclass(frozen=True)
class _Heading:
    text: str
    hint: str

    @classmethod
    def of(cls, metric: str) -> Self:
        how = display(metric)
        hint = {"higher": "↑ higher is better", "lower": "↓ lower is better", None: ""}
        return cls(how.heading, hint[how.better])


@dataclass(frozen=True)
class _Cell:
    """What stands in one cell: a value and its interval, or a dash and the number of a reason."""

    value: str = "–"
    interval: str = ""
    n: int | None = None
    """Given where the metrics of a row rest on different numbers of patients."""
    reason: int | None = None
    shown: bool = False
    """Whether the interval excludes zero."""
    whisker: tuple[float, float, float] | None = None
    """Low, value, high on a scale where -1 and 1 are the ends of the metric's column."""
    p: str = ""
    each: str = ""
    """The differences of each training, where there were several."""


@dataclass(frozen=True)
class _Line:
    row: Row
    patients: str
    cells: Sequence[_Cell]
    to: str = ""
    """Of a difference: the other set-up."""

    @classmethod
    def of_results(cls, table: Table, row: Row, notes: Footnotes) -> Self:
        numbers = sorted({estimate.n for estimate in row.metrics.values()})
        cells = [
            _cell(metric, row.metrics[metric], show_n=len(numbers) > 1)
            if metric in row.metrics
            else _Cell(reason=notes.mark(row.undefined[metric]))
            for metric in table.metrics
        ]
        return cls(row, "–".join(str(n) for n in numbers[:: max(1, len(numbers) - 1)]), cells)


def _cell(metric: str, estimate: Estimate, *, show_n: bool = False) -> _Cell:
    n = estimate.n if show_n else None
    return _Cell(value(metric, estimate), interval(metric, estimate), n)


def _differences(table: Table, notes: Footnotes) -> list[_Line]:
    found = [difference.metrics for _, difference in table.comparisons]
    scale = {
        metric: max(
            (abs(x) for own in found if (e := own.get(metric)) for x in (e.low, e.high, e.value)),
            default=0.0,
        )
        or 1.0
        for metric in table.metrics
    }

    def cell(row: Row, difference: Difference, metric: str) -> _Cell:
        estimate = difference.metrics.get(metric)
        if estimate is None:
            return _Cell(reason=notes.mark(why_undefined(table, row, difference, metric)))
        ends = (estimate.low, estimate.value, estimate.high)
        low, middle, high = (x / scale[metric] for x in ends)
        return _Cell(
            value(metric, estimate, signed=True),
            interval(metric, estimate, signed=True),
            shown=estimate.excludes_zero,
            whisker=(low, middle, high),
            p=p_values(table, metric, difference),
            each=each_training(table, difference) if metric == table.primary else "",
        )

    lines = []
    for row, difference in table.comparisons:
        cells = [cell(row, difference, metric) for metric in table.metrics]
        numbers = sorted({estimate.n for estimate in difference.metrics.values()})
        patients = "–".join(str(n) for n in numbers[:: max(1, len(numbers) - 1)])
        lines.append(_Line(row, patients, cells, to=difference.to))
    return lines


def _series(report: Report) -> dict[str, Series]:
    """One look a set-up, the same in every chart."""
    names = [row.setup for row in report.table.rows]
    names += [curve.setup for froc in report.froc for curve in froc.curves]
    return {name: Series(i) for i, name in enumerate(dict.fromkeys(names))}


def _is_drawn(report: Report, setup: str) -> bool:
    return any(curve.setup == setup for froc in report.froc for curve in froc.curves)


def _found_by(report: Report) -> list[str]:
    """The set-ups whose detections are shown, in the order of the table."""
    shown = dict.fromkeys(name for slice_ in report.detections for name in slice_.found)
    order = [row.setup for row in report.table.rows if row.setup in shown]
    return order + [name for name in shown if name not in order]


def _drawn(report: Report, slice_: Detected, limit: int) -> tuple[Tile, list[Tile | None]]:
    """The slice with its true boxes, then what each set-up found, the surest first."""
    truth = tile(Picture(slice_.image, slice_.truth, slice_.name), limit=limit)
    columns: list[Tile | None] = []
    for setup in _found_by(report):
        if setup not in slice_.found:
            columns.append(None)
            continue
        boxes, scores = (np.asarray(part, np.float64) for part in slice_.found[setup])
        if boxes.shape != (len(scores), 4):
            raise DataError(
                f"slice {slice_.name!r}, {setup!r}: boxes {boxes.shape} for {len(scores)} scores"
            )
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= report.detection_threshold]
        columns.append(replace(truth, marks=marks_of(boxes[order], scores[order])))
    return truth, columns
