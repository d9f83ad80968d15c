"""Does synthetic data help to tell classes apart? The question on one's own data, in one table.

    dataset -> prepare -> draws of training patients -> generators told classes -> synthetic sets
    -> classifiers on real; + classic; + MixUp; + synthetic; synthetic alone -> test once -> table

Run: synthoma augment DATASET --task classify --scale small --out runs/does-it-help
Low data: ... --slices 94 --draws 3

As in `augment.py`: every set-up of a draw sees the same real images, makes the same number of
optimiser steps on batches of the same size, starts from the same weights at each seed (of its
classifier), and is tested once, with the weights that were best on the validation split. All images
are prepared at the generators' side. A set in which the draw's own classifier hardly tells the
ordered classes apart is refused. `classify_work.py` does it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare
from synthoma.errors import DataError, SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.settings import merged, replaced
from synthoma.studies.augment import BASELINE, CURATED, Part, check_rows
from synthoma.studies.trained import Trained, check_that_it_finishes, checked, preset
from synthoma.synthesis.clusters import ClusterSettings
from synthoma.zoo import load_entry

#: The classifier with ImageNet weights, and its row on real images.
PRETRAINED = "pretrained"
PRETRAINED_BASELINE = "pre-trained: real + classic"
#: Alpha of the row with MixUp (Zhang et al. 2018: 0.1 to 0.4 on ImageNet).
MIX = 0.4


class ClassSource(Trained):
    """A generator that learns from each draw's own images."""

    each_class: bool = Field(
        False, description="One for each class, trained on its images; else one told the class."
    )


class ClassRefiner(Trained):
    """A refiner of another set's images, one for each class, and that set."""

    of: str = Field(description="Set of synthetic images that it learns from, and refines.")
    tried: tuple[int, ...] = Field(
        (),
        description="Steps to choose from, by what the study's last classifier learns from the "
        "refined images (`pick.py`); empty: the last step, untried.",
    )


class ClassSetup(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    classifier: str = Field("classifier", description="Which of the study's classifiers.")
    classic: bool = True
    mix: float = Field(0, ge=0, description="Alpha of MixUp; 0: no blending.")
    copies: int = Field(
        1,
        ge=1,
        description="How often each real image is in one round of the training set, transformed "
        "anew each time where `classic`; ratios of `parts` are to all of these.",
    )
    parts: tuple[Part, ...] = ()
    synthetic_first: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of the steps on synthetic images alone, then real; 1: never real.",
    )
    others: bool = Field(False, description="With the other patients' images themselves.")

    @property
    def images(self) -> float:
        """Images of one round of the training set, real and synthetic, for each real one."""
        return self.copies * (1 + sum(part.ratio for part in self.parts))


class ClassifyStudy(BaseModel):
    """Everything that decides the table; study.json keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["classify"] = "classify"
    name: str = Field("augment", description="augment, or the paper whose table it is.")
    remarks: tuple[str, ...] = Field((), description="What the report warns of, besides its own.")
    dataset: Path
    phantoms: BrainConfig | None = Field(None, description="Draw these as the dataset first.")
    scale: str
    prepare: Prepare
    generators: dict[str, ClassSource] = Field(min_length=1)
    refiners: dict[str, ClassRefiner] = Field({}, description="By the name of what they make.")
    curation: ClusterSettings = Field(
        ClusterSettings(), description="Of sets of which some set-up wants the curated part."
    )
    spare: float = Field(
        1.5, ge=1, description="Images drawn for each that is wanted of a curated set."
    )
    classifiers: dict[str, Trained]
    length: Literal["equal", "images"] = Field(
        "equal",
        description="equal: every set-up makes its classifier's steps. images: so many times more "
        "as its training set has images for each real one, so that all have as many epochs.",
    )
    setups: tuple[ClassSetup, ...] = Field(min_length=2)
    slices: int = Field(
        0, ge=0, description="Training images of a draw, of whole patients; 0: all of them."
    )
    draws: int = Field(1, ge=1, description="Draws of patients, no patient in two.")
    variety: int = Field(
        1,
        ge=1,
        description="Different synthetic images for each that a batch's ratio asks for; above 1, "
        "real images come as often as before while synthetic ones are seldom seen twice.",
    )
    least_found: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Refuse a set whose ordered classes the draw's classifier tells apart with an "
        "area of less than this share of that in real validation images, both counted from chance; "
        "0 refuses none.",
    )
    seeds: int = Field(1, ge=1, description="Classifiers trained for each set-up of a draw.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        check_rows([setup.name for setup in self.setups], self.draws, self.slices)
        for setup in self.setups:
            if setup.classifier not in self.classifiers:
                raise ValueError(
                    f"{setup.name!r} wants the classifier {setup.classifier!r}; there are "
                    f"{', '.join(self.classifiers)}"
                )
            if setup.synthetic_first and not setup.parts:
                raise ValueError(f"{setup.name!r} begins with synthetic images, but has none")
            for part in setup.parts:
                self.made_of(part.name)
        if any(setup.others for setup in self.setups) and not self.slices:
            raise ValueError("with all training images in the one draw there are no others")
        for name, source in (*self.generators.items(), *self.refiners.items()):
            if self.prepare.side_px != source.system["side_px"]:
                raise ValueError(
                    f"prepare.side_px is {self.prepare.side_px}, but {name} draws at "
                    f"{source.system['side_px']} px: resolution would tell real from synthetic"
                )
        steps = {name: (c.train.steps, c.train.epochs) for name, c in self.classifiers.items()}
        if len(set(steps.values())) > 1:
            raise ValueError(f"classifiers of {steps} (steps, epochs); allowed: the same for all")
        return self

    def setup(self, name: str) -> ClassSetup:
        """The set-up of a name."""
        return next(setup for setup in self.setups if setup.name == name)

    def made_of(self, name: str) -> tuple[str, ...]:
        """A set, the set that it was refined or chosen from, and so on to the generator.

        Raises:
            ValueError: There is no such set.
        """
        if name in self.generators:
            return (name,)
        if name in self.refiners and self.refiners[name].of not in self.refiners:
            return (name, *self.made_of(self.refiners[name].of))
        if (whole := name.removesuffix(CURATED)) in self.generators and whole != name:
            return (name, whole)
        there = ", ".join([*self.generators, *self.refiners])
        raise ValueError(
            f"no set {name!r}; allowed: {there}, and what generators draw with {CURATED!r} behind"
        )

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that set-ups are trained with, those of generators first."""
        asked = {part.name for setup in self.setups for part in setup.parts}
        there = [*self.generators, *(name + CURATED for name in self.generators), *self.refiners]
        return tuple(name for name in there if name in asked)

    @property
    def curated(self) -> tuple[str, ...]:
        """The curated sets that are trained with or refined."""
        needed = {own for name in self.sets for own in self.made_of(name)}
        return tuple(name + CURATED for name in self.generators if name + CURATED in needed)


