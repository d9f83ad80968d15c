"""Batches as a pure function of (seed, step, move, part): workers and resumes change nothing.

A step asks with a `Request`; `Server` answers with a `Batch`. Cases are dealt like cards: a
permutation of the pool, seeded by (seed, move, round), then the next one, so that every case is
seen once a round while the batch keeps its size. Each domain is dealt by itself, other domains than
"real" with their names in the seed, so that two of equal size are not paired i with i. Nothing is
remembered between calls.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from zlib import crc32

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from synthoma.data.boxes import scale
from synthoma.data.classic import Classic, augment
from synthoma.data.dataset import Dataset
from synthoma.data.windows import Window, cut_window
from synthoma.errors import DataError, SettingsError

#: Tensors by field name: "image" (n, c, *space) in [-1, 1]; "boxes" (m, 4 | 6) in pixels of the
#: served image, "box_case" (m,) and "box_class" (m,) int64; "label" (n,) int64, and so each trait
#: that was asked for. Where a request has several domains, each name begins with its domain's:
#: "real/image", "source/image".
Batch = dict[str, Tensor]

Field = Literal["image", "boxes", "label"]


@dataclass(frozen=True)
class Request:
    """The batch that a step wants."""

    size: int
    """Images in all, of each domain."""
    side_px: int
    """Side of the served images (all axes)."""
    fields: tuple[Field, ...] = ("image",)
    augment: Classic | None = None
    """Classic augmentation of image and boxes."""
    window: Window | None = None
    """Of volumes: a window of each, with its boxes, rather than the whole; `side_px` and `augment`
    are then not looked at."""
    parts: int = 1
    """In how many parts the batch comes, for gradient accumulation; divides `size`."""
    traits: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Traits by name, and the values that each may have; a batch has the place of each case's."""
    domains: tuple[str, ...] = ("real",)
    """Which pools serve it: two where a system plays with two (a refiner's source and target)."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.parts < 1 or self.size % self.parts:
            raise SettingsError(
                f"a batch of {self.size} images in {self.parts} parts; allowed: a number of parts "
                "that divides the images"
            )
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise SettingsError(
                f"a batch of the domains {self.domains}; allowed: one or several, each once"
            )


def unprepared(dataset: Dataset) -> str:
    """What to do where nobody knows which values are black and white."""
    how = (
        "run `synthoma data prepare`"
        if dataset.about["dimensions"] == 2
        else "only CT is known in volumes: import it as such (nifti: --set nifti.unit=hu)"
    )
    return f"{dataset.folder}: its values have no known range; {how}"


class Pool:
    """Cases to deal from: some datasets, one after the other.

    Args:
        datasets: Prepared datasets (`value_range` known) with equal channels. Give one twice to
            weigh it double. Classes of images and boxes are those of all of them together.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        if not datasets:
            raise DataError("no dataset was given to deal cases from")
        for dataset in datasets:
            if dataset.about.get("value_range") is None:
                raise DataError(unprepared(dataset))
            if len(dataset) == 0:
                raise DataError(f"{dataset.folder}: none of its cases were selected")
        if len({dataset.about["dimensions"] for dataset in datasets}) != 1:
            raise DataError("2D and 3D cases cannot be in one batch")
        self.datasets = tuple(datasets)
        self.ends = np.cumsum([len(dataset) for dataset in datasets])
        self.labels = sorted({label for dataset in datasets for label in dataset.labels})
        named = {name for dataset in datasets for name in dataset.about["box_labels"]}
        self.box_labels = sorted(named) or ["lesion"]
        for dataset in datasets:
            unnamed = not dataset.about["box_labels"] and len(dataset.index.boxes)
            if unnamed and len(self.box_labels) > 1:
                raise DataError(
                    f"{dataset.folder}: its boxes have no labels, but others have "
                    f"{', '.join(self.box_labels)}; label them, or those of no dataset"
                )
        self.class_of = [
            np.array(
                [self.box_labels.index(name) for name in own]
                if (own := d.about["box_labels"])
                else [0],
                np.int64,
            )
            for d in datasets
        ]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, i: int) -> tuple[int, int]:
        """Which dataset the i-th case is of, and its place in it."""
        which = int(np.searchsorted(self.ends, i, side="right"))
        return which, i - (int(self.ends[which - 1]) if which else 0)

    def part(self, which: Sequence[int]) -> "Pool":
        """Some of the datasets, by their places, with the classes of all of them."""
        part = Pool([self.datasets[k] for k in which])
        part.labels, part.box_labels = self.labels, self.box_labels
        part.class_of = [self.class_of[k] for k in which]
        return part

    @property
    def channels(self) -> int:
        """Of the first case; `Server` refuses batches in which others have more or fewer."""
        return int(self.datasets[0].values(0).shape[0])

    @property
    def patients(self) -> set[str]:
        """Every real patient whose images are dealt, or were seen by a generator of them."""
        seen: set[str] = set()
        for dataset in self.datasets:
            seen.update(dataset.real_patients, *dataset.generators_saw.values())
        return seen


