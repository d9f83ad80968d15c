"""Slices without a label get one from a classifier, or are left out where it is not sure.

    dataset, classifier -> every labelled case as it is; of the others those of which the classifier
    is sure, with its label -> dataset folder

For slices of volumes without a mask: Han et al. 2018 (file 004, discussion) wished for a classifier
that keeps only slices with, or without, a tumour. A label is a guess, and so is what is measured
against it: the case says who guessed (trait `labelled_by`) and how surely (`label_probability`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from synthoma.data.dataset import Dataset
from synthoma.data.split import those_left
from synthoma.data.store import DatasetWriter, refuse_existing
from synthoma.engine.evaluate import probabilities_of
from synthoma.engine.run import Run
from synthoma.engine.system import Classifier
from synthoma.errors import DataError, SettingsError
from synthoma.synthesis.fit import load_trained, pick_device


def label(
    dataset: Dataset,
    run: Path,
    out: Path,
    *,
    sure: float = 0.9,
    keep: str = "",
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write the dataset folder `out` of the cases that have a label or get one.

    Args:
        dataset: Prepared as the classifier's training images were.
        run: Of a trained classifier.
        sure: Least probability of the likeliest class.
        keep: Keep cases of this label alone, guessed or known; empty: of all.
        progress: Told (cases asked about, cases).

    Raises:
        SettingsError: The run is not of a classifier, or `sure` or `keep` is not allowed.
        DataError: No case is without a label, none is left, some are synthetic, or the set is not
            prepared.
    """
    refuse_existing(out)
    classifier, facts = load_trained(run, str(pick_device(device)))
    if not isinstance(classifier, Classifier):
        raise SettingsError(f"{run}: {facts['name']} is not a classifier")
    if not 0 < sure <= 1:
        raise SettingsError(f"sure={sure}; allowed: above 0, to 1")
    known = sorted({*classifier.classes, *dataset.labels})
    if keep and keep not in known:
        raise SettingsError(f"keep={keep!r}; allowed: {', '.join(known)}")
    if dataset.about["n_synthetic"]:
        raise DataError(f"{dataset.folder}: holds synthetic images; only real ones are labelled")
    asked = [i for i in range(len(dataset)) if dataset.label(i) is None]
    if not asked:
        raise DataError(f"{dataset.folder}: every case has a label already")
    probabilities = probabilities_of(
        classifier,
        dataset.take(np.array(asked)),
        precision=Run.open(run).facts["train"]["precision"],
        progress=progress,
    )
    likeliest, chances = probabilities.argmax(1), probabilities.max(1)
    guesses = {i: (classifier.classes[k], float(p))
               for i, k, p in zip(asked, likeliest, chances, strict=True)}  # fmt: skip
    run_id = facts["id"]

    about = {k: v for k, v in dataset.about.items() if k in ("prepared", "phantom")}
    given = Counter(name for name, chance in guesses.values() if chance >= sure)
    with DatasetWriter(
        out,
        patients_from=dataset.about["patients_from"],
        value_range=dataset.about["value_range"],
        splits=those_left(dataset.splits),
        about=about
        | {"from": {name: dataset.about[name] for name in ("digest", "dropped")}}
        | {"labelled": {"by": run_id, "sure": sure, "asked": len(asked), "given": dict(given)}},
    ) as writer:
        for i, case in enumerate(dataset):
            name, chance = guesses.get(i, (case.label, 1.0))
            if chance < sure:
                writer.drop(f"no class is at least {sure:.0%} likely", case.case_id)
            elif keep and name != keep:
                writer.drop(f"not {keep}", case.case_id)
            elif i in guesses:
                told = {"labelled_by": run_id, "label_probability": round(chance, 4)}
                writer.add(replace(case, label=name, traits={**case.traits, **told}))
            else:
                writer.add(case)
    return Dataset.open(out)
