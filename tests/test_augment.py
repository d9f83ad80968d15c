"""The whole question on phantoms: the table that comes out, resuming, and what is refused."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from synthoma.data.dataset import Dataset, resplit
from synthoma.engine.evaluate import Findings
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.metrics.detection import Detections, Truths
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.report.table import read_table
from synthoma.studies.augment import begin, go_on, settings_for
from synthoma.studies.detection import adherence, judge_run, top_hits

TINY = {
    "generator": {
        "side_px": 32,
        "widest": 8,
        "base": 64,
        "noise_dim": 8,
        "batch_size": 4,
        "stable_images": 8,
        "fade_images": 8,
    },
    "generator_train": {"steps": 20},
    "detector": {"side_px": 64, "test_side_px": 64, "width": 0.125},
    "detector_train": {"steps": 4, "validate_every": 2, "keep_best": "sensitivity_iou50"},
    "study": {"seeds": 2},
}


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment") / "brains"
    return write_brains(folder, BrainConfig(side_px=32, patients=12, slices_per_patient=3), seed=0)


def study_of(dataset, overrides=TINY):
    return settings_for(dataset.folder, scale="smoke", also=[], seed=0, overrides=overrides)


@pytest.fixture(scope="module")
def finished(brains):
    out = brains.folder.parent / "study"
    begin(out, study_of(brains))
    interrupted = 0
    while not go_on(out, minutes=0.03, device="cpu"):  # some two seconds at a time
        interrupted += 1
        assert interrupted < 60
    return out, interrupted


def test_the_table_has_a_row_a_setup_with_intervals_and_paired_differences(finished, brains):
    out, _ = finished
    table = read_table(out / "table.json")
    assert (table.study, table.task) == ("augment", "detect")
    n = len(brains.split("train"))
    rows = [(row.setup, row.n_real, row.n_synthetic, row.seeds) for row in table.rows]
    assert rows == [
        ("real", n, 0, 2),
        ("real + classic", n, 0, 2),
        ("real + classic + synthetic 1:1", n, n, 2),
        ("real + classic + synthetic 2:1", n, 2 * n, 2),
    ]
    for row in table.rows:
        for metric in ("sensitivity_iou25", "sensitivity_iou50", "ap_iou50"):
            assert metric in row.metrics or metric in row.undefined
        false = row.metrics["fp_per_slice_iou25"]
        assert false.low <= false.value <= false.high
        assert bool(row.differences) == (row.setup != "real + classic")
    assert table.adherence is not None
    raw = json.loads((out / "table.json").read_text())
    assert {"study", "task", "patients_from", "rows", "adherence", "published"} <= set(raw)


def test_the_report_is_one_page_that_needs_nothing_beside_itself(finished):
    out, _ = finished
    page = (out / "report.html").read_text()
    assert "real + classic + synthetic 2:1" in page
    assert 'src="http' not in page
    assert (out / "report.md").read_text().startswith("# Does synthetic data help?")


def test_a_study_that_ran_out_of_time_goes_on_and_trains_nothing_twice(finished):
    out, interrupted = finished
    assert interrupted >= 1
    cells = sorted(path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json"))
    assert len(cells) == 8
    assert go_on(out, device="cpu")
    assert sorted(path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")) == cells


def test_every_cell_of_a_seed_starts_alike_and_makes_the_same_number_of_steps(finished):
    out, _ = finished
    runs = [json.loads(path.read_text()) for path in out.glob("cells/*/run.json")]
    assert {run["train"]["steps"] for run in runs} == {4}
    assert {run["system"]["batch_size"] for run in runs} == {8}
    assert sorted(run["seed"] for run in runs) == [0] * 4 + [1] * 4


def test_the_generator_saw_training_patients_alone(finished, brains):
    out, _ = finished
    seen = json.loads((out / "generator" / "run.json").read_text())["trained_on"]
    assert seen
    assert set(seen) <= set(brains.splits["train"])
    assert len(Dataset.open(out / "synthetic")) == 2 * len(brains.split("train"))


def test_a_folder_is_a_study_once(finished, brains, tmp_path):
    out, _ = finished
    with pytest.raises(SettingsError, match="--resume"):
        begin(out, study_of(brains))
    with pytest.raises(DataError, match="not a study folder"):
        go_on(tmp_path)


def test_settings_that_do_not_exist_are_named(brains):
    with pytest.raises(SettingsError, match="generator_train"):
        study_of(brains, {"gan": {"side_px": 16}})
    with pytest.raises(SettingsError, match=r"detector.wide"):
        study_of(brains, {"detector": {"wide": 16}})
    with pytest.raises(SettingsError, match="ratios, seeds"):
        study_of(brains, {"study": {"dataset": "elsewhere"}})


def test_real_slices_sharper_than_synthetic_ones_are_refused(brains):
    with pytest.raises(ValidationError, match="resolution would tell"):
        study_of(brains, TINY | {"prepare": {"side_px": 128}})


@pytest.mark.parametrize("ratios", [[], [0.0], [1.0, 1.0]])
def test_ratios_are_some_positive_and_different(brains, ratios):
    with pytest.raises(SettingsError, match=r"study\."):
        study_of(brains, TINY | {"study": {"ratios": ratios}})


def test_a_test_split_without_a_box_ends_the_study_before_anything_is_trained(tmp_path):
    config = BrainConfig(side_px=32, patients=6, slices_per_patient=2, lesions_max=0)
    normal = write_brains(tmp_path / "normal", config, seed=0)
    begin(tmp_path / "study", study_of(normal))
    with pytest.raises(DataError, match="no box to find"):
        go_on(tmp_path / "study")
    assert not (tmp_path / "study" / "generator").exists()


def test_every_row_has_the_anchors_of_the_real_slices(finished):
    out, _ = finished
    runs = [json.loads(path.read_text()) for path in out.glob("cells/*/run.json")]
    assert len({json.dumps(run["system"]["anchors"]) for run in runs}) == 1


def test_a_detector_is_not_judged_on_patients_that_it_saw(finished, brains, tmp_path):
    out, _ = finished
    cell = out / "cells" / "real-seed0"
    assert judge_run(cell, out / "data", split="test", seed=0)
    splits = brains.splits
    swapped = {**splits, "train": splits["test"], "test": splits["train"]}
    resplit(Dataset.open(out / "data"), tmp_path / "swapped", swapped)
    with pytest.raises(LeakError, match="test patient"):
        judge_run(cell, tmp_path / "swapped", split="test", seed=0)


def findings(boxes, scores, case, truths, truth_case, n):
    return Findings(
        Detections(
            np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, float), np.array(case)
        ),
        Truths(np.array(truths, np.float32).reshape(-1, 4), np.array(truth_case), n),
        [f"p{i}" for i in range(n)],
    )


LEFT, RIGHT = [0, 0, 4, 4], [8, 8, 12, 12]


def test_only_the_top_scoring_box_of_an_image_counts_for_adherence():
    found = findings([LEFT, RIGHT, RIGHT], [0.9, 0.5, 0.8], [0, 0, 1], [RIGHT, RIGHT], [0, 1], 3)
    assert top_hits(found.detections, found.truths, 0.25).tolist() == [0, 1, 0]


def test_images_that_obey_are_told_from_chance():
    n = 20
    boxes = [LEFT if i % 2 else RIGHT for i in range(n)]
    obeyed = findings(boxes, [0.5] * n, range(n), boxes, range(n), n)
    ignored = findings([LEFT] * n, [0.5] * n, range(n), boxes, range(n), n)
    (good, _), (bad, _) = (adherence(found, obeyed, seed=0) for found in (obeyed, ignored))
    assert good["ordered"].value == 1
    assert good["real"].value == 1
    assert bad["ordered"].value == 0.5
    assert good["shuffled"].value in (0, 1)  # every order is one of two, turned by one number
