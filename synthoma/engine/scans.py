"""A 3D detector on whole scans: window by window, what they found brought together.

    scan (c, z, y, x) -> windows that cover it and overlap -> detections of each -> one list a scan

A box that is cut by the inner face of a window is seen whole by a neighbour, so that it counts less
there: its score is halved. Of boxes of one class that overlap, the surest stays. A scan is read a
window at a time, from the dataset's memory-mapped file.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from synthoma.data.batches import signed_unit
from synthoma.data.dataset import Dataset
from synthoma.data.windows import Window, read, windows_over
from synthoma.engine.evaluate import Findings, check_ready, truths_of
from synthoma.engine.system import Detections, Detector
from synthoma.metrics.detection import UndefinedMetricError, cpm, froc, operating_point
from synthoma.metrics.matching import Detections as All
from synthoma.metrics.matching import match
from synthoma.nn.boxes3d import nms

#: At a window's inner face: so near, in voxels, and times this score.
EDGE, DOUBT = 1.0, 0.5
#: Score of the sensitivity that Han picks models by.
THRESHOLD = 0.5


class Scanning(Protocol):
    """Settings of a detector of windows."""

    window: Window
    overlap: float
    nms_iou: float
    most_boxes: int


@runtime_checkable
class WindowDetector(Protocol):
    """A detector of volumes that looks at windows."""

    config: Scanning


def find_in_scans(
    detector: Detector,
    dataset: Dataset,
    *,
    precision: str = "float32",
    batch_size: int = 4,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Findings:
    """Run a 3D detector over every volume of a dataset.

    Raises:
        DataError: There is no case, or values have no known range.
    """
    check_ready(dataset)
    assert isinstance(detector, WindowDetector), "detectors of volumes look at windows"
    boxes, scores, case, labels = [], [], [], []
    was_training = detector.training
    detector.eval()
    for i in range(len(dataset)):
        found = find_in_scan(
            detector,
            dataset.values(i),
            dataset.about["value_range"],
            precision=precision,
            batch_size=batch_size,
        )
        boxes.append(found.boxes.cpu().numpy().astype(np.float32))
        scores.append(found.scores.double().cpu().numpy())
        case.append(np.full(len(found.scores), i))
        labels.append(found.labels.cpu().numpy())
        progress(i + 1, len(dataset))
    detector.train(was_training)
    every = All(*map(np.concatenate, (boxes, scores, case, labels)))
    return Findings(every, truths_of(dataset), dataset.patient_ids)


def find_in_scan(
    detector: Detector,
    values: np.ndarray,
    value_range: tuple[float, float],
    *,
    precision: str,
    batch_size: int,
) -> Detections:
    """What is found in one volume (c, z, y, x), best first."""
    assert isinstance(detector, WindowDetector)
    config, size = detector.config, np.array(values.shape[1:])
    space = np.array(config.window.space)
    corners = windows_over(tuple(size.tolist()), config.window.space, overlap=config.overlap)
    device = next(detector.parameters()).device
    boxes, scores, labels = [], [], []
    for first in range(0, len(corners), batch_size):
        some = corners[first : first + batch_size]
        parts = [
            signed_unit(read(values, np.array(low), space, value_range[0]), value_range)
            for low in some
        ]
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            answers = detector.detect(torch.from_numpy(np.stack(parts)).to(device))
        for low, own in zip(some, answers, strict=True):
            corner = torch.tensor(low, dtype=torch.float32, device=device)
            faces = torch.tensor(space, dtype=torch.float32, device=device)
            inner_low = corner > 0
            inner_high = corner + faces < torch.tensor(size, device=device)
            cut = ((own.boxes[:, :3] < EDGE) & inner_low).any(1)
            cut |= ((own.boxes[:, 3:] > faces - EDGE) & inner_high).any(1)
            boxes.append(own.boxes + corner.repeat(2))
            scores.append(own.scores * torch.where(cut, DOUBT, 1.0))
            labels.append(own.labels)
    every = Detections(torch.cat(boxes), torch.cat(scores), torch.cat(labels))
    limit = torch.tensor([*size, *size], dtype=torch.float32, device=device)
    clipped = every.boxes.clamp_min(0).minimum(limit)
    there = ((clipped[:, 3:] - clipped[:, :3]) > 0).all(dim=1)
    kept = there.nonzero()[:, 0]
    order = nms(clipped[kept], every.scores[kept], config.nms_iou, labels=every.labels[kept])
    rows = kept[order[: config.most_boxes]]
    return Detections(clipped[rows], every.scores[rows], every.labels[rows])


def scan_figures(findings: Findings) -> dict[str, float]:
    """Sensitivity and false positives a scan at IoU 0.25 and score 0.5, and the CPM; what the
    scans do not define is left out."""
    matches = match(findings.detections, findings.truths, iou_threshold=0.25)
    point = operating_point(matches, threshold=THRESHOLD)
    found = {"fp_per_scan_iou25": point.false_positives_per_case}
    try:
        found["sensitivity_iou25"] = point.sensitivity
        found["cpm_iou25"] = cpm(*froc(matches))
    except UndefinedMetricError:
        return found
    return found
