"""Draws nodules.png: `python docs/gallery/nodules.py RUN SCANS OUT.png`.

RUN is a trained mcgan, SCANS phantoms of `study mcgan_nodules` (of whole bodies the air outside
would be taken for lung). Nodules of each attenuation (rows) and size (7, 15, 25 mm) are ordered,
three of each, at places in the lung drawn by chance from seed 0, away from nodules. Each is shown
before and after, in an axial, a coronal and a sagittal view of twice the box. None is chosen; black
ones are of scans that the copy check left out.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter

from synthoma.data.case import Case, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.sheet import titled, write_png
from synthoma.data.views import three_views
from synthoma.data.vois import ATTENUATIONS, size_of
from synthoma.errors import DataError
from synthoma.synthesis.place import Ordered, check_places, place

DIAMETERS_MM = (7.0, 15.0, 25.0)
TRIES = 3
LUNG_WINDOW_HU = (-1350.0, 150.0)
#: A box lies in the lung where so much of it is air.
AIR_HU, AIR_SHARE = -600, 0.85


def free_box(case: Case, diameter_mm: float, chance: np.random.Generator) -> np.ndarray:
    """A cube of this side in the lung, away from nodules and faces."""
    spacing = np.asarray(case.image.spacing_mm or (1.0, 1.0, 1.0))
    sides = diameter_mm / spacing
    air = (case.image.values[0] < AIR_HU).astype(np.float32)
    filled = uniform_filter(air, np.maximum(1, np.rint(1.5 * sides)).astype(int), mode="constant")
    places = np.argwhere(filled > AIR_SHARE)
    for row in chance.permutation(len(places))[:1000]:
        middle = places[row] + 0.5
        box = np.concatenate([middle - sides / 2, middle + sides / 2])
        taken = np.zeros((0, 6)) if case.boxes is None else case.boxes
        apart = (taken[:, :3] > box[3:]) | (taken[:, 3:] < box[:3])
        if apart.any(axis=1).all():
            return box
    raise SystemExit(f"{case.case_id}: no free place of {diameter_mm:g} mm")


def main(run: Path, scans: Dataset, out: Path) -> None:
    """Order, draw, show."""
    chance = np.random.default_rng(0)
    train = scans.split("train") if "train" in scans.splits else scans
    kinds = [(a, d) for a in ATTENUATIONS for _ in range(TRIES) for d in DIAMETERS_MM]
    orders: dict[str, list[Ordered]] = {}
    asked = []
    for k, (attenuation, diameter_mm) in enumerate(kinds):
        case = train[k % len(train)]
        own = orders.setdefault(case.case_id, [])
        while True:
            ordered = Ordered(
                free_box(case, diameter_mm, chance), size_of(diameter_mm), attenuation
            )
            try:
                check_places(case, [*own, ordered])
            except DataError:
                continue
            break
        own.append(ordered)
        asked.append((case, ordered))
    with tempfile.TemporaryDirectory() as folder:
        drawn = place(run, train, Path(folder) / "drawn", n=len(orders), seed=0, orders=orders)
        by_scan = {}
        for one in drawn:
            assert isinstance(one.origin, Synthetic)
            by_scan[one.origin.conditions["background"]] = np.array(one.image.values[0])
        tiles = [shown(case, ordered, by_scan.get(case.case_id)) for case, ordered in asked]
    n = len(DIAMETERS_MM)
    rows = [np.hstack(tiles[k : k + n]) for k in range(0, len(tiles), n)]
    text = f"synthetic nodules of 7, 15, 25 mm: {', '.join(ATTENUATIONS)}, {TRIES} each"
    picture = titled(np.repeat(np.vstack(rows)[..., None], 3, axis=2), text)
    write_png(out, picture, {"Synthetic": "yes", "Run": str(run)})


def shown(case: Case, ordered: Ordered, drawn: np.ndarray | None) -> np.ndarray:
    """Before above, drawn below."""
    spacing = case.image.spacing_mm or (1.0, 1.0, 1.0)
    pair = [
        three_views(
            np.full_like(case.image.values[0], -2000) if values is None else values,
            ordered.box,
            value_range=LUNG_WINDOW_HU,
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
        )[0]
        for values in (case.image.values[0], drawn)
    ]
    return np.pad(np.vstack(pair), ((0, 4), (0, 6)))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Dataset.open(Path(sys.argv[2])), Path(sys.argv[3]))
