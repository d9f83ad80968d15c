"""The table of Han's thesis, chapter 6: its rows and numbers, who is seen, what comes out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from synthoma.data.dataset import Dataset
from synthoma.engine.evaluate import Findings, truths_of
from synthoma.errors import DataError, SettingsError
from synthoma.metrics.matching import Detections
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.chest import ChestConfig
from synthoma.phantoms.folder import write_brains, write_chests
from synthoma.report.table import read_table
from synthoma.studies.augment import BASELINE
from synthoma.studies.detect3d import ScanStudy, rows
from synthoma.studies.detect3d import settings_for as augmented
from synthoma.studies.detect3d_work import ScanWork
from synthoma.studies.detection3d import metrics_of
from synthoma.studies.drawn_nodules import density_of, judge_nodules, painted_in
from synthoma.studies.mcgan_nodules import PUBLISHED, TABLE_5, settings_for
from synthoma.studies.run import begin, go_on

THESIS = Path(__file__).parent.parent / "../shared/papers/000_7bc99519eb663d05.txt"
CHESTS = {
    "slices": 32,
    "rows": 32,
    "columns": 32,
    "spacing_mm": [4.0, 4.0, 4.0],
    "patients": 12,
    "diameter_least_mm": 10.0,
}
GAN = {"side_px": 16, "width": 2, "batch_size": 2}
TINY = {
    "mcgan": GAN,
    "mcgan_train": {"steps": 2},
    "mcgan-l1": GAN,
    "mcgan-l1_train": {"steps": 2},
    "detector": {"window": {"space": [16, 16, 16]}, "width": 2, "maps": 4, "hidden": 8, "bins": 2},
    "detector_train": {"steps": 2, "checkpoint_every": 2},
}


def study_of(out, *, dataset=None, scale="smoke", overrides=TINY, also=()):
    told = overrides if dataset is not None else overrides | {"phantoms": CHESTS}
    return settings_for(out, dataset=dataset, also=list(also), scale=scale, seed=0, overrides=told)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study of the paper's seven rows, interrupted on its way."""
    out = tmp_path_factory.mktemp("nodules") / "study"
    study = study_of(out)
    begin(out, study)
    assert not go_on(out, minutes=0.0, device="cpu")
    assert go_on(out, device="cpu")
    return ScanWork(out, study, "", "cpu", None)


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    config = ChestConfig.model_validate(CHESTS | {"nodules_least": 1, "patients": 18})
    return write_chests(tmp_path_factory.mktemp("chests") / "scans", config, seed=1)


# ---- the paper


def test_the_seven_rows_stand_in_the_order_of_the_paper():
    for row, label in zip(rows((1, 2, 3)), TABLE_5, strict=True):
        assert (label.startswith("+ ")) == bool(row.set)
        assert ("L1" in label) == (row.set == "mcgan-l1")
        assert not row.set or f"+ {row.ratio:g}x" in label


def test_the_published_numbers_are_those_of_the_thesis():
    if not THESIS.exists():
        pytest.skip("the thesis is not in ../shared/papers")
    text = THESIS.read_text().replace("×", "x").replace("`1", "L1")
    printed = dict(re.findall(r"^(.*?(?:images|DA|L1)) ((?:\d\d\.\d ?){7})$", text, re.MULTILINE))
    wanted = {name: " ".join(f"{v:.1f}" for v in values) for name, values in TABLE_5.items()}
    assert {name: printed[name].strip() for name in wanted} == wanted
    assert len(PUBLISHED) == 7
    assert PUBLISHED[0].metrics["cpm"] == 0.518


@pytest.mark.parametrize("scale", ["paper", "small", "smoke"])
def test_both_generators_differ_in_the_weight_of_l1_alone(tmp_path, scale):
    study = study_of(tmp_path, scale=scale, overrides={})
    plain, with_l1 = study.generators["mcgan"].system, study.generators["mcgan-l1"].system
    assert (plain["distance_weight"], with_l1["distance_weight"]) == (0, 100)
    assert plain | {"distance_weight": 100} == with_l1
    assert study.generators["mcgan"].train == study.generators["mcgan-l1"].train


