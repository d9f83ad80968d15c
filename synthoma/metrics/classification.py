"""What a classifier's answers are worth: accuracy, sensitivity, specificity, precision, AUC.

    Answers -> accuracy_of | sensitivity_of | specificity_of | precision_of | auc_of -> intervals.py
    right and wrong of two classifiers -> mcnemar;  scores of two -> delong

An image is called what is most probable. With two classes, all but accuracy are of one of them,
the positive one; with more, each is the mean over the classes, one against the others.

Papers:
  Han et al. 2019, two-step GAN augmentation: accuracy, sensitivity, specificity
  McNemar 1947, https://doi.org/10.1007/BF02295996 (here exact, by the binomial distribution)
  DeLong et al. 1988, Comparing the areas under two or more correlated ROC curves
  Sun and Xu 2014, Fast implementation of DeLong's algorithm, https://doi.org/10.1109/LSP.2014.2337313
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Num, Shaped
from scipy.special import bdtr, ndtr

from synthoma.errors import DataError
from synthoma.metrics.detection import UndefinedMetricError
from synthoma.metrics.intervals import PatientMetric, ratio

#: From who is called by a class and who is of it (n,): who adds to the numerator of a ratio, and
#: who to the denominator.
Counts = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
#: Numbers of re-weighted curves held in memory at once.
CHUNK = 2**21
#: How far the probabilities of one image may be from adding up to 1.
ROUNDING = 1e-3
#: A variance below this is rounding.
NO_VARIANCE = 1e-14


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier says of a test set beside what is true; `DataError` where the arrays do
    not fit together."""

    probabilities: Float[np.ndarray, "n k"]
    """Of each class, adding up to 1."""
    truths: Int[np.ndarray, " n"]
    """The class of each image, by its place in `classes`."""
    patients: Shaped[np.ndarray, " n"]
    """Whose image it is, any sortable id."""
    classes: tuple[str, ...]
    positive: str = ""
    """Of two classes, the one that is looked for; empty: the last."""

    def __post_init__(self) -> None:
        n, k = self.probabilities.shape
        if not (len(self.truths) == len(self.patients) == n) or len(self.classes) != k or k < 2:
            raise DataError(
                f"probabilities {self.probabilities.shape}, {len(self.truths)} truths, "
                f"{len(self.patients)} patients, {len(self.classes)} classes; allowed: a row an "
                "image and a column a class, at least two"
            )
        sums = self.probabilities.sum(axis=1)
        if (self.probabilities < 0).any() or not (np.abs(sums - 1) <= ROUNDING).all():
            raise DataError("an image's probabilities are not from 0 up, or do not add up to 1")
        if n and (self.truths.min() < 0 or self.truths.max() >= k):
            raise DataError(
                f"truths from {self.truths.min()} to {self.truths.max()}; allowed: 0 to {k - 1}"
            )
        if self.positive and self.positive not in self.classes:
            raise DataError(f"positive {self.positive!r}; allowed: {', '.join(self.classes)}")

    @property
    def said(self) -> Int64[np.ndarray, " n"]:
        """The most probable class of each image; of equal ones the first."""
        return self.probabilities.argmax(axis=1)

    @property
    def looked_for(self) -> tuple[int, ...]:
        """The classes that metrics are of: the positive one of two, each of more."""
        if len(self.classes) > 2:
            return tuple(range(len(self.classes)))
        return (self.classes.index(self.positive or self.classes[-1]),)


def metrics_of(runs: Sequence[Answers]) -> dict[str, PatientMetric]:
    """Every metric by its name in reports, of one set-up trained several times."""
    return {
        "accuracy": accuracy_of(runs),
        "sensitivity": sensitivity_of(runs),
        "specificity": specificity_of(runs),
        "precision": precision_of(runs),
        "auc": auc_of(runs),
    }


def accuracy_of(runs: Sequence[Answers]) -> PatientMetric:
    """Share of images that are called what they are.

    Args:
        runs: The same test set as answered after each seed of training; their mean is the metric.
    """
    right = np.stack([run.said == run.truths for run in of_one_test_set(runs)]).astype(np.int64)
    return ratio(right, np.ones_like(right), runs[0].patients)


