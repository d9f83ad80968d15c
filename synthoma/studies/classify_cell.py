"""A cell of a classification study, and what a draw's own classifier thinks of synthetic images.

A cell is one classifier: one set-up, one draw of patients, one seed. Its folder is a run folder
with two more files, and a cell that has them is never run again:

    CELL/answers.npz   the probabilities of every test image
    CELL/cell.json     set-up, images, figures, seconds
"""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel

from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.data.store import read_json, write_json
from synthoma.engine.evaluate import classifier_figures, labels_of
from synthoma.engine.run import write_bytes
from synthoma.engine.settings import TrainSettings
from synthoma.metrics.classification import Answers, areas, auc_of, metrics_of
from synthoma.report.table import Row
from synthoma.studies.classification import PRIMARY, answers_in
from synthoma.studies.rows import rows_of
from synthoma.studies.verdict import diversity
from synthoma.synthesis.fit import Progress, train_up
from synthoma.synthesis.mixture import TrainingData

#: An area under the ROC curve that knows nothing.
CHANCE = 0.5
#: A classifier that comes no further from chance to certainty on real images can judge no set.
LEAST_ABOVE = 0.2


@dataclass(frozen=True)
class ClassCell:
    """One classifier that was trained and tested."""

    folder: Path
    facts: dict[str, Any]
    answers: Answers


def run_cell(
    folder: Path,
    told: Mapping[str, Any],
    data: TrainingData,
    settings: tuple[BaseModel, TrainSettings],
    *,
    seed: int,
    minutes: float | None,
    device: str,
    progress: Progress | None,
) -> ClassCell | None:
    """Train a classifier and test it, or read what an earlier call found.

    Args:
        told: For cell.json: which set-up and which draw of patients this is.

    Returns:
        None where the minutes were up before the training ended.

    Raises:
        LeakError: A generator of its images saw a validation or test patient.
    """
    if (done := read_cell(folder, data.data)) is not None:
        return done
    outcome = train_up(
        "classifier",
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
    real, facts = Dataset.open(data.data), read_json(folder / "run.json")
    check_no_leak(real.splits, facts["trained_on"], what=f"the classifier {folder}")
    answers = answers_in(folder, real.split("test"), device=device)
    write_answers(folder / "answers.npz", answers)
    cell = {
        **told,
        "seed": seed,
        "n_real": facts["n_real"] if data.synthetic_first < 1 else 0,
        "n_synthetic": facts["n_synthetic"],
        "step": outcome.best_step or outcome.step,
        "figures": classifier_figures(answers),
        "validation": classifier_figures(
            answers_in(folder, real.split("validation"), device=device)
        ),
        "seconds": round(outcome.seconds + time.monotonic() - began, 1),
    }
    write_json(folder / "cell.json", cell)
    return ClassCell(folder, cell, answers)


def read_cell(folder: Path, data: Path) -> ClassCell | None:
    """A cell that an earlier call finished."""
    if not (folder / "cell.json").is_file():
        return None
    test = Dataset.open(data).split("test")
    return ClassCell(
        folder, read_json(folder / "cell.json"), read_answers(folder / "answers.npz", test)
    )


def write_answers(path: Path, answers: Answers) -> None:
    """Keep the probabilities; the truths are the dataset's."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        probabilities=answers.probabilities,
        classes=np.array(answers.classes),
        positive=np.array(answers.positive),
    )
    write_bytes(path, buffer.getvalue())


def read_answers(path: Path, dataset: Dataset) -> Answers:
    """The probabilities that were kept, beside the truths of the dataset they are about."""
    with np.load(path, allow_pickle=False) as kept:
        classes = tuple(map(str, kept["classes"]))
        return Answers(
            kept["probabilities"],
            labels_of(dataset, classes),
            np.array(dataset.patient_ids),
            classes,
            str(kept["positive"]),
        )


def make_rows(
    cells: Mapping[str, Sequence[ClassCell]],
    *,
    baseline: str,
    seed: int,
    also: Sequence[str] = (),
) -> tuple[Row, ...]:
    """A row of the table for each set-up, with paired differences: see `rows_of`."""
    answers = {name: [cell.answers for cell in own] for name, own in cells.items()}
    return rows_of(
        {name: [cell.facts for cell in own] for name, own in cells.items()},
        {name: metrics_of(own) for name, own in answers.items()},
        {name: [auc_of([one]).value() for one in own] for name, own in answers.items()},
        primary=PRIMARY,
        baseline=baseline,
        also=also,
        seed=seed,
    )


def told_apart(answers: Answers) -> Float64[np.ndarray, " k"]:
    """By class, the area under the ROC curve of its probability, its images against the others;
    chance is a half, also where there is nothing to compare.

    Not the share that is called right: drawn images shift all answers a little, and a classifier
    once called every drawn X-ray ill while it put the ordered ill ones above the others as well as
    real ones.
    """
    n = len(answers.truths)
    found = [
        areas(scores, answers.truths == k, np.arange(n), np.ones((1, n)))[0]
        for k, scores in enumerate(answers.probabilities.T)
    ]
    return np.nan_to_num(np.array(found), nan=CHANCE)


def judge_set(
    run: Path, drawn: Dataset, real: Dataset, *, least: float, device: str
) -> dict[str, Any]:
    """What verdict.json says of a set: are the ordered classes told apart, is it diverse.

    Args:
        run: The draw's own classifier, trained on real images.
        real: The draw's images; their dataset's validation split gives the area in real images.
        least: Of that area, counted from chance, what admits a set.
    """
    held_out = Dataset.open(real.folder).split("validation")
    found = answers_in(run, drawn, device=device)
    seen, wanted = told_apart(found), told_apart(answers_in(run, held_out, device=device))
    area, real_area = float(seen.mean()), float(wanted.mean())
    can_judge = real_area - CHANCE >= LEAST_ABOVE * (1 - CHANCE)
    admitted = not least or (can_judge and area - CHANCE >= least * (real_area - CHANCE))
    said = "admitted" if admitted else "refused"
    blind = "" if can_judge else "; such a classifier can judge no set"
    return {
        "drawn": len(drawn),
        "found": area,
        "found_real": real_area,
        "found_of": dict(zip(found.classes, map(float, seen), strict=True)),
        "admitted": bool(admitted),
        "reason": f"{said}: the draw's classifier tells the ordered classes apart with an area of "
        f"{area:.2f} in these images, {real_area:.2f} in real ones and {CHANCE:g} by chance; least "
        f"allowed is {least:.0%} of the way from chance to real{blind}",
        "diversity": {c: diversity(drawn.where(label=c), inside=False) for c in drawn.labels},
        "real_diversity": {c: diversity(real.where(label=c), inside=False) for c in found.classes},
        "copies": drawn.about.get("copy_check"),
    }
