"""Does synthetic data help? The whole question on one's own data, in one table.

    dataset -> prepare -> train the generator on the training patients -> draw -> train detectors
    on real; real + classic; real + classic + synthetic at several ratios -> test once -> table

Run: synthoma augment DATASET --task detect --scale small --out runs/does-it-help
In minutes, on made-up brains: synthoma demo --out demo

Every set-up makes the same number of optimiser steps on batches of the same size, starts from the
same weights at each seed, and is tested once, on the test split, with the weights that were best
on the validation split (where the scale validates). Images are prepared at the generator's side
for every set-up, so that resolution does not tell real from synthetic.

A study folder goes on where it stopped; a finished cell is never run again.
"""

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from synthoma.console import duration, progress, say, training
from synthoma.data.batches import Pool
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare, prepare
from synthoma.data.split import check_no_leak
from synthoma.data.store import new_folder, read_json, write_json
from synthoma.engine.settings import TrainSettings
from synthoma.errors import DataError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.phantoms.folder import write_brains
from synthoma.report.page import write_report
from synthoma.settings import replaced
from synthoma.studies.account import account
from synthoma.studies.detection import Cell, run_cell
from synthoma.synthesis.draw import draw
from synthoma.synthesis.fit import Mixed, TrainingData, fit, has_boxes, resume
from synthoma.zoo import load_entry

BASELINE = "real + classic"


class Trained(BaseModel):
    """A system and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    system: dict[str, Any]
    train: TrainSettings

    def settings(self) -> tuple[BaseModel, TrainSettings]:
        """As `fit` takes them."""
        return load_entry(self.name).config.model_validate(self.system), self.train


class Study(BaseModel):
    """Everything that decides the table; study.json keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Path
    also: tuple[Path, ...] = Field((), description="Tumour-free slices, for the generator alone.")
    scale: str
    prepare: Prepare
    generator: Trained
    detector: Trained
    phantoms: BrainConfig | None = Field(None, description="Draw these as the dataset first.")
    ratios: tuple[PositiveFloat, ...] = Field(
        (1.0, 2.0), min_length=1, description="Synthetic images a real one."
    )
    seeds: int = Field(1, ge=1, description="Detectors trained for each set-up.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        if len(set(self.ratios)) < len(self.ratios):
            raise ValueError(f"ratios {self.ratios} has one twice")
        if self.prepare.side_px != self.generator.system["side_px"]:
            raise ValueError(
                f"prepare.side_px is {self.prepare.side_px}, but the generator draws at "
                f"{self.generator.system['side_px']} px: resolution would tell real from synthetic"
            )
        return self


@dataclass(frozen=True)
class Setup:
    """One row of the table."""

    name: str
    classic: bool
    ratio: float = 0.0

    @property
    def slug(self) -> str:
        """A folder's name."""
        return "".join(c if c.isalnum() else "-" for c in self.name).replace("---", "-")


def setups(ratios: tuple[float, ...]) -> tuple[Setup, ...]:
    """The rows, the baseline second."""
    more = (Setup(f"{BASELINE} + synthetic {r:g}:1", classic=True, ratio=r) for r in ratios)
    return Setup("real", classic=False), Setup(BASELINE, classic=True), *more


#: Detectors trained for each set-up.
SEEDS = {"paper": 3, "small": 2, "smoke": 1}


def settings_for(
    dataset: Path,
    *,
    scale: str,
    also: list[Path],
    seed: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> Study:
    """The study of a dataset at a scale.

    Args:
        overrides: By part ("study", "prepare", "generator", "generator_train", "detector",
            "detector_train"), then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
    """
    if scale not in SEEDS:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SEEDS)}")
    parts = ("study", "prepare", "generator", "generator_train", "detector", "detector_train")
    if wrong := set(overrides) - set(parts):
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {', '.join(parts)}")
    trained = {}
    for part, name in (("generator", "cpggan"), ("detector", "yolov3")):
        preset = load_entry(name).presets[scale]
        trained[part] = Trained(
            name=name,
            system=replaced(preset.system, overrides.get(part, {}), part).model_dump(mode="json"),
            train=replaced(preset.train, overrides.get(f"{part}_train", {}), f"{part}_train"),
        )
    side_px = {"side_px": trained["generator"].system["side_px"]}
    own = overrides.get("study", {})
    if wrong := set(own) - {"ratios", "seeds"}:
        raise SettingsError(f"no settings study.{sorted(wrong)}; allowed: ratios, seeds")
    study = Study(
        dataset=dataset.absolute(),
        also=tuple(Dataset.open(folder).folder.absolute() for folder in also),
        scale=scale,
        prepare=replaced(Prepare(), side_px | dict(overrides.get("prepare", {})), "prepare"),
        generator=trained["generator"],
        detector=trained["detector"],
        seeds=SEEDS[scale],
        seed=seed,
    )
    return replaced(study, own, "study")


