"""The copy check: disguised copies are found, honest images pass, and draws leave copies out."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from synthoma.cli import left_out
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare, prepare
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError
from synthoma.gans.cpggan import CPGGAN
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.synthesis.disguise import align, changes, pattern
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import fit
from synthoma.synthesis.mixture import TrainingData
from synthoma.synthesis.privacy import CERTAIN, MOST, Gallery, Views, check_folder, look, threshold

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
    folder = tmp_path_factory.mktemp("privacy") / "brains"
    return write_brains(folder, BrainConfig(side_px=64, patients=30, slices_per_patient=3), seed=0)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """People whom nobody knows, enough of them to learn from."""
    folder = tmp_path_factory.mktemp("privacy") / "strangers"
    return write_brains(folder, BrainConfig(side_px=64, patients=12, slices_per_patient=3), seed=9)


@pytest.fixture(scope="module")
def gallery(brains, strangers):
    return Gallery.of(brains.split("train"), strangers)


def altered(case, change):
    """The case as a generator would have drawn it that changes a training image so."""
    values = np.clip(np.rint(change(case.image.values[0].astype(np.float32))), 0, 255)
    return replace(
        case,
        case_id=f"drawn/{case.case_id}",
        image=Image(values.astype(np.uint8)[None]),
        origin=Synthetic("run", 0, {}, ()),
    )


def warped(image, zoom=1.0, x=0.0, y=0.0, turn=0.0):
    side = image.shape[0]
    map_ = cv2.getRotationMatrix2D((side / 2 - 0.5,) * 2, turn, zoom)
    map_[:, 2] += x * side, y * side
    return cv2.warpAffine(image, map_, (side, side))


def noisy(image):
    return np.clip(image + np.random.default_rng(0).normal(0, 13, image.shape), 0, 255)


def recompressed(image):
    coded = cv2.imencode(".jpg", image.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    return cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE).astype(np.float32)


@pytest.mark.parametrize(
    "disguise",
    [
        lambda image: image,
        noisy,
        lambda image: 0.6 * image + 60,
        lambda image: 255 * (image / 255) ** 0.7,
        lambda image: image[:, ::-1],
        lambda image: warped(image, x=0.03, y=-0.03),
        lambda image: warped(image, zoom=1.06),
        lambda image: warped(image, turn=-4),
        recompressed,
        lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
        lambda image: recompressed(noisy(0.8 * warped(image[:, ::-1], 0.97, 0.02, 0.01, 2) + 20)),
    ],
    ids=[
        *("none", "noise", "contrast", "gamma", "flip", "move", "zoom", "turn", "jpeg", "blur"),
        "everything",
    ],
)
def test_a_copy_in_disguise_is_found_and_its_patient_named(gallery, brains, disguise):
    originals = [brains.split("train")[i] for i in range(0, 60, 3)]
    copies = gallery.copies([altered(case, disguise) for case in originals])
    patient = {case.case_id: case.patient_id for case in brains}
    named = [copy is not None and patient[copy.of] for copy in copies]
    assert named == [case.patient_id for case in originals]


def test_honest_images_are_not_flagged(gallery, brains):
    assert gallery.copies(list(brains.split("test"))) == [None] * len(brains.split("test"))
    assert gallery.copies(list(brains.split("validation"))) == [None] * 9


def test_a_copy_of_another_slice_of_the_gallery_is_named_by_its_case(gallery, brains):
    case = brains.split("train")[17]
    copy = gallery.copy_of(altered(case, noisy))
    assert (copy.case_id, copy.of) == (f"drawn/{case.case_id}", case.case_id)
    assert 0 < copy.distance < gallery.threshold


def test_company_changes_no_verdict(gallery, brains):
    cases = [altered(case, noisy) for case in brains.split("train")][:5]
    cases += list(brains.split("test"))[:5]
    together, alone = gallery.copies(cases), [gallery.copy_of(case) for case in cases]
    assert [copy is not None for copy in together] == [True] * 5 + [False] * 5
    for one, other in zip(together[:5], alone[:5], strict=True):
        assert (one.case_id, one.of) == (other.case_id, other.of)
        assert one.distance == pytest.approx(other.distance, abs=1e-5)
    assert alone[5:] == [None] * 5


def test_a_mere_blob_near_to_every_patient_is_nobodys_copy(tmp_path):
    """Each training image is the same disc with faint texture of its own."""
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] / 31 - 0.5
    disc = 120 * np.exp(-20 * (x**2 + y**2))
    with DatasetWriter(tmp_path / "d", patients_from="made", value_range=(0, 255)) as writer:
        for i in range(20):
            texture = cv2.GaussianBlur(chance.normal(0, 25, (32, 32)), (0, 0), 1)
            values = (disc + texture + 60).clip(0, 255).astype(np.uint8)
            writer.add(Case(f"c{i}", f"p{i}", Image(values[None])))
    gallery = Gallery.of(Dataset.open(tmp_path / "d"), None)
    blob = Case("blob", "blob", Image((disc + 60).astype(np.uint8)[None]))
    assert float(gallery.nearest(look([blob], "image")).distance[0]) < gallery.threshold
    assert gallery.copy_of(blob) is None


def test_a_patient_under_two_names_in_the_held_out_set_does_not_hide_copies(brains, strangers):
    train_ = brains.split("train")
    clean = Gallery.of(train_, strangers)
    views, twins = look(list(strangers), "image"), look([train_[0], train_[5]], "image")
    mixed = Views(
        *(torch.cat([getattr(v, k) for v in (views, twins)]) for k in ("coarse", "fine")),
        of=torch.arange(len(views) + 2),
    )
    gallery = Gallery.of(train_, None)
    gallery.learn(mixed, None, "held-out images")
    assert gallery.threshold > 0.8 * clean.threshold
    assert gallery.honest_copies == 2
    assert clean.honest_copies == 0


def test_few_held_out_images_give_way_to_other_training_patients(brains, strangers):
    gallery = Gallery.of(brains.split("train"), strangers.take(np.arange(5)))
    facts = gallery.facts()
    assert facts["honest"]["from"] == "training images of other patients"
    assert facts["honest"]["n"] == len(brains.split("train"))
    assert facts["honest"]["quantiles"]["0.0"] > 0.02  # nobody was compared with themselves


def test_with_one_patient_only_what_is_surely_a_copy_is_called_one(brains):
    alone = brains.of_patients(brains.patients[:1])
    gallery = Gallery.of(alone, None)
    assert gallery.threshold == CERTAIN
    assert gallery.copy_of(alone[0]) is not None
    assert gallery.copy_of(brains.split("test")[0]) is None


def test_a_blank_image_is_no_copy_even_of_a_blank_one(brains, tmp_path):
    blank = Case("blank", "nobody", Image(np.full((1, 64, 64), 7, np.uint8)))
    with DatasetWriter(tmp_path / "d", patients_from="made", value_range=(0, 255)) as writer:
        writer.add(blank)
        for case in brains.split("train"):
            writer.add(case)
    gallery = Gallery.of(Dataset.open(tmp_path / "d"), None)
    assert gallery.copy_of(blank) is None
    assert list(gallery.distances) == [1]


def test_the_threshold_follows_the_lower_spread_of_log_distances():
    honest = np.exp(np.random.default_rng(0).normal(np.log(0.3), 0.4, 20_000))
    assert threshold(honest) == pytest.approx(0.3 * np.exp(-3 * 0.4), rel=0.03)
    assert threshold(np.full(50, 0.9)) == MOST
    assert threshold(honest[:5]) == CERTAIN


def test_alignment_finds_what_a_move_did(brains):
    image = brains[0].image.values[0].astype(np.float32)
    target = torch.from_numpy(pattern(image, 24, (0.75, 2.25)))[None]
    for how in ({"x": 0.05}, {"y": -0.05}, {"zoom": 1.07}, {"zoom": 0.94}, {"turn": 5}):
        moved = torch.from_numpy(pattern(warped(image, **how), 24, (0.75, 2.25)))[None]
        before, after = (float(align(moved, changes(target), steps)) for steps in (0, 4))
        assert after < 0.02, how
        assert after < before / 2, how
    assert float(align(target, changes(target), 0)) == pytest.approx(0, abs=1e-3)


def test_volumes_are_refused(gallery):
    volume = Case("v", "p", Image(np.zeros((1, 4, 8, 8), np.uint8)))
    with pytest.raises(DataError, match="'v': the copy check is for 2D images"):
        gallery.copy_of(volume)


def lesion(case):
    """Where the largest lesion of a case is, in whole pixels."""
    box = case.boxes[np.argmax((case.boxes[:, 2:] - case.boxes[:, :2]).prod(1))]
    return (*np.floor(box[:2]).astype(int), *np.ceil(box[2:]).astype(int))


def test_of_painted_images_only_what_was_painted_is_compared(tmp_path_factory):
    config = BrainConfig(side_px=128, patients=40, slices_per_patient=3, lesions_max=2)
    folder = tmp_path_factory.mktemp("boxes") / "brains"
    brains = write_brains(folder, config, seed=3)
    train_ = brains.split("train")
    gallery = Gallery.of(train_, brains.split("validation"), region="boxes")
    with_lesions = [case for case in train_ if case.boxes is not None and len(case.boxes)]
    large = [case for case in with_lesions if min(np.diff(np.reshape(lesion(case), (2, 2)).T)) > 8]
    stolen, honest = [], []
    for i, case in enumerate(large[:10]):
        y0, x0, y1, x1 = lesion(case)
        height, width = y1 - y0, x1 - x0
        onto = next(other for other in with_lesions[i:] if other.patient_id != case.patient_id)
        values = onto.image.values.copy()
        values[0, 40 : 40 + height, 50 : 50 + width] = case.image.values[0, y0:y1, x0:x1][:, ::-1]
        told = Synthetic("run", 0, {"painted": [[40, 50, 40 + height, 50 + width]]}, ())
        stolen.append(replace(onto, case_id=f"s{i}", image=Image(values), origin=told))
        # its own painting is a plain place of a real slice: no lesion of anyone
        free = Synthetic("run", 0, {"painted": [[60, 50, 72, 62]]}, ())
        honest.append(replace(onto, case_id=f"h{i}", origin=free))
    assert all(gallery.copies(stolen))
    assert not any(gallery.copies(honest))
    assert all(Gallery.of(train_, None).copies(honest))  # as whole images, all are copies


def write(folder, cases):
    with DatasetWriter(folder, patients_from="made", value_range=(0, 255)) as writer:
        for case in cases:
            writer.add(case)
    return Dataset.open(folder)


def test_a_folder_with_a_planted_copy_is_flagged_and_an_honest_one_is_not(
    brains, strangers, tmp_path
):
    train_ = brains.split("train")
    honest = [altered(case, noisy) for case in brains.split("test")]
    planted = [*honest, altered(train_[7], lambda image: 0.8 * image[:, ::-1] + 20)]
    found = check_folder(write(tmp_path / "planted", planted), train_, strangers)
    assert found["flagged"]
    assert [(case, of) for case, of, _ in found["copies"]] == [
        (f"drawn/{train_[7].case_id}", train_[7].case_id)
    ]
    assert len(found["distances"]["synthetic"]) == len(planted)
    assert len(found["distances"]["honest"]) == len(strangers)
    clean = check_folder(write(tmp_path / "honest", honest), train_, strangers)
    assert not clean["flagged"]
    assert clean["copies"] == []


def test_a_draw_leaves_out_copies_and_says_so(tmp_path, monkeypatch):
    config = BrainConfig(side_px=32, patients=20, slices_per_patient=3)
    big = write_brains(tmp_path / "big", config, seed=0)
    data = prepare(big, tmp_path / "data", Prepare(side_px=16, intensity="keep", crop=False))
    overrides = {"system": SMALL, "train": {"steps": 24, "precision": "float32"}}
    run = tmp_path / "run"
    fit("cpggan", run, TrainingData(data=data.folder), preset="smoke", overrides=overrides)
    honest = CPGGAN.sample
    real = torch.from_numpy(data.split("train").values(4).astype(np.float32)) / 127.5 - 1

    def steals(self, noise, given=None):
        images = honest(self, noise, given)
        images[3] = real * 0.9 + 0.05  # the fourth of each chunk
        return images

    clean = draw([run], tmp_path / "clean", n=40, seed=1)
    monkeypatch.setattr(CPGGAN, "sample", steals)
    drawn = [draw([run], tmp_path / f"w{w}", n=40, seed=1, workers=w) for w in (1, 2)]
    stolen = [case.case_id for case in clean if int(case.case_id[-6:]) % 16 == 3]
    assert len(clean) == 40
    assert clean.about["copy_check"]["n_copies"] == 0
    assert left_out(clean).startswith("0 copies of training images left out; ")
    for dataset in drawn:
        assert len(dataset) == 37
        assert left_out(dataset).startswith("3 copies of training images left out; ")
        assert not {case.case_id for case in dataset} & set(stolen)
        assert dataset.about["dropped"]["a copy of a training image"]["n"] == 3
        facts = dataset.about["copy_check"]
        of = data.split("train")[4].case_id
        assert [copy[:2] for copy in facts["copies"]] == [[case_id, of] for case_id in stolen]
        assert facts["synthetic"]["n"] == 40
    assert drawn[0].about == drawn[1].about


def test_copies_among_real_slices_are_found_and_other_patients_are_not(real_data, tmp_path):
    source = real_data / "brain_t1ce_cheng"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    with (source / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))[::3]
    split_of = {}
    with DatasetWriter(
        tmp_path / "slices",
        patients_from="blocks of 13 ids",
        value_range=(0, 255),
        splits=lambda patients: {
            name: [patient for patient in patients if split_of[patient] == name]
            for name in ("train", "validation", "test")
        },
    ) as writer:
        for row in rows:
            picture = cv2.imread(str(source / row["image"]), cv2.IMREAD_GRAYSCALE)
            small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
            patient = f"{row['split']}-{(int(row['id']) - 1) // 13}"
            split_of[patient] = {"val": "validation"}.get(row["split"], row["split"])
            writer.add(Case(row["image"], patient, Image(small[None])))
    slices = Dataset.open(tmp_path / "slices")
    train_, test = slices.split("train"), slices.split("test")
    gallery = Gallery.of(train_, slices.split("validation"))
    assert sum(copy is not None for copy in gallery.copies(list(test))) <= 0.01 * len(test)
    for disguise in (
        noisy,
        lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
        lambda image: recompressed(0.8 * warped(image[:, ::-1], 0.97, 0.02, 0.01, 2) + 20),
    ):
        planted = [altered(train_[i], disguise) for i in range(0, len(train_), 4)]
        found = [copy is not None for copy in gallery.copies(planted)]
        assert np.mean(found) > 0.9
