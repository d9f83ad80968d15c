"""How often p of a paired difference is small where two set-ups do not differ.

    python benchmarks/p_values.py [--seed 0] [--studies 2000]

Two set-ups of the same skill, patient by patient, are tested on the same simulated patients; a
p-value below 0.05 should come in 5 % of studies. Prints that share, and how often the interval
excludes zero.
"""

import argparse

import numpy as np

from synthoma.metrics.intervals import paired_difference, ratio

PATIENTS = (12, 24, 36, 60)


def study(n: int, seed: int, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether p is below 0.05, and whether the interval excludes zero, where nothing differs."""
    truths = 1 + rng.poisson(4, n)
    skill = rng.beta(4, 2, n)
    first, second = (ratio(rng.binomial(truths, skill), truths, np.arange(n)) for _ in range(2))
    found = paired_difference(first, second, seed=seed, resamples=1000)
    assert found.p is not None
    return found.p < 0.05, found.excludes_zero


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", type=int, default=2000)
    options = parser.parse_args()
    print("patients  p < 0.05  interval excludes zero")
    for n in PATIENTS:
        rng = np.random.default_rng(options.seed)
        small, apart = np.mean([study(n, k, rng) for k in range(options.studies)], axis=0)
        print(f"{n:8d}  {small:8.3f}  {apart:22.3f}")


if __name__ == "__main__":
    main()
