"""What every detection study does: train a detector in a cell, test it once, make a table's rows.

A cell is one detector: one set-up, one draw of patients, one seed. Its folder is a run folder with
two more files, and a cell that has them is never run again:

    CELL/found.npz   everything that it found in the test split
    CELL/cell.json   set-up, images, figures, seconds
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.data.store import read_json, write_json
from synthoma.engine.evaluate import Findings, figures, top_hits, truths_of
from synthoma.engine.run import Run, write_bytes
from synthoma.engine.settings import TrainSettings
from synthoma.metrics.detection import (
    Detections,
    Truths,
    UndefinedMetricError,
    match,
    operating_point,
)
from synthoma.metrics.intervals import (
    Interval,
    PatientMetric,
    average_precision_of,
    coverage_warning,
    interval,
    paired_difference,
    ratio,
)
from synthoma.report.table import Difference, Estimate, Row, display
from synthoma.synthesis.curate import find_in
from synthoma.synthesis.fit import Progress, TrainingData, fit, resume

#: The paper's detection threshold, 0.1 %.
THRESHOLD = 0.001
IOUS = {"iou25": 0.25, "iou50": 0.5}


@dataclass(frozen=True)
class Cell:
    """One detector that was trained and tested."""

    folder: Path
    facts: dict[str, Any]
    findings: Findings


def run_cell(
    folder: Path,
    setup: str,
    data: TrainingData,
    settings: tuple[BaseModel, TrainSettings],
    *,
    name: str,
    seed: int,
    minutes: float | None,
    device: str,
    progress: Progress | None,
) -> Cell | None:
    """Train a detector and test it, or read what an earlier call found.

    Returns:
        None where the minutes were up before the training ended.
    """
    test = Dataset.open(data.data).split("test")
    if (folder / "cell.json").is_file():
        return Cell(folder, read_json(folder / "cell.json"), read_findings(folder, test))
    if folder.exists():
        outcome = resume(folder, minutes=minutes, device=device, progress=progress)
    else:
        outcome = fit(
            name,
            folder,
            data,
            settings=settings,
            seed=seed,
            minutes=minutes,
            device=device,
            progress=progress,
        )
    if outcome.stopped == "signal":
        raise KeyboardInterrupt
    if outcome.stopped == "minutes":
        return None
    began = time.monotonic()
    findings = find_in(folder, test)
    write_findings(folder, findings)
    facts = read_json(folder / "run.json")
    cell = {
        "setup": setup,
        "seed": seed,
        "n_real": facts["n_real"],
        "n_synthetic": facts["n_synthetic"],
        "step": outcome.best_step or outcome.step,
        "figures": figures(findings, threshold=THRESHOLD),
        "seconds": round(outcome.seconds + time.monotonic() - began, 1),
    }
    write_json(folder / "cell.json", cell)
    return Cell(folder, cell, findings)


def write_findings(folder: Path, findings: Findings) -> None:
    """Keep the detections; the truths are the dataset's."""
    buffer = io.BytesIO()
    own = findings.detections
    labels = np.zeros(len(own.case), np.int64) if own.labels is None else own.labels
    np.savez_compressed(buffer, boxes=own.boxes, scores=own.scores, case=own.case, labels=labels)
    write_bytes(folder / "found.npz", buffer.getvalue())


def read_findings(folder: Path, dataset: Dataset) -> Findings:
    """The detections that a cell keeps, beside the truths of the dataset they were found in."""
    with np.load(folder / "found.npz", allow_pickle=False) as kept:
        detections = Detections(kept["boxes"], kept["scores"], kept["case"], kept["labels"])
    return Findings(detections, truths_of(dataset), dataset.patient_ids)


def metrics_of(runs: Sequence[Findings]) -> dict[str, PatientMetric]:
    """The table's metrics, by name, of one set-up trained with several seeds."""
    patients = np.array(runs[0].patients)
    metrics: dict[str, PatientMetric] = {}
    for name, threshold in IOUS.items():
        matched = [match(r.detections, r.truths, iou_threshold=threshold) for r in runs]
        points = [operating_point(m, threshold=THRESHOLD) for m in matched]
        hits = np.stack([point.hits for point in points])
        truths = np.stack([point.truths for point in points])
        false = np.stack([point.false_positives for point in points])
        metrics[f"sensitivity_{name}"] = ratio(hits, truths, patients)
        metrics[f"fp_per_slice_{name}"] = ratio(false, np.ones_like(false), patients)
        if name == "iou50":
            metrics["ap_iou50"] = average_precision_of(matched, patients)
    return dict(sorted(metrics.items(), key=lambda item: ORDER.index(item[0])))


