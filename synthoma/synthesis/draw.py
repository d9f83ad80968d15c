"""Draw labelled images from trained GANs into a dataset folder.

Image i of a run is a function of (run, seed, i) alone: its noise, its order (see `orders.py`) and
so its pixels. Images are drawn in chunks of a fixed size, one thread each, so that the
number of workers changes no byte.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthoma.data.batches import Batch, signed_unit
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.classic import Classic
from synthoma.data.dataset import Dataset
from synthoma.data.split import all_to_train
from synthoma.data.store import DatasetWriter
from synthoma.engine.run import Run
from synthoma.engine.system import GAN
from synthoma.engine.train import generator_for, threads
from synthoma.errors import SettingsError
from synthoma.synthesis.choose import CONDITIONS, Wanted, check_data, choose_orders
from synthoma.synthesis.fit import load_trained
from synthoma.synthesis.mixture import TrainingData, select
from synthoma.synthesis.orders import Order, Orders, stored
from synthoma.synthesis.privacy import BLOCK, Gallery

#: Images drawn at once; recorded in dataset.json, because another size may change last bits.
CHUNK = 16


@dataclass(frozen=True, eq=False)
class Drawn:
    """A case, and the backgrounds that were passed over for it."""

    case: Case
    passed_over: tuple[str, ...] = ()


def draw(
    runs: Sequence[Path],
    out: Path,
    *,
    n: int,
    seed: int,
    given: Dataset | None = None,
    boxes: Sequence[Sequence[float]] = (),
    onto: Dataset | None = None,
    label: str | None = None,
    conditions: Classic = CONDITIONS,
    workers: int = 2,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Draw `n` images from each run into the dataset folder `out`.

    Copies of the images that the runs were trained on are left out and counted in dataset.json
    (see `privacy.py`): the folder then holds fewer than `n` images of a run.

    Args:
        given: Cases whose boxes are ordered exactly as they are; by default the boxes of the
            training cases, moved by `conditions`. Looks are those of the lesions in these boxes.
        boxes: Boxes ordered in every image, (y0, x0, y1, x1) as shares of the side. They look
            like random lesions of the training cases.
        onto: Real images that lesions are painted into, by GANs that paint; by default the
            training cases. Pixels outside of what is painted stay as they are stored, the boxes
            of lesions that were there stay, too, and come first. A case has the label of its
            background, or of the painted lesion where the background has no lesion.
        label: The class of every image, for GANs that are told one; by default those of the
            training cases, as often as they have them.

    Raises:
        SettingsError: A run is not of a GAN, it does not take what is asked for, or some runs
            paint into images and others do not.
        DataError: A run is not finished, or its dataset is gone.
        LeakError: `onto` shows a patient of a run's validation or test split.
    """
    loaded = [load_gan(folder, device) for folder in runs]
    if len({facts["id"] for _, facts in loaded}) != len(loaded):
        raise SettingsError("a run was given twice")
    sides = {system.side_px for system, _ in loaded}
    if len(sides) != 1:
        raise SettingsError(f"the runs draw at different sides: {sorted(sides)} px")
    wanted = Wanted(seed, given, boxes, onto, label, conditions)
    chosen = [
        choose_orders(folder, system, facts, wanted)
        for folder, (system, facts) in zip(runs, loaded, strict=True)
    ]
    gallery = gallery_of(runs, [system for system, _ in loaded])
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
                facts | {"trained_on": patients},
                orders,
                n=n,
                seed=seed,
                workers=workers,
            )
            for (system, facts), (orders, patients) in zip(loaded, chosen, strict=True)
        ]
        # in turns, so that any head of the set has every run
        in_turns = (drawn for together in zip(*streams, strict=True) for drawn in together)
        while batch := list(islice(in_turns, BLOCK)):
            copies = gallery.copies([drawn.case for drawn in batch])
            for drawn, copy in zip(batch, copies, strict=True):
                for background in drawn.passed_over:
                    writer.drop("a background without a place for a lesion", background)
                if copy is None:
                    writer.add(drawn.case)
                else:
                    writer.drop("a copy of a training image", drawn.case.case_id)
                done += 1
                progress(done, total)
        writer.about["copy_check"] = gallery.facts()
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


