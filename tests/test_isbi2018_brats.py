"""The sets of Han et al. 2018: what GANs learn from, what people are asked, what is told."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from synthoma.data.dataset import Dataset
from synthoma.errors import DataError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.sequences import SEQUENCES, write_sequences
from synthoma.report.table import read_table
from synthoma.studies.isbi2018_brats import SETS, TABLE_1, settings_for
from synthoma.studies.isbi2018_work import BratsWork, in_equal_parts, one_a_patient
from synthoma.studies.run import begin, go_on

PAPERS = Path(__file__).parent.parent / "../shared/papers"
TINY = {
    "dcgan": {"side_px": 32, "widest": 8, "noise_dim": 4, "batch_size": 4},
    "dcgan_train": {"steps": 2},
    "wgan": {"side_px": 32, "widest": 8, "noise_dim": 4, "batch_size": 4},
    "wgan_train": {"steps": 2},
    "phantoms": {"patients": 20, "slices_per_patient": 2},
    "study": {
        "sets": ["T1c", "T2", "Concat, half the side"],
        "asked": 10,
        "drawn": 16,
        "permutations": 4,
    },
}


def study_of(out, *, scale="smoke", overrides=TINY, also=()):
    return settings_for(
        out, dataset=None, also=list(also), scale=scale, seed=0, overrides=overrides
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study, interrupted on its way."""
    out = tmp_path_factory.mktemp("isbi") / "study"
    study = study_of(out)
    begin(out, study)
    assert not go_on(out, minutes=0.0, device="cpu")
    assert go_on(out, device="cpu")
    return BratsWork(out, study, "", "cpu", None)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    config = BrainConfig(side_px=32, patients=6, slices_per_patient=2)
    return write_sequences(tmp_path_factory.mktemp("sequences") / "brains", config, seed=0)


def test_the_four_sequences_show_one_anatomy_in_four_contrasts(brains):
    by_name = {brains[i].case_id: brains.values(i).astype(float) for i in range(len(brains))}
    for i in range(0, len(brains), len(SEQUENCES)):
        name = brains[i].case_id.removesuffix("/T1")
        t1, t1c, t2, flair = (by_name[f"{name}/{sequence}"] for sequence in SEQUENCES)
        assert ((t1 > 0) == (t2 > 0)).mean() > 0.97  # one head
        inside = t1c > 0
        assert np.corrcoef(t1c[inside], t2[inside])[0, 1] < 0  # fluid bright where it was dark
        assert t2[inside].std() > 0
        assert not np.array_equal(t1, flair)


def test_six_training_sets_and_two_gans_are_the_papers(tmp_path):
    study = study_of(tmp_path, scale="paper", overrides={})
    found = [(own.of, own.sequence, own.gan.name, own.side_px) for own in study.sets.values()]
    assert [(of, side) for of, _, gan, side in found if gan == "dcgan"] == [
        *((name, 128) for name in ("T1", "T1c", "T2", "FLAIR", "Concat")),
        ("Concat, half the side", 64),
    ]
    assert [row[0] for row in found[6:]] == [row[0] for row in found[:6]]
    assert all(sequence == ("" if "Concat" in of else of) for of, sequence, _, _ in found)
    assert (study.asked, study.prepare.fit, study.prepare.crop) == (50, "stretch", False)
    assert study.sets["T1, dcgan"].gan.train.steps == 24_000
    assert len(study.sets) == 2 * len(SETS)


def test_a_gan_sees_training_patients_alone_and_its_sequence_alone(finished):
    for name, own in finished.study.sets.items():
        train = set(Dataset.open(finished.data(own.side_px)).splits["train"])
        saw = set().union(*Dataset.open(finished.set_of(name)).generators_saw.values())
        assert saw <= train
        assert not set(finished.real(name, "unseen").patients) & train
        slices = finished.real(name, "train")
        there = {slices[i].traits["sequence"] for i in range(len(slices))}
        assert there == ({own.sequence} if own.sequence else set(SEQUENCES))


