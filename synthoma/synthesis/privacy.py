"""The copy check: no image leaves the toolkit that is a training image, or one in slight disguise.

    image -> 16 x 16, screened against all -> the likeliest, aligned at 24 x 24 -> distance

The distance (see `disguise.py`) is the share of an image's variance, from 0 to 1, that a training
image leaves unexplained, whichever way it is flipped, moved or brightened a little. A copy is
nearer than honest images come, and much nearer to one patient than to any other: a mere blob is
near to all.

How near honest images come is learnt from real ones that the generator never saw. Their log
distances are taken for normal, with centre and lower spread from quantiles, so that a few held-out
images with a twin in the training set (a patient under two names) do not move the threshold.

What it cannot find: docs/privacy.md.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from synthoma.data.boxes import clip
from synthoma.data.case import Case, Synthetic
from synthoma.data.dataset import Dataset
from synthoma.engine.train import threads
from synthoma.errors import DataError
from synthoma.synthesis.disguise import align, changes, pattern, screened, screens

Region = Literal["image", "boxes"]

#: Sides at which images are screened and compared, and the pass band there (Gaussian sigmas).
COARSE_PX, COARSE_BAND = 16, (0.8, 3.0)
FINE_PX, FINE_BAND = 24, (0.75, 2.25)
#: Training images that pass the screen, those of them that are aligned, and how many of patients
#: other than the likeliest are screened beside them.
SCREENED, ALIGNED, OTHERS = 12, 6, 4
#: Gauss-Newton steps of the alignment.
STEPS = 4
#: Spreads below the centre of honest log distances at which copies begin.
SPREADS = 3.0
#: A copy is nearer than this share of its distance to any other patient's images.
ALONE = 0.65
#: No distance above this is called a copy, however far apart honest images are.
MOST = 0.2
#: A distance that honest images never came to; the threshold where none of them is known.
CERTAIN = 0.02
#: Fewer honest distances than this say nothing.
FEWEST = 10
#: Held-out images (or boxes) from which on they are preferred to other training patients.
ENOUGH = 30
#: Honest distances that are measured at most.
MEASURED = 1000
#: Images compared at once.
BLOCK = 64
#: Boxes with a shorter side have too few pixels to tell a copy.
LEAST_BOX_PX = 4
#: Copies that `facts` names.
NAMED = 50
#: The share of a normal distribution below one standard deviation under its centre.
ONE_BELOW = 0.1587
QUANTILES = (0.0, 0.01, 0.05, 0.5)


@dataclass(frozen=True)
class Copy:
    """A synthetic case, and the training image that it is a copy of."""

    case_id: str
    of: str
    """The training case."""
    distance: float


@dataclass(frozen=True, eq=False)
class Views:
    """What is compared of some cases: whole images, or boxes; as they are and flipped."""

    coarse: Float[Tensor, "n 2 h h"]
    fine: Float[Tensor, "n 2 s s"]
    of: Int64[Tensor, " n"]
    """Which case each is from."""

    def __len__(self) -> int:
        return len(self.of)

    def take(self, places: Int64[Tensor, " m"]) -> "Views":
        """Some of them."""
        return Views(self.coarse[places], self.fine[places], self.of[places])


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each of n views, the nearest training view."""

    distance: Float[Tensor, " n"]
    place: Int64[Tensor, " n"]
    """Which training view."""
    second: Float[Tensor, " n"]
    """The distance to the nearest view of any other training patient; 1 where there is none."""


