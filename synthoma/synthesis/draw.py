"""Draw labelled images from trained GANs into a dataset folder.

Image i of a run is a function of (run, seed, i) alone: its noise, its order (which boxes, moved
how) and so its pixels. Images are drawn in chunks of a fixed size, one thread each, so that the
number of workers changes no byte.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from synthoma.data.batches import Batch
from synthoma.data.boxes import scale
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.classic import Classic, matrix, move_boxes
from synthoma.data.dataset import Dataset
from synthoma.data.split import Splits
from synthoma.data.store import DatasetWriter
from synthoma.engine.run import Run
from synthoma.engine.system import GAN
from synthoma.engine.train import generator_for, threads
from synthoma.errors import DataError, SettingsError
from synthoma.synthesis.fit import TrainingData, load_trained, open_pools, select

#: Images drawn at once; recorded in dataset.json, because another size may change last bits.
CHUNK = 16

#: How training boxes become orders (Han et al. 2019, section 2.2): flips, shift and zoom to 10 %.
CONDITIONS = Classic(
    flip_x=True, flip_y=True, rotate_degrees=0, shift=0.1, shear=0, zoom=0.1, least_visible=0.5
)


@dataclass(frozen=True, eq=False)
class Order:
    """What one image shall show, in pixels of the drawn image."""

    boxes: Float32[np.ndarray, "m 4"]
    box_labels: tuple[str, ...]
    told: dict[str, Any]
    """For the case's origin: which case the boxes came from."""


Orders = Callable[[int], Order]


def orders_from(dataset: Dataset, side_px: int, *, seed: int, conditions: Classic | None) -> Orders:
    """Orders made of the boxes of a dataset's cases, dealt in a seeded order.

    Args:
        conditions: How boxes are moved; None leaves them where they are and deals the cases in
            their own order.

    Raises:
        SettingsError: Boxes have several classes, which no generator is told of.
        DataError: No case has a box.
    """
    if len(dataset.box_labels) > 1:
        raise SettingsError(
            f"{dataset.folder}: boxes of {len(dataset.box_labels)} classes "
            f"({', '.join(dataset.box_labels)}); the generator knows one kind and would mislabel"
        )
    with_boxes = [i for i in range(len(dataset)) if len(dataset.boxes(i))]
    if not with_boxes:
        raise DataError(f"{dataset.folder}: no case has a box to order")

    def order(i: int) -> Order:
        round_, k = divmod(i, len(with_boxes))
        if conditions is not None:
            k = int(np.random.default_rng([seed, round_]).permutation(len(with_boxes))[k])
        place = with_boxes[k]
        space = dataset.values(place).shape[1:]
        boxes = scale(dataset.boxes(place), (side_px / space[0], side_px / space[1]))
        case = dataset[place]
        kept = np.arange(len(boxes))
        if conditions is not None:
            chance = np.random.default_rng([seed, i, 1])
            for _ in range(10):  # a move that pushes every box out of the image is drawn again
                map_ = matrix(conditions, chance, side_in=side_px, side_out=side_px)
                moved, kept = move_boxes(
                    boxes, map_, side_px, least_visible=conditions.least_visible
                )
                if len(kept):
                    boxes = moved
                    break
            else:
                kept = np.arange(len(boxes))
        labels = tuple(case.box_labels[j] for j in kept) if case.box_labels else ()
        return Order(boxes, labels, {"boxes_of": case.case_id})

    return order


def orders_of(boxes: Sequence[Sequence[float]], side_px: int) -> Orders:
    """The same boxes for every image.

    Args:
        boxes: (y0, x0, y1, x1) each, as shares of the side, from 0 to 1.
    """
    array = np.asarray(boxes, np.float32).reshape(-1, 4)
    if (array < 0).any() or (array > 1).any() or (array[:, 2:] <= array[:, :2]).any():
        raise SettingsError(
            f"boxes {array.tolist()}; allowed: y0,x0,y1,x1 from 0 to 1 with y0 < y1 and x0 < x1"
        )
    return lambda i: Order(array * side_px, (), {"boxes_of": "the command line"})