def resize(
    values: Float32[np.ndarray, "c y x"], side_px: int
) -> Float32[np.ndarray, "c side side"]:
    """A 2D image at another side, square: area-averaged when smaller, bilinear when larger."""
    if values.shape[1:] == (side_px, side_px):
        return values
    way = cv2.INTER_AREA if max(values.shape[1:]) > side_px else cv2.INTER_LINEAR
    planes = [cv2.resize(plane, (side_px, side_px), interpolation=way) for plane in values]
    return np.stack(planes)


def signed_unit(
    values: np.ndarray, value_range: tuple[float, float]
) -> Float32[np.ndarray, "c *space"]:
    """Values mapped linearly so that `value_range` becomes [-1, 1]; what lies outside is cut."""
    low, high = value_range
    factor = np.float32(2 / (high - low))
    scaled = (values.astype(np.float32) - np.float32(low)) * factor - np.float32(1)
    return np.clip(scaled, -1, 1, out=scaled)


class Server:
    """Answers requests from pools of cases, a pure function of (seed, request, step, move, part).

    Args:
        pools: By domain name; "real" is the one that most systems ask for.
        seed: Fixes the order of cases and every augmentation.
        opening: (steps, pool): up to that step the pool stands in for "real".
        workers: Threads that prepare one batch's images.

    Call it, and `prefetch`, from one thread.
    """

    def __init__(
        self,
        pools: dict[str, Pool],
        *,
        seed: int,
        opening: tuple[int, Pool] | None = None,
        workers: int = 2,
    ) -> None:
        self.pools, self.seed, self.opening = pools, seed, opening
        self.threads = ThreadPoolExecutor(workers) if workers > 1 else None
        self.ahead: dict[tuple[Request, int, int, int], Future[Batch]] = {}
        self.prefetcher = ThreadPoolExecutor(1)

    def __call__(self, request: Request, step: int, move: int, part: int = 0) -> Batch:
        """The batch, or the part of it, for one move of a step (steps count from 1)."""
        waiting = self.ahead.pop((request, step, move, part), None)
        return waiting.result() if waiting is not None else self.make(request, step, move, part)

    def prefetch(self, request: Request, step: int, move: int, part: int = 0) -> None:
        """Begin to make a batch that will be asked for."""
        key = (request, step, move, part)
        if key in self.ahead:
            return
        if len(self.ahead) >= 8:  # a caller that never collects must not fill the memory
            for never_collected in self.ahead.values():
                never_collected.cancel()
            self.ahead.clear()
        self.ahead[key] = self.prefetcher.submit(self.make, request, step, move, part)

    def make(self, request: Request, step: int, move: int, part: int) -> Batch:
        """Make the batch now."""
        for domain in request.domains:
            if domain not in self.pools:
                raise DataError(
                    f"a batch of the domain {domain!r} was asked for, but there is only "
                    f"{', '.join(self.pools)}; give the other domain with --source"
                )
        made = {d: self.make_domain(d, request, step, move, part) for d in request.domains}
        if len(made) == 1:
            return made[request.domains[0]]
        return {f"{d}/{name}": t for d, batch in made.items() for name, t in batch.items()}

    def make_domain(self, domain: str, request: Request, step: int, move: int, part: int) -> Batch:
        """What one domain gives to the batch, whichever others there are."""
        pool, own = self.pools[domain], seed_of_domain(domain)
        if domain == "real" and self.opening is not None and step <= self.opening[0]:
            pool = self.opening[1]
        size = request.size // request.parts
        first = (step - 1) * request.size + part * size
        dealt = [self.deal(len(pool), move, first + k, own) for k in range(size)]

        def one(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, list[int]]:
            # by the place in the whole batch, so that the number of parts changes nothing
            chance = np.random.default_rng([self.seed, step, move, part * size + k, 1, *own])
            return self.case(pool, dealt[k], request, chance)

        done = list(self.threads.map(one, range(size)) if self.threads else map(one, range(size)))
        shapes = {image.shape for image, *_ in done}
        if len(shapes) > 1:
            raise DataError(
                f"images of {sorted({shape[0] for shape in shapes})} channels cannot be in one "
                "batch; prepare all sets alike (`synthoma data prepare`)"
            )
        batch: Batch = {"image": torch.from_numpy(np.stack([image for image, *_ in done]))}
        if "boxes" in request.fields:
            batch["boxes"] = torch.from_numpy(np.concatenate([boxes for _, boxes, *_ in done]))
            batch["box_class"] = torch.from_numpy(np.concatenate([kind for _, _, kind, *_ in done]))
            counts = torch.tensor([len(boxes) for _, boxes, *_ in done])
            batch["box_case"] = torch.repeat_interleave(torch.arange(size), counts)
        if "label" in request.fields:
            batch["label"] = torch.tensor([label for *_, label, _ in done])
        for k, (name, _) in enumerate(request.traits):
            batch[name] = torch.tensor([places[k] for *_, places in done])
        return batch

    def deal(self, n: int, move: int, k: int, own: tuple[int, ...]) -> int:
        """The k-th card of an endless row of permutations of n; `own` is the domain's seed."""
        return int(permutation(self.seed, n, move, k // n, *own)[k % n])

    def case(
        self, pool: Pool, i: int, request: Request, chance: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, list[int]]:
        which, place = pool.locate(i)
        dataset = pool.datasets[which]
        values = dataset.values(place)
        space = values.shape[1:]
        if request.window is not None:
            low, high = dataset.about["value_range"]
            part, boxes, kept = cut_window(
                values, dataset.boxes(place), request.window, chance, outside=low
            )
            kinds = pool.class_of[which][dataset.box_classes(place)[kept]]
            return signed_unit(part, (low, high)), boxes, kinds, -1, []
        if len(set(space)) != 1:
            raise DataError(
                f"{dataset.folder}: an image of {' x '.join(map(str, space))} is not square; run "
                "`synthoma data prepare`"
            )
        if len(space) == 3 and space[0] != request.side_px:
            raise DataError(f"{dataset.folder}: volumes of side {space[0]}, not {request.side_px}")
        image = signed_unit(values, dataset.about["value_range"])
        boxes, kinds = dataset.boxes(place), pool.class_of[which][dataset.box_classes(place)]
        if request.augment is None:
            image = resize(image, request.side_px) if len(space) == 2 else image
            boxes = scale(boxes, (request.side_px / space[0],) * len(space))
        else:
            image, boxes, kept = augment(
                image, boxes, request.augment, chance, side_px=request.side_px
            )
            kinds = kinds[kept]
        label = -1
        if "label" in request.fields:
            name = dataset.label(place)
            if name is None:
                raise DataError(
                    f"{dataset.folder}: case {dataset[place].case_id!r} has no label; import "
                    "labels, leave such cases out (`synthoma data prepare --labelled`), or let "
                    "`synthoma label` name them"
                )
            label = pool.labels.index(name)
        places = traits_of(dataset, place, request.traits) if request.traits else []
        return image, boxes, kinds, label, places


def traits_of(
    dataset: Dataset, place: int, wanted: tuple[tuple[str, tuple[str, ...]], ...]
) -> list[int]:
    """The places of a case's traits among the values that are allowed."""
    case, found = dataset[place], []
    for name, allowed in wanted:
        if (value := case.traits.get(name)) not in allowed:
            raise DataError(
                f"{dataset.folder}: case {case.case_id!r} has the trait {name}={value!r}; allowed: "
                f"{', '.join(allowed)}"
            )
        found.append(allowed.index(value))
    return found


@lru_cache(maxsize=32)
def permutation(seed: int, n: int, move: int, round_: int, *own: int) -> np.ndarray:
    """The order of n cases in one round; `own` is the domain's seed."""
    return np.random.default_rng([seed, n, move, round_, *own]).permutation(n).astype(np.int32)


def seed_of_domain(domain: str) -> tuple[int, ...]:
    """What a domain adds to the seeds; nothing for "real", as systems of one domain have it."""
    return () if domain == "real" else (crc32(domain.encode()),)
