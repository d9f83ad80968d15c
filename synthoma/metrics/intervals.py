"""Intervals by resampling patients: of one metric, and of the difference between two set-ups.

    counts -> ratio, matches -> average_precision_of | cpm_of
    from these, interval | paired_difference
    p of several differences -> holm

Patients, not images, are the independent pieces of a test set, so they are what is drawn again.
Nothing is matched or sorted again: a metric is written once as a function of how often each
patient is drawn, and 2000 resamples are one matrix product. Two set-ups on the same test set see
the same resamples, so what makes a patient hard for both cancels in their difference.

Papers:
  Efron and Tibshirani 1993, An Introduction to the Bootstrap
  Field and Welsh 2007, Bootstrapping clustered data, https://doi.org/10.1111/j.1467-9868.2007.00593.x
  Hesterberg 2015, What teachers should know about the bootstrap,
    https://arxiv.org/abs/1411.5279 (the expanded percentile interval)
  Davison and Hinkley 1997, Bootstrap Methods and their Application, equation 4.11 (the +1 in p)
  Holm 1979, A simple sequentially rejective multiple test procedure
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num, Shaped
from scipy.special import ndtr, stdtrit

from synthoma.errors import DataError
from synthoma.metrics.detection import UndefinedMetricError, average_precisions, cpms
from synthoma.metrics.matching import Matches

#: How often a 95 % interval held the truth, by patients: of sensitivity, false positives a slice,
#: average precision, and a paired difference of sensitivity. 2000 test sets each: standard
#: error 0.005 to 0.011.
#: Made by: python benchmarks/coverage.py --seed 0 (its "expanded" rows).
COVERAGE: dict[int, tuple[float, float, float, float]] = {
    2: (0.487, 0.467, 0.503, 0.486),
    3: (0.749, 0.711, 0.760, 0.736),
    5: (0.904, 0.882, 0.923, 0.915),
    8: (0.939, 0.919, 0.936, 0.933),
    10: (0.944, 0.929, 0.938, 0.939),
    15: (0.935, 0.926, 0.942, 0.946),
    20: (0.935, 0.934, 0.937, 0.935),
    25: (0.938, 0.935, 0.943, 0.940),
    30: (0.931, 0.932, 0.958, 0.940),
}
#: From here on no warning: more patients gain little on what the table says of 30.
ENOUGH_PATIENTS = 30


@dataclass(frozen=True)
class Interval:
    """A metric and where it may lie."""

    value: float
    """Of the test set itself."""
    low: float
    high: float
    n: int
    """Patients that the metric stands on: those that add to its denominator."""
    undefined_resamples: int = 0
    """Resamples in which the metric was undefined; they are left out of the interval."""
    p: float | None = None
    """Of a difference: the two-sided p-value, see `two_sided`."""

    @property
    def excludes_zero(self) -> bool:
        """What the claim of a difference needs; `coverage_warning(n)` belongs beside it."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class PatientMetric:
    """A metric of a test set, as a function of how often each patient is in it."""

    patients: Shaped[np.ndarray, " p"]
    """Their ids, sorted."""
    informative: Bool[np.ndarray, " p"]
    """Who adds to the denominator: without such a patient the metric is undefined."""
    of: Callable[[Num[np.ndarray, "r p"]], Float64[np.ndarray, " r"]]
    """From the times that each of `r` test sets holds each patient; NaN where undefined."""

    def value(self) -> float:
        """Of the test set itself.

        Raises:
            UndefinedMetricError: No patient adds to the denominator.
        """
        if not self.informative.any():
            raise UndefinedMetricError(
                f"none of {len(self.patients)} patients has anything in the denominator"
            )
        return float(self.of(np.ones((1, len(self.patients))))[0])


def ratio(
    numerator: Num[np.ndarray, "*seeds n"],
    denominator: Num[np.ndarray, "*seeds n"],
    patient: Shaped[np.ndarray, " n"],
) -> PatientMetric:
    """A metric that is one sum over another: sensitivity, false positives a slice, accuracy.

    Args:
        numerator: Of each case, such as the hits of `OperatingPoint`. Where a first axis holds
            seeds of training, each case counts with its mean over them.
        denominator: Of each case, such as its truths; ones for "per slice".
        patient: Whose case it is, any sortable id.

    Example:
        Two patients, three slices: 3 of 4 truths found.

        >>> ratio(np.array([1, 1, 1]), np.array([1, 1, 2]), np.array(["ann", "ann", "bob"])).value()
        0.75
    """
    if numerator.shape != denominator.shape or numerator.shape[-1:] != patient.shape:
        raise DataError(
            f"numerator {numerator.shape}, denominator {denominator.shape} and patient "
            f"{patient.shape} must hold the same cases along their last axis"
        )
    patients, row = np.unique(patient, return_inverse=True)

    def total(counts: Num[np.ndarray, "*seeds n"]) -> Float64[np.ndarray, " p"]:
        per_case = counts.reshape(-1, len(patient)).mean(axis=0, dtype=np.float64)
        return np.bincount(row, per_case, minlength=len(patients))

    top, bottom = total(numerator), total(denominator)

    def of(weights: Num[np.ndarray, "r p"]) -> Float64[np.ndarray, " r"]:
        below = weights @ bottom
        share = np.full(len(below), np.nan)
        np.divide(weights @ top, below, out=share, where=below > 0)
        return share

    return PatientMetric(patients, bottom > 0, of)


def average_precision_of(
    runs: Sequence[Matches], patient: Shaped[np.ndarray, " n"]
) -> PatientMetric:
    """Average precision, as `synthoma.metrics.detection.average_precision`.

    Args:
        runs: The same test set as matched for each seed of training; their mean is the metric.
        patient: Whose case it is, for each case of the test set.
    """
    return _over_runs(average_precisions, runs, patient)


