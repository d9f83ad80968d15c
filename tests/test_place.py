"""Nodules drawn into volumes: nothing else changes, and everything is told."""

import sys

import numpy as np
import pytest

from synthoma.cli import main
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.data.store import DatasetWriter
from synthoma.data.vois import cut_all, voxels_of
from synthoma.engine.settings import TrainSettings
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.gans.mcgan import MCGANConfig
from synthoma.synthesis.fit import fit
from synthoma.synthesis.mixture import TrainingData
from synthoma.synthesis.nodule_copies import NoduleGallery, nodules_in
from synthoma.synthesis.place import Ordered, moved_nodules, place, read_orders

SPACE = (24, 28, 32)


def scan(i, chance):
    """Lung with noise, one nodule that is annotated whole, and one without traits."""
    values = chance.normal(-850, 20, SPACE)
    z, y, x = np.meshgrid(*(np.arange(n) for n in SPACE), indexing="ij")
    centre = chance.uniform(9, 14, 3)
    radius = chance.uniform(2.5, 4)
    far = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
    values[far < radius] = 40
    box = np.concatenate([np.floor(centre - radius), np.ceil(centre + radius)])
    boxes = np.stack([box, [2, 20, 22, 6, 24, 27]]).astype(np.float32)
    return Case(
        f"scan-{i:02}",
        f"p{i:02}",
        Image(values.astype(np.int16)[None], spacing_mm=(1.0, 1.0, 1.0), unit="hu"),
        label="nodule",
        boxes=boxes,
        box_labels=("nodule", "nodule"),
        traits={
            "sizes": ["small" if i % 2 else "medium", None],
            "attenuations": ["solid" if i % 3 else "part-solid", None],
        },
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    out = tmp_path_factory.mktemp("place") / "scans"
    chance = np.random.default_rng(0)
    with DatasetWriter(out, patients_from="made") as writer:
        for i in range(20):
            writer.add(scan(i, chance))
    return Dataset.open(out)


@pytest.fixture(scope="module")
def run(scans):
    folder = scans.folder.parent
    cubes = cut_all(scans, folder / "cubes", side_px=16)
    config = MCGANConfig(side_px=16, width=4, batch_size=4)
    fit(
        "mcgan",
        folder / "run",
        TrainingData(data=cubes.folder),
        settings=(config, TrainSettings(steps=3, checkpoint_every=3, sample_every=3)),
        device="cpu",
    )
    return folder / "run"


@pytest.fixture(scope="module")
def drawn(scans, run):
    return place(run, scans.split("train"), run.parent / "drawn", n=16, seed=0)


def outside(cases):
    """Where no nodule was drawn."""
    mask = np.ones(SPACE, bool)
    for box in cases.origin.conditions["painted"]:
        mask[voxels_of(np.array(box))] = False
    return mask


def test_outside_of_the_drawn_boxes_every_voxel_is_the_scans(scans, drawn):
    by_id = {case.case_id: case for case in scans}
    assert len(drawn) == 16
    for case in drawn:
        behind = by_id[case.origin.conditions["background"]]
        same = outside(case)
        assert 100 < (~same).sum() < 2_000
        assert np.array_equal(case.image.values[0][same], behind.image.values[0][same])
        changed = case.image.values[0] != behind.image.values[0]
        assert changed[~same].mean() > 0.5
        assert case.image.values.dtype == np.int16


def test_boxes_and_traits_go_on_beside_those_that_are_left(drawn):
    for case in drawn:
        assert len(case.boxes) == len(case.traits["sizes"]) == len(case.traits["attenuations"]) == 2
        assert case.boxes[0].tolist() == [2, 20, 22, 6, 24, 27]  # of unknown traits: left
        assert case.traits["sizes"][0] is None
        assert case.traits["sizes"][1] in ("small", "medium")
        assert np.allclose(case.boxes[1], case.origin.conditions["painted"][0], atol=1e-3)
        assert case.box_labels == ("nodule", "nodule")
        assert case.image.spacing_mm == (1.0, 1.0, 1.0)


def test_the_same_seed_draws_the_same_volumes_and_another_round_others(scans, run, drawn, tmp_path):
    again = place(run, scans.split("train"), tmp_path / "again", n=16, seed=0)
    assert again.about["digest"] == drawn.about["digest"]
    n = len(scans.split("train"))
    first, second = drawn[0], drawn[n]
    assert first.origin.conditions["background"] == second.origin.conditions["background"]
    assert first.origin.conditions["painted"] != second.origin.conditions["painted"]


def test_who_was_shown_and_who_was_learnt_from_counts_as_seen(scans, drawn):
    saw = {name for names in drawn.generators_saw.values() for name in names}
    assert saw == set(scans.splits["train"])
    check_no_leak(scans.splits, saw, what="the generator")


def test_a_scan_of_the_test_split_is_a_leak(scans, run, tmp_path):
    with pytest.raises(LeakError, match="the scans of"):
        place(run, scans.split("test"), tmp_path / "drawn", n=1, seed=0)
    assert not (tmp_path / "drawn").exists()


def test_boxes_move_and_zoom_by_a_tenth_and_stay_within_the_scan(scans):
    chance, found = np.random.default_rng(0), []
    for case in scans:
        for ordered in moved_nodules(case, chance):
            old, new = case.boxes[ordered.replaces].astype(float), ordered.box
            sides = old[3:] - old[:3]
            found.append(np.stack([(new[:3] + new[3:] - old[:3] - old[3:]) / 2 / sides,
                                   (new[3:] - new[:3]) / sides - 1]))  # fmt: skip
            assert (new[:3] >= 0).all()
            assert (new[3:] <= SPACE).all()
    moves = np.stack(found)
    assert np.abs(moves).max() <= 0.1 + 1e-6
    assert np.abs(moves).max(axis=(0, 2)).min() > 0.08


def ordered(*box, size="small", attenuation="solid"):
    return Ordered(np.array(box, float), size, attenuation)


def test_nodules_are_added_where_they_are_ordered(scans, run, tmp_path):
    train = scans.split("train")
    name = train[0].case_id
    drawn = place(
        run, train, tmp_path / "drawn", n=1, seed=0, orders={name: [ordered(16, 4, 22, 20, 9, 28)]}
    )
    (case,) = drawn
    assert case.origin.conditions["background"] == name
    assert len(case.boxes) == 3
    assert case.boxes[2].tolist() == [16, 4, 22, 20, 9, 28]
    assert case.traits["attenuations"][2] == "solid"
    assert case.origin.conditions["replaced"] == []


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((20, 4, 22, 26, 9, 28), "outside of its"),
        ((3, 21, 23, 5, 23, 25), "meets another"),
    ],
)
def test_orders_that_leave_the_scan_or_meet_a_nodule_are_refused(scans, run, tmp_path, box, said):
    train = scans.split("train")
    with pytest.raises(DataError, match=said):
        place(run, train, tmp_path / "d", n=1, seed=0, orders={train[0].case_id: [ordered(*box)]})
    with pytest.raises(DataError, match="which is not there"):
        place(run, train, tmp_path / "d", n=1, seed=0, orders={"nobody": [ordered(*box)]})


