"""Lesions cut from training slices and pasted into others: the cheap rival of every generator.

lesion under its soft ellipse -> turned, zoomed -> another slice (c, y, x) and its boxes

Paper: Dwibedi et al. 2017, "Cut, paste and learn", https://arxiv.org/abs/1708.01642
Differs from the paper: there are no masks, so the cut is the ellipse inscribed in the box; the
lesion takes on the brightness of where it lands; half of the lesions keep their place in the head.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from pydantic import BaseModel, ConfigDict, Field

from synthoma.data.batches import Pool, signed_unit
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.split import all_to_train, check_no_leak
from synthoma.data.store import DatasetWriter
from synthoma.errors import DataError


class PasteConfig(BaseModel):
    """How lesions are cut and where they land."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    second: float = Field(0.2, ge=0, le=1, description="Share of images with a second lesion.")
    keep_place: float = Field(
        0.5, ge=0, le=1, description="Share of lesions that keep their place in the head."
    )
    shift: float = Field(
        0.08, ge=0, le=1, description="By which a kept place moves, as a share of the head."
    )
    turn_degrees: float = Field(15, ge=0, le=180, description="Turned by up to this, either way.")
    zoom: float = Field(1.25, ge=1, le=4, description="Scaled by 1 / zoom to zoom.")
    brightness: float = Field(0.15, ge=0, lt=1, description="Times 1 - brightness to 1 + this.")
    feather: float = Field(
        0.3, gt=0, le=2, description="Width of the soft edge, in radii of the lesion."
    )
    least_feather_px: float = Field(1.5, gt=0, description="Of the soft edge, whatever the radius.")
    air: float = Field(0.1, ge=0, lt=1, description="Share of the value range up to which is air.")
    tissue: float = Field(
        0.9, ge=0, le=1, description="Least share of the box where it lands that is tissue."
    )
    depth: float = Field(
        0.08,
        ge=0,
        lt=0.5,
        description="Least distance of a new place from air and bone, as a "
        "share of the head: centres are not in the scalp.",
    )
    tries: int = Field(200, ge=1, description="Places tried for an image, before it is an error.")


#: The settings of `paste` unless others are given.
PASTE = PasteConfig()

#: Places tried on a background before another one is taken.
TRIES_A_BACKGROUND = 20

#: Most by which a lesion is made brighter or darker to suit its new surroundings.
MOST_GAIN = 1.4


@dataclass(frozen=True, eq=False)
class Stock:
    """What images are made of."""

    training: Dataset
    grounds: Dataset
    """Backgrounds: cases of `training`, or of another set."""
    donors: list[int]
    """Cases of `training` with a lesion to cut."""
    donors_by_label: dict[str | None, list[int]]
    settings: PasteConfig
    run: str
    seed: int
    trained_on: tuple[str, ...]


