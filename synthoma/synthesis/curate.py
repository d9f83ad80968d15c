"""Synthetic images whose lesion is unclear are dropped, by a recorded rule that can be replayed.

    detector, synthetic set -> judge -> Decisions <-> a CSV, which a person may change
    synthetic set, Decisions -> curate -> the folder of what was kept
    Decisions on synthetic and on real images -> gate -> is the set worth mixing in at all

Two rules. Where nothing was painted, the surest detection must meet an ordered box, which is the
report's adherence (`top_hits`). Where lesions were painted into an image ("painted" in its origin),
each painted box must be met by one of the m surest detections, m being all boxes of the image: the
background's own lesion may well be the clearer one.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from synthoma.data.boxes import iou
from synthoma.data.case import Origin, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.store import refuse_existing
from synthoma.data.subset import subset
from synthoma.engine.evaluate import Findings, find_all
from synthoma.engine.run import Run
from synthoma.engine.scans import find_in_scans
from synthoma.engine.system import Detector
from synthoma.errors import DataError, LeakError, SettingsError
from synthoma.synthesis.fit import load_trained, pick_device

#: Least overlap of a detection with an ordered box, as in adherence.
IOU = 0.25
#: The rule of images in which nothing was ordered; they are kept, and no rate counts them.
NOTHING = "nothing ordered"
COLUMNS = ("case_id", "keep", "rule", "score", "iou")
#: Begins the last rows of a decisions file, one for each patient on whom the choice depends.
SAW = "# the choice depends on patient "
#: Begins the first row of older files, which has all of them.
SAW_BEFORE = "# the detector saw"


@dataclass(frozen=True)
class Decision:
    """Whether one image is kept."""

    case_id: str
    keep: bool
    rule: str
    """"detector RUN", "person" or `NOTHING`."""
    score: float | None = None
    """Of the surest detection; None where there is none."""
    iou: float | None = None
    """Of the surest detection with the ordered boxes, or of the worst met painted box."""


@dataclass(frozen=True)
class Decisions:
    """One decision for each image of a set."""

    rows: tuple[Decision, ...]
    saw: tuple[str, ...] = ()
    """The patients on whom the decisions depend: those that the detector was trained on, or whose
    images the clusters were compared with."""

    @property
    def keep(self) -> dict[str, bool]:
        """Whether each image is kept, by its id."""
        return {row.case_id: row.keep for row in self.rows}


@dataclass(frozen=True)
class Verdict:
    """Whether a synthetic set may be mixed in."""

    admitted: bool
    rate: float
    """Share of its images in which the ordered lesion is found."""
    real_rate: float
    """The same of real images."""
    reason: str


def find_in(
    run: Path,
    dataset: Dataset,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Findings:
    """What the trained detector of a run finds in a dataset: in slices at its test side, in volumes
    window by window."""
    detector, facts = load_trained(run, str(pick_device(device)))
    if not isinstance(detector, Detector):
        raise SettingsError(f"{run}: {facts['name']} is not a detector")
    precision = Run.open(run).facts["train"]["precision"]
    if dataset.about["dimensions"] == 3:
        return find_in_scans(detector, dataset, precision=precision, progress=progress)
    return find_all(
        detector,
        dataset,
        side_px=facts["system"]["test_side_px"],
        precision=precision,
        progress=progress,
    )


def judge(
    detector_run: Path,
    dataset: Dataset,
    *,
    iou_threshold: float = IOU,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Decisions:
    """Keep the images in which a trained detector finds what was ordered.

    Args:
        dataset: Synthetic images; or real ones, whose own boxes are then what was ordered, for
            the rate that `gate` compares with.

    Raises:
        LeakError: The detector was trained on patients of these real images.
    """
    facts = Run.open(detector_run).facts
    if known := sorted(set(dataset.real_patients) & set(facts["trained_on"])):
        raise LeakError(
            f"{detector_run}: was trained on {len(known)} patients of these images, for example "
            f"{known[0]}; have it judge images that it has not seen"
        )
    findings = find_in(detector_run, dataset, device=device, progress=progress)
    rule = f"detector {facts['id']} at IoU {iou_threshold:g}"
    saw = tuple(facts["trained_on"])
    return decide(findings, dataset, rule=rule, saw=saw, iou_threshold=iou_threshold)


def decide(
    findings: Findings,
    dataset: Dataset,
    *,
    rule: str = "detector",
    saw: tuple[str, ...] = (),
    iou_threshold: float = IOU,
) -> Decisions:
    """The decision on each image, of what a detector found in the set.

    Args:
        rule: Its name, for the record.
        saw: The patients whom the detector was trained on.
    """
    found = findings.detections
    surest_first = np.lexsort((np.arange(len(found.case)), -found.scores, found.case))
    starts = np.searchsorted(found.case[surest_first], np.arange(len(dataset) + 1))
    rows = []
    for i in range(len(dataset)):
        case, own = dataset[i], surest_first[starts[i] : starts[i + 1]]
        boxes = dataset.boxes(i)
        if not len(boxes):
            rows.append(Decision(case.case_id, True, NOTHING))
            continue
        painted = painted_boxes(case.origin)
        if painted is not None:
            overlap = iou(painted, found.boxes[own[: len(boxes)]]).max(axis=1, initial=0).min()
        else:
            overlap = iou(boxes, found.boxes[own[:1]]).max(initial=0)
        score = round(float(found.scores[own[0]]), 6) if len(own) else None
        keep = bool(overlap >= iou_threshold)
        rows.append(Decision(case.case_id, keep, rule, score, round(float(overlap), 4)))
    return Decisions(tuple(rows), saw)


def painted_boxes(origin: Origin) -> Float[np.ndarray, "p 4"] | None:
    """The boxes that were painted into an image; None where it was drawn whole, or is real."""
    painted = origin.conditions.get("painted") if isinstance(origin, Synthetic) else None
    return np.asarray(painted, np.float64).reshape(-1, 4) if painted else None


def pass_rate(decisions: Decisions) -> float:
    """Share of the images kept, of those in which something was ordered.

    Raises:
        DataError: There is none.
    """
    kept = [row.keep for row in decisions.rows if row.rule != NOTHING]
    if not kept:
        raise DataError("no image with an ordered lesion was judged, so there is no pass rate")
    return float(np.mean(kept))


def gate(synthetic: Decisions, real: Decisions, *, least: float = 0.5) -> Verdict:
    """Refuse a set in which the detector finds what was ordered too rarely.

    Args:
        real: Of the same detector on real validation images.
        least: Of the rate on real images, the share that the synthetic set must reach.
    """
    if not 0 <= least <= 1:
        raise SettingsError(f"least {least}; allowed: 0 to 1")
    rate, real_rate = pass_rate(synthetic), pass_rate(real)
    admitted = rate >= least * real_rate and (real_rate > 0 or not least)
    reason = (
        f"{'admitted' if admitted else 'refused'}: the detector finds the ordered lesion in "
        f"{rate:.0%} of these images, and in {real_rate:.0%} of real ones; least allowed is "
        f"{least:.0%} of that"
    )
    return Verdict(admitted, rate, real_rate, reason)


def curate(dataset: Dataset, decisions: Decisions, out: Path) -> Dataset:
    """Write the folder `out` of the images that are kept; it shares the image files of `dataset`.

    The same decisions give the same bytes. The patients on whom the choice depends count as seen
    by the generators of these images, so that a leak through the choice is refused too.

    Raises:
        DataError: An image has no decision, a decision no image, images are real, or none is kept.
    """
    if dataset.real_patients:
        raise DataError(f"{dataset.folder}: holds real images; only synthetic ones are curated")
    by_id = {row.case_id: row for row in decisions.rows}
    names = [dataset.index.read(row)["case_id"] for row in dataset.rows.tolist()]
    if missing := [name for name in names if name not in by_id]:
        raise DataError(
            f"{dataset.folder}: {len(missing)} of {len(names)} images have no decision, for "
            f"example {missing[0]}"
        )
    if unknown := by_id.keys() - set(names):
        raise DataError(
            f"{dataset.folder}: {len(unknown)} decisions are on images that are not in it, for "
            f"example {min(unknown)}"
        )
    dropped: dict[str, list[str]] = {}
    for name in names:
        if not by_id[name].keep:
            dropped.setdefault(f"refused by {by_id[name].rule}", []).append(name)
    rules = Counter(by_id[name].rule for name in names)
    return subset(
        dataset,
        out,
        np.flatnonzero([by_id[name].keep for name in names]),
        dropped=dropped,
        about={"curated": {"judged": len(names), "rules": dict(sorted(rules.items()))}},
        also_saw=decisions.saw,
    )


def write_decisions(decisions: Decisions, path: Path) -> None:
    """Write decisions as a CSV, for a person to change; nothing is overwritten.

    The last rows name the patients on whom the choice depends: what is mixed in later must not let
    it leak.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in decisions.rows:
            numbers = ("" if value is None else value for value in (row.score, row.iou))
            table.writerow([row.case_id, yes(row.keep), row.rule, *numbers])
        for name in decisions.saw:
            table.writerow([SAW + name, *[""] * (len(COLUMNS) - 1)])


