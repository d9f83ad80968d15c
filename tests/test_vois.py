"""Cubes of nodules: cut from scans, and put back so that nothing else changes."""

import numpy as np
import pytest

from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.data.vois import (
    attenuation_of,
    cut,
    cut_all,
    nodules_of,
    put,
    resample,
    size_of,
    voxels_of,
)
from synthoma.errors import DataError


def scan(seed=0, space=(24, 30, 36)):
    z, y, x = np.meshgrid(*(np.arange(n) for n in space), indexing="ij")
    smooth = 10 * z - 4 * y + 3 * x - 500
    return (smooth + np.random.default_rng(seed).integers(-5, 5, space)).astype(np.int16)


BOX = np.array([8, 10, 12, 14, 20, 20], np.float32)


def test_sizes_and_attenuations_have_the_thesis_limits():
    assert [size_of(d) for d in (3, 10, 10.1, 20, 20.1)] == [
        "small", "small", "medium", "medium", "large",
    ]  # fmt: skip
    assert [attenuation_of(t) for t in (1, 2, 3, 4, 5)] == [
        "ground-glass", "ground-glass", "part-solid", "solid", "solid",
    ]  # fmt: skip


def test_a_box_touches_every_voxel_that_it_covers_in_part():
    assert voxels_of(np.array([1.5, 2, 3, 2.5, 4, 3.2])) == (slice(1, 3), slice(2, 4), slice(3, 4))


def test_a_cube_of_the_right_size_is_the_region_itself():
    values = scan()
    box = np.array([8, 8, 8, 16, 16, 16])
    assert np.array_equal(cut(values, box, 16), values[4:20, 4:20, 4:20])


def test_the_box_is_the_middle_half_of_its_cube_whatever_its_sides():
    values = np.full((24, 30, 36), -800, np.int16)
    values[voxels_of(BOX)] = 100
    cube = cut(values, BOX, 32)
    assert cube[9:23, 9:23, 9:23].min() == pytest.approx(100, abs=60)  # the rim is interpolated
    assert cube[0].max() == cube[:, 0].max() == cube[:, :, 0].max() == -800
    assert (cube > -350).sum() == pytest.approx(16**3, rel=0.2)


def test_beyond_the_scan_its_edge_goes_on():
    values = scan()
    cube = cut(values, np.array([0, 0, 0, 8, 8, 8]), 16)
    assert np.array_equal(cube[4:, 4:, 4:], values[:12, :12, :12])
    assert np.array_equal(cube[0, 4:, 4:], values[0, :12, :12])


def test_a_nodule_that_is_put_back_changes_its_box_and_no_other_voxel():
    values = scan()
    before = values.copy()
    put(values, BOX, np.full((8, 8, 8), 77.4))
    inside = np.zeros(values.shape, bool)
    inside[voxels_of(BOX)] = True
    assert (values[inside] == 77).all()
    assert np.array_equal(values[~inside], before[~inside])


def test_what_was_cut_comes_back_nearly_as_it_was():
    values = scan()
    smooth = values.astype(np.float32)
    cube = cut(smooth, BOX, 64)
    put(smooth, BOX, cube[16:48, 16:48, 16:48])
    assert np.abs(smooth - values).max() < 8  # of the noise, linear interpolation keeps the most
    ramp = np.broadcast_to(np.arange(36, dtype=np.float32), (24, 30, 36)).copy()
    cube = cut(ramp, BOX, 64)
    again = ramp.copy()
    put(again, BOX, cube[16:48, 16:48, 16:48])
    assert np.abs(again - ramp).max() < 0.51  # at the box's edge; a ramp inside is kept


def test_values_beyond_the_numbers_of_the_scan_are_cut_not_wrapped():
    values = scan()
    put(values, BOX, np.full((8, 8, 8), 1e6))
    assert values.max() == np.iinfo(np.int16).max


def test_boxes_outside_are_refused():
    with pytest.raises(DataError, match="leaves a scan"):
        put(scan(), np.array([20, 0, 0, 26, 4, 4]), np.zeros((4, 4, 4)))
    with pytest.raises(DataError, match="lies outside"):
        cut(scan(), np.array([90, 90, 90, 95, 95, 95]), 16)


def test_resampling_averages_where_it_shrinks():
    values = scan().astype(np.float32)
    half = resample(values, (12, 15, 18))
    wanted = values.reshape(12, 2, 15, 2, 18, 2).mean(axis=(1, 3, 5))
    assert np.abs(half - wanted).max() < 1e-2


@pytest.fixture
def scans(tmp_path):
    with DatasetWriter(tmp_path / "scans", patients_from="made") as writer:
        for i in range(10):
            boxes = np.stack([BOX, BOX + np.array([0, -8, 10] * 2)]).astype(np.float32)
            writer.add(
                Case(
                    f"scan-{i}",
                    f"p{i}",
                    Image(scan(i)[None], unit="hu"),
                    boxes=boxes,
                    traits={"sizes": ["small", "large"], "attenuations": ["solid", None]},
                )
            )
    return Dataset.open(tmp_path / "scans")


def test_every_nodule_that_is_known_becomes_a_case_and_the_others_are_counted(scans, tmp_path):
    made = cut_all(scans, tmp_path / "cubes", side_px=16)
    assert len(made) == 10
    assert made.splits == scans.splits
    first = made[0]
    assert (first.label, first.traits["size"], first.traits["scan"]) == ("solid", "small", "scan-0")
    assert first.image.values.shape == (1, 16, 16, 16)
    assert first.boxes.tolist() == [[4, 4, 4, 12, 12, 12]]
    assert made.about["value_range"] in ([-1000, 400], (-1000, 400))
    assert made.about["dropped"]["a nodule of unknown size or attenuation"]["n"] == 10


def test_traits_are_one_a_box(scans):
    case = scans[0]
    broken = Case(
        "c", "p", case.image, boxes=case.boxes, traits={"sizes": ["small"], "attenuations": []}
    )
    with pytest.raises(DataError, match="2 boxes, 1 sizes and 0 attenuations"):
        nodules_of(broken)
