"""The synthetic sets of a study of classifiers: drawn, chosen from by clusters, refined.

    generators -> NAME -> clusters -> "NAME, curated" -> refiners -> REFINED

    STUDY/clusters/NAME-drawD           sheets, and what is proposed; a person may change its table
    STUDY/refiners/REFINED-drawD-CLASS  run folders
    STUDY/tries/REFINED-drawD           a refiner's steps, tried

In any head of a set the classes are as often as the draw's real images have them.
`classify_work.py` says when each is made; every function here does nothing where it is done.
"""

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthoma.console import progress, training
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak
from synthoma.data.subset import subset
from synthoma.errors import DataError
from synthoma.studies.augment import CURATED
from synthoma.studies.stages import slug
from synthoma.studies.trained import Trained
from synthoma.synthesis.clusters import cluster, read_clusters
from synthoma.synthesis.curate import curate
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import pick_device, train_up
from synthoma.synthesis.mixture import TrainingData
from synthoma.synthesis.pick import refine_best
from synthoma.synthesis.refine import refine

if TYPE_CHECKING:
    from synthoma.studies.classify_work import ClassifyWork

#: Why an image of a generator of one class is left out.
SURPLUS = "more of its class than the draw has"


def train_generator(work: "ClassifyWork", name: str, d: int, label: str) -> bool:
    """On the draw's images alone, of one class where one is given."""
    own = work.images(d).where(label=label) if label else work.images(d)
    data = TrainingData(
        data=work.data,
        patients=tuple(own.patients),
        where={"label": label} if label else {},
    )
    return train_in(work, work.generator(name, d, label), work.study.generators[name], data)


def refiner(work: "ClassifyWork", name: str, d: int, label: str) -> Path:
    """The run folder of a refiner of one class."""
    return work.out / "refiners" / f"{slug(name)}-draw{d}-{slug(label)}"


def train_refiner(work: "ClassifyWork", name: str, d: int, label: str) -> bool:
    """From the synthetic images of a class to the draw's real ones."""
    source = work.study.refiners[name]
    data = TrainingData(
        data=work.data,
        patients=tuple(work.images(d).where(label=label).patients),
        where={"label": label},
        source=work.set_of(source.of, d),
    )
    return train_in(work, refiner(work, name, d, label), source, data)


def train_in(work: "ClassifyWork", folder: Path, chosen: Trained, data: TrainingData) -> bool:
    """Train in a run folder, or go on there; False where the minutes were up."""
    with training(f"train {folder.name}") as show:
        done = train_up(
            chosen.name,
            folder,
            data,
            chosen.settings(),
            seed=work.study.seed,
            minutes=work.tasks.minutes_left,
            device=work.device,
            progress=show,
        )
    return done is not None


def draw_set(work: "ClassifyWork", name: str, d: int) -> bool:
    """As many images as are needed, of the classes as often as the draw has them."""
    folder, seed = work.set_of(name, d), work.study.seed + d
    if folder.exists():
        return True
    folder.parent.mkdir(exist_ok=True)
    each, labels = work.study.generators[name].each_class, work.labels(d)
    n = with_spare(work.needed(name, d))
    runs = [work.generator(name, d, c) for c in work.classes_of(name)]
    share = max(labels.count(c) for c in work.real.labels) / len(labels)
    drawn = work.even(name, d) if each else folder
    if not drawn.exists():
        with progress(f"draw {folder.name}") as tell:
            draw(
                runs,
                drawn,
                n=ceil(n * share) + 8 if each else n,
                seed=seed,
                device="cpu" if work.device == "auto" else work.device,
                progress=lambda i, of: tell(i, of, ""),
            )
    if each:
        as_often(Dataset.open(drawn), folder, labels, seed=seed)
    check_sources(work, folder)
    return True


