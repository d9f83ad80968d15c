"""Detections against truths, in slices (2D) or scans (3D): matching, FROC, CPM, average precision.

    Detections, Truths -> match -> Matches -> operating_point | froc -> cpm | average_precision

A *case* is whatever false positives are counted per: a slice in 2D, a scan in 3D. The arrays hold
a whole test set, rows in any order. Empty cases (no truths) count: their detections are false
positives and they are part of "per case".

Papers:
  Han et al. 2019, conditional PGGAN: sensitivity and false positives per slice at a threshold
  Lin et al. 2014, COCO, https://arxiv.org/abs/1405.0312: the matching rule, 101-point precision
  Setio et al. 2017, LUNA16, https://arxiv.org/abs/1612.08012: CPM
Differs from the papers: docs/precision.md says where, and by how much.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Num, Shaped
from scipy import sparse

from synthoma.data.boxes import dimensions_of, volume
from synthoma.errors import DataError, SettingsError

#: False positives per scan at which the Competition Performance Metric reads the curve
#: (Setio et al. 2017, LUNA16).
CPM_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
#: COCO's recall levels, made as COCO makes them, so that a recall on a level compares the same.
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
#: Pairs of boxes, and numbers of re-weighted curves, held in memory at once.
CHUNK = 2**21


class UndefinedMetricError(DataError):
    """The test set does not define the metric. `reason` is what a report says in its place."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector says about a test set; `DataError` where the arrays do not fit together."""

    boxes: Float[np.ndarray, "d k"]
    """Half-open, ((z0,) y0, x0, (z1,) y1, x1)."""
    scores: Float[np.ndarray, " d"]
    """Up is surer."""
    case: Int[np.ndarray, " d"]
    """The case of each box, counted from 0."""
    labels: Shaped[np.ndarray, " d"] | None = None

    def __post_init__(self) -> None:
        _check_rows(self.boxes, scores=self.scores, case=self.case, labels=self.labels)
        if not np.isfinite(self.scores).all():
            raise DataError(f"{(~np.isfinite(self.scores)).sum()} scores are not finite numbers")