#: Columns of the table.
ORDER = (
    "sensitivity_iou25",
    "fp_per_slice_iou25",
    "sensitivity_iou50",
    "fp_per_slice_iou50",
    "ap_iou50",
)


def make_rows(cells: Mapping[str, Sequence[Cell]], *, baseline: str, seed: int) -> tuple[Row, ...]:
    """A row of the table for each set-up, with paired differences to the baseline."""
    metrics = {name: metrics_of([cell.findings for cell in own]) for name, own in cells.items()}
    rows = []
    for setup, trained in cells.items():
        values, undefined = estimates(
            {name: partial(interval, own, seed=seed) for name, own in metrics[setup].items()}
        )
        difference = None
        if setup != baseline and baseline in metrics:
            differences, _ = estimates(
                {
                    name: partial(paired_difference, own, metrics[baseline][name], seed=seed)
                    for name, own in metrics[setup].items()
                }
            )
            difference = Difference(to=baseline, metrics=differences)
        rows.append(
            Row(
                setup=setup,
                n_real=trained[0].facts["n_real"],
                n_synthetic=trained[0].facts["n_synthetic"],
                seeds=len(trained),
                metrics=values,
                difference=difference,
                undefined=undefined,
            )
        )
    return tuple(rows)


def estimates(
    wanted: Mapping[str, Callable[[], Interval]],
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Each interval that is defined, and why the others are not."""
    values, undefined = {}, {}
    for name, compute in wanted.items():
        try:
            values[name] = estimate(compute())
        except UndefinedMetricError as error:
            undefined[name] = error.reason
    return values, undefined


def estimate(found: Interval) -> Estimate:
    """An interval as reports keep it."""
    return Estimate(value=found.value, low=found.low, high=found.high, n=found.n)


def adherence(
    synthetic: Findings, real: Findings, *, seed: int, iou_threshold: float = 0.25
) -> tuple[dict[str, Estimate], list[str]]:
    """How well synthetic images show what was ordered, in the eyes of a detector.

    The share of images whose top-scoring box meets an ordered box at `iou_threshold`; the same
    with the orders of other images (chance), and for real images and their own boxes.

    Args:
        synthetic: Of a detector trained on real images, in synthetic ones.
        real: Of the same detector in real test images.

    Returns:
        Estimates by name ("ordered", "shuffled", "real"), and why one has no value.
    """
    own = top_hits(synthetic.detections, synthetic.truths, iou_threshold)
    n = synthetic.truths.n_cases
    turn = np.random.default_rng(seed).integers(1, max(n, 2))
    moved = Truths(
        synthetic.truths.boxes, (synthetic.truths.case + turn) % n, n, synthetic.truths.labels
    )
    shuffled = top_hits(synthetic.detections, moved, iou_threshold)
    with_boxes = np.isin(np.arange(real.truths.n_cases), real.truths.case)
    real_hits = top_hits(real.detections, real.truths, iou_threshold)[with_boxes]
    patients = np.array(real.patients)[with_boxes]
    each = np.arange(n)
    columns = {"ordered": (own, each), "shuffled": (shuffled, each), "real": (real_hits, patients)}
    values, undefined = estimates(
        {
            name: partial(interval, ratio(hits, np.ones(len(hits)), who), seed=seed)
            for name, (hits, who) in columns.items()
        }
    )
    return values, [f"Adherence, {name}: {reason}." for name, reason in undefined.items()]


def judge_run(run: Path, data: Path, *, split: str, seed: int) -> list[str]:
    """The figures of a trained detector on a split, a line each, for a person."""
    dataset = Dataset.open(data).split(split)
    if split != "train":
        seen = Run.open(run).facts["trained_on"]
        check_no_leak({split: dataset.patients}, seen, what=f"the detector {run}")
    findings = find_in(run, dataset)
    lines = []
    for name, metric in metrics_of([findings]).items():
        try:
            found = interval(metric, seed=seed)
            value = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        except UndefinedMetricError as error:
            value = f"undefined: {error.reason}"
        lines.append(f"{display(name).heading}: {value}")
    n = len(set(findings.patients))
    warning = coverage_warning(n)
    lines.append(f"{len(dataset)} cases of {n} patients ({dataset.about['patients_from']})")
    return [*lines, warning] if warning else lines
