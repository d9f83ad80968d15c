"""The classifier as a system: what it is made of, learns, keeps, and says of a test set."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from synthoma.cli import main
from synthoma.data.batches import Pool
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.engine.evaluate import classifier_figures, classify_all
from synthoma.engine.run import Run
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.errors import DataError, LeakError, ResourceError, SettingsError
from synthoma.nn import features
from synthoma.studies.classification import (
    answers_in,
    file_sizes,
    judge_classifier,
    shortcut_baselines,
)
from synthoma.synthesis.fit import fit, in_steps, load_trained, resume
from synthoma.synthesis.label import label as give_labels
from synthoma.synthesis.mixture import TrainingData
from synthoma.tasks import backbones
from synthoma.tasks.backbones import LITE0, SMALL_RESNET
from synthoma.tasks.classifier import PRESETS, SYSTEM, ClassifierConfig, fitted, mixed

TINY = ClassifierConfig(
    backbone=SMALL_RESNET, width=4, side_px=16, batch_size=8, dropout=0.2, learning_rate=0.05
)
LOOP = TrainSettings(steps=12, checkpoint_every=3, log_every=1, keep_checkpoints=99)


def shapes(out, classes=("disc", "ring", "none"), *, patients=20, a_patient=3, side=16, channels=1):
    """Noise with a bright disc, a ring or nothing somewhere; a class a slice."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    with DatasetWriter(out, patients_from="made", value_range=(0, 255)) as writer:
        for i in range(patients * a_patient):
            label = classes[i % len(classes)]
            far = np.hypot(*(grid - chance.uniform(5, side - 5) for grid in (y, x)))
            lit = {"disc": far < 4, "ring": (far > 2.5) & (far < 4.5), "none": far < 0}[label]
            values = (chance.uniform(0, 60, (channels, side, side)) + 180 * lit).astype(np.uint8)
            writer.add(Case(f"c{i:03}", f"p{i // a_patient:02}", Image(values), label=label))
    return Dataset.open(out)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("two") / "data", ("disc", "none"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("three") / "data", channels=3)


@pytest.fixture(scope="module")
def trained(two):
    """A run that learnt discs in 40 steps."""
    run = two.folder.parent / "run"
    loop = LOOP.model_copy(
        update={"steps": 40, "validate_every": 10, "keep_best": "auc", "checkpoint_every": 20}
    )
    fit("classifier", run, TrainingData(data=two.folder), settings=(TINY, loop), device="cpu")
    return run


def trained_on(dataset, run, config, loop=LOOP):
    data = TrainingData(data=dataset.folder)
    return fit("classifier", run, data, settings=(config, loop), device="cpu")


def built(**changes):
    torch.manual_seed(0)
    return SYSTEM(TINY.model_copy(update=changes))


# ---- what it is


def test_the_papers_network_is_resnet_50_with_dropout_linear_and_batch_norm_at_its_end():
    preset = PRESETS["paper"]
    system = SYSTEM(preset.system)
    assert [type(layer) for layer in system.head] == [nn.Dropout, nn.Linear, nn.BatchNorm1d]
    assert (system.head[0].p, system.head[1].in_features, system.head[1].out_features) == (
        0.5, 2048, 1,
    )  # fmt: skip
    assert sum(p.numel() for p in system.backbone.parameters()) == 23_508_032
    assert system.request(1).size == 96
    (group, _) = system.players(1)[0].optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (1e-2, 0.9)


