"""Multi-sequence brain MR drawn from noise (Han et al. 2018): six training sets, two GANs.

    slices of T1, T1c, T2, FLAIR -> each alone at 128 px; all four ("Concat") at 128 and at 64
        -> DCGAN | WGAN -> sample sheets
        -> Visual Turing Tests: 50 real and 50 drawn in random order, the key in another folder
        -> classifier two-sample test against slices of unseen patients, beside its null

Run: synthoma data import brats --format brats --set 'brats.sequences=[T1, T1c, T2, FLAIR]'
       --set brats.axis=sagittal --set 'brats.slices=[80, 149]' --out slices
     synthoma study isbi2018_brats --data slices --scale paper --out runs/isbi
Without data, and in minutes: synthoma study isbi2018_brats --scale smoke --out runs/isbi

Paper: Han et al. 2018, GAN-based synthetic brain MR image generation (file 004), section 3, table 1

Differs from the paper:
  Patients are split: GANs learn from the training split alone, and the real slices of the Turing
  tests and of the two-sample test are of the others. The paper's were of all.
  The two-sample test, which it wishes for, is made: one slice a patient on both sides, so that its
  null holds. Beside it stands what other real patients are told by.
  Concat tests have 13 real slices of each of two sequences and 12 of the others: 50 is not four
  equal parts. Real slices are never resized twice: a set of 64 px is prepared from the slices.
  Phantoms are axial, and their four sequences are four curves of one image (`sequences.py`).
Not here: a physician's answers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare
from synthoma.errors import SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.settings import merged, replaced
from synthoma.studies.trained import Trained, preset

NAME = "isbi2018_brats"
TITLE = "Multi-sequence brain MR drawn from noise (Han et al. 2018):"
QUESTION = (
    "Can slices that DCGAN and WGAN drew be told from real ones? A GAN of each kind learns from "
    "T1, T1c, T2, FLAIR and from all four; a classifier of frozen features then tells its slices "
    "from those of patients that it has not seen. For people there are pictures of each."
)
SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
GANS = ("dcgan", "wgan")
#: The training sets: which sequence (none: all), and the side as a share of the paper's 128.
SETS = {
    **{name: (name, 1.0) for name in SEQUENCES},
    "Concat": ("", 1.0),
    "Concat, half the side": ("", 0.5),
}

#: Table 1, a physician, 50 real and 50 synthetic: accuracy in per cent, real called real, real
#: called synthetic, synthetic called real, synthetic called synthetic.
TABLE_1 = {
    "T1 (DCGAN, 128×128)": (70, 26, 24, 6, 44),
    "T1c (DCGAN, 128×128)": (71, 24, 26, 3, 47),
    "T2 (DCGAN, 128×128)": (64, 22, 28, 8, 42),
    "FLAIR (DCGAN, 128×128)": (54, 12, 38, 8, 42),
    "Concat (DCGAN, 128×128)": (77, 34, 16, 7, 43),
    "Concat (DCGAN, 64×64)": (54, 13, 37, 9, 41),
    "T1 (WGAN, 128×128)": (64, 20, 30, 6, 44),
    "T1c (WGAN, 128×128)": (55, 13, 37, 8, 42),
    "T2 (WGAN, 128×128)": (58, 19, 31, 11, 39),
    "FLAIR (WGAN, 128×128)": (62, 16, 34, 4, 46),
    "Concat (WGAN, 128×128)": (66, 31, 19, 15, 35),
    "Concat (WGAN, 64×64)": (53, 18, 32, 15, 35),
}

#: Slices prepared at this side at each scale; the half of it for "Concat, half the side".
SIDES = {"paper": 128, "small": 64, "smoke": 32}
#: Pictures of either kind in a Turing test.
ASKED = {"paper": 50, "small": 50, "smoke": 12}
PERMUTATIONS = {"paper": 100, "small": 100, "smoke": 20}
#: Phantoms. Paper: 220 patients and 70 slices, as in BraTS 2016 (high grade).
BRAINS = {
    "paper": BrainConfig(side_px=128, patients=220, slices_per_patient=70),
    "small": BrainConfig(side_px=64, patients=100, slices_per_patient=8),
    "smoke": BrainConfig(side_px=32, patients=50, slices_per_patient=2),
}
#: Less than the presets' `smoke`, which is made for one GAN rather than twelve.
SMOKE: dict[str, dict[str, Any]] = {"dcgan_train": {"steps": 300}, "wgan_train": {"steps": 100}}


class DrawnSet(BaseModel):
    """One training set and one GAN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = Field(description="The training set's name.")
    sequence: str = Field("", description="Slices of this sequence alone; empty: of all.")
    gan: Trained

    @property
    def side_px(self) -> int:
        """Side of its slices."""
        return int(self.gan.system["side_px"])


