"""Make the images of a dataset folder look real with a trained refiner, into a new folder.

    case -> image in [-1, 1] at the refiner's side -> refined image, 0 to 255
            label, boxes, traits, conditions -----> the same

A refined image is a function of (run, seed, case) alone: images are refined one at a time, whoever
is beside them, so that neither the number of workers nor the other cases change a byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from synthoma.data.batches import resize, signed_unit
from synthoma.data.boxes import scale
from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.split import all_to_train, check_no_leak
from synthoma.data.store import DatasetWriter, refuse_existing
from synthoma.engine.run import Run
from synthoma.engine.system import Refiner
from synthoma.engine.train import generator_for, threads
from synthoma.errors import DataError, SettingsError
from synthoma.metrics.refining import changes
from synthoma.synthesis.choose import check_data
from synthoma.synthesis.fit import load_trained
from synthoma.synthesis.mixture import TrainingData, select
from synthoma.synthesis.orders import stored
from synthoma.synthesis.privacy import BLOCK, Gallery


@dataclass(frozen=True, eq=False)
class Refined:
    """A case, and what refining did to its image (`metrics/refining.py`)."""

    case: Case
    changes: dict[str, float]


@dataclass(frozen=True, eq=False)
class Ready:
    """A trained refiner that may refine the images it is for."""

    system: Refiner
    facts: dict[str, Any]
    """Of its run; trained_on names everybody who may be in its images."""
    data: TrainingData

    @property
    def label(self) -> str | None:
        """The class that it was trained on; None for all."""
        return self.data.where.get("label")


def refine(
    run: Path | Sequence[Path],
    dataset: Dataset,
    out: Path,
    *,
    seed: int,
    step: int | None = None,
    about: Mapping[str, Any] | None = None,
    workers: int = 2,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write the refined images of a dataset, in its order, into the dataset folder `out`.

    Cases are synthetic, of the refiner's run, and tell whom it saw, whom the generators of the
    dataset saw, and whom its real images show. Copies of the real images that the refiner was
    trained on are left out and counted in dataset.json (see `privacy.py`), where there is also what
    refining did to the images.

    Args:
        run: Of a refiner; or several, each trained on a class of its own: an image is refined by
            that of its label.
        dataset: Images to refine, of the kind that the run had as its source.
        seed: Decides the styles, for refiners that take one.
        step: Of a checkpoint to refine with; None for the run's model.
        about: Further facts for dataset.json, below "refined".

    Raises:
        SettingsError: The run is not of a refiner.
        DataError: The run is not finished, its dataset is gone, or the images do not fit it.
        LeakError: A patient of the run's validation or test split is in these images.
    """
    refuse_existing(out)
    runs = [run] if isinstance(run, Path) else list(run)
    refiners = [ready(folder, dataset, len(runs) > 1, step, device) for folder in runs]
    chosen = by_case(refiners, dataset)
    gallery = gallery_of([one.data for one in refiners], dataset)
    found: dict[str, list[float]] = {"distance": [], "shape": [], "texture": []}
    with DatasetWriter(
        out,
        patients_from="synthetic: one an image",
        value_range=(0, 255),
        splits=all_to_train,
        about={
            "seed": seed,
            "runs": [one.facts for one in refiners],
            "refined": {"digest": dataset.about["digest"], **(about or {})},
        },
    ) as writer:
        stream = refine_cases(chosen, dataset, seed=seed, workers=workers)
        done = 0
        while batch := list(islice(stream, BLOCK)):
            copies = gallery.copies([made.case for made in batch])
            for made, copy in zip(batch, copies, strict=True):
                if copy is None:
                    writer.add(made.case)
                    for name, value in made.changes.items():
                        found[name].append(value)
                else:
                    writer.drop("a copy of a training image", made.case.case_id)
                done += 1
                progress(done, len(dataset))
        writer.about["copy_check"] = gallery.facts()
        means = {k: round(float(np.mean(values)), 4) for k, values in found.items() if values}
        writer.about["refined"] |= means
    return Dataset.open(out)


