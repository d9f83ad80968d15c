"""How well copies of nodules are found in disguise, and how rarely honest nodules are called so.

    OMP_NUM_THREADS=1 python benchmarks/nodule_copy_check.py CUBES [--splits 5] [--planted 60]

Prints the table of docs/privacy.md, "Nodules". CUBES is a dataset folder of nodules' cubes (`data
cubes`). Patients are split anew 7:1:2, several times over: training nodules are disguised as
cubes, and the middle half of each is planted; nodules of test patients play honest drawn ones.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from synthoma.data.dataset import Dataset
from synthoma.data.split import split_patients
from synthoma.synthesis.nodule_copies import NoduleGallery, nodules_in

Cube = np.ndarray
Chance = np.random.Generator
#: Values are from -1 to 1.
RANGE = 2.0


def either(chance: Chance, low: float, high: float) -> float:
    return float(chance.uniform(low, high) * chance.choice([-1, 1]))


def clipped(cube: Cube) -> Cube:
    return np.clip(cube, -1, 1)


def warped(
    cube: Cube, zoom: float = 1, move: tuple[float, ...] = (0, 0, 0), turn: float = 0
) -> Cube:
    """Zoomed about the middle, turned in the axial plane by degrees, moved by voxels of 1/16 of the
    nodule's box."""
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    back = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) / zoom
    middle = (np.array(cube.shape) - 1) / 2
    voxels = np.array(move) * len(cube) / 32
    return np.asarray(
        affine_transform(cube, back, middle - back @ (middle + voxels), order=1, mode="nearest")
    )


def noisy(share: float) -> Callable[[Cube, Cube, Chance], Cube]:
    return lambda cube, other, c: clipped(cube + c.normal(0, share * RANGE, cube.shape))


def aside(voxels: float, axes: int) -> Callable[[Cube, Cube, Chance], Cube]:
    def how(cube: Cube, other: Cube, c: Chance) -> Cube:
        move = np.zeros(3)
        move[c.permutation(3)[:axes]] = c.choice([-voxels, voxels], axes)
        return warped(cube, move=tuple(move))

    return how


def contrast(cube: Cube, other: Cube, c: Chance) -> Cube:
    return clipped(cube * c.uniform(0.6, 1.4) + either(c, 0.04, 0.16) * RANGE)


def smooth(voxels: float) -> Callable[[Cube, Cube, Chance], Cube]:
    return lambda cube, other, c: gaussian_filter(cube, voxels * len(cube) / 32)


def everything(cube: Cube, other: Cube, c: Chance) -> Cube:
    cube = cube[:, :, ::-1] if c.random() < 0.5 else cube
    cube = warped(cube, 1 + either(c, 0, 0.05), tuple(c.uniform(-1, 1, 3)), either(c, 0, 5))
    cube = cube * c.uniform(0.8, 1.2) + either(c, 0, 0.08) * RANGE
    return clipped(cube + c.normal(0, 0.03 * RANGE, cube.shape))


DISGUISES: dict[str, Callable[[Cube, Cube, Chance], Cube]] = {
    "none": lambda cube, other, c: cube,
    "flipped along all axes": lambda cube, other, c: cube[::-1, ::-1, ::-1],
    "noise, sd 5 % of the range": noisy(0.05),
    "noise, sd 10 %": noisy(0.1),
    "noise, sd 20 %": noisy(0.2),
    "moved by 1/16 of its box, one axis": aside(1, 1),
    "moved by 1/16, all axes": aside(1, 3),
    "moved by 2/16, one axis": aside(2, 1),
    "moved by 2/16, all axes": aside(2, 3),
    "zoomed by 10 %": lambda cube, other, c: warped(cube, 1 + either(c, 0.1, 0.1)),
    "turned by 15 degrees": lambda cube, other, c: warped(cube, turn=either(c, 15, 15)),
    "turned by 30 degrees": lambda cube, other, c: warped(cube, turn=either(c, 30, 30)),
    "contrast x 0.6 to 1.4, brightness ± 4 to 16 %": contrast,
    "half of it another patient's nodule": lambda cube, other, c: (cube + other) / 2,
    "smoothed, sigma 1/16": smooth(1),
    "smoothed, sigma 2/16": smooth(2),
    "flip, move, zoom, turn, contrast, noise at once": everything,
}


def middle(cube: Cube) -> Cube:
    quarter = len(cube) // 4
    inner = slice(quarter, len(cube) - quarter)
    return np.ascontiguousarray(cube[inner, inner, inner], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cubes", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--planted", type=int, default=60, help="of each split and disguise")
    arguments = parser.parse_args()
    dataset = Dataset.open(arguments.cubes)
    low, high = dataset.about["value_range"]
    found: dict[str, list[bool]] = {name: [] for name in ("honest", *DISGUISES)}
    start, looked = time.process_time(), 0.0
    for seed in range(arguments.splits):
        splits = split_patients(dataset.patients, seed=seed)
        training, held_out, test = (
            dataset.of_patients(splits[name]) for name in ("train", "validation", "test")
        )
        gallery = NoduleGallery.of(training, held_out)
        began = time.process_time()
        called = [gallery.nearest(nodule)[0] < gallery.threshold for nodule in nodules_in(test)]
        looked += (time.process_time() - began) / len(called) / arguments.splits
        found["honest"] += called
        print(
            f"split {seed}: {len(training)} training nodules, threshold {gallery.threshold:.3f} "
            f"from {len(gallery.honest)} honest ones; {sum(called)} of {len(called)} called copies"
        )
        patients = training.patient_ids
        for name, how in DISGUISES.items():
            chance = np.random.default_rng([seed, 1])
            n = min(arguments.planted, len(training))
            for i in chance.choice(len(training), n, replace=False):
                others = [k for k, patient in enumerate(patients) if patient != patients[i]]
                pair = [
                    np.asarray((training.values(k)[0] - low) * (2 / (high - low)) - 1).clip(-1, 1)
                    for k in (int(i), int(chance.choice(others)))
                ]
                planted = middle(how(pair[0], pair[1], chance))
                found[name].append(gallery.nearest(planted)[0] < gallery.threshold)
    for name, called in found.items():
        print(f"{name:48} {sum(called):4} of {len(called):4} ({np.mean(called):6.1%})")
    print(f"{looked * 1e3:.1f} CPU ms a nodule; {time.process_time() - start:.0f} CPU s in all")


if __name__ == "__main__":
    main()