@dataclass(frozen=True, eq=False)
class Truths:
    """What there is to find; `DataError` where the arrays do not fit together."""

    boxes: Float[np.ndarray, "t k"]
    """Half-open, ((z0,) y0, x0, (z1,) y1, x1)."""
    case: Int[np.ndarray, " t"]
    """The case of each box, counted from 0."""
    n_cases: int
    """Cases of the test set, with and without truths."""
    labels: Shaped[np.ndarray, " t"] | None = None

    def __post_init__(self) -> None:
        _check_rows(self.boxes, case=self.case, labels=self.labels)
        _check_cases(self.case, self.n_cases, "truths")


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detection found which truth; all that the metrics below need."""

    scores: Float[np.ndarray, " d"]
    case: Int[np.ndarray, " d"]
    truth: Int[np.ndarray, " d"]
    """The row of the truth that each detection found; -1 for a false positive."""
    truth_case: Int[np.ndarray, " t"]
    n_cases: int

    def __post_init__(self) -> None:
        found = self.truth[self.hit]
        if len(found) > len(np.unique(found)) or (self.truth >= len(self.truth_case)).any():
            raise DataError(
                f"{len(found)} detections hit {len(np.unique(found))} truths of "
                f"{len(self.truth_case)}; each hit must have a truth of its own"
            )
        _check_cases(self.case, self.n_cases, "detections")
        _check_cases(self.truth_case, self.n_cases, "truths")

    @property
    def hit(self) -> Bool[np.ndarray, " d"]:
        """Whether each detection found a truth."""
        return self.truth >= 0


def match(
    detections: Detections,
    truths: Truths,
    *,
    iou_threshold: float = 0.5,
    class_aware: bool = False,
) -> Matches:
    """Give each detection, the surest first, the free truth of its case that it overlaps most.

    COCO's rule. Of equal scores the earlier row goes first; of equal overlaps the later truth is
    taken, as in COCO's own program. A detection whose truths are all taken is a false positive,
    so a duplicate counts as one, as in Han et al. 2019.

    Args:
        iou_threshold: Least intersection over union of a hit, in (0, 1]; just that much is a hit.
        class_aware: Whether a hit needs equal labels too.

    Raises:
        SettingsError: The threshold is outside (0, 1], or `class_aware` without labels.
        DataError: Boxes in 2D meet boxes in 3D, or a detection lies in no case.

    Example:
        The second detection is a duplicate, the third lies in an empty case.

        >>> boxes = np.array([[0.0, 0, 4, 4], [0.0, 0, 4, 3], [0.0, 0, 4, 4]])
        >>> found = Detections(boxes, scores=np.array([0.9, 0.8, 0.7]), case=np.array([0, 0, 1]))
        >>> truths = Truths(boxes[:1], case=np.array([0]), n_cases=2)
        >>> match(found, truths).truth.tolist()
        [0, -1, -1]
    """
    if not 0 < iou_threshold <= 1:
        raise SettingsError(f"iou_threshold is {iou_threshold}; allowed: above 0, up to 1")
    d, other = dimensions_of(detections.boxes), dimensions_of(truths.boxes)
    if d != other:
        raise DataError(f"detections are {d}D and truths {other}D; both must be 2D or both 3D")
    _check_cases(detections.case, truths.n_cases, "detections")
    of_detection, of_truth = detections.case, truths.case
    if class_aware:
        of_detection, of_truth = _split_by_label(detections, truths)

    pieces = _pairs_within_groups(of_detection, of_truth)
    found = [_overlapping(detections.boxes, truths.boxes, *p, iou_threshold) for p in pieces]
    rows, candidates, overlap = (np.concatenate(column) for column in zip(*found, strict=True))
    surest_first = np.lexsort((-candidates, -overlap, rows, -detections.scores[rows]))
    truth = np.full(len(detections.scores), -1)
    free, waiting = [True] * len(truths.case), [True] * len(truth)
    in_turn = zip(rows[surest_first].tolist(), candidates[surest_first].tolist(), strict=True)
    for row, candidate in in_turn:
        if waiting[row] and free[candidate]:
            truth[row] = candidate
            waiting[row] = free[candidate] = False
    return Matches(detections.scores, detections.case, truth, truths.case, truths.n_cases)


def _split_by_label(
    detections: Detections, truths: Truths
) -> tuple[Int64[np.ndarray, " d"], Int64[np.ndarray, " t"]]:
    """The group of each detection and truth, where a group is one label in one case."""
    if detections.labels is None or truths.labels is None:
        raise SettingsError("class_aware matching needs labels on detections and on truths")
    both = np.concatenate([detections.labels, truths.labels])
    names, label = np.unique(both, return_inverse=True)
    group = np.concatenate([detections.case, truths.case]) * len(names) + label
    return group[: len(detections.case)], group[len(detections.case) :]


def _pairs_within_groups(
    of_detection: Int[np.ndarray, " d"], of_truth: Int[np.ndarray, " t"]
) -> Iterator[tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]]:
    """Rows of detections and of truths, every pair of one group, about `CHUNK` pairs at a time."""
    by_group = np.argsort(of_truth, kind="stable")
    in_group = np.bincount(of_truth, minlength=int(of_detection.max(initial=0)) + 1)
    n_truths = in_group[of_detection]
    first = (np.cumsum(in_group) - in_group)[of_detection]
    rows = np.flatnonzero(n_truths)
    chunk = np.cumsum(n_truths[rows]) // CHUNK
    for part in np.split(rows, np.flatnonzero(np.diff(chunk)) + 1):
        repeats = n_truths[part]
        start = first[part] - (np.cumsum(repeats) - repeats)
        position = np.arange(repeats.sum()) + np.repeat(start, repeats)
        yield np.repeat(part, repeats), by_group[position]


def _overlapping(
    boxes: Float[np.ndarray, "d k"],
    truths: Float[np.ndarray, "t k"],
    rows: Int64[np.ndarray, " p"],
    candidates: Int64[np.ndarray, " p"],
    iou_threshold: float,
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """The pairs that overlap enough, and how much.

    The arithmetic is that of `synthoma.data.boxes.iou`, pair by pair in place of a matrix a case:
    2000 small matrices alone take longer than all of `match`.
    """
    d = dimensions_of(boxes)
    both = np.ones(len(rows))
    for axis in range(d):
        low = np.maximum(boxes[rows, axis], truths[candidates, axis], dtype=np.float64)
        high = np.minimum(boxes[rows, d + axis], truths[candidates, d + axis], dtype=np.float64)
        both *= np.maximum(high - low, 0.0)
    meet = both > 0
    rows, candidates, both = rows[meet], candidates[meet], both[meet]
    overlap = both / (volume(boxes)[rows] + volume(truths)[candidates] - both)
    enough = overlap >= iou_threshold
    return rows[enough], candidates[enough], overlap[enough]


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """What a detector does to each case at one score threshold.

    The counts add up over cases, so `synthoma.metrics.intervals.ratio` resamples them by patient.
    """

    hits: Int64[np.ndarray, " n"]
    truths: Int64[np.ndarray, " n"]
    false_positives: Int64[np.ndarray, " n"]

    @property
    def sensitivity(self) -> float:
        """Share of all truths that were found, in [0, 1]; undefined where there are none."""
        if not self.truths.sum():
            raise UndefinedMetricError(f"nothing to find: {len(self.truths)} cases hold no truth")
        return float(self.hits.sum() / self.truths.sum())

    @property
    def false_positives_per_case(self) -> float:
        """Mean over all cases, empty ones included; undefined where there are no cases."""
        if not len(self.false_positives):
            raise UndefinedMetricError("the test set holds no cases")
        return float(self.false_positives.sum() / len(self.false_positives))


def operating_point(matches: Matches, *, threshold: float = 0.001) -> OperatingPoint:
    """Accept the detections with a score of at least `threshold`; count, case by case.

    The default is the "detection threshold 0.1 %" of Han et al. 2019. The threshold is compared
    in the precision of the scores, so a float32 score of 0.9 is not below 0.9.

    Example:
        >>> empty = np.zeros(0, np.int64)
        >>> matches = Matches(np.array([0.5, 0.0005]), np.array([0, 1]), np.array([0, -1]),
        ...                   truth_case=np.array([0, 1]), n_cases=2)
        >>> point = operating_point(matches)
        >>> point.sensitivity, point.false_positives_per_case
        (0.5, 0.0)
    """
    accepted = matches.scores >= threshold
    found, wrong = matches.case[accepted & matches.hit], matches.case[accepted & ~matches.hit]
    each = (np.bincount(c, minlength=matches.n_cases) for c in (found, matches.truth_case, wrong))
    return OperatingPoint(*each)


def froc(matches: Matches) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """The free-response ROC curve.

    Returns:
        False positives per case and sensitivity, one pair per operating point, both rising. The
        first point accepts nothing: (0, 0). Equal scores are one point; the lowest score is one.

    Raises:
        UndefinedMetricError: There are no truths.

    Example:
        Two scans, three targets, one of them missed.

        >>> matches = Matches(np.array([0.9, 0.6, 0.4]), np.array([0, 0, 1]),
        ...                   np.array([0, -1, 2]), truth_case=np.array([0, 0, 1]), n_cases=2)
        >>> rate, sensitivity = froc(matches)
        >>> rate.tolist()
        [0.0, 0.0, 0.5, 0.5]
        >>> sensitivity.round(2).tolist()
        [0.0, 0.33, 0.33, 0.67]
    """
    _need_truths(matches)
    order = np.argsort(-matches.scores, kind="stable")
    hits = np.cumsum(matches.hit[order])
    false_positives = np.arange(1, len(order) + 1) - hits
    point = np.flatnonzero(np.diff(matches.scores[order], append=np.nan) != 0)
    return (
        np.concatenate([[0.0], false_positives[point] / matches.n_cases]),
        np.concatenate([[0.0], hits[point] / len(matches.truth_case)]),
    )


def sensitivity_at(
    wanted: Float[np.ndarray, " w"],
    rate: Float[np.ndarray, " p"],
    sensitivity: Float[np.ndarray, " p"],
) -> Float[np.ndarray, " w"]:
    """Read a FROC curve at the wanted rates of false positives per case.

    The curve is a step function: between two operating points we take the last one that does not
    exceed the wanted rate, and past the end the last of all. Nothing is interpolated.

    Example:
        >>> sensitivity_at(np.array([0.4, 0.5, 9.0]), np.array([0, 0.5]), np.array([0, 0.7]))
        array([0. , 0.7, 0.7])
    """
    return sensitivity[np.searchsorted(rate, wanted, side="right") - 1]


def threshold_at(matches: Matches, wanted: float) -> float:
    """The score to accept from so that false positives per case do not exceed `wanted`.

    The lowest such score, where `sensitivity_at` reads the curve; infinite where even the surest
    score is too much. Equal scores are accepted or refused together.

    Example:
        >>> matches = Matches(np.array([0.9, 0.6, 0.4]), np.array([0, 0, 1]),
        ...                   np.array([0, -1, 2]), truth_case=np.array([0, 0, 1]), n_cases=2)
        >>> threshold_at(matches, 0.4), threshold_at(matches, 0.5)
        (0.9, 0.4)
    """
    surest = np.sort(matches.scores)[::-1]
    wrong = np.sort(matches.scores[~matches.hit])
    false_positives = len(wrong) - np.searchsorted(wrong, surest, side="left")
    allowed = false_positives / matches.n_cases <= wanted
    return float(surest[allowed][-1]) if allowed.any() else float("inf")


def cpm(rate: Float[np.ndarray, " p"], sensitivity: Float[np.ndarray, " p"]) -> float:
    """Mean sensitivity at the seven `CPM_RATES`, the curve read as a step function.

    Interpolating it, as LUNA16's script does, differs only among equal scores.
    """
    return float(sensitivity_at(np.array(CPM_RATES), rate, sensitivity).mean())


def average_precision(matches: Matches) -> float:
    """Average precision at the IoU of the matching: COCO's, all areas, every detection.

    The mean over `RECALL_LEVELS` of the highest precision at that recall or a higher one; 0 where
    the recall is never reached. Equal scores are one operating point, so the order of rows and
    cases changes nothing (COCO's program takes them in the order of images).

    Raises:
        UndefinedMetricError: There are no truths.

    Example:
        A hit, a false positive, a hit: precision 1 up to recall 0.5, then 2/3.

        >>> matches = Matches(np.array([0.9, 0.8, 0.7]), np.array([0, 0, 0]),
        ...                   np.array([0, -1, 1]), truth_case=np.array([0, 0]), n_cases=1)
        >>> round(average_precision(matches) * 101, 6)  # 51 levels at 1 and 50 at 2/3
        84.333333
    """
    _need_truths(matches)
    everyone = np.zeros(matches.n_cases, np.int64)
    return float(average_precisions(matches, everyone, np.ones((1, 1)))[0])


def average_precisions(
    matches: Matches, patient: Int[np.ndarray, " n"], weights: Num[np.ndarray, "r p"]
) -> Float64[np.ndarray, " r"]:
    """Average precision of `r` re-weighted test sets, without matching or sorting again.

    Args:
        patient: The patient of each case, counted from 0.
        weights: How often each test set holds each patient.

    Returns:
        As `average_precision` gives for each; NaN for a test set without truths.
    """
    n_patients = weights.shape[1]
    order = np.argsort(-matches.scores, kind="stable")
    hit, who = matches.hit[order], patient[matches.case[order]]
    tie = np.cumsum(np.diff(matches.scores[order], prepend=np.nan) != 0)
    # Precision peaks where recall rises, so the scores that found something are all we need.
    steps = np.unique(tie[hit])
    step = np.searchsorted(steps, tie)

    def counts(rows: Bool[np.ndarray, " d"]) -> sparse.csr_array:
        place = (step[rows], who[rows])
        return sparse.csr_array((np.ones(rows.sum()), place), shape=(len(steps), n_patients))

    hits, false_positives = counts(hit), counts(~hit & (step < len(steps)))
    n_truths = np.bincount(patient[matches.truth_case], minlength=n_patients)
    result = np.full(len(weights), np.nan)
    chunk = max(1, CHUNK // max(1, len(steps)))
    for start in range(0, len(weights), chunk):
        part = weights[start : start + chunk].astype(np.float64).T
        found = np.cumsum(hits @ part, axis=0)
        accepted = found + np.cumsum(false_positives @ part, axis=0)
        precision = np.divide(found, accepted, out=np.zeros_like(found), where=accepted > 0)
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        for column, truths in enumerate((n_truths @ part).tolist()):
            if truths > 0:
                at = np.searchsorted(found[:, column] / truths, RECALL_LEVELS)
                reached = at[at < len(steps)]
                result[start + column] = best[reached, column].sum() / len(RECALL_LEVELS)
    return result


def _need_truths(matches: Matches) -> None:
    if not len(matches.truth_case):
        raise UndefinedMetricError(f"nothing to find: {matches.n_cases} cases hold no truth")


def _check_rows(
    boxes: Float[np.ndarray, "m k"], **columns: Shaped[np.ndarray, " m"] | None
) -> None:
    dimensions_of(boxes)
    for name, column in columns.items():
        if column is not None and column.shape != (len(boxes),):
            raise DataError(f"{name} has shape {column.shape}; needed: ({len(boxes)},), one a box")


def _check_cases(case: Int[np.ndarray, " m"], n_cases: int, what: str) -> None:
    if len(case) and (case.min() < 0 or case.max() >= n_cases):
        raise DataError(
            f"{what} lie in cases {case.min()} to {case.max()}; allowed: 0 to {n_cases - 1}"
        )