def ready(run: Path, dataset: Dataset, several: bool, step: int | None, device: str) -> Ready:
    """The refiner of a run folder, once it is known to suit the images that it refines: all of
    them, or those of its class where there are several refiners."""
    system, facts = load_refiner(run, device, step)
    data = TrainingData.model_validate(Run.open(run).facts["data"])
    check_data(run, data)
    if several and "label" not in data.where:
        raise SettingsError(
            f"{run}: trained on all classes; allowed of several refiners: each trained on one"
        )
    own = dataset.where(label=data.where["label"]) if several else dataset
    check_images(run, system, facts, data, own)
    seen = {*facts["trained_on"], *dataset.real_patients, *chain(*dataset.generators_saw.values())}
    if data.split == "train":
        what = f"{dataset.folder}, refined by {run},"
        check_no_leak(Dataset.open(data.data).splits, seen, what=what)
    return Ready(system, facts | {"trained_on": sorted(seen)}, data)


def by_case(refiners: Sequence[Ready], dataset: Dataset) -> list[Ready]:
    """Which refiner each case goes through.

    Raises:
        SettingsError: Two were trained on one class.
        DataError: There is none for the class of a case.
    """
    if len(refiners) == 1:
        return [refiners[0]] * len(dataset)
    of = {one.label: one for one in refiners}
    if len(of) < len(refiners):
        raise SettingsError(f"{len(refiners)} refiners of {len(of)} classes; allowed: one a class")
    labels = [dataset.label(i) for i in range(len(dataset))]
    if lost := {str(label) for label in labels} - set(map(str, of)):
        raise DataError(f"{dataset.folder}: no refiner was trained on {', '.join(sorted(lost))}")
    return [of[label] for label in labels]


def load_refiner(run: Path, device: str, step: int | None = None) -> tuple[Refiner, dict[str, Any]]:
    """The trained refiner of a run folder, or what it was at the checkpoint of a step."""
    system, facts = load_trained(run, device)
    if not isinstance(system, Refiner):
        raise SettingsError(f"{run}: {facts['name']} does not refine images; allowed: refiners")
    if step is not None:
        (step,) = steps_of(run, (step,))
        state = Run.open(run).load(f"step-{step:08}")
        system.load_state_dict(state["system"] | state["averages"])
        facts |= {"step": step, "best_step": None}
    return system, facts


def steps_of(run: Path, wanted: Sequence[int] = ()) -> list[int]:
    """The steps of a run's checkpoints, rising; all that were kept, or those that are wanted.

    Raises:
        DataError: There is none, or not one that is wanted.
    """
    kept = Run.open(run).steps_saved()
    lost = sorted(set(wanted) - set(kept))
    if lost or not kept:
        raise DataError(
            f"{run}: no checkpoint {', '.join(f'of step {step}' for step in lost)}; there are: "
            f"{', '.join(map(str, kept)) or 'none'} (train.checkpoint_every and "
            "train.keep_checkpoints decide)"
        )
    return sorted(set(wanted)) or kept


def check_images(
    run: Path, system: Refiner, facts: dict[str, Any], data: TrainingData, dataset: Dataset
) -> None:
    """Refuse images that the refiner was not made for; the message says which and why."""
    folder = dataset.folder
    if not len(dataset):
        raise DataError(f"{folder}: there is no case to refine")
    if dataset.about["dimensions"] != 2:
        raise DataError(f"{folder}: volumes cannot be refined; allowed: 2D images")
    if dataset.about["value_range"] is None:
        raise DataError(f"{folder}: its values have no known range; run `synthoma data prepare`")
    label = data.where.get("label")
    for i in range(len(dataset)):
        own = dataset.label(i)
        if None not in (label, own) and own != label:
            raise DataError(
                f"{folder}: case {dataset[i].case_id!r} is of class {own!r}, but {run} was trained "
                f"on {label!r}; refine that class alone (--where label={label})"
            )
        channels, *space = dataset.values(i).shape
        if channels != facts["system"]["channels"] or len(set(space)) > 1:
            raise DataError(
                f"{folder}: case {dataset[i].case_id!r} has {channels} channels of "
                f"{' x '.join(map(str, space))}, but {run} refines square images of "
                f"{facts['system']['channels']}; run `synthoma data prepare`"
            )


