"""3D Faster R-CNN: where anchors lie, what is learnt from, and what is found in whole scans."""

import numpy as np
import pytest
import torch

from synthoma.data.batches import Pool, Server
from synthoma.data.case import Case, Image
from synthoma.data.dataset import Dataset, resplit
from synthoma.data.store import DatasetWriter
from synthoma.data.windows import Window
from synthoma.engine.scans import find_in_scan, find_in_scans, scan_figures
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Detections, Detector, Turn
from synthoma.engine.train import generator_for
from synthoma.errors import DataError, LeakError
from synthoma.nn.boxes3d import iou
from synthoma.studies.detection3d import judge_scans
from synthoma.synthesis.fit import fit, load_trained
from synthoma.synthesis.mixture import TrainingData
from synthoma.tasks.pyramid3d import anchors_over
from synthoma.tasks.rcnn3d import (
    PRESETS,
    RCNN3D,
    RCNN3DConfig,
    decode,
    encode,
    fitted,
)

SPACE = (32, 32, 32)
TINY = PRESETS["smoke"].system


def volumes(out, n=24, size=(32, 40, 48), seed=0):
    """Noise with one or two bright balls each."""
    chance = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.arange(k) + 0.5 for k in size), indexing="ij")
    with DatasetWriter(out, patients_from="made", value_range=(-1000, 400)) as writer:
        for i in range(n):
            values, boxes = chance.normal(-850, 40, size), []
            for z_half in range(1 + i % 2):
                radius = chance.uniform(3, 5)
                centre = [chance.uniform(6, k - 6) for k in size]
                centre[0] = chance.uniform(6, 10) + 14 * z_half
                far = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
                values[far < radius] = 50
                boxes.append([*(c - radius for c in centre), *(c + radius for c in centre)])
            writer.add(
                Case(
                    f"v{i:02}",
                    f"p{i:02}",
                    Image(values.astype(np.int16)[None]),
                    boxes=np.array(boxes, np.float32),
                    traits={
                        "sizes": ["small", "medium"][: len(boxes)],
                        "attenuations": ["solid"] * len(boxes),
                        "diameters_mm": [float(b[3] - b[0]) for b in boxes],
                    },
                    box_labels=("nodule",) * len(boxes),
                )
            )
    return Dataset.open(out)


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return volumes(tmp_path_factory.mktemp("balls") / "data")


def built(**changes):
    torch.manual_seed(0)
    return RCNN3D(TINY.model_copy(update=changes))


def test_the_papers_preset_is_the_thesis():
    preset = PRESETS["paper"]
    assert preset.system.window == Window(space=(160, 176, 224), shift=0.15, zoom=0.15)
    assert (preset.system.batch_size, preset.system.optimizer) == (2, "sgd")
    gan = RCNN3D(preset.system.model_copy(update={"width": 4, "maps": 4, "hidden": 4, "bins": 2}))
    assert gan.rate(20_000, 40_000) == 1.0
    assert gan.rate(20_001, 40_000) == 0.1
    assert (preset.train.validate_from, preset.train.steps) == (30_000, 40_000)
    assert preset.train.keep_best == "sensitivity_iou25"


def test_anchors_lie_in_the_middle_of_their_cells():
    sizes = torch.tensor([[[2.0, 4, 6]], [[8.0, 8, 8]], [[16.0, 16, 16]]])
    boxes, counts = anchors_over((16, 16, 32), sizes)
    assert counts == [4 * 4 * 8, 2 * 2 * 4, 1 * 1 * 2]
    assert boxes[0].tolist() == [1, 0, -1, 3, 4, 5]
    assert boxes[1].tolist() == [1, 0, 3, 3, 4, 9]  # x runs fastest
    assert boxes[-1].tolist() == [0, 0, 16, 16, 16, 32]


