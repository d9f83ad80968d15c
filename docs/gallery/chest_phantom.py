"""Draws chest_phantom.png: `python docs/gallery/chest_phantom.py OUT.png`, about 15 CPU-seconds.

Above, patients 0 to 2 of seed 0, none chosen: three axial slices, one coronal, one sagittal. Below,
nodules that were ordered, each in an axial, a coronal and a sagittal view of 66 mm: sizes by
attenuations, then one at a wall, one at a vessel, one with spicules.
"""

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np

from synthoma.data.sheet import to_bytes, write_png
from synthoma.data.vois import ATTENUATIONS
from synthoma.phantoms.chest import ChestConfig, Patient, draw_chest, draw_patient, scan
from synthoma.phantoms.chest_anatomy import COARSE
from synthoma.phantoms.chest_nodules import Lung, draw_nodule, measure, place

LUNG_WINDOW_HU = (-1350.0, 150.0)
#: Diameter in mm, attenuation, edge, attached.
ORDERED = [
    (diameter_mm, attenuation, edge, attached)
    for attenuation in ATTENUATIONS
    for diameter_mm, edge, attached in (
        (7, "smooth", "free"),
        (14, "lobulated", "free"),
        (25, "smooth", "vessel"),
    )
] + [
    (13, "solid", "smooth", "wall"),
    (10, "solid", "smooth", "vessel"),
    (24, "solid", "spiculated", "vessel"),
]
CONFIG = ChestConfig()


def shown(plane: np.ndarray, scale: float) -> np.ndarray:
    """A plane in a lung window, with a dark edge."""
    grey = to_bytes(plane[None], LUNG_WINDOW_HU)[0]
    large = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return np.pad(large, ((0, 2), (0, 2)))


def scanned(patient: Patient) -> np.ndarray:
    """What the patient's scanner makes of the patient."""
    chance = np.random.default_rng(patient.index)
    return scan(draw_chest(CONFIG, patient), CONFIG.grid, patient.scanner, chance)


def views(patient: Patient) -> np.ndarray:
    """Three axial slices, a coronal and a sagittal one, all of one scale."""
    v = scanned(patient)
    axial = [
        shown(np.pad(v[k], ((8, 8), (0, 0)), constant_values=-1000), 1.4) for k in (44, 64, 86)
    ]
    return np.hstack([*axial, shown(v[::-1, 52], 1.4), shown(v[::-1, :, 46], 1.4)])


def nodule(patient: Patient, order: tuple[float, str, str, str], seed: int) -> np.ndarray:
    """Three views of 66 mm of a nodule in a patient who has no other."""
    diameter_mm, attenuation, edge, attached = order
    chance, grid = np.random.default_rng(seed), CONFIG.grid
    anatomy = patient.anatomy
    lung = Lung(COARSE, anatomy.lungs, patient.lungs.vessels, np.array(grid.first_mm), grid.last_mm)
    made = place(draw_nodule(diameter_mm, attenuation, edge, chance), attached, lung, [], chance)
    assert made is not None, f"no place for {order}"
    seen = measure(made, lung)
    assert seen is not None
    v = np.pad(scanned(dataclasses.replace(patient, nodules=(seen,))), 16, mode="edge")
    z, y, x = np.rint((made.centre - grid.first_mm) / grid.spacing_mm).astype(int)
    cube = v[z : z + 33, y : y + 33, x : x + 33]
    three = np.hstack([shown(p, 3.3) for p in (cube[16], cube[::-1, 16], cube[::-1, :, 16])])
    label = f"{seen.diameter_mm:.0f} mm, {attenuation}, {edge}, {attached}"
    cv2.putText(three, label, (3, len(three) - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 255, 1)
    return three


def main(out: Path) -> None:
    """Writes the picture."""
    patients = [draw_patient(CONFIG, index, seed=0) for index in range(3)]
    above = np.vstack([views(patient) for patient in patients])
    tiles = [nodule(patients[k % 3], order, k) for k, order in enumerate(ORDERED)]
    rows = [np.hstack(tiles[k : k + 3]) for k in range(0, len(tiles), 3)]
    below = np.vstack(rows)
    wide = max(above.shape[1], below.shape[1])
    parts = [np.pad(part, ((0, 0), (0, wide - part.shape[1]))) for part in (above, below)]
    write_png(out, np.vstack(parts)[..., None].repeat(3, axis=2), {"Phantom": "drawn, no patient"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