def gallery_of(runs: Sequence[Path], systems: Sequence[GAN]) -> Gallery:
    """Every real image that the runs saw, and how near the first run's validation images come.

    Where lesions are painted into images, only what is in boxes is compared: the rest is real.
    """
    painting = {"background" in system.conditions for system in systems}
    if len(painting) != 1:
        raise SettingsError(
            "some runs paint into real images and others draw whole ones; draw them one by one"
        )
    parts, held_out = {}, None
    for folder in runs:
        data = TrainingData.model_validate(Run.open(folder).facts["data"])
        check_data(folder, data)
        further = [*data.also, *([data.source] if data.source is not None else [])]
        for part in (select(data), *(Dataset.open(path).split("train") for path in further)):
            parts[str(part.folder), part.rows.tobytes()] = part
        if held_out is None and data.split == "train":
            held_out = Dataset.open(data.data).split("validation")
    training, *also = parts.values()
    return Gallery.of(training, held_out, also=also, region="boxes" if painting.pop() else "image")


def draw_cases(
    system: GAN,
    facts: dict[str, Any],
    orders: Orders | None,
    *,
    n: int,
    seed: int,
    workers: int,
) -> Iterator[Drawn]:
    """The cases 0 to n - 1 of a run, in order."""
    firsts = range(0, n, CHUNK)
    device = next(system.parameters()).device

    def chunk(first: int) -> list[Drawn]:
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
) -> list[Drawn]:
    """One chunk of cases."""
    device = next(system.parameters()).device
    noise = torch.stack(
        [
            torch.randn(system.noise_shape, generator=generator_for(seed, i, "draw", 0))
            for i in numbers
        ]
    )
    made = [orders(i) for i in numbers] if orders is not None else []
    given = {name: tensor.to(device) for name, tensor in batch_of(made).items()} if made else None
    with torch.no_grad():
        images = stored(system.sample(noise.to(device), given).float().cpu().numpy())
    cases = []
    for k, i in enumerate(numbers):
        name = f"{facts['id']}/seed-{seed}/{i:06}"
        origin = Synthetic(facts["id"], seed, {"index": i}, tuple(facts["trained_on"]))
        case = Case(name, name, Image(images[k]), facts["label"], origin=origin)
        cases.append(obeying(case, made[k]) if made else Drawn(case))
    return cases


def batch_of(orders: Sequence[Order]) -> Batch:
    """Orders as `GAN.sample` takes them."""
    kinds = [order.kind for order in orders if order.kind is not None]
    if kinds:
        return {"label": torch.tensor(kinds)}
    counts = torch.tensor([len(order.boxes) for order in orders])
    batch: Batch = {
        "boxes": torch.from_numpy(np.concatenate([order.boxes for order in orders])),
        "box_case": torch.repeat_interleave(torch.arange(len(counts)), counts),
    }
    looks = [order.looks for order in orders if order.looks is not None]
    if looks:
        batch["looks"] = torch.from_numpy(np.concatenate(looks))
    behind = [order.background.values for order in orders if order.background is not None]
    if behind:
        batch["image"] = torch.from_numpy(signed_unit(np.stack(behind), (0, 255)))
    return batch


def obeying(case: Case, order: Order) -> Drawn:
    """What was drawn, with the class or the boxes that were ordered; painted ones beside the
    background's."""
    if order.kind is not None:
        return Drawn(replace(case, label=order.label))
    origin, behind = case.origin, order.background
    assert isinstance(origin, Synthetic)
    told = dict(origin.conditions) | order.told
    if order.looks is not None:
        told["looks"] = order.looks.round(4).tolist()
    if behind is None:
        origin = replace(origin, conditions=told)
        return Drawn(replace(case, boxes=order.boxes, box_labels=order.box_labels, origin=origin))
    told |= {"background": behind.case_id, "painted": order.boxes.tolist()}
    painted = replace(
        case,
        image=Image(np.where(behind.region, case.image.values, behind.values)),
        label=behind.label if len(behind.boxes) else order.label,
        boxes=np.concatenate([behind.boxes, order.boxes]),
        box_labels=(*behind.box_labels, *order.box_labels),
        origin=replace(origin, conditions=told),
    )
    return Drawn(painted, behind.passed_over)
