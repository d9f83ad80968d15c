"""The table of Han et al. 2019: its rows and numbers, whose slices are seen, what comes out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.report.table import read_table
from synthoma.studies import PAPERS
from synthoma.studies.cpggan_metastases import (
    ADDED,
    PUBLISHED,
    REAL,
    TABLE_1,
    rows,
    settings_for,
)
from synthoma.studies.run import begin, go_on
from synthoma.studies.work import Work

ROOT = Path(__file__).parent.parent
GAN = {
    "side_px": 32,
    "widest": 8,
    "base": 64,
    "noise_dim": 8,
    "batch_size": 4,
    "stable_images": 8,
    "fade_images": 8,
}
TINY = {
    "cpggan": GAN,
    "cpggan_train": {"steps": 20},
    "pix2pix": {"side_px": 32, "width": 4, "batch_size": 2},
    "pix2pix_train": {"steps": 3},
    "detector": {"side_px": 64, "test_side_px": 64, "width": 0.125},
    "detector_train": {"steps": 2},
    "phantoms": {"patients": 14, "slices_per_patient": 3},
    "normal_phantoms": {"patients": 6, "slices_per_patient": 2},
}


def study_of(out, *, dataset=None, also=(), scale="smoke", overrides=TINY):
    if dataset is not None:
        overrides = {k: v for k, v in overrides.items() if not k.endswith("phantoms")}
    return settings_for(
        out, dataset=dataset, also=list(also), scale=scale, seed=0, overrides=overrides
    )


def brains(folder, **fields):
    return write_brains(folder, BrainConfig(side_px=32, slices_per_patient=2, **fields), seed=0)


def test_the_ten_rows_stand_in_the_order_of_the_paper():
    sets = [[part.set for part in row.parts] for row in rows()]
    assert sets == [[], *[["cpggan"]] * 3, *[["cpggan-normal"]] * 3, *[["pix2pix"]] * 3]
    wanted = [label.partition(" ")[2].split(" ")[0] for label in TABLE_1][1:]
    added = [round(row.parts[0].ratio * REAL) for row in rows()[1:]]
    assert [f"{n:,}" for n in added] == wanted
    assert added == [*ADDED] * 3
    for row, label in zip(rows(), TABLE_1, strict=True):
        names = {part.set for part in row.parts}
        assert ("normal" in label) == ("cpggan-normal" in names)
        assert ("Image-to-Image" in label) == ("pix2pix" in names)


def test_every_row_has_classic_augmentation_and_no_image_that_is_not_curated():
    for row in rows():
        assert row.classic
        assert all(part.curated for part in row.parts)


def test_published_numbers_are_those_of_our_copy_of_the_paper():
    found = sorted((ROOT / "../shared/papers").glob("001_*.txt"))
    if not found:
        pytest.skip("no copy of the paper here")
    lines = re.findall(
        r"^(.+(?:images|DA|\(\+ normal\))) (0\.\d\d) (\d+\.\d\d) (0\.\d\d) (\d+\.\d\d)$",
        found[0].read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    read = {label: tuple(map(float, numbers)) for label, *numbers in lines}
    assert list(read.items()) == list(TABLE_1.items())


def test_each_published_row_stands_beside_the_row_of_ours_that_asks_the_same():
    assert [row.setup for row in PUBLISHED] == [row.name for row in rows()]
    for row, (label, values) in zip(PUBLISHED, TABLE_1.items(), strict=True):
        assert label in row.source
        assert tuple(row.metrics.values()) == values
        m = row.metrics
        assert m["sensitivity_iou25"] > m["sensitivity_iou50"]  # a kinder criterion finds more
        assert m["fp_per_slice_iou25"] < m["fp_per_slice_iou50"]


def test_the_two_cpggans_differ_in_nothing_but_what_they_see(tmp_path):
    study = study_of(tmp_path, scale="paper", overrides={"cpggan": {"noise_dim": 64}})
    plain, normal = study.generators["cpggan"], study.generators["cpggan-normal"]
    assert (plain.also, normal.also) == (False, True)
    assert plain.model_copy(update={"also": True}) == normal
    assert plain.system["noise_dim"] == 64


def test_paper_scale_is_the_papers(tmp_path):
    study = study_of(tmp_path, scale="paper", overrides={})
    cpggan, detector = study.generators["cpggan"], study.detector
    assert (cpggan.train.steps, cpggan.system["batch_size"]) == (3_000_000, 4)
    assert (detector.train.steps, detector.system["batch_size"]) == (240_000, 64)
    assert detector.train.keep_best == "sensitivity_iou50"
    assert study.prepare.side_px == study.phantoms.side_px == study.normal_phantoms.side_px == 256
    assert study.phantoms.patients == 180
    assert study.least_found == 0


@pytest.mark.parametrize("scale", ["paper", "small", "smoke"])
def test_no_phantom_is_among_the_annotated_and_the_normal(tmp_path, scale):
    study = study_of(tmp_path, scale=scale, overrides={})
    annotated, normal = study.phantoms, study.normal_phantoms
    assert normal.first_patient >= annotated.first_patient + annotated.patients
    assert (annotated.lesions_max > 0, normal.lesions_max) == (True, 0)


def test_phantoms_are_drawn_as_two_sets_without_a_common_patient(tmp_path):
    study = study_of(tmp_path / "study")
    begin(tmp_path / "study", study)
    Work(tmp_path / "study", study, "", "cpu", None).draw_phantoms()
    annotated, normal = Dataset.open(study.dataset), Dataset.open(study.also[0])
    assert len(annotated.patients) == 14
    assert len(normal.patients) == 6
    assert not set(annotated.patients) & set(normal.patients)
    assert any(len(annotated.boxes(i)) for i in range(len(annotated)))
    assert not any(len(normal.boxes(i)) for i in range(len(normal)))


def test_normal_slices_of_a_test_patient_are_refused(tmp_path):
    data = brains(tmp_path / "data", patients=12)
    also = brains(tmp_path / "also", patients=20, lesions_max=0)  # the same, split otherwise
    study = study_of(tmp_path / "study", dataset=data.folder, also=[also.folder])
    begin(tmp_path / "study", study)
    work = Work(tmp_path / "study", study, "", "cpu", None)
    work.prepare()
    with pytest.raises(LeakError, match="patient"):
        work.train_generator("cpggan-normal")


def test_without_normal_slices_their_rows_are_left_out_and_that_is_said(tmp_path):
    data = brains(tmp_path / "data", patients=6)
    study = study_of(tmp_path, dataset=data.folder, scale="small", overrides={})
    assert [s.name for s in study.setups] == [
        row.name for row in rows() if "normal" not in row.name
    ]
    assert set(study.generators) == {"cpggan", "pix2pix"}
    assert any("left out" in remark for remark in study.remarks)
    with_normal = study_of(
        tmp_path, dataset=data.folder, also=[data.folder], scale="small", overrides={}
    )
    assert with_normal.setups == rows()
    assert with_normal.remarks == ()


def test_what_is_not_allowed_is_named(tmp_path):
    with pytest.raises(SettingsError, match="no scale 'tiny'"):
        study_of(tmp_path, scale="tiny")
    with pytest.raises(SettingsError, match="hybrid"):
        study_of(tmp_path, overrides={"hybrid": {"side_px": 32}})
    with pytest.raises(SettingsError, match=r"study\.\['ratios'\]"):
        study_of(tmp_path, overrides={"study": {"ratios": [1]}})
    with pytest.raises(SettingsError, match="resolution would tell"):
        study_of(tmp_path, overrides={"cpggan": {"side_px": 64}})
    with pytest.raises(SettingsError, match="--also without --data"):
        study_of(tmp_path, also=[tmp_path])
    with pytest.raises(DataError):
        study_of(tmp_path, dataset=tmp_path / "nowhere")


def synthoma(*words):
    return subprocess.run(
        [sys.executable, "-m", "synthoma.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_verb_lists_the_studies_and_names_them_where_it_is_given_another():
    listed = synthoma("study")
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(PAPERS)
    wrong = synthoma("study", "metastases", "--out", "nowhere")
    assert wrong.returncode == 2
    assert "cpggan_metastases" in wrong.stderr


@pytest.mark.slow
def test_the_table_that_comes_out_has_the_papers_rows_beside_its_numbers(tmp_path):
    out = tmp_path / "study"
    begin(out, study_of(out))
    assert go_on(out, device="cpu")
    table = read_table(out / "table.json")
    assert table.study == "cpggan_metastases"
    assert [row.setup for row in table.rows] == [row.name for row in rows()]
    assert table.published == PUBLISHED
    n = table.rows[0].n_real
    assert [row.n_synthetic for row in table.rows[1:4]] == [round(a / REAL * n) for a in ADDED]
    report = (out / "report.md").read_text()
    assert report.startswith("# CPGGAN for brain metastases (Han et al. 2019)")
    published = report.partition("## Published")[2].partition("\n## ")[0]
    assert "77" in published
    assert published.count("(ours ") == 4 * len(rows())
    assert "phantoms made from nothing" in report
    assert "Not curated" in report
    seen = {
        name: json.loads((out / f"generators/{name}-draw0/run.json").read_text())["trained_on"]
        for name in ("cpggan", "cpggan-normal", "pix2pix")
    }
    normal = set(Dataset.open(out / "phantoms-normal").splits["train"])
    assert set(seen["cpggan-normal"]) == set(seen["cpggan"]) | normal
    assert seen["pix2pix"] == seen["cpggan"]
    assert not set(seen["cpggan"]) & normal