class BratsStudy(BaseModel):
    """Everything that decides the report; study.json keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["draw"] = "draw"
    name: str = NAME
    dataset: Path
    phantoms: BrainConfig | None = Field(None, description="Draw these as the dataset first.")
    scale: str
    prepare: Prepare = Field(description="At the sides of the sets.")
    sets: dict[str, DrawnSet] = Field(min_length=1, description="By name: training set and GAN.")
    asked: int = Field(50, ge=2, description="Real and as many synthetic pictures in a test.")
    drawn: int = Field(400, ge=2, description="Images drawn by each GAN.")
    permutations: int = Field(100, ge=0, description="Of the two-sample test's null.")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def agree(self) -> Self:
        """Enough is drawn for the tests."""
        if self.drawn < 1.1 * self.asked:
            raise ValueError(f"drawn {self.drawn}; allowed: a tenth more than asked ({self.asked})")
        return self

    @property
    def sides(self) -> list[int]:
        """Sides at which slices are prepared."""
        return sorted({own.side_px for own in self.sets.values()})


def settings_for(
    out: Path,
    *,
    dataset: Path | None,
    also: list[Path],
    scale: str,
    seed: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> BratsStudy:
    """The study at a scale.

    Args:
        out: The study's folder; phantoms go there.
        dataset: Slices whose trait `sequence` says which of the four they are; None for phantoms.
        also: None: the paper has no further slices.
        overrides: By part ("study", "prepare"; "dcgan", "wgan" and each of them with "_train"; on
            phantoms "phantoms"), then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
        DataError: A folder is no dataset.
    """
    if scale not in SIDES:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SIDES)}")
    if also:
        raise SettingsError(f"--also: {NAME} has no use for further slices; leave it out")
    parts = ["study", "prepare", *(gan + more for gan in GANS for more in ("", "_train"))]
    parts += ["phantoms"] if dataset is None else []
    if wrong := set(overrides) - set(parts):
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {', '.join(parts)}")
    own, allowed = dict(overrides.get("study", {})), ("sets", "asked", "drawn", "permutations")
    if wrong := set(own) - set(allowed):
        raise SettingsError(f"no settings study.{sorted(wrong)}; allowed: {', '.join(allowed)}")
    chosen = own.pop("sets", list(SETS))
    if not isinstance(chosen, list) or not chosen or set(chosen) - set(SETS):
        raise SettingsError(f"study.sets={chosen}; allowed: a list of {'; '.join(SETS)}")
    told = merged(SMOKE if scale == "smoke" else {}, overrides)
    whole_px = max(told.get(gan, {}).get("side_px", SIDES[scale]) for gan in GANS)
    sets = {
        f"{name}, {gan}": DrawnSet(
            of=name,
            sequence=sequence,
            gan=Trained(
                **preset(gan, gan, scale, merged(told, {gan: {"side_px": int(whole_px * share)}}))
            ),
        )
        for gan in GANS
        for name, (sequence, share) in SETS.items()
        if name in chosen
    }
    changed: dict[str, Any] = {"side_px": whole_px, "crop": False, "fit": "stretch"}
    data: dict[str, Any] = {}
    if dataset is None:
        drawn_so = {"side_px": max(32, whole_px), **told.get("phantoms", {})}
        data["dataset"] = (out / "phantoms").absolute()
        data["phantoms"] = replaced(BRAINS[scale], drawn_so, "phantoms")
        changed["intensity"] = "keep"
    else:
        data["dataset"] = Dataset.open(dataset).folder.absolute()
    try:
        study = BratsStudy(
            **data,
            scale=scale,
            prepare=replaced(Prepare(), changed | dict(told.get("prepare", {})), "prepare"),
            sets=sets,
            asked=ASKED[scale],
            permutations=PERMUTATIONS[scale],
            drawn=400 if scale != "smoke" else 64,
            seed=seed,
        )
    except ValidationError as error:
        raise SettingsError(f"{NAME}: {error.errors()[0]['msg']}") from None
    return replaced(study, own, "study")
