"""YOLOv3: one look at the image, three scales, nine anchors, boxes with scores.

    image (n, c, h, w) -> raw (n, cells, 5 + classes) -> boxes (k, 4), scores (k,), labels (k,)

Papers:
  Redmon and Farhadi 2018, YOLOv3: an incremental improvement, https://arxiv.org/abs/1804.02767
  Han et al. 2019, Learning more with less (CPGGAN for brain metastases), section 2.3: training
  at 416 and testing at 608 pixels, batch 64, Adam 1e-3, classic augmentation
Differs from the papers: one grey channel, where Han et al. do not say; anchors from the training
boxes (YOLOv3: COCO's); one training side (YOLOv3: 320 to 608 in turn); no pre-trained backbone
unless `read_weights` is called. The squared error is that of the four t, as the YOLOv3 paper says
(its authors' program takes t_x and t_y after the sigmoid); where a box's centre is within 1 % of
its cell's edge, the truth is cut there, since its t is infinite at the edge. Boxes weigh 2 - their
share of the image, as in that program. Predictions over IoU 0.5 with a box are no false alarms, as
in the paper (yolov3.cfg says 0.7). How strong the augmentation is, Han et al. do not say.
GIoU (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630), AdamW, cosine rate, averaged
weights and an objectness prior (Lin et al. 2017, RetinaNet) are settings, off by default.
"""

import math
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from synthoma.data.batches import Pool
from synthoma.data.classic import Classic
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import Batch, Detections, Detector, Losses, Player, Request, Turn
from synthoma.errors import DataError
from synthoma.tasks.anchors import (
    COCO_ANCHORS,
    anchors_from,
    assign,
    box_sizes,
    decode,
    fits_a_box,
    grid_over,
    pair_iou,
)
from synthoma.tasks.darknet53 import BOX_VALUES, YOLOv3Network, read_weights

MOST_BOXES = 300
"""Detections an image, at most."""
MOST_CANDIDATES = 3_000
"""Scores an image that enter suppression, best first."""
EDGE = 0.01
"""How near to its cell's edge, as a share of the cell, the squared error asks a centre to be."""


