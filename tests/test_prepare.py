"""Prepared images are square, 8 bits and on one scale; boxes, splits and patients come along."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from synthoma.data.case import Case, Image, Synthetic, no_boxes
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare, find_foreground, prepare, prepare_case
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError


def body(height: int = 60, width: int = 40, *, seed: int = 0, high: float = 100) -> np.ndarray:
    """A noisy body on black air, 8 voxels of air on every side."""
    chance = np.random.default_rng(seed)
    values = np.zeros((1, height, width))
    inner = chance.uniform(0.5, 1, (height - 16, width - 16)) * high
    values[0, 8:-8, 8:-8] = inner
    return values


def one(values: np.ndarray, **fields: Any) -> Case:
    image = {"spacing_mm": fields.pop("spacing_mm", None)}
    return Case("c0", "p0", Image(values, **image), **fields)


def ready(case: Case, value_range: tuple[float, float] | None = None, **fields: Any) -> Case:
    done = prepare_case(case, Prepare(**({"side_px": 32} | fields)), value_range)
    assert done is not None
    assert done.image.values.dtype == np.uint8
    assert done.image.space == (fields.get("side_px", 32),) * 2
    return done


def write(out: Path, cases: list[Case], **fields: Any) -> Dataset:
    with DatasetWriter(out, patients_from="a test", **fields) as writer:
        for case in cases:
            writer.add(case)
    return Dataset.open(out)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(40, 90), st.integers(40, 90)),
    corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    extent=st.tuples(st.integers(6, 18), st.integers(6, 18)),
    crop=st.booleans(),
    fit=st.sampled_from(["pad", "stretch"]),
    side_px=st.sampled_from([24, 64, 128]),
)
def test_a_box_still_holds_its_lesion_after_crop_pad_and_resize(
    size, corner, extent, crop, fit, side_px
):
    values = body(*size) * 0.3
    (y0, x0), (dy, dx) = corner, extent
    values[:, y0 : y0 + dy, x0 : x0 + dx] = 100
    box = np.array([[y0, x0, y0 + dy, x0 + dx]], np.float32)
    case = one(values.astype(np.float32), boxes=box, box_labels=("a",))
    done = ready(case, (0, 100), crop=crop, fit=fit, side_px=side_px, intensity="keep")
    rows, columns = np.nonzero(done.image.values[0] > 0.7 * 255)
    drawn = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
    assert done.boxes is not None
    enlarged = (done.boxes[0, 2:] - done.boxes[0, :2]).max() / max(extent)
    np.testing.assert_allclose(drawn, done.boxes[0], rtol=0, atol=max(1, 0.5 * enlarged))
    assert done.box_labels == ("a",)


def test_a_lesion_outside_the_foreground_is_not_cropped_away():
    box = np.array([[0, 0, 4, 4]], np.float32)
    done = ready(one(body().astype(np.float32), boxes=box), margin=0)
    assert done.boxes is not None
    np.testing.assert_allclose(done.boxes[0, 0], 0, atol=1e-6)


def test_cropping_takes_the_air_away_and_padding_keeps_the_proportions():
    keep = {"intensity": "keep", "margin": 0, "side_px": 44}
    done = ready(one(body().astype(np.float32)), (0, 100), **keep)
    assert (done.image.values[0].max(axis=1) > 0).all()  # 44 rows of body, no air
    lit = np.flatnonzero(done.image.values[0].max(axis=0) > 0)
    assert (lit[0], lit[-1] + 1) == (10, 34)  # 24 columns of body in the middle of 44
    stretched = ready(one(body().astype(np.float32)), (0, 100), fit="stretch", **keep)
    assert (stretched.image.values[0] > 0).all()


@pytest.mark.parametrize(("fit", "wanted"), [("pad", (2.0, 3.0)), ("stretch", (2.0, 1.5))])
def test_spacing_follows_the_size_of_a_voxel(fit, wanted):
    case = one(body(64, 32).astype(np.float32), spacing_mm=(1.0, 1.5))
    done = ready(case, crop=False, fit=fit)
    assert done.image.spacing_mm == pytest.approx(wanted)


def test_an_axis_that_shrinks_while_the_other_grows_is_averaged():
    checks = np.tile(np.array([0, 255], np.uint8), 128)[None, None].repeat(16, axis=1)
    done = ready(one(checks), (0, 255), crop=False, fit="stretch", intensity="keep")
    assert np.abs(done.image.values.astype(float) - 127.5).max() <= 1


def test_percentiles_of_the_foreground_become_black_and_white():
    values = body(high=1000).astype(np.uint16)
    inside = values[values > 0]
    low, high = np.percentile(inside, (10, 90))
    done = ready(one(values), percentiles=(10, 90), crop=False, side_px=60)
    middle = done.image.values[0, 8:-8, 18:-18].astype(float)
    wanted = np.clip((values[0, 8:-8, 8:-8] - low) * 255 / (high - low), 0, 255)
    np.testing.assert_allclose(middle, wanted, atol=0.51)


def test_where_the_volume_s_percentiles_are_known_slices_share_them():
    traits = {"percentiles": {"1": 20.0, "99": 220.0}}
    for brightest in (100, 200):
        values = body().astype(np.float32)
        values[0, 20:30, 15:25] = brightest
        done = ready(one(values, traits=traits), crop=False, side_px=60)
        assert done.image.values[0, 25, 30] == round((brightest - 20) * 255 / 200)


def test_a_window_in_hounsfield_units_cuts_what_lies_outside():
    values = np.full((1, 32, 32), -1000, np.int16)
    values[0, 4:28, 4:28] = -300
    values[0, 8:12, 8:12] = 2000
    values[0, 20:24, 8:12] = -1500
    done = ready(one(values), intensity="window", crop=False)
    found = done.image.values[0]
    assert (found[0, 0], found[16, 16], found[9, 9], found[21, 9]) == (0, 128, 255, 0)


def test_colour_becomes_grey_unless_it_is_wanted():
    values = np.concatenate([body(seed=s) for s in range(3)]).astype(np.uint8)
    assert ready(one(values)).image.values.shape == (1, 32, 32)
    assert ready(one(values), grey=False).image.values.shape == (3, 32, 32)
    same = ready(one(values), (0, 255), intensity="keep", crop=False, side_px=60).image.values
    np.testing.assert_allclose(same[0, :, 10:-10], values.mean(axis=0), atol=0.51)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
def test_images_of_every_type_are_prepared(dtype):
    values = (body() * (300 if dtype in ("uint16", "float32") else 1)).astype(dtype)
    done = ready(one(values), side_px=60, crop=False)
    assert done.image.values.max() == 255
    assert done.image.values.min() == 0
    assert len(np.unique(done.image.values)) > 40


def test_boxes_that_become_too_small_are_dropped_with_their_labels():
    boxes = np.array([[10, 10, 30, 30], [40, 20, 41, 21], [15, 20, 30, 30]], np.float32)
    case = one(body().astype(np.float32), boxes=boxes, box_labels=("a", "b", "c"))
    done = ready(case, side_px=16)
    assert done.boxes is not None
    assert len(done.boxes) == 2
    assert done.box_labels == ("a", "c")


def test_unknown_boxes_stay_unknown_and_none_stays_none():
    assert ready(one(body().astype(np.uint8))).boxes is None
    empty = ready(one(body().astype(np.uint8), boxes=no_boxes(2))).boxes
    assert empty is not None
    assert empty.shape == (0, 4)


@pytest.mark.parametrize("constant", [0, 100])
def test_an_image_of_one_value_is_blank(constant):
    case = one(np.full((1, 16, 16), constant, np.uint8))
    assert prepare_case(case, Prepare(), (0, 255)) is None


def test_an_image_that_the_window_blackens_is_blank():
    case = one((body() - 2000).astype(np.int16))
    assert prepare_case(case, Prepare(intensity="window"), None) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_with_nan_is_refused_by_name(bad):
    values = body().astype(np.float32)
    values[0, 3, 3] = bad
    with pytest.raises(DataError, match="case 'c0': 1 of its 2400 values are not finite"):
        prepare_case(one(values), Prepare(), None)


def test_keeping_a_range_that_is_not_known_is_refused():
    with pytest.raises(DataError, match=r"intensity=keep, but .* allowed: percentiles, window"):
        prepare_case(one(body().astype(np.float32)), Prepare(intensity="keep"), None)


@pytest.mark.parametrize(
    "wrong", [{"percentiles": (99, 1)}, {"percentiles": (0, 101)}, {"window": (5, 5)}]
)
def test_settings_upside_down_are_refused(wrong):
    with pytest.raises(ValidationError, match="the lower one first"):
        Prepare(**wrong)


@pytest.fixture
def imported(tmp_path) -> Dataset:
    cases = []
    for i in range(12):
        boxes = np.array([[20, 15, 30, 25], [40, 20, 41, 21]], np.float32) if i % 2 else no_boxes(2)
        values = body(seed=i).astype(np.int16)
        if i == 3:
            values[:] = 0
        cases.append(
            Case(f"c{i}", f"p{i // 2}", Image(values), "xy"[i % 2], boxes, traits={"i": i})
        )
    drawn = Synthetic("run", 3, {"index": 0}, ("p0",))
    cases.append(Case("drawn", "drawn", Image(body(seed=99).astype(np.int16)), origin=drawn))
    splits = {
        "train": [*(f"p{i}" for i in range(4)), "drawn"],
        "validation": ["p4"],
        "test": ["p5"],
    }
    return write(tmp_path / "imported", cases, splits=splits)


def test_a_prepared_folder_keeps_splits_patients_and_origins_and_counts_what_it_drops(
    imported, tmp_path
):
    told: list[tuple[int, int]] = []
    done = prepare(imported, tmp_path / "p", Prepare(side_px=16), lambda i, n: told.append((i, n)))
    assert told == [(i, 13) for i in range(1, 14)]
    assert done.splits == imported.splits
    assert [c.case_id for c in done] == [c.case_id for c in imported if c.case_id != "c3"]
    for case, before in zip(done, (c for c in imported if c.case_id != "c3"), strict=True):
        for name in ("patient_id", "label", "traits", "origin"):
            assert getattr(case, name) == getattr(before, name)
    assert {reason: d["n"] for reason, d in done.about["dropped"].items()} == {
        "blank after scaling": 1,
        "box too small at this size": 5,
    }
    assert done.about["dropped"]["blank after scaling"]["for_example"] == ["c3"]
    assert done.about["value_range"] == (0, 255)
    assert done.about["prepared"][0]["side_px"] == 16
    assert done.about["from"]["digest"] == imported.about["digest"]


def test_preparing_again_without_a_change_changes_nothing(imported, tmp_path):
    once = prepare(imported, tmp_path / "once", Prepare(side_px=64))
    still = Prepare(side_px=64, intensity="keep", crop=False)
    twice = prepare(once, tmp_path / "twice", still)
    assert len(twice) == len(once)
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a.image.values, b.image.values)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    assert len(twice.about["prepared"]) == 2


def test_a_part_of_a_dataset_is_prepared_with_its_own_patients_alone(imported, tmp_path):
    done = prepare(imported.split("validation"), tmp_path / "p", Prepare(side_px=16))
    assert done.splits == {"train": [], "validation": ["p4"], "test": []}


def test_patients_whose_images_are_all_blank_are_in_no_split(tmp_path):
    cases = [Case(f"c{i}", f"p{i}", Image(body(seed=i).astype(np.uint8))) for i in range(3)]
    cases.append(Case("c3", "p3", Image(np.zeros((1, 9, 9), np.uint8))))
    splits = {"train": ["p0", "p3"], "validation": ["p1"], "test": ["p2"]}
    imported = write(tmp_path / "d", cases, splits=splits)
    done = prepare(imported, tmp_path / "p", Prepare(side_px=16))
    assert done.splits == {"train": ["p0"], "validation": ["p1"], "test": ["p2"]}
    assert done.about["n_patients"] == 3


def test_volumes_are_refused_with_the_way_out(tmp_path):
    deep = write(tmp_path / "d", [one(np.ones((1, 4, 4, 4), np.uint8))])
    with pytest.raises(DataError, match="for slices"):
        prepare(deep, tmp_path / "p", Prepare())


def test_values_below_the_air_s_do_not_make_the_air_body():
    """Interpolated, skull-stripped volumes have them, on the rim of the brain."""
    values = np.zeros((1, 64, 64), np.int16)
    values[0, 20:40, 24:44] = 400
    values[0, 19, 24:44] = -60
    body = find_foreground(values.astype(np.float32))
    rows, columns = np.nonzero(body)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 24, 43)


def test_cases_without_a_label_are_left_out_and_counted_where_that_is_asked(tmp_path):
    cases = [
        Case(
            f"c{i}", f"p{i}", Image(body(seed=i).astype(np.float32)), label="ill" if i % 2 else None
        )
        for i in range(6)
    ]
    dataset = write(tmp_path / "set", cases)
    done = prepare(dataset, tmp_path / "some", Prepare(side_px=32), labelled=True)
    assert [done[i].case_id for i in range(len(done))] == ["c1", "c3", "c5"]
    assert done.about["dropped"] == {"no label": {"n": 3, "for_example": ["c0", "c2", "c4"]}}
    assert len(prepare(dataset, tmp_path / "all", Prepare(side_px=32))) == 6
