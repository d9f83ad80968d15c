"""t-SNE: points of many dimensions laid out in the plane so that neighbours stay neighbours.

    features (n, d) --PCA to 50 where d is more--> t-SNE -> (n, 2)

A picture to look at, not a measure: sizes of clumps and distances between them mean nothing
(Wattenberg et al. 2016, https://doi.org/10.23915/distill.00002).

Papers:
  van der Maaten and Hinton 2008, Visualizing data using t-SNE
  Poličar et al. 2024, openTSNE, https://doi.org/10.18637/jss.v109.i03
  Han et al. 2019: perplexity 100, 1,000 iterations, on raw pixels
Differs from the papers: pixels beyond 50 dimensions go through PCA first (as van der Maaten's do);
the layout starts from the first two principal components, openTSNE's way, not from chance.
"""

import numpy as np
from jaxtyping import Float, Float64

from synthoma.errors import DataError, SettingsError

#: Dimensions that t-SNE is given at most.
DIMENSIONS = 50
#: Of all iterations, this many at most exaggerate neighbourhoods, and at most a quarter do.
EXAGGERATED = 250


def perplexity_for(n: int, wanted: float = 100) -> float:
    """The perplexity that `embed` uses on `n` points: what is wanted, at most (n - 1) / 3.

    A point has about three times the perplexity of neighbours, and no more than there are.

    Example:
        >>> perplexity_for(5000), perplexity_for(61)
        (100, 20.0)
    """
    return min(wanted, (n - 1) / 3)


def embed(
    features: Float[np.ndarray, "n d"],
    *,
    seed: int,
    perplexity: float = 100,
    iterations: int = 1000,
) -> Float64[np.ndarray, "n 2"]:
    """Lay points out in the plane with t-SNE, the same for the same arguments.

    Args:
        features: Raw pixels, or what a network makes of them; not scaled here.
        perplexity: Lowered for few points; `perplexity_for(n)` says what to report.
        iterations: In all; the first quarter (at most 250) exaggerates neighbourhoods.

    Raises:
        DataError: Fewer than 4 points, all points the same, or values that are not finite.
        SettingsError: A perplexity or a number of iterations below 1.
    """
    n, d = features.shape
    if n < 4:
        raise DataError(f"{n} points; t-SNE needs at least 4")
    if not np.isfinite(features).all():
        raise DataError(f"{(~np.isfinite(features)).sum()} features are not finite numbers")
    if (features == features[0]).all():
        raise DataError(f"all {n} points are the same; there is nothing to lay out")
    if perplexity < 1 or iterations < 1:
        raise SettingsError(f"perplexity {perplexity}, iterations {iterations}; allowed: 1 or more")
    from openTSNE import TSNE  # noqa: PLC0415
    from sklearn.decomposition import PCA  # noqa: PLC0415

    points = np.asarray(features, np.float64)
    if d > DIMENSIONS:
        pca = PCA(min(DIMENSIONS, n), svd_solver="randomized", random_state=seed)
        points = pca.fit_transform(points)
    exaggerated = min(EXAGGERATED, iterations // 4)
    tsne = TSNE(
        perplexity=perplexity_for(n, perplexity),
        early_exaggeration_iter=exaggerated,
        n_iter=iterations - exaggerated,
        neighbors="exact",
        random_state=seed,
        n_jobs=1,
    )
    return np.array(tsne.fit(points), np.float64)
