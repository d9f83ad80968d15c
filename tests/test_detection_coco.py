"""Larger drawn sets: average precision is COCO's, and matching in pieces is matching."""

import contextlib
import io

import numpy as np
import pytest

from synthoma.metrics.detection import average_precision
from synthoma.metrics.matching import Detections, Truths, match


def random_set(rng, *, n_cases, n_detections, n_truths, whole_pixels=True):
    """Truths anywhere, detections near truths or anywhere; no two scores are equal."""

    def boxes(low):
        side = rng.integers(2, 12, low.shape)
        return np.concatenate([low, low + side], axis=1).astype(np.float64)

    truth = Truths(
        boxes(rng.integers(0, 30, (n_truths, 2))), rng.integers(0, n_cases, n_truths), n_cases
    )
    near = rng.integers(0, n_truths, n_detections)
    shift = rng.integers(-2, 3, (n_detections, 4)) * rng.choice([0, 1, 4], (n_detections, 1))
    box = truth.boxes[near] + shift
    if not whole_pixels:
        box += rng.normal(0, 0.3, box.shape)
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 1)
    scores = rng.permutation(n_detections) / n_detections
    return Detections(box, scores, truth.case[near]), truth


def test_many_truths_in_one_case_are_matched_piece_by_piece(monkeypatch):
    rng = np.random.default_rng(0)
    found, truth = random_set(rng, n_cases=3, n_detections=60, n_truths=30)
    whole = match(found, truth, iou_threshold=0.2)
    monkeypatch.setattr("synthoma.metrics.matching.CHUNK", 7)
    assert match(found, truth, iou_threshold=0.2).truth.tolist() == whole.truth.tolist()


def coco_average_precision(found, truth, iou_threshold):
    """By faster-coco-eval: one category, no crowd, one area range, no limit on detections."""
    from faster_coco_eval import COCO, COCOeval_faster

    def rows(boxes, case):
        for number, ((y0, x0, y1, x1), image) in enumerate(
            zip(boxes.tolist(), case.tolist(), strict=True)
        ):
            w, h = x1 - x0, y1 - y0
            # An id of 0 would mean "not matched".
            yield {"id": number + 1, "image_id": image, "category_id": 1, "bbox": [x0, y0, w, h],
                   "area": w * h, "iscrowd": 0}  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {
            "info": {},
            "images": [{"id": i, "height": 64, "width": 64} for i in range(truth.n_cases)],
            "categories": [{"id": 1, "name": "lesion"}],
            "annotations": list(rows(truth.boxes, truth.case)),
        }
        ground.createIndex()
        scored = [
            {**row, "score": score}
            for row, score in zip(rows(found.boxes, found.case), found.scores.tolist(), strict=True)
        ]
        judge = COCOeval_faster(ground, ground.loadRes(scored), "bbox")
        judge.params.iouThrs = np.array([iou_threshold])
        judge.params.maxDets = [100_000]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    return float(np.mean(judge.eval["precision"][0, :, 0, 0, 0]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou_threshold", [0.25, 0.5, 0.75])
def test_average_precision_is_that_of_coco(seed, iou_threshold):
    rng = np.random.default_rng(seed)
    sizes = {"n_cases": 12, "n_detections": 400, "n_truths": 100 if seed % 2 else 37}
    found, truth = random_set(rng, **sizes, whole_pixels=seed < 6)
    ours = average_precision(match(found, truth, iou_threshold=iou_threshold))
    assert 0.02 < ours < 0.98
    assert ours == pytest.approx(coco_average_precision(found, truth, iou_threshold), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_coco_where_overlaps_tie(seed):
    """On a grid of few pixels most overlaps tie, and taking the earlier truth would differ."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        low = rng.integers(0, 3, (n, 2))
        return np.concatenate([low, low + rng.integers(1, 4, (n, 2))], axis=1).astype(np.float64)

    truth = Truths(boxes(120), rng.integers(0, 20, 120), 20)
    found = Detections(boxes(300), rng.permutation(300) / 300, rng.integers(0, 20, 300))
    ours = average_precision(match(found, truth, iou_threshold=0.25))
    assert ours == pytest.approx(coco_average_precision(found, truth, 0.25), abs=1e-6)
