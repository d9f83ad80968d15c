"""3D Faster R-CNN: boxes are proposed from a feature pyramid, then looked at one by one.

    volume (n, c, z, y, x) -> proposals (k, 6) -> boxes (k, 6), scores (k,), labels (k,)

Papers:
  Ren et al. 2015, Faster R-CNN, https://arxiv.org/abs/1506.01497
  Han, thesis, section 6.2.2: windows of 160 x 176 x 224 voxels, batch 2, SGD 1e-3 and after 20,000
  steps 1e-4, shift and zoom to 15 %, the best on validation between steps 30,000 and 40,000
Not stated there, so ours: the network (`pyramid3d.py`), anchors from the training boxes by k-means
over their shapes, three a map; momentum 0.9, weight decay 1e-4; windows about a nodule in 70 % of
cases; overlaps and numbers of samples below, lower than for photographs, as a nodule of five voxels
that is found half a voxel aside overlaps by 0.5. Negatives are drawn from the most confident wrong
answers (Jaeger et al. 2018, https://arxiv.org/abs/1811.08661, pools of hard ones). Whole scans are
looked at window by window (`engine/scans.py`).
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from synthoma.data.batches import Pool
from synthoma.data.boxes import sides
from synthoma.data.windows import Window
from synthoma.engine.settings import Preset, TrainSettings
from synthoma.engine.system import Batch, Detections, Detector, Losses, Player, Request, Turn
from synthoma.errors import DataError
from synthoma.nn.boxes3d import iou, nms, roi_align
from synthoma.tasks.anchors import sizes_from
from synthoma.tasks.pyramid3d import STRIDES, BoxHead, ProposalHead, Pyramid, anchors_over

ANCHORS_A_MAP = 3
#: Anchors (z, y, x) in voxels before data decide, by rising volume.
SIZES = tuple((float(s),) * 3 for s in (4, 5, 7, 9, 11, 14, 18, 24, 32))
#: Sides grow by at most this factor's logarithm, so that none is infinite.
LARGEST_GROWTH = 2.0
#: Deltas are trained in these units: shares of an anchor's side, logarithms of growth.
SCALES = (0.1, 0.1, 0.1, 0.2, 0.2, 0.2)


class RCNN3DConfig(BaseModel):
    """Defaults are Han's, where he says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: Window = Field(Window(), description="Windows in training; in test of the same side.")
    overlap: float = Field(0.25, ge=0, lt=1, description="Of neighbouring windows in test.")
    channels: int = Field(1, ge=1, description="Image channels; the data decide.")
    classes: tuple[str, ...] | None = Field(None, description="Of boxes; the data decide.")
    anchors: tuple[tuple[float, float, float], ...] | None = Field(
        None, description="Nine (z, y, x) in voxels. Unset: k-means of the training boxes."
    )
    width: int = Field(32, ge=1, description="Feature maps at half the side, then doubled.")
    blocks: int = Field(2, ge=1, description="Residual blocks a stage.")
    maps: int = Field(64, ge=1, description="Of the pyramid.")
    bins: int = Field(7, ge=1, description="Of a region along each axis.")
    hidden: int = Field(256, ge=1, description="Units of the box head's layers.")
    batch_size: int = Field(2, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(1e-4, ge=0)
    decay_steps: int = Field(20_000, ge=0, description="Rate times 0.1 from here on; 0: never.")
    anchor_iou: tuple[float, float] = Field(
        (0.1, 0.4), description="Anchors below the first are of nothing, from the second of a box."
    )
    anchor_samples: int = Field(64, ge=2, description="Anchors a volume that are learnt from.")
    proposals: int = Field(200, ge=1, description="A volume, after suppression.")
    proposal_nms_iou: float = Field(0.5, gt=0, le=1)
    region_iou: float = Field(0.3, gt=0, lt=1, description="From here a proposal is of a box.")
    region_samples: int = Field(64, ge=2, description="Proposals a volume that are learnt from.")
    positive_share: float = Field(0.33, gt=0, lt=1, description="Of samples, at most.")
    hard_pool: int = Field(
        20, ge=1, description="Negatives are drawn from so many times as many, the most confident."
    )
    nms_iou: float = Field(0.2, gt=0, le=1, description="Of two boxes the better one stays.")
    most_boxes: int = Field(100, ge=1, description="Detections a volume.")

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        if any(n % STRIDES[-1] for n in self.window.space):
            raise ValueError(f"window.space {self.window.space}; allowed: multiples of 16")
        if self.anchors is not None and len(self.anchors) != ANCHORS_A_MAP * len(STRIDES):
            raise ValueError(f"anchors must be nine (z, y, x), not {len(self.anchors)}")
        if not 0 < self.anchor_iou[0] <= self.anchor_iou[1] < 1:
            raise ValueError(
                f"anchor_iou {self.anchor_iou}; allowed: two numbers, rising, in (0, 1)"
            )
        return self


class RCNN3D(Detector):
    """The detector. `fitted(config, pools)` fills in what the data decide."""

    anchors: Tensor
    scales: Tensor

    def __init__(self, config: RCNN3DConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = config.classes or ("lesion",)
        self.pyramid = Pyramid(config.channels, config.width, config.blocks, config.maps)
        self.propose = ProposalHead(config.maps, ANCHORS_A_MAP)
        self.look = BoxHead(config.maps, config.bins, config.hidden, len(self.classes))
        sizes = torch.tensor(config.anchors or SIZES, dtype=torch.float32)
        self.register_buffer("anchors", sizes.unflatten(0, (-1, ANCHORS_A_MAP)), persistent=False)
        self.register_buffer("scales", torch.tensor(SCALES), persistent=False)

    def request(self, step: int) -> Request:
        """Windows of volumes and the boxes in them."""
        return Request(
            self.config.batch_size,
            self.config.window.space[0],
            ("image", "boxes"),
            window=self.config.window,
        )

    def players(self, step: int) -> tuple[Player, ...]:
        """One."""
        config = self.config
        weights = list(self.parameters())
        if config.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                weights,
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        else:
            optimizer = torch.optim.AdamW(
                weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        return (Player("detector", (self,), optimizer, rate=self.rate),)

    def rate(self, step: int, steps: int) -> float:
        """A rise over 100 steps, then 1, and a tenth from `decay_steps` on."""
        late = self.config.decay_steps and step > self.config.decay_steps
        return min(1.0, step / 100) * (0.1 if late else 1.0)

    def losses(self, player: str, batch: Batch, turn: Turn) -> Losses:
        """Of proposals and of regions: is there something, and where."""
        volume, config = batch["image"], self.config
        maps = self.pyramid(volume)
        logits, deltas = (t.float() for t in self.propose(maps))
        anchors, _ = anchors_over(space_of(volume), self.anchors)
        boxes = batch["boxes"].to(anchors)
        losses: dict[str, list[Tensor]] = {k: [] for k in ("objectness", "proposal")}
        regions, of_volume, kinds, targets = [], [], [], []
        for i in range(len(volume)):
            own = boxes[batch["box_case"] == i]
            kind = batch["box_class"][batch["box_case"] == i] + 1
            best, which = overlap(anchors, own)
            positive = best >= config.anchor_iou[1]
            if len(own):  # the anchors that fit a box best answer for it, however badly they do
                positive |= (iou(anchors, own) >= best_of_box(anchors, own) - 1e-6).any(dim=1)
            up, down = self.samples(
                positive, best < config.anchor_iou[0], logits[i].detach(),
                config.anchor_samples, turn,
            )  # fmt: skip
            rows = torch.cat([up, down])
            wanted = positive[rows].to(logits)
            error = F.binary_cross_entropy_with_logits(logits[i, rows], wanted, reduction="sum")
            losses["objectness"].append(error / max(1, len(rows)))
            losses["proposal"].append(
                self.distance(deltas[i, up], encode(anchors[up], own[which[up]]), len(rows))
            )
            proposed, _ = self.best_proposals(anchors, logits[i].detach(), deltas[i].detach(),
                                              space_of(volume))  # fmt: skip
            proposed = torch.cat([proposed, own])
            best, which = overlap(proposed, own)
            up, down = self.samples(
                best >= config.region_iou, best < config.region_iou, None,
                config.region_samples, turn,
            )  # fmt: skip
            rows = torch.cat([up, down])
            regions.append(proposed[rows])
            of_volume.append(torch.full((len(rows),), i, device=rows.device))
            kinds.append(torch.cat([kind[which[up]], torch.zeros_like(down)]))
            targets.append(encode(proposed[up], own[which[up]]))
        region, label = torch.cat(regions), torch.cat(kinds)
        named, mended = self.answers(maps, region, torch.cat(of_volume))
        mean = {name: torch.stack(terms).mean() for name, terms in losses.items()}
        return mean | {
            "class": F.cross_entropy(named, label),
            "box": self.distance(mended[label > 0], torch.cat(targets), len(label)),
        }

    def samples(
        self, positive: Tensor, negative: Tensor, logits: Tensor | None, n: int, turn: Turn
    ) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " q"]]:
        """Rows to learn from: some of the positive ones, and negative ones, of which the most
        confident are drawn from where `logits` are given."""
        up, down = (rows.nonzero()[:, 0] for rows in (positive, negative & ~positive))
        share = int(n * self.config.positive_share)
        up = chosen(up, share, turn.generator)
        wanted = min(n - len(up), max(1, len(up)) * 3)
        if logits is not None and len(down) > wanted * self.config.hard_pool:
            hardest = logits[down].topk(wanted * self.config.hard_pool).indices
            down = down[hardest]
        return up, chosen(down, wanted, turn.generator)

    def distance(self, found: Tensor, wanted: Tensor, n: int) -> Tensor:
        """Smooth L1 of deltas, summed over boxes, over the number of samples."""
        error = F.smooth_l1_loss(found, wanted / self.scales, beta=1.0, reduction="sum")
        return error / max(1, n)

    def best_proposals(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, space: tuple[int, int, int]
    ) -> tuple[Float[Tensor, "k 6"], Float[Tensor, " k"]]:
        """The surest proposals of a volume that none surer covers."""
        n = self.config.proposals
        scores, rows = logits.topk(min(5 * n, len(logits)))
        boxes = cut(decode(anchors[rows], deltas[rows] * self.scales), space)
        wide = (boxes[:, 3:] - boxes[:, :3]).amin(dim=1) >= 1
        boxes, scores = boxes[wide], scores[wide]
        kept = nms(boxes, scores, self.config.proposal_nms_iou)[:n]
        return boxes[kept], scores[kept]

    def answers(
        self, maps: list[Tensor], regions: Float[Tensor, "m 6"], of_volume: Int64[Tensor, " m"]
    ) -> tuple[Tensor, Tensor]:
        """Class logits and deltas of regions, each read from the map of its size."""
        bins, side = (self.config.bins,) * 3, (regions[:, 3:] - regions[:, :3]).prod(1) ** (1 / 3)
        # a region of 3 cells a side or more of a map goes to the next coarser one
        level = (side / (3 * STRIDES[0])).clamp_min(1).log2().long().clamp_max(len(STRIDES) - 1)
        pooled = regions.new_zeros(len(regions), self.config.maps, *bins)
        for k, stride in enumerate(STRIDES):
            rows = (level == k).nonzero()[:, 0]
            if len(rows):
                read = roi_align(
                    maps[k], regions[rows], of_volume[rows], stride=(stride,) * 3, bins=bins
                )
                pooled = pooled.index_copy(0, rows, read.to(pooled))
        logits, deltas = self.look(pooled)
        return logits.float(), deltas.float()

    @torch.no_grad()
    def detect(
        self, image: Float[Tensor, "n c z y x"], *, lowest_score: float = 0.001
    ) -> list[Detections]:
        """Boxes in voxels of the volumes, whose sides are multiples of 16. Suppression is within a
        class; boxes are cut at the volume's faces."""
        maps, space = self.pyramid(image), space_of(image)
        logits, deltas = (t.float() for t in self.propose(maps))
        anchors, _ = anchors_over(space, self.anchors)
        found = []
        for i in range(len(image)):
            boxes, _ = self.best_proposals(anchors, logits[i], deltas[i], space)
            of_volume = torch.full((len(boxes),), i, device=boxes.device)
            named, mended = self.answers(maps, boxes, of_volume)
            boxes = cut(decode(boxes, mended * self.scales), space)
            scores = named.softmax(dim=1)[:, 1:]
            row, label = (scores >= lowest_score).nonzero(as_tuple=True)
            found.append(
                surest(
                    Detections(boxes[row], scores[row, label], label),
                    self.config.nms_iou,
                    self.config.most_boxes,
                )
            )
        return found


def surest(found: Detections, nms_iou: float, most: int) -> Detections:
    """The detections that no surer one of their class covers, best first."""
    kept = nms(found.boxes, found.scores, nms_iou, labels=found.labels)[:most]
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def space_of(volume: Tensor) -> tuple[int, int, int]:
    """Voxels along z, y, x."""
    z, y, x = volume.shape[2:]
    return z, y, x


def overlap(
    boxes: Float[Tensor, "k 6"], own: Float[Tensor, "m 6"]
) -> tuple[Float[Tensor, " k"], Int64[Tensor, " k"]]:
    """With which annotated box each overlaps most, and how much."""
    if not len(own):
        return boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.long)
    best, which = iou(boxes, own).max(dim=1)
    return best, which