#: Generators to choose from with study.generators, and whether there is one for each class.
GENERATORS = {"cgan": False, "pggan": True, "dcgan": True, "wgan": True, "gan": True}
#: Those of a scale. Han et al. 2019 trained a PGGAN a class.
CHOSEN = {"paper": ["pggan"], "small": ["cgan"], "smoke": ["cgan"]}
#: Classifiers trained for each set-up of a draw.
SEEDS = {"paper": 3, "small": 1, "smoke": 1}
#: Synthetic images a real one.
RATIOS = (1.0, 2.0)

#: Settings of the study itself that may be replaced.
OWN = ("generators", "ratios", "without", "variety", "least_found", "seeds")
#: What small networks from scratch, and small data, want.
_FROM_SCRATCH = {"width": 16, "batch_size": 32}
#: Not by the AUC: it once chose weights that called every X-ray normal.
_BEST = {"keep_best": "log_likelihood"}
#: By classifier and scale: a preset of `classifier`, and what is replaced in it and in its loop.
#: All of a scale make the same number of steps, so nothing stops early.
CLASSIFIERS: dict[str, dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "classifier": {
        "paper": ("paper", {}, {**_BEST, "patience": 0}),
        "small": (
            "medmnist",
            _FROM_SCRATCH,
            {**_BEST, "steps": 400, "epochs": 0, "validate_every": 100},
        ),
        "smoke": ("smoke", {}, {**_BEST, "validate_every": 20}),
    },
    PRETRAINED: {
        "paper": (
            "paper",
            {"backbone": "efficientnet_lite0", "weights": "imagenet"},
            {**_BEST, "patience": 0},
        ),
        "small": ("small", {"side_px": 96}, {**_BEST, "steps": 400, "validate_every": 100}),
    },
}


def rows(
    scale: str, sets: list[str], *, ratios: tuple[float, ...], low_data: bool
) -> tuple[ClassSetup, ...]:
    """The set-ups of a scale; with little data, that of the other patients too."""

    def with_images(name: str, ratio: float, before: str = BASELINE, **own: Any) -> ClassSetup:
        said = f"{before} + {name} {ratio:g}:1"
        return ClassSetup(name=said, parts=(Part(set=name, ratio=ratio),), **own)

    first = ratios[0]
    many = [
        ClassSetup(name="real", classic=False),
        ClassSetup(name=BASELINE),
        ClassSetup(name=f"{BASELINE} + MixUp", mix=MIX),
        *(with_images(name, ratio) for name in sets for ratio in ratios),
    ]
    for name in sets:
        part = (Part(set=name, ratio=first),)
        if scale != "smoke":
            said = f"{BASELINE} + {name} first, then real"
            many.append(ClassSetup(name=said, parts=part, synthetic_first=0.5))
        many.append(ClassSetup(name=f"{name} alone + classic", parts=part, synthetic_first=1))
    if low_data:
        said = f"{BASELINE} + the other patients' images themselves"
        many.append(ClassSetup(name=said, others=True))
    if scale in CLASSIFIERS[PRETRAINED]:
        many.append(ClassSetup(name=PRETRAINED_BASELINE, classifier=PRETRAINED))
        many += [
            with_images(name, first, PRETRAINED_BASELINE, classifier=PRETRAINED) for name in sets
        ]
    return tuple(many)


