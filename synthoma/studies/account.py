"""The report of a study, from what its folder holds."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthoma.data.dataset import Dataset
from synthoma.data.sheet import to_bytes
from synthoma.engine.run import Run
from synthoma.engine.versions import versions
from synthoma.metrics.diversity import collapsed
from synthoma.metrics.embedding import embed, perplexity_for
from synthoma.metrics.matching import match
from synthoma.report.content import SmallTable
from synthoma.report.figures import Detected, Froc, TrainingRun
from synthoma.report.page import Grid, Report
from synthoma.report.scatter import Scatter
from synthoma.report.table import Adherence, Estimate, PublishedRow, Refused, Table
from synthoma.studies.detection import IOUS, PRIMARY, THRESHOLD, Cell, adherence, make_rows
from synthoma.studies.shown import (
    EMBEDDED,
    LARGE,
    boxes_32,
    caveats,
    facts_of,
    froc_curve,
    picked,
    pictures,
    told,
    whole,
)
from synthoma.studies.verdict import painted_box

if TYPE_CHECKING:
    from synthoma.studies.work import Work

TITLE = "Does synthetic data help?"
QUESTION = (
    "Does a detector find more lesions when labelled synthetic slices are added to its real "
    "training slices? Each row is a detector trained from scratch for the same number of steps, "
    "and tested once on patients that neither it nor the generator has seen."
)
#: Han et al. 2019, table 1, detection threshold 0.1 %: their data, another question of scale.
PUBLISHED = tuple(
    PublishedRow(
        setup=setup,
        metrics=dict(
            zip(
                (
                    "sensitivity_iou50",
                    "fp_per_slice_iou50",
                    "sensitivity_iou25",
                    "fp_per_slice_iou25",
                ),
                values,
                strict=True,
            )
        ),
        source="Han et al. 2019, table 1 (other data)",
    )
    for setup, values in (
        ("2,813 real images", (0.67, 4.11, 0.83, 3.59)),
        ("+ 4,000 CPGGAN-based DA", (0.77, 7.64, 0.91, 7.18)),
        ("+ 8,000 CPGGAN-based DA", (0.71, 6.36, 0.87, 5.85)),
        ("+ 12,000 CPGGAN-based DA", (0.76, 11.77, 0.91, 11.29)),
    )
)
PICTURES = 32


def account(work: "Work") -> Report:
    """Everything that the report shows."""
    from synthoma.studies.augment import BASELINE, PASTE  # noqa: PLC0415 (it imports this file

    study = work.study
    title, question, published = told(study.name, TITLE, QUESTION, PUBLISHED)
    cells, refused = work.cells.finished()
    real = work.real
    test, train = real.split("test"), work.slices(0)
    drawn = [d for d in range(study.draws) if any(c.facts["draw"] == d for c in cells[BASELINE])]
    sets = list(dict.fromkeys(part.set for setup in study.setups for part in setup.parts))
    obeyed, untold = adherence_of(work, cells[BASELINE][0], sets)
    first = next((name for name in sets if name in obeyed and name != PASTE), None)
    pasted = [s.name for s in study.setups if [p.set for p in s.parts] == [PASTE]]
    table = Table(
        study=study.name,
        task="detect",
        patients_from=real.about["patients_from"],
        primary=PRIMARY,
        rows=make_rows(cells, baseline=BASELINE, seed=study.seed, also=pasted),
        refused=tuple(Refused(setup=name, reason=why) for name, why in refused.items()),
        adherence=Adherence(**obeyed[first]) if first and "ordered" in obeyed[first] else None,
        published=published,
    )
    return Report(
        title=f"{title} {study.dataset.name}, scale {study.scale}",
        question=question,
        table=table,
        warnings=[*warnings(work, table, len(test.patients), sets, drawn), *untold],
        notes=[*notes(work), *choices(work, cells)],
        small_tables=[table_of_sets(work, sets, drawn), table_of_adherence(obeyed)],
        froc=[
            Froc(
                f"IoU {iou:g}",
                [
                    froc_curve(
                        setup,
                        [
                            match(c.findings.detections, c.findings.truths, iou_threshold=iou)
                            for c in own
                        ],
                        THRESHOLD,
                    )
                    for setup, own in cells.items()
                ],
            )
            for iou in IOUS.values()
        ],
        grids=[
            *(grid_of(work, name) for name in sets),
            Grid(
                "Training slices (phantoms) and their boxes"
                if study.phantoms is not None
                else "Real training slices and their boxes",
                pictures(train, picked(train, PICTURES, study.seed)),
                synthetic=False,
                note="Drawn at random.",
            ),
        ],
        detections=detections(test, cells, study.seed),
        detection_threshold=0.25,
        scatters=scatters(work, [n for n in sets if n != PASTE]) if study.scale in LARGE else (),
        training=training(work, cells),
        settings=study.model_dump(mode="json"),
        versions=versions(),
        command=work.command,
        seeds=sorted({cell.facts["seed"] for cell in cells[BASELINE]}),
        seconds=work.tasks.seconds,
        data=facts_of(real, work.drawn, low_data=bool(study.slices)),
    )


def adherence_of(
    work: "Work", judge: Cell, sets: Sequence[str]
) -> tuple[dict[str, dict[str, Estimate]], list[str]]:
    """By set: do its images show what was ordered, in the eyes of the first draw's detector."""
    found, untold = {}, []
    for name in sets:
        own, why = adherence(work.findings(name, 0), judge.findings, seed=work.study.seed)
        found[name] = own
        untold += [f"{name}: {line}" for line in why]
    return found, untold


