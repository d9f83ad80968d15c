"""Which detection found which truth, in slices (2D) or scans (3D).

    Detections, Truths -> match -> Matches -> synthoma.metrics.detection

A *case* is whatever false positives are counted per: a slice in 2D, a scan in 3D. The arrays hold
a whole test set, rows in any order. Empty cases (no truths) count: their detections are false
positives and they are part of "per case".

Papers:
  Han et al. 2019, conditional PGGAN: a duplicate is a false positive
  Lin et al. 2014, COCO, https://arxiv.org/abs/1405.0312: the matching rule
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
        _check_rows(self.boxes, scores=self.scores, case=self.case, labels=self.labels)
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

    def __post_init__(self) -> None:
        _check_rows(self.boxes, case=self.case, labels=self.labels)
        _check_cases(self.case, self.n_cases, "truths")


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detection found which truth; all that the metrics below need."""

    scores: Float[np.ndarray, " d"]
    case: Int[np.ndarray, " d"]
    truth: Int[np.ndarray, " d"]
    """The row of the truth that each detection found; -1 for a false positive."""
    truth_case: Int[np.ndarray, " t"]
    n_cases: int

    def __post_init__(self) -> None:
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


def match(
    detections: Detections,
    truths: Truths,
    *,
    iou_threshold: float = 0.5,
    class_aware: bool = False,
) -> Matches:
    """Give each detection, the surest first, the free truth of its case that it overlaps most.

    COCO's rule. Of equal scores the earlier row goes first; of equal overlaps the later truth is
    taken, as in COCO's own program. A detection whose truths are all taken is a false positive,
    so a duplicate counts as one, as in Han et al. 2019.

    Args:
        iou_threshold: Least intersection over union of a hit, in (0, 1]; just that much is a hit.
        class_aware: Whether a hit needs equal labels too.

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
    d, other = dimensions_of(detections.boxes), dimensions_of(truths.boxes)
    if d != other:
        raise DataError(f"detections are {d}D and truths {other}D; both must be 2D or both 3D")
    _check_cases(detections.case, truths.n_cases, "detections")
    of_detection, of_truth = detections.case, truths.case
    if class_aware:
        of_detection, of_truth = _split_by_label(detections, truths)

    pieces = _pairs_within_groups(of_detection, of_truth)
    found = [_overlapping(detections.boxes, truths.boxes, *p, iou_threshold) for p in pieces]
    rows, candidates, overlap = (np.concatenate(column) for column in zip(*found, strict=True))
    surest_first = np.lexsort((-candidates, -overlap, rows, -detections.scores[rows]))
    truth = np.full(len(detections.scores), -1)
    free, waiting = [True] * len(truths.case), [True] * len(truth)
    in_turn = zip(rows[surest_first].tolist(), candidates[surest_first].tolist(), strict=True)
    for row, candidate in in_turn:
        if waiting[row] and free[candidate]:
            truth[row] = candidate
            waiting[row] = free[candidate] = False
    return Matches(detections.scores, detections.case, truth, truths.case, truths.n_cases)


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


def _pairs_within_groups(
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
    rows: Int64[np.ndarray, " p"],
    candidates: Int64[np.ndarray, " p"],
    iou_threshold: float,
) -> tuple[Int64[np.ndarray, " q"], Int64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
    """The pairs that overlap enough, and how much.

    The arithmetic is that of `synthoma.data.boxes.iou`, pair by pair in place of a matrix a case:
    2000 small matrices alone take longer than all of `match`.
    """
    d = dimensions_of(boxes)
    both = np.ones(len(rows))
    for axis in range(d):
        low = np.maximum(boxes[rows, axis], truths[candidates, axis], dtype=np.float64)
        high = np.minimum(boxes[rows, d + axis], truths[candidates, d + axis], dtype=np.float64)
        both *= np.maximum(high - low, 0.0)
    meet = both > 0
    rows, candidates, both = rows[meet], candidates[meet], both[meet]
    overlap = both / (volume(boxes)[rows] + volume(truths)[candidates] - both)
    enough = overlap >= iou_threshold
    return rows[enough], candidates[enough], overlap[enough]


def _check_rows(
    boxes: Float[np.ndarray, "m k"], **columns: Shaped[np.ndarray, " m"] | None
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
