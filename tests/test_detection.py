"""Matching, FROC and average precision: worked by hand, by law, by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthoma.data.boxes import iou
from synthoma.errors import DataError, SettingsError
from synthoma.metrics.detection import (
    CPM_RATES,
    UndefinedMetricError,
    average_precision,
    average_precisions,
    cpm,
    froc,
    operating_point,
    sensitivity_at,
)
from synthoma.metrics.matching import Detections, Matches, Truths, match

SQUARE = (0.0, 0.0, 4.0, 4.0)
THREE_QUARTERS = (0.0, 0.0, 4.0, 3.0)
HALF = (0.0, 0.0, 4.0, 2.0)
ELSEWHERE = (50.0, 50.0, 54.0, 54.0)


def detections(*rows, labels=None):
    """From (score, case, box)."""
    scores, case, boxes = zip(*rows, strict=True)
    return Detections(np.array(boxes), np.array(scores), np.array(case), labels)


def truths(*rows, n_cases=1, labels=None):
    """From (case, box)."""
    case, boxes = zip(*rows, strict=True)
    return Truths(np.array(boxes), np.array(case), n_cases, labels)


def matches(hits, false_positives, *, n_truths, n_cases):
    """All in case 0, from the scores that found a truth and those that did not."""
    scores = np.array([*hits, *false_positives], np.float64)
    truth = np.array([*range(len(hits)), *[-1] * len(false_positives)], np.int64)
    case = np.zeros(len(scores), np.int64)
    return Matches(scores, case, truth, np.zeros(n_truths, np.int64), n_cases)


# ---- matching, by hand


def test_a_duplicate_of_a_found_truth_is_a_false_positive():
    found = match(detections((0.8, 0, SQUARE), (0.9, 0, THREE_QUARTERS)), truths((0, SQUARE)))
    assert found.truth.tolist() == [-1, 0]


def test_of_equal_scores_the_earlier_row_goes_first():
    found = match(detections((0.9, 0, THREE_QUARTERS), (0.9, 0, SQUARE)), truths((0, SQUARE)))
    assert found.truth.tolist() == [0, -1]


def test_a_detection_over_two_truths_takes_the_one_that_it_overlaps_most():
    both = truths((0, THREE_QUARTERS), (0, SQUARE))
    assert match(detections((0.9, 0, SQUARE)), both).truth.tolist() == [1]


def test_a_second_detection_takes_the_truth_that_the_first_left():
    both = truths((0, THREE_QUARTERS), (0, SQUARE))
    found = match(detections((0.9, 0, SQUARE), (0.8, 0, SQUARE)), both)
    assert found.truth.tolist() == [1, 0]


def test_of_equal_overlaps_the_later_truth_is_taken_as_in_coco():
    twins = truths((0, SQUARE), (0, SQUARE))
    assert match(detections((0.9, 0, SQUARE)), twins).truth.tolist() == [1]


@pytest.mark.parametrize(("iou_threshold", "truth"), [(0.5, 0), (np.nextafter(0.5, 1), -1)])
def test_an_overlap_of_just_the_threshold_is_a_hit(iou_threshold, truth):
    found = match(detections((0.9, 0, HALF)), truths((0, SQUARE)), iou_threshold=iou_threshold)
    assert found.truth.tolist() == [truth]


def test_the_same_box_in_another_case_is_no_hit():
    assert not match(detections((0.9, 1, SQUARE)), truths((0, SQUARE), n_cases=2)).hit.any()


def test_labels_matter_only_where_asked_for():
    found = detections((0.9, 0, SQUARE), (0.8, 0, SQUARE), labels=np.array(["solid", "glass"]))
    truth = truths((0, SQUARE), labels=np.array(["glass"]))
    assert match(found, truth).truth.tolist() == [0, -1]
    assert match(found, truth, class_aware=True).truth.tolist() == [-1, 0]


@pytest.mark.parametrize("k", [4, 6])
def test_nothing_found_and_nothing_to_find_are_fine(k):
    nothing = np.zeros((0, k)), np.zeros(0, np.int64)
    silent = Detections(nothing[0], np.zeros(0), nothing[1])
    assert match(silent, Truths(*nothing, n_cases=3)).truth.tolist() == []
    box = np.arange(float(k))[None]
    assert match(silent, Truths(box, np.array([2]), n_cases=3)).truth.tolist() == []
    one = Detections(box, np.array([0.5]), np.array([1]))
    assert match(one, Truths(*nothing, n_cases=3)).truth.tolist() == [-1]


@pytest.mark.parametrize("iou_threshold", [0.0, 1.1, float("nan")])
def test_an_impossible_threshold_is_refused(iou_threshold):
    with pytest.raises(SettingsError, match="above 0, up to 1"):
        match(detections((0.9, 0, SQUARE)), truths((0, SQUARE)), iou_threshold=iou_threshold)


def test_class_aware_without_labels_is_refused():
    with pytest.raises(SettingsError, match="needs labels"):
        match(detections((0.9, 0, SQUARE)), truths((0, SQUARE)), class_aware=True)


def test_flat_detections_of_solid_truths_are_refused():
    with pytest.raises(DataError, match="detections are 2D and truths 3D"):
        match(detections((0.9, 0, SQUARE)), truths((0, (0.0, 0, 0, 1, 4, 4))))


def test_a_case_outside_the_test_set_is_refused():
    with pytest.raises(DataError, match="detections lie in cases 1 to 1; allowed: 0 to 0"):
        match(detections((0.9, 1, SQUARE)), truths((0, SQUARE)))
    with pytest.raises(DataError, match="truths lie in cases -1 to -1"):
        truths((-1, SQUARE))


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(DataError, match="1 scores are not finite"):
        detections((float("nan"), 0, SQUARE), (0.5, 0, SQUARE))


def test_a_truth_that_is_found_twice_is_refused():
    two, once = np.array([0, 0]), np.array([0])
    with pytest.raises(DataError, match="2 detections hit 1 truths"):
        Matches(np.array([0.9, 0.8]), two, two, once, n_cases=1)


# ---- curves, by hand


def test_an_empty_slice_counts_for_false_positives():
    found = match(
        detections((0.9, 0, SQUARE), (0.8, 1, SQUARE), (0.0005, 2, SQUARE)),
        truths((0, SQUARE), n_cases=4),
    )
    point = operating_point(found)
    assert point.false_positives.tolist() == [0, 1, 0, 0]
    assert (point.sensitivity, point.false_positives_per_case) == (1.0, 0.25)


def test_a_score_on_the_threshold_is_accepted_in_its_own_precision():
    for kind in (np.float32, np.float64):
        found = matches([0.9], [], n_truths=1, n_cases=1)
        single = Matches(found.scores.astype(kind), found.case, found.truth, found.truth_case, 1)
        assert operating_point(single, threshold=0.9).sensitivity == 1.0


def test_equal_scores_are_one_operating_point():
    rate, sensitivity = froc(matches([0.5], [0.5, 0.5], n_truths=1, n_cases=1))
    assert rate.tolist() == [0, 2]
    assert sensitivity.tolist() == [0, 1]


def test_the_lowest_threshold_counts_even_when_every_target_is_found():
    """Dropping it would cap a perfect detector's sensitivity below 1."""
    _, sensitivity = froc(matches([0.9, 0.1], [0.7, 0.2], n_truths=2, n_cases=1))
    assert sensitivity[-1] == 1.0


