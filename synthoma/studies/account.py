"""The report of an `augment` study, from what its folder holds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthoma.data.dataset import Dataset
from synthoma.data.sheet import to_bytes
from synthoma.engine.run import Run, versions
from synthoma.metrics.detection import froc, match, operating_point, sensitivity_at
from synthoma.metrics.intervals import coverage_warning
from synthoma.report.figures import Curve, Detected, Froc, Picture, TrainingRun
from synthoma.report.page import Grid, Report
from synthoma.report.table import Adherence, PublishedRow, Table
from synthoma.studies.detection import IOUS, PRIMARY, THRESHOLD, Cell, adherence, find_in, make_rows

if TYPE_CHECKING:
    from synthoma.studies.augment import Work

QUESTION = (
    "Does a detector find more lesions when labelled synthetic slices are added to its real "
    "training slices? Each row is a detector trained from scratch for the same number of steps, "
    "and tested once on patients that neither it nor the generator has seen."
)
#: Han et al. 2019, table 1, detection threshold 0.1 %: their data, another question of scale.
PUBLISHED = tuple(
    PublishedRow(
        setup=setup,
        metrics=dict(
            zip(
                (
                    "sensitivity_iou50",
                    "fp_per_slice_iou50",
                    "sensitivity_iou25",
                    "fp_per_slice_iou25",
                ),
                values,
                strict=True,
            )
        ),
        source="Han et al. 2019, table 1 (other data)",
    )
    for setup, values in (
        ("2,813 real images", (0.67, 4.11, 0.83, 3.59)),
        ("+ 4,000 CPGGAN-based DA", (0.77, 7.64, 0.91, 7.18)),
        ("+ 8,000 CPGGAN-based DA", (0.71, 6.36, 0.87, 5.85)),
        ("+ 12,000 CPGGAN-based DA", (0.76, 11.77, 0.91, 11.29)),
    )
)
PICTURES = 32


def account(work: "Work") -> Report:
    """Everything that the report shows."""
    from synthoma.studies.augment import BASELINE  # noqa: PLC0415 (it imports this file)

    study, cells = work.study, work.cells
    real, synthetic = Dataset.open(work.data), Dataset.open(work.out / "synthetic")
    test = real.split("test")
    judge = cells[BASELINE][0]
    some = synthetic.take(np.arange(min(len(synthetic), 1000)))
    obeyed, untold = adherence(find_in(judge.folder, some), judge.findings, seed=study.seed)
    table = Table(
        study="augment",
        task="detect",
        patients_from=real.about["patients_from"],
        primary=PRIMARY,
        rows=make_rows(cells, baseline=BASELINE, seed=study.seed),
        adherence=Adherence(**obeyed) if "ordered" in obeyed else None,
        published=PUBLISHED,
    )
    train = real.split("train")
    return Report(
        title=f"Does synthetic data help? {study.dataset.name}, scale {study.scale}",
        question=QUESTION,
        table=table,
        warnings=[*warnings(work, table, len(test.patients)), *untold],
        notes=notes(work),
        froc=[
            Froc(f"IoU {iou:g}", [curve(setup, own, iou) for setup, own in cells.items()])
            for iou in IOUS.values()
        ],
        grids=[
            Grid(
                "Synthetic slices and the boxes that were ordered",
                pictures(synthetic, range(min(PICTURES, len(synthetic)))),
                synthetic=True,
                note="The first ones drawn; none was chosen.",
            ),
            Grid(
                "Training slices (phantoms) and their boxes"
                if study.scale == "demo"
                else "Real training slices and their boxes",
                pictures(train, picked(train, PICTURES, study.seed)),
                synthetic=False,
                note="Drawn at random.",
            ),
        ],
        detections=detections(test, cells, study.seed),
        detection_threshold=0.25,
        training=training(work),
        settings=study.model_dump(mode="json"),
        versions=versions(),
        command=work.command,
        seeds=[study.seed + k for k in range(table.rows[0].seeds)],
        seconds=work.seconds,
        data=facts(real),
    )


def warnings(work: "Work", table: Table, n_patients: int) -> list[str]:
    """What a reader must know before the numbers."""
    said = []
    if work.study.scale in ("demo", "smoke"):
        said.append(
            f"Scale {work.study.scale}: detectors train for minutes and are limited by that, not "
            "by their data. This run shows that the chain works; it cannot show whether synthetic "
            "data helps."
        )
    if work.study.scale == "demo":
        said.append("The brains are phantoms made from nothing; nothing here is about patients.")
    done = table.rows[0].seeds
    if done < work.study.seeds:
        said.append(f"Unfinished: {done} of {work.study.seeds} seeds; --resume goes on.")
    if done == 1:
        said.append("One seed: the intervals hold the chance of patients, not that of training.")
    if warning := coverage_warning(n_patients):
        said.append(warning)
    if "one an image" in table.patients_from:
        said.append("The data name no patients; each image counts as one, which is too hopeful.")
    obeyed = table.adherence
    if obeyed is not None and obeyed.real is not None:
        share = obeyed.ordered.value / max(obeyed.real.value, 1e-9)
        if share < 0.75:
            said.append(
                f"The detector finds the ordered lesion first in {obeyed.ordered.value:.0%} of the "
                f"synthetic slices and in {obeyed.real.value:.0%} of real ones: many synthetic "
                "boxes may be empty, which teaches a detector to miss."
            )
    return said


def notes(work: "Work") -> list[str]:
    """How the table was made."""
    study = work.study
    return [
        f"Generator: {study.generator.name}, trained once, on the slices with lesions of the "
        "training patients alone; its images are not curated.",
        f"All images were prepared at {study.prepare.side_px} px, the generator's side, so that "
        "resolution does not tell real from synthetic; the detector trains at "
        f"{study.detector.system['side_px']} px and is tested at "
        f"{study.detector.system['test_side_px']} px.",
        f"Every set-up makes {study.detector.train.steps:,} optimiser steps on batches of "
        f"{study.detector.system['batch_size']}.",
        f"Sensitivity and false positives count detections with a score of at least {THRESHOLD}.",
    ]


def curve(setup: str, cells: Sequence[Cell], iou: float) -> Curve:
    """The FROC curve of a set-up, the mean over its seeds."""
    matched = [match(c.findings.detections, c.findings.truths, iou_threshold=iou) for c in cells]
    curves = [froc(m) for m in matched]
    rate = np.unique(np.concatenate([own for own, _ in curves]))
    sensitivity = np.mean([sensitivity_at(rate, *own) for own in curves], axis=0)
    points = [operating_point(m, threshold=THRESHOLD) for m in matched]
    where = (
        float(np.mean([point.false_positives_per_case for point in points])),
        float(np.mean([point.sensitivity for point in points])),
    )
    return Curve(setup, rate, sensitivity, operating_point=where)


def picked(dataset: Dataset, n: int, seed: int) -> list[int]:
    """Some cases with boxes, at random."""
    with_boxes = [i for i in range(len(dataset)) if len(dataset.boxes(i))]
    order = np.random.default_rng(seed).permutation(len(with_boxes))[:n]
    return [with_boxes[k] for k in order]


def pictures(dataset: Dataset, places: Sequence[int]) -> list[Picture]:
    """Cases as the report draws them."""
    value_range = dataset.about["value_range"]
    return [
        Picture(to_bytes(dataset.values(i), value_range), dataset.boxes(i), dataset[i].case_id)
        for i in places
    ]


def detections(test: Dataset, cells: dict[str, list[Cell]], seed: int) -> list[Detected]:
    """What the first seed of each set-up found in a few test slices."""
    shown = []
    for i in picked(test, 6, seed):
        found = {}
        for setup, own in cells.items():
            all_ = own[0].findings.detections
            here = all_.case == i
            found[setup] = (all_.boxes[here], all_.scores[here])
        image = to_bytes(test.values(i), test.about["value_range"])
        shown.append(Detected(image, test.boxes(i), found, test[i].case_id))
    return shown


def training(work: "Work") -> list[TrainingRun]:
    """The logs of the generator and of the first seed's detectors."""
    runs = [TrainingRun("generator", Run(work.out / "generator").read_log())]
    runs += [TrainingRun(setup, Run(own[0].folder).read_log()) for setup, own in work.cells.items()]
    return runs


def facts(real: Dataset) -> dict[str, Any]:
    """What the data are."""
    splits = {
        name: f"{len(ids)} patients, {len(real.of_patients(set(ids)))} slices"
        for name, ids in real.splits.items()
    }
    about = real.about
    return {
        "slices": about["n_cases"],
        "patients": about["n_patients"],
        "patients from": about["patients_from"],
        **splits,
        "left out": {reason: dropped["n"] for reason, dropped in about["dropped"].items()},
        "digest": about["digest"],
    }
