"""The cells of a study, whatever its task: what each may be trained on, and which are finished.

A cell is one trained network: one set-up, one draw of patients, one seed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from synthoma.console import say
from synthoma.report.page import Report, write_report
from synthoma.studies.stages import Task, slug


@dataclass(frozen=True)
class Stock:
    """The synthetic images that there are for a part of a set-up, once they were judged."""

    name: str
    """Of the set, and of the draw where there are several."""
    admitted: bool
    reason: str
    images: int
    curated: bool
    real: int
    """Real images dealt in a round, where each synthetic image may come once."""
    ratio: float

    def variety(self, most: int) -> int:
        """How many times more different images can be dealt, up to `most`; 0: not even once."""
        enough = [
            v for v in range(1, most + 1) if round(self.ratio * (self.real * v)) <= self.images
        ]
        return max(enough, default=0)

    @property
    def refused(self) -> str | None:
        """Why nothing is trained on them."""
        if not self.admitted:
            return f"{self.name}: {self.reason}"
        if not self.variety(1):
            kept = "were kept" if self.curated else "were no copies"
            n = round(self.ratio * self.real)
            return f"{self.name}: {self.images} images {kept}, {n} are needed"
        return None


class Named(Protocol):
    """A set-up."""

    @property
    def name(self) -> str:
        """Of its row."""
        ...


Setup = TypeVar("Setup", bound=Named)
Setup_co = TypeVar("Setup_co", bound=Named, covariant=True)
Cell = TypeVar("Cell")


class Planned(Protocol[Setup_co]):
    """A study of set-ups."""

    @property
    def setups(self) -> Sequence[Setup_co]:
        """Its rows."""
        ...

    @property
    def draws(self) -> int:
        """Draws of patients."""
        ...

    @property
    def seeds(self) -> int:
        """Trainings of a set-up on a draw."""
        ...


def refused(stocks: Iterable[Stock]) -> str | None:
    """Why a set-up is not run: the first reason among its parts, on this draw and those before."""
    return next((why for stock in stocks if (why := stock.refused) is not None), None)


def finished(
    setups: Sequence[Named],
    places: Sequence[tuple[int, int]],
    read: Callable[[str, int, int], Cell | None],
    refused: Mapping[str, str],
) -> tuple[dict[str, list[Cell]], dict[str, str]]:
    """The finished cells of each set-up, on the draws and seeds that every set-up has; and why a
    set-up has none.

    Args:
        places: All draws with all seeds.
        read: The cell of a set-up, draw and seed; None where it is not finished.
        refused: Why set-ups are left out.
    """
    found: dict[str, dict[tuple[int, int], Cell]] = {}
    reasons = dict(refused)
    for setup in setups:
        name = setup.name
        own = {(d, s): cell for d, s in places if (cell := read(name, d, s)) is not None}
        if name in refused and own:
            done = ", ".join(map(str, sorted({d for d, _ in own})))
            reasons[name] += f" (trained on draw {done}, left out)"
        elif name not in refused and own:
            found[name] = own
    common = [place for place in places if all(place in own for own in found.values())]
    return {name: [own[place] for place in common] for name, own in found.items()}, reasons


class Cells(Generic[Setup, Cell]):
    """The cells of a study on disk.

    Args:
        out: The study's folder.
        stocks: What there is to train a set-up with on a draw, once it was judged.
        read: The cell of a folder; None where it is not finished.
    """

    def __init__(
        self,
        out: Path,
        study: Planned[Setup],
        stocks: Callable[[Setup, int], Iterable[Stock]],
        read: Callable[[Path], Cell | None],
    ) -> None:
        self.out, self.study, self.stocks, self.read = out, study, stocks, read

    def on(self, d: int) -> str:
        """Which draw, where there are several."""
        return f", draw {d}" if self.study.draws > 1 else ""

    def title(self, setup: Setup, d: int, seed: int) -> str:
        """A cell's name for people."""
        return f"{setup.name}{self.on(d)}, seed {seed}"

    def folder(self, setup: str, d: int, seed: int) -> Path:
        """The run folder of a cell."""
        return self.out / "cells" / f"{slug(setup)}-draw{d}-seed{seed}"

    def refused(self, setup: Setup, d: int) -> str | None:
        """Why a set-up is not run from a draw on: its images were refused there, or before."""
        return refused(stock for k in range(d + 1) for stock in self.stocks(setup, k))

    def any_left(self, setups: Iterable[Setup], d: int) -> bool:
        """Whether one of some set-ups was not refused on an earlier draw."""
        return d == 0 or any(self.refused(setup, d - 1) is None for setup in setups)

    def task(self, do: Callable[[Setup, int, int], bool], setup: Setup, d: int, seed: int) -> Task:
        """One network, trained and tested."""
        return self.title(setup, d, seed), partial(do, setup, d, seed)

    def tasks(self, do: Callable[[Setup, int, int], bool], d: int) -> list[Task]:
        """All of a draw."""
        seeds, setups = range(self.study.seeds), self.study.setups
        return [self.task(do, setup, d, seed) for seed in seeds for setup in setups]

    def finished(self) -> tuple[dict[str, list[Cell]], dict[str, str]]:
        """Those of each set-up, on the draws and seeds that every set-up has; and why a set-up has
        none."""
        study = self.study
        return finished(
            study.setups,
            [(d, seed) for d in range(study.draws) for seed in range(study.seeds)],
            lambda name, d, seed: self.read(self.folder(name, d, seed)),
            {s.name: why for s in study.setups if (why := self.refused(s, study.draws - 1))},
        )


def report_once(study: Path, account: Callable[[], Report]) -> bool:
    """Write the report of the cells that there are, unless it is of the same ones already."""
    made = study / "table.json"
    newest = max(path.stat().st_mtime for path in study.glob("cells/*/cell.json"))
    if not made.is_file() or made.stat().st_mtime <= newest:
        write_report(study, account())
        say(f"report: {study / 'report.html'} (also report.md and table.json)")
    return True
