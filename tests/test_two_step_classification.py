"""The tables of Han et al. 2019 and the thesis: rows and numbers, how images are made, lengths."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.split import all_to_train
from synthoma.data.store import DatasetWriter, write_json
from synthoma.errors import DataError, ResourceError, SettingsError
from synthoma.report.table import read_table
from synthoma.studies.augment import BASELINE
from synthoma.studies.classify import ClassifyStudy
from synthoma.studies.classify_sets import curate_set
from synthoma.studies.classify_work import ClassifyWork
from synthoma.studies.run import begin, go_on
from synthoma.studies.two_step_classification import (
    ADDED,
    ARM,
    PUBLISHED,
    REAL,
    TABLE_1,
    TABLE_2,
    rows,
    settings_for,
    ten,
)

PAPERS = Path(__file__).parent.parent / "../shared/papers"
#: Classifiers whose weights are here, at any scale.
HERE = {
    "pretrained": {"backbone": "efficientnet_lite0"},
    "curation": {"look": {"backbone": "efficientnet_lite0"}},
}
NETS = {"width": 2, "blocks": 1, "judge_width": 4, "batch_size": 2}
TINY = {
    "pggan": {
        "widest": 8,
        "base": 64,
        "noise_dim": 8,
        "batch_size": 4,
        "stable_images": 8,
        "fade_images": 8,
    },
    "pggan_train": {"steps": 20},
    "unit": NETS,
    "unit_train": {"steps": 2},
    "munit": {**NETS, "style_width": 4},
    "munit_train": {"steps": 2},
    "simgan": {**NETS, "history": 3, "refiner_steps": 1, "judge_steps": 1},
    "simgan_train": {"steps": 2},
    "classifier": {"width": 2, "batch_size": 8},
    "classifier_train": {"steps": 2, "validate_every": 1},
    "pretrained": {
        "backbone": "resnet18_3x3",
        "weights": "none",
        "width": 2,
        "side_px": 32,
        "batch_size": 8,
    },
    "pretrained_train": {"steps": 2, "validate_every": 1},
    "curation": {"number": 2},
    "phantoms": {"patients": 14, "slices_per_patient": 3},
}


def study_of(out, *, scale="smoke", overrides=TINY, also=(), dataset=None):
    return settings_for(
        out, dataset=dataset, also=list(also), scale=scale, seed=0, overrides=overrides
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A study with its data prepared."""
    out = tmp_path_factory.mktemp("two") / "study"
    study = study_of(out)
    begin(out, study)
    work = ClassifyWork(out, study, "", "cpu", None)
    work.draw_phantoms()
    work.prepare()
    return work


def like(work, out):
    """Another study of the same data."""
    shutil.copytree(work.out, out)
    return ClassifyWork(out, work.study, "", "cpu", None)


def test_each_row_has_the_images_that_its_label_in_the_paper_names():
    found = {row.name: row for row in rows(["unit", "munit"], 1.0)}
    for refiner, table in (("unit", TABLE_1), ("munit", TABLE_2)):
        for (ours, _, _), label in zip(ten(refiner), table, strict=True):
            row = found[ours]
            sets = [part.name for part in row.parts]
            assert row.classic == ("classic" in label)
            assert ("pggan" in sets) == ("w/o clustering" in label)
            assert ("pggan, curated" in sets) == ("PGGAN" in label and "w/o" not in label)
            for name in ("UNIT", "MUNIT", "SimGAN"):
                assert (name.lower() in sets) == (f" {name}-refined" in label)


def test_both_arms_ask_the_same_and_differ_in_the_classifier_alone():
    found = rows(["unit", "munit"], 1.0)
    scratch, pretrained = found[:12], found[12:]
    for one, other in zip(scratch, pretrained, strict=True):
        same = {"name": one.name, "classifier": "classifier"}
        assert other.name == ARM + one.name
        assert other.classifier == "pretrained"
        assert other.model_copy(update=same) == one