def test_the_network_answers_for_every_anchor():
    gan = built()
    maps = gan.pyramid(torch.zeros(2, 1, 32, 32, 64))
    assert [tuple(own.shape[2:]) for own in maps] == [(8, 8, 16), (4, 4, 8), (2, 2, 4)]
    logits, deltas = gan.propose(maps)
    boxes, _ = anchors_over((32, 32, 64), gan.anchors)
    assert logits.shape == (2, len(boxes))
    assert deltas.shape == (2, len(boxes), 6)


def test_answers_of_a_cell_stand_where_its_anchors_do():
    """A single lit cell of a map must change the answers of its own anchors most."""
    gan = built()
    maps = [torch.zeros(1, 16, 8, 8, 8), torch.zeros(1, 16, 4, 4, 4), torch.zeros(1, 16, 2, 2, 2)]
    before, _ = gan.propose(maps)
    maps[0][0, :, 2, 5, 7] = 50
    after, _ = gan.propose(maps)
    boxes, _ = anchors_over(SPACE, gan.anchors)
    middle = (boxes[:, :3] + boxes[:, 3:]) / 2
    moved = (after - before).abs()[0] > 0
    lit = torch.tensor([2.5 * 4, 5.5 * 4, 7.5 * 4])
    assert (middle[moved] - lit).abs().max() <= 4
    assert len(middle[moved].unique(dim=0)) == 3 * 3 * 2  # a filter of 3, cut at x = 8


def test_what_is_encoded_is_decoded():
    chance = torch.Generator().manual_seed(0)
    low = torch.rand(50, 3, generator=chance) * 20
    boxes = torch.cat([low, low + 2 + torch.rand(50, 3, generator=chance) * 10], 1)
    own = torch.cat([low + 1, low + 4 + torch.rand(50, 3, generator=chance) * 10], 1)
    assert torch.allclose(decode(boxes, encode(boxes, own)), own, atol=1e-4)


def test_anchors_come_from_the_boxes(balls):
    config = fitted(TINY, {"real": Pool([balls])})
    sizes = np.array(config.anchors)
    assert sizes.shape == (9, 3)
    assert sizes.min() > 5.5
    assert sizes.max() < 10.5
    assert config.classes == ("nodule",)
    assert (np.diff(sizes.prod(1)) >= 0).all()


def test_slices_and_volumes_without_boxes_are_refused(balls, tmp_path):
    empty = balls.take(np.array([], np.int64))
    assert not len(empty)
    with DatasetWriter(tmp_path / "flat", patients_from="made", value_range=(0, 255)) as writer:
        writer.add(Case("a", "a", Image(np.zeros((1, 8, 8), np.uint8))))
    with pytest.raises(DataError, match="these are slices"):
        fitted(TINY, {"real": Pool([Dataset.open(tmp_path / "flat")])})


def test_batches_are_windows_with_their_boxes(balls):
    gan = built()
    batch = Server({"real": Pool([balls])}, seed=0, workers=1)(gan.request(1), 1, 0)
    assert batch["image"].shape == (2, 1, 32, 32, 32)
    assert batch["image"].min() >= -1
    for box, case in zip(batch["boxes"], batch["box_case"], strict=True):
        z, y, x = ((box[:3] + box[3:]) / 2).long().tolist()
        assert batch["image"][case, 0, z, y, x] > 0  # the middle of a ball


def batch_of(boxes):
    image = torch.full((1, 1, *SPACE), -1.0)
    own = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
    for box in own.long().tolist():
        image[0, 0, box[0] : box[3], box[1] : box[4], box[2] : box[5]] = 1
    return {
        "image": image,
        "boxes": own,
        "box_case": torch.zeros(len(own), dtype=torch.long),
        "box_class": torch.zeros(len(own), dtype=torch.long),
    }


@pytest.mark.parametrize("boxes", [[], [[4, 4, 4, 12, 12, 12]], [[0, 0, 0, 2, 2, 2]]])
def test_losses_are_finite_with_and_without_boxes_and_repeatable(boxes):
    found = []
    for _ in range(2):
        gan = built()
        turn = Turn(1, 0, generator_for(0, 1, "detector", 0), {})
        losses = gan.losses("detector", batch_of(boxes), turn)
        assert set(losses) == {"objectness", "proposal", "class", "box"}
        assert all(loss.isfinite() for loss in losses.values())
        found.append({name: loss.item() for name, loss in losses.items()})
    assert found[0] == found[1]


