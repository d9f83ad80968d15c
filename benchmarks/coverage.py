"""How often 95 % intervals over patients hold the truth, for few patients. Three methods.

    python benchmarks/coverage.py [--trials 2000] [--resamples 2000] [--seed 0]

About 13 minutes on one core. Prints JSON: for each number of patients, metric and method, the
share of simulated test sets whose interval held the value of the whole population. The row
"expanded" is `synthoma.metrics.intervals.COVERAGE`, and the table in docs/precision.md.

The world: a patient has 26 slices (as in Han et al. 2019) and 1 to many lesions, 4 in the mean; a
lesion crosses 7 slices in the mean, a box on each. Both make their boxes easy or hard, so hits are
correlated. False positives a slice vary between patients, 2 in the mean. A second set-up gains
something on average, not the same for every patient. Chance depends on the seed and the number of
patients alone, so `--patients 5` gives the row of 5 again.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthoma.metrics.detection import operating_point
from synthoma.metrics.intervals import (
    PatientMetric,
    average_precision_of,
    expanded_tail,
    ratio,
    resampled,
)
from synthoma.metrics.matching import Matches

PATIENTS = (2, 3, 5, 8, 10, 15, 20, 25, 30, 40)
LEVEL = 0.95


@dataclass(frozen=True)
class World:
    """A test set of two set-ups; a patient is one case here."""

    first: Matches
    second: Matches
    slices: np.ndarray
    """Of each patient."""

    def metrics(self) -> dict[str, tuple[PatientMetric, ...]]:
        """Each metric, or the two whose difference it is."""
        patient = np.arange(len(self.slices))
        first, second = operating_point(self.first), operating_point(self.second)
        sensitivity = ratio(first.hits, first.truths, patient)
        return {
            "sensitivity": (sensitivity,),
            "false_positives_per_slice": (ratio(first.false_positives, self.slices, patient),),
            "average_precision": (average_precision_of([self.first], patient),),
            "difference_of_sensitivity": (
                ratio(second.hits, second.truths, patient),
                sensitivity,
            ),
        }


def world(n: int, rng: np.random.Generator) -> World:
    """A test set of `n` patients."""
    lesions = 1 + rng.negative_binomial(1, 1 / 4, size=n)
    owner = np.repeat(np.arange(n), lesions)
    boxes = 1 + rng.poisson(6, size=len(owner))
    truth_case = np.repeat(owner, boxes)
    ease = rng.normal(0, 0.8, n)[owner] + rng.normal(0, 1.0, len(owner))
    ease = np.repeat(ease, boxes)
    gain = np.repeat(rng.normal(0.3, 0.4, n)[owner], boxes)
    slices = 10 + rng.poisson(16, size=n)
    wrong = rng.poisson(slices * rng.gamma(1.5, 2.0 / 1.5, size=n))
    wrong_case = np.repeat(np.arange(n), wrong)

    def matches(ease: np.ndarray) -> Matches:
        # A box is found where its ease and some luck suffice; then easier ones score higher.
        logit = 1.0 + ease + rng.logistic(size=len(ease))
        found = np.flatnonzero(logit > 0)
        scores = np.concatenate(
            [ndtr(logit[found] / 2 - 0.5), ndtr(rng.normal(-1, 1, wrong.sum()))]
        )
        scores = np.maximum(scores, 0.001)
        truth = np.concatenate([found, np.full(wrong.sum(), -1)])
        case = np.concatenate([truth_case[found], wrong_case])
        return Matches(scores, case, truth, truth_case, n)

    return World(matches(ease), matches(ease + gain), slices)


def combined(parts: tuple[PatientMetric, ...], weights: np.ndarray) -> np.ndarray:
    values = [part.of(weights) for part in parts]
    return values[0] if len(values) == 1 else values[0] - values[1]


def tails(parts: tuple[PatientMetric, ...], drawn: np.ndarray, n: int) -> dict[str, list[float]]:
    """Which quantiles of the resamples each method reads."""
    half = (1 - LEVEL) / 2
    value = combined(parts, np.ones((1, n)))[0]
    below = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    without_one = combined(parts, 1.0 - np.eye(n))
    gap = without_one.mean() - without_one
    spread = (gap**2).sum() ** 1.5
    acceleration = (gap**3).sum() / (6 * spread) if spread > 0 else 0.0
    bias = ndtri(np.clip(below, 1 / (2 * len(drawn)), 1 - 1 / (2 * len(drawn))))
    shifted = bias + ndtri(np.array([half, 1 - half]))
    bca = ndtr(bias + shifted / (1 - acceleration * shifted))
    expanded = expanded_tail(n, LEVEL)
    return {
        "percentile": [half, 1 - half],
        "bca": bca.tolist(),
        "expanded": [expanded, 1 - expanded],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, nargs="+", default=PATIENTS)
    arguments = parser.parse_args()
    population = world(40_000, np.random.default_rng([arguments.seed, 0])).metrics()
    truth = {
        name: combined(parts, np.ones((1, 40_000)))[0].item() for name, parts in population.items()
    }
    coverage: dict[str, dict[str, dict[int, float]]] = {}
    for n in arguments.patients:
        rng = np.random.default_rng([arguments.seed, n])
        held: dict[tuple[str, str], list[bool]] = {}
        for _ in range(arguments.trials):
            sample = world(n, rng).metrics()
            weights = resampled(n, arguments.resamples, int(rng.integers(2**32)))
            for name, parts in sample.items():
                drawn = combined(parts, weights)
                for method, at in tails(parts, drawn, n).items():
                    low, high = np.quantile(drawn, at)
                    held.setdefault((method, name), []).append(low <= truth[name] <= high)
        for (method, name), each in held.items():
            share = round(float(np.mean(each)), 3)
            coverage.setdefault(method, {}).setdefault(name, {})[n] = share
        print(
            n, {key: round(float(np.mean(each)), 3) for key, each in held.items()}, file=sys.stderr
        )
    print(json.dumps({"settings": vars(arguments), "truth": truth, "coverage": coverage}, indent=1))


if __name__ == "__main__":
    main()
