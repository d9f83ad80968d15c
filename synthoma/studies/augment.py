"""Does synthetic data help? The whole question on one's own data, in one table.

    dataset -> prepare -> draws of training patients -> generators -> synthetic sets -> curation
    -> detectors on real; + classic; + lesions cut and pasted; + synthetic ... -> test once -> table

Run: synthoma augment DATASET --task detect --scale small --out runs/does-it-help
Low data: ... --slices 110 --draws 3
In minutes, on made-up brains: synthoma demo --out demo

Every set-up of a draw sees the same real slices, makes the same number of optimiser steps on
batches of the same size, starts from the same weights at each seed, and is tested once, on the
test split, with the weights that were best on the validation split (where the scale validates).
Images are prepared at the generators' side for every set-up, so that resolution does not tell real
from synthetic. A set in which the draw's own detector finds too few of the ordered lesions is
refused.

A study folder goes on where it stopped; a finished cell is never run again. `work.py` does it.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from synthoma.console import duration, say
from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare
from synthoma.errors import SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.settings import replaced
from synthoma.studies.stages import slug
from synthoma.studies.trained import Trained, check_that_it_finishes, checked, preset

if TYPE_CHECKING:
    pass

BASELINE = "real + classic"
#: The synthetic set that no generator draws.
PASTE = "cut-and-paste"
#: Behind the name of a set of which some images were left out.
CURATED = ", curated"
#: Lesions that `paint` paints into tumour-free slices.
PAINT_NORMAL = "paint-normal"
#: With little data: systems that are trained a second time, on other patients' slices or on the
#: draw's own, by the name of that generator.
SYSTEMS = {"own": "hybrid", "paint-others": "paint"}
#: Generators that learn from other patients' slices where there is little data.
OF_OTHERS = ("hybrid", "paint-others")


def check_rows(names: Sequence[str], draws: int, slices: int) -> None:
    """Refuse, with a ValueError, rows whose cells would share a folder or have nothing to be
    compared with, and draws that would be one and the same."""
    if BASELINE not in names or len({slug(name) for name in names}) < len(names):
        raise ValueError(f"set-ups {list(names)}; allowed: each once, {BASELINE!r} among them")
    if draws > 1 and not slices:
        raise ValueError(f"draws={draws} of all training data would be one and the same")


class Source(Trained):
    """A generator, and whose slices it learns from."""

    of: Literal["draw", "others"] = Field(
        "draw",
        description="draw: each draw's own slices (a generator a draw). others: those of the "
        "training patients in no draw (one generator for all draws).",
    )
    also: bool = Field(
        False, description="The tumour-free extra slices too: to learn from, or to paint into."
    )
    shares: str = Field(
        "", description="Nothing is trained: the images are another generator's of this study."
    )


class Part(BaseModel):
    """Synthetic images in a set-up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str = Field(description="The generator that drew them, or cut-and-paste.")
    ratio: PositiveFloat = Field(1.0, description="Synthetic images a real one.")
    curated: bool = Field(False, description="Only those with the lesion, or of good clusters.")

    @property
    def name(self) -> str:
        """Which images these are."""
        return f"{self.set}{CURATED * self.curated}"