def sensitivity_of(runs: Sequence[Answers]) -> PatientMetric:
    """Share of a class's images that are called by it. With more than two classes: the mean over
    classes, which is balanced accuracy."""
    return _of_each_class(runs, lambda said, true: (said & true, true))


def specificity_of(runs: Sequence[Answers]) -> PatientMetric:
    """Share of the other images that are not called by the class; the mean over more than two."""
    return _of_each_class(runs, lambda said, true: (~said & ~true, ~true))


def precision_of(runs: Sequence[Answers]) -> PatientMetric:
    """Share of the images called by a class that are of it; the mean over more than two.

    Undefined where a class is never called. Of several seeds, the calls are pooled.
    """
    return _of_each_class(runs, lambda said, true: (said & true, said))


def _of_each_class(runs: Sequence[Answers], counts: Counts) -> PatientMetric:
    """The mean, over the classes that are looked for, of a ratio of counts."""
    each = []
    for kind in of_one_test_set(runs)[0].looked_for:
        pairs = [counts(run.said == kind, run.truths == kind) for run in runs]
        above, below = (np.stack(side).astype(np.int64) for side in zip(*pairs, strict=True))
        each.append(ratio(above, below, runs[0].patients))
    return mean_of(each)


def mean_of(metrics: Sequence[PatientMetric]) -> PatientMetric:
    """The mean of metrics of the same patients; undefined where one of them is."""
    informative = np.stack([metric.informative for metric in metrics])

    def of(weights: Num[np.ndarray, "r p"]) -> Float64[np.ndarray, " r"]:
        return np.asarray(np.mean([metric.of(weights) for metric in metrics], axis=0))

    anybody = np.asarray(informative.any(axis=0) & informative.any(axis=1).all())
    return PatientMetric(metrics[0].patients, anybody, of)


def auc_of(runs: Sequence[Answers]) -> PatientMetric:
    """Area under the ROC curve: how often an image of the class scores above one of the others,
    equal scores counting half. With more than two classes, the mean of each against the others.

    Its interval stands on the patients of the rarer side (`PatientMetric.informative`): with three
    ill patients among a hundred well ones it can be no better than three patients allow.
    """
    first = of_one_test_set(runs)[0]
    patients, row = np.unique(first.patients, return_inverse=True)
    sides = [
        np.bincount(row[is_there], minlength=len(patients)) > 0
        for kind in first.looked_for
        for is_there in (first.truths == kind, first.truths != kind)
    ]

    def of(weights: Num[np.ndarray, "r p"]) -> Float64[np.ndarray, " r"]:
        each = [
            areas(run.probabilities[:, kind], run.truths == kind, row, weights)
            for run in runs
            for kind in run.looked_for
        ]
        return np.asarray(np.mean(each, axis=0))

    return PatientMetric(patients, min(sides, key=np.sum), of)


def areas(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    row: Int64[np.ndarray, " n"],
    weights: Num[np.ndarray, "r p"],
) -> Float64[np.ndarray, " r"]:
    """Areas under the ROC curve of test sets that hold each patient so many times; NaN where one
    holds a single class.

    Args:
        row: The patient of each image, as a column of `weights`.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of equal scores
    up, who = positive[order], row[order]
    found = np.full(len(weights), np.nan)
    step = max(1, CHUNK // max(1, len(scores)))
    for first in range(0, len(weights) if len(scores) else 0, step):
        held = weights[first : first + step, who].astype(np.float64)
        above = np.add.reduceat(np.where(up, held, 0), starts, axis=1)
        others = np.add.reduceat(np.where(up, 0, held), starts, axis=1)
        below = np.cumsum(others, axis=1) - others
        pairs = above.sum(axis=1) * others.sum(axis=1)
        won = (above * (below + others / 2)).sum(axis=1)
        np.divide(won, pairs, out=found[first : first + step], where=pairs > 0)
    return found


def of_one_test_set(runs: Sequence[Answers]) -> Sequence[Answers]:
    """The runs, once they are known to answer for the same images.

    Raises:
        DataError: They differ in classes, truths or patients.
    """
    for run in runs:
        same = np.array_equal(run.truths, runs[0].truths) and np.array_equal(
            run.patients, runs[0].patients
        )
        if not same or (run.classes, run.positive) != (runs[0].classes, runs[0].positive):
            raise DataError("the runs differ in their images or classes; all must share a test set")
    return runs


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images, where they disagree."""

    first_alone: int
    """Images that the first alone gets right."""
    second_alone: int
    p: float
    """Two-sided: of so many disagreements, how often chance splits them this unevenly."""


