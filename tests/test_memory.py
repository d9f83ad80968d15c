"""Volumes take little more memory than themselves; the full size is in docs/nodules.md."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from synthoma.data.case import Case, Image, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.data.vois import WINDOW_HU
from synthoma.engine.scans import find_in_scan
from synthoma.engine.system import Detections
from synthoma.formats.convert import import_dataset
from synthoma.formats.dicom_write import slices_of
from synthoma.formats.source import Tally
from synthoma.tasks.rcnn3d import PRESETS, RCNN3D

#: A small CT first, so that what is imported and compiled is there; then how much the large one
#: adds to the most that the process ever had.
IMPORT = """
import re, sys
from pathlib import Path
from synthoma.formats import load_format
from synthoma.formats.convert import import_dataset

def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) << 10

format, folder = sys.argv[1], Path(sys.argv[2])
settings = load_format(format).Settings(**({"axis": "volume"} if format == "dicom" else {}))
for name in ("small", "large"):
    before = peak()
    import_dataset(folder / name, folder / f"{name}-{format}", format=format, settings=settings)
print(peak() - before)
"""
SMALL, LARGE = (20, 256, 256), (240, 256, 256)


def save_ct(folder, space):
    """Slices 1.25 mm apart, and a reading that marks nothing but a point."""
    folder.mkdir()
    values = np.random.default_rng(0).integers(-1000, 400, (1, *space), np.int16)
    case = Case("ct", "p", Image(values, spacing_mm=(1.25, 0.7, 0.7), unit="hu"))
    for k, elements in enumerate(slices_of(case, Synthetic("made", 0), 1, Tally())):
        elements.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)
    (folder / "marks.xml").write_text(
        '<LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader><SeriesInstanceUid>'
        f"{elements.SeriesInstanceUID}</SeriesInstanceUid></ResponseHeader></LidcReadMessage>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("memory")
    save_ct(made / "small", SMALL)
    save_ct(made / "large", LARGE)
    return made


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux")
@pytest.mark.parametrize(
    ("format", "volumes"),
    [
        ("dicom", 1.0),  # the volume
        ("lidc", 1.0 + 1.25),  # and its slices of 1 mm
    ],
)
def test_an_import_holds_each_volume_once(folder, format, volumes):
    words = [sys.executable, "-c", IMPORT, format, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    taken, volume = int(done.stdout), np.prod(LARGE) * 2
    assert 0.9 * volume < taken < (volumes + 0.3) * volume
    slices = LARGE[0] if format == "dicom" else 299  # 239 gaps of 1.25 mm, in steps of 1 mm
    assert Dataset.open(folder / f"large-{format}").values(0).shape == (1, slices, *LARGE[1:])


def test_whole_cts_know_what_is_black_and_white(folder, tmp_path):
    ct = import_dataset(folder / "small", tmp_path / "ct", format="lidc")
    assert ct.n_cases == 1
    assert Dataset.open(tmp_path / "ct").about["value_range"] == WINDOW_HU
    import_dataset(folder / "small", tmp_path / "slices", format="dicom")  # these are prepared
    assert Dataset.open(tmp_path / "slices").about["value_range"] is None


def test_a_scan_is_read_by_windows_and_never_copied_whole(monkeypatch):
    values = np.zeros((1, 150, 150, 150), np.int16)
    detector, seen = RCNN3D(PRESETS["smoke"].system), []

    def nothing(image):
        seen.extend(len(part) for part in image)
        none = Detections(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.long))
        return [none] * len(image)

    monkeypatch.setattr(detector, "detect", nothing)
    tracemalloc.start()
    try:
        find_in_scan(detector, values, WINDOW_HU, precision="float32", batch_size=4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(seen) == 6**3
    window = 4 * 32**3
    assert peak < 4 * 5 * window < values.nbytes  # four at once, and copies while they are made
