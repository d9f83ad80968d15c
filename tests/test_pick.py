"""A refiner's steps are picked by what a classifier learns from its images."""

import json

import numpy as np
import pytest

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.engine.run import Run
from synthoma.errors import DataError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis import pick
from synthoma.synthesis.draw import all_to_train
from synthoma.synthesis.fit import fit
from synthoma.synthesis.mixture import TrainingData
from synthoma.synthesis.pick import refine_best
from synthoma.synthesis.refine import refine

SIMGAN = {
    "system": {
        "side_px": 16,
        "width": 4,
        "blocks": 1,
        "judge_width": 4,
        "batch_size": 2,
        "history": 3,
        "refiner_steps": 1,
        "judge_steps": 1,
    },
    "train": {"steps": 6, "precision": "float32", "checkpoint_every": 2, "keep_checkpoints": 3},
}
#: A classifier of a second, which validates at its end.
TINY = {
    "system": {"side_px": 16, "width": 4, "batch_size": 8},
    "train": {"steps": 3, "validate_every": 1},
}


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pick") / "brains"
    return write_brains(folder, BrainConfig(side_px=32, patients=20, slices_per_patient=3), seed=0)


@pytest.fixture(scope="module")
def drawn(brains):
    chance, saw = np.random.default_rng(0), tuple(brains.splits["train"])
    with DatasetWriter(
        brains.folder.parent / "drawn",
        patients_from="synthetic: one an image",
        value_range=(0, 255),
        splits=all_to_train,
    ) as writer:
        for i in range(12):
            values = chance.integers(0, 256, (1, 32, 32), np.uint8)
            origin = Synthetic("pggan-x", 7, {"index": i}, saw)
            label = ("normal", "tumour")[i % 2]
            writer.add(Case(f"d/{i}", f"d/{i}", Image(values), label=label, origin=origin))
    return Dataset.open(brains.folder.parent / "drawn")


@pytest.fixture(scope="module")
def simgan(brains, drawn):
    out = brains.folder.parent / "simgan"
    data = TrainingData(data=brains.folder, source=drawn.folder)
    fit("simgan", out, data, preset="smoke", overrides=SIMGAN, device="cpu")
    return out


def best(simgan, drawn, out, tries, **more):
    return refine_best(
        simgan, drawn, out, tries, preset="smoke", overrides=TINY, seed=3, workers=1, **more
    )


def pixels(dataset):
    return [case.image.values.tolist() for case in dataset]


def test_a_checkpoint_refines_as_the_run_did_then(simgan, drawn, tmp_path):
    assert Run.open(simgan).steps_saved() == [2, 4, 6]
    made = {
        step: refine(simgan, drawn, tmp_path / str(step), seed=3, step=step)
        for step in (2, 6, None)
    }
    assert pixels(made[6]) == pixels(made[None])
    assert pixels(made[2]) != pixels(made[6])
    assert made[2].about["runs"][0]["step"] == 2
    with pytest.raises(DataError, match=r"no checkpoint of step 5; there are: 2, 4, 6"):
        refine(simgan, drawn, tmp_path / "x", seed=3, step=5)


def test_each_checkpoint_is_tried_with_a_classifier_of_real_and_refined_images(
    simgan, brains, drawn, tmp_path
):
    made = best(simgan, drawn, tmp_path / "made", tmp_path / "tries")
    picked = made.about["refined"]["picked"]
    assert list(picked["accuracy"]) == ["2", "4", "6"]
    for step, accuracy in picked["accuracy"].items():
        run = tmp_path / "tries" / f"step-{int(step):08}" / "classifier"
        facts = json.loads((run / "run.json").read_text())
        assert (facts["n_real"], facts["n_synthetic"]) == (len(brains.split("train")), 12)
        judged = [
            r["validation"]["accuracy"] for r in Run.open(run).read_log() if "validation" in r
        ]
        assert len(judged) == 3
        assert accuracy == pytest.approx(max(judged), abs=1e-4)
    tried = Dataset.open(tmp_path / "tries" / f"step-{picked['step']:08}" / "refined")
    assert pixels(made) == pixels(tried)


