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
from synthoma.engine.evaluate import Findings, top_hits, truths_of
from synthoma.engine.run import Run, write_bytes
from synthoma.engine.settings import TrainSettings
from synthoma.errors import DataError
from synthoma.metrics.detection import (
    OperatingPoint,
    UndefinedMetricError,
    average_precision,
    operating_point,
    threshold_at,
)
from synthoma.metrics.intervals import (
    PatientMetric,
    average_precision_of,
    coverage_warning,
    interval,
    ratio,
)
from synthoma.metrics.matching import Detections, Truths, match
from synthoma.report.table import Estimate, Row, display
from synthoma.studies.rows import estimates, pairs_of, rows_of
from synthoma.synthesis.curate import find_in
from synthoma.synthesis.fit import Progress, train_up
from synthoma.synthesis.mixture import TrainingData, has_boxes

#: The paper's detection threshold, 0.1 %.
THRESHOLD = 0.001
IOUS = {"iou25": 0.25, "iou50": 0.5}


@dataclass(frozen=True)
class Cell:
    """One detector that was trained and tested."""

    folder: Path
    facts: dict[str, Any]
    findings: Findings


def check_boxes(real: Dataset, source: Path) -> None:
    """Refuse a prepared dataset on which no detector can be judged.

    Args:
        source: The dataset that it was made of, for the message.
    """
    for name in ("train", "validation", "test"):
        split = real.split(name)
        if not len(split) or not has_boxes(split):
            raise DataError(f"{source}: its {name} split has no box to find")
    if len(real.box_labels) > 1:
        raise DataError(
            f"{source}: boxes of {', '.join(real.box_labels)}; generators know one kind of lesion "
            "and would mislabel: import it without classes of boxes"
        )


def run_cell(
    folder: Path,
    told: Mapping[str, Any],
    data: TrainingData,
    settings: tuple[BaseModel, TrainSettings],
    *,
    name: str,
    seed: int,
    minutes: float | None,
    device: str,
    progress: Progress | None,
    figured: Callable[[Findings], dict[str, float]],
) -> Cell | None:
    """Train a detector and test it, or read what an earlier call found.

    Args:
        told: For cell.json: which set-up and which draw of patients this is.
        figured: The figures of a split that cell.json keeps.

    Returns:
        None where the minutes were up before the training ended.
    """
    done = read_cell(folder, data.data)
    if done is not None:
        return done
    outcome = train_up(
        name,
        folder,
        data,
        settings,
        seed=seed,
        minutes=minutes,
        device=device,
        progress=progress,
    )
    if outcome is None:
        return None
    began = time.monotonic()
    real = Dataset.open(data.data)
    findings = find_in(folder, real.split("test"), device=device)
    write_findings(folder / "found.npz", findings)
    facts = read_json(folder / "run.json")
    validation = real.split("validation")
    cell = {
        **told,
        "seed": seed,
        "n_real": facts["n_real"],
        "n_synthetic": facts["n_synthetic"],
        "step": outcome.best_step or outcome.step,
        "figures": figured(findings),
        "validation": figured(find_in(folder, validation, device=device))
        if len(validation)
        else {},
        "seconds": round(outcome.seconds + time.monotonic() - began, 1),
    }
    write_json(folder / "cell.json", cell)
    return Cell(folder, cell, findings)


def read_cell(folder: Path, data: Path) -> Cell | None:
    """A cell that an earlier call finished."""
    if not (folder / "cell.json").is_file():
        return None
    test = Dataset.open(data).split("test")
    return Cell(folder, read_json(folder / "cell.json"), read_findings(folder / "found.npz", test))


def write_findings(path: Path, findings: Findings) -> None:
    """Keep the detections; the truths are the dataset's."""
    buffer = io.BytesIO()
    own = findings.detections
    labels = np.zeros(len(own.case), np.int64) if own.labels is None else own.labels
    np.savez_compressed(buffer, boxes=own.boxes, scores=own.scores, case=own.case, labels=labels)
    write_bytes(path, buffer.getvalue())