def table_of_adherence(obeyed: dict[str, dict[str, Estimate]]) -> SmallTable:
    """The same as a table."""

    def said(own: dict[str, Estimate], kind: str) -> str:
        e = own.get(kind)
        return "–" if e is None else f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}], n = {e.n}"

    return SmallTable(
        "Do the images show what was ordered?",
        ("Set", "Ordered", "Shuffled orders (chance)", "Real test slices (ceiling)"),
        [
            [name, *(said(own, kind) for kind in ("ordered", "shuffled", "real"))]
            for name, own in obeyed.items()
        ],
        "Share of images in which the surest box of a detector trained on the first draw's real "
        "slices meets a box at IoU 0.25, all boxes of an image counting; before curation.",
    )


def table_of_sets(work: "Work", sets: Sequence[str], drawn: Sequence[int]) -> SmallTable:
    """What was drawn, found, admitted; how diverse it is; whether it copies."""
    rows = []
    for name in sets:
        for d in drawn:
            if (v := work.verdict(name, d)) is None:
                continue
            own, real = v["diversity"], v["real_diversity"]
            spread = (
                f"{own[kind]:.3f} ({real[kind]:.3f})" if kind in own else "–"
                for kind in ("pixels", "features")
            )
            copies = "not checked" if v["copies"] is None else str(v["copies"].get("n_copies", 0))
            rows.append(
                [
                    f"{name}{work.cells.on(d)}",
                    f"{v['drawn']:,}",
                    f"{v['rate']:.2f} ({v['real_rate']:.2f})",
                    "yes" if v["admitted"] else "no",
                    *spread,
                    copies,
                ]
            )
    return SmallTable(
        "Synthetic sets",
        (
            "Set",
            "Images drawn",
            "Ordered lesion found (in real slices)",
            "Admitted",
            "Spread of pixels (real)",
            "Spread of features (real)",
            "Copies dropped",
        ),
        rows,
        "Found: by the draw's own detector, trained on its real slices, beside the same rate on "
        "real validation slices; in painted or pasted slices one of the surest boxes, as many as "
        "the slice has, must meet the new lesion, and the slice around it is one that the detector "
        "has trained on: a milder test. Spread: the mean standard deviation over a set (of "
        "painted or pasted ones, inside their boxes); far below the real one, a generator repeats "
        "itself.",
    )


def grid_of(work: "Work", name: str) -> Grid:
    """The first images of a set, on the first draw."""
    drawn = Dataset.open(work.set_of(name, 0))
    return Grid(
        f"Real slices with lesions put in ({name}), and all their boxes"
        if painted_box(drawn, 0)
        else f"Synthetic slices ({name}) and the boxes that were ordered",
        pictures(drawn, range(min(PICTURES, len(drawn)))),
        synthetic=True,
        note="The first ones drawn; none was chosen, none curated.",
    )


def warnings(
    work: "Work", table: Table, n_patients: int, sets: Sequence[str], drawn: Sequence[int]
) -> list[str]:
    """What a reader must know before the numbers."""
    study, said = work.study, []
    if study.scale in ("demo", "smoke"):
        said.append(
            f"Scale {study.scale}: detectors train for minutes and are limited by that, not "
            "by their data. This run shows that the chain works; it cannot show whether synthetic "
            "data helps."
        )
    if study.phantoms is not None:
        said.append("The brains are phantoms made from nothing; nothing here is about patients.")
    said += study.remarks
    if study.also and study.normal_phantoms is None:
        names = ", ".join(folder.name for folder in study.also)
        said.append(
            f"Tumour-free slices come from another set ({names}), so from other scanners: a "
            "detector may learn to tell the sets apart rather than tumours from none."
        )
    said += caveats(study, table, n_patients)
    said += repeating(work, sets, drawn)
    obeyed = table.adherence
    if obeyed is not None and obeyed.real is not None:
        share = obeyed.ordered.value / max(obeyed.real.value, 1e-9)
        if share < 0.75:
            said.append(
                f"The detector finds the ordered lesion first in {obeyed.ordered.value:.0%} of the "
                f"synthetic slices and in {obeyed.real.value:.0%} of real ones: many synthetic "
                "boxes may be empty, which teaches a detector to miss."
            )
    return said


def repeating(work: "Work", sets: Sequence[str], drawn: Sequence[int]) -> Iterator[str]:
    """Which sets show the same again and again."""
    for name in sets:
        for d in drawn:
            if (v := work.verdict(name, d)) is None:
                continue
            real = {f"real {kind}": spread for kind, spread in v["real_diversity"].items()}
            if few := collapsed(v["diversity"] | real):
                yield (
                    f"{name}{work.cells.on(d)}: the spread of {' and '.join(few)} is far below "
                    "that of real slices; the generator repeats itself."
                )


