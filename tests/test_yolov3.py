"""YOLOv3: the published network, exact geometry, and a game that it learns in seconds."""

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from synthoma.data.batches import Batch, Pool, Request
from synthoma.data.boxes import iou
from synthoma.data.case import Case, Image, Real
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.engine.settings import TrainSettings
from synthoma.engine.system import Turn
from synthoma.engine.train import train
from synthoma.errors import DataError, SettingsError
from synthoma.tasks.anchors import (
    COCO_ANCHORS,
    anchors_from,
    assign,
    decode,
    fits_a_box,
    grid_over,
    pair_iou,
    shape_iou,
)
from synthoma.tasks.darknet53 import YOLOv3Network, read_weights, write_weights
from synthoma.tasks.yolov3 import MOST_BOXES, PRESETS, YOLOv3, YOLOv3Config, fitted
from synthoma.zoo import load_entry

TURN = Turn(1, 0, torch.Generator())
TINY = YOLOv3Config(
    side_px=64,
    test_side_px=64,
    width=0.25,
    blocks=(1, 1, 1, 1, 1),
    norm_momentum=0.1,
    batch_size=8,
    parts=1,
    optimizer="adamw",
    learning_rate=4e-3,
    schedule="cosine",
    warmup_steps=5,
    box_loss="giou",
    objectness_prior=0.01,
    anchors=tuple((k / 64, k / 64) for k in (8, 10, 12, 14, 16, 18, 20, 22, 24)),
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def batch_of(boxes: Tensor, cases: list[int], kinds: list[int] | None = None) -> Batch:
    return {
        "boxes": boxes,
        "box_case": torch.tensor(cases, dtype=torch.int64),
        "box_class": torch.tensor(kinds or [0] * len(cases), dtype=torch.int64),
    }


def squares(request: Request, step: int, move: int, part: int = 0) -> Batch:
    """One or two bright squares of 10 to 20 pixels on black, apart from each other."""
    chance = np.random.default_rng([step, move, part])
    side, n = request.side_px, request.size // request.parts
    images = np.full((n, 1, side, side), -1, np.float32)
    boxes, cases = [], []
    for i in range(n):
        for half in chance.permutation(2)[: chance.integers(1, 3)]:
            size = chance.integers(10, 21)
            y = chance.integers(0, side - size)
            x = half * side // 2 + chance.integers(0, side // 2 - size)
            images[i, 0, y : y + size, x : x + size] = chance.uniform(0.3, 1)
            boxes.append([y, x, y + size, x + size])
            cases.append(i)
    return {"image": torch.from_numpy(images)} | batch_of(
        torch.tensor(boxes, dtype=torch.float32), cases
    )


def perfect(boxes: Tensor, cases: list[int], n: int, space: tuple[int, int]) -> Tensor:
    """What a network would have to answer: the targets themselves, sure of everything."""
    anchors = torch.tensor(COCO_ANCHORS)
    grid = grid_over(*space, anchors)
    wanted = assign(boxes, torch.tensor(cases), grid, anchors, space)
    raw = torch.zeros(n, len(grid.stride), 6)
    raw[..., 4] = -50
    answer = torch.cat(
        [
            wanted.offset.logit(),
            wanted.growth,
            torch.full((len(wanted.row), 2), 50.0),
        ],
        dim=1,
    )
    raw[wanted.case, wanted.cell] = answer
    return raw


# the published network


def test_the_network_has_the_published_number_of_parameters():
    network = YOLOv3Network(channels=3, classes=80)
    assert sum(p.numel() for p in network.parameters()) == 61_949_149
    assert sum(1 for _ in network.convolutions()) == 75
    # yolov3.weights has 248,007,048 bytes: running means and variances, and a header of 20
    stored = sum(t.numel() for tensors in network.convolutions() for t in tensors)
    assert 4 * stored + 20 == 248_007_048
    # darknet53.conv.74 has 162,482,580
    stored = sum(t.numel() for ts in network.convolutions(backbone_only=True) for t in ts)
    assert 4 * stored + 20 == 162_482_580


def small_network(**changes) -> YOLOv3Network:
    network = YOLOv3Network(
        **({"channels": 3, "classes": 2, "width": 0.25, "blocks": (1, 1, 1, 1, 1)} | changes)
    )
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    return network


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if "num_batches" not in name)


