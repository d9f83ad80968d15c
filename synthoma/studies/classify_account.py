"""The report of a classification study, from what its folder holds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from synthoma.data.classic import Classic
from synthoma.data.dataset import Dataset
from synthoma.engine.run import Run
from synthoma.engine.versions import versions
from synthoma.metrics.diversity import collapsed
from synthoma.metrics.embedding import embed, perplexity_for
from synthoma.report.content import Grid, Report
from synthoma.report.figures import TrainingRun
from synthoma.report.scatter import Scatter
from synthoma.report.table import Refused, Table
from synthoma.studies.augment import BASELINE
from synthoma.studies.classification import PRIMARY
from synthoma.studies.classify import PRETRAINED_BASELINE
from synthoma.studies.classify_cell import ClassCell, make_rows
from synthoma.studies.classify_sets import refiner
from synthoma.studies.classify_tables import (
    as_good,
    shortcuts,
    table_of_pairs,
    table_of_sets,
    table_of_shortcuts,
    table_of_two_samples,
)
from synthoma.studies.shown import LARGE, caveats, facts_of, pictures, told, whole

if TYPE_CHECKING:
    from synthoma.studies.classify_work import ClassifyWork

TITLE = "Does synthetic data help to tell classes apart?"
QUESTION = (
    "Does a classifier answer better when synthetic images of known class are added to its real "
    "training images? Each row is a classifier trained for the same number of steps, and tested "
    "once on patients that neither it nor a generator has seen."
)
#: Pictures of a class in a grid.
PICTURES = 16
#: Images of a kind that are laid out in the plane, as in the paper.
A_KIND = 300


def account(work: "ClassifyWork") -> Report:
    """Everything that the report shows."""
    study, real = work.study, work.real
    title, question, published = told(study.name, TITLE, QUESTION, None)
    cells, refused = work.cells.finished()
    drawn = sorted({cell.facts["draw"] for cell in cells[BASELINE]})
    without_looking = shortcuts(work, cells[BASELINE])
    table = Table(
        study=study.name,
        task="classify",
        patients_from=real.about["patients_from"],
        primary=PRIMARY,
        rows=make_rows(cells, baseline=BASELINE, seed=study.seed, also=[PRETRAINED_BASELINE]),
        refused=tuple(Refused(setup=name, reason=why) for name, why in refused.items()),
        published=published,
    )
    return Report(
        title=f"{title} {study.dataset.name}, scale {study.scale}",
        question=question,
        table=table,
        warnings=[*warnings(work, table, drawn), *as_good(without_looking)],
        notes=notes(work, cells),
        small_tables=[
            table_of_shortcuts(work, without_looking),
            table_of_sets(work, drawn),
            table_of_two_samples(work),
            table_of_pairs(work, cells),
        ],
        grids=grids(work),
        scatters=scatters(work) if study.scale in LARGE else (),
        training=training_of(work, cells),
        settings=study.model_dump(mode="json"),
        versions=versions(),
        command=work.command,
        seeds=sorted({cell.facts["seed"] for cell in cells[BASELINE]}),
        seconds=work.tasks.seconds,
        data=facts_of(real, work.drawn, low_data=bool(study.slices), what="images"),
    )


def grids(work: "ClassifyWork") -> list[Grid]:
    """Synthetic and real images of the first draw, by class."""
    found = []
    for name in work.study.sets:
        drawn = Dataset.open(work.set_of(name, 0))
        for label in drawn.labels:
            own = drawn.where(label=label)
            found.append(
                Grid(
                    f"Synthetic images ({name}) of {label!r}",
                    pictures(own, range(min(PICTURES, len(own)))),
                    synthetic=True,
                    note="The first ones drawn; none was chosen.",
                )
            )
    for label in work.real.labels:
        own = work.images(0).where(label=label)
        order = np.random.default_rng(work.study.seed).permutation(len(own))[:PICTURES]
        found.append(
            Grid(
                f"Real training images of {label!r}",
                pictures(own, order.tolist()),
                synthetic=False,
                note="Drawn at random.",
            )
        )
    return found


def scatters(work: "ClassifyWork") -> list[Scatter]:
    """t-SNE of whole images by class: real ones and the same after classic augmentation, then real
    ones and each synthetic set (Han et al. 2019, figure 7)."""
    study, real = work.study, work.images(0)
    of_real = by_class(real, "real")
    panels = {name: by_class(Dataset.open(work.set_of(name, 0)), name) for name in study.sets}
    classic = next((study.classifiers[s.classifier] for s in study.setups if s.classic), None)
    if classic is not None and classic.system["augment"]:
        how = Classic.model_validate(classic.system["augment"])
        panels = {"classic augmentation": by_class(real, "augmented", how)} | panels
    found = []
    for name, others in panels.items():
        parts = of_real | others
        points = embed(np.concatenate(list(parts.values())), seed=study.seed)
        found.append(
            Scatter(
                f"Real images and {name}",
                points,
                [kind for kind, own in parts.items() for _ in own],
                f"t-SNE of raw pixels, perplexity {perplexity_for(len(points)):g}, 1,000 "
                f"iterations; up to {A_KIND} of each kind, real training images of the first draw.",
            )
        )
    return found


def by_class(dataset: Dataset, name: str, classic: Classic | None = None) -> dict[str, np.ndarray]:
    """Images of each class as vectors."""
    return {
        f"{name}, {label}": whole(dataset.where(label=label), A_KIND, classic=classic)
        for label in dataset.labels
    }


def training_of(
    work: "ClassifyWork", cells: Mapping[str, Sequence[ClassCell]]
) -> list[TrainingRun]:
    """The logs of the first draw's generators and classifiers."""
    runs = [
        TrainingRun(f"generator {folder.name}", Run(folder).read_log())
        for name in work.study.generators
        for label in work.classes_of(name)
        for folder in (work.generator(name, 0, label),)
    ]
    runs += [
        TrainingRun(f"refiner {folder.name}", Run(folder).read_log())
        for name in work.study.refiners
        for label in work.real.labels
        for folder in (refiner(work, name, 0, label),)
    ]
    runs += [TrainingRun(setup, Run(own[0].folder).read_log()) for setup, own in cells.items()]
    return runs