def paste(
    training: Dataset,
    out: Path,
    *,
    n: int,
    seed: int,
    onto: Dataset | None = None,
    settings: PasteConfig = PASTE,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Paste lesions of `training` into other slices of it, `n` images into the folder `out`.

    Image i is a function of the datasets, the settings, the seed and i alone; its boxes are the
    background's own and the pasted ones, which its origin repeats as "painted".

    Args:
        training: Prepared 2D cases, any selection; those with boxes give lesions.
        onto: Backgrounds in place of those of `training`, such as tumour-free slices: what was
            never annotated in it is taken to be free of lesions.

    Raises:
        DataError: No case has a lesion to cut, a set is not prepared or not 2D, channels differ,
            or no place is found for a lesion.
        LeakError: A validation or test patient of the training folder is among the cases.
    """
    stock = take_stock(training, onto, settings, seed)
    with DatasetWriter(
        out,
        patients_from="synthetic: one an image",
        value_range=(0, 255),
        splits=all_to_train,
        about={"seed": seed, "paste": settings.model_dump(mode="json")},
    ) as writer:
        for i in range(n):
            round_, k = divmod(i, len(stock.grounds))
            if k == 0:  # every background once a round
                dealt = np.random.default_rng([seed, round_]).permutation(len(stock.grounds))
            writer.add(make(stock, i, first=int(dealt[k])))
            progress(i + 1, n)
    return Dataset.open(out)


def take_stock(training: Dataset, onto: Dataset | None, settings: PasteConfig, seed: int) -> Stock:
    """Check what is given, and find what can be cut and what can be pasted into."""
    parts = [training] if onto is None else [training, onto]
    for part in parts:
        check_prepared(part)
    seen = sorted(Pool(parts).patients)
    check_no_leak(training.splits, seen, what="pasting")
    donors = np.flatnonzero([len(training.boxes(i)) > 0 for i in range(len(training))])
    if not len(donors):
        raise DataError(f"{training.folder}: no case has a box to cut a lesion from")
    grounds = onto
    if grounds is None:  # what was never annotated may hide a lesion without a box
        grounds = training.take(
            np.flatnonzero([training[i].boxes is not None for i in range(len(training))])
        )
    channels = {part.values(0).shape[0] for part in parts}
    if len(channels) > 1:
        raise DataError(
            f"{parts[1].folder}: {parts[1].values(0).shape[0]} channels, but "
            f"{training.folder} has {training.values(0).shape[0]}"
        )
    by_label: dict[str | None, list[int]] = {}
    for donor in donors.tolist():
        by_label.setdefault(training.label(donor), []).append(donor)
    facts = {
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "data": [
            [part.about["digest"], hashlib.sha256(part.rows.tobytes()).hexdigest()]
            for part in parts
        ],
    }
    text = json.dumps(facts, sort_keys=True)
    run = f"cut-and-paste-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Stock(training, grounds, donors.tolist(), by_label, settings, run, seed, tuple(seen))


def check_prepared(dataset: Dataset) -> None:
    """Refuse what cannot be pasted into."""
    if not len(dataset):
        raise DataError(f"{dataset.folder}: no case is selected")
    if dataset.about["dimensions"] != 2:
        raise DataError(f"{dataset.folder}: volumes; allowed: 2D images (data import --slices)")
    if dataset.about["value_range"] is None:
        raise DataError(f"{dataset.folder}: not prepared; run `synthoma data prepare` first")


def make(stock: Stock, i: int, *, first: int) -> Case:
    """The i-th image.

    Args:
        first: The background that is tried first.
    """
    chance = np.random.default_rng([stock.seed, i, 1])
    settings, grounds = stock.settings, stock.grounds
    for attempt in range(settings.tries):
        if attempt % TRIES_A_BACKGROUND == 0:
            place = int(chance.integers(len(grounds))) if attempt else first
            ground, own, bare = grounds[place], grounds.boxes(place), look(grounds, place, settings)
            # an image with a lesion keeps its label, so it is given a lesion of the same label
            donors = stock.donors_by_label.get(ground.label, []) if len(own) else stock.donors
        if not donors:
            continue
        donor_place = donors[int(chance.integers(len(donors)))]
        donor = stock.training[donor_place]
        if donor.case_id == ground.case_id or donor.boxes is None:
            continue
        source, target = look(stock.training, donor_place, settings), bare
        wanted = 2 if chance.random() < settings.second else 1
        painted, which = own[:0], []
        for _ in range(wanted):  # two of one patient: metastases of a head look alike
            k = int(chance.integers(len(donor.boxes)))
            if not alone(donor.boxes, k, settings):
                break
            taken = np.vstack([own, painted])
            pose = choose_pose(source, donor.boxes[k], target, taken, settings, chance)
            if pose is None:
                break
            target = blend(source, donor.boxes[k], target, pose, settings)
            painted = np.vstack([painted, pose.box])
            which.append(k)
        if which:
            return finish(stock, i, ground, donor, target, painted, which)
    raise DataError(
        f"{stock.training.folder}: no place was found for a lesion in {settings.tries} tries; "
        "use other backgrounds, or a lower `tissue`"
    )


def finish(
    stock: Stock,
    i: int,
    ground: Case,
    donor: Case,
    target: "Look",
    painted: Float32[np.ndarray, "p 4"],
    which: list[int],
) -> Case:
    """The case of a painted image."""
    own = ground.boxes if ground.boxes is not None else painted[:0]
    name = f"{stock.run}/seed-{stock.seed}/{i:06}"
    told = {
        "background": ground.case_id,
        "lesion_of": donor.case_id,
        "painted": [[float(str(edge)) for edge in box] for box in painted],
    }
    return Case(
        case_id=name,
        patient_id=name,
        image=Image(np.rint(target.signal.clip(0, 1) * 255).astype(np.uint8)),
        label=donor.label,
        boxes=np.vstack([own, painted]),
        box_labels=(*ground.box_labels, *(donor.box_labels[k] for k in which))
        if donor.box_labels
        else (),
        origin=Synthetic(stock.run, stock.seed, told, stock.trained_on),
    )


@dataclass(frozen=True, eq=False)
class Look:
    """An image as cutting and pasting see it."""

    signal: Float32[np.ndarray, "c y x"]
    """From 0 to 1."""
    tissue: Bool[np.ndarray, "y x"]
    head: Float64[np.ndarray, " 4"]
    """The box around all tissue."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Where and how a lesion is pasted."""

    map_: Float64[np.ndarray, "2 3"]
    """From (x, y, 1) of the donor to (x, y) of the target, in pixel edges."""
    box: Float32[np.ndarray, " 4"]
    gain: float


def look(dataset: Dataset, i: int, settings: PasteConfig) -> Look:
    """The i-th image of a dataset."""
    signal = (signed_unit(dataset.values(i), dataset.about["value_range"]) + 1) / 2
    tissue = signal.mean(axis=0) > settings.air
    rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
    if len(rows):
        head = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float64)
    else:
        head = np.array([0, 0, *tissue.shape], np.float64)
    return Look(signal, tissue, head)