def test_medmnists_network_is_resnet_18_with_a_3x3_stem():
    """11.17 M weights, as theirs; the last maps of 28 pixels are 4x4."""
    scaled, network, n = backbones.make(SMALL_RESNET, channels=1, width=64)
    assert isinstance(scaled, nn.Identity)
    assert (n, sum(p.numel() for p in network.parameters())) == (512, 11_167_680)
    maps = nn.Sequential(*list(network)[:-2])
    assert maps(torch.zeros(1, 1, 28, 28)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize(("weights", "wanted"), [("none", (0.1, 20)), ("file.pth", (0.5, 5))])
def test_rates_drop_as_the_paper_says_with_and_without_first_weights(weights, wanted):
    factor, every = wanted
    config = ClassifierConfig(weights=weights, steps_per_epoch=88)
    rate = SYSTEM.rate
    system = type("Told", (), {"config": config})
    for epoch in (0, 1, every - 1, every, 2 * every, 3 * every + 1):
        for step in (epoch * 88 + 1, epoch * 88 + 88):
            assert rate(system, step, 10_000) == pytest.approx(factor ** (epoch // every))


def test_probabilities_of_two_classes_come_of_one_logit_and_stay_apart_when_sure():
    system = built(classes=("a", "b")).eval()
    nn.init.constant_(system.head[-1].bias, 25.0)
    found = system.classify(torch.zeros(2, 1, 16, 16))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert (found[:, 0] > 0).all()
    assert (found[:, 1] > found[:, 0]).all()
    assert built(classes=("a", "b", "c")).eval().classify(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_the_loss_falls_when_the_second_class_is_said_of_what_is_of_it():
    system = built(classes=("a", "b"), output_norm=False).eval()
    nn.init.zeros_(system.head[1].weight)
    nn.init.constant_(system.head[1].bias, 3.0)
    turn = Turn(1, 0, torch.Generator().manual_seed(0))
    image = torch.zeros(4, 1, 16, 16)
    loss = {
        k: system.losses("classifier", {"image": image, "label": torch.full((4,), k)}, turn)
        for k in (0, 1)
    }
    assert loss[1]["cross_entropy"].item() == pytest.approx(math.log1p(math.exp(-3)))
    assert loss[0]["cross_entropy"].item() == pytest.approx(3 + math.log1p(math.exp(-3)))


def test_mixup_blends_labels_as_it_blends_images():
    labels = torch.eye(3)[torch.arange(6) % 3]
    image = labels.argmax(1).float().reshape(6, 1, 1, 1)
    found, wanted = mixed(image, labels, 0.4, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.flatten(), wanted @ torch.arange(3.0))
    torch.testing.assert_close(wanted.sum(dim=1), torch.ones(6))
    assert not torch.equal(wanted, labels)
    again, _ = mixed(image, labels, 0.4, torch.Generator().manual_seed(1))
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small"])
def test_networks_of_torchvision_are_taken_by_name_without_their_last_layer(name):
    scaled, network, n = backbones.make(name, channels=1, width=64)
    with torch.no_grad():
        assert network.eval()(scaled(torch.zeros(1, 1, 64, 64))).shape == (1, n)


def test_imagenets_networks_are_given_three_channels_scaled_as_they_learnt():
    grey = torch.full((1, 1, 2, 2), 2 * 0.456 - 1)
    found = backbones.Scaled()(grey)
    assert found.shape == (1, 3, 2, 2)
    assert found[0, 1].abs().max() < 1e-6
    assert found[0, 0, 0, 0].item() == pytest.approx((0.456 - 0.485) / 0.229, rel=1e-5)


def test_a_network_that_is_not_there_is_named_with_those_that_are(two):
    with pytest.raises(SettingsError, match=r"resnet51.*resnet50"):
        fitted(TINY.model_copy(update={"backbone": "resnet51"}), {"real": Pool([two])})


# ---- what the data decide


def test_the_data_decide_classes_channels_and_how_long_an_epoch_is(two, three):
    config = fitted(TINY, {"real": Pool([three])})
    assert (config.classes, config.channels) == (("disc", "none", "ring"), 3)
    assert config.steps_per_epoch == 8  # 60 images, 8 a batch
    longer = TINY.model_copy(update={"steps_per_epoch": 50})
    assert fitted(longer, {"real": Pool([two])}).steps_per_epoch == 50


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"classes": ("disc", "square")}, "labels are disc, none; the settings say disc, square"),
        ({"positive": "ring"}, "no label 'ring'"),
    ],
)
def test_other_classes_than_the_datas_are_refused(two, changes, why):
    with pytest.raises(DataError, match=why):
        fitted(TINY.model_copy(update=changes), {"real": Pool([two])})


def test_one_label_is_not_enough(tmp_path):
    with pytest.raises(DataError, match="labels are disc; at least two"):
        fitted(TINY, {"real": Pool([shapes(tmp_path / "one", ("disc",), patients=2)])})