@pytest.mark.parametrize(("accuracies", "step"), [((0.5, 0.9, 0.7), 4), ((0.8, 0.6, 0.8), 2)])
def test_the_best_in_validation_wins_and_of_equals_the_shortest(
    simgan, drawn, tmp_path, monkeypatch, accuracies, step
):
    told = iter(accuracies)
    monkeypatch.setattr(pick, "accuracy_with", lambda *given, **named: next(told))
    made = best(simgan, drawn, tmp_path / "made", tmp_path / "tries")
    assert made.about["refined"]["picked"]["step"] == step
    assert made.about["runs"][0]["step"] == step
    assert made.about["refined"]["picked"]["accuracy"]["4"] == accuracies[1]


def test_what_was_tried_is_not_repeated_and_others_can_be_asked_for(
    simgan, drawn, tmp_path, monkeypatch
):
    one = best(simgan, drawn, tmp_path / "one", tmp_path / "tries", steps=(2,))

    def never(*given, **named):
        raise AssertionError("trained again")

    monkeypatch.setattr("synthoma.synthesis.fit.fit", never)
    two = best(simgan, drawn, tmp_path / "two", tmp_path / "tries", steps=(2,))
    assert pixels(one) == pixels(two)
    assert one.about["refined"] == two.about["refined"]
    with pytest.raises(AssertionError, match="trained again"):
        best(simgan, drawn, tmp_path / "three", tmp_path / "tries", steps=(2, 4))
    with pytest.raises(SettingsError, match="nothing is overwritten"):
        best(simgan, drawn, tmp_path / "one", tmp_path / "tries")
    with pytest.raises(DataError, match="no checkpoint of step 3"):
        best(simgan, drawn, tmp_path / "four", tmp_path / "tries", steps=(3,))


def test_where_the_minutes_are_up_the_same_call_goes_on(simgan, drawn, tmp_path):
    assert best(simgan, drawn, tmp_path / "made", tmp_path / "tries", minutes=0.0) is None
    assert not (tmp_path / "made").exists()
    made = best(simgan, drawn, tmp_path / "made", tmp_path / "tries")
    assert made.about["refined"]["picked"]["accuracy"].keys() == {"2", "4", "6"}


def test_refiners_of_a_class_each_are_tried_at_the_same_steps(brains, drawn, tmp_path):
    runs = []
    for label in ("normal", "tumour"):
        runs.append(tmp_path / label)
        data = TrainingData(data=brains.folder, source=drawn.folder, where={"label": label})
        fit("simgan", runs[-1], data, preset="smoke", overrides=SIMGAN, device="cpu")
    made = best(runs, drawn, tmp_path / "made", tmp_path / "tries", steps=(4,))
    assert [run["step"] for run in made.about["runs"]] == [4, 4]
    tried = json.loads((tmp_path / "tries/step-00000004/classifier/run.json").read_text())
    assert tried["n_real"] == len(brains.split("train"))  # both classes, not the runs' own


def test_the_verb_picks(simgan, drawn, tmp_path, monkeypatch, capsys):
    from synthoma.cli import main

    def typed(*more):
        words = ["refine", simgan, "--data", drawn.folder, "--out", tmp_path / "made", *more]
        monkeypatch.setattr("sys.argv", ["synthoma", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0

    tiny = [
        word
        for part, fields in TINY.items()
        for name, value in fields.items()
        for word in ("--set", f"{part}.{name}={value}")
    ]
    assert typed(*tiny) == 2
    assert "go with --pick" in capsys.readouterr().err
    assert typed("--pick", "smoke", "--step", 2, "--step", 6, *tiny) == 0
    said = capsys.readouterr().out
    assert "step 2: validation accuracy" in said
    assert "step 4" not in said
    assert "12 refined images" in said
    assert (tmp_path / "made-tries" / "step-00000006" / "classifier" / "model.json").is_file()