def read_findings(path: Path, dataset: Dataset) -> Findings:
    """The detections that were kept, beside the truths of the dataset they were found in."""
    with np.load(path, allow_pickle=False) as kept:
        detections = Detections(kept["boxes"], kept["scores"], kept["case"], kept["labels"])
    return Findings(detections, truths_of(dataset), dataset.patient_ids)


#: The metric that claims are about.
PRIMARY = "ap_iou50"
#: Columns of the table.
ORDER = (
    PRIMARY,
    "sensitivity_iou25",
    "fp_per_slice_iou25",
    "sensitivity_iou50",
    "fp_per_slice_iou50",
    "sensitivity_1fp_iou25",
    "sensitivity_matched_iou25",
)


def metrics_of(
    runs: Sequence[Findings], *, baseline_rates: Sequence[float] | None = None
) -> dict[str, PatientMetric]:
    """The table's metrics, by name, of one set-up trained several times.

    Args:
        baseline_rates: False positives per slice of the baseline's run beside each run, at IoU
            0.25 (`false_positive_rates`); without them there is no `sensitivity_matched_iou25`.
    """
    patients = np.array(runs[0].patients)
    metrics: dict[str, PatientMetric] = {}

    def sensitivity(points: Sequence[OperatingPoint]) -> PatientMetric:
        hits, truths = [point.hits for point in points], [point.truths for point in points]
        return ratio(np.stack(hits), np.stack(truths), patients)

    for name, iou in IOUS.items():
        matched = [match(r.detections, r.truths, iou_threshold=iou) for r in runs]
        points = [operating_point(m, threshold=THRESHOLD) for m in matched]
        false = np.stack([point.false_positives for point in points])
        metrics[f"sensitivity_{name}"] = sensitivity(points)
        metrics[f"fp_per_slice_{name}"] = ratio(false, np.ones_like(false), patients)
        if name == "iou50":
            metrics[PRIMARY] = average_precision_of(matched, patients)
            continue
        rates = {"1fp": [1.0] * len(runs), "matched": baseline_rates}
        for at, wanted in rates.items():
            if wanted is not None:
                read = [
                    operating_point(m, threshold=threshold_at(m, rate))
                    for m, rate in zip(matched, wanted, strict=True)
                ]
                metrics[f"sensitivity_{at}_{name}"] = sensitivity(read)
    return dict(sorted(metrics.items(), key=lambda item: ORDER.index(item[0])))


def false_positive_rates(runs: Sequence[Findings]) -> list[float]:
    """False positives per slice of each run at the paper's threshold and IoU 0.25."""
    matched = [match(r.detections, r.truths, iou_threshold=IOUS["iou25"]) for r in runs]
    return [operating_point(m, threshold=THRESHOLD).false_positives_per_case for m in matched]


def precisions(runs: Sequence[Findings]) -> list[float]:
    """The primary metric of each run alone; none where the test set holds no truth."""
    if not len(runs[0].truths.case):
        return []
    matched = [match(r.detections, r.truths, iou_threshold=IOUS["iou50"]) for r in runs]
    return [average_precision(m) for m in matched]


def make_rows(
    cells: Mapping[str, Sequence[Cell]],
    *,
    baseline: str,
    seed: int,
    also: Sequence[str] = (),
) -> tuple[Row, ...]:
    """A row of the table for each set-up, with paired differences: see `rows_of`."""
    facts = {name: [cell.facts for cell in own] for name, own in cells.items()}
    pairs_of(facts)  # before rates of a pair are read
    runs = {name: [cell.findings for cell in own] for name, own in cells.items()}
    rates = false_positive_rates(runs[baseline]) if baseline in runs else None
    return rows_of(
        facts,
        {name: metrics_of(own, baseline_rates=rates) for name, own in runs.items()},
        {name: precisions(own) for name, own in runs.items()},
        primary=PRIMARY,
        baseline=baseline,
        also=also,
        seed=seed,
    )


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
