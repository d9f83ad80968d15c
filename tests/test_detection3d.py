"""Figures of 3D detectors: irrelevant findings, subsets, CPM and its interval.

The numbers of the first parts can be checked on paper. LUNA16's rule: tests/test_centres.py.
"""

import numpy as np
import pytest

from synthoma.errors import DataError
from synthoma.metrics.detection import (
    CPM_RATES,
    UndefinedMetricError,
    average_precision,
    cpm,
    cpms,
    froc,
    operating_point,
    threshold_at,
)
from synthoma.metrics.intervals import cpm_of, interval, paired_difference
from synthoma.metrics.matching import (
    FALSE_POSITIVE,
    IGNORED,
    Detections,
    Matches,
    Truths,
    match,
    subset,
)

CUBE = (0.0, 0.0, 0.0, 4.0, 4.0, 4.0)
QUARTER = (3.0, 0.0, 0.0, 4.0, 4.0, 4.0)
"""Overlaps the cube by a quarter."""
ELSEWHERE = (50.0, 50.0, 50.0, 54.0, 54.0, 54.0)


def detections(*rows):
    """From (score, case, box)."""
    scores, case, boxes = zip(*rows, strict=True)
    return Detections(np.array(boxes), np.array(scores), np.array(case))


def truths(*rows, n_cases=1):
    """From (case, box)."""
    case, boxes = zip(*rows, strict=True)
    return Truths(np.array(boxes), np.array(case), n_cases)


# ---- overlap in 3D, and findings that nobody has to find


@pytest.mark.parametrize(("iou_threshold", "truth"), [(0.25, 0), (0.26, FALSE_POSITIVE)])
def test_a_quarter_of_a_cube_overlaps_it_by_a_quarter(iou_threshold, truth):
    found = match(detections((0.9, 0, QUARTER)), truths((0, CUBE)), iou_threshold=iou_threshold)
    assert found.truth.tolist() == [truth]


def test_an_irrelevant_finding_excuses_every_detection_of_it_and_no_other():
    found = match(
        detections((0.9, 0, CUBE), (0.8, 0, CUBE), (0.7, 0, ELSEWHERE), (0.6, 1, CUBE)),
        truths((1, ELSEWHERE), n_cases=2),
        irrelevant=truths((0, CUBE), n_cases=2),
    )
    assert found.truth.tolist() == [IGNORED, IGNORED, FALSE_POSITIVE, FALSE_POSITIVE]
    point = operating_point(found)
    assert (point.hits.sum(), point.truths.sum(), point.false_positives.tolist()) == (0, 1, [1, 1])


def test_an_irrelevant_finding_takes_no_hit_away():
    cube = truths((0, CUBE))
    found = match(detections((0.9, 0, CUBE), (0.8, 0, CUBE)), cube, irrelevant=cube)
    assert found.truth.tolist() == [0, IGNORED]


def test_ignored_detections_change_no_figure():
    rest = Matches(
        np.array([0.9, 0.7, 0.5]), np.array([0, 0, 1]), np.array([0, -1, 1]), np.array([0, 1]), 2
    )
    more = Matches(
        np.array([0.95, 0.9, 0.8, 0.7, 0.7, 0.5, 0.1]),
        np.array([0, 0, 1, 0, 1, 1, 0]),
        np.array([IGNORED, 0, IGNORED, -1, IGNORED, 1, IGNORED]),
        rest.truth_case,
        2,
    )
    assert cpm(*froc(more)) == cpm(*froc(rest))
    assert average_precision(more) == average_precision(rest)
    assert threshold_at(more, 0.4) == 0.8  # lower than 0.9, and no false positive between
    assert operating_point(more).false_positives.tolist() == [1, 0]


def test_a_truth_that_is_no_row_is_refused():
    with pytest.raises(DataError, match="truth holds -3"):
        Matches(np.array([0.9]), np.array([0]), np.array([-3]), np.array([0]), 1)