class YOLOv3Config(BaseModel):
    """Defaults are Han et al. 2019's (file 001), section 2.3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side_px: int = Field(416, ge=32, multiple_of=32, description="Side in training.")
    test_side_px: int = Field(608, ge=32, multiple_of=32, description="Side in validation, test.")
    channels: int = Field(1, ge=1, description="Image channels; the data decide.")
    classes: tuple[str, ...] | None = Field(
        None, description="Names of the box classes; the data decide. Unset: one."
    )
    anchors: tuple[tuple[float, float], ...] | None = Field(
        None,
        description="Nine (height, width) as shares of the side. Unset: k-means of the training "
        "boxes; a network that has seen no data takes YOLOv3's own, from COCO.",
    )
    width: float = Field(1.0, gt=0, le=4, description="Times the channels of Darknet-53.")
    blocks: tuple[int, int, int, int, int] = Field(
        (1, 2, 8, 8, 4), description="Residual blocks of each stage."
    )
    norm_momentum: float = Field(
        0.01, gt=0, le=1, description="Share of a batch in the running mean and variance."
    )
    batch_size: int = Field(64, ge=1)
    parts: int = Field(8, ge=1, description="Parts that a batch is computed in; divides it.")
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="Of convolutions, with adamw.")
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises from 0.")
    average: float = Field(
        0.0, ge=0, lt=1, description="Decay of the moving average of the weights; 0: none."
    )
    box_loss: Literal["squared_error", "giou"] = "squared_error"
    box_weight: float = Field(1.0, gt=0, description="Times the box loss.")
    also_from_iou: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Further anchors whose shape overlaps a box's by this much answer for it too; "
        "1: the best one alone, as in the paper.",
    )
    ignore_iou: float = Field(
        0.5, gt=0, le=1, description="A prediction that fits a box this well is no false alarm."
    )
    objectness_prior: float = Field(
        0.5, gt=0, lt=1, description="Objectness that a fresh network answers everywhere."
    )
    augment: Classic | None = Field(
        Classic(brightness=0.1, contrast=0.2, gamma=0.2),
        description="Classic augmentation in training, geometry and intensity.",
    )
    nms_iou: float = Field(
        0.45, gt=0, le=1, description="Of two boxes that overlap more, the better one stays."
    )

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        if self.batch_size % self.parts:
            raise ValueError(f"parts ({self.parts}) must divide batch_size ({self.batch_size})")
        if self.anchors is not None and (
            len(self.anchors) != len(COCO_ANCHORS) or min(min(a) for a in self.anchors) <= 0
        ):
            raise ValueError(f"anchors must be nine positive (height, width), not {self.anchors}")
        if self.classes == ():
            raise ValueError("classes must name at least one class")
        if min(self.blocks) < 0:
            raise ValueError(f"blocks cannot be negative: {self.blocks}")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("weight_decay needs optimizer adamw")
        return self


def fitted(config: YOLOv3Config, pools: dict[str, Pool]) -> YOLOv3Config:
    """`config` with what the training data decide: channels, classes, anchors.

    Raises:
        DataError: The data are not 2D, have no box, other classes than `config` names, or
            datasets differ in their channels.
    """
    pool = pools["real"]
    folders = ", ".join(str(dataset.folder) for dataset in pool.datasets)
    dimensions = pool.datasets[0].about["dimensions"]
    if dimensions != 2:
        raise DataError(f"{folders}: YOLOv3 finds boxes in 2D images; these are {dimensions}D")
    channels = {int(dataset.values(0).shape[0]) for dataset in pool.datasets}
    if len(channels) > 1:
        raise DataError(f"{folders}: images of {sorted(channels)} channels in one training set")
    classes = tuple(pool.box_labels)
    if config.classes not in (None, classes):
        raise DataError(
            f"{folders}: their boxes have the classes {', '.join(classes)}; the settings say "
            f"{', '.join(config.classes or ())}. Leave `classes` unset to take the data's"
        )
    anchors = config.anchors or anchors_from(box_sizes(pool))
    return YOLOv3Config.model_validate(
        dict(config) | {"channels": channels.pop(), "classes": classes, "anchors": anchors}
    )


class YOLOv3(Detector):
    """Darknet-53 with three heads. `fitted(config, pools)` fills in what the data decide."""

    anchors: Tensor

    def __init__(self, config: YOLOv3Config) -> None:
        super().__init__()
        self.config = config
        self.network = YOLOv3Network(
            channels=config.channels,
            classes=len(config.classes or ("lesion",)),
            width=config.width,
            blocks=config.blocks,
            momentum=config.norm_momentum,
        )
        self.network.expect(config.objectness_prior)
        anchors = torch.tensor(config.anchors or COCO_ANCHORS, dtype=torch.float32)
        self.register_buffer("anchors", anchors, persistent=False)

    def read_weights(self, path: Path, *, part: Literal["all", "backbone"] = "all") -> int:
        """Start from a Darknet `.weights` file; see `darknet53.read_weights`."""
        return read_weights(self.network, path, part=part)

    def request(self, step: int) -> Request:
        return Request(
            size=self.config.batch_size,
            side_px=self.config.side_px,
            fields=("image", "boxes"),
            augment=self.config.augment,
            parts=self.config.parts,
        )

    def players(self, step: int) -> tuple[Player, ...]:
        config = self.config
        kernels = [p for p in self.network.parameters() if p.ndim == 4]
        others = [p for p in self.network.parameters() if p.ndim != 4]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        optimizer = kind(
            [
                {"params": kernels, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=kernels[0].device.type in ("cpu", "cuda"),
        )
        decay = config.average
        return (
            Player(
                "detector",
                (self.network,),
                optimizer,
                rate=self.rate,
                average=(lambda step: min(decay, (1 + step) / (10 + step))) if decay else None,
            ),
        )

    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate at a step of so many: a linear rise, then constant or a half
        cosine that ends at 1 %."""
        config = self.config
        rise = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
        if config.schedule == "constant":
            return rise
        span = max(1, steps - config.warmup_steps)
        done = min(1.0, max(0.0, (step - config.warmup_steps) / span))
        return rise * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Sums over an image's cells, averaged over images: "box", "objectness", "class"."""
        image = batch["image"]
        raw = self.network(image)
        return self.losses_of(raw, batch, (image.shape[2], image.shape[3]))

    def losses_of(
        self, raw: Float[Tensor, "n cells values"], batch: Batch, space: tuple[int, int]
    ) -> Losses:
        """The losses of a network's answer to images of size `space`; float32 throughout."""
        config = self.config
        boxes, box_case = batch["boxes"].to(raw), batch["box_case"]
        grid = grid_over(*space, self.anchors)
        wanted = assign(
            boxes, box_case, grid, self.anchors, space, also_from_iou=config.also_from_iou
        )
        at = (wanted.case, wanted.cell)
        found, own = raw[at], boxes[wanted.row]
        if config.box_loss == "giou":
            placed = decode(
                found,
                grid.corner[wanted.cell],
                grid.stride[wanted.cell],
                grid.anchor[wanted.cell],
            )
            error = 1 - pair_iou(placed, own)[1]
        else:
            # the answer that `decode` turns into this box
            answer = torch.cat([wanted.offset.clamp(EDGE, 1 - EDGE).logit(), wanted.growth], 1)
            error = (found[:, :4] - answer).square().sum(1) / 2
        share = (own[:, 2:] - own[:, :2]).prod(1) / (space[0] * space[1])
        with torch.no_grad():
            is_object = torch.zeros(raw.shape[:2], device=raw.device)
            is_object[at] = 1.0
            placed_all = decode(raw, grid.corner, grid.stride, grid.anchor)
            counts = (is_object > 0) | ~fits_a_box(placed_all, boxes, box_case, config.ignore_iou)
        objectness = F.binary_cross_entropy_with_logits(
            raw[..., 4], is_object, weight=counts.float(), reduction="sum"
        )
        kinds = F.one_hot(batch["box_class"][wanted.row], self.network.classes).to(raw)
        named = F.binary_cross_entropy_with_logits(found[:, BOX_VALUES:], kinds, reduction="sum")
        n = len(raw)
        return {
            "box": config.box_weight * (error * (2 - share)).sum() / n,
            "objectness": objectness / n,
            "class": named / n,
        }

    @torch.no_grad()
    def detect(
        self, image: Float[Tensor, "n c h w"], *, lowest_score: float = 0.001
    ) -> list[Detections]:
        """Boxes in pixels of `image`, whose sides are divisible by 32.

        A score is objectness x class probability, also where there is one class. Boxes are cut
        at the image's edges; suppression is within a class. At most `MOST_BOXES` an image; equal
        scores keep the order of the network's cells.
        """
        raw = self.network(image).float()
        space = (image.shape[2], image.shape[3])
        grid = grid_over(*space, self.anchors)
        limit = torch.tensor(space * 2, dtype=torch.float32, device=raw.device)
        boxes = decode(raw, grid.corner, grid.stride, grid.anchor).clamp_min(0).minimum(limit)
        scores = raw[..., 4:5].sigmoid() * raw[..., BOX_VALUES:].sigmoid()
        return [
            best_of(boxes[i], scores[i], lowest_score, self.config.nms_iou)
            for i in range(len(image))
        ]


