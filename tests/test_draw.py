"""Drawing: the same bytes for the same run and seed, and orders that are kept."""

import numpy as np
import pytest
import torch

from synthoma.data.batches import Request, Server
from synthoma.data.boxes import iou
from synthoma.data.case import Case, Image, Real, Synthetic
from synthoma.data.dataset import Dataset, resplit
from synthoma.data.store import DatasetWriter
from synthoma.engine.run import Run
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis.choose import CONDITIONS
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import fit, load_trained, resume
from synthoma.synthesis.mixture import Mixed, TrainingData, open_pools, select
from synthoma.synthesis.orders import orders_from, orders_of

SMALL = {
    "side_px": 16,
    "widest": 16,
    "noise_dim": 8,
    "batch_size": 4,
    "stable_images": 16,
    "fade_images": 16,
}


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draw") / "brains"
    return write_brains(folder, BrainConfig(side_px=32, patients=10, slices_per_patient=4), seed=0)


def train(name, data, out, steps=24, **changes):
    overrides = {"system": SMALL | changes, "train": {"steps": steps, "precision": "float32"}}
    fit(name, out, TrainingData(data=data), preset="smoke", overrides=overrides)
    return out


@pytest.fixture(scope="module")
def cpggan(brains):
    return train("cpggan", brains.folder, brains.folder.parent / "cpggan")


def bytes_of(dataset):
    folder = dataset.folder
    shards = [path.read_bytes() for path in sorted((folder / "shards").iterdir())]
    return (folder / "cases.jsonl").read_bytes(), shards


def test_the_number_of_workers_changes_no_byte(cpggan, tmp_path):
    drawn = [
        draw([cpggan], tmp_path / f"w{workers}", n=40, seed=5, workers=workers)
        for workers in (1, 2, 3)
    ]
    first, *others = map(bytes_of, drawn)
    assert all(other == first for other in others)


def test_fewer_images_are_the_first_of_more(cpggan, tmp_path):
    few = draw([cpggan], tmp_path / "few", n=5, seed=5)
    many = draw([cpggan], tmp_path / "many", n=21, seed=5)
    for a, b in zip(few, many, strict=False):
        assert a.case_id == b.case_id
        assert np.array_equal(a.image.values, b.image.values)
        assert np.array_equal(a.boxes, b.boxes)


def test_another_seed_draws_other_images_and_orders(cpggan, tmp_path):
    one = draw([cpggan], tmp_path / "one", n=8, seed=1)
    two = draw([cpggan], tmp_path / "two", n=8, seed=2)
    assert not any(np.array_equal(a.image.values, b.image.values) for a in one for b in two)
    assert not all(np.array_equal(a.boxes, b.boxes) for a, b in zip(one, two, strict=True))


def test_every_case_says_that_it_is_synthetic_and_whom_its_generator_saw(cpggan, brains, tmp_path):
    drawn = draw([cpggan], tmp_path / "drawn", n=3, seed=0)
    assert drawn.about["n_synthetic"] == 3
    for case in drawn:
        assert isinstance(case.origin, Synthetic)
        assert case.origin.seed == 0
        assert sorted(case.origin.trained_on) == sorted(brains.splits["train"])
        assert len(case.boxes)
    assert all(isinstance(case.origin, Real) for case in brains)
    assert len(drawn.split("train")) == 3


def test_orders_are_training_boxes_moved_by_a_tenth_at_most(brains):
    train_split = brains.split("train")
    orders = orders_from(train_split, 32, seed=0, conditions=CONDITIONS)
    sizes = np.concatenate([train_split.boxes(i) for i in range(len(train_split))])
    sizes = sizes[:, 2:] - sizes[:, :2]
    for i in range(60):
        order = orders(i)
        assert len(order.boxes)
        assert (order.boxes >= 0).all()
        assert (order.boxes <= 32).all()
        size = order.boxes[:, 2:] - order.boxes[:, :2]
        assert (size.max(0) <= 1.1 * sizes.max(0) + 1e-3).all()
    seen = [orders(i).told["boxes_of"] for i in range(60)]
    assert len(set(seen)) > 10


