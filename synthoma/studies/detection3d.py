"""A detector of nodules on a split of scans: CPM overall, by size and by attenuation.

IoU of 0.25 or more, as in Han's thesis, and LUNA16's rule of centres, both. False positives are
those of whole scans for every subset; findings that nobody has to find (trait `ignored`) count
neither way.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.data.vois import ATTENUATIONS, SIZES
from synthoma.engine.evaluate import Findings
from synthoma.engine.run import Run
from synthoma.metrics.centres import match_centres, surest
from synthoma.metrics.detection import UndefinedMetricError
from synthoma.metrics.intervals import PatientMetric, coverage_warning, cpm_of, interval
from synthoma.metrics.matching import Matches, Truths, match, subset
from synthoma.synthesis.curate import find_in

IOU = 0.25


def judge_scans(run: Path, data: Path, *, split: str, seed: int) -> list[str]:
    """The figures of a trained detector on a split, a line each, for a person.

    Raises:
        LeakError: The detector saw a patient of the split.
    """
    dataset = Dataset.open(data).split(split)
    if split != "train":
        seen = Run.open(run).facts["trained_on"]
        check_no_leak({split: dataset.patients}, seen, what=f"the detector {run}")
    findings = find_in(run, dataset)
    lines = [
        f"{rule}, {name}: {said(metric, seed)}"
        for rule, matches in rules(findings, dataset).items()
        for name, metric in cpms_of([matches], dataset).items()
    ]
    n = len(set(findings.patients))
    warning = coverage_warning(n)
    lines.append(
        f"{len(dataset)} scans of {n} patients ({dataset.about['patients_from']}), "
        f"{len(findings.truths.case)} nodules"
    )
    return [*lines, warning] if warning else lines


def said(metric: PatientMetric, seed: int) -> str:
    """A metric with its interval and its n, in words."""
    try:
        found = interval(metric, seed=seed)
    except UndefinedMetricError as error:
        return f"undefined: {error.reason}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n = {found.n} patients"


def rules(findings: Findings, dataset: Dataset) -> dict[str, Matches]:
    """What was found, by each rule; LUNA16's where diameters are known."""
    ignored = ignored_in(dataset)
    found = {
        f"CPM at IoU {IOU:g}": match(
            findings.detections, findings.truths, iou_threshold=IOU, irrelevant=ignored
        )
    }
    diameters = per_box(dataset, "diameters_mm")
    if all(value is not None for value in diameters):
        truths = findings.truths
        told = np.array(diameters, np.float64)
        spacing = [dataset[i].image.spacing_mm or (1.0,) * 3 for i in range(len(dataset))]
        found["CPM by LUNA16's rule"] = match_centres(
            surest(findings.detections),
            Truths(truths.boxes, truths.case, truths.n_cases, truths.labels, told),
            spacing_mm=np.array(spacing, np.float64),
            irrelevant=ignored,
        )
    return found


def cpms_of(runs: Sequence[Matches], dataset: Dataset) -> dict[str, PatientMetric]:
    """CPM of all nodules, of each size, of each attenuation that there is, the mean over runs."""
    patients = np.array(dataset.patient_ids)
    found = {"all nodules": cpm_of(runs, patients)}
    for name, wanted in kinds_of(dataset).items():
        found[name] = cpm_of([subset(matches, wanted) for matches in runs], patients)
    return found


def kinds_of(dataset: Dataset) -> dict[str, Bool[np.ndarray, " t"]]:
    """By size and by attenuation that there is: which boxes are so."""
    found: dict[str, Bool[np.ndarray, " t"]] = {}
    for trait, names in (("sizes", SIZES), ("attenuations", ATTENUATIONS)):
        own = np.array([str(value) for value in per_box(dataset, trait)])
        found |= {name: own == name for name in names if (own == name).any()}
    return found


#: The metric that claims are about: all nodules, IoU 0.25.
PRIMARY = "cpm"


def metrics_of(runs: Sequence[Findings], dataset: Dataset) -> dict[str, PatientMetric]:
    """The metrics of a report's table, of one set-up trained several times: CPM at IoU 0.25 of all
    nodules and of each kind, and of all by LUNA16's rule."""
    matched = [rules(own, dataset) for own in runs]
    at_iou, *others = matched[0]
    of_all, *of_kinds = cpms_of([own[at_iou] for own in matched], dataset).items()
    found = {PRIMARY: of_all[1]}
    found |= {f"{PRIMARY}_{name.replace('-', '_')}": metric for name, metric in of_kinds}
    for rule in others:
        patients = np.array(dataset.patient_ids)
        found[f"{PRIMARY}_luna16"] = cpm_of([own[rule] for own in matched], patients)
    return found


def per_box(dataset: Dataset, trait: str) -> list[Any]:
    """A trait of every box, in the order of `truths_of`; None where it is not known."""
    return [value for i in range(len(dataset)) for value in of_case(dataset, i, trait)]


def of_case(dataset: Dataset, i: int, trait: str) -> list[Any]:
    """A trait of every box of a case."""
    own = list(dataset[i].traits.get(trait, []))
    n = len(dataset.boxes(i))
    return own if len(own) == n else [None] * n


def ignored_in(dataset: Dataset) -> Truths | None:
    """Findings that nobody has to find, as readers of LIDC and LUNA16 note them."""
    found = [(i, told) for i in range(len(dataset)) for told in ignored_of(dataset, i)]
    if not found:
        return None
    diameters = [told.get("diameter_mm") for _, told in found]
    return Truths(
        np.array([told["box"] for _, told in found], np.float32).reshape(-1, 6),
        np.array([i for i, _ in found]),
        len(dataset),
        None,
        np.array([-1.0 if d is None else float(d) for d in diameters]),
    )


def ignored_of(dataset: Dataset, i: int) -> Iterator[Mapping[str, Any]]:
    """Those of a case."""
    yield from dataset[i].traits.get("ignored", [])