def best_of(
    boxes: Float[Tensor, "cells 4"],
    scores: Float[Tensor, "cells classes"],
    lowest_score: float,
    nms_iou: float,
) -> Detections:
    """The candidates of one image that no better one of the same class covers, best first."""
    from torchvision.ops import nms  # noqa: PLC0415 (seconds of imports)

    cell, label = (scores >= lowest_score).nonzero(as_tuple=True)
    score, order = scores[cell, label].sort(descending=True, stable=True)
    score, order = score[:MOST_CANDIDATES], order[:MOST_CANDIDATES]
    candidates, label = boxes[cell[order]], label[order]
    kept = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    for kind in label.unique():
        rows = (label == kind).nonzero()[:, 0]
        kept[rows[nms(candidates[rows], score[rows], nms_iou)]] = True
    rows = kept.nonzero()[:MOST_BOXES, 0]
    return Detections(candidates[rows], score[rows], label[rows])


_SMALL = YOLOv3Config(
    side_px=160,
    test_side_px=160,
    width=0.25,
    blocks=(1, 1, 2, 2, 1),
    norm_momentum=0.1,
    batch_size=8,
    parts=1,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=5e-4,
    schedule="cosine",
    warmup_steps=100,
    box_loss="giou",
    objectness_prior=0.01,
    also_from_iou=0.3,
    average=0.99,
)

SYSTEM = YOLOv3

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        YOLOv3Config(),
        TrainSettings(
            steps=240_000,
            checkpoint_every=1_000,
            validate_every=2_000,
            validate_from=96_000,
            keep_best="sensitivity_iou50",
        ),
    ),
    "small": Preset(
        _SMALL,
        TrainSettings(
            steps=3_000,
            precision="bf16",
            checkpoint_every=500,
            validate_every=500,
            validate_from=1_500,
            keep_best="ap_iou50",
        ),
    ),
    "smoke": Preset(
        _SMALL.model_copy(
            update={
                "side_px": 96,
                "test_side_px": 96,
                "warmup_steps": 20,
            }
        ),
        TrainSettings(steps=400, precision="bf16", checkpoint_every=200, log_every=25),
    ),
}
