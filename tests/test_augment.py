"""The whole question on phantoms: the table that comes out, resuming, and what is refused."""

import json

import numpy as np
import pytest

from synthoma.data.dataset import Dataset, resplit
from synthoma.engine.evaluate import Findings, top_hits
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.metrics.matching import Detections, Truths
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.report.table import read_table
from synthoma.studies.augment import Study, settings_for
from synthoma.studies.detection import adherence, judge_run
from synthoma.studies.run import begin, go_on
from synthoma.studies.work import Work
from synthoma.synthesis.curate import Decision, Decisions, gate

TINY = {
    "hybrid": {
        "side_px": 32,
        "widest": 8,
        "base": 64,
        "noise_dim": 8,
        "batch_size": 4,
        "stable_images": 8,
        "fade_images": 8,
        "projected_from": 15,
        "feature_side_px": 32,
        "strides": (4, 8),
        "head_width": 8,
        "head_start": 1,
    },
    "hybrid_train": {"steps": 20},
    "detector": {"side_px": 64, "test_side_px": 64, "width": 0.125},
    "detector_train": {"steps": 4, "validate_every": 2, "keep_best": "sensitivity_iou50"},
    "study": {"seeds": 2, "least_found": 0},
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
        ("real + classic + cut-and-paste 1:1", n, n, 2),
        ("real + classic + hybrid 1:1", n, n, 2),
        ("real + classic + hybrid 2:1", n, 2 * n, 2),
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
    assert "real + classic + hybrid 2:1" in page
    assert 'src="http' not in page
    assert (out / "report.md").read_text().startswith("# Does synthetic data help?")


def test_a_study_that_ran_out_of_time_goes_on_and_trains_nothing_twice(finished):
    out, interrupted = finished
    assert interrupted >= 1
    cells = sorted(path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json"))
    assert len(cells) == 10
    assert go_on(out, device="cpu")
    assert sorted(path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")) == cells


def test_every_cell_of_a_seed_starts_alike_and_makes_the_same_number_of_steps(finished):
    out, _ = finished
    runs = [json.loads(path.read_text()) for path in out.glob("cells/*/run.json")]
    assert {run["train"]["steps"] for run in runs} == {4}
    assert {run["system"]["batch_size"] for run in runs} == {8}
    assert sorted(run["seed"] for run in runs) == [0] * 5 + [1] * 5


def test_the_generator_saw_training_patients_alone(finished, brains):
    out, _ = finished
    seen = json.loads((out / "generators" / "hybrid-draw0" / "run.json").read_text())["trained_on"]
    assert seen
    assert set(seen) <= set(brains.splits["train"])
    assert len(Dataset.open(out / "sets" / "hybrid-draw0")) >= 2 * len(brains.split("train"))


def test_a_folder_is_a_study_once(finished, brains, tmp_path):
    out, _ = finished
    with pytest.raises(SettingsError, match="--resume"):
        begin(out, study_of(brains))
    with pytest.raises(DataError, match="not a study folder"):
        go_on(tmp_path)


def test_settings_that_do_not_exist_are_named(brains):
    with pytest.raises(SettingsError, match="hybrid_train"):
        study_of(brains, {"gan": {"side_px": 16}})
    with pytest.raises(SettingsError, match=r"detector.wide"):
        study_of(brains, {"detector": {"wide": 16}})
    with pytest.raises(SettingsError, match="ratios, without"):
        study_of(brains, {"study": {"dataset": "elsewhere"}})


def test_real_slices_sharper_than_synthetic_ones_are_refused(brains):
    with pytest.raises(SettingsError, match="resolution would tell"):
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
    assert not (tmp_path / "study" / "generators").exists()


def test_every_row_has_the_anchors_of_the_real_slices(finished):
    out, _ = finished
    runs = [json.loads(path.read_text()) for path in out.glob("cells/*/run.json")]
    assert len({json.dumps(run["system"]["anchors"]) for run in runs}) == 1


def test_a_detector_is_not_judged_on_patients_that_it_saw(finished, brains, tmp_path):
    out, _ = finished
    cell = out / "cells" / "real-draw0-seed0"
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


@pytest.fixture(scope="module")
def low_data(brains):
    """Two draws of few patients, with every kind of set-up; a second process is at one part."""
    overrides = {
        **dict.fromkeys(("hybrid", "own"), TINY["hybrid"]),
        **{f"{name}_train": TINY["hybrid_train"] for name in ("hybrid", "own")},
        **{
            key: {"side_px": 32, "patch_px": 16, "batch_size": 4}
            for key in ("paint", "paint-others")
        },
        **{key: {"steps": 3} for key in ("paint_train", "paint-others_train")},
        "detector": TINY["detector"],
        "detector_train": {**TINY["detector_train"], "steps": 2},
        "study": {"least_found": 0, "ratios": [1.0], "variety": 2},
    }
    study = settings_for(
        brains.folder, scale="small", also=[], seed=0, slices=4, draws=2, overrides=overrides
    )
    out = brains.folder.parent / "low-data"
    begin(out, study)
    assert go_on(out, device="cpu")
    return out


@pytest.mark.slow
def test_every_set_up_of_a_draw_sees_the_same_real_slices(low_data):
    saw = {}
    for path in low_data.glob("cells/*/run.json"):
        run = json.loads(path.read_text())
        saw.setdefault(path.parent.name.split("-draw")[1][0], []).append(
            (path.parent.name, set(run["data"]["patients"]), run["n_real"])
        )
    assert sorted(saw) == ["0", "1"]
    for runs in saw.values():
        alone = {frozenset(patients) for name, patients, _ in runs if "other" not in name}
        assert len(alone) == 1
        more = [patients for name, patients, _ in runs if "other" in name]
        assert all(patients > next(iter(alone)) for patients in more)
    first, second = (next(p for n, p, _ in saw[d] if n.startswith("real-draw")) for d in "01")
    assert not first & second


@pytest.mark.slow
def test_generators_of_others_saw_no_patient_of_any_draw(low_data):
    def seen_by(name):
        return set(
            json.loads((low_data / "generators" / name / "run.json").read_text())["trained_on"]
        )

    seen = seen_by("hybrid")
    assert seen == seen_by("paint-others")
    of_draws = [path.name for path in (low_data / "generators").glob("*-draw?")]
    assert {"own-draw0", "paint-draw0"} <= set(of_draws)  # others, where draw 0 was not refused
    for name in of_draws:
        assert seen_by(name)
        assert not seen & seen_by(name)


@pytest.mark.slow
def test_low_data_rows_average_over_draws_and_show_each(low_data):
    table = read_table(low_data / "table.json")
    assert {row.draws for row in table.rows} == {2}
    for row in table.rows:
        for difference in row.differences:
            assert len(difference.each) == 2
    names = [row.setup for row in (*table.rows, *table.refused)]  # so short a training finds little
    assert any("paint" in name for name in names)
    assert any("first, then real" in name for name in names)
    assert "Synthetic sets" in (low_data / "report.md").read_text()


@pytest.mark.slow
def test_nothing_is_trained_for_a_set_that_an_earlier_draw_refused(low_data):
    work = Work(low_data, Study.model_validate(study_json(low_data)), "", "cpu", None)
    path = work.judged("own", 0) / "verdict.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"admitted": False, "reason": "16 %"}))
        assert work.wants("own", 0)
        assert not work.wants("own", 1)
        assert work.wants("cut-and-paste", 1)
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_fewer_images_than_wanted_are_dealt_more_often_until_they_are_fewer_than_asked_for(
    low_data,
):
    work = Work(low_data, Study.model_validate(study_json(low_data)), "", "cpu", None)
    setup = next(s for s in work.study.setups if [p.set for p in s.parts] == ["own"])
    n = len(work.slices(0))
    path = work.judged("own", 0) / "verdict.json"
    before = path.read_text()
    try:
        for passed, variety, runs in ((2 * n, 2, True), (2 * n - 1, 1, True), (n - 1, 0, False)):
            path.write_text(json.dumps(json.loads(before) | {"admitted": True, "passed": passed}))
            assert work.variety(setup, 0) == variety
            assert (work.cells.refused(setup, 0) is None) == runs
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_a_part_that_another_process_is_at_is_left_to_it(low_data, monkeypatch):
    work = Work(low_data, Study.model_validate(study_json(low_data)), "", "cpu", 0.0)
    with work.tasks.claimed("prepare") as mine:
        assert mine
        assert not work.run()  # it waits for the other process until its minutes are up


def study_json(out):
    kept = json.loads((out / "study.json").read_text())
    kept.pop("command")
    return kept


def test_a_set_whose_lesions_are_not_found_is_refused_with_the_reason(finished, tmp_path):
    out, _ = finished
    work = Work(out, Study.model_validate(study_json(out)), "", "cpu", None)
    setup = next(s for s in work.study.setups if "hybrid" in s.name)
    path = work.judged("hybrid", 0) / "verdict.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"admitted": False, "reason": "16 %"}))
        assert work.cells.refused(setup, 0) == "hybrid: 16 %"
        cells, refused = work.cells.finished()
        assert setup.name in refused
        assert setup.name not in cells
    finally:
        path.write_text(before)


def test_low_data_without_other_patients_is_refused_before_anything_is_trained(brains, tmp_path):
    overrides = dict.fromkeys(("hybrid", "own"), TINY["hybrid"])
    overrides |= {f"{name}_train": TINY["hybrid_train"] for name in ("hybrid", "own")}
    overrides |= {key: {"side_px": 32} for key in ("paint", "paint-others")}
    study = settings_for(
        brains.folder, scale="small", also=[], seed=0, slices=25, draws=1, overrides=overrides
    )
    begin(tmp_path / "study", study)
    with pytest.raises(DataError, match="take every training patient"):
        go_on(tmp_path / "study")
    assert not (tmp_path / "study" / "generators").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hybrid_train": {"steps": 14}}, "second part begins at step 15"),
        (
            {"hybrid_train": {"steps": 16}, "hybrid": {**TINY["hybrid"], "stable_images": 999}},
            "grown to 4 of 32",
        ),
        ({"study": {"least_found": 2}}, "least_found"),
    ],
)
def test_settings_that_would_fail_after_hours_are_refused_at_once(brains, wrong, said):
    with pytest.raises(SettingsError, match=said):
        study_of(brains, TINY | wrong)


def test_draws_of_everything_and_unused_slices_are_refused(brains):
    with pytest.raises(SettingsError, match="one and the same"):
        settings_for(brains.folder, scale="smoke", also=[], seed=0, draws=2, overrides=TINY)
    with pytest.raises(SettingsError, match="leave out --also"):
        settings_for(brains.folder, scale="smoke", also=[brains.folder], seed=0, overrides=TINY)


def test_a_study_of_another_version_says_so(finished, tmp_path):
    out, _ = finished
    (tmp_path / "old").mkdir()
    kept = json.loads((out / "study.json").read_text())
    del kept["generators"]
    (tmp_path / "old" / "study.json").write_text(json.dumps(kept))
    with pytest.raises(DataError, match="another version"):
        go_on(tmp_path / "old")


def test_a_detector_that_finds_nothing_admits_nothing():
    nothing = Decisions((Decision("a", keep=False, rule="detector"),))
    assert not gate(nothing, nothing).admitted
    assert gate(nothing, nothing, least=0).admitted


def test_the_record_of_curation_names_the_detector_and_whom_it_saw(finished, brains):
    out, _ = finished
    lines = (out / "judged" / "hybrid-draw0" / "decisions.csv").read_text().splitlines()
    assert lines[0].startswith("case_id,keep,")
    said = "# the choice depends on patient "
    saw = {line.rstrip(",").removeprefix(said) for line in lines if line.startswith(said)}
    assert saw
    assert saw <= set(brains.splits["train"])
    run = json.loads((out / "cells/real-classic-draw0-seed0/run.json").read_text())
    assert f"detector {run['id']} at IoU 0.25" in lines[1]


def test_a_report_of_the_same_cells_is_made_once(finished):
    out, _ = finished
    before = (out / "table.json").stat().st_mtime_ns
    assert go_on(out, device="cpu")
    assert (out / "table.json").stat().st_mtime_ns == before
