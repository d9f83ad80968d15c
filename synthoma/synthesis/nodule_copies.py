"""Is a drawn nodule a training nodule in disguise?

Nodules are compared as the middle halves of their cubes, at 16 voxels a side, without their mean
and with unit length, also flipped along each axis. The distance is the share of a nodule's variance
that the nearest training nodule leaves unexplained, 1 - r^2 with r the correlation: 0 for a copy, 1
for nothing in common. Nodules are bright in the middle, so that even strangers are far from 1. A
copy is nearer than one of a hundred real nodules of held-out patients comes to a training nodule,
and nearer than `FARTHEST` whatever those do.
"""

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
SIDE = 16
#: No nodule farther than this is a copy.
FARTHEST = 0.1
#: The share of held-out nodules that would be called copies.
SHARE = 0.01
#: Copies that `facts` names.
NAMED = 50


@dataclass(eq=False)
class NoduleGallery:
    """Training nodules that nothing may be a copy of."""

    views: Float32[np.ndarray, "n d"]
    names: list[str]
    threshold: float = FARTHEST
    honest: Float[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0))
    distances: list[float] = field(default_factory=list)
    """Of what was looked at."""
    found: list[tuple[str, str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, training: Dataset, held_out: Dataset | None) -> "NoduleGallery":
        """Take in training cubes, and learn from held-out ones where copies begin."""
        gallery = cls(
            np.stack([view(nodule) for nodule in nodules_in(training)]),
            [training[i].case_id for i in range(len(training))],
        )
        if held_out is not None:
            gallery.honest = np.array([gallery.nearest(own)[0] for own in nodules_in(held_out)])
            gallery.threshold = min(FARTHEST, float(np.quantile(gallery.honest, SHARE)))
        return gallery

    def nearest(self, nodule: Float32[np.ndarray, "z y x"]) -> tuple[float, str]:
        """The distance to the nearest training nodule, and its name."""
        seen = view(nodule).reshape(SIDE, SIDE, SIDE)
        flips = [
            seen[tuple(slice(None, None, s) for s in signs)] for signs in product((1, -1), repeat=3)
        ]
        r = np.stack([flip.ravel() for flip in flips]) @ self.views.T
        best = r.max(axis=0).clip(0, 1)
        place = int(best.argmax())
        return float(1 - best[place] ** 2), self.names[place]

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


def nodules_in(cubes: Dataset) -> Iterator[Float32[np.ndarray, "z y x"]]:
    """The middle half of each cube, in [-1, 1]."""
    for i in range(len(cubes)):
        cube = signed_unit(cubes.values(i), cubes.about["value_range"])[0]
        quarter = len(cube) // 4
        inner = slice(quarter, len(cube) - quarter)
        yield cube[inner, inner, inner]


def view(nodule: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, " d"]:
    """What is compared of a nodule."""
    small = resample(np.ascontiguousarray(nodule), (SIDE, SIDE, SIDE)).ravel()
    small = small - small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-6))


def quantiles(values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """How many there are, and how near they come."""
    if not len(values):
        return {"n": 0}
    own = {str(q): round(float(np.quantile(values, q)), 4) for q in (0.0, 0.01, 0.05, 0.5)}
    return {"n": len(values), "quantiles": own}