def cpm_of(runs: Sequence[Matches], patient: Shaped[np.ndarray, " n"]) -> PatientMetric:
    """CPM, as `synthoma.metrics.detection.cpm`; the same arguments as `average_precision_of`.

    Of a subset of truths (`synthoma.metrics.matching.subset`) only patients with such truths are
    counted by `Interval.n`, though all of them are drawn: their scans and false positives count.
    """
    return _over_runs(cpms, runs, patient)


def _over_runs(
    figure: Callable[
        [Matches, Int64[np.ndarray, " n"], Num[np.ndarray, "r p"]], Float64[np.ndarray, " r"]
    ],
    runs: Sequence[Matches],
    patient: Shaped[np.ndarray, " n"],
) -> PatientMetric:
    """The mean of a figure over runs, for each re-weighted test set."""
    patients, row = np.unique(patient, return_inverse=True)
    for run in runs:
        if run.n_cases != len(patient) or not np.array_equal(run.truth_case, runs[0].truth_case):
            raise DataError("the runs differ in their cases or truths; all must share a test set")
    informative = np.bincount(row[runs[0].truth_case], minlength=len(patients)) > 0

    def of(weights: Num[np.ndarray, "r p"]) -> Float64[np.ndarray, " r"]:
        each_run = np.stack([figure(run, row, weights) for run in runs])
        return np.asarray(each_run.mean(axis=0))

    return PatientMetric(patients, informative, of)


def interval(
    metric: PatientMetric, *, seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The expanded percentile interval of a metric over patients.

    A plain percentile interval is too narrow for few patients: it takes normal quantiles where
    Student's are due and a variance with n where n - 1 is due. Hesterberg's expanded one reads the
    resamples further out by just that much. It stays inside the metric's range and, in
    `benchmarks/coverage.py`, holds the truth more often than the percentile interval and BCa do,
    at every number of patients from 5 on.

    Raises:
        UndefinedMetricError: Fewer than two patients add to the denominator.
    """
    value = metric.value()
    drawn = metric.of(resampled(len(metric.patients), resamples, seed))
    return _read(value, drawn, int(metric.informative.sum()), level)


def paired_difference(
    first: PatientMetric,
    second: PatientMetric,
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The interval and the p-value of `first - second`, on the same patients and resamples.

    Raises:
        DataError: The set-ups were tested on different patients.
        UndefinedMetricError: As `interval`.
    """
    if not np.array_equal(first.patients, second.patients):
        raise DataError(
            f"set-ups of {len(first.patients)} and {len(second.patients)} patients are not the "
            "same patients; a paired difference needs one test set"
        )
    value = first.value() - second.value()
    weights = resampled(len(first.patients), resamples, seed)
    n = int((first.informative & second.informative).sum())
    drawn = first.of(weights) - second.of(weights)
    return replace(_read(value, drawn, n, level), p=two_sided(drawn))


def two_sided(drawn: Float64[np.ndarray, " r"]) -> float:
    """How readily resamples of a difference fall on the other side of zero, twice; NaN left out.

    One is added to count and number, so that p is never 0: of 2000 resamples it is at least
    2 / 2001, about 0.001.

    Example:
        >>> two_sided(np.array([0.1] * 18 + [-0.1])), two_sided(np.zeros(9))
        (0.2, 1.0)
    """
    defined = drawn[~np.isnan(drawn)]
    across = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, float(2 * (across + 1) / (len(defined) + 1)))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for being several, in the order given (Holm 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none comes out below one
    that was smaller, or above 1. Whoever then claims what is below 0.05 claims anything false at
    all in at most 5 % of studies, however the comparisons hang together.

    Raises:
        DataError: A p-value is outside [0, 1].

    Example:
        >>> [round(corrected, 3) for corrected in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise DataError(f"p-values {list(p)}; allowed: from 0 to 1")
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    corrected = np.empty(len(given))
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return [float(value) for value in corrected]


def resampled(n_patients: int, resamples: int, seed: int) -> Int64[np.ndarray, "r p"]:
    """How often each resample holds each patient; the same for the same three numbers."""
    chances = np.full(n_patients, 1 / n_patients)
    return np.random.default_rng(seed).multinomial(n_patients, chances, size=resamples)


def expanded_tail(n: int, level: float) -> float:
    """The share of resamples to leave out at either end (Hesterberg 2015).

    Example:
        >>> [round(expanded_tail(n, 0.95), 4) for n in (5, 10, 30, 10_000)]
        [0.001, 0.0086, 0.0188, 0.025]
    """
    return float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))


def _read(value: float, drawn: Float64[np.ndarray, " r"], n: int, level: float) -> Interval:
    if n < 2:
        raise UndefinedMetricError(f"an interval needs 2 patients that the metric is of; given {n}")
    defined = drawn[~np.isnan(drawn)]
    tail = expanded_tail(n, level)
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n, len(drawn) - len(defined))


def coverage_warning(n: int) -> str | None:
    """What to print beside a 95 % interval over `n` patients; None from `ENOUGH_PATIENTS` on.

    Example:
        >>> print(coverage_warning(6))
        Only 6 patients: in simulation, 95 % intervals over 5 held the truth 88 to 92 % of the time.
    """
    if n >= ENOUGH_PATIENTS:
        return None
    if n < min(COVERAGE):
        return f"Fewer than {min(COVERAGE)} patients: no interval can be given."
    simulated = max(patients for patients in COVERAGE if patients <= n)
    low, high = min(COVERAGE[simulated]), max(COVERAGE[simulated])
    return (
        f"Only {n} patients: in simulation, 95 % intervals over {simulated} held the truth "
        f"{100 * low:.0f} to {100 * high:.0f} % of the time."
    )
