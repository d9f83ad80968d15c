"""Splits by patient, and the refusal to let a patient be on both sides.

A split is a list of patient ids, so a case cannot be in two splits unless its patient is.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from synthoma.errors import DataError, LeakError, SettingsError

SPLITS = ("train", "validation", "test")
#: How often patients are drawn again where a class is missing.
TRIES = 1000
#: Patient ids by split name.
Splits = dict[str, list[str]]


def split_patients(
    patients: list[str], *, seed: int, shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> Splits:
    """Divide patients at random, seeded; every split gets a patient as soon as there are three.

    Raises:
        SettingsError: The shares do not add up to 1.

    Example:
        >>> {k: len(v) for k, v in split_patients([f"p{i}" for i in range(10)], seed=0).items()}
        {'train': 7, 'validation': 1, 'test': 2}
    """
    if not (all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):
        raise SettingsError(f"shares {shares}; allowed: three numbers from 0 to 1 that add up to 1")
    if seed < 0:
        raise SettingsError(f"seed {seed}; allowed: 0 or above")
    shuffled = sorted(set(patients))
    n = len(shuffled)
    np.random.default_rng([seed, n]).shuffle(shuffled)
    least = [1 if n >= len(SPLITS) and share else 0 for share in shares]
    n_validation, n_test = max(round(n * shares[1]), least[1]), max(round(n * shares[2]), least[2])
    while n_validation + n_test > n - least[0]:  # both were rounded up: the larger gives way
        if n_validation > n_test:
            n_validation -= 1
        else:
            n_test -= 1
    n_train = n - n_validation - n_test
    return {
        "train": sorted(shuffled[:n_train]),
        "validation": sorted(shuffled[n_train : n_train + n_validation]),
        "test": sorted(shuffled[n_train + n_validation :]),
    }


def all_to_train(patients: list[str]) -> Splits:
    """The split of synthetic images, which are for training only."""
    return {"train": patients, "validation": [], "test": []}


def those_left(before: Mapping[str, list[str]]) -> Callable[[list[str]], Splits]:
    """For a dataset made of another: its splits, of the patients that are still there."""

    def splits(present: list[str]) -> Splits:
        left = set(present)
        return {name: [p for p in own if p in left] for name, own in before.items()}

    return splits


def draw_patients(
    patient_ids: Iterable[str], *, n_cases: int, draws: int, seed: int
) -> list[list[str]]:
    """Several small sets of whole patients, no patient in two: what low-data studies train on.

    Args:
        patient_ids: The patient of every case.
        n_cases: Cases of a set, at least; the patient who reaches it is the last.

    Raises:
        DataError: There are not so many cases.

    Example:
        >>> draw_patients(["a", "a", "b", "b", "c", "c", "c"], n_cases=2, draws=2, seed=0)
        [['c'], ['b']]
    """
    sizes = Counter(patient_ids)
    shuffled = sorted(sizes)
    np.random.default_rng([seed, len(shuffled)]).shuffle(shuffled)
    waiting, found = iter(shuffled), []
    for _ in range(draws):
        chosen: list[str] = []
        while sum(sizes[patient] for patient in chosen) < n_cases:
            patient = next(waiting, None)
            if patient is None:
                raise DataError(
                    f"{draws} draws of {n_cases} cases of whole patients; there are "
                    f"{sizes.total()} cases of {len(sizes)} patients"
                )
            chosen.append(patient)
        found.append(sorted(chosen))
    return found


def draw_patients_of_every_class(
    patient_ids: Sequence[str], labels: Sequence[str], *, n_cases: int, draws: int, seed: int
) -> list[list[str]]:
    """`draw_patients`, drawn again until every set has every class.

    Args:
        labels: The class of every case.

    Raises:
        DataError: There are not so many cases, or chance never came to sets with every class.

    Example:
        >>> who, what = ["a", "b", "c", "d"], ["ill", "ill", "well", "well"]
        >>> draw_patients_of_every_class(who, what, n_cases=2, draws=2, seed=0)
        [['b', 'c'], ['a', 'd']]
    """
    shows: dict[str, set[str]] = {}
    for patient, label in zip(patient_ids, labels, strict=True):
        shows.setdefault(patient, set()).add(label)
    classes = set(labels)
    again = np.random.default_rng([seed, 1]).integers(2**62, size=TRIES).tolist()
    for own in (seed, *again):
        found = draw_patients(patient_ids, n_cases=n_cases, draws=draws, seed=own)
        if all(set().union(*(shows[patient] for patient in drawn)) == classes for drawn in found):
            return found
    counts = ", ".join(
        f"{sum(label in own for own in shows.values())} have {label}" for label in sorted(classes)
    )
    raise DataError(
        f"{draws} draws of {n_cases} cases: in {TRIES + 1} tries a draw always lacked a class; of "
        f"{len(shows)} patients {counts}; give more cases a draw, or fewer draws"
    )


def splits_from_cases(of_patient: Iterable[tuple[str, str]]) -> Splits:
    """Splits from (patient, split) pairs, one a case.

    Raises:
        LeakError: A patient is in two splits.
        DataError: A split has another name than those of `SPLITS`.
    """
    splits: Splits = {name: [] for name in SPLITS}
    known: dict[str, str] = {}
    for patient, split in of_patient:
        if split not in splits:
            raise DataError(f"patient {patient}: split {split!r}; allowed: {', '.join(SPLITS)}")
        before = known.setdefault(patient, split)
        if before != split:
            raise LeakError(f"patient {patient} is in two splits, {before} and {split}")
    for patient, split in known.items():
        splits[split].append(patient)
    return splits


def check_splits(splits: Mapping[str, list[str]], patients: Iterable[str]) -> None:
    """Refuse splits in which a patient is in two, or that leave a patient out.

    Raises:
        LeakError: A patient is in two splits.
        DataError: A patient is in none, or a split is not one of `SPLITS`.
    """
    home: dict[str, str] = {}
    for name, members in splits.items():
        if name not in SPLITS:
            raise DataError(f"split {name!r}; allowed: {', '.join(SPLITS)}")
        for patient in members:
            before = home.setdefault(patient, name)
            if before != name:
                raise LeakError(f"patient {patient} is in two splits, {before} and {name}")
    for patient in patients:
        if patient not in home:
            raise DataError(f"patient {patient} is in no split")


def check_no_leak(splits: Mapping[str, list[str]], trained_on: Iterable[str], *, what: str) -> None:
    """Refuse what has seen a patient that it will be judged on.

    Args:
        splits: Of the real dataset.
        trained_on: Patients that were seen: by a generator, or in a training set.
        what: Names the culprit in the message.

    Raises:
        LeakError: It saw a validation or test patient.
    """
    seen = set(trained_on)
    for name in ("validation", "test"):
        both = sorted(seen & set(splits.get(name, ())))
        if both:
            raise LeakError(
                f"{what} saw {len(both)} {name} patient(s), for example {both[0]}; train it on "
                "the training split alone"
            )