def test_epochs_are_turned_into_steps_and_validations():
    loop = PRESETS["paper"].train
    config = TINY.model_copy(update={"steps_per_epoch": 88})
    found = in_steps(loop, config)
    assert (found.steps, found.validate_every, found.patience) == (200 * 88, 88, 20)
    assert in_steps(loop.model_copy(update={"steps": 100}), config).steps == 100
    assert in_steps(LOOP, config) == LOOP
    with pytest.raises(SettingsError, match="counts no epochs"):
        in_steps(loop, LOOP)


# ---- first weights


def test_first_weights_are_read_once_checked_and_not_needed_again(two, tmp_path):
    donor = built()
    with torch.no_grad():
        donor.backbone[0].weight.add_(1)  # the run begins with the same seed
    path = tmp_path / "weights.pth"
    torch.save(donor.backbone.state_dict(), path)
    config = TINY.model_copy(update={"weights": path, "learning_rate": 1e-12})
    trained_on(two, tmp_path / "run", config, LOOP.model_copy(update={"steps": 1}))
    facts = Run.open(tmp_path / "run").facts["system"]
    assert facts["weights_sha256"] == backbones.digest_of(path)
    path.unlink()
    system, _ = load_trained(tmp_path / "run")
    torch.testing.assert_close(system.backbone[0].weight, donor.backbone[0].weight)


def test_weights_that_are_missing_changed_or_of_another_network_are_refused(two, tmp_path):
    pools = {"real": Pool([two])}
    missing = TINY.model_copy(update={"weights": tmp_path / "nowhere.pth"})
    with pytest.raises(ResourceError, match=r"nowhere\.pth.*No such file"):
        fitted(missing, pools)
    path = tmp_path / "weights.pth"
    torch.save(built(width=6).backbone.state_dict(), path)
    config = fitted(TINY.model_copy(update={"weights": path}), pools)
    with pytest.raises(DataError, match=r"'0\.weight' is \(6, 1, 3, 3\)"):
        SYSTEM(config).begin()
    path.write_bytes(b"something else")
    with pytest.raises(ResourceError, match="SHA-256"):
        SYSTEM(config).begin()
    config = fitted(TINY.model_copy(update={"weights": path}), pools)
    with pytest.raises(DataError, match=r"weights\.pth"):
        SYSTEM(config).begin()


@pytest.mark.parametrize("kind", ["text", "model", "numbers", "nested", "list", "cut", "renamed"])
def test_a_file_that_is_not_weights_is_refused_in_our_own_words(tmp_path, kind):
    """Torch advises weights_only=False, which runs whatever is in the file."""
    donor, path = built().backbone, tmp_path / "weights.pth"
    contents = {"model": donor, "numbers": {"0.weight": 1.0}, "list": [1, 2]}
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        torch.save({"state_dict": donor.state_dict()}, path)
    if kind == "text":
        path.write_bytes(b"something else")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if kind == "renamed":
        path = path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(DataError) as told:
        backbones.read_weights(donor, path, backbones.digest_of(path))
    assert str(told.value) == (
        f"weights {path}: it holds no state dict of tensors; allowed: .safetensors, or a file "
        "saved by torch.save(model.state_dict(), path)"
    )


def test_imagenet_weights_that_are_not_on_this_machine_are_not_fetched(two, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = ClassifierConfig(backbone="resnet50", weights="imagenet")
    with pytest.raises(ResourceError, match=r"downloads nothing.*efficientnet_lite0"):
        fitted(config, {"real": Pool([two])})
    assert not list(tmp_path.rglob("*.pth"))


def test_the_installed_lite0_begins_with_features_that_know_photographs():
    config = ClassifierConfig(backbone=LITE0, weights="imagenet", side_px=32, batch_size=4)
    system = SYSTEM(config).eval()
    image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert not torch.allclose(system.backbone(system.scaled(image)), features.vectors(image))
        system.begin()
        torch.testing.assert_close(
            system.backbone(system.scaled(image)), features.vectors(image), rtol=1e-4, atol=1e-5
        )
    assert all(p.requires_grad for p in system.backbone.parameters())


def test_older_names_of_densenets_are_understood():
    network = backbones.make("densenet121", channels=3, width=64)[1]
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): torch.ones_like(tensor)
        for name, tensor in network.state_dict().items()
    }
    backbones.put(network, {backbones.modern(k): v for k, v in old.items()}, "a file")
    assert network.features.denseblock1.denselayer1.conv2.weight.min() == 1


# ---- training


def content(run):
    kept = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    kept["model"] = (run / "model.safetensors").read_bytes()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return kept | {"log": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}


