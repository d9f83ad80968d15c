"""The verbs on synthetic sets as a person types them: what they print, leave, and exit with."""

import sys

import pytest

from synthoma.cli import main
from synthoma.data.case import Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis.fit import fit
from synthoma.synthesis.mixture import TrainingData
from synthoma.synthesis.paste import paste as paste_lesions


@pytest.fixture
def synthoma(monkeypatch, capsys):
    """Types a command line; gives what it prints, or says on the way out."""

    def type_(*words, expect=0):
        monkeypatch.setattr(sys, "argv", ["synthoma", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        assert (left.value.code or 0) == expect, printed.err
        return printed.out if expect == 0 else printed.err

    return type_


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "brains"
    return write_brains(
        folder, BrainConfig(side_px=32, patients=12, slices_per_patient=6, first_patient=7), seed=0
    )


@pytest.fixture(scope="module")
def pasted(brains):
    return paste_lesions(brains.split("train"), brains.folder.parent / "pasted", n=12, seed=0)


def test_paste_writes_a_synthetic_set_of_training_slices(synthoma, brains, tmp_path):
    out = tmp_path / "pasted"
    said = synthoma("paste", brains.folder, "--n", 5, "--out", out, "--set", "paste.second=0")
    assert "5 images with pasted lesions" in said
    made = Dataset.open(out)
    assert made.about["n_synthetic"] == 5
    assert made.about["paste"]["second"] == 0
    assert set(made[0].origin.trained_on) == set(brains.splits["train"])
    assert "nothing is overwritten" in synthoma("paste", brains.folder, "--out", out, expect=2)


def test_paste_takes_backgrounds_of_another_folder(synthoma, brains, tmp_path):
    config = BrainConfig(
        side_px=32, patients=4, slices_per_patient=2, lesions_max=0, first_patient=100
    )
    normal = write_brains(tmp_path / "normal", config, seed=0)
    words = ("paste", brains.folder, "--n", 6, "--onto", normal.folder)
    synthoma(*words, "--out", tmp_path / "pasted")
    allowed = {case.case_id for case in normal.split("train")}
    for case in Dataset.open(tmp_path / "pasted"):
        assert case.origin.conditions["background"] in allowed
    wrong = synthoma(*words, "--out", tmp_path / "x", "--set", "past.zoom=2", expect=2)
    assert "paste.FIELD" in wrong
    assert "zoom" in synthoma(*words, "--out", tmp_path / "x", "--set", "paste.zoom=0", expect=2)
    assert not (tmp_path / "x").exists()


def test_curate_replays_a_table(synthoma, pasted, tmp_path):
    table = tmp_path / "person.csv"
    rows = [f"{case.case_id},{'no' if i % 3 else 'yes'}" for i, case in enumerate(pasted)]
    table.write_text("\n".join(["case_id,keep", *rows]))
    said = synthoma("curate", pasted.folder, "--decisions", table, "--out", tmp_path / "kept")
    assert "4 of 12 images kept" in said
    assert len(Dataset.open(tmp_path / "kept")) == 4
    table.write_text("\n".join(["case_id,keep", *rows, "nobody,yes"]))
    told = synthoma(
        "curate", pasted.folder, "--decisions", table, "--out", tmp_path / "x", expect=3
    )
    assert "nobody" in told


def test_curate_asks_a_detector_and_keeps_what_a_person_may_change(
    synthoma, brains, pasted, tmp_path
):
    data = TrainingData(data=brains.folder)
    sides = {"side_px": 32, "test_side_px": 32, "batch_size": 2}
    tiny = {
        "system": sides | {"width": 0.0625, "blocks": [0, 0, 0, 0, 0]},
        "train": {"steps": 2, "precision": "float32"},
    }
    run, table = tmp_path / "run", tmp_path / "decisions.csv"
    fit("yolov3", run, data, preset="smoke", overrides=tiny, device="cpu")
    words = ("curate", pasted.folder, "--detector", run, "--device", "cpu")
    said = synthoma(  # two steps of training find nothing
        *words, "--write-decisions", table, "--out", tmp_path / "none", expect=3
    )
    assert "no case was left" in said
    assert table.read_text().count(",no,detector yolov3-") == 12
    table.write_text(table.read_text().replace(",no,detector", ",yes,detector"))
    said = synthoma("curate", pasted.folder, "--decisions", table, "--out", tmp_path / "all")
    assert "12 of 12 images kept" in said


def test_curate_proposes_by_clusters_and_follows_the_table_that_a_person_changed(
    synthoma, brains, pasted, tmp_path
):
    look, words = tmp_path / "look", ("curate", pasted.folder, "--device", "cpu")
    settings = ("--set", "clusters.look.side_px=32", "--set", "clusters.most=50")
    said = synthoma(
        *words, "--clusters", look, "--real", brains.folder, *settings, "--out", tmp_path / "all"
    )
    assert "12 of 12 images kept" in said
    assert f"change keep in {look / 'clusters.csv'}" in said
    assert "dropped nothing, which approves nothing" in said
    assert f"look at {look / 'index.png'}" in said.splitlines()[-1]
    rows = (look / "clusters.csv").read_text().splitlines()
    assert len(rows) == 3
    (look / "clusters.csv").write_text("\n".join([*rows[:2], rows[2].removesuffix("yes") + "no"]))
    table = tmp_path / "decisions.csv"
    again = ("--clusters", look, "--write-decisions", table)
    said = synthoma(*words, *again, "--out", tmp_path / "some")
    n = int(rows[1].split(",")[1])
    assert f"{n} of 12 images kept" in said
    assert "approves" not in said
    synthoma("curate", pasted.folder, "--decisions", table, "--out", tmp_path / "replayed")
    kept = [(tmp_path / name / "cases.jsonl").read_bytes() for name in ("some", "replayed")]
    assert kept[0] == kept[1]
    real = ("--clusters", look, "--real", brains.folder)
    assert "nothing is overwritten" in synthoma(*words, *real, "--out", tmp_path / "x", expect=2)
    assert "most: 2.0" in synthoma("config", "clusters")
    strict = (*words, "--clusters", tmp_path / "strict", "--real", brains.folder)
    few = ("--set", "clusters.look.side_px=32", "--set", "clusters.most=0.01")
    wrong = (*strict, "--set", "clusters.look.side=32", "--out", tmp_path / "none")
    said = synthoma(*wrong, expect=2)
    assert (
        "clusters.look.side: there is no setting 'side'; did you mean side_px? There are: ba"
        in said
    )
    assert "neighbours" not in said  # those are of clusters, not of look
    many = (*strict, "--set", "clusters.qqq=32", "--out", tmp_path / "none")
    assert "there is no setting 'qqq'; there are: look, number" in synthoma(*many, expect=2)
    said = synthoma(*strict, *few, "--out", tmp_path / "none", expect=3)
    assert f"{tmp_path / 'strict' / 'clusters.csv'}: it keeps none of 12 images" in said
    assert "clusters.most" in said
    assert (tmp_path / "strict" / "index.png").is_file()
    assert not (tmp_path / "none").exists()
    another = paste_lesions(brains.split("train"), tmp_path / "another", n=4, seed=1)
    said = synthoma("curate", another.folder, "--clusters", look, "--out", tmp_path / "x", expect=3)
    assert f"{look}: made of another set than {another.folder}" in said


def test_curate_refuses_what_exists_before_anything_slow(synthoma, brains, pasted, tmp_path):
    """The run that is named is none, which would be said next."""
    there, slow = tmp_path / "there", ("curate", pasted.folder, "--detector", tmp_path)
    there.mkdir()
    assert "nothing is overwritten" in synthoma(*slow, "--out", there, expect=2)
    beside = ("--write-decisions", there, "--out", tmp_path / "x")
    assert "nothing is overwritten" in synthoma(*slow, *beside, expect=2)


def test_curate_wants_one_rule(synthoma, pasted, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "give one of" in synthoma("curate", pasted.folder, *out, expect=2)
    both = ("--decisions", "a.csv", "--detector", "run")
    assert "give one of" in synthoma("curate", pasted.folder, *both, *out, expect=2)
    beside = ("--decisions", "a.csv", "--real", "brains")
    assert "go with --clusters" in synthoma("curate", pasted.folder, *beside, *out, expect=2)
    missing = ("--detector", tmp_path)
    assert "not a run folder" in synthoma("curate", pasted.folder, *missing, *out, expect=3)
    nowhere = ("--clusters", tmp_path / "nowhere")
    assert "--real DATASET makes" in synthoma("curate", pasted.folder, *nowhere, *out, expect=3)
    settings = (*nowhere, "--set", "clusters.most=3")
    assert "--set go with" in synthoma("curate", pasted.folder, *settings, *out, expect=2)


def test_privacy_finds_training_images_under_another_name(synthoma, brains, pasted, tmp_path):
    copied, honest = brains.split("train"), brains.split("test")
    for name, dataset in (("copied", copied), ("honest", honest)):
        with DatasetWriter(tmp_path / name, patients_from="made", value_range=(0, 255)) as writer:
            for i, case in enumerate(dataset):
                origin = Synthetic("a-run", 0, {}, tuple(brains.splits["train"]))
                changes = {"case_id": f"s{i}", "patient_id": f"s{i}", "origin": origin}
                writer.add(type(case)(**(vars(case) | changes)))
    told = synthoma("privacy", brains.folder, tmp_path / "copied", expect=3)
    assert f"{len(copied)} of {len(copied)} images are copies" in told
    assert f"s0 of {copied[0].case_id}" in told
    assert "s5 of" not in told  # the first five are named
    said = synthoma("privacy", brains.folder, tmp_path / "honest")
    assert "no copies found" in said
    assert f"{len(honest)} images (image) compared with {len(copied)}" in said


def test_privacy_compares_what_was_painted_unless_told_otherwise(synthoma, brains, pasted):
    """The surroundings of what was painted are real by construction."""
    assert "12 images (boxes) compared" in synthoma("privacy", brains.folder, pasted.folder)
    whole = ("--region", "image")
    assert "are copies" in synthoma("privacy", brains.folder, pasted.folder, *whole, expect=3)
    wrong = synthoma("privacy", brains.folder, pasted.folder, "--region", "head", expect=2)
    assert "image, boxes" in wrong
    stranger = synthoma("privacy", pasted.folder, pasted.folder, expect=3)
    assert "no generator" in stranger
    swapped = synthoma("privacy", pasted.folder, brains.folder, expect=3)
    n = len(brains)
    assert f"{brains.folder}: not a synthetic folder, {n} of its {n} cases are of" in swapped
    assert "the order is REAL SYNTH" in swapped
