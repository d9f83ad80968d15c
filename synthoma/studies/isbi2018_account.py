"""The report of the study of Han et al. 2018, from what its folder holds."""

from typing import TYPE_CHECKING

import numpy as np

from synthoma.data.dataset import Dataset
from synthoma.engine.run import Run
from synthoma.engine.versions import versions
from synthoma.report.claims import p_text
from synthoma.report.content import Grid, Report, SmallTable
from synthoma.report.figures import TrainingRun
from synthoma.report.table import Estimate, Row, Table
from synthoma.studies.isbi2018_brats import NAME, QUESTION, TABLE_1, TITLE
from synthoma.studies.shown import facts_of, pictures

if TYPE_CHECKING:
    from synthoma.studies.isbi2018_work import BratsWork

#: Pictures of a set in a grid.
PICTURES = 16


def account(work: "BratsWork") -> Report:
    """Everything that the report shows."""
    study = work.study
    first = next(iter(study.sets))
    real = work.real(first, "train")
    return Report(
        title=f"{TITLE} {study.dataset.name}, scale {study.scale}",
        question=QUESTION,
        table=Table(
            study=NAME,
            task="draw",
            patients_from=real.about["patients_from"],
            primary="c2st",
            rows=tuple(row for name in study.sets for row in rows(work, name)),
        ),
        warnings=warnings(work),
        notes=notes(work),
        intervals=(
            "95 % intervals from resampling patients, a synthetic slice counting as one: they do "
            "not hold the chance of training."
        ),
        small_tables=[table_of_nulls(work), table_of_physician()],
        grids=[grid for name in study.sets for grid in grids(work, name)],
        training=[TrainingRun(name, Run(work.generator(name)).read_log()) for name in study.sets],
        settings=study.model_dump(mode="json"),
        versions=versions(),
        command=work.command,
        seeds=[study.seed],
        seconds=work.tasks.seconds,
        data=facts_of(Dataset.open(work.data(study.sides[-1])), [], low_data=False),
    )


def rows(work: "BratsWork", name: str) -> list[Row]:
    """A GAN's slices and real training ones, told from those of unseen patients."""
    found = []
    for synthetic, said in ((True, name), (False, f"{name}: real training slices instead")):
        told = work.found(name, synthetic=synthetic)
        found.append(
            Row(
                setup=said,
                n_real=told["slices"] * (1 if synthetic else 2),
                n_synthetic=told["slices"] if synthetic else 0,
                seeds=1,
                metrics={"c2st": Estimate(**told["accuracy"])},
            )
        )
    return found


def table_of_nulls(work: "BratsWork") -> SmallTable:
    """The test beside chance."""
    cells = []
    for name in work.study.sets:
        for synthetic in (True, False):
            told = work.found(name, synthetic=synthetic)
            a, (mean, low, high) = told["accuracy"], told["null"]
            cells.append(
                [
                    name if synthetic else f"{name}: real training slices instead",
                    str(told["slices"]),
                    f"{a['value']:.2f} [{a['low']:.2f}, {a['high']:.2f}]",
                    f"{mean:.2f} [{low:.2f}, {high:.2f}]",
                    p_text(told["p"]),
                ]
            )
    return SmallTable(
        "Can they be told from real slices?",
        ("Set", "Slices of either kind", "Told right", "By chance (95 %)", "p"),
        cells,
        "Classifier two-sample test against slices of unseen patients, one a patient: logistic "
        "regression on features of a frozen ImageNet network, balanced accuracy on unseen "
        f"patients. By chance: {work.study.permutations} permutations. 0.5: nothing tells them "
        "apart; 1: every slice is told. Real training slices instead of drawn ones show what "
        "other patients are told by.",
    )


def table_of_physician() -> SmallTable:
    """Table 1 of the paper."""
    return SmallTable(
        "Published: a physician, Han et al. 2018, table 1 (their data)",
        (
            "Set",
            "Accuracy",
            "Real called real",
            "Real called synthetic",
            "Synthetic called real",
            "Synthetic called synthetic",
        ),
        [[name, f"{cells[0]} %", *map(str, cells[1:])] for name, cells in TABLE_1.items()],
        "50 real and 50 synthetic pictures in random order, without training. Ours wait in "
        "turing/, the key in turing-keys/; nobody has answered them here.",
    )


def grids(work: "BratsWork", name: str) -> list[Grid]:
    """What a GAN drew; of the first GAN of a training set, real slices too."""
    drawn, own = Dataset.open(work.set_of(name)), work.study.sets[name]
    found = [
        Grid(
            f"Synthetic slices: {name}",
            pictures(drawn, range(min(PICTURES, len(drawn)))),
            synthetic=True,
            note="The first ones drawn; none was chosen.",
        )
    ]
    if name == next(n for n, other in work.study.sets.items() if other.of == own.of):
        real = work.real(name, "train")
        order = np.random.default_rng(work.study.seed).permutation(len(real))[:PICTURES]
        found.insert(
            0,
            Grid(
                f"Real training slices: {own.of}",
                pictures(real, order.tolist()),
                synthetic=False,
                note="Drawn at random.",
            ),
        )
    return found


def warnings(work: "BratsWork") -> list[str]:
    """What a reader must know before the numbers."""
    said = []
    if work.study.phantoms is not None:
        said.append(
            "Phantoms made from nothing, axial, in four curves of one image: this run shows that "
            "the chain works, and says nothing about patients."
        )
    if work.study.scale == "smoke":
        said.append("Scale smoke: GANs train for seconds and draw little more than blobs.")
    return said


def notes(work: "BratsWork") -> list[str]:
    """How it was made."""
    asked = work.study.asked
    return [
        *(
            f"{name}: {own.gan.name} at {own.side_px} px, {own.gan.train.steps:,} steps on "
            f"{len(work.real(name, 'train')):,} slices of training patients."
            for name, own in work.study.sets.items()
        ),
        f"Turing tests: {asked} real slices of unseen patients and {asked} synthetic ones each.",
        "Synthetic slices have no patients; each counts as one.",
    ]
