"""Figures of classifiers, against scikit-learn, scipy, and definitions that are spelt out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from synthoma.errors import DataError
from synthoma.metrics.classification import (
    Answers,
    accuracy_of,
    areas,
    auc_of,
    delong,
    mcnemar,
    metrics_of,
)
from synthoma.metrics.detection import UndefinedMetricError
from synthoma.metrics.intervals import interval, paired_difference, resampled


def answers(seed, n=60, k=2, *, patients=12, levels=7, **fields):
    """Answers that are right more often than not, with equal scores among them."""
    chance = np.random.default_rng(seed)
    truths = np.random.default_rng(99).integers(0, k, n)
    scores = chance.integers(0, levels, (n, k)) + 1.5 * np.eye(k)[truths] + 0.5
    return Answers(
        scores / scores.sum(axis=1, keepdims=True),
        truths,
        np.arange(n) % patients,
        tuple("abcdef"[:k]),
        **fields,
    )


def of_scikit_learn(own, weight=None):
    k = len(own.classes)
    if k == 2:
        positive = own.looked_for[0]
        true, said, score = (
            own.truths == positive,
            own.said == positive,
            own.probabilities[:, positive],
        )
        many, areas_of = {"zero_division": 0}, {}
    else:
        true, said, score = own.truths, own.said, own.probabilities
        many, areas_of = {"average": "macro", "zero_division": 0}, {"multi_class": "ovr"}
    others = [
        sk.recall_score(own.truths != c, own.said != c, sample_weight=weight)
        for c in own.looked_for
    ]
    return {
        "accuracy": sk.accuracy_score(own.truths, own.said, sample_weight=weight),
        "sensitivity": sk.recall_score(true, said, sample_weight=weight, **many),
        "specificity": np.mean(others),
        "precision": sk.precision_score(true, said, sample_weight=weight, **many),
        "auc": sk.roc_auc_score(true, score, sample_weight=weight, **areas_of),
    }


CASES = [answers(0), answers(1, positive="a"), answers(2, k=3), answers(3, k=4, levels=3)]


@pytest.mark.parametrize("own", CASES)
def test_every_figure_is_scikit_learns(own):
    found = {name: metric.value() for name, metric in metrics_of([own]).items()}
    assert found == pytest.approx(of_scikit_learn(own))


@pytest.mark.parametrize("own", CASES)
def test_every_figure_of_a_resample_is_scikit_learns_with_weights(own):
    weights = resampled(12, 5, seed=0)
    for name, metric in metrics_of([own]).items():
        wanted = [of_scikit_learn(own, row[own.patients])[name] for row in weights]
        np.testing.assert_allclose(metric.of(weights), wanted, rtol=1e-12, err_msg=name)


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_area_is_how_often_a_positive_beats_another(seed, levels):
    chance = np.random.default_rng(seed)
    n = int(chance.integers(2, 30))
    scores, positive = chance.integers(0, levels, n) / 7, chance.random(n) < 0.5
    weights = np.ones((1, n))
    (found,) = areas(scores, positive, np.arange(n), weights)
    duels = np.sign(scores[positive][:, None] - scores[~positive][None, :])
    if duels.size:
        assert found == pytest.approx((duels.mean() + 1) / 2)
    else:
        assert np.isnan(found)


def test_areas_are_the_same_in_pieces(monkeypatch):
    own, weights = answers(0), resampled(12, 50, seed=0)
    whole = auc_of([own]).of(weights)
    monkeypatch.setattr("synthoma.metrics.classification.CHUNK", 100)
    np.testing.assert_array_equal(auc_of([own]).of(weights), whole)


def test_of_several_trainings_the_mean_is_told():
    runs = [answers(seed, k=3) for seed in (1, 2, 3)]
    each = [{n: m.value() for n, m in metrics_of([run]).items()} for run in runs]
    found = metrics_of(runs)
    for name in ("accuracy", "sensitivity", "specificity", "auc"):
        assert found[name].value() == pytest.approx(np.mean([one[name] for one in each]))


def test_two_setups_are_compared_on_the_same_patients():
    better, worse = metrics_of([answers(0, n=240)]), metrics_of([answers(0, n=240, levels=40)])
    for name in ("accuracy", "auc"):
        assert paired_difference(better[name], worse[name], seed=0).excludes_zero
        nothing = paired_difference(better[name], better[name], seed=0)
        assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_what_a_test_set_does_not_hold_is_undefined():
    own = answers(0)
    ill = Answers(own.probabilities, np.ones(60, np.int64), own.patients, own.classes)
    found = metrics_of([ill])
    assert found["sensitivity"].value() > 0
    for name in ("specificity", "auc"):
        with pytest.raises(UndefinedMetricError):
            found[name].value()
    three = answers(0, k=3)
    without = Answers(three.probabilities, three.truths % 2, three.patients, three.classes)
    with pytest.raises(UndefinedMetricError):
        metrics_of([without])["sensitivity"].value()


def test_an_area_stands_on_the_patients_of_the_rarer_side():
    truths = np.r_[np.ones(3, np.int64), np.zeros(97, np.int64)]
    share = np.random.default_rng(0).random(100)
    own = Answers(np.stack([1 - share, share], 1), truths, np.arange(100), ("well", "ill"))
    assert interval(auc_of([own]), seed=0).n == 3
    assert interval(accuracy_of([own]), seed=0).n == 100


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"truths": np.full(60, 2)}, "allowed: 0 to 1"),
        ({"probabilities": np.full((60, 2), 0.7)}, "add up to 1"),
        ({"probabilities": np.full((60, 2), np.nan)}, "add up to 1"),
        ({"classes": ("a", "b", "c")}, "3 classes"),
        ({"positive": "c"}, "allowed: a, b"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changed, why):
    with pytest.raises(DataError, match=why):
        Answers(**(vars(answers(0)) | changed))


def test_runs_on_other_images_are_refused():
    with pytest.raises(DataError, match="share a test set"):
        accuracy_of([answers(0), answers(0, patients=11)])


# ---- tests of two classifiers


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test_of_the_disagreements(first, second, agreed):
    right = np.r_[np.ones(first, bool), np.zeros(second, bool), np.ones(agreed, bool)]
    other = np.r_[np.zeros(first, bool), np.ones(second, bool), np.ones(agreed, bool)]
    found = mcnemar(right, other)
    assert (found.first_alone, found.second_alone) == (first, second)
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.p == pytest.approx(wanted, abs=1e-12)


def spelt_out(positive, first, second):
    """DeLong et al. 1988, equations 2 to 6, with every pair looked at."""
    above, others = np.flatnonzero(positive), np.flatnonzero(~positive)
    components = []
    for scores in (first, second):
        duels = (np.sign(scores[above][:, None] - scores[others][None, :]) + 1) / 2
        components.append((duels.mean(), duels.mean(axis=1), duels.mean(axis=0)))
    (a, a10, a01), (b, b10, b01) = components
    gap10, gap01 = a10 - b10, a01 - b01
    variance = gap10.var(ddof=1) / len(above) + gap01.var(ddof=1) / len(others)
    return a, b, variance**0.5


@given(st.integers(0, 10_000), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_the_fast_delong_is_the_one_that_is_spelt_out(seed, levels):
    chance = np.random.default_rng(seed)
    n = int(chance.integers(8, 40))
    positive = chance.permutation(np.arange(n) < max(2, n // 3))
    first, second = chance.integers(0, levels, (2, n)) + 1.0 * positive
    a, b, error = spelt_out(positive, first, second)
    if error < 1e-7:
        return
    found = delong(positive, first, second)
    assert (found.first, found.second, found.standard_error) == pytest.approx((a, b, error))
    assert found.p == pytest.approx(2 * stats.norm.sf(abs((a - b) / error)))


def test_delong_of_four_images_by_hand():
    """Areas 3/4 and 1; the first's shares are 1, 1/2 on both sides, the second's all 1: variance
    (1/8) / 2 twice."""
    positive = np.array([True, True, False, False])
    found = delong(positive, np.array([3.0, 1, 2, 0]), np.array([3.0, 2, 1, 0]))
    assert (found.first, found.second) == (0.75, 1.0)
    assert found.standard_error == pytest.approx(0.125**0.5)
    assert found.z == pytest.approx(-(0.5**0.5))
    assert found.p == pytest.approx(0.4795, abs=1e-4)


def test_delong_rejects_equal_classifiers_about_as_often_as_it_says():
    chance = np.random.default_rng(0)
    positive = np.arange(120) < 50
    p = []
    for _ in range(400):
        shared = chance.normal(size=120) + positive
        p.append(delong(positive, *(shared + chance.normal(size=(2, 120)))).p)
    assert 0.025 <= np.mean(np.array(p) < 0.05) <= 0.085


def test_delong_of_a_classifier_and_itself_finds_nothing():
    positive, scores = np.arange(10) < 4, np.arange(10.0)
    assert delong(positive, scores, scores).p == 1.0
    with pytest.raises(UndefinedMetricError, match="without variance"):
        delong(positive, -scores, np.zeros(10))
    with pytest.raises(UndefinedMetricError, match="1 positive"):
        delong(np.arange(10) < 1, scores, scores)