def test_the_pictures_of_a_turing_test_tell_nothing_and_the_key_is_elsewhere(finished):
    for name in finished.study.sets:
        folder = next(p for p in (finished.out / "turing").iterdir() if p.name in slugs(name))
        pictures = sorted(folder.iterdir())
        assert [p.name for p in pictures] == [f"{n:03}.png" for n in range(1, 21)]
        seen = [opened(picture) for picture in pictures]
        assert all(not info for info, _, _ in seen)
        assert len({(mode, size) for _, mode, size in seen}) == 1
        with (finished.out / "turing-keys" / f"{folder.name}.csv").open() as file:
            key = list(csv.DictReader(file))
        assert [row["file"] for row in key] == [p.name for p in pictures]
        kinds = [row["kind"] for row in key]
        assert kinds.count("real") == kinds.count("synthetic") == 10
        assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))


def test_the_key_of_one_turing_test_tells_nothing_of_another(finished):
    keys = [key.read_text() for key in sorted((finished.out / "turing-keys").iterdir())]
    orders = [[row["kind"] for row in csv.DictReader(key.splitlines())] for key in keys]
    for k, order in enumerate(orders):
        for other in orders[:k]:
            agree = sum(a == b for a, b in zip(order, other, strict=True))
            assert agree < len(order)
    assert len({len(name) for name in finished.study.sets}) < len(keys)  # names as long as others


def opened(path):
    with Picture.open(path) as picture:
        return picture.info, picture.mode, picture.size


def slugs(name):
    return {re.sub(r"[^A-Za-z0-9]+", "-", name)}


def test_a_test_of_all_sequences_has_equal_parts_of_each(brains):
    chance = np.random.default_rng(0)
    places = in_equal_parts(brains, 10, chance)
    found = [brains[i].traits["sequence"] for i in places]
    assert sorted(found.count(sequence) for sequence in SEQUENCES) == [2, 2, 3, 3]
    assert len(set(places)) == 10
    with pytest.raises(DataError, match="12 slices of unseen patients"):
        in_equal_parts(brains, 60, chance)


def test_the_two_sample_test_takes_one_slice_of_each_patient(brains):
    one = one_a_patient(brains, np.random.default_rng(0))
    assert sorted(one.patient_ids) == sorted(brains.patients)


def test_the_report_has_every_set_beside_chance_and_the_physicians_numbers(finished):
    table = read_table(finished.out / "table.json")
    assert len(table.rows) == 2 * len(finished.study.sets)
    assert all(0 <= row.metrics["c2st"].value <= 1 for row in table.rows)
    said = (finished.out / "report.md").read_text()
    assert "By chance" in said
    assert "T1c (WGAN, 128×128)" in said
    assert "axial" in said
    sheets = sorted((finished.out / "sheets").iterdir())
    assert len(sheets) == len(finished.study.sets)
    assert all(opened(sheet)[0]["Synthetic"] == "yes" for sheet in sheets)


def test_published_numbers_are_those_of_our_copy_of_the_paper():
    files = sorted(PAPERS.glob("004_*.txt"))
    if not files:
        pytest.skip("no copy of the paper here")
    lines = re.findall(
        r"^(\w+ \(W?D?C?GAN, .+?\))" + r"\t(\d+)" * 5 + "$",
        files[0].read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {label: tuple(map(int, numbers)) for label, *numbers in lines} == TABLE_1
    for accuracy, real_right, real_wrong, drawn_wrong, drawn_right in TABLE_1.values():
        assert real_right + real_wrong == drawn_wrong + drawn_right == 50
        assert accuracy == real_right + drawn_right


def test_too_few_real_slices_for_the_pictures_are_told_before_anything_is_trained(tmp_path):
    out = tmp_path / "study"
    begin(out, study_of(out, overrides=TINY | {"phantoms": {"patients": 10}}))
    with pytest.raises(DataError, match=r"slices of unseen patients.*study\.asked"):
        go_on(out, device="cpu")
    assert not (out / "generators").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pggan": {}}, "no settings"),
        ({"study": {"sets": ["T3"]}}, r"study\.sets"),
        ({"study": {"seeds": 2}}, "no settings study"),
        ({"study": {"asked": 50, "drawn": 50}}, "a tenth more"),
    ],
)
def test_what_is_not_allowed_is_named(tmp_path, wrong, said):
    with pytest.raises(SettingsError, match=said):
        study_of(tmp_path, overrides=TINY | wrong)
