"""Phantom brains as four MR sequences would show them: T1, T1c, T2, FLAIR.

    (seed, patient, level) -> tissue signal (T1c) -> tissue signal of a sequence -> scanner -> slice

`brain.py` draws T1c-like slices. A sequence here is a curve from that signal to another: each
tissue gets its own, and what lies between two tissues what lies between. Anatomy, lesions, bias
and scanner of a slice are the same in all four, as in one examination; noise is drawn anew.

Not modelled: physics; partial volume (an edge between fluid and white matter passes the signal of
grey matter, which in T2 is a fine rim); sagittal slices (these are axial). Four looks of one
phantom test a pipeline that takes four sequences; they say nothing about how it does on patients.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from synthoma.data.case import Case, Image, Real
from synthoma.data.dataset import Dataset
from synthoma.data.store import DatasetWriter
from synthoma.phantoms.brain import (
    CSF,
    FALX,
    GREY,
    NECROSIS,
    OEDEMA,
    VESSEL,
    WHITE,
    BrainConfig,
    draw_patient,
    draw_slice,
    scan,
)

Sequence = Literal["T1", "T1c", "T2", "FLAIR"]
SEQUENCES: tuple[Sequence, ...] = get_args(Sequence)

#: Signals of T1c, rising: nothing, fluid, necrosis, oedema, grey and white matter, falx, what takes
#: up contrast medium.
TISSUES = (0, CSF, NECROSIS, OEDEMA, GREY, WHITE, FALX, VESSEL)
#: The same tissues in each sequence. Without contrast medium lesions are dark in T1; fluid is
#: bright in T2 and dark in FLAIR, oedema bright in both.
SIGNALS: dict[Sequence, tuple[float, ...]] = {
    "T1": (0, 0.13, 0.22, 0.34, 0.45, 0.62, 0.55, 0.38),
    "T1c": TISSUES,
    "T2": (0, 0.95, 0.85, 0.74, 0.58, 0.42, 0.36, 0.66),
    "FLAIR": (0, 0.10, 0.45, 0.88, 0.58, 0.46, 0.42, 0.70),
}


def seen_in(sequence: Sequence, signal: Float32[np.ndarray, "y x"]) -> Float32[np.ndarray, "y x"]:
    """Tissue signal of T1c as another sequence has it.

    Example:
        >>> csf_and_white = np.array([[CSF, WHITE]], np.float32)
        >>> seen_in("T2", csf_and_white).round(2).tolist()
        [[0.949999988079071, 0.41999998688697815]]
    """
    if sequence == "T1c":
        return signal
    return np.interp(signal, TISSUES, SIGNALS[sequence]).astype(np.float32)


def slices_of(config: BrainConfig, index: int, *, seed: int) -> Iterator[Case]:
    """The slices of a patient, each in the four sequences, from the lowest level to the highest."""
    patient = draw_patient(config, index, seed=seed)
    name = f"patient-{index:03d}"
    for number in range(config.slices_per_patient):
        level = (number + 0.5) / config.slices_per_patient
        signal, inside, lesions = draw_slice(config, patient, level)
        for k, sequence in enumerate(SEQUENCES):
            chance = np.random.default_rng([seed, index, number, k])
            yield Case(
                case_id=f"{name}/slice-{number:02d}/{sequence}",
                patient_id=name,
                image=Image(
                    scan(seen_in(sequence, signal), inside, patient, chance)[None],
                    spacing_mm=(patient.field_mm / config.side_px,) * 2,
                ),
                label="tumour" if lesions else "normal",
                traits={"sequence": sequence, "slice_level": level},
                origin=Real(f"phantom brain, seed {seed}, as {sequence}"),
            )


def write_sequences(
    out: Path,
    config: BrainConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> Dataset:
    """Write phantoms in four sequences into the dataset folder `out`, split 7:1:2 by patient."""
    with DatasetWriter(
        out,
        patients_from="phantom patients",
        value_range=(0, 255),
        about={"phantom": {"brain": config.model_dump(mode="json"), "seed": seed}},
    ) as writer:
        for done in range(config.patients):
            for case in slices_of(config, config.first_patient + done, seed=seed):
                writer.add(case)
            progress(done + 1, config.patients)
    return Dataset.open(out)
