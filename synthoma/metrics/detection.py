"""Figures of detectors, in slices (2D) or scans (3D): sensitivity, FROC, CPM, average precision.

    Matches -> operating_point | froc -> cpm | average_precision

What was found is said by `synthoma.metrics.matching`; from there on 2D and 3D are the same.
Detections that are ignored there (neither hits nor false positives) change no figure.

Papers:
  Han et al. 2019, conditional PGGAN: sensitivity and false positives per slice at a threshold
  Lin et al. 2014, COCO, https://arxiv.org/abs/1405.0312: 101-point precision
  Setio et al. 2017, LUNA16, https://arxiv.org/abs/1612.08012: CPM
Differs from the papers: docs/precision.md says where, and by how much.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Num
from scipy import sparse

from synthoma.errors import DataError
from synthoma.metrics.matching import Matches

#: False positives per scan at which the Competition Performance Metric reads the curve
#: (Setio et al. 2017, LUNA16).
CPM_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
#: COCO's recall levels, made as COCO makes them, so that a recall on a level compares the same.
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
#: Numbers of re-weighted curves held in memory at once.
CHUNK = 2**21


class UndefinedMetricError(DataError):
    """The test set does not define the metric. `reason` is what a report says in its place."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    found = matches.case[accepted & matches.hit]
    wrong = matches.case[accepted & matches.false_positive]
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
    false_positives = np.cumsum(matches.false_positive[order])
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
    wrong = np.sort(matches.scores[matches.false_positive])
    false_positives = len(wrong) - np.searchsorted(wrong, surest, side="left")
    allowed = false_positives / matches.n_cases <= wanted
    return float(surest[allowed][-1]) if allowed.any() else float("inf")


def cpm(rate: Float[np.ndarray, " p"], sensitivity: Float[np.ndarray, " p"]) -> float:
    """Mean sensitivity at the seven `CPM_RATES`, the curve read as a step function.

    LUNA16's program instead interpolates linearly in the rate (not in its logarithm, which is
    only how it draws the axis). Without equal scores every piece of the curve is level or upright
    and the two agree; with them ours is the lower one.
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
    result = np.full(len(weights), np.nan)
    for each, found, wrong, n_truths in _reweighted(matches, patient, weights):
        accepted = found + wrong
        precision = np.divide(found, accepted, out=np.zeros_like(found), where=accepted > 0)
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        for column, truths in enumerate(n_truths.tolist()):
            if truths > 0:
                at = np.searchsorted(found[:, column] / truths, RECALL_LEVELS)
                reached = at[at < len(best)]
                result[each[column]] = best[reached, column].sum() / len(RECALL_LEVELS)
    return result


def cpms(
    matches: Matches, patient: Int[np.ndarray, " n"], weights: Num[np.ndarray, "r p"]
) -> Float64[np.ndarray, " r"]:
    """CPM of `r` re-weighted test sets, without matching or sorting again.

    Args:
        patient: The patient of each case, counted from 0.
        weights: How often each test set holds each patient.

    Returns:
        As `cpm` of `froc` gives for each; NaN for a test set without truths.
    """
    n_cases = weights @ np.bincount(patient, minlength=weights.shape[1])
    result = np.full(len(weights), np.nan)
    for each, found, wrong, n_truths in _reweighted(matches, patient, weights):
        hits = np.concatenate([np.zeros((1, len(each))), found])
        for column, truths in enumerate(n_truths.tolist()):
            if truths > 0:
                rate = wrong[:, column] / n_cases[each[column]]
                last = np.searchsorted(rate, CPM_RATES, side="right")
                result[each[column]] = (hits[last, column] / truths).mean()
    return result


def _reweighted(
    matches: Matches, patient: Int[np.ndarray, " n"], weights: Num[np.ndarray, "r p"]
) -> Iterator[
    tuple[
        Int64[np.ndarray, " c"],
        Float64[np.ndarray, "s c"],
        Float64[np.ndarray, "s c"],
        Float64[np.ndarray, " c"],
    ]
]:
    """Which of the re-weighted test sets; hits, false positives, all truths of each.

    Counted at every score that found something, from the highest down, each with those above it:
    only there do sensitivity and the best precision rise. About `CHUNK` numbers at a time.
    """
    n_patients = weights.shape[1]
    order = np.argsort(-matches.scores, kind="stable")
    hit, wrong = matches.hit[order], matches.false_positive[order]
    who = patient[matches.case[order]]
    tie = np.cumsum(np.diff(matches.scores[order], prepend=np.nan) != 0)
    steps = np.unique(tie[hit])
    step = np.searchsorted(steps, tie)

    def counts(rows: Bool[np.ndarray, " d"]) -> sparse.csr_array:
        place = (step[rows], who[rows])
        return sparse.csr_array((np.ones(rows.sum()), place), shape=(len(steps), n_patients))

    hits, false_positives = counts(hit), counts(wrong & (step < len(steps)))
    n_truths = np.bincount(patient[matches.truth_case], minlength=n_patients)
    chunk = max(1, CHUNK // max(1, len(steps)))
    for start in range(0, len(weights), chunk):
        part = weights[start : start + chunk].astype(np.float64).T
        found = np.cumsum(hits @ part, axis=0)
        accepted_wrongly = np.cumsum(false_positives @ part, axis=0)
        yield start + np.arange(part.shape[1]), found, accepted_wrongly, n_truths @ part


def _need_truths(matches: Matches) -> None:
    if not len(matches.truth_case):
        raise UndefinedMetricError(f"nothing to find: {matches.n_cases} cases hold no truth")