def read_decisions(path: Path) -> Decisions:
    """Read decisions: columns case_id and keep (yes or no), and what `write_decisions` adds.

    Where no rule is named, it was a person.

    Raises:
        DataError: The file is missing or damaged; the message names the row.
    """
    rows: dict[str, Decision] = {}
    for where, cells in read_table(path, ("case_id", "keep")):
        row = read_row(where, cells)
        if row.case_id in rows:
            raise DataError(f"{where}: case_id {row.case_id!r} is there twice")
        rows[row.case_id] = row
    if not rows:
        raise DataError(f"{path}: holds no decision")
    return Decisions(tuple(rows.values()), read_saw(path))


def read_saw(path: Path) -> tuple[str, ...]:
    """The patients whom a readable decisions file names, wherever a person has sorted them to."""
    saw: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for cells in csv.reader(file):
            if cells and cells[0].startswith(SAW):
                saw.append(cells[0].removeprefix(SAW))
            elif cells and cells[0] == SAW_BEFORE:
                saw.extend(name for name in cells[1:] if name)
    return tuple(saw)


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table that a person may have changed, by column, and what to call each.

    Blank rows, any above the header that begin with "#", and those of `SAW` are passed over.

    Raises:
        DataError: The file is missing or damaged, or one of the columns is; it names the row.
    """
    header: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            for cells in table:
                where = f"{path}: row {table.line_num}"
                if not any(cells) or cells[0].startswith(("#",) if not header else (SAW,)):
                    continue
                if not header:
                    header = read_header(path, cells, columns)
                elif len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} cells; needed: {len(header)}, one a column"
                    )
                else:
                    yield where, {k: v.strip() for k, v in zip(header, cells, strict=True)}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of UTF-8 text ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def read_header(path: Path, cells: list[str], columns: tuple[str, ...]) -> list[str]:
    """The names of the columns, checked."""
    header = [name.strip() for name in cells]
    for name in columns:
        if header.count(name) != 1:
            raise DataError(
                f"{path}: column {name!r} must be there once; found {', '.join(header)[:200]}"
            )
    return header


def read_row(where: str, cell: dict[str, str]) -> Decision:
    """The decision of one row.

    Args:
        where: Names the file and row in messages.
    """
    if not cell["case_id"]:
        raise DataError(f"{where}: case_id is empty")
    keep = read_answer(where, cell, "keep")
    numbers: list[float | None] = []
    for name in ("score", "iou"):
        try:
            numbers.append(float(cell[name]) if cell.get(name) else None)
        except ValueError:
            raise DataError(f"{where}: {name} is {cell[name][:50]!r}; allowed: a number") from None
    return Decision(cell["case_id"], keep, cell.get("rule") or "person", *numbers)


def yes(answer: bool) -> str:
    """An answer as tables have it."""
    return "yes" if answer else "no"


def read_answer(where: str, cell: dict[str, str], name: str) -> bool:
    """The answer in a column, yes or no."""
    answer = {"yes": True, "no": False}.get(cell[name].lower())
    if answer is None:
        raise DataError(f"{where}: {name} is {cell[name][:50]!r}; allowed: yes, no")
    return answer
