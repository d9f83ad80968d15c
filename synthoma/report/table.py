"""The result of a study as numbers: table.json, and how its numbers are written.

    Table <-> table.json

Values are fractions, as everywhere; per cent appears only in text, where a field's habit wants it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthoma.data.store import read_json
from synthoma.errors import DataError

#: Below this many patients no interval read from resamples reaches its 95 % (docs/precision.md), so
#: nothing is claimed.
FEWEST_PATIENTS = 6
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Display:
    """How a metric is written."""

    label: str
    """As inside a sentence."""
    better: Better | None = None
    """Which way is good; None where that is not ours to say."""
    percent: bool = False

    @property
    def heading(self) -> str:
        """The label with a capital."""
        return self.label[:1].upper() + self.label[1:]


#: Metrics by name; ``_iou25`` and the like at the end of a name are read by `display`.
METRICS: dict[str, Display] = {
    "accuracy": Display("accuracy", "higher", percent=True),
    "adherence": Display("adherence", "higher"),
    "ap": Display("average precision", "higher"),
    "auc": Display("area under the ROC curve", "higher"),
    "c2st": Display("share told from real images", "lower"),
    "cpm": Display("CPM", "higher", percent=True),
    "cpm_small": Display("CPM of small nodules", "higher", percent=True),
    "cpm_medium": Display("CPM of medium nodules", "higher", percent=True),
    "cpm_large": Display("CPM of large nodules", "higher", percent=True),
    "cpm_solid": Display("CPM of solid nodules", "higher", percent=True),
    "cpm_part_solid": Display("CPM of part-solid nodules", "higher", percent=True),
    "cpm_ground_glass": Display("CPM of ground-glass nodules", "higher", percent=True),
    "cpm_luna16": Display("CPM by LUNA16's rule", "higher", percent=True),
    "f1": Display("F1 score", "higher"),
    "fid": Display("Fréchet distance", "lower"),
    "fp_per_scan": Display("false positives per scan", "lower"),
    "fp_per_slice": Display("false positives per slice", "lower"),
    "precision": Display("precision", "higher", percent=True),
    "recall": Display("recall", "higher", percent=True),
    "sensitivity": Display("sensitivity", "higher", percent=True),
    "sensitivity_1fp": Display("sensitivity at 1 false positive a slice", "higher"),
    "sensitivity_matched": Display("sensitivity at the baseline's false positives", "higher"),
    "specificity": Display("specificity", "higher", percent=True),
}


def display(metric: str) -> Display:
    """How to write a metric; a name that is not in `METRICS` is spelt out.

    Example:
        >>> display("fp_per_slice_iou25").label
        'false positives per slice at IoU 0.25'
        >>> display("sensitivity_1fp_iou25").label
        'sensitivity at 1 false positive a slice, IoU 0.25'
        >>> display("lung_score"), display("margin_mm")
        (Display(label='lung score', better='higher', percent=False), Display(label='margin mm', better=None, percent=False))
    """  # noqa: E501
    if metric in METRICS:
        return METRICS[metric]
    name, iou = re.fullmatch(r"(.+?)(?:_iou(\d\d))?", metric, re.DOTALL).groups()  # type: ignore[union-attr]
    known = METRICS.get(name)
    better = known.better if known else None
    if known is None and name.endswith("_score"):
        better = "higher"
    elif known is None and name.endswith(("_error", "_loss")):
        better = "lower"
    label = known.label if known else name.replace("_", " ")
    if iou:
        label += f"{',' if ' at ' in label else ' at'} IoU {int(iou) / 100:g}"
    return Display(label, better)


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True
    )


class Estimate(_Frozen):
    """A number with its interval. `Estimate.model_validate` also takes an `intervals.Interval`."""

    value: float
    low: float
    high: float
    n: int = Field(ge=0, description="Patients (what the interval resamples).")
    p: float | None = Field(None, ge=0, le=1, description="Of a difference: two-sided, as it is.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] is upside down")
        return self

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval is shown: it is on one side of zero.

        One patient gives no interval, whatever its ends say.
        """
        return self.n >= FEWEST_PATIENTS and (self.low > 0 or self.high < 0)


class Difference(_Frozen):
    """Paired differences to another set-up, this one minus that one."""

    to: str
    metrics: dict[str, Estimate]
    p_holm: float | None = Field(
        None,
        ge=0,
        le=1,
        description="p of the primary metric, corrected for every comparison with `to`.",
    )
    each: tuple[float, ...] = Field(
        (), description="The primary metric's difference of each training, by (draw, seed)."
    )


