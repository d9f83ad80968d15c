"""Pictures, points and facts that the reports of studies show, whatever the task."""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from synthoma.data.batches import resize, signed_unit
from synthoma.data.classic import Classic, augment
from synthoma.data.dataset import Dataset
from synthoma.data.sheet import to_bytes
from synthoma.metrics.detection import froc, operating_point, sensitivity_at
from synthoma.metrics.intervals import coverage_warning
from synthoma.metrics.matching import Matches
from synthoma.report.figures import Curve, Picture
from synthoma.report.table import PublishedRow, Table
from synthoma.studies.verdict import lesions

#: Scales whose reports lay images out in the plane, and how many of each kind.
LARGE = ("small", "paper")
EMBEDDED = 500


def told(
    name: str, title: str, question: str, published: tuple[PublishedRow, ...] | None
) -> tuple[str, str, tuple[PublishedRow, ...] | None]:
    """The title, the question and the published rows of a study: these, or those in a paper's own
    file."""
    if name == "augment":
        return title, question, published
    paper = importlib.import_module(f"synthoma.studies.{name}")
    return paper.TITLE, paper.QUESTION, paper.PUBLISHED


class Repeated(Protocol):
    """A study of several trainings."""

    @property
    def draws(self) -> int:
        """Of patients."""
        ...

    @property
    def seeds(self) -> int:
        """Of a set-up on a draw."""
        ...


def caveats(study: Repeated, table: Table, n_patients: int) -> list[str]:
    """What a reader must know of any table: unfinished, how often trained, how many patients."""
    found = []
    wanted, done = study.draws * study.seeds, table.rows[0].seeds
    if done < wanted:
        found.append(f"Unfinished: {done} of {wanted} trainings a set-up; --resume goes on.")
    if done == 1:
        found.append(
            "One draw, one seed: the intervals hold the chance of test patients, not that of "
            "training."
        )
    if warning := coverage_warning(n_patients):
        found.append(warning)
    if "one an image" in table.patients_from:
        found.append("The data name no patients; each image counts as one, which is too hopeful.")
    return found


def whole(dataset: Dataset, n: int = EMBEDDED, *, classic: Classic | None = None) -> np.ndarray:
    """Images at 64 px as vectors, some of them; after classic augmentation where it is given."""
    value_range, chance = dataset.about["value_range"], np.random.default_rng(0)
    places = chance.permutation(len(dataset))[:n]
    images = [signed_unit(dataset.values(int(i)), value_range) for i in places]
    if classic is None:
        images = [resize(image, 64) for image in images]
    else:
        none = np.zeros((0, 4), np.float32)
        images = [augment(image, none, classic, chance, side_px=64)[0] for image in images]
    return np.stack([image.ravel() for image in images])


def boxes_32(dataset: Dataset) -> np.ndarray:
    """Boxes of some slices at 32 px as vectors."""
    places = np.array(picked(dataset, EMBEDDED, 0))
    return np.stack([image.ravel() for image in lesions(dataset, places)])


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


def froc_curve(setup: str, matched: Sequence[Matches], threshold: float) -> Curve:
    """The FROC curve of a set-up, the mean over its trainings, marked at a score."""
    curves = [froc(m) for m in matched]
    rate = np.unique(np.concatenate([own for own, _ in curves]))
    sensitivity = np.mean([sensitivity_at(rate, *own) for own in curves], axis=0)
    points = [operating_point(m, threshold=threshold) for m in matched]
    where = (
        float(np.mean([point.false_positives_per_case for point in points])),
        float(np.mean([point.sensitivity for point in points])),
    )
    return Curve(setup, rate, sensitivity, operating_point=where)


def facts_of(
    real: Dataset, drawn: Sequence[Sequence[str]], *, low_data: bool, what: str = "slices"
) -> dict[str, Any]:
    """What the data are.

    Args:
        drawn: The patients of each draw.
        what: What a case is called.
    """

    def counted(ids: Sequence[str], kind: str = "") -> str:
        return f"{len(ids)} {kind}patients, {len(real.of_patients(set(ids)))} {what}"

    about = real.about
    draws = {f"draw {d}": counted(patients, "training ") for d, patients in enumerate(drawn)}
    return {
        what: about["n_cases"],
        "patients": about["n_patients"],
        "patients from": about["patients_from"],
        **{name: counted(ids) for name, ids in real.splits.items()},
        **(draws if low_data else {}),
        "left out": {reason: dropped["n"] for reason, dropped in about["dropped"].items()},
        "digest": about["digest"],
    }
