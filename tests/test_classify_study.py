"""The question of classification on a made-up set: the table, resuming, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from synthoma.data.case import Case, Image
from synthoma.data.classic import Classic
from synthoma.data.dataset import Dataset, resplit
from synthoma.data.split import draw_patients, draw_patients_of_every_class
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError, LeakError, SettingsError, SynthomaError
from synthoma.metrics.classification import Answers
from synthoma.report.table import read_table
from synthoma.studies import classify_cell, classify_work
from synthoma.studies.classify import BASELINE, ClassifyStudy, settings_for
from synthoma.studies.classify_account import by_class, scatters
from synthoma.studies.classify_cell import run_cell, told_apart
from synthoma.studies.classify_sets import as_often
from synthoma.studies.classify_tables import as_good, shortcuts
from synthoma.studies.classify_work import ClassifyWork
from synthoma.studies.run import begin, go_on, start
from synthoma.synthesis.mixture import Mixed, TrainingData

GAN = {"side_px": 16, "nets": "convolutional", "noise_dim": 4, "widest": 8, "batch_size": 4}
TINY = {
    "cgan": GAN,
    "cgan_train": {"steps": 6, "threads": 1},
    "classifier": {"width": 2, "batch_size": 8},
    "classifier_train": {"steps": 4, "validate_every": 2, "threads": 1},
    "study": {"least_found": 0, "variety": 2},
}


def discs(out, *, patients=24, a_patient=2, side=16, ill=lambda i: i % 3 == 0):
    """Noise, and a bright disc in the ill ones; a class a patient."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    with DatasetWriter(out, patients_from="made", value_range=(0, 255)) as writer:
        for i in range(patients * a_patient):
            far = np.hypot(*(grid - chance.uniform(5, side - 5) for grid in (y, x)))
            lit = (far < 4) & ill(i // a_patient)
            values = (chance.uniform(0, 60, (1, side, side)) + 180 * lit).astype(np.uint8)
            label = "ill" if ill(i // a_patient) else "well"
            writer.add(Case(f"c{i:03}", f"p{i // a_patient:02}", Image(values), label=label))
    return Dataset.open(out)


def split(dataset, out, *, validation, test):
    """The set with these patients held out."""
    held = {"validation": validation, "test": test}
    train = [p for p in dataset.patients if p not in {*validation, *test}]
    return resplit(dataset, out, {"train": train} | held)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    held = {"validation": ["p00", "p01", "p02"], "test": [f"p{i:02}" for i in range(3, 12)]}
    return split(discs(folder / "all"), folder / "discs", **held)


def study_of(dataset, overrides=TINY, **fields):
    return settings_for(dataset.folder, scale="smoke", seed=0, overrides=overrides, **fields)


@pytest.fixture(scope="module")
def finished(made):
    """Two draws of few patients, interrupted three times."""
    out = made.folder.parent / "study"
    begin(out, study_of(made, slices=6, draws=2))
    interrupted = sum(not go_on(out, minutes=0.02, device="cpu") for _ in range(3))
    assert go_on(out, device="cpu")
    return out, interrupted


def study_json(out):
    kept = json.loads((out / "study.json").read_text())
    kept.pop("command")
    return kept


def work_of(out):
    return ClassifyWork(out, ClassifyStudy.model_validate(study_json(out)), "", "cpu", None)


ROWS = [
    "real",
    "real + classic",
    "real + classic + MixUp",
    "real + classic + cgan 1:1",
    "real + classic + cgan 2:1",
    "cgan alone + classic",
    "real + classic + the other patients' images themselves",
]


def test_the_table_has_a_row_a_setup_with_intervals_and_paired_differences(finished):
    out, _ = finished
    table = read_table(out / "table.json")
    assert (table.task, table.primary) == ("classify", "auc")
    assert [row.setup for row in table.rows] == ROWS
    for row in table.rows:
        assert (row.draws, row.seeds) == (2, 2)
        for metric in ("accuracy", "sensitivity", "specificity", "precision", "auc"):
            assert metric in row.metrics or metric in row.undefined
        assert row.metrics["auc"].n <= 9  # patients, not their 18 images
        for difference in row.differences:
            assert difference.to == BASELINE
            assert len(difference.each) == 2
            assert difference.p_holm is not None
    alone = table.row("cgan alone + classic")
    assert (alone.n_real, alone.n_synthetic > 0) == (0, True)


def test_beside_the_table_stand_shortcuts_sets_pairs_and_what_tells_them_apart(finished):
    out, _ = finished
    said = (out / "report.md").read_text()
    for title in ("Shortcuts", "Synthetic sets", "Pairs of classifiers", "told from real"):
        assert title in said
    assert "8x8 thumbnail, draw 1" in said
    page = (out / "report.html").read_text()
    assert "Synthetic images (cgan) of" in page
    assert 'src="http' not in page


def test_a_study_that_ran_out_of_time_goes_on_and_trains_nothing_twice(finished):
    out, interrupted = finished
    assert interrupted >= 1
    cells = sorted(path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json"))
    assert len(cells) == 2 * len(ROWS)
    table = (out / "table.json").read_bytes()
    assert go_on(out, device="cpu")
    assert sorted(path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")) == cells
    assert (out / "table.json").read_bytes() == table


def test_every_set_up_of_a_draw_sees_the_same_real_images_for_as_many_steps(finished):
    out, _ = finished
    runs = {p.parent.name: json.loads(p.read_text()) for p in out.glob("cells/*/run.json")}
    assert {run["train"]["steps"] for run in runs.values()} == {4}
    assert {run["train"]["keep_best"] for run in runs.values()} == {"log_likelihood"}
    drawn = []
    for d in "01":
        saw = {
            frozenset(run["data"]["patients"])
            for name, run in runs.items()
            if f"draw{d}" in name and "other-patients" not in name
        }
        assert len(saw) == 1
        drawn.append(next(iter(saw)))
    assert not drawn[0] & drawn[1]


def test_only_training_patients_of_the_draw_are_seen_by_its_generator(finished, made):
    out, _ = finished
    for d in (0, 1):
        run = json.loads((out / f"generators/cgan-draw{d}/run.json").read_text())
        assert set(run["trained_on"]) == set(work_of(out).drawn[d])
        assert set(run["trained_on"]) <= set(made.splits["train"])


def test_synthetic_images_have_the_classes_of_the_draw_as_often(finished):
    out, _ = finished
    work = work_of(out)
    for d in (0, 1):
        real, drawn = work.images(d), Dataset.open(work.set_of("cgan", d))
        n = len(real)
        own = sorted(real.label(i) for i in range(n))
        assert sorted(drawn.label(i) for i in range(n)) == own


def test_the_same_seed_begins_every_scratch_classifier_alike(finished):
    out, _ = finished
    runs = [json.loads(p.read_text()) for p in out.glob("cells/*/run.json")]
    assert {run["seed"] for run in runs} == {0}
    first = {json.dumps(run["system"]["classes"]) for run in runs}
    assert first == {'["ill", "well"]'}


def test_a_set_whose_classes_are_not_seen_is_refused_with_the_reason(finished):
    out, _ = finished
    work = work_of(out)
    setup = work.study.setup("real + classic + cgan 1:1")
    path = work.judged("cgan", 0)
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"admitted": False, "reason": "16 %"}))
        assert work.cells.refused(setup, 0) == "cgan, draw 0: 16 %"
        cells, refused = work.cells.finished()
        assert set(refused) == {name for name in ROWS if "cgan" in name}
        assert BASELINE in cells
    finally:
        path.write_text(before)


def test_cases_without_a_label_are_left_out_and_the_user_is_told(made, tmp_path, capsys):
    with DatasetWriter(
        tmp_path / "some", patients_from="made", value_range=(0, 255), splits=made.splits
    ) as writer:
        for i, case in enumerate(made):
            writer.add(replace(case, label=None) if i % 12 == 11 else case)
    some = Dataset.open(tmp_path / "some")
    work = ClassifyWork(tmp_path / "study", study_of(some), "", "cpu", None)
    work.prepare()
    assert len(work.real) == len(made) - 4
    assert "4 cases without a label are left out" in "".join(capsys.readouterr())


def test_what_cannot_be_told_apart_is_refused_before_a_folder_is_made(made, tmp_path):
    with pytest.raises(SettingsError, match=r"no label 'Ill'.*there are ill, well"):
        study_of(made, TINY | {"classifier": TINY["classifier"] | {"positive": "Ill"}})
    train_only = resplit(made, tmp_path / "train", {"train": made.patients})
    with pytest.raises(DataError, match="validation split has no ill, well; `synthoma data split`"):
        study_of(train_only)
    one = discs(tmp_path / "one", ill=lambda i: True)
    with pytest.raises(DataError, match="its labels are ill; there must be at least two"):
        study_of(one)


def test_a_shortcut_that_does_as_well_as_the_network_is_a_warning(finished):
    work = work_of(finished[0])
    cells, _ = work.cells.finished()
    (d, first), *_ = found = shortcuts(work, cells[BASELINE])
    assert [name for name in first if "network" not in name] == ["8x8 thumbnail", "file size"]
    network, *_ = first
    equal = [(d, {network: first[network], "8x8 thumbnail": first[network]})]
    (said,) = as_good(equal)
    assert said.startswith("8x8 thumbnail reaches an area of")
    truths = first[network].truths
    perfect = replace(first[network], probabilities=np.eye(2)[truths])
    blind = replace(first[network], probabilities=np.full((len(truths), 2), 0.5))
    assert list(as_good([(d, {network: perfect, "file size": blind})])) == []
    assert len(found) == 2


def test_the_report_says_what_classic_augmentation_is(finished):
    text = (finished[0] / "report.md").read_text()
    assert (
        "Classic augmentation (classifier): mirrored left to right, mirrored top to bottom" in text
    )


def test_planes_of_images_show_real_ones_against_one_set_at_a_time(finished):
    work = work_of(finished[0])
    shown = scatters(work)
    assert [s.title for s in shown] == [
        "Real images and classic augmentation",
        "Real images and cgan",
    ]
    for panel, name in zip(shown, ("augmented", "cgan"), strict=True):
        kinds = [f"{own}, {label}" for own in ("real", name) for label in ("ill", "well")]
        assert list(dict.fromkeys(panel.category)) == kinds
    parts = [by_class(work.images(0), "real"), by_class(work.images(0), "augmented", Classic())]
    for label in ("ill", "well"):
        a, b = parts[0][f"real, {label}"], parts[1][f"augmented, {label}"]
        assert a.shape == b.shape
        assert not np.array_equal(a, b)


def test_the_gate_counts_from_chance(made, tmp_path, monkeypatch):
    drawn = discs(tmp_path / "drawn", patients=20)

    def says(dataset, right):
        truths = np.array([dataset.label(i) == "well" for i in range(len(dataset))], int)
        rank = np.array([(truths[:i] == k).sum() for i, k in enumerate(truths)])
        hit = rank < right * np.bincount(truths)[truths]  # the same share of each class
        told = np.where(hit, truths, 1 - truths)
        return Answers(np.eye(2)[told], truths, np.array(dataset.patient_ids), ("ill", "well"))

    def judged(right, of_real=1.0):
        def answers_in(run, dataset, device):
            return says(dataset, right if dataset.folder == drawn.folder else of_real)

        monkeypatch.setattr(classify_cell, "answers_in", answers_in)
        real = made.split("train")
        return classify_cell.judge_set(tmp_path, drawn, real, least=0.5, device="cpu")

    assert judged(1.0)["admitted"]
    coin = judged(0.5)  # half of the real share, and yet nothing but chance
    assert coin["found"] == 0.5
    assert not coin["admitted"]
    assert "refused" in coin["reason"]
    blind = judged(1.0, of_real=0.5)
    assert not blind["admitted"]
    assert "can judge no set" in blind["reason"]


def test_answers_that_ignore_the_image_tell_nothing_apart_and_shifted_ones_as_much_as_before():
    truths = np.array([0] * 90 + [1] * 10)
    always = Answers(np.tile([0.9, 0.1], (100, 1)), truths, np.arange(100), ("a", "b"))
    assert told_apart(always).tolist() == [0.5, 0.5]
    ill = np.where(truths == 1, 0.98, 0.97)  # all of them called ill
    shifted = Answers(np.stack([1 - ill, ill], 1), truths, np.arange(100), ("a", "b"))
    assert told_apart(shifted).tolist() == [1.0, 1.0]


def test_a_class_that_is_not_there_counts_as_chance():
    one = Answers(np.tile([0.9, 0.1], (5, 1)), np.zeros(5, int), np.arange(5), ("a", "b"))
    assert told_apart(one).tolist() == [0.5, 0.5]


def test_a_classifier_is_not_trained_on_images_of_a_generator_that_saw_the_test(
    finished, made, tmp_path
):
    out, _ = finished
    work = work_of(out)
    splits = work.real.splits
    swapped = resplit(
        work.real,
        tmp_path / "swapped",
        {**splits, "train": splits["test"], "test": splits["train"]},
    )
    data = TrainingData(
        data=swapped.folder, synthetic=(Mixed(folder=work.set_of("cgan", 0), ratio=0.1),)
    )
    with pytest.raises(LeakError, match="test patient"):
        run_cell(
            tmp_path / "cell",
            {"setup": "leak", "draw": 0},
            data,
            work.study.classifiers["classifier"].settings(),
            seed=0,
            minutes=None,
            device="cpu",
            progress=None,
        )


def test_draws_are_drawn_again_until_every_class_is_in_each():
    patients = [f"p{i:02}" for i in range(40)]
    labels = ["rare" if i < 4 else "usual" for i in range(40)]
    lacked = 0
    for seed in range(20):
        plain = draw_patients(patients, n_cases=6, draws=2, seed=seed)
        found = draw_patients_of_every_class(patients, labels, n_cases=6, draws=2, seed=seed)
        whole = all({labels[patients.index(p)] for p in own} == set(labels) for own in plain)
        assert found == plain or not whole  # else it is just what detection draws
        lacked += not whole
        assert all({labels[patients.index(p)] for p in own} == set(labels) for own in found)
        assert not set(found[0]) & set(found[1])
    assert lacked


def test_a_class_with_too_few_patients_for_the_draws_is_named(made, tmp_path):
    one = split(
        discs(tmp_path / "few", ill=lambda i: i in (0, 3, 12)),
        tmp_path / "split",
        validation=["p00", "p01", "p02"],
        test=[f"p{i:02}" for i in range(3, 12)],
    )
    begin(tmp_path / "study", study_of(one, slices=6, draws=2))
    with pytest.raises(DataError, match="1 have ill, 11 have well"):
        go_on(tmp_path / "study", device="cpu")
    assert not (tmp_path / "study" / "generators").exists()


def test_a_class_missing_from_the_test_split_is_named_before_anything_is_written(tmp_path):
    lost = split(
        discs(tmp_path / "all"), tmp_path / "split", validation=["p00", "p01"], test=["p04"]
    )
    with pytest.raises(DataError, match="its test split has no ill"):
        study_of(lost)


def test_a_study_that_is_refused_before_it_trains_leaves_no_folder(made, tmp_path):
    study = study_of(made, slices=500)
    with pytest.raises(SynthomaError, match="500"):
        start(tmp_path / "study", study, device="cpu")
    assert not (tmp_path / "study").exists()


def test_a_study_that_fails_after_it_trained_keeps_what_it_has(made, tmp_path, monkeypatch):
    def full(*given, **named):
        raise DataError("the disk is full")

    monkeypatch.setattr(classify_work, "draw_set", full)
    with pytest.raises(DataError, match="full"):
        start(tmp_path / "study", study_of(made), device="cpu")
    assert list((tmp_path / "study").rglob("run.json"))


LEFT_OUT = ["real", "real + classic + MixUp", "dcgan alone + classic"]


@pytest.mark.slow
def test_one_generator_for_each_class_draws_classes_as_often_as_the_draw_has_them(made, tmp_path):
    overrides = {
        "study": {"least_found": 0, "generators": ["dcgan"], "without": LEFT_OUT},
        "dcgan": {"side_px": 16, "noise_dim": 4, "widest": 8, "batch_size": 4},
        "dcgan_train": {"steps": 3, "threads": 1},
        "classifier": TINY["classifier"],
        "classifier_train": TINY["classifier_train"],
    }
    begin(tmp_path / "study", study_of(made, overrides))
    assert go_on(tmp_path / "study", device="cpu")
    work = work_of(tmp_path / "study")
    drawn, real = Dataset.open(work.set_of("dcgan", 0)), work.images(0)
    runs = sorted(path.name for path in (tmp_path / "study" / "generators").iterdir())
    assert runs == ["dcgan-draw0-ill", "dcgan-draw0-well"]
    own = sorted(real.label(i) for i in range(len(real)))
    assert sorted(drawn.label(i) for i in range(len(real))) == own
    table = read_table(tmp_path / "study" / "table.json")
    assert table.rows[0].setup == BASELINE


def test_images_are_taken_as_often_as_labels_have_their_class(tmp_path):
    drawn = discs(tmp_path / "drawn", ill=lambda i: i % 2 == 0)
    kept = as_often(drawn, tmp_path / "kept", ["ill"] + ["well"] * 3, seed=0)
    labels = [kept.label(i) for i in range(len(kept))]
    for head in range(4, len(labels), 4):
        assert labels[:head].count("ill") == head / 4
    assert labels.count("well") == 24


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gan": {}}, "no settings"),
        ({"study": {"generators": ["hybrid"]}}, "study.generators"),
        ({"study": {"ratios": [0]}}, "study.ratios"),
        ({"study": {"without": ["nothing"]}}, "study.without"),
        ({"prepare": {"side_px": 32}}, "resolution would tell"),
    ],
)
def test_settings_that_do_not_exist_or_agree_are_named(made, wrong, said):
    with pytest.raises(SettingsError, match=said):
        study_of(made, TINY | wrong)