def test_at_paper_scale_it_is_the_paper(tmp_path):
    study = settings_for(tmp_path / "s", dataset=None, also=[], scale="paper", seed=0, overrides={})
    assert study.generators["mcgan"].train.steps == 6_000_000
    assert study.generators["mcgan"].system["side_px"] == 64
    assert study.detector.system["window"]["space"] == [160, 176, 224]
    assert (study.seeds, study.least_found) == (3, 0)
    assert round(0.7 * study.phantoms.patients) == 632


# ---- what comes out


def test_an_interrupted_study_ends_with_the_whole_table(finished):
    table = read_table(finished.out / "table.json")
    assert [row.setup for row in table.rows] == [row.setup for row in PUBLISHED]
    assert table.published == PUBLISHED
    n = len(finished.real.split("train"))
    assert [row.n_real for row in table.rows] == [n] * 7
    assert [row.n_synthetic for row in table.rows] == [0, n, 2 * n, 3 * n, n, 2 * n, 3 * n]
    page = (finished.out / "report.html").read_text()
    assert "Synthetic nodules (mcgan-l1): axial, coronal, sagittal" in page
    assert "phantoms made from nothing" in page
    assert "published" in page.lower()


def test_nothing_is_made_twice(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.out.rglob("*") if p.is_file()}
    assert go_on(finished.out, device="cpu")
    changed = {p for p, at in before.items() if p.stat().st_mtime_ns != at}
    assert changed <= {finished.out / "seconds.json"} | set((finished.out / ".locks").iterdir())


def test_no_generator_or_detector_saw_a_patient_outside_of_training(finished):
    train = set(finished.real.splits["train"])
    runs = [finished.generator(name, 0) for name in ("mcgan", "mcgan-l1")]
    runs += [finished.cells.folder(setup.name, 0, 0) for setup in finished.study.setups]
    for run in runs:
        assert set(json.loads((run / "run.json").read_text())["trained_on"]) <= train


def test_every_row_has_the_anchors_of_the_real_scans(finished):
    told = [
        json.loads((finished.cells.folder(s.name, 0, 0) / "run.json").read_text())["system"]
        for s in finished.study.setups
    ]
    assert told[0]["anchors"]
    assert all(own == told[0] for own in told)


# ---- what the judge sees


def test_drawn_boxes_are_the_last_of_a_scan(finished):
    drawn = Dataset.open(finished.set_of("mcgan", 0))
    counted = painted_in(drawn)
    assert len(counted) == sum(len(drawn.boxes(i)) for i in range(len(drawn)))
    assert counted.sum() == sum(len(case.origin.conditions["painted"]) for case in drawn)


def test_density_tells_solid_nodules_from_ground_glass(tmp_path):
    config = ChestConfig(
        slices=40,
        rows=44,
        columns=50,
        spacing_mm=(4.0, 4.0, 4.0),
        patients=8,
        nodules_least=4,
        diameter_least_mm=16.0,
    )
    found = density_of(write_chests(tmp_path / "scans", config, seed=3))
    assert found["solid"]["mean"] > found["ground-glass"]["mean"] + 150