def choose_pose(
    source: Look,
    lesion: Float32[np.ndarray, " 4"],
    target: Look,
    taken: Float32[np.ndarray, "m 4"],
    settings: PasteConfig,
    chance: np.random.Generator,
) -> Pose | None:
    """A random pose; None where the lesion would leave the image or the tissue, or meet another."""
    keep_place = chance.random() < settings.keep_place
    flip_y, flip_x = chance.random(2) < 0.5
    quarter = int(chance.integers(4))
    turn, zoom, brighter, *shift = chance.uniform(-1, 1, 5)
    at = chance.random()

    low, high = lesion[:2].astype(np.float64), lesion[2:].astype(np.float64)
    centre, radii = (low + high) / 2, (high - low) / 2
    if keep_place:  # heads are symmetric left and right, not up and down
        flip_y, quarter = False, 0
        share = (centre - source.head[:2]) / (source.head[2:] - source.head[:2])
        share[1] = 1 - share[1] if flip_x else share[1]
        share += np.array(shift) * settings.shift
        goal = target.head[:2] + share * (target.head[2:] - target.head[:2])
    else:
        deep = deep_tissue(target, settings)
        if not len(deep):
            return None
        goal = deep[int(at * len(deep))] + 0.5
    radians = np.deg2rad(90 * quarter + turn * settings.turn_degrees)
    cos, sin = np.cos(radians), np.sin(radians)
    grow = settings.zoom**zoom * target.tissue.shape[0] / source.tissue.shape[0]
    linear = grow * np.array([[cos, -sin], [sin, cos]]) @ np.diag([1 - 2 * flip_x, 1 - 2 * flip_y])
    half = np.sqrt((linear**2) @ radii[::-1] ** 2)[::-1]  # of the box around the turned ellipse
    box = np.concatenate([goal - half, goal + half]).astype(np.float32)
    if not free(box, taken, target, settings):
        return None
    map_ = np.column_stack([linear, goal[::-1] - linear @ centre[::-1]])
    return Pose(map_, box, 1 + brighter * settings.brightness)


def deep_tissue(target: Look, settings: PasteConfig) -> Int64[np.ndarray, "p 2"]:
    """The pixels (y, x) that are far from air and bone."""
    away_px = cv2.distanceTransform(target.tissue.astype(np.uint8), cv2.DIST_L2, 3)
    least_px = settings.depth * float((target.head[2:] - target.head[:2]).min())
    return np.argwhere(away_px > least_px)