def test_given_boxes_are_ordered_as_they_are_in_their_own_order(brains):
    with_boxes = [case for case in brains if len(case.boxes)]
    orders = orders_from(brains, 32, seed=9, conditions=None)
    for i in range(2 * len(with_boxes)):
        assert np.array_equal(orders(i).boxes, with_boxes[i % len(with_boxes)].boxes)


def test_boxes_on_the_command_line_are_shares_of_the_side(cpggan, tmp_path):
    drawn = draw([cpggan], tmp_path / "boxed", n=2, seed=0, boxes=[[0.25, 0.5, 0.5, 0.75]])
    assert drawn[1].boxes.tolist() == [[4.0, 8.0, 8.0, 12.0]]
    for wrong in ([0.5, 0.5, 0.4, 0.6], [0, 0, 1.5, 1]):
        with pytest.raises(SettingsError, match="from 0 to 1"):
            orders_of([wrong], 16)


def test_a_set_without_boxes_cannot_order_any(tmp_path):
    normal = write_brains(
        tmp_path / "normal",
        BrainConfig(side_px=32, patients=3, slices_per_patient=1, lesions_max=0),
        seed=0,
    )
    with pytest.raises(DataError, match="no case has a box"):
        orders_from(normal, 32, seed=0, conditions=None)


def test_a_gan_without_conditions_refuses_boxes(brains, tmp_path):
    run = train("pggan", brains.folder, tmp_path / "pggan")
    assert len(draw([run], tmp_path / "free", n=2, seed=0)) == 2
    with pytest.raises(SettingsError, match="takes no boxes"):
        draw([run], tmp_path / "boxed", n=2, seed=0, boxes=[[0, 0, 1, 1]])


def test_a_generator_that_has_not_grown_up_is_not_drawn_from(brains, tmp_path):
    run = train("cpggan", brains.folder, tmp_path / "young", steps=5)
    with pytest.raises(SettingsError, match="8 of 16 px"):
        draw([run], tmp_path / "drawn", n=2, seed=0)
    assert not (tmp_path / "drawn").exists()


def test_an_unfinished_run_is_not_drawn_from(brains, tmp_path):
    overrides = {"system": SMALL, "train": {"steps": 24, "precision": "float32"}}
    data = TrainingData(data=brains.folder)
    fit("cpggan", tmp_path / "run", data, preset="smoke", overrides=overrides, minutes=0)
    with pytest.raises(DataError, match="train --resume"):
        draw([tmp_path / "run"], tmp_path / "drawn", n=2, seed=0)
    assert resume(tmp_path / "run").step == 24
    assert len(draw([tmp_path / "run"], tmp_path / "drawn", n=2, seed=0)) == 2


def test_a_run_whose_dataset_was_exchanged_is_not_resumed(brains, tmp_path):
    config = BrainConfig(side_px=32, patients=4, slices_per_patient=2)
    write_brains(tmp_path / "data", config, seed=1)
    overrides = {"system": SMALL, "train": {"steps": 9}}
    data = TrainingData(data=tmp_path / "data")
    fit("pggan", tmp_path / "run", data, preset="smoke", overrides=overrides, minutes=0)
    (tmp_path / "data").rename(tmp_path / "before")
    write_brains(tmp_path / "data", config, seed=2)
    with pytest.raises(DataError, match="digest differs"):
        resume(tmp_path / "run")