def notes(work: "Work") -> list[str]:
    """How the table was made."""
    study = work.study
    said = []
    for name, source in study.generators.items():
        whose = {
            ("draw", False): "the training slices with lesions",
            ("draw", True): "each draw's own slices with lesions, trained anew for each",
            ("others", True): "slices with lesions of training patients in no draw, trained once "
            "for all",
        }[source.of, bool(study.slices)]
        if source.shares:
            into = ", into tumour-free slices of another set" if source.also else ""
            said.append(f"{name}: images of the generator {source.shares}{into}.")
            continue
        extra = " and on the tumour-free slices" if source.also else ""
        said.append(f"Generator {name}: {source.name}, trained on {whose}{extra}.")
    said += [
        f"All images were prepared at {study.prepare.side_px} px, the generators' side, so that "
        "resolution does not tell real from synthetic; the detector trains at "
        f"{study.detector.system['side_px']} px and is tested at "
        f"{study.detector.system['test_side_px']} px.",
        f"Every set-up makes {study.detector.train.steps:,} optimiser steps on batches of "
        f"{study.detector.system['batch_size']}, beginning from the same weights.",
        f"Sensitivity and false positives count detections with a score of at least {THRESHOLD}; "
        "'at 1 false positive a slice' and 'at the baseline's false positives' choose the score "
        "by the rate on the test slices.",
        "Ratios are of images in a batch; "
        + (
            f"{study.variety} times as many different synthetic images are dealt, where there are."
            if study.variety > 1
            else "so many different synthetic images were used."
        ),
        "The test split was used once a detector.",
    ]
    if any(part.curated for setup in study.setups for part in setup.parts):
        said.append(
            "Curated: only images in which the draw's own detector finds the ordered lesion."
        )
    return said


def choices(work: "Work", cells: dict[str, list[Cell]]) -> list[str]:
    """Of set-ups that differ in their ratio alone, the one that validation prefers."""
    families: dict[tuple[Any, ...], list[str]] = {}
    held_out = work.real.split("validation")
    for setup in work.study.setups:
        if setup.name in cells and len(setup.parts) == 1:
            part = setup.parts[0]
            key = part.set, part.curated, setup.synthetic_first, setup.others
            families.setdefault(key, []).append(setup.name)
    said = []
    for names in families.values():
        scores = {
            name: float(np.mean([c.facts["validation"].get(PRIMARY, np.nan) for c in cells[name]]))
            for name in names
        }
        if len(names) > 1 and not np.isnan(list(scores.values())).any():
            best = max(scores, key=lambda name: scores[name])
            listed = ", ".join(f"{score:.3f} for {name}" for name, score in scores.items())
            said.append(
                f"By validation (average precision {listed}) the ratio to use is that of {best}; "
                f"{len(held_out)} slices of {len(held_out.patients)} patients rank it no surer "
                "than that. The other rows are shown for comparison."
            )
    return said


def scatters(work: "Work", sets: Sequence[str]) -> list[Scatter]:
    """t-SNE of boxes at 32x32 and of whole slices, real and synthetic (Han et al. 2019)."""
    real, found = work.slices(0), []
    for title, pixels in (("Boxes at 32 x 32 pixels", boxes_32), ("Whole slices", whole)):
        parts = {"real": pixels(real)}
        parts |= {name: pixels(Dataset.open(work.set_of(name, 0))) for name in sets}
        n = sum(map(len, parts.values()))
        points = embed(np.concatenate(list(parts.values())), seed=work.study.seed)
        category = [name for name, own in parts.items() for _ in own]
        found.append(
            Scatter(
                title,
                points,
                category,
                f"t-SNE of raw pixels, perplexity {perplexity_for(n):g}, 1,000 iterations; up to "
                f"{EMBEDDED} of each, real training slices of the first draw.",
            )
        )
    return found


def detections(test: Dataset, cells: dict[str, list[Cell]], seed: int) -> list[Detected]:
    """What the first seed of each set-up found in a few test slices."""
    shown = []
    for i in picked(test, 6, seed):
        found = {}
        for setup, own in cells.items():
            all_ = own[0].findings.detections
            here = all_.case == i
            found[setup] = (all_.boxes[here], all_.scores[here])
        image = to_bytes(test.values(i), test.about["value_range"])
        shown.append(Detected(image, test.boxes(i), found, test[i].case_id))
    return shown


def training(work: "Work", cells: dict[str, list[Cell]]) -> list[TrainingRun]:
    """The logs of the first draw's generators and detectors."""
    runs = [
        TrainingRun(f"generator {name}", Run(work.generator(name, 0)).read_log())
        for name, source in work.study.generators.items()
        if not source.shares
    ]
    runs += [TrainingRun(setup, Run(own[0].folder).read_log()) for setup, own in cells.items()]
    return runs
