"""Judging classifiers: a trained one on a split, and the shortcuts that stand beside it.

A shortcut is a way to the right answer that looks at no pathology. What a thumbnail or the size of
a file reaches, no network has learnt to see (`docs/results` names both beside every classifier).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64

from synthoma.data.batches import resize, signed_unit
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.engine.evaluate import classify_all, labels_of
from synthoma.engine.run import Run
from synthoma.engine.system import Classifier
from synthoma.errors import SettingsError
from synthoma.metrics.classification import Answers, metrics_of
from synthoma.metrics.detection import UndefinedMetricError
from synthoma.metrics.intervals import PatientMetric, coverage_warning, interval
from synthoma.report.table import display
from synthoma.synthesis.fit import load_trained, pick_device

#: Side of the thumbnail.
THUMBNAIL_PX = 8
#: The metric that claims are about.
PRIMARY = "auc"


def answers_in(
    run: Path,
    dataset: Dataset,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Answers:
    """What the trained classifier of a run says of a dataset.

    Raises:
        SettingsError: The run is not of a classifier.
    """
    classifier, facts = load_trained(run, str(pick_device(device)))
    if not isinstance(classifier, Classifier):
        raise SettingsError(f"{run}: {facts['name']} is not a classifier")
    precision = Run.open(run).facts["train"]["precision"]
    return classify_all(classifier, dataset, precision=precision, progress=progress)


def judge_classifier(run: Path, data: Path, *, split: str, seed: int) -> list[str]:
    """The figures of a trained classifier on a split, a line each, for a person; beside them what
    shortcuts reach that saw the training split.

    Raises:
        LeakError: The classifier saw a patient of the split.
    """
    whole = Dataset.open(data)
    dataset = whole.split(split)
    if split != "train":
        seen = Run.open(run).facts["trained_on"]
        check_no_leak({split: dataset.patients}, seen, what=f"the classifier {run}")
    answers = answers_in(run, dataset)
    lines = [said(name, own, seed) for name, own in metrics_of([answers]).items()]
    of = [answers.classes[k] for k in answers.looked_for]
    lines.append(f"All but accuracy are of {of[0]!r}" if len(of) == 1 else
                 f"All but accuracy are means over {', '.join(of)}")  # fmt: skip
    if split != "train" and len(train := whole.split("train")):
        for name, shortcut in shortcut_baselines(train, dataset, positive=answers.positive).items():
            own = metrics_of([shortcut])
            told = [said(metric, own[metric], seed) for metric in (PRIMARY, "accuracy")]
            lines.append(f"Shortcut, {name}: {'; '.join(told)}")
    n = len(set(dataset.patients))
    warning = coverage_warning(n)
    lines.append(f"{len(dataset)} cases of {n} patients ({dataset.about['patients_from']})")
    return [*lines, warning] if warning else lines


def said(name: str, metric: PatientMetric, seed: int) -> str:
    """A metric with its interval, in words."""
    try:
        found = interval(metric, seed=seed)
    except UndefinedMetricError as error:
        return f"{display(name).heading}: undefined: {error.reason}"
    return f"{display(name).heading}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def shortcut_baselines(train: Dataset, test: Dataset, *, positive: str = "") -> dict[str, Answers]:
    """What logistic regression says of a test set that saw no more of an image than a thumbnail of
    8x8 pixels, or its size as a PNG file.

    The classes are the training set's.

    Raises:
        DataError: A set is empty, not prepared, or has cases without one of the classes.
    """
    names = {train.label(i) for i in range(len(train))}
    classes = tuple(sorted(name for name in names if name is not None))
    known = labels_of(train, classes)
    truths, patients = labels_of(test, classes), np.array(test.patient_ids)
    views: Mapping[str, Callable[[Dataset], Float64[np.ndarray, "n d"]]] = {
        f"{THUMBNAIL_PX}x{THUMBNAIL_PX} thumbnail": thumbnails,
        "file size": file_sizes,
    }
    return {
        name: Answers(
            regressed(view(train), known, view(test)), truths, patients, classes, positive
        )
        for name, view in views.items()
    }


def thumbnails(dataset: Dataset) -> Float64[np.ndarray, "n d"]:
    """Every image at 8x8 pixels, area-averaged, as a row."""
    values = (signed_unit(dataset.values(i), dataset.about["value_range"])
              for i in range(len(dataset)))  # fmt: skip
    return np.stack([resize(image, THUMBNAIL_PX).ravel() for image in values]).astype(np.float64)


def file_sizes(dataset: Dataset) -> Float64[np.ndarray, "n 1"]:
    """The logarithm of every image's bytes as PNG, 8 bits a pixel, channel by channel."""

    def size(i: int) -> int:
        image = signed_unit(dataset.values(i), dataset.about["value_range"])
        planes = np.rint((image + 1) * 127.5).astype(np.uint8)
        return sum(len(cv2.imencode(".png", plane)[1]) for plane in planes)

    return np.log([[size(i)] for i in range(len(dataset))])


def regressed(
    seen: Float64[np.ndarray, "s d"], known: np.ndarray, unseen: Float64[np.ndarray, "u d"]
) -> Float64[np.ndarray, "u k"]:
    """Probabilities of the classes by logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (seconds of imports)
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return np.asarray(model.fit(seen, known).predict_proba(unseen), np.float64)