class Setup(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    classic: bool = True
    parts: tuple[Part, ...] = ()
    synthetic_first: float = Field(
        0, ge=0, lt=1, description="Share of the steps on synthetic images alone, then real."
    )
    others: bool = Field(False, description="With the real slices that generators of others saw.")


class Study(BaseModel):
    """Everything that decides the table; study.json keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["detect"] = "detect"
    name: str = Field("augment", description="augment, or the paper whose table it is.")
    remarks: tuple[str, ...] = Field((), description="What the report warns of, besides its own.")
    dataset: Path
    also: tuple[Path, ...] = Field((), description="Tumour-free slices, for generators alone.")
    scale: str
    prepare: Prepare
    generators: dict[str, Source]
    detector: Trained
    setups: tuple[Setup, ...] = Field(min_length=2)
    phantoms: BrainConfig | None = Field(None, description="Draw these as the dataset first.")
    normal_phantoms: BrainConfig | None = Field(None, description="And these as `also`.")
    slices: int = Field(
        0, ge=0, description="Training slices of a draw, of whole patients; 0: all of them."
    )
    draws: int = Field(1, ge=1, description="Draws of patients, no patient in two.")
    variety: int = Field(
        1,
        ge=1,
        description="Different synthetic images for each that a batch's ratio asks for; above 1, "
        "real slices come as often as before while synthetic ones are seldom seen twice.",
    )
    least_found: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Refuse a set in which the ordered lesion is found in less than this share of "
        "what is found in real slices; 0 refuses none.",
    )
    seeds: int = Field(1, ge=1, description="Detectors trained for each set-up of a draw.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Settings that only make sense together."""
        check_rows([setup.name for setup in self.setups], self.draws, self.slices)
        for setup in self.setups:
            for part in setup.parts:
                if part.set not in (*self.generators, PASTE):
                    raise ValueError(
                        f"{setup.name!r} wants images of {part.set!r}; there are "
                        f"{', '.join([*self.generators, PASTE])}"
                    )
        of_others = any(s.of == "others" for s in self.generators.values())
        if (of_others or any(s.others for s in self.setups)) and not self.slices:
            raise ValueError("with all training slices in the one draw there are no others")
        for name, source in self.generators.items():
            if self.prepare.side_px != source.system["side_px"]:
                raise ValueError(
                    f"prepare.side_px is {self.prepare.side_px}, but {name} draws at "
                    f"{source.system['side_px']} px: resolution would tell real from synthetic"
                )
            if source.shares and source.shares not in self.generators:
                raise ValueError(f"{name} shares {source.shares!r}, which is no generator here")
            if source.shares and len(self.also) > 1:
                raise ValueError(f"{name} paints into one folder of --also; {len(self.also)} given")
            if source.also and not self.also:
                raise ValueError(f"{name} wants tumour-free slices; give them with --also")
        return self


#: Detectors trained for each set-up of a draw.
SEEDS = {"paper": 3, "small": 1, "smoke": 1}
#: Synthetic images a real one.
RATIOS = {"paper": (1.0, 2.0, 4.0), "small": (1.0, 2.0), "smoke": (1.0, 2.0)}


def rows(scale: str, *, ratios: tuple[float, ...], low_data: bool, also: bool) -> tuple[Setup, ...]:
    """The set-ups of a scale; with little data, those that need other patients too; with
    tumour-free slices, those that paint into them."""

    def row(*parts: Part, name: str = "", first: float = 0, others: bool = False) -> Setup:
        said = name or " + ".join(f"{part.name} {part.ratio:g}:1" for part in parts)
        return Setup(name=f"{BASELINE} + {said}", parts=parts, synthetic_first=first, others=others)

    pasted = Part(set=PASTE)
    many = [
        Setup(name="real", classic=False),
        Setup(name=BASELINE),
        row(pasted),
        *(row(Part(set="hybrid", ratio=ratio)) for ratio in ratios),
    ]
    if scale == "smoke":
        return tuple(many)
    good, painted = Part(set="hybrid", curated=True), Part(set="paint", curated=True)
    many += [row(good.model_copy(update={"ratio": ratio})) for ratio in ratios]
    many += [
        row(good, name="hybrid, curated, first, then real", first=0.5),
        row(painted),
        row(pasted, good),
        row(pasted, painted),
    ]
    if also:
        many += [row(Part(set=PAINT_NORMAL, curated=True))]
    if low_data:
        many += [
            row(Part(set="own", curated=True)),
            row(from_others := Part(set="paint-others", curated=True)),
            row(pasted, from_others),
            row(name="the other patients' slices themselves", others=True),
        ]
    return tuple(many)


def settings_for(
    dataset: Path,
    *,
    scale: str,
    also: list[Path],
    seed: int,
    slices: int = 0,
    draws: int = 1,
    overrides: Mapping[str, Mapping[str, Any]],
) -> Study:
    """The study of a dataset at a scale.

    Args:
        slices: Training slices of a draw; 0 for all.
        overrides: By part ("study", "prepare", "detector", "detector_train"; for each generator
            its name and its name with "_train"), then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
    """
    if scale not in SEEDS:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SEEDS)}")
    own = dict(overrides.get("study", {}))
    if wrong := set(own) - {"ratios", "without", "variety", "least_found", "seeds"}:
        raise SettingsError(
            f"no settings study.{sorted(wrong)}; allowed: ratios, without, variety, least_found, "
            "seeds"
        )
    setups = rows(
        scale,
        ratios=checked(own.pop("ratios", RATIOS[scale])),
        low_data=bool(slices),
        also=bool(also),
    )
    left_out = own.pop("without", [])
    names = [*dict.fromkeys(part.set for setup in setups for part in setup.parts)]
    names += [setup.name for setup in setups if setup.name != BASELINE]
    if not isinstance(left_out, list) or (wrong := set(left_out) - set(names)):
        raise SettingsError(f"study.without={left_out}; allowed: a list of {'; '.join(names)}")
    setups = tuple(
        s for s in setups if not {s.name, *(part.set for part in s.parts)} & set(left_out)
    )
    used = {part.set for setup in setups for part in setup.parts} - {PASTE}
    if "paint" not in used:
        used.discard(PAINT_NORMAL)
        setups = tuple(s for s in setups if PAINT_NORMAL not in {part.set for part in s.parts})
    if not used:
        raise SettingsError("every set-up with a generator was left out")
    parts = ["study", "prepare", "detector", "detector_train"]
    parts += [name + more for name in sorted(used - {PAINT_NORMAL}) for more in ("", "_train")]
    if wrong := set(overrides) - set(parts):
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {', '.join(parts)}")

    generators = {
        name: Source(
            **preset(name, SYSTEMS.get(name, name), scale, overrides),
            of="others" if name in OF_OTHERS and slices else "draw",
        )
        for name in sorted(used - {PAINT_NORMAL})
    }
    if PAINT_NORMAL in used and "paint" in generators:
        shared = {"also": True, "shares": "paint"}
        generators[PAINT_NORMAL] = generators["paint"].model_copy(update=shared)
    side_px = {"side_px": next(iter(generators.values())).system["side_px"]}
    if also and not any(source.also for source in generators.values()):
        raise SettingsError(f"no set-up of scale {scale} uses tumour-free slices: leave out --also")
    for name, source in generators.items():
        check_that_it_finishes(name, source)
    try:
        study = Study(
            dataset=dataset.absolute(),
            also=tuple(Dataset.open(folder).folder.absolute() for folder in also),
            scale=scale,
            prepare=replaced(Prepare(), side_px | dict(overrides.get("prepare", {})), "prepare"),
            generators=generators,
            detector=Trained(**preset("detector", "yolov3", scale, overrides)),
            setups=setups,
            slices=slices,
            draws=draws,
            variety=8 if slices else 1,
            seeds=SEEDS[scale],
            seed=seed,
        )
    except ValidationError as error:
        raise SettingsError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return replaced(study, own, "study")


def demo(out: Path, *, seed: int = 0) -> None:
    """The whole chain on phantom brains, sized for two CPU cores in minutes."""
    from synthoma.studies.run import start  # noqa: PLC0415 (its studies import this file)

    began = time.monotonic()
    start(out, demo_study(out / "phantoms", seed=seed))
    say(f"{duration(time.monotonic() - began)} in all")


DEMO_BRAINS = BrainConfig(side_px=64, patients=60, slices_per_patient=8)


def demo_study(phantoms: Path, *, seed: int) -> Study:
    """The demo's sizes: its own, between `smoke` and `small` (docs/results/demo.md)."""
    from synthoma.gans.hybrid import DEMO  # noqa: PLC0415 (imports torch)

    study = settings_for(phantoms, scale="smoke", also=[], seed=seed, overrides={})
    system = DEMO.system.model_dump(mode="json")
    return study.model_copy(
        update={
            "scale": "demo",
            "phantoms": DEMO_BRAINS,
            "prepare": Prepare(side_px=system["side_px"], intensity="keep", crop=False),
            "generators": {"hybrid": Source(name="hybrid", system=system, train=DEMO.train)},
            "least_found": 0.25,  # of a generator trained for minutes; the report warns
        }
    )
