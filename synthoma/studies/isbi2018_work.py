"""The study of Han et al. 2018 under way: where it stands is what its folder holds.

    STUDY/study.json                what is to be done
    STUDY/data-128, data-64         the prepared slices of all sequences, at each side
    STUDY/generators/SET-GAN        run folders
    STUDY/sets/SET-GAN              what each drew
    STUDY/sheets/SET-GAN.png        the first of them
    STUDY/turing/SET-GAN/001.png    real and synthetic slices in random order
    STUDY/turing-keys/SET-GAN.csv   which is which
    STUDY/told/SET-GAN.json         the two-sample test
    STUDY/report.html, report.md, table.json, seconds.json

Parts of a stage do not depend on one another; several processes may share them (`stages.py`).
"""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthoma.console import progress, say, training
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import prepare
from synthoma.data.sheet import contact_sheet, draw_boxes, titled, to_bytes, write_png
from synthoma.data.split import check_no_leak
from synthoma.data.store import new_folder, read_json, write_json
from synthoma.errors import DataError
from synthoma.metrics.twosample import c2st
from synthoma.phantoms.sequences import write_sequences
from synthoma.report.page import write_report
from synthoma.studies.classify_tables import features_of
from synthoma.studies.isbi2018_account import account
from synthoma.studies.isbi2018_brats import SEQUENCES, BratsStudy
from synthoma.studies.stages import Stages, Task, slug
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import train_up
from synthoma.synthesis.mixture import TrainingData

#: Images on a sample sheet, and the side of each there.
ON_SHEET, SHEET_PX = 64, 128