def gallery_of(data: Sequence[TrainingData], dataset: Dataset) -> Gallery:
    """The real images that refined ones must not be copies of, those of the target domains.

    Where lesions were painted into real images, only what is in boxes is compared.
    """
    first = data[0]
    held_out = Dataset.open(first.data).split("validation") if first.split == "train" else None
    painted = "painted" in getattr(dataset[0].origin, "conditions", {})
    also = [select(one) for one in data[1:]]
    also += [Dataset.open(folder).split("train") for one in data for folder in one.also]
    return Gallery.of(select(first), held_out, also=also, region="boxes" if painted else "image")


def refine_cases(
    refiners: Sequence[Ready], dataset: Dataset, *, seed: int, workers: int
) -> Iterator[Refined]:
    """The refined cases of a dataset, in order, each by its own refiner."""
    on_cpu = next(refiners[0].system.parameters()).device.type == "cpu"

    def one(i: int) -> Refined:
        by = refiners[i]
        return refine_case(by.system, by.facts, dataset[i], dataset.about["value_range"], seed)

    if not on_cpu or workers <= 1:
        with threads(1):
            yield from map(one, range(len(dataset)))
        return
    with (
        threads(1),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        waiting: list[Future[Refined]] = []
        for i in range(len(dataset)):
            waiting.append(pool.submit(one, i))
            if len(waiting) > 8 * workers:  # a stream: few images in memory
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def refine_case(
    system: Refiner,
    facts: dict[str, Any],
    case: Case,
    value_range: tuple[float, float],
    seed: int,
) -> Refined:
    """One case."""
    source = resize(signed_unit(case.image.values, value_range), system.side_px)
    image = refined_image(system, source, chance=generator_for(seed, 0, case.case_id, 0))
    factors = tuple(system.side_px / side for side in case.image.space)
    spacing = case.image.spacing_mm
    told: dict[str, Any] = {"refined_from": case.case_id}
    if isinstance(case.origin, Synthetic):
        told = {**case.origin.conditions, **told, "drawn_by": case.origin.run}
    if "painted" in told:  # boxes, in pixels
        told["painted"] = scale(np.asarray(told["painted"], np.float32), factors).tolist()
    name = f"{facts['id']}/seed-{seed}/{case.case_id}"
    made = replace(
        case,
        case_id=name,
        patient_id=name,
        image=Image(
            stored(image),
            None
            if spacing is None
            else tuple(s / f for s, f in zip(spacing, factors, strict=True)),
        ),
        boxes=None if case.boxes is None else scale(case.boxes, factors),
        origin=Synthetic(facts["id"], seed, told, tuple(facts["trained_on"])),
    )
    done = changes(source[None], image[None])
    return Refined(made, {what: float(value[0]) for what, value in done.items()})


def refined_image(
    system: Refiner, source: Float32[np.ndarray, "c y x"], chance: torch.Generator
) -> Float32[np.ndarray, "c y x"]:
    """One image in [-1, 1], refined in a style drawn by chance where the refiner takes one."""
    device = next(system.parameters()).device
    style = torch.randn(1, *system.style_shape, generator=chance).to(device)
    with torch.no_grad():
        image = system.refine(
            torch.from_numpy(source)[None].to(device), style if system.style_shape else None
        )
    return image[0].float().cpu().numpy()