def best_of_box(anchors: Float[Tensor, "k 6"], own: Float[Tensor, "m 6"]) -> Float[Tensor, " m"]:
    """The overlap of each annotated box with the anchor that fits it best, above 0."""
    return iou(anchors, own).amax(dim=0).clamp_min(1e-5)


def chosen(rows: Int64[Tensor, " k"], n: int, generator: torch.Generator) -> Int64[Tensor, " j"]:
    """At most n of the rows, by chance."""
    if len(rows) <= n:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:n].to(rows.device)]


def encode(boxes: Float[Tensor, "k 6"], own: Float[Tensor, "k 6"]) -> Float[Tensor, "k 6"]:
    """Deltas that `decode` makes these boxes of: shifts in sides, logarithms of growth."""
    side, wanted = (boxes[:, 3:] - boxes[:, :3]), (own[:, 3:] - own[:, :3])
    shift = ((own[:, :3] + own[:, 3:]) - (boxes[:, :3] + boxes[:, 3:])) / 2 / side
    return torch.cat([shift, (wanted / side).clamp_min(1e-3).log()], dim=1)


def decode(boxes: Float[Tensor, "k 6"], deltas: Float[Tensor, "k 6"]) -> Float[Tensor, "k 6"]:
    """Boxes moved and grown by their deltas."""
    side = boxes[:, 3:] - boxes[:, :3]
    middle = (boxes[:, :3] + boxes[:, 3:]) / 2 + deltas[:, :3] * side
    half = side * deltas[:, 3:].clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp() / 2
    return torch.cat([middle - half, middle + half], dim=1)


