"""A study of detectors of volumes under way: where it stands is what its folder holds.

    STUDY/study.json            what is to be done
    STUDY/cubes                 a cube around every nodule of the dataset
    STUDY/generators/NAME-drawD
    STUDY/sets/NAME-drawD       scans with their nodules drawn anew
    STUDY/judged/NAME-drawD.json    what the draw's own detector finds of them
    STUDY/cells/SETUP-drawD-seedS
    STUDY/report.html, report.md, table.json, seconds.json

Parts of a stage do not depend on one another; several processes may share them (`stages.py`).
"""

from collections.abc import Iterator
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

from synthoma.console import progress, training
from synthoma.data.batches import Pool
from synthoma.data.dataset import Dataset
from synthoma.data.split import check_no_leak, draw_patients
from synthoma.data.store import read_json, write_json
from synthoma.data.vois import cut_all
from synthoma.engine.scans import scan_figures
from synthoma.errors import DataError
from synthoma.phantoms.folder import write_chests
from synthoma.studies.augment import BASELINE
from synthoma.studies.cells import Cells, Stock, report_once
from synthoma.studies.detect3d import ScanSetup, ScanStudy
from synthoma.studies.detect3d_account import account
from synthoma.studies.detection import check_boxes, read_cell, run_cell
from synthoma.studies.drawn_nodules import judge_nodules
from synthoma.studies.stages import Stages, Task
from synthoma.synthesis.fit import train_up
from synthoma.synthesis.mixture import Mixed, TrainingData
from synthoma.synthesis.place import place
from synthoma.zoo import load_entry

#: So many times more scans are drawn than are wanted: those with a copy are left out, and with L1
#: that was every third on phantoms.
SPARE = 1.5


