"""Cutting and pasting: lesions land on tissue, their boxes with them, and nothing leaks."""

from dataclasses import replace

import numpy as np
import pytest

from synthoma.data.boxes import iou
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError, LeakError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis.paste import PASTE, PasteConfig, paste


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paste") / "brains"
    return write_brains(folder, BrainConfig(side_px=64, patients=10, slices_per_patient=6), seed=0)


@pytest.fixture(scope="module")
def pasted(brains):
    return paste(brains.split("train"), brains.folder.parent / "pasted", n=120, seed=0)


def write(folder, cases, **about):
    about = {"patients_from": "made", "value_range": (0, 255)} | about
    with DatasetWriter(folder, **about) as writer:
        for case in cases:
            writer.add(case)
    return Dataset.open(folder)


def disc(name, *, centre, radius, value, side=48, label="tumour", ground=100, **changes):
    """A bright disc on a grey square field, and the box around it."""
    y, x = np.mgrid[:side, :side] + 0.5
    values = np.full((1, side, side), ground, np.uint8)
    values[0, (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = value
    box = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
    fields = {"label": label, "boxes": np.array([box], np.float32)} | changes
    return Case(name, f"patient-{name}", Image(values), **fields)


def plain(name, *, value=100, side=48, **changes):
    """A field without a lesion, told apart by one pixel."""
    values = np.full((1, side, side), value, np.uint8)
    values[0, 0, int(name[1:])] += 1
    fields = {"label": "normal", "boxes": np.zeros((0, 4), np.float32)} | changes
    return Case(name, f"patient-{name}", Image(values), **fields)


def test_an_image_is_its_background_but_for_what_was_painted(brains, pasted):
    by_id = {case.case_id: case for case in brains}
    changed_in, outside = [], []
    for case in pasted:
        told = case.origin.conditions
        before = by_id[told["background"]].image.values[0].astype(int)
        difference = np.abs(case.image.values[0].astype(int) - before)
        near = np.zeros(before.shape, bool)
        for y0, x0, y1, x1 in told["painted"]:
            edge = max(PASTE.least_feather_px, PASTE.feather * (y1 - y0 + x1 - x0) / 4)
            low = np.maximum(np.floor([y0 - edge, x0 - edge]), 0).astype(int)
            high = np.ceil([y1 + edge, x1 + edge]).astype(int)
            near[low[0] : high[0], low[1] : high[1]] = True
        changed_in.append(difference[near].mean())
        outside.append(difference[~near].max())
    assert max(outside) == 0
    assert np.mean(np.array(changed_in) > 1) > 0.9


def test_boxes_are_the_backgrounds_own_and_the_painted_ones(brains, pasted):
    by_id = {case.case_id: case for case in brains}
    for case in pasted:
        told = case.origin.conditions
        own = by_id[told["background"]].boxes
        assert np.array_equal(case.boxes, np.vstack([own, np.float32(told["painted"])]))
        assert len(case.box_labels) in (0, len(case.boxes))
        assert told["lesion_of"] != told["background"]
        assert len(by_id[told["lesion_of"]].boxes)
    counts = [len(case.origin.conditions["painted"]) for case in pasted]
    assert set(counts) == {1, 2}


def test_painted_lesions_meet_no_other_box_and_stay_in_the_image(pasted):
    for case in pasted:
        overlap = iou(case.boxes, np.float32(case.origin.conditions["painted"]))
        assert (overlap > 0).sum() == overlap.shape[1]  # each with itself alone
        painted = np.array(case.origin.conditions["painted"])
        assert painted.min() >= 0
        assert painted.max() <= 64


def test_lesions_land_on_tissue(brains, pasted):
    by_id = {case.case_id: case for case in brains}
    shares = []
    for case in pasted:
        ground = by_id[case.origin.conditions["background"]].image.values[0]
        for box in case.origin.conditions["painted"]:
            (y0, x0), (y1, x1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
            shares.append((ground[y0:y1, x0:x1] > 0.1 * 255).mean())
    assert min(shares) >= PASTE.tissue


def test_the_box_moves_exactly_with_the_cut(tmp_path):
    """A disc in a flat field: the box around what is brighter afterwards is the box that is told,
    whatever the flip, the turn, the zoom and the place."""
    training = write(
        tmp_path / "disc", [disc("d0", centre=(20, 30), radius=8, value=220), plain("p1")]
    )
    settings = PasteConfig(second=0, brightness=0, feather=0.01, least_feather_px=2)
    made = paste(
        training, tmp_path / "out", n=60, seed=3, onto=training.where(label="normal"),
        settings=settings,
    )  # fmt: skip
    sizes = []
    for case in made:
        bright = case.image.values[0] > 160
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        seen = np.array([[rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]])
        assert np.abs(seen - case.boxes).max() <= 1.0
        sizes.append(case.boxes[0, 2] - case.boxes[0, 0])
        assert case.label == "tumour"
    assert 16 / 1.25 - 0.1 < min(sizes) < 14
    assert 18 < max(sizes) < 16 * 1.25 + 0.1
    places = np.array([case.boxes[0, :2] for case in made])
    assert places.std(axis=0).min() > 3


def test_a_lesion_is_as_bright_beside_its_new_surroundings_as_beside_its_old(tmp_path):
    training = write(
        tmp_path / "data",
        [disc("d0", centre=(24, 24), radius=8, value=160), plain("p1", value=80)],
    )
    made = paste(
        training,
        tmp_path / "out",
        n=20,
        seed=0,
        onto=training.where(label="normal"),
        settings=PasteConfig(second=0, brightness=0, keep_place=0),
    )
    for case in made:
        y, x = ((case.boxes[0, :2] + case.boxes[0, 2:]) / 2).astype(int)
        assert case.image.values[0, y, x] == pytest.approx(160 / 100 * 80, rel=0.15)


def test_a_kept_place_is_the_same_place_of_the_head_left_or_right(tmp_path):
    training = write(
        tmp_path / "data", [disc("d0", centre=(14, 30), radius=5, value=220), plain("p1")]
    )
    made = paste(
        training,
        tmp_path / "out",
        n=30,
        seed=0,
        onto=training.where(label="normal"),
        settings=PasteConfig(second=0, keep_place=1, shift=0),
    )
    centres = np.array([(case.boxes[0, :2] + case.boxes[0, 2:]) / 2 for case in made])
    assert np.allclose(centres[:, 0], 14, atol=0.01)
    assert set(centres[:, 1].round(1)) == {18.0, 30.0}


def test_the_same_seed_gives_the_same_bytes_and_fewer_images_are_the_first_of_more(
    brains, pasted, tmp_path
):
    again = paste(brains.split("train"), tmp_path / "again", n=120, seed=0)
    assert again.about["digest"] == pasted.about["digest"]
    few = paste(brains.split("train"), tmp_path / "few", n=7, seed=0)
    for a, b in zip(few, pasted, strict=False):
        assert a.case_id == b.case_id
        assert np.array_equal(a.image.values, b.image.values)
    other = paste(brains.split("train"), tmp_path / "other", n=7, seed=1)
    assert other[0].origin.run != few[0].origin.run
    assert not any(np.array_equal(a.image.values, b.image.values) for a in few for b in other)


def test_other_cases_or_settings_are_another_run(brains, pasted, tmp_path):
    names = {pasted[0].origin.run}
    train = brains.split("train")
    for k, (part, settings) in enumerate(
        [(train.take(np.arange(20)), PASTE), (train, PasteConfig(zoom=1.1))]
    ):
        made = paste(part, tmp_path / str(k), n=2, seed=0, settings=settings)
        names.add(made[0].origin.run)
        assert set(made[0].origin.trained_on) == set(part.patients)
    assert len(names) == 3


def test_every_image_says_that_it_is_synthetic_and_whom_it_is_made_of(brains, pasted):
    assert pasted.about["n_synthetic"] == len(pasted) == 120
    assert len(pasted.split("train")) == 120
    for case in pasted:
        assert isinstance(case.origin, Synthetic)
        assert case.origin.run.startswith("cut-and-paste-")
        assert case.origin.trained_on == tuple(sorted(brains.splits["train"]))


def test_every_background_is_used_once_a_round(brains, tmp_path):
    train = brains.split("train")
    made = paste(train, tmp_path / "round", n=len(train), seed=0)
    used = [case.origin.conditions["background"] for case in made]
    assert len(set(used)) > 0.9 * len(train)  # another is taken where nothing fits


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_patients_are_not_pasted_into(brains, tmp_path, split):
    with pytest.raises(LeakError, match=f"saw . {split} patient"):
        paste(brains.split("train"), tmp_path / "out", n=2, seed=0, onto=brains.split(split))
    with pytest.raises(LeakError):
        paste(brains, tmp_path / "out", n=2, seed=0)
    assert not (tmp_path / "out").exists()


def test_a_lesion_in_a_normal_slice_makes_it_one_of_the_lesions_label(tmp_path):
    training = write(
        tmp_path / "data",
        [
            disc("d0", centre=(24, 24), radius=6, value=200, label="glioma", box_labels=("g",)),
            disc("d1", centre=(20, 24), radius=6, value=210, label="cyst", box_labels=("c",)),
        ],
        splits={"train": ["patient-d0", "patient-d1"], "validation": [], "test": []},
    )
    normal = write(
        tmp_path / "normal",
        [plain(f"n{i}", boxes=None) for i in range(3)],
        splits=lambda patients: {"train": patients, "validation": [], "test": []},
    )
    made = paste(training, tmp_path / "out", n=20, seed=0, onto=normal)
    kind = {"glioma": "g", "cyst": "c"}
    assert {case.label for case in made} == set(kind)
    for case in made:
        assert set(case.box_labels) == {kind[case.label]}
        assert {"patient-n0", "patient-d0"} <= set(case.origin.trained_on)


def test_an_image_with_a_lesion_keeps_its_label(tmp_path):
    cases = [
        disc(f"d{i}", centre=(12 + i, 12), radius=4, value=200, label="ab"[i % 2]) for i in range(8)
    ]
    training = write(
        tmp_path / "data", cases, splits=lambda p: {"train": p, "validation": [], "test": []}
    )
    by_id = {case.case_id: case for case in training}
    for case in paste(training, tmp_path / "out", n=40, seed=0):
        told = case.origin.conditions
        assert case.label == by_id[told["background"]].label == by_id[told["lesion_of"]].label


def test_a_lesion_is_not_cut_with_a_part_of_its_neighbour(tmp_path):
    pair = disc("d0", centre=(20, 20), radius=6, value=200)
    close = np.array([[14, 14, 26, 26], [14, 27, 26, 39]], np.float32)
    training = write(
        tmp_path / "data", [replace(pair, boxes=close), plain("p1"), plain("p2")],
        splits=lambda p: {"train": p, "validation": [], "test": []},
    )  # fmt: skip
    with pytest.raises(DataError, match="no place"):
        paste(training, tmp_path / "out", n=1, seed=0)


def test_colour_and_backgrounds_of_another_side_are_pasted_into(tmp_path):
    def red(case):
        return replace(case, image=Image(np.repeat(case.image.values, 3, axis=0)))

    training = write(tmp_path / "data", [red(disc("d0", centre=(24, 24), radius=6, value=200))])
    onto = write(tmp_path / "onto", [red(plain("p1", side=96))], value_range=(0, 200))
    made = paste(training, tmp_path / "out", n=4, seed=0, onto=onto)
    assert made[0].image.values.shape == (3, 96, 96)
    assert made[0].image.values[0, 90, 90] in (127, 128)  # 100 of 200
    assert (made[0].boxes[0, 2:] - made[0].boxes[0, :2]).min() > 24 / 1.25 - 0.1


def test_what_cannot_be_pasted_is_refused_by_name(brains, tmp_path):
    out = tmp_path / "out"
    normal = write(tmp_path / "normal", [plain("p1"), plain("p2")], splits=everyone)
    with pytest.raises(DataError, match="no case has a box"):
        paste(normal, out, n=1, seed=0)
    raw = write(tmp_path / "raw", [plain("p1")], value_range=None, splits=everyone)
    with pytest.raises(DataError, match="data prepare"):
        paste(raw, out, n=1, seed=0)
    colour = Case("c", "c", Image(np.full((3, 64, 64), 9, np.uint8)), boxes=None)
    with pytest.raises(DataError, match="3 channels"):
        paste(
            brains.split("train"), out, n=1, seed=0,
            onto=write(tmp_path / "colour", [colour], splits=everyone),
        )  # fmt: skip
    volume = Case("v", "v", Image(np.full((1, 4, 8, 8), 9, np.uint8)))
    with pytest.raises(DataError, match="2D"):
        paste(write(tmp_path / "volume", [volume], splits=everyone), out, n=1, seed=0)
    with pytest.raises(DataError, match="no case is selected"):
        paste(brains.take(np.arange(0)), out, n=1, seed=0)
    air = write(tmp_path / "air", [plain("p1", value=0)], splits=everyone)
    with pytest.raises(DataError, match="no place was found"):
        paste(brains.split("train"), out, n=1, seed=0, onto=air)
    assert not out.exists()


def everyone(patients):
    return {"train": patients, "validation": [], "test": []}
