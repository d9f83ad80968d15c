"""How well the copy check finds disguised copies, and how rarely it flags honest images.

    python benchmarks/copy_check.py REAL [--synthetic SYNTH] [--images 110] [--boxes]

Prints the tables of docs/privacy.md. REAL is a prepared dataset folder with a train, a validation
and a test split; test images play honest synthetic ones.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from synthoma.data.case import Case
from synthoma.data.dataset import Dataset
from synthoma.synthesis.privacy import LEAST_BOX_PX, Gallery, Region

Picture = np.ndarray
Chance = np.random.Generator


def clipped(image: Picture) -> Picture:
    return np.clip(np.rint(image), 0, 255).astype(np.float32)


def either(chance: Chance, low: float, high: float) -> float:
    return float(chance.uniform(low, high) * chance.choice([-1, 1]))


def warped(
    image: Picture, zoom: float = 1, move: tuple[float, float] = (0, 0), turn: float = 0
) -> Picture:
    """Zoomed and turned about the middle, moved by shares of the side; black comes in."""
    height, width = image.shape
    map_ = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), turn, zoom)
    map_[:, 2] += np.array(move) * (width, height)
    return np.asarray(cv2.warpAffine(image, map_, (width, height)))


def jpeg(image: Picture, quality: int) -> Picture:
    setting = [cv2.IMWRITE_JPEG_QUALITY, quality]
    coded = cv2.imencode(".jpg", image.astype(np.uint8), setting)[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)).astype(np.float32)


def contrast(image: Picture, chance: Chance) -> Picture:
    return clipped((image - 128) * chance.uniform(0.6, 1.4) + 128 + either(chance, 10, 40))


def blurred(image: Picture) -> Picture:
    sigma = 1.5 * image.shape[0] / 64
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


def everything(image: Picture, c: Chance) -> Picture:
    image = image[:, ::-1].copy() if c.random() < 0.5 else image
    move = (either(c, 0, 0.03), either(c, 0, 0.03))
    image = warped(image, 1 + either(c, 0, 0.05), move, either(c, 0, 2))
    image = (image - 128) * c.uniform(0.8, 1.2) + 128 + either(c, 0, 20)
    return jpeg(clipped(image + c.normal(0, 8, image.shape)), 40)


DISGUISES: dict[str, Callable[[Picture, Chance], Picture]] = {
    "none": lambda image, c: image,
    "noise, sd 5 % of the range": lambda image, c: clipped(image + c.normal(0, 13, image.shape)),
    "noise, sd 10 %": lambda image, c: clipped(image + c.normal(0, 26, image.shape)),
    "contrast x 0.6 to 1.4, brightness ± 4 to 16 %": contrast,
    "gamma 0.6 or 1.6": lambda image, c: clipped(255 * (image / 255) ** c.choice([0.6, 1.6])),
    "left-right flip": lambda image, c: image[:, ::-1].copy(),
    "moved by 1 to 3 % along each axis": lambda image, c: clipped(
        warped(image, move=(either(c, 0.01, 0.03), either(c, 0.01, 0.03)))
    ),
    "moved by 3 to 6 % along each axis": lambda image, c: clipped(
        warped(image, move=(either(c, 0.03, 0.06), either(c, 0.03, 0.06)))
    ),
    "zoomed by 5 to 8 %": lambda image, c: clipped(warped(image, 1 + either(c, 0.05, 0.08))),
    "turned by 3 to 5 degrees": lambda image, c: clipped(warped(image, turn=either(c, 3, 5))),
    "JPEG quality 20": lambda image, c: jpeg(image, 20),
    "blur, sigma 2.3 % of the side": lambda image, c: blurred(image),
    "flip, move, zoom, turn, contrast, noise, JPEG": everything,
}


def disguised(case: Case, how: Callable[[Picture, Chance], Picture], chance: Chance) -> Case:
    picture = how(case.image.values[0].astype(np.float32), chance)
    return replace(case, image=replace(case.image, values=picture[None].astype(np.uint8)))


def cut_out(case: Case) -> list[Case]:
    """The inside of each box of a case as a case of its own."""
    found = []
    for box in case.boxes if case.boxes is not None else ():
        (y0, x0), (y1, x1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        if min(y1 - y0, x1 - x0) >= LEAST_BOX_PX:
            image = replace(case.image, values=case.image.values[:, y0:y1, x0:x1])
            whole = np.array([[0, 0, y1 - y0, x1 - x0]], np.float32)
            found.append(replace(case, image=image, boxes=whole, box_labels=()))
    return found


def flagged(gallery: Gallery, cases: list[Case]) -> str:
    before = len(gallery.distances)
    start = time.perf_counter()
    n = sum(copy is not None for copy in gallery.copies(cases))
    each = (time.perf_counter() - start) / len(cases)
    part = np.asarray(gallery.distances[before:])
    at = " ".join(f"{value:.3f}" for value in np.quantile(part, [0, 0.01, 0.5, 0.95]))
    return f"{n:5} of {len(part):5} ({n / len(part):7.2%}) | {at} | {1 / each:.0f}/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real", type=Path)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--images", type=int, help="training images, of whole patients")
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--boxes", action="store_true")
    parser.add_argument("--no-validation", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    region: Region = "boxes" if arguments.boxes else "image"
    real = Dataset.open(arguments.real)
    training = real.split("train")
    if arguments.images:
        chosen: list[str] = []
        for patient in np.random.default_rng(arguments.seed).permutation(training.patients):
            if len(training.of_patients(chosen)) < arguments.images:
                chosen.append(str(patient))
        training = training.of_patients(chosen)
    held_out = None if arguments.no_validation else real.split("validation")
    start = time.perf_counter()
    gallery = Gallery.of(training, held_out, region=region)
    print(
        f"{len(training)} training images of {len(training.patients)} patients, {region}; "
        f"threshold {gallery.threshold:.4f} from {len(gallery.honest)} {gallery.honest_from} "
        f"({gallery.honest_copies} called copies, quantiles "
        f"{np.quantile(gallery.honest, [0, 0.01, 0.05, 0.5]).round(3).tolist()}); "
        f"{time.perf_counter() - start:.1f} s"
    )
    print("flagged | distances: least, 1 %, 50 %, 95 % | images/s")
    test = list(real.split("test"))
    print("held-out test images", flagged(gallery, test))
    for copy in gallery.found:
        print("   ", copy)
    soft, chance = DISGUISES["blur, sigma 2.3 % of the side"], np.random.default_rng(1)
    print(
        "test images, blurred", flagged(gallery, [disguised(case, soft, chance) for case in test])
    )
    if arguments.synthetic:
        drawn = list(Dataset.open(arguments.synthetic))
        print("synthetic images", flagged(gallery, drawn))
    originals = list(training)
    if arguments.boxes:  # lesions are disguised as images of their own
        originals = [lesion for case in originals for lesion in cut_out(case)]
    for name, how in DISGUISES.items():
        chance = np.random.default_rng(2)
        n = min(arguments.planted, len(originals))
        places = chance.choice(len(originals), n, replace=False)
        planted = [disguised(originals[int(i)], how, chance) for i in places]
        print(f"{name:48}", flagged(gallery, planted))


if __name__ == "__main__":
    main()