def test_weights_come_back_bit_for_bit(tmp_path: Path):
    written, read = small_network(), small_network()
    write_weights(written, tmp_path / "a.weights", images_seen=7)
    assert not same(written, read)
    assert read_weights(read, tmp_path / "a.weights") == sum(1 for _ in read.convolutions())
    assert same(written, read)
    assert (tmp_path / "a.weights").read_bytes()[:20] == struct.pack("<iiiq", 0, 2, 0, 7)


def test_a_file_holds_norm_shift_scale_mean_variance_then_weights(tmp_path: Path):
    network = small_network()
    write_weights(network, tmp_path / "a.weights")
    values = np.fromfile(tmp_path / "a.weights", "<f4", offset=20)
    stem = network.backbone.stem
    expected = [stem[1].bias, stem[1].weight, stem[1].running_mean, stem[1].running_var]
    assert np.array_equal(values[:32], torch.cat(expected).detach().numpy())
    kernel = stem[0].weight.detach()  # (out, in, y, x), x fastest, whatever our memory layout
    assert values[33] == kernel[0, 0, 0, 1]
    assert values[35] == kernel[0, 0, 1, 0]
    assert np.array_equal(values[-42:], network.heads[2].predict.weight.flatten().detach()[-42:])


def test_old_headers_count_images_in_four_bytes(tmp_path: Path):
    written, read = small_network(), small_network()
    write_weights(written, tmp_path / "new.weights")
    content = (tmp_path / "new.weights").read_bytes()
    (tmp_path / "old.weights").write_bytes(struct.pack("<iiii", 0, 1, 0, 9) + content[20:])
    read_weights(read, tmp_path / "old.weights")
    assert same(written, read)


def test_a_backbone_alone_is_read_and_the_heads_stay(tmp_path: Path):
    written, read = small_network(), small_network()
    heads = [t.clone() for t in read.heads.state_dict().values()]
    write_weights(written, tmp_path / "darknet.conv", part="backbone")
    read_weights(read, tmp_path / "darknet.conv")
    assert same(written.backbone, read.backbone)
    assert all(map(torch.equal, heads, read.heads.state_dict().values()))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_backbone_of_a_network_with_other_classes_is_read_when_asked(tmp_path, channels):
    written, read = small_network(classes=80, channels=channels), small_network(channels=channels)
    write_weights(written, tmp_path / "coco.weights")
    with pytest.raises(DataError, match="part='backbone'"):
        read_weights(read, tmp_path / "coco.weights")
    read_weights(read, tmp_path / "coco.weights", part="backbone")
    assert same(written.backbone, read.backbone)


@pytest.mark.parametrize("classes", [2, 80])
def test_a_grey_network_answers_as_the_colour_one_does_to_grey_images(tmp_path, classes):
    colour, grey = small_network(classes=classes).eval(), small_network(channels=1).eval()
    write_weights(colour, tmp_path / "colour.weights")
    read_weights(grey, tmp_path / "colour.weights", part="all" if classes == 2 else "backbone")
    image = torch.rand(1, 1, 64, 64)
    ours, theirs = grey.backbone(image), colour.backbone(image.expand(1, 3, 64, 64))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 7, 1_000, -4, -1])