def free(
    box: Float32[np.ndarray, " 4"],
    taken: Float32[np.ndarray, "m 4"],
    target: Look,
    settings: PasteConfig,
) -> bool:
    """Whether a box lies in the image, on tissue, and its soft edge clear of other boxes."""
    height, width = target.tissue.shape
    if (box[:2] < 0).any() or box[2] > height or box[3] > width:
        return False
    if not apart(box, taken, settings):
        return False
    y0, x0 = np.floor(box[:2]).astype(int)
    y1, x1 = np.ceil(box[2:]).astype(int)
    return bool(target.tissue[y0:y1, x0:x1].mean() >= settings.tissue)


def alone(boxes: Float32[np.ndarray, "m 4"], k: int, settings: PasteConfig) -> bool:
    """Whether the k-th lesion can be cut without a part of another, which would have no box."""
    return apart(boxes[k], np.delete(boxes, k, axis=0), settings)


def apart(
    box: Float32[np.ndarray, " 4"], others: Float32[np.ndarray, "m 4"], settings: PasteConfig
) -> bool:
    """Whether a box and its soft edge meet no other box."""
    edge = soft_edge_px((box[2:] - box[:2]) / 2, settings)
    aside = (box[:2] - edge >= others[:, 2:]) | (box[2:] + edge <= others[:, :2])
    return bool(aside.any(axis=1).all())


def soft_edge_px(radii: Float[np.ndarray, "2"], settings: PasteConfig) -> float:
    """Width of the soft edge around an ellipse in px."""
    return max(settings.least_feather_px, settings.feather * float(radii.mean()))


def blend(
    source: Look,
    lesion: Float32[np.ndarray, " 4"],
    target: Look,
    pose: Pose,
    settings: PasteConfig,
) -> Look:
    """The target with the lesion in it, as bright beside its new surroundings as beside its old."""
    radii = (pose.box[2:] - pose.box[:2]) / 2
    edge = soft_edge_px(radii, settings)
    height, width = target.tissue.shape
    y0, x0 = np.maximum(np.floor(pose.box[:2] - 2 * edge), 0).astype(int)
    y1, x1 = np.minimum(np.ceil(pose.box[2:] + 2 * edge), (height, width)).astype(int)

    # where each pixel's centre comes from; OpenCV counts from the first pixel's centre
    back = np.linalg.inv(np.vstack([pose.map_, [0, 0, 1]]))[:2]
    x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
    from_x, from_y = np.tensordot(back, np.stack([x, y, np.ones_like(x)]), axes=1)
    patch = np.stack(
        [
            cv2.remap(
                plane,
                (from_x - 0.5).astype(np.float32),
                (from_y - 0.5).astype(np.float32),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for plane in source.signal
        ]
    )
    middle, half = (lesion[:2] + lesion[2:]) / 2, (lesion[2:] - lesion[:2]) / 2
    from_middle = np.hypot((from_y - middle[0]) / half[0], (from_x - middle[1]) / half[1])
    outside_px = (from_middle - 1) * float(radii.mean())
    share = np.clip(1 - outside_px / edge, 0, 1)
    share = (share**2 * (3 - 2 * share)).astype(np.float32)  # without a kink at either end

    before = target.signal[:, y0:y1, x0:x1]
    ring = (outside_px > 0) & (outside_px < 2 * edge)
    ring &= (before.mean(axis=0) > settings.air) & (patch.mean(axis=0) > settings.air)
    gain = np.float32(pose.gain)
    if ring.any():
        there, here = before[:, ring].mean(axis=1), patch[:, ring].mean(axis=1)
        gain = gain * np.clip(there / here, 1 / MOST_GAIN, MOST_GAIN)[:, None, None]
    signal = target.signal.copy()
    signal[:, y0:y1, x0:x1] += share * (np.clip(patch * gain, 0, 1) - before)
    return Look(signal, target.tissue, target.head)
