"""How long a refiner shall train, told by a classifier that learns from what it refines.

    checkpoints of a refiner's run, synthetic set
        -> of each: refined set -> classifier on real + refined images -> its validation accuracy
        -> the set refined by the best checkpoint

    TRIES/step-00020000/refined      a dataset folder
    TRIES/step-00020000/classifier   a run folder

Paper:
  Han et al. 2019 (file 002), section III-C: the number of steps (20,000, 50,000 or 100,000) is the
    one with which ResNet-50, pre-trained and with classic augmentation, is best in validation
Ours where the paper says nothing: an accuracy is the best of all validations of its training; of
equal ones the fewest steps win.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthoma.data.dataset import Dataset
from synthoma.data.store import refuse_existing
from synthoma.engine.run import Run
from synthoma.errors import DataError
from synthoma.synthesis.fit import Progress, resolve, train_up
from synthoma.synthesis.mixture import Mixed, TrainingData, select
from synthoma.synthesis.refine import refine, steps_of


def refine_best(
    run: Path | Sequence[Path],
    dataset: Dataset,
    out: Path,
    tries: Path,
    *,
    preset: str,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    steps: Sequence[int] = (),
    seed: int,
    workers: int = 2,
    device: str = "cpu",
    minutes: float | None = None,
    progress: Progress | None = None,
) -> Dataset | None:
    """Write the images refined by the best checkpoint into the dataset folder `out`.

    dataset.json tells the accuracy of every checkpoint. What was tried before is not repeated.

    Args:
        run: Of a refiner; or several, each of a class: they are tried at the same steps.
        tries: Where the refined sets and classifiers are kept.
        preset: The classifier's.
        overrides: Its settings that replace the preset's.
        steps: Checkpoints to try; empty for all that the run kept.
        minutes: Stop in a classifier's training after this long; the same call goes on.
        progress: Told of each classifier's training.

    Returns:
        None where the minutes were up.

    Raises:
        DataError: The run kept no such checkpoint, or there is nothing to validate on.
    """
    refuse_existing(out)
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    runs = [run] if isinstance(run, Path) else list(run)
    kept = sorted(set.intersection(*(set(steps_of(own, steps)) for own in runs)))
    if not kept:
        raise DataError(f"{', '.join(map(str, runs))}: they kept no checkpoint of the same step")
    trained = [TrainingData.model_validate(Run.open(own).facts["data"]) for own in runs]
    named = all(data.patients for data in trained)
    real = TrainingData(
        data=trained[0].data,
        patients=tuple(dict.fromkeys(p for data in trained for p in data.patients if named)),
    )
    accuracy: dict[int, float] = {}
    for step in kept:
        folder = tries / f"step-{step:08}"
        refined = (
            Dataset.open(folder / "refined")
            if (folder / "refined").exists()
            else refine(
                run,
                dataset,
                folder / "refined",
                step=step,
                seed=seed,
                workers=workers,
                device=device,
            )
        )
        found = accuracy_with(
            refined,
            real,
            folder / "classifier",
            preset=preset,
            overrides=overrides,
            seed=seed,
            minutes=None if ends is None else max(0.0, (ends - time.monotonic()) / 60),
            device=device,
            progress=progress,
        )
        if found is None:
            return None
        accuracy[step] = found
    best = max(kept, key=lambda step: (accuracy[step], -step))
    picked = {
        "step": best,
        "by": f"validation accuracy of a classifier ({preset}) trained on real and refined images",
        "accuracy": {str(step): round(value, 4) for step, value in accuracy.items()},
    }
    return refine(
        run,
        dataset,
        out,
        step=best,
        about={"picked": picked},
        seed=seed,
        workers=workers,
        device=device,
    )


def accuracy_with(
    refined: Dataset,
    real: TrainingData,
    out: Path,
    *,
    preset: str,
    overrides: Mapping[str, Mapping[str, Any]] | None,
    seed: int,
    minutes: float | None,
    device: str,
    progress: Progress | None,
) -> float | None:
    """The best validation accuracy of a classifier trained on real images and all refined ones;
    None where the minutes were up."""
    ratio = len(refined) / len(select(real))
    done = train_up(
        "classifier",
        out,
        real.model_copy(update={"synthetic": (Mixed(folder=refined.folder, ratio=ratio),)}),
        resolve("classifier", preset, overrides or {}),
        seed=seed,
        minutes=minutes,
        device=device,
        progress=progress,
    )
    if done is None:
        return None
    judged = [row["validation"] for row in Run.open(out).read_log() if "validation" in row]
    if not judged:
        raise DataError(f"{real.data}: no validation split, so there is nothing to pick steps by")
    return float(max(figures["accuracy"] for figures in judged))
