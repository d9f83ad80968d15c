"""Which detection found which truth, in slices (2D) or scans (3D).

    Detections, Truths -> match -> Matches -> synthoma.metrics.detection
    Matches -> subset -> Matches of the truths of one size, one attenuation, ...

`match` goes by overlap; `synthoma.metrics.centres` has LUNA16's rule.

A *case* is whatever false positives are counted per: a slice in 2D, a scan in 3D. The arrays hold
a whole test set, rows in any order. Empty cases (no truths) count: their detections are false
positives and they are part of "per case".

A detection is a hit, a false positive, or ignored: neither. Ignored are detections of irrelevant
findings (those that nobody has to find, such as nodules that one of four readers saw), and those
of truths outside of a subset.

Papers:
  Han et al. 2019, conditional PGGAN: a duplicate is a false positive
  Lin et al. 2014, COCO, https://arxiv.org/abs/1405.0312: matching by overlap
Differs from the papers: docs/precision.md says where, and by how much.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped

from synthoma.data.boxes import dimensions_of, volume
from synthoma.errors import DataError, SettingsError

#: Pairs of boxes held in memory at once.
CHUNK = 2**21
#: What `Matches.truth` holds in place of a row.
FALSE_POSITIVE, IGNORED = -1, -2


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector says about a test set; `DataError` where the arrays do not fit together."""

    boxes: Float[np.ndarray, "d k"]
    """Half-open, ((z0,) y0, x0, (z1,) y1, x1)."""
    scores: Float[np.ndarray, " d"]
    """Up is surer."""
    case: Int[np.ndarray, " d"]
    """The case of each box, counted from 0."""
    labels: Shaped[np.ndarray, " d"] | None = None

    def __post_init__(self) -> None:
        rows = {"scores": self.scores, "case": self.case, "labels": self.labels}
        _check_rows(self.boxes, rows)
        if not np.isfinite(self.scores).all():
            raise DataError(f"{(~np.isfinite(self.scores)).sum()} scores are not finite numbers")