def test_a_round_of_each_row_holds_as_many_images_as_the_paper_says():
    for row, label in zip(rows(["unit"], 1.0), TABLE_1, strict=False):
        added = sum(1_000 * int(k) for k in re.findall(r"(\d+)k", label))
        assert row.images * REAL == pytest.approx(REAL + added, rel=0.015)
        for part in row.parts:
            assert part.ratio * row.copies * REAL == pytest.approx(ADDED)


def test_an_eighth_of_the_budget_adds_an_eighth_of_the_images():
    for whole, eighth in zip(rows(["unit"], 1.0), rows(["unit"], 1 / 8), strict=True):
        assert eighth.images - 1 == pytest.approx((whole.images - 1) / 8, abs=0.6)  # whole copies


def test_published_numbers_are_those_of_our_copies_of_the_papers():
    number = r"(\d\d\.\d+) \((\d\d\.\d+)\)"
    first = re.compile(rf"^\| (.+?) \| {number} \| {number} \| {number} \|$", re.MULTILINE)
    second = re.compile(rf"^(\(\d+\) .+?) {number} {number} {number}$", re.MULTILINE)
    for start, pattern, table in (("002", first, TABLE_1), ("000", second, TABLE_2)):
        files = sorted(PAPERS.glob(f"{start}_*.txt"))
        if not files:
            pytest.skip("no copy of the paper here")
        found = {}
        for label, *numbers in pattern.findall(files[0].read_text(encoding="utf-8")):
            values = tuple(map(float, numbers))
            found[label] = (values[::2], values[1::2])
        assert list(found.items()) == list(table.items())


def test_published_accuracies_are_those_of_their_sensitivity_and_specificity_nearly():
    ill, well = 1_232, 1_013  # of the test split
    apart = [
        abs(accuracy - (ill * sensitivity + well * specificity) / (ill + well))
        for arms in TABLE_1.values()
        for accuracy, sensitivity, specificity in arms
    ]
    assert 0.1 < max(apart) < 0.22  # their own rounding leaves 0.01


def test_each_published_row_stands_beside_the_row_of_ours_that_asks_the_same():
    names = {row.name for row in rows(["unit", "munit"], 1.0)}
    assert {row.setup for row in PUBLISHED} == names
    assert len(PUBLISHED) == 40
    for row in PUBLISHED:
        assert row.setup.startswith(ARM) == row.source.endswith(" with ImageNet weights")
    told = {(row.setup, row.source[:6]): row.metrics["sensitivity"] for row in PUBLISHED}
    assert told["real + classic + unit", "Han et"] == 0.9753
    assert told[f"{ARM}real + classic + munit", "Han's "] == 0.954


def test_paper_scale_is_the_papers(tmp_path):
    study = study_of(tmp_path, scale="paper", overrides=HERE)
    classifier, pggan = study.classifiers["classifier"], study.generators["pggan"]
    assert (classifier.system["backbone"], classifier.system["batch_size"]) == ("resnet50", 96)
    assert (classifier.train.keep_best, classifier.train.patience) == ("accuracy", 20)
    assert (study.classifiers["pretrained"].system["weights"], study.length) == (
        "imagenet",
        "images",
    )
    assert (pggan.each_class, pggan.system["side_px"]) == (True, 256)
    assert study.curation.number == 200
    assert study.refiners["unit"].tried == study.refiners["munit"].tried
    assert study.refiners["unit"].tried == (20_000, 50_000, 100_000)
    simgan = study.refiners["simgan"]
    assert (simgan.train.steps, simgan.tried) == (20_000, ())
    assert study.curated == ("pggan, curated",)
    assert study.sets == ("pggan", "pggan, curated", "unit", "munit", "simgan")


def test_weights_that_are_not_here_are_missed_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match="resnet50"):
        study_of(tmp_path, scale="paper", overrides={})
    with pytest.raises(ResourceError, match="densenet169"):
        study_of(tmp_path, scale="paper", overrides={"pretrained": HERE["pretrained"]})


