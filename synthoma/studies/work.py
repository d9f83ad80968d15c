"""An `augment` study under way: where it stands is what its folder holds.

    STUDY/study.json            what is to be done
    STUDY/data, also-K          the prepared datasets
    STUDY/generators/NAME[-drawD]
    STUDY/sets/NAME-drawD[-curated]
    STUDY/judged/NAME-drawD.*   decisions.csv, found.npz and verdict.json of the draw's own detector
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

from synthoma.console import progress, training
from synthoma.data.batches import Pool
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import prepare
from synthoma.data.split import check_no_leak, draw_patients
from synthoma.data.store import read_json, write_json
from synthoma.data.subset import subset
from synthoma.engine.evaluate import figures
from synthoma.errors import DataError
from synthoma.phantoms.folder import write_brains
from synthoma.studies.account import account
from synthoma.studies.augment import BASELINE, PASTE, Setup, Study
from synthoma.studies.cells import Cells, Stock, report_once
from synthoma.studies.detection import (
    THRESHOLD,
    check_boxes,
    read_cell,
    read_findings,
    run_cell,
    write_findings,
)
from synthoma.studies.stages import Stages, Task
from synthoma.studies.trained import paints
from synthoma.studies.verdict import judge_set
from synthoma.synthesis.curate import curate, write_decisions
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import train_up
from synthoma.synthesis.mixture import Mixed, TrainingData
from synthoma.synthesis.paste import paste
from synthoma.zoo import load_entry

#: So many times more images are drawn than are wanted where they are curated.
SPARE = 3
#: Why an extra slice is left out.
LESION = "it has a lesion"


class Work:
    """The parts of a study, each done once."""

    def __init__(
        self, out: Path, study: Study, command: str, device: str, minutes: float | None
    ) -> None:
        self.out, self.study, self.command, self.device = out, study, command, device
        self.tasks = Stages(out, minutes)
        self.cells = Cells(out, study, self.stocks, lambda cell: read_cell(cell, self.data))

    def run(self) -> bool:
        """Every stage in turn, with a report after each draw; False where the minutes were up."""
        return self.tasks.run(self.stages())

    def stages(self) -> Iterator[list[Task]]:
        """What is to be done, in order."""
        study = self.study
        yield [("draw phantoms", self.draw_phantoms)]
        yield [("prepare", self.prepare)]
        trained = {name: s.of for name, s in study.generators.items() if not s.shares}
        of_others = [name for name, of in trained.items() if of == "others"]
        of_draw = [name for name, of in trained.items() if of == "draw"]
        sets = {part.set for setup in study.setups for part in setup.parts}
        judge = next(setup for setup in study.setups if setup.name == BASELINE)
        for d in range(study.draws):
            tasks = [self.cells.task(self.cell, judge, d, 0)]
            if d == 0:
                tasks = [
                    (f"train {name}", partial(self.train_generator, name)) for name in of_others
                ]
                tasks += [self.cells.task(self.cell, judge, d, 0)]
            tasks += [
                (f"train {name}{self.cells.on(d)}", partial(self.train_generator, name, d))
                for name in of_draw
                if self.wants(name, d)
            ]
            yield tasks
            sets = {name for name in sets if self.wants(name, d)}
            yield [
                (f"draw {name}{self.cells.on(d)}", partial(self.draw_set, name, d)) for name in sets
            ]
            yield [
                (f"judge {name}{self.cells.on(d)}", partial(self.judge, name, d)) for name in sets
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
        found = draw_patients(
            train.patient_ids,
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

    def slices(self, d: int) -> Dataset:
        """The real slices of a draw."""
        return self.real.of_patients(set(self.drawn[d]))

    def also(self) -> tuple[Path, ...]:
        """The prepared tumour-free slices."""
        return tuple(self.out / f"also-{k}" for k in range(len(self.study.also)))

    def draw_phantoms(self) -> bool:
        """Where the study is on phantoms."""
        study = self.study
        wanted = {study.dataset: study.phantoms}
        wanted |= dict.fromkeys(study.also, study.normal_phantoms)
        for folder, brains in wanted.items():
            if brains is not None and not folder.exists():
                with progress(f"draw {folder.name}") as tell:
                    write_brains(
                        folder, brains, seed=study.seed, progress=lambda i, n: tell(i, n, "")
                    )
        return True

    def prepare(self) -> bool:
        """Bring every dataset to the generators' side; of the extra slices keep those without a
        lesion."""
        whole = {folder: folder.with_name(f"{folder.name}-whole") for folder in self.also()}
        sources = {self.data: self.study.dataset}
        sources |= dict(zip(whole.values(), self.study.also, strict=True))
        for target, source in sources.items():
            if not target.exists():
                with progress(f"prepare {source.name}") as tell:
                    settings = self.study.prepare
                    prepare(Dataset.open(source), target, settings, lambda i, n: tell(i, n, ""))
        for free, prepared in whole.items():
            if not free.exists():
                cases = Dataset.open(prepared)
                boxed = np.array([len(cases.boxes(i)) > 0 for i in range(len(cases))], bool)
                names = [cases[int(i)].case_id for i in np.flatnonzero(boxed)]
                subset(cases, free, np.flatnonzero(~boxed), dropped={LESION: names}, about={})
        check_boxes(self.real, self.study.dataset)
        of_others = any(source.of == "others" for source in self.study.generators.values())
        if (of_others or any(s.others for s in self.study.setups)) and not self.others:
            raise DataError(
                f"{self.study.dataset}: {self.study.draws} draws of {self.study.slices} slices "
                "take every training patient, so no others are left for generators to learn "
                "from; give fewer --slices or --draws"
            )
        return True

    # Generators and their images

    def generator(self, name: str, d: int) -> Path:
        """The run folder of a generator."""
        name = self.study.generators[name].shares or name
        of_draw = self.study.generators[name].of == "draw"
        return self.out / "generators" / (f"{name}-draw{d}" if of_draw else name)

    def train_generator(self, name: str, d: int = 0) -> bool:
        """On slices with lesions of training patients alone, and tumour-free ones where wanted."""
        source, folder = self.study.generators[name], self.generator(name, d)
        data = TrainingData(
            data=self.data,
            patients=self.drawn[d] if source.of == "draw" else self.others,
            boxed=True,
            also=self.also() if source.also else (),
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

    def set_of(self, name: str, d: int, *, curated: bool = False) -> Path:
        """The folder of a synthetic set."""
        return self.out / "sets" / f"{name}-draw{d}{'-curated' * curated}"

    def wanted(self, name: str, d: int) -> tuple[int, int]:
        """Images that the set-ups need of a set: at all, and after curation."""
        parts = [part for setup in self.study.setups for part in setup.parts if part.set == name]
        n = len(self.slices(d)) * self.study.variety
        curated = ceil(n * max([0.0, *(part.ratio for part in parts if part.curated)]))
        most = n * max(part.ratio for part in parts)  # and some, as copies of patients are dropped
        return max(ceil(1.1 * most) + 8, SPARE * curated), curated

    def draw_set(self, name: str, d: int) -> bool:
        """As many images as the set-ups need."""
        folder, (n, _) = self.set_of(name, d), self.wanted(name, d)
        if folder.exists():
            return True
        folder.parent.mkdir(exist_ok=True)
        with progress(f"draw {folder.name}") as tell:
            if name == PASTE:
                paste(
                    self.slices(d),
                    folder,
                    n=n,
                    seed=self.study.seed,
                    progress=lambda i, of: tell(i, of, ""),
                )
            else:
                run, source = self.generator(name, d), self.study.generators[name]
                onto = Dataset.open(self.also()[0]).split("train") if source.also else None
                draw(
                    [run],
                    folder,
                    n=n,
                    seed=self.study.seed + d,
                    onto=(onto or self.slices(d)) if paints(run) else None,
                    device="cpu" if self.device == "auto" else self.device,
                    progress=lambda i, of: tell(i, of, ""),
                )
        for run_id, saw in Dataset.open(folder).generators_saw.items():
            check_no_leak(self.real.splits, saw, what=f"the generator {run_id}")
        return True

    def judged(self, name: str, d: int) -> Path:
        """Where the verdict on a set is kept."""
        return self.out / "judged" / f"{name}-draw{d}"

    def verdict(self, name: str, d: int) -> dict[str, Any] | None:
        """What `judge` found; None where it has not been asked."""
        path = self.judged(name, d) / "verdict.json"
        return read_json(path) if path.is_file() else None

    def wants(self, name: str, d: int) -> bool:
        """Whether a set-up with the images of a generator was not refused on an earlier draw."""
        sharing = {n for n, source in self.study.generators.items() if source.shares == name}
        asking = [s for s in self.study.setups
                  if {name, *sharing} & {part.set for part in s.parts}]  # fmt: skip
        return self.cells.any_left(asking, d)

    def judge(self, name: str, d: int) -> bool:
        """Let the draw's own detector, trained on its real slices, look for the ordered lesions,
        and keep the images in which it finds them."""
        folder = self.judged(name, d)
        if self.verdict(name, d) is not None:
            return True
        folder.mkdir(parents=True, exist_ok=True)
        drawn, curated = Dataset.open(self.set_of(name, d)), self.set_of(name, d, curated=True)
        found = judge_set(
            self.cells.folder(BASELINE, d, 0),
            drawn,
            self.slices(d),
            least=self.study.least_found,
            device=self.device,
        )
        (folder / "decisions.csv").unlink(missing_ok=True)  # of a call that was killed here
        write_decisions(found.decisions, folder / "decisions.csv")
        write_findings(folder / "found.npz", found.findings)
        if self.wanted(name, d)[1] and found.facts["passed"] and not curated.exists():
            curate(drawn, found.decisions, curated)
        write_json(folder / "verdict.json", found.facts)
        return True

    # Detectors

    def stocks(self, setup: Setup, d: int) -> Iterator[Stock]:
        """The images of each part that was judged on a draw."""
        for part in setup.parts:
            if (v := self.verdict(part.set, d)) is not None:
                yield Stock(
                    name=f"{part.set}{self.cells.on(d)}",
                    admitted=v["admitted"],
                    reason=v["reason"],
                    images=v["passed" if part.curated else "drawn"],
                    curated=part.curated,
                    real=len(self.slices(d)),
                    ratio=part.ratio,
                )

    def variety(self, setup: Setup, d: int) -> int:
        """How many times more different synthetic images are dealt: as the study wants, or as many
        as there are."""
        most = self.study.variety
        return min([stock.variety(most) for stock in self.stocks(setup, d)], default=1)

    def cell(self, setup: Setup, d: int, seed: int) -> bool:
        """Train a detector and test it, unless that was done or its images were refused."""
        folder = self.cells.folder(setup.name, d, seed)
        if read_cell(folder, self.data) is not None or self.cells.refused(setup, d) is not None:
            return True
        folder.parent.mkdir(exist_ok=True)
        detector = self.study.detector
        config, loop = detector.settings()
        pool = {"real": Pool([self.slices(d)])}  # anchors, classes: the same for every row
        fitted = load_entry(detector.name).fitted(config, pool)
        if not setup.classic:
            fitted = fitted.model_copy(update={"augment": None})
        patients = (*self.drawn[d], *(self.others if setup.others else ()))
        data = TrainingData(
            data=self.data,
            patients=patients if self.study.slices else (),
            synthetic=tuple(
                Mixed(folder=self.set_of(part.set, d, curated=part.curated), ratio=part.ratio)
                for part in setup.parts
            ),
            repeat=self.variety(setup, d),
            synthetic_first=setup.synthetic_first,
        )
        with training(self.cells.title(setup, d, seed)) as show:
            done = run_cell(
                folder,
                {"setup": setup.name, "draw": d},
                data,
                (fitted, loop),
                name=detector.name,
                seed=self.study.seed + seed,
                minutes=self.tasks.minutes_left,
                device=self.device,
                progress=show,
                figured=partial(figures, threshold=THRESHOLD),
            )
        return done is not None

    def findings(self, name: str, d: int) -> Any:
        """What the draw's own detector found in a set."""
        drawn = Dataset.open(self.set_of(name, d))
        return read_findings(self.judged(name, d) / "found.npz", drawn)

    def report(self) -> bool:
        """The table of the draws and seeds that every set-up has; made once of the same cells."""
        return report_once(self.out, lambda: account(self))