def begin(out: Path, study: Study) -> None:
    """Write down what a study is to do, in a new folder.

    Raises:
        SettingsError: `out` exists already.
    """
    if out.exists():
        raise SettingsError(
            f"{out} exists already; nothing is overwritten: give another --out, or continue it "
            f"with `synthoma augment --resume {out}`"
        )
    command = shlex.join(["synthoma", *sys.argv[1:]])
    with new_folder(out) as folder:
        write_json(folder / "study.json", study.model_dump(mode="json") | {"command": command})


def go_on(out: Path, *, minutes: float | None = None, device: str = "auto") -> bool:
    """Run the study that `begin` wrote down, from where it stands.

    Returns:
        Whether it is finished; False where the minutes were up.

    Raises:
        LeakError: The generator would see a validation or test patient.
    """
    if not (out / "study.json").is_file():
        raise DataError(f"{out}: not a study folder (no study.json)")
    kept = read_json(out / "study.json")
    command = kept.pop("command")
    work = Work(out, Study.model_validate(kept), command, device, minutes)
    return work.train_and_test()


class Work:
    """A study under way: where it stands is what its folder holds."""

    def __init__(
        self, out: Path, study: Study, command: str, device: str, minutes: float | None
    ) -> None:
        self.out, self.study, self.command, self.device = out, study, command, device
        self.ends = None if minutes is None else time.monotonic() + 60 * minutes
        self.cells: dict[str, list[Cell]] = {}
        self.fitted: dict[str, Any] | None = None
        path = out / "seconds.json"
        self.seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    def train_and_test(self) -> bool:
        """Every part in turn, with a report after each seed; False where the minutes were up."""
        parts: list[tuple[str, Callable[[], bool]]] = [
            ("draw phantoms", self.draw_phantoms),
            ("prepare", self.prepare),
            ("train the generator", self.train_generator),
            ("draw", self.draw),
        ]
        for seed in range(self.study.seeds):
            parts += [
                (f"{setup.name}, seed {seed}", partial(self.cell, setup, seed))
                for setup in setups(self.study.ratios)
            ]
            parts += [(f"report on {seed + 1} of {self.study.seeds} seeds", self.report)]
        return all(self.timed(name, part) for name, part in parts)

    def timed(self, name: str, part: Callable[[], bool]) -> bool:
        """Do a part and remember how long it took, over all calls."""
        began = time.monotonic()
        try:
            return part()
        finally:
            spent = time.monotonic() - began
            if spent > 1 or name not in self.seconds:
                self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 1)
                write_json(self.out / "seconds.json", self.seconds)

    def report(self) -> bool:
        """The table of the seeds that every set-up has."""
        write_report(self.out, account(self))
        say(f"report: {self.out / 'report.html'} (also report.md and table.json)")
        return True

    @property
    def minutes_left(self) -> float | None:
        """None: no limit."""
        return None if self.ends is None else max(0.0, (self.ends - time.monotonic()) / 60)

    @property
    def data(self) -> Path:
        """The prepared dataset."""
        return self.out / "data"

    def draw_phantoms(self) -> bool:
        """Where the study is on phantoms."""
        if self.study.phantoms is not None and not self.study.dataset.exists():
            with progress("draw phantom brains") as tell:
                write_brains(
                    self.study.dataset,
                    self.study.phantoms,
                    seed=self.study.seed,
                    progress=lambda i, n: tell(i, n, ""),
                )
        return True

    def prepare(self) -> bool:
        """Bring every dataset to the generator's side."""
        sources = {self.data: self.study.dataset}
        sources |= {self.out / f"also-{k}": folder for k, folder in enumerate(self.study.also)}
        for target, source in sources.items():
            if not target.exists():
                with progress(f"prepare {source.name}") as tell:
                    prepare(
                        Dataset.open(source),
                        target,
                        self.study.prepare,
                        lambda i, n: tell(i, n, ""),
                    )
        for name in ("train", "test"):
            if not has_boxes(Dataset.open(self.data).split(name)):
                raise DataError(f"{self.study.dataset}: its {name} split has no box to find")
        return True

    def train_generator(self) -> bool:
        """On the slices with lesions of the training patients alone, and the extra slices."""
        folder = self.out / "generator"
        also = tuple(sorted(self.out.glob("also-*")))
        with training("train the generator") as show:
            if folder.exists():
                outcome = resume(
                    folder, minutes=self.minutes_left, device=self.device, progress=show
                )
            else:
                outcome = fit(
                    self.study.generator.name,
                    folder,
                    TrainingData(data=self.data, boxed=True, also=also),
                    settings=self.study.generator.settings(),
                    seed=self.study.seed,
                    minutes=self.minutes_left,
                    device=self.device,
                    progress=show,
                )
        if outcome.stopped == "signal":
            raise KeyboardInterrupt
        return outcome.stopped != "minutes"

    def draw(self) -> bool:
        """As many images as the largest ratio needs."""
        folder = self.out / "synthetic"
        real = Dataset.open(self.data)
        if not folder.exists():
            n = round(max(self.study.ratios) * len(real.split("train")))
            with progress("draw") as tell:
                draw(
                    [self.out / "generator"],
                    folder,
                    n=n,
                    seed=self.study.seed,
                    progress=lambda i, of: tell(i, of, ""),
                )
        for run_id, saw in Dataset.open(folder).generators_saw.items():
            check_no_leak(real.splits, saw, what=f"the generator {run_id}")
        return True

    def cell(self, setup: Setup, seed: int) -> bool:
        """One detector, trained and tested."""
        detector = self.study.detector
        if self.fitted is None:  # anchors and classes from the real slices, the same for every row
            real = {"real": Pool([Dataset.open(self.data).split("train")])}
            config, _ = detector.settings()
            self.fitted = load_entry(detector.name).fitted(config, real).model_dump(mode="json")
        system = self.fitted if setup.classic else self.fitted | {"augment": None}
        data = TrainingData(data=self.data)
        if setup.ratio:
            data = TrainingData(
                data=self.data,
                synthetic=(Mixed(folder=self.out / "synthetic", ratio=setup.ratio),),
            )
        (self.out / "cells").mkdir(exist_ok=True)
        with training(f"{setup.name}, seed {seed}") as show:
            cell = run_cell(
                self.out / "cells" / f"{setup.slug}-seed{seed}",
                setup.name,
                data,
                detector.model_copy(update={"system": system}).settings(),
                name=detector.name,
                seed=self.study.seed + seed,
                minutes=self.minutes_left,
                device=self.device,
                progress=show,
            )
        if cell is None:
            return False
        self.cells.setdefault(setup.name, []).append(cell)
        return True


def demo(out: Path, *, seed: int = 0) -> None:
    """The whole chain on phantom brains, sized for two CPU cores in minutes.

    Raises:
        SettingsError: `out` exists.
    """
    began = time.monotonic()
    begin(out, demo_study(out / "phantoms", seed=seed))
    go_on(out)
    say(f"{duration(time.monotonic() - began)} in all")


DEMO_BRAINS = BrainConfig(side_px=64, patients=60, slices_per_patient=8)


def demo_study(phantoms: Path, *, seed: int) -> Study:
    """The demo's sizes: its own, between `smoke` and `small` (docs/results/demo.md)."""
    from synthoma.gans.cpggan import DEMO  # noqa: PLC0415 (imports torch)

    study = settings_for(phantoms, scale="smoke", also=[], seed=seed, overrides={})
    system = DEMO.system.model_dump(mode="json")
    return study.model_copy(
        update={
            "scale": "demo",
            "phantoms": DEMO_BRAINS,
            "prepare": Prepare(side_px=system["side_px"], intensity="keep", crop=False),
            "generator": Trained(name="cpggan", system=system, train=DEMO.train),
        }
    )
