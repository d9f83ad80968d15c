"""Classifier two-sample test (C2ST): can anything tell two sets of feature vectors apart?

    features (n, d), (m, d) -> a simple classifier, tested on folds of patients that it has not
    seen -> accuracy, its interval over patients, p by permutation

0.5 is chance, 1 means that every vector is told. Accuracy is balanced: the mean of the shares of
both sets that are told right, so that sets of different size change nothing.

Papers:
  Lopez-Paz and Oquab 2017, Revisiting classifier two-sample tests, https://arxiv.org/abs/1610.06545
Differs from the paper: cross-validation in place of one split; p by permutation in place of the
normal distribution, which takes vectors to be independent; patients are kept together in folds,
permutations and resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from synthoma.errors import DataError, SettingsError
from synthoma.metrics.classification import mean_of
from synthoma.metrics.intervals import Interval, PatientMetric, interval, ratio

Method = Literal["logistic", "neighbours"]
#: Principal components that the classifiers are given at most. They see no labels, so they may be
#: those of all vectors together.
DIMENSIONS = 50
#: Neighbours that vote: the square root of the vectors in training, as Lopez-Paz and Oquab have it.
NEIGHBOURS_POWER = 0.5


@dataclass(frozen=True, eq=False)
class TwoSample:
    """How well two sets can be told apart."""

    accuracy: Interval
    """Balanced, of vectors of unseen patients, over patients."""
    null: Float64[np.ndarray, " permutations"]
    """The same where patients were dealt to the sets by chance."""
    p: float
    """Share of permutations with at least this accuracy, the sets themselves counted as one."""


def c2st(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m d"],
    *,
    first_patients: Shaped[np.ndarray, " n"],
    second_patients: Shaped[np.ndarray, " m"],
    seed: int,
    method: Method = "logistic",
    folds: int = 5,
    permutations: int = 100,
) -> TwoSample:
    """Tell two sets of feature vectors apart.

    The permutations deal whole patients to the sets, as many to each as there were. That takes
    patients of both to be alike in all but the set: a set with one image a patient beside one with
    many is better thinned to one a patient first.

    Args:
        first_patients: Whose vector it is. For synthetic images, each its own, or what they share.
        folds: At most the patients of the smaller set.
        permutations: 0 gives no null check, and p is then 1.

    Raises:
        DataError: A set has fewer than two patients, the sets share one, or values are not finite.
        SettingsError: A method, number of folds or of permutations that is not allowed.
    """
    if method not in ("logistic", "neighbours"):
        raise SettingsError(f"method {method!r}; allowed: logistic, neighbours")
    if folds < 2 or permutations < 0:
        raise SettingsError(f"{folds} folds, {permutations} permutations; allowed: 2 up, 0 up")
    vectors = np.concatenate([first, second]).astype(np.float64)
    if not np.isfinite(vectors).all():
        raise DataError("features that are not finite numbers")
    if both := set(first_patients.tolist()) & set(second_patients.tolist()):
        raise DataError(f"patient {min(both)} is in both sets; no patient may be")
    patients, row = np.unique(
        np.concatenate([first_patients.astype(str), second_patients.astype(str)]),
        return_inverse=True,
    )
    of_second = np.zeros(len(patients), bool)
    of_second[row[len(first) :]] = True
    fewest = int(min(of_second.sum(), (~of_second).sum()))
    if fewest < 2:
        raise DataError(
            f"sets of {(~of_second).sum()} and {of_second.sum()} patients; allowed: 2 up"
        )
    vectors = fewer_dimensions(vectors)
    tell = {"logistic": logistic, "neighbours": neighbours}[method]
    chance = np.random.default_rng([seed, len(patients)])

    def told(labels: Bool[np.ndarray, " p"]) -> Bool[np.ndarray, " v"]:
        fold = dealt(labels, min(folds, fewest), chance)
        return cross_validated(vectors, labels[row], fold[row], tell)

    own = balanced(told(of_second), of_second[row], row)
    null = np.empty(permutations)
    for i in range(permutations):
        labels = chance.permutation(of_second)
        null[i] = balanced(told(labels), labels[row], row).value()
    p = (1 + (null >= own.value()).sum()) / (1 + permutations)
    return TwoSample(interval(own, seed=seed), null, float(p))


def dealt(
    labels: Bool[np.ndarray, " p"], folds: int, chance: np.random.Generator
) -> Int64[np.ndarray, " p"]:
    """A fold for each patient; each fold has its share of either set's."""
    fold = np.empty(len(labels), np.int64)
    for label in (False, True):
        own = chance.permutation(np.flatnonzero(labels == label))
        fold[own] = np.arange(len(own)) % folds
    return fold


def cross_validated(
    vectors: Float64[np.ndarray, "v d"],
    labels: Bool[np.ndarray, " v"],
    fold: Int64[np.ndarray, " v"],
    tell: Callable[..., Bool[np.ndarray, " u"]],
) -> Bool[np.ndarray, " v"]:
    """Whether each vector is told right by a classifier trained on the other folds."""
    right = np.zeros(len(labels), bool)
    for k in range(int(fold.max()) + 1):
        seen, unseen = fold != k, fold == k
        spread = vectors[seen].std(axis=0)
        scaled = (vectors - vectors[seen].mean(axis=0)) / np.where(spread > 0, spread, 1)
        right[unseen] = tell(scaled[seen], labels[seen], scaled[unseen]) == labels[unseen]
    return right


def balanced(
    right: Bool[np.ndarray, " v"], labels: Bool[np.ndarray, " v"], row: Int64[np.ndarray, " v"]
) -> PatientMetric:
    """Balanced accuracy, over patients."""
    sides = (~labels, labels)
    return mean_of([ratio((right & s).astype(np.int64), s.astype(np.int64), row) for s in sides])


def fewer_dimensions(vectors: Float64[np.ndarray, "v d"]) -> Float64[np.ndarray, "v e"]:
    """At most `DIMENSIONS` principal components."""
    if min(vectors.shape) <= DIMENSIONS:
        return vectors
    from sklearn.decomposition import PCA  # noqa: PLC0415 (seconds of imports)

    return np.asarray(PCA(DIMENSIONS, random_state=0).fit_transform(vectors))


def logistic(
    seen: Float64[np.ndarray, "s d"],
    labels: Bool[np.ndarray, " s"],
    unseen: Float64[np.ndarray, "u d"],
) -> Bool[np.ndarray, " u"]:
    """Logistic regression, both sets of equal weight."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    return np.asarray(model.fit(seen, labels).predict(unseen), bool)


def neighbours(
    seen: Float64[np.ndarray, "s d"],
    labels: Bool[np.ndarray, " s"],
    unseen: Float64[np.ndarray, "u d"],
) -> Bool[np.ndarray, " u"]:
    """The nearest vectors vote, each set's votes divided by its size."""
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415

    k = max(1, round(len(seen) ** NEIGHBOURS_POWER))
    votes = KNeighborsClassifier(k).fit(seen, labels).predict_proba(unseen)[:, 1]
    return np.asarray(votes > labels.mean(), bool)