def curate_set(work: "ClassifyWork", name: str, d: int) -> bool:
    """The images of clusters that are kept: as is proposed, or as a person's table says by then.

    Raises:
        DataError: No image of a class is kept.
    """
    folder, whole = work.set_of(name, d), name.removesuffix(CURATED)
    if folder.exists():
        return True
    each = work.study.generators[whole].each_class
    drawn = Dataset.open(work.even(whole, d) if each else work.set_of(whole, d))
    looked = work.out / "clusters" / f"{slug(whole)}-draw{d}"
    looked.parent.mkdir(exist_ok=True)
    if looked.exists():
        decisions = read_clusters(looked, drawn)
    else:
        with progress(f"look at {whole}") as tell:
            decisions = cluster(
                drawn,
                work.images(d),
                looked,
                work.study.curation,
                device=work.device,
                progress=lambda i, of: tell(i, of, ""),
            )
    labels, keep = work.labels(d), decisions.keep
    kept = {drawn.label(i) for i in range(len(drawn)) if keep[drawn[i].case_id]}
    if lost := sorted(set(labels) - kept):
        raise DataError(
            f"{looked / 'clusters.csv'}: it keeps no image of {', '.join(lost)}. Look at the "
            "sheets beside it, say yes in its column keep where images are good, and go on with "
            "--resume; or train the generators longer"
        )
    if not work.even(name, d).exists():
        curate(drawn, decisions, work.even(name, d))
    as_often(Dataset.open(work.even(name, d)), folder, labels, seed=work.study.seed + d)
    return True


def refine_set(work: "ClassifyWork", name: str, d: int) -> bool:
    """As many images as are needed through the refiners of their classes, at the steps that a
    classifier learns most from where several are tried."""
    folder, source = work.set_of(name, d), work.study.refiners[name]
    if folder.exists():
        return True
    whole = Dataset.open(work.set_of(source.of, d))
    head = whole.take(np.arange(min(len(whole), with_spare(work.needed(name, d)))))
    runs = [refiner(work, name, d, label) for label in work.real.labels]
    seed, device = work.study.seed + d, str(pick_device(work.device))
    if source.tried:
        judge = list(work.study.classifiers.values())[-1]
        tries = work.out / "tries" / f"{slug(name)}-draw{d}"
        with training(f"refine {name} and classify") as show:
            made = refine_best(
                runs,
                head,
                folder,
                tries,
                preset=work.study.scale,
                overrides={"system": judge.system, "train": judge.train.model_dump()},
                steps=source.tried,
                seed=seed,
                device=device,
                minutes=work.tasks.minutes_left,
                progress=show,
            )
        if made is None:
            return False
    else:
        with progress(f"refine {name}") as tell:
            refine(
                runs,
                head,
                folder,
                seed=seed,
                device=device,
                progress=lambda i, of: tell(i, of, ""),
            )
    check_sources(work, folder)
    return True


def check_sources(work: "ClassifyWork", folder: Path) -> None:
    """Refuse images of a generator that saw a validation or test patient."""
    for run_id, saw in Dataset.open(folder).generators_saw.items():
        check_no_leak(work.real.splits, saw, what=f"the generator {run_id}")


def with_spare(n: int) -> int:
    """So many images and some, as copies of patients are dropped."""
    return ceil(1.1 * n) + 8


def as_often(drawn: Dataset, out: Path, labels: list[str], *, seed: int) -> Dataset:
    """The folder of so many images of each class as some labels have, in any head of it as well,
    until one class runs out."""
    waiting = {c: iter(range(len(drawn))) for c in set(labels)}
    chance, kept = np.random.default_rng([seed, len(labels)]), list[int]()
    done = False
    while not done:
        for k in chance.permutation(len(labels)).tolist():
            own = (i for i in waiting[labels[k]] if drawn.label(i) == labels[k])
            place = next(own, None)
            if place is None:
                done = True
                break
            kept.append(place)
    names = [drawn[i].case_id for i in sorted(set(range(len(drawn))) - set(kept))]
    return subset(drawn, out, np.array(kept), dropped={SURPLUS: names}, about={})