class Row(_Frozen):
    """One set-up."""

    setup: str = Field(min_length=1)
    n_real: int = Field(ge=0, description="Real training images, the mean over draws.")
    n_synthetic: int = Field(ge=0, description="Synthetic training images, the mean over draws.")
    draws: int = Field(1, ge=1, description="Draws of training patients that were trained on.")
    seeds: int = Field(ge=1, description="Trainings the values average over, of all draws.")
    metrics: dict[str, Estimate]
    differences: tuple[Difference, ...] = ()
    undefined: dict[str, str] = Field({}, description="Why a metric has no value.")

    @model_validator(mode="after")
    def _defined_or_not(self) -> Self:
        if both := self.metrics.keys() & self.undefined.keys():
            raise ValueError(f"{self.setup!r}: {sorted(both)} have a value and are undefined too")
        compared = [difference.to for difference in self.differences]
        if len(set(compared)) < len(compared):
            raise ValueError(f"{self.setup!r} is compared twice with one set-up: {compared}")
        return self

    @property
    def basis(self) -> str:
        """What its values average over, in words."""
        if self.draws == 1:
            return f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        return f"{self.draws} draws of patients, {self.seeds} trainings"


class Refused(_Frozen):
    """A set-up that was not run, and why."""

    setup: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Adherence(_Frozen):
    """Share of images in which a detector trained on real ones finds the ordered box first."""

    ordered: Estimate
    shuffled: Estimate | None = None
    """The same images against other images' orders: chance."""
    real: Estimate | None = None
    """The same detector on real images: the ceiling."""


class PublishedRow(_Frozen):
    """One row of a paper's table; None is a number that our copy of the paper has lost."""

    setup: str = Field(min_length=1)
    metrics: dict[str, float | None]
    source: str = ""


class Table(_Frozen):
    """What table.json holds."""

    study: str
    task: str
    patients_from: str
    primary: str = Field(description="The metric that claims are about.")
    rows: tuple[Row, ...] = Field(min_length=1)
    refused: tuple[Refused, ...] = ()
    adherence: Adherence | None = None
    published: tuple[PublishedRow, ...] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [row.setup for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"two rows have one set-up name; there are {names}")
        for row in self.rows:
            lost = [m for m in self.metrics if m not in row.metrics and m not in row.undefined]
            if lost:
                raise ValueError(
                    f"{row.setup!r} has no {', '.join(lost)}: give it, or why it is undefined"
                )
            for difference in row.differences:
                if difference.to not in names or difference.to == row.setup:
                    raise ValueError(
                        f"{row.setup!r} is compared with {difference.to!r}; allowed: another "
                        f"of {names}"
                    )
                if strange := difference.metrics.keys() - set(self.metrics):
                    raise ValueError(f"{row.setup!r} differs in {sorted(strange)}, in no row")
        if strange := {refusal.setup for refusal in self.refused} & set(names):
            raise ValueError(f"{sorted(strange)} have a row and were refused too")
        if any(self.primary not in {*row.metrics, *row.undefined} for row in self.rows):
            raise ValueError(f"the primary metric {self.primary!r} is not one of {self.metrics}")
        return self

    @property
    def metrics(self) -> list[str]:
        """Every metric of any row: the primary one, then in the order of their appearance."""
        of_rows = dict.fromkeys(m for row in self.rows for m in [*row.metrics, *row.undefined])
        return [m for m in of_rows if m == self.primary] + [m for m in of_rows if m != self.primary]

    @property
    def comparisons(self) -> list[tuple[Row, Difference]]:
        """Every difference with its row, in the order of the table."""
        return [(row, difference) for row in self.rows for difference in row.differences]

    def row(self, setup: str) -> Row:
        """The row of a set-up."""
        return next(row for row in self.rows if row.setup == setup)


def read_table(path: Path) -> Table:
    """Read a table.json.

    Raises:
        DataError: The file is missing, broken or not such a table; the message names the field.
    """
    try:
        return Table.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where or 'table'}: {first['msg']}") from None


def number(value: float, *, percent: bool = False, signed: bool = False) -> str:
    """A value for people: two decimals, or one in per cent, with a true minus sign.

    A difference (`signed`) gets further decimals where it would round to zero, so that its side
    of zero can be read.

    Example:
        >>> number(0.8342), number(0.8342, percent=True), number(-0.004, signed=True)
        ('0.83', '83.4', '−0.004')
    """
    value, digits = (100 * value, 1) if percent else (value, 2)
    while signed and value and digits < 6 and not round(value, digits):
        digits += 1
    rounded = round(value, digits)
    if signed and value and not rounded:
        text = f"{value:+.0e}"
    else:
        text = f"{rounded + 0.0:{'+' if signed and rounded else ''}.{digits}f}"
    return text.replace("-", "−")


def interval(metric: str, estimate: Estimate, *, signed: bool = False) -> str:
    """Only the interval, as in "[0.78, 0.88]"; signed numbers show a plus on the value alone."""
    percent = display(metric).percent
    ends = [number(end, percent=percent, signed=signed) for end in (estimate.low, estimate.high)]
    return f"[{', '.join(end.removeprefix('+') for end in ends)}]"


def value(metric: str, estimate: Estimate, *, signed: bool = False) -> str:
    """Only the value, with its unit."""
    how = display(metric)
    unit = "" if not how.percent else (" points" if signed else " %")
    return number(estimate.value, percent=how.percent, signed=signed) + unit


class Footnotes:
    """Numbers for reasons; equal reasons share one."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> int:
        """The number of a reason, counted from 1."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1
