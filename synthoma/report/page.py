"""One study's report: table.json, report.md and report.html, which needs nothing beside itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthoma.report.figures import Detected, Froc, Picture, TrainingRun
from synthoma.report.table import Table


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
class Report:
    """Everything that a report shows. Only the first three have no default."""

    title: str
    question: str
    """One paragraph."""
    table: Table
    primary: str | None = None
    """The metric that the answers are about; by default the table's first."""
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    intervals: str = (
        "95 % intervals from resampling patients; not corrected for several comparisons."
    )
    """How the intervals were made, one sentence or two."""
    froc: Sequence[Froc] = ()
    grids: Sequence[Grid] = ()
    detections: Sequence[Detected] = ()
    detection_threshold: float = 0.5
    """Detections with a lower score are not drawn."""
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


def write_report(out: Path, report: Report) -> None:
    """Write table.json, report.md and report.html into the folder `out`, each whole or not at all.

    The same report gives the same bytes.
    """
    raise NotImplementedError
