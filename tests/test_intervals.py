"""Intervals over patients: exact where the arithmetic is, held against scipy where chance is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import stats

from synthoma.errors import DataError
from synthoma.metrics.detection import UndefinedMetricError, average_precision
from synthoma.metrics.intervals import (
    COVERAGE,
    ENOUGH_PATIENTS,
    average_precision_of,
    coverage_warning,
    expanded_tail,
    holm,
    interval,
    paired_difference,
    ratio,
    resampled,
    two_sided,
)
from synthoma.metrics.matching import Matches


def counts(seed, n=12):
    """Hits and truths of `n` patients who differ in difficulty."""
    rng = np.random.default_rng(seed)
    truths = 1 + rng.poisson(4, n)
    return rng.binomial(truths, rng.beta(4, 2, n)), truths


def random_matches(seed, n_cases=12):
    """About half of all truths found, as many false positives."""
    rng = np.random.default_rng(seed)
    truth_case = np.sort(np.random.default_rng(0).integers(0, n_cases, 5 * n_cases))
    found = np.flatnonzero(rng.random(len(truth_case)) < 0.5)
    wrong = rng.integers(0, n_cases, len(found))
    return Matches(
        scores=np.concatenate([rng.normal(1, 1, len(found)), rng.normal(0, 1, len(wrong))]),
        case=np.concatenate([truth_case[found], wrong]),
        truth=np.concatenate([found, np.full(len(wrong), -1)]),
        truth_case=truth_case,
        n_cases=n_cases,
    )


EVERYONE = np.arange(12)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    metric = ratio(*counts(0), EVERYONE)
    assert interval(metric, seed=1) == interval(metric, seed=1)
    assert interval(metric, seed=1) != interval(metric, seed=2)


def test_an_interval_lies_around_its_value_within_the_range_of_the_metric():
    got = interval(ratio(*counts(0), EVERYONE), seed=0)
    assert 0 <= got.low < got.value < got.high <= 1
    assert (got.n, got.undefined_resamples) == (12, 0)


def test_resamples_hold_as_many_patients_as_the_test_set():
    weights = resampled(7, 50, seed=0)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()


def test_a_resampled_ratio_is_that_of_the_patients_who_were_drawn():
    hits, truths = counts(0)
    weights = resampled(12, 20, seed=3)
    drawn = [np.repeat(EVERYONE, row) for row in weights]
    slowly = [hits[who].sum() / truths[who].sum() for who in drawn]
    np.testing.assert_allclose(ratio(hits, truths, EVERYONE).of(weights), slowly, rtol=1e-15)


def test_slices_of_a_patient_are_drawn_together_whatever_their_order():
    hits, truths = counts(0)
    halves = np.stack([hits // 2, hits - hits // 2]).ravel(), np.stack([truths, 0 * truths]).ravel()
    patient = np.array([f"patient {p:02}" for p in [*EVERYONE, *EVERYONE]])
    mixed = np.random.default_rng(0).permutation(24)
    by_slice = ratio(halves[0][mixed], halves[1][mixed], patient[mixed])
    assert interval(by_slice, seed=0) == interval(ratio(hits, truths, EVERYONE), seed=0)


def test_seeds_of_training_are_averaged_patient_by_patient():
    (first, truths), (second, _) = counts(0), (counts(0)[1] // 2, None)
    both = ratio(np.stack([first, second]), np.stack([truths, truths]), EVERYONE)
    mean = ratio((first + second) / 2, truths, EVERYONE)
    assert interval(both, seed=0) == interval(mean, seed=0)


def test_average_precision_of_seeds_is_the_mean_of_theirs():
    runs = [random_matches(seed) for seed in (1, 2, 3)]
    metric = average_precision_of(runs, EVERYONE)
    assert metric.value() == pytest.approx(np.mean([average_precision(run) for run in runs]))
    assert interval(metric, seed=0, resamples=200).n == 12


def test_average_precision_is_the_same_in_pieces(monkeypatch):
    metric = average_precision_of([random_matches(1)], EVERYONE)
    whole = interval(metric, seed=0, resamples=50)
    monkeypatch.setattr("synthoma.metrics.detection.CHUNK", 100)
    assert interval(metric, seed=0, resamples=50) == whole


def test_runs_on_different_test_sets_are_refused():
    with pytest.raises(DataError, match="share a test set"):
        average_precision_of([random_matches(1), random_matches(1, n_cases=11)], EVERYONE)


# ---- differences


@pytest.mark.parametrize(
    "metric", [ratio(*counts(0), EVERYONE), average_precision_of([random_matches(1)], EVERYONE)]
)
def test_a_setup_differs_from_itself_by_exactly_nothing(metric):
    got = paired_difference(metric, metric, seed=0, resamples=100)
    assert (got.value, got.low, got.high) == (0.0, 0.0, 0.0)
    assert not got.excludes_zero


def test_swapping_two_setups_turns_their_difference_round():
    truths = np.full(12, 10)
    better, worse = (ratio(counts(s)[0] + up, truths, EVERYONE) for s, up in ((0, 1), (1, 0)))
    there = paired_difference(better, worse, seed=0)
    back = paired_difference(worse, better, seed=0)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-there.value, -there.high, -there.low)
    )


def test_pairing_sees_a_small_gain_that_two_separate_intervals_hide():
    hits, truths = counts(0)
    first, second = ratio(hits + 1, truths + 3, EVERYONE), ratio(hits, truths + 3, EVERYONE)
    apart = [interval(metric, seed=0) for metric in (first, second)]
    assert apart[0].low < apart[1].high
    assert paired_difference(first, second, seed=0).excludes_zero


def test_setups_on_different_patients_are_refused():
    first, second = ratio(*counts(0), EVERYONE), ratio(*counts(0), EVERYONE + 1)
    with pytest.raises(DataError, match="one test set"):
        paired_difference(first, second, seed=0)


# ---- p-values, and several of them


def test_a_p_value_counts_resamples_on_the_other_side_of_zero_twice_and_is_never_nothing():
    drawn = np.concatenate([np.full(1990, 0.1), np.full(9, -0.1), [0.0]])
    assert two_sided(drawn) == 2 * 11 / 2001  # zero is on both sides
    assert two_sided(-drawn) == two_sided(drawn)
    assert two_sided(np.full(2000, 0.1)) == 2 / 2001
    assert two_sided(np.array([np.nan, 0.1, np.nan])) == 1.0  # 2 of 2


def test_a_difference_has_a_p_value_and_a_metric_alone_has_none():
    first, second = ratio(*counts(0), EVERYONE), ratio(*counts(1), EVERYONE)
    assert interval(first, seed=0).p is None
    got = paired_difference(first, second, seed=0)
    weights = resampled(12, 2000, 0)
    assert got.p == two_sided(first.of(weights) - second.of(weights))
    assert paired_difference(first, first, seed=0).p == 1.0


def test_p_values_are_small_about_as_often_as_they_say_where_nothing_differs():
    """Two set-ups of equal skill on 36 patients, 200 studies: p < 0.05 in some 5 of 100."""
    rng = np.random.default_rng(0)
    small = []
    for trial in range(200):
        truths = 1 + rng.poisson(4, 36)
        skill = rng.beta(4, 2, 36)
        both = (ratio(rng.binomial(truths, skill), truths, np.arange(36)) for _ in range(2))
        small.append(paired_difference(*both, seed=trial, resamples=400).p < 0.05)
    assert 0.02 <= np.mean(small) <= 0.10


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_goes_back():
    # By hand: 0.005 * 5, 0.011 * 4 = 0.044, 0.02 * 3 = 0.06, 0.04 * 2 = 0.08, 0.13 * 1.
    assert holm([0.04, 0.005, 0.13, 0.011, 0.02]) == pytest.approx([0.08, 0.025, 0.13, 0.044, 0.06])
    # 0.02 * 3 = 0.06 is more than 0.025 * 2 = 0.05, which therefore becomes 0.06 too.
    assert holm([0.025, 0.02, 0.9]) == pytest.approx([0.06, 0.06, 0.9])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p, chance):
    after = holm(p)
    for given_p, corrected in zip(p, after, strict=True):
        assert given_p <= corrected <= min(1.0, len(p) * given_p)
    ranked = [corrected for _, corrected in sorted(zip(p, after, strict=True))]
    assert ranked == sorted(ranked)
    order = chance.sample(range(len(p)), len(p))
    assert holm([p[i] for i in order]) == [after[i] for i in order]


@pytest.mark.parametrize("p", [[-0.1], [1.1], [0.5, float("nan")]])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(DataError, match="from 0 to 1"):
        holm(p)


# ---- what cannot be said


def test_nothing_in_the_denominator_is_undefined():
    nothing = np.zeros(12)
    with pytest.raises(UndefinedMetricError, match="none of 12 patients"):
        interval(ratio(nothing, nothing, EVERYONE), seed=0)


def test_one_patient_gives_no_interval():
    truths = np.array([0, 3, 0])
    with pytest.raises(
        UndefinedMetricError, match="needs 2 patients that the metric is of; given 1"
    ):
        interval(ratio(truths - truths, truths, np.arange(3)), seed=0)


def test_n_counts_who_has_something_to_find_and_resamples_without_are_counted():
    hits, truths = np.array([1, 2, 0, 0, 0]), np.array([2, 2, 0, 0, 0])
    got = interval(ratio(hits, truths, np.arange(5)), seed=0, resamples=1000)
    assert got.n == 2
    # Both are missed with probability (3/5)^5 = 0.078.
    assert got.undefined_resamples == pytest.approx(78, abs=30)


def test_rows_of_different_length_are_refused():
    with pytest.raises((DataError, TypeCheckError)):  # the latter where shapes are checked
        ratio(np.zeros(3), np.ones(4), np.arange(4))


# ---- against scipy, and against the truth


@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_is_scipys_percentile_interval_at_the_expanded_level(seed):
    hits, truths = counts(seed)
    reference = stats.bootstrap(
        (hits, truths),
        lambda hits, truths, axis: hits.sum(axis=axis) / truths.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * expanded_tail(12, 0.95),
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    got = interval(ratio(hits, truths, EVERYONE), seed=0, resamples=20_000)
    # Three standard errors of a 1 % quantile of 20,000 resamples.
    assert (got.low, got.high) == pytest.approx((reference.low, reference.high), abs=0.012)


def test_the_expanded_interval_of_many_patients_is_the_percentile_interval():
    assert expanded_tail(10_000_000, 0.9) == pytest.approx(0.05, abs=1e-6)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """A tenth of the coverage benchmark: correlated hits, 15 patients, true sensitivity 2/3."""
    rng = np.random.default_rng(0)
    held = []
    for trial in range(400):
        truths = 1 + rng.poisson(4, 15)
        hits = rng.binomial(truths, rng.beta(4, 2, 15))
        got = interval(ratio(hits, truths, np.arange(15)), seed=trial, resamples=500)
        held.append(got.low <= 2 / 3 <= got.high)
    assert 0.91 <= np.mean(held) <= 0.98


# ---- the warning


def test_few_patients_are_warned_of_with_the_coverage_of_the_simulation():
    low, high = min(COVERAGE[5]), max(COVERAGE[5])
    for n in (5, 6, 7):
        text = coverage_warning(n)
        assert text is not None
        assert f"{n} patients" in text
        assert f"{100 * low:.0f} to {100 * high:.0f} %" in text


def test_enough_patients_are_not_warned_of():
    assert coverage_warning(ENOUGH_PATIENTS - 1) is not None
    assert coverage_warning(ENOUGH_PATIENTS) is None


def test_too_few_patients_for_the_table_are_warned_of_too():
    assert "no interval" in (coverage_warning(1) or "")
    assert "2 patients" in (coverage_warning(2) or "")