class ScanWork:
    """The parts of a study, each done once."""

    def __init__(
        self, out: Path, study: ScanStudy, command: str, device: str, minutes: float | None
    ) -> None:
        self.out, self.study, self.command, self.device = out, study, command, device
        self.tasks = Stages(out, minutes)
        self.cells = Cells(out, study, self.stocks, lambda cell: read_cell(cell, study.dataset))

    def run(self) -> bool:
        """Every stage in turn, with a report after each draw; False where the minutes were up."""
        return self.tasks.run(self.stages())

    def stages(self) -> Iterator[list[Task]]:
        """What is to be done, in order."""
        study, judge = self.study, self.study.setups[0]
        yield [("draw phantoms", self.draw_phantoms)]
        yield [("cut cubes", self.cut_cubes)]
        for d in range(study.draws):
            on = self.cells.on(d)
            wanted = [name for name in study.generators if self.wants(name, d)]
            yield [
                self.cells.task(self.cell, judge, d, 0),
                *((f"train {name}{on}", partial(self.train_generator, name, d)) for name in wanted),
            ]
            yield [(f"draw {name}{on}", partial(self.draw_set, name, d)) for name in wanted]
            yield [(f"judge {name}{on}", partial(self.judge, name, d)) for name in wanted]
            yield self.cells.tasks(self.cell, d)
            yield [(f"report on {d + 1} of {study.draws} draws", self.report)]

    # The data

    @cached_property
    def real(self) -> Dataset:
        """The scans."""
        return Dataset.open(self.study.dataset)

    @property
    def cubes(self) -> Path:
        """Their nodules' cubes."""
        return self.out / "cubes"

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

    def scans(self, d: int) -> Dataset:
        """The real scans of a draw."""
        return self.real.of_patients(set(self.drawn[d]))

    def draw_phantoms(self) -> bool:
        """Where the study is on phantoms."""
        folder, chests = self.study.dataset, self.study.phantoms
        if chests is not None and not folder.exists():
            with progress(f"draw {folder.name}") as tell:
                write_chests(
                    folder, chests, seed=self.study.seed, progress=lambda i, n: tell(i, n, "")
                )
        return True

    def cut_cubes(self) -> bool:
        """A cube around every nodule, and see that detectors can be judged."""
        if self.real.about["dimensions"] != 3:
            raise DataError(f"{self.study.dataset}: slices; --task detect3d is of volumes")
        check_boxes(self.real, self.study.dataset)
        if not self.cubes.exists():
            side_px = next(iter(self.study.generators.values())).system["side_px"]
            with progress("cut cubes") as tell:
                cut_all(
                    self.real, self.cubes, side_px=side_px, progress=lambda i, n: tell(i, n, "")
                )
        return True

    # Generators and their scans

    def generator(self, name: str, d: int) -> Path:
        """The run folder of a generator."""
        return self.out / "generators" / f"{name}-draw{d}"

    def train_generator(self, name: str, d: int) -> bool:
        """On the nodules of a draw's patients alone."""
        source, folder = self.study.generators[name], self.generator(name, d)
        with_nodules = set(Dataset.open(self.cubes).split("train").patients)
        patients = tuple(p for p in self.drawn[d] if p in with_nodules)
        if not patients:
            raise DataError(
                f"{self.study.dataset}: no training patient{self.cells.on(d)} has a nodule of "
                "known size and attenuation to learn from"
            )
        with training(f"train {folder.name}") as show:
            done = train_up(
                source.name,
                folder,
                TrainingData(data=self.cubes, patients=patients),
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
        """As many scans as the set-ups need, and some, as copies of nodules are left out."""
        folder = self.set_of(name, d)
        if folder.exists():
            return True
        folder.parent.mkdir(exist_ok=True)
        most = max(setup.ratio for setup in self.study.setups if setup.set == name)
        with progress(f"draw {folder.name}") as tell:
            place(
                self.generator(name, d),
                self.scans(d),
                folder,
                n=ceil(SPARE * most * len(self.scans(d))),
                seed=self.study.seed + d,
                device="cpu" if self.device == "auto" else self.device,
                progress=lambda i, n: tell(i, n, ""),
            )
        for run_id, saw in Dataset.open(folder).generators_saw.items():
            check_no_leak(self.real.splits, saw, what=f"the generator {run_id}")
        return True

    def judged(self, name: str, d: int) -> Path:
        """Where the verdict on a set is kept."""
        return self.out / "judged" / f"{name}-draw{d}.json"

    def verdict(self, name: str, d: int) -> dict[str, Any] | None:
        """What `judge` found; None where it has not been asked."""
        path = self.judged(name, d)
        return read_json(path) if path.is_file() else None

    def judge(self, name: str, d: int) -> bool:
        """Let the draw's own detector, trained on its real scans, look for the drawn nodules."""
        path = self.judged(name, d)
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            facts = judge_nodules(
                self.cells.folder(BASELINE, d, 0),
                Dataset.open(self.set_of(name, d)),
                self.real.split("validation"),
                least=self.study.least_found,
                device=self.device,
            )
            write_json(path, facts)
        return True

    def wants(self, name: str, d: int) -> bool:
        """Whether a set was not refused on an earlier draw."""
        own = [setup for setup in self.study.setups if setup.set == name]
        return self.cells.any_left(own, d)

    # Detectors

    def stocks(self, setup: ScanSetup, d: int) -> Iterator[Stock]:
        """The scans of a set-up that were judged on a draw."""
        if setup.set and (v := self.verdict(setup.set, d)) is not None:
            yield Stock(
                name=f"{setup.set}{self.cells.on(d)}",
                admitted=v["admitted"],
                reason=v["reason"],
                images=v["drawn"],
                curated=False,
                real=len(self.scans(d)),
                ratio=setup.ratio,
            )

    def cell(self, setup: ScanSetup, d: int, seed: int) -> bool:
        """Train a detector and test it, unless that was done or its scans were refused."""
        folder, data = self.cells.folder(setup.name, d, seed), self.study.dataset
        if read_cell(folder, data) is not None or self.cells.refused(setup, d) is not None:
            return True
        folder.parent.mkdir(exist_ok=True)
        detector = self.study.detector
        config, loop = detector.settings()
        pool = {"real": Pool([self.scans(d)])}  # anchors, classes: the same for every row
        mixed = [Mixed(folder=self.set_of(setup.set, d), ratio=setup.ratio)] if setup.set else []
        with training(self.cells.title(setup, d, seed)) as show:
            done = run_cell(
                folder,
                {"setup": setup.name, "draw": d},
                TrainingData(
                    data=data,
                    patients=self.drawn[d] if self.study.slices else (),
                    synthetic=tuple(mixed),
                ),
                (load_entry(detector.name).fitted(config, pool), loop),
                name=detector.name,
                seed=self.study.seed + seed,
                minutes=self.tasks.minutes_left,
                device=self.device,
                progress=show,
                figured=scan_figures,
            )
        return done is not None

    def report(self) -> bool:
        """The table of the draws and seeds that every set-up has; made once of the same cells."""
        return report_once(self.out, lambda: account(self))
