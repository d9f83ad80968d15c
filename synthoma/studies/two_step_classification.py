"""Two-step GAN augmentation of tumour classification (Han et al. 2019): the paper's table.

    labelled slices -> a PGGAN for each class -> clusters, weird ones dropped
    -> UNIT | MUNIT | SimGAN for each class -> ResNet-50 on real + classic + synthetic, from scratch
    and from ImageNet weights -> accuracy, sensitivity, specificity

Run: synthoma study two_step_classification --data brats --scale paper --out runs/two-step
Without data, and in minutes: synthoma study two_step_classification --scale smoke --out runs/two
The first of the two tables alone: ... --set study.tables=[unit]

Papers:
  Han et al. 2019, Combining noise-to-image and image-to-image GANs: brain MR image augmentation for
    tumor detection (file 002), sections III-B to III-D, table 1: refined by UNIT or SimGAN
  Han, Pathology-aware GANs for medical image augmentation (thesis, file 000), section 4.2, table 2:
    the same with MUNIT in place of UNIT

Differs from the papers:
  Classic images. Theirs are 200,000 or 400,000 files; here a real image is transformed anew each
  time it is dealt. "+200k classic" says that one round of the training set holds each real image
  1 + 200,000 / 8,429 times, rounded to whole times, every time transformed; "+400k" alike. In rows
  without, neither real nor synthetic images are transformed; in rows with both, both are.
  Length. An epoch is a set-up's own round, as theirs: with study.length=images a row with more
  images makes more optimiser steps in proportion, and early stopping ends it. Gains may then be of
  length; study.length=equal gives every row the same steps ("+400k" is then "+200k" once more).
  Budgets. 200,000 images for 8,429 real ones became 23.7 for each real one, times study.budget: 1
  at paper, an eighth at small, a twenty-fourth at smoke.
  Curation. Clusters of weird images were dropped by hand; here by a proposal that is replayed
  (`clusters.py`), or as a person changes STUDY/clusters/*/clusters.csv before the refiners learn.
  Refiners learn from all real and all curated images of a class, where the papers took 3,000 each.
  Their steps are picked of 20,000, 50,000 and 100,000 (shares of their length) by a pre-trained
  classifier on each real image once and all refined ones; SimGAN's 20,000 steps, which the papers
  state beside the picking, are not picked (study.tried.simgan=[0.2, 0.5, 1] does).
  Scale. Real images are at the GANs' 256 px too, and all come to 224 from there, so that real and
  synthetic heads are of one size; the papers' differ by 6.7 %.
  The data: `data import --format brats` pads to 256 px (canvas_px) and leaves unclear slices out by
  the area of tumour, where they were excluded by eye; nothing is cropped.
  Three trainings a row at paper scale, where they state one; intervals and paired differences, of
  the area under the ROC curve. Nothing is refused (study.least_found=0).
Not here: the visual Turing test.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare
from synthoma.errors import SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.report.table import PublishedRow
from synthoma.settings import merged, replaced
from synthoma.studies.augment import BASELINE, CURATED, Part
from synthoma.studies.classify import (
    PRETRAINED,
    PRETRAINED_BASELINE,
    SEEDS,
    ClassifyStudy,
    ClassRefiner,
    ClassSetup,
    ClassSource,
)
from synthoma.studies.trained import Trained, check_that_it_finishes, preset
from synthoma.synthesis.clusters import ClusterSettings
from synthoma.tasks import backbones
from synthoma.tasks.backbones import LITE0, SMALL_RESNET

NAME = "two_step_classification"
TITLE = "Two-step GAN augmentation for tumour classification (Han et al. 2019):"
QUESTION = (
    "Does a classifier tell slices with a tumour better from others when images that a PGGAN drew, "
    "and that UNIT, MUNIT or SimGAN brought closer to real ones, are added to its real training "
    "images? The ten rows of Han et al. 2019, table 1, and those of the thesis, table 2, each from "
    "scratch and with ImageNet weights. Each is tested once on patients that neither the "
    "classifier nor a GAN has seen."
)

#: Real training images of the papers, and the synthetic or classic ones that they added at once.
REAL, ADDED = 8_429, 200_000
#: The ten rows: ours, how many times classic images are added, the set. REFINED is UNIT or MUNIT.
REFINED = "REFINED"
TEN = (
    ("real", 0, ""),
    (BASELINE, 1, ""),
    ("real + classic, doubled", 2, ""),
    ("real + pggan, curated", 0, "pggan, curated"),
    ("real + pggan", 0, "pggan"),
    ("real + classic + pggan, curated", 1, "pggan, curated"),
    (f"real + {REFINED}", 0, REFINED),
    (f"real + classic + {REFINED}", 1, REFINED),
    ("real + simgan", 0, "simgan"),
    ("real + classic + simgan", 1, "simgan"),
)
#: What stands before the names of rows with ImageNet weights.
ARM = PRETRAINED_BASELINE.removesuffix(BASELINE)

# fmt: off
#: Per cent as printed: accuracy, sensitivity, specificity with ImageNet weights, and without.
TABLE_1 = {
    "8,429 real images": ((93.26, 90.95, 95.87), (86.38, 88.94, 83.62)),
    "+ 200k classic DA": ((95.02, 93.63, 96.57), (92.21, 90.21, 95.11)),
    "+ 400k classic DA": ((94.93, 91.90, 98.39), (93.24, 90.91, 95.97)),
    "+ 200k PGGAN-based DA": ((93.95, 92.48, 95.56), (86.25, 87.25, 84.78)),
    "+ 200k PGGAN-based DA w/o clustering/discard": ((94.80, 91.82, 98.39), (80.54, 80.02, 81.25)),
    "+ 200k classic DA & 200k PGGAN-based DA": ((96.18, 94.12, 98.79), (95.63, 94.24, 97.28)),
    "+ 200k UNIT-refined DA": ((94.31, 93.26, 96.02), (83.68, 87.75, 78.48)),
    "+ 200k classic DA & 200k UNIT-refined DA": ((96.70, 95.48, 98.29), (96.34, 97.53, 94.96)),
    "+ 200k SimGAN-refined DA": ((94.49, 92.39, 97.18), (77.66, 82.03, 71.98)),
    "+ 200k classic DA & 200k SimGAN-refined DA": ((96.36, 95.11, 97.88), (95.04, 95.07, 94.96)),
}
TABLE_2 = {
    "(1) 8,429 real images": ((93.1, 90.9, 95.9), (86.3, 88.9, 83.2)),
    "(2) + 200k classic DA": ((95.0, 93.7, 96.6), (92.2, 89.9, 95.0)),
    "(3) + 400k classic DA": ((94.8, 91.9, 98.4), (93.2, 90.9, 96.1)),
    "(4) + 200k PGGAN-based DA": ((93.9, 92.6, 95.6), (86.2, 87.3, 84.9)),
    "(5) + 200k PGGAN-based DA w/o clustering/discarding": ((94.8, 91.9, 98.4), (80.7, 80.2, 81.2)),
    "(6) + 200k classic DA & 200k PGGAN-based DA": ((96.2, 94.0, 98.8), (95.6, 94.2, 97.3)),
    "(7) + 200k MUNIT-refined DA": ((94.3, 93.0, 95.8), (83.7, 87.8, 78.5)),
    "(8) + 200k classic DA & 200k MUNIT-refined DA": ((96.7, 95.4, 98.2), (96.3, 97.5, 95.0)),
    "(9) + 200k SimGAN-refined DA": ((94.5, 92.3, 97.1), (77.6, 82.3, 72.0)),
    "(10) + 200k classic DA & 200k SimGAN-refined DA": ((96.4, 95.1, 97.9), (95.0, 95.1, 95.0)),
}
# fmt: on
#: By the refiner of its rows: where a table is printed, and the table.
TABLES = {
    "unit": ("Han et al. 2019, table 1", TABLE_1),
    "munit": ("Han's thesis, table 2", TABLE_2),
}


def ten(refiner: str) -> list[tuple[str, int, str]]:
    """The rows of one table: ours, how many times classic images are added, the set."""
    return [(n.replace(REFINED, refiner), c, s.replace(REFINED, refiner)) for n, c, s in TEN]


METRICS = ("accuracy", "sensitivity", "specificity")
PUBLISHED = tuple(
    PublishedRow(
        setup=f"{arm}{ours}",
        metrics={name: round(v / 100, 4) for name, v in zip(METRICS, values, strict=True)},
        source=f"{source}, {theirs!r}, {'with' if arm else 'without'} ImageNet weights",
    )
    for refiner, (source, table) in TABLES.items()
    for k, arm in enumerate((ARM, ""))
    for (ours, _, _), (theirs, arms) in zip(ten(refiner), table.items(), strict=True)
    for values in (arms[k],)
)

#: Share of the papers' added images that is added, for each real image.
BUDGET = {"paper": 1.0, "small": 1 / 8, "smoke": 1 / 24}
#: Shares of a refiner's steps that are tried.
TRIED: dict[str, Sequence[float]] = {
    "unit": (0.2, 0.5, 1),
    "munit": (0.2, 0.5, 1),
    "simgan": (1,),
}
#: Phantoms of each scale. Paper: 154 patients to train on, 55 slices each: about the 8,429.
BRAINS = {
    "paper": BrainConfig(side_px=256, patients=220, slices_per_patient=55),
    "small": BrainConfig(side_px=64, patients=100, slices_per_patient=8),
    "smoke": BrainConfig(side_px=32, patients=50, slices_per_patient=4),
}
#: Not by accuracy, as at paper: a small validation split has few of its values.
_SHORT = {"keep_best": "log_likelihood"}
#: What a scale changes in the presets of its name.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        PRETRAINED: {"weights": "imagenet"},
        "curation": {"look": {"backbone": "densenet169", "side_px": 224}, "number": 200},
    },
    "small": {
        "classifier": {
            "backbone": SMALL_RESNET,
            "weights": "none",
            "width": 16,
            "dropout": 0.0,
            "learning_rate": 1e-3,
        },
        "classifier_train": {**_SHORT, "steps": 100, "validate_every": 25},
        "pggan_train": {"steps": 10_500},  # of two classes; full grown from step 7,000 on
        PRETRAINED: {"side_px": 64},
        f"{PRETRAINED}_train": {**_SHORT, "steps": 100, "validate_every": 25},
    },
    "smoke": {
        "pggan": {"stable_images": 320, "fade_images": 320},
        "pggan_train": {"steps": 500},
        **{f"{name}_train": {"steps": 100} for name in TRIED},
        "simgan": {"refiner_steps": 30, "judge_steps": 15},
        "classifier_train": {**_SHORT, "steps": 30, "validate_every": 10},
        PRETRAINED: {
            "backbone": LITE0,
            "weights": "imagenet",
            "side_px": 64,
            "learning_rate": 5e-4,
        },
        f"{PRETRAINED}_train": {**_SHORT, "steps": 30, "validate_every": 10},
        "curation": {"most": 1_000},  # of GANs of a minute every cluster is far from real images
    },
}
#: Settings of the study itself that may be replaced.
STUDY = ("tables", "budget", "tried", "length", "least_found", "spare", "seeds")


def rows(tables: Sequence[str], budget: float) -> tuple[ClassSetup, ...]:
    """The set-ups of the tables, from scratch and then pre-trained.

    Args:
        tables: The refiners of their rows: unit, munit.
        budget: Share of the papers' added images, for each real image.
    """
    added = budget * ADDED / REAL
    found = []
    for arm, classifier in (("", "classifier"), (ARM, PRETRAINED)):
        for name, classic, of in dict.fromkeys(row for table in tables for row in ten(table)):
            copies = round(1 + classic * added)
            whole = of.removesuffix(CURATED)
            part = Part(set=whole, ratio=added / copies, curated=of != whole)
            found.append(
                ClassSetup(
                    name=arm + name,
                    classifier=classifier,
                    classic=classic > 0,
                    copies=copies,
                    parts=(part,) if of else (),
                )
            )
    return tuple(found)


def refiner(name: str, of: str, shares: Any, told: Mapping[str, Mapping[str, Any]], scale: str
) -> ClassRefiner:  # fmt: skip
    """A refiner that keeps every checkpoint, a tenth of its steps apart, and those to be tried."""
    if not isinstance(shares, list | tuple) or not shares or not all(0 < s <= 1 for s in shares):
        raise SettingsError(f"study.tried.{name}={shares}; allowed: shares of its steps, to 1")
    fields = preset(name, name, scale, told)
    steps = fields["train"].steps
    every = max(1, steps // 10)
    fields["train"] = fields["train"].model_copy(
        update={"checkpoint_every": every, "keep_checkpoints": 10_000}
    )
    tried = {steps if s == 1 else every * max(1, round(s * steps / every)) for s in shares}
    return ClassRefiner(**fields, of=of, tried=tuple(sorted(tried)) if tried != {steps} else ())


def check_weights(backbone: str, weights: Any) -> None:
    """Say at once, not after days of training GANs, that weights are not on this machine.

    Raises:
        ResourceError: They are not; it says where they belong.
    """
    if weights == "imagenet" and backbone not in (LITE0, SMALL_RESNET):
        backbones.imagenet_file(backbone)


def tables_of(own: dict[str, Any], scale: str) -> tuple[list[str], float, dict[str, Any]]:
    """The tables, the budget and the tried shares, taken out of what the study is told.

    Raises:
        SettingsError: One of them, or another name, is not allowed.
    """
    if wrong := set(own) - set(STUDY):
        raise SettingsError(f"no settings study.{sorted(wrong)}; allowed: {', '.join(STUDY)}")
    tables, budget = own.pop("tables", list(TABLES)), own.pop("budget", BUDGET[scale])
    shares = {**TRIED, **own.pop("tried", {})}
    if not isinstance(tables, list) or not tables or set(tables) - set(TABLES):
        raise SettingsError(f"study.tables={tables}; allowed: a list of {', '.join(TABLES)}")
    if not isinstance(budget, int | float) or budget <= 0:
        raise SettingsError(f"study.budget={budget}; allowed: a number above 0")
    if wrong := set(shares) - set(TRIED):
        raise SettingsError(f"no settings study.tried.{sorted(wrong)}; allowed: {', '.join(TRIED)}")
    return tables, budget, shares


def data_of(
    out: Path,
    dataset: Path | None,
    side_px: int,
    scale: str,
    told: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The study's fields about its data: whose they are, and how they are prepared."""
    changed: dict[str, Any] = {"side_px": side_px, "crop": False}  # the papers do not crop
    found: dict[str, Any] = {}
    if dataset is None:
        changed["intensity"] = "keep"
        drawn = {"side_px": side_px, **told.get("phantoms", {})}
        found["dataset"] = (out / "phantoms").absolute()
        found["phantoms"] = replaced(BRAINS[scale], drawn, "phantoms")
    else:
        found["dataset"] = Dataset.open(dataset).folder.absolute()
    found["prepare"] = replaced(Prepare(), changed | dict(told.get("prepare", {})), "prepare")
    return found