def test_pretrained_and_scratch_rows_make_the_same_number_of_steps(made):
    study = settings_for(made.folder, scale="small", seed=0, overrides={})
    assert {c.train.steps for c in study.classifiers.values()} == {400}
    assert any(setup.classifier == "pretrained" and setup.parts for setup in study.setups)
    with pytest.raises(SettingsError, match="the same for all"):
        settings_for(
            made.folder, scale="small", seed=0, overrides={"pretrained_train": {"steps": 9}}
        )


def test_the_command_line_knows_both_tasks(made, tmp_path):
    def run(*more):
        words = ["augment", str(made.folder), "--scale", "smoke", "--out", str(tmp_path / "study")]
        done = subprocess.run(
            [sys.executable, "-m", "synthoma.cli", *words, *more],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    code, said = run("--task", "segment")
    assert code
    assert "detect, classify" in said
    code, said = run("--task", "classify", "--also", str(made.folder))
    assert code
    assert "--also" in said
    assert not (tmp_path / "study").exists()


def test_a_study_of_an_unknown_task_says_so(finished, tmp_path):
    out, _ = finished
    (tmp_path / "odd").mkdir()
    kept = json.loads((out / "study.json").read_text()) | {"task": "segment"}
    (tmp_path / "odd" / "study.json").write_text(json.dumps(kept))
    with pytest.raises(DataError, match="allowed: detect, classify"):
        go_on(tmp_path / "odd")