def test_a_run_whose_split_was_exchanged_is_not_resumed(tmp_path):
    """Its cases are the same, but others would be trained on than run.json says."""
    config = BrainConfig(side_px=32, patients=6, slices_per_patient=2)
    data = write_brains(tmp_path / "data", config, seed=1)
    overrides = {"system": SMALL, "train": {"steps": 9}}
    wanted = TrainingData(data=data.folder)
    fit("pggan", tmp_path / "run", wanted, preset="smoke", overrides=overrides, minutes=0)
    turned = {**data.splits, "train": data.splits["test"], "test": data.splits["train"]}
    resplit(data, tmp_path / "turned", turned)
    data.folder.rename(tmp_path / "before")
    (tmp_path / "turned").rename(data.folder)
    with pytest.raises(DataError, match="digest differs"):
        resume(tmp_path / "run")


def test_runs_on_other_patients_have_other_names(brains, tmp_path):
    overrides = {"system": SMALL, "train": {"steps": 1}}
    ids = []
    for patients in (brains.splits["train"][:2], brains.splits["train"][2:4]):
        run = tmp_path / patients[0]
        data = TrainingData(data=brains.folder, patients=tuple(patients))
        fit("pggan", run, data, preset="smoke", overrides=overrides)
        ids.append(Run.open(run).facts["id"])
    assert len(set(ids)) == 2
    with pytest.raises(DataError, match="of patient nobody"):
        open_pools(TrainingData(data=brains.folder, patients=("nobody",)))


def test_any_head_of_a_set_drawn_from_two_runs_has_both(brains, cpggan, tmp_path):
    other = train("cpggan", brains.folder, tmp_path / "other", noise_dim=4)
    both = draw([cpggan, other], tmp_path / "both", n=3, seed=0)
    runs = [case.origin.run for case in both]
    assert runs == [Run.open(cpggan).facts["id"], Run.open(other).facts["id"]] * 3


def test_boxes_of_several_classes_are_not_ordered_from_a_generator_that_knows_one(tmp_path):
    with DatasetWriter(tmp_path / "two", patients_from="made", value_range=(0, 255)) as writer:
        for i, name in enumerate(("cyst", "tumour")):
            writer.add(
                Case(
                    f"c{i}",
                    f"p{i}",
                    Image(np.full((1, 8, 8), i + 1, np.uint8)),
                    boxes=np.array([[1, 1, 4, 4]], np.float32),
                    box_labels=(name,),
                )
            )
    with pytest.raises(SettingsError, match="cyst, tumour"):
        orders_from(Dataset.open(tmp_path / "two"), 8, seed=0, conditions=None)


def test_a_loaded_generator_draws_what_the_trained_one_drew(brains, cpggan):
    system, facts = load_trained(cpggan)
    noise = torch.randn(2, *system.noise_shape, generator=torch.Generator().manual_seed(0))
    given = {"boxes": torch.tensor([[2.0, 2, 6, 6]]), "box_case": torch.tensor([0])}
    again, _ = load_trained(cpggan)
    assert torch.equal(system.sample(noise, given), again.sample(noise, given))
    assert facts["id"] == Run.open(cpggan).facts["id"]


def copy_as_if_drawn_by_one_who_saw(dataset, out, seen):
    """The images of a set under the name of a generator that saw these patients."""
    from dataclasses import replace

    with DatasetWriter(out, patients_from="made", value_range=(0, 255)) as writer:
        for i, case in enumerate(dataset):
            origin = Synthetic("some-run", 0, {}, tuple(seen))
            writer.add(replace(case, case_id=f"s{i}", patient_id=f"s{i}", origin=origin))
    return out


@pytest.mark.parametrize("split", ["validation", "test"])
def test_training_with_images_of_a_generator_that_saw_held_out_patients_is_refused(
    brains, tmp_path, split
):
    seen = [*brains.splits["train"], brains.splits[split][0]]
    leaky = copy_as_if_drawn_by_one_who_saw(brains, tmp_path / "leaky", seen)
    with pytest.raises(LeakError, match=f"saw 1 {split} patient"):
        open_pools(TrainingData(data=brains.folder, synthetic=(Mixed(folder=leaky),)))


