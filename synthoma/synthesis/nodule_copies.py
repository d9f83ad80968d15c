"""Is a drawn nodule a training nodule in disguise?

    nodule (the middle half of a cube) -> look -> 512 numbers -> what training nodules share taken
    away -> the share of it that the nearest training nodule leaves unexplained

Nodules are compared at 8 voxels a side, without their mean, flipped along each axis; training ones
are also looked at a little aside, from nearer and from farther. All nodules are bright in the
middle, so that even strangers are alike: the first principal components of training nodules are
taken away from all. The distance is the share of what is left of a nodule's variance that the
nearest training nodule leaves unexplained, 1 - r^2 with r the correlation: 0 for a copy, 1 for
nothing in common.

A copy is nearer than one of a hundred honest nodules comes to a training nodule, and nearer than
`FARTHEST` whatever those do. Honest are real nodules of held-out patients, and training nodules
against those of other training patients: a handful of held-out ones alone would say little.

What this finds and misses is in docs/privacy.md, measured by benchmarks/nodule_copy_check.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from synthoma.data.batches import signed_unit
from synthoma.data.dataset import Dataset
from synthoma.data.vois import resample

#: Voxels along each axis.
SIDE = 8
#: Of a cube of so many voxels a side, a training nodule is looked at so many aside along each axis
#: (9 % of the nodule's box), and with so many more and fewer at each face (12 %).
WIDE, ASIDE, GROWN = 64, 3, 2
#: Principal components that are taken away: at most, and for how many training nodules one.
SHARED, NODULES_EACH = 24, 8
#: No nodule farther than this is a copy; and none farther than this where nobody is honest.
FARTHEST, UNTOLD = 0.5, 0.1
#: The share of honest nodules that would be called copies; how many training nodules are asked.
SHARE, ASKED = 0.01, 500
#: Copies that `facts` names.
NAMED = 50


@dataclass(eq=False)
class NoduleGallery:
    """Training nodules that nothing may be a copy of."""

    shared: Float32[np.ndarray, "d k"]
    """What nodules have in common, as orthonormal columns."""
    views: Float32[np.ndarray, "n v d"]
    """Each nodule in several views, of unit length, without what is shared."""
    names: list[str]
    threshold: float = UNTOLD
    honest: Float[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0))
    distances: list[float] = field(default_factory=list)
    """Of what was looked at."""
    found: list[tuple[str, str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, training: Dataset, held_out: Dataset | None) -> "NoduleGallery":
        """Take in training cubes, and learn from honest nodules where copies begin."""
        seen = np.stack([views_of(cube) for cube in cubes_in(training)])
        shared = components(seen[:, 0])
        names = [training[i].case_id for i in range(len(training))]
        gallery = cls(shared, unit(without(shared, seen)), names)
        gallery._learn(training, [] if held_out is None else list(nodules_in(held_out)))
        return gallery

    def _learn(self, training: Dataset, held_out: list[Float32[np.ndarray, "z y x"]]) -> None:
        honest = [self.nearest(nodule)[0] for nodule in held_out]
        patients = np.array(training.patient_ids)
        every = math.ceil(len(patients) / ASKED)
        for i, nodule in enumerate(nodules_in(training)):
            others = patients != patients[i]
            if others.any() and i % every == 0:
                honest.append(float(self.apart(nodule)[others].min()))
        if honest:
            self.honest = np.array(honest)
            self.threshold = min(FARTHEST, float(np.quantile(self.honest, SHARE)))

    def apart(self, nodule: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, " n"]:
        """The distance to each training nodule."""
        seen = look(nodule).reshape(SIDE, SIDE, SIDE)
        flips = [
            seen[tuple(slice(None, None, s) for s in signs)] for signs in product((1, -1), repeat=3)
        ]
        own = unit(without(self.shared, np.stack([flip.ravel() for flip in flips])))
        r = own @ self.views.reshape(-1, own.shape[1]).T
        best = r.max(axis=0).reshape(self.views.shape[:2]).max(axis=1).clip(0, 1)
        return np.asarray(1 - best**2)

    def nearest(self, nodule: Float32[np.ndarray, "z y x"]) -> tuple[float, str]:
        """The distance to the nearest training nodule, and its name."""
        apart = self.apart(nodule)
        place = int(apart.argmin())
        return float(apart[place]), self.names[place]

    def is_copy(self, name: str, nodule: Float32[np.ndarray, "z y x"]) -> bool:
        """Whether a nodule is a copy; remembered under its name for `facts`."""
        distance, of = self.nearest(nodule)
        self.distances.append(distance)
        if distance < self.threshold:
            self.found.append((name, of, round(distance, 4)))
        return distance < self.threshold

    def facts(self) -> dict[str, Any]:
        """What was compared with what, for dataset.json."""
        return {
            "region": "nodules",
            "compared_with": len(self.names),
            "threshold": round(self.threshold, 4),
            "honest": quantiles(self.honest),
            "synthetic": quantiles(np.array(self.distances)),
            "n_copies": len(self.found),
            "copies": self.found[:NAMED],
        }


def cubes_in(cubes: Dataset) -> Iterator[Float32[np.ndarray, "z y x"]]:
    """Each cube, in [-1, 1]."""
    for i in range(len(cubes)):
        yield signed_unit(cubes.values(i), cubes.about["value_range"])[0]


def nodules_in(cubes: Dataset) -> Iterator[Float32[np.ndarray, "z y x"]]:
    """The middle half of each cube, in [-1, 1]."""
    return map(middle, cubes_in(cubes))


def middle(cube: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, "z2 y2 x2"]:
    """The middle half."""
    quarter = len(cube) // 4
    return cube[(slice(quarter, len(cube) - quarter),) * 3]


def look(nodule: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, " d"]:
    """What is compared of a nodule."""
    small = resample(np.ascontiguousarray(nodule), (SIDE, SIDE, SIDE)).ravel()
    return np.asarray(small - small.mean())


def views_of(cube: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, "v d"]:
    """The nodule of a cube: as it is, from a little aside, from nearer and from farther."""
    wide = resample(cube, (WIDE, WIDE, WIDE))
    low, high = WIDE // 4, WIDE - WIDE // 4
    regions = [
        tuple(slice(low + step, high + step) for step in steps)
        for steps in product((0, -ASIDE, ASIDE), repeat=3)
        if any(steps)
    ]
    regions += [(slice(low - more, high + more),) * 3 for more in (-GROWN, GROWN)]
    return np.stack([look(middle(cube)), *(look(wide[region]) for region in regions)])


def components(seen: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "d k"]:
    """The directions in which nodules vary most, flipped or not, as orthonormal columns."""
    flips = seen.reshape(-1, SIDE, SIDE, SIDE)
    for axis in (1, 2, 3):
        flips = np.concatenate([flips, np.flip(flips, axis)])
    every = unit(flips.reshape(len(flips), -1))
    _, directions = np.linalg.eigh(every.T @ every)  # by rising share
    n = min(SHARED, len(seen) // NODULES_EACH)
    return np.ascontiguousarray(directions[:, directions.shape[1] - n :])


def without(
    shared: Float32[np.ndarray, "d k"], seen: Float32[np.ndarray, "*n d"]
) -> Float32[np.ndarray, "*n d"]:
    """What is left of views when that which nodules share is taken away."""
    return np.asarray(seen - (seen @ shared) @ shared.T)


def unit(seen: Float32[np.ndarray, "*n d"]) -> Float32[np.ndarray, "*n d"]:
    """Views of length 1."""
    return np.asarray(seen / np.maximum(np.linalg.norm(seen, axis=-1, keepdims=True), 1e-6))


def quantiles(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """How many there are, and how near they come."""
    if not len(values):
        return {"n": 0}
    own = {str(q): round(float(np.quantile(values, q)), 4) for q in (0.0, 0.01, 0.05, 0.5)}
    return {"n": len(values), "quantiles": own}
