"""CGAN has the sizes of its paper, obeys classes, and is ordered them in proportion."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthoma.data.batches import Batch, Request
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.engine.run import Run
from synthoma.engine.settings import TrainSettings
from synthoma.engine.train import train
from synthoma.errors import DataError, SettingsError
from synthoma.gans.cgan import CGAN, PRESETS, CGANConfig
from synthoma.settings import replaced
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import fit, load_trained
from synthoma.synthesis.mixture import TrainingData
from synthoma.synthesis.orders import orders_of_classes

CONNECTED = CGANConfig(
    side_px=16,
    classes=("dark", "bright"),
    noise_dim=8,
    noise_units=16,
    label_units=32,
    joint_units=64,
    judged_units=64,
    judged_label_units=32,
    batch_size=16,
    optimizer="adam",
    learning_rate=2e-3,
    decay=1,
)
CONVOLUTIONAL = CONNECTED.model_copy(
    update={"nets": "convolutional", "widest": 16, "batch_size": 8, "learning_rate": 5e-3}
)


def fresh(config: CGANConfig) -> CGAN:
    torch.manual_seed(0)
    return CGAN(config)


@pytest.fixture(params=[CONNECTED, CONVOLUTIONAL], ids=["connected", "convolutional"])
def config(request: pytest.FixtureRequest) -> CGANConfig:
    return request.param


def noise(n: int) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


def dark_or_bright(request: Request, step: int, move: int, part: int = 0) -> Batch:
    chance = torch.Generator().manual_seed(step)
    label = torch.randint(2, (request.size,), generator=chance)
    grain = 0.1 * torch.randn(request.size, 1, 16, 16, generator=chance)
    return {"image": (label * 1.2 - 0.6)[:, None, None, None] + grain, "label": label}


# --- sizes -------------------------------------------------------------------------------------


def test_layers_are_those_of_section_4_1():
    with torch.device("meta"):
        gan = CGAN(PRESETS["paper"].system)
    sizes = {
        key: (layer.in_features, layer.out_features)
        for key, layer in gan.named_modules()
        if isinstance(layer, nn.Linear)
    }
    assert sizes == {
        "generator.noise": (100, 200),
        "generator.label": (10, 1000),
        "generator.joint": (1200, 1200),
        "generator.pixels": (1200, 784),
        "discriminator.image.linear": (784, 240 * 5),
        "discriminator.label.linear": (10, 50 * 5),
        "discriminator.joint.linear": (240 + 50, 240 * 4),
        "discriminator.logit": (240, 1),
    }
    weights = sum(i * o + o for i, o in sizes.values())
    assert sum(p.numel() for p in gan.parameters()) == weights


def test_the_paper_preset_is_the_papers():
    config = PRESETS["paper"].system
    assert config == CGANConfig()
    assert (config.batch_size, config.optimizer, config.learning_rate) == (100, "sgd", 0.1)
    assert (config.momentum, config.decay) == (0.5, 1.00004)


def test_the_label_is_numbers_beside_the_noise_and_maps_beside_the_image():
    with torch.device("meta"):
        gan = CGAN(PRESETS["small"].system.model_copy(update={"classes": ("a", "b", "c")}))
    assert gan.generator.draw.layers[0].in_features == 100 + 3
    assert gan.discriminator.judge.layers[0].in_channels == 1 + 3


# --- what it is told ---------------------------------------------------------------------------


def test_the_discriminator_sees_the_label(config):
    gan, image = fresh(config).eval(), torch.rand(2, 1, 16, 16)
    labels = [gan.one_hot(torch.tensor(pair)).float() for pair in ([0, 0], [1, 1])]
    one, other = (gan.discriminator(image, label) for label in labels)
    assert not torch.equal(one, other)


def test_learns_to_draw_the_class_that_is_ordered(config):
    gan = fresh(config)
    steps = 400 if config.nets == "connected" else 60
    train(gan, dark_or_bright, TrainSettings(steps=steps), seed=0)
    images = gan.sample(noise(32), {"label": torch.arange(32) % 2})
    assert images[0::2].mean() < -0.2
    assert images[1::2].mean() > 0.2


def test_the_same_noise_and_label_draw_the_same_image_whatever_the_batch(config):
    gan, label = fresh(config).eval(), torch.arange(6) % 2
    together = gan.sample(noise(6), {"label": label})
    alone = gan.sample(noise(6)[2:3], {"label": label[2:3]})
    torch.testing.assert_close(together[2:3], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "was given nothing; it needs 'label'"),
        ({"boxes": torch.zeros(0, 4)}, "was given boxes; it needs 'label'"),
        ({"label": torch.tensor([0])}, "1 labels for 2 images"),
        ({"label": torch.tensor([0, 2])}, "labels from 0 to 2; allowed: 0 to 1, for dark, bright"),
    ],
)
def test_labels_that_are_missing_or_wrong_are_refused(given, said):
    with pytest.raises(SettingsError, match=said):
        fresh(CONNECTED).sample(noise(2), given)


def test_a_side_that_the_convolutional_nets_do_not_have_is_refused():
    with pytest.raises(SettingsError, match=r"^system: side_px 28 .* allowed: 16, 32, 64, 128"):
        replaced(CONVOLUTIONAL, {"side_px": 28}, "system")


# --- orders ------------------------------------------------------------------------------------


def test_classes_are_ordered_as_often_as_training_has_them_in_a_seeded_order():
    labels = ["b"] * 6 + ["a"] * 3 + ["c"]
    orders = [orders_of_classes(("a", "b", "c"), labels, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([made(i).label for i in range(30)] for made in orders)
    for round_ in range(3):
        assert Counter(first[10 * round_ : 10 * round_ + 10]) == {"a": 3, "b": 6, "c": 1}
    assert first[:10] != first[10:20]
    assert first == again != other
    assert [orders[0](i).kind for i in range(30)] == ["abc".index(name) for name in first]


def test_one_class_is_ordered_where_it_is_asked_for_and_an_unknown_one_refused():
    only = orders_of_classes(("a", "b", "c"), ["a", "b"], only="b", seed=0)
    assert {(only(i).label, only(i).kind) for i in range(5)} == {("b", 1)}
    with pytest.raises(SettingsError, match=r"label 'c': no case .* allowed: a, b"):
        orders_of_classes(("a", "b", "c"), ["a", "b"], only="c", seed=0)


def write(folder, labels) -> Dataset:
    """Grainy images of one patient each, all for training."""
    chance = np.random.default_rng(0)
    with DatasetWriter(
        folder,
        patients_from="made",
        value_range=(0, 255),
        splits=lambda patients: {"train": patients, "validation": [], "test": []},
    ) as writer:
        for i, label in enumerate(labels):
            grain = chance.integers(0, 80, (1, 16, 16)) + (150 if label == "bright" else 0)
            writer.add(Case(f"c{i}", f"p{i}", Image(grain.astype(np.uint8)), label))
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training on three bright images and one dark one."""
    folder = tmp_path_factory.mktemp("cgan")
    data = write(folder / "data", ["bright", "dark", "bright", "bright"])
    system = CONVOLUTIONAL.model_dump() | {"classes": ("to", "be", "fitted")}
    overrides = {"system": system, "train": {"steps": 60, "precision": "float32"}}
    fit("cgan", folder / "run", TrainingData(data=data.folder), preset="smoke", overrides=overrides)
    return folder / "run"