class Gallery:
    """The training images that nothing may be a copy of, and how near honest images come to them.

    Holds 7 kB a training image.
    """

    def __init__(
        self, views: Views, case_ids: Sequence[str], patients: Sequence[str], region: Region
    ) -> None:
        self.region: Region = region
        self.case_ids = [case_ids[i] for i in views.of.tolist()]
        codes = {name: code for code, name in enumerate(dict.fromkeys(patients))}
        self.owners = torch.tensor([codes[patients[i]] for i in views.of.tolist()])
        self.n_patients = len(set(self.owners.tolist()))
        self.screens = screens(views.coarse[:, 0])
        self.fine = views.fine[:, 0].clone()
        self.honest, self.honest_from, self.honest_copies = np.zeros(0), "none", 0
        self.threshold = CERTAIN
        self.distances = array("f")
        self.found: list[Copy] = []

    @classmethod
    def of(
        cls,
        training: Dataset,
        held_out: Dataset | None,
        *,
        also: Sequence[Dataset] = (),
        region: Region = "image",
    ) -> "Gallery":
        """Take in the training images, and learn from honest ones where copies begin.

        Args:
            held_out: Real images of other patients. Where there are fewer than 30, honest
                distances are those of training images to images of other training patients.
            also: Further training images.
            region: "image": whole images. "boxes": what is inside boxes, for images whose
                surroundings are real by construction.

        Raises:
            DataError: Nothing to compare with, or the images are 3D.
        """
        cases = [case for dataset in (training, *also) for case in dataset]
        views = look(cases, region)
        if not len(views):
            what = "image" if region == "image" else "box"
            raise DataError(f"{training.folder}: no training {what} to look for copies of")
        gallery = cls(views, [c.case_id for c in cases], [c.patient_id for c in cases], region)
        others = None
        if held_out is not None:
            others = look([held_out[i] for i in spread(len(held_out)).tolist()], region)
        if others is not None and len(others) >= ENOUGH:
            gallery.learn(others, None, "held-out images")
        elif gallery.n_patients > 1:
            places = spread(len(views))
            own = gallery.owners[places]
            gallery.learn(views.take(places), own, "training images of other patients")
        return gallery

    def learn(self, views: Views, own: Int64[Tensor, " n"] | None, source: str) -> None:
        """Set the threshold by the distances of honest images."""
        if not len(views):
            return
        nearest = self.nearest(views, own)
        self.honest, self.honest_from = nearest.distance.double().numpy(), source
        self.threshold = threshold(self.honest)
        self.honest_copies = int(self.are_copies(nearest).sum())

    def nearest(self, views: Views, own: Int64[Tensor, " n"] | None = None) -> Nearest:
        """The nearest training view of each view.

        Args:
            own: The patient of each, whose images are not compared with it.
        """
        blocks = []
        with threads(1):
            for start in range(0, len(views), BLOCK):
                rows = slice(start, start + BLOCK)
                block = Views(views.coarse[rows], views.fine[rows], views.of[rows])
                blocks.append(self.nearest_of_block(block, None if own is None else own[rows]))
        return Nearest(
            torch.cat([block.distance for block in blocks]),
            torch.cat([block.place for block in blocks]),
            torch.cat([block.second for block in blocks]),
        )

    def nearest_of_block(self, views: Views, own: Int64[Tensor, " n"] | None) -> Nearest:
        """`nearest` for few views."""
        n = len(views)
        alike = (screened(views.coarse).flatten(0, 1) @ self.screens.T).square()
        best, flipped = alike.view(n, 2, -1, len(self.fine)).sum(2).max(1)  # (n, training views)
        if own is not None:
            best = best.masked_fill(own[:, None] == self.owners, -1)
        first = self.owners[best.argmax(1)][:, None]
        others = best.masked_fill(self.owners == first, -1)
        likely = torch.cat([top(best, SCREENED), top(others, OTHERS)], 1)
        flip = flipped.gather(1, likely)
        rows = torch.arange(n)[:, None]
        images, columns = views.fine[rows, flip], changes(self.fine[likely.flatten()])
        rough = align(images.flatten(0, 1), columns, 0).view(likely.shape)
        order = top(-rough, ALIGNED)
        other = top(-rough.masked_fill(self.owners[likely] == first, 2), 2)
        order = torch.cat([order, other], 1)
        chosen, images = likely.gather(1, order), images[rows, order]
        columns = columns.unflatten(0, likely.shape)[rows, order]
        distance = align(images.flatten(0, 1), columns.flatten(0, 1), STEPS).view(chosen.shape)
        if own is not None:
            distance = distance.masked_fill(self.owners[chosen] == own[:, None], 1)
        least, which = distance.min(1)
        place = chosen.gather(1, which[:, None])
        second = distance.masked_fill(self.owners[chosen] == self.owners[place], 1).amin(1)
        return Nearest(least, place[:, 0], second)

    def are_copies(self, nearest: Nearest) -> Bool[Tensor, " n"]:
        """Which are nearer than honest images come, and much nearer than to any other patient.

        The second does not matter to near perfect copies: a patient may be there twice.
        """
        alone = (nearest.distance < ALONE * nearest.second) | (nearest.distance < CERTAIN)
        return (nearest.distance < self.threshold) & alone

    def copies(self, cases: Sequence[Case]) -> list[Copy | None]:
        """For each case, what it is a copy of; remembered for `facts`.

        A case without boxes is no copy where boxes are compared.
        """
        views = look(cases, self.region)
        found: list[Copy | None] = [None] * len(cases)
        if not len(views):
            return found
        nearest = self.nearest(views)
        copied, of = self.are_copies(nearest), views.of.tolist()
        least: dict[int, float] = {}
        for k in nearest.distance.argsort(stable=True).tolist():  # of several boxes, the nearest
            i, distance = of[k], float(nearest.distance[k])
            least.setdefault(i, distance)
            if copied[k] and found[i] is None:
                found[i] = Copy(cases[i].case_id, self.case_ids[int(nearest.place[k])], distance)
        self.distances.extend(least[i] for i in sorted(least))
        self.found.extend(copy for copy in found if copy is not None)
        return found

    def copy_of(self, case: Case) -> Copy | None:
        """What a case is a copy of; `copies` is much faster for many."""
        return self.copies([case])[0]

    def facts(self) -> dict[str, Any]:
        """What was compared with what and what was found, for dataset.json."""
        return {
            "region": self.region,
            "compared_with": len(self.case_ids),
            "of_patients": self.n_patients,
            "sides_px": [COARSE_PX, FINE_PX],
            "threshold": round(self.threshold, 4),
            "honest": {
                "from": self.honest_from,
                **summary(self.honest),
                "called_copies": self.honest_copies,
            },
            "synthetic": summary(np.asarray(self.distances, np.float64)),
            "n_copies": len(self.found),
            "copies": [[c.case_id, c.of, round(c.distance, 4)] for c in self.found[:NAMED]],
        }


