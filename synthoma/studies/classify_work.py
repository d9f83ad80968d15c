"""A study of classifiers under way: where it stands is what its folder holds.

    STUDY/study.json            what is to be done
    STUDY/data                  the prepared dataset
    STUDY/generators/NAME-drawD[-CLASS]
    STUDY/sets/NAME-drawD       (of generators of one class: first NAME-drawD-even)
    STUDY/judged/NAME-drawD.json    what the draw's own classifier thinks of it
    STUDY/cells/SETUP-drawD-seedS
    STUDY/report.html, report.md, table.json, seconds.json

Parts of a stage do not depend on one another; several processes may share them (`stages.py`).
"""

from collections.abc import Iterator
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from synthoma.console import progress, say, training
from synthoma.data.batches import Pool
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import prepare
from synthoma.data.split import check_no_leak, draw_patients_of_every_class
from synthoma.data.store import read_json, write_json
from synthoma.data.subset import subset
from synthoma.engine.evaluate import labels_of
from synthoma.errors import DataError
from synthoma.report.page import write_report
from synthoma.studies.augment import BASELINE
from synthoma.studies.classify import ClassifyStudy, ClassSetup
from synthoma.studies.classify_account import account
from synthoma.studies.classify_cell import ClassCell, judge_set, read_cell, run_cell
from synthoma.studies.stages import Stages, Task, slug
from synthoma.studies.trained import train_up
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import Mixed, TrainingData
from synthoma.zoo import load_entry

#: Why an image of a generator of one class is left out.
SURPLUS = "more of its class than the draw has"


