"""3D MCGAN against missed lung nodules (Han's thesis, chapter 6): the paper's table.

    CT scans -> MCGAN without | with 100 x L1 -> the training scans with their nodules drawn anew,
    once, twice or three times -> 3D Faster R-CNN on real + synthetic -> CPM, by size, attenuation

Run: synthoma study mcgan_nodules --data scans --scale paper --out runs/nodules
Without data: synthoma study mcgan_nodules --scale small --out runs/nodules (smoke: in minutes)

Paper: Han, Pathology-aware GANs for medical image augmentation (thesis, file 000), sections 6.2 and
6.3, table 5

Differs from the paper:
  The data. 632 training scans are what there is; its 1x, 2x and 3x are shares of those. A patient's
  scans stay together. Its re-annotation of attenuation is replaced by LIDC's ratings
  (`formats/lidc.py`).
  Scans without a nodule of known size and attenuation are trained on as real ones, and not drawn
  into.
  Three trainings a row at paper scale, where it states one; intervals over patients, and paired
  differences. CPM by LUNA16's rule of centres stands beside that at IoU 0.25.
  Nothing is refused (study.least_found=0).
  Phantoms of `small` are the middle of one lung at 1 mm, those of `smoke` at 2.5 mm; each scan has
  a nodule.
Not here: its visual Turing tests of nodules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthoma.data.dataset import Dataset
from synthoma.errors import SettingsError
from synthoma.phantoms.chest import ChestConfig
from synthoma.report.table import PublishedRow
from synthoma.settings import merged, replaced
from synthoma.studies.detect3d import ScanStudy, build, check_parts, rows

NAME = "mcgan_nodules"
TITLE = "3D MCGAN for lung nodules (Han's thesis, chapter 6):"
QUESTION = (
    "Does a detector miss fewer lung nodules when CT scans whose nodules a GAN drew anew, as large "
    "and as dense as ordered, are added to its real training scans? The seven rows of Han's "
    "thesis, table 5: real scans alone; with as many, twice and three times as many drawn by MCGAN "
    "without and with L1. Each is a 3D Faster R-CNN trained from scratch for the same number of "
    "steps, and tested once on patients that neither it nor a GAN has seen."
)
RATIOS = (1.0, 2.0, 3.0)
METRICS = (
    "cpm",
    "cpm_small",
    "cpm_medium",
    "cpm_large",
    "cpm_solid",
    "cpm_part_solid",
    "cpm_ground_glass",
)
#: Table 5, per cent as printed.
TABLE_5 = {
    "632 real images": (51.8, 44.7, 61.8, 62.4, 65.5, 46.4, 24.2),
    "+ 1x 3D MCGAN-based DA": (55.0, 45.2, 68.3, 66.2, 69.9, 52.1, 24.4),
    "+ 2x 3D MCGAN-based DA": (52.7, 44.7, 67.4, 42.9, 65.5, 40.7, 28.9),
    "+ 3x 3D MCGAN-based DA": (51.2, 41.1, 64.4, 66.2, 61.6, 57.9, 27.7),
    "+ 1x 3D MCGAN-based DA w/ L1": (50.8, 43.0, 63.3, 55.6, 62.6, 47.1, 27.1),
    "+ 2x 3D MCGAN-based DA w/ L1": (50.9, 40.6, 64.4, 65.4, 64.9, 43.6, 23.3),
    "+ 3x 3D MCGAN-based DA w/ L1": (47.9, 38.9, 59.4, 61.7, 59.6, 50.7, 22.6),
}
PUBLISHED = tuple(
    PublishedRow(
        setup=ours.name,
        metrics={name: round(v / 100, 4) for name, v in zip(METRICS, values, strict=True)},
        source=f"Han's thesis, table 5, {theirs!r} (their data)",
    )
    for ours, (theirs, values) in zip(rows(RATIOS), TABLE_5.items(), strict=True)
)
#: The left lung's middle, seen from that of the chest.
LEFT_LUNG_MM = (-8.0, 0.0, 70.0)
#: Phantoms of each scale. Paper: 632 patients of 903 to train on, both lungs at 1 mm.
CHESTS = {
    "paper": ChestConfig(
        slices=256, rows=224, columns=320, spacing_mm=(1.0, 1.0, 1.0), patients=903
    ),
    "small": ChestConfig(
        slices=144,
        rows=128,
        columns=104,
        spacing_mm=(1.0, 1.0, 1.0),
        centre_mm=LEFT_LUNG_MM,
        patients=120,
        nodules_least=1,
        diameter_least_mm=4.0,
    ),
    "smoke": ChestConfig(
        slices=48,
        rows=48,
        columns=48,
        spacing_mm=(2.5, 2.5, 2.5),
        centre_mm=LEFT_LUNG_MM,
        patients=30,
        nodules_least=1,
        diameter_least_mm=6.0,
    ),
}
#: Less than the presets' `smoke`, which is made for one detector rather than seven.
SMOKE: dict[str, dict[str, Any]] = {
    "mcgan_train": {"steps": 200},
    "mcgan-l1_train": {"steps": 200},
    "detector_train": {"steps": 120, "checkpoint_every": 60},
    "detector": {"decay_steps": 100},
}


def settings_for(
    out: Path,
    *,
    dataset: Path | None,
    also: list[Path],
    scale: str,
    seed: int,
    overrides: Mapping[str, Mapping[str, Any]],
) -> ScanStudy:
    """The study at a scale.

    Args:
        out: The study's folder; phantoms go there.
        dataset: CT scans with nodules; None for phantoms.
        also: None: the paper has no further scans.
        overrides: By part ("study"; "mcgan", "mcgan-l1", "detector" and each of them with "_train";
            on phantoms "phantoms"), then by field.

    Raises:
        SettingsError: A scale, part, field or value that is not allowed.
        DataError: A folder is no dataset.
    """
    if also:
        raise SettingsError(f"--also: {NAME} has no use for further scans; leave it out")
    check_parts(scale, overrides, ("phantoms",) if dataset is None else ())
    own = dict(overrides.get("study", {}))
    if wrong := set(own) - {"least_found", "seeds"}:
        raise SettingsError(
            f"no settings study.{sorted(wrong)}; allowed: least_found, seeds (the rows are the "
            "paper's; `synthoma augment --task detect3d` takes others)"
        )
    told = merged(SMOKE if scale == "smoke" else {}, overrides)
    data: dict[str, Any] = {}
    if dataset is None:
        data["phantoms"] = replaced(CHESTS[scale], told.get("phantoms", {}), "phantoms")
    study = build(
        NAME,
        (out / "phantoms").absolute()
        if dataset is None
        else Dataset.open(dataset).folder.absolute(),
        scale,
        setups=rows(RATIOS),
        overrides={name: fields for name, fields in told.items() if name != "phantoms"},
        least_found=0,  # the paper refused none
        seed=seed,
        **data,
    )
    return replaced(study, own, "study")
