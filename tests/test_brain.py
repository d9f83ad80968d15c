"""Drawn brains: what a detector may count on, and what must not give the answer away."""

import dataclasses
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from synthoma.data import boxes as box
from synthoma.phantoms.brain import (
    CSF,
    VESSEL,
    WHITE,
    BrainConfig,
    Lesion,
    brains,
    draw_patient,
    draw_scanner,
    draw_slice,
)

SMALL = BrainConfig(side_px=64, patients=24, slices_per_patient=6)


@cache
def crowd():
    return tuple(brains(SMALL, seed=1))


def lesion(**changes):
    plain = Lesion(
        x=0.3, y=-0.3, level=0.7, radius=0.16, core=0.0, oedema=1.0, enhancement=0.95,
        bumps=np.zeros((1, 5), np.float32),
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def with_only(patient, *lesions):
    return dataclasses.replace(patient, lesions=lesions)


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others():
    few = BrainConfig(side_px=64, patients=1, slices_per_patient=2)
    first, second, other = (
        [case.image.values for case in brains(few, seed=seed)] for seed in (0, 0, 9)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_patient_is_the_same_whatever_the_number_of_patients():
    alone = SMALL.model_copy(update={"patients": 1, "first_patient": 5})
    among = [case for case in crowd() if case.patient_id == "patient-005"]
    for a, b in zip(brains(alone, seed=1), among, strict=True):
        assert a.case_id == b.case_id
        assert a.traits == b.traits
        assert np.array_equal(a.boxes, b.boxes)
        assert np.array_equal(a.image.values, b.image.values)


def test_a_level_looks_the_same_whatever_the_number_of_slices():
    one, three = (
        list(brains(SMALL.model_copy(update={"patients": 2, "slices_per_patient": n}), seed=1))
        for n in (1, 3)
    )
    assert np.array_equal(one[1].image.values, three[4].image.values)


def test_lesion_settings_leave_the_anatomy_alone():
    none = draw_patient(BrainConfig(side_px=64, lesions_max=0), 2, seed=1)
    many = draw_patient(BrainConfig(side_px=64, lesions_max=9), 2, seed=1)
    assert len(many.lesions) > len(none.lesions) == 0
    healthy = draw_slice(SMALL, none, 0.5)[0]
    assert np.array_equal(healthy, draw_slice(SMALL, many, 0.5, with_lesions=False)[0])


def test_cases_keep_the_contract():
    for case in crowd():
        assert case.image.values.dtype == np.uint8
        assert case.image.values.shape == (1, 64, 64)
        assert case.case_id.startswith(case.patient_id + "/slice-")
        assert case.label == ("tumour" if len(case.boxes) else "normal")
        assert case.boxes.dtype == np.float32
        assert len(case.boxes) == len(case.box_labels) == len(case.traits["true_boxes"])
        assert (box.sides(case.boxes) > 0).all()
        assert np.array_equal(box.clip(case.boxes, (64, 64)), case.boxes)
        assert case.origin.source == "phantom brain, seed 1"


def test_background_is_exactly_zero_and_the_head_fills_the_frame_and_is_not_black():
    for case in crowd()[:48]:
        patient = draw_patient(SMALL, int(case.patient_id[-3:]), seed=1)
        _, head, _ = draw_slice(SMALL, patient, case.traits["slice_level"])
        values = case.image.values[0]
        assert not values[~head].any()
        assert (values[head] > 0).mean() > 0.98
        assert not head[[0, -1]].all(axis=1).any()
        assert 0.35 < head.mean() < 0.75
        assert np.ptp(np.flatnonzero(head.any(axis=1))) > 0.75 * 64


def test_true_boxes_hold_all_that_lesions_brighten():
    # A pixel that a lesion covers by less than half gains less than half of 1.12 - CSF.
    brightened = 0
    for index in range(12):
        patient = draw_patient(SMALL, index, seed=1)
        for level in (0.2, 0.5, 0.8):
            sick, _, seen = draw_slice(SMALL, patient, level)
            well = draw_slice(SMALL, patient, level, with_lesions=False)[0]
            inside = np.zeros((64, 64), bool)
            for mask, _kind in seen:
                y0, x0, y1, x1 = box.around(mask)[0].astype(int)
                inside[y0:y1, x0:x1] = True
            brightened += (sick - well > 0.5).sum()
            assert not (sick - well > 0.5)[~inside].any()
            if not seen:
                assert np.array_equal(sick, well)
    assert brightened > 30


def test_a_lesion_too_small_to_annotate_is_not_drawn():
    patient = with_only(draw_patient(SMALL, 0, seed=1), lesion())
    sick, _, seen = draw_slice(SMALL, patient, 0.7)
    assert len(seen) == 1
    strict = SMALL.model_copy(update={"least_extent": 0.5})
    unseen, _, none = draw_slice(strict, patient, 0.7)
    assert none == []
    assert not np.array_equal(sick, unseen)
    assert np.array_equal(unseen, draw_slice(SMALL, patient, 0.7, with_lesions=False)[0])


def test_a_lesion_spans_neighbouring_slices_and_is_largest_in_its_middle():
    patient = with_only(draw_patient(SMALL, 0, seed=1), lesion())
    areas = [
        sum(mask.sum() for mask, _ in draw_slice(SMALL, patient, level)[2])
        for level in (0.3, 0.6, 0.7, 0.8, 0.99)
    ]
    assert areas[0] == areas[-1] == 0
    assert 0 < areas[1] < areas[2] > areas[3] > 0


def test_ring_lesions_have_dark_cores_and_solid_ones_do_not():
    healthy = draw_patient(SMALL, 0, seed=1)
    for core, kind in ((0.7, "ring"), (0.0, "solid")):
        signal, _, [seen] = draw_slice(SMALL, with_only(healthy, lesion(core=core)), 0.7)
        assert seen.kind == kind
        y, x = np.argwhere(seen.mask).mean(axis=0).round().astype(int)
        assert (signal[y, x] < WHITE) == (kind == "ring")
        assert signal[seen.mask].max() > 0.85


def test_oedema_darkens_white_matter_around_a_lesion():
    healthy = draw_patient(SMALL, 0, seed=1)
    dry, wet = (
        draw_slice(SMALL, with_only(healthy, lesion(oedema=size)), 0.7)[0] for size in (1.0, 2.4)
    )
    assert (dry - wet).max() > 0.15
    assert (dry - wet).min() > -0.05


def test_about_half_of_the_slices_show_tumours_of_many_sizes_both_kinds_up_to_the_most():
    lesions = [found for case in crowd() for found in case.traits["lesions"]]
    radii = np.array([found["radius_px"] for found in lesions])
    assert 0.3 < np.mean([case.label == "tumour" for case in crowd()]) < 0.7
    assert max(len(case.boxes) for case in crowd()) <= 5
    assert np.quantile(radii, 0.9) > 2 * np.quantile(radii, 0.1)
    assert radii.max() < 0.15 * 64
    assert 0.1 < np.mean([found["kind"] == "ring" for found in lesions]) < 0.7


def test_without_lesions_every_slice_is_normal_and_known_to_be():
    for case in brains(SMALL.model_copy(update={"lesions_max": 0, "patients": 3}), seed=1):
        assert case.label == "normal"
        assert case.boxes.shape == (0, 4)


def test_rough_boxes_stray_but_mostly_overlap():
    overlaps = [
        box.iou(case.boxes[[i]], np.array([true], np.float32)).item()
        for case in crowd()
        for i, true in enumerate(case.traits["true_boxes"])
    ]
    assert np.mean(np.greater(overlaps, 0.4)) > 0.9
    assert np.mean(np.less(overlaps, 0.95)) > 0.8
    exact = SMALL.model_copy(update={"patients": 4, "rough": 0.0, "rough_floor_px": 0.0})
    for case in brains(exact, seed=1):
        assert np.array_equal(case.boxes, np.reshape(case.traits["true_boxes"], (-1, 4)))


def test_scanners_differ_in_brightness_and_their_images_do():
    brightness = [draw_scanner(k, seed=1).brightness for k in range(4)]
    assert np.diff(np.sort(brightness)).min() > 0.03
    medians: dict[str, list[float]] = {}
    for case in crowd():
        values = case.image.values
        medians.setdefault(case.traits["scanner"], []).append(np.median(values[values > 0]))
    assert len(medians) == 4
    centres = [np.mean(values) for values in medians.values()]
    assert np.ptp(centres) > 2 * np.mean([np.std(values) for values in medians.values()])


def test_left_and_right_agree_more_than_two_patients_do():
    def deep(index):  # upright, one size, away from the edge, coarse
        patient = dataclasses.replace(draw_patient(SMALL, index, seed=1), turn=0.0, size=0.95)
        signal = draw_slice(SMALL, patient, 0.3, with_lesions=False)[0]
        return signal[8:56, 12:52].reshape(24, 2, 20, 2).mean(axis=(1, 3))

    slices = [deep(index) for index in range(10)]
    mirrored = [np.abs(s - s[:, ::-1]).mean() for s in slices]
    others = [np.abs(a - b).mean() for a, b in pairwise(slices)]
    assert 0 < np.mean(mirrored) < 0.9 * np.mean(others)


def test_neighbouring_slices_resemble_each_other_more_than_other_patients_do():
    signals = [
        [draw_slice(SMALL, draw_patient(SMALL, i, seed=1), level)[0] for level in (0.5, 0.53)]
        for i in range(6)
    ]
    near = np.mean([np.abs(a - b).mean() for a, b in signals])
    far = np.mean([np.abs(a[0] - b[0]).mean() for a, b in pairwise(signals)])
    assert near < 0.6 * far


def test_vessels_are_as_bright_as_lesions_where_there_are_none():
    for index in range(5):
        signal, _, _ = draw_slice(
            SMALL, draw_patient(SMALL, index, seed=1), 0.5, with_lesions=False
        )
        assert signal.max() > 0.85 * VESSEL
        assert 0.001 < (signal > 0.7).mean() < 0.06


def test_ventricles_are_dark_at_the_level_of_the_thalamus_and_gone_near_the_vertex():
    for index in range(5):
        patient = dataclasses.replace(draw_patient(SMALL, index, seed=1), turn=0.0)
        low, high = (
            draw_slice(SMALL, patient, level, with_lesions=False)[0][18:30, 24:31]
            for level in (0.3, 0.8)
        )
        assert low.min() < CSF + 0.1
        assert (low < 0.3).mean() > (high < 0.3).mean()


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"side_px": 8}, {"scanners": 0}, {"lesions_max": -1}, {"sides": 64}):
        with pytest.raises(ValidationError):
            BrainConfig(**wrong)