def test_cpm_of_a_detector_that_needs_one_false_positive_per_scan():
    # Finds nothing below 1 FP/scan (rates 1/8, 1/4, 1/2), everything from there (1, 2, 4, 8).
    curve = froc(matches([0.1], [0.5, 0.6], n_truths=1, n_cases=2))
    assert cpm(*curve) == pytest.approx(4 / 7)


def test_a_rate_on_an_operating_point_reads_that_point():
    rate, sensitivity = froc(matches([0.1], [0.5], n_truths=1, n_cases=8))
    assert sensitivity_at(np.array([0.124, 1 / 8]), rate, sensitivity).tolist() == [0, 1]


def test_interpolating_the_curve_differs_only_among_equal_scores():
    found, wrong = [0.9, 0.7, 0.5, 0.3], [0.8, 0.6, 0.4]
    rate, sensitivity = froc(matches(found, wrong, n_truths=5, n_cases=3))
    assert cpm(rate, sensitivity) == np.interp(CPM_RATES, rate, sensitivity).mean()
    rate, sensitivity = froc(matches(found, found, n_truths=5, n_cases=3))
    assert cpm(rate, sensitivity) < np.interp(CPM_RATES, rate, sensitivity).mean()


def test_a_silent_detector_finds_nothing_at_any_rate():
    silent = matches([], [], n_truths=2, n_cases=2)
    assert cpm(*froc(silent)) == 0
    assert average_precision(silent) == 0
    assert operating_point(silent).sensitivity == 0


def test_without_truths_sensitivity_is_undefined_and_false_positives_are_not():
    healthy = matches([], [0.9], n_truths=0, n_cases=2)
    assert operating_point(healthy).false_positives_per_case == 0.5
    for metric in (froc, average_precision, lambda found: operating_point(found).sensitivity):
        with pytest.raises(UndefinedMetricError) as undefined:
            metric(healthy)
        assert undefined.value.reason == "nothing to find: 2 cases hold no truth"


def test_without_cases_everything_is_undefined():
    with pytest.raises(UndefinedMetricError, match="no cases"):
        _ = operating_point(matches([], [], n_truths=0, n_cases=0)).false_positives_per_case


def test_average_precision_of_ties_does_not_depend_on_their_order():
    # One point: precision 1/3 at every recall.
    tied = matches([0.5], [0.5, 0.5], n_truths=1, n_cases=1)
    assert average_precision(tied) == pytest.approx(1 / 3)


# ---- laws