class BratsWork:
    """The parts of a study, each done once."""

    def __init__(
        self, out: Path, study: BratsStudy, command: str, device: str, minutes: float | None
    ) -> None:
        self.out, self.study, self.command, self.device = out, study, command, device
        self.tasks = Stages(out, minutes)

    def run(self) -> bool:
        """Every stage in turn; False where the minutes were up."""
        return self.tasks.run(self.stages())

    def stages(self) -> Iterator[list[Task]]:
        """What is to be done, in order."""
        study = self.study
        yield [("phantoms", self.draw_phantoms)]
        yield [(f"prepare at {side} px", partial(self.prepare, side)) for side in study.sides]
        yield [(f"train {name}", partial(self.train, name)) for name in study.sets]
        yield [(f"draw {name}", partial(self.draw_set, name)) for name in study.sets]
        yield [
            task
            for name in study.sets
            for task in (
                (f"sheet of {name}", partial(self.sheet, name)),
                (f"pictures of {name}", partial(self.ask, name)),
                (f"tell {name}", partial(self.tell, name, synthetic=True)),
                (f"tell real {name}", partial(self.tell, name, synthetic=False)),
            )
        ]
        yield [("report", self.report)]

    # The data

    def data(self, side_px: int) -> Path:
        """The prepared slices at a side."""
        return self.out / f"data-{side_px}"

    def draw_phantoms(self) -> bool:
        """Where the study is on phantoms."""
        folder, brains = self.study.dataset, self.study.phantoms
        if brains is not None and not folder.exists():
            with progress(f"draw {folder.name}") as tell:
                write_sequences(
                    folder, brains, seed=self.study.seed, progress=lambda i, n: tell(i, n, "")
                )
        return True

    def prepare(self, side_px: int) -> bool:
        """Bring the slices to a side, and see that each set has enough of them."""
        folder = self.data(side_px)
        if not folder.exists():
            settings = self.study.prepare.model_copy(update={"side_px": side_px})
            with progress(f"prepare {self.study.dataset.name} at {side_px} px") as tell:
                source = Dataset.open(self.study.dataset)
                prepare(source, folder, settings, lambda i, n: tell(i, n, ""))
        found = Dataset.open(folder)[0].traits.get("sequence")
        if found not in SEQUENCES:
            raise DataError(
                f"{self.study.dataset}: trait sequence is {found!r}; allowed: "
                f"{', '.join(SEQUENCES)}, as `data import --format brats` writes it"
            )
        for name, own in self.study.sets.items():
            if own.side_px == side_px:
                for split in ("train", "unseen"):
                    if len(set(self.real(name, split).patients)) < 2:
                        raise DataError(
                            f"{self.study.dataset}: fewer than two {split} patients for {name!r}"
                        )
                in_equal_parts(self.real(name, "unseen"), self.study.asked, np.random.default_rng())
        return True

    def real(self, name: str, which: str) -> Dataset:
        """Real slices of a set: of the training split, or of the "unseen" others."""
        own = self.study.sets[name]
        whole = Dataset.open(self.data(own.side_px))
        train = set(whole.splits["train"])
        kept = train if which == "train" else set(whole.patients) - train
        slices = whole.of_patients(kept)
        return slices.where(sequence=own.sequence) if own.sequence else slices

    # GANs and their slices

    def generator(self, name: str) -> Path:
        """The run folder of a GAN."""
        return self.out / "generators" / slug(name)

    def train(self, name: str) -> bool:
        """On the set's slices of training patients alone."""
        own, folder = self.study.sets[name], self.generator(name)
        data = TrainingData(
            data=self.data(own.side_px),
            where={"sequence": own.sequence} if own.sequence else {},
        )
        with training(f"train {name}") as show:
            done = train_up(
                own.gan.name,
                folder,
                data,
                own.gan.settings(),
                seed=self.study.seed,
                minutes=self.tasks.minutes_left,
                device=self.device,
                progress=show,
            )
        return done is not None

    def set_of(self, name: str) -> Path:
        """The folder of what a GAN drew."""
        return self.out / "sets" / slug(name)

    def draw_set(self, name: str) -> bool:
        """Slices of a GAN, without copies of patients'."""
        folder = self.set_of(name)
        if folder.exists():
            return True
        folder.parent.mkdir(exist_ok=True)
        with progress(f"draw {name}") as tell:
            drawn = draw(
                [self.generator(name)],
                folder,
                n=self.study.drawn,
                seed=self.study.seed,
                device="cpu" if self.device == "auto" else self.device,
                progress=lambda i, of: tell(i, of, ""),
            )
        splits = Dataset.open(self.data(self.study.sets[name].side_px)).splits
        for run_id, saw in drawn.generators_saw.items():
            check_no_leak(splits, saw, what=f"the generator {run_id}")
        return True

    def sheet(self, name: str) -> bool:
        """The first slices that a GAN drew; none was chosen."""
        path = self.out / "sheets" / f"{slug(name)}.png"
        if path.exists():
            return True
        path.parent.mkdir(exist_ok=True)
        drawn = Dataset.open(self.set_of(name))
        tiles = [
            draw_boxes(grey(drawn, i), np.zeros((0, 4), np.float32), side_px=SHEET_PX)
            for i in range(min(ON_SHEET, len(drawn)))
        ]
        write_png(path, titled(contact_sheet(tiles), f"synthetic: {name}"), {"Synthetic": "yes"})
        return True

    # Visual Turing tests

    def ask(self, name: str) -> bool:
        """A folder of real and synthetic slices in random order, and the key in another folder."""
        folder = self.out / "turing" / slug(name)
        key = self.out / "turing-keys" / f"{slug(name)}.csv"
        if folder.exists():
            return True
        for parent in (folder.parent, key.parent):
            parent.mkdir(exist_ok=True)
        # of its own name, so that the key of one test tells nothing of another's
        chance = np.random.default_rng([self.study.seed, *name.encode()])
        real, drawn = self.real(name, "unseen"), Dataset.open(self.set_of(name))
        if len(drawn) < self.study.asked:
            raise DataError(
                f"{drawn.folder}: {len(drawn)} slices that are no copies, {self.study.asked} are "
                "asked about; train the GAN longer, or ask fewer (study.asked)"
            )
        pictures = [("real", real, i) for i in in_equal_parts(real, self.study.asked, chance)]
        places = chance.permutation(len(drawn))[: len(pictures)].tolist()
        pictures += [("synthetic", drawn, i) for i in places]
        rows = []
        with new_folder(folder) as made:
            for number, k in enumerate(chance.permutation(len(pictures)).tolist(), 1):
                kind, dataset, i = pictures[k]
                file = f"{number:03}.png"
                write_png(made / file, np.repeat(grey(dataset, i), 3, 0).transpose(1, 2, 0))
                rows.append((file, kind, dataset[i].case_id))
            with key.open("w", encoding="utf-8", newline="") as file_of_keys:
                table = csv.writer(file_of_keys, lineterminator="\n")
                table.writerows([("file", "kind", "case"), *rows])
        return True

    # Two samples

    def told(self, name: str, *, synthetic: bool) -> Path:
        """Where a two-sample test is kept."""
        return self.out / "told" / f"{slug(name)}{'' if synthetic else '-real'}.json"

    def found(self, name: str, *, synthetic: bool) -> dict[str, Any]:
        """What `tell` found."""
        kept: dict[str, Any] = read_json(self.told(name, synthetic=synthetic))
        return kept

    def tell(self, name: str, *, synthetic: bool) -> bool:
        """Tell a GAN's slices, or real training ones, from those of unseen patients, one slice a
        patient on both sides."""
        path, chance = self.told(name, synthetic=synthetic), np.random.default_rng(self.study.seed)
        if path.is_file():
            return True
        path.parent.mkdir(exist_ok=True)
        first = one_a_patient(self.real(name, "unseen"), chance)
        if synthetic:
            second = Dataset.open(self.set_of(name))
        else:
            second = one_a_patient(self.real(name, "train"), chance)
        n = min(len(first), len(second))
        first, second = (d.take(np.sort(chance.permutation(len(d))[:n])) for d in (first, second))
        result = c2st(
            features_of(first),
            features_of(second),
            first_patients=np.array(first.patient_ids),
            second_patients=np.array(second.patient_ids),
            seed=self.study.seed,
            permutations=self.study.permutations,
        )
        e = result.accuracy
        low, high = (
            np.quantile(result.null, (0.025, 0.975)).tolist() if len(result.null) else (0, 1)
        )
        write_json(
            path,
            {
                "accuracy": {"value": e.value, "low": e.low, "high": e.high, "n": e.n},
                "slices": n,
                "null": [float(result.null.mean()) if len(result.null) else 0.5, low, high],
                "p": result.p,
            },
        )
        return True

    def report(self) -> bool:
        """One page, made once."""
        if not (self.out / "table.json").is_file():
            write_report(self.out, account(self))
            say(f"report: {self.out / 'report.html'} (also report.md and table.json)")
        return True