# ---- subsets by size or attenuation


def three_sizes():
    """Two scans; a small nodule found at 0.9, a large one at 0.6, a small one missed."""
    return match(
        detections((0.9, 0, CUBE), (0.8, 1, CUBE), (0.6, 0, ELSEWHERE), (0.5, 0, CUBE)),
        truths((0, CUBE), (0, ELSEWHERE), (1, ELSEWHERE), n_cases=2),
        iou_threshold=0.25,
    )


def test_a_hit_on_another_size_is_neither_hit_nor_false_positive():
    small, large = np.array([True, False, True]), np.array([False, True, False])
    assert subset(three_sizes(), small).truth.tolist() == [0, -1, IGNORED, -1]
    assert subset(three_sizes(), large).truth.tolist() == [IGNORED, -1, 0, -1]


def test_false_positives_of_the_whole_scan_count_for_every_size():
    """So every subset's curve reaches the same rate, and a duplicate counts in each."""
    whole = three_sizes()
    for wanted in ([True, False, True], [False, True, False], [True, True, True]):
        rate, _ = froc(subset(whole, np.array(wanted)))
        assert rate[-1] == 1.0
        assert operating_point(subset(whole, np.array(wanted))).false_positives.tolist() == [1, 1]


def test_cpm_by_size_by_hand():
    whole = three_sizes()
    # small: found before any false positive, the other one never
    assert cpm(*froc(subset(whole, np.array([True, False, True])))) == pytest.approx(1 / 2)
    # large: after one false positive in two scans, so at the rates 1/2 to 8
    assert cpm(*froc(subset(whole, np.array([False, True, False])))) == pytest.approx(5 / 7)
    assert cpm(*froc(whole)) == pytest.approx((2 * 1 / 3 + 5 * 2 / 3) / 7)


def test_a_subset_without_truths_is_undefined_and_one_of_another_length_refused():
    with pytest.raises(UndefinedMetricError, match="nothing to find"):
        froc(subset(three_sizes(), np.zeros(3, bool)))
    with pytest.raises(DataError, match=r"\(2,\) of \(3,\) truths"):
        subset(three_sizes(), np.ones(2, bool))


# ---- conventions of CPM, and other programs' traps


def one_curve(hits, wrong, *, n_truths, n_cases):
    scores = np.array([*hits, *wrong], np.float64)
    truth = np.array([*range(len(hits)), *[-1] * len(wrong)])
    nought = np.zeros(len(scores), np.int64)
    return froc(Matches(scores, nought, truth, np.zeros(n_truths, np.int64), n_cases))


def test_equal_scores_read_as_a_step_where_luna16_reads_a_slope():
    """A hit and two false positives of one score, one scan: from (0, 0) straight to (2, 1)."""
    rate, sensitivity = one_curve([0.5], [0.5, 0.5], n_truths=1, n_cases=1)
    assert cpm(rate, sensitivity) == pytest.approx(3 / 7)
    linear = np.interp(CPM_RATES, rate, sensitivity)
    assert linear.tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1, 1]


def test_the_lowest_score_is_a_point_of_the_curve():
    """Leaving it out, as MONAI's FROC does, would read 1/2 everywhere."""
    assert cpm(*one_curve([0.9, 0.1], [0.8], n_truths=2, n_cases=8)) == 1
    assert cpm(*one_curve([0.9], [0.8], n_truths=2, n_cases=8)) == 1 / 2


def test_one_false_positive_in_eight_scans_is_one_of_the_seven_rates():
    """Leaving 1/8 out, as MONAI's default rates do, would read 1."""
    curve = one_curve([0.8], [0.95, 0.9, 0.1], n_truths=1, n_cases=8)
    assert cpm(*curve) == pytest.approx(6 / 7)
    assert np.interp(CPM_RATES[1:], *curve).mean() == 1


# ---- intervals


