"""Box-conditioned GANs against missed brain metastases (Han et al. 2019): the paper's table.

    annotated slices -> CPGGAN | CPGGAN with normal slices | pix2pix -> 1.4, 2.8 or 4.3 synthetic
    slices a real one -> curate -> YOLOv3 on real + classic + synthetic -> sensitivity, false
    positives per slice

Run: synthoma study cpggan_metastases --data brains --also normal --scale paper --out runs/han
Without data, and in minutes: synthoma study cpggan_metastases --scale smoke --out runs/han

Paper: Han et al. 2019, Learning more with less: conditional PGGAN-based data augmentation for
brain metastases detection using highly-rough annotation on MR images (sections 2.2, 2.3; table 1)

Differs from the paper:
  The data. Its 4,000, 8,000 and 12,000 images for 2,813 real ones became shares of the real ones.
  It stripped skulls; here slices are taken as they come, so give stripped ones.
  Physicians discarded images with unclear tumours; here a detector trained on the real slices does
  (at smoke nobody does). A set of which less than a third is clear leaves no row; it is said why.
  Three trainings a row at paper scale, where it states one; intervals and paired differences.
  Every row is trained for the same number of steps, with the anchors of the real slices.
Not here: its visual Turing test.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthoma.data.dataset import Dataset
from synthoma.data.prepare import Prepare
from synthoma.errors import SettingsError
from synthoma.phantoms.brain import BrainConfig
from synthoma.report.table import PublishedRow
from synthoma.settings import merged, replaced
from synthoma.studies.augment import BASELINE, SEEDS, Part, Setup, Source, Study
from synthoma.studies.trained import Trained, preset

NAME = "cpggan_metastases"
TITLE = "CPGGAN for brain metastases (Han et al. 2019):"
QUESTION = (
    "Does a detector miss fewer brain metastases when slices that a box-conditioned GAN drew are "
    "added to its real training slices? The ten rows of Han et al. 2019, table 1: real slices "
    "alone; with images of CPGGAN, of CPGGAN that saw tumour-free slices too, and of an "
    "image-to-image GAN, each in three amounts. Each is a detector trained from scratch for the "
    "same number of steps, and tested once on patients that neither it nor a GAN has seen."
)

#: Synthetic sets, and whether their generator learns from tumour-free slices too.
SETS = {"cpggan": False, "cpggan-normal": True, "pix2pix": False}
#: Real training slices of the paper, and the synthetic ones it added.
REAL = 2_813
ADDED = (4_000, 8_000, 12_000)


def rows(*, normal: bool = True, curated: bool = True) -> tuple[Setup, ...]:
    """The paper's set-ups in its order.

    Args:
        normal: With those whose CPGGAN saw tumour-free slices.
    """
    found = [Setup(name=BASELINE)]
    for name, learns_normal in SETS.items():
        for added in ADDED if normal or not learns_normal else ():
            part = Part(set=name, ratio=added / REAL, curated=curated)
            found.append(Setup(name=f"{BASELINE} + {name} {part.ratio:.2f}:1", parts=(part,)))
    return tuple(found)


#: Table 1, boxes at 0.1 % detection threshold. At IoU 0.5 sensitivity and false positives per
#: slice, then both at IoU 0.25.
TABLE_1 = {
    "2,813 real images": (0.67, 4.11, 0.83, 3.59),
    "+ 4,000 CPGGAN-based DA": (0.77, 7.64, 0.91, 7.18),
    "+ 8,000 CPGGAN-based DA": (0.71, 6.36, 0.87, 5.85),
    "+ 12,000 CPGGAN-based DA": (0.76, 11.77, 0.91, 11.29),
    "+ 4,000 CPGGAN-based DA (+ normal)": (0.69, 7.16, 0.86, 6.60),
    "+ 8,000 CPGGAN-based DA (+ normal)": (0.73, 8.10, 0.89, 7.59),
    "+ 12,000 CPGGAN-based DA (+ normal)": (0.74, 9.42, 0.89, 8.95),
    "+ 4,000 Image-to-Image GAN-based DA": (0.72, 6.21, 0.87, 5.70),
    "+ 8,000 Image-to-Image GAN-based DA": (0.68, 3.50, 0.84, 2.99),
    "+ 12,000 Image-to-Image GAN-based DA": (0.74, 7.20, 0.89, 6.72),
}
METRICS = ("sensitivity_iou50", "fp_per_slice_iou50", "sensitivity_iou25", "fp_per_slice_iou25")
PUBLISHED = tuple(
    PublishedRow(
        setup=ours.name,
        metrics=dict(zip(METRICS, values, strict=True)),
        source=f"Han et al. 2019, table 1, {theirs!r} (their data)",
    )
    for ours, (theirs, values) in zip(rows(), TABLE_1.items(), strict=True)
)

#: Phantoms with lesions at each scale. Paper: 126 patients of 180 to train on, 22 slices each, as
#: nearly as phantoms of one length come to the paper's 2,813.
BRAINS = {
    "paper": BrainConfig(side_px=256, patients=180, slices_per_patient=22),
    "small": BrainConfig(side_px=64, patients=100, slices_per_patient=8),
    "smoke": BrainConfig(side_px=32, patients=30, slices_per_patient=4),
}
#: Phantoms without. Paper: 193 subjects to train on with 88 slices each; it had 16,962 in all.
NORMAL_BRAINS = {
    "paper": BrainConfig(side_px=256, patients=276, slices_per_patient=88, lesions_max=0),
    "small": BrainConfig(side_px=64, patients=100, slices_per_patient=8, lesions_max=0),
    "smoke": BrainConfig(side_px=32, patients=30, slices_per_patient=4, lesions_max=0),
}
#: Less than the presets' `smoke`, which is made for two detectors rather than ten.
SMOKE: dict[str, dict[str, Any]] = {
    "cpggan": {"stable_images": 320, "fade_images": 320},
    "cpggan_train": {"steps": 400},
    "pix2pix_train": {"steps": 300},
    "detector_train": {"steps": 120},
}
#: What is trained, by the name of its settings.
PARTS = {"cpggan": "cpggan", "pix2pix": "pix2pix", "detector": "yolov3"}


def settings_for(
    out: Path,
    *,
    dataset: Path | None,
    also: list[Path],
    scale: str,
    seed: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> Study:
    """The study at a scale.

    Args:
        out: The study's folder; phantoms go there.
        dataset: Annotated slices; None for phantoms.
        also: Tumour-free slices of other patients.
        overrides: By part ("study", "prepare"; "cpggan", "pix2pix", "detector" and each of them
            with "_train"; on phantoms "phantoms", "normal_phantoms"), then by field. Both CPGGANs
            have the same settings: the comparison is of what they saw.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
        DataError: A folder is no dataset.
    """
    if scale not in SEEDS:
        raise SettingsError(f"no scale {scale!r}; allowed: {', '.join(SEEDS)}")
    if also and dataset is None:
        raise SettingsError("--also without --data: phantoms bring their own tumour-free slices")
    parts = ["study", "prepare", *(part + more for part in PARTS for more in ("", "_train"))]
    parts += ["phantoms", "normal_phantoms"] if dataset is None else []
    if wrong := set(overrides) - set(parts):
        raise SettingsError(f"no settings {sorted(wrong)}; allowed: {', '.join(parts)}")
    own = dict(overrides.get("study", {}))
    if wrong := set(own) - {"least_found", "seeds"}:
        raise SettingsError(
            f"no settings study.{sorted(wrong)}; allowed: least_found, seeds (the rows are the "
            "paper's; `synthoma augment` takes others)"
        )
    told = merged(SMOKE if scale == "smoke" else {}, overrides)
    fields = {part: preset(part, system, scale, told) for part, system in PARTS.items()}
    normal = dataset is None or bool(also)
    generators = {
        name: Source(**fields[name.removesuffix("-normal")], also=learns_normal)
        for name, learns_normal in SETS.items()
        if normal or not learns_normal
    }
    side_px = {"side_px": fields["cpggan"]["system"]["side_px"]}
    remarks = []
    if scale == "smoke":
        remarks.append(
            "Not curated: images with unclear lesions are used too, where the paper discarded "
            "them; a detector of smoke scale finds too little in real slices to choose."
        )
    if not normal:
        remarks.append(
            "The three rows of CPGGAN trained with tumour-free slices are left out: no such slices "
            "were given (--also)."
        )
    data: dict[str, Any]
    if dataset is None:
        brains = replaced(BRAINS[scale], side_px | dict(told.get("phantoms", {})), "phantoms")
        # one seed, so one set of scanners; other patients, so other brains
        first = {"first_patient": brains.first_patient + brains.patients}
        changed = side_px | first | dict(told.get("normal_phantoms", {}))
        data = {
            "dataset": (out / "phantoms").absolute(),
            "also": ((out / "phantoms-normal").absolute(),),
            "phantoms": brains,
            "normal_phantoms": replaced(NORMAL_BRAINS[scale], changed, "normal_phantoms"),
        }
        drawn_so = {"intensity": "keep", "crop": False}  # at the side that is wanted already
    else:
        folders = [Dataset.open(folder).folder.absolute() for folder in (dataset, *also)]
        data = {"dataset": folders[0], "also": tuple(folders[1:])}
        drawn_so = {}
    changed = side_px | drawn_so | dict(told.get("prepare", {}))
    try:
        study = Study(
            name=NAME,
            remarks=tuple(remarks),
            **data,
            scale=scale,
            prepare=replaced(Prepare(), changed, "prepare"),
            generators=generators,
            detector=Trained(**fields["detector"]),
            setups=rows(normal=normal, curated=scale != "smoke"),
            least_found=0,  # the paper refused none
            seeds=SEEDS[scale],
            seed=seed,
        )
    except ValidationError as error:
        raise SettingsError(f"{NAME}: {error.errors()[0]['msg']}") from None
    return replaced(study, own, "study")