def test_a_cut_file_is_refused_with_both_sizes_and_changes_nothing(tmp_path: Path, keep: int):
    network = small_network()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    write_weights(network, tmp_path / "whole.weights")
    content = (tmp_path / "whole.weights").read_bytes()
    cut = tmp_path / "cut.weights"
    cut.write_bytes(content[:keep])
    with pytest.raises(DataError, match=r"cut\.weights") as error:
        read_weights(network, cut)
    assert str(len(content) - 20) in str(error.value)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_a_missing_file_and_values_that_are_not_finite_are_refused(tmp_path: Path):
    network = small_network()
    with pytest.raises(DataError, match="No such file"):
        read_weights(network, tmp_path / "none.weights")
    write_weights(network, tmp_path / "bad.weights")
    content = bytearray((tmp_path / "bad.weights").read_bytes())
    content[24:28] = struct.pack("<f", float("nan"))
    (tmp_path / "bad.weights").write_bytes(content)
    with pytest.raises(DataError, match="not finite"):
        read_weights(network, tmp_path / "bad.weights")


# geometry


def test_cells_answer_in_the_order_of_the_grid():
    """A bright spot raises the features where the grid says that its cells are."""
    network = small_network(classes=1).eval()
    height, width = 96, 128
    grid = grid_over(height, width, torch.tensor(COCO_ANCHORS))
    raw = network(torch.zeros(1, 3, height, width))
    assert raw.shape == (1, len(grid.stride), 6)
    assert grid.starts == (0, 3 * 12, 3 * 12 + 3 * 48)
    assert grid.corner[3 * 4].tolist() == [32, 0]  # stride 32: four columns, then the next row
    assert grid.anchor[0].tolist() == pytest.approx([90 / 416 * 96, 116 / 416 * 128])


def test_a_box_comes_back_from_its_target():
    boxes = torch.tensor(
        [[10.0, 20, 40, 90], [0.5, 0.5, 7, 9], [33.1, 64.7, 60.2, 80.9], [96, 128, 159, 159]]
    )
    cases = [0, 0, 1, 1]
    raw = perfect(boxes, cases, 2, (160, 160))
    grid = grid_over(160, 160, torch.tensor(COCO_ANCHORS))
    placed = decode(raw, grid.corner, grid.stride, grid.anchor)
    for case in (0, 1):
        found = placed[case][raw[case, :, 4] > 0]
        own = boxes[torch.tensor(cases) == case]
        assert len(found) == len(own)
        assert iou(own.numpy(), found.numpy()).max(axis=1) == pytest.approx(1, abs=1e-5)


def test_of_two_boxes_in_one_place_the_last_is_trained_on():
    anchors = torch.tensor(COCO_ANCHORS)
    grid = grid_over(96, 96, anchors)
    boxes = torch.tensor([[10.0, 10, 20, 20], [11, 11, 20, 20], [10, 10, 20, 20]])
    wanted = assign(boxes, torch.tensor([0, 0, 1]), grid, anchors, (96, 96))
    assert sorted(wanted.row.tolist()) == [1, 2]


def test_further_anchors_of_like_shape_answer_for_a_box_too_but_never_take_another_box_s_best():
    anchors = torch.tensor(COCO_ANCHORS)
    grid = grid_over(96, 96, anchors)
    first = torch.tensor([[20.0, 20, 20 + 96 * anchors[4, 0], 20 + 96 * anchors[4, 1]]])
    shift = torch.tensor([1.0, 1, 1, 1])
    boxes = torch.cat([first, first + shift])
    boxes[1, 2:] = boxes[1, :2] + 96 * anchors[5]
    cases = torch.tensor([0, 0])
    alone = assign(boxes, cases, grid, anchors, (96, 96))
    more = assign(boxes, cases, grid, anchors, (96, 96), also_from_iou=0.3)
    assert len(alone.row) == 2
    assert len(more.row) > 2
    best = dict(zip(alone.cell.tolist(), alone.row.tolist(), strict=True))
    claims = dict(zip(more.cell.tolist(), more.row.tolist(), strict=True))
    assert {cell: claims[cell] for cell in best} == best
    assert len(claims) == len(more.cell)
    # whoever answers, the target is the box itself
    answer = torch.cat([more.offset.clamp(1e-4, 1 - 1e-4).logit(), more.growth], 1)
    placed = decode(answer, grid.corner[more.cell], grid.stride[more.cell], grid.anchor[more.cell])
    assert torch.allclose(placed, boxes[more.row], atol=0.05)


