"""LUNA16's rule of hits: worked by hand, and said once more, slowly."""

import numpy as np
import pytest

from synthoma.errors import DataError, SettingsError
from synthoma.metrics.centres import match_centres, surest
from synthoma.metrics.detection import CPM_RATES, cpm, froc, operating_point
from synthoma.metrics.matching import FALSE_POSITIVE, IGNORED, Detections, Truths


def ball(z, y, x, diameter=2.0):
    r = diameter / 2
    return (z - r, y - r, x - r, z + r, y + r, x + r)


def detections(*rows):
    """From (score, case, box)."""
    scores, case, boxes = zip(*rows, strict=True)
    return Detections(np.array(boxes), np.array(scores), np.array(case))


def nodules(*rows, n_cases=1):
    """From (case, diameter in mm, centre): the boxes are in mm, as wide as the nodule."""
    case, diameter, centre = zip(*rows, strict=True)
    boxes = [ball(*at, max(wide, 0.0)) for at, wide in zip(centre, diameter, strict=True)]
    return Truths(
        np.array(boxes), np.array(case), n_cases, diameter_mm=np.array(diameter, np.float64)
    )


def by_centre(found, truth, irrelevant=None):
    return match_centres(
        found, truth, spacing_mm=np.ones((truth.n_cases, 3)), irrelevant=irrelevant
    )


# ---- by hand


@pytest.mark.parametrize(("away", "truth"), [(0.0, 0), (3.99, 0), (4.0, -1), (5.0, -1)])
def test_a_hit_is_nearer_to_the_centre_than_the_radius(away, truth):
    found = by_centre(detections((0.9, 0, ball(0, 0, away))), nodules((0, 8.0, (0, 0, 0))))
    assert found.truth.tolist() == [truth]


def test_distance_is_in_millimetres_whatever_the_spacing():
    """Two voxels along z are 5 mm in the first scan and 1 mm in the second; along x 1.4 mm."""
    boxes = np.array([ball(2, 0, 0), ball(2, 0, 0), ball(0, 0, 2)])
    truth = Truths(np.array([ball(0, 0, 0)] * 3), np.arange(3), 3, diameter_mm=np.array([6.0] * 3))
    found = match_centres(
        Detections(boxes, np.ones(3), np.arange(3)),
        truth,
        spacing_mm=np.array([[2.5, 0.7, 0.7], [0.5, 0.7, 0.7], [2.5, 0.7, 0.7]]),
    )
    assert found.truth.tolist() == [-1, 1, 2]


def test_of_several_candidates_the_surest_counts_and_the_others_are_ignored():
    found = by_centre(
        detections((0.5, 0, ball(0, 0, 0)), (0.9, 0, ball(1, 0, 0)), (0.9, 0, ball(2, 0, 0))),
        nodules((0, 8.0, (0, 0, 0))),
    )
    assert found.truth.tolist() == [IGNORED, 0, IGNORED]
    rate, sensitivity = froc(found)
    assert rate.max() == 0
    assert sensitivity.max() == 1


def test_a_candidate_inside_two_nodules_finds_both():
    two = nodules((0, 8.0, (0, 0, 0)), (0, 8.0, (0, 0, 4)))
    found = by_centre(detections((0.9, 0, ball(0, 0, 2)), (0.8, 0, ball(0, 0, 3.9))), two)
    assert found.truth.tolist() == [0, IGNORED, 1]
    assert found.scores.tolist() == [0.9, 0.8, 0.9]
    assert operating_point(found).sensitivity == 1


def test_a_nodule_keeps_its_own_surest_candidate_though_that_one_found_another_too():
    """Matching one to one would give the second nodule the score 0.8."""
    two = nodules((0, 2.0, (0, 0, 0)), (0, 20.0, (0, 0, 5)))
    found = by_centre(detections((0.8, 0, ball(0, 0, 5)), (0.9, 0, ball(0, 0, 0.5))), two)
    assert found.truth.tolist() == [IGNORED, 0, 1]
    assert found.scores[2] == 0.9


def test_candidates_on_irrelevant_findings_are_ignored_unless_they_find_a_nodule():
    found = by_centre(
        detections((0.9, 0, ball(0, 0, 0)), (0.8, 0, ball(0, 0, 3)), (0.7, 1, ball(0, 0, 3))),
        nodules((0, 2.0, (0, 0, 0)), n_cases=2),
        nodules((0, 8.0, (0, 0, 0)), n_cases=2),
    )
    assert found.truth.tolist() == [0, IGNORED, FALSE_POSITIVE]


def test_a_finding_of_unknown_diameter_reaches_five_millimetres():
    unknown = nodules((0, -1.0, (0, 0, 0)))
    far = nodules((0, 4.0, (90, 0, 0)))
    found = by_centre(
        detections((0.9, 0, ball(0, 0, 4.9)), (0.8, 0, ball(0, 0, 5.1))), far, unknown
    )
    assert found.truth.tolist() == [IGNORED, FALSE_POSITIVE]


