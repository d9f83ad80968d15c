"""The cells of a study, whatever its task: what each may be trained on, and which are finished.

A cell is one trained network: one set-up, one draw of patients, one seed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from synthoma.console import say
from synthoma.report.page import Report, write_report
from synthoma.studies.stages import slug

Cell = TypeVar("Cell")


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


def refused(stocks: Iterable[Stock]) -> str | None:
    """Why a set-up is not run: the first reason among its parts, on this draw and those before."""
    return next((why for stock in stocks if (why := stock.refused) is not None), None)


def cell_folder(study: Path, setup: str, d: int, seed: int) -> Path:
    """The run folder of a cell."""
    return study / "cells" / f"{slug(setup)}-draw{d}-seed{seed}"


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


def report_once(study: Path, account: Callable[[], Report]) -> bool:
    """Write the report of the cells that there are, unless it is of the same ones already."""
    made = study / "table.json"
    newest = max(path.stat().st_mtime for path in study.glob("cells/*/cell.json"))
    if not made.is_file() or made.stat().st_mtime <= newest:
        write_report(study, account())
        say(f"report: {study / 'report.html'} (also report.md and table.json)")
    return True