def test_giou_is_torchvision_s():
    from torchvision.ops import box_iou, generalized_box_iou

    low = torch.rand(50, 2) * 50
    boxes = torch.cat([low, low + torch.rand(50, 2) * 40 + 0.1], dim=1)
    ours = pair_iou(boxes[:, None], boxes[None])
    torch.testing.assert_close(ours[0], box_iou(boxes, boxes), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], generalized_box_iou(boxes, boxes), rtol=1e-5, atol=1e-5)


def test_predictions_that_fit_a_box_are_told_by_image():
    predicted = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60]]]).expand(2, 2, 4)
    fits = fits_a_box(predicted, torch.tensor([[0.0, 0, 10, 8]]), torch.tensor([1]), 0.5)
    assert fits.tolist() == [[False, False], [True, False]]


# loss


@pytest.mark.parametrize("box_loss", ["squared_error", "giou"])
def test_a_perfect_answer_costs_nothing(box_loss):
    system = YOLOv3(YOLOv3Config(box_loss=box_loss, width=0.25, blocks=(0, 0, 0, 0, 0)))
    boxes = torch.tensor([[10.0, 20, 40, 90], [33.1, 64.7, 60.2, 80.9]])
    raw = perfect(boxes, [0, 2], 3, (160, 160))
    losses = system.losses_of(raw, batch_of(boxes, [0, 2]), (160, 160))
    assert set(losses) == {"box", "objectness", "class"}
    for term in losses.values():
        assert term.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("box_loss", ["squared_error", "giou"])
@pytest.mark.parametrize("off", [(1.0, -1, 0, 0), (0, 0, 0.5, -0.5)])
def test_gradients_move_the_answer_towards_the_box(box_loss, off):
    system = YOLOv3(YOLOv3Config(box_loss=box_loss, width=0.25, blocks=(0, 0, 0, 0, 0)))
    box = torch.tensor([[40.0, 40, 60, 70]])
    raw = perfect(box, [0], 1, (160, 160))
    cell = int(raw[0, :, 4].argmax())
    raw[0, cell] += torch.tensor([*off, -50.5, -50.5])  # right and up, or wide and low; unsure
    raw.requires_grad_()
    sum(system.losses_of(raw, batch_of(box, [0]), (160, 160)).values()).backward()
    *moves, sure, named = (-raw.grad[0, cell]).tolist()
    for move, error in zip(moves, off, strict=True):
        assert error * move <= 0
        assert move != 0 or error == 0
    assert sure > 0
    assert named > 0
    others = torch.arange(raw.shape[1]) != cell
    assert (raw.grad[0, others, 4] >= 0).all()
    assert (raw.grad[0, others][:, [0, 1, 2, 3, 5]] == 0).all()


def test_the_squared_error_is_the_papers():
    """(t - t')^2 / 2 for each of four, times 2 - the box's share of the image."""
    system = YOLOv3(YOLOv3Config(width=0.25, blocks=(0, 0, 0, 0, 0)))
    box = torch.tensor([[40.0, 40, 60, 70]])
    raw = perfect(box, [0], 1, (160, 160))
    cell = int(raw[0, :, 4].argmax())
    raw[0, cell, :4] += torch.tensor([0.3, -0.4, 0.3, -0.4])
    loss = system.losses_of(raw, batch_of(box, [0]), (160, 160))["box"]
    assert loss.item() == pytest.approx((0.09 + 0.16) * (2 - 600 / 160**2), rel=1e-4)


def test_images_without_boxes_train_objectness_alone():
    system = YOLOv3(TINY)
    batch = batch_of(torch.zeros(0, 4), []) | {"image": torch.zeros(2, 1, 64, 64)}
    losses = system.losses("detector", batch, TURN)
    assert losses["box"].item() == losses["class"].item() == 0
    assert losses["objectness"].item() > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())


