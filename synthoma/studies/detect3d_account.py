"""The report of a study of detectors of volumes, from what its folder holds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthoma.data.dataset import Dataset
from synthoma.data.sheet import to_bytes
from synthoma.data.views import boxes_at, cut_by, three_views
from synthoma.data.vois import ATTENUATIONS, SIZES, nodules_of
from synthoma.engine.run import Run
from synthoma.engine.scans import THRESHOLD
from synthoma.engine.versions import versions
from synthoma.metrics.detection import cpm, froc
from synthoma.metrics.matching import Matches
from synthoma.report.content import Grid, Report, SmallTable
from synthoma.report.figures import Detected, Froc, Picture, TrainingRun
from synthoma.report.table import Refused, Row, Table
from synthoma.studies.augment import BASELINE
from synthoma.studies.detection import Cell
from synthoma.studies.detection3d import IOU, PRIMARY, metrics_of, per_box, rules
from synthoma.studies.drawn_nodules import JUDGED, RATE, density_of
from synthoma.studies.rows import rows_of
from synthoma.studies.shown import caveats, facts_of, froc_curve, told

if TYPE_CHECKING:
    from synthoma.studies.detect3d_work import ScanWork

TITLE = "Do drawn nodules help?"
QUESTION = (
    "Does a detector find more nodules when scans whose nodules a GAN drew anew are added to its "
    "real training scans? Each row is a detector trained from scratch for the same number of "
    "steps, and tested once on patients that neither it nor a generator has seen."
)
#: Nodules in a grid, and the side of each of its three planes.
PICTURES, VIEW_PX = 36, 64


def account(work: "ScanWork") -> Report:
    """Everything that the report shows."""
    study, real = work.study, work.real
    title, question, published = told(study.name, TITLE, QUESTION, None)
    cells, refused = work.cells.finished()
    test = real.split("test")
    drawn = sorted({cell.facts["draw"] for cell in cells[BASELINE]})
    table = Table(
        study=study.name,
        task="detect3d",
        patients_from=real.about["patients_from"],
        primary=PRIMARY,
        rows=make_rows(cells, test, seed=study.seed),
        refused=tuple(Refused(setup=name, reason=why) for name, why in refused.items()),
        published=published,
    )
    matched = {name: [rules(cell.findings, test) for cell in own] for name, own in cells.items()}
    sets = list(study.generators)
    return Report(
        title=f"{title} {study.dataset.name}, scale {study.scale}",
        question=question,
        table=table,
        warnings=warnings(work, table, len(test.patients)),
        notes=notes(work),
        small_tables=[
            table_of_nodules(real),
            table_of_sets(work, sets, drawn),
            table_of_density(work, sets),
        ],
        froc=[
            Froc(
                rule.removeprefix("CPM "),
                [
                    froc_curve(name, [each[rule] for each in own], THRESHOLD)
                    for name, own in matched.items()
                ],
                per="scan",
            )
            for rule in next(iter(matched.values()))[0]
        ],
        grids=[
            *(grid_of(work, name) for name in sets if work.set_of(name, 0).exists()),
            real_grid(work),
        ],
        detections=detections(test, cells, study.seed),
        detection_threshold=THRESHOLD,
        training=training(work, cells),
        settings=study.model_dump(mode="json"),
        versions=versions(),
        command=work.command,
        seeds=sorted({cell.facts["seed"] for cell in cells[BASELINE]}),
        seconds=work.tasks.seconds,
        data=facts_of(real, work.drawn, low_data=bool(study.slices), what="scans"),
    )


def make_rows(cells: Mapping[str, Sequence[Cell]], test: Dataset, *, seed: int) -> tuple[Row, ...]:
    """A row of the table for each set-up, with paired differences: see `rows_of`."""
    runs = {name: [cell.findings for cell in own] for name, own in cells.items()}
    return rows_of(
        {name: [cell.facts for cell in own] for name, own in cells.items()},
        {name: metrics_of(own, test) for name, own in runs.items()},
        {
            name: [cpm(*froc(first_rule(rules(one, test)))) for one in own]
            for name, own in runs.items()
        },
        primary=PRIMARY,
        baseline=BASELINE,
        seed=seed,
    )


def first_rule(matched: Mapping[str, Matches]) -> Matches:
    """By overlap."""
    return next(iter(matched.values()))


# Tables


def table_of_nodules(real: Dataset) -> SmallTable:
    """How many nodules of each kind there are to learn from and to find."""
    rows = []
    for split in ("train", "validation", "test"):
        own = real.split(split)
        kinds = [str(kind) for trait in ("sizes", "attenuations") for kind in per_box(own, trait)]
        every = sum(len(own.boxes(i)) for i in range(len(own)))
        counts = [f"{kinds.count(name)}" for name in (*SIZES, *ATTENUATIONS)]
        rows.append([split, f"{len(own)}", f"{every}", *counts])
    return SmallTable(
        "Nodules",
        ("Split", "Scans", "Nodules", *SIZES, *ATTENUATIONS),
        rows,
        "Small: to 10 mm; medium: to 20 mm; large: above. A CPM of few nodules is known badly, "
        "whatever its interval over patients says.",
    )


def table_of_sets(work: "ScanWork", sets: Sequence[str], drawn: Sequence[int]) -> SmallTable:
    """What was drawn, and whether a detector finds it."""
    kinds = ("all nodules", *SIZES, *ATTENUATIONS)
    rows = []
    for name in sets:
        for d in drawn:
            if (v := work.verdict(name, d)) is None:
                continue
            shares = (said(v["found"].get(kind), v["real_found"].get(kind)) for kind in kinds)
            copies = v["copies"] or {}
            rows.append(
                [
                    f"{name}{work.cells.on(d)}",
                    f"{v['drawn']:,}",
                    "yes" if v["admitted"] else "no",
                    str(copies.get("n_copies", "not checked")),
                    *shares,
                ]
            )
    return SmallTable(
        "Synthetic sets",
        ("Set", "Scans", "Admitted", "Copies drawn again", *(k.capitalize() for k in kinds)),
        rows,
        "Copies: nodules nearer to a training nodule than real ones of other patients come. The "
        "rest: the share of drawn nodules (in brackets: of real validation nodules) that the "
        f"draw's own detector finds at IoU {IOU:g}, at {RATE:g} false positive a real validation "
        f"scan, in the first {JUDGED} scans. Drawn nodules lie in scans that it trained on, where "
        "real nodules were.",
    )


def said(drawn: float | None, real: float | None) -> str:
    """Two shares."""
    one, other = ("–" if share is None else f"{share:.2f}" for share in (drawn, real))
    return f"{one} ({other})"


def table_of_density(work: "ScanWork", sets: Sequence[str]) -> SmallTable:
    """Whether nodules are as dense as ordered."""

    def row(name: str, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
        each = (found.get(kind) for kind in ATTENUATIONS)
        return [
            name,
            *("–" if e is None else f"{e['mean']:.0f} ± {e['sd']:.0f}, n = {e['n']}" for e in each),
        ]

    rows = [row("real training nodules", density_of(work.scans(0)))]
    rows += [row(name, v["density"]) for name in sets if (v := work.verdict(name, 0)) is not None]
    return SmallTable(
        "Are nodules as dense as ordered?",
        ("Nodules", *(kind.capitalize() for kind in ATTENUATIONS)),
        rows,
        "Mean HU of the middle of a nodule (half of each side of its box), ± standard deviation "
        f"over nodules; of the first draw's {JUDGED} first scans.",
    )


# Words


def warnings(work: "ScanWork", table: Table, n_patients: int) -> list[str]:
    """What a reader must know before the numbers."""
    study, found = work.study, []
    if study.scale == "smoke":
        found.append(
            "Scale smoke: detectors train for a minute and are limited by that, not by their data. "
            "This run shows that the chain works; it cannot show whether synthetic data helps."
        )
    if study.phantoms is not None:
        found.append("The chests are phantoms made from nothing; nothing here is about patients.")
    return found + caveats(study, table, n_patients)


def notes(work: "ScanWork") -> list[str]:
    """How the table was made."""
    study = work.study
    loop, system = study.detector.train, study.detector.system
    whose = "each draw's own nodules" if study.slices else "the training nodules"
    found = [
        f"Generator {name}: {source.name}, trained on {whose} for {source.train.steps:,} steps"
        f"{', with L1' * bool(source.system['distance_weight'])}."
        for name, source in study.generators.items()
    ]
    window = " x ".join(map(str, system["window"]["space"]))
    return [
        *found,
        "Drawn scans are the draw's own with their nodules of known size and attenuation drawn "
        "anew where they were, moved by up to 10 % of their sides and zoomed by up to 10 %; the "
        "rest of a scan is as it was.",
        f"Every set-up makes {loop.steps:,} optimiser steps on {system['batch_size']} windows of "
        f"{window} voxels, beginning from the same weights; windows are shifted and zoomed "
        "(classic augmentation) in every row.",
        "CPM: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan, the curve "
        "read as a step function. False positives are those of whole scans for every subset; "
        "findings that nobody has to find count neither way.",
        f"Curves are marked, and detections shown, at a score of {THRESHOLD:g}.",
        "The test split was used once a detector.",
    ]


# Pictures


def grid_of(work: "ScanWork", name: str) -> Grid:
    """The first nodules that were drawn, on the first draw."""
    return Grid(
        f"Synthetic nodules ({name}): axial, coronal, sagittal",
        views(Dataset.open(work.set_of(name, 0)), drawn=True),
        synthetic=True,
        note="The first ones drawn; none was chosen. -1,000 HU are black, 400 HU are white.",
    )


def real_grid(work: "ScanWork") -> Grid:
    """Training nodules."""
    kind = "phantoms" if work.study.phantoms is not None else "real"
    return Grid(
        f"Training nodules ({kind}): axial, coronal, sagittal",
        views(work.scans(0), drawn=False),
        synthetic=False,
        note="The first ones.",
    )


def views(scans: Dataset, *, drawn: bool) -> list[Picture]:
    """Three planes through each of the first nodules of known traits."""
    found: list[Picture] = []
    for case in scans:
        nodules, spacing = nodules_of(case), case.image.spacing_mm
        if drawn:
            n = len(case.origin.conditions["painted"])  # type: ignore[union-attr]
            nodules = nodules[len(nodules) - n :]
        for nodule in nodules:
            image = three_views(
                case.image.values[0],
                nodule.box,
                value_range=scans.about["value_range"],
                spacing_mm=(spacing[0], spacing[1], spacing[2]) if spacing else (1.0, 1.0, 1.0),
                side_px=VIEW_PX,
            )
            name = f"{nodule.size}, {nodule.attenuation}"
            found.append(Picture(image, np.zeros((0, 4), np.float32), name))
        if len(found) >= PICTURES:
            break
    return found[:PICTURES]


def detections(test: Dataset, cells: Mapping[str, Sequence[Cell]], seed: int) -> list[Detected]:
    """What the first detector of each set-up found in the plane through a few test nodules."""
    with_nodules = [i for i in range(len(test)) if len(test.boxes(i))]
    order = np.random.default_rng(seed).permutation(with_nodules)[:6]
    shown = []
    for i in order.tolist():
        box = test.boxes(i)[0]
        z = int((box[0] + box[3]) / 2)
        found = {}
        for setup, own in cells.items():
            every = own[0].findings.detections
            here = (every.case == i) & cut_by(every.boxes, z)
            found[setup] = (boxes_at(every.boxes[every.case == i], z), every.scores[here])
        image = to_bytes(np.asarray(test.values(i))[:, z], test.about["value_range"])
        shown.append(Detected(image, boxes_at(test.boxes(i), z), found, f"{test[i].case_id}, {z}"))
    return shown


def training(work: "ScanWork", cells: Mapping[str, Sequence[Cell]]) -> list[TrainingRun]:
    """The logs of the first draw's generators and detectors."""
    runs = [
        TrainingRun(f"generator {name}", Run(folder).read_log())
        for name in work.study.generators
        if (folder := work.generator(name, 0)).exists()
    ]
    runs += [TrainingRun(setup, Run(own[0].folder).read_log()) for setup, own in cells.items()]
    return runs
