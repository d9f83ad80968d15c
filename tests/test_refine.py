"""Refining a folder: the same bytes for the same run and seed; all but the image is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from safetensors import safe_open

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.split import all_to_train
from synthoma.data.store import DatasetWriter
from synthoma.engine.run import Run
from synthoma.engine.system import Refiner
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.metrics.refining import changes
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis import refine as refining
from synthoma.synthesis.fit import fit, load_trained
from synthoma.synthesis.mixture import TrainingData, open_pools
from synthoma.synthesis.refine import refine

SMALL = {
    "simgan": {
        "side_px": 16,
        "width": 4,
        "blocks": 1,
        "judge_width": 4,
        "batch_size": 2,
        "history": 3,
        "refiner_steps": 1,
        "judge_steps": 1,
    },
    "munit": {
        "side_px": 16,
        "width": 4,
        "blocks": 1,
        "style_width": 8,
        "judge_width": 4,
        "scales": 1,
        "batch_size": 2,
    },
    "pggan": {
        "side_px": 16,
        "widest": 8,
        "noise_dim": 8,
        "batch_size": 4,
        "stable_images": 8,
        "fade_images": 8,
    },
}


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refine") / "brains"
    return write_brains(folder, BrainConfig(side_px=32, patients=10, slices_per_patient=3), seed=0)


def write_drawn(out, saw, *, labels=("tumour", "normal"), images=None, channels=1, **about):
    """A folder of synthetic images, as `draw` writes one, that a generator drew who saw `saw`."""
    chance = np.random.default_rng(0)
    with DatasetWriter(
        out,
        patients_from="synthetic: one an image",
        value_range=(0, 255),
        splits=all_to_train,
        about=about,
    ) as writer:
        for i in range(12 if images is None else len(images)):
            values = chance.integers(0, 256, (channels, 32, 32), np.uint8)
            if images is not None:
                values = images[i]
            writer.add(
                Case(
                    f"drawn/{i:02}",
                    f"drawn/{i:02}",
                    Image(values, spacing_mm=(1.0, 2.0)),
                    label=labels[i % len(labels)],
                    boxes=np.array([[4, 6, 12, 20]], np.float32) + i % 3,
                    box_labels=("metastasis",),
                    traits={"slice": i},
                    origin=Synthetic("pggan-x", 7, {"index": i}, tuple(saw)),
                )
            )
    return Dataset.open(out)


@pytest.fixture(scope="module")
def drawn(brains):
    """Drawn by a generator that saw a training patient, and one of another hospital."""
    saw = [brains.splits["train"][0], "elsewhere-1"]
    return write_drawn(brains.folder.parent / "drawn", saw)


def trained(name, brains, drawn, out, **data):
    overrides = {"system": SMALL[name], "train": {"steps": 5, "precision": "float32"}}
    wanted = TrainingData(data=brains.folder, source=drawn.folder if drawn else None, **data)
    fit(name, out, wanted, preset="smoke", overrides=overrides, device="cpu")
    return out


@pytest.fixture(scope="module")
def simgan(brains, drawn):
    return trained("simgan", brains, drawn, brains.folder.parent / "simgan")


@pytest.fixture(scope="module")
def munit(brains, drawn):
    return trained("munit", brains, drawn, brains.folder.parent / "munit")


def bytes_of(dataset):
    shards = [path.read_bytes() for path in sorted((dataset.folder / "shards").iterdir())]
    return (dataset.folder / "cases.jsonl").read_bytes(), shards


def pixels(dataset):
    return [case.image.values for case in dataset]


# --- what is written ---------------------------------------------------------------------------


def test_the_number_of_workers_changes_no_byte(munit, drawn, tmp_path):
    made = [refine(munit, drawn, tmp_path / f"w{n}", seed=5, workers=n) for n in (1, 3)]
    assert bytes_of(made[0]) == bytes_of(made[1])


def test_a_case_is_refined_alike_whatever_is_refined_beside_it(munit, drawn, tmp_path):
    whole = refine(munit, drawn, tmp_path / "whole", seed=5)
    some = refine(munit, drawn.take(np.array([7, 2])), tmp_path / "some", seed=5)
    assert [case.case_id for case in some] == [whole[7].case_id, whole[2].case_id]
    for a, b in zip(pixels(some), (pixels(whole)[7], pixels(whole)[2]), strict=True):
        assert np.array_equal(a, b)


def test_the_seed_decides_styles_and_nothing_where_there_are_none(munit, simgan, drawn, tmp_path):
    one, two = (pixels(refine(munit, drawn, tmp_path / f"m{s}", seed=s)) for s in (1, 2))
    assert not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    one, two = (pixels(refine(simgan, drawn, tmp_path / f"s{s}", seed=s)) for s in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_labels_boxes_traits_and_conditions_stay_and_boxes_follow_the_side(simgan, drawn, tmp_path):
    made = refine(simgan, drawn, tmp_path / "made", seed=3)
    assert len(made) == len(drawn)
    for case, source in zip(made, drawn, strict=True):
        assert case.image.values.shape == (1, 16, 16)
        assert case.image.values.dtype == np.uint8
        assert case.image.spacing_mm == (2.0, 4.0)
        assert (case.label, case.box_labels) == (source.label, source.box_labels)
        assert case.boxes.tolist() == (source.boxes / 2).tolist()
        assert case.traits == source.traits
        assert case.origin.seed == 3
        told = {"refined_from": source.case_id, "drawn_by": "pggan-x"}
        assert case.origin.conditions == source.origin.conditions | told
    assert len(made.split("train")) == len(made)
    assert made.about["refined"]["digest"] == drawn.about["digest"]


def test_cases_tell_whom_the_refiner_saw_and_whom_the_generators_saw(
    simgan, brains, drawn, tmp_path
):
    facts = Run.open(simgan).facts
    made = refine(simgan, drawn, tmp_path / "made", seed=0)
    assert made.generators_saw == {facts["id"]: sorted({*brains.splits["train"], "elsewhere-1"})}
    other = write_drawn(tmp_path / "other", ["elsewhere-2"])
    seen = refine(simgan, other, tmp_path / "seen", seed=0).generators_saw[facts["id"]]
    assert {"elsewhere-1", "elsewhere-2"} < set(seen)  # of the training source, of this one


def test_how_far_images_went_is_recorded(simgan, drawn, tmp_path):
    made = refine(simgan, drawn, tmp_path / "made", seed=0)
    system, _ = load_trained(simgan)
    halves = [
        case.image.values.astype(np.float32).reshape(1, 16, 2, 16, 2).mean((2, 4)) / 127.5 - 1
        for case in drawn
    ]
    image = np.stack([case.image.values / np.float32(127.5) - 1 for case in made])
    found = changes(np.stack(halves), image)
    for name in ("distance", "shape", "texture"):
        assert made.about["refined"][name] == pytest.approx(found[name].mean(), abs=0.02)
    assert isinstance(system, Refiner)


# --- what is refused ---------------------------------------------------------------------------


def test_a_generator_that_saw_a_held_out_patient_is_refused(simgan, brains, tmp_path):
    for split in ("validation", "test"):
        leaky = write_drawn(tmp_path / f"leaky {split}", [brains.splits[split][0]])
        with pytest.raises(LeakError, match=f"saw 1 {split} patient"):
            refine(simgan, leaky, tmp_path / "x", seed=0)
        with pytest.raises(LeakError, match="saw 1"):
            open_pools(TrainingData(data=brains.folder, source=leaky.folder))
    with pytest.raises(LeakError):  # real images of such patients as well
        refine(simgan, brains, tmp_path / "x", seed=0)
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_the_refiner_is_named(simgan, brains, drawn, tmp_path):
    colour = write_drawn(tmp_path / "colour", [], channels=3)
    with pytest.raises(DataError, match=r"colour: case 'drawn/00' has 3 channels .* images of 1"):
        refine(simgan, colour, tmp_path / "x", seed=0)
    with pytest.raises(DataError, match="no case to refine"):
        refine(simgan, drawn.take(np.array([], np.int64)), tmp_path / "x", seed=0)
    gan = trained("pggan", brains, None, tmp_path / "gan")
    with pytest.raises(SettingsError, match="pggan does not refine images; allowed: refiners"):
        refine(gan, drawn, tmp_path / "x", seed=0)
    with pytest.raises(DataError, match=r"brains: a refiner needs a second domain.*--source"):
        trained("simgan", brains, None, tmp_path / "x")
    with pytest.raises(DataError, match=r"brains has images of 1 channels, but .*colour of 3"):
        trained("simgan", brains, colour, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_refiner_of_one_class_has_a_source_of_that_class_and_refines_no_other(
    brains, drawn, tmp_path
):
    wanted = {"where": {"label": "tumour"}}
    pools = open_pools(TrainingData(data=brains.folder, source=drawn.folder, **wanted))
    (source,) = pools.domains["source"].datasets
    assert {case.label for case in source} == {"tumour"}
    run = trained("simgan", brains, drawn, tmp_path / "run", **wanted)
    with pytest.raises(DataError, match=r"'drawn/01' is of class 'normal'.*--where label=tumour"):
        refine(run, drawn, tmp_path / "x", seed=0)
    made = refine(run, drawn.where(label="tumour"), tmp_path / "made", seed=0)
    assert {case.label for case in made} == {"tumour"}


def test_of_several_refiners_each_image_goes_through_that_of_its_class(brains, drawn, tmp_path):
    runs = [
        trained("simgan", brains, drawn, tmp_path / label, where={"label": label})
        for label in ("tumour", "normal")
    ]
    made = refine(runs, drawn, tmp_path / "made", seed=2)
    assert [case.label for case in made] == [case.label for case in drawn]
    for run, label in zip(runs, ("tumour", "normal"), strict=True):
        alone = refine(run, drawn.where(label=label), tmp_path / f"of-{label}", seed=2)
        for one, other in zip(alone, made.where(label=label), strict=True):
            assert (one.image.values == other.image.values).all()
            assert one.origin.run == other.origin.run
    with pytest.raises(SettingsError, match="2 refiners of 1 classes"):
        refine([runs[0], runs[0]], drawn, tmp_path / "x", seed=0)
    third = write_drawn(tmp_path / "third", [], labels=("tumour", "normal", "cyst"))
    with pytest.raises(DataError, match="no refiner was trained on cyst"):
        refine(runs, third, tmp_path / "x", seed=0)


def test_of_several_refiners_none_was_trained_on_all_classes(simgan, drawn, tmp_path):
    with pytest.raises(SettingsError, match="trained on all classes"):
        refine([simgan, simgan], drawn, tmp_path / "x", seed=0)


class Unchanged(Refiner):
    """Refines nothing: what it makes of copies are copies."""

    side_px = 32

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.weight = torch.nn.Parameter(torch.zeros(()))

    def request(self, step):
        raise NotImplementedError

    def players(self, step):
        raise NotImplementedError

    def losses(self, player, batch, turn):
        raise NotImplementedError

    def refine(self, image, style=None):
        return image


def test_copies_of_training_images_are_left_out_and_counted(
    simgan, brains, drawn, tmp_path, monkeypatch
):
    _, facts = refining.load_refiner(simgan, "cpu")
    monkeypatch.setattr(refining, "load_refiner", lambda run, device, step: (Unchanged(), facts))
    training = brains.split("train")
    images = [training[i].image.values for i in (0, 4)] + pixels(drawn)[:3]
    mixed = write_drawn(tmp_path / "mixed", [], images=images)
    made = refine(simgan, mixed, tmp_path / "made", seed=0)
    assert [case.origin.conditions["index"] for case in made] == [2, 3, 4]
    assert made.about["dropped"]["a copy of a training image"]["n"] == 2
    assert made.about["refined"]["distance"] < 0.01


# --- the run -----------------------------------------------------------------------------------


def test_the_history_is_in_the_checkpoint_and_not_in_the_model_to_share(simgan):
    run = Run.open(simgan)
    assert run.load("step-00000005")["system"]["history"].shape == (3, 1, 16, 16)
    with safe_open(str(simgan / "model.safetensors"), framework="pt") as file:
        names = set(file.keys())
    assert not names & {"history", "remembered"}
    system, _ = load_trained(simgan)
    assert set(system.state_dict()) == names | {"history", "remembered"}
    assert not system.history.any()


def test_a_run_shows_pairs_and_logs_what_refining_does(munit):
    rows = [json.loads(line) for line in (munit / "log.jsonl").read_text().splitlines()]
    (found,) = [row["refining"] for row in rows if "refining" in row]
    assert found.keys() == {"distance", "shape", "texture"}
    assert any("refined/distance" in row for row in rows)
    with Picture.open(munit / "samples" / "step-00000005.png") as sheet:
        assert sheet.size == (8 * 130 - 2, 4 * 130 - 2)  # sixteen pairs, four in a row
        assert sheet.text["Synthetic"] == "yes"
        grid = np.asarray(sheet)
    assert not np.array_equal(grid[:128, :128], grid[:128, 130:258])


def test_the_verb_refines_the_training_split(simgan, drawn, tmp_path, monkeypatch, capsys):
    from synthoma.cli import main

    words = ["synthoma", "refine", str(simgan), "--data", str(drawn.folder)]
    words += ["--out", str(tmp_path / "made"), "--where", "label=normal", "--workers", "1"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    assert "6 refined images" in capsys.readouterr().out
    assert len(Dataset.open(Path(tmp_path / "made"))) == 6


# --- the measures ------------------------------------------------------------------------------


def test_shape_and_texture_are_told_apart():
    chance = np.random.default_rng(0)
    coarse = np.kron(chance.random((3, 1, 16, 16)), np.ones((4, 4)))
    grain = 0.1 * chance.standard_normal((3, 1, 64, 64))
    rough, other = coarse + grain, coarse + 0.1 * chance.standard_normal((3, 1, 64, 64))
    same = changes(rough, rough)
    assert (same["distance"] == 0).all()
    assert np.allclose(same["shape"], 1)
    assert (same["texture"] == 0).all()
    grained = changes(rough, other)
    assert (grained["shape"] > 0.95).all()
    assert np.allclose(grained["texture"], 0.5**0.5, atol=0.05)  # as for any two unlike textures
    moved = changes(rough, rough[:, :, ::-1])
    assert (moved["shape"] < 0.3).all()
