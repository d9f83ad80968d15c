"""The result of a study as numbers: table.json, what may be claimed from it, Markdown.

    Table <-> table.json -> answers (one sentence a comparison) -> Markdown

Values are fractions, as everywhere; per cent appears only in text, where a field's habit wants it.
A gain is claimed only when the interval of a paired difference excludes zero.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from synthoma.data.store import read_json
from synthoma.errors import DataError

#: Below this many patients no interval read from resamples reaches its 95 % (docs/precision.md), so
#: nothing is claimed.
FEWEST_PATIENTS = 6

Better = Literal["higher", "lower"]
Verdict = Literal["gain", "worse", "difference", "no difference shown"]


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
    "cpm": Display("CPM score", "higher"),
    "f1": Display("F1 score", "higher"),
    "fid": Display("Fréchet distance", "lower"),
    "fp_per_scan": Display("false positives per scan", "lower"),
    "fp_per_slice": Display("false positives per slice", "lower"),
    "precision": Display("precision", "higher", percent=True),
    "recall": Display("recall", "higher", percent=True),
    "sensitivity": Display("sensitivity", "higher", percent=True),
    "specificity": Display("specificity", "higher", percent=True),
}


def display(metric: str) -> Display:
    """How to write a metric; a name that is not in `METRICS` is spelt out.

    Example:
        >>> display("fp_per_slice_iou25").label
        'false positives per slice at IoU 0.25'
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
    return Display(f"{label} at IoU {int(iou) / 100:g}" if iou else label, better)


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
    """Paired differences to another set-up, this one minus that one.

    In JSON the metrics stand beside "to": ``{"to": "real", "ap_iou50": {"value": ...}}``.
    """

    to: str
    metrics: dict[str, Estimate]

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, given: Any) -> Any:
        if isinstance(given, dict) and "metrics" not in given:
            rest = {name: value for name, value in given.items() if name != "to"}
            return {**({"to": given["to"]} if "to" in given else {}), "metrics": rest}
        return given

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"to": self.to} | {name: e.model_dump() for name, e in self.metrics.items()}


class Row(_Frozen):
    """One set-up."""

    setup: str = Field(min_length=1)
    n_real: int = Field(ge=0, description="Real training images.")
    n_synthetic: int = Field(ge=0, description="Synthetic training images.")
    seeds: int = Field(ge=1, description="How many seeds the values average over.")
    metrics: dict[str, Estimate]
    difference: Annotated[
        Difference | None, BeforeValidator(lambda given: None if given == {} else given)
    ] = None
    undefined: dict[str, str] = Field({}, description="Why a metric has no value.")

    @model_validator(mode="after")
    def _defined_or_not(self) -> Self:
        if both := self.metrics.keys() & self.undefined.keys():
            raise ValueError(f"{self.setup!r}: {sorted(both)} have a value and are undefined too")
        return self

    @model_serializer(mode="wrap")
    def _empty_difference(self, handler: Any) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return content | {"difference": content["difference"] or {}}


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
    rows: tuple[Row, ...] = Field(min_length=1)
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
            if row.difference is not None:
                if row.difference.to not in names or row.difference.to == row.setup:
                    raise ValueError(
                        f"{row.setup!r} is compared with {row.difference.to!r}; allowed: another "
                        f"of {names}"
                    )
                if strange := row.difference.metrics.keys() - set(self.metrics):
                    raise ValueError(f"{row.setup!r} differs in {sorted(strange)}, in no row")
        return self

    @property
    def metrics(self) -> list[str]:
        """Every metric of any row, in the order in which they first appear."""
        return list(dict.fromkeys(m for row in self.rows for m in [*row.metrics, *row.undefined]))

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


def verdict(metric: str, difference: Estimate) -> Verdict:
    """What a paired difference shows."""
    if not difference.excludes_zero:
        return "no difference shown"
    better = display(metric).better
    if better is None:
        return "difference"
    return "gain" if (difference.low > 0) == (better == "higher") else "worse"


@dataclass(frozen=True)
class Answer:
    """What one comparison shows."""

    setup: str
    to: str
    metric: str
    verdict: Verdict | Literal["undefined"]
    sentence: str
    asides: tuple[str, ...]
    """The other metrics in which the two differ."""


def answers(table: Table, primary: str | None = None) -> list[Answer]:
    """One sentence a comparison, about the `primary` metric (the table's first by default)."""
    primary = primary or next(iter(table.metrics), "")
    return [_answer(table, row, row.difference, primary) for row in table.rows if row.difference]


def _answer(table: Table, row: Row, difference: Difference, primary: str) -> Answer:
    def said(metric: str) -> str:
        found = difference.metrics[metric]
        return (
            f"{display(metric).label} {value(metric, found, signed=True)} "
            f"{interval(metric, found, signed=True)}: {verdict(metric, found)}"
        )

    outcome: Verdict | Literal["undefined"] = "undefined"
    if primary in difference.metrics:
        outcome, main = verdict(primary, difference.metrics[primary]), said(primary)
    else:
        main = f"{display(primary).label} undefined ({why_undefined(table, row, primary)})"
    asides = tuple(
        said(metric)
        for metric, found in difference.metrics.items()
        if metric != primary and found.excludes_zero
    )
    sentence = f"{row.setup} vs {difference.to}: {main}"
    return Answer(row.setup, difference.to, primary, outcome, sentence, asides)


def why_undefined(table: Table, row: Row, metric: str) -> str:
    """Why a row has no value, or no difference, in a metric."""
    if metric in row.undefined:
        return row.undefined[metric]
    if row.difference is None:
        return "not compared"
    baseline = table.row(row.difference.to)
    return baseline.undefined.get(metric, f"not compared with {baseline.setup}")


class Footnotes:
    """Numbers for reasons; equal reasons share one."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> int:
        """The number of a reason, counted from 1."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1