def test_a_run_that_was_stopped_at_every_step_ends_in_the_bytes_of_one_that_was_not(two, tmp_path):
    """With dropout, batch norm, momentum, a rate that drops, MixUp, parts, and validation."""
    config = TINY.model_copy(
        update={"mix": 0.4, "parts": 2, "steps_per_epoch": 2, "decay_epochs": 2, "decay": 0.5}
    )
    loop = LOOP.model_copy(
        update={"steps": 6, "validate_every": 2, "keep_best": "auc", "checkpoint_every": 1}
    )
    trained_on(two, tmp_path / "whole", config, loop)
    data = TrainingData(data=two.folder)
    broken = tmp_path / "broken"
    outcome = fit("classifier", broken, data, settings=(config, loop), device="cpu", minutes=0)
    while outcome.stopped == "minutes":
        outcome = resume(broken, device="cpu", minutes=0)
    whole, broken = content(tmp_path / "whole"), content(broken)
    assert whole.keys() == broken.keys()
    assert [name for name in whole if whole[name] != broken[name]] == []


def test_it_learns_what_is_in_an_image_and_keeps_the_weights_that_validated_best(two, trained):
    system, facts = load_trained(trained)
    assert system.classes == ("disc", "none")
    validation = [row["validation"] for row in Run.open(trained).read_log() if "validation" in row]
    assert len(validation) == 4
    assert set(validation[0]) >= {"accuracy", "sensitivity", "specificity", "auc"}
    best = max(own["auc"] for own in validation)
    assert classifier_figures(classify_all(system, two.split("validation")))["auc"] == best
    assert facts["best_step"] in (10, 20, 30, 40)
    assert classifier_figures(answers_in(trained, two.split("test")))["auc"] > 0.9


def test_three_classes_are_learnt_with_three_channels(three, tmp_path):
    trained_on(three, tmp_path / "run", TINY, LOOP.model_copy(update={"steps": 40}))
    found = classifier_figures(answers_in(tmp_path / "run", three.split("train")))
    assert found["auc"] > 0.8


def test_a_set_is_answered_in_the_same_way_in_batches_of_any_size(two, trained):
    system, _ = load_trained(trained)
    whole = classify_all(system, two)
    told = []
    parts = classify_all(system, two, batch_size=7, progress=lambda done, n: told.append((done, n)))
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, atol=1e-5)
    np.testing.assert_array_equal(whole.truths, [two.label(i) == "none" for i in range(len(two))])
    assert list(whole.patients) == two.patient_ids
    assert told[-1] == (60, 60)
    assert not system.training


def test_labels_that_the_classifier_does_not_know_are_refused(three, trained):
    system, _ = load_trained(trained)
    with pytest.raises(DataError, match="'ring'; allowed: disc, none"):
        classify_all(system, three)


def test_validation_needs_no_box_where_there_are_labels_and_keeps_no_best_without_a_split(
    two, tmp_path
):
    from synthoma.data.dataset import resplit

    everyone = {"train": two.patients, "validation": [], "test": []}
    alone = resplit(two, tmp_path / "alone", everyone)
    loop = LOOP.model_copy(update={"steps": 2, "keep_best": "auc", "patience": 1})
    outcome = trained_on(alone, tmp_path / "run", TINY, loop)
    assert (outcome.stopped, outcome.step, outcome.best_step) == ("finished", 2, 0)


# ---- judging


def test_a_trained_classifier_is_judged_beside_shortcuts(two, trained):
    lines = judge_classifier(trained, two.folder, split="test", seed=0)
    text = "\n".join(lines)
    for words in ("Accuracy: ", "Sensitivity: ", "Area under the ROC curve: ", "of 'none'",
                  "Shortcut, 8x8 thumbnail: ", "Shortcut, file size: ", "cases of 4 patients",
                  "Only 4 patients"):  # fmt: skip
        assert words in text


