"""What stands beside the results of a classification study: shortcuts, sets, two samples, pairs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32

from synthoma.data.batches import signed_unit
from synthoma.data.dataset import Dataset
from synthoma.metrics.classification import Answers, auc_of, delong, mcnemar, metrics_of
from synthoma.metrics.detection import UndefinedMetricError
from synthoma.metrics.intervals import interval
from synthoma.metrics.twosample import c2st
from synthoma.nn import features
from synthoma.report.claims import p_text
from synthoma.report.content import SmallTable
from synthoma.studies.augment import BASELINE
from synthoma.studies.classification import PRIMARY, shortcut_baselines
from synthoma.studies.classify import PRETRAINED, PRETRAINED_BASELINE
from synthoma.studies.classify_cell import ClassCell
from synthoma.studies.rows import estimates
from synthoma.studies.shown import LARGE

if TYPE_CHECKING:
    from synthoma.studies.classify_work import ClassifyWork

#: Side at which the frozen network looks.
FEATURE_PX = 128
#: Images of either kind that the two-sample test tells apart, at most, and its permutations.
COMPARED, PERMUTATIONS = 200, 100


def shortcuts(
    work: "ClassifyWork", baseline: Sequence[ClassCell]
) -> list[tuple[int, dict[str, Answers]]]:
    """Of each draw, what the baseline's network answers and, behind it, what is answered without
    looking at anything."""
    test, found = work.real.split("test"), []
    for cell in baseline:
        if cell.facts["seed"] == work.study.seed:
            d, own = cell.facts["draw"], cell.answers
            without = shortcut_baselines(work.images(d), test, positive=own.positive)
            found.append((d, {f"the network ({BASELINE})": own} | without))
    return found


def table_of_shortcuts(
    work: "ClassifyWork", found: Sequence[tuple[int, dict[str, Answers]]]
) -> SmallTable:
    """What is reached without looking at anything, beside the baseline, a draw each."""
    rows = [
        [f"{name}{work.cells.on(d)}", *(said(one, m, work) for m in (PRIMARY, "accuracy"))]
        for d, answers in found
        for name, one in answers.items()
    ]
    return SmallTable(
        "Shortcuts",
        ("What answers", "Area under the ROC curve", "Accuracy"),
        rows,
        "Logistic regression on a thumbnail of 8x8 pixels, and on the size of the image as a file, "
        "trained on the same draw. What they reach, no network has learnt to see in any detail: a "
        "gain above them is what counts.",
    )


def as_good(found: Sequence[tuple[int, dict[str, Answers]]]) -> Iterator[str]:
    """The shortcuts that reach the network's area, the mean over draws, in sentences."""
    by_name: dict[str, list[Answers]] = {}
    for _, answers in found:
        for name, one in answers.items():
            by_name.setdefault(name, []).append(one)
    network, *others = ((name, auc_of(runs).value()) for name, runs in by_name.items())
    for name, reached in others:
        if reached >= network[1]:
            yield (
                f"{name[0].upper()}{name[1:]} reaches an area of {reached:.2f}, {network[0]} "
                f"{network[1]:.2f}: these classes are told apart without looking at any detail, "
                "and the rows below may differ in nothing else."
            )


def said(answers: Answers, metric: str, work: "ClassifyWork") -> str:
    """A metric with its interval."""
    wanted = {metric: partial(interval, metrics_of([answers])[metric], seed=work.study.seed)}
    values, undefined = estimates(wanted)
    if metric in undefined:
        return undefined[metric]
    found = values[metric]
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def table_of_sets(work: "ClassifyWork", drawn: Sequence[int]) -> SmallTable:
    """What was drawn, seen, admitted; how diverse it is; whether it copies."""
    rows = []
    for name in work.study.sets:
        for d in drawn:
            v = work.verdict(name, d)
            if v is None:
                continue
            by_class = ", ".join(f"{c} {area:.2f}" for c, area in v["found_of"].items())
            spread = (
                ", ".join(f"{c} {own[kind]:.3f} ({v['real_diversity'][c][kind]:.3f})"
                          for c, own in v["diversity"].items() if kind in own) or "–"
                for kind in ("pixels", "features")
            )  # fmt: skip
            copies = "not checked" if v["copies"] is None else str(v["copies"].get("n_copies", 0))
            rows.append(
                [
                    f"{name}{work.cells.on(d)}",
                    f"{v['drawn']:,}",
                    f"{v['found']:.2f} ({by_class})",
                    f"{v['found_real']:.2f}",
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
            "Ordered classes told apart",
            "In real images",
            "Admitted",
            "Spread of pixels (real)",
            "Spread of features (real)",
            "Copies dropped",
        ),
        rows,
        "Told apart: the area under the ROC curve of the draw's own classifier, trained on its "
        "real images, each class against the others, and the mean of all; 0.5 by chance; in real "
        "images: of the validation split. Spread: the mean standard deviation over the images of "
        "a class; far below the real one, a generator repeats itself.",
    )


