"""A patient is on one side."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthoma.data.split import (
    SPLITS,
    check_no_leak,
    check_splits,
    split_patients,
    splits_from_cases,
)
from synthoma.errors import DataError, LeakError, SettingsError

tenths = st.integers(0, 10).flatmap(
    lambda a: st.integers(0, 10 - a).map(lambda b: (a / 10, b / 10, (10 - a - b) / 10))
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(0, 9), tenths)
def test_every_patient_is_in_exactly_one_split_whatever_the_shares(n, seed, shares):
    patients = [f"p{i}" for i in range(n)]
    splits = split_patients(patients, seed=seed, shares=shares)
    assert tuple(splits) == SPLITS
    assert sorted(p for members in splits.values() for p in members) == sorted(patients)
    for share, members in zip(shares, splits.values(), strict=True):
        assert abs(len(members) - share * n) <= 2
        if n >= 3 and share:
            assert members
        if not share:
            assert len(members) <= 1
    check_splits(splits, patients)


@given(st.permutations([f"p{i}" for i in range(12)]), st.integers(0, 5))
def test_the_split_depends_on_the_seed_and_not_on_the_order_of_patients(patients, seed):
    assert split_patients(patients, seed=seed) == split_patients(sorted(patients), seed=seed)
    assert split_patients(patients * 3, seed=seed) == split_patients(patients, seed=seed)


def test_another_seed_is_another_split():
    patients = [f"p{i}" for i in range(50)]
    assert split_patients(patients, seed=0) != split_patients(patients, seed=1)


def test_seven_one_two_of_a_hundred():
    splits = split_patients([str(i) for i in range(100)], seed=0)
    assert {name: len(members) for name, members in splits.items()} == {
        "train": 70,
        "validation": 10,
        "test": 20,
    }


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1), (1.5, -0.5, 0.0), (float("nan"), 0.5, 0.5)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(SettingsError, match="add up to 1"):
        split_patients(["a", "b", "c"], seed=0, shares=shares)


def test_a_patient_whose_images_are_in_two_splits_is_a_leak():
    with pytest.raises(LeakError, match="patient p1 is in two splits, train and test"):
        splits_from_cases([("p1", "train"), ("p2", "test"), ("p1", "test")])
    with pytest.raises(LeakError, match="patient p1 is in two splits"):
        check_splits({"train": ["p1"], "test": ["p1"]}, ["p1"])


def test_splits_from_cases_name_every_split_and_each_patient_once():
    found = splits_from_cases([("a", "train"), ("a", "train"), ("b", "test")])
    assert found == {"train": ["a"], "validation": [], "test": ["b"]}


def test_a_split_of_another_name_or_a_patient_in_none_is_refused():
    with pytest.raises(DataError, match="'val'; allowed: train, validation, test"):
        splits_from_cases([("a", "val")])
    with pytest.raises(DataError, match="'val'; allowed: train, validation, test"):
        check_splits({"train": ["a"], "val": ["b"]}, ["a", "b"])
    with pytest.raises(DataError, match="patient b is in no split"):
        check_splits({"train": ["a"]}, ["a", "b"])


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_what_saw_a_held_out_patient_is_a_leak(held_out):
    splits = {"train": ["a", "b"], "validation": [], "test": []} | {held_out: ["c"]}
    check_no_leak(splits, ["a", "b", "of another hospital"], what="run x")
    with pytest.raises(LeakError, match=rf"run x saw 1 {held_out} patient\(s\), for example c"):
        check_no_leak(splits, ["a", "c"], what="run x")