@dataclass(frozen=True, eq=False)
class Truths:
    """What there is to find; `DataError` where the arrays do not fit together."""

    boxes: Float[np.ndarray, "t k"]
    """Half-open, ((z0,) y0, x0, (z1,) y1, x1)."""
    case: Int[np.ndarray, " t"]
    """The case of each box, counted from 0."""
    n_cases: int
    """Cases of the test set, with and without truths."""
    labels: Shaped[np.ndarray, " t"] | None = None
    diameter_mm: Float[np.ndarray, " t"] | None = None
    """For `synthoma.metrics.centres` alone; below 0 where nobody measured it."""

    def __post_init__(self) -> None:
        rows = {"case": self.case, "labels": self.labels, "diameter_mm": self.diameter_mm}
        _check_rows(self.boxes, rows)
        _check_cases(self.case, self.n_cases, "truths")
        if self.diameter_mm is not None and not np.isfinite(self.diameter_mm).all():
            raise DataError("diameter_mm holds no finite number; below 0 means unknown")


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detection found which truth; all that the metrics below need."""

    scores: Float[np.ndarray, " d"]
    case: Int[np.ndarray, " d"]
    truth: Int[np.ndarray, " d"]
    """The row of the truth that each detection found; else `FALSE_POSITIVE` or `IGNORED`."""
    truth_case: Int[np.ndarray, " t"]
    n_cases: int

    def __post_init__(self) -> None:
        if (self.truth < IGNORED).any():
            raise DataError(f"truth holds {self.truth.min()}; allowed: rows, and -1 and -2")
        found = self.truth[self.hit]
        if len(found) > len(np.unique(found)) or (self.truth >= len(self.truth_case)).any():
            raise DataError(
                f"{len(found)} detections hit {len(np.unique(found))} truths of "
                f"{len(self.truth_case)}; each hit must have a truth of its own"
            )
        _check_cases(self.case, self.n_cases, "detections")
        _check_cases(self.truth_case, self.n_cases, "truths")

    @property
    def hit(self) -> Bool[np.ndarray, " d"]:
        """Whether each detection found a truth."""
        return self.truth >= 0

    @property
    def false_positive(self) -> Bool[np.ndarray, " d"]:
        """Whether each detection counts against the detector."""
        return self.truth == FALSE_POSITIVE


def match(
    detections: Detections,
    truths: Truths,
    *,
    iou_threshold: float = 0.5,
    class_aware: bool = False,
    irrelevant: Truths | None = None,
) -> Matches:
    """Give each detection, the surest first, the free truth of its case that it overlaps most.

    COCO's rule. Of equal scores the earlier row goes first; of equal overlaps the later truth is
    taken, as in COCO's own program. A detection whose truths are all taken is a false positive,
    so a duplicate counts as one, as in Han et al. 2019.

    Args:
        iou_threshold: Least intersection over union of a hit, in (0, 1]; just that much is a hit.
        class_aware: Whether a hit needs equal labels too.
        irrelevant: Findings of the same cases that need not be found. A detection that overlaps
            one enough, whatever its label, and is no hit, is ignored; one may excuse several.

    Raises:
        SettingsError: The threshold is outside (0, 1], or `class_aware` without labels.
        DataError: Boxes in 2D meet boxes in 3D, or a detection lies in no case.

    Example:
        The second detection is a duplicate, the third lies in an empty case.

        >>> boxes = np.array([[0.0, 0, 4, 4], [0.0, 0, 4, 3], [0.0, 0, 4, 4]])
        >>> found = Detections(boxes, scores=np.array([0.9, 0.8, 0.7]), case=np.array([0, 0, 1]))
        >>> truths = Truths(boxes[:1], case=np.array([0]), n_cases=2)
        >>> match(found, truths).truth.tolist()
        [0, -1, -1]
    """
    if not 0 < iou_threshold <= 1:
        raise SettingsError(f"iou_threshold is {iou_threshold}; allowed: above 0, up to 1")
    of_detection, of_truth = detections.case, truths.case
    if class_aware:
        of_detection, of_truth = _split_by_label(detections, truths)
    check_alike(detections, truths)

    boxes, scores = detections.boxes, detections.scores
    rows, candidates, overlap = _overlapping(
        boxes, truths.boxes, of_detection, of_truth, iou_threshold
    )
    surest_first = np.lexsort((-candidates, -overlap, rows, -scores[rows]))
    truth = np.full(len(scores), FALSE_POSITIVE)
    free, waiting = [True] * len(truths.case), [True] * len(truth)
    in_turn = zip(rows[surest_first].tolist(), candidates[surest_first].tolist(), strict=True)
    for row, candidate in in_turn:
        if waiting[row] and free[candidate]:
            truth[row] = candidate
            waiting[row] = free[candidate] = False
    if irrelevant is not None:
        check_alike(detections, irrelevant)
        excused, _, _ = _overlapping(
            boxes, irrelevant.boxes, detections.case, irrelevant.case, iou_threshold
        )
        truth[excused[truth[excused] == FALSE_POSITIVE]] = IGNORED
    return Matches(scores, detections.case, truth, truths.case, truths.n_cases)


def subset(matches: Matches, wanted: Bool[np.ndarray, " t"]) -> Matches:
    """The same detections asked for some truths alone: those of one size, one attenuation.

    Hits on other truths are ignored. False positives stay those of the whole set, in every case:
    nobody knows the size of a nodule that is not there. So the curves of all subsets share their
    rates, and a duplicate that `match` counted against the detector counts in each.

    Example:
        >>> both = Matches(np.array([0.9, 0.8, 0.7]), np.array([0, 0, 0]),
        ...                np.array([1, -1, 0]), truth_case=np.array([0, 0]), n_cases=1)
        >>> subset(both, np.array([False, True])).truth.tolist()
        [0, -1, -2]
    """
    if wanted.shape != matches.truth_case.shape:
        raise DataError(f"wanted says {wanted.shape} of {matches.truth_case.shape} truths")
    row = np.where(wanted, np.cumsum(wanted) - 1, IGNORED)
    truth = matches.truth.copy()
    truth[matches.hit] = row[truth[matches.hit]]
    truth_case = matches.truth_case[wanted]
    return Matches(matches.scores, matches.case, truth, truth_case, matches.n_cases)


def _split_by_label(
    detections: Detections, truths: Truths
) -> tuple[Int64[np.ndarray, " d"], Int64[np.ndarray, " t"]]:
    """The group of each detection and truth, where a group is one label in one case."""
    if detections.labels is None or truths.labels is None:
        raise SettingsError("class_aware matching needs labels on detections and on truths")
    both = np.concatenate([detections.labels, truths.labels])
    names, label = np.unique(both, return_inverse=True)
    group = np.concatenate([detections.case, truths.case]) * len(names) + label
    return group[: len(detections.case)], group[len(detections.case) :]


def pairs_within_groups(
    of_detection: Int[np.ndarray, " d"], of_truth: Int[np.ndarray, " t"]
) -> Iterator[tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]]:
    """Rows of detections and of truths, every pair of one group, about `CHUNK` pairs at a time."""
    by_group = np.argsort(of_truth, kind="stable")
    in_group = np.bincount(of_truth, minlength=int(of_detection.max(initial=0)) + 1)
    n_truths = in_group[of_detection]
    first = (np.cumsum(in_group) - in_group)[of_detection]
    rows = np.flatnonzero(n_truths)
    chunk = np.cumsum(n_truths[rows]) // CHUNK
    for part in np.split(rows, np.flatnonzero(np.diff(chunk)) + 1):
        repeats = n_truths[part]
        start = first[part] - (np.cumsum(repeats) - repeats)
        position = np.arange(repeats.sum()) + np.repeat(start, repeats)
        yield np.repeat(part, repeats), by_group[position]


def _overlapping(
    boxes: Float[np.ndarray, "d k"],
    truths: Float[np.ndarray, "t k"],
    of_detection: Int[np.ndarray, " d"],
    of_truth: Int[np.ndarray, " t"],
    iou_threshold: float,
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """The rows of each pair of one group that overlaps enough, and how much.

    The arithmetic is that of `synthoma.data.boxes.iou`, pair by pair in place of a matrix a case:
    2000 small matrices alone take longer than all of `match`.
    """
    d = dimensions_of(boxes)
    found = []
    for row, candidate in pairs_within_groups(of_detection, of_truth):
        both = np.ones(len(row))
        for axis in range(d):
            low = np.maximum(boxes[row, axis], truths[candidate, axis], dtype=np.float64)
            high = np.minimum(boxes[row, d + axis], truths[candidate, d + axis], dtype=np.float64)
            both *= np.maximum(high - low, 0.0)
        either = volume(boxes)[row] + volume(truths)[candidate] - both
        overlap = np.divide(both, either, out=np.zeros_like(both), where=both > 0)
        enough = overlap >= iou_threshold
        found.append((row[enough], candidate[enough], overlap[enough]))
    rows, candidates, overlaps = (np.concatenate(column) for column in zip(*found, strict=True))
    return rows, candidates, overlaps


def check_alike(detections: Detections, truths: Truths) -> None:
    """Raise `DataError` unless both are of one test set, both 2D or both 3D."""
    d, other = dimensions_of(detections.boxes), dimensions_of(truths.boxes)
    if d != other:
        raise DataError(f"detections are {d}D and truths {other}D; both must be 2D or both 3D")
    _check_cases(detections.case, truths.n_cases, "detections")


def _check_rows(
    boxes: Float[np.ndarray, "m k"], columns: dict[str, Shaped[np.ndarray, " m"] | None]
) -> None:
    dimensions_of(boxes)
    for name, column in columns.items():
        if column is not None and column.shape != (len(boxes),):
            raise DataError(f"{name} has shape {column.shape}; needed: ({len(boxes)},), one a box")


def _check_cases(case: Int[np.ndarray, " m"], n_cases: int, what: str) -> None:
    if len(case) and (case.min() < 0 or case.max() >= n_cases):
        raise DataError(
            f"{what} lie in cases {case.min()} to {case.max()}; allowed: 0 to {n_cases - 1}"
        )
