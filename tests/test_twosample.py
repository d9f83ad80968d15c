"""The two-sample test says nothing of sets that are alike and tells those that are not."""

import numpy as np
import pytest

from synthoma.errors import DataError, SettingsError
from synthoma.metrics.twosample import c2st


def vectors(seed, n=40, d=6, *, shift=0.0, a_patient=1):
    """Vectors of `n` patients; those of one patient lie close together."""
    chance = np.random.default_rng(seed)
    centres = np.repeat(chance.normal(size=(n, d)), a_patient, axis=0)
    return centres + 0.1 * chance.normal(size=centres.shape) + shift


def compare(first, second, *, a_patient=1, **settings):
    def names(own, letter):
        return np.array([f"{letter}{i // a_patient:03}" for i in range(len(own))])

    return c2st(
        first,
        second,
        first_patients=names(first, "a"),
        second_patients=names(second, "b"),
        **({"seed": 0, "permutations": 19} | settings),
    )


@pytest.mark.parametrize("method", ["logistic", "neighbours"])
def test_a_shift_is_told_and_no_shift_is_not(method):
    told = compare(vectors(0), vectors(1, shift=1.5), method=method)
    assert told.p == pytest.approx(1 / 20)
    assert told.accuracy.low > 0.6
    same = compare(vectors(0), vectors(3), method=method)
    assert same.p > 0.05
    assert same.accuracy.low < 0.5 < same.accuracy.high


def test_sets_that_are_alike_are_rejected_at_the_rate_that_p_promises():
    """Also where a patient has several vectors, which one by one would be told nearly always."""
    p = [
        compare(
            vectors(2 * i, n=8, a_patient=4),
            vectors(2 * i + 1, n=12, a_patient=4),
            a_patient=4,
            seed=i,
            permutations=9,
            folds=3,
        ).p
        for i in range(20)
    ]
    assert set(np.round(np.array(p) * 10).astype(int)) <= set(range(1, 11))
    assert np.mean(np.array(p) <= 0.1) <= 0.3  # 10 % promised; 20 sets: standard error 7 %
    assert 0.35 <= np.mean(p) <= 0.75


def test_a_patient_in_training_is_never_asked_about():
    """With patients in both folds, neighbours would know every twin and be right each time."""
    first, second = vectors(0, n=15, a_patient=20), vectors(1, n=15, a_patient=20)
    found = compare(first, second, a_patient=20, method="neighbours", permutations=0)
    assert found.accuracy.value < 0.75
    assert found.accuracy.n == 30


def test_sets_of_different_size_are_no_clue():
    found = compare(vectors(0, n=150), vectors(1, n=15), method="neighbours")
    assert found.accuracy.value < 0.75
    assert found.p > 0.05
    # so near that a plain majority of neighbours would call everything the larger set
    told = compare(vectors(0, n=150), vectors(1, n=15, shift=0.7), method="neighbours")
    assert told.p == 0.05
    assert told.accuracy.value > 0.65


def test_the_same_seed_gives_the_same_answer():
    first, second = (compare(vectors(0, d=80), vectors(1, d=80), permutations=3) for _ in range(2))
    assert first.accuracy == second.accuracy
    np.testing.assert_array_equal(first.null, second.null)


def test_what_cannot_be_compared_is_refused():
    own = vectors(0, n=4)
    who = np.arange(4)
    with pytest.raises(DataError, match="in both sets"):
        c2st(own, own, first_patients=who, second_patients=who, seed=0)
    with pytest.raises(DataError, match="1 patients"):
        c2st(own, own, first_patients=who, second_patients=np.full(4, 9), seed=0)
    with pytest.raises(DataError, match="finite"):
        compare(own * np.nan, own)
    with pytest.raises(SettingsError, match="folds"):
        compare(own, own, folds=1)