class ClassifyWork:
    """The parts of a study, each done once."""

    def __init__(
        self, out: Path, study: ClassifyStudy, command: str, device: str, minutes: float | None
    ) -> None:
        self.out, self.study, self.command, self.device = out, study, command, device
        self.tasks = Stages(out, minutes)

    def run(self) -> bool:
        """Every stage in turn, with a report after each draw; False where the minutes were up."""
        return self.tasks.run(self.stages())

    def stages(self) -> Iterator[list[Task]]:
        """What is to be done, in order."""
        study, judge = self.study, self.study.setup(BASELINE)
        yield [("prepare", self.prepare)]
        for d in range(study.draws):
            on = self.on(d)
            yield [
                self.cell_task(judge, d, 0),
                *(
                    (f"train {name}{f' of {c}' * bool(c)}{on}", partial(self.train, name, d, c))
                    for name in study.generators
                    if self.wants(name, d)
                    for c in self.classes_of(name)
                ),
            ]
            sets = [name for name in study.generators if self.wants(name, d)]
            yield [(f"draw {name}{on}", partial(self.draw_set, name, d)) for name in sets]
            yield [(f"judge {name}{on}", partial(self.judge, name, d)) for name in sets]
            yield [
                self.cell_task(setup, d, seed)
                for seed in range(study.seeds)
                for setup in study.setups
            ]
            yield [(f"report on {d + 1} of {study.draws} draws", self.report)]

    def on(self, d: int) -> str:
        """Which draw, where there are several."""
        return f", draw {d}" if self.study.draws > 1 else ""

    # The data

    @property
    def data(self) -> Path:
        """The prepared dataset."""
        return self.out / "data"

    @cached_property
    def real(self) -> Dataset:
        """The prepared dataset, opened."""
        return Dataset.open(self.data)

    @cached_property
    def drawn(self) -> list[tuple[str, ...]]:
        """The patients of each draw; all of the training split where there is one of everything."""
        train = self.real.split("train")
        if not self.study.slices:
            return [tuple(train.patients)]
        found = draw_patients_of_every_class(
            train.patient_ids,
            [train.label(i) or "" for i in range(len(train))],
            n_cases=self.study.slices,
            draws=self.study.draws,
            seed=self.study.seed,
        )
        return [tuple(patients) for patients in found]

    @property
    def others(self) -> tuple[str, ...]:
        """Training patients in no draw."""
        drawn = set().union(*self.drawn)
        return tuple(p for p in self.real.split("train").patients if p not in drawn)

    def images(self, d: int) -> Dataset:
        """The real images of a draw."""
        return self.real.of_patients(set(self.drawn[d]))

    def prepare(self) -> bool:
        """Bring the dataset to the generators' side, and see that it can be studied."""
        study = self.study
        if not self.data.exists():
            with progress(f"prepare {study.dataset.name}") as tell:
                source = Dataset.open(study.dataset)
                prepare(source, self.data, study.prepare, lambda i, n: tell(i, n, ""))
        classes = tuple(self.real.labels)
        if len(classes) < 2:
            raise DataError(
                f"{study.dataset}: its labels are {', '.join(classes) or 'none'}; there must be at "
                "least two classes to tell apart"
            )
        for name in ("train", "validation", "test"):
            split = self.real.split(name)
            there = set(labels_of(split, classes).tolist()) if len(split) else set()
            if lost := [c for k, c in enumerate(classes) if k not in there]:
                raise DataError(f"{study.dataset}: its {name} split has no {', '.join(lost)}")
        if any(setup.others for setup in study.setups) and not self.others:
            raise DataError(
                f"{study.dataset}: {study.draws} draws of {study.slices} images take every "
                "training patient, so no others are left; give fewer --slices or --draws, or "
                "leave out the row of the other patients (study.without)"
            )
        return True

    # Generators and their images

    def classes_of(self, name: str) -> tuple[str, ...]:
        """The classes that a generator is trained for one by one; one empty name: together."""
        return tuple(self.real.labels) if self.study.generators[name].each_class else ("",)

    def generator(self, name: str, d: int, label: str = "") -> Path:
        """The run folder of a generator."""
        return self.out / "generators" / f"{name}-draw{d}{f'-{slug(label)}' * bool(label)}"

    def train(self, name: str, d: int, label: str) -> bool:
        """On the draw's images alone, of one class where one is given."""
        source, folder = self.study.generators[name], self.generator(name, d, label)
        own = self.images(d).where(label=label) if label else self.images(d)
        data = TrainingData(
            data=self.data,
            patients=tuple(own.patients),
            where={"label": label} if label else {},
        )
        with training(f"train {folder.name}") as show:
            done = train_up(
                source.name,
                folder,
                data,
                source.settings(),
                seed=self.study.seed,
                minutes=self.tasks.minutes_left,
                device=self.device,
                progress=show,
            )
        return done is not None

    def set_of(self, name: str, d: int) -> Path:
        """The folder of a synthetic set."""
        return self.out / "sets" / f"{name}-draw{d}"

    def draw_set(self, name: str, d: int) -> bool:
        """As many images as the set-ups need, of the classes as often as the draw has them."""
        folder = self.set_of(name, d)
        if folder.exists():
            return True
        folder.parent.mkdir(exist_ok=True)
        each, study = self.study.generators[name].each_class, self.study
        most = max(p.ratio for setup in study.setups for p in setup.parts if p.set == name)
        n = ceil(1.1 * most * len(self.images(d)) * study.variety) + 8  # some may be copies
        labels = [self.images(d).label(i) or "" for i in range(len(self.images(d)))]
        runs = [self.generator(name, d, c) for c in self.classes_of(name)]
        share = max(labels.count(c) for c in self.real.labels) / len(labels)
        drawn = folder.with_name(f"{folder.name}-even") if each else folder
        if not drawn.exists():
            with progress(f"draw {folder.name}") as tell:
                draw(
                    runs,
                    drawn,
                    n=ceil(n * share) + 8 if each else n,
                    seed=study.seed + d,
                    device="cpu" if self.device == "auto" else self.device,
                    progress=lambda i, of: tell(i, of, ""),
                )
        if each:
            as_often(Dataset.open(drawn), folder, labels, seed=study.seed + d)
        for run_id, saw in Dataset.open(folder).generators_saw.items():
            check_no_leak(self.real.splits, saw, what=f"the generator {run_id}")
        return True

    def verdict(self, name: str, d: int) -> dict[str, Any] | None:
        """What `judge` found; None where it has not been asked."""
        path = self.judged(name, d)
        return read_json(path) if path.is_file() else None

    def judged(self, name: str, d: int) -> Path:
        """Where the verdict on a set is kept."""
        return self.out / "judged" / f"{name}-draw{d}.json"

    def judge(self, name: str, d: int) -> bool:
        """Let the draw's own classifier, trained on its real images, look for the classes."""
        if self.judged(name, d).is_file():
            return True
        self.judged(name, d).parent.mkdir(exist_ok=True)
        found = judge_set(
            self.cell_folder(BASELINE, d, 0),
            Dataset.open(self.set_of(name, d)),
            self.images(d),
            least=self.study.least_found,
            device=self.device,
        )
        write_json(self.judged(name, d), found)
        return True

    # Classifiers

    def refused(self, setup: ClassSetup, d: int) -> str | None:
        """Why a set-up is not run from a draw on: its images were refused there, or before."""
        for k in range(d + 1):
            for part in setup.parts:
                found = self.verdict(part.set, k)
                if found is None:
                    continue
                if not found["admitted"]:
                    return f"{part.set}{self.on(k)}: {found['reason']}"
                n = round(len(self.images(k)) * self.study.variety * part.ratio)
                if found["drawn"] < n:
                    there = f"{found['drawn']} images were no copies"
                    return f"{part.set}{self.on(k)}: {there}, {n} are needed"
        return None

    def wants(self, name: str, d: int) -> bool:
        """Whether a set-up with the images of a generator was not refused on an earlier draw."""
        asking = [s for s in self.study.setups if name in {part.set for part in s.parts}]
        return d == 0 or any(self.refused(setup, d - 1) is None for setup in asking)

    def cell_folder(self, setup: str, d: int, seed: int) -> Path:
        """The folder of one classifier."""
        return self.out / "cells" / f"{slug(setup)}-draw{d}-seed{seed}"

    def cell_task(self, setup: ClassSetup, d: int, seed: int) -> Task:
        """One classifier, trained and tested."""
        return f"{setup.name}{self.on(d)}, seed {seed}", partial(self.cell, setup, d, seed)

    def cell(self, setup: ClassSetup, d: int, seed: int) -> bool:
        """Train a classifier and test it, unless that was done or its images were refused."""
        folder, study = self.cell_folder(setup.name, d, seed), self.study
        if (folder / "cell.json").is_file() or self.refused(setup, d) is not None:
            return True
        chosen = study.classifiers[setup.classifier]
        config, loop = chosen.settings()
        pool = {"real": Pool([self.images(d)])}  # the length of an epoch: the same for every row
        fitted = load_entry(chosen.name).fitted(config, pool).model_copy(update={"mix": setup.mix})
        if not setup.classic:
            fitted = fitted.model_copy(update={"augment": None})
        patients = (*self.drawn[d], *(self.others if setup.others else ()))
        data = TrainingData(
            data=self.data,
            patients=patients if study.slices else (),
            synthetic=tuple(
                Mixed(folder=self.set_of(part.set, d), ratio=part.ratio) for part in setup.parts
            ),
            repeat=study.variety if setup.parts else 1,
            synthetic_first=setup.synthetic_first,
        )
        with training(f"{setup.name}{self.on(d)}, seed {seed}") as show:
            done = run_cell(
                folder,
                {"setup": setup.name, "draw": d},
                data,
                (fitted, loop),
                seed=study.seed + seed,
                minutes=self.tasks.minutes_left,
                device=self.device,
                progress=show,
            )
        return done is not None

    def cells(self) -> tuple[dict[str, list[ClassCell]], dict[str, str]]:
        """The finished classifiers of each set-up, on the draws and seeds that every set-up has;
        and why a set-up has none."""
        study = self.study
        places = [(d, seed) for d in range(study.draws) for seed in range(study.seeds)]
        refused = {
            setup.name: why
            for setup in study.setups
            if (why := self.refused(setup, study.draws - 1)) is not None
        }
        found: dict[str, dict[tuple[int, int], ClassCell]] = {}
        for setup in study.setups:
            own = {
                (d, seed): cell
                for d, seed in places
                if (cell := read_cell(self.cell_folder(setup.name, d, seed), self.data)) is not None
            }
            if setup.name in refused and own:
                done = ", ".join(map(str, sorted({d for d, _ in own})))
                refused[setup.name] += f" (trained on draw {done}, left out)"
            elif setup.name not in refused and own:
                found[setup.name] = own
        common = [place for place in places if all(place in own for own in found.values())]
        return {name: [own[place] for place in common] for name, own in found.items()}, refused

    def report(self) -> bool:
        """The table of the draws and seeds that every set-up has; made once of the same cells."""
        made = self.out / "table.json"
        newest = max(path.stat().st_mtime for path in self.out.glob("cells/*/cell.json"))
        if made.is_file() and made.stat().st_mtime > newest:
            return True
        write_report(self.out, account(self))
        say(f"report: {self.out / 'report.html'} (also report.md and table.json)")
        return True


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