def mcnemar(first_right: Bool[np.ndarray, " n"], second_right: Bool[np.ndarray, " n"]) -> McNemar:
    """McNemar's test, exact for any number of disagreements.

    It takes images to be independent. Several of one patient are not, so p is then too small:
    claims rest on `intervals.paired_difference`, which draws patients; this stands beside it.

    Example:
        Six disagreements, five of them for the first: 2 (1 + 6) / 2^6.

        >>> right = np.array([True] * 5 + [False] + [True] * 9)
        >>> other = np.array([False] * 5 + [True] + [True] * 9)
        >>> found = mcnemar(right, other)
        >>> found.first_alone, found.second_alone, round(found.p, 5)
        (5, 1, 0.21875)
    """
    if first_right.shape != second_right.shape:
        raise DataError(f"{len(first_right)} and {len(second_right)} images; both must be the same")
    first, second = (
        int((first_right & ~second_right).sum()),
        int((second_right & ~first_right).sum()),
    )
    p = 2 * float(bdtr(min(first, second), first + second, 0.5)) if first + second else 1.0
    return McNemar(first, second, min(1.0, p))


@dataclass(frozen=True)
class DeLong:
    """Two areas under ROC curves on the same images."""

    first: float
    second: float
    standard_error: float
    """Of their difference."""
    z: float
    p: float
    """Two-sided, by the normal distribution."""


def delong(
    positive: Bool[np.ndarray, " n"],
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
) -> DeLong:
    """DeLong's test of two classifiers' scores for the same images, in n log n.

    Like `mcnemar` it takes images to be independent, which several of one patient are not.

    Raises:
        UndefinedMetricError: Fewer than two images on either side, or areas that differ without
            any variance (a classifier without error beside one that says the same of all).
    """
    scores = np.stack([first, second]).astype(np.float64)
    above, others = scores[:, positive], scores[:, ~positive]
    m, n = above.shape[1], others.shape[1]
    if min(m, n) < 2:
        raise UndefinedMetricError(f"{m} positive and {n} other images; DeLong needs 2 of each")
    among_all = np.stack([midranks(np.concatenate(own)) for own in zip(above, others, strict=True)])
    among_above = np.stack([midranks(own) for own in above])
    among_others = np.stack([midranks(own) for own in others])
    # for each image, the share of the other side that it is ranked rightly against
    of_above = (among_all[:, :m] - among_above) / n
    of_others = 1 - (among_all[:, m:] - among_others) / m
    area = of_above.mean(axis=1)
    covariance = np.cov(of_above) / m + np.cov(of_others) / n
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = float(area[0] - area[1])
    if variance < NO_VARIANCE:
        if abs(difference) > NO_VARIANCE:
            raise UndefinedMetricError(f"areas of {area[0]:g} and {area[1]:g} without variance")
        return DeLong(float(area[0]), float(area[1]), 0.0, 0.0, 1.0)
    error = variance**0.5
    z = difference / error
    return DeLong(float(area[0]), float(area[1]), error, z, 2 * float(ndtr(-abs(z))))


def midranks(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Ranks from 1; equal values share the mean of theirs.

    Example:
        >>> midranks(np.array([3.0, 1.0, 3.0]))
        array([2.5, 1. , 2.5])
    """
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[place]