def test_parts_of_a_batch_add_up_to_the_whole():
    system = YOLOv3(TINY).eval()  # batch statistics would differ
    batch = squares(Request(4, 64), 1, 0)
    parts = []
    for first in (0, 2):
        own = (batch["box_case"] // 2) == first // 2
        part = {k: v[own] for k, v in batch.items() if k != "image"}
        part["box_case"] = part["box_case"] - first
        part["image"] = batch["image"][first : first + 2]
        parts.append(sum(system.losses("detector", part, TURN).values()).item())
    whole = sum(system.losses("detector", batch, TURN).values()).item()
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-4)


# detection


@pytest.mark.parametrize("space", [(96, 96), (128, 96), (160, 160)])
def test_detections_are_in_the_image_best_first_and_repeatable(space):
    system = YOLOv3(TINY.model_copy(update={"classes": ("a", "b")})).eval()
    image = torch.rand(2, 1, *space) * 2 - 1
    found = system.detect(image, lowest_score=0.0)
    assert len(found) == 2
    for one, again in zip(found, system.detect(image, lowest_score=0.0), strict=True):
        k = len(one.scores)
        assert 0 < k <= MOST_BOXES
        assert one.boxes.shape == (k, 4)
        assert one.labels.dtype == torch.int64
        assert (one.scores.diff() <= 0).all()
        assert one.boxes.min() >= 0
        assert (one.boxes[:, 2:] <= torch.tensor(space)).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert torch.equal(one.boxes, again.boxes)
        for label in (0, 1):
            own = one.boxes[one.labels == label].double().numpy()
            overlap = iou(own, own)[np.triu_indices(len(own), 1)]
            assert overlap.max(initial=0) <= system.config.nms_iou + 1e-6
    assert all(len(one.scores) == 0 for one in system.detect(image, lowest_score=0.99))


def test_a_score_is_objectness_times_class_probability():
    system = YOLOv3(TINY).eval()
    with torch.no_grad():
        for head in system.network.heads:
            head.predict.weight.zero_()
            head.predict.bias.view(3, 6)[:, 4:] = torch.tensor([0.0, 1.0])
    scores = system.detect(torch.zeros(1, 1, 64, 64))[0].scores
    assert scores[0].item() == pytest.approx(0.5 * torch.tensor(1.0).sigmoid().item())


def test_images_of_another_shape_are_refused():
    system = YOLOv3(TINY).eval()
    with pytest.raises(SettingsError, match="divisible by 32"):
        system.detect(torch.zeros(1, 1, 65, 64))
    with pytest.raises(SettingsError, match="1 channels"):
        system.detect(torch.zeros(1, 3, 64, 64))


# anchors and what the data decide


def test_anchors_recover_planted_sizes_by_rising_area():
    chance = np.random.default_rng(3)
    planted = np.array([[h, w] for h in (0.05, 0.2, 0.7) for w in (0.06, 0.21, 0.72)])
    sizes = planted.repeat(40, axis=0) * chance.uniform(0.98, 1.02, (360, 2))
    found = np.array(anchors_from(sizes, seed=1))
    assert (shape_iou(planted, found).max(axis=1) > 0.97).all()
    assert (np.diff(found.prod(axis=1)) >= 0).all()
    assert anchors_from(sizes, seed=1) == anchors_from(sizes, seed=1)


def test_fewer_sizes_than_anchors_are_covered_exactly():
    sizes = np.array([[0.1, 0.1], [0.2, 0.3], [0.1, 0.1]])
    found = np.array(anchors_from(sizes))
    assert found.shape == (9, 2)
    assert shape_iou(sizes, found).max(axis=1) == pytest.approx(1, abs=1e-4)
    with pytest.raises(DataError, match="no case has a box"):
        anchors_from(np.zeros((0, 2)))


def write_dataset(folder: Path, labels: tuple[str, ...], *, channels: int = 2) -> Dataset:
    with DatasetWriter(folder, patients_from="test", value_range=(0, 255)) as writer:
        for i in range(4):
            values = np.full((channels, 50, 100), i, np.uint8)
            values[0, 0, 0] = len(str(folder)) + len(labels)
            boxes = np.array([[5, 10, 15, 30 + i]] * len(labels), np.float32)
            image = Image(values=values, spacing_mm=None, affine=None, unit="arbitrary")
            case = Case(f"c{i}", f"p{i}", image, None, boxes, labels, {}, Real("test"))
            writer.add(case)
    return Dataset.open(folder)


