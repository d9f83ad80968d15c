"""A trained detector or classifier on a dataset: everything it says, and the figures that
checkpoints are kept by."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from synthoma.data.batches import resize, signed_unit, unprepared
from synthoma.data.boxes import scale
from synthoma.data.dataset import Dataset
from synthoma.engine.system import Classifier, Detector
from synthoma.errors import DataError
from synthoma.metrics.classification import Answers, metrics_of
from synthoma.metrics.detection import UndefinedMetricError, average_precision, operating_point
from synthoma.metrics.matching import Detections, Truths, match


@dataclass(frozen=True, eq=False)
class Findings:
    """What a detector found in a dataset beside what is there, in pixels of the stored images."""

    detections: Detections
    truths: Truths
    patients: list[str]
    """The patient of each case."""


def find_all(
    detector: Detector,
    dataset: Dataset,
    *,
    side_px: int,
    precision: str = "float32",
    batch_size: int = 16,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Findings:
    """Run a detector over every case of a prepared 2D dataset.

    Raises:
        DataError: There is no case, or the set is not prepared.

    Args:
        side_px: Side at which the detector looks at the images.
        progress: Told (cases done, cases).
    """
    if not len(dataset) or dataset.about["value_range"] is None:
        why = "no case is selected" if not len(dataset) else "run `synthoma data prepare` first"
        raise DataError(f"{dataset.folder}: {why}")
    device = next(detector.parameters()).device
    boxes, scores, case, labels = [], [], [], []
    was_training = detector.training
    detector.eval()
    for first in range(0, len(dataset), batch_size):
        places = range(first, min(first + batch_size, len(dataset)))
        stored = [dataset.values(i) for i in places]
        images = [resize(signed_unit(v, dataset.about["value_range"]), side_px) for v in stored]
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            found = detector.detect(torch.from_numpy(np.stack(images)).to(device))
        for i, values, own in zip(places, stored, found, strict=True):
            factors = tuple(size / side_px for size in values.shape[1:])
            boxes.append(scale(own.boxes.float().cpu().numpy(), factors))
            scores.append(own.scores.double().cpu().numpy())
            case.append(np.full(len(own.scores), i))
            labels.append(own.labels.cpu().numpy())
        progress(places[-1] + 1, len(dataset))
    detector.train(was_training)
    detections = Detections(*map(np.concatenate, (boxes, scores, case, labels)))
    return Findings(detections, truths_of(dataset), dataset.patient_ids)


def truths_of(dataset: Dataset) -> Truths:
    """Every annotated box of a dataset, in pixels of the stored images."""
    every = range(len(dataset))
    return Truths(
        np.concatenate([dataset.boxes(i) for i in every]),
        np.concatenate([np.full(len(dataset.boxes(i)), i) for i in every]),
        len(dataset),
        np.concatenate([dataset.box_classes(i) for i in every]),
    )


def figures(findings: Findings, *, threshold: float = 0.001) -> dict[str, float]:
    """Sensitivity and false positives per slice at IoU 0.5 and 0.25, and AP at 0.5, by the names
    of reports; what the cases do not define is left out."""
    found: dict[str, float] = {}
    for name, iou_threshold in (("iou50", 0.5), ("iou25", 0.25)):
        matches = match(findings.detections, findings.truths, iou_threshold=iou_threshold)
        point = operating_point(matches, threshold=threshold)
        found[f"fp_per_slice_{name}"] = point.false_positives_per_case
        try:
            found[f"sensitivity_{name}"] = point.sensitivity
            if iou_threshold == 0.5:
                found["ap_iou50"] = average_precision(matches)
        except UndefinedMetricError:
            continue
    return found


def classify_all(
    classifier: Classifier,
    dataset: Dataset,
    *,
    precision: str = "float32",
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Answers:
    """What a classifier says of every case of a prepared 2D dataset, beside what it is.

    Args: as for `probabilities_of`.

    Raises:
        DataError: There is no case, the set is not prepared, or a case has no label or one that
            the classifier does not know.
    """
    truths = labels_of(dataset, classifier.classes)
    return Answers(
        probabilities_of(
            classifier, dataset, precision=precision, batch_size=batch_size, progress=progress
        ),
        truths,
        np.array(dataset.patient_ids),
        classifier.classes,
        classifier.positive,
    )


def probabilities_of(
    classifier: Classifier,
    dataset: Dataset,
    *,
    precision: str = "float32",
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Float64[np.ndarray, "n k"]:
    """Ask a classifier about every case of a prepared 2D dataset, a batch at a time.

    Args:
        progress: Told (cases done, cases).

    Raises:
        DataError: There is no case, or the set is not prepared.
    """
    check_ready(dataset)
    device = next(classifier.parameters()).device
    probabilities = []
    was_training = classifier.training
    classifier.eval()
    for first in range(0, len(dataset), batch_size):
        places = range(first, min(first + batch_size, len(dataset)))
        images = [
            resize(signed_unit(dataset.values(i), dataset.about["value_range"]), classifier.side_px)
            for i in places
        ]
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            answer = classifier.classify(torch.from_numpy(np.stack(images)).to(device))
        probabilities.append(answer.double().cpu().numpy())
        progress(places[-1] + 1, len(dataset))
    classifier.train(was_training)
    return np.concatenate(probabilities)


def check_ready(dataset: Dataset) -> None:
    """Refuse an empty dataset, and one that is not prepared."""
    if not len(dataset) or dataset.about["value_range"] is None:
        raise DataError(
            unprepared(dataset) if len(dataset) else f"{dataset.folder}: no case is selected"
        )


def labels_of(dataset: Dataset, classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """The class of every case of a prepared dataset, by its place in `classes`.

    Raises:
        DataError: There is no case, the set is not prepared, or a case has none of the classes.
    """
    check_ready(dataset)
    place = {name: i for i, name in enumerate(classes)}
    names = [dataset.label(i) for i in range(len(dataset))]
    for i, name in enumerate(names):
        if name is None:
            raise DataError(
                f"{dataset.folder}: case {dataset[i].case_id!r} has no label; `synthoma data "
                "prepare --labelled` leaves such cases out, `synthoma label` names them where a "
                "classifier is sure"
            )
        if name not in place:
            raise DataError(
                f"{dataset.folder}: case {dataset[i].case_id!r} has the label {name!r}; allowed: "
                f"{', '.join(classes)}"
            )
    return np.array([place[name] for name in names if name is not None], np.int64)


def classifier_figures(answers: Answers) -> dict[str, float]:
    """Accuracy, sensitivity, specificity, precision and AUC by the names of reports, and the mean
    log likelihood, which is minus the cross-entropy: it sees a threshold that is off where the AUC
    does not. What the cases do not define is left out."""
    own = answers.probabilities[np.arange(len(answers.truths)), answers.truths]
    found = {"log_likelihood": float(np.log(own.clip(min=1e-12)).mean())}
    for name, metric in metrics_of([answers]).items():
        with contextlib.suppress(UndefinedMetricError):
            value = metric.value()
            if not np.isnan(value):
                found[name] = value
    return found


def top_hits(
    detections: Detections, truths: Truths, iou_threshold: float
) -> Float64[np.ndarray, " n"]:
    """For each case, 1 where its best-scoring box is a hit, else 0."""
    order = np.lexsort((np.arange(len(detections.case)), -detections.scores, detections.case))
    first = order[np.unique(detections.case[order], return_index=True)[1]]
    best = Detections(detections.boxes[first], detections.scores[first], detections.case[first])
    matched = match(best, truths, iou_threshold=iou_threshold)
    hits = np.zeros(truths.n_cases)
    hits[matched.case[matched.truth >= 0]] = 1
    return hits