def test_a_set_whose_nodules_are_not_found_is_refused(finished, monkeypatch):
    """A detector that finds every real nodule and no drawn one."""
    drawn, held_out = Dataset.open(finished.set_of("mcgan", 0)), finished.real.split("train")

    def finds(run, dataset, *, device):
        boxes, case = [], []
        for i in range(len(dataset) if "phantoms" in str(dataset.folder) else 0):
            boxes += list(dataset.boxes(i))
            case += [i] * len(dataset.boxes(i))
        found = np.array(boxes, np.float32).reshape(-1, 6)
        zeros = np.zeros(len(case), np.int64)
        detections = Detections(found, np.ones(len(case)), np.array(case, np.int64), zeros)
        return Findings(detections, truths_of(dataset), dataset.patient_ids)

    monkeypatch.setattr("synthoma.studies.drawn_nodules.find_in", finds)
    facts = judge_nodules(Path("run"), drawn, held_out, least=0.5, device="cpu")
    assert (facts["admitted"], facts["found"]["all nodules"]) == (False, 0)
    assert facts["real_found"]["all nodules"] == 1
    assert "0.00 of drawn nodules are found, 1.00 of real ones" in facts["reason"]
    assert judge_nodules(Path("run"), drawn, held_out, least=0, device="cpu")["admitted"]


def test_the_metric_of_several_trainings_is_their_mean(finished):
    test = finished.real.split("test")
    truths = truths_of(test)
    nothing = Detections(
        np.zeros((0, 6), np.float32), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    )
    everything = Detections(
        truths.boxes, np.ones(len(truths.case)), truths.case, np.zeros(len(truths.case), np.int64)
    )
    runs = [Findings(found, truths, test.patient_ids) for found in (nothing, everything)]
    values = {name: metric.value() for name, metric in metrics_of(runs, test).items()}
    assert values["cpm"] == pytest.approx(0.5)
    assert values["cpm_luna16"] == pytest.approx(0.5)


# ---- data of one's own


def test_augment_takes_scans_of_ones_own_with_little_data(chests, tmp_path):
    out = tmp_path / "study"
    told = {part: own for part, own in TINY.items() if not part.startswith("mcgan-l1")}
    told["study"] = {"without": ["mcgan-l1"], "least_found": 0}
    study = augmented(chests.folder, scale="smoke", seed=0, slices=5, draws=2, overrides=told)
    begin(out, study)
    assert go_on(out, device="cpu")
    table = read_table(out / "table.json")
    assert [row.setup for row in table.rows] == [BASELINE, f"{BASELINE} + mcgan 1:1"]
    assert {(row.draws, row.seeds, row.n_real) for row in table.rows} == {(2, 2, 5)}
    first, second = (
        set(json.loads((out / f"generators/mcgan-draw{d}/run.json").read_text())["trained_on"])
        for d in (0, 1)
    )
    assert not first & second


def test_the_command_line_knows_the_task(tmp_path):
    words = ["augment", str(tmp_path), "--task", "detect4d", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "synthoma.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "--task detect4d; allowed: detect, classify, detect3d" in done.stderr


def test_slices_are_refused(tmp_path):
    brains = write_brains(
        tmp_path / "brains", BrainConfig(side_px=32, patients=10, slices_per_patient=2), seed=0
    )
    out = tmp_path / "study"
    begin(out, augmented(brains.folder, scale="smoke", seed=0, overrides=TINY))
    with pytest.raises(DataError, match="slices; --task detect3d is of volumes"):
        go_on(out, device="cpu")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"study": {"ratios": [1]}}, "the rows are the paper's"),
        ({"prepare": {"side_px": 64}}, r"no settings \['prepare'\]"),
        ({"mcgan": {"side_px": 16}}, "generators see cubes of one side"),
        ({"phantoms": {"patients": 0}}, "phantoms.patients"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, overrides, said):
    with pytest.raises(SettingsError, match=said):
        settings_for(tmp_path, dataset=None, also=[], scale="small", seed=0, overrides=overrides)


def test_further_scans_and_unknown_scales_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="--also"):
        study_of(tmp_path, also=[tmp_path])
    with pytest.raises(SettingsError, match="no scale 'large'"):
        study_of(tmp_path, scale="large")


def test_a_row_names_a_generator_that_there_is(tmp_path):
    study = study_of(tmp_path)
    wrong = study.model_dump() | {"setups": rows((1,), ("pggan",))}
    with pytest.raises(ValueError, match="wants scans of 'pggan', no generator here"):
        ScanStudy.model_validate(wrong)