def test_mixing_takes_the_wanted_number_of_synthetic_images(brains, tmp_path):
    honest = copy_as_if_drawn_by_one_who_saw(brains, tmp_path / "honest", brains.splits["train"])
    n = len(brains.split("train"))
    pools = open_pools(
        TrainingData(data=brains.folder, synthetic=(Mixed(folder=honest, ratio=0.5),))
    )
    assert (pools.n_real, pools.n_synthetic) == (n, round(0.5 * n))
    assert len(pools.domains["real"]) == n + round(0.5 * n)
    with pytest.raises(DataError, match="ratio 9"):
        open_pools(TrainingData(data=brains.folder, synthetic=(Mixed(folder=honest, ratio=9),)))


def test_extra_slices_of_held_out_patients_are_refused(brains, tmp_path):
    config = BrainConfig(side_px=32, patients=10, slices_per_patient=1, lesions_max=0)
    same_people = write_brains(tmp_path / "normal", config, seed=0)
    turned = {"train": brains.splits["test"], "validation": [], "test": brains.splits["train"]}
    turned["validation"] = brains.splits["validation"]
    other = resplit(same_people, tmp_path / "turned", turned)
    with pytest.raises(LeakError, match="test patient"):
        open_pools(TrainingData(data=brains.folder, also=(other.folder,)))


def test_only_cases_with_a_box_are_taken_when_asked(brains):
    boxed = select(TrainingData(data=brains.folder, boxed=True))
    every = select(TrainingData(data=brains.folder))
    assert 0 < len(boxed) < len(every)
    assert all(len(case.boxes) for case in boxed)
    assert sum(len(case.boxes) > 0 for case in every) == len(boxed)


PAINT = {
    "side_px": 32,
    "patch_px": 16,
    "width": 8,
    "widest": 16,
    "batch_size": 8,
    "feature_side_px": 32,
    "strides": (4,),
}


@pytest.fixture(scope="module")
def paint(brains):
    """A GAN that paints into real slices: four steps of training are enough to look at orders."""
    run = brains.folder.parent / "paint"
    overrides = {"system": PAINT, "train": {"steps": 4, "precision": "float32"}}
    fit("paint", run, TrainingData(data=brains.folder), preset="smoke", overrides=overrides)
    return run


@pytest.fixture(scope="module")
def painted(paint, brains):
    return draw([paint], brains.folder.parent / "painted", n=40, seed=0)


def region_of(run, boxes):
    """The pixels that painting these boxes may change."""
    system, _ = load_trained(run)
    return system.painted_region(torch.tensor(boxes, dtype=torch.float32)).any(0).numpy()


def test_what_is_not_painted_is_the_stored_background_bit_for_bit(paint, painted, brains):
    real = {case.case_id: case for case in brains.split("train")}
    for case in painted:
        behind = real[case.origin.conditions["background"]].image.values
        region = region_of(paint, case.origin.conditions["painted"])
        assert case.image.values.dtype == behind.dtype == np.uint8
        assert np.array_equal(case.image.values[:, ~region], behind[:, ~region])
        assert not np.array_equal(case.image.values, behind)


def test_a_painted_case_has_the_boxes_of_its_background_and_those_that_were_painted(
    paint, painted, brains
):
    real = {case.case_id: case for case in brains.split("train")}
    more = 0
    for case in painted:
        told = case.origin.conditions
        own = real[told["background"]].boxes
        assert np.array_equal(case.boxes[: len(own)], own)
        assert case.boxes[len(own) :].tolist() == told["painted"]
        assert len(told["painted"]) == len(told["looks"]) > 0
        assert told["boxes_of"] != told["background"]
        assert not iou(own, np.array(told["painted"])).any()
        region = region_of(paint, told["painted"])
        for y0, x0, y1, x1 in own:  # what is there already is not painted over
            rows = slice(int(np.floor(y0)), int(np.ceil(y1)))
            assert not region[rows, int(np.floor(x0)) : int(np.ceil(x1))].any()
        more += len(own) > 0
    assert 0 < more < len(painted)


