"""Phantoms as a dataset folder, like any import."""

from collections.abc import Callable
from pathlib import Path

from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.data.vois import WINDOW_HU
from synthoma.phantoms.brain import BrainConfig, brains
from synthoma.phantoms.chest import ChestConfig, chests


def write_brains(
    out: Path,
    config: BrainConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write phantom brains into the dataset folder `out`, split 7:1:2 by patient."""
    n = config.patients * config.slices_per_patient
    with DatasetWriter(
        out,
        patients_from="phantom patients",
        value_range=(0, 255),
        about={"phantom": {"brain": config.model_dump(mode="json"), "seed": seed}},
    ) as writer:
        for done, case in enumerate(brains(config, seed=seed), 1):
            writer.add(case)
            progress(done, n)
    return Dataset.open(out)


def write_chests(
    out: Path,
    config: ChestConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write phantom chests, a scan a patient, into the dataset folder `out`, split 7:1:2.

    Values are HU; what becomes -1 and 1 in a batch is as for cubes of nodules.
    """
    with DatasetWriter(
        out,
        patients_from="phantom patients",
        value_range=WINDOW_HU,
        about={"phantom": {"chest": config.model_dump(mode="json"), "seed": seed}},
    ) as writer:
        for done, case in enumerate(chests(config, seed=seed), 1):
            writer.add(case)
            progress(done, config.patients)
    return Dataset.open(out)