def cut(boxes: Float[Tensor, "k 6"], space: tuple[int, int, int]) -> Float[Tensor, "k 6"]:
    """Boxes cut at the faces of a volume."""
    limit = torch.tensor(space * 2, dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp_min(0).minimum(limit)


def fitted(config: RCNN3DConfig, pools: dict[str, Pool]) -> RCNN3DConfig:
    """The settings with what the data decide: channels, classes, anchors.

    Raises:
        DataError: The data are not volumes, or have no box.
    """
    pool = pools["real"]
    folders = ", ".join(str(dataset.folder) for dataset in pool.datasets)
    if pool.datasets[0].about["dimensions"] != 3:
        raise DataError(f"{folders}: rcnn3d finds boxes in volumes; these are slices")
    changes: dict[str, object] = {"channels": pool.channels, "classes": tuple(pool.box_labels)}
    if config.anchors is None:
        found = [sides(d.boxes(i)) for d in pool.datasets for i in range(len(d)) if len(d.boxes(i))]
        if not found:
            raise DataError(f"{folders}: no case has a box to learn anchors from")
        own = sizes_from(torch.cat([torch.from_numpy(s) for s in found]).numpy())
        changes["anchors"] = tuple(tuple(float(side) for side in size) for size in own)
    return RCNN3DConfig.model_validate(dict(config) | changes)


SYSTEM = RCNN3D

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        RCNN3DConfig(),
        TrainSettings(
            steps=40_000,
            checkpoint_every=1_000,
            validate_every=1_000,
            validate_from=30_000,
            keep_best="sensitivity_iou25",
        ),
    ),
    "small": Preset(
        RCNN3DConfig(
            window=Window(space=(64, 64, 64), flip=True),
            width=16,
            maps=32,
            bins=4,
            hidden=128,
            optimizer="adamw",
            learning_rate=1e-3,
            decay_steps=1_200,
            proposals=60,
            # with those of `paper` no proposal was of a nodule in the first 1,000 steps
            anchor_iou=(0.1, 0.3),
            region_iou=0.2,
        ),
        TrainSettings(
            steps=1_500,
            precision="bf16",
            checkpoint_every=500,
            validate_every=500,
            validate_from=1_000,
            keep_best="sensitivity_iou25",
        ),
    ),
    "smoke": Preset(
        RCNN3DConfig(
            window=Window(space=(32, 32, 32), flip=True),
            width=8,
            blocks=1,
            maps=16,
            bins=3,
            hidden=64,
            optimizer="adamw",
            learning_rate=2e-3,
            decay_steps=250,
            proposals=30,
            anchor_samples=32,
            region_samples=32,
        ),
        TrainSettings(steps=300, checkpoint_every=150, log_every=25),
    ),
}