def test_the_command_line_judges_a_classifier_too(two, trained, monkeypatch, capsys):
    words = ["synthoma", "evaluate", str(trained), "--data", str(two.folder), "--split", "test"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    assert "Area under the ROC curve: " in capsys.readouterr().out


def test_a_classifier_that_saw_a_test_patient_is_not_judged(two, trained, tmp_path):
    from synthoma.data.dataset import resplit

    splits = two.splits
    swapped = splits | {"train": splits["test"], "test": splits["train"]}
    resplit(two, tmp_path / "swapped", swapped)
    with pytest.raises(LeakError):
        judge_classifier(trained, tmp_path / "swapped", split="test", seed=0)


def test_a_shortcut_tells_classes_by_brightness_or_by_detail_alone(tmp_path):
    chance = np.random.default_rng(0)
    for name, grey, noise in (("bright", 40, 1), ("busy", 0, 40)):
        with DatasetWriter(tmp_path / name, patients_from="made", value_range=(0, 255)) as writer:
            for i in range(40):
                values = (
                    120 + grey * (i % 2) + (1 + noise * (i % 2)) * chance.normal(size=(1, 16, 16))
                )
                image = Image(np.clip(values, 0, 255).astype(np.uint8))
                writer.add(Case(f"c{i}", f"p{i}", image, label="ab"[i % 2]))
    found = {}
    for name in ("bright", "busy"):
        data = Dataset.open(tmp_path / name)
        told = shortcut_baselines(data.split("train"), data.split("test"))
        found[name] = {shortcut: classifier_figures(own)["auc"] for shortcut, own in told.items()}
    assert found["bright"]["8x8 thumbnail"] == 1
    assert found["busy"]["file size"] == 1
    sizes = file_sizes(Dataset.open(tmp_path / "busy"))[:, 0]
    assert sizes[1::2].min() > sizes[::2].max()


# ---- what it labels


@pytest.fixture(scope="module")
def half_labelled(two):
    """The slices of `two`, every second without its label."""
    out = two.folder.parent / "half"
    with DatasetWriter(
        out, patients_from="made", value_range=(0, 255), splits=dict(two.splits)
    ) as writer:
        for i, case in enumerate(two):
            writer.add(case if (i // 2) % 2 else replace(case, label=None))
    return Dataset.open(out)


def test_cases_without_a_label_get_one_where_the_classifier_is_sure_and_the_others_go(
    half_labelled, two, trained, tmp_path
):
    made = give_labels(half_labelled, trained, tmp_path / "made", sure=0.8)
    truth = {case.case_id: case.label for case in two}
    known = {case.case_id: case.label for case in half_labelled}
    guessed = [case for case in made if known[case.case_id] is None]
    assert all(case.label == known[case.case_id] for case in made if known[case.case_id])
    assert {case.case_id for case in made} >= {name for name, label in known.items() if label}
    assert len(guessed) > 10
    assert np.mean([case.label == truth[case.case_id] for case in guessed]) > 0.8
    run_id = Run.open(trained).facts["id"]
    for case in guessed:
        assert case.traits["labelled_by"] == run_id
        assert 0.8 <= case.traits["label_probability"] <= 1
    told = made.about["labelled"]
    assert (told["asked"], sum(told["given"].values())) == (30, len(guessed))
    assert made.about["dropped"]["no class is at least 80% likely"]["n"] == 30 - len(guessed)
    assert set(made.splits["train"]) <= set(two.splits["train"])


def test_slices_of_one_label_alone_are_kept_where_asked(half_labelled, trained, tmp_path):
    made = give_labels(half_labelled, trained, tmp_path / "made", sure=0.5, keep="disc")
    assert list(made.labels) == ["disc"]
    assert made.about["dropped"]["not disc"]["n"] > 10


def test_labels_are_not_given_where_there_is_nothing_to_ask_or_nobody_to_tell(
    half_labelled, two, trained, tmp_path
):
    with pytest.raises(DataError, match="every case has a label already"):
        give_labels(two, trained, tmp_path / "made")
    with pytest.raises(SettingsError, match="allowed: disc, none"):
        give_labels(half_labelled, trained, tmp_path / "made", keep="ring")
    with pytest.raises(SettingsError, match="sure=0; allowed"):
        give_labels(half_labelled, trained, tmp_path / "made", sure=0)
    assert not (tmp_path / "made").exists()


def test_the_verb_says_what_was_labelled(half_labelled, trained, tmp_path, capsys, monkeypatch):
    given = [half_labelled.folder, "--by", trained, "--out", tmp_path / "made"]
    monkeypatch.setattr(sys, "argv", ["synthoma", "label", *map(str, given)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert "30 cases had no label; the classifier was sure of" in said.out + said.err