def drawn_set(seed, n_patients=12):
    """Patients with one or two scans; every third has no nodule at all."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 3, n_patients))
    ill = np.flatnonzero(patient % 3 > 0)
    truth_case = rng.choice(ill, 30)
    n = 200
    truth = np.full(n, -1)
    truth[:20] = rng.permutation(30)[:20]
    truth[20:30] = IGNORED
    case = rng.integers(0, len(patient), n)
    case[:20] = truth_case[truth[:20]]
    scores = np.round(rng.beta(2, 4, n) + (truth >= 0) * 0.25, 2)  # rounded: some are equal
    return Matches(scores, case, truth, truth_case, len(patient)), patient


@pytest.mark.parametrize("seed", range(4))
def test_a_patient_of_weight_two_is_a_patient_who_is_there_twice(seed, monkeypatch):
    found, patient = drawn_set(seed)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    monkeypatch.setattr("synthoma.metrics.detection.CHUNK", 50)  # a few test sets at a time
    weighted = cpms(found, patient, weights)
    for row, times in enumerate(weights):
        scores, case, truth, truth_case, n_cases = [], [], [], [], 0
        for copy in range(times.max()):
            there = np.flatnonzero(times[patient] > copy)  # these scans, once more
            place = np.full(len(patient), -1)
            place[there] = n_cases + np.arange(len(there))
            own, own_truths = place[found.case] >= 0, place[found.truth_case] >= 0
            name = np.cumsum(own_truths) - 1 + sum(map(len, truth_case))
            scores.append(found.scores[own])
            case.append(place[found.case[own]])
            truth.append(np.where(found.hit, name[found.truth], found.truth)[own])
            truth_case.append(place[found.truth_case[own_truths]])
            n_cases += len(there)
        copied = Matches(*map(np.concatenate, (scores, case, truth, truth_case)), n_cases)
        assert weighted[row] == cpm(*froc(copied))
    assert len(np.unique(weighted)) > 1


def test_the_interval_of_a_size_stands_on_the_patients_who_have_that_size():
    found, patient = drawn_set(0)
    whole = cpm_of([found], patient)
    assert whole.value() == cpm(*froc(found))
    of_five = np.isin(patient[found.truth_case], [1, 2, 4, 5, 7])
    few = cpm_of([subset(found, of_five)], patient)
    assert few.value() == cpm(*froc(subset(found, of_five)))
    for metric, n in ((whole, 8), (few, 5)):
        around = interval(metric, seed=0, resamples=500)
        assert around.n == n
        assert around.low < around.value < around.high
        assert len(metric.patients) == 12


def test_resamples_without_a_nodule_of_the_size_are_left_out_and_counted():
    found, patient = drawn_set(0)
    rare = np.isin(patient[found.truth_case], [1, 2])
    around = interval(cpm_of([subset(found, rare)], patient), seed=0, resamples=500)
    assert 40 < around.undefined_resamples < 140  # (10 / 12)^12 = 11 % of 500 hold neither


def test_of_several_seeds_the_mean_counts_and_a_set_up_differs_from_itself_by_nothing():
    found, patient = drawn_set(0)
    none = Matches(
        found.scores, found.case, np.where(found.hit, IGNORED, found.truth), found.truth_case,
        found.n_cases,
    )  # fmt: skip
    both = cpm_of([found, none], patient)
    assert both.value() == cpm(*froc(found)) / 2
    itself = paired_difference(both, both, seed=0, resamples=50)
    assert (itself.low, itself.value, itself.high) == (0, 0, 0)


def test_a_silent_detector_has_a_cpm_of_nought():
    nothing = np.zeros(0)
    silent = Matches(nothing, nothing.astype(int), nothing.astype(int), np.array([0, 1]), 2)
    assert cpms(silent, np.array([0, 1]), np.array([[1, 1], [0, 2]])).tolist() == [0, 0]
