"""LUNA16's rule of which detection found which nodule: its centre is nearer than the radius.

    Detections -> surest -> match_centres with Truths -> Matches -> synthoma.metrics.detection

Where the challenge's page is silent, this follows what copies of its evaluation program do:

  - nearer than half the diameter; just that far is a miss
  - of several detections of one nodule the surest counts, the others are ignored
  - a detection inside two nodules finds both
  - detections inside irrelevant findings are ignored, unless they find a nodule
  - no more than 100 detections a scan are looked at

Papers:
  Setio et al. 2017, LUNA16, https://arxiv.org/abs/1612.08012
  The rule in its own words: https://luna16.grand-challenge.org/Evaluation/
"""

import numpy as np
from jaxtyping import Float, Float64, Int64

from synthoma.data.boxes import dimensions_of
from synthoma.errors import DataError, SettingsError
from synthoma.metrics.matching import (
    FALSE_POSITIVE,
    IGNORED,
    Detections,
    Matches,
    Truths,
    check_alike,
    pairs_within_groups,
)

#: The program takes this for a finding whose diameter nobody measured.
UNKNOWN_DIAMETER_MM = 10.0


def match_centres(
    detections: Detections,
    truths: Truths,
    *,
    spacing_mm: Float[np.ndarray, "n d"],
    irrelevant: Truths | None = None,
) -> Matches:
    """LUNA16's rule: a detection finds the truths whose centre is nearer than their radius.

    A truth that several detections find counts once, with the highest of their scores (of equal
    ones the earlier row); the others are ignored, as are those that lie in irrelevant findings
    alone. A detection inside two truths finds both, as in LUNA16's program: each find after its
    first is a further row behind those of the detections. Centres are the middles of the boxes.

    LUNA16 looks at no more than 100 detections a scan: `surest`.

    Args:
        truths: With `diameter_mm`; unknown ones are taken as `UNKNOWN_DIAMETER_MM`.
        spacing_mm: Size of a voxel along (z,) y, x, of each case; ones where boxes are in mm.
        irrelevant: Findings of the same cases that need not be found, with `diameter_mm`.

    Raises:
        SettingsError: There are no diameters.
        DataError: Boxes in 2D meet boxes in 3D, spacings are not one a case, or a detection lies
            in no case.

    Example:
        A nodule of 8 mm around the origin: 3 mm is near enough, 4 mm is not.

        >>> truths = Truths(np.array([[-4.0, -4, -4, 4, 4, 4]]), np.array([0]), 1,
        ...                 diameter_mm=np.array([8.0]))
        >>> beside = np.array([[-1.0, -1, 1, 1, 1, 5], [-1.0, -1, 2, 1, 1, 6]])
        >>> found = Detections(beside, scores=np.array([0.5, 0.9]), case=np.array([0, 0]))
        >>> match_centres(found, truths, spacing_mm=np.ones((1, 3))).truth.tolist()
        [0, -1]
    """
    rows, candidates = _within_radius(detections, truths, spacing_mm)
    truth = np.full(len(detections.scores), FALSE_POSITIVE)
    if irrelevant is not None:
        truth[_within_radius(detections, irrelevant, spacing_mm)[0]] = IGNORED
    truth[rows] = IGNORED

    surest_first = np.lexsort((rows, -detections.scores[rows], candidates))
    found, first = np.unique(candidates[surest_first], return_index=True)
    finder = rows[surest_first][first]
    _, once = np.unique(finder, return_index=True)
    truth[finder[once]] = found[once]
    finder_again, found_again = np.delete(finder, once), np.delete(found, once)
    return Matches(
        np.concatenate([detections.scores, detections.scores[finder_again]]),
        np.concatenate([detections.case, detections.case[finder_again]]),
        np.concatenate([truth, found_again]),
        truths.case,
        truths.n_cases,
    )


def surest(detections: Detections, *, per_case: int = 100) -> Detections:
    """The `per_case` surest detections of each case, in the order given.

    As in LUNA16's program, those that are only as sure as the first one left out are left out
    with it, so there may be fewer.

    Example:
        >>> one = Detections(np.zeros((3, 4)), np.array([0.5, 0.9, 0.5]), np.array([0, 0, 0]))
        >>> surest(one, per_case=2).scores.tolist()
        [0.9]
    """
    if per_case < 1:
        raise SettingsError(f"per_case is {per_case}; allowed: 1 or more")
    order = np.lexsort((-detections.scores, detections.case))
    case, first = np.unique(detections.case[order], return_index=True)
    floor = np.full(int(case.max(initial=-1)) + 1, -np.inf)
    full = np.diff(first, append=len(order)) > per_case
    floor[case[full]] = detections.scores[order[first[full] + per_case]]
    kept = detections.scores > floor[detections.case]
    return Detections(
        detections.boxes[kept],
        detections.scores[kept],
        detections.case[kept],
        None if detections.labels is None else detections.labels[kept],
    )


def _within_radius(
    detections: Detections, truths: Truths, spacing_mm: Float[np.ndarray, "n d"]
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"]]:
    """The rows of each detection and truth of one case whose centres are near enough."""
    check_alike(detections, truths)
    d = dimensions_of(truths.boxes)
    if spacing_mm.shape != (truths.n_cases, d):
        raise DataError(f"spacing_mm has shape {spacing_mm.shape}; needed: ({truths.n_cases}, {d})")
    if truths.diameter_mm is None:
        raise SettingsError("matching by centres needs diameter_mm on truths and irrelevant ones")

    def centres(boxes: Float[np.ndarray, "m k"]) -> Float64[np.ndarray, "m d"]:
        return (boxes[:, :d].astype(np.float64) + boxes[:, d:]) / 2

    known = truths.diameter_mm >= 0
    radius = np.where(known, truths.diameter_mm, UNKNOWN_DIAMETER_MM).astype(np.float64) / 2
    here, there = centres(detections.boxes), centres(truths.boxes)
    found = []
    for rows, candidates in pairs_within_groups(detections.case, truths.case):
        apart = (here[rows] - there[candidates]) * spacing_mm[truths.case[candidates]]
        near = (apart**2).sum(axis=1) < radius[candidates] ** 2
        found.append((rows[near], candidates[near]))
    rows, candidates = (np.concatenate(column) for column in zip(*found, strict=True))
    return rows, candidates