def check_folder(
    synthetic: Dataset,
    training: Dataset,
    held_out: Dataset | None,
    region: Region = "image",
    progress: Callable[[int, int], None] = lambda done, n: None,
) -> dict[str, Any]:
    """Look through a whole folder for copies of training images.

    Returns:
        `Gallery.facts`, with every copy in "copies"; "flagged", whether there is any; and
        "distances", of "honest" and of "synthetic" images to the nearest training image.

    Raises:
        DataError: As `Gallery.of`.
    """
    gallery = Gallery.of(training, held_out, region=region)
    for start in range(0, len(synthetic), BLOCK):
        stop = min(start + BLOCK, len(synthetic))
        gallery.copies([synthetic[i] for i in range(start, stop)])
        progress(stop, len(synthetic))
    return gallery.facts() | {
        "flagged": bool(gallery.found),
        "copies": [(c.case_id, c.of, round(c.distance, 4)) for c in gallery.found],
        "distances": {
            "honest": gallery.honest.round(4).tolist(),
            "synthetic": np.asarray(gallery.distances, np.float64).round(4).tolist(),
        },
    }


def top(scores: Float[Tensor, "n m"], k: int) -> Int64[Tensor, "n k"]:
    """The places of the k largest of each row, or of all."""
    return scores.topk(min(k, scores.shape[1]), 1).indices


def threshold(honest: Float[np.ndarray, " n"]) -> float:
    """The distance below which an image is called a copy."""
    if len(honest) < FEWEST:
        return CERTAIN
    low, middle = np.quantile(np.log(np.maximum(honest, 1e-6)), [ONE_BELOW, 0.5])
    return float(min(np.exp(middle - SPREADS * (middle - low)), MOST))


def spread(n: int) -> Int64[Tensor, " m"]:
    """All places of a list, or `MEASURED` of them at equal distances."""
    return torch.linspace(0, n - 1, min(n, MEASURED)).round().long()


def summary(distances: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """How many distances, and their quantiles by name."""
    if not len(distances):
        return {"n": 0}
    quantiles = np.quantile(distances, QUANTILES).round(4).tolist()
    return {
        "n": len(distances),
        "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
    }


def look(cases: Sequence[Case], region: Region) -> Views:
    """What is compared of cases, at both sides.

    Raises:
        DataError: An image is 3D.
    """
    coarse, fine, of = [], [], []
    for i, case in enumerate(cases):
        for part in parts(case, region):
            both = np.stack([part, part[:, ::-1]])
            coarse.append([pattern(image, COARSE_PX, COARSE_BAND) for image in both])
            fine.append([pattern(image, FINE_PX, FINE_BAND) for image in both])
            of.append(i)
    return Views(
        torch.from_numpy(np.array(coarse, np.float32).reshape(-1, 2, COARSE_PX, COARSE_PX)),
        torch.from_numpy(np.array(fine, np.float32).reshape(-1, 2, FINE_PX, FINE_PX)),
        torch.tensor(of, dtype=torch.int64),
    )


def parts(case: Case, region: Region) -> Iterator[Float32[np.ndarray, "y x"]]:
    """The image, grey, or what is in its boxes: painted ones alone where the case tells them."""
    if len(case.image.space) != 2:
        raise DataError(f"case {case.case_id!r}: the copy check is for 2D images")
    grey = np.asarray(case.image.values, np.float32).mean(0)
    if region == "image":
        yield grey
        return
    painted = case.origin.conditions.get("painted") if isinstance(case.origin, Synthetic) else None
    boxes = case.boxes if painted is None else np.asarray(painted, np.float32).reshape(-1, 4)
    for box in clip(boxes, grey.shape) if boxes is not None else ():
        (y0, x0), (y1, x1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        if min(y1 - y0, x1 - x0) >= LEAST_BOX_PX:
            yield grey[y0:y1, x0:x1]