def test_the_steps_that_are_tried_are_among_those_that_are_kept(tmp_path):
    for steps in (3, 10, 25, 600):
        told = TINY | {"unit_train": {"steps": steps}}
        unit = study_of(tmp_path, overrides=told).refiners["unit"]
        kept = {*range(0, steps, unit.train.checkpoint_every), steps}
        assert set(unit.tried) <= kept
        assert max(unit.tried) == steps
    picking = TINY | {"study": {"tried": {"simgan": [0.5, 1]}}}
    assert study_of(tmp_path, overrides=picking).refiners["simgan"].tried == (1, 2)


def test_one_table_alone_has_its_ten_rows_twice(tmp_path):
    told = {k: v for k, v in TINY.items() if "unit" not in k or k.startswith("munit")}
    study = study_of(tmp_path, overrides=told | {"study": {"tables": ["munit"]}})
    assert [row.name for row in study.setups[:10]] == [name for name, _, _ in ten("munit")]
    assert len(study.setups) == 20
    assert set(study.refiners) == {"munit", "simgan"}


def test_a_row_with_more_images_makes_more_steps_unless_all_shall_be_equal(begun):
    def steps(work):
        return {s.name: work.classifier(s, 0)[1].steps for s in work.study.setups}

    longer = steps(begun)
    assert longer["real"] == 2
    assert longer["real + classic, doubled"] == 3 * longer["real"]
    equal = begun.study.model_copy(update={"length": "equal"})
    assert set(steps(ClassifyWork(begun.out, equal, "", "cpu", None)).values()) == {2}


def test_an_epoch_is_a_round_of_the_rows_own_images(begun):
    epochs = {"epochs": 3, "steps": 1_000}
    told = {
        name: c.model_copy(update={"train": c.train.model_copy(update=epochs)})
        for name, c in begun.study.classifiers.items()
    }
    study = begun.study.model_copy(update={"classifiers": told})
    work = ClassifyWork(begun.out, study, "", "cpu", None)
    n, size = len(work.images(0)), study.classifiers["classifier"].system["batch_size"]
    for setup in study.setups:
        config, loop = work.classifier(setup, 0)
        assert (loop.epochs, loop.steps) == (3, 1_000)
        assert config.steps_per_epoch == pytest.approx(
            n * setup.images / size, abs=setup.images + 1
        )


def test_enough_is_drawn_for_what_is_chosen_and_refined_from_it(begun):
    n, needed = len(begun.images(0)), begun.needed
    added = round(n * begun.study.setup("real + unit").parts[0].ratio)
    assert needed("unit", 0) == needed("simgan", 0) == added
    assert needed("pggan, curated", 0) > needed("unit", 0)
    assert needed("pggan", 0) >= begun.study.spare * needed("pggan, curated", 0)


def written(work, keep):
    """A drawn set of two clusters, bright and dark, and a person's table of them."""
    saw = tuple(work.drawn[0])
    work.even("pggan", 0).parent.mkdir(exist_ok=True)
    with DatasetWriter(
        work.even("pggan", 0),
        patients_from="synthetic: one an image",
        value_range=(0, 255),
        splits=all_to_train,
    ) as writer:
        for i in range(80):
            values = np.full((1, 32, 32), 200 if i % 4 < 2 else 20, np.uint8)
            values[0, 0, 0] = i
            label = work.real.labels[i % 2]
            writer.add(
                Case(f"d/{i}", f"d/{i}", Image(values), label, origin=Synthetic("g", 0, {}, saw))
            )
    looked = work.out / "clusters" / "pggan-draw0"
    looked.mkdir(parents=True)
    digest = Dataset.open(work.even("pggan", 0)).about["digest"]
    write_json(looked / "clusters.json", {"saw": saw, "settings": {"most": 2}, "digest": digest})
    for name, header, lines in (
        ("clusters.csv", "cluster proposed keep", [(0, "no", keep[0]), (1, "yes", keep[1])]),
        ("images.csv", "case_id cluster", [(f"d/{i}", int(i % 4 >= 2)) for i in range(80)]),
    ):
        with (looked / name).open("w", newline="") as file:
            csv.writer(file).writerows([header.split(), *lines])