def test_lesions_are_painted_on_tissue(painted, brains):
    real = {case.case_id: case for case in brains.split("train")}
    for case in painted:
        behind = real[case.origin.conditions["background"]].image.values[0]
        for y0, x0, y1, x1 in np.rint(case.origin.conditions["painted"]).astype(int):
            inside = behind[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            assert inside.mean() > behind.min() + 0.15 * (float(behind.max()) - behind.min())


def test_painting_is_the_same_however_many_workers(paint, painted, tmp_path):
    again = draw([paint], tmp_path / "again", n=40, seed=0, workers=3)
    assert bytes_of(again) == bytes_of(painted)


def test_looks_stay_with_their_boxes_when_these_are_moved(tmp_path):
    """A small dark lesion and a large bright one; one at a time is pushed out of the image."""
    values = np.full((1, 32, 32), 100, np.uint8)
    values[0, 0:4, 14:18], values[0, 20:32, 10:22] = 20, 220
    boxes = np.array([[0, 14, 4, 18], [20, 10, 32, 22]], np.float32)
    with DatasetWriter(tmp_path / "two", patients_from="made", value_range=(0, 255)) as writer:
        writer.add(Case("c", "p", Image(values), boxes=boxes))
    far = CONDITIONS.model_copy(update={"shift": 0.4})
    orders = orders_from(Dataset.open(tmp_path / "two"), 32, seed=3, conditions=far, looks=True)
    seen = set()
    for i in range(60):
        order = orders(i)
        for box, (contrast, _) in zip(order.boxes, order.looks, strict=True):
            assert (contrast > 0) == (box[3] - box[1] > 6)
        seen.add(len(order.boxes))
    assert seen == {1, 2}


def test_lesions_are_painted_into_slices_that_are_given(paint, brains, tmp_path):
    config = BrainConfig(side_px=32, patients=5, slices_per_patient=2, lesions_max=0)
    normal = renamed(write_brains(tmp_path / "n", config, seed=4), tmp_path / "normal", "healthy")
    drawn = draw([paint], tmp_path / "drawn", n=12, seed=0, onto=normal)
    ids = {case.case_id for case in normal}
    seen = sorted({*brains.splits["train"], *normal.patients})
    for case in drawn:
        assert case.origin.conditions["background"] in ids
        assert list(case.origin.trained_on) == seen
        assert case.boxes.tolist() == case.origin.conditions["painted"]
        assert case.label == brains.labels[-1] or case.label in brains.labels


def renamed(dataset, out, prefix):
    """The same images of other patients."""
    from dataclasses import replace

    with DatasetWriter(out, patients_from="made", value_range=(0, 255)) as writer:
        for case in dataset:
            names = {
                "case_id": f"{prefix}-{case.case_id}",
                "patient_id": f"{prefix}-{case.patient_id}",
            }
            writer.add(replace(case, **names))
    return Dataset.open(out)


def test_slices_of_held_out_patients_are_not_painted_into(paint, brains, tmp_path):
    with pytest.raises(LeakError, match="saw 2 test patient"):
        draw([paint], tmp_path / "drawn", n=2, seed=0, onto=brains.split("test"))
    assert not (tmp_path / "drawn").exists()


def test_a_gan_that_does_not_paint_refuses_backgrounds(cpggan, brains, tmp_path):
    with pytest.raises(SettingsError, match="paints into no image"):
        draw([cpggan], tmp_path / "drawn", n=2, seed=0, onto=brains.split("train"))


def test_a_background_without_a_place_is_passed_over_and_counted(paint, brains, tmp_path):
    """Black slices have none: there is only air."""
    from dataclasses import replace

    with DatasetWriter(tmp_path / "mixed", patients_from="made", value_range=(0, 255)) as writer:
        for i, case in enumerate(brains.split("train")):
            values = case.image.values if i % 4 == 0 else np.zeros_like(case.image.values)
            values = values + np.uint8(0)
            values[0, 0, 0] = i  # two black slices are one image
            writer.add(replace(case, image=Image(values)))
    onto = Dataset.open(tmp_path / "mixed")
    drawn = draw([paint], tmp_path / "drawn", n=20, seed=0, onto=onto)
    (counted,) = drawn.about["dropped"].values()
    assert counted["n"] > 10
    bright = {case.case_id for case in onto if case.image.values.mean() > 5}
    assert {case.origin.conditions["background"] for case in drawn} <= bright
    assert len(drawn) == 20


def test_boxes_on_the_command_line_get_the_looks_of_training_lesions(paint, tmp_path):
    box = [0.4, 0.4, 0.6, 0.6]
    drawn = draw([paint], tmp_path / "boxed", n=8, seed=0, boxes=[box])
    for case in drawn:
        np.testing.assert_allclose(
            case.origin.conditions["painted"], [[12.8, 12.8, 19.2, 19.2]], 1e-5
        )
    assert len({str(case.origin.conditions["looks"]) for case in drawn}) > 4


def test_more_different_synthetic_images_keep_the_ratio_of_a_batch(brains, tmp_path):
    honest = copy_as_if_drawn_by_one_who_saw(brains, tmp_path / "honest", brains.splits["train"])
    n = len(brains.split("train"))
    mixed = (Mixed(folder=honest, ratio=0.25),)
    pools = open_pools(TrainingData(data=brains.folder, synthetic=mixed, repeat=4))
    assert (pools.n_real, pools.n_synthetic) == (n, n)
    sizes = [len(dataset) for dataset in pools.domains["real"].datasets]
    assert sizes == [n, n, n, n, n]  # each real case four times, n different synthetic ones


def test_several_synthetic_sets_each_have_their_ratio(brains, tmp_path):
    honest = copy_as_if_drawn_by_one_who_saw(brains, tmp_path / "honest", brains.splits["train"])
    mixed = (Mixed(folder=honest, ratio=1), Mixed(folder=honest, ratio=0.5))
    pools = open_pools(TrainingData(data=brains.folder, synthetic=mixed))
    n = len(brains.split("train"))
    assert [len(d) for d in pools.domains["real"].datasets] == [n, n, round(n / 2)]


def test_synthetic_first_serves_them_alone_and_then_real_ones_alone(brains, tmp_path):
    side = brains.values(0).shape[-1]
    with DatasetWriter(tmp_path / "black", patients_from="made", value_range=(0, 255)) as writer:
        for i in range(len(brains)):
            origin = Synthetic("some-run", 0, {}, tuple(brains.splits["train"]))
            black = Image(np.zeros((1, side, side), np.uint8))
            writer.add(Case(f"s{i}", f"s{i}", black, boxes=np.zeros((0, 4)), origin=origin))
    mixed = (Mixed(folder=tmp_path / "black"),)
    pools = open_pools(TrainingData(data=brains.folder, synthetic=mixed, synthetic_first=0.5))
    server = Server(pools.domains, seed=0, opening=(2, pools.opening))

    def black(step: int) -> list[bool]:
        images = server(Request(8, side), step, 0)["image"]
        return [bool((image == -1).all()) for image in images]

    assert black(1) == black(2) == [True] * 8
    assert black(3) == black(4) == [False] * 8
    with pytest.raises(SettingsError, match="without a synthetic folder"):
        open_pools(TrainingData(data=brains.folder, synthetic_first=0.5))


def test_images_of_held_out_boxes_cannot_be_trained_with(cpggan, brains, tmp_path):
    test = brains.split("test")
    drawn = draw([cpggan], tmp_path / "of-test", n=2, seed=0, given=test)
    assert set(drawn[0].origin.trained_on) >= set(test.patients)
    with pytest.raises(LeakError, match="test patient"):
        open_pools(
            TrainingData(data=brains.folder, synthetic=(Mixed(folder=drawn.folder, ratio=0.05),))
        )