def table_of_pairs(work: "ClassifyWork", cells: Mapping[str, Sequence[ClassCell]]) -> SmallTable:
    """McNemar's and DeLong's tests of each classifier against the baseline's of its draw and
    seed."""
    rows = []
    for setup, own in cells.items():
        pretrained = work.study.setup(setup).classifier == PRETRAINED
        to = PRETRAINED_BASELINE if pretrained and setup != PRETRAINED_BASELINE else BASELINE
        for one, other in zip(own, cells.get(to, ()), strict=False):
            if setup == to:
                continue
            place = f"{work.cells.on(one.facts['draw'])}, seed {one.facts['seed']}"
            rows.append([f"{setup}{place}", to, *of_pair(one.answers, other.answers)])
    return SmallTable(
        "Pairs of classifiers",
        (
            "Set-up",
            "against",
            "Right alone: it, the other",
            "McNemar p",
            "Areas: it, the other",
            "DeLong p",
        ),
        rows,
        "Exact McNemar and DeLong tests of two classifiers of one draw and one seed. They take "
        "images to be independent, which several of one patient are not, and are not corrected for "
        "their number: claims rest on the paired intervals over patients. DeLong: of two classes.",
    )


def of_pair(one: Answers, other: Answers) -> list[str]:
    """McNemar and DeLong, as cells of a table."""
    votes = mcnemar(one.said == one.truths, other.said == other.truths)
    found = [f"{votes.first_alone}, {votes.second_alone}", small(votes.p)]
    if len(one.looked_for) > 1:
        return [*found, "–", "–"]
    kind = one.looked_for[0]
    try:
        areas = delong(one.truths == kind, one.probabilities[:, kind], other.probabilities[:, kind])
    except UndefinedMetricError as error:
        return [*found, "–", error.reason]
    return [*found, f"{areas.first:.3f}, {areas.second:.3f}", small(areas.p)]


def small(p: float) -> str:
    """A p-value that no resampling bounds from below."""
    return "< 0.001" if p < 0.001 else p_text(p)


def table_of_two_samples(work: "ClassifyWork") -> SmallTable:
    """Can a classifier of frozen features tell synthetic images from real ones? On the first
    draw; beside it, the draw's real images against the validation split's."""
    held_out, rows = work.real.split("validation"), []
    sets = {"the draw's real images": work.images(0)}
    sets |= {name: Dataset.open(work.set_of(name, 0)) for name in work.study.sets}
    permutations = PERMUTATIONS if work.study.scale in LARGE else PERMUTATIONS // 5
    for name, own in sets.items():
        first, second = alike(held_out, own)
        if (fewest := min(len(first.patients), len(second.patients))) < 2:
            rows.append(
                [name, f"{len(first)}, {len(second)}", f"{fewest} patient: not tested", "–", "–"]
            )
            continue
        found = c2st(
            features_of(first),
            features_of(second),
            first_patients=np.array(first.patient_ids),
            second_patients=np.array([f"other {p}" for p in second.patient_ids]),
            seed=work.study.seed,
            permutations=permutations,
        )
        low, high = np.quantile(found.null, (0.025, 0.975))
        e = found.accuracy
        rows.append(
            [
                name,
                f"{len(first)}, {len(second)}",
                f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]",
                f"{found.null.mean():.2f} [{low:.2f}, {high:.2f}]",
                p_text(found.p),
            ]
        )
    return SmallTable(
        "Can they be told from real images?",
        ("Set", "Images: validation, set", "Told right", "By chance (95 %)", "p"),
        rows,
        "Classifier two-sample test against real validation images: logistic regression on "
        "features of a frozen ImageNet network, tested on unseen patients, classes in the same "
        "proportions in both; balanced accuracy. By chance: "
        f"{permutations} permutations of patients, so no p is below {1 / (permutations + 1):.2g}. "
        "0.5: nothing tells them apart; 1: every image is told. The first row is what other real "
        "patients are told by. Synthetic images have no patients: where real ones have several "
        "images each, chance is drawn too narrow.",
    )


def alike(first: Dataset, second: Dataset) -> tuple[Dataset, Dataset]:
    """Some images of both at random but fixed, with as many of each class in one as in the
    other."""
    kept: tuple[list[int], list[int]] = ([], [])
    chance = np.random.default_rng(0)
    for label in first.labels:
        there = [[i for i in range(len(d)) if d.label(i) == label] for d in (first, second)]
        n = min(*map(len, there), max(1, COMPARED // len(first.labels)))
        for chosen, own in zip(kept, there, strict=True):
            chosen.extend(sorted(chance.permutation(own)[:n].tolist()))
    return first.take(np.array(kept[0], np.int64)), second.take(np.array(kept[1], np.int64))


def features_of(dataset: Dataset) -> Float32[np.ndarray, "n d"]:
    """A vector of frozen features an image; pixels, where the network cannot look at images of so
    many channels."""
    value_range = dataset.about["value_range"]
    images = np.stack([signed_unit(dataset.values(i), value_range) for i in range(len(dataset))])
    if images.shape[1] not in (1, 3):
        return images.reshape(len(images), -1)
    parts = [features.vectors(torch.from_numpy(images[k : k + 32]), FEATURE_PX)
             for k in range(0, len(images), 32)]  # fmt: skip
    return torch.cat(parts).numpy()
