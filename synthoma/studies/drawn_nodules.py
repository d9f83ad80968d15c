"""Drawn nodules before anybody trains on them: does a detector find them, are they as ordered.

run of the draw's own detector, drawn scans, real validation scans -> judge_nodules -> facts
drawn or real scans -> density_of -> mean HU of nodules, by attenuation
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from synthoma.data.case import Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.vois import ATTENUATIONS, nodules_of, voxels_of
from synthoma.engine.evaluate import Findings
from synthoma.metrics.detection import operating_point, threshold_at
from synthoma.metrics.matching import Matches, match, subset
from synthoma.studies.detection3d import IOU, ignored_in, kinds_of
from synthoma.synthesis.curate import find_in

#: Scans that are looked at.
JUDGED = 64
#: False positives a real validation scan at the score from which a nodule counts as found.
RATE = 1.0
#: With fewer real nodules to find, nothing is refused.
FEWEST = 5


def judge_nodules(
    run: Path, drawn: Dataset, held_out: Dataset, *, least: float, device: str
) -> dict[str, Any]:
    """Let a detector that was trained on real scans look for drawn nodules.

    A nodule is found where a detection of at least that score which gives one false positive a real
    validation scan overlaps it by 0.25 or more.

    Args:
        run: The detector's.
        held_out: Real scans whose patients it did not train on.
        least: Of the share of real nodules that are found, the share that admits the set.

    Returns:
        Facts for a JSON file: scans, shares found (of all nodules and by kind), whether the set is
        admitted and why, HU, and what the copy check found.
    """
    shown = drawn.take(np.arange(min(JUDGED, len(drawn))))
    real = matches_of(find_in(run, held_out, device=device), held_out)
    threshold = threshold_at(real, RATE)
    made = matches_of(find_in(run, shown, device=device), shown)
    real_shares = shares(real, kinds_of(held_out), np.ones(len(real.truth_case), bool), threshold)
    made_shares = shares(made, kinds_of(shown), painted_in(shown), threshold)
    wanted, found = real_shares["all nodules"], made_shares["all nodules"]
    few = len(real.truth_case) < FEWEST
    admitted = few or found >= least * wanted
    reason = (
        f"{found:.2f} of drawn nodules are found, {wanted:.2f} of real ones; wanted: at least "
        f"{least:g} of that"
    )
    return {
        "drawn": len(drawn),
        "scans_judged": len(shown),
        "found": made_shares,
        "real_found": real_shares,
        "admitted": bool(admitted),
        "reason": "" if admitted else reason,
        "density": density_of(shown, painted_in(shown)),
        "copies": drawn.about.get("copy_check"),
    }


def matches_of(findings: Findings, dataset: Dataset) -> Matches:
    """What was found, at IoU 0.25."""
    ignored = ignored_in(dataset)
    return match(findings.detections, findings.truths, iou_threshold=IOU, irrelevant=ignored)


def painted_in(drawn: Dataset) -> Bool[np.ndarray, " t"]:
    """Which boxes of drawn scans are of drawn nodules: the last ones of each."""
    found = []
    for i in range(len(drawn)):
        origin, n = drawn[i].origin, len(drawn.boxes(i))
        assert isinstance(origin, Synthetic), "a drawn scan"
        found.append(np.arange(n) >= n - len(origin.conditions["painted"]))
    return np.concatenate(found) if found else np.zeros(0, bool)


def shares(
    matches: Matches,
    kinds: dict[str, Bool[np.ndarray, " t"]],
    counted: Bool[np.ndarray, " t"],
    threshold: float,
) -> dict[str, float]:
    """The share of nodules that are found, of all and of each kind that there is."""
    found = {}
    for name, wanted in {"all nodules": counted, **kinds}.items():
        if (wanted & counted).any():
            point = operating_point(subset(matches, wanted & counted), threshold=threshold)
            found[name] = round(point.sensitivity, 4)
    return found


def density_of(
    scans: Dataset, counted: Bool[np.ndarray, " t"] | None = None
) -> dict[str, dict[str, float]]:
    """The mean HU of the middle of nodules (half of each side of the box), by attenuation: how
    many, their mean and standard deviation.

    Args:
        counted: Which boxes; all without.
    """
    values: dict[str, list[float]] = {name: [] for name in ATTENUATIONS}
    first = 0
    for i in range(len(scans)):
        volume = scans.values(i)[0]
        for nodule in nodules_of(scans[i]):
            if counted is None or counted[first + nodule.place]:
                low, high = nodule.box[:3], nodule.box[3:]
                middle = np.concatenate([low + (high - low) / 4, high - (high - low) / 4])
                values[nodule.attenuation].append(float(volume[voxels_of(middle)].mean()))
        first += len(scans.boxes(i))
    return {
        name: {
            "n": len(own),
            "mean": round(float(np.mean(own)), 1),
            "sd": round(float(np.std(own)), 1),
        }
        for name, own in values.items()
        if own
    }