def test_run_json_keeps_the_classes_in_the_order_of_their_numbers(run):
    assert Run.open(run).facts["system"]["classes"] == ["bright", "dark"]
    system, _ = load_trained(run)
    assert system.config.classes == ("bright", "dark")
    assert list((run / "samples").glob("*.png"))


def test_drawn_cases_have_the_label_that_was_ordered_and_look_like_it(run, tmp_path):
    drawn = draw([run], tmp_path / "drawn", n=16, seed=3)
    assert Counter(case.label for case in drawn) == {"bright": 12, "dark": 4}
    assert all(case.boxes is None for case in drawn)
    means = {label: [] for label in ("bright", "dark")}
    for case in drawn:
        means[case.label].append(case.image.values.mean())
    assert np.mean(means["bright"]) > np.mean(means["dark"]) + 40
    again = draw([run], tmp_path / "again", n=16, seed=3, workers=1)
    for a, b in zip(drawn, again, strict=True):
        assert a.label == b.label
        assert np.array_equal(a.image.values, b.image.values)


def test_sample_orders_one_class(run, tmp_path):
    drawn = draw([run], tmp_path / "dark", n=5, seed=0, label="dark")
    assert {case.label for case in drawn} == {"dark"}
    with pytest.raises(SettingsError, match="allowed: bright, dark"):
        draw([run], tmp_path / "none", n=1, seed=0, label="grey")
    with pytest.raises(SettingsError, match="cgan takes no boxes"):
        draw([run], tmp_path / "none", n=1, seed=0, boxes=[[0, 0, 1, 1]])
    assert not (tmp_path / "none").exists()


def test_a_gan_that_is_told_no_class_refuses_one(run, tmp_path):
    data = TrainingData.model_validate(Run.open(run).facts["data"])
    overrides = {
        "system": {"side_px": 16, "widest": 4, "noise_dim": 4, "batch_size": 2},
        "train": {"steps": 1, "precision": "float32"},
    }
    fit("dcgan", tmp_path / "run", data, preset="smoke", overrides=overrides)
    assert len(draw([tmp_path / "run"], tmp_path / "free", n=2, seed=0)) == 2
    with pytest.raises(SettingsError, match="dcgan takes no label; cgan does"):
        draw([tmp_path / "run"], tmp_path / "drawn", n=2, seed=0, label="dark")


def test_data_without_labels_are_refused_before_training(tmp_path):
    data = write(tmp_path / "data", [None, None])
    with pytest.raises(DataError, match="no case has a label"):
        fit("cgan", tmp_path / "run", TrainingData(data=data.folder), preset="smoke")
    assert not (tmp_path / "run").exists()


def test_a_training_that_is_refused_at_its_first_batch_leaves_no_folder(tmp_path):
    data = write(tmp_path / "data", ["dark", "bright", None])
    overrides = {"system": {"side_px": 16, "widest": 4, "noise_dim": 4, "batch_size": 2}}
    with pytest.raises(DataError, match="has no label"):
        fit(
            "cgan",
            tmp_path / "run",
            TrainingData(data=data.folder),
            preset="smoke",
            overrides=overrides,
        )
    assert not (tmp_path / "run").exists()