def test_the_hundred_and_first_candidate_takes_its_equals_with_it():
    scores = np.array([*np.linspace(1, 0.5, 98), 0.3, 0.3, 0.3, 0.2])
    case = np.append(np.zeros(len(scores), np.int64), 2)
    many = Detections(np.zeros((len(case), 6)), np.append(scores, 0.3), case)
    kept = surest(many)
    assert np.bincount(kept.case).tolist() == [98, 0, 1]
    assert kept.scores[kept.case == 0].min() == 0.5
    assert len(surest(many, per_case=101).scores) == 102
    assert len(surest(many, per_case=102).scores) == 103


def test_what_the_rule_needs_is_asked_for():
    found = detections((0.9, 0, ball(0, 0, 0)))
    cube = Truths(found.boxes, found.case, n_cases=1)
    with pytest.raises(SettingsError, match="needs diameter_mm"):
        match_centres(found, cube, spacing_mm=np.ones((1, 3)))
    with pytest.raises(DataError, match=r"needed: \(1, 3\)"):
        match_centres(found, nodules((0, 2.0, (0, 0, 0))), spacing_mm=np.ones((2, 3)))
    with pytest.raises(DataError, match="below 0 means unknown"):
        nodules((0, float("nan"), (0, 0, 0)))
    with pytest.raises(SettingsError, match="allowed: 1 or more"):
        surest(found, per_case=0)


# ---- said again


def luna16(found, truth, irrelevant):
    """Scores of the nodules that were found, of false positives; one scan, one nodule at a time."""
    hits, wrong = [], []
    for scan in range(truth.n_cases):
        candidates = [
            (float(score), (box[:3] + box[3:]) / 2)
            for score, case, box in zip(found.scores, found.case, found.boxes, strict=True)
            if case == scan
        ]
        if len(candidates) > 100:
            limit = sorted((score for score, _ in candidates), reverse=True)[100]
            candidates = [candidate for candidate in candidates if candidate[0] > limit]

        def inside(findings, row, centre):
            at = (findings.boxes[row, :3] + findings.boxes[row, 3:]) / 2
            diameter = findings.diameter_mm[row]
            return ((at - centre) ** 2).sum() < (5.0 if diameter < 0 else diameter / 2) ** 2

        mine = [np.flatnonzero(findings.case == scan) for findings in (truth, irrelevant)]
        for row in mine[0]:
            finders = [score for score, at in candidates if inside(truth, row, at)]
            if finders:
                hits.append(max(finders))
        for score, at in candidates:
            on_truth = any(inside(truth, row, at) for row in mine[0])
            if not on_truth and not any(inside(irrelevant, row, at) for row in mine[1]):
                wrong.append(score)
    return np.array(hits), np.array(wrong)


def random_scans(seed, n_scans=6, n_candidates=400):
    """Crowded scans: nodules overlap, and some scans have more than 100 candidates."""
    rng = np.random.default_rng(seed)

    def findings(n, low):
        rows = zip(
            rng.integers(0, n_scans, n).tolist(),
            rng.uniform(low, 20, n).tolist(),
            rng.uniform(0, 40, (n, 3)).tolist(),
            strict=True,
        )
        return nodules(*rows, n_cases=n_scans)

    truth, irrelevant = findings(25, 2.0), findings(8, -10.0)
    share = 0.5 ** np.arange(1, n_scans + 1)
    case = rng.choice(n_scans, n_candidates, p=share / share.sum())
    at = rng.uniform(0, 40, (n_candidates, 3))
    near = rng.integers(0, len(truth.case), 40)
    case[:40] = truth.case[near]
    at[:40] = truth.boxes[near, :3] + truth.diameter_mm[near, None] / 2 + rng.normal(0, 2, (40, 3))
    scores = rng.permutation(n_candidates) / n_candidates
    scores[:40] += 0.2  # some above all others; still no two are equal
    found = Detections(np.array([ball(*centre) for centre in at]), scores + at[:, 0] * 1e-9, case)
    return found, truth, irrelevant


@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_those_of_the_rule_said_slowly(seed):
    found, truth, irrelevant = random_scans(seed)
    hits, wrong = luna16(found, truth, irrelevant)
    ours = by_centre(surest(found), truth, irrelevant)
    assert sorted(ours.scores[ours.hit]) == sorted(hits)
    assert sorted(ours.scores[ours.false_positive]) == sorted(wrong)

    thresholds = np.unique(np.concatenate([hits, wrong]))[::-1]
    rate = [0.0, *((wrong >= t).sum() / truth.n_cases for t in thresholds)]
    sensitivity = [0.0, *((hits >= t).sum() / len(truth.case) for t in thresholds)]
    linear = np.interp(CPM_RATES, rate, sensitivity)
    assert 0.1 < linear.mean() < 0.95
    assert len(np.unique(linear)) > 1
    assert cpm(*froc(ours)) == pytest.approx(linear.mean(), abs=1e-12)