def test_the_clusters_that_a_person_kept_are_used_with_classes_as_often_as_real(begun, tmp_path):
    work = like(begun, tmp_path / "study")
    written(work, ("yes", "no"))
    assert curate_set(work, "pggan, curated", 0)
    kept = Dataset.open(work.set_of("pggan, curated", 0))
    assert {int(np.median(kept.values(i))) for i in range(len(kept))} == {200}
    n, real = len(work.images(0)), work.labels(0)
    own = [kept.label(i) for i in range(min(n, len(kept)))]
    for label in kept.labels:
        assert own.count(label) / len(own) == pytest.approx(real.count(label) / n, abs=0.1)


def test_where_no_image_of_a_class_is_kept_the_table_to_change_is_named(begun, tmp_path):
    work = like(begun, tmp_path / "study")
    written(work, ("no", "no"))
    with pytest.raises(DataError, match=r"clusters\.csv: it keeps no image of normal, tumour"):
        curate_set(work, "pggan, curated", 0)
    assert not work.set_of("pggan, curated", 0).exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"yolov3": {}}, "no settings"),
        ({"study": {"ratios": [1]}}, r"study\.\['ratios'\]"),
        ({"study": {"tables": ["simgan"]}}, r"study\.tables"),
        ({"study": {"budget": 0}}, r"study\.budget"),
        ({"study": {"tried": {"unit": [2]}}}, r"study\.tried\.unit"),
        ({"prepare": {"side_px": 64}}, "resolution would tell"),
        ({"pggan_train": {"steps": 3}}, "grown to"),
    ],
)
def test_what_is_not_allowed_is_named(tmp_path, wrong, said):
    with pytest.raises(SettingsError, match=said):
        study_of(tmp_path, overrides=TINY | wrong)


def test_further_slices_and_unknown_scales_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="--also"):
        study_of(tmp_path, also=[tmp_path])
    with pytest.raises(SettingsError, match="no scale 'tiny'"):
        study_of(tmp_path, scale="tiny")


def test_sets_that_do_not_exist_are_named(begun):
    told = begun.study.model_dump(mode="json")
    told["refiners"]["unit"]["of"] = "munit"
    with pytest.raises(ValueError, match="no set 'unit'"):
        ClassifyStudy.model_validate(told)


@pytest.mark.slow
def test_the_table_that_comes_out_has_the_papers_rows_beside_both_tables(tmp_path):
    out = tmp_path / "study"
    begin(out, study_of(out))
    interrupted = sum(not go_on(out, minutes=0.05, device="cpu") for _ in range(3))
    assert go_on(out, device="cpu")
    assert interrupted
    table = read_table(out / "table.json")
    assert [row.setup for row in table.rows] == [row.name for row in rows(["unit", "munit"], 1)]
    assert table.published == PUBLISHED
    n = table.row(BASELINE).n_real
    for row, setup in zip(table.rows, study_of(out).setups, strict=True):
        assert row.n_synthetic == pytest.approx(n * (setup.images - setup.copies), abs=1)
    report = (out / "report.md").read_text()
    assert report.startswith("# Two-step GAN augmentation for tumour classification")
    assert "step picked of 1, 2" in report
    refined = Dataset.open(out / "sets" / "unit-draw0")
    assert [run["name"] for run in refined.about["runs"]] == ["unit", "unit"]
    train = set(Dataset.open(out / "data").splits["train"])
    assert all(set(saw) <= train for saw in refined.generators_saw.values())
    for label in ("normal", "tumour"):
        run = json.loads((out / f"refiners/unit-draw0-{label}/run.json").read_text())
        assert run["data"]["where"] == {"label": label}