def test_detections_are_in_the_volume_best_first_and_do_not_overlap():
    gan = built().eval()
    (found,) = gan.detect(torch.randn(1, 1, *SPACE), lowest_score=0.0)
    assert 0 < len(found.scores) <= TINY.most_boxes
    assert (found.scores.diff() <= 0).all()
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 32
    apart = iou(found.boxes, found.boxes).fill_diagonal_(0)
    assert apart.max() <= TINY.nms_iou + 1e-6


@pytest.mark.slow
def test_it_learns_to_find_balls_in_whole_scans_larger_than_its_window(balls, tmp_path):
    fit(
        "rcnn3d",
        tmp_path / "run",
        TrainingData(data=balls.folder),
        settings=(TINY, TrainSettings(steps=150, checkpoint_every=150, validate_every=150)),
        device="cpu",
    )
    detector, _ = load_trained(tmp_path / "run")
    findings = find_in_scans(detector, balls.split("test"))
    figures = scan_figures(findings)
    assert figures["cpm_iou25"] > 0.6
    assert findings.detections.boxes.max() > 32  # beyond the first window
    lines = judge_scans(tmp_path / "run", balls.folder, split="test", seed=0)
    assert [line.split(":")[0] for line in lines[:8]] == [
        f"{rule}, {name}"
        for rule in ("CPM at IoU 0.25", "CPM by LUNA16's rule")
        for name in ("all nodules", "small", "medium", "solid")
    ]
    assert float(lines[0].split()[6].rstrip(",")) == pytest.approx(figures["cpm_iou25"], abs=1e-3)
    with pytest.raises(LeakError):
        judge_scans(tmp_path / "run", resplit_to_test(balls, tmp_path), split="test", seed=0)


def resplit_to_test(dataset, tmp_path):
    """The same volumes with the training patients in the test split."""
    splits = dataset.splits
    swapped = {**splits, "train": splits["test"], "test": splits["train"]}
    return resplit(dataset, tmp_path / "swapped", swapped).folder


class Told(Detector):
    """A detector that finds what it is told, in each window."""

    def __init__(self, finds):
        super().__init__()
        self.config = RCNN3DConfig(window=Window(space=(16, 16, 16)), overlap=0.25)
        self.finds, self.weight = finds, torch.nn.Parameter(torch.zeros(1))

    def request(self, step):
        raise NotImplementedError

    players = losses = request

    def detect(self, image, *, lowest_score=0.001):
        return [self.finds(one) for one in image]


def lit_box(image):
    """The box around what is bright in a window."""
    places = (image[0] > 0).nonzero()
    if not len(places):
        return Detections(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    box = torch.cat([places.amin(0), places.amax(0) + 1]).float()
    return Detections(box[None], torch.tensor([0.8]), torch.zeros(1, dtype=torch.long))


def test_a_box_at_the_seam_of_two_windows_is_found_once_and_whole():
    values = np.full((1, 16, 16, 40), -1000, np.int16)
    values[0, 5:9, 5:9, 13:20] = 400  # windows begin at x = 0, 12 and 24
    found = find_in_scan(Told(lit_box), values, (-1000, 400), precision="float32", batch_size=2)
    assert found.boxes.tolist() == [[5, 5, 13, 9, 9, 20]]
    assert found.scores.tolist() == pytest.approx([0.8])


def test_a_scan_smaller_than_a_window_is_seen_whole():
    values = np.full((1, 8, 9, 10), -1000, np.int16)
    values[0, 2:5, 3:6, 7:10] = 400
    found = find_in_scan(Told(lit_box), values, (-1000, 400), precision="float32", batch_size=2)
    assert found.boxes.tolist() == [[2, 3, 7, 5, 6, 10]]