def test_only_generators_of_nodules_are_asked(scans, tmp_path):
    with pytest.raises((SettingsError, DataError)):
        place(tmp_path, scans, tmp_path / "d", n=1, seed=0)


def test_a_planted_copy_is_found_flipped_and_brightened_and_a_stranger_is_not(scans, run):
    cubes = Dataset.open(run.parent / "cubes")
    gallery = NoduleGallery.of(cubes.split("train"), cubes.split("validation"))
    first, *_ = nodules_in(cubes.split("train"))
    assert gallery.is_copy("planted", first[::-1, :, ::-1] * 0.8 + 0.1)
    noise = np.random.default_rng(0).normal(size=first.shape).astype(np.float32)
    assert not gallery.is_copy("noise", noise)
    facts = gallery.facts()
    assert facts["n_copies"] == 1
    assert facts["copies"][0][:2] == ("planted", cubes.split("train")[0].case_id)


def test_a_volume_whose_nodule_stays_a_copy_is_left_out_and_counted(
    scans, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(NoduleGallery, "is_copy", lambda *args: "000001" in args[1])
    drawn = place(run, scans.split("train"), tmp_path / "drawn", n=3, seed=0)
    assert len(drawn) == 2
    assert drawn.about["dropped"]["a nodule that is a copy of a training nodule"]["n"] == 1


def test_orders_are_read_from_a_table_in_voxels_and_millimetres(scans, tmp_path):
    table = tmp_path / "orders.csv"
    table.write_text("scan,z,y,x,diameter_mm,attenuation\nscan-03,18,6.5,25,6,ground-glass\n")
    (own,) = read_orders(table, scans)["scan-03"]
    assert own.box.tolist() == [15, 3.5, 22, 21, 9.5, 28]
    assert (own.size, own.attenuation, own.replaces) == ("small", "ground-glass", None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("scan-99,18,6,25,6,solid", "row 2: no scan 'scan-99'"),
        ("scan-03,18,6,25,nan,solid", "row 2: .*numbers"),
        ("scan-03,18,6,25,0,solid", "row 2: diameter_mm 0"),
        ("scan-03,18,6,25,6,hard", "row 2: attenuation 'hard'; allowed: solid"),
    ],
)
def test_a_wrong_order_is_named_by_its_row(scans, tmp_path, row, said):
    table = tmp_path / "orders.csv"
    table.write_text(f"scan,z,y,x,diameter_mm,attenuation\n{row}\n")
    with pytest.raises(DataError, match=said):
        read_orders(table, scans)
    table.write_text("scan,z\nscan-03,1\n")
    with pytest.raises(DataError, match="columns"):
        read_orders(table, scans)


def test_the_command_line_draws_nodules_into_scans(scans, run, tmp_path, monkeypatch, capsys):
    words = ["synthoma", "sample", run, "--onto", scans.folder, "--n", "2", "--out", tmp_path / "d"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert len(Dataset.open(tmp_path / "d")) == 2
    assert "\n0 copies of training nodules left out; " in capsys.readouterr().out


def test_the_command_line_wants_scans_for_nodules(run, tmp_path, monkeypatch, capsys):
    words = ["synthoma", "sample", run, "--n", "2", "--out", tmp_path / "d"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "--onto" in capsys.readouterr().err
