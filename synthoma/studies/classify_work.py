"""A study of classifiers under way: where it stands is what its folder holds.

    STUDY/study.json            what is to be done
    STUDY/data                  the prepared dataset
    STUDY/generators/NAME-drawD[-CLASS]
    STUDY/sets/NAME-drawD       (of generators of one class: first NAME-drawD-even)
    STUDY/clusters, refiners, tries     what sets are curated and refined with (classify_sets.py)
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

from pydantic import BaseModel

from synthoma.console import progress, say, training
from synthoma.data.batches import Pool
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import NO_LABEL, prepare
from synthoma.data.split import draw_patients_of_every_class
from synthoma.data.store import read_json, write_json
from synthoma.engine.settings import TrainSettings
from synthoma.errors import DataError
from synthoma.phantoms.folder import write_brains
from synthoma.studies.augment import BASELINE, CURATED
from synthoma.studies.cells import Cells, Stock, report_once
from synthoma.studies.classify import ClassifyStudy, ClassSetup, check_classes
from synthoma.studies.classify_account import account
from synthoma.studies.classify_cell import judge_set, read_cell, run_cell
from synthoma.studies.classify_sets import (
    curate_set,
    draw_set,
    refine_set,
    train_generator,
    train_refiner,
    with_spare,
)
from synthoma.studies.stages import Stages, Task, slug
from synthoma.synthesis.mixture import Mixed, TrainingData
from synthoma.zoo import load_entry

#: What of a loop is told in steps, and follows its length.
IN_STEPS = ("steps", "validate_every")


class ClassifyWork:
    """The parts of a study, each done once."""

    def __init__(
        self, out: Path, study: ClassifyStudy, command: str, device: str, minutes: float | None
    ) -> None:
        self.out, self.study, self.command, self.device = out, study, command, device
        self.tasks = Stages(out, minutes)
        self.cells = Cells(out, study, self.stocks, lambda cell: read_cell(cell, self.data))

    def run(self) -> bool:
        """Every stage in turn, with a report after each draw; False where the minutes were up."""
        return self.tasks.run(self.stages())

    def stages(self) -> Iterator[list[Task]]:
        """What is to be done, in order."""
        study, judge = self.study, self.study.setup(BASELINE)
        yield [("phantoms", self.draw_phantoms)]
        yield [("prepare", self.prepare)]
        for d in range(study.draws):
            on = self.cells.on(d)
            yield [
                self.cells.task(self.cell, judge, d, 0),
                *(
                    (
                        f"train {name}{f' of {c}' * bool(c)}{on}",
                        partial(train_generator, self, name, d, c),
                    )
                    for name in study.generators
                    if self.wants(name, d)
                    for c in self.classes_of(name)
                ),
            ]
            yield [
                (f"draw {name}{on}", partial(draw_set, self, name, d))
                for name in study.generators
                if self.wants(name, d)
            ]
            yield [
                (f"choose {name}{on}", partial(curate_set, self, name, d))
                for name in study.curated
                if self.wants(name, d)
            ]
            refined = [name for name in study.refiners if self.wants(name, d)]
            yield [
                (f"train {name} of {c}{on}", partial(train_refiner, self, name, d, c))
                for name in refined
                for c in self.real.labels
            ]
            yield [(f"refine {name}{on}", partial(refine_set, self, name, d)) for name in refined]
            yield [
                (f"judge {name}{on}", partial(self.judge, name, d))
                for name in study.sets
                if self.wants(name, d)
            ]
            yield self.cells.tasks(self.cell, d)
            yield [(f"report on {d + 1} of {study.draws} draws", self.report)]

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

    def draw_phantoms(self) -> bool:
        """Where the study is on phantoms."""
        folder, brains = self.study.dataset, self.study.phantoms
        if brains is not None and not folder.exists():
            with progress(f"draw {folder.name}") as tell:
                write_brains(
                    folder, brains, seed=self.study.seed, progress=lambda i, n: tell(i, n, "")
                )
        return True

    def prepare(self) -> bool:
        """Bring the dataset to the generators' side, and see that it can be studied."""
        study = self.study
        if not self.data.exists():
            with progress(f"prepare {study.dataset.name}") as tell:
                source = Dataset.open(study.dataset)
                done = prepare(
                    source, self.data, study.prepare, lambda i, n: tell(i, n, ""), labelled=True
                )
            if unlabelled := done.about["dropped"].get(NO_LABEL):
                say(
                    f"{study.dataset}: {unlabelled['n']} cases without a label are left out; "
                    "`synthoma label` gives them one where a classifier is sure"
                )
        check_classes(self.real, study.dataset)
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

    def set_of(self, name: str, d: int) -> Path:
        """The folder of a synthetic set."""
        return self.out / "sets" / f"{slug(name)}-draw{d}"

    def repeat(self, setup: ClassSetup, d: int) -> int:
        """How often each real image is dealt in a round, beside synthetic ones."""
        most = self.study.variety
        return setup.copies * min([s.variety(most) for s in self.stocks(setup, d)], default=1)

    def needed(self, name: str, d: int) -> int:
        """Images of a set that set-ups need, or that other sets are made of."""
        study = self.study
        own = [
            round(part.ratio * (len(self.images(d)) * setup.copies * study.variety))
            for setup in study.setups
            for part in setup.parts
            if part.name == name
        ]
        own += [with_spare(self.needed(r, d)) for r, by in study.refiners.items() if by.of == name]
        if name + CURATED in study.curated:
            own.append(ceil(study.spare * self.needed(name + CURATED, d)))
        return max(own)

    def even(self, name: str, d: int) -> Path:
        """Where a set is before its classes are as often as the draw has them."""
        return self.out / "sets" / f"{slug(name)}-draw{d}-even"

    def labels(self, d: int) -> list[str]:
        """The classes of the draw's real images."""
        images = self.images(d)
        return [images.label(i) or "" for i in range(len(images))]

    def verdict(self, name: str, d: int) -> dict[str, Any] | None:
        """What `judge` found; None where it has not been asked."""
        path = self.judged(name, d)
        return read_json(path) if path.is_file() else None

    def judged(self, name: str, d: int) -> Path:
        """Where the verdict on a set is kept."""
        return self.out / "judged" / f"{slug(name)}-draw{d}.json"

    def judge(self, name: str, d: int) -> bool:
        """Let the draw's own classifier, trained on its real images, look for the classes."""
        if self.judged(name, d).is_file():
            return True
        self.judged(name, d).parent.mkdir(exist_ok=True)
        found = judge_set(
            self.cells.folder(BASELINE, d, 0),
            Dataset.open(self.set_of(name, d)),
            self.images(d),
            least=self.study.least_found,
            device=self.device,
        )
        write_json(self.judged(name, d), found)
        return True

    # Classifiers

    def stocks(self, setup: ClassSetup, d: int) -> Iterator[Stock]:
        """The images of each part that was judged on a draw."""
        for part in setup.parts:
            if (v := self.verdict(part.name, d)) is not None:
                yield Stock(
                    name=f"{part.name}{self.cells.on(d)}",
                    admitted=v["admitted"],
                    reason=v["reason"],
                    images=v["drawn"],
                    curated=CURATED in part.name,
                    real=len(self.images(d)) * setup.copies,
                    ratio=part.ratio,
                )

    def wants(self, name: str, d: int) -> bool:
        """Whether a set-up with images of a set, or made of it, was not refused on an earlier
        draw."""
        asking = [
            setup
            for setup in self.study.setups
            if any(name in self.study.made_of(part.name) for part in setup.parts)
        ]
        return self.cells.any_left(asking, d)

    def classifier(self, setup: ClassSetup, d: int) -> tuple[BaseModel, TrainSettings]:
        """Its settings and its loop's: as long as every row's, or for as many epochs."""
        chosen, times = self.study.classifiers[setup.classifier], 1.0
        config, loop = chosen.settings()
        pool = {"real": Pool([self.images(d)])}  # the length of an epoch, without synthetic images
        fitted = load_entry(chosen.name).fitted(config, pool)
        if self.study.length == "images":
            times = setup.images
        update = {"mix": setup.mix, "steps_per_epoch": ceil(times * fitted.steps_per_epoch)}
        if not loop.epochs:
            longer = {name: ceil(times * getattr(loop, name)) for name in IN_STEPS}
            loop = loop.model_copy(update=longer)
        return fitted.model_copy(update=update), loop

    def cell(self, setup: ClassSetup, d: int, seed: int) -> bool:
        """Train a classifier and test it, unless that was done or its images were refused."""
        folder, study = self.cells.folder(setup.name, d, seed), self.study
        if (folder / "cell.json").is_file() or self.cells.refused(setup, d) is not None:
            return True
        fitted, loop = self.classifier(setup, d)
        if not setup.classic:
            fitted = fitted.model_copy(update={"augment": None})
        patients = (*self.drawn[d], *(self.others if setup.others else ()))
        data = TrainingData(
            data=self.data,
            patients=patients if study.slices else (),
            synthetic=tuple(
                Mixed(folder=self.set_of(part.name, d), ratio=part.ratio) for part in setup.parts
            ),
            repeat=self.repeat(setup, d),
            synthetic_first=setup.synthetic_first,
        )
        with training(self.cells.title(setup, d, seed)) as show:
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

    def report(self) -> bool:
        """The table of the draws and seeds that every set-up has; made once of the same cells."""
        return report_once(self.out, lambda: account(self))