def remarks_of(scale: str, budget: float) -> tuple[str, ...]:
    """What the report warns of at the scales below the papers'."""
    said = (
        f"Budgets are {budget:.3g} of the papers': {budget * ADDED / REAL:.2g} images added for "
        "each real one where they added 23.7, twice as many where they added 400,000.",
        "Every cluster is kept: curated sets are no better than others.",
    )
    return said[: {"paper": 0, "small": 1, "smoke": 2}[scale]]


def settings_for(
    out: Path,
    *,
    dataset: Path | None,
    also: list[Path],
    scale: str,
    seed: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> ClassifyStudy:
    """The study at a scale.

    Args:
        out: The study's folder; phantoms go there.
        dataset: Slices labelled as with and without tumour; None for phantoms.
        also: None: the papers have no further slices.
        overrides: By part ("study", "prepare", "curation"; "pggan", "unit", "munit", "simgan",
            "classifier", "pretrained" and each of them with "_train"; on phantoms "phantoms"),
            then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
        ResourceError: ImageNet weights that are not on this machine.
        DataError: A folder is no dataset.
    """
    if scale not in SEEDS:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SEEDS)}")
    if also:
        raise SettingsError(f"--also: {NAME} has no use for further slices; leave it out")
    own = dict(overrides.get("study", {}))
    tables, budget, shares = tables_of(own, scale)
    refiners = [*tables, "simgan"]
    trained = ["pggan", *refiners, "classifier", PRETRAINED]
    parts = [
        "study",
        "prepare",
        "curation",
        *(p + more for p in trained for more in ("", "_train")),
    ]
    parts += ["phantoms"] if dataset is None else []
    if wrong := set(overrides) - set(parts):
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {', '.join(parts)}")
    told = merged(OWN[scale], overrides)
    pggan = ClassSource(**preset("pggan", "pggan", scale, told), each_class=True)
    check_that_it_finishes("pggan", pggan)
    side_px = pggan.system["side_px"]
    sized = [*refiners, *([] if scale == "paper" else ["classifier"])]
    follow: dict[str, dict[str, Any]] = {name: {"side_px": side_px} for name in sized}
    follow[PRETRAINED] = {"positive": told.get("classifier", {}).get("positive", "")}
    told = merged(follow, told)
    curation = replaced(ClusterSettings(seed=seed), told.get("curation", {}), "curation")
    classifiers = {
        part: Trained(**preset(part, "classifier", scale, told))
        for part in ("classifier", PRETRAINED)
    }
    for chosen in classifiers.values():
        check_weights(chosen.system["backbone"], chosen.system["weights"])
    check_weights(curation.look.backbone, curation.look.weights)
    try:
        study = ClassifyStudy(
            name=NAME,
            remarks=remarks_of(scale, budget),
            **data_of(out, dataset, side_px, scale, told),
            scale=scale,
            generators={"pggan": pggan},
            refiners={n: refiner(n, "pggan" + CURATED, shares[n], told, scale) for n in refiners},
            curation=curation,
            classifiers=classifiers,
            setups=rows(tables, budget),
            length="images",
            least_found=0,  # the papers refused none
            seeds=SEEDS[scale],
            seed=seed,
        )
    except ValidationError as error:
        raise SettingsError(f"{NAME}: {error.errors()[0]['msg']}") from None
    return replaced(study, own, "study")