def draw(
    runs: Sequence[Path],
    out: Path,
    *,
    n: int,
    seed: int,
    given: Dataset | None = None,
    boxes: Sequence[Sequence[float]] = (),
    conditions: Classic = CONDITIONS,
    workers: int = 2,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Draw `n` images from each run into the dataset folder `out`.

    Args:
        given: Cases whose boxes are ordered exactly as they are; by default the boxes of the
            training cases, moved by `conditions`.
        boxes: Boxes ordered in every image, (y0, x0, y1, x1) as shares of the side.

    Raises:
        SettingsError: A run is not of a GAN.
        DataError: A run is not finished, or its dataset is gone.
    """
    loaded = [load_gan(folder, device) for folder in runs]
    if len({facts["id"] for _, facts in loaded}) != len(loaded):
        raise SettingsError("a run was given twice")
    sides = {system.side_px for system, _ in loaded}
    if len(sides) != 1:
        raise SettingsError(f"the runs draw at different sides: {sorted(sides)} px")
    total, done = n * len(loaded), 0
    with DatasetWriter(
        out,
        patients_from="synthetic: one an image",
        value_range=(0, 255),
        splits=all_to_train,
        about={"seed": seed, "chunk": CHUNK, "runs": [facts for _, facts in loaded]},
    ) as writer:
        streams = [
            draw_cases(
                system,
                facts,
                choose_orders(folder, system, facts, seed, given, boxes, conditions),
                n=n,
                seed=seed,
                workers=workers,
            )
            for folder, (system, facts) in zip(runs, loaded, strict=True)
        ]
        for together in zip(*streams, strict=True):  # so that any head of the set has every run
            for case in together:
                writer.add(case)
                done += 1
                progress(done, total)
    return Dataset.open(out)


def load_gan(folder: Path, device: str) -> tuple[GAN, dict[str, Any]]:
    """The trained GAN of a run folder."""
    system, facts = load_trained(folder, device)
    if not isinstance(system, GAN):
        raise SettingsError(f"{folder}: {facts['name']} does not draw images; allowed: GANs")
    reached = system.request(facts["step"]).side_px
    if reached != system.side_px:
        raise SettingsError(
            f"{folder}: it was trained for {facts['step']} steps and has grown to {reached} of "
            f"{system.side_px} px; train it longer (train.steps)"
        )
    label = Run.open(folder).facts["data"]["where"].get("label")
    return system, facts | {"label": label}


def all_to_train(patients: list[str]) -> Splits:
    """Synthetic images are for training only."""
    return {"train": patients, "validation": [], "test": []}


def choose_orders(
    folder: Path,
    system: GAN,
    facts: dict[str, Any],
    seed: int,
    given: Dataset | None,
    boxes: Sequence[Sequence[float]],
    conditions: Classic,
) -> Orders | None:
    """What the images of a run shall show; None for a GAN that takes no conditions."""
    request = system.request(facts["step"])
    if "boxes" not in request.fields:
        if given is not None or boxes:
            raise SettingsError(f"{facts['name']} takes no boxes; cpggan does")
        return None
    if boxes:
        return orders_of(boxes, system.side_px)
    if given is not None:
        return orders_from(given, system.side_px, seed=seed, conditions=None)
    run = Run.open(folder)
    data = TrainingData.model_validate(run.facts["data"])
    if open_pools(data).digest != run.facts["digest"]:
        raise DataError(f"{data.data}: not the dataset that {folder} was trained on")
    return orders_from(select(data), system.side_px, seed=seed, conditions=conditions)


def draw_cases(
    system: GAN,
    facts: dict[str, Any],
    orders: Orders | None,
    *,
    n: int,
    seed: int,
    workers: int,
) -> Iterator[Case]:
    """The cases 0 to n - 1 of a run, in order."""
    firsts = range(0, n, CHUNK)
    device = next(system.parameters()).device

    def chunk(first: int) -> list[Case]:
        numbers = range(first, first + CHUNK)  # whole chunks, also the last: same bytes for any n
        return draw_chunk(system, facts, orders, numbers, seed)[: n - first]

    if device.type != "cpu" or workers <= 1:
        with threads(1):
            for first in firsts:
                yield from chunk(first)
        return
    with (
        threads(1),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        waiting = []
        for first in firsts:
            waiting.append(pool.submit(chunk, first))
            if len(waiting) > 2 * workers:  # a stream: few chunks in memory
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()


def draw_chunk(
    system: GAN, facts: dict[str, Any], orders: Orders | None, numbers: range, seed: int
) -> list[Case]:
    """One chunk of cases."""
    device = next(system.parameters()).device
    noise = torch.stack(
        [
            torch.randn(system.noise_shape, generator=generator_for(seed, i, "draw", 0))
            for i in numbers
        ]
    )
    made = [orders(i) if orders is not None else None for i in numbers]
    given: Batch | None = None
    if orders is not None:
        counts = torch.tensor([len(order.boxes) for order in made if order is not None])
        ordered = [order.boxes for order in made if order is not None]
        given = {
            "boxes": torch.from_numpy(np.concatenate(ordered)).to(device),
            "box_case": torch.repeat_interleave(torch.arange(len(counts)), counts).to(device),
        }
    with torch.no_grad():
        images = system.sample(noise.to(device), given).float().cpu().numpy()
    stored = np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    cases = []
    for k, (i, order) in enumerate(zip(numbers, made, strict=True)):
        told = {"index": i} | (order.told if order is not None else {})
        cases.append(
            Case(
                case_id=f"{facts['id']}/seed-{seed}/{i:06}",
                patient_id=f"{facts['id']}/seed-{seed}/{i:06}",
                image=Image(stored[k]),
                label=facts["label"],
                boxes=order.boxes if order is not None else None,
                box_labels=order.box_labels if order is not None else (),
                origin=Synthetic(facts["id"], seed, told, tuple(facts["trained_on"])),
            )
        )
    return cases