def test_the_data_decide_channels_classes_and_anchors(tmp_path: Path):
    data = write_dataset(tmp_path / "a", ("tumour", "cyst"))
    config = fitted(YOLOv3Config(width=0.25), {"real": Pool([data])})
    assert config.channels == 2
    assert config.classes == ("cyst", "tumour")
    assert config.width == 0.25
    assert any(a == pytest.approx((0.2, 0.2)) for a in config.anchors)  # 10 of 50, 20 of 100
    assert fitted(config, {"real": Pool([data])}) == config
    assert YOLOv3(config).anchors.shape == (9, 2)


def test_data_that_contradict_the_settings_or_each_other_are_refused(tmp_path: Path):
    first, second = write_dataset(tmp_path / "a", ("x",)), write_dataset(tmp_path / "bb", ("y",))
    with pytest.raises(DataError, match="the classes x; the settings say y"):
        fitted(YOLOv3Config(classes=("y",)), {"real": Pool([first])})
    assert fitted(YOLOv3Config(), {"real": Pool([first, second])}).classes == ("x", "y")
    colour = write_dataset(tmp_path / "ccc", ("x",), channels=3)
    with pytest.raises(DataError, match=r"\[2, 3\] channels"):
        fitted(YOLOv3Config(), {"real": Pool([first, colour])})


def test_settings_that_do_not_agree_are_refused():
    for wrong in (
        {"parts": 5},
        {"side_px": 100},
        {"anchors": ((0.1, 0.1),)},
        {"classes": ()},
        {"weight_decay": 0.1},
    ):
        with pytest.raises(ValidationError):
            YOLOv3Config(**wrong)


def test_presets_have_their_names_and_the_paper_s_settings():
    assert list(PRESETS) == ["paper", "small", "smoke"]
    paper = PRESETS["paper"].system
    assert (paper.side_px, paper.test_side_px, paper.batch_size) == (416, 608, 64)
    assert (paper.learning_rate, paper.optimizer, paper.box_loss) == (1e-3, "adam", "squared_error")
    for preset in PRESETS.values():
        YOLOv3Config.model_validate(preset.system.model_dump())
    assert load_entry("yolov3").system is YOLOv3


def test_the_rate_rises_then_falls():
    system = YOLOv3(TINY)
    rates = [system.rate(step, 80) for step in range(1, 90)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(1)
    assert all(a >= b for a, b in pairwise(rates[4:]))
    assert rates[79] == rates[-1] == pytest.approx(0.01)
    assert YOLOv3(TINY.model_copy(update={"schedule": "constant"})).rate(50, 80) == 1


# learning


def trained(steps: int, *, seed: int = 0, **changes) -> YOLOv3:
    torch.manual_seed(seed)
    system = YOLOv3(TINY.model_copy(update=changes))
    train(system, squares, TrainSettings(steps=steps, threads=1), seed=seed)
    return system


@pytest.mark.parametrize(("box_loss", "steps"), [("squared_error", 90), ("giou", 90)])
def test_finds_squares_on_black_after_seconds(box_loss, steps):
    system = trained(steps, box_loss=box_loss)
    batch = squares(Request(32, 64), 10_000, 0)
    hits = []
    for i, found in enumerate(system.detect(batch["image"], lowest_score=0.1)):
        own = batch["boxes"][batch["box_case"] == i].numpy()
        overlap = iou(own, found.boxes.numpy())
        hits += (overlap.max(axis=1, initial=0) >= 0.5).tolist()
    assert np.mean(hits) > 0.8


@pytest.mark.parametrize("changes", [{}, {"average": 0.9}, {"parts": 2}])
def test_training_is_repeatable(changes):
    first, second = trained(3, **changes), trained(3, **changes)
    assert same(first, second)