def grey(dataset: Dataset, i: int) -> np.ndarray:
    """A slice in bytes (1, side, side)."""
    return to_bytes(dataset.values(i), dataset.about["value_range"])


def in_equal_parts(real: Dataset, n: int, chance: np.random.Generator) -> list[int]:
    """Places of n slices by chance, as equally of each sequence as n allows, or of as many as there
    are.

    Raises:
        DataError: A sequence has too few.
    """
    groups: list[list[int]] = [[] for _ in SEQUENCES]
    for i in range(len(real)):
        groups[SEQUENCES.index(str(real[i].traits["sequence"]))].append(i)
    there = [group for group in groups if group]
    found: list[int] = []
    for k, group in enumerate(there):
        wanted = n // len(there) + (k < n % len(there))
        if len(group) < wanted:
            raise DataError(
                f"{real.folder}: {len(group)} slices of unseen patients of a sequence, {wanted} "
                "are asked about; ask fewer (study.asked)"
            )
        found += chance.permutation(group)[:wanted].tolist()
    return found


def one_a_patient(dataset: Dataset, chance: np.random.Generator) -> Dataset:
    """A slice of each patient, by chance."""
    order, ids = chance.permutation(len(dataset)), dataset.patient_ids
    chosen: dict[str, int] = {}
    for i in order.tolist():
        chosen.setdefault(ids[i], i)
    return dataset.take(np.array(sorted(chosen.values()), np.int64))