def settings_for(
    dataset: Path,
    *,
    scale: str,
    seed: int,
    slices: int = 0,
    draws: int = 1,
    overrides: Mapping[str, Mapping[str, Any]],
) -> ClassifyStudy:
    """The study of a dataset at a scale.

    Args:
        slices: Training images of a draw; 0 for all.
        overrides: By part ("study", "prepare"; for each classifier and generator its name and its
            name with "_train"), then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
    """
    if scale not in SEEDS:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SEEDS)}")
    own = dict(overrides.get("study", {}))
    if wrong := set(own) - set(OWN):
        raise SettingsError(f"no settings study.{sorted(wrong)}; allowed: {', '.join(OWN)}")
    sets = own.pop("generators", CHOSEN[scale])
    if not isinstance(sets, list) or not sets or set(sets) - set(GENERATORS):
        raise SettingsError(f"study.generators={sets}; allowed: a list of {', '.join(GENERATORS)}")
    ratios = checked(own.pop("ratios", RATIOS))
    setups = rows(scale, list(dict.fromkeys(sets)), ratios=ratios, low_data=bool(slices))
    left_out = own.pop("without", [])
    names = [setup.name for setup in setups if setup.name != BASELINE]
    if not isinstance(left_out, list) or set(left_out) - set(names):
        raise SettingsError(f"study.without={left_out}; allowed: a list of {'; '.join(names)}")
    setups = tuple(setup for setup in setups if setup.name not in left_out)
    sets = list(dict.fromkeys(part.set for setup in setups for part in setup.parts))
    if not sets:
        raise SettingsError("every set-up with a generator was left out")
    kinds = list(dict.fromkeys(setup.classifier for setup in setups))
    trained = [name + more for name in [*kinds, *sets] for more in ("", "_train")]
    if wrong := set(overrides) - {"study", "prepare", *trained}:
        allowed = ", ".join(["study", "prepare", *trained])
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {allowed}")

    generators = {
        name: ClassSource(**preset(name, name, scale, overrides), each_class=GENERATORS[name])
        for name in sets
    }
    for name, source in generators.items():
        check_that_it_finishes(name, source)
    side_px = {"side_px": next(iter(generators.values())).system["side_px"]}
    wanted = replaced(Prepare(), side_px | dict(overrides.get("prepare", {})), "prepare")
    try:
        study = ClassifyStudy(
            dataset=dataset.absolute(),
            scale=scale,
            prepare=wanted,
            generators=generators,
            classifiers={name: classifier(name, scale, wanted, overrides) for name in kinds},
            setups=setups,
            slices=slices,
            draws=draws,
            variety=8 if slices else 1,
            seeds=SEEDS[scale],
            seed=seed,
        )
    except ValidationError as error:
        raise SettingsError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    looked_for = [one.system["positive"] for one in study.classifiers.values()]
    check_classes(Dataset.open(dataset), dataset, looked_for)  # before anything is written
    return replaced(study, own, "study")


def check_classes(dataset: Dataset, folder: Path, looked_for: Iterable[str] = ()) -> None:
    """Refuse what cannot be told apart, with a DataError.

    Args:
        folder: Where the user keeps the dataset.
        looked_for: Classes that settings name; empty ones name none.
    """
    classes = dataset.labels
    if len(classes) < 2:
        raise DataError(
            f"{folder}: its labels are {', '.join(classes) or 'none'}; there must be at least two "
            "classes to tell apart"
        )
    if wrong := sorted({*looked_for} - {"", *classes}):
        raise SettingsError(
            f"{folder}: no label {wrong[0]!r} (positive); there are {', '.join(classes)}"
        )
    for name in ("train", "validation", "test"):
        split = dataset.of_patients(dataset.splits.get(name, ()))
        there = {split.label(i) for i in range(len(split))}
        if lost := [c for c in classes if c not in there]:
            raise DataError(
                f"{folder}: its {name} split has no {', '.join(lost)}; `synthoma data split` "
                "splits a dataset anew, by patient"
            )


def classifier(
    name: str, scale: str, prepared: Prepare, overrides: Mapping[str, Mapping[str, Any]]
) -> Trained:
    """A classifier of a scale. From scratch at the small scales, it looks at images at the side at
    which they are prepared; every classifier looks for the class that the first one does."""
    chosen, system, train = CLASSIFIERS[name][scale]
    own = load_entry("classifier").presets[chosen]
    if name == "classifier" and scale != "paper":
        system = system | {"side_px": prepared.side_px}
    positive = overrides.get("classifier", {}).get("positive")
    system = system | ({"positive": positive} if positive is not None else {})
    return Trained(
        name="classifier",
        system=replaced(own.system, merged(system, overrides.get(name, {})), name).model_dump(
            mode="json"
        ),
        train=replaced(
            own.train, merged(train, overrides.get(f"{name}_train", {})), f"{name}_train"
        ),
    )