@st.composite
def small_sets(draw, dimensions=(2, 3)):
    """Detections and truths on a small grid, with ties of scores and of overlaps."""
    d = draw(st.sampled_from(dimensions))
    n_cases = draw(st.integers(1, 4))

    def rows(most, *more):
        corner = st.tuples(*[st.integers(0, 4)] * d)
        side = st.tuples(*[st.integers(1, 4)] * d)
        row = st.tuples(st.integers(0, n_cases - 1), corner, side, *more)
        return draw(st.lists(row, max_size=most))

    def boxes(rows):
        low = np.array([row[1] for row in rows], np.float64).reshape(-1, d)
        return np.concatenate([low, low + np.array([r[2] for r in rows]).reshape(-1, d)], axis=1)

    def case(rows):
        return np.array([row[0] for row in rows], np.int64)

    found, truth = rows(12, st.integers(1, 6)), rows(6)
    scores = np.array([row[3] for row in found], np.float64) / 8
    return Detections(boxes(found), scores, case(found)), Truths(boxes(truth), case(truth), n_cases)


def greedy(found, truth, iou_threshold):
    """The rule of `match`, said slowly."""
    result = [-1] * len(found.scores)
    free = set(range(len(truth.case)))
    for row in sorted(range(len(found.scores)), key=lambda row: (-found.scores[row], row)):
        best = iou_threshold
        for candidate in sorted(free):
            overlap = iou(found.boxes[[row]], truth.boxes[[candidate]])[0, 0]
            if found.case[row] == truth.case[candidate] and overlap >= best:
                best, result[row] = overlap, candidate
        free.discard(result[row])
    return result


LAW = settings(deadline=None, max_examples=100)


@LAW
@given(small_sets(), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_matching_is_the_greedy_loop(both, iou_threshold):
    assert match(*both, iou_threshold=iou_threshold).truth.tolist() == greedy(*both, iou_threshold)


@LAW
@given(small_sets(), st.randoms())
def test_the_order_of_cases_changes_nothing(both, random):
    found, truth = both
    renamed = np.array(random.sample(range(truth.n_cases), truth.n_cases))
    there = match(
        Detections(found.boxes, found.scores, renamed[found.case]),
        Truths(truth.boxes, renamed[truth.case], truth.n_cases),
    )
    here = match(found, truth)
    assert here.truth.tolist() == there.truth.tolist()
    if len(truth.case):
        assert average_precision(here) == average_precision(there)
        np.testing.assert_array_equal(froc(here), froc(there))


@LAW
@given(small_sets(), st.integers(0, 7))
def test_one_more_false_positive_never_helps(both, score):
    found, truth = both
    if not len(truth.case):
        return
    far = np.full((1, found.boxes.shape[1]), 90.0)
    far[0, far.shape[1] // 2 :] = 91.0
    more = Detections(
        np.concatenate([found.boxes, far]),
        np.append(found.scores, score / 8),
        np.append(found.case, 0),
    )
    before, after = match(found, truth), match(more, truth)
    assert after.truth.tolist() == [*before.truth.tolist(), -1]
    rates = np.array([0.0, *CPM_RATES])
    assert (sensitivity_at(rates, *froc(after)) <= sensitivity_at(rates, *froc(before))).all()
    assert average_precision(after) <= average_precision(before)


@LAW
@given(small_sets(dimensions=[2]))
def test_a_scan_of_one_slice_is_a_slice(both):
    found, truth = both

    def thick(boxes):
        return np.insert(boxes, [0, 2], np.tile([0.0, 1.0], (len(boxes), 1)), axis=1)

    solid = (
        Detections(thick(found.boxes), found.scores, found.case),
        Truths(thick(truth.boxes), truth.case, truth.n_cases),
    )
    assert match(*solid).truth.tolist() == match(found, truth).truth.tolist()


@LAW
@given(small_sets())
def test_each_point_of_the_froc_curve_is_the_operating_point_at_its_score(both):
    found = match(*both)
    if not len(found.truth_case):
        return
    points = [operating_point(found, threshold=t) for t in np.unique(found.scores)[::-1]]
    rate, sensitivity = froc(found)
    assert rate.tolist() == [0, *(point.false_positives_per_case for point in points)]
    assert sensitivity.tolist() == [0, *(point.sensitivity for point in points)]


@LAW
@given(small_sets(), st.data())
def test_a_patient_of_weight_two_is_a_patient_who_is_there_twice(both, data):
    found = match(*both, iou_threshold=0.2)
    weights = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=found.n_cases, max_size=found.n_cases))
    )
    rows, truth_rows, offset = [], [], 0
    for time in range(3):
        rows.append(np.flatnonzero(weights[found.case] > time))
        truth_rows.append(np.flatnonzero(weights[found.truth_case] > time))
    truth = []
    for rows_now, truth_now in zip(rows, truth_rows, strict=True):
        place = {row: offset + i for i, row in enumerate(truth_now.tolist())} | {-1: -1}
        truth += [place[row] for row in found.truth[rows_now].tolist()]
        offset += len(truth_now)
    every, every_truth = np.concatenate(rows), np.concatenate(truth_rows)
    copied = Matches(
        found.scores[every],
        found.case[every],
        np.array(truth, np.int64),
        found.truth_case[every_truth],
        found.n_cases,
    )
    weighted = average_precisions(found, np.arange(found.n_cases), weights[None].astype(float))[0]
    if len(every_truth):
        assert weighted == average_precision(copied)
    else:
        assert np.isnan(weighted)
