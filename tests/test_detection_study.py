"""The rows of a detection study: what is averaged, paired, compared, and read where."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthoma.engine.evaluate import Findings
from synthoma.metrics.detection import (
    average_precision,
    froc,
    operating_point,
    sensitivity_at,
    threshold_at,
)
from synthoma.metrics.matching import Detections, Truths, match
from synthoma.studies.detection import (
    ORDER,
    PRIMARY,
    Cell,
    false_positive_rates,
    make_rows,
    metrics_of,
)

N = 24
PATIENTS = [f"p{i // 2:02}" for i in range(N)]
BOX = np.array([2.0, 2, 10, 10])


def findings(skill, seed):
    """A detector that finds the one box of each slice with this chance, and errs once a slice."""
    rng = np.random.default_rng(seed)
    hit = np.flatnonzero(rng.random(N) < skill)
    boxes = np.concatenate([np.tile(BOX, (len(hit), 1)), np.tile(BOX + 40, (N, 1))])
    scores = np.concatenate([rng.uniform(0.3, 1, len(hit)), rng.uniform(0, 0.7, N)])
    truths = Truths(np.tile(BOX, (N, 1)), np.arange(N), N)
    return Findings(
        Detections(boxes, scores, np.concatenate([hit, np.arange(N)])), truths, PATIENTS
    )


def cells(setup, skill, pairs, n_real=10, n_synthetic=0):
    return [
        Cell(
            Path(setup),
            {"draw": draw, "seed": seed, "n_real": n_real + 2 * draw, "n_synthetic": n_synthetic},
            findings(skill, [draw, seed]),
        )
        for draw, seed in pairs
    ]


PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def rows():
    study = {
        "real": cells("real", 0.4, PAIRS),
        "classic": cells("classic", 0.5, PAIRS),
        "paste": cells("paste", 0.6, PAIRS, n_synthetic=20),
        "gan": cells("gan", 0.95, PAIRS, n_synthetic=30),
    }
    return {r.setup: r for r in make_rows(study, baseline="classic", also=["paste"], seed=0)}


def test_every_setup_is_compared_with_the_baseline_and_those_below_paste_with_it_too(rows):
    compared = {name: [d.to for d in row.differences] for name, row in rows.items()}
    assert compared == {
        "real": ["classic"], "classic": [], "paste": ["classic"], "gan": ["classic", "paste"],
    }  # fmt: skip


def test_columns_begin_with_the_primary_metric(rows):
    assert ORDER[0] == PRIMARY
    assert all(tuple(row.metrics) == ORDER for row in rows.values())


def test_images_are_counted_as_the_mean_over_draws_and_trainings_over_all(rows):
    assert (rows["gan"].n_real, rows["gan"].n_synthetic) == (11, 30)
    assert {(row.draws, row.seeds) for row in rows.values()} == {(2, 4)}


def test_each_training_differs_from_the_one_of_its_draw_and_seed(rows):
    """Their mean is the difference, for every metric is a mean over trainings."""
    wanted = [
        average_precision(match(a.detections, a.truths))
        - average_precision(match(b.detections, b.truths))
        for a, b in ((findings(0.95, [*p]), findings(0.5, [*p])) for p in PAIRS)
    ]
    (to_classic, _) = rows["gan"].differences
    assert to_classic.each == pytest.approx(wanted)
    assert to_classic.metrics[PRIMARY].value == pytest.approx(np.mean(wanted))


def test_a_great_gain_is_significant_after_holm_and_no_gain_is_not(rows):
    (gain, _) = rows["gan"].differences
    (none,) = rows["paste"].differences
    assert gain.metrics[PRIMARY].p == pytest.approx(2 / 2001)
    assert gain.p_holm == pytest.approx(3 * 2 / 2001)
    assert none.p_holm is not None
    assert none.p_holm >= none.metrics[PRIMARY].p


def test_trainings_of_other_draws_or_seeds_are_never_paired():
    study = {"classic": cells("classic", 0.5, PAIRS), "gan": cells("gan", 0.5, PAIRS[::-1])}
    with pytest.raises(AssertionError, match="'gan' has"):
        make_rows(study, baseline="classic", seed=0)
    with pytest.raises(AssertionError, match="'gan' has"):
        make_rows({**study, "gan": study["gan"][::-1][:2]}, baseline="classic", seed=0)


def test_without_the_baseline_nothing_is_compared_with_it_or_read_at_its_false_positives():
    (row,) = make_rows({"real": cells("real", 0.5, PAIRS[:1])}, baseline="classic", seed=0)
    assert row.differences == ()
    assert set(ORDER) - set(row.metrics) == {"sensitivity_matched_iou25"}


def test_the_baselines_sensitivity_at_its_own_false_positives_is_its_sensitivity(rows):
    own = rows["classic"].metrics
    assert own["sensitivity_matched_iou25"].value >= own["sensitivity_iou25"].value
    runs = [findings(0.5, 0)]
    metrics = metrics_of(runs, baseline_rates=false_positive_rates(runs))
    # every score here is above the paper's threshold
    assert metrics["sensitivity_matched_iou25"].value() == metrics["sensitivity_iou25"].value()


def test_matched_sensitivity_is_read_run_by_run_at_that_runs_rate():
    runs = [findings(0.9, 1), findings(0.9, 2)]
    rates = [0.0, 0.5]
    read = []
    for run, rate in zip(runs, rates, strict=True):
        curve = froc(match(run.detections, run.truths, iou_threshold=0.25))
        read.append(sensitivity_at(np.array([rate]), *curve)[0])
    assert read[0] < read[1]
    found = metrics_of(runs, baseline_rates=rates)["sensitivity_matched_iou25"].value()
    assert found == pytest.approx(np.mean(read))


@given(st.integers(0, 10_000), st.floats(0, 3), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_threshold_for_a_rate_is_where_the_froc_curve_is_read(seed, rate, levels):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    near = rng.random(n) < 0.5
    boxes = np.where(near[:, None], BOX, BOX + 40)
    found = Detections(boxes, rng.integers(0, levels, n) / 7, rng.integers(0, N, n))  # many ties
    matched = match(found, Truths(np.tile(BOX, (N, 1)), np.arange(N), N))
    point = operating_point(matched, threshold=threshold_at(matched, rate))
    assert point.false_positives_per_case <= rate
    assert point.sensitivity == pytest.approx(sensitivity_at(np.array([rate]), *froc(matched))[0])


def test_a_detector_whose_surest_find_is_too_wrong_accepts_nothing():
    found = Detections(BOX[None] + 40, np.array([0.9]), np.array([0]))
    matched = match(found, Truths(BOX[None], np.array([0]), 1))
    assert threshold_at(matched, 0.5) == float("inf")
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    assert threshold_at(match(nothing, Truths(BOX[None], np.array([0]), 1)), 1.0) == float("inf")
