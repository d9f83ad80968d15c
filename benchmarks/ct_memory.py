"""What memory a large CT takes: imported, resampled to slices of 1 mm, scanned for nodules.

    OMP_NUM_THREADS=1 python benchmarks/ct_memory.py FOLDER [--space 300 512 512] [--steps ...]

FOLDER is new; in it a phantom chest (0.7 mm pixels, slices 1.25 mm apart, fine noise) is written as
a DICOM series, with an XML file of LIDC's that outlines one nodule. Each step is a process of its
own, and its figure is the most resident memory that it ever had (Linux' VmHWM), pages of
memory-mapped files among it. "scan" is the network and the windows of rcnn3d's preset `paper`,
untrained, over the whole of the resampled CT, as `find_in_scans` does it.
"""
# ruff: noqa: PLC0415  a step's process holds what the step needs, nothing else

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SPACING_MM = (1.25, 0.7, 0.7)
#: How much coarser the phantom is drawn than it is written.
COARSER = 4
STEPS = ("start", "write", "dicom", "lidc", "scan-float32", "scan-bf16")


def write(folder: Path, space: tuple[int, int, int]) -> None:
    """The series and what a reader marked in it."""
    import cv2

    from synthoma.data.case import Case, Image, Synthetic
    from synthoma.formats.dicom_write import slices_of
    from synthoma.formats.source import Tally
    from synthoma.phantoms.chest import ChestConfig, chests

    small = [n // COARSER for n in space]
    config = ChestConfig(
        slices=small[0],
        rows=small[1],
        columns=small[2],
        spacing_mm=tuple(own * COARSER for own in SPACING_MM),
        patients=1,
    )
    (phantom,) = chests(config, seed=0)
    chance = np.random.default_rng(0)
    values = np.empty((1, *space), np.int16)
    for k in range(space[0]):
        plane = phantom.image.values[0, k // COARSER].astype(np.float32)
        plane = cv2.resize(plane, space[:0:-1], interpolation=cv2.INTER_LINEAR)
        plane += 30 * chance.standard_normal(plane.shape, np.float32)
        values[0, k] = np.clip(np.rint(plane), -1024, 3071)
    case = Case("ct", "p", Image(values, spacing_mm=SPACING_MM, unit="hu"))
    series = folder / "series"
    series.mkdir(parents=True)
    outlines, middle = [], space[0] // 2
    for k, elements in enumerate(slices_of(case, Synthetic("phantom", 0), 1, Tally())):
        elements.save_as(series / f"{k:04}.dcm", enforce_file_format=True)
        if abs(k - middle) < 4:
            ring = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.rint(space[2] / 4 + 8 * np.stack([np.cos(ring), np.sin(ring)], 1))
            edges = "".join(
                f"<edgeMap><xCoord>{x:.0f}</xCoord><yCoord>{y:.0f}</yCoord></edgeMap>"
                for x, y in points
            )
            outlines.append(
                f"<roi><imageZposition>{elements.ImagePositionPatient[2]}</imageZposition>"
                f"<inclusion>TRUE</inclusion>{edges}</roi>"
            )
    (series / "marks.xml").write_text(
        '<LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader><SeriesInstanceUid>'
        f"{elements.SeriesInstanceUID}</SeriesInstanceUid></ResponseHeader><readingSession>"
        "<unblindedReadNodule><noduleID>1</noduleID><characteristics><texture>5</texture>"
        f"</characteristics>{''.join(outlines)}</unblindedReadNodule></readingSession>"
        "</LidcReadMessage>"
    )


def verb(*words: object) -> None:
    """`synthoma` with these words."""
    from synthoma.cli import main

    sys.argv = ["synthoma", *map(str, words)]
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise


def scan(folder: Path, precision: str) -> None:
    """What the untrained detector finds in the resampled CT."""
    import torch

    from synthoma.data.dataset import Dataset
    from synthoma.engine.scans import find_in_scans
    from synthoma.tasks.rcnn3d import PRESETS, RCNN3D

    torch.manual_seed(0)
    dataset, preset = Dataset.open(folder / "lidc"), PRESETS["paper"]
    found = find_in_scans(RCNN3D(preset.system), dataset, precision=precision)
    space, windows = dataset[0].image.space, preset.system.window.space
    print(f"{len(found.detections.boxes)} boxes in {space} voxels by windows of {windows}")


def take(step: str, folder: Path, space: tuple[int, int, int]) -> None:
    """One step, in this process."""
    if step == "start":
        import synthoma.tasks.rcnn3d  # noqa: F401
    elif step == "write":
        write(folder, space)
    elif step == "dicom":
        where = folder / "series", "--out", folder / "dicom"
        verb("data", "import", *where, "--format", "dicom", "--set", "dicom.axis=volume")
    elif step == "lidc":
        verb("data", "import", folder / "series", "--out", folder / "lidc", "--format", "lidc")
    else:
        scan(folder, step.removeprefix("scan-"))


def peak_mib() -> float:
    """The most resident memory that this process ever had."""
    told = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", told)[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--space", type=int, nargs=3, default=(300, 512, 512))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--here", action="store_true", help="in this process: what a step runs")
    arguments = parser.parse_args()
    folder, space = arguments.folder, tuple(arguments.space)
    if arguments.here:
        start = time.process_time()
        (step,) = arguments.steps
        take(step, folder, space)
        print(f"{step:14} peak {peak_mib():6.0f} MiB, {time.process_time() - start:.0f} CPU s")
        return
    print(f"{space} voxels, int16: {np.prod(space) * 2 / 2**20:.0f} MiB")
    for step in arguments.steps:
        words = [folder, "--space", *space, "--steps", step, "--here"]
        subprocess.run([sys.executable, __file__, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