def warnings(work: "ClassifyWork", table: Table, drawn: Sequence[int]) -> list[str]:
    """What a reader must know before the numbers."""
    study, said = work.study, list(work.study.remarks)
    if study.scale == "smoke":
        said.append(
            "Scale smoke: classifiers train for seconds and are limited by that, not by their "
            "data. This run shows that the chain works; it cannot show whether synthetic data "
            "helps."
        )
    said += caveats(study, table, len(work.real.split("test").patients))
    for name in study.sets:
        for d in drawn:
            v = work.verdict(name, d)
            for label, own in (v["diversity"] if v is not None else {}).items():
                of_real = v["real_diversity"][label] if v is not None else {}
                if few := collapsed(own | {f"real {kind}": s for kind, s in of_real.items()}):
                    said.append(
                        f"{name}{work.cells.on(d)}, {label}: the spread of {' and '.join(few)} is "
                        "far below that of real images; the generator repeats itself."
                    )
    return said


def notes(work: "ClassifyWork", cells: Mapping[str, Sequence[ClassCell]]) -> list[str]:
    """How the table was made."""
    study, said = work.study, []
    whose = "each draw's own images" if study.slices else "the training images"
    for name, source in study.generators.items():
        how = ", one for each class" if source.each_class else ", told the class"
        said.append(f"Generator {name}: {source.name}, trained on {whose}{how}.")
    for name, by in study.refiners.items():
        how = f"step picked of {', '.join(map(str, by.tried))}" if by.tried else "its last step"
        said.append(f"{name}: images of {by.of!r} through {by.name}, one for each class, {how}.")
        picked = Dataset.open(work.set_of(name, 0)).about["refined"].get("picked")
        if picked is not None:
            tried = ", ".join(f"{step}: {a:.3f}" for step, a in picked["accuracy"].items())
            said.append(f"{name}: step {picked['step']} was picked by {picked['by']} ({tried}).")
    for name in study.curated:
        own = Dataset.open(work.even(name, 0))
        rules = ", ".join(f"{n} by {rule}" for rule, n in own.about["curated"]["rules"].items())
        judged = own.about["curated"]["judged"]
        said.append(f"{name}: {len(own)} of {judged} images kept (decided {rules}).")
    answers = cells[BASELINE][0].answers
    of = [answers.classes[k] for k in answers.looked_for]
    said.append(
        f"Sensitivity, specificity, precision and area are of {of[0]!r}."
        if len(of) == 1
        else f"Sensitivity, specificity, precision and area are means over {', '.join(of)}, one "
        "against the others."
    )
    used = {s.classifier: study.classifiers[s.classifier] for s in study.setups if s.classic}
    for name, one in used.items():
        how = one.system["augment"]
        words = Classic.model_validate(how).in_words() if how else "nothing"
        said.append(f"Classic augmentation ({name}): {words}.")
    for name, one in study.classifiers.items():
        loop, system = one.train, one.system
        length = f"{loop.epochs} epochs" if loop.epochs else f"{loop.steps:,} optimiser steps"
        rows = {
            "equal": f"{' of the real images' * bool(loop.epochs)} in every row",
            "images": " of each row's own images"
            if loop.epochs
            else " on the real images alone, in proportion more where a row has more images",
        }
        stopped = f", stopped after {loop.patience} without a better one" if loop.patience else ""
        said.append(
            f"{name}: {system['backbone']} at {system['side_px']} px, {length}{rows[study.length]}"
            f", on batches of {system['batch_size']}, beginning from the same weights; of all "
            f"validations{stopped} the weights with the best {loop.keep_best or 'last step'} are "
            "tested."
        )
    said += [
        f"All images were prepared at {study.prepare.side_px} px, the generators' side, so that "
        "resolution does not tell real from synthetic.",
        "Ratios are of images in a batch; "
        + (
            f"{study.variety} times as many different synthetic images are dealt."
            if study.variety > 1
            else "so many different synthetic images were used."
        ),
        "Alone: trained on synthetic images only, tested on real ones; the weights are still "
        "chosen on real validation images.",
        "The test split was used once a classifier.",
    ]
    return said
